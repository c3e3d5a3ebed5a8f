"""Personalised exports: what is marked, what stays as it was, and what is refused."""

import base64
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_encryip as ke
from keras_encryip.authority.tracer import Tracer
from keras_encryip.errors import ExportError, LedgerError
from keras_encryip.export import saved_model as export
from keras_encryip.tracing.fingerprint import embed, strengths
from keras_encryip.tracing.weights import kernels_of, read_kernels

PASSPHRASE = "correct horse"
COPIES = {"alice 1": "alice", "alice 2": "alice", "bob 1": "bob the second", "plain": None}


@dataclass(frozen=True)
class House:
    """A trained model, and copies of it that left the house."""

    authority: ke.Authority
    model: ke.ProtectedModel
    folder: Path
    before: list[np.ndarray]

    def bundle(self, user: str) -> Path:
        return self.folder / f"{user}.keybundle"

    def originals(self) -> list[np.ndarray]:
        return [kernel.numpy() for kernel in kernels_of(self.model)]

    def key(self, user: str) -> bytes:
        model_id = self.authority.model_store.model_named("digits").model_id
        return self.authority.keys.fingerprint_key(
            model_id, self.authority.user_store.recipient(user)
        )

    def exports(self) -> list[dict[str, Any]]:
        return [e.details for e in self.authority.events() if e.kind == "model exported"]


@pytest.fixture(scope="module")
def house(
    digits: Any, new_classifier: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    url = f"sqlite:///{folder}/own.authority"
    with ke.Authority.create(url, PASSPHRASE, scrypt_log2_n=14) as authority:
        options = {"homophones": 4, "trace_labels": 8}
        model = ke.protect(new_classifier(), authority, name="digits", **options)
        optimizer = keras.optimizers.Adam(0.01)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(digits.x, digits.y, batch_size=64, epochs=12, verbose=0)
        for user in ("alice", "bob the second", "mallory"):
            path = folder / f"{user}.keybundle"
            authority.issue(user, path, passphrase=PASSPHRASE, scrypt_log2_n=14)
        authority.enroll(["pat"])
        before = model.get_weights()
        for name, user in COPIES.items():
            ke.export_saved_model(model, folder / name, recipient=user)
        yield House(authority, model, folder, before)


def outputs(folder: Path, x: np.ndarray) -> np.ndarray:
    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    return np.asarray(signature(inputs=tf.constant(x))["confused"])


def same(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def by_shape(kernels: list[np.ndarray]) -> list[np.ndarray]:
    return sorted(kernels, key=lambda kernel: kernel.shape)


# --- what is exported ----------------------------------------------------------------


def test_every_kernel_carries_the_users_mark_and_nothing_else_does(house: House) -> None:
    originals = house.originals()
    for name, user in COPIES.items():
        expected = originals if user is None else embed(originals, house.key(user))
        assert same(by_shape(read_kernels(house.folder / name)), by_shape(expected)), name
    one, plain = (
        tf.train.load_checkpoint(str(house.folder / name / "variables" / "variables"))
        for name in ("alice 1", "plain")
    )
    shapes = one.get_variable_to_shape_map()
    for name in [name for name, shape in shapes.items() if len(shape) == 1]:
        np.testing.assert_array_equal(one.get_tensor(name), plain.get_tensor(name))


def test_copies_of_one_user_are_alike_and_of_two_are_not(house: House) -> None:
    one, two, other = (read_kernels(house.folder / n) for n in ("alice 1", "alice 2", "bob 1"))
    assert same(one, two)
    fractions = strengths([kernel.size for kernel in one])
    for mine, theirs, fraction in zip(one, other, fractions, strict=True):
        assert (mine != theirs).mean() > 0.99
        apart = (mine - theirs).std() / mine.std() / fraction
        assert 0.8 * math.sqrt(2) < apart < 1.2 * math.sqrt(2)


def test_accuracy_of_copies(house: House, digits: Any) -> None:
    confused = house.model.predict(digits.x_test, verbose=0)
    own = (house.model.decode(confused).argmax(-1) == digits.y_test).mean()
    assert own > 0.9
    for name in COPIES:
        found = house.model.decode(outputs(house.folder / name, digits.x_test)).argmax(-1)
        assert abs((found == digits.y_test).mean() - own) <= 0.01, name


@pytest.mark.parametrize("user", ["alice", "bob the second"])
@pytest.mark.parametrize("name", ["alice 1", "bob 1"])
def test_decoders_read_every_copy(name: str, user: str, house: House, digits: Any) -> None:
    """A mark is no lock: bob's key opens alice's copy, and his table is his own."""
    ke.verify_export(house.folder / name, issuer=house.authority.issuer)
    decoder = ke.Decoder.open(house.folder / name, house.bundle(user), PASSPHRASE)
    confused = outputs(house.folder / name, digits.x_test)
    assert (decoder.labels(confused) == digits.y_test).mean() > 0.9
    signature = tf.saved_model.load(str(house.folder / name)).signatures["encrypted_label"]
    drawn = signature(inputs=tf.constant(digits.x_test[:50]))["ciphertext_bytes"].numpy()
    assert (decoder.decrypt(list(drawn)) == decoder.labels(confused[:50])).mean() > 0.9


def make_mixed() -> keras.Model:
    layers = keras.layers
    hidden = layers.Dense(40, dtype="mixed_float16")
    return keras.Sequential(
        [keras.Input((20,)), hidden, layers.Dense(30, dtype="bfloat16"), layers.Dense(3)]
    )


def make_tokens() -> keras.Model:
    layers = keras.layers
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(90, 20)(inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.Dense(50)(layers.Flatten()(x))))


@pytest.mark.parametrize("make", [make_mixed, make_tokens])
def test_other_dtypes_and_layers(make: Any, authority: ke.Authority, tmp_path: Path) -> None:
    options = {"homophones": 1, "trace_labels": 0, "strategy": "random"}
    model = ke.protect(make(), authority, name="m", **options)
    for user in ("alice", "bob the second"):
        authority.issue(user, tmp_path / user, passphrase=PASSPHRASE, scrypt_log2_n=14)
        ke.export_saved_model(model, tmp_path / f"{user} 1", recipient=user)
    for user in ("alice", "bob the second"):
        report = Tracer(authority).weights(tmp_path / f"{user} 1", model=model)
        assert [s.subject for s in report.guilty] == [user]
        assert report.evidence["original weights"] == "as exported"


# --- what stays as it was ------------------------------------------------------------


def test_the_model_is_unchanged(house: House, digits: Any) -> None:
    assert same(house.model.get_weights(), house.before)
    np.testing.assert_allclose(
        outputs(house.folder / "plain", digits.x_test),
        house.model.predict(digits.x_test, verbose=0),
        atol=1e-6,
    )


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "step", ["embed", "_assign", "_write", "check_written", "make_manifest", "verify_export"]
)
def test_failure_restores_the_model(
    step: str, error: type, house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, events = house.model.get_weights(), len(house.authority.events())
    assign = export._assign
    calls = []

    def fail(*arguments: Any, **_: Any) -> None:
        calls.append(step)
        if step == "_assign":  # only the first kernel is marked when it happens
            if len(calls) > 1:
                return assign(*arguments)
            arguments[0][0].assign(arguments[1][0])
        raise error("stopped")

    monkeypatch.setattr(export, step, fail)
    with pytest.raises(ExportError if error is OSError else error, match="stopped"):
        ke.export_saved_model(house.model, tmp_path / "digits" / "1", recipient="alice")
    assert calls
    assert same(house.model.get_weights(), before)
    assert list((tmp_path / "digits").iterdir()) == []
    assert len(house.authority.events()) == events


def test_failure_of_the_ledger_restores_the_model(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    before = house.model.get_weights()
    with monkeypatch.context() as patch:
        patch.setattr(type(house.authority.export_store), "add_export", fail)
        with pytest.raises(KeyboardInterrupt):
            ke.export_saved_model(house.model, tmp_path / "1", recipient="alice")
    assert same(house.model.get_weights(), before)
    assert list(tmp_path.iterdir()) == []


# --- the log -------------------------------------------------------------------------


def test_exports_commit_to_the_mark(house: House) -> None:
    logged = house.exports()
    assert [e["folder"] for e in logged[: len(COPIES)]] == list(COPIES)
    digest = hashlib.sha256(b"encryip kernels v1\0")
    for kernel in house.originals():
        digest.update(repr(kernel.shape).encode() + b"\0" + kernel.astype("<f4").tobytes())
    for details, (name, user) in zip(logged, COPIES.items(), strict=False):
        assert details["kernels_digest"] == digest.hexdigest()
        manifest = house.folder / name / "assets.extra" / "encryip" / "manifest.json"
        assert details["manifest_digest"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
        if user is None:
            assert not {"recipient", "fingerprint"} & set(details)
            continue
        assert details["recipient"] == house.authority.user_store.recipient(user)
        committed = hashlib.sha256(b"encryip fingerprint key v1\0" + house.key(user)).hexdigest()
        assert details["fingerprint"] == committed


def test_the_key_of_a_mark_is_nowhere(house: House) -> None:
    files = [path for path in house.folder.rglob("*") if path.is_file()]
    for user in ("alice", "bob the second"):
        key = house.key(user)
        forms = [key, key.hex().encode(), base64.b64encode(key), base64.urlsafe_b64encode(key)]
        logged = repr(house.authority.events()).encode()
        for form in forms:
            assert form not in logged
            assert not [path for path in files if form in path.read_bytes()]
        for name in COPIES:  # nor who has the copy
            folder = house.folder / name
            for path in (path for path in folder.rglob("*") if path.is_file()):
                data = path.read_bytes()
                assert user.encode() not in data
                assert house.authority.user_store.recipient(user).encode() not in data


# --- refused -------------------------------------------------------------------------

REFUSED = {
    "nobody": "'nobody' is not a user. Issue a key first",
    "Alice": "'Alice' is not a user",
    "pat": "'pat' is pending",
    "mallory": "'mallory' is revoked",
}


@pytest.fixture
def refusing(house: House) -> House:
    if "mallory" in {user.subject for user in house.authority.users() if user.status == "active"}:
        house.authority.revoke("mallory")
    return house


@pytest.mark.parametrize("user", REFUSED)
def test_recipients_without_an_active_key_are_refused(
    user: str, refusing: House, tmp_path: Path
) -> None:
    message = f"`recipient` must have an active key.*{REFUSED[user]}"
    with pytest.raises(LedgerError, match=message):
        ke.export_saved_model(refusing.model, tmp_path / "1", recipient=user)
    assert same(refusing.model.get_weights(), refusing.before)
    assert not list(tmp_path.iterdir())


def test_recipients_are_refused_before_anything_is_written(refusing: House, tmp_path: Path) -> None:
    authority = refusing.authority
    authority.issue("eve", tmp_path / "eve", passphrase=PASSPHRASE, scrypt_log2_n=14)
    authority.revoke("eve")
    events = len(authority.events())
    with pytest.raises(LedgerError, match="'eve' is revoked"):
        ke.export_saved_model(refusing.model, tmp_path / "digits" / "1", recipient="eve")
    assert not (tmp_path / "digits").exists()
    assert len(authority.events()) == events  # no new codebook either
