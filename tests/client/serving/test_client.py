"""A client and a model server over real sockets, by both protocols.

The server is tests/serving/tf_serving.py; where TF_SERVING_BINARY names tensorflow_model_server,
the same tests run against that, too.
"""

import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_encryip as ke
from keras_encryip.client import Decoder
from keras_encryip.client.serving import ServingClient
from keras_encryip.errors import RevokedKeyError, ServiceError, SignatureError, WrongModelError
from tests.serving.servers import SERVERS, Running, run_server

SCHEMES = ["http", "grpc"]


@pytest.fixture(scope="module", params=SERVERS)
def running(
    request: pytest.FixtureRequest, shipped: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    base_path = tmp_path_factory.mktemp("base") / "digits"
    shutil.copytree(shipped.exported, base_path / "1")
    with run_server(request.param, base_path) as found:
        yield found


@pytest.fixture(scope="module")
def decoder(shipped: Any) -> Decoder:
    return Decoder.open(shipped.exported, shipped.bundles["alice"], shipped.passphrase)


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_predictions_come_back_in_order(
    running: Running, shipped: Any, decoder: Decoder, digits: Any, scheme: str, batch_size: int
) -> None:
    images = digits.x_test[:20]
    expected = decoder.probabilities(shipped.model.predict(images, verbose=0))
    with running.client(scheme, decoder, batch_size=batch_size) as client:
        found = client.predict(images)
        assert found.dtype == np.float32
        assert found.shape == (20, 10)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert client.labels(images).tolist() == expected.argmax(-1).tolist()
        assert client.names(images) == [decoder.class_names[k] for k in expected.argmax(-1)]


def test_most_are_right(running: Running, decoder: Decoder, digits: Any, scheme: str) -> None:
    with running.client(scheme, decoder) as client:
        assert (client.labels(digits.x_test) == digits.y_test).mean() > 0.9
        # A label drawn for each input: near the most probable, and often another ciphertext.
        assert (client.decrypt(digits.x_test) == digits.y_test).mean() > 0.85


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_floats_of_any_width(
    running: Running, decoder: Decoder, digits: Any, scheme: str, dtype: Any
) -> None:
    images = digits.x_test[:5].astype(dtype)
    with running.client(scheme, decoder) as client:
        expected = client.predict(images.astype(np.float32))
        np.testing.assert_array_equal(client.predict({"inputs": images}), expected)


@pytest.fixture(scope="module", params=SERVERS)
def encrypted(
    request: pytest.FixtureRequest, shipped: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    base_path = tmp_path_factory.mktemp("hosted") / "digits"
    with shipped.own_authority(base_path.parent) as authority:
        model = shipped.copy(unlock=False).unlock(authority=authority)
        ke.export_saved_model(model, base_path / "1", responses="encrypted")
    with run_server(request.param, base_path) as found:
        yield found


def test_encrypted_responses(
    encrypted: Running, shipped: Any, decoder: Decoder, digits: Any, scheme: str
) -> None:
    images = digits.x_test[:10]
    codebook = encrypted.base_path / "1" / "assets.extra" / "encryip" / "codebook.json"
    own = Decoder.open(codebook, shipped.bundles["bob"], shipped.passphrase)
    expected = own.probabilities(shipped.model.predict(images, verbose=0))
    with encrypted.client(scheme, own, batch_size=4) as client:
        found = client.predict(images)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
        with pytest.raises(ServiceError, match=r"encrypted_label"):
            client.decrypt(images)
    other_version = pytest.raises(SignatureError, match=r"belongs to another model version")
    with encrypted.client(scheme, decoder) as client, other_version:
        client.predict(images)


@pytest.fixture(scope="module", params=SERVERS)
def two_inputs(
    request: pytest.FixtureRequest, digits: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, Decoder, Any]]:
    """A model of bytes and floats by name; and the protected model itself."""
    import keras

    folder = tmp_path_factory.mktemp("two")
    image = keras.Input((8, 8, 1), dtype="uint8", name="image")
    scale = keras.Input((1,), name="scale")
    pixels = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))
    joined = keras.layers.Concatenate()([pixels, scale])
    outputs = keras.layers.Dense(10, activation="softmax")(joined)
    classifier = keras.Model({"image": image, "scale": scale}, outputs)
    with ke.Authority.create(f"sqlite:///{folder}/a", "secret", scrypt_log2_n=14) as authority:
        options = {"strategy": "random", "trace_labels": 0, "homophones": 2, "teacher": False}
        model = ke.protect(classifier, authority, name="digits", **options)
        model.compile("adam", "sparse_categorical_crossentropy")
        feed = {
            "image": (digits.x * 255).astype(np.uint8),
            "scale": np.ones((len(digits.x), 1), np.float32),
        }
        model.fit(feed, digits.y, epochs=1, verbose=0)
        ke.export_saved_model(model, folder / "digits" / "1")
        authority.issue("alice", folder / "alice", passphrase="secret", scrypt_log2_n=14)
    decoder = Decoder.open(folder / "digits" / "1", folder / "alice", "secret")
    with run_server(request.param, folder / "digits") as found:
        yield found, decoder, model


def test_inputs_by_name(two_inputs: Any, digits: Any, scheme: str) -> None:
    running, decoder, model = two_inputs
    images = (digits.x_test[:9] * 255).astype(np.uint8)
    x = {"image": images, "scale": np.linspace(0, 1, 9, dtype=np.float32)[:, None]}
    expected = decoder.probabilities(model.predict(x, verbose=0))
    with running.client(scheme, decoder, batch_size=4) as client:
        np.testing.assert_allclose(client.predict(x), expected, atol=1e-5)
        with pytest.raises(ServiceError, match=r"image"):
            client.predict({"scale": x["scale"]})
        with pytest.raises(ServiceError, match=r"[Cc]heck names, shapes and types of the inputs"):
            client.predict({**x, "image": images / 255})


# --- what the server refuses ---------------------------------------------------------------


def test_an_unknown_model(running: Running, decoder: Decoder, digits: Any, scheme: str) -> None:
    message = r"Servable not found for request: Specific\(other, 1\)"
    expected = pytest.raises(ServiceError, match=message)
    with running.client(scheme, decoder, model="other") as client, expected as caught:
        client.predict(digits.x_test[:1])
    assert "Check `model`" in str(caught.value)


def test_an_unknown_version(running: Running, decoder: Decoder, digits: Any, scheme: str) -> None:
    expected = pytest.raises(ServiceError, match=r"not found for request: Specific\(digits, 77\)")
    with running.client(scheme, decoder, version=77) as client, expected:
        client.predict(digits.x_test[:1])


def test_another_shape(running: Running, decoder: Decoder, digits: Any, scheme: str) -> None:
    expected = pytest.raises(ServiceError, match=r"(?s)(400|INVALID).*Check names, shapes")
    with running.client(scheme, decoder) as client, expected as caught:
        client.predict(digits.x_test[:2, :5])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_the_protocols_at_each_others_port(running: Running, decoder: Decoder, digits: Any) -> None:
    rest, rpc = (running.urls[scheme].rpartition(":")[2] for scheme in SCHEMES)
    for url in (f"http://127.0.0.1:{rpc}", f"grpc://127.0.0.1:{rest}"):
        expected = pytest.raises(ServiceError, match=r"^The model server at ")
        with ServingClient(url, "digits", decoder, retries=0) as client, expected:
            client.predict(digits.x_test[:1])


# --- versions ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SERVERS)
def test_a_new_version_takes_over(
    kind: str, shipped: Any, decoder: Decoder, digits: Any, tmp_path: Path
) -> None:
    base_path, draft = tmp_path / "digits", tmp_path / "draft"
    shutil.copytree(shipped.exported, base_path / "1")
    shutil.copytree(shipped.exported, draft)
    with run_server(kind, base_path) as running, ExitStack() as stack:
        images = digits.x_test[:3]
        clients = [
            stack.enter_context(running.client(scheme, decoder, version=version))
            for scheme in SCHEMES
            for version in ("latest", 1, 2)
        ]
        expected = clients[0].predict(images)
        np.testing.assert_array_equal(clients[1].predict(images), expected)
        with pytest.raises(ServiceError, match=r"Specific\(digits, 2\)"):
            clients[2].predict(images)
        draft.rename(base_path / "2")
        running.wait_for(2)
        for latest, _, second in (clients[:3], clients[3:]):
            np.testing.assert_allclose(latest.predict(images), expected, atol=1e-5)
            np.testing.assert_allclose(second.predict(images), expected, atol=1e-5)


@pytest.mark.parametrize("kind", SERVERS)
def test_revocation_in_the_field(kind: str, shipped: Any, digits: Any, tmp_path: Path) -> None:
    """A server that runs picks up the rotated version; the revoked user is left behind."""
    shutil.copy(shipped.url.removeprefix("sqlite:///"), tmp_path / "a.authority")
    base_path = tmp_path / "digits"
    shutil.copytree(shipped.exported, base_path / "1")

    def opened(user: str, version: int) -> Decoder:
        return Decoder.open(base_path / str(version), shipped.bundles[user], shipped.passphrase)

    def right(running: Running, scheme: str, decoder: Decoder, version: Any) -> float:
        with running.client(scheme, decoder, version=version) as client:
            return float((client.labels(digits.x_test) == digits.y_test).mean())

    with (
        run_server(kind, base_path) as running,
        ke.Authority.open(f"sqlite:///{tmp_path}/a.authority", shipped.passphrase) as authority,
    ):
        old = {user: opened(user, 1) for user in ("alice", "bob")}
        assert all(right(running, "http", decoder, None) > 0.9 for decoder in old.values())
        authority.revoke("bob")
        ke.rotate_codebook(base_path / "1", base_path / "2", authority=authority)
        running.wait_for(2)
        for scheme in SCHEMES:
            assert right(running, scheme, opened("alice", 2), 2) > 0.9
            with pytest.raises(WrongModelError, match="of another version of model 'digits'"):
                right(running, scheme, old["bob"], "latest")
            for version in (1, None):  # whoever asks for his version is told
                with pytest.raises(ServiceError, match=r"Specific\(digits, 1\)"):
                    right(running, scheme, old["bob"], version)
    with pytest.raises(RevokedKeyError, match="revoked before this model version"):
        opened("bob", 2)


# --- the calls of docs/guides/application.md, and what else the server answers --------------


def test_the_documented_python(
    running: Running,
    shipped: Any,
    decoder: Decoder,
    digits: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = Path(__file__).parents[3] / "docs" / "guides" / "application.md"
    section = page.read_text(encoding="utf-8").split("## The client")[1]
    section = section.split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "served").symlink_to(shipped.folder)
    (tmp_path / "alice.keybundle").symlink_to(shipped.bundles["alice"])
    monkeypatch.chdir(tmp_path)
    names = {"images": digits.x_test[:4], "passphrase": shipped.passphrase}
    code = "\n".join(blocks).replace("decoder.names(confused)", "found = decoder.names(confused)")
    for port, scheme in (("8501", "http"), ("8500", "grpc")):
        assert f"localhost:{port}" in code
        code = code.replace(f"localhost:{port}", running.urls[scheme].partition("://")[2])
    exec(code, names)
    assert names["found"] == decoder.names(shipped.model.predict(digits.x_test[:4], verbose=0))


def test_rows_as_of_the_documented_curl(
    running: Running, shipped: Any, decoder: Decoder, digits: Any
) -> None:
    """docs/guides/application.md: `curl … | encryip decode`."""
    from keras_encryip.formats.responses import parse_response

    def post(**request: Any) -> Any:
        data = json.dumps({"instances": digits.x_test[:4].tolist(), **request}).encode()
        url = f"{running.urls['http']}/v1/models/digits:predict"
        with urllib.request.urlopen(url, data, timeout=30) as answer:
            return parse_response(answer.read())

    expected = shipped.model.predict(digits.x_test[:4], verbose=0)
    np.testing.assert_allclose(post(), expected, atol=1e-5)
    assert len(decoder.decrypt(post(signature_name="encrypted_label"))) == 4


def test_metadata(running: Running, decoder: Decoder) -> None:
    url = f"{running.urls['http']}/v1/models/digits/metadata"
    with urllib.request.urlopen(url, timeout=30) as answer:
        found = json.load(answer)
    signatures = found["metadata"]["signature_def"]["signature_def"]
    assert {"serving_default", "encrypted_label"} <= set(signatures)
    shape = signatures["serving_default"]["outputs"]["confused"]["tensor_shape"]["dim"]
    assert [int(dim["size"]) for dim in shape] == [-1, decoder.num_labels]


def test_metadata_and_status_over_grpc(running: Running, decoder: Decoder) -> None:
    import grpc
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_service_pb2_grpc,
        prediction_service_pb2_grpc,
    )

    with grpc.insecure_channel(running.urls["grpc"].removeprefix("grpc://")) as channel:
        question = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        question.model_spec.name = "digits"
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        packed = stub.GetModelMetadata(question, timeout=30).metadata["signature_def"]
        signatures = get_model_metadata_pb2.SignatureDefMap()
        assert packed.Unpack(signatures)
        outputs = signatures.signature_def["serving_default"].outputs
        assert outputs["confused"].tensor_shape.dim[1].size == decoder.num_labels
        status = get_model_status_pb2.GetModelStatusRequest()
        status.model_spec.name = "digits"
        answer = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status, timeout=30)
        assert [state.version for state in answer.model_version_status] == [1]
