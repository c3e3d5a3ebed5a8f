"""The authority's file: busy, missing, not writable, and silent about secrets."""

import base64
import contextlib
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.authority import ledger as ledger_module
from keras_encryip.authority.authority import Authority
from keras_encryip.authority.event_log import append_event
from keras_encryip.authority.ledger import Ledger
from keras_encryip.errors import ArgumentError, LedgerError
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.labels.trace_set import TraceSet

PASSPHRASE = "owner's passphrase"


@contextlib.contextmanager
def sqlite(file: Path) -> Iterator[sqlite3.Connection]:
    """The file by other means: plain sqlite3, without foreign keys."""
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


# --- busy ------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_BUSY_SECONDS", 0)


@pytest.mark.parametrize("lock", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_a_busy_ledger_says_so_and_works_afterwards(
    impatient: None, create: Any, issue: Any, file: Path, tmp_path: Path, lock: str
) -> None:
    authority = create()
    with sqlite(file) as other:
        other.execute(lock)
        for use in (
            lambda: Authority.open(f"sqlite:///{file}", PASSPHRASE),
            lambda: issue(authority, "alice"),
            lambda: authority.revoke("alice"),
            authority.users,
        ):
            with pytest.raises(
                LedgerError, match="is busy: another process or thread is changing it"
            ):
                use()
        assert not (tmp_path / "alice.keybundle").exists()
        other.execute("ROLLBACK")
        assert issue(authority, "alice").status == "active"


def test_a_lock_of_another_process_counts_too(
    impatient: None, create: Any, issue: Any, file: Path
) -> None:
    authority = create()
    holder = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('BEGIN EXCLUSIVE'); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(LedgerError, match="is busy"):
            issue(authority, "alice")
        process.communicate()
    assert issue(authority, "alice").status == "active"


def test_a_short_wait_is_waited_out(create: Any, file: Path) -> None:
    authority = create()
    with sqlite3.connect(file, isolation_level=None, check_same_thread=False) as other:
        other.execute("BEGIN EXCLUSIVE")
        timer = threading.Timer(0.2, other.execute, ["ROLLBACK"])
        timer.start()
        authority.enroll(["alice"])
        timer.join()
    other.close()
    assert authority.events()[-1].kind == "keys enrolled"


def test_a_failed_transaction_leaves_nothing(authority: Authority) -> None:
    before = authority.events()

    def fail() -> None:
        with authority.ledger.writing() as connection:
            append_event(connection, authority.keys, "half done")
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError, match="division by zero"):
        fail()
    assert authority.events() == before


# --- missing, existing, not writable -----------------------------------------------


def test_a_missing_file_is_not_made_by_opening_it(file: Path) -> None:
    with pytest.raises(LedgerError, match=r"There is no authority at .*acme\.authority.*create"):
        Authority.open(f"sqlite:///{file}", PASSPHRASE)
    assert not file.exists()


def test_a_folder_is_no_authority(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="There is no authority at"):
        Authority.open(f"sqlite:///{tmp_path}", PASSPHRASE)


def test_memory_holds_no_authority_to_open() -> None:
    with pytest.raises(LedgerError, match="is not a whole authority"):
        Authority.open("sqlite://", PASSPHRASE)


def test_a_ledger_of_another_version_is_refused(authority: Authority, file: Path) -> None:
    authority.close()
    before = file.read_bytes()
    for version, reader in ((2, " Open it with"), (3, " Release 0.3"), (5, " Open it with")):
        with contextlib.closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("UPDATE authority SET ledger_version = ?", (version,))
        with pytest.raises(
            LedgerError, match=rf"has ledger version {version}; this release reads 4\.{reader}"
        ):
            Authority.open(file, PASSPHRASE)
    assert len(file.read_bytes()) == len(before)


@pytest.mark.parametrize("content", [b"", b"precious"], ids=["empty", "text"])
def test_an_existing_file_is_never_overwritten(create: Any, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(LedgerError, match="exists already, and is never overwritten"):
        create()
    assert file.read_bytes() == content


def test_a_file_that_appears_meanwhile_is_not_overwritten(file: Path) -> None:
    def fill(connection: Any) -> None:
        file.write_bytes(b"another process was quicker")

    with pytest.raises(LedgerError, match="it exists already, and is never overwritten"):
        Ledger.create(f"sqlite:///{file}", fill)
    assert file.read_bytes() == b"another process was quicker"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_failure_while_creating_leaves_nothing(file: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        Ledger.create(f"sqlite:///{file}", lambda connection: 1 / 0)
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("folder", ["missing", "/proc"])
def test_a_folder_that_cannot_be_written_is_named(create: Any, file: Path, folder: str) -> None:
    path = file.parent / folder / "acme.authority"
    with pytest.raises(LedgerError, match=f"Cannot write '{re.escape(str(path))}': "):
        create(f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("file_mode", "folder_mode"), [(0o444, 0o755), (0o666, 0o555)], ids=["file", "folder"]
)
def test_what_is_read_only_says_what_to_check(
    authority: Authority, file_mode: int, folder_mode: int
) -> None:
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    try:
        file = folder / "acme.authority"
        shutil.copy(str(authority.ledger.path), file)
        file.chmod(file_mode)
        folder.chmod(folder_mode)
        with (
            somebody_else(),
            pytest.raises(LedgerError, match="cannot be opened for writing: check the permissions"),
            Authority.open(f"sqlite:///{file}", PASSPHRASE) as other,
        ):
            other.enroll(["alice"])
        with Authority.open(f"sqlite:///{file}", PASSPHRASE) as again:
            assert again.events() == authority.events()
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    """Not the superuser, whom file permissions do not bind."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    "kind",
    [
        "postgresql",
        "postgresql+psycopg2",
        "mysql",
        "mssql+pyodbc",
        "oracle",
        "sqlite+aiosqlite",
        "sqlite+pysqlcipher",
        "nosuchdatabase",
    ],
)
@pytest.mark.parametrize("use", [Authority.create, Authority.open])
def test_other_databases_are_refused(use: Any, kind: str) -> None:
    message = rf"^`url` must be a path or a sqlite URL .*\. Received: url='{re.escape(kind)}://…@"
    with pytest.raises(ArgumentError, match=message) as caught:
        use(f"{kind}://owner:hush@host/ledger", PASSPHRASE)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("use", [Authority.create, Authority.open])
@pytest.mark.parametrize(
    "url",
    [
        "sqlite://acme.authority",
        "sqlite://folder/acme.authority",
        "sqlite://owner:hush@/acme.authority",
        "sqlite://host:port/acme.authority",
        "sqlite:///acme.authority?timeout=soon",
        "postgresql://owner:hu/s@h@host:port/ledger",
    ],
)
def test_what_is_no_sqlite_url_is_refused(
    use: Any, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=r"^`url` must be a path or a sqlite URL") as caught:
        use(url, PASSPHRASE)
    assert "hu" not in str(caught.value)
    assert caught.value.__context__ is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file_mode", "folder_mode"), [(0, 0o755), (0o666, 0o700)], ids=["file", "folder"]
)
def test_what_may_not_be_read_is_left_alone(
    authority: Authority, file_mode: int, folder_mode: int
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        file = folder / "acme.authority"
        shutil.copy(str(authority.ledger.path), file)
        file.chmod(file_mode)
        folder.chmod(folder_mode)
        with (
            somebody_else(),
            pytest.raises(LedgerError, match=r"check the permissions|Permission denied"),
        ):
            Authority.open(file, PASSPHRASE)
        assert [path.name for path in folder.iterdir()] == [file.name]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


# --- secrets -----------------------------------------------------------------------


def spellings(secret: bytes) -> Iterator[bytes]:
    """Raw, hexadecimal, decimal, and base64 at its three alignments."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield str(int.from_bytes(secret, "big")).encode()
    for shift in range(3):  # all but the characters that depend on the neighbours
        text = base64.b64encode(bytes(shift) + secret).rstrip(b"=")
        yield text[-(-shift * 4 // 3) : -1]


def occurs(secret: bytes, data: bytes) -> bool:
    return any(spelling in data for spelling in spellings(secret))


@pytest.mark.parametrize("index", range(7))
def test_the_search_finds_each_spelling(index: int) -> None:
    secret = bytes(range(1, 33))
    assert occurs(secret, b"x" * 5 + list(spellings(secret))[index] + b"y")
    assert not occurs(secret, b"x" * 1000)


def test_no_secret_is_in_the_file(
    authority: Authority, issue: Any, protect: Any, tmp_path: Path, file: Path
) -> None:
    issue(authority, "alice")
    issue(authority, "bob")
    codebook, assignment = protect(authority)
    training = random.Random(0).randbytes(400)
    inputs = np.frombuffer(random.Random(1).randbytes(960), "<f4").reshape(12, 20)
    traces = TraceSet(inputs, assignment.trace)
    model_id = authority.model_store.model_of(codebook.codebook_id).model_id
    authority.model_store.save_training(model_id, training, traces)
    recipient = authority.user_store.recipient("alice")
    authority.export_store.add_export(
        codebook, b"m", folder="v", recipient=recipient, kernels=[inputs]
    )
    authority.revoke("bob")
    authority.enroll(f"user{i}" for i in range(30))
    live = authority.model_store.live_labels(codebook)
    keys = authority.keys
    authority.close()
    data = b"".join(path.read_bytes() for path in tmp_path.glob("acme.authority*"))

    bundle = KeyBundle.read(tmp_path / "alice.keybundle").unlock("correct horse")
    key = bundle.reader.point.secret_bytes()
    assert occurs(key[:32], data), "z is there, so a secret beside it would be found"
    masters = keys.read_master.secret_bytes() + keys.run_master.secret_bytes()
    everything: dict[str, list[bytes]] = {
        "user key": [key[32:], bundle.runner.secret_bytes()[32:]],
        "codeword": [bundle.reader.slots.secret_bytes()[:128]],
        "slot keys": [row.tobytes() for row in keys.slots.keys.reshape(-1, 16)],
        "biases": [keys.slots.thresholds[:8].astype(kind).tobytes() for kind in (">u4", "<u4")],
        "label keys": [one.key for one in live],
        "coefficient": [masters[i : i + 32] for i in range(0, len(masters), 32)],
        "data key and seeds": [keys._secret[i : i + 32] for i in (0, 32, 64)],
        "training": [training[i : i + 16] for i in range(0, 400, 16)],
        "trace inputs": [inputs.tobytes()[i : i + 16] for i in range(0, 960, 16)],
        "trace set": [traces.secret_bytes()[:128]],
        "fingerprint key": [authority.keys.fingerprint_key(model_id, recipient)],
        "assignment": [
            array.astype(kind).tobytes()
            for array in (assignment.labels, assignment.trace, assignment.classes)
            for kind in (">u4", "<u4", "<i8", "u1")
        ],
        "assignment as text": [
            separator.join(map(str, assignment.labels.reshape(-1))).encode()
            for separator in (",", ", ", " ")
        ],
        "metadata": [b"cicada", b"Not for the public"],
        "passphrase": [PASSPHRASE.encode(), b"correct horse"],
    }
    for what, secrets in everything.items():
        for secret in secrets:
            assert not occurs(secret, data), what
