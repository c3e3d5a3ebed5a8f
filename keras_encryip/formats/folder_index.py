"""What a sealed folder holds: the list of its files, and which paths are safe on any system."""

import os
import stat
import unicodedata
from pathlib import Path
from typing import Annotated, Final

import msgspec

from keras_encryip.crypto.encoding import canonical_json
from keras_encryip.errors import ArgumentError, FormatError, instead_of, reason
from keras_encryip.formats.text import is_file_name

MAX_FILES: Final = 10_000
MAX_DEPTH: Final = 32
"""Folders in folders; of different ones, at most as many as files."""

MAX_INDEX_BYTES: Final = 16 << 20

_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: its path relative to the folder, with `/`, and its size in bytes."""

    path: _Path
    size: Annotated[int, msgspec.Meta(ge=0)]


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the stream begins with: the model's name, empty folders, and files in order."""

    files: Annotated[list[Entry], msgspec.Meta(max_length=MAX_FILES)]
    folders: Annotated[list[_Path], msgspec.Meta(max_length=MAX_FILES)]
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]

    @property
    def total(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files)


def list_folder(directory: str | os.PathLike[str], model: str) -> Index:
    """What there is to seal, checked as its readers will check it.

    Args:
        directory: what to seal.
        model: its name, for the bundles' scope.
    """
    folder = Path(directory)
    if not os.path.isdir(folder):
        raise ArgumentError(f"{str(folder)!r} cannot be sealed: it is not a folder.")

    def refused(error: Exception) -> ArgumentError:
        where = f"{error.filename!r}: " if isinstance(error, OSError) else ""
        why = where + reason(error).rstrip(".")
        return ArgumentError(f"{str(folder)!r} cannot be sealed: {why}.")

    with instead_of(OSError, FormatError, msgspec.ValidationError, raises=refused):
        files, folders = _entries(folder)
        index = Index(files=files, folders=folders, model=model)
        msgspec.convert(msgspec.to_builtins(index), Index)
        check_index(index)
        if len(canonical_json(index)) > MAX_INDEX_BYTES:
            raise FormatError("its list of files is too long")
    return index


def _entries(folder: Path) -> tuple[list[Entry], list[str]]:
    """Files, and folders without anything in them."""
    files, folders = [], []
    for place, inner, names in os.walk(folder, onerror=_raised):
        for name in (*inner, *names):
            path = Path(place, name)
            relative, status = path.relative_to(folder).as_posix(), path.lstat()
            if stat.S_ISREG(status.st_mode):
                files.append(Entry(relative, status.st_size))
            elif not stat.S_ISDIR(status.st_mode):
                raise FormatError(f"It has a link or special file: {relative!r}")
            elif not any(path.iterdir()):
                folders.append(relative)
    return sorted(files, key=lambda entry: entry.path), sorted(folders)


def _raised(error: OSError) -> None:
    raise error


def check_index(index: Index) -> None:
    """Paths that stay inside the folder and are different places on any system, and not so many
    folders that making them would be an attack."""
    places: set[str] = set()
    folders: dict[str, str] = {}
    for name in [*(entry.path for entry in index.files), *index.folders]:
        parts = name.split("/")
        if not all(map(is_file_name, parts)):
            raise FormatError(f"The path {name!r} is not plain and relative")
        if len(parts) > MAX_DEPTH:
            raise FormatError(f"The path {name!r} is deeper than {MAX_DEPTH}")
        if _folded(name) in places:
            raise FormatError(f"The path {name!r} occurs twice, or differs in case only")
        places.add(_folded(name))
        for depth in range(1, len(parts)):
            outer = "/".join(parts[:depth])
            if folders.setdefault(_folded(outer), outer) != outer:
                raise FormatError(f"The folder {outer!r} occurs in two spellings")
        if len(folders) > MAX_FILES:
            raise FormatError(f"There are more than {MAX_FILES} folders")
    both = places & folders.keys()
    if both:
        raise FormatError(f"The path {min(both)!r} is both an entry and a folder of one")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
