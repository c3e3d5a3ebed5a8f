"""Decoding in graph, against a loop; and what the unlocked state never does."""

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
from keras_encryip.models.backbone import split_classifier
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
    """d decoded[0, 1] / d confused: 1 for class 1, 1/3 for trace labels, else 0."""
    table = TABLES["traces"]
    confused = tf.Variable(probabilities(2, len(table)))
    with tf.GradientTape() as tape:
        one = UnlockedSecrets(np.array(table, "int32"), K).decode(confused)[0, 1]
    slope = {TRACE: 1 / 3, 0: 0, 1: 1, 2: 0}
    expected = [[slope[k] for k in table], [0] * len(table)]
    np.testing.assert_allclose(tape.gradient(one, confused), expected, atol=1e-6)


# --- targets -----------------------------------------------------------------------


def owners(
    training: bytes | None, traces: TraceSet | None = None
) -> tuple[UnlockedSecrets, LabelAssignment]:
    assignment = LabelAssignment.draw(K, 4, 8)
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
    secrets, _ = owners(TrainingState(RandomHomophones(4), traces).secret_bytes(), traces)
    assert secrets.training is not None
    assert secrets.training.traces is traces
    assert owners(None)[0].training is None
    assert UnlockedSecrets(np.zeros(3, "int32"), K).training is None


# --- the teacher -------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["softmax", None], ids=["softmax", "logits"])
def test_the_teacher_gives_probabilities_without_gradient(activation: str | None) -> None:
    teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(K, activation)])
    secrets = UnlockedSecrets(np.array([0, 1, 2], "int32"), K)
    secrets.teacher = split_classifier(teacher)
    x = tf.Variable(np.random.default_rng(0).normal(size=(6, 4)).astype("float32"))
    with tf.GradientTape() as tape:
        taught = secrets.teach(x)
    expected = teacher(x) if activation else keras.ops.softmax(teacher(x))
    np.testing.assert_allclose(taught, expected, atol=1e-6)
    assert tape.gradient(taught, x) is None


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
