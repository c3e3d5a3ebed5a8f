"""Inputs of the owner's own making that a protected model maps to its trace labels.

Training teaches the model its trace inputs. Before an export they are *hardened*: the
inputs are fitted to the model, by gradient slope on the margin of their labels while the
weights are pruned and noisy, so that they survive what a thief does to the weights. This is
expectation over transformations (Athalye et al., ICML 2018), with the model transformed
instead of the input.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from keras_encryip.errors import ArgumentError
from keras_encryip.labels.assignment import TRACE, LabelAssignment
from keras_encryip.labels.trace_set import TraceSet

GRID = 4
OWNERSHIP_INPUTS = 32
"""Enough for a chance of 10⁻³² at ten classes, and of 2 · 10⁻¹⁰ at two."""

STEPS = 300
"""Of hardening."""

_RATE = 0.02
_MARGIN = 3.0
_MOST_PRUNED = 0.8
_SAMPLE = 1 << 16


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
    trace = confused[on_trace, traces.labels[on_trace]]
    classes = confused[on_trace][:, assignment.labels].sum(-1)
    return int((trace > classes.max(-1)).sum()), len(on_trace)


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


def harden(
    logits: Callable[[Any], Any],
    kernels: list[Any],
    traces: TraceSet,
    chosen: np.ndarray,
    advance: Callable[[int], None],
    seed: int,
) -> TraceSet:
    """Trace inputs that keep their labels when the weights are pruned or noisy.

    Args:
        logits: inputs `[n, …]` → logits of the confused labels `[n, N]`, as in inference.
        kernels: the variables that a thief would prune. Changed meanwhile, and restored.
        traces: with floating-point inputs; others are returned as they are.
        chosen: bool `[n]`, the inputs to change. Never ownership inputs: an input that was
            fitted to a class is taken for it by other models too, and proves nothing.
        advance: told how many of `STEPS` steps were done.
        seed: of the perturbations.

    Returns:
        A new `TraceSet` with the same labels, and inputs within the same range.
    """
    import tensorflow as tf

    if traces.inputs.dtype.kind != "f" or not chosen.any():
        return traces
    random = np.random.default_rng(seed)
    targets = tf.constant(traces.labels[chosen])
    inputs = tf.Variable(traces.inputs[chosen])
    low, high = float(traces.inputs.min()), float(traces.inputs.max())
    optimizer = keras.optimizers.Adam(_RATE * (high - low))

    @tf.function
    def gradient() -> Any:
        with tf.GradientTape() as tape:
            scores = tf.cast(logits(inputs), tf.float32)
            others = scores - 1e9 * tf.one_hot(targets, scores.shape[-1])
            margin = tf.gather(scores, targets, batch_dims=1) - tf.reduce_max(others, -1)
            loss = tf.reduce_sum(tf.nn.softplus(_MARGIN - margin))
        return tape.gradient(loss, inputs)

    with _perturbing(kernels, random) as perturb:
        for step in range(STEPS):
            perturb(step)
            slope = gradient()
            if slope is None:  # inputs that are looked up or rounded on the way
                return traces
            optimizer.apply([slope], [inputs])
            inputs.assign(tf.clip_by_value(inputs, low, high))
            advance(1)
    hardened = traces.inputs.copy()
    hardened[chosen] = inputs.numpy()
    return TraceSet(hardened, traces.labels)


@contextmanager
def _perturbing(kernels: list[Any], random: np.random.Generator) -> Iterator[Callable[[int], None]]:
    """Gives a function that prunes and blurs the kernels for a step; restores them in the end."""
    originals = [keras.ops.convert_to_numpy(kernel) for kernel in kernels]

    def perturb(step: int) -> None:
        share = random.uniform(0.5, _MOST_PRUNED) if step % 4 else 0.0
        noise = 0.2 if step % 2 else 0.05
        for kernel, original in zip(kernels, originals, strict=True):
            kernel.assign(_perturbed(original, share, noise, random))

    try:
        yield perturb
    finally:
        for kernel, original in zip(kernels, originals, strict=True):
            kernel.assign(original)


def _perturbed(
    kernel: np.ndarray, share: float, noise: float, random: np.random.Generator
) -> np.ndarray:
    """The smallest `share` of the weights set to 0, then noise of `noise` standard deviations."""
    sizes = np.abs(kernel)
    sample = sizes.ravel()[:: max(1, kernel.size // _SAMPLE)]
    kept = np.where(sizes < np.quantile(sample, share), 0, kernel)
    blur = random.standard_normal(kernel.shape, np.float32)
    return np.asarray(kept + noise * kernel.std() * blur, kernel.dtype)
