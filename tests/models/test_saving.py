"""A saved protected model is locked, predicts confused labels, and can be unlocked."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_encryip as ke
from keras_encryip.errors import (
    ArgumentError,
    EncryipError,
    ForeignKeyError,
    LedgerError,
    LockedModelError,
    PassphraseError,
    RevokedKeyError,
    WrongModelError,
)
from keras_encryip.labels.codebook import Codebook

layers = keras.layers


def confused_by(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return model.predict(x, batch_size=256, verbose=0)


@pytest.fixture
def locked(shipped: Any) -> ke.ProtectedModel:
    return shipped.copy(unlock=False)


# --- locked ------------------------------------------------------------------------


def test_round_trip_is_exact(shipped: Any, locked: ke.ProtectedModel, digits: Any) -> None:
    expected = confused_by(shipped.model, digits.x_test)
    np.testing.assert_array_equal(confused_by(locked, digits.x_test), expected)
    assert locked.is_locked()
    assert not shipped.model.is_locked()
    assert locked.compiled


@pytest.mark.parametrize(
    "work", ["fit", "evaluate", "train_on_batch", "test_on_batch", "adapt", "decode"]
)
def test_locked_model_refuses(work: str, locked: ke.ProtectedModel, digits: Any) -> None:
    data = (digits.x[:32],) if work == "decode" else (digits.x[:32], digits.y[:32])
    with pytest.raises(
        LockedModelError,
        match=r"Model 'digits' is locked: it predicts confused labels, and cannot be trained or "
        r"evaluated. Unlock it with `model.unlock\(authority=...\)` or "
        r"`model.unlock\(bundle=..., passphrase=...\)`.",
    ):
        getattr(locked, work)(*data)


def test_lock_forgets(shipped: Any, digits: Any) -> None:
    model = shipped.copy()
    model.evaluate(digits.x_test, digits.y_test, verbose=0)  # the traced function knows the table
    assert model.lock() is model
    assert model.is_locked()
    with pytest.raises(LockedModelError, match="is locked"):
        model.evaluate(digits.x_test, digits.y_test, verbose=0)


# --- unlocked by the owner -----------------------------------------------------------


def test_authority_unlocks_all(
    shipped: Any, locked: ke.ProtectedModel, digits: Any, by_hand: Any
) -> None:
    steps = int(shipped.model.optimizer.iterations)
    assert steps == len(shipped.history["loss"]) * 22  # epochs · ⌈1400 / 64⌉
    assert locked.unlock(authority=shipped.authority) is locked
    # Faint, so that the model is unsure: a loss near 0 has no six digits in float32.
    faint = 0.3 * digits.x_test
    before = shipped.model.evaluate(faint, digits.y_test, verbose=0)
    after = locked.evaluate(faint, digits.y_test, verbose=0)
    assert after == pytest.approx(before)
    assert after[0] == pytest.approx(by_hand(locked, faint, digits.y_test)["loss"])
    assert int(locked.optimizer.iterations) == steps
    locked.fit(digits.x[:64], digits.y[:64], batch_size=32, verbose=0)
    assert int(locked.optimizer.iterations) == steps + 2


def test_training_state_comes_back_from_the_ledger(
    shipped: Any, locked: ke.ProtectedModel, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process opens the authority: `fit` goes on without looking at the data again."""

    def learn(*_: Any, **__: Any) -> None:
        raise AssertionError("adapted twice")

    monkeypatch.setattr("keras_encryip.models.protected_model.fit_training_state", learn)
    with ke.Authority.open(shipped.url, shipped.passphrase) as reopened:
        locked.unlock(authority=reopened)
        expected, restored = (m._unlocked().training for m in (shipped.model, locked))
        traces = reopened.model_store.model_named("digits").traces  # other tests export: hardened
        assert restored.traces.secret_bytes() == traces.secret_bytes()
        arrays = restored.homophones.to_arrays()
        for name, array in expected.homophones.to_arrays().items():
            np.testing.assert_array_equal(arrays[name], array)
        locked.fit(digits.x[:32], digits.y[:32], verbose=0)


def test_teacher_comes_back_when_given(
    shipped: Any,
    locked: ke.ProtectedModel,
    trained_classifier: keras.Model,
    new_classifier: Any,
    digits: Any,
) -> None:
    locked.unlock(authority=shipped.authority)
    assert locked._secrets.teacher is None
    locked.unlock(authority=shipped.authority, teacher=trained_classifier)
    x = digits.x_test[:8]
    expected = trained_classifier.predict(x, verbose=0)
    np.testing.assert_allclose(locked._secrets.teacher.probabilities(x), expected, atol=1e-6)
    with pytest.raises(
        ArgumentError, match=r"`teacher` must be .* 10 outputs. Received: 3 outputs"
    ):
        locked.unlock(authority=shipped.authority, teacher=new_classifier(classes=3))


# --- unlocked by a user --------------------------------------------------------------


def test_bundle_unlocks_for_its_user(shipped: Any, locked: ke.ProtectedModel, digits: Any) -> None:
    """`evaluate` shows what the user's decoder gives."""
    bundle = shipped.bundles["bob"]
    locked.unlock(bundle=bundle, passphrase=shipped.passphrase)
    decoder = ke.Decoder.open(shipped.exported, bundle, shipped.passphrase)
    decoded = decoder.probabilities(confused_by(locked, digits.x_test))
    loss = -np.log(decoded[np.arange(len(digits.y_test)), digits.y_test]).mean()
    accuracy = (decoded.argmax(1) == digits.y_test).mean()
    result = locked.evaluate(digits.x_test, digits.y_test, verbose=0)
    assert result == pytest.approx([loss, accuracy], rel=1e-5)
    np.testing.assert_allclose(
        locked.decode(confused_by(locked, digits.x_test)), decoded, atol=1e-6
    )


def test_user_can_train_on_the_own_loss(
    shipped: Any, locked: ke.ProtectedModel, digits: Any
) -> None:
    locked.unlock(bundle=ke.KeyBundle.read(shipped.bundles["bob"]), passphrase=shipped.passphrase)
    x, y = digits.x[:320], digits.y[:320]
    before = locked.evaluate(x, y, verbose=0)[0]
    locked.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    history = locked.fit(x, y, batch_size=32, verbose=0).history
    assert history["loss"][0] == pytest.approx(before, rel=1e-5)  # no confusion, no traces


# --- refused -------------------------------------------------------------------------


def stay_locked(
    model: ke.ProtectedModel, error: type[EncryipError], message: str, **key: Any
) -> None:
    with pytest.raises(error, match=message):
        model.unlock(**key)
    assert model.is_locked()


def test_unlock_needs_one_key(shipped: Any, locked: ke.ProtectedModel) -> None:
    bundle, message = shipped.bundles["bob"], "Pass either `authority` or `bundle`"
    stay_locked(locked, ArgumentError, message)
    stay_locked(locked, ArgumentError, message, authority=shipped.authority, bundle=bundle)
    stay_locked(locked, ArgumentError, "pass `passphrase` and nothing else", bundle=bundle)
    message = r"`authority` must be an Authority, from `Authority.open.*Received: str"
    stay_locked(locked, ArgumentError, message, authority="acme")


def test_foreign_authority(locked: ke.ProtectedModel, authority: ke.Authority) -> None:
    message = r"The authority .*own.authority' did not protect this model \(codebook [0-9a-f]{32}\)"
    stay_locked(locked, LedgerError, message, authority=authority)


def test_foreign_bundle(locked: ke.ProtectedModel, authority: ke.Authority, tmp_path: Path) -> None:
    path = tmp_path / "eve.keybundle"
    authority.issue("eve", path, passphrase="p", scrypt_log2_n=14)
    message = r"Key bundle [0-9a-f]{16} was issued by another authority \('own'\)"
    stay_locked(locked, ForeignKeyError, message, bundle=path, passphrase="p")


def test_wrong_passphrase(shipped: Any, locked: ke.ProtectedModel) -> None:
    message = r"The passphrase does not open key bundle [0-9a-f]{16} \(subject 'bob'\)"
    key = {"bundle": shipped.bundles["bob"], "passphrase": "incorrect horse"}
    stay_locked(locked, PassphraseError, message, **key)


def test_revoked_and_limited_bundles(
    new_classifier: Any, authority: ke.Authority, tmp_path: Path
) -> None:
    options = {"homophones": 2, "trace_labels": 0}
    model = ke.protect(new_classifier(), authority, name="digits", **options)
    for user, scope in (("alice", None), ("bob", None), ("carol", ["faces"])):
        authority.issue(user, tmp_path / user, passphrase="p", models=scope, scrypt_log2_n=14)
    old = model.codebook
    authority.revoke("bob")
    codebook_id = Codebook.from_bytes(old.encode("ascii")).codebook_id
    newest = authority.model_store.current_codebook(codebook_id)
    model.codebook = newest.to_bytes().decode("ascii")
    assert model.codebook != old
    model.lock()
    message = r"Key [0-9a-f]{16} was revoked before this model version"
    stay_locked(model, RevokedKeyError, message, bundle=tmp_path / "bob", passphrase="p")
    message = r"Key bundle .* is for model\(s\) faces, not for 'digits'"
    stay_locked(model, WrongModelError, message, bundle=tmp_path / "carol", passphrase="p")
    model.unlock(bundle=tmp_path / "alice", passphrase="p")
    assert not model.is_locked()
    private_key = ke.X25519PrivateKey.generate()
    authority.issue("dora", tmp_path / "dora", public_key=private_key.public_key)
    model.lock()
    message = "The private key of '.*' opens key bundle"
    stay_locked(model, ArgumentError, message, bundle=tmp_path / "dora", passphrase="p")
    assert not model.unlock(bundle=tmp_path / "dora", private_key=private_key).is_locked()
    # The outputs keep their meaning: an old codebook and the new one name the same model.
    owners = model.unlock(authority=authority)._unlocked().table
    model.codebook = old
    np.testing.assert_array_equal(model.unlock(authority=authority)._unlocked().table, owners)


# --- copies --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        keras.models.clone_model,
        lambda model: type(model).from_config(model.get_config()),
    ],
    ids=["copy", "deepcopy", "pickle", "clone_model", "from_config"],
)
def test_copies_are_locked(duplicate: Callable[..., Any], shipped: Any) -> None:
    twin = duplicate(shipped.model)
    assert isinstance(twin, ke.ProtectedModel)
    assert twin.is_locked()
    assert twin.codebook == shipped.model.codebook


def test_secrets_cannot_be_pickled(shipped: Any) -> None:
    with pytest.raises(TypeError, match="UnlockedSecrets holds a secret and cannot be pickled"):
        pickle.dumps(shipped.model._secrets)


def test_every_argument_survives_the_config(
    new_classifier: Any, shared_authority: ke.Authority
) -> None:
    unusual = {
        "strategy": "random",
        "copies": 3,
        "confusion_weight": 0.5,
        "teacher_weight": 0.25,
        "temperature": 3.0,
    }
    options = {"homophones": 6, "trace_labels": 0, **unusual}
    classifier = new_classifier(use_bias=False)
    model = ke.protect(classifier, shared_authority, name="unusual", **options)
    config = ke.ProtectedModel.from_config(model.get_config()).get_config()
    assert {key: config[key] for key in unusual} == unusual
    assert (config["num_classes"], config["num_labels"], config["binary"]) == (10, 60, False)
    assert config["head"] == {"use_bias": False, "trainable": True}
    assert config["dtypes"] == ["float32"]
    assert config["name"] == "unusual"
    assert config["codebook"] == model.codebook


@keras.saving.register_keras_serializable(package="tests_saving")
class Subclass(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.flatten = layers.Flatten()
        self.hidden = layers.Dense(12, activation="tanh")
        self.head = layers.Dense(10)
        self.softmax = layers.Softmax()

    def call(self, inputs: Any) -> Any:
        return self.softmax(self.head(self.hidden(self.flatten(inputs))))


def subclassed() -> keras.Model:
    model = Subclass()
    model(np.zeros((1, 8, 8, 1), "float32"))
    return model


def half_precision() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(12, dtype="mixed_float16"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def functional() -> keras.Model:
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    x = layers.BatchNormalization()(layers.Rescaling(1 / 16)(inputs))
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))


@pytest.mark.parametrize("make", [subclassed, half_precision, functional])
def test_kinds_of_classifiers_round_trip(
    make: Callable[[], keras.Model], digits: Any, shared_authority: ke.Authority, tmp_path: Path
) -> None:
    options = {"homophones": 2, "trace_labels": 8}
    model = ke.protect(make(), shared_authority, name="kinds", **options)
    model.compile("adam", "sparse_categorical_crossentropy")
    x = (digits.x[:64] * 16).astype("uint8") if make is functional else digits.x[:64]
    model.fit(x, digits.y[:64], verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.is_locked()
    expected = confused_by(model, x)
    np.testing.assert_array_equal(confused_by(loaded, x), expected)
    loaded.unlock(authority=shared_authority)
    assert loaded.evaluate(x, digits.y[:64], verbose=0) == pytest.approx(
        model.evaluate(x, digits.y[:64], verbose=0), rel=1e-6
    )
    # Weights alone go into a copy of the same codebook.
    model.save_weights(tmp_path / "model.weights.h5")
    clone = keras.models.clone_model(model)
    clone.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(confused_by(clone, x), expected)
