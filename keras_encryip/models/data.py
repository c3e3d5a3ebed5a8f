"""A bounded look at training data, in any form that `fit` accepts."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_encryip.errors import ArgumentError

MAX_SAMPLES = 20_000
_BATCH = 256


def batches(
    x: Any, y: Any, prepare: Callable[..., Any] | None = None, *, limit: int = MAX_SAMPLES
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield (inputs, labels), about `limit` samples in all; inputs may be a structure.

    Of larger arrays a fixed random choice is taken, so that sorted data is covered;
    a `tf.data.Dataset` or `PyDataset` is read from its beginning.

    Args:
        x, y: as for `fit`.
        prepare: what a task of KerasHub does with a batch before its network sees it.
    """
    if isinstance(x, keras.utils.PyDataset):
        source: Iterator[Any] = (x[i] for i in range(len(x)))
    elif y is None and (hasattr(x, "element_spec") or type(x).__module__.startswith("torch.")):
        source = iter(x)
    elif y is None:
        raise ArgumentError(
            "Labels are needed to learn the homophones. Pass arrays `x` and `y`, a "
            "`tf.data.Dataset` or a `keras.utils.PyDataset`; for other inputs call "
            f"`model.adapt(x, y)` with a sample first. Received: x of type {type(x).__name__}"
        )
    else:
        source = _array_batches(x, y, limit)
    seen = 0
    for batch in source:
        batch = keras.tree.map_structure(_of_one_replica, batch)
        if prepare is not None:
            batch = prepare(*batch)
        inputs, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
        labels = single_labels(labels)
        if labels is None:
            raise ArgumentError("The training data has no labels.")
        labels = keras.ops.convert_to_numpy(labels)
        yield keras.tree.map_structure(dense, inputs), labels
        seen += len(labels)
        if seen >= limit:
            return


def _of_one_replica(value: Any) -> Any:
    """The first replica's part of what a strategy distributed."""
    return value.values[0] if type(value).__name__ == "PerReplica" else value


def dense(value: Any) -> Any:
    """A batch of one input as a numpy array; ragged inputs as they are."""
    if hasattr(value, "toarray"):  # scipy
        return value.toarray()
    if isinstance(value, tf.SparseTensor):
        return tf.sparse.to_dense(value).numpy()
    if isinstance(value, (np.ndarray, tf.RaggedTensor)):
        return value
    return keras.ops.convert_to_numpy(value)


def _array_batches(x: Any, y: Any, limit: int) -> Iterator[tuple[Any, Any]]:
    if isinstance(x, (list, tuple)) and all(isinstance(part, (str, int, float)) for part in x):
        x = np.asarray(x)  # of numbers or texts
    flat = keras.tree.flatten(x)
    y = keras.ops.convert_to_numpy(single_labels(y))
    counts = sorted({int(part.shape[0]) if hasattr(part, "shape") else len(part) for part in flat})
    if counts != [len(y)]:
        raise ArgumentError(
            f"`x` and `y` have different lengths. Received: {counts[0]} and {len(y)}"
        )
    order = np.sort(np.random.default_rng(0).permutation(len(y))[:limit])
    flat = [_rows_of(part) for part in flat]
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        yield keras.tree.pack_sequence_as(x, [part[rows] for part in flat]), y[rows]


def _rows_of(part: Any) -> Any:
    """What rows can be taken of by their numbers."""
    if hasattr(part, "tocsr"):
        return part.tocsr()
    return dense(part)


def single(value: Any) -> Any:
    """The value of a dictionary with one entry, which names the one output; others as they are."""
    return next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value


def single_labels(labels: Any) -> Any:
    """Labels without the structure of one output: a dictionary or list with one array."""
    labels = single(labels)
    if isinstance(labels, (list, tuple)) and len(labels) == 1 and hasattr(labels[0], "shape"):
        return labels[0]
    return labels


def with_one_label(data: Any) -> Any:
    """A batch whose labels are not in a dictionary of one output."""
    if not isinstance(data, (tuple, list)):
        return data
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if not isinstance(y, (dict, list, tuple)):
        return data
    return keras.utils.pack_x_y_sample_weight(x, single_labels(y), sample_weight)


def class_indices(labels: Any, num_classes: int, *, ndim: int | None = None) -> Any:
    """Sparse or one-hot labels as int32 class indices.

    Args:
        labels: numpy array or tensor: `[…]` or `[…, 1]` of classes, or `[…, K]` one-hot or soft.
        num_classes: K.
        ndim: rank of the predictions; labels of that rank with a last axis of K are one-hot.
            By default any last axis of K with rank above 1 is.
    """
    ops = keras.ops
    shape = labels.shape
    if len(shape) > 1 and shape[-1] == num_classes and ndim in (None, len(shape)):
        return ops.cast(ops.argmax(labels, axis=-1), "int32")
    if len(shape) > 1 and shape[-1] == 1 and ndim in (None, len(shape)):
        labels = ops.squeeze(labels, axis=-1)
    return ops.cast(labels, "int32")


def check_labels(labels: np.ndarray, num_classes: int, ignored: int | None = None) -> None:
    """Refuse labels outside 0 … K−1, but for the one that the loss ignores.

    Raises:
        ArgumentError: names the offending value.
    """
    if ignored is not None:
        labels = labels[labels != ignored]
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        raise ArgumentError(
            f"Labels must be in 0 … {num_classes - 1} for {num_classes} classes. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )


def check_same_kind(learned: Any, given: Any) -> None:
    """Refuse to train on integers what was adapted to floats, or the reverse.

    Args:
        learned, given: dtypes of the trace inputs and of the training inputs.
    """
    if len({"int" in keras.backend.standardize_dtype(dtype) for dtype in (learned, given)}) > 1:
        raise ArgumentError(
            f"The model was adapted to {learned} inputs and is trained on {given} inputs. "
            "Call `adapt(x, y)` again with data as `fit` gets it."
        )
