"""The list of a folder that shall be sealed, and folders that not every system could open."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from keras_encryip.crypto.encoding import canonical_json
from keras_encryip.errors import ArgumentError, FormatError
from keras_encryip.formats import folder_index
from keras_encryip.formats.folder_index import Entry, Index, check_index, list_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files, one of them nested; an empty folder; a name that is not ASCII."""
    folder = tmp_path / "digits" / "1"
    (folder / "variables").mkdir(parents=True)
    (folder / "assets").mkdir()
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "chunk").write_bytes(bytes(100))
    (folder / "Käfer.txt").write_text("ä", encoding="utf-8")
    return folder


def test_the_list_of_files_is_canonical(folder: Path) -> None:
    index = list_folder(folder, "digits")
    assert [e.path for e in index.files] == sorted(e.path for e in index.files)
    assert index.folders == ["assets"]
    assert canonical_json(index).startswith(b'{"files":[{"path":"K\\u00e4fer.txt","size":2},')
    assert index.total == 107


def linked(folder: Path) -> None:
    (folder / "link").symlink_to("saved_model.pb")


def folder_linked(folder: Path) -> None:
    (folder / "link").symlink_to("variables")


def piped(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def odd(folder: Path) -> None:
    (folder / "what?").touch()


def not_utf8(folder: Path) -> None:
    Path(os.fsdecode(bytes(folder) + b"/\xff")).touch()


def right_to_left(folder: Path) -> None:
    (folder / "gpj.\u202eexe").touch()


def unseen(folder: Path) -> None:
    (folder / "assets\u200b").mkdir()


def device(folder: Path) -> None:
    (folder / "COM¹.txt").touch()


def cases_differ(folder: Path) -> None:
    (folder / "SAVED_MODEL.pb").touch()


def deep(folder: Path) -> None:
    (folder / "/".join("a" * 40)).mkdir(parents=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (linked, "cannot be sealed: It has a link or special file: 'link'"),
        (folder_linked, "cannot be sealed: It has a link or special file: 'link'"),
        (piped, "cannot be sealed: It has a link or special file: 'pipe'"),
        (odd, "cannot be sealed: The path 'what[?]' is not plain"),
        (right_to_left, r"cannot be sealed: The path 'gpj\.\\u202eexe' is not plain"),
        (unseen, r"cannot be sealed: The path 'assets\\u200b' is not plain"),
        (device, "cannot be sealed: The path 'COM¹.txt' is not plain"),
        (not_utf8, "cannot be sealed: The path .* is not plain"),
        (cases_differ, "cannot be sealed: .* differs in case only"),
        (deep, "cannot be sealed: .* is deeper than 32"),
    ],
)
def test_folders_that_cannot_be_opened_everywhere(
    change: Callable[[Path], None], message: str, folder: Path
) -> None:
    change(folder)
    with pytest.raises(ArgumentError, match=message):
        list_folder(folder, "digits")


@pytest.mark.parametrize("name", ["a\u202eb", "a/b\u200b", "\u2028", "a\u0085", "COM²", "Nul .x"])
def test_a_hostile_list_is_not_read(name: str) -> None:
    for index in (
        Index(files=[Entry(name, 1)], folders=[], model="m"),
        Index(files=[], folders=[name], model="m"),
    ):
        with pytest.raises(FormatError, match="is not plain and relative"):
            check_index(index)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="cannot be sealed: it is not a folder"):
        list_folder(tmp_path / "none", "digits")


def test_a_model_without_a_name(folder: Path) -> None:
    with pytest.raises(ArgumentError, match=r"cannot be sealed: Expected `str` of length >= 1"):
        list_folder(folder, "")


def test_a_list_too_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_index, "MAX_INDEX_BYTES", 50)
    with pytest.raises(ArgumentError, match="cannot be sealed: its list of files is too long"):
        list_folder(folder, "digits")


def test_what_cannot_be_listed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "lstat", denied)
    with pytest.raises(
        ArgumentError, match=r"sealed: '.*/1/[\wä./]+': Permission denied\.$"
    ) as caught:
        list_folder(folder, "digits")
    assert caught.value.__context__ is None
