"""The owner's trace inputs, and the confused label that each is taught to come out as."""

import io
import warnings
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from Crypto.Hash import SHA256

from keras_encryip.crypto.npy import load_npy
from keras_encryip.crypto.secret import Secret
from keras_encryip.errors import DAMAGED, FormatError, instead_of
from keras_encryip.labels.assignment import LabelAssignment

MAX_TRACE_SET_BYTES: Final = 1 << 30


class TraceSet(Secret):
    """Trace inputs with their confused labels. Secret until shown as evidence.

    Inputs on trace labels tell users apart; the *ownership inputs*, on ordinary
    confused labels of random classes, come out alike under every key and answer
    whether a service runs this model at all.

    Attributes:
        inputs: `[n, …]` in the dtype of the training inputs.
        labels: int32 `[n]`.
    """

    __slots__ = ("inputs", "labels")

    def __init__(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        if len(inputs) != len(labels):
            raise FormatError("A trace set needs one label per input.")
        self.inputs = inputs
        self.labels = labels.astype(np.int32)

    def _describe(self) -> str:
        return f"inputs={len(self.inputs)}"

    def secret_bytes(self) -> bytes:
        """Two `.npy` streams, inputs and labels. Secret."""
        buffer = io.BytesIO()
        np.save(buffer, self.inputs, allow_pickle=False)
        np.save(buffer, self.labels.astype("<i4"), allow_pickle=False)
        return buffer.getvalue()

    @classmethod
    def from_secret_bytes(cls, data: bytes) -> "TraceSet":
        """Read what `secret_bytes` wrote."""
        buffer, message = io.BytesIO(data), "The trace inputs are malformed."
        with instead_of(*DAMAGED, raises=lambda _: FormatError(message)), warnings.catch_warnings():
            warnings.simplefilter("error")
            inputs, labels = (load_npy(buffer, len(data)) for _ in range(2))
        if buffer.read(1) or not inputs.ndim or labels.ndim != 1 or labels.dtype != np.int32:
            raise FormatError(message)
        return cls(inputs, labels)

    def renumbered(self, numbers: np.ndarray) -> "TraceSet":
        """The same inputs where label j is `numbers[j]`, int `[N]`: after a reordering."""
        return TraceSet(self.inputs, numbers[self.labels])

    @property
    def digest(self) -> bytes:
        """SHA-256 over a domain tag and the bytes: commits to the set and tells nothing of it."""
        return SHA256.new(b"encryip trace set v1\0" + self.secret_bytes()).digest()


def plurality(traces: TraceSet, answers: np.ndarray, trace: np.ndarray) -> np.ndarray:
    """One answer for each trace label: the most frequent over its inputs, -1 if none.

    Args:
        traces: the inputs that were asked.
        answers: int `[n]`, a class or -1 for each input.
        trace: int `[T]`, the trace labels.

    Returns:
        int64 `[T]`.

    Example:
    >>> traces = TraceSet(np.zeros((4, 1)), np.array([7, 7, 7, 9]))
    >>> plurality(traces, np.array([2, 5, 2, -1]), np.array([9, 7]))
    array([-1,  2])
    """
    most_frequent = []
    for label in trace:
        classes = answers[(traces.labels == label) & (answers >= 0)]
        most_frequent.append(np.bincount(classes).argmax() if classes.size else -1)
    return np.array(most_frequent, np.int64)


def read_by_keys(
    confused: np.ndarray, assignment: LabelAssignment, biases: np.ndarray, keys: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What some random keys read of a model's outputs.

    Args:
        confused: `[n, N]`.
        assignment: the model's.
        biases: float64 `[T]`, the chance of a 1 in the codeword at each trace label.
        keys: how many.

    Yields:
        (uint8 `[T]`, bits at the trace labels; int64 `[n]`, the class read from each row).
    """
    random = np.random.default_rng(0)
    real = confused[:, assignment.labels].sum(-1)
    trace = confused[:, assignment.trace]
    for _ in range(keys):
        bits = (random.random(len(biases)) < biases).astype(np.uint8)
        decoded = real.copy()
        np.add.at(decoded.T, assignment.pairs[np.arange(len(bits)), bits], trace.T)
        yield bits, decoded.argmax(-1)


def trace_labels_by_keys(
    confused: np.ndarray,
    traces: TraceSet,
    assignment: LabelAssignment,
    biases: np.ndarray,
    keys: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What some random keys read of a model's outputs for its trace inputs.

    Args:
        confused: `[n, …, N]`, for `traces.inputs`; other axes between these are averaged.
        traces: n inputs.
        assignment, biases, keys: as for `read_by_keys`.

    Yields:
        (uint8 `[T]`, bits at the trace labels; int64 `[T]`, the class read at each, -1 if none;
        bool `[T]`, whether it is the one that the key should read there).
    """
    confused = confused.reshape(len(traces.inputs), -1, assignment.num_labels).mean(1)
    for bits, classes in read_by_keys(confused, assignment, biases, keys):
        said = plurality(traces, classes, assignment.trace)
        yield bits, said, said == assignment.pairs[np.arange(len(bits)), bits]


def ordinary_answers(
    asked: Iterable[tuple[TraceSet, np.ndarray]], classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What was said to ownership inputs, and what every key holder reads there.

    Args:
        asked: trace sets with the answers to their inputs, int `[n]`.
        classes: int `[N]`, `LabelAssignment.classes`.
    """
    said, meant = [], []
    for traces, answers in asked:
        ordinary = classes[traces.labels] >= 0
        said.append(answers[ordinary])
        meant.append(classes[traces.labels[ordinary]])
    return np.concatenate(said), np.concatenate(meant)
