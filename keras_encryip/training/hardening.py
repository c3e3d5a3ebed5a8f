"""Make trace inputs survive what a thief does to the weights.

Training teaches the model its trace inputs; this then fits the *inputs* to the
model, by gradient ascent on the margin of their labels while the weights are
pruned and noisy: expectation over transformations (Athalye et al., ICML 2018),
with the model transformed instead of the input.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_encryip.labels.trace_set import TraceSet

STEPS = 300

_RATE = 0.02
_MARGIN = 3.0
_MOST_PRUNED = 0.8
_SAMPLE = 1 << 16


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
    if traces.inputs.dtype.kind != "f" or not chosen.any():
        return traces
    random = np.random.default_rng(seed)
    originals = [keras.ops.convert_to_numpy(kernel) for kernel in kernels]
    targets = tf.constant(traces.labels[chosen])
    inputs = tf.Variable(traces.inputs[chosen])
    low, high = float(traces.inputs.min()), float(traces.inputs.max())
    optimizer = keras.optimizers.Adam(_RATE * (high - low))

    @tf.function
    def gradient() -> Any:
        with tf.GradientTape() as tape:
            found = tf.cast(logits(inputs), tf.float32)
            own = tf.gather(found, targets, batch_dims=1)
            others = found - 1e9 * tf.one_hot(targets, found.shape[-1])
            margin = own - tf.reduce_max(others, -1)
            loss = tf.reduce_sum(tf.nn.softplus(_MARGIN - margin))
        return tape.gradient(loss, inputs)

    def perturb(step: int) -> None:
        share = random.uniform(0.5, _MOST_PRUNED) if step % 4 else 0.0
        noise = 0.2 if step % 2 else 0.05
        for kernel, original in zip(kernels, originals, strict=True):
            kernel.assign(_perturbed(original, share, noise, random))

    try:
        for step in range(STEPS):
            perturb(step)
            found = gradient()
            if found is None:  # inputs that are looked up or rounded on the way
                return traces
            optimizer.apply([found], [inputs])
            inputs.assign(tf.clip_by_value(inputs, low, high))
            advance(1)
    finally:
        for kernel, original in zip(kernels, originals, strict=True):
            kernel.assign(original)
    hardened = traces.inputs.copy()
    hardened[chosen] = inputs.numpy()
    return TraceSet(hardened, traces.labels)


def _perturbed(
    kernel: np.ndarray, share: float, noise: float, random: np.random.Generator
) -> np.ndarray:
    """The smallest `share` of the weights set to 0, then noise of `noise` standard deviations."""
    sizes = np.abs(kernel)
    sample = sizes.ravel()[:: max(1, kernel.size // _SAMPLE)]
    kept = np.where(sizes < np.quantile(sample, share), 0, kernel)
    drawn = random.standard_normal(kernel.shape, np.float32)
    return np.asarray(kept + noise * kernel.std() * drawn, kernel.dtype)
