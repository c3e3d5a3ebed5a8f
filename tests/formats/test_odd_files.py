"""Files of any bytes, and what is no file: an error of ours, soon, and in little memory."""

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.client import Decoder
from keras_encryip.errors import EncryipError
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PublicKey, read_private_pem
from keras_encryip.formats.lock import read_lock
from keras_encryip.formats.manifest import verify_export
from keras_encryip.formats.responses import read_outputs
from keras_encryip.formats.sealed_folder import read_sealed, unseal_folder
from keras_encryip.formats.version_folder import ASSETS, read_codebook
from keras_encryip.tracing import verify_evidence as evidence_module
from keras_encryip.tracing.report import TraceReport
from keras_encryip.tracing.weights import read_kernels

READERS: dict[str, Callable[[Path], Any]] = {
    "codebook": read_codebook,
    "bundle": KeyBundle.read,
    "public key": X25519PublicKey.read,
    "private key": read_private_pem,
    "report": TraceReport.read,
    "weights": read_kernels,
    "outputs": read_outputs,
}
NAMES = {"outputs": "found.npy"}


def odd(kind: str, path: Path) -> None:
    """Put something at a path."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.symlink_to(f"/dev/{kind}")


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "loop", "zero", "null", "full"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, kind: str
) -> None:
    monkeypatch.setattr("keras_encryip.formats.atomic_files.PIPE_SECONDS", 0.2)
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = Path(NAMES.get(reader, "found"))
    odd(kind, path)
    start = time.monotonic()
    with pytest.raises(EncryipError, match="found"):
        READERS[reader](path)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("kind", ["pipe", "zero"])
def test_what_is_no_file_in_a_folder(
    shipped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Folders that are verified, sealed files, locks."""
    monkeypatch.setattr("keras_encryip.formats.atomic_files.PIPE_SECONDS", 0.2)
    copy = tmp_path / "1"
    shutil.copytree(shipped.exported, copy)
    sealed = tmp_path / "x.sealed"
    odd(kind, sealed)
    for path in ("saved_model.pb", str(ASSETS / "manifest.json"), str(ASSETS / "lock.json")):
        (copy / path).unlink(missing_ok=True)
        odd(kind, copy / path)
    bundle = shipped.bundles["alice"]
    calls: list[Callable[[], Any]] = [
        lambda: verify_export(copy),
        lambda: read_lock(copy),
        lambda: read_sealed(sealed, bundle, shipped.passphrase),
        lambda: unseal_folder(sealed, tmp_path / "new", bundle, shipped.passphrase),
    ]
    for call in calls:
        start = time.monotonic()
        with pytest.raises(EncryipError):
            call()
        assert time.monotonic() - start < 2


def test_a_pipe_that_somebody_writes_to(tmp_path: Path, shipped: Any) -> None:
    """`<(pass show …)` of a shell."""
    pipe, data = tmp_path / "pipe", shipped.bundles["alice"].read_bytes()
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb") as file:
            for i in range(0, len(data), 100):
                file.write(data[i : i + 100])
                file.flush()

    writing = threading.Thread(target=write)
    writing.start()
    bundle = KeyBundle.read(pipe)
    writing.join()
    assert Decoder.open(shipped.exported, bundle, shipped.passphrase).model == "digits"


def archive(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def single(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


SEEDS = {
    "npy": single(np.ones((2, 3), np.float32)),
    "npz": archive(a=np.ones(3), b=np.arange(4)),
    "keras": b"PK\x03\x04" + bytes(60),
    "h5": b"\x89HDF\r\n\x1a\n" + bytes(90),
}


def mutants(seed: bytes, count: int) -> list[bytes]:
    random = np.random.default_rng(len(seed))
    found = []
    for i in range(count):
        data = bytearray(seed)
        for _ in range(int(random.integers(1, 6))):
            at = int(random.integers(len(data)))
            how = i % 4
            if how == 0:
                data[at] = int(random.integers(256))
            elif how == 1:
                del data[at : at + int(random.integers(1, 20))]
            elif how == 2:
                data[at:at] = random.bytes(int(random.integers(1, 20)))
            else:
                data[at : at + 1] = b"9999"
            data = data or bytearray(b"x")
        found.append(bytes(data))
    return found


@pytest.mark.parametrize("kind", SEEDS)
def test_mutants_of_array_files(tmp_path: Path, kind: str, record_property: Any) -> None:
    path = tmp_path / "found.npy"
    start = time.monotonic()
    changed = mutants(SEEDS[kind], 400)
    record_property("cases", len(changed))
    for data in changed:
        path.write_bytes(data)
        for read in (
            read_outputs,
            read_kernels,
            lambda path: evidence_module._array(path.read_bytes()),
            lambda path: evidence_module._arrays(path.read_bytes()),
        ):
            with contextlib.suppress(EncryipError):
                read(path)
    assert time.monotonic() - start < 60


def test_evidence_that_unpacks_to_more_than_it_is() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("0.npy", single(np.zeros(10_000_000)))
    assert len(buffer.getvalue()) < 100_000
    with pytest.raises(EncryipError, match="The weights of the evidence are malformed"):
        evidence_module._arrays(buffer.getvalue())


LITTLE = """
import resource, sys
from keras_encryip.errors import PassphraseError
from keras_encryip.crypto.aead import passphrase_key
here = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (here + (200 << 20), -1))
passphrase_key("x", bytes(16), 14)
try:
    passphrase_key("x", bytes(16), 20)
except PassphraseError as error:
    print(error)
"""


def test_a_passphrase_without_the_memory_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LITTLE], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Trying a passphrase needs 1024 MiB of memory here")
