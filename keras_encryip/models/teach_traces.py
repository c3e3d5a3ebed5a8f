"""How a protected model learns its trace labels: when its training is over, in the head alone.

Trace inputs in training cost accuracy, whichever way they are mixed in: the layers adapt to them.
Here the layers stay as they are. Only the columns of trace labels (and of the homophones that
ownership inputs lie on) are fitted, to features of trace inputs and of the owner's own inputs,
where they must stay silent. No other column changes, and the samples are read as before.
"""

import zlib
from typing import Any

import keras
import numpy as np
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import expit, logsumexp, softmax  # type: ignore[import-untyped]
from threadpoolctl import threadpool_limits

from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.trace_set import TraceSet

_BATCH = 256
_ROWS = 4_096
_ITERATIONS = 150
_NATURAL_MARGIN = 6.0
_TRACE_MARGIN = 8.0
_TRACE_WEIGHTS = (1.0, 0.3, 0.1, 0.03)
"""Tried in turn, until the samples are read as before."""

_MISREAD, _FEW, _MOST_MISREAD = 0.005, 2, 0.02
"""The share of samples that may be read as another class, how many of few samples, and the share
if there is no other way: then the way is taken that moves the fewest."""

_STAY = 1e-4


def teach_traces(
    model: Any, traces: TraceSet, assignment: LabelAssignment, samples: np.ndarray
) -> None:
    """Fit the columns of trace labels, and of ownership inputs, of a trained model.

    Every trace column starts anew as a copy of a random other one. Its bias is drawn near that
    one's, as far as homophones differ, and stays.
    With z the logits of the fitted columns C and of the others R, the loss is

        mean over samples of softplus(lse(z[C]) − lse(z[R]) + 6)
        + w · mean over trace inputs of softplus(8 − z[own] + lse(z[all but own]))
        + 0.0001 · mean ‖f‖² · mean over C of ‖change of the column‖²

    It is convex, so L-BFGS finds the one minimum, from any start. A class that lost a homophone
    to ownership inputs gets its share back: the biases of its others rise together. The largest w
    of 1, 0.3, 0.1 and 0.03 is taken that leaves all samples but 0.5 % (or two) in their class; else
    all but 1 %; else the one that moves the fewest, at most 2 %. With none, nothing changes; nor
    if training diverged, to weights or features that are not finite.

    Args:
        model: a `ProtectedModel`, built.
        traces: its trace inputs.
        assignment: its own.
        samples: some of the owner's inputs, `[n, …]`.
    """
    head = model.confused_labels
    kernel = keras.ops.convert_to_numpy(head.kernel).copy()
    bias = keras.ops.convert_to_numpy(head.bias).copy()
    original = kernel.copy(), bias.copy()
    random = np.random.default_rng(zlib.crc32(kernel.tobytes()))  # alike in all workers
    single = assignment.homophones == 1  # a class has no other homophone to go on with
    taught = np.isin(traces.labels, assignment.trace) | (not single)
    chosen = np.unique(np.concatenate([assignment.trace, traces.labels[taught]]))
    rest = np.setdiff1d(np.arange(assignment.num_labels), chosen)
    donors = random.choice(rest, assignment.trace.size)
    natural, of_traces = _rows(model, samples), _features(model, traces.inputs[taught])
    if not all(np.isfinite(each).all() for each in (*original, natural, of_traces)):
        return
    kernel[:, assignment.trace] = kernel[:, donors]
    apart = bias[assignment.labels].std(1).mean()  # as homophones differ, so that none is equal
    bias[assignment.trace] = bias[donors] + apart * random.normal(size=len(donors))
    if len(natural) > _ROWS:
        natural = natural[random.permutation(len(natural))[:_ROWS]]
    width = kernel.shape[0]
    labels = np.searchsorted(chosen, traces.labels[taught]).repeat(of_traces[0].size // width)
    loss = _Loss(kernel, bias, chosen, rest, natural, of_traces.reshape(-1, width), labels)
    reading = _Reading(natural, original, assignment, np.intersect1d(chosen, assignment.labels))
    ways = []
    for weight in _TRACE_WEIGHTS:
        kernel = original[0].copy()
        kernel[:, chosen] = loss.minimum(weight)
        if head.kernel_constraint is not None:
            kernel = keras.ops.convert_to_numpy(head.kernel_constraint(kernel)).copy()
        evened = reading.evened(kernel, bias)
        ways.append((reading.moved(kernel, evened), kernel, evened))
        if ways[-1][0] <= max(_MISREAD, min(_FEW / len(natural), _MOST_MISREAD)):
            break
    else:
        ways = [way for way in ways if way[0] <= _MOST_MISREAD]
        near = [way for way in ways if way[0] <= _MOST_MISREAD / 2]
        ways = near[:1] or sorted(ways, key=lambda way: way[0])[:1]
    if ways:
        head.kernel.assign(ways[-1][1])
        head.bias.assign(ways[-1][2])


class _Reading:
    """How samples were read before the columns changed.

    Args:
        features: of the samples, `[n, f]`.
        head: kernel and bias before, `[f, N]` and `[N]`.
        assignment: the model's.
        silenced: homophones that fall silent, int `[s]`, at most one of a class.
    """

    def __init__(
        self,
        features: np.ndarray,
        head: tuple[np.ndarray, np.ndarray],
        assignment: LabelAssignment,
        silenced: np.ndarray,
    ) -> None:
        self.features, self.labels = features, assignment.labels
        self.touched = assignment.classes[silenced]
        self.others = [np.setdiff1d(self.labels[k], silenced) for k in self.touched]
        self.classes, self.scores, self.shares = self._read(*head)

    def evened(self, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """The biases, after which each touched class weighs on its samples what it did before."""
        bias = bias.copy()
        lost = self.scores - self._read(kernel, bias)[1]
        weights = self.shares.sum(0) + 1e-30
        for others, rise in zip(self.others, (self.shares * lost).sum(0) / weights, strict=True):
            bias[others] += rise
        return bias

    def moved(self, kernel: np.ndarray, bias: np.ndarray) -> float:
        """The share of the samples that are read as another class than before."""
        return float((self._read(kernel, bias)[0] != self.classes).mean())

    def _read(
        self, kernel: np.ndarray, bias: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(class `[n]`; of the touched classes scores and probabilities, `[n, s]`)."""
        classes, touched, shares = [], [], []
        for part in np.array_split(self.features, 1 + len(self.features) // _BATCH):
            scores = logsumexp((part @ kernel + bias)[:, self.labels], -1)
            classes.append(scores.argmax(-1))
            touched.append(scores[:, self.touched])
            shares.append(softmax(scores, -1)[:, self.touched])
        return np.concatenate(classes), np.concatenate(touched), np.concatenate(shares)


class _Loss:
    """The loss of the chosen columns, and its slope.

    Args:
        kernel, bias: of the whole head, `[f, N]` and `[N]`; the start.
        chosen, rest: columns to fit, and the others.
        natural, traces: features, `[n, f]` and `[m, f]`.
        labels: which of the chosen columns each of `traces` belongs to, int `[m]`.
    """

    def __init__(
        self,
        kernel: np.ndarray,
        bias: np.ndarray,
        chosen: np.ndarray,
        rest: np.ndarray,
        natural: np.ndarray,
        traces: np.ndarray,
        labels: np.ndarray,
    ) -> None:
        self.start, self.bias = kernel[:, chosen], bias[chosen]
        self.natural, self.traces, self.labels = natural, traces, labels
        self.of_natural, self.of_traces = (
            np.concatenate(
                [
                    logsumexp(part @ kernel[:, rest] + bias[rest], -1)
                    for part in np.array_split(features, 1 + len(features) // _BATCH)
                ]
            )
            for features in (natural, traces)
        )
        self.weight = _TRACE_WEIGHTS[0]
        self.stay = _STAY * float((natural**2).sum(1).mean()) / len(chosen)

    def minimum(self, weight: float) -> np.ndarray:
        """The columns, float32 `[f, c]`, with a weight of the trace inputs."""
        self.weight = weight
        limit = {"maxiter": _ITERATIONS}
        # With more threads, steps this small take 20 times as long where processors are busy.
        with threadpool_limits(1, user_api="blas"):
            best = minimize(self, self.start.ravel(), jac=True, method="L-BFGS-B", options=limit)
        return np.asarray(best.x.reshape(self.start.shape), np.float32)

    def __call__(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        columns = flat.reshape(self.start.shape).astype(np.float32)
        silent, of_silent = self._silent(self.natural @ columns + self.bias)
        margins, of_margins = self._margins(self.traces @ columns + self.bias)
        change = columns - self.start
        loss = silent + margins + self.stay * float((change**2).sum())
        slope = self.natural.T @ of_silent + self.traces.T @ of_margins + 2 * self.stay * change
        return loss, slope.ravel().astype(np.float64)

    def _silent(self, scores: np.ndarray) -> tuple[float, np.ndarray]:
        above = logsumexp(scores, -1) - self.of_natural + _NATURAL_MARGIN
        slope = expit(above)[:, None] * softmax(scores, -1) / len(scores)
        return float(np.logaddexp(0, above).mean()), slope

    def _margins(self, scores: np.ndarray) -> tuple[float, np.ndarray]:
        rows = np.arange(len(scores))
        rivals = np.concatenate([scores, self.of_traces[:, None]], 1)
        rivals[rows, self.labels] = -np.inf
        short = _TRACE_MARGIN - scores[rows, self.labels] + logsumexp(rivals, -1)
        weight = self.weight * expit(short)[:, None] / len(scores)
        slope = weight * softmax(rivals, -1)[:, :-1]
        slope[rows, self.labels] = -weight[:, 0]
        return self.weight * float(np.logaddexp(0, short).mean()), slope


def _features(model: Any, inputs: np.ndarray) -> np.ndarray:
    """What a backbone makes of inputs, in inference, float32 `[n, …, f]`."""
    parts = [inputs[i : i + _BATCH] for i in range(0, len(inputs), _BATCH)]
    parts = [model.backbone(keras.ops.convert_to_tensor(part), training=False) for part in parts]
    return np.concatenate([keras.ops.convert_to_numpy(f).astype(np.float32) for f in parts])


def _rows(model: Any, inputs: np.ndarray) -> np.ndarray:
    features = _features(model, inputs)
    return features.reshape(-1, features.shape[-1])
