"""Reading bounded files, and writing files and folders whole or not at all."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from keras_encryip.errors import ArgumentError, FormatError, instead_of, reason

_PART: Final = 1 << 20

PIPE_SECONDS: Final = 2.0
"""Whoever writes to a pipe that is read has to be done by then."""


def read_bounded(path: str | os.PathLike[str], *, what: str, max_bytes: int) -> bytes:
    """Read a file of at most `max_bytes`, or what is written to a pipe within two seconds.

    Raises:
        FormatError: the file is missing, a folder or device, unreadable, or too large.
    """
    name = os.fspath(path)
    with instead_of(
        *(OSError, ValueError),  # a path with a zero byte
        raises=lambda error: FormatError(f"Cannot read the {what} {name!r}: {reason(error)}."),
    ):
        file = open_file(path, pipes=True)
        with open(file, "rb") as opened:
            status = os.fstat(file)
            if stat.S_ISFIFO(status.st_mode):
                data = _read_pipe(file, max_bytes)
            else:  # room is made for what is asked for
                data = opened.read(min(status.st_size, max_bytes) + 1)
                while len(data) <= max_bytes and (part := opened.read(_PART)):  # it grows
                    data += part
    if len(data) > max_bytes:
        raise FormatError(f"The {what} {name!r} is too large: more than {max_bytes} bytes.")
    return data


def open_file(path: str | os.PathLike[str], *, flags: int = 0, pipes: bool = False) -> int:
    """A descriptor of a file, to be read. It waits for nobody.

    Raises:
        OSError: as `os.open`; also for folders and what may never end: devices, and pipes that
            are not wanted.
    """
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | flags)
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode) and not (pipes and stat.S_ISFIFO(mode)):
        os.close(file)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, "Is a directory" if stat.S_ISDIR(mode) else "It is a pipe or device")
    return file


def _read_pipe(file: int, max_bytes: int) -> bytes:
    data, deadline = bytearray(), time.monotonic() + PIPE_SECONDS
    while len(data) <= max_bytes:
        try:
            part = os.read(file, 1 << 16)
        except BlockingIOError:
            part = None  # somebody will write
        if part == b"" and data:
            break
        if not part:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "It is a pipe, and nobody ended writing to it")
            time.sleep(0.01)
        else:
            data += part
    return bytes(data)


def make_new_file(
    path: str | os.PathLike[str], fill: Callable[[Path], None], *, mode: int = 0o644
) -> None:
    """Make a file that must not exist yet: whole, under its name, or not at all.

    Where the file system has no hard links, the name stands for an empty file for a moment.

    Args:
        path: its name, given at the end by an atomic link.
        fill: writes an empty temporary file beside it.
        mode: permissions.

    Raises:
        ArgumentError: the file exists (it is left as it is), or cannot be written.
    """

    def write(draft: Path) -> None:
        if os.path.lexists(path):
            raise _taken(path)
        _create(draft, mode)
        fill(draft)
        with instead_of(FileExistsError, raises=lambda _: _taken(path)):
            _give_name(draft, path)

    _by_draft(path, write)


def write_synced(draft: Path, data: bytes) -> None:
    """Fill a draft, and sync it to disk."""
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_new_file(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o644) -> None:
    """`make_new_file` with these bytes, synced to disk before they get their name."""
    make_new_file(path, lambda draft: write_synced(draft, data), mode=mode)


def replace_file(
    path: str | os.PathLike[str], data: bytes, *, what: str = "", mode: int = 0o600
) -> None:
    """Write a file anew, under a name that may be taken: it is whole afterwards, or as before.

    Raises:
        ArgumentError: the file cannot be written; `what` says what it is.
    """

    def write(draft: Path) -> None:
        _create(draft, mode)
        write_synced(draft, data)
        os.replace(draft, path)

    _by_draft(path, write, what=what)


def make_new_folder(
    path: str | os.PathLike[str], fill: Callable[[Path], None], *, mode: int = 0o777
) -> None:
    """Make a folder that must not exist yet: whole, under its name, or not at all.

    Args:
        path: its name, given at the end by a rename.
        fill: fills a new temporary folder beside it, which goes again on any error. Folders
            above it are made, and stay.
        mode: its permissions, from the first byte in it on, less the umask.

    Raises:
        ArgumentError: the folder exists (it is left as it is), or cannot be written.
    """

    def write(draft: Path) -> None:
        if os.path.lexists(path):  # a link to nowhere, too, refuses the rename
            raise _taken(path)
        try:
            draft.mkdir(mode)
        except FileNotFoundError:
            draft.parent.mkdir(parents=True, exist_ok=True)
            draft.mkdir(mode)
        fill(draft)
        for folder in (draft, *(inner for inner in draft.rglob("*") if inner.is_dir())):
            sync_folder(folder)
        draft.rename(path)

    _by_draft(path, write)


def sync_tree(folder: Path) -> None:
    """Make a folder durable with all that others wrote into it, such as a SavedModel."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a new or renamed entry of a folder durable (a no-op where folders cannot be opened)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _by_draft(
    path: str | os.PathLike[str], write: Callable[[Path], None], *, what: str = ""
) -> None:
    """Let `write` make a draft beside the path and give it that name; a draft that stays goes."""
    target = Path(unexpanded(os.fspath(path)))
    name = f"the {what} {os.fspath(path)!r}" if what else repr(os.fspath(path))
    with instead_of(
        ValueError,
        raises=lambda _: ArgumentError(f"Cannot write {name}: no file can have this name."),
    ):
        draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
        with contextlib.suppress(OSError):
            os.lstat(draft)  # a zero byte, or half a character
    try:
        with instead_of(
            OSError, raises=lambda error: ArgumentError(f"Cannot write {name}: {reason(error)}.")
        ):
            write(draft)
            sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
            else:
                draft.unlink()


def unexpanded(path: str) -> str:
    """The path itself, but for `~`, which would make a folder of that name.

    Raises:
        ArgumentError: it begins with a home folder that a shell would put in.
    """
    if os.path.expanduser(path) != path:
        raise ArgumentError(
            f"The `~` of {path!r} is your shell's to expand: pass `os.path.expanduser(path)`, or "
            "the full path of a file of that name."
        )
    return path


def _create(draft: Path, mode: int) -> None:
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))


def _give_name(draft: Path, path: str | os.PathLike[str]) -> None:
    """Give a finished draft a name that is free; else `FileExistsError`."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # FAT, SMB and some containers refuse hard links
        _create(Path(path), 0o600)
        try:
            os.replace(draft, path)
        except BaseException:
            os.unlink(path)
            raise


def _taken(path: str | os.PathLike[str]) -> ArgumentError:
    return ArgumentError(
        f"Cannot write {os.fspath(path)!r}: it exists already, and is never overwritten. "
        "Choose another path."
    )
