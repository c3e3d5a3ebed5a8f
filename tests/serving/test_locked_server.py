"""Locked exports behind TF Serving's protocols: REST and gRPC."""

import base64
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

import keras_encryip as ke
from keras_encryip.client import unlock_key
from keras_encryip.client.serving import ServingClient
from keras_encryip.formats.lock import read_lock
from tests.serving.servers import SERVERS, Running, run_server

OTHER = bytes(range(32))


class Place:
    """The shipped model, locked, behind a server, and the plain export's answers."""

    def __init__(self, shipped: Any, folder: Path) -> None:
        self.shipped, self.folder = shipped, folder
        shutil.copy(shipped.url.removeprefix("sqlite:///"), folder / "a.authority")
        self.authority = ke.Authority.open(folder / "a.authority", shipped.passphrase)
        model = shipped.copy(unlock=False).unlock(authority=self.authority)
        self.key_file = folder / "keys" / "digits.key"
        self.key_file.parent.mkdir()
        self.locked = folder / "locked" / "1"
        ke.export_saved_model(model, self.locked, weights="locked", key_file=self.key_file)
        self.key = unlock_key(self.locked, shipped.bundles["alice"], shipped.passphrase)
        self.decoder = ke.Decoder.open(self.locked, shipped.bundles["alice"], shipped.passphrase)
        plain = tf.saved_model.load(str(shipped.exported)).signatures["serving_default"]
        self.expected: Callable[[np.ndarray], np.ndarray] = lambda x: np.asarray(
            plain(inputs=tf.constant(x))["confused"]
        )


@pytest.fixture(scope="module")
def place(shipped: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(shipped, tmp_path_factory.mktemp("place"))
    yield place
    place.authority.close()


@pytest.fixture(params=SERVERS)
def server(place: Place, request: pytest.FixtureRequest) -> Iterator[Running]:
    with run_server(request.param, place.locked.parent) as server:
        yield server


def post(server: Running, request: dict[str, Any]) -> Any:
    """The answer, or the error's text."""
    body = urllib.request.Request(
        f"{server.urls['http']}/v1/models/digits:predict", json.dumps(request).encode()
    )
    try:
        with urllib.request.urlopen(body, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)["error"]


def in_base64(key: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(key).decode()}


WAYS: dict[str, Callable[[bytes], dict[str, Any]]] = {
    "named rows": lambda key: {"instances": [{"key_bytes": in_base64(key)}]},
    "rows": lambda key: {"instances": [in_base64(key)]},
    "named column": lambda key: {"inputs": {"key_bytes": in_base64(key)}},
    "column": lambda key: {"inputs": [in_base64(key)]},
}


@pytest.mark.parametrize("way", WAYS)
def test_rest(place: Place, server: Running, digits: Any, way: str) -> None:
    x = digits.x_test[:3]
    told = post(server, {"instances": x.tolist()})
    assert f"This model is locked. Put its key at {place.key_file}" in told
    unlock = {"signature_name": "unlock"}
    assert "not the key of this version" in post(server, unlock | WAYS[way](OTHER))
    assert "another length" in post(server, unlock | WAYS[way](place.key[:31]))
    assert "This model is locked" in post(server, {"instances": x.tolist()})
    opened = post(server, unlock | WAYS[way](place.key))
    assert list(opened.values()) in ([[True]], [True])
    answer = np.array(post(server, {"instances": x.tolist()})["predictions"], np.float32)
    np.testing.assert_array_equal(answer, place.expected(x))
    with ServingClient(server.urls["http"], model="digits", decoder=place.decoder) as client:
        assert client.names(x) == place.decoder.names(place.expected(x))


def test_grpc(place: Place, server: Running, digits: Any) -> None:
    x = digits.x_test[:3]

    def predict(signature: str, **inputs: Any) -> Any:
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "digits", signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        with grpc.insecure_channel(server.urls["grpc"].removeprefix("grpc://")) as channel:
            return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request)

    for inputs, message in (
        ({"signature": "serving_default", "inputs": x}, "This model is locked"),
        ({"signature": "encrypted_label", "inputs": x}, "This model is locked"),
        ({"signature": "unlock", "key_bytes": [OTHER]}, "not the key of this version"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            predict(**inputs)
        assert message in caught.value.details()
    predict("unlock", key_bytes=[place.key])
    answer = tf.make_ndarray(predict("serving_default", inputs=x).outputs["confused"])
    np.testing.assert_array_equal(answer, place.expected(x))


@pytest.mark.long
@pytest.mark.parametrize("kind", SERVERS)
def test_a_version_with_another_key_leaves_the_one_before(
    place: Place, digits: Any, tmp_path: Path, kind: str
) -> None:
    """The key file is of version 1; version 2 does not load, and version 1 goes on."""
    x = digits.x_test[:3]
    served = tmp_path / "digits"
    shutil.copytree(place.locked, served / "1")
    place.key_file.write_bytes(place.key)
    try:
        with (
            run_server(kind, served) as server,
            ServingClient(server.urls["http"], model="digits", decoder=place.decoder) as client,
        ):
            expected = place.decoder.probabilities(place.expected(x))
            np.testing.assert_array_equal(client.predict(x), expected)
            ke.rotate_codebook(served / "1", served / "2", authority=place.authority)
            np.testing.assert_array_equal(client.predict(x), expected)
            lock = read_lock(served / "2")
            place.key_file.write_bytes(lock.content_key(place.authority.keys.run_master))
        shutil.rmtree(served / "1")  # else a server is expected to say that it serves it
        (served / "2").rename(served / "1")
        with run_server(kind, served) as server:
            bundle = place.shipped.bundles["alice"]
            decoder = ke.Decoder.open(served / "1", bundle, place.shipped.passphrase)
            with ServingClient(server.urls["http"], model="digits", decoder=decoder) as client:
                expected = place.decoder.labels(place.expected(x))
                assert client.labels(x).tolist() == expected.tolist()
    finally:
        place.key_file.unlink()
