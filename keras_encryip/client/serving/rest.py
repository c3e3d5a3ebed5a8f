"""TF Serving's REST API, over httpx."""

import contextlib
import queue
import ssl
import urllib.parse
from threading import Thread
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from keras_encryip.client.serving.failures import (
    LateError,
    PassingError,
    UntrustedError,
    too_large,
    too_late,
    untrusted,
)
from keras_encryip.errors import (
    EncryipError,
    FormatError,
    ServiceError,
    instead_of,
    needing,
    printable,
    reason,
)
from keras_encryip.formats.responses import error_text, parse_response, retry_after

_PASSING: Final = (429, 502, 503, 504)
_DETAIL_BYTES: Final = 1 << 16
_HINTS: Final = {
    400: " Check names, shapes and types of the inputs.",
    401: " Give credentials as `headers`.",
    403: " Give credentials as `headers`.",
    404: " Check `model`, `version` and that `url` is that of the REST API.",
    413: " Ask with a smaller `batch_size`.",
}


class Answer(NamedTuple):
    """One HTTP response: `body` is that of status 200 … 299, `detail` what a server says else."""

    status: int
    body: bytes
    detail: str
    retry_after: float | None


class RestConnection:
    """Posts JSON to one address, without trust in who answers.

    Redirects are not followed, compression is not asked for, time and size are bounded. Threads
    may share a connection.

    No timeout of single operations bounds what a server may do: send a header letter by letter,
    or one `100 Continue` after another. So each exchange has a thread of its own, and the caller
    is back in time whatever that waits for. Its connections are then closed.

    Args:
        url: the address.
        name: what messages call the server.
        timeout: seconds for a whole exchange, from looking up the host to the answer's end.
        headers: sent with every request, besides those for JSON.
        tls: whom to trust, instead of the system's roots.

    Raises:
        MissingExtraError: httpx is not installed.
        ServiceError: httpx cannot use the environment's proxies.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        timeout: float,
        headers: dict[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        with needing("serving"):
            import httpx
        self._httpx = httpx
        self._url = url
        self._name = name
        self._timeout = timeout
        # Unasked compression would let a short answer grow large.
        fixed = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        headers = {**fixed, **(headers or {})}
        self._options: dict[str, Any] = {
            "verify": tls or True,
            "timeout": timeout,
            "headers": headers,
        }
        self._http = self._connected()

    def post(self, body: bytes, limit: int) -> Answer:
        """Send JSON, and read the response, of at most `limit` bytes if it is no error.

        Raises:
            PassingError: the server cannot be reached, or broke off.
            LateError: no answer, or not all of it, in time.
            UntrustedError: no trusted connection.
            FormatError: the response is larger than `limit`.
        """
        http = self._http
        ended: queue.SimpleQueue[Answer | BaseException] = queue.SimpleQueue()
        heard: list[Answer] = []  # the status of an error counts, even without its words

        def exchange() -> None:
            try:
                ended.put(self._exchange(http, body, limit, heard))
            except BaseException as error:
                ended.put(error)

        Thread(target=exchange, daemon=True, name="keras_encryip exchange").start()
        outcome: Answer | BaseException = self._late()
        try:
            with contextlib.suppress(queue.Empty):
                outcome = ended.get(timeout=self._timeout)
        finally:
            if isinstance(outcome, LateError):
                self._abandon(http)
        if isinstance(outcome, LateError) and heard:
            return heard[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def close(self) -> None:
        self._http.close()

    def _connected(self) -> Any:
        with (
            instead_of(*(ValueError, ImportError, self._httpx.InvalidURL), raises=_proxy_problem),
            instead_of(OSError, raises=_roots_problem),
        ):
            return self._httpx.Client(**self._options)

    def _abandon(self, http: Any) -> None:
        """Close connections that a server keeps busy. Exchanges of other threads are retried."""
        if self._http is http:
            self._http = self._connected()
        http.close()

    def _exchange(self, http: Any, body: bytes, limit: int, heard: list[Answer]) -> Answer:
        with (
            instead_of(Exception, raises=self._problem),
            http.stream("POST", self._url, content=body) as response,
        ):
            status, words = response.status_code, response.reason_phrase
            wanted = retry_after(response.headers.get("Retry-After", ""))
            if 200 <= status < 300:
                data = self._read(response, limit)
                if len(data) > limit:
                    raise FormatError(f"The response is too large: more than {limit} bytes.")
                return Answer(status, data, words, wanted)
            heard.append(Answer(status, b"", error_text(b"", words), wanted))
            with contextlib.suppress(self._httpx.TransportError):
                words = error_text(self._read(response, _DETAIL_BYTES), words)
            return Answer(status, b"", words, wanted)

    @staticmethod
    def _read(response: Any, limit: int) -> bytes:
        """The body, or more than `limit` bytes of it."""
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > limit:
                break
        return bytes(body)

    def _late(self) -> LateError:
        return LateError(f"{self._name} gave no answer within {self._timeout:g} s.")

    def _problem(self, error: Exception) -> EncryipError:
        if isinstance(error, self._httpx.TimeoutException):
            return self._late()
        detail = printable(str(error), 200) or type(error).__name__
        if _is_tls(error):
            return UntrustedError(detail)
        closed = isinstance(error, RuntimeError)  # by another thread
        if not isinstance(error, self._httpx.TransportError) and not closed:
            return ServiceError(f"{self._name} cannot be asked: {type(error).__name__}: {detail}.")
        return PassingError(f"{self._name} cannot be reached: {detail}.")


class RestTransport:
    """Asks in the column format, which takes one input and several alike."""

    def __init__(
        self,
        address: urllib.parse.SplitResult,
        model: str,
        version: int | None,
        *,
        timeout: float,
        headers: dict[str, str],
        tls: ssl.SSLContext | None,
        max_answer_bytes: int,
        **_: Any,
    ) -> None:
        which = "" if version is None else f"/versions/{version}"
        path = f"/v1/models/{urllib.parse.quote(model, safe='')}{which}:predict"
        self._url = address.geturl() + path
        self._timeout = timeout
        self._limit = max_answer_bytes
        name = f"The model server at {self._url}"
        self._connection = RestConnection(
            self._url, name=name, timeout=timeout, headers=headers, tls=tls
        )

    def ask(self, inputs: dict[str, np.ndarray], signature: str) -> np.ndarray | list[bytes]:
        # `tolist` gives float32 as doubles: more digits than needed, and exactly what was meant.
        columns = {name: array.tolist() for name, array in inputs.items()}
        body = msgspec.json.encode({"signature_name": signature, "inputs": columns})
        with (
            instead_of(LateError, raises=lambda _: too_late(self._timeout)),
            instead_of(FormatError, raises=lambda _: too_large(self._limit)),
            instead_of(UntrustedError, raises=lambda error: untrusted(str(error))),
        ):
            answer = self._connection.post(body, self._limit)
        if answer.status == 200:
            with instead_of(FormatError, raises=self._unreadable):
                return parse_response(answer.body)
        text = (
            f"The model server at {self._url} answered HTTP {answer.status}: "
            f"{answer.detail.rstrip('.')}.{_HINTS.get(answer.status, '')}"
        )
        if answer.status in _PASSING:
            raise PassingError(text, answer.retry_after)
        raise ServiceError(text)

    def close(self) -> None:
        self._connection.close()

    def _unreadable(self, error: FormatError) -> ServiceError:
        said = printable(str(error), 300)
        return ServiceError(f"{self._url} does not answer like TF Serving: {said}")


def _proxy_problem(error: Exception) -> ServiceError:
    """Names the exception alone: its words may hold a proxy's password."""
    return ServiceError(
        f"httpx cannot use a proxy that the environment names ({type(error).__name__}). Correct "
        "ALL_PROXY, HTTPS_PROXY, HTTP_PROXY or NO_PROXY, which takes addresses of IPv6 without "
        "brackets; SOCKS needs: pip install 'httpx[socks]'"
    )


def _roots_problem(error: OSError) -> ServiceError:
    return ServiceError(
        f"The certificates that the environment names cannot be read ({reason(error)}). Correct "
        "SSL_CERT_FILE or SSL_CERT_DIR."
    )


def _is_tls(error: BaseException | None) -> bool:
    """Whether a failed handshake is behind it, and not a lost connection."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return True
        error = error.__cause__ or error.__context__
    return False
