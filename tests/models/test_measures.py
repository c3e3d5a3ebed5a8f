"""How evenly answers spread, and how many trace labels keys read: numbers worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest

from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.models.measures import (
    evenness,
    homophones_answered,
    outputs_by_batch,
    outputs_of,
    trace_labels_read,
)

# Two classes of two homophones, labels 3 and 0, 1 and 4; two trace labels, which read as either.
ASSIGNMENT = LabelAssignment(
    np.array([[3, 0], [1, 4]], np.int32),
    np.array([5, 2], np.int32),
    np.array([[0, 1], [1, 0]], np.int32),
    np.arange(6, dtype=np.uint16),
)


def test_homophones_answered() -> None:
    """The most probable homophone of the most probable class; trace labels are of no class."""
    confused = np.array(
        [
            [0.30, 0.40, 0.00, 0.30, 0.00, 0.00],  # class 0 in sum, both alike: the first
            [0.40, 0.30, 0.00, 0.10, 0.10, 0.10],  # class 0, label 0
            [0.00, 0.05, 0.60, 0.05, 0.20, 0.10],  # class 1, label 4
            [0.00, 0.00, 0.00, 0.00, 1.00, 0.00],  # class 1, label 4
        ]
    )
    expected = [[1, 1], [0, 2]]
    np.testing.assert_array_equal(homophones_answered(confused, ASSIGNMENT), expected)
    by_position = confused.reshape(2, 2, 6)
    np.testing.assert_array_equal(homophones_answered(by_position, ASSIGNMENT), expected)


SPREADS = {
    "one-label-each": ([[5, 0, 0, 0], [0, 7, 0, 0]], 0.0),
    "all-even": ([[3, 3, 3, 3], [1, 1, 1, 1]], 1.0),
    "half-of-them": ([[4, 4, 0, 0]], 0.5),
    "weighed-with-answers": ([[3, 3, 3, 3], [4, 0, 0, 0]], 0.75),
    "as-even-as-two-answers-can-be": ([[1, 1, 0, 0]], 1.0),
    "one-answer-says-nothing": ([[1, 0, 0, 0], [2, 2, 0, 0]], 0.5),
    "no-answers": ([[0, 0, 0, 0]], 0.0),
    "uneven": ([[3, 1, 0, 0]], (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(4)),
}


@pytest.mark.parametrize(("counts", "expected"), SPREADS.values(), ids=SPREADS)
def test_evenness(counts: Any, expected: float) -> None:
    assert evenness(np.array(counts)) == pytest.approx(expected)


def read(*outputs: list[float]) -> float:
    traces = TraceSet(np.zeros((2, 1)), np.array([5, 2]))
    return trace_labels_read(np.array(outputs), traces, ASSIGNMENT)


def test_trace_labels_read() -> None:
    """Each trace input on its own label: all. On the other's, whose bit may read the same: some."""
    assert read([0, 0, 0, 0, 0, 1.0], [0, 0, 1.0, 0, 0, 0]) == 1
    assert 0 < read([0, 0, 0, 0, 0, 1.0], [0.3, 0, 0.4, 0.3, 0, 0]) < 1


class Counts:
    """Answers with the number of the row, and how many rows it was asked at once."""

    def __call__(self, inputs: Any, training: bool) -> np.ndarray:
        assert not training
        return np.stack([inputs["a"], np.full(len(inputs["a"]), len(inputs["b"]))], -1)


def test_outputs_come_in_batches() -> None:
    inputs = {"a": np.arange(70.0), "b": np.zeros((70, 2))}
    assert [len(batch) for batch in outputs_by_batch(Counts(), inputs)] == [32, 32, 6]
    outputs = outputs_of(Counts(), inputs)
    np.testing.assert_array_equal(outputs[:, 0], inputs["a"])
    assert set(outputs[:, 1]) == {32, 6}
