"""One step: what losses see, what is kept of it, and the guard outside of steps."""

import threading
import warnings
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_encryip.errors import ArgumentError
from keras_encryip.labels.assignment import TRACE
from keras_encryip.models.secrets import UnlockedSecrets
from keras_encryip.models.step import (
    Running,
    Step,
    check_taught,
    guarded,
    mask_of,
    running,
    scores_of,
    shown,
    with_mask,
)

TABLE = np.array([1, 0, TRACE, 2, 0, 1, 2], "int32")
SCORES = np.random.default_rng(0).normal(0, 3, (5, 7)).astype("float32")
CONFUSED = np.asarray(ops.softmax(SCORES))
MASK = tf.constant([True, False, True, True, False])


def seen_of(secrets: UnlockedSecrets, scores: tf.Tensor, binary: bool) -> Any:
    """What losses see in a step that gave these scores."""
    return shown(Step(True, None, scores, secrets.class_scores(scores)), binary)


# --- what losses and metrics see -----------------------------------------------------


def test_losses_see_class_probabilities() -> None:
    secrets = UnlockedSecrets(TABLE, 3)
    seen = seen_of(secrets, tf.constant(SCORES), binary=False)
    np.testing.assert_allclose(seen, secrets.decode(CONFUSED), atol=1e-6)
    np.testing.assert_allclose(ops.softmax(seen._keras_logits), seen, atol=1e-6)


def test_binary_losses_see_the_probability_of_class_1() -> None:
    secrets = UnlockedSecrets(np.array([1, 0, TRACE, 1, 0, 1, 0], "int32"), 2)
    seen = seen_of(secrets, tf.constant(SCORES), binary=True)
    assert seen.shape == (5, 1)
    np.testing.assert_allclose(seen[:, 0], secrets.decode(CONFUSED)[:, 1], atol=1e-6)


def test_losses_see_what_is_certain_and_wrong() -> None:
    """A probability of e^−300 is 0 in float32: Keras reads the scores instead."""
    secrets = UnlockedSecrets(np.array([0, 1, 0], "int32"), 2)
    seen = seen_of(secrets, tf.constant([[300.0, 0.0, -5.0]]), binary=False)
    loss = keras.losses.SparseCategoricalCrossentropy()(np.array([1]), seen)
    assert float(loss) == pytest.approx(300, rel=1e-5)


def test_masks_go_on() -> None:
    scores = with_mask(tf.constant(SCORES), MASK)
    assert mask_of(seen_of(UnlockedSecrets(TABLE, 3), scores, False)) is MASK
    assert mask_of(guarded(scores)) is MASK
    assert mask_of(scores_of(guarded(scores))) is MASK
    assert mask_of(tf.constant(SCORES)) is None
    plain = tf.constant(SCORES)
    assert with_mask(plain, None) is plain
    with_mask(plain, MASK)
    assert mask_of(plain) is None, "another tensor has it"


# --- the step ------------------------------------------------------------------------


def test_steps_end_and_may_stand_inside_each_other() -> None:
    current = Running()
    with running(current, training=True) as outer:
        with running(current, training=False) as inner:
            assert current.step is inner
            assert not inner.training
        assert current.step is outer
    assert current.step is None
    with pytest.raises(KeyError), running(current, training=True):
        raise KeyError
    assert current.step is None


def test_a_step_is_of_one_thread() -> None:
    current, seen = Running(), []
    with running(current, training=True):
        thread = threading.Thread(target=lambda: seen.append(current.step))
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_step_that_taught_nothing_is_refused() -> None:
    model: Any = SimpleNamespace(name="digits")
    check_taught(model, Step(training=True, taught=True))
    with pytest.raises(ArgumentError, match=r"`train_step` of 'digits'.*`self.compute_loss\(x=x"):
        check_taught(model, Step(training=True))


# --- the guard -----------------------------------------------------------------------


def test_the_guard_warns_whoever_takes_a_gradient() -> None:
    confused = tf.Variable(CONFUSED)
    with tf.GradientTape() as tape:
        found = guarded(confused * 1.0)
    np.testing.assert_array_equal(found, CONFUSED)
    with pytest.warns(UserWarning, match="gradient is taken through the confused labels"):
        slope = tape.gradient(found, confused)
    np.testing.assert_array_equal(slope, np.ones_like(CONFUSED))


def test_scores_come_without_the_guard() -> None:
    confused = tf.Variable(CONFUSED)
    with tf.GradientTape() as tape:
        scores = scores_of(guarded(confused * 1.0))
    np.testing.assert_allclose(ops.softmax(scores), CONFUSED, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slope = tape.gradient(scores, confused)
    np.testing.assert_allclose(slope, 1 / CONFUSED, rtol=1e-4)


def test_scores_of_plain_arrays_are_finite() -> None:
    scores = scores_of(np.array([[0.0, 1.0]], "float32"))
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(ops.softmax(scores), [[0, 1]], atol=1e-6)
