"""Ledger files that are damaged, half-copied, or edited by other means: none opens silently."""

import contextlib
import json
import random
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.authority.authority import Authority
from keras_encryip.authority.event_log import append_event
from keras_encryip.authority.ledger import Ledger
from keras_encryip.errors import EncryipError, LedgerError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import ModelMetadata
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.tracing.events import EVENT_DOMAIN, Event, event_digest

PASSPHRASE = "owner's passphrase"


pytestmark = pytest.mark.usefixtures("cheap_scrypt")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Users alice (active) and bob (revoked), the model digits with two codebooks: 9 events."""
    folder = tmp_path_factory.mktemp("ledger")
    file = folder / "acme.authority"
    url = f"sqlite:///{file}"
    with Authority.create(url, PASSPHRASE, threshold=2, scrypt_log2_n=14) as authority:
        for name in ("alice", "bob"):
            authority.issue(name, folder / name, passphrase="x", scrypt_log2_n=14)
        metadata = ModelMetadata(model="digits", class_names=["ant", "bee", "cicada"])
        first = authority.model_store.add_model(metadata, LabelAssignment.draw(3, 4, 8, 1024))
        authority.revoke("bob")
        authority.model_store.current_codebook(first.codebook_id)
    return file.read_bytes()


@pytest.fixture
def used(content: bytes, file: Path) -> None:
    file.write_bytes(content)


@contextlib.contextmanager
def sqlite(file: Path) -> Iterator[sqlite3.Connection]:
    """The file by other means: plain sqlite3, without foreign keys."""
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


# --- damaged -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"precious", bytes(4096), b"SQLite format 3\0" + bytes(5000)],
    ids=["empty", "text", "zeros", "magic-only"],
)
def test_another_file_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(LedgerError, match=r"not a whole authority|is damaged"):
        Authority.open(f"sqlite:///{file}", PASSPHRASE)


def test_a_half_copied_file_never_opens(used: None, file: Path, record_property: Any) -> None:
    data = file.read_bytes()
    steps = len(data) // 24
    lengths = [*range(0, len(data), steps), *range(4096, len(data), 4096), len(data) - 1]
    record_property("cases", len(lengths))
    for length in lengths:
        file.write_bytes(data[:length])
        with pytest.raises(LedgerError, match=r"damaged|not a whole authority"):
            Authority.open(f"sqlite:///{file}", PASSPHRASE)
    file.write_bytes(data)
    Authority.open(f"sqlite:///{file}", PASSPHRASE).close()


def test_flipped_bits_are_refused_or_change_nothing(
    used: None, file: Path, record_property: Any
) -> None:
    """Header, schema, tables and indexes: one bit in every few used bytes, at random."""

    def state(authority: Authority) -> Any:
        return authority.name, authority.users(), authority.events(), authority.models()

    with Authority.open(f"sqlite:///{file}", PASSPHRASE) as whole:
        expected = state(whole)
    data = file.read_bytes()
    chance = random.Random(1)
    places = [*range(0, 100, 2), *chance.sample([i for i, byte in enumerate(data) if byte], 110)]
    record_property("cases", len(places))
    refused = 0
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << chance.randrange(8)
        file.write_bytes(changed)
        try:
            with Authority.open(f"sqlite:///{file}", PASSPHRASE) as authority:
                assert state(authority) == expected, f"byte {place} changed the ledger silently"
        except EncryipError:
            refused += 1
    assert 50 < refused < len(places)


def test_every_copy_of_a_users_name_is_guarded(used: None, file: Path) -> None:
    """In the users' table, in its index, and in the event log."""
    data = file.read_bytes()
    places = [found.start() for found in re.finditer(b"alice", data)]
    assert len(places) >= 4
    for place in places:
        file.write_bytes(data[:place] + b"alicf" + data[place + 5 :])
        with pytest.raises(LedgerError, match=r"damaged|do not agree|event log was changed"):
            Authority.open(f"sqlite:///{file}", PASSPHRASE)


# --- edited by hand ------------------------------------------------------------------

LOG = "The event log was changed"
EDITS: dict[str, tuple[str, str]] = {
    "event's details": (
        """UPDATE events SET details = replace(details, 'alice', 'carol') WHERE number = 2""",
        LOG + " at event 2",
    ),
    "event's kind": ("UPDATE events SET kind = 'x' WHERE number = 3", LOG + " at event 3"),
    "event's date": ("UPDATE events SET at = '2020' WHERE number = 4", LOG + " at event 4"),
    "event no JSON": ("UPDATE events SET details = '{' WHERE number = 5", LOG + " at event 5"),
    "event's digest": ("UPDATE events SET digest = x'00' WHERE number = 5", LOG + " at event 5"),
    "event's link": ("UPDATE events SET previous = x'00' WHERE number = 5", LOG + " at event 5"),
    "last signature": (
        "UPDATE events SET signature = zeroblob(64) WHERE number = 9",
        LOG + ": event 9 is not signed",
    ),
    "first event removed": ("DELETE FROM events WHERE number = 1", LOG + " at event 2"),
    "middle event removed": ("DELETE FROM events WHERE number = 4", LOG + " at event 5"),
    "gap closed": (
        "DELETE FROM events WHERE number = 4; UPDATE events SET number = number - 1 "
        "WHERE number > 4",
        LOG + " at event 4",
    ),
    "last event removed": ("DELETE FROM events WHERE number = 9", "codebooks of .* do not agree"),
    "revocation removed": ("DELETE FROM events WHERE number > 7", "users of .* do not agree"),
    "no events": ("DELETE FROM events", "authority of .* do not agree"),
    "no events, no users": (
        "DELETE FROM events; DELETE FROM users; DELETE FROM codebooks; DELETE FROM models",
        "authority of .* do not agree",
    ),
    "event repeated": (
        "INSERT INTO events SELECT 10, at, kind, details, digest, digest, signature "
        "FROM events WHERE number = 9",
        LOG + " at event 10",
    ),
    "user added": (
        "INSERT INTO users SELECT 3, 'eve', x'01', '0123456789abcdef', 'active', scope, roles, "
        "issued_at, not_after, NULL FROM users WHERE user_id = 1",
        "users of .* do not agree",
    ),
    "user removed": ("DELETE FROM users WHERE subject = 'alice'", "users of .* do not agree"),
    "user un-revoked": (
        "UPDATE users SET status = 'active', revoked_at = NULL WHERE subject = 'bob'",
        "users of .* do not agree",
    ),
    "user revoked": (
        "UPDATE users SET status = 'revoked' WHERE subject = 'alice'",
        "users of .* do not agree",
    ),
    "user made pending": (
        "UPDATE users SET status = 'pending' WHERE subject = 'alice'",
        "users of .* do not agree",
    ),
    "user renamed": (
        "UPDATE users SET subject = 'carol' WHERE subject = 'alice'",
        "users of .* do not agree",
    ),
    "names swapped": (
        "UPDATE users SET subject = 'x' WHERE user_id = 1; UPDATE users SET subject = 'alice' "
        "WHERE user_id = 2; UPDATE users SET subject = 'bob' WHERE user_id = 1",
        "users of .* do not agree",
    ),
    "key replaced": (
        "UPDATE users SET z = randomblob(32) WHERE subject = 'alice'",
        "users of .* do not agree",
    ),
    "key of no length": ("UPDATE users SET z = x'' WHERE user_id = 1", "users of .* do not agree"),
    "dates": ("UPDATE users SET not_after = '2999-01-01T00:00:00Z'", "users of .* do not agree"),
    "scope": ("UPDATE users SET scope = '[\"x\"]'", "users of .* do not agree"),
    "name": ("UPDATE authority SET name = 'evil'", "authority of .* do not agree"),
    "model's name": ("UPDATE models SET name = 'cats'", "models of .* do not agree"),
    "codebook removed": ("DELETE FROM codebooks WHERE number = 1", "codebooks of .* do not agree"),
    "codebook's revoked": ("UPDATE codebooks SET revoked = '[]'", "codebooks of .* do not agree"),
    "codebooks' order": (
        "UPDATE codebooks SET number = 3 WHERE number = 1",
        "codebooks of .* do not agree",
    ),
    "version": ("UPDATE authority SET ledger_version = 9", "has ledger version 9; this .* reads 4"),
    "no authority": ("DELETE FROM authority", "has ledger version none; this release reads 4"),
    "table dropped": ("DROP TABLE codebooks", r"table\(s\) codebooks are missing"),
    "bytes as text": (
        "UPDATE users SET z = 'text' WHERE user_id = 1",
        r"is damaged: column users\.z",
    ),
    "number as text": ("UPDATE codebooks SET model_id = 'x'", "column codebooks.model_id"),
}


@pytest.mark.parametrize(("statements", "message"), EDITS.values(), ids=EDITS)
def test_an_edited_file_does_not_open(
    used: None, file: Path, statements: str, message: str
) -> None:
    with sqlite(file) as connection:
        connection.executescript(statements)
    with pytest.raises(LedgerError, match=message):
        Authority.open(f"sqlite:///{file}", PASSPHRASE)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM exports WHERE export_id = 1",
        "DELETE FROM exports WHERE export_id = 2",
        "CREATE TEMP TABLE t AS SELECT * FROM exports WHERE export_id = 1;"
        " UPDATE t SET export_id = 3; INSERT INTO exports SELECT * FROM t",
        "UPDATE exports SET recipient = NULL",
        "UPDATE exports SET recipient = (SELECT key_id FROM users WHERE subject = 'bob')"
        " WHERE export_id = 2",
        "UPDATE exports SET trace_set = NULL WHERE export_id = 2",
        "UPDATE exports SET trace_set = zeroblob(32) WHERE export_id = 2",
        "UPDATE exports SET codebook_id = (SELECT codebook_id FROM codebooks WHERE number = 1)",
        "UPDATE exports SET export_id = 3 - export_id + 10; UPDATE exports SET export_id ="
        " export_id - 10",
    ],
    ids=[
        "first removed",
        "last removed",
        "added",
        "recipient removed",
        "recipient replaced",
        "trace set removed",
        "trace set replaced",
        "codebook",
        "order",
    ],
)
def test_edited_exports_do_not_open(used: None, reopen: Any, file: Path, statement: str) -> None:
    authority = reopen()
    record = authority.model_store.model_named("digits")
    with authority.ledger.reading() as connection:
        query = "SELECT codebook_id FROM codebooks WHERE number = 1"
        first = connection.exec_driver_sql(query).scalar_one()
    newest = authority.model_store.current_codebook(first)
    traces = TraceSet(np.zeros((record.assignment.trace.size, 2)), record.assignment.trace)
    alice = authority.user_store.recipient("alice")
    authority.export_store.add_export(newest, b"m", folder="a", recipient=None, kernels=[])
    authority.model_store.save_training(record.model_id, b"state", traces)
    authority.export_store.add_export(newest, b"m", folder="b", recipient=alice, kernels=[])
    assert [e.kind for e in reopen().events()[9:]] == ["model exported"] * 2
    with sqlite(file) as connection:
        connection.executescript(statement)
    with pytest.raises(LedgerError, match=r"exports of .* do not agree"):
        reopen()


def test_an_authority_that_is_open_checks_its_log_too(used: None, reopen: Any, file: Path) -> None:
    authority = reopen()
    with sqlite(file) as connection:
        connection.execute("UPDATE events SET kind = 'x' WHERE number = 3")
    with pytest.raises(LedgerError, match="event log was changed at event 3"):
        authority.events()


def test_a_log_continued_by_somebody_else_is_refused(
    used: None, create: Any, file: Path, tmp_path: Path
) -> None:
    """A right chain, signed by another authority."""
    stranger = create(f"sqlite:///{tmp_path}/stranger.authority")
    ledger = Ledger(f"sqlite:///{file}")
    with ledger.writing() as connection:
        append_event(connection, stranger.keys, "key revoked", key_id="0" * 16)
    ledger.close()
    with pytest.raises(LedgerError, match="event log was changed: event 10 is not signed"):
        Authority.open(f"sqlite:///{file}", PASSPHRASE)


@pytest.mark.parametrize("details", ["{}", "[]", "5", '"x"', '{"key_id": 5}', '{"count": "many"}'])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_a_recomputed_chain_is_a_ledger_error(
    used: None, create: Any, reopen: Any, file: Path, details: str, signed: bool
) -> None:
    """Signed: by an owner's program that is broken. Else whoever wrote it has no key."""
    owner = reopen()
    with sqlite(file) as connection:
        rows = connection.execute("SELECT number, at, kind, details FROM events ORDER BY number")
        digest = bytes(32)
        for number, at, kind, kept in rows.fetchall():
            kept = details if number > 1 else kept
            previous = digest
            digest = event_digest(Event(number, at, kind, json.loads(kept)), previous)
            signature = owner.keys.sign(EVENT_DOMAIN, digest) if signed else bytes(64)
            connection.execute(
                "UPDATE events SET details = ?, previous = ?, digest = ?, signature = ? "
                "WHERE number = ?",
                (kept, previous, digest, signature, number),
            )
    message = "cannot read|do not agree" if signed else "is not signed"
    with pytest.raises(LedgerError, match=message):
        reopen()
