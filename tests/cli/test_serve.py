"""`encryip serve`: TF Serving's REST protocol, without TF Serving.

tests/client/serving and tests/serving ask the same code, locked exports and the client's part too.
"""

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import keras_encryip as ke
from keras_encryip.cli import rest_server
from keras_encryip.cli.rest_api import answer_rest
from keras_encryip.cli.rest_server import RestServer
from keras_encryip.cli.served_versions import ServedVersions
from keras_encryip.client.serving import ServingClient
from keras_encryip.formats.version_folder import versions_in


class Plain(tf.Module):
    """Signatures of every kind that the protocol knows: one input, several, bytes."""

    @tf.function(input_signature=[tf.TensorSpec([None, 2, 2], tf.float32, name="inputs")])
    def default(self, inputs: Any) -> Any:
        return {"sums": tf.reduce_sum(inputs, [1])}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 1], tf.uint8, name="count"),
            tf.TensorSpec([None], tf.bool, name="on"),
        ]
    )
    def several(self, count: Any, on: Any) -> Any:
        return {"count": count, "on": on}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="key")])
    def strings(self, key: Any) -> Any:
        return {"key_bytes": key, "word": key}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder with versions 3 and 20, and what is no version."""
    folder = tmp_path_factory.mktemp("served") / "plain"
    model = Plain()
    signatures = {name: getattr(model, name) for name in ("several", "strings")}
    tf.saved_model.save(model, str(folder / "3"), {"serving_default": model.default, **signatures})
    shutil.copytree(folder / "3", folder / "20")
    shutil.copytree(folder / "3", folder / "next")
    return folder


@contextmanager
def serving(folder: Path, name: str = "plain") -> Iterator[str]:
    versions = ServedVersions(name, partial(versions_in, folder))
    with RestServer("127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve, args=(partial(answer_rest, versions), 0.01))
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def url(base: Path) -> Iterator[str]:
    with serving(base) as url:
        yield url


def ask(url: str, body: bytes | None = None, method: str | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(url, body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def predict(url: str, request: Any, path: str = "plain") -> Any:
    status, answer = ask(f"{url}/v1/models/{path}:predict", json.dumps(request).encode())
    assert status == 200, answer
    return answer


# --- answers -------------------------------------------------------------------------------


def test_rows_and_columns(url: str) -> None:
    x = [[[1, 2], [3, 4.5]], [[0.1, 0], [0, 0]]]
    sums = [[4.0, 6.5], [0.1, 0.0]]
    for rows in (x, [{"inputs": row} for row in x]):
        assert np.allclose(predict(url, {"instances": rows})["predictions"], sums)
    for inputs in (x, {"inputs": x}):
        assert np.allclose(predict(url, {"inputs": inputs})["outputs"], sums)
    assert predict(url, {"instances": x, "signature_name": ""}) == predict(url, {"instances": x})


def test_several_inputs_and_outputs(url: str) -> None:
    rows = [{"count": [3], "on": True}, {"count": [255], "on": False}]
    chosen = {"signature_name": "several"}
    assert predict(url, {**chosen, "instances": rows}) == {"predictions": rows}
    columns = {"count": [[3], [255]], "on": [True, False]}
    assert predict(url, {**chosen, "inputs": columns}) == {"outputs": columns}


def test_strings_and_bytes(url: str) -> None:
    """Outputs whose names end in _bytes are bytes, and strings else."""
    given = [{"b64": "YWI="}, "cd"]
    answer = predict(url, {"signature_name": "strings", "inputs": {"key": given}})
    assert answer == {
        "outputs": {"key_bytes": [{"b64": "YWI="}, {"b64": "Y2Q="}], "word": ["ab", "cd"]}
    }
    (row,) = predict(url, {"signature_name": "strings", "instances": [{"b64": "YWI="}]})[
        "predictions"
    ]
    assert row == {"key_bytes": {"b64": "YWI="}, "word": "ab"}


def test_versions(url: str) -> None:
    def state(number: int) -> dict[str, Any]:
        healthy = {"error_code": "OK", "error_message": ""}
        return {"version": str(number), "state": "AVAILABLE", "status": healthy}

    model = f"{url}/v1/models/plain"
    assert ask(model) == (200, {"model_version_status": [state(20), state(3)]})
    assert ask(f"{model}/versions/3") == (200, {"model_version_status": [state(3)]})
    for path, number in (("", "20"), ("/versions/3", "3"), ("/versions/20", "20")):
        status, found = ask(f"{model}{path}/metadata")
        assert status == 200
        assert found["model_spec"] == {"name": "plain", "signature_name": "", "version": number}
        predict(url, {"instances": [[[1, 2], [3, 4]]]}, f"plain{path}")
    several = found["metadata"]["signature_def"]["signature_def"]["several"]
    shape = {"dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}], "unknown_rank": False}
    assert several["inputs"]["count"]["dtype"] == "DT_UINT8"
    assert several["inputs"]["count"]["tensor_shape"] == shape
    assert several["method_name"] == "tensorflow/serving/predict"


def test_a_version_that_does_not_load_is_left_out(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And a newer one takes over as soon as it is there."""
    folder = tmp_path / "plain"
    shutil.copytree(base / "3", folder / "3")
    (folder / "4").mkdir()
    (folder / "4" / "saved_model.pb").write_bytes(b"damaged")
    with serving(folder) as url:
        metadata = f"{url}/v1/models/plain/metadata"
        assert ask(metadata)[1]["model_spec"]["version"] == "3"
        assert "Version 4 is left out, and cannot be loaded: " in capfd.readouterr().err
        assert ask(f"{url}/v1/models/plain/versions/4")[0] == 404
        shutil.copytree(base / "3", tmp_path / "draft")
        (tmp_path / "draft").rename(folder / "5")
        assert ask(metadata)[1]["model_spec"]["version"] == "5"


# --- refusals ------------------------------------------------------------------------------

GOOD = '{"instances": [[[1, 2], [3, 4]]]}'


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("other:predict", GOOD, 404, "Servable not found for request: Latest(other)"),
        ("plain/versions/4:predict", GOOD, 404, "not found for request: Specific(plain, 4)"),
        ("plain/versions/99999999999999999999", None, 400, "Failed to convert version"),
        ("other", None, 404, "Could not find any versions of model other"),
        ("plain/versions/4", None, 404, "Could not find version 4 of model plain"),
        ("other/metadata", None, 404, "Servable not found for request: Latest(other)"),
        ("plain:predict", None, 400, "Malformed request: GET /v1/models/plain:predict"),
        ("plain", GOOD, 400, "Malformed request: POST /v1/models/plain"),
        ("../../etc/passwd", None, 400, "Malformed request"),
        ("plain:classify", GOOD, 400, "Malformed request"),
        ("plain:predict", "", 400, "JSON Parse error: The document is empty"),
        ("plain:predict", "{", 400, "JSON Parse error: Invalid value. at offset: 1"),
        ("plain:predict", "[" * 100_000, 400, "JSON Parse error"),
        ("plain:predict", "[1]", 400, "Is not object"),
        ("plain:predict", "{}", 400, "Missing 'inputs' or 'instances' key"),
        ("plain:predict", '{"inputs": 1, "instances": [1]}', 400, "only one of 'inputs' or"),
        ("plain:predict", '{"instances": 1}', 400, "Excepting 'instances' to be an list"),
        ("plain:predict", '{"instances": []}', 400, "No values in 'instances' array"),
        ("plain:predict", '{"instances": [[1, 2]]}', 400, "Input inputs has another shape: exp"),
        ("plain:predict", '{"instances": [[[1, 2], [3]]]}', 400, "list at unexpected size"),
        ("plain:predict", '{"instances": [[["1", "2"], ["3", "4"]]]}', 400, "type: float32"),
        ("plain:predict", '{"instances": [[[1, 2], [3, null]]]}', 400, "type: float32"),
        ("plain:predict", '{"instances": [[[1, 2], [3, 1e300]]]}', 400, "type: float32"),
        ("plain:predict", '{"instances": [[1], {"inputs": 1}]}', 400, "but got object at item 1"),
        ("plain:predict", '{"instances": [{"x": 1}]}', 400, "keys must be equal to: inputs"),
        ("plain:predict", '{"inputs": {"x": 1}}', 400, "Missing named input: inputs in 'inputs'"),
        (
            "plain:predict",
            '{"inputs": [1], "signature_name": "several"}',
            400,
            "expecting an object as multiple input tensors required",
        ),
        (
            "plain:predict",
            '{"inputs": {"count": [[256]], "on": [true]}, "signature_name": "several"}',
            400,
            "Input count: JSON Value is not of expected type: uint8",
        ),
        (
            "plain:predict",
            '{"inputs": {"count": [[1.0]], "on": [true]}, "signature_name": "several"}',
            400,
            "type: uint8",
        ),
        (
            "plain:predict",
            '{"inputs": {"count": [[1]], "on": [1]}, "signature_name": "several"}',
            400,
            "type: bool",
        ),
        ("plain:predict", '{"inputs": 1, "signature_name": "no"}', 400, '"no" not found in sig'),
        ("plain:predict", '{"inputs": 1, "signature_name": 5}', 400, "must be a string value"),
        (
            "plain:predict",
            '{"inputs": [{"b64": "&"}], "signature_name": "strings"}',
            400,
            "Unable to base64 decode",
        ),
        (
            "plain:predict",
            '{"inputs": [{"b64": "YQ==", "c": 1}], "signature_name": "strings"}',
            400,
            "not formatted correctly for base64",
        ),
        ("plain:predict", '{"inputs": [1], "signature_name": "strings"}', 400, "type: string"),
    ],
)
def test_refused_and_on_it_goes(
    url: str, path: str, body: str | None, status: int, words: str
) -> None:
    data = None if body is None else body.encode()
    code, answer = ask(f"{url}/v1/models/{path}", data, "GET" if data is None else "POST")
    assert (code, list(answer)) == (status, ["error"])
    assert words in answer["error"]
    assert predict(url, json.loads(GOOD)) == {"predictions": [[4.0, 6.0]]}


def test_a_value_that_is_refused_is_not_repeated(url: str) -> None:
    """It may be a key, and errors go into logs."""
    for request in (
        {"signature_name": "strings", "inputs": [{"b64": "c2VjcmV0", "c": 1}]},
        {"signature_name": "strings", "inputs": [{"b64": "c2VjcmV0&"}]},
        {"signature_name": "strings", "inputs": ["c2VjcmV0", 1]},
        {"inputs": [["c2VjcmV0"]]},
        {"instances": [{"c2VjcmV0": 1}]},
    ):
        body = json.dumps(request).encode()
        status, answer = ask(f"{url}/v1/models/plain:predict", body)
        assert status == 400
        assert "c2VjcmV0" not in answer["error"]


def test_what_is_too_large_is_read_away_and_refused(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_server, "MAX_BODY_BYTES", 1000)
    address = f"{url}/v1/models/plain:predict"
    assert ask(address, GOOD.encode() + b" " * (1000 - len(GOOD)))[0] == 200
    for more in (1, 1 << 22):
        status, answer = ask(address, GOOD.encode() + b" " * (1000 - len(GOOD) + more))
        assert status == 413
        assert answer == {"error": "The request is too large: more than 1000 bytes."}


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("Content-Length: -1", 400),
        ("Content-Length: 1e3", 400),
        ("Transfer-Encoding: chunked", 411),
        ("X: " + "a" * 70_000, 431),
    ],
    ids=["negative", "no number", "chunked", "long"],
)
def test_what_is_no_whole_request(url: str, head: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 30) as connection:
        path = "/v1/models/plain:predict"
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n".encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == status
        assert list(json.loads(response.read())) == ["error"]
    assert ask(f"{url}/v1/models/plain", method="DELETE")[0] == 501


def test_a_fault_is_an_error_of_the_server(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(ServedVersions, "predict", fail)
    body = GOOD.encode()
    assert ask(f"{url}/v1/models/plain:predict", body) == (500, {"error": "RuntimeError: broken"})


# --- the command ---------------------------------------------------------------------------


@contextmanager
def started(*arguments: str | Path) -> Iterator[tuple[str, str]]:
    """What `encryip serve` says, and its URL; ended by Ctrl-C."""
    command = [sys.executable, "-u", "-m", "keras_encryip", "serve", *map(str, arguments)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = ""
    try:
        assert running.stdout is not None
        for line in running.stdout:
            said += line
            if line.startswith("Ctrl-C"):
                break
        address = re.search(r"http://127\.0\.0\.1:[1-9]\d*(?=/v1)", said)
        assert address is not None, running.communicate()
        yield said, address[0]
    finally:
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in errors


def test_the_command(shipped: Any, digits: Any, tmp_path: Path) -> None:
    base = tmp_path / "digits"
    shutil.copytree(shipped.exported, base / "1")
    images = digits.x_test[:3]
    with started(base, "--port", "0") as (said, url):
        assert "not for production" in said
        assert "Serving digits, versions 1, at http" in said
        assert f"encryip decode {base / '1'} KEYBUNDLE" in said
        (line,) = (line for line in said.splitlines() if "| curl" in line)
        asking, _, curl = line.strip().partition(" | ")
        assert curl == f"curl -s -d @- {url}/v1/models/digits:predict"
        zeros = subprocess.run(
            asking.replace("python", sys.executable, 1), shell=True, capture_output=True, check=True
        ).stdout
        status, answer = ask(curl.rpartition(" ")[2], zeros)
        assert status == 200
        decoder = ke.Decoder.open(base / "1", shipped.bundles["alice"], shipped.passphrase)
        assert np.shape(answer["outputs"]) == (1, decoder.num_labels)
        expected = decoder.names(shipped.model.predict(images, verbose=0))
        with ServingClient(url, model="digits", decoder=decoder) as client:
            assert client.names(images) == expected
            assert client.decrypt(images).shape == (3,)


def test_encrypted_responses_of_a_single_version(shipped: Any, digits: Any, tmp_path: Path) -> None:
    """A version's folder is a model of its parent's name."""
    folder = tmp_path / "hosted" / "7"
    with shipped.own_authority(tmp_path) as authority:
        model = shipped.copy(unlock=False).unlock(authority=authority)
        ke.export_saved_model(model, folder, responses="encrypted")
    decoder = ke.Decoder.open(folder, shipped.bundles["alice"], shipped.passphrase)
    images = digits.x_test[:3]
    expected = decoder.probabilities(shipped.model.predict(images, verbose=0))
    with started(folder, "--port", "0") as (said, url):
        assert "Serving hosted, versions 7, at http" in said
        with ServingClient(url, model="hosted", decoder=decoder) as client:
            np.testing.assert_allclose(client.predict(images), expected, atol=1e-5)


def refused(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "keras_encryip", "serve", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr


def test_the_command_refuses(base: Path, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"damaged")
    assert "Error: No version can be loaded." in refused(tmp_path, "--port", "0")
    assert "choose a --name" in refused(base, "--name", "a/b")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = refused(base, "--port", str(other.getsockname()[1]))
    assert re.match(r"Error: Cannot listen at 127\.0\.0\.1:\d+: Address already in use", taken)


def test_a_version_is_what_its_files_are(base: Path, tmp_path: Path) -> None:
    """Another model in its place is served, and one whose copy is whole at last."""
    folder = tmp_path / "plain"
    shutil.copytree(base / "3", folder / "3")
    (folder / "4").mkdir()
    shutil.copy(base / "3" / "saved_model.pb", folder / "4")
    with serving(folder) as url:
        assert ask(f"{url}/v1/models/plain/metadata")[1]["model_spec"]["version"] == "3"
        shutil.copytree(base / "3", folder / "4", dirs_exist_ok=True)
        assert ask(f"{url}/v1/models/plain/metadata")[1]["model_spec"]["version"] == "4"
        shutil.rmtree(folder / "4")
        model = Plain()
        tf.saved_model.save(model, str(folder / "4"), {"serving_default": model.strings})
        request = {"instances": [{"b64": "YQ=="}]}
        answer = predict(url, request, "plain/versions/4")
        assert answer == {"predictions": [{"key_bytes": {"b64": "YQ=="}, "word": "a"}]}


def test_a_file_that_cannot_be_read_is_a_fault_too(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    def fail(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "/home/owner/served/1/saved_model.pb")

    monkeypatch.setattr(ServedVersions, "definitions", fail)
    answer = ask(f"{url}/v1/models/plain/metadata")
    assert answer == (500, {"error": "PermissionError: Permission denied"})


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6() -> None:
    with RestServer("::1", 0) as server:
        assert server.url == f"http://[::1]:{server.server_port}"
        socket.create_connection(("::1", server.server_port)).close()
