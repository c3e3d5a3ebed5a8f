"""`responses="encrypted"`: only key holders read what the server answers."""

import json
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression

import keras_encryip as ke
from keras_encryip.errors import ArgumentError, RevokedKeyError, SignatureError
from keras_encryip.formats.manifest import RESPONSE_KEY_INSIDE as WARNING
from keras_encryip.formats.responses import parse_response, read_outputs


@pytest.fixture(scope="module")
def hosted(shipped: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Hosted"]:
    """The shipped model, exported for the owner's server, with an authority of its own copy."""
    folder = tmp_path_factory.mktemp("hosted")
    shutil.copy(shipped.url.removeprefix("sqlite:///"), folder / "a.authority")
    with ke.Authority.open(f"sqlite:///{folder}/a.authority", shipped.passphrase) as authority:
        model = shipped.copy(unlock=False).unlock(authority=authority)
        path = folder / "digits" / "1"
        ke.export_saved_model(model, path, responses="encrypted")
        yield Hosted(shipped, authority, model, path)


class Hosted:
    def __init__(self, shipped: Any, authority: Any, model: Any, path: Path) -> None:
        self.shipped, self.authority, self.model, self.path = shipped, authority, model, path
        self.signatures = tf.saved_model.load(str(path)).signatures

    def ask(self, x: np.ndarray) -> np.ndarray:
        found = self.signatures["serving_default"](inputs=tf.constant(x))
        assert set(found) == {"encrypted"}
        return np.asarray(found["encrypted"])

    def decoder(self, user: str = "alice", path: Path | None = None) -> ke.Decoder:
        bundle = self.shipped.bundles[user]
        return ke.Decoder.open(path or self.path, bundle, self.shipped.passphrase)


def test_key_holders_read_what_the_model_says(hosted: Hosted, digits: Any) -> None:
    assert set(hosted.signatures) == {"serving_default"}  # a readable label would tell classes
    expected = hosted.model.predict(digits.x_test, verbose=0)
    decoder = hosted.decoder()
    for rows in (1, 7, len(digits.x_test)):
        found = hosted.ask(digits.x_test[:rows])
        assert found.dtype == np.int32
        assert found.shape == (rows, decoder.num_labels + 10)
        np.testing.assert_allclose(
            decoder.probabilities(found), decoder.probabilities(expected[:rows]), atol=1e-6
        )
    labels = decoder.labels(hosted.ask(digits.x_test))
    assert (labels == digits.y_test).mean() > 0.9
    best, _ = decoder.top_k(found, 3)
    assert best.shape == (len(digits.x_test), 3)


def test_equal_inputs_never_give_equal_answers(hosted: Hosted, digits: Any) -> None:
    same = np.repeat(digits.x_test[:1], 200, axis=0)
    words = np.concatenate([hosted.ask(same), hosted.ask(same)])
    assert len(np.unique(words, axis=0)) == 400
    assert len(np.unique(words[:, 6:10], axis=0)) == 400


def test_who_owns_labels_learns_nothing(hosted: Hosted, digits: Any) -> None:
    """1,000 labelled answers teach a classifier what 1,000 random ones would: chance."""
    bits = np.unpackbits(
        np.ascontiguousarray(hosted.ask(digits.x[:1400])).view(np.uint8), axis=1
    ).astype(np.float32)
    probe = LogisticRegression(C=1e-3, max_iter=50).fit(bits[:1000], digits.y[:1000])
    right = (probe.predict(bits[1000:]) == digits.y[1000:1400]).sum()
    assert right < 40 + 5 * 6  # of 400: chance, and five standard deviations
    confused = hosted.model.predict(digits.x[:1400], verbose=0)
    control = LogisticRegression(max_iter=200).fit(confused[:1000], digits.y[:1000])
    assert control.score(confused[1000:], digits.y[1000:1400]) > 0.8


@pytest.mark.long
def test_the_host_process_needs_no_package(hosted: Hosted, digits: Any, tmp_path: Path) -> None:
    """A process with TensorFlow alone serves it; two starts do not repeat a nonce."""
    code = """
import sys, numpy as np, tensorflow as tf
call = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
np.save(sys.argv[3], call(inputs=tf.constant(np.load(sys.argv[2])))["encrypted"].numpy())
assert not any(name.startswith(("keras_encryip", "Crypto")) for name in sys.modules)
"""
    np.save(tmp_path / "x.npy", digits.x_test[:4])
    found = []
    for start in range(2):
        out = tmp_path / f"{start}.npy"
        arguments = [str(hosted.path), str(tmp_path / "x.npy"), str(out)]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=tmp_path)
        found.append(read_outputs(out))
    decoder = hosted.decoder()
    np.testing.assert_allclose(*map(decoder.probabilities, found), atol=1e-6)
    assert len(np.unique(np.concatenate(found)[:, :6], axis=0)) == 8


def test_over_json(hosted: Hosted, digits: Any) -> None:
    found = hosted.ask(digits.x_test[:5])
    decoder = hosted.decoder()
    for body in ({"predictions": found.tolist()}, {"outputs": {"encrypted": found.tolist()}}):
        read = parse_response(json.dumps(body))
        assert decoder.names(read) == decoder.names(found)


def test_revoked_users_of_other_versions_and_tampering(
    hosted: Hosted, digits: Any, tmp_path: Path
) -> None:
    found = hosted.ask(digits.x_test[:3])
    decoder = hosted.decoder()
    changed = found.copy()
    changed[1, 20] ^= 1
    with pytest.raises(SignatureError, match="cannot be opened with this key, belongs to another"):
        decoder.probabilities(changed)
    with pytest.raises(ArgumentError, match="must have a last axis of"):
        decoder.probabilities(found[:, :-1])
    # Rows stand for themselves (docs/formats/responses.md): their order is the server's word.
    assert decoder.names(found[::-1]) == decoder.names(found)[::-1]
    ordinary = hosted.decoder(path=hosted.shipped.exported)
    with pytest.raises(SignatureError, match="another model version"):
        ordinary.probabilities(found)
    hosted.authority.revoke("bob")
    ke.export_saved_model(hosted.model, tmp_path / "2", responses="encrypted")
    with pytest.raises(RevokedKeyError):
        hosted.decoder("bob", tmp_path / "2")
    call = tf.saved_model.load(str(tmp_path / "2")).signatures["serving_default"]
    later = call(inputs=tf.constant(digits.x_test[:3]))["encrypted"].numpy()
    with pytest.raises(SignatureError):  # bob's decoder of before
        hosted.decoder("bob").probabilities(later)
    assert hosted.decoder(path=tmp_path / "2").names(later) == decoder.names(found)


def test_only_this_folder_holds_the_key_and_says_so(hosted: Hosted, tmp_path: Path) -> None:
    manifest = ke.verify_export(hosted.path, issuer=hosted.authority.issuer)
    assert manifest.warning == WARNING
    assert WARNING.isupper()
    text = (hosted.path / "assets.extra" / "encryip" / "manifest.json").read_text()
    assert WARNING in text
    key = hosted.decoder()._response_key
    graph = (hosted.path / "saved_model.pb").read_bytes()
    assert key[:16] in graph  # as two constants, or one
    assert not ke.verify_export(hosted.shipped.exported).warning
    # An ordinary export that follows has the newest codebook, without its key.
    ke.export_saved_model(hosted.model, tmp_path / "ordinary")
    hosted.model.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as file:
        file.extractall(tmp_path / "m")
    newest = hosted.decoder(path=tmp_path / "ordinary")._response_key
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(
        part in data for k in (key, newest) for part in (k[:16], k[16:]) for data in files
    )
    assert stat.S_IMODE(hosted.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "ordinary").stat().st_mode) & 0o055
    own = ke.Decoder.open(
        hosted.shipped.exported, hosted.shipped.bundles["alice"], hosted.shipped.passphrase
    )._response_key
    ordinary = [p.read_bytes() for p in hosted.shipped.exported.rglob("*") if p.is_file()]
    assert not any(own[:16] in data or own[16:] in data for data in ordinary)
    assert own != key


def test_every_export_has_a_key_of_its_own(hosted: Hosted, tmp_path: Path) -> None:
    ke.export_saved_model(hosted.model, tmp_path / "3", responses="encrypted")
    assert hosted.decoder(path=tmp_path / "3")._response_key != hosted.decoder()._response_key


def test_unknown_responses(hosted: Hosted, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"must be 'confused' or 'encrypted'. Received: resp"):
        ke.export_saved_model(hosted.model, tmp_path / "4", responses="secret")
    assert not (tmp_path / "4").exists()


@pytest.mark.long
def test_command_line(hosted: Hosted, digits: Any, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from keras_encryip.cli.app import app

    runner, secret = CliRunner(), hosted.shipped.passphrase
    env = {"ENCRYIP_AUTHORITY_PASSPHRASE": secret, "ENCRYIP_BUNDLE_PASSPHRASE": secret}
    url = str(hosted.authority.ledger.url.database)
    arguments = ["export", url, str(hosted.shipped.saved), str(tmp_path / "5")]
    found = runner.invoke(app, [*arguments, "--responses", "encrypted"], env=env)
    assert found.exit_code == 0, found.exception
    assert WARNING in found.stderr
    checked = runner.invoke(app, ["verify", str(tmp_path / "5")])
    assert WARNING in checked.stdout
    assert (
        "THE RESPONSE KEY"
        not in runner.invoke(app, ["verify", str(hosted.shipped.exported)]).stdout
    )
    np.save(tmp_path / "answers.npy", hosted.ask(digits.x_test[:3]))
    arguments = ["decode", str(hosted.path), str(hosted.shipped.bundles["alice"])]
    decoded = runner.invoke(app, [*arguments, str(tmp_path / "answers.npy")], env=env)
    assert decoded.stdout.split() == hosted.decoder().names(hosted.ask(digits.x_test[:3]))
