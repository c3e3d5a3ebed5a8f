"""Heads: that of a protected model, and what is known of a classifier's."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.models.head import (
    ConfusedLabels,
    Shared,
    copy_head,
    effect,
    make_head,
    read_head,
)

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


# --- heads of classifiers ------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "shape", "expected"),
    [
        (layers.Softmax(), (None, 5), "softmax"),
        (ops.softmax, (None, 5), "softmax"),
        (ops.sigmoid, (None, 1), "sigmoid"),
        (ops.sigmoid, (None, 5), "sigmoid"),
        (layers.Reshape((6, 5)), (None, 2, 3, 5), "linear"),
        (layers.Activation("linear", dtype="float16"), (None, 5), "linear"),
        (layers.Dropout(0.5), (None, 5), "linear"),
        (layers.Softmax(1), (None, 4, 5), None),
        (ops.relu, (None, 5), None),
        (lambda z: 2 * z, (None, 5), None),
        (lambda z: z[:, 1:], (None, 5), None),
        (lambda z: 1 / 0, (None, 5), None),
    ],
    ids=[
        "layer",
        "function",
        "one-sigmoid",
        "sigmoids",
        "reshape",
        "16-bits",
        "dropout",
        "other-axis",
        "relu",
        "temperature",
        "slice",
        "failing",
    ],
)
def test_effects_are_found_by_trying(call: Any, shape: Any, expected: str | None) -> None:
    assert effect(call, shape) == expected


def test_one_sigmoid_is_two_classes() -> None:
    """Of scores 0 and z: their softmax is sigmoid(z)."""
    kernel, bias = np.array([[2.0], [-1.0]], "float32"), np.array([0.5], "float32")
    head = make_head(layers.Dense(1, "sigmoid"), kernel, bias, "sigmoid")
    assert head.num_classes == 2
    x = np.random.default_rng(0).normal(size=(9, 2)).astype("float32")
    softmax = np.asarray(ops.softmax(x @ head.kernel + head.bias))
    np.testing.assert_allclose(softmax[:, 1], ops.sigmoid(x @ kernel + bias)[:, 0], atol=1e-6)


@pytest.mark.parametrize("regularizer", ["l1", "l2", keras.regularizers.L1L2(0.1, 0.2)])
def test_copies_are_penalised_together_as_one(regularizer: Any) -> None:
    plain = keras.regularizers.get(regularizer)
    kernel = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
    shared = Shared(regularizer, copies=4)
    assert float(shared(np.tile(kernel, 4))) == pytest.approx(float(plain(kernel)), rel=1e-5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(shared))
    assert float(again(kernel)) == float(shared(kernel))


def test_biases_of_silent_labels_cost_nothing() -> None:
    bias = np.array([1.0, -2.0, 1.0, -2.0, -16.0, -16.0], "float32")
    expected = float(keras.regularizers.get("l2")(np.array([1.0, -2.0], "float32")))
    assert float(Shared("l2", copies=2)(bias)) == pytest.approx(expected)


@pytest.mark.parametrize("penalty", [None, "l2"])
def test_copied_heads_answer_alike_whatever_the_features(penalty: str | None) -> None:
    """The softmax of each class's sum is that of the classifier; trace labels are silent."""
    assignment = LabelAssignment.draw(5, 4, 32, 256)
    layer = layers.Dense(5, kernel_regularizer=penalty)
    layer.build((None, 6))
    random = np.random.default_rng(0)
    layer.set_weights([random.normal(size=w.shape) for w in layer.weights])
    original = read_head(layer, layer, (None, 6), [])
    head = ConfusedLabels(assignment.num_labels)
    head.build((None, 6))
    copy_head(head, original, assignment)
    confused = np.asarray(head(FEATURES))
    expected = np.asarray(ops.softmax(layer(FEATURES)))
    np.testing.assert_allclose(confused[:, assignment.labels].sum(-1), expected, atol=1e-5)
    assert confused[:, assignment.trace].sum(-1).max() < 1e-5
    if penalty is None:
        far = np.asarray(head(100 * FEATURES))
        assert far[:, assignment.trace].sum(-1).max() < 1e-5
