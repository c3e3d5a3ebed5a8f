"""Taking a classifier apart: features here, what its head computes there."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_encryip.errors import ArgumentError
from keras_encryip.models.backbone import features_shape, freeze, frozen, graft
from keras_encryip.models.by_graph import RoundTo8Bits, reshaped
from keras_encryip.models.head import probabilities
from tests.models.cases import CASES, fresh
from tests.models.classifiers import (
    IMAGES,
    SERIES,
    called,
    chain,
    class_probabilities,
    flat,
    lora,
    of_inputs,
    quantized,
    randomise,
    sequential,
    with_policy,
)
from tests.models.custom_layers import K, Subclass

SOFTMAX = {"activation": "softmax"}
GRAFTED = [
    "softmax", "logits", "softmax-layer", "no-bias", "nested-head", "shared-layers",
    "subclass-head-in-list", "subclass-softmax-in-call", "ops-softmax", "sigmoid",
    "subclass-sigmoid", "conv-head", "mobilenet-v1", "masked-tagging", "einsum-head", "dict-inputs",
]  # fmt: skip


@pytest.mark.parametrize("name", GRAFTED)
def test_features_times_kernel_give_the_classifiers_outputs(name: str) -> None:
    case, classifier = CASES[name], fresh(name)
    randomise(classifier)
    expected = class_probabilities(classifier, case.x)
    parts = graft(classifier)
    assert parts.classifier is classifier
    assert parts.head.num_classes == expected.shape[-1]
    assert parts.rank == expected.ndim
    features = ops.convert_to_numpy(parts.backbone(case.x, training=False)).astype("float64")
    assert parts.head.kernel is not None
    scores = features @ parts.head.kernel + (0 if parts.head.bias is None else parts.head.bias)
    np.testing.assert_allclose(ops.softmax(scores), expected, atol=1e-5)
    variables = {id(v) for v in classifier.variables}
    assert {id(v) for v in parts.backbone.variables} <= variables, "nothing is cloned"


def test_what_a_classifier_gives() -> None:
    kinds = {
        name: graft(fresh(name)).head.outputs
        for name in ("softmax", "softmax-layer", "subclass-softmax-in-call", "logits", "sigmoid")
    }
    assert list(kinds.values()) == ["softmax", "softmax", "softmax", "logits", "sigmoid"]
    for kind, given in (("softmax", [[0.2, 0.8]]), ("sigmoid", [[0.8]]), ("logits", [[1, 2.386]])):
        found = probabilities(np.array(given, "float32"), kind)
        np.testing.assert_allclose(found, [[0.2, 0.8]], atol=1e-3)


def test_inputs_are_known_in_their_structure() -> None:
    parts = graft(of_inputs(dict))
    assert {name: tuple(t.shape) for name, t in parts.inputs.items()} == {
        "first": (None, 6),
        "second": (None, 7, 4),
    }
    assert tuple(graft(sequential(layers.Dense(K))).inputs.shape) == (None, 8, 8, 1)
    built = graft(called(Subclass(), IMAGES[:1])).inputs
    assert tuple(built.shape) == (None, 8, 8, 1), "also where the batch axis was not open"


@pytest.mark.parametrize("end", ["softmax", "softmax-layer", "logits", "sigmoid"])
def test_an_unbuilt_sequential_gives_an_unbuilt_backbone(end: str) -> None:
    act = end if end in ("softmax", "sigmoid") else None
    head = layers.Dense(1 if end == "sigmoid" else K, act, use_bias=end != "logits")
    tail = [layers.Softmax()] if end == "softmax-layer" else []
    hidden = layers.Dense(6)
    classifier = keras.Sequential([layers.Flatten(), hidden, head, *tail])
    parts = graft(classifier)
    assert (parts.head.kernel, parts.head.bias, parts.inputs) == (None, None, None)
    assert parts.head.num_classes == (2 if end == "sigmoid" else K)
    assert parts.head.outputs == ("softmax" if "softmax" in end else end)
    assert parts.head.use_bias == (end != "logits")
    assert not parts.backbone.built
    assert parts.backbone(IMAGES).shape == (len(IMAGES), 6)
    assert not classifier.built
    assert parts.backbone.layers[-1] is hidden


def test_a_graft_keeps_the_heads_numbers() -> None:
    """Its arrays are copies: a head that is trained later does not change them."""
    classifier = sequential(layers.Dense(K))
    parts = graft(classifier)
    assert parts.head.kernel is not None
    kernel = parts.head.kernel.copy()
    classifier.layers[-1].kernel.assign(np.zeros_like(kernel))
    np.testing.assert_array_equal(parts.head.kernel, kernel)


# --- what is known of a classifier -------------------------------------------------


def test_who_rounds() -> None:
    head = layers.Dense(K, dtype="float32", **SOFTMAX)
    assert not graft(flat(head)).is_rounded
    mixed = with_policy("mixed_float16", lambda: flat(layers.Dense(K, dtype="float32")))
    assert graft(mixed()).is_rounded
    assert graft(quantized(1)).is_rounded


def test_who_is_stateful() -> None:
    def series(stateful: bool) -> keras.Model:
        inputs = keras.Input((7, 4), batch_size=12)
        return keras.Model(inputs, layers.Dense(K)(layers.GRU(3, stateful=stateful)(inputs)))

    assert graft(series(True)).is_stateful
    assert not graft(series(False)).is_stateful


def test_an_int8_head_keeps_its_rounding() -> None:
    classifier = quantized(3)
    expected = class_probabilities(classifier, IMAGES)
    parts = graft(classifier)
    assert parts.head.rounded
    assert parts.head.kernel is not None
    features = ops.convert_to_numpy(parts.backbone(IMAGES, training=False))
    scores = features @ parts.head.kernel + (0 if parts.head.bias is None else parts.head.bias)
    np.testing.assert_allclose(ops.softmax(scores), expected, atol=1e-5)


def test_rounding_lets_the_slope_pass() -> None:
    import tensorflow as tf

    x = tf.Variable(np.random.default_rng(0).normal(size=(3, 5)).astype("float32"))
    with tf.GradientTape() as tape:
        y = RoundTo8Bits()(x)
    np.testing.assert_array_equal(tape.gradient(y, x), np.ones((3, 5)))
    steps = np.asarray(y) / np.abs(x.numpy()).max(-1, keepdims=True) * 127
    np.testing.assert_allclose(steps, steps.round(), atol=1e-2)
    assert (np.asarray(y) != x.numpy()).any()


def test_a_lora_head_is_read_with_its_parts() -> None:
    classifier = lora("head")
    parts = graft(classifier)
    plain = ops.convert_to_numpy(classifier.get_layer("head")._kernel)
    assert np.abs(parts.head.kernel - plain).max() > 0.01


@pytest.mark.parametrize(
    ("features", "outputs", "axes"),
    [
        ((None, 6), (None, K), None),
        ((None, 4, 4, 6), (None, 4, 4, K), None),
        ((None, 1, 1, 6), (None, K), []),
        ((None, 4, 4, 6), (None, 16, K), [16]),
        ((None, None, 4, 6), (None, None, K), [-1]),
    ],
)
def test_axes_of_the_features_become_those_of_the_outputs(
    features: Any, outputs: Any, axes: list[int] | None
) -> None:
    assert reshaped(features, outputs) == axes


def test_only_one_axis_can_be_open() -> None:
    with pytest.raises(ArgumentError, match="gives one row for each label"):
        reshaped((None, None, 6), (None, None, None, K))


@pytest.mark.parametrize("shape", [(None, 8, 8, 1), (12, 8, 8, 1)])
def test_shape_of_the_features(shape: tuple[int | None, ...]) -> None:
    for classifier in (sequential(layers.Dense(K)), called(Subclass(), IMAGES[:1])):
        backbone = graft(classifier).backbone
        width = backbone(IMAGES).shape[-1]
        assert features_shape(backbone, shape, ["float32"])[-1] == width


# --- frozen parts ------------------------------------------------------------------


def deep() -> keras.Model:
    inner = chain(layers.Flatten(), layers.Dense(6, name="inner"), layers.BatchNormalization())
    return chain(inner, layers.Dense(5, name="outer"), layers.Dense(K, **SOFTMAX))


def test_frozen_parts_are_frozen_in_another_of_its_kind() -> None:
    classifier = deep()
    classifier.layers[1].get_layer("inner").trainable = False
    which = frozen(graft(classifier).backbone)
    other = graft(deep()).backbone
    freeze(other, which)
    names = [v.path.split("/")[-2] for v in other.trainable_variables]
    assert "inner" not in names
    assert names.count("outer") == 2
    freeze(other, frozen(graft(deep()).backbone))
    assert "inner" in [v.path.split("/")[-2] for v in other.trainable_variables]


def test_other_layers_are_not_frozen_by_number() -> None:
    which = frozen(graft(deep()).backbone)
    other = graft(sequential(layers.Dense(K))).backbone
    with pytest.warns(UserWarning, match="other layers than the saved one"):
        freeze(other, which)
    assert other.trainable


# --- refused -----------------------------------------------------------------------


def compiled(classifier: keras.Model, loss: Any) -> keras.Model:
    classifier.compile("sgd", loss)
    return classifier


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "flatten-last": (
        lambda: sequential(layers.Dense(K), layers.Dropout(0.5, name="late")),
        "must end in `Dense.K.`.*it ends in Dropout 'late'",
    ),
    "input-only": (lambda: keras.Sequential([keras.Input((6,))]), "it ends in nothing|InputLayer"),
    "relu-unbuilt": (
        lambda: keras.Sequential([layers.Dense(K, "relu", name="end")]),
        "'end', must have a single softmax.*Received: activation='relu'",
    ),
    "norm-unbuilt": (
        lambda: keras.Sequential([layers.Dense(K), layers.LayerNormalization(name="end")]),
        "it ends in LayerNormalization 'end'",
    ),
    "two-softmax-layers": (
        lambda: sequential(layers.Dense(K), layers.Softmax(), layers.Softmax()),
        "Received: activation='softmax' and 'softmax'",
    ),
    "one-unit-softmax": (
        lambda: sequential(layers.Dense(1, name="end")),
        r"'end', must have one unit per class, at least 2. Received: units=1.*Dense\(1, 'sigmoid'",
    ),
    "activity-regularizer": (
        lambda: sequential(layers.Dense(K, activity_regularizer="l2", name="end")),
        "'end', has an activity_regularizer",
    ),
    "compiled-for-labels": (
        lambda: compiled(flat(layers.Dense(K)), keras.losses.BinaryCrossentropy(from_logits=True)),
        "compiled with loss 'binary_crossentropy', for several labels per input",
    ),
    "compiled-for-regression": (
        lambda: compiled(flat(layers.Dense(K)), "mse"),
        "compiled with loss 'mse', for regression",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        graft(make())


def test_losses_of_classifiers_pass() -> None:
    graft(compiled(flat(layers.Dense(K, **SOFTMAX)), "mse"))  # the Brier score
    graft(compiled(flat(layers.Dense(1, "sigmoid")), "binary_crossentropy"))
    graft(compiled(flat(layers.Dense(K)), "sparse_categorical_crossentropy"))
    graft(compiled(chain(layers.Dense(K), shape=SERIES.shape[1:]), "categorical_crossentropy"))
