"""`protect`: what it accepts, what it refuses, and that it changes nothing at first."""

import json
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_encryip as ke
from keras_encryip.errors import ArgumentError
from keras_encryip.models.protect import default_homophones

layers = keras.layers
K = 5
X = np.random.default_rng(1).random((64, 8, 8, 1), dtype="float32")
Y = np.random.default_rng(2).integers(0, K, 64)


@keras.saving.register_keras_serializable(package="tests")
class Subclass(keras.Model):
    """A subclassed classifier: Dense head as an attribute, then maybe a softmax layer."""

    def __init__(self, activation: str | None = None, layer: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.activation, self.layer = activation, layer
        self.flatten = layers.Flatten()
        self.hidden = layers.Dense(12, activation="tanh")
        self.head = layers.Dense(K, activation=activation)
        self.softmax = layers.Softmax() if layer else None

    def call(self, inputs: Any) -> Any:
        scores = self.head(self.hidden(self.flatten(inputs)))
        return scores if self.softmax is None else self.softmax(scores)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {**config, "activation": self.activation, "layer": self.layer}


def sequential(*tail: keras.layers.Layer) -> keras.Model:
    body = [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(12, activation="relu")]
    return keras.Sequential([*body, *tail])


def functional(*tail: keras.layers.Layer, nested: bool = False) -> keras.Model:
    inputs = keras.Input((8, 8, 1))
    wide, deep = layers.Dense(9)(layers.Flatten()(inputs)), layers.Conv2D(3, 3)(inputs)
    features = layers.Concatenate()([wide, layers.GlobalAveragePooling2D()(deep)])
    if nested:
        end = keras.Sequential([keras.Input((12,)), *tail])
        return keras.Model(inputs, end(features))
    for layer in tail:
        features = layer(features)
    return keras.Model(inputs, features)


def subclassed(**options: Any) -> keras.Model:
    model = Subclass(**options)
    model(X[:1])
    return model


CLASSIFIERS: dict[str, Callable[[], keras.Model]] = {
    "sequential-softmax": lambda: sequential(layers.Dense(K, activation="softmax")),
    "sequential-logits": lambda: sequential(layers.Dense(K)),
    "sequential-activation-layer": lambda: sequential(
        layers.Dense(K), layers.Activation("softmax")
    ),
    "sequential-softmax-layer": lambda: sequential(layers.Dense(K), layers.Softmax()),
    "sequential-no-bias": lambda: sequential(layers.Dense(K, use_bias=False)),
    "functional-softmax": lambda: functional(layers.Dense(K, activation="softmax")),
    "functional-logits": lambda: functional(layers.Dense(K)),
    "functional-softmax-layer": lambda: functional(layers.Dense(K), layers.Softmax()),
    "functional-nested": lambda: functional(layers.Dense(K), layers.Softmax(), nested=True),
    "subclass-softmax": lambda: subclassed(activation="softmax"),
    "subclass-logits": lambda: subclassed(),
    "subclass-softmax-layer": lambda: subclassed(layer=True),
}


def randomise(model: keras.Model) -> None:
    """Weights as after some training: no bias is zero."""
    random = np.random.default_rng(3)
    model.set_weights([random.normal(0, 0.5, w.shape).astype("float32") for w in model.weights])


def class_probabilities(model: keras.Model, x: np.ndarray) -> np.ndarray:
    outputs = model.predict(x, verbose=0)
    if not np.allclose(outputs.sum(-1), 1, atol=1e-4):
        outputs = keras.ops.convert_to_numpy(keras.ops.softmax(outputs))
    return outputs


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_trained_classifier_keeps_its_outputs(name: str, shared_authority: ke.Authority) -> None:
    classifier = CLASSIFIERS[name]()
    randomise(classifier)
    options = {"homophones": 4, "trace_labels": 8, "teacher": True}
    model = ke.protect(classifier, shared_authority, name=name, **options)
    confused = model.predict(X, verbose=0)
    assert confused.shape == (64, model.num_labels)
    assert model.num_labels >= 4 * K + 8
    difference = model.decode(confused) - class_probabilities(classifier, X)
    assert np.abs(difference).max() <= 2e-6


@pytest.mark.parametrize("name", ["sequential-softmax", "functional-logits", "subclass-softmax"])
def test_original_is_left_untouched(name: str, shared_authority: ke.Authority) -> None:
    classifier = CLASSIFIERS[name]()
    randomise(classifier)
    before = [w.copy() for w in classifier.get_weights()]
    outputs = classifier.predict(X, verbose=0)
    model = ke.protect(classifier, shared_authority, name=name, homophones=2, trace_labels=8)
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    start = [w.copy() for w in model.backbone.get_weights()]
    model.fit(X, Y, epochs=1, verbose=0)
    moved = [np.abs(a - b).max() for a, b in zip(start, model.backbone.get_weights(), strict=True)]
    assert min(moved) > 1e-4  # training did change the clone
    for old, new in zip(before, classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(outputs, classifier.predict(X, verbose=0))


def test_unbuilt_sequential_is_built_by_fit(shared_authority: ke.Authority) -> None:
    classifier = keras.Sequential(
        [layers.Flatten(), layers.Dense(6), layers.Dense(K), layers.Softmax()]
    )
    model = ke.protect(classifier, shared_authority, name="late", homophones=2, trace_labels=0)
    assert not model.built
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(X, Y, verbose=0)
    assert model.predict(X, verbose=0).shape == (64, 2 * K)
    assert not classifier.built


def test_teacher_is_the_trained_classifier_by_default(
    trained_classifier: keras.Model, new_classifier: Any, shared_authority: ke.Authority
) -> None:
    def protect(classifier: keras.Model, **options: Any) -> ke.ProtectedModel:
        options = {"homophones": 2, "trace_labels": 0, **options}
        return ke.protect(classifier, shared_authority, name="digits", **options)

    trained = protect(trained_classifier)
    assert trained._secrets.teacher is not None
    assert trained.confusion_weight == 1.0
    fresh = protect(new_classifier())
    assert fresh._secrets.teacher is None
    assert fresh.confusion_weight == 0.1
    declined = protect(trained_classifier, teacher=False)
    assert declined._secrets.teacher is None
    assert declined.confusion_weight == 0.1
    other = protect(new_classifier(), teacher=trained_classifier)
    assert other.confusion_weight == 1.0
    x = X[:4]
    expected = trained_classifier.predict(x, verbose=0)
    np.testing.assert_allclose(np.asarray(other._secrets.teach(x)), expected, atol=1e-6)


def test_fresh_head_is_not_copied(new_classifier: Any, shared_authority: ke.Authority) -> None:
    """Copies would stand side by side; fresh columns are all different."""
    options = {"homophones": 4, "trace_labels": 0}
    model = ke.protect(new_classifier(), shared_authority, name="fresh", **options)
    kernel = keras.ops.convert_to_numpy(model.confused_labels.kernel)
    assert len(np.unique(kernel.T, axis=0)) == 40


def test_trained_head_without_bias_is_copied(shared_authority: ke.Authority) -> None:
    """Without a bias to look at, the optimizer's steps show that it was trained."""
    classifier = sequential(layers.Dense(K, activation="softmax", use_bias=False))
    classifier.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    classifier.fit(X, Y, verbose=0)
    options = {"homophones": 2, "trace_labels": 0, "teacher": False}
    model = ke.protect(classifier, shared_authority, name="no-bias", **options)
    decoded = model.decode(model.predict(X, verbose=0))
    np.testing.assert_allclose(decoded, classifier.predict(X, verbose=0), atol=2e-6)


@pytest.mark.parametrize(
    ("classes", "traces", "copies", "expected"),
    [
        pytest.param(10, 64, 2, 64, id="cap-64"),
        pytest.param(100, 64, 2, 18, id="(2048-64)/100=19.8"),
        pytest.param(100, 64, 3, 18, id="whole-clusters-of-3"),
        pytest.param(100, 64, 4, 16, id="whole-clusters-of-4"),
        pytest.param(1000, 64, 2, 2, id="floor-2"),
        pytest.param(5000, 0, 2, 2, id="many-classes"),
        pytest.param(700, 0, 4, 2, id="cluster-larger-than-h"),
        pytest.param(2, 0, 1, 64, id="two-classes"),
    ],
)
def test_default_homophones(classes: int, traces: int, copies: int, expected: int) -> None:
    assert default_homophones(classes, traces, copies) == expected


def test_defaults(new_classifier: Any, shared_authority: ke.Authority) -> None:
    model = ke.protect(new_classifier(), shared_authority, name="defaults")
    assert model.num_labels == 704  # 10 · 64 + 64: whole blocks of 16
    assert (model.strategy, model.copies, model.name) == ("clustered", 2, "defaults")
    assert not model.is_locked()
    assert not model.compiled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "`name` must consist of letters.*TensorFlow cannot export.*name=''"),
        *(
            ({"name": name}, rf"`name` must consist of letters, digits.*{re.escape(repr(name))}")
            for name in ("a/b", "my digits", "zahlen-ä", "_x", "x:1", "x\n", 3)
        ),
        ({"name": "n" * 257}, r"cannot be kept: .*length <= 256 - at `\$.model`"),
        ({"notes": "n" * 65537}, r"cannot be kept: .*length <= 65536 - at `\$.notes`"),
        ({"class_names": ["a"] * 4}, "one name per class.*5 outputs. Received: 4 names"),
        ({"class_names": ["a"] * 6}, "one name per class.*5 outputs. Received: 6 names"),
        ({"class_names": ["n" * 257] * 5}, r"cannot be kept: .*at `\$.class_names\[0\]`"),
        ({"homophones": 0}, "`homophones` must be a positive integer. Received: homophones=0"),
        ({"homophones": 2.5}, "`homophones` must be a positive integer. .*=2.5"),
        ({"homophones": "4"}, "`homophones` must be a positive integer. .*='4'"),
        ({"trace_labels": -1}, "`trace_labels` must be an integer, not negative. .*=-1"),
        ({"trace_labels": 1.5}, "`trace_labels` must be an integer, not negative. .*=1.5"),
        ({"trace_labels": 10**6}, "`trace_labels` can be at most .* Received: .*=1000000"),
        ({"copies": 0}, "`copies` must be a positive integer. Received: copies=0"),
        ({"copies": 0.5}, "`copies` must be a positive integer. Received: copies=0.5"),
        ({"copies": True}, "`copies` must be a positive integer. Received: copies=True"),
        ({"strategy": "best"}, "`strategy` must be 'clustered' or 'random'. .*='best'"),
        ({"confusion_weight": -0.1}, "`confusion_weight` must be a number, not negative.*=-0.1"),
        ({"confusion_weight": float("nan")}, "`confusion_weight` must be a number.*=nan"),
        ({"confusion_weight": float("inf")}, "`confusion_weight` must be a number.*=inf"),
        ({"teacher_weight": 1.1}, "`teacher_weight` must be in 0 … 1. .*=1.1"),
        ({"teacher_weight": -0.1}, "`teacher_weight` must be in 0 … 1. .*=-0.1"),
        ({"temperature": 0}, "`temperature` must be a positive number. .*=0"),
        ({"temperature": float("inf")}, "`temperature` must be a positive number. .*=inf"),
        ({"teacher": "me"}, "`teacher` must be True, False or a trained keras.Model. .*str"),
        ({"authority": "acme"}, "`authority` must be an Authority. Received: str"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_refuses_arguments(
    options: dict[str, Any], message: str, shared_authority: ke.Authority
) -> None:
    arguments = {"authority": shared_authority, "name": "n", **options}
    models = shared_authority.models()
    with pytest.raises(ArgumentError, match=message):
        ke.protect(sequential(layers.Dense(K)), **arguments)
    assert shared_authority.models() == models  # nothing was written


def test_takes_numpy_integers(new_classifier: Any, shared_authority: ke.Authority) -> None:
    counts = {"homophones": np.int64(4), "trace_labels": np.int32(8), "copies": np.uint8(2)}
    model = ke.protect(new_classifier(), shared_authority, name="n", **counts)
    assert (type(model.num_labels), type(model.copies)) == (int, int)
    json.dumps(model.get_config())


def test_refuses_a_teacher_of_other_classes(
    new_classifier: Any, shared_authority: ke.Authority
) -> None:
    with pytest.raises(
        ArgumentError, match=r"`teacher` must be .* 10 outputs. Received: 5 outputs"
    ):
        ke.protect(new_classifier(), shared_authority, name="n", teacher=new_classifier(classes=5))


def test_refuses_an_unbuilt_teacher(new_classifier: Any, shared_authority: ke.Authority) -> None:
    unbuilt = keras.Sequential([layers.Flatten(), layers.Dense(10)])
    with pytest.raises(ArgumentError, match=r"`teacher` must be a trained .*10 outputs, not built"):
        ke.protect(new_classifier(), shared_authority, name="n", teacher=unbuilt)


def two_outputs() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, [layers.Dense(K)(inputs), layers.Dense(K)(inputs)])


class Opaque(keras.Model):
    """Ends in no attribute that is a Dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = [layers.Flatten(), layers.Dense(K)]

    def call(self, inputs: Any) -> Any:
        return self.inner[1](self.inner[0](inputs))


def opaque() -> keras.Model:
    model = Opaque()
    model(X[:1])
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: "model", "`classifier` must be a keras.Model. .*str", id="no-model"),
        pytest.param(
            lambda: sequential(layers.Dense(K), layers.BatchNormalization()),
            "must end in `Dense.K.`.*ends in BatchNormalization",
            id="no-dense-head",
        ),
        pytest.param(keras.Sequential, "must end in `Dense.K.`.*ends in nothing", id="empty"),
        pytest.param(
            lambda: sequential(layers.Dense(1, activation="sigmoid")),
            "at least 2. Received: units=1. .* Dense.2, 'softmax'.",
            id="binary",
        ),
        pytest.param(
            lambda: sequential(layers.Dense(K, activation="sigmoid")),
            "single softmax or no activation. Received: activation='sigmoid'",
            id="sigmoid",
        ),
        pytest.param(
            lambda: sequential(layers.Dense(K, activation="softmax"), layers.Softmax()),
            "single softmax or no activation. Received: activation='softmax'",
            id="two-softmaxes",
        ),
        pytest.param(two_outputs, "must have one output. Received: 2 outputs", id="two-outputs"),
        pytest.param(Subclass, "must be built first: call .* once on a batch", id="unbuilt"),
        pytest.param(opaque, r"\(Opaque\) does not end in an attribute", id="hidden-head"),
    ],
)
def test_refuses_classifiers(
    make: Callable[[], Any], message: str, shared_authority: ke.Authority
) -> None:
    with pytest.raises(ArgumentError, match=message):
        ke.protect(make(), shared_authority, name="n")


def compiled(authority: ke.Authority, loss: Any = None, **options: Any) -> ke.ProtectedModel:
    classifier = sequential(layers.Dense(K))
    options = {"homophones": 4, "trace_labels": 8, **options}
    model = ke.protect(classifier, authority, name="n", **options)
    model.compile("sgd", loss or "sparse_categorical_crossentropy")
    return model


@pytest.mark.parametrize("bad", [K, -1])
@pytest.mark.parametrize("source", ["numpy", "tf.data"])
def test_fit_refuses_labels_out_of_range(
    bad: int, source: str, shared_authority: ke.Authority
) -> None:
    y = Y.copy()
    y[7] = bad
    data = (X, y) if source == "numpy" else (tf.data.Dataset.from_tensor_slices((X, y)).batch(16),)
    with pytest.raises(ArgumentError, match=rf"Labels must be in 0 … 4 .*Received: .*{bad}"):
        compiled(shared_authority).fit(*data, verbose=0)


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.losses.CategoricalCrossentropy(from_logits=True),
    ],
    ids=["sparse", "one-hot"],
)
def test_refuses_a_loss_from_logits(loss: Any, shared_authority: ke.Authority) -> None:
    model = compiled(shared_authority, loss)
    for work in (model.fit, model.evaluate, model.test_on_batch):
        with pytest.raises(ArgumentError, match=r"`from_logits=False`. Received: .*=True"):
            work(X, Y)


def test_clustering_refuses_token_ids(shared_authority: ke.Authority) -> None:
    classifier = keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(50, 4),
            layers.Flatten(),
            layers.Dense(K),
        ]
    )
    model = ke.protect(classifier, shared_authority, name="n", homophones=4, trace_labels=0)
    tokens = np.random.default_rng(0).integers(0, 50, (64, 6)).astype("int32")
    with pytest.raises(ArgumentError, match=r"look like token ids .* `strategy='random'`"):
        model.adapt(tokens, Y)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        pytest.param(
            {"a": X}, Y, "need a single input array. Received: inputs of type dict", id="dict"
        ),
        pytest.param(X, Y[:9], "different lengths. Received: 64 and 9", id="lengths"),
        pytest.param(X, np.zeros((64, 3, 1), int), "one label per input", id="sequence-labels"),
        pytest.param(X, None, "Labels are needed to learn .* `model.adapt", id="no-labels"),
        pytest.param(
            iter([(X, Y)]), None, "Labels are needed .* call `model.adapt", id="generator"
        ),
        pytest.param(
            tf.data.Dataset.from_tensor_slices(X).batch(8), None, "has no labels", id="no-pairs"
        ),
    ],
)
def test_adapt_refuses_data(x: Any, y: Any, message: str, shared_authority: ke.Authority) -> None:
    with pytest.raises(ArgumentError, match=message):
        compiled(shared_authority).adapt(x, y)
