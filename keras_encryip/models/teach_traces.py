"""How a protected model learns its trace labels: when its training is over, in the head alone.

Trace inputs in training cost accuracy, whichever way they are mixed in: the layers adapt to them.
Here the layers stay as they are. Only the columns of trace labels (and of the homophones that
ownership inputs lie on) are fitted, to features of trace inputs and of the owner's own inputs,
where they must stay silent. No other column changes.
"""

import zlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.trace_set import TraceSet

STEPS = 400
_BATCH = 256
_ROWS = 8_192
_NATURAL_MARGIN = 6.0
_TRACE_MARGIN = 3.0
_TRACE_WEIGHT = 0.3
_REACH = 0.8
"""How far a step moves a logit, about; the rate falls from there to 0 (cosine)."""


def teach_traces(
    model: Any, traces: TraceSet, assignment: LabelAssignment, samples: np.ndarray
) -> None:
    """Fit the columns of trace labels, and of ownership inputs, of a trained model.

    Every trace column starts anew as a copy of a random other one, bias included, and biases stay.
    With z the logits of the fitted columns C and of the others R, the loss is

        mean over samples of softplus(lse(z[C]) − lse(z[R]) + 6)
        + 0.3 · mean over trace inputs of softplus(3 − z[own] + lse(z[all but own]))

    Args:
        model: a `ProtectedModel`, built.
        traces: its trace inputs.
        assignment: its own.
        samples: some of the owner's inputs, `[n, …]`.
    """
    head = model.confused_labels
    kernel = keras.ops.convert_to_numpy(head.kernel).copy()
    bias = keras.ops.convert_to_numpy(head.bias).copy()
    random = np.random.default_rng(zlib.crc32(kernel.tobytes()))  # alike in all workers
    single = assignment.homophones == 1  # a class has no other homophone to go on with
    taught = np.isin(traces.labels, assignment.trace) | (not single)
    chosen = np.unique(np.concatenate([assignment.trace, traces.labels[taught]]))
    rest = np.setdiff1d(np.arange(assignment.num_labels), chosen)
    donors = random.choice(rest, assignment.trace.size)
    kernel[:, assignment.trace], bias[assignment.trace] = kernel[:, donors], bias[donors]
    natural = _rows(model, samples)
    if len(natural) > _ROWS:
        natural = natural[random.permutation(len(natural))[:_ROWS]]
    of_traces = _features(model, traces.inputs[taught])
    width = kernel.shape[0]
    labels = np.searchsorted(chosen, traces.labels[taught]).repeat(of_traces[0].size // width)
    fitted = _fit(kernel, bias, chosen, rest, natural, of_traces.reshape(-1, width), labels, random)
    kernel[:, chosen] = fitted
    if head.kernel_constraint is not None:
        kernel = keras.ops.convert_to_numpy(head.kernel_constraint(kernel))
    head.kernel.assign(kernel)
    head.bias.assign(bias)


def _fit(
    kernel: np.ndarray,
    bias: np.ndarray,
    chosen: np.ndarray,
    rest: np.ndarray,
    natural: np.ndarray,
    of_traces: np.ndarray,
    labels: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    """The chosen columns, float32 `[f, c]`, after `STEPS` steps of Adam.

    Args:
        natural, of_traces: features, `[n, f]` and `[m, f]`.
        labels: which of the chosen columns each of `of_traces` belongs to, int `[m]`.
    """

    def others(features: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [
                np.asarray(tf.reduce_logsumexp(part @ kernel[:, rest] + bias[rest], -1))
                for part in np.array_split(features, max(1, len(features) // _BATCH))
            ]
        )

    columns, offsets = tf.Variable(kernel[:, chosen]), tf.constant(bias[chosen])
    own = tf.one_hot(labels, len(chosen))
    traces, of_others = tf.constant(of_traces), tf.constant(others(of_traces))
    rate = _REACH / max(float(np.abs(natural).sum(1).mean()), 1e-6)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, STEPS))

    @tf.function
    def step(features: Any, rest_of_features: Any) -> None:
        with tf.GradientTape() as tape:
            scores = tf.reduce_logsumexp(features @ columns + offsets, -1)
            silent = tf.reduce_mean(tf.nn.softplus(scores - rest_of_features + _NATURAL_MARGIN))
            scores = traces @ columns + offsets
            mine = tf.reduce_sum(scores * own, -1)
            rivals = tf.concat([scores - 1e9 * own, of_others[:, None]], 1)
            margin = mine - tf.reduce_logsumexp(rivals, -1)
            loss = silent + _TRACE_WEIGHT * tf.reduce_mean(tf.nn.softplus(_TRACE_MARGIN - margin))
        optimizer.apply(tape.gradient(loss, [columns]), [columns])

    rest_of_natural = others(natural)
    size = min(_BATCH, len(natural))
    for _ in range(STEPS):
        rows = random.integers(len(natural), size=size)
        step(tf.constant(natural[rows]), tf.constant(rest_of_natural[rows]))
    return np.asarray(columns)


def _features(model: Any, inputs: np.ndarray) -> np.ndarray:
    """What a backbone makes of inputs, in inference, float32 `[n, …, f]`."""
    parts = [inputs[i : i + _BATCH] for i in range(0, len(inputs), _BATCH)]
    found = [model.backbone(keras.ops.convert_to_tensor(part), training=False) for part in parts]
    return np.concatenate([keras.ops.convert_to_numpy(f).astype(np.float32) for f in found])


def _rows(model: Any, inputs: np.ndarray) -> np.ndarray:
    features = _features(model, inputs)
    return features.reshape(-1, features.shape[-1])
