"""Asks a suspicious web service what it says to some inputs, and never trusts its answers."""

import contextlib
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, TypeAlias

import numpy as np

from keras_encryip.client.checks import check_count, check_inputs, check_seconds
from keras_encryip.client.decoder import Decoder
from keras_encryip.client.serving.failures import retry_delay
from keras_encryip.errors import ArgumentError, ServiceError, printable
from keras_encryip.tracing.service.answers import Reader, example_of
from keras_encryip.tracing.service.served import Served, StatusError
from keras_encryip.tracing.service.transcript import MISSING, REFUSED, Transcript

Predict: TypeAlias = Callable[[np.ndarray], Any]
"""A batch `[b, ...]` → b answers."""

UNANSWERED: Final = -1
"""Marks inputs that the service gave no class for."""

MAX_FAILURES: Final = 3
MAX_RETRY_AFTER_S: Final = 300.0


def ask(
    predict: Predict | str,
    inputs: np.ndarray,
    natural: np.ndarray | None = None,
    *,
    class_names: Sequence[str],
    decoder: Decoder | None = None,
    transcript: str | os.PathLike[str] | None = None,
    batch_size: int = 16,
    retries: int = 4,
    backoff: float = 1.0,
    progress: Callable[[int], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[np.ndarray, np.ndarray]:
    """Ask a service for the class of each input, and for the probabilities of natural ones.

    Natural inputs come last, and only as long as they are answered with rows.

    Inputs are sent in a random order. A batch that fails is sent again, between
    half and all of `backoff`·2^i seconds later, at most 30 s, or after as many
    seconds as the exception's `retry_after` says, at most 300 s; 3 failed batches
    in a row end the run. A batch of several inputs that is refused as a whole is
    sent again one by one.

    Args:
        predict: the address of a model at TF Serving's REST API,
            `http://host:8501/v1/models/NAME`, or a function from a batch `[b, ...]` to b
            answers: classes, class names, or rows of K probabilities or logits; `None`, -1
            or NaN for inputs that the service refused.
        inputs: finite numbers `[n, ...]`.
        natural: as many as you like of the same shape; none are asked with a `decoder`.
        class_names: list of K names.
        decoder: reads answers that are confused labels `[b, N]` or label ciphertexts. The
            service must answer with these if it is given.
        transcript: a file that is written after every batch. If it exists, the run goes on
            from there: only inputs neither answered nor refused are asked. Use one for each
            service.
        batch_size: inputs per request.
        retries: how often a failed batch is sent again.
        backoff: seconds.
        progress: is told after every batch how many inputs it had.
        sleep: waits, in seconds.

    Returns:
        (int32 `[n]` of classes, `UNANSWERED` where the service refused, failed, or
        answered with something that is no class; float32 `[m, K]`, the rows that natural inputs
        were answered with, NaN where there is none).

    Raises:
        ServiceError: no input was given a class. The message says why.
        FormatError: the transcript is malformed; it is left as it is.
        ArgumentError: the transcript is of other inputs, or another argument is wrong.

    Example:
    >>> def service(batch):
    ...     return ["Bee " if sum(x) < 5 else None for x in batch]
    >>> classes, _ = ask(service, np.array([[1, 2], [3, 4], [0, 2]]), class_names=["ant", "bee"])
    >>> classes
    array([ 1, -1,  1], dtype=int32)
    """
    names = _check_names(class_names, decoder)
    inputs = check_inputs("inputs", inputs)
    natural = np.empty(0) if natural is None else np.asarray(natural)
    count, inputs = len(inputs), _together(inputs, natural)
    batch_size = check_count("batch_size", batch_size, 1)
    retries = check_count("retries", retries, 0)
    check_seconds("backoff", backoff)
    with contextlib.ExitStack() as stack:
        if isinstance(predict, str):
            outputs = len(names) if decoder is None else decoder.num_labels
            served = Served(predict, outputs, encrypted=decoder is not None)
            predict = stack.enter_context(contextlib.closing(served))
        elif not callable(predict):
            raise ArgumentError(
                "`predict` must be a function from a batch to answers, or a URL. "
                f"Received: predict={predict!r}"
            )
        kept = Transcript(transcript, inputs, len(names), natural=len(natural))
        reader = Reader(names, decoder)
        run = _Run(predict, reader, kept, batch_size, retries, float(backoff), sleep)
        run.ask_all(inputs, range(count), progress)
        if decoder is None:
            run.ask_all(inputs, range(count, len(inputs)), progress)
    answers = kept.answers[:count]
    if not (answers >= 0).any():
        again = "" if transcript is None else " Run again with the same `transcript` to go on."
        raise ServiceError(run.complaint() + again) from run.failure
    return np.where(answers < 0, np.int32(UNANSWERED), answers), kept.rows


@dataclass
class _Run:
    """One run over the inputs of a transcript that are missing.

    Attributes:
        failure: the last one.
        failures: how many batches failed in a row.
        refused: inputs refused since a class was last given. A service that bans the owner
            refuses whatever it is sent, so these count once it answers again.
        answered: whether this run got a class.
    """

    predict: Predict
    reader: Reader
    transcript: Transcript
    batch_size: int
    retries: int
    backoff: float
    sleep: Callable[[float], None]
    failure: Exception | None = None
    failures: int = 0
    refused: list[int] = field(default_factory=list)
    answered: bool = False

    def ask_all(
        self, inputs: np.ndarray, numbers: range, progress: Callable[[int], None] | None
    ) -> None:
        """Ask those of some inputs that are missing. Natural ones: as long as there are rows."""
        order = [i for i in numbers if self.transcript.answers[i] == MISSING]
        secrets.SystemRandom().shuffle(order)
        steps = range(0, len(order), self.batch_size)
        batches = deque(order[i : i + self.batch_size] for i in steps)
        self.transcript.save()
        while batches and self.failures < MAX_FAILURES:
            batch = batches.popleft()
            try:
                classes, rows = self._ask_patiently(inputs[batch])
            except Exception as error:
                if self._is_final(error):
                    raise
                if _is_refusal(error) and len(batch) > 1:
                    batches.extendleft([index] for index in reversed(batch))
                    continue
                if _is_refusal(error):
                    self._keep(batch, np.array([REFUSED]), None)
                else:
                    self.failures += 1
            else:
                self._keep(batch, classes, rows)
            at_end = self.answered and not batches and not self.failures
            if at_end and len(self.refused) <= self.batch_size:
                self._believe_refusals()
            self.transcript.save()
            if progress is not None:
                progress(len(batch))
            if self.transcript.is_natural(batch) and not self.transcript.has_rows():
                break

    def complaint(self) -> str:
        """Why nothing was answered."""
        if self.reader.example:
            return self.reader.complaint()
        if self.failure is None:
            return "The service refused every input."
        kind, text = type(self.failure).__name__, printable(str(self.failure), 300).rstrip(".")
        return f"The service answered nothing. The last failure: {kind}: {text}."

    def _ask_patiently(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for attempt in count():
            try:
                return self.reader.read(self.predict(batch.copy()), len(batch))
            except Exception as error:
                self.failure = error
                if attempt >= self.retries or _is_refusal(error) or self._is_final(error):
                    raise
                wanted = getattr(error, "retry_after", None)
            delay = retry_delay(attempt, self.backoff, wanted, most_wanted=MAX_RETRY_AFTER_S)
            self.sleep(delay)
        raise AssertionError  # `count` never ends

    def _is_final(self, error: Exception) -> bool:
        """Whether the service as such cannot be read; one that did answer is asked on."""
        return isinstance(error, ServiceError) and not self.answered

    def _keep(self, batch: list[int], classes: np.ndarray, rows: np.ndarray | None) -> None:
        self.failures = 0
        if rows is not None:
            self.transcript.keep_rows(batch, rows)
        self.transcript.answers[batch] = np.where(classes == REFUSED, MISSING, classes)
        self.refused += np.array(batch)[classes == REFUSED].tolist()
        if (classes >= 0).any():
            self.answered = True
            self._believe_refusals()

    def _believe_refusals(self) -> None:
        self.transcript.answers[self.refused] = REFUSED
        self.refused.clear()


def _together(inputs: np.ndarray, natural: np.ndarray) -> np.ndarray:
    if not natural.size:
        return inputs
    natural = check_inputs("natural", natural)
    if natural.shape[1:] != inputs.shape[1:]:
        raise ArgumentError(
            f"`natural` must hold inputs of shape {inputs.shape[1:]}, as `inputs` does. "
            f"Received: natural.shape={natural.shape}"
        )
    return np.concatenate([inputs, natural.astype(inputs.dtype)])


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, StatusError) and error.is_refusal


def _check_names(class_names: Sequence[str], decoder: Decoder | None) -> list[str]:
    names = [] if isinstance(class_names, str) else list(class_names)
    if len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise ArgumentError(
            "`class_names` must be a list of at least 2 strings. "
            f"Received: class_names={example_of(class_names)}"
        )
    if decoder is not None and decoder.class_names != names:
        raise ArgumentError(
            "`class_names` must be the names of the decoder's model, `decoder.class_names`. "
            f"Received: class_names={example_of(names)}"
        )
    return names
