"""A bounded look at training data, in any form that `fit` accepts."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_encryip.errors import ArgumentError

MAX_SAMPLES = 20_000
_BATCH = 256


def batches(x: Any, y: Any, *, limit: int = MAX_SAMPLES) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (inputs, labels) as numpy arrays, about `limit` samples in all.

    Of larger arrays a fixed random choice is taken, so that sorted data is covered;
    a `tf.data.Dataset` or `PyDataset` is read from its beginning.
    """
    if isinstance(x, keras.utils.PyDataset):
        source: Iterator[Any] = (x[i] for i in range(len(x)))
    elif hasattr(x, "as_numpy_iterator"):
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
        inputs, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
        if labels is None:
            raise ArgumentError("The training data has no labels.")
        if isinstance(inputs, (dict, list, tuple)):
            raise ArgumentError(
                "Clustered homophones and trace inputs need a single input array. Received: "
                f"inputs of type {type(inputs).__name__}. Pass `strategy='random'` and "
                "`trace_labels=0` to `protect`."
            )
        yield keras.ops.convert_to_numpy(inputs), keras.ops.convert_to_numpy(labels)
        seen += len(labels)
        if seen >= limit:
            return


def _array_batches(x: Any, y: Any, limit: int) -> Iterator[tuple[Any, Any]]:
    if isinstance(x, (dict, list, tuple)):
        yield x, np.asarray(y)[:1]
        return
    count = len(x)
    if len(y) != count:
        raise ArgumentError(f"`x` and `y` have different lengths. Received: {count} and {len(y)}")
    order = np.sort(np.random.default_rng(0).permutation(count)[:limit])
    x, y = keras.ops.convert_to_numpy(x), keras.ops.convert_to_numpy(y)
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        yield x[rows], y[rows]


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


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Refuse labels outside 0 … K−1.

    Raises:
        ArgumentError: names the offending value.
    """
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
