"""The users' trace answers that the ledger keeps: right, sealed, and in the right order."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.authority import predicted_answers as answers_module
from keras_encryip.authority.authority import Authority
from keras_encryip.authority.keys import AuthorityKeys
from keras_encryip.authority.model_store import ModelStore
from keras_encryip.authority.predicted_answers import PredictedAnswers
from keras_encryip.authority.tracer import Tracer
from keras_encryip.crypto.kem import UserKey
from keras_encryip.errors import LedgerError, RevokedKeyError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata

pytestmark = pytest.mark.usefixtures("cheap_scrypt")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "CHUNK", 4)


@pytest.fixture
def no_caching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users are added without their answers."""
    monkeypatch.setattr(ModelStore, "predict_answers", lambda self, *, at_most: None)


def names(count: int, first: int = 0) -> list[str]:
    return [f"user{i}" for i in range(first, first + count)]


def keys_of(authority: Authority) -> list[UserKey]:
    """All users' keys, in the order of issue."""
    with authority.ledger.reading() as connection:
        rows = connection.exec_driver_sql("SELECT z FROM users ORDER BY user_id").all()
    return [authority.keys.master.user_key(int.from_bytes(row.z, "big")) for row in rows]


def expected(authority: Authority, codebook: Codebook, assignment: LabelAssignment) -> list[Any]:
    """What the users' own decode tables say, K throughout for those who have none."""
    rows = []
    for key in keys_of(authority):
        try:
            rows.append(codebook.decode_table(key)[assignment.trace].tolist())
        except RevokedKeyError:
            rows.append([codebook.num_classes] * assignment.trace.size)
    return rows


def fill(authority: Authority, cache: PredictedAnswers) -> list[int]:
    """Extends to the end; how many were added each time."""
    added = []
    while not added or added[-1]:
        added.append(cache.extend())
    return added[:-1]


def stored(authority: Authority, cache: PredictedAnswers, first: int = 0) -> list[Any]:
    """All users' answers, at the positions that the cache gives them."""
    with authority.ledger.reading() as connection:
        parts = list(cache.read(connection, first))
    assert [start for start, _ in parts] == [
        answers_module.CHUNK * (first + i) for i in range(len(parts))
    ]
    return [row for _, part in parts for row in part.tolist()]


def missing(authority: Authority, cache: PredictedAnswers) -> int:
    return cache.missing()


# --- right ---------------------------------------------------------------------------


def test_answers_are_what_every_users_decode_table_says(
    authority: Authority, issue: Any, protect: Any, reopen: Any
) -> None:
    """Issued and enrolled users, two models, and codebooks before and after a revocation."""
    issue(authority, "alice")
    (first, one), (second, two) = protect(authority), protect(authority, "cats")
    authority.enroll(names(5))
    authority.revoke("user1")
    third = authority.model_store.current_codebook(first.codebook_id)
    issue(authority, "user3")
    authority.revoke("alice")
    fourth = authority.model_store.current_codebook(first.codebook_id)
    issue(authority, "bob")
    again = reopen()
    shut_out = []
    for codebook, assignment in ((first, one), (second, two), (third, one), (fourth, one)):
        cache = again.model_store.predicted_answers(codebook)
        fill(again, cache)
        rows = stored(again, cache)
        assert len(rows) == 7
        assert rows == expected(again, codebook, assignment)
        shut_out.append([i for i, row in enumerate(rows) if set(row) == {3}])
    assert shut_out == [[], [], [2], [0, 2]]


@pytest.mark.parametrize("users", [0, 1, 3, 4, 5, 8, 9])
def test_chunks(
    small_chunks: None, no_caching: None, authority: Authority, protect: Any, users: int
) -> None:
    codebook, assignment = protect(authority)
    authority.enroll(names(users))
    cache = authority.model_store.predicted_answers(codebook)
    assert missing(authority, cache) == users
    assert stored(authority, cache) == []
    assert fill(authority, cache) == [4] * (users // 4) + [users % 4] * (users % 4 > 0)
    assert missing(authority, cache) == 0
    assert stored(authority, cache) == expected(authority, codebook, assignment)
    assert stored(authority, cache, 1) == expected(authority, codebook, assignment)[4:]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 9])
def test_few_at_a_time_is_all_at_once(
    small_chunks: None, authority: Authority, protect: Any, step: int
) -> None:
    codebook, assignment = protect(authority)
    cache = authority.model_store.predicted_answers(codebook)
    for first in range(0, 11, step):
        authority.enroll(names(min(step, 11 - first), first))
        assert missing(authority, cache) == 0, "adding users extends the cache"
        assert stored(authority, cache) == expected(authority, codebook, assignment)
    assert len(stored(authority, cache)) == 11


def test_a_model_without_trace_labels_has_answers_of_no_length(
    small_chunks: None, authority: Authority
) -> None:
    metadata = ModelMetadata(model="m", class_names=["a", "b"])
    codebook = authority.model_store.add_model(metadata, LabelAssignment.draw(2, 3, 0))
    for i in range(5):
        authority.enroll([f"user{i}"])
    assert stored(authority, authority.model_store.predicted_answers(codebook)) == [[]] * 5


@pytest.mark.parametrize(("classes", "size"), [(2, 1), (255, 1), (256, 2), (300, 2)])
def test_answers_take_the_bytes_that_the_classes_need(
    authority: Authority, classes: int, size: int
) -> None:
    authority.enroll(names(6))
    authority.revoke("user2")
    assignment = LabelAssignment.draw(classes, 1, 64)
    metadata = ModelMetadata(model="m", class_names=list(map(str, range(classes))))
    codebook = authority.model_store.add_model(metadata, assignment)
    cache = authority.model_store.predicted_answers(codebook)
    fill(authority, cache)
    with authority.ledger.reading() as connection:
        [(_, answers)] = cache.read(connection)
    assert answers.dtype.itemsize == size
    assert answers.tolist() == expected(authority, codebook, assignment)
    assert set(answers[2].tolist()) == {classes}
    assert answers[[0, 1, 3, 4, 5]].max() < classes


# --- when they are kept ----------------------------------------------------------------


def test_the_newest_codebook_of_each_model_is_kept_up(
    small_chunks: None, authority: Authority, protect: Any
) -> None:
    (first, _), (second, _) = protect(authority), protect(authority, "cats")
    authority.enroll(names(3))
    authority.revoke("user1")
    third = authority.model_store.current_codebook(first.codebook_id)
    authority.enroll(names(2, 3))
    behind = [
        missing(authority, authority.model_store.predicted_answers(c))
        for c in (first, second, third)
    ]
    assert behind == [2, 0, 0]


@pytest.mark.parametrize(
    ("backlog", "left"), [(4, 0), (5, 0), (6, 6)], ids=["less", "just", "too long"]
)
def test_a_long_backlog_is_left_alone(
    small_chunks: None, authority: Authority, protect: Any, backlog: int, left: int
) -> None:
    """One new user, and at most a chunk before them."""
    authority.enroll(names(backlog))
    codebook, _ = protect(authority)
    cache = authority.model_store.predicted_answers(codebook)
    authority.model_store.predict_answers(at_most=1)
    assert missing(authority, cache) == left


def test_an_interrupted_extension_loses_nothing(
    small_chunks: None,
    no_caching: None,
    authority: Authority,
    protect: Any,
    reopen: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the removal of a partial chunk and its replacement."""
    codebook, assignment = protect(authority)
    authority.enroll(names(6))
    cache = authority.model_store.predicted_answers(codebook)
    assert fill(authority, cache) == [4, 2]
    before = stored(authority, cache)
    authority.enroll(names(5, 6))

    def failing(*arguments: Any) -> bytes:
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(AuthorityKeys, "seal", failing)
        with pytest.raises(OSError, match="power cut"):
            fill(authority, cache)
    again = reopen()
    cache = again.model_store.predicted_answers(codebook)
    assert stored(again, cache) == before
    assert missing(again, cache) == 5
    assert fill(again, cache) == [2, 3]
    assert stored(again, cache) == expected(again, codebook, assignment)


# --- sealed ------------------------------------------------------------------------------


@contextlib.contextmanager
def sqlite(file: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def test_answers_are_not_in_the_file(authority: Authority, protect: Any, file: Path) -> None:
    codebook, assignment = protect(authority)
    authority.enroll(names(30))
    rows = np.array(expected(authority, codebook, assignment))
    assert rows.shape == (30, 12)
    assert missing(authority, authority.model_store.predicted_answers(codebook)) == 0
    authority.close()
    data = file.read_bytes()
    for some in (rows[:8], rows[11:19], rows.T[:, :20]):
        for kind in ("u1", "<i4", "<i8"):
            assert some.astype(kind).tobytes() not in data


SWAP = """
    UPDATE trace_answers SET chunk = 99 WHERE codebook_id = x'{0}' AND chunk = 0;
    UPDATE trace_answers SET chunk = 0 WHERE codebook_id = x'{0}' AND chunk = 1;
    UPDATE trace_answers SET chunk = 1 WHERE codebook_id = x'{0}' AND chunk = 99;
"""
CHANGES = {
    "damaged": "UPDATE trace_answers SET sealed = substr(sealed, 1, length(sealed) - 1)",
    "cut": "UPDATE trace_answers SET sealed = x'00' WHERE chunk = 1",
    "swapped": SWAP,
    "renamed": "UPDATE trace_answers SET chunk = 3 WHERE codebook_id = x'{0}' AND chunk = 2",
    "first removed": "DELETE FROM trace_answers WHERE chunk = 0",
    "middle removed": "DELETE FROM trace_answers WHERE chunk = 1",
    "first of three moved on": (
        "DELETE FROM trace_answers WHERE codebook_id = x'{0}' AND chunk = 2;"
        "UPDATE trace_answers SET chunk = 2 WHERE codebook_id = x'{0}' AND chunk = 0"
    ),
    "of another codebook": (
        "UPDATE trace_answers SET sealed = (SELECT t.sealed FROM trace_answers t WHERE "
        "t.codebook_id = x'{1}' AND t.chunk = trace_answers.chunk) WHERE codebook_id = x'{0}'"
    ),
    "other users": "UPDATE trace_answers SET users = 2 WHERE chunk = 1",
    "no users": "UPDATE trace_answers SET users = 0 WHERE chunk = 2",
    "last with fewer users": "UPDATE trace_answers SET users = 1 WHERE chunk = 2",
    "more than the users": "UPDATE trace_answers SET users = 4 WHERE chunk = 2",
}


@pytest.fixture
def cached(
    small_chunks: None, authority: Authority, protect: Any
) -> tuple[Authority, Codebook, Codebook]:
    """Ten users' answers in three chunks, for two models."""
    (first, _), (second, _) = protect(authority), protect(authority, "cats")
    authority.enroll(names(10))
    return authority, first, second


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_answers_are_refused(cached: Any, file: Path, reopen: Any, change: str) -> None:
    authority, codebook, other = cached
    assert len(stored(authority, authority.model_store.predicted_answers(codebook))) == 10
    ids = [book.codebook_id.hex() for book in (codebook, other)]
    with sqlite(file) as connection:
        connection.executescript(change.format(*ids))
    again = reopen()
    with pytest.raises(LedgerError, match=r"authority's file is damaged at trace answers [0-9]"):
        stored(again, again.model_store.predicted_answers(codebook))


def test_an_older_chunk_is_not_taken_for_a_newer_one(
    small_chunks: None, authority: Authority, protect: Any, file: Path, reopen: Any
) -> None:
    """Its seal is right, and its users too: but those who came after them would move up."""
    codebook, _ = protect(authority)
    authority.enroll(names(2))
    with sqlite(file) as connection:
        [old] = connection.execute("SELECT users, sealed FROM trace_answers").fetchall()
    authority.enroll(names(5, 2))
    with sqlite(file) as connection:
        connection.execute("UPDATE trace_answers SET users = ?, sealed = ? WHERE chunk = 0", old)
    again = reopen()
    cache = again.model_store.predicted_answers(codebook)
    for use in (stored, fill, missing):
        with pytest.raises(LedgerError, match="damaged at trace answers 1"):
            use(again, cache)


def test_a_removed_last_chunk_is_computed_again(cached: Any, file: Path, reopen: Any) -> None:
    authority, codebook, _ = cached
    before = stored(authority, authority.model_store.predicted_answers(codebook))
    with sqlite(file) as connection:
        connection.execute("DELETE FROM trace_answers WHERE chunk = 2")
    again = reopen()
    cache = again.model_store.predicted_answers(codebook)
    assert missing(again, cache) == 2
    assert fill(again, cache) == [2]
    assert stored(again, cache) == before


def test_a_damaged_partial_chunk_is_not_extended(cached: Any, file: Path, reopen: Any) -> None:
    """Or the damage would be sealed again as if it were right."""
    _, codebook, _ = cached
    with sqlite(file) as connection:
        connection.execute("UPDATE trace_answers SET sealed = zeroblob(100) WHERE chunk = 2")
        before = connection.execute("SELECT * FROM trace_answers").fetchall()
    again = reopen()
    assert [user.subject for user in again.enroll(["late"])] == ["late"]
    with sqlite(file) as connection:
        assert connection.execute("SELECT * FROM trace_answers").fetchall() == before
    cache = again.model_store.predicted_answers(codebook)
    assert missing(again, cache) == 1
    with pytest.raises(LedgerError, match="damaged at trace answers 2"):
        cache.extend()


def test_tracing_computes_a_damaged_cache_again(cached: Any, file: Path, reopen: Any) -> None:
    _, codebook, _ = cached
    with sqlite(file) as connection:
        right = connection.execute("SELECT chunk, users FROM trace_answers").fetchall()
        connection.execute("UPDATE trace_answers SET sealed = zeroblob(100) WHERE chunk = 1")
    again = reopen()
    table = np.zeros(codebook.num_labels, np.int64)
    assert Tracer(again).table(table, model="digits").verdict == "inconclusive"
    with sqlite(file) as connection:
        assert connection.execute("SELECT chunk, users FROM trace_answers").fetchall() == right
