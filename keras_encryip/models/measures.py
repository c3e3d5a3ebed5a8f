"""What can be measured of how well a model is protected, by its owner."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.trace_set import TraceSet, trace_labels_by_keys

_BATCH = 32
_KEYS = 8


def outputs_by_batch(model: Any, inputs: Any) -> Iterator[np.ndarray]:
    """A model's outputs in inference, float32 `[b, …, N]`.

    Args:
        model: a `ProtectedModel`.
        inputs: an array `[n, …]`, or a structure of such.
    """
    for start in range(0, len(keras.tree.flatten(inputs)[0]), _BATCH):
        rows = slice(start, start + _BATCH)
        batch = keras.tree.map_structure(lambda part, rows=rows: part[rows], inputs)
        yield keras.ops.convert_to_numpy(model(batch, training=False))


def outputs_of(model: Any, inputs: Any) -> np.ndarray:
    """`outputs_by_batch` in one array, `[n, …, N]`."""
    return np.concatenate(list(outputs_by_batch(model, inputs)))


def homophones_answered(confused: np.ndarray, assignment: LabelAssignment) -> np.ndarray:
    """How often each homophone is the most probable one of the class that is answered.

    Args:
        confused: `[…, N]`, a model's outputs.
        assignment: the model's.

    Returns:
        int64 `[K, h]`.
    """
    real = confused.reshape(-1, assignment.num_labels)[:, assignment.labels]
    classes = real.sum(-1).argmax(-1)
    counts = np.zeros(assignment.labels.shape, np.int64)
    np.add.at(counts, (classes, real[np.arange(len(real)), classes].argmax(-1)), 1)
    return counts


def evenness(counts: np.ndarray) -> float:
    """How evenly answers spread over the homophones of a class, in the mean over all answers.

    Formula: entropy of a class's answers, divided by the largest that so many answers can have,
    `log(min(h, answers))`. Classes with fewer than two answers do not count.

    Args:
        counts: int `[K, h]`, answers by class and homophone; h ≥ 2.

    Returns:
        0, where each class is answered with one label alone, … 1; 0 without answers.

    Example:
    >>> evenness(np.array([[5, 5], [0, 10]]))
    0.5
    """
    totals = counts.sum(-1)
    counts, totals = counts[totals > 1], totals[totals > 1]
    if not len(counts):
        return 0.0
    shares = counts / totals[:, None]
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(-1)
    most = np.log(np.minimum(counts.shape[1], totals))
    return float(np.average(entropy / most, weights=totals))


def trace_labels_read(confused: np.ndarray, traces: TraceSet, assignment: LabelAssignment) -> float:
    """The share of trace labels that users' keys read as they should, in the mean over some keys.

    Args:
        confused: `[n, …, N]`, the model's outputs for `traces.inputs`.
        traces: n inputs.
        assignment: the model's; T ≥ 1.

    Returns:
        0 … 1. With K classes, about 1 / K is chance.
    """
    even = np.full(assignment.trace.size, 0.5)
    keys = trace_labels_by_keys(confused, traces, assignment, even, _KEYS)
    return float(np.mean([read.mean() for _, _, read in keys]))
