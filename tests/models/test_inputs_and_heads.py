"""Inputs and heads that need care: binary, per pixel, sparse, stateful, float64, of any size."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
from keras import layers, ops

import keras_encryip as ke
from keras_encryip.errors import ArgumentError
from tests.models.cases import CASES, fresh
from tests.models.classifiers import (
    IMAGES,
    NUMBERS,
    SERIES,
    SOFT,
    chain,
    class_probabilities,
    decoded,
    of_inputs,
    randomise,
    small_unet,
)
from tests.models.custom_layers import K, Subclass, Valid

OPTIONS = {"homophones": 2, "trace_labels": 8}
Y = np.random.default_rng(5).integers(0, K, 12)


def unless_refused(
    classifier: keras.Model, authority: ke.Authority, **options: Any
) -> ke.ProtectedModel | None:
    """`protect`, with its defaults; `None` if it refuses, before anything is in the ledger."""
    before, refused = authority.models(), False
    try:
        return ke.protect(classifier, authority, name="care", **options)
    except ArgumentError:
        refused = True
    assert refused
    assert authority.models() == before
    return None


# --- two classes by a sigmoid --------------------------------------------------------------

BINARY = ["sigmoid", "sigmoid-layer", "ops-sigmoid", "subclass-sigmoid", "subclass-sigmoid-in-call"]


def binary_settings() -> dict[str, Any]:
    return {
        "loss": "binary_crossentropy",
        "metrics": [
            "accuracy",
            keras.metrics.AUC(name="auc"),
            keras.metrics.BinaryAccuracy(name="binary"),
            keras.metrics.Precision(name="precision"),
            keras.metrics.Recall(name="recall"),
        ],
    }


@pytest.mark.long
@pytest.mark.parametrize("column", [False, True], ids=["labels-n", "labels-n-1"])
@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str, column: bool, shared_authority: ke.Authority) -> None:
    """`evaluate` is as before, `decode` gives (1 − p, p), and `fit` learns."""
    classifier = fresh(name)
    randomise(classifier)
    y = np.arange(12) % 2
    y = y[:, None] if column else y
    p = np.asarray(classifier(IMAGES, training=False))
    classifier.compile("sgd", **binary_settings())
    expected = classifier.evaluate(IMAGES, y, verbose=0, return_dict=True)
    model = ke.protect(classifier, shared_authority, name=name, class_names=["no", "yes"])
    answers = model.decode(model.predict(IMAGES, verbose=0))
    assert answers.shape == (12, 2)
    np.testing.assert_allclose(answers, np.concatenate([1 - p, p], axis=1), atol=1e-5)
    model.compile(keras.optimizers.Adam(0.02), **binary_settings())
    assert model.evaluate(IMAGES, y, verbose=0, return_dict=True) == pytest.approx(
        expected, rel=1e-4, abs=1e-6
    )
    history = model.fit(IMAGES, y, epochs=60, batch_size=6, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    answers = model.decode(model.predict(IMAGES, verbose=0))
    assert (answers.argmax(1) == y.reshape(-1)).mean() >= 0.9


def test_binary_weights_and_validation(shared_authority: ke.Authority) -> None:
    """Class weights, sample weights and validation splits of binary labels."""
    y = np.arange(12) % 2
    model = ke.protect(fresh("sigmoid"), shared_authority, name="binary")
    model.compile("adam", **binary_settings())
    model.fit(IMAGES, y, class_weight={0: 1.0, 1: 5.0}, validation_split=0.25, verbose=0)
    history = model.fit(IMAGES, y.astype("float32"), sample_weight=np.ones(12), verbose=0).history
    names = {"loss", "accuracy", "auc", "binary", "precision", "recall", "confusion_loss"}
    assert set(history) == names


# --- a class for each pixel ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv-head", "conv-head-softmax-layer", "conv-1d-head"])
def test_one_class_per_place(name: str, shared_authority: ke.Authority) -> None:
    case, classifier = CASES[name], fresh(name)
    randomise(classifier)
    y = np.random.default_rng(1).integers(0, K, class_probabilities(classifier, case.x).shape[:-1])
    settings = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
    classifier.compile("sgd", **settings)
    expected = classifier.evaluate(case.x, y, verbose=0)
    model = ke.protect(classifier, shared_authority, name=name)
    model.compile("adam", **settings)
    assert model.evaluate(case.x, y, verbose=0) == pytest.approx(expected, rel=1e-4)
    model.fit(case.x, y, batch_size=6, verbose=0)
    assert model.predict(case.x, verbose=0).shape == (*y.shape, model.num_labels)


@pytest.mark.long
def test_segmentation_learns(shared_authority: ke.Authority) -> None:
    """Bright or dark: the label of each pixel, by the defaults of `protect`."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).random((64, 8, 8, 1), dtype="float32")
    y = (x[..., 0] > 0.5).astype("int32")
    classifier = small_unet(layers.Conv2D(2, 1, activation="softmax"))
    model = ke.protect(classifier, shared_authority, name="bright")
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=30, batch_size=16, verbose=0)
    assert (model.decode(model.predict(x, verbose=0)).argmax(-1) == y).mean() > 0.9


# --- images of several sizes --------------------------------------------------------------


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras's, of generators
@pytest.mark.parametrize("kind", ["functional", "subclass"])
def test_images_of_several_sizes(kind: str, shared_authority: ke.Authority) -> None:
    body = (
        [Valid()]
        if kind == "subclass"
        else [
            layers.Conv2D(4, 5),
            layers.Conv2D(4, 5),
            layers.GlobalMaxPooling2D(),
            layers.Dense(K, **SOFT),
        ]
    )
    classifier = chain(*body, shape=(None, None, 3))
    random = np.random.default_rng(0)
    batches = [
        (random.random((4, size, size + 3, 3), dtype="float32"), np.arange(4) % K)
        for size in (10, 14, 23, 11)
    ]

    def generate() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield from batches

    signature = tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None,), "int64")
    data = tf.data.Dataset.from_generator(generate, output_signature=signature)
    expected = [class_probabilities(classifier, x) for x, _ in batches]
    model = ke.protect(classifier, shared_authority, name="sizes")
    for (x, _), outputs in zip(batches, expected, strict=True):
        np.testing.assert_allclose(decoded(model, x), outputs, atol=1e-5)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(data, epochs=2, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert math.isfinite(model.evaluate(data, verbose=0)[0])


# --- sparse, stateful, several inputs ---------------------------------------------------------


@pytest.mark.parametrize("form", ["scipy", "tf"])
def test_sparse_inputs(form: str, shared_authority: ke.Authority) -> None:
    inputs = keras.Input((20,), sparse=True)
    hidden = layers.Dense(5, activation="tanh")(inputs)
    classifier = keras.Model(inputs, layers.Dense(K, **SOFT)(hidden))
    dense = np.random.default_rng(0).random((12, 20)) * (np.arange(240).reshape(12, 20) % 4 == 0)
    dense = dense.astype("float32")
    x = scipy.sparse.csr_matrix(dense) if form == "scipy" else tf.sparse.from_dense(dense)
    expected = classifier.predict(x, verbose=0)
    model = unless_refused(classifier, shared_authority)
    if model is None:
        return
    np.testing.assert_allclose(model.decode(model.predict(x, verbose=0)), expected, atol=1e-5)
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert np.isfinite(model.fit(x, Y, verbose=0).history["loss"]).all()


def test_stateful_series(shared_authority: ke.Authority) -> None:
    """A fixed batch and a state that goes on from batch to batch."""
    classifier = keras.Sequential(
        [
            keras.Input(batch_shape=(6, 7, 4)),
            layers.LSTM(5, stateful=True),
            layers.Dense(K, **SOFT),
        ]
    )
    randomise(classifier)
    expected = classifier.predict(SERIES, batch_size=6, verbose=0)
    classifier.layers[0].reset_states()
    model = unless_refused(classifier, shared_authority)
    if model is None:
        return
    classifier.layers[0].reset_states()
    found = model.decode(model.predict(SERIES, batch_size=6, verbose=0))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert np.isfinite(model.fit(SERIES, Y, batch_size=6, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["defaults", "with-traces"])
@pytest.mark.parametrize("kind", [dict, list, tuple], ids=lambda kind: kind.__name__)
def test_several_inputs(kind: type, options: Any, shared_authority: ke.Authority) -> None:
    """A dictionary, list or tuple of two inputs: whatever `protect` takes, `fit` takes."""
    keras.utils.set_random_seed(7)
    classifier = of_inputs(kind)
    x = {"first": NUMBERS, "second": SERIES} if kind is dict else kind([NUMBERS, SERIES])
    classifier.compile("sgd", "sparse_categorical_crossentropy")
    expected = classifier.evaluate(x, Y, verbose=0)
    before = class_probabilities(classifier, x)
    model = unless_refused(classifier, shared_authority, **options)
    if model is None:
        assert kind is not dict or options  # trace labels need a single input
        return
    np.testing.assert_allclose(decoded(model, x), before, atol=1e-5)
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert model.evaluate(x, Y, verbose=0) == pytest.approx(expected, rel=1e-4)
    model.fit(x, Y, batch_size=6, validation_split=0.5, verbose=0)
    model.fit(tf.data.Dataset.from_tensor_slices((x if kind is not list else tuple(x), Y)).batch(6),
              shuffle=False, verbose=0)  # fmt: skip


# --- precision ----------------------------------------------------------------------------


@pytest.fixture
def floatx(request: pytest.FixtureRequest) -> Iterator[None]:
    before = keras.config.floatx(), keras.config.dtype_policy()
    setter: Callable[[str], None] = getattr(keras.config, request.param)
    setter("float64")
    if request.param == "set_floatx":
        keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


@pytest.mark.parametrize("floatx", ["set_floatx", "set_dtype_policy"], indirect=True)
@pytest.mark.parametrize("strategy", ["clustered", "random"])
def test_float64(floatx: None, strategy: str, shared_authority: ke.Authority) -> None:
    """All of it runs in float64, to float64's precision."""
    classifier = fresh("softmax")
    assert classifier.dtype == "float64"
    randomise(classifier)
    classifier.compile("sgd", "sparse_categorical_crossentropy")
    x = IMAGES.astype("float64")
    expected = classifier.evaluate(x, Y, verbose=0)
    before = class_probabilities(classifier, x)
    model = ke.protect(classifier, shared_authority, name="f64", strategy=strategy, **OPTIONS)
    np.testing.assert_allclose(decoded(model, x), before, rtol=0, atol=1e-6)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    assert model.evaluate(x, Y, verbose=0)[0] == pytest.approx(expected, rel=1e-5)
    model.fit(x, Y, batch_size=6, validation_split=0.5, verbose=0)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_low_precision_trains(policy: str, shared_authority: ke.Authority) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        classifier = Subclass()
        expected = class_probabilities(classifier, IMAGES)
        model = ke.protect(classifier, shared_authority, name="low", **OPTIONS)
        np.testing.assert_allclose(decoded(model, IMAGES), expected, atol=2e-2)
        model.compile("adam", "sparse_categorical_crossentropy")
        assert np.isfinite(model.fit(IMAGES, Y, verbose=0).history["loss"]).all()
    finally:
        keras.config.set_dtype_policy(before)
    sums = ops.convert_to_numpy(ops.cast(model(IMAGES), "float32")).sum(-1)
    np.testing.assert_allclose(sums, 1, atol=2e-2)
