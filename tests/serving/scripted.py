"""A REST server over real sockets that answers what a test tells it to."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Reply:
    """One HTTP response; `body` is sent as JSON unless it is bytes."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    chunks: int = 1
    pause: float = 0.0


Answer = Callable[[Any], Reply]


class Server:
    """A server in a thread; `replies` go out first, then what `answer` makes of the inputs.

    Args:
        column: the member of a request that holds the inputs, `instances` or `inputs`.
        answer: from the inputs to a reply.
        port: 0 for any that is free.
    """

    def __init__(self, column: str, answer: Answer, port: int = 0) -> None:
        self.column = column
        self.answer = answer
        self.replies: list[Reply] = []
        self.requests: list[Any] = []
        self.signatures: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.gets = 0
        self.done = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                owner.reply_to(self)

            def do_GET(self) -> None:
                owner.gets += 1
                self.send_error(405)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = False
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.url = f"{self.address}/v1/models/digits"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def reply_to(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        assert handler.headers["Content-Type"] == "application/json"
        request = json.loads(body)
        assert request.keys() - {"signature_name"} == {self.column}
        self.paths.append(handler.path)
        self.headers.append(dict(handler.headers))
        self.signatures.append(request.get("signature_name"))
        self.requests.append(request[self.column])
        reply = self.replies.pop(0) if self.replies else self.answer(request[self.column])
        data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        try:
            handler.send_response(reply.status)
            for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            step = -(-len(data) // reply.chunks) or 1
            for start in range(0, len(data), step):
                self.done.wait(reply.pause)
                handler.wfile.write(data[start : start + step])
                handler.wfile.flush()
        except ConnectionError:
            pass  # the asker had enough

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
