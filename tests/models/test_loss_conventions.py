"""Losses, metrics and labels follow the conventions of plain Keras, or are refused at once."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, losses, ops

import keras_encryip as ke
from keras_encryip.errors import ArgumentError
from tests.models.cases import fresh
from tests.models.classifiers import IMAGES, SOFT, TOKENS, chain, flat, randomise, tagging
from tests.models.custom_layers import K, OwnLoss

OPTIONS = {"homophones": 2, "trace_labels": 0, "strategy": "random"}
Y = np.random.default_rng(5).integers(0, K, 12)
TAGS = np.random.default_rng(6).integers(0, K, TOKENS.shape)
PIXELS = np.random.default_rng(7).integers(0, K, (12, 8, 8))


def soft() -> keras.Model:
    keras.utils.set_random_seed(7)
    return flat(layers.Dense(K, **SOFT))


def same_by_evaluate(
    make: Callable[[], keras.Model],
    authority: ke.Authority,
    x: Any,
    y: Any,
    compiling: Callable[[], dict[str, Any]],
    *,
    rel: float = 1e-4,
    **data: Any,
) -> ke.ProtectedModel:
    """Loss and metrics equal plain Keras's, at step 0; then both are trained a step."""
    classifier = make()
    randomise(classifier)
    classifier.compile(keras.optimizers.SGD(0.01), **compiling())
    expected = classifier.evaluate(x, y, verbose=0, return_dict=True, **data)
    model = ke.protect(classifier, authority, name="same", **{**OPTIONS, "teacher": False})
    model.compile(keras.optimizers.SGD(0.05), **compiling())
    found = model.evaluate(x, y, verbose=0, return_dict=True, **data)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=rel, abs=1e-6), name
    history = model.fit(x, y, verbose=0, **data).history
    assert np.isfinite(history["loss"]).all()
    assert history.keys() == {*expected, "confusion_loss"}
    return model


# --- masks -----------------------------------------------------------------------


@pytest.mark.parametrize("head", ["dense", "time-distributed", "activation-layer"])
@pytest.mark.parametrize("weights", [False, True], ids=["plain", "weighted"])
def test_masks_reach_losses_and_metrics(
    head: str, weights: bool, shared_authority: ke.Authority
) -> None:
    """Padded tokens count in neither."""

    def make() -> keras.Model:
        keras.utils.set_random_seed(7)
        if head == "activation-layer":
            return chain(
                layers.Embedding(9, 5, mask_zero=True), layers.LSTM(5, return_sequences=True),
                layers.Dense(K), layers.Activation("softmax"), shape=(7,), dtype="int32",
            )  # fmt: skip
        dense = layers.Dense(K, activation="softmax")
        return tagging(
            layers.TimeDistributed(dense) if head == "time-distributed" else dense, mask_zero=True
        )

    def compiling() -> dict[str, Any]:
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="weighted_accuracy")
        return {
            "loss": "sparse_categorical_crossentropy",
            "metrics": ["accuracy"],
            "weighted_metrics": [accuracy],
        }

    data = {"sample_weight": np.linspace(0, 2, TAGS.size).reshape(TAGS.shape)} if weights else {}
    same_by_evaluate(make, shared_authority, TOKENS, TAGS, compiling, **data)


def test_padded_labels_teach_nothing(shared_authority: ke.Authority) -> None:
    """Other labels at padded places change no weight."""
    found = []
    for wrong in (0, 1):
        keras.utils.set_random_seed(7)
        model = ke.protect(tagging(mask_zero=True), shared_authority, name="t", **OPTIONS,
                           confusion_weight=0.0)  # fmt: skip
        model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
        y = np.where(TOKENS == 0, (TAGS + wrong) % K, TAGS)
        losses_ = model.fit(TOKENS, y, epochs=2, verbose=0, shuffle=False).history["loss"]
        found.append(losses_)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


# --- ignored labels --------------------------------------------------------------------


@pytest.mark.parametrize("ignored", [-1, 255])
def test_ignored_labels(ignored: int, shared_authority: ke.Authority) -> None:
    """The loss is as plain Keras's, and by `fit`, the other labels are learned."""

    def compiling() -> dict[str, Any]:
        return {"loss": losses.SparseCategoricalCrossentropy(ignore_class=ignored)}

    y = np.where(PIXELS == 2, ignored, PIXELS)
    model = same_by_evaluate(
        functools.partial(fresh, "conv-head"), shared_authority, IMAGES, y, compiling
    )
    history = model.fit(IMAGES, y, epochs=15, verbose=0).history["loss"]
    assert history[-1] < history[0]


@pytest.mark.parametrize("ignored", [-1, 255])
def test_ignored_pixels_teach_nothing(ignored: int, shared_authority: ke.Authority) -> None:
    """All labels ignored: no weight moves, by no term of the loss."""
    model = ke.protect(
        fresh("conv-head"), shared_authority, name="i", **OPTIONS, confusion_weight=1.0
    )
    model.compile(
        keras.optimizers.SGD(0.5), losses.SparseCategoricalCrossentropy(ignore_class=ignored)
    )
    before = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    model.fit(IMAGES, np.full((12, 8, 8), ignored), verbose=0)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(variable), old, atol=1e-7)


@pytest.mark.parametrize("wrong", [-1, K, 255])
def test_labels_out_of_range_are_refused_where_not_ignored(
    wrong: int, shared_authority: ke.Authority
) -> None:
    model = ke.protect(soft(), shared_authority, name="r", **OPTIONS)
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ArgumentError, match=rf"0 … {K - 1}[\s\S]*{wrong}"):
        model.fit(IMAGES, np.where(Y == 1, wrong, Y), verbose=0)


# --- reductions, and losses of all kinds ------------------------------------------------


def focal(y: Any, p: Any) -> Any:
    chosen = ops.take_along_axis(p, ops.cast(ops.reshape(y, (-1, 1)), "int32"), axis=-1)
    return -ops.mean((1 - chosen) ** 2 * ops.log(chosen + 1e-7), axis=-1)


LOSSES: dict[str, tuple[Callable[[], Any], bool]] = {  # (loss, one-hot labels)
    "string": (lambda: "sparse_categorical_crossentropy", False),
    "reduction-none-string": (
        lambda: losses.SparseCategoricalCrossentropy(reduction="none"),
        False,
    ),
    "reduction-None": (lambda: losses.SparseCategoricalCrossentropy(reduction=None), False),
    "reduction-sum": (lambda: losses.SparseCategoricalCrossentropy(reduction="sum"), False),
    "reduction-mean": (lambda: losses.SparseCategoricalCrossentropy(reduction="mean"), False),
    "function": (lambda: losses.sparse_categorical_crossentropy, False),
    "partial": (
        lambda: functools.partial(losses.sparse_categorical_crossentropy, from_logits=False),
        False,
    ),
    "lambda": (lambda: lambda y, p: losses.sparse_categorical_crossentropy(y, p), False),
    "own-focal": (lambda: focal, False),
    "smoothing": (lambda: losses.CategoricalCrossentropy(label_smoothing=0.1), True),
    "focal": (lambda: losses.CategoricalFocalCrossentropy(), True),
    "hinge": (lambda: "categorical_hinge", True),  # p + c gives the same, yet no softmax is inside
    "squared-error": (lambda: "mse", True),
    "divergence": (lambda: losses.KLDivergence(), True),
    "dice": (lambda: losses.Dice(), True),
    "list": (lambda: ["sparse_categorical_crossentropy"], False),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_as_plain_keras(name: str, shared_authority: ke.Authority) -> None:
    make, one_hot = LOSSES[name]
    y = np.eye(K, dtype="float32")[Y] if one_hot else Y
    same_by_evaluate(soft, shared_authority, IMAGES, y, lambda: {"loss": make()})


def test_sure_and_wrong_costs_as_in_plain_keras(shared_authority: ke.Authority) -> None:
    """Plain Keras reads the scores behind a softmax: its loss has no ceiling at -log(1e-7)."""

    def make() -> keras.Model:
        model = soft()
        model.get_layer("head").kernel.assign(model.get_layer("head").kernel * 80)
        return model

    worst = np.argmin(ops.convert_to_numpy(make()(IMAGES)), axis=1)
    compiling = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
    same_by_evaluate(make, shared_authority, IMAGES, worst, lambda: compiling, rel=1e-3)


@pytest.mark.parametrize("reduction", ["none", None, "sum"])
def test_reduction_trains_as_plain_keras(reduction: Any, shared_authority: ke.Authority) -> None:
    """One step of SGD moves the hidden layer as it moves the plain classifier's."""
    moved = []
    for protected in (False, True):
        model = classifier = soft()
        randomise(classifier)
        hidden = classifier.layers[2].kernel
        before = ops.convert_to_numpy(hidden)
        if protected:
            options = {**OPTIONS, "teacher": False, "confusion_weight": 0.0}
            model = ke.protect(classifier, shared_authority, name="r", **options)
        loss = losses.SparseCategoricalCrossentropy(reduction=reduction)
        model.compile(keras.optimizers.SGD(0.1), loss)
        model.fit(IMAGES, Y, batch_size=12, verbose=0)
        moved.append(ops.convert_to_numpy(hidden) - before)
    assert np.abs(moved[0]).max() > 1e-4
    np.testing.assert_allclose(moved[1], moved[0], atol=1e-5)


def test_own_compute_loss_is_called(shared_authority: ke.Authority) -> None:
    """A subclass that overrides `compute_loss` sees class probabilities, and its term counts."""

    def make() -> keras.Model:
        keras.utils.set_random_seed(7)
        model = OwnLoss("layer")
        model(IMAGES[:1])
        return model

    same_by_evaluate(
        make, shared_authority, IMAGES, Y, lambda: {"loss": "sparse_categorical_crossentropy"}
    )


# --- scores are refused ------------------------------------------------------------------


class AppliesSoftmax(losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return losses.sparse_categorical_crossentropy(y_true, ops.softmax(y_pred))


SCORES: dict[str, Callable[[], dict[str, Any]]] = {
    "loss": lambda: {"loss": losses.SparseCategoricalCrossentropy(from_logits=True)},
    "one-hot": lambda: {"loss": losses.CategoricalCrossentropy(from_logits=True)},
    "focal": lambda: {"loss": losses.CategoricalFocalCrossentropy(from_logits=True)},
    "in-dict": lambda: {
        "loss": {"head": losses.SparseCategoricalCrossentropy(from_logits=True)}
    },
    "in-list": lambda: {"loss": [losses.SparseCategoricalCrossentropy(from_logits=True)]},
    "partial": lambda: {
        "loss": functools.partial(losses.sparse_categorical_crossentropy, from_logits=True)
    },
    "lambda": lambda: {
        "loss": lambda y, p: losses.sparse_categorical_crossentropy(y, p, from_logits=True)
    },
    "own-softmax": lambda: {
        "loss": lambda y, p: losses.sparse_categorical_crossentropy(y, ops.softmax(p))
    },
    "tensorflow": lambda: {
        "loss": lambda y, p: tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y, "int32"), p)
    },
    "own-loss-class": lambda: {"loss": AppliesSoftmax()},
    "metric": lambda: {
        "loss": "sparse_categorical_crossentropy",
        "metrics": [keras.metrics.SparseCategoricalCrossentropy(from_logits=True)],
    },
    "weighted-metric": lambda: {
        "loss": "sparse_categorical_crossentropy",
        "weighted_metrics": [keras.metrics.SparseCategoricalCrossentropy(from_logits=True)],
    },
    "metric-in-dict": lambda: {
        "loss": "sparse_categorical_crossentropy",
        "metrics": {"head": [keras.metrics.SparseCategoricalCrossentropy(from_logits=True)]},
    },
    "metric-function": lambda: {
        "loss": "sparse_categorical_crossentropy",
        "metrics": [
            functools.partial(losses.sparse_categorical_crossentropy, from_logits=True)
        ],
    },
    "mean-wrapper": lambda: {
        "loss": "sparse_categorical_crossentropy",
        "metrics": [
            keras.metrics.MeanMetricWrapper(
                losses.sparse_categorical_crossentropy, from_logits=True
            )
        ],
    },
    "auc": lambda: {
        "loss": "categorical_crossentropy",
        "metrics": [keras.metrics.AUC(from_logits=True)],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "fit") for name in SCORES), ("loss", "evaluate"), ("lambda", "evaluate"),
     ("metric", "evaluate")],
)  # fmt: skip
def test_scores_are_refused(name: str, method: str, shared_authority: ke.Authority) -> None:
    model = ke.protect(soft(), shared_authority, name="s", **OPTIONS)
    x, y = IMAGES, np.eye(K)[Y] if name in ("one-hot", "focal", "auc") else Y
    message = "from_logits" if name not in ("own-softmax", "own-loss-class") else "softmax|logits"
    if name in ("lambda", "tensorflow"):
        message = "softmax|logits"

    def train() -> None:
        model.compile("sgd", **SCORES[name]())
        getattr(model, method)(x, y, verbose=0)

    with pytest.raises(ArgumentError, match=message):
        train()


# --- dictionaries ------------------------------------------------------------------------


def dict_output() -> keras.Model:
    keras.utils.set_random_seed(7)
    inputs = keras.Input((8, 8, 1))
    outputs = layers.Dense(K, **SOFT)(layers.Flatten()(inputs))
    return keras.Model(inputs, {"head": outputs})


def list_output() -> keras.Model:
    model = soft()
    return keras.Model(model.inputs, [model.outputs[0]])


def test_dictionaries_of_losses_and_metrics(shared_authority: ke.Authority) -> None:
    def compiling() -> dict[str, Any]:
        return {
            "loss": {"head": "sparse_categorical_crossentropy"},
            "metrics": {"head": ["accuracy"]},
        }

    same_by_evaluate(soft, shared_authority, IMAGES, Y, compiling)


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_structures_of_one_output(kind: str, shared_authority: ke.Authority) -> None:
    """`{"head": …}` for outputs, labels, losses and metrics; or a list of one."""

    def compiling() -> dict[str, Any]:
        loss, metric = "sparse_categorical_crossentropy", ["accuracy"]
        if kind == "dict":
            return {"loss": {"head": loss}, "metrics": {"head": metric}}
        return {"loss": [loss], "metrics": [metric]}

    make = dict_output if kind == "dict" else list_output
    y = {"head": Y} if kind == "dict" else [Y]
    plain = make()
    plain.compile("sgd", **compiling())
    expected = plain.evaluate(IMAGES, y, verbose=0, return_dict=True)
    model = ke.protect(plain, shared_authority, name="d", **OPTIONS)
    model.compile("sgd", **compiling())
    found = model.evaluate(IMAGES, y, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    model.fit(IMAGES, y, verbose=0)


@pytest.mark.parametrize("given", [{"tail": "mse"}, {"head": "mse", "tail": "mse"}])
def test_unknown_output_is_refused(given: dict[str, Any], shared_authority: ke.Authority) -> None:
    model = ke.protect(soft(), shared_authority, name="d", **OPTIONS)

    def train() -> None:
        model.compile("sgd", loss=given)
        model.fit(IMAGES, Y, verbose=0)

    with pytest.raises(ValueError, match="tail"):
        train()
