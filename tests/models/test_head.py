"""The layers of a protected model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_encryip.models.head import ConfusedLabels
from keras_encryip.models.backbone import Headless

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


# --- ConfusedLabels ------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(4,), (2, 5), (2, 3, 4)], ids=["rows", "tokens", "pixels"])
def test_each_row_is_a_distribution_over_n_labels(leading: tuple[int, ...]) -> None:
    features = np.random.default_rng(0).normal(size=(*leading, 6)).astype("float32")
    head = ConfusedLabels(44)
    outputs = np.asarray(head(features))
    assert outputs.shape == (*leading, 44) == head.compute_output_shape(features.shape)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("use_bias", [True, False])
def test_the_output_is_the_softmax_of_features_times_kernel(use_bias: bool) -> None:
    head = ConfusedLabels(10, use_bias=use_bias)
    head.build((None, 6))
    head.set_weights([np.random.default_rng(1).normal(size=w.shape) for w in head.weights])
    scores = FEATURES.astype("float64") @ head.get_weights()[0]
    if use_bias:
        scores += head.get_weights()[1]
    exponentials = np.exp(scores)
    np.testing.assert_allclose(head.logits(FEATURES), scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        head(FEATURES), exponentials / exponentials.sum(-1, keepdims=True), atol=1e-6
    )


def test_it_stays_float32_under_mixed_precision() -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.Input((6,)), layers.Dense(8), ConfusedLabels(10)])
    finally:
        keras.config.set_dtype_policy(before)
    hidden, head = model.layers
    assert hidden(FEATURES).dtype == tf.float16
    assert head.dtype_policy.name == "float32"
    assert model(FEATURES).dtype == tf.float32
    assert head.logits(hidden(FEATURES)).dtype == tf.float32
    np.testing.assert_allclose(
        keras.ops.softmax(head.logits(hidden(FEATURES))), model(FEATURES), atol=1e-6
    )


def test_every_argument_survives_the_configuration() -> None:
    head = ConfusedLabels(
        10, use_bias=False, kernel_initializer="zeros", kernel_regularizer="l2", name="labels"
    )
    config = head.get_config()
    assert (config["num_labels"], config["use_bias"], config["name"]) == (10, False, "labels")
    assert not {"units", "activation"} & set(config)
    json.dumps(config)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(head))
    assert type(again) is ConfusedLabels
    assert again.get_config() == config
    assert (again.num_labels, again.units) == (10, 10)


def test_a_saved_model_with_it_gives_the_same(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8), ConfusedLabels(10)])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.layers[-1]) is ConfusedLabels
    np.testing.assert_array_equal(again(FEATURES), model(FEATURES))


@pytest.mark.parametrize("num_labels", [0, -3, "x"], ids=repr)
def test_a_wrong_number_of_labels_is_refused(num_labels: Any) -> None:
    with pytest.raises(ValueError, match="expected a positive integer"):
        ConfusedLabels(num_labels)


# --- Headless ------------------------------------------------------------------------


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
    assert (again.head, again.classifier.width) == (["head", "softmax"], 9)
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
        "import sys, numpy as np, keras_encryip.models.head\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "np.save(sys.argv[3], model(np.load(sys.argv[2])))\n"
    )
    files = [path, tmp_path / "features.npy", tmp_path / "outputs.npy"]
    package = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", script, *map(str, files)], check=True, cwd=package)
    np.testing.assert_allclose(np.load(files[2]), outputs, atol=1e-6)
