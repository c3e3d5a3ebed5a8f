"""Reads what a service answered, whatever its form: classes, names, rows, ciphertexts."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from keras_encryip.client.decoder import Decoder
from keras_encryip.errors import FormatError, ServiceError, printable
from keras_encryip.tracing.service.transcript import MISSING, REFUSED

_SHOWN_NAMES: Final = 3


class Reader:
    """Reads a batch's answers, whatever their form.

    Attributes:
        example: an answer that names no class; empty if there was none.
    """

    def __init__(self, names: Sequence[str], decoder: Decoder | None) -> None:
        self.example = ""
        self._names = names
        self._decoder = decoder
        self._exact = _unambiguous(names)
        self._folded = _unambiguous([_fold(name) for name in names])

    def complaint(self) -> str:
        """What was expected instead of the example."""
        names = ", ".join(repr(name) for name in self._names[:_SHOWN_NAMES])
        more = ", …" if len(self._names) > _SHOWN_NAMES else ""
        return (
            f"No answer of the service names a class; it answers such as {self.example}. "
            f"Expected classes 0 … {len(self._names) - 1}, rows of {len(self._names)} "
            f"probabilities, or the names in `class_names`: {names}{more}."
        )

    def read(self, answers: Any, expected: int) -> tuple[np.ndarray, np.ndarray]:
        """What a batch was answered.

        Returns:
            (int32 `[expected]`: classes, `REFUSED`, or `MISSING` for what is no class; float32
            `[expected, K]`: rows of probabilities or logits, NaN where there is none).

        Raises:
            FormatError: it is not that many answers, or ciphertexts that cannot be read.
            ServiceError: the answers are of a kind that needs another `decoder`, or none.
        """
        if hasattr(answers, "__array__"):
            answers = np.asarray(answers)
        single = isinstance(answers, np.ndarray) and answers.ndim == 0
        if single or not isinstance(answers, np.ndarray | list | tuple):
            raise FormatError(
                f"The service must give a list or array of {expected} answers. "
                f"Received: {type(answers).__name__}"
            )
        if len(answers) != expected:
            raise FormatError(f"The service gave {len(answers)} answers, expected {expected}.")
        classes = np.empty(expected, np.int32)
        rows = np.full((expected, len(self._names)), np.nan, np.float32)
        with np.errstate(all="ignore"):
            for i, answer in enumerate(answers):
                classes[i], row = self._class_of(answer)
                if row is not None:
                    rows[i] = row
        return classes, rows

    def _class_of(self, answer: Any) -> tuple[int, np.ndarray | None]:
        """The class, and the row of probabilities if it is one."""
        if hasattr(answer, "__array__"):
            answer = np.asarray(answer)
            if answer.ndim == 0:
                answer = answer.item()
        if answer is None or (isinstance(answer, float) and math.isnan(answer)):
            return REFUSED, None
        if isinstance(answer, np.ndarray | list | tuple):
            return self._class_of_row(answer)
        return self._class_of_one(answer), None

    def _class_of_one(self, answer: Any) -> int:
        number = isinstance(answer, int | float) and not isinstance(answer, bool)
        if number and answer == -1:
            return REFUSED
        if self._decoder is not None:
            if isinstance(answer, bytes):
                return int(self._decoder.decrypt([answer])[0])
            raise ServiceError(
                "With a `decoder`, the service must answer with confused labels or ciphertexts. "
                f"Received: {example_of(answer)}. If these are classes, leave out the decoder."
            )
        if isinstance(answer, str | bytes):
            text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
            index = self._exact.get(text, self._folded.get(_fold(text), MISSING))
        else:
            whole = number and 0 <= answer < len(self._names) and answer == int(answer)
            index = int(answer) if whole else MISSING
        return index if index >= 0 else self._unreadable(answer)

    def _class_of_row(self, answer: Any) -> tuple[int, np.ndarray | None]:
        try:
            row = np.asarray(answer)
        except ValueError:
            return self._unreadable(answer), None
        if row.ndim != 1 or row.dtype.kind not in "biuf":
            return self._unreadable(answer), None
        self._check_width(len(row))
        row = row.astype(np.float64)
        if np.isnan(row).all():
            return REFUSED, None
        if self._decoder is not None:
            row = self._decoder.probabilities(row, quantised=True)  # a thief may strip labels
        if np.isnan(row).any():
            return self._unreadable(answer), None
        return int(row.argmax()), row

    def _check_width(self, width: int) -> None:
        if self._decoder is None and width != len(self._names):
            raise ServiceError(
                f"The service gives {width} numbers for an input, and not the probabilities of "
                f"{len(self._names)} classes. If these are confused labels, a `decoder` is "
                "needed to read them."
            )
        if self._decoder is not None and width != self._decoder.num_labels:
            raise ServiceError(
                f"The service gives {width} numbers for an input, and the decoder's model "
                f"{self._decoder.model!r} has {self._decoder.num_labels} outputs. Open a decoder "
                "for the model that is served."
            )

    def _unreadable(self, answer: Any) -> int:
        self.example = self.example or example_of(answer)
        return MISSING


def _fold(name: str) -> str:
    return name.strip().casefold()


def _unambiguous(names: Sequence[str]) -> dict[str, int]:
    """Name → class, for names of one class only."""
    times = Counter(names)
    return {name: index for index, name in enumerate(names) if times[name] == 1}


def example_of(answer: Any) -> str:
    return printable(repr(answer), 60)
