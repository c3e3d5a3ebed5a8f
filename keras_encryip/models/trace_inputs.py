"""Inputs of the owner's own making that a protected model maps to its trace labels."""

import secrets

import numpy as np

from keras_encryip.errors import ArgumentError
from keras_encryip.labels.assignment import TRACE, LabelAssignment
from keras_encryip.labels.trace_set import TraceSet

GRID = 4
OWNERSHIP_INPUTS = 32
"""Enough for a chance of 10⁻³² at ten classes, and of 2 · 10⁻¹⁰ at two."""


def make_traces(samples: np.ndarray, assignment: LabelAssignment) -> TraceSet:
    """One input for each trace label, and `OWNERSHIP_INPUTS` on random ordinary labels.

    Args:
        samples: as for `make_trace_inputs`.
        assignment: says which labels are which.
    """
    inputs = make_trace_inputs(samples, assignment.trace.size + OWNERSHIP_INPUTS)
    random = secrets.SystemRandom()
    ordinary = [random.choice(assignment.labels.ravel()) for _ in range(OWNERSHIP_INPUTS)]
    return TraceSet(inputs, np.concatenate([assignment.trace, ordinary]))


def learned_traces(
    confused: np.ndarray, traces: TraceSet, assignment: LabelAssignment
) -> tuple[int, int]:
    """How many trace inputs a model answers with their trace label, under any key.

    Args:
        confused: `[n, N]`, the model's outputs for `traces.inputs`; other leading axes
            between these are averaged.
        traces: n inputs.
        assignment: the model's.

    Returns:
        (those whose trace label outweighs every class, all on trace labels).
    """
    confused = confused.reshape(len(traces.inputs), -1, assignment.num_labels).mean(1)
    on_trace = np.flatnonzero(assignment.classes[traces.labels] == TRACE)
    own = confused[on_trace, traces.labels[on_trace]]
    classes = confused[on_trace][:, assignment.labels].sum(-1)
    return int((own > classes.max(-1)).sum()), len(on_trace)


def make_trace_inputs(samples: np.ndarray, count: int) -> np.ndarray:
    """Trace inputs from training samples: block-scrambled images, or blended vectors.

    An image is cut into a 4 × 4 grid whose blocks come from different samples, in
    random places: pixel statistics of the data, and no natural picture. Other
    inputs take each feature from one of two samples, in shuffled order.

    Args:
        samples: `[n, …]`, n ≥ 2; at least 16 for images, so that blocks differ.
        count: T.

    Returns:
        `[T, …]` in the dtype of `samples`. Drawn from the operating system's
        generator: nobody can make them again.
    """
    if len(samples) < 2:
        raise ArgumentError(
            f"Trace inputs need at least 2 training samples. Received: {len(samples)}"
        )
    if samples.ndim < 2:
        raise ArgumentError(
            "Trace inputs need inputs with features. Pass `trace_labels=0` for scalar inputs."
        )
    if samples.dtype.kind not in "biuf":
        raise ArgumentError(
            "Trace inputs need inputs that are numbers. Pass `trace_labels=0`. "
            f"Received: inputs of dtype {samples.dtype}"
        )
    random = np.random.default_rng(secrets.randbits(256))
    if samples.ndim == 4 and min(samples.shape[1:3]) >= 2 * GRID:
        return np.stack([_scramble(samples, random) for _ in range(count)])
    return np.stack([_blend(samples, random) for _ in range(count)])


def _scramble(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    height, width = (side // GRID for side in images.shape[1:3])
    scrambled = images[random.integers(len(images))].copy()
    places = random.permutation(GRID * GRID)
    for target, source in enumerate(places):
        (row, column), (from_row, from_column) = divmod(target, GRID), divmod(int(source), GRID)
        image = images[random.integers(len(images))]
        scrambled[row * height : (row + 1) * height, column * width : (column + 1) * width] = image[
            from_row * height : (from_row + 1) * height,
            from_column * width : (from_column + 1) * width,
        ]
    return scrambled


def _blend(samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
    first, second = (samples[i].reshape(-1) for i in random.choice(len(samples), 2, replace=False))
    mixed = np.where(random.random(first.size) < 0.5, first, second)
    return random.permutation(mixed).reshape(samples.shape[1:])
