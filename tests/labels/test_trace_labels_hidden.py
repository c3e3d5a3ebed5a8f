"""With one key and all codebooks, nothing tells trace labels from real ones.

Release 0.3 fell to each of these: class counts of blocks, block sizes, two codebooks of a model.
Two public codebooks of different numberings tell nobody which label went where, either.
"""

import json
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import linear_sum_assignment

from keras_encryip.crypto.encoding import decode_base64
from keras_encryip.crypto.kem import Header
from keras_encryip.labels.assignment import TRACE, LabelAssignment
from keras_encryip.labels.ciphertext import LabelCiphertext
from keras_encryip.labels.codebook import Codebook


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
    assert (again.masked_slots == world.codebook.masked_slots).sum() <= 2, "by chance"
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
    bits = key.slots.bits[assignment.slots]
    surplus = np.bincount(table, minlength=k) - h
    assert surplus.sum() == 64
    traced, exchanged = set(assignment.slots[assignment.trace].tolist()), 0
    for i, trace in enumerate(assignment.trace[:16]):
        for real in assignment.labels[table[trace]]:
            if int(assignment.slots[real]) in traced - {int(assignment.slots[trace])}:
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
    """No blocks, no sizes, no headers of their own: a masked slot and two values each."""
    body = json.loads(world.codebook.to_bytes())["body"]
    assert not {"blocks", "access"} & set(body)
    assert len(decode_base64(body["header"], what="header")) == Header.size(1)
    assert len(decode_base64(body["slots"], what="slots")) == 2 * 104
    assert len(decode_base64(body["values"], what="values")) == 8 * 104
    lengths = {len(world.codebook.ciphertext(j)) for j in range(104)}
    assert len(lengths) == 1
    # Uniform in two bytes: not dealt out evenly, as slots are, and not below M.
    masked = world.codebook.masked_slots
    assert stats.kstest(masked / 65_536, "uniform").pvalue > 1e-6
    assert (masked >= 256).mean() > 0.9
    counts = np.bincount(masked % 256, minlength=256)
    assert counts.max() - counts.min() > 1


# --- two versions ------------------------------------------------------------------------


def of_ciphertexts(codebook: Codebook) -> np.ndarray:
    """The slot fields as they stand in the label ciphertexts."""
    parsed = (
        LabelCiphertext.from_bytes(codebook.ciphertext(j)) for j in range(codebook.num_labels)
    )
    return np.array([one.masked_slot for one in parsed])


@pytest.fixture(scope="module")
def rotated(make_owner: Any) -> tuple[Codebook, Codebook, np.ndarray, np.ndarray, np.ndarray]:
    """Old and new codebook, where labels went, and the old and the new table of one key."""
    owner = make_owner()
    before = LabelAssignment.draw(10, 64, 128, 256)
    after = before.redraw()
    key = owner.issue()
    books = owner.codebook(before), owner.codebook(after)
    return *books, before.moved_to(after), *(book.decode_table(key) for book in books)


@pytest.mark.parametrize("fields", [lambda book: book.masked_slots, of_ciphertexts])
def test_an_old_table_is_not_carried_over_by_slots(rotated: Any, fields: Any) -> None:
    """Sorting both versions by the slot field lined equal slots up, when it was in the clear."""
    oldbook, newbook, moved, old, new = rotated
    before, after = fields(oldbook), fields(newbook)
    carried = old[np.argsort(before)][np.argsort(np.argsort(after))]
    assert stats.binomtest(int((carried == new).sum()), len(new), 1 / 10).pvalue > 1e-6
    assert np.array_equal(new[moved], old)  # what an owner can carry over


def test_a_slot_in_the_clear_would_carry_it_over(make_owner: Any) -> None:
    """So the attack is one: with a single label on each slot, by unmasked slots it reads all."""
    assignment = LabelAssignment.draw(10, 19, 66, 256)
    again = assignment.redraw()
    owner = make_owner()
    key = owner.issue()
    old, new = (owner.codebook(one).decode_table(key) for one in (assignment, again))
    carried = old[np.argsort(assignment.slots)][np.argsort(np.argsort(again.slots))]
    assert np.array_equal(carried, new)


@pytest.mark.parametrize("low_bits", [False, True])
def test_masked_slots_of_two_versions_match_by_chance(make_owner: Any, low_bits: bool) -> None:
    """Labels with equal fields, or fields equal mod M, are the same slot no more than others."""
    owner = make_owner()
    right = pairs = 0
    for _ in range(30):
        before = LabelAssignment.draw(10, 19, 66, 256)  # one label on each slot
        after = before.redraw()
        old, new = (owner.codebook(one).masked_slots.astype(int) for one in (before, after))
        if low_bits:
            old, new = old % 256, new % 256
        matched = old[:, None] == new
        pairs += int(matched.sum())
        right += int(matched[np.arange(256), before.moved_to(after)].sum())
        best_old, best_new = linear_sum_assignment(abs(old[:, None] - new))
        fixed = int((before.moved_to(after)[best_old] == best_new).sum())
        assert fixed <= 10  # 1 in the mean
    assert stats.binomtest(right, pairs, 1 / 256).pvalue > 1e-6


def test_masked_slots_of_two_versions_are_independent(make_owner: Any) -> None:
    """The two fields of one label, by their high bits and by their low bits."""
    owner, old, new = make_owner(), [], []
    for _ in range(30):
        before = LabelAssignment.draw(10, 19, 66, 256)
        after = before.redraw()
        old.append(owner.codebook(before).masked_slots)
        new.append(owner.codebook(after).masked_slots[before.moved_to(after)])
    a, b = np.concatenate(old), np.concatenate(new)
    for shift in (12, 4, 0):
        counts = np.bincount(16 * (a >> shift & 15) + (b >> shift & 15), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6
        counts = np.bincount((a ^ b) >> shift & 15, minlength=16)
        assert stats.chisquare(counts).pvalue > 1e-6


# --- what key holders can count ------------------------------------------------------------


def auc(scores: np.ndarray, of_trace: np.ndarray) -> float:
    """How often a trace label has a larger score than a real one; ties count half."""
    ranks = stats.rankdata(scores)
    n = int(of_trace.sum())
    above = ranks[of_trace].sum() - n * (n + 1) / 2
    return float(above / (n * (len(scores) - n)))


@pytest.mark.parametrize("trace", [16, 64, 128])
@pytest.mark.parametrize("labels", [256, 272, 320, 336, 384, 448, 496, 512])
def test_loads_of_slots_do_not_tell_trace_labels(labels: int, trace: int) -> None:
    """Key holders know the slots. How many labels share one says little: 0.45 at worst."""
    found = []
    for _ in range(200):
        drawn = LabelAssignment.draw(2, (labels - trace) // 2, trace, 256)
        assert drawn.num_labels == labels
        loads = np.bincount(drawn.slots, minlength=256)
        found.append(auc(loads[drawn.slots], drawn.classes == TRACE))
    assert abs(np.mean(found) - 0.5) < 0.06


@pytest.mark.parametrize(
    ("k", "h", "trace", "measured"),
    [(10, 64, 128, 0.57), (100, 19, 128, 0.72), (1000, 1, 128, 0.94)],
)
def test_how_much_the_count_of_its_class_tells(k: int, h: int, trace: int, measured: float) -> None:
    """What a key holder's own table does tell: classes with more labels have more trace labels.

    Every class has h real labels, so a class that the table names more than h times has that many
    trace labels too many. With few classes that says little of a label (AUC 0.57). With many it
    tells: 0.72 at K = 100, and at K = 1,000, h = 1, nearly all (0.94): a class with one label has
    no trace label there. Which of a class's labels it is, nothing tells (above).
    """
    found = []
    for _ in range(20):
        drawn = LabelAssignment.draw(k, h, trace, 256)
        bits = np.random.default_rng().integers(0, 2, 256)[drawn.slots]
        table = drawn.versions[np.arange(drawn.num_labels), bits]
        found.append(auc(np.bincount(table, minlength=k)[table], drawn.classes == TRACE))
    assert abs(np.mean(found) - measured) < 0.03
    if k == 10:
        assert np.mean(found) < 0.62
