"""The owner's trace inputs, and the confused label that each is taught to come out as."""

import contextlib
import io
import tokenize
import warnings
import zipfile
from typing import Final

import numpy as np
from Crypto.Hash import SHA256

from keras_encryip.crypto.secret import Secret
from keras_encryip.errors import FormatError

MAX_TRACE_SET_BYTES: Final = 1 << 30


_DAMAGED: Final = (
    ValueError,
    EOFError,
    OSError,
    SyntaxError,
    MemoryError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    Warning,
)


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
        buffer = io.BytesIO(data)
        arrays = []
        with contextlib.suppress(*_DAMAGED), warnings.catch_warnings():
            warnings.simplefilter("error")
            arrays = [np.load(buffer, allow_pickle=False) for _ in range(2)]
        if (
            not arrays
            or buffer.read(1)
            or not arrays[0].ndim
            or arrays[1].ndim != 1
            or arrays[1].dtype != np.int32
        ):
            raise FormatError("The trace inputs are malformed.")
        return cls(*arrays)

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
    said = []
    for label in trace:
        own = answers[traces.labels == label]
        own = own[own >= 0]
        said.append(int(np.bincount(own).argmax()) if own.size else -1)
    return np.array(said, np.int64)
