"""`protect`: its arguments, its defaults, and what it refuses of data."""

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
from keras_encryip.models.homophones import RandomHomophones
from keras_encryip.models.protect import default_homophones

layers = keras.layers
K = 5
X = np.random.default_rng(1).random((64, 8, 8, 1), dtype="float32")
Y = np.random.default_rng(2).integers(0, K, 64)


def sequential(*tail: keras.layers.Layer) -> keras.Model:
    body = [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(12, activation="relu")]
    return keras.Sequential([*body, *tail])


def test_unbuilt_sequential_is_built_by_fit(shared_authority: ke.Authority) -> None:
    """With the head of a built one: copies, so that nothing changes at first."""
    classifier = keras.Sequential(
        [layers.Flatten(), layers.Dense(6), layers.Dense(K), layers.Softmax()]
    )
    model = ke.protect(classifier, shared_authority, name="late", homophones=2, trace_labels=0)
    assert not model.built
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    model.fit(X, Y, verbose=0)
    confused = model.predict(X, verbose=0)
    assert confused.shape == (64, 2 * K)
    assert classifier.built, "both have the same layers"
    expected = classifier.predict(X, verbose=0)
    np.testing.assert_allclose(model.decode(confused), expected, atol=2e-6)


def test_a_teacher_is_asked_for(
    trained_classifier: keras.Model, new_classifier: Any, shared_authority: ke.Authority
) -> None:
    def teacher(classifier: keras.Model, **options: Any) -> Any:
        options = {"homophones": 2, "trace_labels": 0, **options}
        model = ke.protect(classifier, shared_authority, name="digits", **options)
        assert model.confusion_weight == 0.1, "whoever teaches"
        return model._secrets.teacher

    x = X[:4]
    expected = trained_classifier.predict(x, verbose=0)
    assert teacher(trained_classifier) is None
    assert teacher(new_classifier(), teacher=False) is None
    own = teacher(trained_classifier, teacher=True).probabilities(x)
    np.testing.assert_allclose(own, expected, atol=1e-6)
    own = teacher(new_classifier(), teacher=True).probabilities(x)
    assert np.abs(np.asarray(own) - expected).max() > 0.1
    other = teacher(new_classifier(), teacher=trained_classifier).probabilities(x)
    np.testing.assert_allclose(other, expected, atol=1e-6)


def test_head_starts_as_copies(new_classifier: Any, shared_authority: ke.Authority) -> None:
    """A fresh one, too; trace labels are silent. Keys' sums need no bias for copies."""
    classifier = new_classifier()
    options = {"homophones": 4, "trace_labels": 8}
    model = ke.protect(classifier, shared_authority, name="fresh", **options)
    assignment = model._unlocked().assignment()
    kernel, bias = (keras.ops.convert_to_numpy(w) for w in model.confused_labels.weights)
    expected = keras.ops.convert_to_numpy(classifier.layers[-1].kernel)
    for copy in range(4):
        np.testing.assert_array_equal(kernel[:, assignment.labels[:, copy]], expected)
    assert not bias[assignment.labels].any()
    assert (bias[assignment.trace] < -10).all()
    confused = model.predict(X, verbose=0)
    assert confused[:, assignment.trace].max() < 1e-5


@pytest.mark.parametrize(
    ("classes", "traces", "copies", "expected"),
    [
        pytest.param(10, 64, 2, 64, id="cap-64"),
        pytest.param(100, 64, 2, 18, id="(2048-64)/100=19.8"),
        pytest.param(100, 64, 3, 18, id="whole-clusters-of-3"),
        pytest.param(100, 64, 4, 16, id="whole-clusters-of-4"),
        pytest.param(1000, 64, 2, 1, id="room-for-one"),
        pytest.param(5000, 0, 2, 1, id="many-classes"),
        pytest.param(700, 0, 4, 2, id="cluster-larger-than-h"),
        pytest.param(2, 0, 1, 64, id="two-classes"),
    ],
)
def test_default_homophones(classes: int, traces: int, copies: int, expected: int) -> None:
    assert default_homophones(classes, traces, copies) == expected


def test_defaults(new_classifier: Any, shared_authority: ke.Authority) -> None:
    model = ke.protect(new_classifier(), shared_authority, name="defaults")
    assert model.num_labels == 768  # 10 · 64 + 128
    assert (model.strategy, model.copies, model.name) == ("automatic", 2, "defaults")
    assert model.head == {"use_bias": True, "trainable": True}
    assert not model.is_locked()
    assert not model.compiled


def frozen_head() -> keras.Model:
    return sequential(layers.Dense(K, name="end", trainable=False))


def word_counts() -> keras.Model:
    return keras.Sequential([keras.Input((1,), dtype="string"), layers.StringLookup(
        vocabulary=["a", "b"], output_mode="one_hot"), layers.Dense(K)])  # fmt: skip


def two_inputs() -> keras.Model:
    inputs = [keras.Input((4,)), keras.Input((3,))]
    return keras.Model(inputs, layers.Dense(K)(layers.Concatenate()(inputs)))


def tokens() -> keras.Model:
    body = [keras.Input((6,), dtype="int32"), layers.Embedding(50, 4), layers.Flatten()]
    return keras.Sequential([*body, layers.Dense(K)])


def tagging() -> keras.Model:
    return keras.Sequential([keras.Input((6, 3)), layers.Dense(K)])


def series() -> keras.Model:
    body = [keras.Input((None, 3)), layers.GlobalAveragePooling1D()]
    return keras.Sequential([*body, layers.Dense(K)])


def fixed() -> keras.Model:
    return sequential(layers.Dense(K))


@pytest.mark.parametrize(
    ("make", "homophones", "traces", "strategy"),
    [
        pytest.param(fixed, 64, 128, "automatic", id="fixed"),
        pytest.param(frozen_head, 1, 0, "automatic", id="frozen-head"),
        pytest.param(word_counts, 64, 0, "random", id="strings"),
        pytest.param(two_inputs, 64, 0, "random", id="two-inputs"),
        pytest.param(tokens, 64, 128, "random", id="token-ids"),
        pytest.param(tagging, 64, 128, "random", id="label-per-token"),
        pytest.param(series, 64, 128, "random", id="open-axis"),
    ],
)
def test_defaults_follow_the_classifier(
    make: Callable[[], keras.Model],
    homophones: int,
    traces: int,
    strategy: str,
    shared_authority: ke.Authority,
) -> None:
    model = ke.protect(make(), shared_authority, name="n")
    assignment = model._unlocked().assignment()
    assert (assignment.homophones, model.strategy) == (homophones, strategy)
    assert assignment.trace.size == traces


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (frozen_head, {"homophones": 2}, "'end', is frozen.*Pass `homophones=1`"),
        (frozen_head, {"trace_labels": 8}, "'end', is frozen. Pass `trace_labels=0`"),
        (word_counts, {"trace_labels": 8}, "takes strings. Pass `trace_labels=0`"),
        (two_inputs, {"trace_labels": 8}, "takes 2 inputs in a list. Pass `trace_labels=0`"),
        (two_inputs, {"strategy": "clustered"}, "need a single input.*`strategy='random'`"),
        (tokens, {"strategy": "clustered"}, "look like token ids.*`strategy='random'`"),
        (tagging, {"strategy": "clustered"}, "need one label per input.*`strategy='random'`"),
        (word_counts, {"strategy": "clustered"}, "that are numbers.*`strategy='random'`"),
        (series, {"strategy": "clustered"}, "need dense inputs of one shape.*`strategy='random'`"),
    ],
)
def test_refuses_what_the_classifier_cannot_have(
    make: Callable[[], keras.Model],
    options: dict[str, Any],
    message: str,
    shared_authority: ke.Authority,
) -> None:
    models = shared_authority.models()
    with pytest.raises(ArgumentError, match=message):
        ke.protect(make(), shared_authority, name="n", **options)
    assert shared_authority.models() == models


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
        ({"class_names": ["a\ud800"] * 5}, "`class_names` or `notes` cannot be kept"),
        ({"class_names": ["n" * 257] * 5}, r"cannot be kept: .*at `\$.class_names\[0\]`"),
        ({"homophones": 0}, "`homophones` must be a positive integer. Received: homophones=0"),
        ({"homophones": 2.5}, "`homophones` must be a positive integer. .*=2.5"),
        ({"homophones": "4"}, "`homophones` must be a positive integer. .*='4'"),
        ({"trace_labels": -1}, "`trace_labels` must be an integer, not negative. .*=-1"),
        ({"trace_labels": 1.5}, "`trace_labels` must be an integer, not negative. .*=1.5"),
        (
            {"trace_labels": 10**6},
            "`trace_labels` must be in 0 … 512, half of the .* 1024 slots.* Received: .*=1000000",
        ),
        ({"copies": 0}, "`copies` must be a positive integer. Received: copies=0"),
        ({"copies": 0.5}, "`copies` must be a positive integer. Received: copies=0.5"),
        ({"copies": True}, "`copies` must be a positive integer. Received: copies=True"),
        (
            {"strategy": "best"},
            "`strategy` must be 'automatic' or 'clustered' or 'random'. .*='best'",
        ),
        ({"confusion_weight": -0.1}, "`confusion_weight` must be a number, not negative.*=-0.1"),
        ({"confusion_weight": float("nan")}, "`confusion_weight` must be a number.*=nan"),
        ({"confusion_weight": float("inf")}, "`confusion_weight` must be a number.*=inf"),
        ({"teacher_weight": 1.1}, "`teacher_weight` must be in 0 … 1. .*=1.1"),
        ({"teacher_weight": -0.1}, "`teacher_weight` must be in 0 … 1. .*=-0.1"),
        ({"temperature": 0}, "`temperature` must be a positive number. .*=0"),
        ({"temperature": float("inf")}, "`temperature` must be a positive number. .*=inf"),
        ({"teacher": "me"}, "`teacher` must be True, False or a trained keras.Model. .*str"),
        (
            {"authority": "acme"},
            "`authority` must be an Authority, from `Authority.open.*Received: str",
        ),
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


def compiled(authority: ke.Authority, **options: Any) -> ke.ProtectedModel:
    classifier = sequential(layers.Dense(K))
    options = {"homophones": 4, "trace_labels": 8, **options}
    model = ke.protect(classifier, authority, name="n", **options)
    model.compile("sgd", "sparse_categorical_crossentropy")
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


@pytest.mark.parametrize("strategy", ["automatic", "clustered"])
def test_data_tell_what_the_classifier_does_not(
    strategy: str, shared_authority: ke.Authority
) -> None:
    """Token ids for a classifier that says it takes floats."""
    body = [keras.Input((6,)), layers.Embedding(50, 4), layers.Flatten()]
    classifier = keras.Sequential([*body, layers.Dense(K)])
    options = {"homophones": 4, "trace_labels": 0, "strategy": strategy}
    model = ke.protect(classifier, shared_authority, name="n", **options)
    tokens = np.random.default_rng(0).integers(0, 50, (64, 6)).astype("int32")
    if strategy == "automatic":
        model.adapt(tokens, Y)
        assert isinstance(model._unlocked().training.homophones, RandomHomophones)
    else:
        with pytest.raises(ArgumentError, match=r"look like token ids .* `strategy='random'`"):
            model.adapt(tokens, Y)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
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
        compiled(shared_authority, strategy="clustered").adapt(x, y)
