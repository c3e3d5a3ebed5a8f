"""Reading bounded files, and writing new ones whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from keras_encryip.errors import ArgumentError, FormatError


def read_bounded(path: str | os.PathLike[str], *, what: str, max_bytes: int) -> bytes:
    """Read a file of at most `max_bytes`.

    Raises:
        FormatError: the file is missing, a folder, unreadable, or too large.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FormatError(f"Cannot read the {what} {os.fspath(path)!r}: {reason}.") from None
    if len(data) > max_bytes:
        raise FormatError(
            f"The {what} {os.fspath(path)!r} is too large: more than {max_bytes} bytes."
        )
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
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    problem = ""
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        fill(temporary)
        os.link(temporary, target)
        sync_folder(target.parent)
    except FileExistsError:
        problem = "it exists already, and is never overwritten. Choose another path"
    except OSError as error:
        problem = error.strerror or type(error).__name__
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    if problem:
        raise ArgumentError(f"Cannot write {os.fspath(path)!r}: {problem}.")


def write_new_file(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o644) -> None:
    """`make_new_file` with these bytes, synced to disk before they get their name."""

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    make_new_file(path, fill, mode=mode)


def make_new_folder(path: str | os.PathLike[str], fill: Callable[[Path], None]) -> None:
    """Make a folder that must not exist yet: whole, under its name, or not at all.

    Args:
        path: its name, given at the end by a rename.
        fill: fills a new temporary folder beside it, which goes again on any error. Folders
            above it are made, and stay.

    Raises:
        ArgumentError: the folder exists (it is left as it is), or cannot be written.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    problem = ""
    try:
        if target.exists():
            problem = "it exists already, and is never overwritten. Choose another path"
        else:
            draft.mkdir(parents=True)
            fill(draft)
            for folder in (draft, *(path for path in draft.rglob("*") if path.is_dir())):
                sync_folder(folder)
            draft.rename(target)
            sync_folder(target.parent)
    except OSError as error:
        problem = error.strerror or type(error).__name__
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    if problem:
        raise ArgumentError(f"Cannot write {os.fspath(path)!r}: {problem}.")


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
