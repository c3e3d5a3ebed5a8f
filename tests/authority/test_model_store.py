"""The models and codebooks that an authority keeps."""

import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.authority.authority import Authority
from keras_encryip.crypto.slots import ReaderKey
from keras_encryip.errors import LedgerError, RevokedKeyError, SignatureError
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook
from keras_encryip.labels.live_labels import live_commitment
from keras_encryip.labels.trace_set import TraceSet

CREATED = ["authority created"]


def kinds(authority: Authority) -> list[str]:
    return [event.kind for event in authority.events()]


@pytest.fixture
def key_of(tmp_path: Path) -> Callable[[str], ReaderKey]:
    """The key in a subject's bundle."""
    return lambda subject: (
        KeyBundle.read(tmp_path / f"{subject}.keybundle").unlock("correct horse").reader
    )


def test_a_model_is_kept_with_its_assignment_and_metadata(
    authority: Authority, protect: Any, issue: Any, key_of: Any, reopen: Any
) -> None:
    codebook, assignment = protect(authority)
    record = reopen().model_store.model_of(codebook.codebook_id)
    assert authority.models() == ["digits"]
    np.testing.assert_array_equal(record.assignment.classes, assignment.classes)
    assert record.metadata.class_names == ["ant", "bee", "cicada"]
    assert record.training is None
    assert kinds(authority) == [*CREATED, "model protected", "codebook made"]
    issue(authority, "alice")
    codebook.verify(authority.issuer)
    assert codebook.open_metadata(key_of("alice").point) == record.metadata
    table, real = codebook.decode_table(key_of("alice")), assignment.classes >= 0
    np.testing.assert_array_equal(table[real], assignment.classes[real])


def test_two_models_of_one_name_stay_two_models(authority: Authority, protect: Any) -> None:
    (first, one), (second, two) = protect(authority), protect(authority)
    assert authority.models() == ["digits", "digits"]
    for codebook, assignment in ((first, one), (second, two)):
        record = authority.model_store.model_of(codebook.codebook_id)
        assert record.assignment.secret_bytes() == assignment.secret_bytes()
    assert authority.model_store.current_codebook(first.codebook_id).to_bytes() == first.to_bytes()


def trace_set(assignment: LabelAssignment, value: float = 0.5) -> TraceSet:
    return TraceSet(np.full((assignment.trace.size, 2), value, "float32"), assignment.trace)


def test_training_state_is_kept(authority: Authority, protect: Any, reopen: Any) -> None:
    (first, assignment), (second, _) = protect(authority), protect(authority, "cats")
    traces = trace_set(assignment)
    model_id = authority.model_store.model_of(first.codebook_id).model_id
    authority.model_store.save_training(model_id, b"centroids", traces)
    record = reopen().model_store.model_of(first.codebook_id)
    assert record.training == b"centroids"
    np.testing.assert_array_equal(record.traces.inputs, traces.inputs)
    np.testing.assert_array_equal(record.traces.labels, traces.labels)
    other = authority.model_store.model_of(second.codebook_id)
    assert (other.training, other.traces) == (None, None)
    authority.model_store.save_training(model_id, b"again", None)
    record = reopen().model_store.model_of(first.codebook_id)
    assert (record.training, record.traces) == (b"again", None)


def test_trace_sets_of_exported_models_are_kept(
    authority: Authority, protect: Any, reopen: Any
) -> None:
    """A model that was exported goes on knowing the trace inputs of its time."""
    (codebook, assignment), (other, _) = protect(authority), protect(authority, "cats")
    model_id = authority.model_store.model_of(codebook.codebook_id).model_id
    old, unused, new = (trace_set(assignment, value) for value in (1, 2, 3))

    def kept(codebook: Codebook) -> list[bytes]:
        again = reopen()
        return [
            t.digest
            for t in again.model_store.trace_sets_of(
                again.model_store.model_of(codebook.codebook_id)
            )
        ]

    def export() -> None:
        authority.export_store.add_export(codebook, b"m", folder="v", recipient=None, kernels=[])

    assert kept(codebook) == []
    for traces in (old, old):  # the same training twice is one set
        authority.model_store.save_training(model_id, b"", traces)
        export()
    authority.model_store.save_training(model_id, b"", unused)
    assert kept(codebook) == [unused.digest, old.digest]
    authority.model_store.save_training(model_id, b"", new)
    export()
    assert kept(codebook) == [new.digest, old.digest]
    authority.model_store.save_training(model_id, b"", None)
    export()
    assert sorted(kept(codebook)) == sorted([new.digest, old.digest])
    assert kept(other) == []


@pytest.mark.parametrize("change", ["damaged", "swapped"])
def test_a_damaged_trace_set_is_refused(
    authority: Authority, protect: Any, reopen: Any, file: Path, change: str
) -> None:
    codebook, assignment = protect(authority)
    model_id = authority.model_store.model_of(codebook.codebook_id).model_id
    for value in (1, 2):
        authority.model_store.save_training(model_id, b"", trace_set(assignment, value))
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        sets = dict(connection.execute("SELECT digest, sealed FROM trace_sets"))
        for digest, other in zip(sets, reversed(sets), strict=True):
            sealed = (
                sets[other]
                if change == "swapped"
                else bytes([*sets[digest][:-1], sets[digest][-1] ^ 1])
            )
            connection.execute(
                "UPDATE trace_sets SET sealed = ? WHERE digest = ?", (sealed, digest)
            )
    with pytest.raises(LedgerError, match=r"is damaged at 'trace_set [0-9a-f]{64}'"):
        reopen().model_store.model_of(codebook.codebook_id)


def test_a_new_codebook_is_made_only_when_revocations_changed(
    authority: Authority, protect: Any, issue: Any, reopen: Any
) -> None:
    issue(authority, "alice")
    first, _ = protect(authority)
    assert authority.model_store.current_codebook(first.codebook_id).to_bytes() == first.to_bytes()
    authority.revoke("alice")
    second = authority.model_store.current_codebook(first.codebook_id)
    assert second.codebook_id != first.codebook_id
    for known in (first, second):  # asked by any of its codebooks, a model has one newest
        again = reopen().model_store.current_codebook(known.codebook_id)
        assert again.to_bytes() == second.to_bytes()
    third = authority.model_store.current_codebook(first.codebook_id, fresh=True)
    assert third.codebook_id not in (first.codebook_id, second.codebook_id)
    assert kinds(authority).count("codebook made") == 3


def test_a_revoked_user_is_shut_out_of_new_codebooks_only(
    authority: Authority, protect: Any, issue: Any, key_of: Any
) -> None:
    issue(authority, "alice")
    issue(authority, "bob")
    old, assignment = protect(authority)
    authority.revoke("bob")
    new = authority.model_store.current_codebook(old.codebook_id)
    assert old.open_metadata(key_of("bob").point).model == "digits"
    with pytest.raises(RevokedKeyError, match="was revoked before this model version"):
        new.open_metadata(key_of("bob").point)
    with pytest.raises(RevokedKeyError, match="was revoked before this model version"):
        new.decode_table(key_of("bob"))
    table, real = new.decode_table(key_of("alice")), assignment.classes >= 0
    np.testing.assert_array_equal(table[real], assignment.classes[real])


def test_every_users_table_follows_from_their_codeword(
    authority: Authority, protect: Any, issue: Any, key_of: Any
) -> None:
    """And is the same in every codebook of a model."""
    for name in ("alice", "bob", "carol"):
        issue(authority, name)
    first, assignment = protect(authority)
    authority.revoke("bob")
    second = authority.model_store.current_codebook(first.codebook_id)
    secrets = authority.keys.slots
    slots = assignment.slots[assignment.trace]
    for codebook, users in ((first, ("alice", "bob", "carol")), (second, ("alice", "carol"))):
        for user in users:
            key = key_of(user)
            (bits,) = secrets.codewords([key.key_id], slots)
            expected = assignment.versions[:, 0].copy()
            expected[assignment.trace] = assignment.pairs[np.arange(len(bits)), bits]
            np.testing.assert_array_equal(codebook.decode_table(key), expected)


def test_the_log_commits_to_live_labels(authority: Authority, protect: Any) -> None:
    codebook, assignment = protect(authority)
    live = authority.model_store.live_labels(codebook)
    assert [one.label for one in live] == assignment.trace.tolist()
    assert [list(one.classes) for one in live] == assignment.pairs.tolist()
    event = authority.events()[-1]
    assert event.details["live"] == live_commitment(live)
    for one in live:
        assert one.slot == assignment.slots[one.label]
        for bit in (0, 1):
            key = authority.keys.slots.keys[one.slot, bit].tobytes()
            assert codebook.read_label(one.label, bit, one.key, key) == one.classes[bit]


# --- reordered --------------------------------------------------------------------


def test_a_reordered_codebook_has_an_assignment_of_its_own(
    authority: Authority, protect: Any, issue: Any, key_of: Any, reopen: Any
) -> None:
    for name in ("alice", "bob"):
        issue(authority, name)
    first, assignment = protect(authority)
    authority.revoke("bob")
    second, moved = authority.model_store.reorder(first)
    third, again = authority.model_store.reorder(second)
    opened = reopen()
    orders = [opened.model_store.assignment_of(codebook) for codebook in (first, second, third)]
    assert orders[0].secret_bytes() == assignment.secret_bytes()
    np.testing.assert_array_equal(moved[orders[0].labels], orders[1].labels)
    np.testing.assert_array_equal(moved[orders[0].trace], orders[1].trace)
    np.testing.assert_array_equal(again[moved], orders[0].moved_to(orders[2]))
    for codebook, order in zip((second, third), orders[1:], strict=True):
        table, real = codebook.decode_table(key_of("alice")), order.classes >= 0
        np.testing.assert_array_equal(table[real], order.classes[real])
        live = opened.model_store.live_labels(codebook)
        assert [one.label for one in live] == order.trace.tolist()
        with pytest.raises(RevokedKeyError):
            codebook.decode_table(key_of("bob"))
    # The model itself keeps its order, whichever of its codebooks it is asked by.
    for codebook in (first, second, third):
        current = authority.model_store.current_codebook(codebook.codebook_id)
        assert (
            authority.model_store.assignment_of(current).secret_bytes() == assignment.secret_bytes()
        )
        record = authority.model_store.model_of(codebook.codebook_id)
        assert record.assignment.secret_bytes() == assignment.secret_bytes()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE codebooks SET sealed_assignment = NULL", "codebooks of .* do not agree"),
        ("UPDATE codebooks SET sealed_assignment = x'00'", "codebooks of .* do not agree"),
        ("UPDATE codebooks SET sealed_assignment = 'x'", "damaged: column codebooks.sealed_assign"),
    ],
    ids=["removed", "changed", "text"],
)
def test_a_changed_assignment_is_noticed(
    authority: Authority, protect: Any, reopen: Any, file: Path, statement: str, message: str
) -> None:
    authority.model_store.reorder(protect(authority)[0])
    authority.close()
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement)
    with pytest.raises(LedgerError, match=message):
        reopen()


def test_assignments_of_two_codebooks_cannot_be_swapped(
    authority: Authority, protect: Any, reopen: Any, file: Path
) -> None:
    """Nor by who can write the log, but has not the data key: the seal names the codebook."""
    first, _ = protect(authority)
    second, _ = authority.model_store.reorder(first)
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            "UPDATE codebooks SET sealed_assignment = "
            "(SELECT sealed_assignment FROM codebooks WHERE number = 2)"
        )
    with pytest.raises(LedgerError, match="damaged at 'sealed_assignment of codebook"):
        authority.model_store.assignment_of(first)
    assert authority.model_store.assignment_of(second).num_labels == second.num_labels


def test_a_changed_codebook_has_no_live_labels(authority: Authority, protect: Any) -> None:
    codebook, _ = protect(authority)
    forged = replace(codebook, values=(codebook.values + 1) % 3)
    with pytest.raises(SignatureError, match="signature of the codebook is wrong"):
        authority.model_store.live_labels(forged)


def test_a_codebook_of_another_authority_is_unknown(
    authority: Authority, create: Any, protect: Any, tmp_path: Path
) -> None:
    other = create(f"sqlite:///{tmp_path}/other.authority")
    codebook, _ = protect(other)
    for use in (
        lambda: authority.model_store.model_of(codebook.codebook_id),
        lambda: authority.model_store.current_codebook(codebook.codebook_id),
        lambda: authority.model_store.live_labels(codebook),
    ):
        with pytest.raises(LedgerError, match=rf"did not protect.*{codebook.codebook_id.hex()}"):
            use()


def test_a_damaged_current_codebook_is_refused(
    authority: Authority, protect: Any, reopen: Any, file: Path
) -> None:
    codebook, _ = protect(authority)
    data = file.read_bytes()
    place = data.index(b'"num_classes":3')
    file.write_bytes(data[:place] + b'"num_classes":4' + data[place + 15 :])
    with pytest.raises(SignatureError, match="signature of the codebook is wrong"):
        reopen().model_store.current_codebook(codebook.codebook_id)
