"""A model server for real programs: exported models over HTTP, as in TF Serving's REST API."""

import json
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

import keras_encryip as ke
from keras_encryip.formats.key_pair import write_key_pair

ROOT = Path(__file__).parents[2]
PASSPHRASE = "correct hörse, battery & <staple>"
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "néuf"]
USERS = ("alice", "bob")


@dataclass(frozen=True)
class Served:
    """Two exports of one model, which bob may not read, and the users' bundles.

    Carol's is made to her own public key; `own_passphrase` opens her private key's file.
    """

    folder: Path
    passphrase: str = PASSPHRASE
    own_passphrase: str = "a passphrase of carol's own, ü"
    names: tuple[str, ...] = tuple(NAMES)

    def bundle(self, user: str) -> Path:
        return self.folder / f"{user}.keybundle"

    @property
    def private_key(self) -> Path:
        return self.folder / "carol.private.pem"

    def export(self, name: str) -> Path:
        return self.folder / name / "1"

    def codebook(self, name: str) -> Path:
        return self.export(name) / "assets.extra" / "encryip" / "codebook.json"


@pytest.fixture(scope="session")
def served(
    digits: Any, new_classifier: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    import keras

    found = Served(tmp_path_factory.mktemp("served"))
    url = f"sqlite:///{found.folder}/acme.authority"
    with ke.Authority.create(url, PASSPHRASE, scrypt_log2_n=14) as authority:
        options = {"class_names": NAMES, "homophones": 4, "trace_labels": 8}
        model = ke.protect(new_classifier(), authority, name="digits", **options)
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
        model.fit(digits.x, digits.y, batch_size=64, epochs=16, verbose=0)
        for user in USERS:
            authority.issue(user, found.bundle(user), passphrase=PASSPHRASE, scrypt_log2_n=14)
        public = found.folder / "carol.public.pem"
        public_key = write_key_pair(found.private_key, public, found.own_passphrase)
        authority.issue("carol", found.bundle("carol"), public_key=public_key)
        authority.revoke("bob")
        ke.export_saved_model(model, found.export("digits"))
        ke.export_saved_model(model, found.export("hosted"), responses="encrypted")
        yield found


@dataclass
class ModelServer:
    """Answers `:predict` with the exported models, and serves this repository's files.

    Attributes:
        url: where it listens.
        requests: method, path and body of all requests, in order.
    """

    served: Served
    url: str = ""
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)

    def predict(self, path: str, body: bytes) -> dict[str, Any]:
        """One answer, in row format."""
        import tensorflow as tf

        name = path.removeprefix("/v1/models/").removesuffix(":predict")
        if name not in ("digits", "hosted"):
            return {"error": f"Servable not found for request: Latest({name})"}
        request = json.loads(body)
        model = tf.saved_model.load(str(self.served.export(name)))
        signature = model.signatures[request.get("signature_name", "serving_default")]
        inputs = tf.constant(np.array(request["instances"], np.float32))
        (rows,) = (tensor.numpy() for tensor in signature(inputs=inputs).values())
        if rows.dtype == object:
            return {"predictions": [{"b64": b64encode(row).decode()} for row in rows]}
        return {"predictions": rows.tolist()}


@pytest.fixture(scope="module")
def server(served: Served) -> Iterator[ModelServer]:
    model_server = ModelServer(served)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(ROOT))

        def do_GET(self) -> None:
            model_server.requests.append(("GET", self.path, b""))
            super().do_GET()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            model_server.requests.append(("POST", self.path, body))
            answer = model_server.predict(self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(404 if "error" in answer else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        model_server.url = f"http://127.0.0.1:{listening.server_port}"
        thread = Thread(target=listening.serve_forever)
        thread.start()
        yield model_server
        listening.shutdown()
        thread.join()
