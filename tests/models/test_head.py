"""The head of a protected model."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_encryip.models.head import ConfusedLabels

FEATURES = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")


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
