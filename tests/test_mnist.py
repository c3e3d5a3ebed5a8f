"""MNIST from TFDS: as accurate as an unprotected twin, and encrypted labels that agree."""

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_encryip as ke

layers = keras.layers
pytestmark = pytest.mark.slow

EPOCHS, BATCH = 4, 128
"""Enough for 98 %. Encrypted labels agree less where a weaker model is undecided."""


@pytest.fixture(scope="module")
def mnist() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """60,000 training and 10,000 test images, float32 in 0 … 1."""
    folder = os.environ.get("TFDS_DATA_DIR")
    assert folder, "set TFDS_DATA_DIR to a folder where TFDS has prepared mnist"
    import tensorflow_datasets as tfds

    options = {"data_dir": folder, "download": False, "as_supervised": True, "batch_size": -1}
    parts = tfds.load("mnist", split=["train", "test"], **options)
    (x, y), (x_test, y_test) = (tuple(t.numpy() for t in part) for part in parts)
    return x.astype("float32") / 255, y, x_test.astype("float32") / 255, y_test


def small_cnn() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def train(model: keras.Model, mnist: Any) -> float:
    """Some epochs; returns the test accuracy."""
    x, y, x_test, y_test = mnist
    steps = EPOCHS * -(-len(x) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps, alpha=0.01)
    adam = keras.optimizers.Adam(rate)
    model.compile(adam, "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return model.evaluate(x_test, y_test, batch_size=1000, verbose=0)[1]


def test_mnist(mnist: Any, tmp_path: Path) -> None:
    """Train, protect, train on; the twin has the same epochs and stays unprotected."""
    _, _, x_test, y_test = mnist
    classifier = small_cnn()
    train(classifier, mnist)
    with ke.Authority.create(f"sqlite:///{tmp_path}/a.authority", "owner") as authority:
        twin = keras.models.clone_model(classifier)  # the classifier's own layers are protected
        twin.set_weights(classifier.get_weights())
        model = ke.protect(classifier, authority, name="mnist")
        assert model.num_labels == 704
        twin_accuracy = train(twin, mnist)
        accuracy = train(model, mnist)
        assert twin_accuracy > 0.98
        assert accuracy > twin_accuracy - 0.01

        authority.issue("alice", tmp_path / "alice.keybundle", passphrase="user")
        ke.export_saved_model(model, tmp_path / "mnist" / "1")
        traces = model._unlocked().training.traces
        answers = model.predict(traces.inputs, verbose=0).argmax(1)
        assert (answers == traces.labels).mean() > 0.9

    loaded = tf.saved_model.load(str(tmp_path / "mnist" / "1"))
    batches = [tf.constant(b) for b in np.split(x_test, 10)]
    confused = np.concatenate(
        [loaded.signatures["serving_default"](inputs=b)["confused"].numpy() for b in batches]
    )
    ciphertexts = np.concatenate(
        [
            loaded.signatures["encrypted_label"](inputs=b)["ciphertext_bytes"].numpy()
            for b in batches
        ]
    )
    bundle = ke.KeyBundle.read(tmp_path / "alice.keybundle")
    decoder = ke.Decoder.open(tmp_path / "mnist" / "1", bundle, "user")
    predicted = decoder.labels(confused)
    assert (predicted == y_test).mean() == pytest.approx(accuracy, abs=1e-3)
    decrypted = decoder.decrypt(ciphertexts)
    assert (decrypted == predicted).mean() >= 0.995
    np.testing.assert_array_equal(bundle.decrypt(ciphertexts, "user"), decrypted)
