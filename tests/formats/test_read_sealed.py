"""`read_sealed`: a sealed file's contents in memory, and nowhere else."""

import os
import subprocess
import sys
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from keras_encryip.crypto.signing import SigningKey
from keras_encryip.errors import (
    ArgumentError,
    EncryipError,
    ExpiredKeyError,
    ForeignKeyError,
    FormatError,
    KeyRefusedError,
    PassphraseError,
    RevokedKeyError,
    SignatureError,
    WrongModelError,
)
from keras_encryip.formats import sealed_folder as sealed
from keras_encryip.formats.folder_index import Entry, Index, list_folder
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.sealed_folder import read_sealed, unseal_folder, write_sealed_folder

PASSPHRASE = "correct horse"


def seal(world: Any, folder: Path, path: Path, **changes: Any) -> Path:
    header, secret = world.authority.read.encapsulate([world.revoked.z])
    options = {
        "index": changes.pop("index", None) or list_folder(folder, "digits"),
        "authority": world.authority.digest,
        "issuer": world.authority.signing_key.public_bytes(),
        "header": header,
        "secret": secret,
        "sign": world.authority.signing_key.sign,
    }
    write_sealed_folder(folder, path, **{**options, **changes})
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    (made / "inner").mkdir(parents=True)
    (made / "model.onnx").write_bytes(os.urandom(200_000))
    (made / "inner" / "empty").touch()
    (made / "inner" / "chunk").write_bytes(bytes(sealed.CHUNK_BYTES))
    return made


@pytest.fixture
def file(world: Any, folder: Path, tmp_path: Path) -> Path:
    return seal(world, folder, tmp_path / "folder.sealed")


def test_what_unsealing_writes(file: Path, alice_file: Path, tmp_path: Path) -> None:
    files = read_sealed(file, alice_file, PASSPHRASE)
    unseal_folder(file, tmp_path / "opened", alice_file, PASSPHRASE)
    written = {
        p.relative_to(tmp_path / "opened").as_posix(): p.read_bytes()
        for p in (tmp_path / "opened").rglob("*")
        if p.is_file()
    }
    assert files == written
    assert list(files) == sorted(files) == ["inner/chunk", "inner/empty", "model.onnx"]
    assert all(type(content) is bytes for content in files.values())


def test_any_changed_byte_is_refused(file: Path, alice_file: Path, tmp_path: Path) -> None:
    good, bad = file.read_bytes(), tmp_path / "bad.sealed"
    for at in [*range(0, len(good), 9973), len(good) - 1]:
        bad.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(EncryipError):
            read_sealed(bad, alice_file, PASSPHRASE)
    for data in (good[:-1], good + b"\0", b"", good[:300]):
        bad.write_bytes(data)
        with pytest.raises(FormatError, match="Cannot open the sealed file"):
            read_sealed(bad, alice_file, PASSPHRASE)


def test_more_than_max_bytes_is_refused_before_it_is_read(
    file: Path, alice_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = 200_000 + sealed.CHUNK_BYTES
    assert read_sealed(file, alice_file, PASSPHRASE, max_bytes=total)
    monkeypatch.setattr(sealed._Stream, "all", counted(sealed._Stream.all, calls := []))
    with pytest.raises(FormatError, match=rf"Its files have {total} bytes, and `max_bytes` is"):
        read_sealed(file, alice_file, PASSPHRASE, max_bytes=total - 1)
    assert total not in calls
    assert sum(calls) < 1000  # the list of files


def counted(function: Any, calls: list[int]) -> Any:
    def call(self: Any, count: int) -> bytes:
        calls.append(count)
        return bytes(function(self, count))

    return call


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, None, "8"])
def test_bad_limits(file: Path, alice_file: Path, wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="`max_bytes` must be a positive integer"):
        read_sealed(file, alice_file, PASSPHRASE, max_bytes=wrong)


def test_the_limit_is_checked_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="`max_bytes`"):
        read_sealed(tmp_path / "none", tmp_path / "none", PASSPHRASE, max_bytes=0)


# --- who may not open it, and files that an attacker who holds a key has made ---------------


def test_who_may_not(world: Any, file: Path, make_authority: Any) -> None:
    def bundle(keys: Any = world.alice, maker: Any = world.authority, **changes: Any) -> KeyBundle:
        return KeyBundle.from_bytes(maker.bundle(keys, **changes))

    other = make_authority("Other")
    past = datetime(2025, 1, 1, tzinfo=UTC)
    cases: list[tuple[KeyBundle, str, type[Exception], str]] = [
        (bundle(), "wrong horse", PassphraseError, "passphrase"),
        (bundle(world.revoked), PASSPHRASE, RevokedKeyError, r"revoked before .* was sealed"),
        (bundle(other.issue(), other), PASSPHRASE, ForeignKeyError, "'Other'"),
        (bundle(not_after=past), PASSPHRASE, ExpiredKeyError, "expired"),
        (bundle(scope=["cats"]), PASSPHRASE, WrongModelError, "not meant for model 'digits'"),
    ]
    for refused, passphrase, error, message in cases:
        with pytest.raises(error, match=message):
            read_sealed(file, refused, passphrase)
    assert read_sealed(file, bundle(scope=["digits"]), PASSPHRASE)


def test_only_the_authority_can_make_one(
    world: Any, alice_file: Path, tmp_path: Path, folder: Path
) -> None:
    """A user knows the stream's key, but cannot sign; nothing is returned before that is seen."""
    path = seal(world, folder, tmp_path / "forged.sealed", sign=SigningKey.generate().sign)
    with pytest.raises(SignatureError, match="signature of the sealed file is wrong"):
        read_sealed(path, alice_file, PASSPHRASE)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param([Entry("../outside", 0)], "is not plain and relative", id="escape"),
        pytest.param([Entry("/tmp/outside", 0)], "is not plain and relative", id="absolute"),
        pytest.param([Entry("a\\..\\b", 0)], "is not plain and relative", id="backslash"),
        pytest.param([Entry("a", 0), Entry("a", 0)], "occurs twice", id="twice"),
        pytest.param([Entry("a", 0), Entry("A", 0)], "differs in case only", id="case"),
        pytest.param([Entry("a", 0), Entry("a/b", 0)], "both an entry and a folder", id="both"),
        pytest.param([Entry("a", 1 << 29)], "do not add up to its size", id="bomb"),
        pytest.param([Entry("a", 3)], "do not add up to its size", id="more-than-there-is"),
    ],
)
def test_lists_that_lie_are_refused(
    files: list[Entry],
    message: str,
    world: Any,
    folder: Path,
    alice_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sealed, "_contents", lambda *_: iter(()))
    index = Index(files=files, folders=[], model="digits")
    path = seal(world, folder, tmp_path / "lying.sealed", index=index)
    monkeypatch.setattr(sealed._Stream, "all", counted(sealed._Stream.all, calls := []))
    with pytest.raises(FormatError, match=message):
        read_sealed(path, alice_file, PASSPHRASE)
    assert len(calls) == 2  # the list's length and the list, and no file


def test_a_missing_file(alice_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"Cannot open the sealed file .*No such file"):
        read_sealed(tmp_path / "none", alice_file, PASSPHRASE)


def test_roles(world: Any, file: Path) -> None:
    data = world.authority.bundle(world.authority.issue("run"))
    with pytest.raises(KeyRefusedError, match="role 'read'"):
        read_sealed(file, KeyBundle.from_bytes(data), PASSPHRASE)


def test_nothing_is_written(file: Path, alice_file: Path, tmp_path: Path) -> None:
    """Watched from inside of the process, where every file is opened."""
    code = """
import sys
seen = []
def watch(event, arguments):
    if event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        seen.append(arguments[0])
    elif event in ("os.rename", "os.link", "os.mkdir", "os.symlink", "os.truncate"):
        seen.append((event, arguments))
import os
from keras_encryip.client import read_sealed
sys.dont_write_bytecode = True
sys.addaudithook(watch)
files = read_sealed(sys.argv[1], sys.argv[2], "correct horse")
assert len(files) == 3 and not seen, seen
"""
    command = [sys.executable, "-B", "-c", code, str(file), str(alice_file)]
    before = sorted(p for p in tmp_path.rglob("*"))
    subprocess.run(command, check=True, cwd=tmp_path, timeout=120)
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_memory(world: Any, alice_file: Path, tmp_path: Path) -> None:
    """The contents, and no copy of them."""
    folder, size = tmp_path / "large", 64 << 20
    folder.mkdir()
    with (folder / "model.onnx").open("wb") as large:
        large.truncate(size)
    file, bundle = seal(world, folder, tmp_path / "large.sealed"), KeyBundle.read(alice_file)
    tracemalloc.start()
    try:
        files = read_sealed(file, bundle, PASSPHRASE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert files == {"model.onnx": bytes(size)}
    assert size < peak < size + (3 << 20)
