"""The secret numbering of confused labels: uniform, whole blocks, one spelling."""

import copy
import json
import pickle
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from keras_encryip.errors import ArgumentError, FormatError
from keras_encryip.labels.assignment import (
    MAX_BLOCKS,
    MAX_CLASSES,
    TRACE,
    LabelAssignment,
    plan_blocks,
)

# --- blocks ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("real", "trace", "real_sizes", "trace_sizes"),
    [
        pytest.param(640, 64, [16] * 40, [16] * 4, id="K=10, h=64, T=64"),
        pytest.param(80, 64, [8] * 10, [8] * 8, id="K=10, h=8, T=64"),
        pytest.param(2, 64, [2], [2] * 32, id="K=2, h=1: as small as the real ones"),
        # Two real blocks of 7 beside a trace block of 8 would tell the kinds apart.
        pytest.param(14, 8, [14], [14], id="T rounded up"),
        pytest.param(15, 8, [8, 7], [8], id="one real block is one short"),
        pytest.param(20, 0, [10, 10], [], id="no trace labels"),
        pytest.param(2, 126, [2], [2] * 63, id="as many trace labels as fit"),
    ],
)
def test_planned_blocks(
    real: int, trace: int, real_sizes: list[int], trace_sizes: list[int]
) -> None:
    assert plan_blocks(real, trace) == (real_sizes, trace_sizes)


@given(st.integers(1, 200_000), st.data())
def test_every_plan_fits_and_hides_the_kind(real: int, data: st.DataObject) -> None:
    trace = data.draw(st.integers(0, min((MAX_BLOCKS - 1) * real, 200_000)), label="trace")
    real_sizes, trace_sizes = plan_blocks(real, trace)
    assert 1 <= len(real_sizes) <= len(real_sizes) + len(trace_sizes) <= MAX_BLOCKS
    assert sum(real_sizes) == real
    size = max(real_sizes)
    assert set(trace_sizes) <= {size}  # a real block of the same size always exists
    assert set(real_sizes) <= {size, size - 1}
    assert trace <= sum(trace_sizes) < trace + size


# --- drawing -----------------------------------------------------------------


@given(st.integers(2, 40), st.integers(1, 20), st.data())
def test_drawn_assignments_hold_every_label_once(
    num_classes: int, homophones: int, data: st.DataObject
) -> None:
    most = min((MAX_BLOCKS - 1) * num_classes * homophones, 300)
    trace = data.draw(st.integers(0, most), label="trace")
    drawn = LabelAssignment.draw(num_classes, homophones, trace)
    assert drawn.labels.shape == (num_classes, homophones)
    assert drawn.labels.dtype == drawn.trace.dtype == np.int32
    assert (drawn.num_classes, drawn.homophones) == (num_classes, homophones)
    everything = np.concatenate([drawn.labels.ravel(), drawn.trace])
    assert sorted(everything) == list(range(drawn.num_labels))
    assert sum(drawn.block_sizes) == drawn.num_labels
    # All labels of a block are of one kind.
    is_trace = np.repeat(drawn.tracing_blocks, drawn.block_sizes)
    assert np.array_equal(np.flatnonzero(is_trace), np.sort(drawn.trace))


def test_classes_by_hand() -> None:
    labels, trace = np.array([[3, 0], [1, 2]], np.int32), np.array([5, 4], np.int32)
    assignment = LabelAssignment(labels, trace, [2, 2, 2], [False, False, True])
    assert assignment.classes.tolist() == [0, 1, 1, 0, TRACE, TRACE]
    assert assignment.num_labels == 6


DRAWS = 4000


@pytest.fixture(scope="module")
def draws() -> list[LabelAssignment]:
    """K = 2, h = 4 and T = 8: one real block of 8 and one tracing block of 8."""
    return [LabelAssignment.draw(2, 4, 8) for _ in range(DRAWS)]


@pytest.mark.parametrize("entry", range(8))
def test_every_homophone_is_uniform(draws: list[LabelAssignment], entry: int) -> None:
    positions = [int(drawn.labels.ravel()[entry]) for drawn in draws]
    counts = np.bincount(positions, minlength=16)
    assert stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize("entry", [0, 7])
def test_every_trace_label_is_uniform(draws: list[LabelAssignment], entry: int) -> None:
    counts = np.bincount([int(drawn.trace[entry]) for drawn in draws], minlength=16)
    assert stats.chisquare(counts).pvalue > 1e-6


def test_pairs_of_labels_are_uniform(draws: list[LabelAssignment]) -> None:
    """Two homophones of a class, within their block: 8 · 7 ordered pairs."""
    pairs = [8 * int(d.labels[0, 0] % 8) + int(d.labels[0, 1] % 8) for d in draws]
    counts = np.bincount(pairs, minlength=64).reshape(8, 8)
    assert not counts.diagonal().any()
    assert stats.chisquare(counts[~np.eye(8, dtype=bool)]).pvalue > 1e-6


def test_tracing_blocks_are_uniform(draws: list[LabelAssignment]) -> None:
    first_is_trace = sum(drawn.tracing_blocks[0] for drawn in draws)
    assert stats.binomtest(first_is_trace, DRAWS, 0.5).pvalue > 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((1, 4, 8), r"`num_classes` must be in 2 … 1048576. Received: .*=1", id="K=1"),
        pytest.param((MAX_CLASSES + 1, 1, 0), "`num_classes` must be in 2", id="K too large"),
        pytest.param((2, 0, 8), "`homophones` must be a positive integer. Received: .*=0", id="h"),
        pytest.param((2, 4, -1), "`trace_labels` must not be negative. Received: .*=-1", id="T"),
        pytest.param((2, 1, 127), "`trace_labels` can be at most 126 for 2 real", id="T large"),
        pytest.param((1 << 20, 5, 0), "exceeds 4194304 confused labels", id="N too large"),
        pytest.param((1 << 20, 4, 1), "exceeds 4194304 confused labels", id="N one block more"),
    ],
)
def test_impossible_shapes_are_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        LabelAssignment.draw(*arguments)


# --- bytes -------------------------------------------------------------------


def test_secret_bytes_round_trip() -> None:
    drawn = LabelAssignment.draw(7, 3, 20)
    read = LabelAssignment.from_secret_bytes(drawn.secret_bytes())
    assert np.array_equal(read.labels, drawn.labels)
    assert np.array_equal(read.trace, drawn.trace)
    assert read.block_sizes == drawn.block_sizes
    assert read.tracing_blocks == drawn.tracing_blocks
    assert read.secret_bytes() == drawn.secret_bytes()


def test_secret_bytes_round_trip_without_trace_labels() -> None:
    drawn = LabelAssignment.draw(2, 1, 0)
    read = LabelAssignment.from_secret_bytes(drawn.secret_bytes())
    assert read.trace.size == 0
    assert np.array_equal(read.labels, drawn.labels)


def test_secret_bytes_by_hand() -> None:
    labels, trace = np.array([[1], [0]], np.int32), np.array([3, 2], np.int32)
    assignment = LabelAssignment(labels, trace, [2, 2], [False, True])
    assert assignment.secret_bytes() == (
        b'{"block_sizes":[2,2],"homophones":1,"labels":"AAAAAQAAAAA=",'
        b'"trace":"AAAAAwAAAAI=","tracing_blocks":[false,true]}'
    )


def numbers(*values: int) -> str:
    return b64encode(b"".join(value.to_bytes(4, "big") for value in values)).decode()


INCONSISTENT = "The label assignment is inconsistent"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        pytest.param("labels", numbers(1, 1, 2, 3), INCONSISTENT, id="label twice"),
        pytest.param("labels", numbers(1, 2, 3), INCONSISTENT, id="label missing"),
        pytest.param("labels", numbers(1, 2, 3, 6), INCONSISTENT, id="label out of range"),
        pytest.param("labels", numbers(1, 2, 3, 1 << 31), INCONSISTENT, id="label of 2^31"),
        pytest.param("labels", numbers(1, 2, 3, (1 << 32) - 1), INCONSISTENT, id="label -1"),
        pytest.param("labels", numbers(0, 1, 2, 4), INCONSISTENT, id="real label in trace block"),
        pytest.param("labels", "", INCONSISTENT, id="no labels"),
        pytest.param("labels", "AAAA", INCONSISTENT, id="3 bytes"),
        pytest.param("labels", "AAAAAR==", "not canonical base64", id="base64"),
        pytest.param("trace", numbers(4), INCONSISTENT, id="trace label missing"),
        pytest.param("trace", numbers(4, 5, 6), INCONSISTENT, id="trace label too many"),
        pytest.param("trace", numbers(4, 0), INCONSISTENT, id="trace label twice"),
        pytest.param("homophones", 3, INCONSISTENT, id="homophones do not divide"),
        pytest.param("homophones", 4, INCONSISTENT, id="one class"),
        pytest.param("homophones", 0, "malformed: Expected `int` >= 1", id="no homophones"),
        pytest.param("homophones", -2, "malformed: Expected `int` >= 1", id="negative homophones"),
        pytest.param("block_sizes", [4, 3], INCONSISTENT, id="sum too large"),
        pytest.param("block_sizes", [6], INCONSISTENT, id="one size for two blocks"),
        pytest.param("block_sizes", [8, -2], "malformed: Expected `int` >= 1", id="negative size"),
        pytest.param("block_sizes", [], "malformed: Expected `array` of length >= 1", id="none"),
        pytest.param("tracing_blocks", [True, False], INCONSISTENT, id="kinds swapped"),
        pytest.param("tracing_blocks", [False, False], INCONSISTENT, id="no tracing block"),
        pytest.param("tracing_blocks", [True, True], INCONSISTENT, id="no real block"),
        pytest.param("tracing_blocks", [False, 1], "Expected `bool`, got `int`", id="kind 1"),
        pytest.param("tracing_blocks", [False] * 65, "length <= 64", id="65 blocks"),
        pytest.param("colour", 1, "unknown field `colour`", id="unknown field"),
    ],
)
def test_inconsistent_bytes_are_refused(field: str, value: Any, message: str) -> None:
    labels, trace = np.array([[3, 0], [1, 2]], np.int32), np.array([5, 4], np.int32)
    file = json.loads(LabelAssignment(labels, trace, [4, 2], [False, True]).secret_bytes())
    file[field] = value
    data = json.dumps(file, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(FormatError, match=message):
        LabelAssignment.from_secret_bytes(data)


def test_every_truncation_is_refused() -> None:
    data = LabelAssignment.draw(3, 4, 8).secret_bytes()
    for length in range(len(data)):
        with pytest.raises(FormatError, match="The label assignment is malformed"):
            LabelAssignment.from_secret_bytes(data[:length])


def test_repr_shows_sizes_only() -> None:
    assert repr(LabelAssignment.draw(3, 8, 8)) == "<LabelAssignment classes=3 labels=32>"


@pytest.mark.parametrize(
    "copier", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda c: c.__name__
)
def test_pickling_and_copying_are_refused(copier: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="LabelAssignment holds a secret and cannot be pickled"):
        copier(LabelAssignment.draw(2, 1, 0))
