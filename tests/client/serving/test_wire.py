"""Answers over gRPC that take a hundred times their bytes in memory are refused before they do."""

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2

from keras_encryip.client.serving.grpc import GrpcTransport
from keras_encryip.client.serving.wire import takes_too_much
from keras_encryip.errors import ServiceError

MIB = 1 << 20


def field(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def output(tensor: bytes, name: bytes = b"confused") -> bytes:
    """A `PredictResponse` with one output."""
    return field(1, field(1, name) + field(2, tensor))


HOSTILE = {
    "empty strings": output(b"\x42\x00" * (4 * MIB), b"ciphertext_bytes"),
    "empty axes": output(field(2, b"\x12\x00" * (4 * MIB))),
    "empty outputs": b"\x0a\x00" * (4 * MIB),
    "outputs of one name": output(b"") * (MIB // 2),
    "small integers": output(field(10, b"\x01" * (8 * MIB)), b"encrypted"),
    "numbers not packed": output(b"\x38\x01" * (4 * MIB), b"encrypted"),
    "resources": output(b"\x72\x00" * (4 * MIB)),
    "variants": output(b"\x7a\x00" * (4 * MIB)),
}


def answers() -> Iterator[tuple[str, np.ndarray]]:
    draw = np.random.default_rng(0)
    yield "confused", draw.random((512, 704), np.float32)
    yield "confused", np.zeros((0, 704), np.float32)
    yield "confused", draw.random((1, 1), np.float32)
    yield "encrypted", draw.integers(-(2**31), 2**31, (512, 714)).astype(np.int32)
    yield "ciphertext_bytes", np.array([draw.bytes(300) for _ in range(4096)], object)


@pytest.mark.parametrize("case", list(answers()), ids=lambda case: f"{case[0]} {case[1].shape}")
@pytest.mark.parametrize("listed", [False, True])
def test_honest_answers_pass(case: tuple[str, np.ndarray], listed: bool) -> None:
    name, array = case
    answer = predict_pb2.PredictResponse()
    answer.model_spec.name, answer.model_spec.version.value = "digits", 3
    proto = tf.make_tensor_proto(array)
    if listed and array.dtype.kind in "fi":  # as TF Serving writes small tensors
        proto.ClearField("tensor_content")
        values = proto.float_val if array.dtype.kind == "f" else proto.int_val
        values[:] = array.ravel().tolist()
    answer.outputs[name].CopyFrom(proto)
    assert not takes_too_much(answer.SerializeToString())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_do_not(name: str) -> None:
    assert takes_too_much(HOSTILE[name])


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    takes_too_much(data)


ASK = """
import resource, sys, time
import numpy as np, grpc
from tensorflow_serving.apis import predict_pb2
from keras_encryip.client.serving.grpc import GrpcTransport
from urllib.parse import urlsplit
from keras_encryip.errors import ServiceError
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
asked = GrpcTransport(urlsplit(sys.argv[1]), "digits", None, timeout=60, headers={}, ca_file=None,
                      certificate=None, max_answer_bytes=64 << 20)
before, began = peak(), time.monotonic()
try:
    print(type(asked.ask({"inputs": np.zeros((1, 1), np.float32)}, "serving_default")))
except ServiceError as error:
    print(error)
print((peak() - before) >> 10, time.monotonic() - began)
"""


@pytest.mark.parametrize("name", ["empty strings", "empty axes", "small integers"])
def test_a_clients_memory(name: str) -> None:
    """Within four times the answer, over a socket; protobuf alone takes 0.3 GB and more."""

    def predict(_: bytes, __: Any) -> bytes:
        return HOSTILE[name]

    handler = grpc.method_handlers_generic_handler(
        "tensorflow.serving.PredictionService",
        {"Predict": grpc.unary_unary_rpc_method_handler(predict)},
    )
    options = [("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(1), options=options)
    server.add_generic_rpc_handlers((handler,))
    url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        ran = subprocess.run(
            [sys.executable, "-c", ASK, url], capture_output=True, text=True, timeout=120
        )
    finally:
        server.stop(None).wait()
    assert ran.returncode == 0, ran.stderr
    said, measured = ran.stdout.splitlines()
    mib, seconds = measured.split()
    assert said == ("The model server's answer is no PredictResponse of numbers or ciphertexts.")
    assert int(mib) < 4 * 8
    assert float(seconds) < 5


def test_reading_needs_no_memory() -> None:
    answer = b"\x0a\x00" * 200_000
    tracemalloc.start()
    try:
        assert takes_too_much(answer)
        assert tracemalloc.get_traced_memory()[1] < len(answer) / 10
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [[1] * 65, [0, 1 << 62, 1 << 62], [1 << 62] * 5000])
def test_shapes_that_numpy_refuses(shape: list[int]) -> None:
    answer = predict_pb2.PredictResponse()
    answer.outputs["confused"].dtype = 1
    answer.outputs["confused"].float_val.append(1)
    for size in shape:
        answer.outputs["confused"].tensor_shape.dim.add(size=size)
    transport = GrpcTransport(
        urlsplit("grpc://localhost:1"), "m", None, timeout=1, headers={}, ca_file=None,
        certificate=None, max_answer_bytes=1 << 20,
    )  # fmt: skip
    transport._predict = lambda *_, **__: answer.SerializeToString()
    with pytest.raises(ServiceError):
        transport.ask({}, "serving_default")
    transport.close()
