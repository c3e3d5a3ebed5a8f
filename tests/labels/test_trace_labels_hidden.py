"""With one key and all codebooks, nothing tells trace labels from real ones.

Release 0.3 fell to each of these: class counts of blocks, block sizes, two codebooks of a model.
"""

import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

from keras_encryip.crypto.encoding import decode_base64
from keras_encryip.crypto.kem import Header
from keras_encryip.labels.assignment import TRACE, LabelAssignment


def make_many(owner: Any, assignment: LabelAssignment, count: int) -> np.ndarray:
    """Values of many codebooks of one assignment, `[count, N, 2]`."""
    return np.stack([owner.codebook(assignment).values for _ in range(count)])


def test_values_say_nothing_of_classes_or_kinds(make_owner: Any) -> None:
    """Both values of every label, real or trace, are uniform together: K² pairs."""
    owner, assignment = make_owner(), LabelAssignment.draw(2, 2, 2, 256)
    values = make_many(owner, assignment, 800)
    pairs = 2 * values[:, :, 0] + values[:, :, 1]
    for label in range(6):
        counts = np.bincount(pairs[:, label], minlength=4)
        assert stats.chisquare(counts).pvalue > 1e-6
    for other in range(1, 6):  # and independent of the next label's
        counts = np.bincount(4 * pairs[:, 0] + pairs[:, other], minlength=16)
        assert stats.chisquare(counts).pvalue > 1e-6


def test_what_a_user_cannot_open_is_uniform_at_real_and_trace_labels(make_owner: Any) -> None:
    """The value of the other bit, taken from what the user reads: no relation to tell kinds by."""
    owner, assignment = make_owner(), LabelAssignment.draw(3, 4, 12, 256)
    key = owner.issue()
    bits = key.slots.bits[assignment.slots]
    values = make_many(owner, assignment, 300)
    closed = values[:, np.arange(24), 1 - bits]
    opened = assignment.versions[np.arange(24), bits]
    for kind in (assignment.classes == TRACE, assignment.classes != TRACE):
        counts = np.bincount((closed - opened)[:, kind].ravel() % 3, minlength=3)
        assert stats.chisquare(counts).pvalue > 1e-6


def test_the_table_is_the_same_in_every_codebook_of_a_model(world: Any) -> None:
    """In 0.3 a user's own two tables differed at the trace labels and nowhere else."""
    again = world.owner.codebook(world.assignment, world.metadata)
    assert (again.values != world.codebook.values).any(axis=1).mean() > 0.8
    assert np.array_equal(again.slots, world.codebook.slots)
    for key in (world.alice, world.bob):
        assert np.array_equal(again.decode_table(key), world.codebook.decode_table(key))


@pytest.mark.parametrize(("k", "h"), [(10, 64), (43, 15), (100, 6), (1000, 2)])
def test_any_label_of_a_class_could_be_its_trace_label(k: int, h: int, make_owner: Any) -> None:
    """The histogram says how many labels of a class are trace labels, and not which.

    In 0.3 the blocks whose removal flattened it were the tracing ones. Now every label that reads
    as some trace label's class, on a slot without one, can change places with it: the user's table
    and everything public stay what they are, but for values that the user cannot open.
    """
    owner, assignment = make_owner(), LabelAssignment.draw(k, h, 64, 256)
    key = owner.issue()
    codebook = owner.codebook(assignment)
    table = codebook.decode_table(key)
    bits = key.slots.bits[codebook.slots]
    surplus = np.bincount(table, minlength=k) - h
    assert surplus.sum() == 64
    traced, exchanged = set(assignment.slots[assignment.trace].tolist()), 0
    for i, trace in enumerate(assignment.trace[:16]):
        for real in assignment.labels[table[trace]]:
            if int(codebook.slots[real]) in traced - {int(codebook.slots[trace])}:
                continue
            labels, traces = assignment.labels.copy(), assignment.trace.copy()
            labels[labels == real], traces[i] = trace, real
            pairs = assignment.pairs.copy()
            if bits[real] != bits[trace]:
                pairs[i] = pairs[i, ::-1]
            other = LabelAssignment(labels, traces, pairs, assignment.slots)
            LabelAssignment.from_secret_bytes(other.secret_bytes())  # it can be drawn
            assert np.array_equal(other.versions[np.arange(len(table)), bits], table)
            exchanged += 1
    assert exchanged >= 16


def test_what_the_file_shows_of_a_label_is_the_same_for_all(world: Any) -> None:
    """No blocks, no sizes, no headers of their own: a slot and two values each."""
    body = json.loads(world.codebook.to_bytes())["body"]
    assert not {"blocks", "access"} & set(body)
    assert len(decode_base64(body["header"], what="header")) == Header.size(1)
    assert len(decode_base64(body["slots"], what="slots")) == 2 * 104
    assert len(decode_base64(body["values"], what="values")) == 8 * 104
    lengths = {len(world.codebook.ciphertext(j)) for j in range(104)}
    assert len(lengths) == 1
    counts = np.bincount(world.codebook.slots, minlength=256)
    assert counts.max() - counts.min() == 1
