"""Checks of arguments that several rooms have alike."""

import math
import operator
from typing import Any

import numpy as np

from keras_encryip.errors import ArgumentError


def check_inputs(name: str, inputs: Any) -> np.ndarray:
    """Finite numbers `[n, ...]`, n ≥ 1, as an array."""
    array: np.ndarray = np.asarray(inputs)
    if array.ndim == 0 or array.size == 0:
        raise ArgumentError(
            f"`{name}` must be an array of at least one input. Received: {name}.shape={array.shape}"
        )
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise ArgumentError(f"`{name}` must hold numbers. Received: {name}.dtype={array.dtype}")
    if not np.isfinite(array).all():
        raise ArgumentError(f"`{name}` must be finite. Received: {name} with NaN or infinity")
    return array


def check_count(name: str, value: Any, least: int) -> int:
    """An integer of at least `least`, 0 or 1, as an `int`; numpy's will do."""
    try:
        count = least - 1 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        count = least - 1
    if count < least:
        wanted = "a positive integer" if least else "an integer, not negative"
        raise ArgumentError(f"`{name}` must be {wanted}. Received: {name}={value!r}")
    return count


def check_seconds(name: str, value: Any, *, positive: bool = False) -> None:
    """A finite number, not negative, or not zero either."""
    if (
        isinstance(value, bool)
        or not (isinstance(value, int | float | np.number) and 0 <= value < math.inf)
        or (positive and value == 0)
    ):
        wanted = "a positive number of seconds" if positive else "a number of seconds, not negative"
        raise ArgumentError(f"`{name}` must be {wanted}. Received: {name}={value!r}")
