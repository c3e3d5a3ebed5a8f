"""Taking a classifier apart: features here, the last `Dense(K)` there."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from keras_encryip.errors import ArgumentError
from keras_encryip.models.backbone import split_classifier

K = 5
Factory = Callable[[], keras.Model]
CASES: dict[str, Factory] = {}


def case(factory: Factory) -> Factory:
    CASES[factory.__name__.replace("_", "-")] = factory
    return factory


def trunk() -> list[keras.layers.Layer]:
    return [layers.Dense(7, "relu"), layers.BatchNormalization(), layers.Dropout(0.5)]


def sequential(*ends: keras.layers.Layer) -> keras.Sequential:
    return keras.Sequential([keras.Input((6,)), *trunk(), *ends])


# --- built classifiers that can be split -------------------------------------------


@case
def sequential_softmax() -> keras.Model:
    return sequential(layers.Dense(K, "softmax"))


@case
def sequential_softmax_layer() -> keras.Model:
    return sequential(layers.Dense(K), layers.Softmax())


@case
def sequential_activation_layer() -> keras.Model:
    return sequential(layers.Dense(K), layers.Activation("softmax", dtype="float32"))


@case
def sequential_logits() -> keras.Model:
    return sequential(layers.Dense(K))


@case
def sequential_linear_activation() -> keras.Model:
    return sequential(layers.Dense(K, "softmax"), layers.Activation("linear"))


@case
def without_bias() -> keras.Model:
    return sequential(layers.Dense(K, "softmax", use_bias=False))


@case
def only_a_dense() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), layers.Dense(K, "softmax")])


@case
def only_a_dense_functional() -> keras.Model:
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(K, "softmax")(inputs))


@case
def built_by_calling() -> keras.Model:
    model = keras.Sequential([*trunk(), layers.Dense(K, "softmax")])
    model(np.zeros((2, 6), "float32"))
    return model


@case
def branching() -> keras.Model:
    inputs = keras.Input((6,))
    left, right = layers.Dense(4, "relu")(inputs), layers.Dense(4, "tanh")(inputs)
    x = layers.Concatenate()([layers.Add()([left, right]), inputs])
    return keras.Model(inputs, layers.Softmax()(layers.Dense(K)(x)))


@case
def shared_layer() -> keras.Model:
    inputs = keras.Input((6,))
    square = layers.Dense(6, "relu")
    return keras.Model(inputs, layers.Dense(K, "softmax")(square(square(inputs))))


@case
def dict_inputs() -> keras.Model:
    inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((3,), name="b")}
    x = layers.Concatenate()([inputs["a"], layers.Dense(2)(inputs["b"])])
    return keras.Model(inputs, layers.Dense(K, "softmax")(x))


@case
def list_inputs() -> keras.Model:
    inputs = [keras.Input((6,)), keras.Input((3,))]
    return keras.Model(inputs, layers.Dense(K)(layers.Concatenate()(inputs)))


@case
def nested_last() -> keras.Model:
    inputs = keras.Input((6,))
    return keras.Model(inputs, sequential_softmax()(layers.Dense(6)(inputs)))


@case
def nested_twice_with_outer_softmax() -> keras.Model:
    middle = keras.Sequential([keras.Input((6,)), layers.Dense(6), sequential_logits()])
    return keras.Sequential([keras.Input((6,)), middle, layers.Softmax()])


@case
def nested_with_several_inputs() -> keras.Model:
    inputs = [keras.Input((6,)), keras.Input((3,))]
    return keras.Model(inputs, list_inputs()([layers.Dense(6)(inputs[0]), inputs[1]]))


@case
def nested_with_several_outputs() -> keras.Model:
    """The inner model's second output is the classifier."""
    inner_inputs = keras.Input((6,))
    x = layers.Dense(4, "relu")(inner_inputs)
    outputs = [layers.Dense(K, "softmax")(x), layers.Dense(K, "softmax")(x)]
    inner = keras.Model(inner_inputs, outputs)
    inputs = keras.Input((6,))
    return keras.Model(inputs, inner(inputs)[1])


@case
def backbone_then_dense() -> keras.Model:
    backbone = keras.Sequential([keras.Input((6,)), *trunk()])
    return keras.Sequential([backbone, layers.Dense(K, "softmax")])


@case
def segmentation() -> keras.Model:
    return keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, padding="same"), layers.Dense(K, "softmax")]
    )


@case
def tokens() -> keras.Model:
    return keras.Sequential(
        [keras.Input((9,), dtype="int32"), layers.Embedding(20, 4), layers.GRU(6), layers.Dense(K)]
    )


@case
def mobile_net() -> keras.Model:
    return keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=K)


@keras.saving.register_keras_serializable(package="tests_classifier")
class Subclass(keras.Model):
    """Dense(K) named `head`, alone or before `softmax`, behind a decoy of the same width."""

    def __init__(self, activation: str | None = None, layer: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.activation, self.layer = activation, layer
        self.head = layers.Dense(K, activation)
        self.decoy = layers.Dense(K, "tanh")
        self.norm = layers.BatchNormalization()
        if layer:
            self.softmax = layers.Softmax()

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        outputs = self.head(self.norm(self.decoy(inputs), training=training))
        return self.softmax(outputs) if self.layer else outputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "activation": self.activation, "layer": self.layer}


def called(model: keras.Model) -> keras.Model:
    model(np.zeros((2, 6), "float32"))
    return model


def subclass(activation: str | None = None, layer: bool = False) -> keras.Model:
    return called(Subclass(activation, layer))


@keras.saving.register_keras_serializable(package="tests_classifier")
class Reshaped(keras.Model):
    """A Dense of the head's width that nothing can be put in place of."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.head = layers.Dense(K, "softmax")
        self.middle = layers.Dense(K)
        self.fold = layers.Reshape((K, 1))
        self.flat = layers.Flatten()

    def call(self, inputs: Any) -> Any:
        return self.head(self.flat(self.fold(self.middle(inputs))))


@case
def subclass_with_a_decoy_of_its_own_shape() -> keras.Model:
    return called(Reshaped())


CASES["subclass-softmax"] = lambda: subclass("softmax")
CASES["subclass-logits"] = lambda: subclass(None)
CASES["subclass-softmax-layer"] = lambda: subclass(None, layer=True)


def train_a_bit(model: keras.Model) -> None:
    """Weights as after training: biases and statistics are no longer 0 and 1."""
    random = np.random.default_rng(0)
    model.set_weights(
        [np.abs(w + random.normal(0, 0.3, w.shape)).astype(w.dtype) for w in model.get_weights()]
    )


def samples(model: keras.Model) -> Any:
    random = np.random.default_rng(1)

    def sample(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        values = random.integers(0, 20, (11, *shape[1:])) if dtype == "int32" else None
        return random.normal(size=(11, *shape[1:])).astype("float32") if values is None else values

    if isinstance(model, (Subclass, Reshaped)):
        return sample((None, 6), "float32")
    return keras.tree.map_structure(
        lambda tensor: sample(tensor.shape, tensor.dtype),
        model.inputs[0] if isinstance(model, keras.Sequential) else model.input,
    )


def predict(model: keras.Model, x: Any) -> np.ndarray:
    return np.asarray(model(x, training=False))


@pytest.mark.parametrize("factory", CASES.values(), ids=CASES)
def test_backbone_and_head_give_the_classifiers_outputs(factory: Factory) -> None:
    classifier = factory()
    train_a_bit(classifier)
    before, x = [np.copy(w) for w in classifier.get_weights()], samples(classifier)
    outputs = predict(classifier, x)
    split = split_classifier(classifier)

    logits = np.asarray(split.logits(x))
    probabilities = logits if split.from_logits else np.asarray(keras.ops.softmax(logits))
    np.testing.assert_allclose(probabilities, outputs, atol=1e-6, rtol=1e-5)
    assert split.num_classes == K
    assert split.from_logits is bool(abs(outputs.sum(-1) - 1).max() > 1e-3)
    features = np.asarray(split.backbone(x, training=False))
    assert split.kernel is not None
    by_hand = features @ split.kernel + (0 if split.bias is None else split.bias)
    np.testing.assert_allclose(logits, by_hand, atol=1e-5, rtol=1e-5)

    # The clone shares nothing with the original.
    for weight in split.backbone.weights:
        weight.assign(keras.ops.zeros_like(weight) + 0.5)
    for now, then in zip(classifier.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    np.testing.assert_array_equal(predict(classifier, x), outputs)


@pytest.mark.parametrize("factory", CASES.values(), ids=CASES)
def test_the_backbone_survives_its_configuration(factory: Factory) -> None:
    classifier = factory()
    train_a_bit(classifier)
    x = samples(classifier)
    backbone = split_classifier(classifier).backbone
    config = keras.saving.serialize_keras_object(backbone)
    again = keras.saving.deserialize_keras_object(config)
    again(x)
    again.set_weights(backbone.get_weights())
    np.testing.assert_allclose(again(x, training=False), backbone(x, training=False), atol=1e-6)


def test_what_is_known_of_the_input_and_the_bias() -> None:
    split = split_classifier(sequential_softmax())
    assert split.input_shape == (None, 6)
    assert (split.use_bias, split.looks_trained) == (True, False)
    split = split_classifier(without_bias())
    assert (split.use_bias, split.bias, split.looks_trained) == (False, None, False)
    assert split_classifier(dict_inputs()).input_shape == {"a": (None, 6), "b": (None, 3)}
    assert split_classifier(subclass("softmax")).input_shape == (2, 6)
    classifier = sequential_softmax()
    classifier.layers[-1].bias.assign(np.eye(K)[0])
    assert split_classifier(classifier).looks_trained


@pytest.mark.parametrize("end", ["softmax", "softmax-layer", "logits"])
def test_an_unbuilt_sequential_gives_an_unbuilt_backbone(end: str) -> None:
    head = layers.Dense(K, "softmax" if end == "softmax" else None, use_bias=end != "logits")
    tail = [layers.Softmax()] if end == "softmax-layer" else []
    classifier = keras.Sequential([*trunk(), head, *tail])
    split = split_classifier(classifier)
    assert (split.num_classes, split.kernel, split.bias) == (K, None, None)
    assert (split.use_bias, split.from_logits) == (end != "logits", end == "logits")
    assert split.input_shape is None
    assert not split.backbone.built
    assert split.backbone(np.zeros((3, 6), "float32")).shape == (3, 7)
    assert not classifier.built
    assert split.backbone.layers[0] is not classifier.layers[0]


# --- classifiers that cannot be split ------------------------------------------------


def unbuilt_subclass() -> keras.Model:
    return Subclass("softmax")


class NoHead(keras.Model):
    """A sum instead of a last Dense."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = layers.Dense(K)

    def call(self, inputs: Any) -> Any:
        return keras.ops.softmax(self.dense(inputs) + self.dense(inputs) ** 2)


class NoKeywords(keras.Model):
    """Keras cannot rebuild it: `trainable` and `dtype` are no arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.head = layers.Dense(K, "softmax")

    def call(self, inputs: Any) -> Any:
        return self.head(inputs)


class NeedsArguments(keras.Model):
    """Keras cannot rebuild it: the argument has no configuration."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.head = layers.Dense(K, "softmax")

    def call(self, inputs: Any) -> Any:
        return self.head(self.function(inputs))


def two_outputs() -> keras.Model:
    inputs = keras.Input((6,))
    return keras.Model(inputs, [layers.Dense(K)(inputs), layers.Dense(K)(inputs)])


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no-model": (lambda: layers.Dense(K), "must be a keras.Model. Received: Dense"),
    "flatten-last": (
        lambda: sequential(layers.Dense(K), layers.Flatten()),
        "must end in `Dense.K.`.*it ends in Flatten",
    ),
    "input-only": (lambda: keras.Sequential([keras.Input((6,))]), "it ends in nothing"),
    "nothing": (lambda: keras.Sequential([]), "it ends in nothing"),
    "sigmoid": (lambda: sequential(layers.Dense(K, "sigmoid")), "Received: activation='sigmoid'"),
    "relu-unbuilt": (
        lambda: keras.Sequential([layers.Dense(K, "relu")]),
        "Received: activation='relu'",
    ),
    "two-softmaxes": (
        lambda: sequential(layers.Dense(K, "softmax"), layers.Softmax()),
        "single softmax or no activation. Received: activation='softmax'",
    ),
    "two-softmax-layers": (
        lambda: sequential(layers.Dense(K), layers.Softmax(), layers.Softmax()),
        "single softmax or no activation",
    ),
    "relu-layer": (lambda: sequential(layers.Dense(K), layers.ReLU()), "it ends in ReLU"),
    "one-unit": (
        lambda: sequential(layers.Dense(1, "sigmoid")),
        r"at least 2. Received: units=1.*needs Dense\(2, 'softmax'\)",
    ),
    "two-outputs": (two_outputs, "must have one output. Received: 2 outputs"),
    "unbuilt-subclass": (unbuilt_subclass, "must be built first: call 'subclass.*' once"),
    "subclass-no-head": (lambda: called(NoHead()), "does not end in an attribute that is"),
    "subclass-sigmoid": (lambda: called(Subclass("sigmoid")), "activation='sigmoid'"),
    "subclass-no-kwargs": (
        lambda: called(NoKeywords()),
        r"NoKeywords needs an `__init__` that passes `\*\*kwargs` on",
    ),
    "subclass-no-config": (
        lambda: called(NeedsArguments(lambda x: 2 * x)),
        "must allow Keras to rebuild it: NeedsArguments needs .* `get_config`",
    ),
}


@pytest.mark.parametrize(("factory", "message"), REFUSED.values(), ids=REFUSED)
def test_other_classifiers_are_refused(factory: Callable[[], Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        split_classifier(factory())


def test_a_split_does_not_follow_the_original() -> None:
    """The head's arrays are copies as well."""
    classifier = sequential_softmax()
    split = split_classifier(classifier)
    assert split.kernel is not None
    kernel = split.kernel.copy()
    classifier.layers[-1].kernel.assign(np.zeros_like(kernel))
    np.testing.assert_array_equal(split.kernel, kernel)
