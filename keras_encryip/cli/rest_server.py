"""HTTP for `encryip serve`: JSON in, JSON out, and errors as `{"error": …}`."""

import json
import socket
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from sys import exception
from typing import Any, Final

from keras_encryip.errors import ArgumentError, instead_of, reason

MAX_BODY_BYTES: Final = 64 << 20
_PART: Final = 1 << 16


class Refusal(Exception):
    """A request that is not answered: an HTTP status and the reason."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class RestServer(ThreadingHTTPServer):
    """Listens at once, and answers as soon as `serve` is called.

    Args:
        host: the address to listen at.
        port: 0 for any free one; `url` has the real one.

    Raises:
        ArgumentError: nothing can listen there.
    """

    daemon_threads = True
    request_queue_size = 128
    answer: Callable[[str, str, bytes], Any]

    def __init__(self, host: str, port: int) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        with instead_of(
            OSError,
            raises=lambda error: ArgumentError(
                f"Cannot listen at {host}:{port}: {reason(error)}. Choose another --port, or 0 for "
                "any free one, or another --host."
            ),
        ):
            super().__init__((host, port), _Handler)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}"

    def serve(self, answer: Callable[[str, str, bytes], Any], poll_seconds: float = 0.5) -> None:
        """Answer until `shutdown` is called.

        Args:
            answer: method, path and body of a request → what its JSON holds, or a `Refusal`.
            poll_seconds: how often it looks whether `shutdown` was called.
        """
        self.answer = answer
        self.serve_forever(poll_seconds)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(exception(), OSError):  # a client that hung up, or did not trust
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60  # seconds that a client may be silent
    server: RestServer

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        try:
            body = self._body()  # an OSError here: the client is gone, or silent
            try:
                answer, status = self.server.answer(self.command, self.path, body), 200
            except Refusal:
                raise
            except Exception as error:  # whatever it is, the server goes on
                answer, status = {"error": f"{type(error).__name__}: {reason(error)}"}, 500
        except Refusal as refusal:
            answer, status = {"error": str(refusal)}, refusal.status
        self._send(status, answer)

    def _body(self) -> bytes:
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise Refusal(411, "The body must come with its Content-Length, and not in chunks.")
        said = self.headers.get("Content-Length", "0")
        if not (said.isascii() and said.isdigit() and len(said) < 20):
            self.close_connection = True
            raise Refusal(400, "Content-Length must be a number.")
        length = int(said)
        if length <= MAX_BODY_BYTES:
            return self.rfile.read(length)
        while length and (part := self.rfile.read(min(length, _PART))):
            length -= len(part)  # a client that still sends would not read why
        raise Refusal(413, f"The request is too large: more than {MAX_BODY_BYTES} bytes.")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is no HTTP, or no method of the protocol."""
        self.close_connection = True
        self._send(code, {"error": message or HTTPStatus(code).phrase})

    def _send(self, status: int, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass
