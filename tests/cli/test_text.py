"""What people type and hand in, and what terminals show of it: the `encryip` command."""

import codecs
import json
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from keras_encryip.authority import Authority
from keras_encryip.cli import main
from keras_encryip.formats.key_pair import X25519PublicKey, write_key_pair
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata

NFC = unicodedata.normalize("NFC", "José")
NFD = unicodedata.normalize("NFD", "José")
CLASSES = ["cat\ndog\r\n\x1b[2J\u2028", "[red]eel", "a\u202eb :x:"]
EDITORS = {
    "notepad": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "mark": lambda text: codecs.BOM_UTF8 + text.encode(),
}


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def encryip(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Ran]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ENCRYIP_AUTHORITY_PASSPHRASE", "owner")
    monkeypatch.setenv("ENCRYIP_BUNDLE_PASSPHRASE", "user")

    def encryip(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["encryip", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert isinstance(code, int)
        return Ran(code, *capfd.readouterr())

    return encryip


@pytest.fixture
def owner(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "a.authority", "owner", slots=256, scrypt_log2_n=14)


def no_tricks(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


# --- files of any editor -------------------------------------------------------------------


@pytest.mark.parametrize("editor", EDITORS)
def test_passphrase_files(
    editor: str, encryip: Callable[..., Ran], owner: Authority, tmp_path: Path
) -> None:
    (tmp_path / "p").write_bytes(EDITORS[editor]("owner\nnot this\n"))
    listed = encryip("key", "list", "a.authority", "--authority-passphrase-file", "p")
    assert listed.code == 0, listed.err


@pytest.mark.parametrize("editor", EDITORS)
def test_lists_of_names(
    editor: str, encryip: Callable[..., Ran], owner: Authority, tmp_path: Path
) -> None:
    (tmp_path / "names").write_bytes(EDITORS[editor]("ann\n  ben \n\nJosé\n"))
    assert encryip("key", "enroll", "a.authority", "names").out == "Enrolled 3 users.\n"
    assert [user.subject for user in owner.users()] == ["ann", "ben", NFC]


@pytest.mark.parametrize("bad", ["ann\u2028ben", "ann\x0bben", "ann\u200b", "ann\x1c"])
def test_a_line_with_what_nobody_sees_is_no_user(
    bad: str, encryip: Callable[..., Ran], owner: Authority, tmp_path: Path
) -> None:
    (tmp_path / "names").write_text(f"carl\n{bad}\n", encoding="utf-8")
    refused = encryip("key", "enroll", "a.authority", "names")
    assert refused.code == 1
    assert refused.err.startswith("Error: `subjects` must be a string of 1 … 256 visible")
    assert owner.users() == []


def test_utf_16_is_named(encryip: Callable[..., Ran], owner: Authority, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("owner\n".encode("utf-16"))
    for command in (
        ("key", "enroll", "a.authority", "text"),
        ("key", "list", "a.authority", "--authority-passphrase-file", "text"),
        ("key", "issue", "a.authority", "ann", "--public-key", "text"),
        ("trace", "key", "a.authority", "text"),
    ):
        refused = encryip(*command)
        assert refused.code == 1
        assert "'text' is UTF-16 text: save it as UTF-8." in refused.err


@pytest.mark.parametrize("editor", EDITORS)
def test_key_pairs(
    editor: str, encryip: Callable[..., Ran], owner: Authority, tmp_path: Path
) -> None:
    public = write_key_pair("a.private.pem", "a.public.pem", "user")
    for name in ("a.private.pem", "a.public.pem"):
        (tmp_path / name).write_bytes(EDITORS[editor]((tmp_path / name).read_text()))
    assert X25519PublicKey.read("a.public.pem") == public
    codebook = _protect(owner)
    issued = encryip("key", "issue", "a.authority", "ann", "--public-key", "a.public.pem")
    assert issued.code == 0, issued.err
    np.save("o.npy", np.eye(3, codebook.num_labels, dtype=np.float32))
    decoded = encryip(
        "decode", "c.json", "ann.keybundle", "o.npy", "--private-key", "a.private.pem"
    )
    assert decoded.code == 0, decoded.err


def _protect(owner: Authority) -> Codebook:
    assignment = LabelAssignment.draw(3, 4, 0, 256)
    metadata = ModelMetadata(model="pets", class_names=CLASSES)
    codebook = owner.model_store.add_model(metadata, assignment)
    Path("c.json").write_bytes(codebook.to_bytes())
    return codebook


@pytest.mark.parametrize("editor", EDITORS)
def test_outputs_as_csv(
    editor: str, encryip: Callable[..., Ran], owner: Authority, tmp_path: Path
) -> None:
    codebook = _protect(owner)
    owner.issue("ann", "ann.keybundle", passphrase="user", scrypt_log2_n=14)
    outputs = np.eye(codebook.num_labels, dtype=np.float32)
    np.save("o.npy", outputs)
    rows = "\n".join(",".join(map(str, row)) for row in outputs) + "\n"
    (tmp_path / "o.csv").write_bytes(EDITORS[editor](rows))
    wanted = encryip("decode", "c.json", "ann.keybundle", "o.npy", "--what", "labels")
    assert encryip("decode", "c.json", "ann.keybundle", "o.csv", "--what", "labels") == wanted
    assert wanted.out.count("\n") == codebook.num_labels
    (tmp_path / "u.csv").write_bytes(rows.encode("utf-16"))
    refused = encryip("decode", "c.json", "ann.keybundle", "u.csv")
    assert refused.err == "Error: The file 'u.csv' is UTF-16 text: save it as UTF-8.\n"


def test_an_edited_key_bundle_says_what_it_is(
    encryip: Callable[..., Ran], owner: Authority, tmp_path: Path
) -> None:
    owner.issue("ann", "ann.keybundle", passphrase="user", scrypt_log2_n=14)
    for name, editor in EDITORS.items():
        edited = editor((tmp_path / "ann.keybundle").read_text())
        (tmp_path / name).write_bytes(edited)
        for command in (("key", "inspect", name), ("trace", "key", "a.authority", name)):
            refused = encryip(*command)
            assert refused.code == 1
            assert "without a byte order mark, and with LF as line end" in refused.err


# --- terminals -----------------------------------------------------------------------------

ODD = ["[red]ann[/red]", "ben [/foo]", "carl :smile:", "dan\\", "O'Neil [1]"]


@pytest.mark.parametrize("subject", ODD)
def test_tables_show_names_as_they_are(
    subject: str, encryip: Callable[..., Ran], owner: Authority
) -> None:
    model = "[bold]m[/x]"
    issued = encryip(
        "key", "issue", "a.authority", subject, "--out", "b", "--model", model, "--role", "read"
    )  # fmt: skip
    assert issued.code == 0, issued.err
    for command in ("key", "list"), ("authority", "info"):
        shown = encryip(*command, "a.authority")
        assert shown.code == 0, shown.err
        flat = " ".join(shown.out.replace("│", " ").split())
        assert subject in flat
        assert model in flat


def test_decode_prints_a_line_for_each_prediction(
    encryip: Callable[..., Ran], owner: Authority
) -> None:
    codebook = _protect(owner)
    owner.issue("ann", "ann.keybundle", passphrase="user", scrypt_log2_n=14)
    np.save("o.npy", np.eye(codebook.num_labels, dtype=np.float32))
    out = encryip("decode", "c.json", "ann.keybundle", "o.npy").out
    lines = out.split("\n")
    assert len(lines) == codebook.num_labels + 1
    assert set(lines) == {r"cat\ndog\r\n\x1b[2J\u2028", "[red]eel", r"a\u202eb :x:", ""}


def test_errors_are_one_line(encryip: Callable[..., Ran], owner: Authority, tmp_path: Path) -> None:
    field = "x\nError: all is well\x1b[2J\u202e"
    (tmp_path / "c.json").write_text(json.dumps({field: 1}))
    for command in (
        ("inspect", "c.json"),
        ("inspect", f"none{field}"),
        ("key", "revoke", "a.authority", "none"),
        ("key", "inspect", f"none{field}"),
        ("authority", "info", f"none{field}"),
    ):
        refused = encryip(*command)
        assert refused.code == 1
        assert refused.err.count("\n") == 1
        assert no_tricks(refused.err), refused.err


def test_paths_are_printed_on_one_line(
    encryip: Callable[..., Ran], owner: Authority, tmp_path: Path
) -> None:
    out = "x\nRevoked\x1b[2J\udcff"
    issued = encryip("key", "issue", "a.authority", "ann", "--out", out)
    assert issued.code == 0, issued.err
    assert issued.out.count("\n") == 1
    assert no_tricks(issued.out)


# --- the default file of a key -------------------------------------------------------------


@pytest.mark.parametrize(
    "subject", ["../escaped", "a/b", "/tmp/x", "a\\b", "C:x", "NUL", "com1", "COM¹", "what?"]
)
def test_a_name_is_no_path(
    subject: str, encryip: Callable[..., Ran], owner: Authority, tmp_path: Path
) -> None:
    before = {*tmp_path.parent.rglob("*")}
    refused = encryip("key", "issue", "a.authority", subject)
    assert refused.code == 1
    assert "makes no plain file name: say with --out where" in refused.err
    assert {*tmp_path.parent.rglob("*")} == before
    assert owner.users() == []
    assert encryip("key", "issue", "a.authority", subject, "--out", "b").code == 0
    assert owner.users()[0].subject == subject


def test_the_default_file_has_the_name_in_its_one_spelling(
    encryip: Callable[..., Ran], owner: Authority, tmp_path: Path
) -> None:
    assert encryip("key", "issue", "a.authority", NFD).code == 0
    assert (tmp_path / f"{NFC}.keybundle").name in [path.name for path in tmp_path.iterdir()]
    revoked = encryip("key", "revoke", "a.authority", NFC)
    assert revoked.out.startswith(f"Revoked {NFC} (")
    assert [user.status for user in owner.users()] == ["revoked"]
