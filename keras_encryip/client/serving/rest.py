"""TF Serving's REST API, over httpx."""

import ssl
import time
import urllib.parse
from typing import Any, Final

import msgspec
import numpy as np

from keras_encryip.formats.responses import error_text, parse_response, printable, retry_after
from keras_encryip.client.serving.failures import PassingError, missing, too_large, too_late, untrusted
from keras_encryip.errors import FormatError, ServiceError

_PASSING: Final = (429, 502, 503, 504)
_DETAIL_BYTES: Final = 1 << 16
_HINTS: Final = {
    400: " Check names, shapes and types of the inputs.",
    401: " Give credentials as `headers`.",
    403: " Give credentials as `headers`.",
    404: " Check `model`, `version` and that `url` is that of the REST API.",
    413: " Ask with a smaller `batch_size`.",
}


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
        try:
            import httpx
        except ModuleNotFoundError:
            raise missing("httpx") from None
        self._httpx = httpx
        which = "" if version is None else f"/versions/{version}"
        path = f"/v1/models/{urllib.parse.quote(model, safe='')}{which}:predict"
        self._url = address.geturl() + path
        self._timeout = timeout
        self._limit = max_answer_bytes
        # Unasked compression would let a short answer grow large.
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json", **headers}
        verify = True if tls is None else tls
        problem = ""
        try:
            self._http = httpx.Client(verify=verify, timeout=timeout, headers=headers)
        except (ValueError, ImportError) as error:  # whose words may hold a proxy's password
            problem = type(error).__name__
        if problem:
            raise ServiceError(
                f"httpx cannot use a proxy that the environment names ({problem}). Correct "
                "ALL_PROXY, HTTPS_PROXY or HTTP_PROXY; SOCKS needs: pip install 'httpx[socks]'"
            )

    def ask(self, inputs: dict[str, np.ndarray], signature: str) -> np.ndarray | list[bytes]:
        # `tolist` gives float32 as doubles: more digits than needed, and exactly what was meant.
        columns = {name: array.tolist() for name, array in inputs.items()}
        body = msgspec.json.encode({"signature_name": signature, "inputs": columns})
        httpx = self._httpx
        problem: Exception
        try:
            with self._http.stream("POST", self._url, content=body) as response:
                status = response.status_code
                data = self._read(response, self._limit if status == 200 else _DETAIL_BYTES)
        except httpx.TimeoutException:
            problem = too_late(self._timeout)
        except httpx.TransportError as error:
            detail = printable(str(error), 200) or type(error).__name__
            problem = PassingError(f"The model server at {self._url} cannot be reached: {detail}.")
            if _is_tls(error):
                problem = untrusted(detail)
        else:
            if status == 200:
                return self._parse(data)
            detail = f"HTTP {status}: {error_text(data, response.reason_phrase).rstrip('.')}."
            text = f"The model server at {self._url} answered {detail}{_HINTS.get(status, '')}"
            if status in _PASSING:
                problem = PassingError(text, retry_after(response.headers.get("Retry-After", "")))
            else:
                problem = ServiceError(text)
        raise problem

    def close(self) -> None:
        self._http.close()

    def _read(self, response: Any, limit: int) -> bytes:
        """At most `limit` bytes; a longer answer with status 200 is an error."""
        deadline = time.monotonic() + self._timeout
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > limit and response.status_code != 200:
                break
            if len(body) > limit:
                raise too_large(limit)
            if time.monotonic() > deadline:
                raise too_late(self._timeout)
        return bytes(body[:limit])

    def _parse(self, data: bytes) -> np.ndarray | list[bytes]:
        problem = ""
        try:
            return parse_response(data)
        except FormatError as error:
            problem = printable(str(error), 300)
        raise ServiceError(f"{self._url} does not answer like TF Serving: {problem}")


def _is_tls(error: BaseException | None) -> bool:
    """Whether a failed handshake is behind it, and not a lost connection."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return True
        error = error.__cause__ or error.__context__
    return False
