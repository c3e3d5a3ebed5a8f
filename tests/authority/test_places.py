"""A path is not a URL: an authority's file has the very name that was given."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keras_encryip.authority.authority import Authority
from keras_encryip.authority.seal_folder import seal_folder
from keras_encryip.authority.tracer import Tracer
from keras_encryip.errors import ArgumentError, EncryipError, LedgerError
from keras_encryip.formats.atomic_files import make_new_folder
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import ModelMetadata

PASSPHRASE = "owner's passphrase"


class Place:
    """A path that is not a `pathlib.Path`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return self.path


def made(place: Any) -> None:
    with Authority.create(place, PASSPHRASE, name="acme", scrypt_log2_n=14) as authority:
        authority.enroll(["ann"])
    with Authority.open(place, PASSPHRASE) as authority:
        assert [user.subject for user in authority.users()] == ["ann"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


NAMES = [
    "what?.authority",
    "what?mode=memory",
    "x%20y.authority",
    "a#b",
    "a&b=c;d",
    "a@b:1",
    ":memory:",
    "file::memory:",
    "file:x?mode=memory&uri=true",
    "sqlite:x",
    "C:x.authority",
    "C:\\x.authority",
    "~",
    "a~b",
    "~nobody-of-this-name",
    "-x",
    "[red]",
    "José",
    "a b",
    "none",
]


@pytest.mark.parametrize("kind", [str, Path, Place])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "~"])
def test_a_path_is_the_file_of_that_very_name(
    name: str, kind: Callable[[str], Any], here: Path
) -> None:
    made(kind(name))
    assert os.listdir(here) == [name]
    (here / name).unlink()
    made(kind(str(here / name)))
    assert os.listdir(here) == [name]


@pytest.mark.parametrize("kind", [str, Path, Place])
def test_folders_have_such_names_too(kind: Callable[[str], Any], here: Path) -> None:
    for name in NAMES:
        (here / name).mkdir()
        made(kind(str(here / name / "a.authority")))
        assert os.listdir(here / name) == ["a.authority"]


def test_a_link_is_followed_before_it_goes_up(here: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "folder").mkdir(parents=True)
    (here / "link").symlink_to(tmp_path / "far" / "folder")
    made("link/../a.authority")
    made(f"sqlite:///{here}/link/../b.authority")
    assert sorted(os.listdir(tmp_path / "far")) == ["a.authority", "b.authority", "folder"]
    assert os.listdir(here) == ["link"]


def test_a_relative_path_stays_where_it_was(here: Path, tmp_path: Path) -> None:
    with Authority.create("a.authority", PASSPHRASE, scrypt_log2_n=14) as authority:
        os.chdir(tmp_path)
        authority.enroll(["ann"])
        assert authority.ledger.path == here / "a.authority"
    assert authority.name == "a"


@pytest.mark.parametrize(
    "url",
    [
        "gs://bucket/a",
        "s3://bucket/a",
        "http://x/a",
        "https://x/a",
        "file:///tmp/a",
        "gs://",
        "a1://",
    ],
)
def test_other_addresses_are_refused_before_anything_is_written(url: str, here: Path) -> None:
    for use in Authority.create, Authority.open:
        with pytest.raises(ArgumentError, match=r"^`url` must be a path or a sqlite URL"):
            use(url, PASSPHRASE)
    assert os.listdir(here) == []


@pytest.mark.parametrize("wrong", [None, 7, b"a.authority", "", ["a"]])
def test_what_is_neither_path_nor_url(wrong: Any, here: Path) -> None:
    for use in Authority.create, Authority.open:
        with pytest.raises(ArgumentError, match=r"^`url` must be a path or a sqlite URL"):
            use(wrong, PASSPHRASE)
    assert os.listdir(here) == []


@pytest.mark.parametrize("kind", [str, Path, Place, lambda path: f"sqlite:///{path}"])
@pytest.mark.parametrize("path", ["~/a.authority", "~", "~root/a.authority"])
def test_a_tilde_is_no_folder(kind: Callable[[str], Any], path: str, here: Path) -> None:
    for use in Authority.create, Authority.open:
        with pytest.raises(EncryipError, match=r"is your shell's to expand.*os\.path\.expanduser"):
            use(kind(path), PASSPHRASE)
    assert os.listdir(here) == []


@pytest.mark.parametrize("wrong", ["x.authority", Path("x.authority"), None])
def test_a_path_is_no_authority(wrong: Any, here: Path) -> None:
    message = r"^`authority` must be an Authority, from `Authority\.open.*Received: \w+$"
    for use in (Tracer, lambda authority: seal_folder(authority, here, here / "x", model="m")):
        with pytest.raises(ArgumentError, match=message):
            use(wrong)
    assert os.listdir(here) == []


def test_a_path_is_no_decoder(here: Path) -> None:
    with Authority.create("a", PASSPHRASE, scrypt_log2_n=14) as authority:
        metadata = ModelMetadata(model="m", class_names=["x", "y"])
        authority.model_store.add_model(metadata, LabelAssignment.draw(2, 2, 2, 1024))
        with pytest.raises(ArgumentError, match=r"^`decoder` must be a Decoder, from .*open.*str$"):
            Tracer(authority).service("http://x", model="m", decoder="d")  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match=r"public_key`, an `X25519PublicKey`, from .*read"):
            authority.issue("ann", "b", public_key="a.public.pem")  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match=r"^`report` must be a TraceReport, from a method"):
            Tracer(authority).evidence("r.json", "e")  # type: ignore[arg-type]
    assert os.listdir(here) == ["a"]


def test_a_key_does_not_go_to_a_tilde(here: Path) -> None:
    with Authority.create("a", PASSPHRASE, scrypt_log2_n=14) as authority:
        with pytest.raises(ArgumentError, match="is your shell's to expand"):
            authority.issue("ann", "~/ann.keybundle", passphrase="user", scrypt_log2_n=14)
        assert authority.users() == []
    for path in "~", "~/x", "~root/x":
        with pytest.raises(ArgumentError, match="is your shell's to expand"):
            make_new_folder(path, lambda draft: None)
    assert os.listdir(here) == ["a"]


def test_urls_are_what_they_were(here: Path) -> None:
    made(f"sqlite:///{here}/x y.authority")
    made("sqlite:///b.authority?timeout=5")
    made("sqlite+pysqlite:///c.authority")
    assert sorted(os.listdir(here)) == ["b.authority", "c.authority", "x y.authority"]
    for memory in ("sqlite://", "sqlite:///:memory:"):
        Authority.create(memory, PASSPHRASE, name="m", scrypt_log2_n=14).close()
        with pytest.raises(LedgerError, match="is not a whole authority"):
            Authority.open(memory, PASSPHRASE)


def test_messages_name_the_file(here: Path) -> None:
    with pytest.raises(LedgerError, match=r"There is no authority at '.*/here/what\?x%20\[y\]'"):
        Authority.open("what?x%20[y]", PASSPHRASE)
    made("what?x%20[y]")
    with pytest.raises(EncryipError, match=r"does not open the authority '.*/what\?x%20\[y\]'"):
        Authority.open("what?x%20[y]", "wrong")
