"""The owner's secret: which confused label stands for what."""

import secrets
from typing import Annotated, Final

import msgspec
import numpy as np

from keras_encryip.crypto.encoding import (
    canonical_json,
    decode_base64,
    encode_base64,
    parse_canonical_json,
)
from keras_encryip.crypto.secret import Secret
from keras_encryip.crypto.slots import MAX_SLOTS
from keras_encryip.errors import ArgumentError, FormatError

MAX_CLASSES: Final = 1 << 20
MAX_LABELS: Final = 1 << 22
_MAX_ASSIGNMENT_BYTES: Final = 10 * MAX_LABELS

TRACE: Final = -1
"""Marks a trace label in `LabelAssignment.classes`."""


class LabelAssignment(Secret):
    """Which of the N = K·h + T confused labels stands for which class or trace input.

    Which label stands for what is drawn from the operating system's generator. Each label lies on
    a slot. A trace label reads as one class to users whose codeword has a 0 at its
    slot, and as another to those with a 1.

    Attributes:
        labels: int32 `[K, h]`, the homophones of each class.
        trace: int32 `[T]`, the trace labels; entry i belongs to trace input i.
        pairs: int32 `[T, 2]`, two different classes for each of `trace`: what bits 0 and 1 read.
        slots: uint16 `[N]`, the slot of each label, which only key holders learn. Trace labels lie
            on T different ones.
    """

    __slots__ = ("labels", "pairs", "slots", "trace")

    def __init__(
        self, labels: np.ndarray, trace: np.ndarray, pairs: np.ndarray, slots: np.ndarray
    ) -> None:
        self.labels = labels
        self.trace = trace
        self.pairs = pairs
        self.slots = slots

    def _describe(self) -> str:
        return f"classes={self.num_classes} labels={self.num_labels}"

    @property
    def num_classes(self) -> int:
        return int(self.labels.shape[0])

    @property
    def homophones(self) -> int:
        return int(self.labels.shape[1])

    @property
    def num_labels(self) -> int:
        """N, the number of outputs of the protected model."""
        return int(self.labels.size + self.trace.size)

    @property
    def classes(self) -> np.ndarray:
        """int32 `[N]`: the class of each confused label, `TRACE` for trace labels."""
        classes = np.full(self.num_labels, TRACE, np.int32)
        classes[self.labels] = np.arange(self.num_classes, dtype=np.int32)[:, None]
        return classes

    @property
    def versions(self) -> np.ndarray:
        """int32 `[N, 2]`: the class that each label reads as, to users with a bit of 0 and of 1."""
        versions = np.repeat(self.classes[:, None], 2, axis=1)
        versions[self.trace] = self.pairs
        return versions

    @classmethod
    def draw(
        cls, num_classes: int, homophones: int, trace_labels: int, slots: int
    ) -> "LabelAssignment":
        """A uniformly random assignment.

        Args:
            num_classes: K, 2 … 2²⁰.
            homophones: h, at least 1.
            trace_labels: T, at most M/2.
            slots: M, of the authority.
        """
        if not 2 <= num_classes <= MAX_CLASSES:
            raise ArgumentError(
                f"`num_classes` must be in 2 … {MAX_CLASSES}. Received: num_classes={num_classes}"
            )
        if homophones < 1:
            raise ArgumentError(
                f"`homophones` must be a positive integer. Received: homophones={homophones}"
            )
        if not 0 <= trace_labels <= slots // 2:
            raise ArgumentError(
                f"`trace_labels` must be in 0 … {slots // 2}, half of the authority's {slots} "
                "slots. For more, create an authority with more slots. "
                f"Received: trace_labels={trace_labels}"
            )
        count = num_classes * homophones + trace_labels
        if count > MAX_LABELS:
            raise ArgumentError(
                f"num_classes × homophones + trace_labels exceeds {MAX_LABELS} confused labels. "
                f"Received: num_classes={num_classes}, homophones={homophones}, "
                f"trace_labels={trace_labels}"
            )
        random = secrets.SystemRandom()
        order = np.array(random.sample(range(slots), slots), np.uint16)
        of_label = _permuted(np.resize(order, count))
        # Labels in random order trace, but for those whose slot has one already.
        labels = _permuted(np.arange(count, dtype=np.int32))
        _, first = np.unique(of_label[labels], return_index=True)
        trace = labels[np.sort(first)][:trace_labels]
        real = labels[~np.isin(labels, trace)].reshape(num_classes, homophones)
        pairs = [random.sample(range(num_classes), 2) for _ in range(trace_labels)]
        return cls(real, trace, np.array(pairs, np.int32).reshape(-1, 2), of_label)

    def redraw(self) -> "LabelAssignment":
        """A fresh uniformly random numbering of the same labels, with all that they stand for."""
        numbers = _permuted(np.arange(self.num_labels, dtype=np.int32))
        slots = np.empty_like(self.slots)
        slots[numbers] = self.slots
        return LabelAssignment(numbers[self.labels], numbers[self.trace], self.pairs, slots)

    def moved_to(self, other: "LabelAssignment") -> np.ndarray:
        """int32 `[N]`: each label's number in another assignment of the same model. Secret.

        Homophone i of a class goes to homophone i, and the label of a trace input to its label.
        """
        moved = np.empty(self.num_labels, np.int32)
        moved[self.labels] = other.labels
        moved[self.trace] = other.trace
        return moved

    def secret_bytes(self) -> bytes:
        """The assignment as bytes, for sealing. Secret."""
        return canonical_json(
            _AssignmentFile(
                homophones=self.homophones,
                labels=_write(self.labels, ">u4"),
                pairs=_write(self.pairs, ">u4"),
                slots=_write(self.slots, ">u2"),
                trace=_write(self.trace, ">u4"),
            )
        )

    @classmethod
    def from_secret_bytes(cls, data: bytes) -> "LabelAssignment":
        """Read what `secret_bytes` wrote, and check that every label occurs once."""
        file = parse_canonical_json(
            data, _AssignmentFile, what="label assignment", max_bytes=_MAX_ASSIGNMENT_BYTES
        )
        labels, trace, pairs = (_read(t, ">u4") for t in (file.labels, file.trace, file.pairs))
        slots = _read(file.slots, ">u2")
        everything = np.concatenate([labels, trace])
        if (
            not np.array_equal(np.sort(everything), np.arange(everything.size))
            or labels.size % file.homophones
            or labels.size < 2 * file.homophones
            or slots.size != everything.size
            or slots.max() >= MAX_SLOTS
            or np.unique(slots[trace]).size != trace.size
            or pairs.size != 2 * trace.size
            or not ((pairs >= 0) & (pairs < labels.size // file.homophones)).all()
            or (pairs[::2] == pairs[1::2]).any()
        ):
            raise FormatError("The label assignment is inconsistent.")
        return cls(
            labels.reshape(-1, file.homophones),
            trace,
            pairs.reshape(-1, 2),
            slots.astype(np.uint16),
        )


_Size = Annotated[int, msgspec.Meta(ge=1, le=MAX_LABELS)]


class _AssignmentFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    homophones: _Size
    labels: str
    pairs: str
    slots: str
    trace: str


def _permuted(values: np.ndarray) -> np.ndarray:
    """The same values in uniformly random order."""
    order = list(range(len(values)))
    secrets.SystemRandom().shuffle(order)
    return np.asarray(values[np.array(order, np.int64)])


def _write(values: np.ndarray, kind: str) -> str:
    return encode_base64(values.astype(kind).tobytes())


def _read(text: str, kind: str) -> np.ndarray:
    data = decode_base64(text, what="label assignment")
    if len(data) % np.dtype(kind).itemsize:
        raise FormatError("The label assignment is inconsistent.")
    return np.frombuffer(data, kind).astype(np.int32)
