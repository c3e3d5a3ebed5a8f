"""Reading bounded files, and writing files and folders whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from keras_encryip.errors import ArgumentError, FormatError, instead_of, reason


def read_bounded(path: str | os.PathLike[str], *, what: str, max_bytes: int) -> bytes:
    """Read a file of at most `max_bytes`.

    Raises:
        FormatError: the file is missing, a folder, unreadable, or too large.
    """
    name = os.fspath(path)
    with (
        instead_of(
            OSError,
            raises=lambda error: FormatError(f"Cannot read the {what} {name!r}: {reason(error)}."),
        ),
        open(path, "rb") as file,
    ):
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise FormatError(f"The {what} {name!r} is too large: more than {max_bytes} bytes.")
    return data


def make_new_file(
    path: str | os.PathLike[str], fill: Callable[[Path], None], *, mode: int = 0o644
) -> None:
    """Make a file that must not exist yet: whole, under its name, or not at all.

    Args:
        path: its name, given at the end by an atomic link.
        fill: writes an empty temporary file beside it.
        mode: permissions.

    Raises:
        ArgumentError: the file exists (it is left as it is), or cannot be written.
    """

    def write(draft: Path) -> None:
        _create(draft, mode)
        fill(draft)
        with instead_of(FileExistsError, raises=lambda _: _taken(path)):
            os.link(draft, path)

    _by_draft(path, write)


def write_new_file(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o644) -> None:
    """`make_new_file` with these bytes, synced to disk before they get their name."""
    make_new_file(path, lambda draft: _write_synced(draft, data), mode=mode)


def replace_file(
    path: str | os.PathLike[str], data: bytes, *, what: str = "", mode: int = 0o600
) -> None:
    """Write a file anew, under a name that may be taken: it is whole afterwards, or as before.

    Raises:
        ArgumentError: the file cannot be written; `what` says what it is.
    """

    def write(draft: Path) -> None:
        _create(draft, mode)
        _write_synced(draft, data)
        os.replace(draft, path)

    _by_draft(path, write, what=what)


def make_new_folder(path: str | os.PathLike[str], fill: Callable[[Path], None]) -> None:
    """Make a folder that must not exist yet: whole, under its name, or not at all.

    Args:
        path: its name, given at the end by a rename.
        fill: fills a new temporary folder beside it, which goes again on any error. Folders
            above it are made, and stay.

    Raises:
        ArgumentError: the folder exists (it is left as it is), or cannot be written.
    """

    def write(draft: Path) -> None:
        if os.path.exists(path):
            raise _taken(path)
        draft.mkdir(parents=True)
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
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    name = f"the {what} {os.fspath(path)!r}" if what else repr(os.fspath(path))
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


def _write_synced(draft: Path, data: bytes) -> None:
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _taken(path: str | os.PathLike[str]) -> ArgumentError:
    return ArgumentError(
        f"Cannot write {os.fspath(path)!r}: it exists already, and is never overwritten. "
        "Choose another path."
    )
