"""What `adapt` learns from a look at the data."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_encryip.errors import ArgumentError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.models.adapt import fit_training_state, needs_data
from keras_encryip.models.homophones import RandomHomophones
from keras_encryip.models.secrets import TrainingState
from keras_encryip.models.trace_inputs import OWNERSHIP_INPUTS

Blobs = tuple[np.ndarray, np.ndarray, np.ndarray]


def adapt(x: Any, y: Any, **changes: Any) -> TrainingState:
    arguments = {
        "assignment": LabelAssignment.draw(2, 6, changes.pop("trace_labels", 6)),
        "copies": 3,
        "strategy": "clustered",
    }
    return fit_training_state(x, y, **{**arguments, **changes})


def test_clusters_and_traces_are_learned(blobs: Blobs) -> None:
    x, y, _ = blobs
    assignment = LabelAssignment.draw(2, 6, 6)
    state = adapt(x, y, assignment=assignment)
    assert state.homophones.centroids.shape == (2, 2, 3)
    assert state.traces is not None
    trace = assignment.trace.size  # whole blocks, so 6 or more
    assert state.traces.inputs.shape == (trace + OWNERSHIP_INPUTS, 3)
    np.testing.assert_array_equal(state.traces.labels[:trace], assignment.trace)
    assert set(state.traces.labels[trace:]) <= set(assignment.labels.reshape(-1))
    assert set(state.traces.inputs.reshape(-1)) <= set(x.reshape(-1))


def test_sparse_and_one_hot_labels_teach_the_same(blobs: Blobs) -> None:
    x, y, _ = blobs
    sparse, one_hot = adapt(x, y), adapt(x, np.eye(2)[y])
    np.testing.assert_array_equal(sparse.homophones.centroids, one_hot.homophones.centroids)


def test_a_dataset_teaches_what_its_arrays_do(blobs: Blobs) -> None:
    x, y, _ = blobs
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(64)
    np.testing.assert_allclose(
        adapt(dataset, None).homophones.centroids, adapt(x, y).homophones.centroids, atol=1e-5
    )


def test_random_homophones_look_at_nothing() -> None:
    """Not even at labels, or at inputs that could not be clustered."""
    state = adapt(None, None, strategy="random", trace_labels=0)
    assert isinstance(state.homophones, RandomHomophones)
    assert state.homophones.homophones == 6
    assert state.traces is None


def test_one_cluster_looks_at_nothing() -> None:
    """As many copies as homophones: a uniform draw, whatever the strategy."""
    state = adapt(None, None, copies=6, trace_labels=0)
    assert isinstance(state.homophones, RandomHomophones)
    assert state.homophones.homophones == 6


@pytest.mark.parametrize(
    ("strategy", "copies", "trace_labels", "needed"),
    [
        ("clustered", 5, 0, True),
        ("clustered", 6, 0, False),
        ("clustered", 6, 1, True),
        ("random", 1, 0, False),
        ("random", 1, 1, True),
    ],
)
def test_data_are_needed_for_clusters_and_traces(
    strategy: str, copies: int, trace_labels: int, needed: bool
) -> None:
    assert needs_data(strategy, LabelAssignment.draw(2, 6, trace_labels), copies) == needed


def test_trace_inputs_come_from_all_over_the_data() -> None:
    """8,000 sorted rows, of which 512 are kept as parts."""
    x = np.repeat(np.arange(8000, dtype="float32")[:, None], 4, axis=1)
    traces = adapt(x, np.arange(8000) % 2, strategy="random", trace_labels=300).traces.inputs
    assert traces is not None
    quarters = np.bincount((traces.reshape(-1) // 2000).astype(int), minlength=4)
    assert quarters.min() > 0.03 * traces.size


IDS = np.arange(60).reshape(20, 3)
ROWS = np.zeros((20, 3), "float32")


@pytest.mark.parametrize(
    ("x", "y", "changes", "message"),
    [
        (IDS, np.zeros(20, int), {}, r"shape \(3,\) look like token ids.*strategy='random'"),
        (np.arange(20), np.zeros(20, int), {}, r"shape \(\) look like token ids"),
        (ROWS[:, 0], np.zeros(20, int), {}, r"one label per input.* shape \(20,\)"),
        (ROWS, np.zeros((20, 3), int), {}, r"one label per input.*labels of shape \(20, 3\)"),
        (np.array([["a"]] * 20), np.zeros(20, int), {}, "inputs that are numbers.*dtype <U1"),
        (ROWS, np.full(20, 2), {}, "Labels must be in 0 … 1 for 2 classes"),
        (ROWS, np.full(20, -1), {"strategy": "random"}, "Received: labels from -1 to -1"),
        (ROWS, None, {}, "Labels are needed"),
        (ROWS[:1], np.zeros(1, int), {"strategy": "random"}, "at least 2 training samples"),
        (ROWS[:0], np.zeros(0, int), {}, "training data has no samples"),
        (ROWS[:0], np.zeros(0, int), {"strategy": "random"}, "training data has no samples"),
    ],
    ids=[
        "token-ids",
        "categories",
        "scalars",
        "label-per-token",
        "text",
        "label-too-large",
        "label-negative",
        "no-labels",
        "one-sample",
        "no-samples",
        "no-samples-random",
    ],
)
def test_adapt_refuses(x: Any, y: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        adapt(x, y, **changes)


def test_integer_images_have_a_geometry() -> None:
    images = np.random.default_rng(0).integers(0, 255, (90, 8, 8, 1)).astype("uint8")
    state = adapt(images, np.arange(90) % 2)
    assert state.homophones.centroids.shape == (2, 2, 32)
    assert state.traces is not None
    assert state.traces.inputs.dtype == np.uint8
