"""What `adapt` learns from a look at the data."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_encryip.errors import ArgumentError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.models.adapt import fit_training_state, needs_data
from keras_encryip.models.homophones import ClusteredHomophones, RandomHomophones
from keras_encryip.models.secrets import TrainingState
from keras_encryip.models.trace_inputs import OWNERSHIP_INPUTS

Blobs = tuple[np.ndarray, np.ndarray, np.ndarray]


def adapt(x: Any, y: Any, **changes: Any) -> TrainingState:
    arguments = {
        "assignment": LabelAssignment.draw(2, 6, changes.pop("trace_labels", 6), 256),
        "copies": 3,
        "strategy": "clustered",
    }
    return fit_training_state(x, y, **{**arguments, **changes})


def test_clusters_and_traces_are_learned(blobs: Blobs) -> None:
    x, y, _ = blobs
    assignment = LabelAssignment.draw(2, 6, 6, 256)
    state = adapt(x, y, assignment=assignment)
    assert state.homophones.centroids.shape == (2, 2, 3)
    assert state.traces is not None
    assert state.traces.inputs.shape == (6 + OWNERSHIP_INPUTS, 3)
    np.testing.assert_array_equal(state.traces.labels[:6], assignment.trace)
    assert set(state.traces.labels[6:]) <= set(assignment.labels.reshape(-1))
    assert set(state.traces.inputs.reshape(-1)) <= set(x.reshape(-1))
    assert state.samples is not None
    np.testing.assert_array_equal(np.unique(state.samples, axis=0), np.unique(x, axis=0))


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
        ("automatic", 5, 0, True),
        ("automatic", 6, 0, False),
        ("random", 1, 0, False),
        ("random", 1, 1, True),
    ],
)
def test_data_are_needed_for_clusters_and_traces(
    strategy: str, copies: int, trace_labels: int, needed: bool
) -> None:
    assert needs_data(strategy, LabelAssignment.draw(2, 6, trace_labels, 256), copies) == needed


def test_samples_come_from_all_over_the_data() -> None:
    """8,000 sorted rows, of which 2,048 are kept."""
    x = np.repeat(np.arange(8000, dtype="float32")[:, None], 4, axis=1)
    samples = adapt(x, np.arange(8000) % 2, strategy="random").samples
    assert samples is not None
    assert samples.shape == (2048, 4)
    quarters = np.bincount((samples[:, 0] // 2000).astype(int), minlength=4)
    assert quarters.min() > 0.03 * 2048


def test_few_large_samples_are_kept() -> None:
    """16 MiB of them: 64 images of half a MiB were more."""
    x = np.zeros((100, 363, 363, 1), "float32")
    samples = adapt(x, np.arange(100) % 2, strategy="random").samples
    assert samples is not None
    assert len(samples) == 64


def test_the_first_batch_is_shown_before_anything_is_learned(blobs: Blobs) -> None:
    x, y, _ = blobs
    seen: list[np.ndarray] = []
    adapt(x, y, look=seen.append)
    assert [len(batch) for batch in seen] == [256]

    def refuses(batch: Any) -> None:
        raise ArgumentError("not alike")

    with pytest.raises(ArgumentError, match="not alike"):
        adapt(x, y, look=refuses)


def test_ignored_labels_are_in_no_cluster(blobs: Blobs) -> None:
    x, y, _ = blobs
    far = np.full((40, 3), 999, "float32")
    with pytest.raises(ArgumentError, match="labels from 0 to 255"):
        adapt(np.concatenate([x, far]), np.concatenate([y, np.full(40, 255)]))
    state = adapt(np.concatenate([x, far]), np.concatenate([y, np.full(40, 255)]), ignored=255)
    np.testing.assert_array_equal(state.homophones.centroids, adapt(x, y).homophones.centroids)


# --- automatic ---------------------------------------------------------------------


@pytest.mark.parametrize("trace_labels", [0, 6])
@pytest.mark.parametrize(
    ("x", "y", "kind"),
    [
        (np.eye(40, dtype="float32"), np.arange(40) % 2, ClusteredHomophones),
        (np.arange(120).reshape(40, 3), np.arange(40) % 2, RandomHomophones),
        (np.zeros((40, 3), "float32"), np.zeros((40, 3), int), RandomHomophones),
    ],
    ids=["floats", "token-ids", "label-per-token"],
)
def test_automatic_homophones_follow_inputs_that_have_a_geometry(
    x: Any, y: Any, kind: type, trace_labels: int
) -> None:
    state = adapt(x, y, strategy="automatic", trace_labels=trace_labels)
    assert type(state.homophones) is kind
    assert (state.traces is not None) == bool(trace_labels)


def test_automatic_homophones_need_no_single_input() -> None:
    x = {"a": np.zeros((40, 3), "float32"), "b": np.zeros((40, 2), "float32")}
    state = adapt(x, np.arange(40) % 2, strategy="automatic", trace_labels=0)
    assert type(state.homophones) is RandomHomophones


# --- refused -----------------------------------------------------------------------

IDS = np.arange(60).reshape(20, 3)
ROWS = np.zeros((20, 3), "float32")


@pytest.mark.parametrize(
    ("x", "y", "changes", "message"),
    [
        (IDS, np.zeros(20, int), {}, r"look like token ids.* shape \(3,\).*strategy='random'"),
        (np.arange(20), np.zeros(20, int), {}, r"look like token ids.* shape \(\)"),
        (ROWS[:, 0], np.zeros(20, int), {}, r"one label per input.* shape \(\)"),
        (ROWS, np.zeros((20, 3), int), {}, r"one label per input.*labels of rank 2"),
        (np.array([["a"]] * 20), np.zeros(20, int), {}, "inputs that are numbers.*dtype <U1"),
        (ROWS, np.full(20, 2), {}, "Labels must be in 0 … 1 for 2 classes"),
        (ROWS, np.full(20, -1), {"strategy": "random"}, "Received: labels from -1 to -1"),
        (ROWS, None, {}, "Labels are needed"),
        (ROWS[:1], np.zeros(1, int), {"strategy": "random"}, "at least 2 training samples"),
        ({"a": ROWS}, np.zeros(20, int), {}, r"single input.*dict.*strategy='random'"),
        ([ROWS], np.zeros(20, int), {"strategy": "random"}, r"inputs of type list.*labels=0"),
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
        "dict",
        "list",
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
