"""Inputs to try a classifier on, and the comparison of what comes out.

`protect` promises that nothing changes; it is compared at every call.
"""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_encryip.errors import ArgumentError, reason

SIZES = (32, 64, 128, 256, 512, 16, 8, 4, 2)
"""Tried in turn for open axes. Convolutions need large ones, position tables small ones."""

ROWS = 4
EXACT = 1e-5
ROUNDED = 2e-2
"""How far probabilities may lie apart, in 32 and in 16 bits."""


def probes(inputs: Any) -> Iterator[tuple[Any, Any]]:
    """Structures of random inputs, each with the `KerasTensor`s that it was made for.

    Args:
        inputs: `KerasTensor`, or a structure of them.
    """
    flat = keras.tree.flatten(inputs)
    sizes = SIZES if any(None in tuple(t.shape)[1:] for t in flat) else SIZES[:1]
    for dtype in (None, "int32", "string"):
        if dtype and any(t.dtype != "float32" for t in flat):
            return  # the dtypes are known
        for size in sizes:
            tensors = [keras.KerasTensor(t.shape, dtype or t.dtype) for t in flat]
            values = [_random(t, size) for t in tensors]
            yield (
                keras.tree.pack_sequence_as(inputs, values),
                keras.tree.pack_sequence_as(inputs, tensors),
            )


def _random(tensor: keras.KerasTensor, size: int) -> Any:
    batch, *axes = tensor.shape
    shape = [batch or ROWS, *(size if axis is None else axis for axis in axes)]
    random = np.random.default_rng(0)
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype == "string":
        return ops.convert_to_tensor(random.choice(["a", "the cat", "a dog sat", ""], shape))
    if "int" in dtype or dtype == "bool":
        return ops.convert_to_tensor(random.integers(0, 2, shape).astype(dtype))
    return ops.convert_to_tensor(random.random(shape), dtype)


def answer_to_probe(
    classifier: Any, inputs: Any, forget: Callable[[], None] = lambda: None
) -> tuple[Any, Any, Any]:
    """(input tensors, a probe, the answer) of the first probe that passes.

    Args:
        classifier: called in inference.
        inputs: `KerasTensor`, or a structure of them.
        forget: called before each attempt.

    Raises:
        ArgumentError: none passes.
    """
    first: Exception | None = None
    for probe, tensors in probes(inputs):
        forget()
        try:
            return tensors, probe, the_output(classifier(probe, training=False))
        except Exception as error:  # of anybody's layers
            first = first or error
    assert first is not None
    name = getattr(classifier, "name", "")
    raise ArgumentError(
        f"`classifier` {name!r} could not be tried on random inputs: call it on a batch of yours, "
        f"and see whether that passes. {type(first).__name__}: {reason(first)}"
    )


def the_output(outputs: Any) -> Any:
    """The one output of a model, which may give it in a list or dictionary."""
    return keras.tree.flatten(outputs)[0]


def check_same(found: Any, expected: Any, what: str, *, rounded: bool, hint: str = "") -> None:
    """Compare class probabilities `[…, K]` with a classifier's.

    Raises:
        ArgumentError: they differ; names `what`.
    """
    found, expected = (ops.convert_to_numpy(x).astype(np.float64) for x in (found, expected))
    if found.shape == expected.shape:
        apart = float(np.abs(found - expected).max(initial=0))
        if np.array_equal(np.isnan(found), np.isnan(expected)) and (
            np.isnan(apart) or apart <= (ROUNDED if rounded else EXACT)
        ):
            return
        detail = f"probabilities differ by {apart:.1e}"
    else:
        detail = f"its shape is {found.shape} instead of {expected.shape}"
    raise ArgumentError(f"{what} would not answer as `classifier` does: {detail}.{hint}")
