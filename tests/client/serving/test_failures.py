"""A client and servers that fail, over real sockets: what is asked again, and what is said."""

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from keras_encryip.client import Decoder
from keras_encryip.client.serving import ServingClient, client
from keras_encryip.client.serving.failures import MAX_BACKOFF_S, retry_delay
from keras_encryip.errors import ServiceError
from tests.serving.scripted import Reply, Server

X = np.arange(5, dtype=np.float32)[:, None] / 3
N = 112


@pytest.fixture(scope="module")
def decoder(world: Any, alice_file: Path) -> Decoder:
    return Decoder.open(world.model, alice_file, "correct horse")


def rows(inputs: Any) -> np.ndarray:
    """Confused labels that tell which input they answer."""
    found = np.zeros((len(inputs["inputs"]), N), np.float32)
    for row, (value,) in zip(found, inputs["inputs"], strict=True):
        row[round(value * 3)] = 1
    return found


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr(client, "sleep", taken.append)
    return taken


def answer(inputs: Any) -> Reply:
    return Reply({"outputs": rows(inputs).tolist()})


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("inputs", answer) as made:
        yield made


@pytest.fixture
def ask(server: Server, decoder: Decoder, naps: list[float]) -> Callable[..., np.ndarray]:
    """`ask(…)`: `predict` with the options of a client."""

    def ask(x: Any = X, url: str = server.address, **options: Any) -> np.ndarray:
        with ServingClient(url, "digits", decoder, **options) as asking:
            return asking.predict(x)

    return ask


@pytest.fixture
def expected(decoder: Decoder) -> np.ndarray:
    return decoder.probabilities(rows({"inputs": X}))


class Rpc(prediction_service_pb2_grpc.PredictionServiceServicer):
    """A gRPC server; `aborts` go out first, then what `answer` makes of a request."""

    def __init__(self, port: int = 0) -> None:
        self.aborts: list[tuple[grpc.StatusCode, str]] = []
        self.answer: Callable[[Any], Any] = self.truth
        self.asked: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        options = [("grpc.max_receive_message_length", 1 << 16)]
        self.server = grpc.server(ThreadPoolExecutor(2), options=options)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, self.server)
        port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.url = f"grpc://127.0.0.1:{port}"

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop(None).wait()

    def truth(self, request: Any) -> Any:
        return answer_of(rows({"inputs": tf.make_ndarray(request.inputs["inputs"])}))

    def Predict(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.aborts:
            context.abort(*self.aborts.pop(0))
        return self.answer(request)


def answer_of(tensor: Any, name: str = "confused") -> Any:
    answer = predict_pb2.PredictResponse()
    proto = tensor if isinstance(tensor, TensorProto) else tf.make_tensor_proto(tensor)
    answer.outputs[name].CopyFrom(proto)
    return answer


@pytest.fixture
def rpc() -> Iterator[Rpc]:
    with Rpc() as made:
        yield made


# --- what is sent ----------------------------------------------------------------------------


def test_numbers_arrive_exactly(server: Server, ask: Any) -> None:
    """Random bit patterns, subnormal numbers among them, there and back."""
    bits = np.random.default_rng(0).integers(0, 2**32, (50, 1), np.uint32)
    bits[:8, 0] = np.array([0, 1, 2**31, 2**31 + 1, 0x7F7FFFFF, 0x00800000, 0x3DCCCCCD, 3])
    values = bits.view(np.float32)
    values = values[np.isfinite(values)][:, None]
    server.answer = lambda inputs: Reply({"outputs": np.full((len(values), N), 1 / N).tolist()})
    ask(values)
    sent = np.array(server.requests[0]["inputs"], np.float64).astype(np.float32)
    assert sent.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("dtype", "kind"), [("uint8", int), ("int64", int), ("bool", bool), ("float64", float)]
)
def test_types_of_numbers(server: Server, rpc: Rpc, ask: Any, dtype: str, kind: type) -> None:
    values = np.array([[0], [1], [1]], dtype)
    ask(values)
    assert {type(value) for (value,) in server.requests[0]["inputs"]} == {kind}
    ask(values, url=rpc.url)
    sent = tf.make_ndarray(rpc.asked[0].inputs["inputs"])
    assert sent.dtype == (np.float32 if kind is float else np.dtype(dtype))
    np.testing.assert_array_equal(sent, values)


def test_batches(server: Server, rpc: Rpc, ask: Any, expected: np.ndarray) -> None:
    for url in (server.address, rpc.url):
        np.testing.assert_array_equal(ask(url=url, batch_size=2), expected)
    assert [len(inputs["inputs"]) for inputs in server.requests] == [2, 2, 1]
    assert [request.inputs["inputs"].tensor_shape.dim[0].size for request in rpc.asked] == [2, 2, 1]


def test_headers_and_version(server: Server, rpc: Rpc, ask: Any) -> None:
    options = {"headers": {"Authorization": "Bearer secret-token"}, "version": 3}
    ask(**options)
    assert server.headers[0]["Authorization"] == "Bearer secret-token"
    assert server.paths == ["/v1/models/digits/versions/3:predict"]
    assert server.signatures == ["serving_default"]
    ask(url=rpc.url, **options)
    assert rpc.metadata[0]["authorization"] == "Bearer secret-token"
    assert rpc.asked[0].model_spec.version.value == 3
    assert rpc.asked[0].model_spec.name == "digits"


def test_a_path_before_the_api(server: Server, decoder: Decoder, ask: Any) -> None:
    ask(url=f"{server.address}/tenant/a/")
    with ServingClient(server.address, "my model/ä", decoder) as asking:
        asking.predict(X)
    assert server.paths == [
        "/tenant/a/v1/models/digits/versions/1:predict",
        "/v1/models/my%20model%2F%C3%A4/versions/1:predict",
    ]


def test_threads_share_a_client(server: Server, rpc: Rpc, decoder: Decoder) -> None:
    for url in (server.address, rpc.url):
        one_by_one = ServingClient(url, "digits", decoder, batch_size=1)
        with one_by_one as asking, ThreadPoolExecutor(4) as pool:
            found = list(pool.map(asking.predict, [X + k / 3 for k in range(12)]))
        for k, probabilities in enumerate(found):
            alone = decoder.probabilities(rows({"inputs": X + k / 3}))
            np.testing.assert_array_equal(probabilities, alone)


# --- what is asked again ---------------------------------------------------------------------


def test_delays_double_up_to_a_bound_and_spread_out() -> None:
    for attempt in (0, 1, 5, 6, 7, 100, 10_000):
        longest = min(0.5 * 2.0 ** min(attempt, 100), MAX_BACKOFF_S)
        delays = [retry_delay(attempt, 0.5, None, most_wanted=60) for _ in range(50)]
        assert longest / 2 <= min(delays) < max(delays) <= longest
    assert retry_delay(3, 0.0, None, most_wanted=60) == 0


@pytest.mark.parametrize(
    ("wanted", "delay"),
    [(7, 7.0), (7.5, 7.5), (60, 60.0), (61, 60.0), (float("inf"), 60.0), (np.float64(9), 9.0)],
)
def test_what_a_server_wants_counts_if_it_is_more(wanted: Any, delay: float) -> None:
    assert retry_delay(0, 1.0, wanted, most_wanted=60) == delay


@pytest.mark.parametrize("wanted", [None, 0, 0.25, -3, float("nan"), "9", [9]])
def test_what_a_server_wants_is_ignored_otherwise(wanted: Any) -> None:
    assert 0.5 <= retry_delay(0, 1.0, wanted, most_wanted=60) <= 1
    assert 15 <= retry_delay(9, 1.0, 20, most_wanted=10) <= 30, "never less than the backoff"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_overloaded_server(
    server: Server, ask: Any, naps: list[float], expected: np.ndarray, status: int
) -> None:
    server.replies = [Reply({"error": "busy"}, status)] * 3
    np.testing.assert_array_equal(ask(), expected)
    for nap, longest in zip(naps, (0.5, 1.0, 2.0), strict=True):
        assert longest / 2 <= nap <= longest


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("7", 7, 7), ("99999", 60, 60), ("0", 0.25, 0.5), ("soon", 0.25, 0.5), ("-7", 0.25, 0.5)],
)
def test_retry_after(
    server: Server, ask: Any, naps: list[float], header: str, least: float, most: float
) -> None:
    server.replies = [Reply(status=503, headers={"Retry-After": header})]
    ask()
    assert len(naps) == 1
    assert least <= naps[0] <= most


def test_naps_are_bounded_and_differ(server: Server, ask: Any, naps: list[float]) -> None:
    server.answer = lambda _: Reply({"error": "busy"}, 503)
    with pytest.raises(ServiceError, match=r"HTTP 503: busy\. Requests sent: 13\.$"):
        ask(retries=12)
    assert len(naps) == 12
    assert 15 <= min(naps[7:]) < max(naps[7:]) <= 30
    assert len(set(naps)) == 12


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_an_overloaded_server_over_grpc(
    rpc: Rpc, ask: Any, naps: list[float], expected: np.ndarray, code: str
) -> None:
    rpc.aborts = [(grpc.StatusCode[code], "queue is full")] * 2
    np.testing.assert_array_equal(ask(url=rpc.url), expected)
    assert len(naps) == 2
    rpc.aborts = [(grpc.StatusCode[code], "queue is full")] * 2
    with pytest.raises(ServiceError, match=rf"{code}: queue is full\. Requests sent: 2\.$"):
        ask(url=rpc.url, retries=1)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return int(closed.getsockname()[1])


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_there(ask: Any, naps: list[float], scheme: str) -> None:
    with pytest.raises(ServiceError, match=r"refused.*Requests sent: 3\.$"):
        ask(url=f"{scheme}://127.0.0.1:{closed_port()}", retries=2)
    assert len(naps) == 2


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_comes_up(
    decoder: Decoder, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Started while the client waits; the same client goes on."""
    port = closed_port()
    with ExitStack() as stack:

        def start_and_wait(seconds: float) -> None:
            if not started:
                made = Rpc(port) if scheme == "grpc" else Server("inputs", answer, port)
                started.append(stack.enter_context(made))
            time.sleep(seconds)

        started: list[Any] = []
        monkeypatch.setattr(client, "sleep", start_and_wait)
        with ServingClient(f"{scheme}://127.0.0.1:{port}", "digits", decoder) as asking:
            np.testing.assert_array_equal(asking.predict(X), expected)
        assert len(started) == 1


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_hangs_up(
    ask: Any, naps: list[float], expected: np.ndarray, scheme: str
) -> None:
    def hang_up() -> None:
        with contextlib.suppress(OSError):  # of the shutdown
            while True:
                silent.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        thread = threading.Thread(target=hang_up)
        thread.start()
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServiceError, match=r"(cannot be reached|UNAVAILABLE).*sent: 2\.$"):
            ask(url=url, retries=1)
        silent.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_an_answer_that_breaks_off(
    server: Server, ask: Any, naps: list[float], expected: np.ndarray
) -> None:
    server.replies = [Reply(b'{"outputs": [[', headers={"Content-Length": "999"})]
    np.testing.assert_array_equal(ask(), expected)
    assert len(naps) == 1


# --- what is not ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            Reply({"error": "Servable not found"}, 404),
            r"HTTP 404: Servable not found\. Check `model",
        ),
        (Reply(b"<html>nginx</html>", 404), r"HTTP 404: <html>nginx</html>\. Check `model`, `ver"),
        (
            Reply({"error": "bad shape\x1b[2J"}, 400),
            r"HTTP 400: bad shape\\x1b\[2J\. Check names, shape",
        ),
        (Reply({"error": "x" * 9999}, 400), r"HTTP 400: x{199}…\. Check names"),
        (Reply(b"", 401), r"HTTP 401: Unauthorized\. Give credentials as `headers`"),
        (Reply(b"", 413), r"HTTP 413: .*\. Ask with a smaller `batch_size`\.$"),
        (Reply(b"[" * 100_000, 500), r"HTTP 500: \[\[\["),
        (Reply(b"", 302, {"Location": "http://127.0.0.1:1/"}), r"HTTP 302: Found\.$"),
        (Reply(b"", 204), r"HTTP 204: No Content\.$"),
        (Reply(b"hello"), r"does not answer like TF Serving: The response is not a JSON object"),
        (Reply(b"\x1f\x8b", headers={"Content-Encoding": "gzip"}), r"does not answer like TF Serv"),
        (Reply({"error": "no\x07 gpu"}), r"The model server reported an error: no\\x07 gpu$"),
        (Reply({"outputs": {"scores": [[1]]}}), r"must hold the output `confused`"),
        (Reply({"outputs": [[0.5] * N] * 4}), r"gave 4 answers to 5 inputs"),
        (Reply({"outputs": [[0.5] * 10] * 5}), r"shape \(5, 10\).*has 112 outputs.*with `version`"),
        (Reply({"outputs": [[7] * N] * 5}), r"shape \(5, 112\).*has 112 outputs"),
        (Reply({"outputs": [0.5] * 5}), r"answers with shape \(5,\)"),
        (Reply({"outputs": [{"b64": "YQ=="}] * 5}), r"answered with ciphertexts, not with numbers"),
        (Reply({"outputs": [[None] * N] * 5}), r"cannot be read: .* NaN or infinity"),
        (Reply({"outputs": [[1e99] * N] * 5}), r"cannot be read: .* NaN or infinity"),
        (Reply({"outputs": [[1 << 40] * (N + 10)] * 5}), r"not a table of numbers of 32 bits\.$"),
    ],
    ids=itertools.count(),
)
def test_answers_that_are_none(
    server: Server, ask: Any, naps: list[float], reply: Reply, message: str
) -> None:
    server.answer = lambda _: reply
    with pytest.raises(ServiceError, match=message) as caught:
        ask()
    assert len(server.requests) == 1
    assert naps == []
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def huge(shape: tuple[int, ...], kind: int = 1) -> Any:
    """A tensor of one value that claims any size."""
    proto = tf.make_tensor_proto(np.float32(1))
    proto.dtype = kind
    proto.tensor_shape.Clear()
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (answer_of(np.ones((5, N), np.float32), "scores"), r"must hold the output `confused`"),
        (answer_of(np.ones((5, N), np.float64)), r"`confused` is no float32 tensor"),
        (answer_of(np.ones((5, N), np.float32), "encrypted"), r"`encrypted` is no int32 tensor"),
        (answer_of(np.ones((5, N + 1), np.float32)), r"shape \(5, 113\).*has 112 outputs"),
        (answer_of(np.ones((5, N), np.int32), "encrypted"), r"shape \(5, 112\).*has 112 outputs"),
        (answer_of(np.ones((4, N), np.float32)), r"gave 4 answers to 5 inputs"),
        (answer_of(huge((5, 1 << 40))), r"no float32 tensor of the size it says, of at most 6710"),
        (answer_of(huge((5, -1))), r"no float32 tensor of the size it says"),
        (answer_of(huge((5, N), kind=7)), r"no float32 tensor of the size it says"),
        (answer_of([b"x"] * 5, "ciphertext_bytes"), r"answered with ciphertexts, not with number"),
        (predict_pb2.PredictResponse(), r"must hold the output `confused`"),
    ],
    ids=itertools.count(),
)
def test_answers_that_are_none_over_grpc(
    rpc: Rpc, ask: Any, naps: list[float], answer: Any, message: str
) -> None:
    rpc.answer = lambda _: answer
    with pytest.raises(ServiceError, match=message):
        ask(url=rpc.url)
    assert len(rpc.asked) == 1
    assert naps == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("NOT_FOUND", r"NOT_FOUND: it \\x1b\[2J is so\. Check `model` and `version`\.$"),
        ("INVALID_ARGUMENT", r"INVALID_ARGUMENT: it \\x1b\[2J is so\. Check names, shapes"),
        ("UNAUTHENTICATED", r"UNAUTHENTICATED: it \\x1b\[2J is so\. Give credentials"),
        ("INTERNAL", r"^The model server at grpc://127.* answered INTERNAL: it \\x1b\[2J is so\.$"),
    ],
)
def test_refusals_over_grpc(rpc: Rpc, ask: Any, naps: list[float], code: str, message: str) -> None:
    rpc.aborts = [(grpc.StatusCode[code], "it \x1b[2J is so.")]
    with pytest.raises(ServiceError, match=message):
        ask(url=rpc.url)
    assert naps == []


def test_decrypting_what_is_no_ciphertext(server: Server, rpc: Rpc, decoder: Decoder) -> None:
    for url in (server.address, rpc.url):
        expected = pytest.raises(ServiceError, match=r"with numbers, not with ciphertexts")
        with ServingClient(url, "digits", decoder) as asking, expected:
            asking.decrypt(X)
    assert server.signatures == ["encrypted_label"]
    assert rpc.asked[0].model_spec.signature_name == "encrypted_label"


def test_ciphertexts_that_cannot_be_read(server: Server, rpc: Rpc, decoder: Decoder) -> None:
    server.answer = lambda _: Reply({"outputs": [{"b64": "YQ=="}] * 5})
    rpc.answer = lambda _: answer_of([b"a"] * 5, "ciphertext_bytes")
    for url in (server.address, rpc.url):
        expected = pytest.raises(ServiceError, match=r"cannot be read: .*wrong length: 1 bytes\.$")
        with ServingClient(url, "digits", decoder) as asking, expected:
            asking.decrypt(X)


def test_redirects_are_not_followed(server: Server, ask: Any) -> None:
    with Server("inputs", server.answer) as other:
        server.answer = lambda _: Reply(status=307, headers={"Location": other.url})
        with pytest.raises(ServiceError, match=r"HTTP 307"):
            ask()
        assert other.gets == len(other.requests) == 0


def test_an_oversized_answer(server: Server, rpc: Rpc, ask: Any) -> None:
    server.answer = lambda _: Reply(b" " * (1 << 20), chunks=256)
    rpc.answer = lambda _: answer_of(np.random.default_rng(0).normal(size=(5, 1 << 12)))
    for url in (server.address, rpc.url):
        with pytest.raises(ServiceError, match=r"answer is larger than 70000 bytes"):
            ask(url=url, max_answer_bytes=70_000)


def test_a_question_too_large_for_the_server(rpc: Rpc, ask: Any, naps: list[float]) -> None:
    x = np.zeros((1, 1 << 15), np.float32)
    with pytest.raises(ServiceError, match=r"larger than max.*Ask with a smaller `batch_size`\.$"):
        ask(x, url=rpc.url)
    assert rpc.asked == naps == []


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_silent_server(ask: Any, naps: list[float], scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServiceError, match=r"no answer within 0\.2 s"):
            ask(url=url, timeout=0.2)
    assert naps == []


def test_a_dripping_server(server: Server, ask: Any) -> None:
    """Each byte comes within the timeout, but the whole does not."""
    server.answer = lambda _: Reply(b" " * 1000, chunks=1000, pause=0.05)
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"no answer within 0\.3 s"):
        ask(timeout=0.3)
    assert time.monotonic() - start < 10


def test_versions_that_change_between_batches(server: Server, ask: Any, decoder: Decoder) -> None:
    """[b, N] in one answer, [b, 2, N] in the next."""
    shapes = iter([(2, N), (2, 2, N), (1, N)])
    server.answer = lambda _: Reply({"outputs": np.full(next(shapes), 1 / N).tolist()})
    with pytest.raises(ServiceError, match=r"differ in shape"):
        ask(batch_size=2)


def test_positions(server: Server, ask: Any, decoder: Decoder) -> None:
    """Models with labels for each position."""
    confused = np.random.default_rng(0).dirichlet(np.ones(N), (5, 2, 3)).astype(np.float32)
    server.answer = lambda _: Reply({"outputs": confused.tolist()})
    np.testing.assert_array_equal(ask(), decoder.probabilities(confused))
    with ServingClient(server.address, "digits", decoder) as asking:
        assert np.array(asking.names(X)).shape == (5, 2, 3)


def test_a_closed_client(server: Server, rpc: Rpc, decoder: Decoder) -> None:
    for url in (server.address, rpc.url):
        asking = ServingClient(url, "digits", decoder)
        asking.close()
        asking.close()
        with pytest.raises(ServiceError, match=r"This client is closed"):
            asking.predict(X)
