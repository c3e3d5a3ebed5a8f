"""A subclassed classifier without its head."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_encryip.models.backbone import Headless
from keras_encryip.models.head import ConfusedLabels

FEATURES = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")

SUBCLASS = '''
import keras
from keras import layers


@keras.saving.register_keras_serializable(package="tests_layers")
class Classifier(keras.Model):
    """A subclass with a normalisation, a head and a softmax."""

    def __init__(self, width=7, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.hidden = layers.Dense(width, "relu")
        self.norm = layers.BatchNormalization()
        self.head = layers.Dense(3)
        self.softmax = layers.Softmax()

    def call(self, inputs, training=None):
        return self.softmax(self.head(self.norm(self.hidden(inputs), training=training)))

    def get_config(self):
        return {**super().get_config(), "width": self.width}
'''
exec(SUBCLASS)  # here and, from the same text, in a fresh process
Classifier: Any = globals()["Classifier"]


def headless() -> Headless:
    layer = Headless(Classifier(width=9), ["head", "softmax"], name="backbone")
    layer(FEATURES)
    random = np.random.default_rng(2)
    layer.set_weights([np.abs(random.normal(size=w.shape)) for w in layer.weights])
    return layer


def features_by_hand(layer: Headless) -> np.ndarray:
    """ReLU of a Dense, then a normalisation at inference (Keras: ε = 0.001)."""
    kernel, bias, gamma, beta, mean, variance = layer.get_weights()
    hidden = np.maximum(FEATURES @ kernel + bias, 0)
    return (hidden - mean) / np.sqrt(variance + 1e-3) * gamma + beta


def test_it_returns_what_the_head_would_get() -> None:
    layer = headless()
    outputs = layer(FEATURES, training=False)
    assert outputs.shape == (4, 9)
    np.testing.assert_allclose(outputs, features_by_hand(layer), rtol=1e-4, atol=1e-5)


def test_the_heads_weights_are_not_made() -> None:
    assert [w.shape for w in headless().weights] == [(6, 9), (9,), (9,), (9,), (9,), (9,)]


def test_training_reaches_the_classifier() -> None:
    layer = headless()
    before = layer.get_weights()[4]
    layer(FEATURES, training=False)
    np.testing.assert_array_equal(layer.get_weights()[4], before)
    layer(FEATURES, training=True)
    assert (layer.get_weights()[4] != before).all(), "the moving mean has moved"


def test_it_survives_the_configuration() -> None:
    layer = headless()
    config = keras.saving.serialize_keras_object(layer)
    json.dumps(config)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is Headless
    assert (again.head, again.whole().width) == (["head", "softmax"], 9)
    again(FEATURES)
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again(FEATURES), layer(FEATURES))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, np.ndarray]:
    model = keras.Sequential([keras.Input((6,)), headless(), ConfusedLabels(10)])
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras", np.asarray(model(FEATURES))


def test_a_saved_model_with_it_loads(saved: tuple[Path, np.ndarray]) -> None:
    path, outputs = saved
    again = keras.models.load_model(path)
    assert type(again.layers[0]) is Headless
    assert len(again.weights) == 8
    np.testing.assert_array_equal(again(FEATURES), outputs)


def test_a_saved_model_with_it_loads_in_a_fresh_process(
    saved: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path, outputs = saved
    np.save(tmp_path / "features.npy", FEATURES)
    script = SUBCLASS + (
        "import sys, numpy as np, keras_encryip.models\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "np.save(sys.argv[3], model(np.load(sys.argv[2])))\n"
    )
    files = [path, tmp_path / "features.npy", tmp_path / "outputs.npy"]
    subprocess.run([sys.executable, "-c", script, *map(str, files)], check=True)
    np.testing.assert_allclose(np.load(files[2]), outputs, atol=1e-6)
