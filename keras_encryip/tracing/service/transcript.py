"""What a suspicious service has answered so far, in a file that survives a killed run."""

import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import numpy as np

from keras_encryip.crypto.encoding import (
    Time,
    canonical_json,
    decode_base64,
    encode_base64,
    format_time,
    parse_canonical_json,
)
from keras_encryip.errors import ArgumentError, FormatError, instead_of
from keras_encryip.formats.atomic_files import read_bounded, replace_file
from keras_encryip.labels.assignment import MAX_CLASSES

FORMAT: Final = "encryip-transcript"
VERSION: Final = 1
MAX_TRANSCRIPT_BYTES: Final = 64 << 20

MISSING: Final = -1
"""Not asked yet, or asked without an answer that names a class: to be asked again."""
REFUSED: Final = -2
"""Answered with a refusal: not to be asked again."""

_Answer = Annotated[int, msgspec.Meta(ge=REFUSED, lt=MAX_CLASSES)]


class _File(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """The file, canonical JSON.

    Attributes:
        answers: for each input its class, `MISSING` or `REFUSED`.
        format, version: `"encryip-transcript"`, 1.
        inputs: hexadecimal SHA-256 of the inputs' dtype, shape and bytes.
        num_classes: K.
        rows: base64 of what the natural inputs, the last ones, were answered with: little-endian
            float32 `[m, K]`, NaN where that was no row; left out without natural inputs.
        started_at, updated_at: UTC, `YYYY-MM-DDThh:mm:ssZ`.
    """

    answers: list[_Answer]
    format: Literal["encryip-transcript"]
    inputs: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    num_classes: Annotated[int, msgspec.Meta(ge=2, le=MAX_CLASSES)]
    started_at: Time
    updated_at: Time
    version: Literal[1]
    rows: str = ""


class Transcript:
    """The answers to some inputs; read from a file and kept in it, if a path is given.

    Args:
        path: the file, continued if it exists; `None` keeps the answers in memory alone.
        inputs: numbers `[n, ...]`.
        num_classes: K.
        natural: m, how many of the inputs, the last ones, are natural: their rows are kept.

    Attributes:
        answers: int32 `[n]`, classes, `MISSING` or `REFUSED`. To be changed in place.
        rows: float32 `[m, K]`, NaN where there is none.

    Raises:
        FormatError: the file is malformed; it is left as it is.
        ArgumentError: the file is of other inputs, or of another number of classes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        inputs: np.ndarray,
        num_classes: int,
        *,
        natural: int = 0,
    ) -> None:
        self.answers = np.full(len(inputs), MISSING, np.int32)
        self.rows = np.full((natural, num_classes), np.nan, np.float32)
        self._path = None if path is None else Path(path)
        self._inputs = digest_inputs(inputs)
        self._num_classes = num_classes
        self._started_at = format_time(datetime.now(UTC))
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def is_natural(self, batch: Sequence[int]) -> bool:
        """Whether these inputs are natural ones."""
        return batch[0] >= len(self.answers) - len(self.rows)

    def has_rows(self) -> bool:
        """Whether a natural input was answered with a row."""
        return bool(np.isfinite(self.rows).any())

    def keep_rows(self, batch: Sequence[int], rows: np.ndarray) -> None:
        """What inputs were answered with, float32 `[b, K]`, if they are natural ones."""
        if self.is_natural(batch):
            self.rows[np.array(batch) - len(self.answers)] = rows

    def _read(self, path: Path) -> None:
        data = read_bounded(path, what="transcript", max_bytes=MAX_TRANSCRIPT_BYTES)
        file = parse_canonical_json(
            data, _File, what=f"transcript {str(path)!r}", max_bytes=MAX_TRANSCRIPT_BYTES
        )
        for same, what in (
            (file.inputs == self._inputs, "other inputs"),
            (file.num_classes == self._num_classes, f"{file.num_classes} classes"),
        ):
            if not same:
                raise ArgumentError(
                    f"The transcript {str(path)!r} is of {what}. Give `transcript` another path "
                    "to start anew."
                )
        if len(file.answers) != len(self.answers) or max(file.answers) >= self._num_classes:
            raise FormatError(
                f"The transcript {str(path)!r} is malformed: it must hold {len(self.answers)} "
                f"answers below {self._num_classes}."
            )
        message = f"The transcript {str(path)!r} is malformed: its rows have a wrong length."
        with instead_of(FormatError, raises=lambda _: FormatError(message)):
            rows = decode_base64(file.rows, what="rows", length=self.rows.nbytes)
        self.rows[:] = np.frombuffer(rows, "<f4").reshape(self.rows.shape)
        self.answers[:] = file.answers
        self._started_at = file.started_at

    def save(self) -> None:
        """Write the file anew: it is as before, or as after. Nothing without a path.

        Raises:
            ArgumentError: the file cannot be written.
        """
        if self._path is None:
            return
        data = canonical_json(
            _File(
                answers=self.answers.tolist(),
                format=FORMAT,
                inputs=self._inputs,
                num_classes=self._num_classes,
                rows=encode_base64(self.rows.astype("<f4").tobytes()),
                started_at=self._started_at,
                updated_at=format_time(datetime.now(UTC)),
                version=VERSION,
            )
        )
        replace_file(self._path, data, what="transcript")


def digest_inputs(inputs: np.ndarray) -> str:
    """Hexadecimal SHA-256 of dtype, shape and bytes of an array of numbers."""
    digest = hashlib.sha256(canonical_json([inputs.dtype.str, list(inputs.shape)]))
    digest.update(np.ascontiguousarray(inputs).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
