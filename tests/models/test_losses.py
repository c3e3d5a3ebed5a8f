"""The terms that training adds to the user's loss: numbers worked out by hand."""

import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import rel_entr

from keras_encryip.models.losses import (
    ConfusedLabelCrossentropy,
    Distillation,
    confused_label_crossentropy,
    distillation,
)

CONFUSED = np.array([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375]], "float32")
SCORES = np.log(CONFUSED) + np.array([[7], [-3]], "float32")  # what softmax does not see
LN2 = math.log(2)


# --- cross-entropy of the confused labels --------------------------------------------


def test_crossentropy_is_minus_the_logarithm_of_the_targets_probability() -> None:
    """−log ½ = ln 2 and −log ⅛ = 3·ln 2."""
    loss = confused_label_crossentropy(np.array([0, 0]), SCORES)
    np.testing.assert_allclose(loss, [LN2, 3 * LN2], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
def test_targets_of_any_type_choose_the_same(dtype: str) -> None:
    loss = confused_label_crossentropy(np.array([1, 0], dtype), SCORES)
    np.testing.assert_allclose(loss, [2 * LN2, 3 * LN2], rtol=1e-6)


def test_crossentropy_of_pixels_keeps_their_axes() -> None:
    scores = np.tile(SCORES[0], (2, 3, 4, 1))
    loss = confused_label_crossentropy(np.ones((2, 3, 4), int), scores)
    np.testing.assert_allclose(loss, np.full((2, 3, 4), 2 * LN2), rtol=1e-6)


def test_crossentropy_agrees_with_keras() -> None:
    random = np.random.default_rng(0)
    confused = random.dirichlet(np.ones(20), 50).astype("float32")
    target = random.integers(0, 20, 50)
    np.testing.assert_allclose(
        confused_label_crossentropy(target, np.log(confused)),
        keras.losses.sparse_categorical_crossentropy(target, confused),
        rtol=1e-4,
    )


@pytest.mark.parametrize("apart", [10.0, 100.0, 1e4], ids=str)
def test_loss_and_gradient_are_exact_where_the_probability_vanishes(apart: float) -> None:
    """A probability of e^−100 is 0 in float32; its score is not."""
    scores = tf.constant([[0.0, apart]])
    with tf.GradientTape() as tape:
        tape.watch(scores)
        loss = confused_label_crossentropy(np.array([0]), scores)
    assert float(loss[0]) == pytest.approx(apart, rel=1e-4)
    np.testing.assert_allclose(tape.gradient(loss, scores), [[-1, 1]], rtol=1e-4)


def test_the_gradient_is_probability_minus_target() -> None:
    scores = tf.constant(SCORES)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        loss = confused_label_crossentropy(np.array([0, 2]), scores)
    expected = CONFUSED - np.eye(3)[[0, 2]]
    np.testing.assert_allclose(tape.gradient(loss, scores), expected, atol=1e-6)


# --- distillation --------------------------------------------------------------------


def softened(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    powers = probabilities.astype("float64") ** (1 / temperature)
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_distillation_is_the_scaled_divergence_of_softened_probabilities(
    temperature: float,
) -> None:
    random = np.random.default_rng(1)
    teacher, answers = random.dirichlet(np.ones(6), (2, 40)).astype("float32")
    expected = temperature**2 * rel_entr(
        softened(teacher, temperature), softened(answers, temperature)
    ).sum(-1)
    loss = distillation(teacher, answers, temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=1e-5)


def test_distillation_by_hand() -> None:
    """τ = 2: (.8, .2) softens to (⅔, ⅓), (.5, .5) stays; 4·(⅔·ln(4/3) + ⅓·ln(2/3))."""
    loss = distillation(np.array([[0.8, 0.2]]), np.array([[0.5, 0.5]]), 2.0)
    expected = 4 * (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3))
    np.testing.assert_allclose(loss, [expected], rtol=1e-5)


@pytest.mark.parametrize("probabilities", [[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]], ids=["soft", "hard"])
def test_distillation_is_zero_and_flat_where_both_agree(probabilities: list[float]) -> None:
    answers = tf.constant([probabilities])
    with tf.GradientTape() as tape:
        tape.watch(answers)
        loss = distillation(np.array([probabilities], "float32"), answers, 2.0)
    np.testing.assert_allclose(loss, [0], atol=1e-6)
    np.testing.assert_allclose(tape.gradient(loss, answers), np.zeros((1, 3)), atol=1e-5)


def test_distillation_is_finite_for_certain_opposites() -> None:
    answers = tf.constant([[1.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(answers)
        loss = distillation(np.array([[0.0, 1.0]], "float32"), answers, 2.0)
    # Probabilities end at 1e-30, that is 1e-15 softened: 4·ln(1e15) = 60·ln 10.
    assert float(loss[0]) == pytest.approx(60 * math.log(10), rel=1e-5)
    assert np.isfinite(tape.gradient(loss, answers)).all()


# --- as Keras losses -----------------------------------------------------------------

Case = tuple[keras.losses.Loss, Any, np.ndarray, np.ndarray]
LOSSES: dict[str, Case] = {
    "crossentropy": (
        ConfusedLabelCrossentropy(),
        np.array([0, 0]),
        SCORES,
        np.array([LN2, 3 * LN2]),
    ),
    "distillation": (
        Distillation(1.0),
        np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], "float32"),
        CONFUSED,
        np.array([0, 0.25 * math.log(2) + 0.25 * math.log(2 / 3)]),
    ),
}
each_loss = pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)


@each_loss
def test_a_loss_is_its_functions_mean(case: Case) -> None:
    loss, target, answers, values = case
    assert float(loss(target, answers)) == pytest.approx(values.mean(), rel=1e-5)
    unreduced = type(loss).from_config({**loss.get_config(), "reduction": None})
    np.testing.assert_allclose(unreduced(target, answers), values, rtol=1e-5, atol=1e-7)


@each_loss
def test_sample_weights_weigh(case: Case) -> None:
    """Keras divides by the number of samples."""
    loss, target, answers, values = case
    weighted = float(loss(target, answers, sample_weight=np.array([0.5, 3.0])))
    assert weighted == pytest.approx((0.5 * values[0] + 3 * values[1]) / 2, rel=1e-5)


@each_loss
def test_a_loss_survives_its_configuration(case: Case) -> None:
    loss, target, answers, _ = case
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()
    assert float(again(target, answers)) == float(loss(target, answers))


def test_the_temperature_is_in_the_configuration() -> None:
    config = Distillation(3.5, name="kd", reduction="sum").get_config()
    assert config["temperature"] == 3.5
    again = Distillation.from_config(config)
    assert (again.temperature, again.name, again.reduction) == (3.5, "kd", "sum")


@each_loss
def test_a_loss_works_in_graph(case: Case) -> None:
    loss, target, answers, values = case
    spec = tf.TensorSpec([None, 3])

    @tf.function(input_signature=[tf.TensorSpec([None, *target.shape[1:]], target.dtype), spec])
    def in_graph(target: Any, answers: Any) -> Any:
        return loss(target, answers)

    assert float(in_graph(target, answers)) == pytest.approx(values.mean(), rel=1e-5)
