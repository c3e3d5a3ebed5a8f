"""A model at TF Serving's REST API, asked without trust."""

import urllib.parse
from typing import Final

import msgspec
import numpy as np

from keras_encryip.client.serving.failures import UntrustedError
from keras_encryip.client.serving.rest import RestConnection
from keras_encryip.errors import ArgumentError, ServiceError, instead_of, printable
from keras_encryip.formats.responses import parse_response

TIMEOUT_S: Final = 30.0
"""For a whole exchange."""

_BASE_ANSWER_BYTES: Final = 1 << 20
_CIPHERTEXT_BYTES: Final = 16 << 10
_NUMBER_BYTES: Final = 40


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


class Served:
    """A model at TF Serving's REST API. Answers with `[b, …]` or b ciphertexts.

    Args:
        url: with or without `:predict`.
        num_outputs: of the model.
        encrypted: whether label ciphertexts can be read.
    """

    def __init__(self, url: str, num_outputs: int, *, encrypted: bool) -> None:
        self._encrypted = encrypted
        self._answer_bytes = _CIPHERTEXT_BYTES + _NUMBER_BYTES * num_outputs
        self._connection = RestConnection(_predict_url(url), name="The service", timeout=TIMEOUT_S)

    def __call__(self, batch: np.ndarray) -> np.ndarray | list[bytes]:
        body = msgspec.json.encode({"instances": batch.tolist()})
        limit = _BASE_ANSWER_BYTES + len(batch) * self._answer_bytes
        with instead_of(
            UntrustedError,
            raises=lambda error: ServiceError(f"No trusted connection to the service: {error}."),
        ):
            answer = self._connection.post(body, limit)
        if not 200 <= answer.status < 300:
            wanted = answer.retry_after if answer.status in (429, 503) else None
            raise StatusError(answer.status, answer.detail, wanted)
        answers = parse_response(answer.body)
        if isinstance(answers, list) and not self._encrypted:
            raise ServiceError(
                "The service answers with label ciphertexts. A `decoder` is needed to read them."
            )
        return answers

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()


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
