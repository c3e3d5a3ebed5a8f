"""Inputs to try a classifier on, and the comparison of what comes out."""

from typing import Any

import keras
import numpy as np
import pytest

from keras_encryip.errors import ArgumentError
from keras_encryip.models.probe import ROWS, SIZES, answer_to_probe, check_same, probes


def given(inputs: Any) -> list[Any]:
    """(shape, dtype) of each input, in the structure of each probe."""

    def what(x: Any) -> tuple[tuple[int, ...], str]:
        return tuple(x.shape), keras.backend.standardize_dtype(x.dtype)

    return [keras.tree.map_structure(what, probe) for probe, _ in probes(inputs)]


def test_known_inputs_are_probed_once_for_each_dtype() -> None:
    assert given(keras.KerasTensor((None, 8, 3), "uint8")) == [((ROWS, 8, 3), "uint8")]
    shapes = given(keras.KerasTensor((None, 8)))
    assert shapes == [((ROWS, 8), dtype) for dtype in ("float32", "int32", "string")]
    assert given(keras.KerasTensor((7, 8), "int64")) == [((7, 8), "int64")], "a batch of one size"


def test_open_axes_are_tried_in_several_sizes() -> None:
    shapes = [shape for shape, _ in given(keras.KerasTensor((None, None, None, 3), "uint8"))]
    assert shapes == [(ROWS, size, size, 3) for size in SIZES]


def test_structures_are_kept() -> None:
    inputs = {"a": keras.KerasTensor((None, 6)), "b": [keras.KerasTensor((None, 2), "int32")]}
    assert given(inputs) == [{"a": ((ROWS, 6), "float32"), "b": [((ROWS, 2), "int32")]}]


def test_the_first_probe_that_passes_is_answered() -> None:
    """A classifier of at least 100 steps."""
    forgotten = []

    def classifier(x: Any, training: bool) -> Any:
        assert training is False
        if x.shape[1] < 100:
            raise ValueError("too short")
        return x[:, 0]

    tensors, probe, answer = answer_to_probe(
        classifier, keras.KerasTensor((None, None, 3)), lambda: forgotten.append(1)
    )
    assert tuple(probe.shape) == (ROWS, 128, 3)
    assert tuple(tensors.shape) == (None, None, 3)
    np.testing.assert_array_equal(answer, np.asarray(probe)[:, 0])
    assert len(forgotten) == 3


def test_the_first_error_is_told_where_none_passes() -> None:
    def classifier(x: Any, training: bool) -> Any:
        raise ValueError(f"no {x.dtype.name}")

    with pytest.raises(ArgumentError, match=r"tried on random inputs.*ValueError: no float32"):
        answer_to_probe(classifier, keras.KerasTensor((None, 3)))


# --- the comparison ------------------------------------------------------------------

SAME = np.array([[0.25, 0.75]])


@pytest.mark.parametrize(("rounded", "limit"), [(False, 1e-5), (True, 2e-2)])
def test_probabilities_may_differ_by_rounding(rounded: bool, limit: float) -> None:
    check_same(SAME, SAME + 0.9 * limit, "It", rounded=rounded)
    with pytest.raises(ArgumentError, match=r"It would not answer as `classifier`.* differ by"):
        check_same(SAME, SAME + 1.1 * limit, "It", rounded=rounded)


def test_not_a_number_must_stay_where_it_was() -> None:
    """A classifier may give none for nonsense; its protected model then does, too."""
    nan = np.array([[np.nan, 0.75]])
    check_same(nan, nan, "It", rounded=False)
    with pytest.raises(ArgumentError, match="would not answer"):
        check_same(nan, SAME, "It", rounded=False)
    with pytest.raises(ArgumentError, match="would not answer"):
        check_same(nan, nan + 0.1, "It", rounded=False)


def test_shapes_must_be_the_same() -> None:
    with pytest.raises(ArgumentError, match=r"its shape is \(1, 2\) instead of \(2, 1\)"):
        check_same(SAME, SAME.T, "It", rounded=False)
