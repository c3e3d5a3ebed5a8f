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


@pytest.mark.parametrize("shape", [(8, 8), (16, 16), (9, 11), (4, 4)], ids=str)
def test_an_image_is_a_texture_of_extremes(shape: tuple[int, int]) -> None:
    """Each channel of each of 4 × 4 pixels is as dark or as bright as samples get there; these
    repeat, so that networks that average over places tell one image from another."""
    images = samples(20, *shape, 2)
    images[..., 1] += 1000
    low, high = images.min((0, 1, 2)), images.max((0, 1, 2))
    inputs = make_trace_inputs(images, 30)
    assert (np.isin(inputs[..., 0], [low[0], high[0]])).all()
    assert (np.isin(inputs[..., 1], [low[1], high[1]])).all()
    bright = inputs[:, :4, :4] > (low + high) / 2
    assert 0.4 < bright.mean() < 0.6
    assert len(np.unique(bright.reshape(30, -1), axis=0)) == 30
    assert len(np.unique(bright.transpose(1, 2, 0, 3).reshape(16, -1), axis=0)) == 16
    np.testing.assert_array_equal(inputs[:, 4:], inputs[:, :-4])
    np.testing.assert_array_equal(inputs[:, :, 4:], inputs[:, :, :-4])


def test_a_volume_is_a_texture_too() -> None:
    inputs = make_trace_inputs(samples(20, 8, 8, 8, 1), 5)
    for axis in (1, 2, 3):
        first, second = np.split(inputs, 2, axis)
        np.testing.assert_array_equal(first, second)
        assert np.diff(first, axis=axis).any(), "pixels differ"


@pytest.mark.parametrize("shape", [(20, 40), (20, 6, 5)], ids=["vector", "sequence"])
def test_other_numbers_are_extremes_of_their_feature(shape: tuple[int, ...]) -> None:
    data = samples(*shape)
    inputs = make_trace_inputs(data, 50)
    low, high = inputs == data.min(0), inputs == data.max(0)
    assert (low | high).all()
    assert 0.4 < high.mean() < 0.6
    assert (high.any(0) & low.any(0)).all(), "each feature is drawn on its own"


def test_ids_are_blended() -> None:
    """Sample i is 100·i … 100·i + 39; two hundreds occur, and no feature twice."""
    data = 100 * np.arange(20)[:, None] + np.arange(40)
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
def test_what_trace_inputs_cannot_be_made_of_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make_trace_inputs(data, 4)


# --- trace sets --------------------------------------------------------------------


@pytest.mark.parametrize("trace_labels", [0, 8, 30])
def test_a_trace_set_has_an_input_for_each_trace_label(trace_labels: int) -> None:
    assignment = LabelAssignment.draw(10, 4, trace_labels, 256)
    traces = make_traces(samples(20, 40), assignment)  # two of 2⁴⁰ are not drawn alike
    assert len(traces.inputs) == len(traces.labels) == trace_labels + OWNERSHIP_INPUTS
    assert traces.labels.dtype == np.int32
    np.testing.assert_array_equal(traces.labels[:trace_labels], assignment.trace)
    assert len(np.unique(traces.inputs, axis=0)) == len(traces.inputs)


def test_ownership_inputs_lie_on_one_homophone_of_a_class() -> None:
    assignment = LabelAssignment.draw(10, 4, 8, 256)
    drawn = [make_traces(samples(20, 12), assignment).labels[8:] for _ in range(30)]
    for labels in drawn:
        homophones = {(assignment.classes[label], label) for label in labels}
        assert len(homophones) == len({k for k, _ in homophones}), "the class has the others"
    classes = assignment.classes[np.concatenate(drawn)]
    assert classes.min() == 0, "none of them is a trace label"
    sizes = np.bincount(classes, minlength=10)
    assert sizes.min() > 48, "960 labels, 96 of each class, σ = 9"
    assert sizes.max() < 144
    assert len({tuple(labels) for labels in drawn}) == 30
    assert set(np.concatenate(drawn)) == set(assignment.labels.ravel())
