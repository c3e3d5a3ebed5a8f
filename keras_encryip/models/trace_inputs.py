"""Inputs of the owner's own making that a protected model maps to its trace labels.

When `fit` ends, the head learns them (`teach_traces.py`). Before an export they are *hardened*: the
inputs are fitted to the model, by gradient slope on the margin of their labels while the
weights are pruned and noisy, so that they survive what a thief does to the weights. This is
expectation over transformations (Athalye et al., ICML 2018), with the model transformed
instead of the input.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from keras_encryip.errors import ArgumentError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.trace_set import TraceSet

GRID = 4
OWNERSHIP_INPUTS = 32
"""Enough for a chance of 10⁻³² at ten classes, and of 2 · 10⁻¹⁰ at two."""

STEPS = 300
LEAST_STEPS = 8
SECONDS = 20.0
"""Hardening takes as many steps, or so many seconds, whatever ends first; never fewer than the
least number of steps. MobileNetV2 at 96 pixels is exported within a minute so, on two cores."""

_RATE, _LARGEST_RATE, _LENGTH = 0.02, 0.1, 4.0
_MARGIN = 20.0
_PATIENCE = 40
_CHUNK = 1 << 19
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
    # One homophone of a class: it will be silent on other inputs, and the class has the rest.
    of_class = [random.choice(homophones) for homophones in assignment.labels]
    ordinary = [random.choice(of_class) for _ in range(OWNERSHIP_INPUTS)]
    return TraceSet(inputs, np.concatenate([assignment.trace, ordinary]).astype(np.int32))


def make_trace_inputs(samples: np.ndarray, count: int) -> np.ndarray:
    """Trace inputs: textures, or vectors of extreme values, or blended ids.

    An image repeats 4 × 4 pixels, each channel of each as dark or as bright as the samples get:
    networks that average over places tell such images apart well. Another input of numbers takes
    the lowest or highest value of each feature. No natural input looks like that, so what the model
    learns of them costs it nothing. Integers that are no image may be ids: each is one of two
    samples', in shuffled order.

    Args:
        samples: `[n, …]`, n ≥ 2.
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
    shape = samples.shape[1:]
    image = samples.ndim >= 4
    if not image and samples.dtype.kind != "f":
        return np.stack([_blend(samples, random) for _ in range(count)])
    cells = random.random((count, *shape)) < 0.5
    if image:
        cells = cells[(slice(None), *(slice(GRID) for _ in shape[:-1]))]
        for axis, side in enumerate(shape[:-1], 1):
            cells = cells.take(np.arange(side) % GRID, axis=axis)
    axes = tuple(range(samples.ndim - 1)) if image else (0,)
    return np.asarray(np.where(cells, samples.max(axes), samples.min(axes)), samples.dtype)


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

    Takes up to `STEPS` steps, fewer where they are slow (`SECONDS`), with a larger rate then. Ends
    early once all labels hold under many perturbations in a row.

    Args:
        logits: inputs `[n, …]` → logits of the confused labels `[n, N]`, as in inference.
        kernels: the variables that a thief would prune. Changed meanwhile, and restored.
        traces: with floating-point inputs; others are returned as they are.
        chosen: bool `[n]`, the inputs to change. Never ownership inputs: an input that was
            fitted to a class is taken for it by other models too, and proves nothing.
        advance: told how far the work has got; the numbers sum to `STEPS`.
        seed: of the perturbations.

    Returns:
        A new `TraceSet` with the same labels, and inputs within the same range.
    """
    import tensorflow as tf

    if traces.inputs.dtype.kind != "f" or not chosen.any():
        return traces
    inputs = tf.Variable(traces.inputs[chosen])
    low, high = float(traces.inputs.min()), float(traces.inputs.max())
    optimizer = keras.optimizers.Adam(0.0)
    gradient = _gradient(logits, traces.inputs[chosen], traces.labels[chosen])
    pace, held = _Pace(), 0
    with _perturbing(kernels, np.random.default_rng(seed)) as perturb:
        while pace.remaining and held < _PATIENCE:
            perturb(pace.step)
            slope, margin = gradient(inputs)
            if slope is None:  # inputs that are looked up or rounded on the way
                return traces
            optimizer.learning_rate = pace.rate * (high - low)
            optimizer.apply([slope], [inputs])
            inputs.assign(tf.clip_by_value(inputs, low, high))
            held = held + 1 if margin > _MARGIN else 0
            advance(pace.tick())
        advance(pace.remaining)
    hardened = traces.inputs.copy()
    hardened[chosen] = inputs.numpy()
    return TraceSet(hardened, traces.labels)


class _Pace:
    """How many steps of hardening there is time for, and how large they are.

    The rate falls linearly to 0. It begins with 0.02 of the inputs' range, and with up to 0.1
    where there are few steps: 40 such steps do nearly what 300 do.

    Attributes:
        step: steps done.
        remaining: what is still to be done, of `STEPS`; 0 at the end.
    """

    def __init__(self) -> None:
        self.step, self.remaining, self._start = 0, STEPS, time.monotonic()

    @property
    def rate(self) -> float:
        share = 1 - self.remaining / STEPS
        expected = self.step / share if share else STEPS
        return min(max(_RATE, _LENGTH / expected), _LARGEST_RATE) * (1 - share)

    def tick(self) -> int:
        """A step was done; returns by how much `remaining` fell."""
        self.step += 1
        late = min((time.monotonic() - self._start) / SECONDS, self.step / LEAST_STEPS)
        before = self.remaining
        self.remaining = max(0, STEPS - max(self.step, int(STEPS * late)))
        return before - self.remaining


def _gradient(
    logits: Callable[[Any], Any], inputs: np.ndarray, labels: np.ndarray
) -> Callable[[Any], tuple[Any, float]]:
    """A function from inputs to the slope of their loss and the least margin of their labels.

    A margin is how far a label's logit lies above those of all others together: what a key
    decodes is sums over labels. Few inputs are taken at once: that is faster on a CPU, and large
    networks need much memory for each.
    """
    import tensorflow as tf

    specs = (
        tf.TensorSpec((None, *inputs.shape[1:]), inputs.dtype),
        tf.TensorSpec([None], tf.int32),
    )

    @tf.function(input_signature=specs)
    def of_chunk(chunk: Any, targets: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(chunk)
            scores = tf.cast(logits(chunk), tf.float32)
            others = scores - 1e9 * tf.one_hot(targets, scores.shape[-1])
            margin = tf.gather(scores, targets, batch_dims=1) - tf.reduce_logsumexp(others, -1)
            loss = tf.reduce_sum(tf.nn.softplus(_MARGIN - margin))
        return tape.gradient(loss, chunk), tf.reduce_min(margin)

    size = max(1, _CHUNK // inputs[0].size)

    def gradient(variable: Any) -> tuple[Any, float]:
        starts = range(0, len(labels), size)
        parts = [of_chunk(variable[i : i + size], labels[i : i + size]) for i in starts]
        slopes, margins = zip(*parts, strict=True)
        slope = None if slopes[0] is None else tf.concat(slopes, 0)
        return slope, float(min(margins))

    return gradient


@contextmanager
def _perturbing(kernels: list[Any], random: np.random.Generator) -> Iterator[Callable[[int], None]]:
    """Gives a function that prunes and blurs the kernels for a step; restores them in the end."""
    import tensorflow as tf

    originals = [keras.ops.convert_to_numpy(kernel) for kernel in kernels]
    sizes = [np.sort(np.abs(o).ravel()[:: max(1, o.size // _SAMPLE)]) for o in originals]
    deviations = [o.std(dtype=np.float32) for o in originals]

    @tf.function
    def assign(values: list[Any], thresholds: Any, noise: Any, seed: Any) -> None:
        for i, (kernel, value) in enumerate(zip(kernels, values, strict=True)):
            blur = noise * deviations[i]
            kernel.assign(_perturbed(value, thresholds[i], blur, tf.stack([seed, i])))

    values = [tf.constant(original) for original in originals]

    def perturb(step: int) -> None:
        share = random.uniform(0.5, _MOST_PRUNED) if step % 4 else 0.0
        thresholds = [part[int(share * part.size)] if share else 0 for part in sizes]
        noise = 0.2 if step % 2 else 0.05
        seed = random.integers(1 << 31, dtype=np.int32)
        assign(values, tf.constant(thresholds, tf.float32), tf.constant(noise), tf.constant(seed))

    try:
        yield perturb
    finally:
        for kernel, original in zip(kernels, originals, strict=True):
            kernel.assign(original)


def _perturbed(kernel: Any, threshold: Any, noise: Any, seed: Any) -> Any:
    """Weights below `threshold` set to 0, then normal noise of deviation `noise`, in graph."""
    import tensorflow as tf

    weights = tf.cast(kernel, tf.float32)
    kept = tf.where(tf.abs(weights) < threshold, 0.0, weights)
    blur = tf.random.stateless_normal(tf.shape(kernel), seed)
    return tf.cast(kept + noise * blur, kernel.dtype)
