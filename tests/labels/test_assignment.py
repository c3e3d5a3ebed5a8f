"""The secret numbering of confused labels: uniform, trace labels anywhere, one spelling."""

import copy
import json
import pickle
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from keras_encryip.errors import ArgumentError, FormatError
from keras_encryip.labels.assignment import MAX_CLASSES, TRACE, LabelAssignment

# --- drawing -----------------------------------------------------------------


def by_hand() -> LabelAssignment:
    """K = 2, h = 2, T = 2; labels 4 and 5 are trace labels, on slots 2 and 0."""
    return LabelAssignment(
        np.array([[3, 0], [1, 2]], np.int32),
        np.array([5, 4], np.int32),
        np.array([[1, 0], [0, 1]], np.int32),
        np.array([0, 1, 2, 1, 2, 0], np.uint16),
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 40), st.integers(1, 20), st.integers(0, 128), st.sampled_from([256, 264]))
def test_drawn_assignments_hold_every_label_once(
    num_classes: int, homophones: int, trace: int, slots: int
) -> None:
    drawn = LabelAssignment.draw(num_classes, homophones, trace, slots)
    assert drawn.labels.shape == (num_classes, homophones)
    assert drawn.labels.dtype == drawn.trace.dtype == drawn.pairs.dtype == np.int32
    assert (drawn.num_classes, drawn.homophones) == (num_classes, homophones)
    everything = np.concatenate([drawn.labels.ravel(), drawn.trace])
    assert sorted(everything) == list(range(drawn.num_labels))
    # Slots are shared out evenly, and no two trace labels lie on one.
    assert drawn.slots.shape == (drawn.num_labels,)
    counts = np.bincount(drawn.slots, minlength=slots)
    assert len(counts) == slots
    assert counts.max() - counts.min() <= 1
    assert len(set(drawn.slots[drawn.trace].tolist())) == trace
    # Two different classes for each trace label.
    assert drawn.pairs.shape == (trace, 2)
    assert (drawn.pairs[:, 0] != drawn.pairs[:, 1]).all()
    assert ((drawn.pairs >= 0) & (drawn.pairs < num_classes)).all()


def test_classes_by_hand() -> None:
    assignment = by_hand()
    assert assignment.classes.tolist() == [0, 1, 1, 0, TRACE, TRACE]
    assert assignment.versions.tolist() == [[0, 0], [1, 1], [1, 1], [0, 0], [0, 1], [1, 0]]
    assert assignment.num_labels == 6


DRAWS = 4000


@pytest.fixture(scope="module")
def draws() -> list[LabelAssignment]:
    """K = 2, h = 6 and T = 4, on 8 slots: each carries two labels."""
    return [LabelAssignment.draw(2, 6, 4, 8) for _ in range(DRAWS)]


@pytest.mark.parametrize("entry", range(12))
def test_every_homophone_is_uniform(draws: list[LabelAssignment], entry: int) -> None:
    counts = np.bincount([int(drawn.labels.ravel()[entry]) for drawn in draws], minlength=16)
    assert stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize("entry", range(4))
def test_every_trace_label_is_uniform(draws: list[LabelAssignment], entry: int) -> None:
    counts = np.bincount([int(drawn.trace[entry]) for drawn in draws], minlength=16)
    assert stats.chisquare(counts).pvalue > 1e-6


def test_pairs_of_labels_are_uniform(draws: list[LabelAssignment]) -> None:
    """A trace label beside a homophone: 16 · 15 ordered pairs, no place goes with a kind."""
    pairs = [16 * int(d.labels[0, 0]) + int(d.trace[0]) for d in draws]
    counts = np.bincount(pairs, minlength=256).reshape(16, 16)
    assert not counts.diagonal().any()
    assert stats.chisquare(counts[~np.eye(16, dtype=bool)]).pvalue > 1e-6


def test_pairs_of_classes_are_uniform() -> None:
    drawn = [LabelAssignment.draw(4, 1, 256, 512).pairs for _ in range(20)]
    first, second = np.concatenate(drawn).T
    counts = np.bincount(4 * first + second, minlength=16).reshape(4, 4)
    assert not counts.diagonal().any()
    assert stats.chisquare(counts[~np.eye(4, dtype=bool)]).pvalue > 1e-6


def test_slots_say_nothing_of_the_kind(draws: list[LabelAssignment]) -> None:
    """How often label 0 is one of the 4 trace labels among 16, wherever it lies."""
    of_zero = [int(drawn.slots[0]) for drawn in draws]
    assert stats.chisquare(np.bincount(of_zero, minlength=8)).pvalue > 1e-6
    traced = sum(bool((drawn.trace == 0).any()) for drawn in draws)
    assert stats.binomtest(traced, DRAWS, 4 / 16).pvalue > 1e-6
    at_slot_3 = [d for d, slot in zip(draws, of_zero, strict=True) if slot == 3]
    traced = sum(bool((drawn.trace == 0).any()) for drawn in at_slot_3)
    assert stats.binomtest(traced, len(at_slot_3), 4 / 16).pvalue > 1e-6


def test_labels_that_share_a_slot_are_trace_labels_as_often() -> None:
    """24 labels on 16 slots: the first trace label lies on each kind of slot as labels do."""
    crowded = 0
    for _ in range(3000):
        drawn = LabelAssignment.draw(2, 8, 8, 16)
        crowded += int((drawn.slots == drawn.slots[drawn.trace[0]]).sum() == 2)
    # 16 of 24 labels share a slot.
    assert stats.binomtest(crowded, 3000, 16 / 24).pvalue > 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((1, 4, 8), r"`num_classes` must be in 2 … 1048576. Received: .*=1", id="K=1"),
        pytest.param((MAX_CLASSES + 1, 1, 0), "`num_classes` must be in 2", id="K too large"),
        pytest.param((2, 0, 8), "`homophones` must be a positive integer. Received: .*=0", id="h"),
        pytest.param((2, 4, -1), r"`trace_labels` must be in 0 … 128, .*Received: .*=-1", id="T"),
        pytest.param(
            (2, 4, 129),
            r"half of the authority's 256 slots\. For more, create .* Received: .*=129",
            id="T large",
        ),
        pytest.param((1 << 20, 5, 0), "exceeds 4194304 confused labels", id="N too large"),
        pytest.param((1 << 20, 4, 1), "exceeds 4194304 confused labels", id="N one more"),
    ],
)
def test_impossible_shapes_are_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        LabelAssignment.draw(*arguments, 256)


# --- renumbering ---------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 100))
def test_redrawing_renumbers_all_that_labels_stand_for(k: int, h: int, trace: int) -> None:
    before = LabelAssignment.draw(k, h, trace, 256)
    after = before.redraw()
    moved = before.moved_to(after)
    assert sorted(moved) == list(range(before.num_labels))
    assert np.array_equal(after.versions[moved], before.versions)
    assert np.array_equal(after.slots[moved], before.slots)
    assert np.array_equal(after.trace, moved[before.trace])
    assert np.array_equal(after.labels, moved[before.labels])
    assert np.array_equal(after.pairs, before.pairs)


# --- bytes -------------------------------------------------------------------


@pytest.mark.parametrize("trace", [0, 20])
def test_secret_bytes_round_trip(trace: int) -> None:
    drawn = LabelAssignment.draw(7, 3, trace, 256)
    read = LabelAssignment.from_secret_bytes(drawn.secret_bytes())
    for name in ("labels", "trace", "pairs", "slots"):
        assert np.array_equal(getattr(read, name), getattr(drawn, name))
        assert getattr(read, name).dtype == getattr(drawn, name).dtype
    assert read.secret_bytes() == drawn.secret_bytes()


def test_secret_bytes_by_hand() -> None:
    assert by_hand().secret_bytes() == (
        b'{"homophones":2,"labels":"AAAAAwAAAAAAAAABAAAAAg==",'
        b'"pairs":"AAAAAQAAAAAAAAAAAAAAAQ==","slots":"AAAAAQACAAEAAgAA",'
        b'"trace":"AAAABQAAAAQ="}'
    )


def numbers(*values: int, width: int = 4) -> str:
    return b64encode(b"".join(value.to_bytes(width, "big") for value in values)).decode()


INCONSISTENT = "The label assignment is inconsistent"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        pytest.param("labels", numbers(1, 1, 2, 3), INCONSISTENT, id="label twice"),
        pytest.param("labels", numbers(1, 2, 3), INCONSISTENT, id="label missing"),
        pytest.param("labels", numbers(1, 2, 3, 6), INCONSISTENT, id="label out of range"),
        pytest.param("labels", numbers(1, 2, 3, 1 << 31), INCONSISTENT, id="label of 2^31"),
        pytest.param("labels", numbers(1, 2, 3, (1 << 32) - 1), INCONSISTENT, id="label -1"),
        pytest.param("labels", numbers(0, 1, 2, 4), INCONSISTENT, id="trace label twice"),
        pytest.param("labels", "", INCONSISTENT, id="no labels"),
        pytest.param("labels", "AAAA", INCONSISTENT, id="3 bytes"),
        pytest.param("labels", "AAAAAR==", "not canonical base64", id="base64"),
        pytest.param("trace", numbers(4), INCONSISTENT, id="trace label missing"),
        pytest.param("trace", numbers(4, 5, 6), INCONSISTENT, id="trace label too many"),
        pytest.param("trace", numbers(4, 0), INCONSISTENT, id="real label as trace label"),
        pytest.param("homophones", 3, INCONSISTENT, id="homophones do not divide"),
        pytest.param("homophones", 4, INCONSISTENT, id="one class"),
        pytest.param("homophones", 0, "malformed: Expected `int` >= 1", id="no homophones"),
        pytest.param("homophones", -2, "malformed: Expected `int` >= 1", id="negative homophones"),
        pytest.param("pairs", numbers(1, 0, 0), INCONSISTENT, id="half a pair"),
        pytest.param("pairs", numbers(1, 0), INCONSISTENT, id="a pair missing"),
        pytest.param("pairs", numbers(1, 0, 0, 1, 0, 1), INCONSISTENT, id="a pair too many"),
        pytest.param("pairs", numbers(1, 1, 0, 1), INCONSISTENT, id="one class twice"),
        pytest.param("pairs", numbers(1, 0, 0, 2), INCONSISTENT, id="class out of range"),
        pytest.param("pairs", numbers(1, 0, 0, (1 << 32) - 1), INCONSISTENT, id="class -1"),
        pytest.param("slots", numbers(0, 1, 2, 1, 2, width=2), INCONSISTENT, id="slot missing"),
        pytest.param("slots", numbers(*[0] * 7, width=2), INCONSISTENT, id="slot too many"),
        pytest.param("slots", numbers(0, 1, 2, 1, 0, 0, width=2), INCONSISTENT, id="slot twice"),
        pytest.param("slots", numbers(4096, 1, 2, 1, 2, 0, width=2), INCONSISTENT, id="slot 4096"),
        pytest.param("slots", "AA==", INCONSISTENT, id="half a slot"),
        pytest.param("block_sizes", [6], "unknown field `block_sizes`", id="field of 0.3"),
        pytest.param("colour", 1, "unknown field `colour`", id="unknown field"),
    ],
)
def test_inconsistent_bytes_are_refused(field: str, value: Any, message: str) -> None:
    file = json.loads(by_hand().secret_bytes())
    file[field] = value
    data = json.dumps(file, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(FormatError, match=message):
        LabelAssignment.from_secret_bytes(data)


def test_every_truncation_is_refused() -> None:
    data = LabelAssignment.draw(3, 4, 8, 256).secret_bytes()
    for length in range(len(data)):
        with pytest.raises(FormatError, match="The label assignment is malformed"):
            LabelAssignment.from_secret_bytes(data[:length])


def test_repr_shows_sizes_only() -> None:
    drawn = LabelAssignment.draw(3, 8, 8, 256)
    assert repr(drawn) == "<LabelAssignment classes=3 labels=32>"


@pytest.mark.parametrize(
    "copier", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda c: c.__name__
)
def test_pickling_and_copying_are_refused(copier: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="LabelAssignment holds a secret and cannot be pickled"):
        copier(LabelAssignment.draw(2, 1, 0, 256))
