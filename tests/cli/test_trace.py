"""`encryip trace`, `verify-evidence` and `key enroll`, through the real entry point."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from json import dumps, loads
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_encryip as ke
from keras_encryip.cli import trace
from keras_encryip.errors import ArgumentError

SECRETS = {"ENCRYIP_AUTHORITY_PASSPHRASE": "owner", "ENCRYIP_BUNDLE_PASSPHRASE": "user"}
CHEAP = 14
PRIVATE_KEY = ke.X25519PrivateKey.generate()


def encryip(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from keras_encryip.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **SECRETS, "COLUMNS": "200"},
    )


def ok(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def shop(digits: Any, new_classifier: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.authority with ann and ben, a trained model, its export, and a copy for ben."""
    folder = tmp_path_factory.mktemp("shop")
    url = f"sqlite:///{folder}/a.authority"
    with ke.Authority.create(url, "owner", scrypt_log2_n=CHEAP) as authority:
        model = ke.protect(
            new_classifier(), authority, name="digits", homophones=4, trace_labels=64
        )
        import keras

        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
        model.fit(digits.x, digits.y, batch_size=64, epochs=12, verbose=0)
        for user in ("ann", "ben"):
            authority.issue(
                user, folder / f"{user}.keybundle", passphrase="user", scrypt_log2_n=CHEAP
            )
        ke.export_saved_model(model, folder / "digits" / "1")
        ke.export_saved_model(model, folder / "ben's", recipient="ben")
        authority.issue("cleo", folder / "cleo.keybundle", public_key=PRIVATE_KEY.public_key)
        model.save(folder / "digits.keras")
        (folder / "cleo.private.pem").write_bytes(PRIVATE_KEY.to_pem("user"))
        (folder / "issuer").write_text(authority.issuer.hex())
    return folder


@pytest.fixture(scope="module")
def served(shop: Path) -> Iterator[str]:
    """TF Serving's REST API: `digits` answers in confused labels, `leaked` in what ben reads."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(shop / "digits" / "1"))
    decoder = ke.Decoder.open(shop / "digits" / "1", shop / "ben.keybundle", "user")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = loads(self.rfile.read(int(self.headers["Content-Length"])))
            inputs = tf.constant(body["instances"], tf.float32)
            confused = loaded.signatures["serving_default"](inputs)["confused"].numpy()
            leaked = "/leaked:" in self.path
            rows = decoder.probabilities(confused) if leaked else confused
            answer = dumps({"predictions": rows.tolist()}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/models"
    server.shutdown()
    server.server_close()


def test_a_bundle_is_traced_saved_and_verified(shop: Path, tmp_path: Path) -> None:
    report, picture, evidence = tmp_path / "r.json", tmp_path / "r.png", tmp_path / "case"
    command = ("trace", "key", shop / "a.authority", shop / "ann.keybundle", "--open")
    options = ("--save", report, "--save", picture, "--evidence", evidence)
    assert "bundle: guilty: ann" in ok(encryip(*command, *options))
    assert ke.TraceReport.read(report).guilty[0].subject == "ann"
    assert picture.read_bytes().startswith(b"\x89PNG")
    issuer = (shop / "issuer").read_text()
    shown = ok(encryip("verify-evidence", evidence, "--issuer", issuer))
    assert shown.startswith("guilty: ann, bundle, p = ")
    facts = loads(ok(encryip("verify-evidence", evidence, "--issuer", issuer, "--json")))
    ((name, p_value),) = (each.values() for each in facts["guilty"])
    assert (name, facts["kind"], facts["issuer"]) == ("ann", "bundle", issuer)
    assert p_value <= 1e-6
    assert facts["issuer_expected"] is True
    assert "pass --bundle or --issuer" in ok(encryip("verify-evidence", evidence))
    refused = encryip("verify-evidence", evidence, "--issuer", "00" * 32)
    assert refused.returncode == 1
    assert "another authority" in refused.stderr


@pytest.mark.parametrize("user", ["ann", "cleo"])
def test_a_sealed_bundle_names_its_user_and_convicts_nobody(
    shop: Path, tmp_path: Path, user: str
) -> None:
    """Others saw it on its way. The passphrase in the environment is not tried."""
    command = ("trace", "key", shop / "a.authority", shop / f"{user}.keybundle")
    shown = ok(encryip(*command))
    assert f"bundle: identified: {user}" in shown
    assert "guilty" not in shown.replace("would prove guilt", "")
    refused = encryip(*command, "--evidence", tmp_path / "case")
    assert refused.returncode == 1
    assert "accuses nobody" in refused.stderr
    assert not (tmp_path / "case").exists()


@pytest.mark.long
def test_a_bundle_is_opened_with_what_leaked_beside_it(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "right").write_text("user\n")
    (tmp_path / "wrong").write_text("guess\n")
    command = ("trace", "key", shop / "a.authority")
    right, wrong = (("--bundle-passphrase-file", tmp_path / f) for f in ("right", "wrong"))
    found = ok(encryip(*command, shop / "ben.keybundle", *right))
    assert "bundle: guilty: ben" in found
    assert (
        "The passphrase does not open" in encryip(*command, shop / "ben.keybundle", *wrong).stderr
    )
    own = ("--private-key", shop / "cleo.private.pem")
    assert "bundle: guilty: cleo" in ok(encryip(*command, shop / "cleo.keybundle", *own))
    asked = encryip(*command, shop / "cleo.keybundle", "--open")
    assert "Pass its private key with --private-key" in asked.stderr
    assert "Leave out --private-key" in encryip(*command, shop / "ben.keybundle", *own).stderr


def test_a_raw_key_and_a_table_are_traced(shop: Path, tmp_path: Path) -> None:
    key = ke.KeyBundle.read(shop / "ben.keybundle").unlock("user").reader.point
    (tmp_path / "key.txt").write_text(key.secret_bytes().hex() + "\n")
    found = ok(encryip("trace", "key", shop / "a.authority", tmp_path / "key.txt"))
    assert "key: guilty: ben" in found
    key = ("trace", "key", shop / "a.authority", tmp_path / "key.txt", "--json")
    facts = loads(ok(encryip(*key)))
    assert (facts["verdict"], facts["guilty"], facts["identified"]) == ("guilty", ["ben"], [])
    assert facts["suspects"][0]["subject"] == "ben"
    assert facts["evidence"]["on_the_owner_s_polynomial"] == "reading"
    decoder = ke.Decoder.open(shop / "digits" / "1", shop / "ben.keybundle", "user")
    np.save(tmp_path / "table.npy", decoder.secret_table())
    command = ("trace", "key", shop / "a.authority", tmp_path / "table.npy")
    assert "table of 'digits': guilty: ben" in ok(encryip(*command, "--model", "digits"))
    assert "name it with --model" in encryip(*command).stderr


def test_weights_are_traced(shop: Path) -> None:
    command = ("trace", "weights", shop / "a.authority", shop / "ben's", "--model", "digits")
    shown = ok(encryip(*command, "--reference", shop / "digits.keras"))
    assert "weights of 'digits': guilty: ben" in shown
    assert "as exported" in shown


def test_a_service_is_traced(shop: Path, served: str, tmp_path: Path) -> None:
    command = ("trace", "service", shop / "a.authority", f"{served}/leaked", "--model", "digits")
    transcript, evidence = tmp_path / "t.json", tmp_path / "case"
    options = ("--transcript", transcript, "--evidence", evidence)
    assert "service of 'digits': guilty: ben" in ok(encryip(*command, *options))
    assert transcript.is_file()
    issuer = (shop / "issuer").read_text()
    shown = ok(encryip("verify-evidence", evidence, "--issuer", issuer))
    assert shown.startswith("guilty: ben, service, p = ")


def test_a_service_of_confused_labels_is_ours_and_names_nobody(shop: Path, served: str) -> None:
    """The key that reads them is the tracer's own choice, and its user no suspect."""
    command = ("trace", "service", shop / "a.authority", f"{served}/digits", "--model", "digits")
    decoding = ("--decode-model", shop / "digits" / "1", "--bundle", shop / "ben.keybundle")
    shown = ok(encryip(*command, *decoding))
    assert "service of 'digits': inconclusive" in shown
    assert "ben, who is therefore not a suspect" in shown
    assert re.search(r"this is the model\W+yes", shown)
    assert "needs both --decode-model and --bundle" in encryip(*command, *decoding[:2]).stderr
    wrong = encryip(*command, *decoding, "--private-key", shop / "cleo.private.pem")
    assert "Leave out --private-key" in wrong.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc", "must be 128 hexadecimal digits"),
        (b"\xfe\xfe", "is not UTF-8 text"),
        (b"-----BEGIN", "not a whole key bundle"),
    ],
    ids=["hex", "bytes", "bundle"],
)
def test_what_is_no_key_is_refused(
    shop: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "found").write_bytes(content)
    finished = encryip("trace", "key", shop / "a.authority", tmp_path / "found")
    assert finished.returncode == 1
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr


def test_names_are_enrolled_from_a_file(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cem\n\n dora \n", encoding="utf-8")
    command = ("key", "enroll", shop / "a.authority", tmp_path / "names.txt")
    assert "Enrolled 2 users." in ok(encryip(*command))
    listed = ok(encryip("key", "list", shop / "a.authority"))
    assert listed.count("pending") == 2
    assert "dora" in listed
    again = encryip(*command)
    assert again.returncode == 1
    assert "'cem'" in again.stderr


def test_the_answer_is_there_though_saving_fails(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENCRYIP_AUTHORITY_PASSPHRASE", "owner")

    def full(*_: object) -> None:
        raise ArgumentError("No space left on device.")

    monkeypatch.setattr(ke.TraceReport, "save", full)
    with pytest.raises(ArgumentError, match="No space"):
        trace.trace_key(
            str(shop / "a.authority"), shop / "ann.keybundle", save=[tmp_path / "r.json"]
        )
    assert "identified: ann" in capsys.readouterr().out
