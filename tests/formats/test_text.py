"""Text that people wrote: files of any editor, names, file names; and what a terminal shows."""

import codecs
import io
import re
import unicodedata

import pytest
from rich.console import Console
from rich.table import Column, Table

from keras_encryip.errors import ArgumentError, FormatError
from keras_encryip.formats.progress import progress_bar
from keras_encryip.formats.text import (
    as_shown,
    check_name,
    is_file_name,
    read_lines,
    without_mark,
)

NFC = unicodedata.normalize("NFC", "José")
NFD = unicodedata.normalize("NFD", "José")


# --- files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_lines_of_any_editor(mark: bytes, end: str) -> None:
    data = mark + end.join(["ann", "José", ""]).encode()
    assert read_lines(data, what="list") == ["ann", "José", ""]


@pytest.mark.parametrize("separator", "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
def test_what_only_python_takes_for_a_line_break_stays(separator: str) -> None:
    assert read_lines(f"ann{separator}ben".encode(), what="list") == [f"ann{separator}ben"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_other_encodings_say_what_to_do(encoding: str) -> None:
    data = "\ufeffann\n".encode(encoding)
    with pytest.raises(FormatError, match=r"^The list is UTF-(16|32) text: save it as UTF-8\.$"):
        read_lines(data, what="list")


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(FormatError, match=r"^The list is not UTF-8 text\.$"):
        read_lines(b"ann\xe9", what="list")


def test_one_mark_goes_and_no_second() -> None:
    assert without_mark(2 * codecs.BOM_UTF8 + b"x", what="list") == codecs.BOM_UTF8 + b"x"
    assert without_mark(b"", what="list") == b""


# --- names ---------------------------------------------------------------------------------


def test_a_name_has_one_spelling() -> None:
    assert NFC != NFD
    assert check_name(NFD, "subject") == check_name(NFC, "subject") == NFC


@pytest.mark.parametrize("name", ["a", "x" * 256, "山田 太郎", "O'Brien [ops]", "a/b", "*", "a\\"])
def test_good_names_stay(name: str) -> None:
    assert check_name(name, "subject") == name


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", " a", "a ", "a\u00a0", "\u3000a", "a\u00a0b"),
        *("José\u200b", "a\u200db", "a\u00adb", "\ufeffa", "a\u202eb", "a\u200f", "a\u2066b"),
        *("a\nb", "a\tb", "a\0", "a\x1b[2J", "a\x7f", "a\x85"),
        *("a\u2028b", "a\u2029b", "a\ud800", "a\udcff", "a\ue000", "a\u0378"),
        *("x" * 257, None, 1, b"a", ["a"]),
    ],
)
def test_names_that_have_a_twin(name: object) -> None:
    with pytest.raises(ArgumentError, match=r"^`subject` must be a string of 1 … 256.*Received: s"):
        check_name(name, "subject")


def test_the_length_is_that_of_what_is_kept() -> None:
    assert len(check_name("e\u0301" * 256, "subject")) == 256
    with pytest.raises(ArgumentError, match="must be"):
        check_name("\u0958" * 200, "subject")  # NFC has two characters for it


# --- file names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a.txt", ".hidden", "Käfer", "a b", "com", "com10", "console", "nul-x", "山田\u3000太郎"],
)
def test_plain_file_names(name: str) -> None:
    assert is_file_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "a/b", "../a", "a\\b", "C:x", "what?", "a*", 'a"', "a<b", "a>b", "a|b"),
        *("NUL", "nul.txt", "Com1", "COM¹", "com².x", "LPT³", "con .x", "CONIN$", "conout$.x"),
        *("a.", "a ", "a...", "a\n", "a\0b", "a\udcff"),
        *("a\u202eb", "a\u200f", "a\u200bb", "\ufeffa", "a\u2028b", "a\u2029b"),
    ],
)
def test_names_that_are_no_files_everywhere(name: str) -> None:
    assert not is_file_name(name)


# --- terminals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["[red]", "[/]", "[/foo]", "a[b]c\\", "[link=x]y", ":smile:", "[1]"]
)
def test_text_in_tables_stands_as_it_is(text: str) -> None:
    table = Table(Column(as_shown(":x:")))
    table.add_row(as_shown(text))
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    assert f" {text} " in console.file.getvalue()


def test_text_in_tables_is_printable() -> None:
    assert as_shown("a\x1b[2J\nb").plain == "a\\x1b[2J\\nb"
    assert as_shown(7).plain == "7"


def test_a_progress_bar_shows_its_title_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with progress_bar("sealing [/x][red] :x:\n\x1b[2J", 2) as advance:
        advance(2)
    shown = capfd.readouterr().err
    assert r"sealing [/x][red] :x:\n\x1b[2J" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
