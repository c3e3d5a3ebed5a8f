"""A model at TF Serving's REST API, asked without trust."""

import contextlib
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Final

import numpy as np

from keras_encryip.formats.responses import error_text, parse_response, printable, retry_after
from keras_encryip.errors import ArgumentError, FormatError, ServiceError

TIMEOUT_S: Final = 30.0
"""For each network operation, and for the whole of an answer's body."""

_BASE_ANSWER_BYTES: Final = 1 << 20
_CIPHERTEXT_BYTES: Final = 16 << 10
_NUMBER_BYTES: Final = 40
_CHUNK: Final = 1 << 16
_DETAIL_BYTES: Final = 4096


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


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An untrusted service shall not choose which address is asked."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Served:
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
        answers = parse_response(body)
        if isinstance(answers, list) and not self._encrypted:
            raise ServiceError(
                "The service answers with label ciphertexts. A `decoder` is needed to read them."
            )
        return answers


def _predict_url(url: str) -> str:
    problem = "must be the http:// or https:// address of a model, or a function"
    received = f" Received: predict={printable(url, 200)!r}"
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
    body = b""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        body = error.read(_DETAIL_BYTES)
    return error_text(body, str(error.reason))


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    if error.code not in (429, 503):
        return None
    return retry_after(str(error.headers.get("Retry-After", "")))
