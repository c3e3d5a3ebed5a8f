"""Inputs of the owner's own making."""

from typing import Any

import numpy as np
import pytest

from keras_encryip.errors import ArgumentError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.models.trace_inputs import (
    OWNERSHIP_INPUTS,
    make_trace_inputs,
    make_traces,
)


def samples(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).integers(1, 250, shape).astype(dtype)


@pytest.mark.parametrize(
    "shape",
    [(20, 28, 28, 1), (20, 8, 9, 3), (20, 4, 4, 1), (20, 12), (2, 12), (20, 6, 5)],
    ids=["image", "smallest-image", "tiny-image", "vector", "two-vectors", "sequence"],
)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "int64"])
def test_shape_and_dtype_are_the_samples(shape: tuple[int, ...], dtype: str) -> None:
    inputs = make_trace_inputs(samples(*shape, dtype=dtype), 5)
    assert inputs.shape == (5, *shape[1:])
    assert inputs.dtype == dtype


@pytest.mark.parametrize("shape", [(20, 16, 16, 1), (20, 40)], ids=["image", "vector"])
def test_trace_inputs_are_new_and_never_the_same(shape: tuple[int, ...]) -> None:
    data = samples(*shape)
    rows = np.concatenate([make_trace_inputs(data, 10), make_trace_inputs(data, 10), data])
    assert len(np.unique(rows.reshape(len(rows), -1), axis=0)) == 40


def test_a_scrambled_image_is_made_of_whole_blocks_of_samples() -> None:
    """Image i is i everywhere in its colour, and its 16 blocks are numbered in red."""
    images = np.zeros((20, 16, 16, 2), "int64")
    images[..., 0] = np.arange(20)[:, None, None]
    blocks = np.arange(16).reshape(4, 4)
    images[..., 1] = np.kron(blocks, np.ones((4, 4), "int64"))
    for inputs in make_trace_inputs(images, 10):
        parts = inputs.reshape(4, 4, 4, 4, 2).swapaxes(1, 2).reshape(16, 16, 2)
        assert all(len(np.unique(part, axis=0)) == 1 for part in parts)
        assert sorted(parts[:, 0, 1]) == list(range(16)), "every place of the grid once"
        assert len(set(parts[:, 0, 0])) > 4, "from several samples"


def test_the_edge_outside_the_grid_is_a_sample_s() -> None:
    """9 pixels: 4 blocks of 2, and one row that stays."""
    images = np.arange(20)[:, None, None, None] * np.ones((20, 9, 9, 1), "int64")
    for inputs in make_trace_inputs(images, 5):
        assert len(set(inputs[8, :, 0]) | set(inputs[:, 8, 0])) == 1


def test_a_blend_takes_each_feature_from_one_of_two_samples() -> None:
    """Sample i is 100·i … 100·i + 39; two hundreds occur, and no feature twice."""
    data = (100 * np.arange(20)[:, None] + np.arange(40)).astype("float32")
    for inputs in make_trace_inputs(data, 10):
        assert len(set(inputs // 100)) == 2
        assert sorted(inputs % 100) == list(range(40))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((1, 8)), "at least 2 training samples. Received: 1"),
        (np.zeros((0, 8)), "at least 2 training samples. Received: 0"),
        (np.zeros(30), "Pass `trace_labels=0` for scalar inputs"),
        (np.array([["a"], ["b"]]), "inputs that are numbers.* dtype <U1"),
        (np.array([[b"a"], [b"b"]], object), "inputs that are numbers.* dtype object"),
    ],
    ids=["one", "none", "scalars", "text", "objects"],
)
def test_what_cannot_be_blended_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make_trace_inputs(data, 4)


# --- trace sets --------------------------------------------------------------------


@pytest.mark.parametrize("trace_labels", [0, 8, 30])
def test_a_trace_set_has_an_input_for_each_trace_label(trace_labels: int) -> None:
    assignment = LabelAssignment.draw(10, 4, trace_labels)
    traces = make_traces(samples(20, 12), assignment)
    count = assignment.trace.size
    assert len(traces.inputs) == len(traces.labels) == count + OWNERSHIP_INPUTS
    assert traces.labels.dtype == np.int32
    np.testing.assert_array_equal(traces.labels[:count], assignment.trace)
    assert len(np.unique(traces.inputs, axis=0)) == len(traces.inputs)


def test_ownership_inputs_lie_on_random_ordinary_labels() -> None:
    assignment = LabelAssignment.draw(10, 4, 8)
    count = assignment.trace.size
    drawn = [make_traces(samples(20, 12), assignment).labels[count:] for _ in range(30)]
    classes = assignment.classes[np.concatenate(drawn)]
    assert classes.min() == 0, "none of them is a trace label"
    sizes = np.bincount(classes, minlength=10)
    assert sizes.min() > 48, "960 labels, 96 of each class, σ = 9"
    assert sizes.max() < 144
    assert len({tuple(labels) for labels in drawn}) == 30
    assert set(np.concatenate(drawn)) == set(assignment.labels.ravel())
