"""`read_sealed`: a sealed file's contents in memory, and nowhere else."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from keras_encryip.errors import ArgumentError, EncryipError, FormatError, KeyRefusedError
from keras_encryip.formats import sealed_folder as sealed
from keras_encryip.formats.folder_index import list_folder
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.sealed_folder import read_sealed, unseal_folder, write_sealed_folder

PASSPHRASE = "correct horse"


def seal(world: Any, folder: Path, path: Path) -> Path:
    header, secret = world.authority.read.encapsulate([world.revoked.z])
    write_sealed_folder(
        folder,
        path,
        index=list_folder(folder, "digits"),
        authority=world.authority.digest,
        issuer=world.authority.signing_key.public_bytes(),
        header=header,
        secret=secret,
        sign=world.authority.signing_key.sign,
    )
    return path


@pytest.fixture
def file(world: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(os.urandom(200_000))
    (folder / "inner" / "empty").touch()
    (folder / "inner" / "chunk").write_bytes(bytes(sealed.CHUNK_BYTES))
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
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(bytes(24 << 20))
    file = seal(world, folder, tmp_path / "large.sealed")
    tracemalloc.start()
    try:
        files = read_sealed(file, alice_file, PASSPHRASE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(files["model.onnx"]) == 24 << 20
    assert peak < 2.3 * (24 << 20)
