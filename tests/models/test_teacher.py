"""What is distilled from: a classifier as it was."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_encryip.errors import ArgumentError
from keras_encryip.models.backbone import graft
from keras_encryip.models.teacher import as_teacher, teacher_of
from tests.models.cases import CASES, fresh
from tests.models.classifiers import IMAGES, class_probabilities, flat, randomise, sequential
from tests.models.custom_layers import K

TEACHERS = ["softmax", "logits", "sigmoid", "subclass-head-in-list", "string-lookup", "dict-inputs"]


@pytest.mark.parametrize("name", TEACHERS)
def test_it_gives_the_classifiers_probabilities(name: str) -> None:
    classifier = fresh(name)
    randomise(classifier)
    expected = class_probabilities(classifier, CASES[name].x)
    teacher = as_teacher(classifier, expected.shape[-1])
    np.testing.assert_allclose(teacher.probabilities(CASES[name].x), expected, atol=1e-6)


def test_later_training_does_not_change_it() -> None:
    """Also in graph, where it was traced before."""
    classifier = flat(layers.BatchNormalization(), layers.Dense(K, activation="softmax"))
    randomise(classifier)
    expected = class_probabilities(classifier, IMAGES)
    teacher = teacher_of(graft(classifier), K)
    in_graph = tf.function(teacher.probabilities)
    in_graph(IMAGES)
    classifier.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    classifier.fit(IMAGES, np.arange(len(IMAGES)) % K, epochs=2, verbose=0)
    assert np.abs(class_probabilities(classifier, IMAGES) - expected).max() > 0.01
    np.testing.assert_allclose(teacher.probabilities(IMAGES), expected, atol=1e-6)
    np.testing.assert_allclose(in_graph(IMAGES), expected, atol=1e-6)


def test_it_answers_without_gradient_and_changes_nothing() -> None:
    classifier = flat(layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(K))
    teacher = as_teacher(classifier, K)
    before = [ops.convert_to_numpy(v) for v in classifier.variables]
    x = tf.Variable(IMAGES)
    with tf.GradientTape() as tape:
        taught = teacher.probabilities(x)
    assert tape.gradient(taught, [x, *classifier.trainable_variables])[0] is None
    for variable, value in zip(classifier.variables, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: "me", r"`teacher` must be True, False or a trained keras.Model. .*str"),
        (lambda: sequential(layers.Dense(7)), rf"with {K} outputs. Received: 7 outputs, built"),
        (
            lambda: keras.Sequential([layers.Flatten(), layers.Dense(K)]),
            rf"with {K} outputs. Received: {K} outputs, not built",
        ),
    ],
    ids=["str", "other-classes", "unbuilt"],
)
def test_refuses(model: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        as_teacher(model(), K)
