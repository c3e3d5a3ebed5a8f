"""The owner's secret: which confused label stands for what."""

import secrets
from collections.abc import Sequence
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
from keras_encryip.errors import ArgumentError, FormatError

MAX_BLOCKS: Final = 64
MIN_BLOCK_SIZE: Final = 8
MAX_CLASSES: Final = 1 << 20
MAX_LABELS: Final = 1 << 22
_MAX_ASSIGNMENT_BYTES: Final = 6 * MAX_LABELS

TRACE: Final = -1
"""Marks a trace label in `LabelAssignment.classes`."""


class LabelAssignment(Secret):
    """Which of the N = K·h + T confused labels stands for which class or trace input.

    Labels are numbered block by block: block b holds `block_sizes[b]` consecutive
    labels, and all labels of a block are real or all are trace labels. Which blocks
    are which, and which label stands for what inside them, is drawn from the
    operating system's generator.

    Attributes:
        labels: int32 `[K, h]`, the homophones of each class.
        trace: int32 `[T]`, the trace labels; entry i belongs to trace input i.
        block_sizes: sizes of the blocks, in order; they differ by at most 1.
        tracing_blocks: for each block, whether it holds trace labels.
    """

    __slots__ = ("block_sizes", "labels", "trace", "tracing_blocks")

    def __init__(
        self,
        labels: np.ndarray,
        trace: np.ndarray,
        block_sizes: Sequence[int],
        tracing_blocks: Sequence[bool],
    ) -> None:
        self.labels = labels
        self.trace = trace
        self.block_sizes = tuple(block_sizes)
        self.tracing_blocks = tuple(tracing_blocks)

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

    @classmethod
    def draw(cls, num_classes: int, homophones: int, trace_labels: int) -> "LabelAssignment":
        """A uniformly random assignment.

        Args:
            num_classes: K, 2 … 2²⁰.
            homophones: h, at least 1.
            trace_labels: wanted T; rounded up to whole blocks.
        """
        if not 2 <= num_classes <= MAX_CLASSES:
            raise ArgumentError(
                f"`num_classes` must be in 2 … {MAX_CLASSES}. Received: num_classes={num_classes}"
            )
        if homophones < 1:
            raise ArgumentError(
                f"`homophones` must be a positive integer. Received: homophones={homophones}"
            )
        if trace_labels < 0:
            raise ArgumentError(
                f"`trace_labels` must not be negative. Received: trace_labels={trace_labels}"
            )
        most = (MAX_BLOCKS - 1) * num_classes * homophones
        if trace_labels > most:
            raise ArgumentError(
                f"`trace_labels` can be at most {most} for {num_classes * homophones} real labels: "
                f"all blocks have about one size, and there are at most {MAX_BLOCKS}. "
                f"Received: trace_labels={trace_labels}"
            )
        real_sizes, trace_sizes = plan_blocks(num_classes * homophones, trace_labels)
        if sum(real_sizes) + sum(trace_sizes) > MAX_LABELS:
            raise ArgumentError(
                f"num_classes × homophones + trace_labels exceeds {MAX_LABELS} confused labels. "
                f"Received: num_classes={num_classes}, homophones={homophones}, "
                f"trace_labels={trace_labels}"
            )
        blocks = [(size, False) for size in real_sizes] + [(size, True) for size in trace_sizes]
        return cls._shuffled(blocks, num_classes, homophones)

    def redraw(self) -> "LabelAssignment":
        """A fresh uniformly random assignment of as many labels to the same classes and traces."""
        blocks = list(zip(self.block_sizes, self.tracing_blocks, strict=True))
        return self._shuffled(blocks, self.num_classes, self.homophones)

    @classmethod
    def _shuffled(
        cls, blocks: list[tuple[int, bool]], num_classes: int, homophones: int
    ) -> "LabelAssignment":
        random = secrets.SystemRandom()
        random.shuffle(blocks)
        sizes = [size for size, _ in blocks]
        is_trace = np.repeat([tracing for _, tracing in blocks], sizes)
        real = np.flatnonzero(~is_trace).tolist()
        trace = np.flatnonzero(is_trace).tolist()
        random.shuffle(real)
        random.shuffle(trace)
        return cls(
            np.array(real, np.int32).reshape(num_classes, homophones),
            np.array(trace, np.int32),
            sizes,
            [tracing for _, tracing in blocks],
        )

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
                block_sizes=list(self.block_sizes),
                homophones=self.homophones,
                labels=encode_base64(self.labels.astype(">u4").tobytes()),
                trace=encode_base64(self.trace.astype(">u4").tobytes()),
                tracing_blocks=list(self.tracing_blocks),
            )
        )

    @classmethod
    def from_secret_bytes(cls, data: bytes) -> "LabelAssignment":
        """Read what `secret_bytes` wrote, and check that every label occurs once."""
        file = parse_canonical_json(
            data, _AssignmentFile, what="label assignment", max_bytes=_MAX_ASSIGNMENT_BYTES
        )
        labels, trace = _read_labels(file.labels), _read_labels(file.trace)
        everything = np.concatenate([labels, trace])
        if (
            not np.array_equal(np.sort(everything), np.arange(everything.size))
            or labels.size % file.homophones
            or labels.size < 2 * file.homophones
            or sum(file.block_sizes) != everything.size
            or len(file.block_sizes) != len(file.tracing_blocks)
            or not np.repeat(file.tracing_blocks, file.block_sizes)[trace].all()
            or np.repeat(file.tracing_blocks, file.block_sizes)[labels].any()
        ):
            raise FormatError("The label assignment is inconsistent.")
        return cls(
            labels.reshape(-1, file.homophones), trace, file.block_sizes, file.tracing_blocks
        )


_Size = Annotated[int, msgspec.Meta(ge=1, le=MAX_LABELS)]
_Blocks = msgspec.Meta(min_length=1, max_length=MAX_BLOCKS)


class _AssignmentFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    block_sizes: Annotated[list[_Size], _Blocks]
    homophones: _Size
    labels: str
    trace: str
    tracing_blocks: Annotated[list[bool], _Blocks]


def _read_labels(text: str) -> np.ndarray:
    data = decode_base64(text, what="label assignment")
    if len(data) % 4:
        raise FormatError("The label assignment is inconsistent.")
    return np.frombuffer(data, ">u4").astype(np.int32)


def plan_blocks(real: int, trace: int) -> tuple[list[int], list[int]]:
    """Sizes of the real and the tracing blocks, at most 64 together.

    All tracing blocks have one size s, the real ones s or s − 1 and at least one of
    them s, so that sizes do not tell which blocks trace. Of the sizes from the smallest
    possible to twice that, the one that rounds `trace` up least is taken.

    Args:
        real: number of real labels, at least 1.
        trace: wanted number of trace labels, at most 63·real.

    Returns:
        Two lists; the second sums to `trace` rounded up to a multiple of s.

    Example:
    >>> real, tracing = plan_blocks(640, 64)
    >>> len(real), set(real), tracing
    (40, {16}, [16, 16, 16, 16])
    """

    def rounded(size: int) -> int:
        return -(-trace // size) * size

    def blocks(size: int) -> int:
        return -(-real // size) + -(-trace // size)

    smallest = max(1, min(MIN_BLOCK_SIZE, real), (real + trace) // MAX_BLOCKS)
    while blocks(smallest) > MAX_BLOCKS:
        smallest += 1
    # A real block may be one label short of s, never more, and not all may be, or the size
    # would tell the kind. Within the bounds above there is always such an s.
    sizes = [s for s in range(smallest, 2 * smallest + 1) if -(-real // s) * (s - 1) < real]
    size = min(sizes, key=lambda s: (rounded(s), s))
    count = -(-real // size)
    full = real - count * (size - 1)
    return [size] * full + [size - 1] * (count - full), [size] * (rounded(size) // size)
