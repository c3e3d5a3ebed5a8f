"""A bounded look at training data, in any form that `fit` accepts."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.sparse import coo_matrix, csr_matrix

from keras_encryip.errors import ArgumentError
from keras_encryip.models.data import batches, check_labels, class_indices


class Pairs(keras.utils.PyDataset):
    """Ten batches of 4 samples: the inputs are their index, the label its last digit."""

    def __init__(self, *extra: Any) -> None:
        super().__init__()
        self.extra = extra

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        x = np.arange(4 * index, 4 * index + 4, dtype="float32")[:, None]
        return x, x[:, 0].astype("int64") % 10, *self.extra


def collect(x: Any, y: Any = None, **arguments: Any) -> tuple[np.ndarray, np.ndarray]:
    pairs = list(batches(x, y, **arguments))
    assert all(isinstance(part, np.ndarray) for pair in pairs for part in pair)
    return np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])


X = np.arange(40, dtype="float32")[:, None]
Y = np.arange(40) % 10


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X, Y),
        (tf.constant(X), tf.constant(Y)),
        (tf.data.Dataset.from_tensor_slices((X, Y)).batch(7), None),
        (tf.data.Dataset.from_tensor_slices((X, Y, np.ones(40))).batch(7), None),
        (Pairs(), None),
        (Pairs(np.ones(4)), None),
    ],
    ids=["numpy", "tensors", "dataset", "weighted-dataset", "pydataset", "weighted-pydataset"],
)
def test_every_sample_is_seen_once_with_its_label(x: Any, y: Any) -> None:
    inputs, labels = collect(x, y)
    order = np.argsort(inputs[:, 0])
    np.testing.assert_array_equal(inputs[order], X)
    np.testing.assert_array_equal(labels[order], Y)


@pytest.mark.parametrize("kind", [dict, list, tuple])
@pytest.mark.parametrize("source", ["arrays", "dataset"])
def test_structures_of_inputs_are_kept(kind: type, source: str) -> None:
    """But for lists, of which `tf.data` makes tensors."""
    parts = {"a": X, "b": np.tile(X, 3)}
    x = parts if kind is dict else kind(parts.values())
    if source == "dataset":
        x = parts if kind is dict else tuple(parts.values())
        seen = list(batches(tf.data.Dataset.from_tensor_slices((x, Y)).batch(7), None))
    else:
        seen = list(batches(x, Y))
    assert sum(len(labels) for _, labels in seen) == 40
    for inputs, labels in seen:
        assert type(inputs) is type(x)
        for part in keras.tree.flatten(inputs):
            np.testing.assert_array_equal(part[:, 0] % 10, labels)


def test_labels_of_one_output_may_be_named() -> None:
    np.testing.assert_array_equal(collect(X, {"out": Y})[1], Y)
    dataset = tf.data.Dataset.from_tensor_slices((X, {"out": Y})).batch(7)
    np.testing.assert_array_equal(collect(dataset)[1], Y)


def test_sparse_inputs_become_dense() -> None:
    dense = np.eye(40, 12, dtype="float32")
    for sparse in (csr_matrix(dense), coo_matrix(dense), tf.sparse.from_dense(dense)):
        np.testing.assert_array_equal(collect(sparse, Y)[0], dense)


def test_a_task_prepares_its_batches() -> None:
    seen = collect(X, Y, prepare=lambda x, y: (x + 100, y))
    np.testing.assert_array_equal(seen[0], X + 100)
    np.testing.assert_array_equal(seen[1], Y)


def test_a_large_sorted_array_is_covered_evenly() -> None:
    """All ten classes, each with about a tenth of the 1,000 that are looked at."""
    labels = np.repeat(np.arange(10), 5000)
    _, seen = collect(np.zeros((50_000, 1), "float32"), labels, limit=1000)
    assert len(seen) == 1000
    counts = np.bincount(seen, minlength=10)
    assert counts.min() > 60
    np.testing.assert_array_equal(seen, collect(np.zeros((50_000, 1)), labels, limit=1000)[1])


@pytest.mark.parametrize("kind", ["dataset", "pydataset"])
def test_reading_stops_soon_after_the_limit(kind: str) -> None:
    endless = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat()
    inputs, _ = collect(endless if kind == "dataset" else Pairs(), limit=10)
    assert len(inputs) == 12


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, None, "Labels are needed to learn the homophones.* type ndarray"),
        ((b for b in [(X, Y)]), None, r"call `model\.adapt\(x, y\)` with a sample.* generator"),
        (tf.data.Dataset.from_tensor_slices(X).batch(4), None, "training data has no labels"),
        (X, Y[:39], "different lengths. Received: 40 and 39"),
        ({"a": X, "b": X[:39]}, Y, "different lengths. Received: 39 and 40"),
    ],
    ids=["no-y", "generator", "no-labels", "lengths", "lengths-dict"],
)
def test_what_cannot_be_looked_at_is_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        collect(x, y)


# --- labels ------------------------------------------------------------------------

ONE_HOT = np.eye(3)[[2, 0, 1]]


@pytest.mark.parametrize("as_tensor", [False, True], ids=["numpy", "tensor"])
@pytest.mark.parametrize(
    ("labels", "ndim", "expected"),
    [
        ([2, 0, 1], None, [2, 0, 1]),
        ([2.0, 0.0, 1.0], None, [2, 0, 1]),
        ([[2], [0], [1]], None, [2, 0, 1]),
        ([[2], [0], [1]], 2, [2, 0, 1]),
        (ONE_HOT, None, [2, 0, 1]),
        (ONE_HOT, 2, [2, 0, 1]),
        (0.8 * ONE_HOT + 0.1, 2, [2, 0, 1]),
        ([[0, 1, 2], [2, 1, 0]], 3, [[0, 1, 2], [2, 1, 0]]),
        ([[[0], [1]], [[2], [1]]], 3, [[0, 1], [2, 1]]),
        ([[[1, 0, 0], [0, 0, 1]]], 3, [[0, 2]]),
        ([[1]], 3, [[1]]),
    ],
    ids=[
        "sparse",
        "float",
        "column",
        "column-ndim",
        "one-hot",
        "one-hot-ndim",
        "soft",
        "three-tokens-of-three-classes",
        "token-column",
        "token-one-hot",
        "one-token",
    ],
)
def test_labels_become_indices(
    labels: Any, ndim: int | None, expected: list[Any], as_tensor: bool
) -> None:
    array = tf.constant(labels) if as_tensor else np.array(labels)
    indices = np.asarray(class_indices(array, 3, ndim=ndim))
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(indices, expected)


@pytest.mark.parametrize("labels", [[0, 2], [], [[0, 1], [2, 2]]], ids=["ends", "none", "2-d"])
def test_labels_in_range_pass(labels: Any) -> None:
    check_labels(np.array(labels, "int32"), 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3], "Labels must be in 0 … 2 for 3 classes. Received: labels from 0 to 3"),
        ([-1, 2], "Received: labels from -1 to 2"),
        ([[1, 9]], "Received: labels from 1 to 9"),
    ],
    ids=["one-too-many", "negative", "2-d"],
)
def test_labels_out_of_range_are_named(labels: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        check_labels(np.array(labels), 3)


def test_the_ignored_label_may_be_anything() -> None:
    check_labels(np.array([255, 0, 2]), 3, ignored=255)
    check_labels(np.array([-1, -1]), 3, ignored=-1)
    with pytest.raises(ArgumentError, match="labels from 0 to 3"):
        check_labels(np.array([255, 0, 3]), 3, ignored=255)
