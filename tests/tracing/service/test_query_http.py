"""Asking services over real sockets, most of which behave badly."""

import email.utils
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from keras_encryip.client.decoder import Decoder
from keras_encryip.crypto.encoding import encode_base64
from keras_encryip.errors import ArgumentError, ServiceError
from keras_encryip.tracing.service import served
from keras_encryip.tracing.service.query import UNANSWERED
from tests.serving.scripted import Reply, Server
from tests.tracing.service.asking import check_naps

INPUTS = np.arange(16, dtype=np.float32).reshape(8, 2) / 3
TRUTH = np.arange(8) % 4


UNREACHABLE = "PassingError: The service cannot be reached: "


def truth(instances: list[Any]) -> list[int]:
    return [round(instance[0] * 3 / 2) % 4 for instance in instances]


def right(instances: list[Any]) -> Reply:
    return Reply({"predictions": truth(instances)})


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("instances", right) as server:
        yield server


@pytest.fixture
def other() -> Iterator[Server]:
    with Server("instances", right) as made:
        yield made


@pytest.fixture
def inputs() -> np.ndarray:
    return INPUTS


# --- answers -------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", ":predict", "/", "/versions/2", "?key=1"])
def test_addresses(server: Server, put: Any, ending: str) -> None:
    assert put(server.url + ending).tolist() == TRUTH.tolist()
    expected = {
        "/": "/v1/models/digits:predict",
        "/versions/2": "/v1/models/digits/versions/2:predict",
        "?key=1": "/v1/models/digits:predict?key=1",
    }
    assert set(server.paths) == {expected.get(ending, "/v1/models/digits:predict")}


@pytest.mark.parametrize(
    "form",
    [
        lambda labels: {"predictions": labels},
        lambda labels: {"predictions": [float(label) for label in labels]},
        lambda labels: {"predictions": np.eye(4)[labels].tolist()},
        lambda labels: {"outputs": np.eye(4)[labels].tolist()},
        lambda labels: {"predictions": [[1e300 if k == label else -1e300 for k in range(4)]
                                        for label in labels]},
    ],
)  # fmt: skip
def test_forms_of_answers(server: Server, put: Any, form: Any) -> None:
    server.answer = lambda instances: Reply(form(truth(instances)))
    found = put(server.url)
    assert found.dtype == np.int32
    assert found.tolist() == TRUTH.tolist()


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, np.int64, np.bool_])
def test_numbers_arrive_as_they_are(server: Server, put: Any, dtype: Any) -> None:
    images = np.random.default_rng(0).uniform(0, 9, (5, 2, 2, 1)).astype(dtype)
    server.answer = lambda instances: Reply({"predictions": [1] * len(instances)})
    assert put(server.url, images).tolist() == [1] * 5
    sent = [image for instances in server.requests for image in instances]
    kinds = {type(image[0][0][0]) for image in sent}
    assert kinds == {{"f": float, "b": bool}.get(np.dtype(dtype).kind, int)}
    assert sorted(map(str, sent)) == sorted(str(image.tolist()) for image in images)


def test_refused_and_odd_items(server: Server, put: Any) -> None:
    odd = {0: None, 1: float("nan"), 2: -1, 3: 2.5, 4: 99}
    inputs = np.arange(8, dtype=np.int32)
    server.answer = lambda instances: Reply({"predictions": [odd.get(i, 1) for i in instances]})
    assert put(server.url, inputs).tolist() == [UNANSWERED] * 5 + [1] * 3


@pytest.fixture(scope="module")
def decoder(shipped: Any) -> Decoder:
    return Decoder.open(shipped.exported, shipped.bundles["alice"], shipped.passphrase)


@pytest.mark.parametrize("form", ["rows", "column", "named rows", "ciphertexts"])
def test_a_protected_model(
    server: Server, put: Any, shipped: Any, decoder: Decoder, digits: Any, form: str
) -> None:
    images = digits.x_test[:8]

    def answer(instances: list[Any]) -> Reply:
        confused = shipped.model.predict(np.array(instances, np.float32), verbose=0)
        if form == "ciphertexts":
            made = [decoder._codebook.ciphertext(label) for label in confused.argmax(-1).tolist()]
            return Reply({"predictions": [{"b64": encode_base64(data)} for data in made]})
        rows = confused.tolist()
        named = [{"confused": row} for row in rows]
        return Reply(
            {"outputs": rows}
            if form == "column"
            else {"predictions": named if form == "named rows" else rows}
        )

    server.answer = answer
    found = put(server.url, images, class_names=decoder.class_names, decoder=decoder)
    confused = shipped.model.predict(images, verbose=0)
    expected = decoder.labels(confused)
    if form == "ciphertexts":
        expected = decoder.secret_table()[confused.argmax(-1)]
    assert found.tolist() == expected.tolist()
    needs = "`decoder` is needed to read them"
    with pytest.raises(ServiceError, match=needs):
        put(server.url, images, class_names=decoder.class_names)


# --- failures --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 301, 302, 307])
def test_a_passing_failure(server: Server, put: Any, naps: list[float], status: int) -> None:
    server.replies = [Reply({"error": "busy"}, status)] * 2
    assert put(server.url).tolist() == TRUTH.tolist()
    check_naps(naps, [1.0, 2.0])


@pytest.mark.parametrize(
    ("status", "text", "nap"),
    [
        *((429, "7", 7.0), (503, "7", 7.0), (429, "99999999999", 300.0), (429, "0", None)),
        *((500, "7", None), (429, "soon", None), (429, "-7", None), (429, "7.5", None)),
        *((429, "9" * 5000, 300.0), (429, "Wed, 21 Oct 2015 07:28:00 GMT", None)),
        *((429, "Wed, 99 Oct 2015 07:28:00 GMT", None), (429, "", None)),
        *((503, "Fri, 31 Dec 9999 23:59:59 GMT", 300.0),),
    ],
)
def test_retry_after(
    server: Server, put: Any, naps: list[float], status: int, text: str, nap: float | None
) -> None:
    server.replies = [Reply(status=status, headers={"Retry-After": text})]
    assert put(server.url).tolist() == TRUTH.tolist()
    if nap is None:
        check_naps(naps, [1.0])
    else:
        assert naps == [nap]


@pytest.mark.parametrize("zone", ["GMT", "-0000"])
def test_retry_after_a_date(server: Server, put: Any, naps: list[float], zone: str) -> None:
    moment = email.utils.formatdate(time.time() + 100, usegmt=True).replace("GMT", zone)
    server.replies = [Reply(status=429, headers={"Retry-After": moment})]
    put(server.url)
    assert len(naps) == 1
    assert 90 < naps[0] <= 100


def test_a_refused_input_takes_no_others_with_it(
    server: Server, put: Any, naps: list[float]
) -> None:
    def answer(instances: list[Any]) -> Reply:
        if INPUTS[3].tolist() in instances:
            return Reply({"error": "unfit"}, 400)
        return Reply({"predictions": truth(instances)})

    server.answer = answer
    found = put(server.url)
    assert found.tolist() == [-1 if i == 3 else label for i, label in enumerate(TRUTH)]
    assert [len(instances) for instances in sorted(server.requests, key=len)] == [1] * 4 + [4] * 2
    assert naps == []


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply({"error": "Servable not found"}, 404), "StatusError: HTTP 404: Servable not found."),
        (Reply({"error": "a\x1b[2J" * 200}, 400), r"StatusError: HTTP 400: a\x1b[2Ja\x1b[2J"),
        (Reply(b"\xff<html>oops", 500), "StatusError: HTTP 500: \ufffd<html>oops."),
        (Reply(b"", 500), "StatusError: HTTP 500: Internal Server Error."),
        (Reply(b"[" * 100_000, 500), "StatusError: HTTP 500: [[["),
        (Reply(b"", 302, {"Location": "file:///etc/passwd"}), "StatusError: HTTP 302: Found"),
        (Reply(b"", 204), "FormatError: The response is not a JSON object"),
        (Reply({"error": "no gpu"}), "FormatError: The model server reported an error: no gpu"),
        (Reply(b"<html>"), "FormatError: The response is not a JSON object"),
        (Reply(b"\xff\xfe"), "FormatError: The response is not a JSON object"),
        (Reply(b"[" * 100_000), "FormatError: The response is not a JSON object"),
        (Reply({"predictions": []}), "FormatError: The response has no `predictions`"),
        (Reply({"predictions": 3}), "FormatError: The response has no `predictions`"),
        (Reply({"predictions": ["ant", "bee"]}), "not a table of numbers"),
        (Reply({"predictions": [[1], [2, 3]]}), "not a table of numbers"),
        (Reply({"predictions": [1, 2, 3]}), "FormatError: The service gave 3 answers, expected 4"),
        (Reply(b"{", headers={"Content-Length": "999"}), f"{UNREACHABLE}peer closed connection"),
        (Reply(b"{", headers={"Content-Length": "?"}), f"{UNREACHABLE}bad Content-Length"),
        (Reply(b"zz\r\n", headers={"Transfer-Encoding": "chunked"}), f"{UNREACHABLE}illegal chun"),
        (Reply(b"", headers={"X": "y" * 200_000}), UNREACHABLE),
        (Reply(b"{", 400, {"Content-Length": "999"}), "StatusError: HTTP 400: Bad Request."),
    ],
    ids=lambda value: None if isinstance(value, Reply) else value[:40].strip(),
)
def test_nothing_but_failures(server: Server, put: Any, reply: Reply, message: str) -> None:
    server.answer = lambda _: reply
    with pytest.raises(ServiceError, match="The service answered nothing") as caught:
        put(server.url, retries=1)
    text = str(caught.value)
    assert message in text
    assert text.isprintable()
    assert len(text) < 400


def test_redirects_are_not_followed(server: Server, other: Server, put: Any) -> None:
    server.answer = lambda _: Reply(status=302, headers={"Location": other.url})
    other.answer = lambda _: Reply(status=500)
    with pytest.raises(ServiceError, match="HTTP 302"):
        put(server.url, retries=0)
    assert other.gets == len(other.requests) == 0


@pytest.mark.parametrize("width", [3, 5])
def test_outputs_of_other_width(server: Server, put: Any, width: int) -> None:
    server.answer = lambda instances: Reply({"predictions": [[0.1] * width] * len(instances)})
    with pytest.raises(ServiceError, match=rf"gives {width} numbers .* `decoder` is needed"):
        put(server.url)
    assert len(server.requests) == 1


def test_an_oversized_response(server: Server, put: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_BASE_ANSWER_BYTES", 1 << 10)
    endless = Reply(b" " * (1 << 20), chunks=256)
    server.answer = lambda _: endless
    with pytest.raises(ServiceError, match="FormatError: The response is too large: more than 67"):
        put(server.url, retries=0)


def test_as_large_as_answers_can_be(server: Server, put: Any) -> None:
    names = [f"{i}" for i in range(3000)]
    row = [-1.2345678901234567e-300] * 2999 + [1]
    server.answer = lambda instances: Reply({"predictions": [row] * len(instances)})
    assert put(server.url, np.zeros((60, 1)), class_names=names, batch_size=60).min() == 2999


def test_nobody_there(put: Any, naps: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ServiceError, match=rf"{UNREACHABLE}.*Connection refused"):
        put(f"http://127.0.0.1:{port}/v1/models/digits")
    check_naps(naps, [1.0, 2.0, 4.0, 8.0] * 2)


def test_secrets_of_the_address_are_not_repeated(put: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ServiceError, match=UNREACHABLE) as caught:
        put(f"http://127.0.0.1:{port}/v1/models/digits?key=hunter2", retries=0)
    assert "hunter2" not in str(caught.value)


def test_a_hanging_server(put: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ServiceError, match=r"LateError: .* no answer within 0\.1 s\.$"):
            put(f"http://127.0.0.1:{port}/v1/models/digits", retries=0)


def test_a_server_that_hangs_up(put: Any) -> None:
    def hang_up() -> None:
        for _ in range(2):
            silent.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        thread = threading.Thread(target=hang_up)
        thread.start()
        port = silent.getsockname()[1]
        with pytest.raises(ServiceError, match=f"{UNREACHABLE}(Server disconn|.*reset|.*pipe)"):
            put(f"http://127.0.0.1:{port}/v1/models/digits", retries=0)
        thread.join()


def test_a_dripping_server(server: Server, put: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes within the timeout, but the whole does not."""
    monkeypatch.setattr(served, "TIMEOUT_S", 0.3)
    server.answer = lambda _: Reply(b" " * 1000, chunks=1000, pause=0.05)
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"LateError: .* no answer within 0\.3 s\.$"):
        put(server.url, retries=0)
    assert time.monotonic() - start < 10


def test_a_timeout_and_then_an_answer(
    server: Server, put: Any, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "TIMEOUT_S", 0.5)
    server.replies = [Reply(b"late", pause=60)]
    assert put(server.url).tolist() == TRUTH.tolist()
    check_naps(naps, [1.0])


def test_a_run_goes_on_when_the_server_is_back(server: Server, put: Any, tmp_path: Any) -> None:
    options = {"transcript": tmp_path / "kept", "retries": 0, "batch_size": 2}
    server.answer = lambda _: Reply(status=500)
    server.replies = [Reply({"predictions": [0, 1]})]
    found = put(server.url, **options)
    assert sorted(found[found >= 0].tolist()) == [0, 1]
    server.answer = lambda instances: Reply({"predictions": truth(instances)})
    server.requests.clear()
    again = put(server.url, **options)
    assert (again[found < 0] == TRUTH[found < 0]).all()
    assert sum(map(len, server.requests)) == 6


# --- addresses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://example.org/v1/models/m", "data:,x", "", "digits"),
        *("example.org:8501/v1/models/m", "//example.org/m", "http:///v1/models/m"),
        *("http://[::1/v1/models/m", "http://example.org:port/m", "gopher://example.org/m"),
    ],
)
def test_other_addresses_are_refused(put: Any, url: str) -> None:
    with pytest.raises(ArgumentError, match="`predict` must be the http:// or https:// address"):
        put(url)


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.org", "http://example.org/", "http://example.org?x=/y"),
        *("http://example.org/v1/models/my model", "http://example.org/v1/models/ü"),
    ],
)
def test_addresses_that_name_no_model(put: Any, url: str) -> None:
    with pytest.raises(ArgumentError, match="`predict` must name a model in ASCII") as caught:
        put(url)
    assert repr(url) in str(caught.value)


def test_passwords_are_not_repeated(put: Any) -> None:
    with pytest.raises(ArgumentError, match="must not hold a password; use a function") as caught:
        put("https://me:hunter2@example.org/v1/models/m")
    assert "hunter2" not in str(caught.value)
