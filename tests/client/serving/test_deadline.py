"""Whatever a server does, a client is back in time, over real sockets."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.client import Decoder
from keras_encryip.client.serving import ServingClient
from keras_encryip.errors import ServiceError
from keras_encryip.tracing.service import query, served

TIMEOUT = 0.7
LIMIT = 2.0
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def repeated(first: bytes, again: bytes, pause: float = 0.05) -> Callable[[], Iterator[bytes]]:
    def said() -> Iterator[bytes]:
        yield first
        while True:
            yield again
            time.sleep(pause)

    return said


TRICKS = {
    "silence": repeated(b"", b""),
    "100 Continue": repeated(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "100 Continue, as fast as it can": repeated(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 99, 0),
    "103 Early Hints": repeated(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
    "status line": repeated(b"HTTP/1.1 200 ", b"O"),
    "header": repeated(HEAD, b"a"),
    "headers": repeated(HEAD, b"a: b\r\n"),
    "chunk extension": repeated(CHUNKED + b"5;", b"a"),
    "chunk size": repeated(CHUNKED, b"0"),
    "chunks": repeated(CHUNKED, b"1\r\n \r\n"),
    "trailers": repeated(CHUNKED + b"0\r\n", b"a: b\r\n"),
    "body": repeated(HEAD + b"Content-Length: 9999\r\n\r\n", b" "),
    "body without an end": repeated(HEAD + b"\r\n", b" "),
}


class Tricky:
    """A server that answers every connection with what `say` yields."""

    def __init__(self, say: Callable[[], Iterator[bytes]]) -> None:
        self.say = say
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.open: list[socket.socket] = []
        self.done = threading.Event()
        self.address = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                self.open.append(connection)
                threading.Thread(target=self.answer, args=[connection], daemon=True).start()

    def answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for data in self.say():
                connection.sendall(data)
                if self.done.is_set():
                    return

    def __enter__(self) -> "Tricky":
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.listening.close()
        for connection in self.open:
            connection.close()


@pytest.fixture(scope="module")
def decoder(world: Any, alice_file: Path) -> Decoder:
    return Decoder.open(world.model, alice_file, "correct horse")


def timed(call: Callable[[], Any]) -> float:
    start = time.monotonic()
    with contextlib.suppress(ServiceError):
        call()
    return time.monotonic() - start


@pytest.mark.parametrize("trick", TRICKS)
def test_an_exchange_ends_in_time(decoder: Decoder, trick: str) -> None:
    x = np.zeros((1, 1))
    with (
        Tricky(TRICKS[trick]) as tricky,
        ServingClient(tricky.address, "digits", decoder, timeout=TIMEOUT, retries=0) as client,
    ):
        for _ in range(2):  # another one gets a connection of its own
            start = time.monotonic()
            with pytest.raises(ServiceError, match=r"gave no answer within 0.7 s"):
                client.predict(x)
            assert time.monotonic() - start < LIMIT


@pytest.mark.parametrize("trick", ["headers", "chunk extension", "body"])
def test_the_tracer_is_back_in_time(trick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "TIMEOUT_S", TIMEOUT)
    x = np.zeros((1, 1))
    with Tricky(TRICKS[trick]) as tricky:
        url = f"{tricky.address}/v1/models/digits"
        seconds = timed(lambda: query.ask(url, x, class_names=["a", "b"], retries=0))
    assert seconds < LIMIT


def test_the_status_of_an_error_counts_without_its_words(decoder: Decoder) -> None:
    head = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9999\r\n\r\n"
    with (
        Tricky(repeated(head, b"n")) as tricky,
        ServingClient(tricky.address, "digits", decoder, timeout=TIMEOUT, retries=0) as client,
    ):
        start = time.monotonic()
        with pytest.raises(ServiceError, match=r"answered HTTP 403: Forbidden\. Give credentials"):
            client.predict(np.zeros((1, 1)))
        assert time.monotonic() - start < LIMIT


def test_a_client_goes_on_after_a_tricky_answer(decoder: Decoder) -> None:
    """The connections of before are closed; others are made."""
    row = str([1.0] + [0.0] * (decoder.num_labels - 1)).encode()
    body = b'{"outputs": [' + row + b"]}"
    truth = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    says = iter([TRICKS["headers"](), iter([truth])])
    with (
        Tricky(lambda: next(says)) as tricky,
        ServingClient(tricky.address, "digits", decoder, timeout=TIMEOUT, retries=0) as client,
    ):
        with pytest.raises(ServiceError, match=r"gave no answer within"):
            client.predict(np.zeros((1, 1)))
        assert client.predict(np.zeros((1, 1))).sum() == pytest.approx(1)


PROXIES = {
    "IPv6": {"NO_PROXY": "[::1]"},
    "no number": {"HTTP_PROXY": "http://host:port"},
    "no end": {"HTTPS_PROXY": "http://[::1"},
    "scheme": {"ALL_PROXY": "ftp://host:1"},
    "SOCKS": {"ALL_PROXY": "socks5://host:1"},
    "letters": {"NO_PROXY": "exämple.com"},
    "certificates": {"SSL_CERT_FILE": "/nowhere"},
    "a folder": {"SSL_CERT_FILE": "/"},
    "no certificates": {"SSL_CERT_FILE": "/etc/hostname"},
}


@pytest.mark.parametrize("kind", PROXIES)
def test_the_environment(decoder: Decoder, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What httpx refuses is named, and no password of a proxy shown."""
    for name, value in PROXIES[kind].items():
        monkeypatch.setenv(name, value.replace("host", "user:s3cret@host"))
    message = "SSL_CERT_FILE" if "SSL_CERT_FILE" in PROXIES[kind] else "a proxy"
    with pytest.raises(ServiceError, match=message) as caught:
        ServingClient("http://127.0.0.1:1", "digits", decoder)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:99999", "http://127.0.0.1:1", "127.0.0.1:0"])
def test_a_proxy_that_cannot_be_reached(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with (
        ServingClient("http://model.test:1", "digits", decoder, retries=0) as client,
        pytest.raises(ServiceError),
    ):
        client.predict(np.zeros((1, 1)))
