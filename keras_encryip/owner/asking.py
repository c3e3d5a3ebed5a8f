"""Asks a suspicious web service what it says to some inputs, and never trusts its answers."""

import contextlib
import email.utils
import http.client
import json
import math
import os
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any, Final, TypeAlias

import numpy as np

from keras_encryip.client.decoder import Decoder
from keras_encryip.client.responses import parse_response
from keras_encryip.errors import ArgumentError, FormatError, ServiceError
from keras_encryip.owner.transcript import MISSING, REFUSED, Transcript

Predict: TypeAlias = Callable[[np.ndarray], Any]
"""A batch `[b, ...]` → b answers."""

UNANSWERED: Final = -1
"""Marks inputs that the service gave no class for."""

TIMEOUT_S: Final = 30.0
"""For each network operation, and for the whole of an answer's body."""

MAX_FAILURES: Final = 3
MAX_BACKOFF_S: Final = 60.0
MAX_RETRY_AFTER_S: Final = 300.0

_BASE_ANSWER_BYTES: Final = 1 << 20
_CIPHERTEXT_BYTES: Final = 16 << 10
_NUMBER_BYTES: Final = 40
_CHUNK: Final = 1 << 16
_DETAIL_BYTES: Final = 4096
_SHOWN_NAMES: Final = 3


def ask(
    predict: Predict | str,
    inputs: np.ndarray,
    *,
    class_names: Sequence[str],
    decoder: Decoder | None = None,
    transcript: str | os.PathLike[str] | None = None,
    batch_size: int = 16,
    retries: int = 4,
    backoff: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> np.ndarray:
    """Ask a service for the class of each input.

    Inputs are sent in a random order. A batch that fails is sent again after
    `backoff`·2^i seconds, or after the `retry_after` seconds that the exception
    carries; 3 failed batches in a row end the run. A batch of several inputs
    that is refused as a whole is sent again one by one.

    Args:
        predict: the address of a model at TF Serving's REST API,
            `http://host:8501/v1/models/NAME`, or a function from a batch `[b, ...]` to b
            answers: classes, class names, or rows of K probabilities or logits; `None`, -1
            or NaN for inputs that the service refused.
        inputs: finite numbers `[n, ...]`.
        class_names: list of K names.
        decoder: reads answers that are confused labels `[b, N]` or label ciphertexts. The
            service must answer with these if it is given.
        transcript: a file that is written after every batch. If it exists, the run goes on
            from there: only inputs neither answered nor refused are asked. Use one for each
            service.
        batch_size: inputs per request.
        retries: how often a failed batch is sent again.
        backoff: seconds.
        progress: called with (inputs done, n) after every batch.
        sleep: waits, in seconds.

    Returns:
        int32 `[n]` of classes, `UNANSWERED` where the service refused, failed, or
        answered with something that is no class.

    Raises:
        ServiceError: no input was given a class. The message says why.
        FormatError: the transcript is malformed; it is left as it is.
        ArgumentError: the transcript is of other inputs, or another argument is wrong.

    Example:
    >>> def service(batch):
    ...     return ["Bee " if sum(x) < 5 else None for x in batch]
    >>> ask(service, np.array([[1, 2], [3, 4], [0, 2]]), class_names=["ant", "bee"])
    array([ 1, -1,  1], dtype=int32)
    """
    names = _check_names(class_names, decoder)
    inputs = _check_inputs(inputs)
    _check_count("batch_size", batch_size, 1)
    _check_count("retries", retries, 0)
    if isinstance(backoff, bool) or not (
        isinstance(backoff, int | float | np.number) and 0 <= backoff < math.inf
    ):
        raise ArgumentError(
            f"`backoff` must be a number of seconds, not negative. Received: backoff={backoff!r}"
        )
    if isinstance(predict, str):
        outputs = len(names) if decoder is None else decoder.num_labels
        predict = _Served(predict, outputs, encrypted=decoder is not None)
    elif not callable(predict):
        raise ArgumentError(
            "`predict` must be a function from a batch to answers, or a URL. "
            f"Received: predict={predict!r}"
        )
    reader = _Reader(names, decoder)
    kept = Transcript(transcript, inputs, len(names))
    run = _Run(predict, reader, kept, int(batch_size), int(retries), float(backoff), sleep)
    run.ask_all(inputs, progress)
    if not (kept.answers >= 0).any():
        again = "" if transcript is None else " Run again with the same `transcript` to go on."
        raise ServiceError(run.complaint() + again) from run.failure
    return np.where(kept.answers < 0, np.int32(UNANSWERED), kept.answers)


class StatusError(Exception):
    """An HTTP status that is no answer.

    Attributes:
        status: the code.
        retry_after: seconds that the service wants to be left alone, or `None`.
    """

    def __init__(self, status: int, detail: str, retry_after: float | None) -> None:
        super().__init__(f"HTTP {status}: {detail}")
        self.status = status
        self.retry_after = retry_after

    @property
    def is_refusal(self) -> bool:
        """Whether sending the same again is no use."""
        return 400 <= self.status < 500 and self.status not in (408, 429)


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
    reader: "_Reader"
    transcript: Transcript
    batch_size: int
    retries: int
    backoff: float
    sleep: Callable[[float], None]
    failure: Exception | None = None
    failures: int = 0
    refused: list[int] = field(default_factory=list)
    answered: bool = False

    def ask_all(self, inputs: np.ndarray, progress: Callable[[int, int], None] | None) -> None:
        order = np.flatnonzero(self.transcript.answers == MISSING).tolist()
        secrets.SystemRandom().shuffle(order)
        left = len(order)
        batches = deque(order[i : i + self.batch_size] for i in range(0, left, self.batch_size))
        self.transcript.save()
        while batches and self.failures < MAX_FAILURES:
            batch = batches.popleft()
            try:
                found = self._ask_patiently(inputs[batch])
            except Exception as error:
                if self._is_final(error):
                    raise
                if _is_refusal(error) and len(batch) > 1:
                    batches.extendleft([index] for index in reversed(batch))
                    continue
                if _is_refusal(error):
                    self._keep(batch, np.array([REFUSED]))
                else:
                    self.failures += 1
            else:
                self._keep(batch, found)
            left -= len(batch)
            at_end = self.answered and not batches and not self.failures
            if at_end and len(self.refused) <= self.batch_size:
                self._believe_refusals()
            self.transcript.save()
            if progress is not None:
                progress(len(inputs) - left, len(inputs))

    def complaint(self) -> str:
        """Why nothing was answered."""
        if self.reader.example:
            return self.reader.complaint()
        if self.failure is None:
            return "The service refused every input."
        kind, text = type(self.failure).__name__, _printable(str(self.failure), 300).rstrip(".")
        return f"The service answered nothing. The last failure: {kind}: {text}."

    def _ask_patiently(self, batch: np.ndarray) -> np.ndarray:
        for attempt in count():
            try:
                return self.reader.read(self.predict(batch.copy()), len(batch))
            except Exception as error:
                self.failure = error
                if attempt >= self.retries or _is_refusal(error) or self._is_final(error):
                    raise
                delay = self._delay(error, attempt)
            self.sleep(delay)
        raise AssertionError  # `count` never ends

    def _is_final(self, error: Exception) -> bool:
        """Whether the service as such cannot be read; one that did answer is asked on."""
        return isinstance(error, ServiceError) and not self.answered

    def _delay(self, error: Exception, attempt: int) -> float:
        delay = min(self.backoff * 2.0 ** min(attempt, 100), MAX_BACKOFF_S)
        wanted = getattr(error, "retry_after", None)
        if isinstance(wanted, int | float) and wanted > delay:
            return min(float(wanted), MAX_RETRY_AFTER_S)
        return delay

    def _keep(self, batch: list[int], found: np.ndarray) -> None:
        self.failures = 0
        self.transcript.answers[batch] = np.where(found == REFUSED, MISSING, found)
        self.refused += np.array(batch)[found == REFUSED].tolist()
        if (found >= 0).any():
            self.answered = True
            self._believe_refusals()

    def _believe_refusals(self) -> None:
        self.transcript.answers[self.refused] = REFUSED
        self.refused.clear()


class _Reader:
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

    def read(self, answers: Any, expected: int) -> np.ndarray:
        """int32 `[expected]`: classes, `REFUSED`, or `MISSING` for what is no class.

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
        with np.errstate(all="ignore"):
            return np.array([self._class_of(answer) for answer in answers], np.int32)

    def _class_of(self, answer: Any) -> int:
        if hasattr(answer, "__array__"):
            answer = np.asarray(answer)
            if answer.ndim == 0:
                answer = answer.item()
        if answer is None or (isinstance(answer, float) and math.isnan(answer)):
            return REFUSED
        if isinstance(answer, np.ndarray | list | tuple):
            return self._class_of_row(answer)
        number = isinstance(answer, int | float) and not isinstance(answer, bool)
        if number and answer == -1:
            return REFUSED
        if self._decoder is not None:
            if isinstance(answer, bytes):
                return int(self._decoder.decrypt([answer])[0])
            raise ServiceError(
                "With a `decoder`, the service must answer with confused labels or ciphertexts. "
                f"Received: {_example(answer)}. If these are classes, leave out the decoder."
            )
        if isinstance(answer, str | bytes):
            text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
            found = self._exact.get(text, self._folded.get(_fold(text), MISSING))
        else:
            whole = number and 0 <= answer < len(self._names) and answer == int(answer)
            found = int(answer) if whole else MISSING
        return found if found >= 0 else self._unreadable(answer)

    def _class_of_row(self, answer: Any) -> int:
        try:
            row = np.asarray(answer)
        except ValueError:
            return self._unreadable(answer)
        if row.ndim != 1 or row.dtype.kind not in "biuf":
            return self._unreadable(answer)
        self._check_width(len(row))
        row = row.astype(np.float64)
        if np.isnan(row).all():
            return REFUSED
        if self._decoder is not None:
            row = self._decoder.probabilities(row)
        return self._unreadable(answer) if np.isnan(row).any() else int(row.argmax())

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
        self.example = self.example or _example(answer)
        return MISSING


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An untrusted service shall not choose which address is asked."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Served:
    """A model at TF Serving's REST API. Answers with `[b, …]` or b ciphertexts.

    Args:
        url: with or without `:predict`.
        num_outputs: of the model.
        encrypted: whether label ciphertexts can be read.
    """

    def __init__(self, url: str, num_outputs: int, *, encrypted: bool) -> None:
        self._url = _predict_url(url)
        self._encrypted = encrypted
        self._answer_bytes = _CIPHERTEXT_BYTES + _NUMBER_BYTES * num_outputs
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __call__(self, batch: np.ndarray) -> np.ndarray | list[bytes]:
        request = urllib.request.Request(  # noqa: S310  `_predict_url` has checked the scheme
            self._url,
            json.dumps({"instances": batch.tolist()}).encode(),
            {"Content-Type": "application/json"},
        )
        limit = _BASE_ANSWER_BYTES + len(batch) * self._answer_bytes
        status = None
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                body = _read_body(response, limit)
        except urllib.error.HTTPError as error:
            with error:
                status = StatusError(error.code, _error_detail(error), _retry_after(error))
        if status is not None:
            raise status
        with np.errstate(all="ignore"):
            answers = parse_response(body)
        if isinstance(answers, list) and not self._encrypted:
            raise ServiceError(
                "The service answers with label ciphertexts. A `decoder` is needed to read them."
            )
        return answers


def _predict_url(url: str) -> str:
    problem = "must be the http:// or https:// address of a model, or a function"
    received = f" Received: predict={_printable(url, 200)!r}"
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is not None and "@" in parts.netloc:
        problem, received = "must not hold a password; use a function that sends it", ""
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise ArgumentError(f"`predict` {problem}.{received}")
    path = parts.path.rstrip("/")
    if not path or not url.isascii() or not url.isprintable() or " " in url:
        raise ArgumentError(
            "`predict` must name a model in ASCII, as in http://host:8501/v1/models/digits."
            + received
        )
    if not path.endswith(":predict"):
        path += ":predict"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _read_body(response: Any, limit: int) -> bytes:
    """All of a body of at most `limit` bytes, within `TIMEOUT_S`."""
    deadline = time.monotonic() + TIMEOUT_S
    body = bytearray()
    while chunk := response.read1(min(_CHUNK, limit + 1 - len(body))):
        body += chunk
        if len(body) > limit:
            raise FormatError(f"The response is too large: more than {limit} bytes.")
        if time.monotonic() > deadline:
            raise TimeoutError(f"The response took more than {TIMEOUT_S} seconds.")
    return bytes(body)


def _error_detail(error: urllib.error.HTTPError) -> str:
    """What the service says of an error: TF Serving's JSON, else its text or the reason."""
    text = ""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        text = error.read(_DETAIL_BYTES).decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
        text = str(json.loads(text)["error"])
    return _printable(text.strip() or str(error.reason), 200)


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds from now in the header `Retry-After`, a number or a date, or `None`."""
    text = str(error.headers.get("Retry-After", "")).strip()
    if error.code not in (429, 503):
        return None
    if text.isascii() and text.isdigit():
        return float(text)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        moment = email.utils.parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    return None


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, StatusError) and error.is_refusal


def _fold(name: str) -> str:
    return name.strip().casefold()


def _unambiguous(names: Sequence[str]) -> dict[str, int]:
    """Name → class, for names of one class only."""
    times = Counter(names)
    return {name: index for index, name in enumerate(names) if times[name] == 1}


def _example(answer: Any) -> str:
    return _printable(repr(answer), 60)


def _printable(text: str, length: int) -> str:
    """At most `length` characters, none of which can play tricks on a terminal."""
    text = "".join(c if c.isprintable() else " " for c in text[: length + 1])
    return text if len(text) <= length else text[: length - 1] + "…"


def _check_names(class_names: Sequence[str], decoder: Decoder | None) -> list[str]:
    names = [] if isinstance(class_names, str) else list(class_names)
    if len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise ArgumentError(
            "`class_names` must be a list of at least 2 strings. "
            f"Received: class_names={_example(class_names)}"
        )
    if decoder is not None and decoder.class_names != names:
        raise ArgumentError(
            "`class_names` must be the names of the decoder's model, `decoder.class_names`. "
            f"Received: class_names={_example(names)}"
        )
    return names


def _check_inputs(inputs: np.ndarray) -> np.ndarray:
    inputs = np.asarray(inputs)
    if inputs.ndim == 0 or inputs.size == 0:
        raise ArgumentError(
            "`inputs` must be an array of at least one input. "
            f"Received: inputs.shape={inputs.shape}"
        )
    if inputs.dtype.kind not in "biuf" or inputs.dtype.itemsize > 8:
        raise ArgumentError(f"`inputs` must hold numbers. Received: inputs.dtype={inputs.dtype}")
    if not np.isfinite(inputs).all():
        raise ArgumentError("`inputs` must be finite. Received: inputs with NaN or infinity")
    return inputs


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        wanted = "a positive integer" if least else "an integer, not negative"
        raise ArgumentError(f"`{name}` must be {wanted}. Received: {name}={value!r}")
