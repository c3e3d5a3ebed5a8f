"""Losses and metrics of `compile`: which are told from which."""

import functools
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from keras import losses, ops

from keras_encryip.errors import ArgumentError
from keras_encryip.models.conventions import check_compiled, ignored_class, of_one_output


def model(loss: Any, *, classes: int = 3, binary: bool = False) -> Any:
    return SimpleNamespace(loss=loss, num_classes=classes, binary=binary)


def from_scores(y: Any, scores: Any) -> Any:
    labels = ops.one_hot(ops.cast(ops.reshape(y, (-1,)), "int32"), 3)
    return -ops.sum(labels * ops.log_softmax(scores), -1)


def of_probabilities(y: Any, probabilities: Any) -> Any:
    labels = ops.one_hot(ops.cast(ops.reshape(y, (-1,)), "int32"), 3)
    return ops.sum((labels - probabilities) ** 2, -1)


def of_nothing(y: Any, probabilities: Any) -> Any:
    return ops.zeros(ops.shape(probabilities)[0])


def with_a_default(y: Any, p: Any, from_logits: bool = True) -> Any:
    return of_probabilities(y, p)


def fails(y: Any, p: Any) -> Any:
    raise RuntimeError


@pytest.mark.parametrize(
    "loss",
    [
        losses.SparseCategoricalCrossentropy(from_logits=True),
        losses.CategoricalFocalCrossentropy(from_logits=True),
        functools.partial(losses.sparse_categorical_crossentropy, from_logits=True),
        with_a_default,
        from_scores,
        {"out": from_scores},
        [losses.CategoricalCrossentropy(from_logits=True)],
    ],
    ids=["class", "focal", "partial", "default", "own", "dict", "list"],
)
def test_losses_of_scores_are_refused(loss: Any) -> None:
    with pytest.raises(ArgumentError, match=r"`from_logits=False`. Received: loss=.*from_logits"):
        check_compiled(model(loss))


@pytest.mark.parametrize(
    "loss",
    [
        None,
        "sparse_categorical_crossentropy",
        losses.SparseCategoricalCrossentropy(),
        functools.partial(losses.sparse_categorical_crossentropy, from_logits=False),
        of_probabilities,
        of_nothing,
        fails,
        lambda y, p: losses.sparse_categorical_crossentropy(y, p),
    ],
    ids=["none", "name", "class", "partial", "own", "constant", "failing", "lambda"],
)
def test_losses_of_probabilities_pass(loss: Any) -> None:
    check_compiled(model(loss))


def test_binary_losses_are_tried_on_one_probability() -> None:
    def sigmoid(y: Any, scores: Any) -> Any:
        assert scores.shape == (4, 1)
        return ops.mean(scores)

    check_compiled(model(sigmoid, classes=2, binary=True))


@pytest.mark.parametrize("kind", ["metrics", "weighted_metrics"])
def test_metrics_of_scores_are_refused(kind: str) -> None:
    classifier = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    metric = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="entropy")
    classifier.compile("sgd", "mse", **{kind: [metric]})
    classifier.num_classes, classifier.binary = 3, False
    with pytest.raises(ArgumentError, match="metrics='entropy' with from_logits=True"):
        check_compiled(classifier)


def test_dictionaries_of_the_one_output_are_opened() -> None:
    given = {"loss": {"out": "mse"}, "metrics": {"out": ["accuracy"]}, "run_eagerly": True}
    args, named = of_one_output(("sgd", {"out": "mae"}), given, "out")
    assert args == ["sgd", "mae"]
    assert named == {"loss": "mse", "metrics": ["accuracy"], "run_eagerly": True}


def test_other_outputs_are_named() -> None:
    with pytest.raises(ArgumentError, match=r"`loss` .* the one output, 'out'.* keys 'a', 'out'"):
        of_one_output((), {"loss": {"a": "mse", "out": "mse"}}, "out")


@pytest.mark.parametrize(
    ("loss", "ignored"),
    [
        (losses.SparseCategoricalCrossentropy(ignore_class=255), 255),
        (losses.SparseCategoricalCrossentropy(ignore_class=0), 0),
        (functools.partial(losses.sparse_categorical_crossentropy, ignore_class=-1), -1),
        ({"out": losses.SparseCategoricalCrossentropy(ignore_class=np.int64(7))}, 7),
        (losses.SparseCategoricalCrossentropy(), None),
        ("sparse_categorical_crossentropy", None),
        (None, None),
    ],
    ids=["class", "zero", "partial", "dict", "nothing", "name", "none"],
)
def test_the_class_that_a_loss_ignores(loss: Any, ignored: int | None) -> None:
    assert ignored_class(loss) == ignored
