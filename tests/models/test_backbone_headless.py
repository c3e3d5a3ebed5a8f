"""A classifier of any class, run by its own `call` up to its head."""

import json
import threading
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_encryip.errors import FormatError
from keras_encryip.models.headless import Headless, all_layers, path_to, sublayers

FEATURES = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
K = 3


@keras.saving.register_keras_serializable(package="tests_headless")
class Classifier(keras.Model):
    """A normalisation, a head in a list, and a softmax, which its `call` counts."""

    def __init__(self, width: int = 7, parts: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.parts = width, parts
        self.hidden = layers.Dense(width, "relu")
        self.norm = layers.BatchNormalization()
        self.tail = [layers.Dense(K, name="head")] if parts else []
        self.softmax = layers.Softmax()
        self.seen: list[Any] = []

    def build(self, input_shape: Any) -> None:
        self.shift = self.add_weight(shape=(6,), name="shift")
        super().build(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        features = self.norm(self.hidden(inputs + self.shift), training=training)
        outputs = self.softmax(self.tail[0](features) if self.tail else features)
        self.seen.append(outputs)
        return outputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width, "parts": self.parts}


def headless(**options: Any) -> Headless:
    classifier = Classifier(width=9)
    classifier(FEATURES)
    path = path_to(classifier, classifier.tail[0])
    assert path is not None
    layer = Headless(classifier, path, K, name="backbone", **options)
    layer(FEATURES)
    random = np.random.default_rng(2)
    for variable in classifier.variables:
        if "seed" not in variable.path:
            variable.assign(np.abs(random.normal(size=variable.shape)))
    return layer


def features_by_hand(classifier: Any) -> np.ndarray:
    """ReLU of a Dense, then a normalisation at inference (Keras: ε = 0.001)."""
    kernel, bias = map(ops.convert_to_numpy, classifier.hidden.variables)
    gamma, beta, mean, variance = map(ops.convert_to_numpy, classifier.norm.variables)
    shifted = FEATURES + ops.convert_to_numpy(classifier.shift)
    hidden = np.maximum(shifted @ kernel + bias, 0)
    return (hidden - mean) / np.sqrt(variance + 1e-3) * gamma + beta


def test_it_returns_what_the_head_would_get() -> None:
    layer = headless()
    outputs = layer(FEATURES, training=False)
    assert outputs.shape == (4, 9)
    expected = features_by_hand(layer.whole())
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_the_head_does_what_it_always_did_otherwise() -> None:
    layer = headless()
    classifier: Any = layer.whole()
    head = classifier.tail[0]
    kernel, bias = map(ops.convert_to_numpy, head.variables)
    scores = features_by_hand(classifier) @ kernel + bias
    expected = ops.softmax(scores)
    np.testing.assert_allclose(classifier(FEATURES, training=False), expected, atol=1e-4)
    layer(FEATURES, training=False)
    np.testing.assert_allclose(classifier(FEATURES, training=False), expected, atol=1e-4)


def test_the_head_s_numbers_are_never_read() -> None:
    layer = headless()
    classifier: Any = layer.whole()
    expected = np.asarray(layer(FEATURES, training=False))
    for variable in classifier.tail[0].variables:
        variable.assign(np.full(variable.shape, np.nan))
    classifier.seen.clear()
    np.testing.assert_array_equal(layer(FEATURES, training=False), expected)
    assert not np.isnan(classifier.seen[0]).any(), "nor does anything behind the head see them"


def test_all_state_but_the_heads_is_tracked() -> None:
    layer = headless()
    classifier: Any = layer.whole()
    of_head = {id(v) for v in classifier.tail[0].variables}
    expected = {id(v) for v in classifier.variables} - of_head
    assert {id(v) for v in layer.variables} == expected
    assert len(layer.variables) == len(expected), "each once"
    assert len(of_head) == 2


def test_training_reaches_the_classifier() -> None:
    layer = headless()
    moving = layer.whole().norm.moving_mean
    before = ops.convert_to_numpy(moving)
    layer(FEATURES, training=False)
    np.testing.assert_array_equal(moving, before)
    layer(FEATURES, training=True)
    assert (ops.convert_to_numpy(moving) != before).all()


def test_features_take_the_axes_of_the_outputs() -> None:
    for axes, shape in (([1], (4, 1, 9)), ([-1], (4, 1, 9)), ([1, -1], (4, 1, 1, 9))):
        layer = headless(features=axes)
        assert layer(FEATURES).shape == shape
        in_graph = tf.function(layer, input_signature=[tf.TensorSpec((None, 6))])
        np.testing.assert_array_equal(in_graph(FEATURES), layer(FEATURES))


def test_threads_do_not_see_each_other() -> None:
    """Replicas of a strategy run the same layers at the same time."""
    layer = headless()
    expected = np.asarray(layer(FEATURES, training=False))
    whole = np.asarray(layer.whole()(FEATURES, training=False))
    wrong: list[str] = []

    def work(number: int) -> None:
        for _ in range(20):
            if number % 2:
                same = np.allclose(layer(FEATURES, training=False), expected, atol=1e-6)
            else:
                same = np.allclose(layer.whole()(FEATURES, training=False), whole, atol=1e-6)
            if not same:
                wrong.append("features" if number % 2 else "outputs")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- its configuration ---------------------------------------------------------------


def test_it_survives_its_configuration() -> None:
    layer = headless()
    config = keras.saving.serialize_keras_object(layer)
    json.dumps(config)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is Headless
    assert (again.head, again.units, again.whole().width) == (layer.head, K, 9)
    again(FEATURES)
    for variable, value in zip(again.variables, layer.variables, strict=True):
        variable.assign(value)
    np.testing.assert_array_equal(again(FEATURES), layer(FEATURES))


def test_how_the_classifier_was_compiled_is_not_kept() -> None:
    layer = headless()
    layer.whole().compile("adam", "sparse_categorical_crossentropy")
    assert "compile_config" not in layer.get_config()["classifier"]


def test_code_that_builds_other_layers_is_named() -> None:
    config = headless().get_config()
    config["classifier"]["config"]["parts"] = 0
    with pytest.raises(FormatError, match=r"Classifier .* is built of other layers than when"):
        Headless.from_config(config)(FEATURES)


def test_a_configuration_of_0_3_is_named() -> None:
    config = headless().get_config()
    del config["units"]
    with pytest.raises(FormatError, match=r"protected by keras_encryip 0\.3"):
        Headless.from_config(config)


# --- layers of layers ----------------------------------------------------------------


def test_paths_lead_to_layers_of_lists_and_of_models() -> None:
    classifier = Classifier()
    classifier(FEATURES)
    outer = keras.Sequential([layers.Rescaling(2.0), classifier])
    path = path_to(outer, classifier.tail[0])
    assert path is not None
    at: Any = outer
    for index in path:
        at = sublayers(at)[index]
    assert at is classifier.tail[0]
    assert path_to(outer, layers.Dense(2)) is None
    names = [type(layer).__name__ for layer in all_layers(outer)]
    assert sorted(names) == [
        "BatchNormalization", "Classifier", "Dense", "Dense", "Rescaling", "Softmax"
    ]  # fmt: skip
