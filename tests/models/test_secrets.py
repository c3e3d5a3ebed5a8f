"""Decoding in graph, against a loop; targets; and what the unlocked state never does."""

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_encryip.labels.assignment import TRACE, LabelAssignment
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.models.homophones import RandomHomophones
from keras_encryip.models.secrets import TrainingState, UnlockedSecrets

K = 3
TABLES = {
    "in-order": [0, 1, 2],
    "homophones": [2, 0, 1, 1, 2, 0, 0, 1, 2],
    "traces": [TRACE, 2, 0, 1, TRACE, 1, 2, 0, TRACE],
    "uneven": [0, 0, 0, 1, TRACE],
}


def probabilities(*shape: int) -> np.ndarray:
    scores = np.random.default_rng(0).gamma(0.5, size=shape)
    return (scores / scores.sum(-1, keepdims=True)).astype("float32")


def by_hand(confused: np.ndarray, table: list[int]) -> np.ndarray:
    """One number at a time; a trace label belongs to every class equally."""
    decoded = np.zeros((*confused.shape[:-1], K))
    for place in np.ndindex(*confused.shape[:-1]):
        for label, k in enumerate(table):
            if k == TRACE:
                decoded[place] += confused[place][label] / K
            else:
                decoded[place][k] += confused[place][label]
    return decoded


@pytest.mark.parametrize("leading", [(4,), (2, 5), (2, 3, 4)], ids=["rows", "tokens", "pixels"])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_decode_is_the_sum_of_each_classs_columns(
    table: list[int], leading: tuple[int, ...]
) -> None:
    confused = probabilities(*leading, len(table))
    decoded = np.asarray(UnlockedSecrets(np.array(table, "int32"), K).decode(tf.constant(confused)))
    assert decoded.shape == (*leading, K)
    np.testing.assert_allclose(decoded, by_hand(confused, table), atol=1e-6)
    np.testing.assert_allclose(decoded.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("leading", [(4,), (2, 3, 4)], ids=["rows", "pixels"])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_scores_of_classes_are_logarithms_of_sums(
    table: list[int], leading: tuple[int, ...]
) -> None:
    """A softmax of theirs is what a softmax of the confused labels decodes to."""
    scores = np.random.default_rng(1).normal(0, 30, (*leading, len(table))).astype("float32")
    secrets = UnlockedSecrets(np.array(table, "int32"), K)
    classes = np.asarray(secrets.class_scores(scores)).astype("float64")
    exact = scores.astype("float64")
    highest = exact.max(-1, keepdims=True)
    expected = np.log(by_hand(np.exp(exact - highest), table)) + highest
    np.testing.assert_allclose(classes, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_decode_in_graph_takes_any_batch(table: list[int]) -> None:
    decode = tf.function(
        UnlockedSecrets(np.array(table, "int32"), K).decode,
        input_signature=[tf.TensorSpec([None, None, len(table)])],
    )
    for shape in ((1, 1), (3, 2), (0, 4)):
        confused = probabilities(*shape, len(table))
        np.testing.assert_allclose(decode(confused), by_hand(confused, table), atol=1e-6)


def test_a_class_without_labels_decodes_to_zero() -> None:
    decoded = UnlockedSecrets(np.array([0, 1, 1], "int32"), K).decode(
        tf.constant([[0.2, 0.3, 0.5]])
    )
    np.testing.assert_allclose(decoded, [[0.2, 0.8, 0.0]], atol=1e-6)


def test_the_gradient_reaches_every_confused_label() -> None:
    """Of a class's score: the share of each label in the class, a third of trace labels'."""
    table = TABLES["traces"]
    scores = tf.Variable(np.log(probabilities(2, len(table))))
    with tf.GradientTape() as tape:
        one = UnlockedSecrets(np.array(table, "int32"), K).class_scores(scores)[0, 1]
    part = {TRACE: 1 / 3, 0: 0, 1: 1, 2: 0}
    shares = np.exp(scores.numpy()[0]) * [part[k] for k in table]
    expected = [shares / shares.sum(), np.zeros(len(table))]
    np.testing.assert_allclose(tape.gradient(one, scores), expected, atol=1e-6)


# --- targets -----------------------------------------------------------------------


def owners(
    training: bytes | None, traces: TraceSet | None = None, homophones: int = 4
) -> tuple[UnlockedSecrets, LabelAssignment]:
    assignment = LabelAssignment.draw(K, homophones, 8, 256)
    record: Any = SimpleNamespace(assignment=assignment, training=training, traces=traces)
    return UnlockedSecrets(assignment.classes, K, record), assignment


@pytest.mark.parametrize("shape", [(300,), (60, 5)], ids=["rows", "tokens"])
def test_a_target_is_a_homophone_of_the_class(shape: tuple[int, ...]) -> None:
    state = TrainingState(RandomHomophones(4), None)
    secrets, assignment = owners(state.secret_bytes())
    classes = np.random.default_rng(0).integers(0, K, shape).astype("int32")
    seed = keras.random.SeedGenerator(0)
    targets = np.asarray(secrets.targets(np.zeros((*shape, 2), "float32"), classes, seed))
    assert targets.shape == shape
    np.testing.assert_array_equal(assignment.classes[targets], classes)
    assert set(targets.reshape(-1)) == set(assignment.labels.reshape(-1)), "all are used"


def test_the_training_state_comes_from_the_record() -> None:
    traces = TraceSet(np.arange(24, dtype="uint8").reshape(8, 3), np.arange(8))
    samples = np.arange(12, dtype="uint8").reshape(4, 3)
    state = TrainingState(RandomHomophones(4), traces, samples)
    secrets, _ = owners(state.secret_bytes(), traces)
    assert secrets.training is not None
    assert secrets.traces is secrets.training.traces is traces
    np.testing.assert_array_equal(secrets.training.samples, samples)
    assert secrets.training.samples.dtype == np.uint8
    assert owners(None)[0].training is None
    assert UnlockedSecrets(np.zeros(3, "int32"), K).traces is None


@pytest.mark.parametrize("homophones", [1, 4])
def test_only_several_homophones_come_apart(homophones: int) -> None:
    state = TrainingState(RandomHomophones(homophones), None).secret_bytes()
    assert owners(state, homophones=homophones)[0].separates() is (homophones > 1)
    assert not owners(None, homophones=homophones)[0].separates(), "no state yet"
    assert not UnlockedSecrets(np.arange(3, dtype="int32"), K).separates(), "a key holder"


def test_who_awaits_adapt() -> None:
    state = TrainingState(RandomHomophones(4), None).secret_bytes()
    assert owners(None)[0].awaits_adapt()
    assert not owners(state)[0].awaits_adapt()
    assert not UnlockedSecrets(np.arange(3, dtype="int32"), K).awaits_adapt(), "a key holder"


# --- secrecy -----------------------------------------------------------------------


@pytest.mark.parametrize("copier", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_cannot_be_copied_or_printed(copier: Callable[[Any], Any]) -> None:
    secrets = UnlockedSecrets(np.array([7, 0, 1, 2], "int32"), K)
    with pytest.raises(TypeError, match="UnlockedSecrets holds a secret and cannot be pickled"):
        copier(secrets)
    assert repr(secrets) == "<UnlockedSecrets secret>"
    assert not hasattr(secrets, "__dict__")


def test_keras_does_not_see_it() -> None:
    """Held by a layer, it is neither tracked nor written to its configuration."""
    layer = keras.layers.Dense(2)
    layer._secrets = UnlockedSecrets(np.array([0, 1, 2], "int32"), K)
    layer.build((None, 3))
    assert [weight.name for weight in layer.weights] == ["kernel", "bias"]
    assert "ecrets" not in str(layer.get_config())
