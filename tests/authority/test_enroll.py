"""Many users at once, whose bundles are written later."""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.authority import user_store
from keras_encryip.authority.authority import Authority
from keras_encryip.crypto.kem import key_id
from keras_encryip.crypto.slots import ReaderKey
from keras_encryip.errors import ArgumentError, LedgerError, RevokedKeyError
from keras_encryip.formats.key_bundle import KeyBundle

NAMES = ["ann", "ben", "cat", "dan", "eve"]

pytestmark = pytest.mark.usefixtures("cheap_scrypt")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_store, "_ENROLL_BATCH", 2)


@pytest.fixture
def key_of(tmp_path: Path) -> Callable[[str], ReaderKey]:
    """The key in a subject's bundle."""
    return lambda subject: (
        KeyBundle.read(tmp_path / f"{subject}.keybundle").unlock("correct horse").reader
    )


def kinds(authority: Authority) -> list[str]:
    return [event.kind for event in authority.events()]


def test_enrolled_users_are_pending_in_the_order_given(authority: Authority, reopen: Any) -> None:
    users = authority.enroll(name for name in NAMES)
    assert [user.subject for user in users] == NAMES
    assert {(user.status, *user.scope, user.revoked_at) for user in users} == {
        ("pending", "*", None)
    }
    assert len({user.key_id for user in users}) == 5
    assert authority.users() == users == reopen().users()
    event = authority.events()[-1]
    assert (event.kind, event.details["count"]) == ("keys enrolled", 5)
    assert not any(name in repr(event) for name in [*NAMES, users[0].key_id])


def test_enrolling_nobody_changes_nothing(authority: Authority) -> None:
    assert authority.enroll([]) == []
    assert kinds(authority) == ["authority created"]


def test_an_enrolled_user_gets_a_bundle_that_works(
    authority: Authority, issue: Any, protect: Any, key_of: Any, reopen: Any
) -> None:
    enrolled = {user.subject: user for user in authority.enroll(NAMES)}
    codebook, assignment = protect(authority)
    cat = issue(reopen(), "cat", days=30, models=["digits"])
    assert (cat.status, cat.scope, cat.key_id) == ("active", ["digits"], enrolled["cat"].key_id)
    assert cat.not_after > enrolled["cat"].not_after
    assert key_of("cat").key_id == cat.key_id
    assert codebook.open_metadata(key_of("cat").point).model == "digits"
    real = assignment.classes >= 0
    np.testing.assert_array_equal(
        codebook.decode_table(key_of("cat"))[real], assignment.classes[real]
    )
    assert kinds(authority)[-1] == "bundle written"
    expected = [cat if name == "cat" else enrolled[name] for name in NAMES]
    assert reopen().users() == expected


def test_an_enrolled_user_is_issued_once(authority: Authority, issue: Any, tmp_path: Path) -> None:
    authority.enroll(["ann"])
    issue(authority, "ann")
    with pytest.raises(LedgerError, match=r"'ann' has a key already \([0-9a-f]{16}, active\)"):
        issue(authority, "ann", path=tmp_path / "second")
    with pytest.raises(LedgerError, match="'ann' has a key already"):
        authority.enroll(["ann"])


def test_issued_and_enrolled_users_mix(authority: Authority, issue: Any, reopen: Any) -> None:
    issue(authority, "alice")
    authority.enroll(["ann", "ben"])
    issue(authority, "bob")
    authority.enroll(["cat"])
    issue(authority, "ben")
    authority.revoke("ann")
    again = reopen().users()
    assert again == authority.users()
    assert [(user.subject, user.status) for user in again] == [
        ("alice", "active"),
        ("ann", "revoked"),
        ("ben", "active"),
        ("bob", "active"),
        ("cat", "pending"),
    ]


def test_an_enrolled_user_can_be_revoked(
    authority: Authority, protect: Any, issue: Any, key_of: Any, reopen: Any
) -> None:
    ann, _ = authority.enroll(["ann", "ben"])
    issue(authority, "ben")
    old, _ = protect(authority)
    for name in ("ann", "ben"):  # without a bundle, and with one
        authority.revoke(name)
    assert [user.status for user in reopen().users()] == ["revoked", "revoked"]
    new = authority.model_store.current_codebook(old.codebook_id)
    z = z_of(authority, "ann")
    assert {z, key_of("ben").point.z} == set(new.header.nodes)
    assert not {z, key_of("ben").point.z} & set(old.header.nodes)
    with pytest.raises(RevokedKeyError, match="was revoked before this model version"):
        new.open_metadata(key_of("ben").point)
    with pytest.raises(LedgerError, match=rf"'ann' has a key already \({ann.key_id}, revoked"):
        issue(authority, "ann")


def z_of(authority: Authority, subject: str) -> int:
    """A user's z, by plain SQL."""
    with authority.ledger.reading() as connection:
        query = "SELECT z FROM users WHERE subject = ?"
        return int.from_bytes(connection.exec_driver_sql(query, (subject,)).scalar_one(), "big")


# --- refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subjects", "error", "message"),
    [
        (["new", "new"], LedgerError, "'new' has a key already, or is named twice"),
        (["a", "b", "c", "d", "a"], LedgerError, "'a' has a key already, or is named twice"),
        (["new", "alice"], LedgerError, "'alice' has a key already"),
        (["new", "old"], LedgerError, "'old' has a key already"),
        (["new", ""], ArgumentError, "`subjects` must be a string of 1 … 256"),
        (["new", "x" * 257], ArgumentError, "`subjects` must be a string of 1 … 256"),
        (["new", "a\ud800"], ArgumentError, "`subjects` must be a string of 1 … 256"),
        (["new", 7], ArgumentError, "`subjects` must be a string of 1 … 256"),
        (["new", None], ArgumentError, "`subjects` must be a string of 1 … 256"),
        (["new", ["x"]], ArgumentError, "`subjects` must be a string of 1 … 256"),
        ("new", ArgumentError, "`subjects` must be a list of names. Received: 'new'"),
        (7, ArgumentError, "`subjects` must be a list of names. Received: 7"),
        (None, ArgumentError, "`subjects` must be a list of names"),
    ],
    ids=lambda value: repr(value)[:24] if not isinstance(value, type) else "",
)
def test_enroll_refuses_and_leaves_no_trace(
    small_batches: None,
    authority: Authority,
    issue: Any,
    reopen: Any,
    subjects: Any,
    error: type[Exception],
    message: str,
) -> None:
    issue(authority, "alice")
    authority.enroll(["old"])
    users, events = authority.users(), authority.events()
    with pytest.raises(error, match=message):
        authority.enroll(subjects)
    again = reopen()
    assert (again.users(), again.events()) == (users, events)


# --- batches and failures ----------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_batches_are_one_event_each(
    small_batches: None, authority: Authority, reopen: Any, count: int
) -> None:
    users = authority.enroll(NAMES[:count])
    assert [user.subject for user in users] == NAMES[:count]
    counts = [event.details["count"] for event in authority.events()[1:]]
    assert counts == [2] * (count // 2) + [1] * (count % 2)
    assert reopen().users() == users


def test_a_failure_loses_the_batch_that_failed_and_no_other(
    small_batches: None,
    authority: Authority,
    issue: Any,
    reopen: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Right after the rows of the second batch are in, before their event is."""
    append, logged = user_store.append_event, []

    def failing(connection: Any, keys: Any, kind: str, **details: Any) -> None:
        logged.append(kind)
        if len(logged) == 2:
            raise OSError("power cut")
        append(connection, keys, kind, **details)

    with monkeypatch.context() as patch:
        patch.setattr(user_store, "append_event", failing)
        with pytest.raises(OSError, match="power cut"):
            authority.enroll(NAMES)
    again = reopen()
    assert [user.subject for user in again.users()] == ["ann", "ben"]
    assert kinds(again) == ["authority created", "keys enrolled"]
    assert [user.subject for user in again.enroll(NAMES[2:])] == NAMES[2:]
    assert issue(reopen(), "dan").status == "active"


# --- edited by other means ---------------------------------------------------------

EDITS = {
    "added": (
        f"INSERT INTO users SELECT 99, 'mal', x'{5:064x}', '{key_id(5)}', status, scope, "
        "roles, "
        "issued_at, not_after, NULL FROM users WHERE user_id = 3"
    ),
    "first removed": "DELETE FROM users WHERE user_id = 2",
    "middle removed": "DELETE FROM users WHERE user_id = 4",
    "last removed": "DELETE FROM users WHERE user_id = 6",
    "all removed": "DELETE FROM users WHERE user_id > 1",
    "renamed": "UPDATE users SET subject = 'mal' WHERE user_id = 3",
    "key replaced": f"UPDATE users SET z = x'{5:064x}' WHERE user_id = 3",
    "key and id replaced": (
        f"UPDATE users SET z = x'{5:064x}', key_id = '{key_id(5)}' WHERE user_id = 3"
    ),
    "key id replaced": "UPDATE users SET key_id = '0123456789abcdef' WHERE user_id = 3",
    "made active": "UPDATE users SET status = 'active' WHERE user_id = 3",
    "revoked": "UPDATE users SET status = 'revoked', revoked_at = issued_at WHERE user_id = 3",
    "dates": "UPDATE users SET not_after = '2999-01-01T00:00:00Z' WHERE user_id = 3",
    "scope": "UPDATE users SET scope = '[\"x\"]' WHERE user_id = 3",
    "names swapped": (
        "UPDATE users SET subject = 'x' WHERE user_id = 3; UPDATE users SET subject = 'ben' "
        "WHERE user_id = 4; UPDATE users SET subject = 'cat' WHERE user_id = 3"
    ),
    "order swapped": (
        "UPDATE users SET user_id = 99 WHERE user_id = 3; UPDATE users SET user_id = 3 "
        "WHERE user_id = 4; UPDATE users SET user_id = 4 WHERE user_id = 99"
    ),
    "swapped across batches": (
        "UPDATE users SET user_id = 99 WHERE user_id = 2; UPDATE users SET user_id = 2 "
        "WHERE user_id = 5; UPDATE users SET user_id = 5 WHERE user_id = 99"
    ),
    "moved before the issued": (
        "UPDATE users SET user_id = 99 WHERE user_id = 1; UPDATE users SET user_id = 1 "
        "WHERE user_id = 2; UPDATE users SET user_id = 2 WHERE user_id = 99"
    ),
}


@pytest.mark.parametrize("statements", EDITS.values(), ids=EDITS)
def test_an_edited_enrolment_does_not_open(
    small_batches: None,
    authority: Authority,
    issue: Any,
    reopen: Any,
    file: Path,
    statements: str,
) -> None:
    issue(authority, "alice")
    authority.enroll(NAMES)
    issue(authority, "eve")
    reopen()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.executescript(statements)
    with pytest.raises(LedgerError, match=r"users of .* do not agree with its event log"):
        reopen()
