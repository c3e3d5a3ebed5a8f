"""Which columns of a head are trace labels: the signs that the suite measures."""

from typing import Any

import keras
import numpy as np
import pytest

import keras_encryip as ke
from benchmarks.columns import along_class, measured, signs
from benchmarks.trainings import Protected
from keras_encryip.models.columns import tells

CLASSES, HOMOPHONES, TRACE = 5, 8, 10


@pytest.fixture(scope="module")
def kernel() -> np.ndarray:
    """Homophones near their class, and trace labels that are no class's."""
    random = np.random.default_rng(0)
    means = random.normal(size=(32, CLASSES))
    homophones = means.repeat(HOMOPHONES, 1) + 0.1 * random.normal(size=(32, 40))
    return np.concatenate([homophones, 1.5 * random.normal(size=(32, TRACE))], axis=1)


MARKED = np.arange(CLASSES * HOMOPHONES + TRACE) >= CLASSES * HOMOPHONES


@pytest.mark.parametrize("name", ["norm", "distance to the nearest", "angle to the nearest"])
def test_signs_of_a_column_that_stands_out(name: str, kernel: np.ndarray) -> None:
    assert tells(signs(kernel, np.zeros(len(MARKED)), CLASSES)[name], MARKED) > 0.9


def test_a_bias_of_its_own_is_a_sign(kernel: np.ndarray) -> None:
    shown = signs(kernel, np.where(MARKED, -16.0, 0.0), CLASSES)["bias"]
    assert tells(shown, MARKED) == 0.0
    assert tells(signs(kernel, np.zeros(len(MARKED)), CLASSES)["bias"], MARKED) == 0.5


def test_a_key_shows_columns_that_do_not_go_the_way_of_their_class(kernel: np.ndarray) -> None:
    table = np.arange(CLASSES).repeat(HOMOPHONES)
    table = np.concatenate([table, np.random.default_rng(1).integers(0, CLASSES, TRACE)])
    assert tells(along_class(kernel, table), MARKED) < 0.25


def test_all_signs_of_a_model_are_measured(
    digits: Any, trained_classifier: keras.Model, shared_authority: ke.Authority
) -> None:
    options = {"name": "digits", "homophones": 8, "trace_labels": 16}
    model = ke.protect(trained_classifier, shared_authority, **options)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(digits.x, digits.y, verbose=0)
    found = measured(Protected(model, 1.0, shared_authority), digits.x_test[:100], 0)
    assert len(found) == 7
    assert all(0.5 <= auc <= 1 for auc in found.values())
    assert found["mass on unlabelled inputs"] > 0.9
