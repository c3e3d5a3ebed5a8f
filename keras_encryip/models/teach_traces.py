"""How a protected model learns its trace labels: when its training is over, in the head alone.

Trace inputs in training cost accuracy, whichever way they are mixed in: the layers adapt to them.
Here the layers stay as they are. The columns of trace labels (and of the homophones that
ownership inputs lie on) are fitted to features of trace inputs and of the owner's own inputs,
where they must stay silent. All other columns get noise that the owner's inputs do not show
(`quiet_noise.py`), so that the weights do not tell which columns were fitted.
"""

import zlib
from typing import Any, NamedTuple

import keras
import numpy as np
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import expit, logsumexp, softmax  # type: ignore[import-untyped]
from threadpoolctl import threadpool_limits

from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.models.quiet_noise import QuietNoise, nearest

_BATCH = 256
_ROWS = 4_096
_ITERATIONS = 150


class _Try(NamedTuple):
    """How to fit.

    Attributes:
        limit: of what the noise may change in a score (root of mean square); `None`: no noise.
        weight: w, of the trace inputs.
        silence, margin: s and m, how far chosen columns lie below others on samples, and own
            ones above others on trace inputs.
    """

    limit: float | None
    weight: float
    silence: float
    margin: float


_TRIES = (
    _Try(0.05, 0.3, 12.0, 15.0),
    _Try(0.02, 0.3, 12.0, 15.0),
    _Try(0.02, 0.3, 6.0, 3.0),
    *(_Try(None, weight, 6.0, 3.0) for weight in (1.0, 0.3, 0.1, 0.03)),
)
_SHARED = np.linspace(0, 0.95, 20)
_JITTER = 0.5
_MISREAD, _FEW, _MOST_MISREAD = 0.005, 2, 0.02
"""The share of samples that may be read as another class, how many of few samples, and the share
if there is no other way: then the way is taken that moves the fewest."""

_KNOWN = 0.95
_STAY = 1e-4


def teach_traces(
    model: Any, traces: TraceSet, assignment: LabelAssignment, samples: np.ndarray
) -> None:
    """Fit the columns of trace labels, and of ownership inputs, of a trained model.

    1. The mean column is subtracted from all, here and in the end; a softmax does not show that.
    2. All columns get noise as their quiet part.
    3. A fitted column takes bias and norm of a random other one, and the direction of least loss.
       With z the logits of the fitted columns C and of the others R, the loss is

           mean over samples of softplus(lse(z[C]) − lse(z[R]) + s)
           + w · mean over trace inputs of softplus(m − z[own] + lse(z[all but own]))

    4. Homophones share so much of their noise that they are as near to each other as fitted
       columns are (medians), and step 3 is done again.

    Biases of a class move together, so that it weighs on its samples what it did before: those
    of its homophones that ownership inputs lie on fall silent there. The first of `_TRIES`, for w,
    s, m and the noise, is taken that leaves all samples but 0.5 % (or two) in their class and teaches 95 %
    of the trace inputs; else the one of the former that teaches most; else the one that moves the
    fewest samples, if these are at most 2 %. With none, nothing changes.

    Without noise norms are free. It is also left out where the head's kernel has a constraint, or
    the samples are too few to tell in which directions features are quiet. The loss then has

        0.0001 · mean ‖f‖² · mean over C of ‖column‖²

    Args:
        model: a `ProtectedModel`, built.
        traces: its trace inputs.
        assignment: its own.
        samples: some of the owner's inputs, `[n, …]`.
    """
    head = model.confused_labels
    kernel = keras.ops.convert_to_numpy(head.kernel).astype(np.float32)
    bias = keras.ops.convert_to_numpy(head.bias).astype(np.float32)
    random = np.random.default_rng(zlib.crc32(kernel.tobytes()))  # alike in all workers
    single = assignment.homophones == 1  # a class has no other homophone to go on with
    taught = np.isin(traces.labels, assignment.trace) | (not single)
    chosen = np.unique(np.concatenate([assignment.trace, traces.labels[taught]]))
    natural = _rows(model, samples)
    if len(natural) > _ROWS:
        natural = natural[random.permutation(len(natural))[:_ROWS]]
    of_traces = _features(model, traces.inputs[taught])
    labels = np.searchsorted(chosen, traces.labels[taught])
    labels = labels.repeat(of_traces[0].size // len(kernel))
    reading = _Reading(natural, assignment.labels, chosen)
    fit = _Fit(reading, of_traces.reshape(-1, len(kernel)), labels, kernel, bias, random)
    allowed = max(_MISREAD, _FEW / len(natural))
    tried: list[tuple[bool, float, tuple[np.ndarray, np.ndarray]]] = []
    for way in _TRIES:
        fitted = fit.head(way, head.kernel_constraint)
        moved, known = reading.moved((kernel, bias), fitted), fit.known(*fitted)
        if moved <= max(allowed, _MOST_MISREAD):
            kept = moved <= allowed
            tried.append((kept, known if kept else -moved, fitted))
        if moved <= allowed and known >= _KNOWN:
            break
    if not tried:
        return
    best = max(tried, key=lambda entry: entry[:2])[2]
    head.kernel.assign(best[0])
    head.bias.assign(best[1])


class _Reading:
    """How samples are read.

    Args:
        features: of the samples, `[n, f]`.
        labels: int `[K, h]`, the homophones of each class.
        chosen: int `[c]`, the columns that fall silent on samples.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> None:
        self.features, self.labels, self.chosen = features, labels, chosen

    def scores(self, kernel: np.ndarray, bias: np.ndarray, silent: bool = False) -> np.ndarray:
        """Of the classes, `[n, K]`; `silent`: without the chosen columns."""
        scores = []
        for part in np.array_split(self.features, 1 + len(self.features) // _BATCH):
            logits = part @ kernel + bias
            if silent:
                logits[:, self.chosen] = -np.inf
            scores.append(logsumexp(logits[:, self.labels], -1))
        return np.concatenate(scores)

    def evened(self, kernel: np.ndarray, bias: np.ndarray, noisy: np.ndarray) -> np.ndarray:
        """The biases, with which each class weighs on its samples what it did before.

        Args:
            kernel, bias: before.
            noisy: kernel after, but for the chosen columns.
        """
        before = self.scores(kernel, bias)
        shares = softmax(before, -1)
        lost = (shares * (before - self.scores(noisy, bias, silent=True))).sum(0)
        bias = bias.copy()
        bias[self.labels] += (lost / (shares.sum(0) + 1e-30))[:, None]
        return bias

    def moved(
        self, before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray]
    ) -> float:
        """The share of the samples that are read as another class than before."""
        read, reads = (self.scores(*head).argmax(-1) for head in (before, after))
        return float((read != reads).mean())


class _Fit:
    """Fits the chosen columns.

    Args:
        reading: with the samples.
        traces: features of trace inputs, `[m, f]`.
        labels: which of the chosen columns each of them belongs to, int `[m]`.
        kernel, bias: of the whole head, `[f, N]` and `[N]`; before.
        random: draws.
    """

    def __init__(
        self,
        reading: _Reading,
        traces: np.ndarray,
        labels: np.ndarray,
        kernel: np.ndarray,
        bias: np.ndarray,
        random: np.random.Generator,
    ) -> None:
        self.reading, self.chosen = reading, reading.chosen
        self.natural, self.traces, self.labels = reading.features, traces, labels
        self.rest = np.setdiff1d(np.arange(len(bias)), self.chosen)
        self.donors = random.choice(self.rest, len(self.chosen))
        self.kernel = kernel - kernel[:, self.rest].mean(1, keepdims=True)
        self.bias = bias - bias[self.rest].mean()
        self.jitter = random.normal(size=len(bias)).astype(np.float32)
        self.start = 0.01 * random.normal(size=(len(kernel), len(self.chosen)))
        self.noise = QuietNoise(self.natural, reading.labels, len(bias), random)

    def head(self, way: _Try, constraint: Any) -> tuple[np.ndarray, np.ndarray]:
        """Kernel and bias that know the trace inputs; `constraint` of the kernel, or `None`."""
        width = None
        if way.limit is not None and not constraint:
            width = self.noise.widest(self.kernel, way.limit)
        if width is None:
            fitted = self._fitted(self.kernel, way, self.start, free=True)
            if constraint:
                kernel = keras.ops.convert_to_numpy(constraint(fitted[0])).copy()
                return kernel, fitted[1]
            return fitted
        columns = self._fitted(self._noisy(width, 0), way, self.start)[0][:, self.chosen]
        for shared in _SHARED:
            noisy = self._noisy(width, shared)
            noisy[:, self.chosen] = columns
            if nearest(noisy, self.rest) <= nearest(noisy, self.chosen):
                break
        kernel, bias = self._fitted(noisy, way, columns)
        kernel -= kernel.mean(1, keepdims=True)  # as an attacker would, and norms are alike again
        wanted, norms = (
            np.linalg.norm(kernel[:, some], axis=0) for some in (self.donors, self.chosen)
        )
        kernel[:, self.chosen] *= wanted / norms
        return kernel, bias - bias.mean()

    def known(self, kernel: np.ndarray, bias: np.ndarray) -> float:
        """The share of the trace inputs that come out as their labels."""
        labels = (self.traces @ kernel + bias).argmax(-1)
        return float((labels == self.chosen[self.labels]).mean())

    def _noisy(self, width: float, shared: float) -> np.ndarray:
        return self.noise.replaced(self.kernel, width, shared)

    def _fitted(
        self, noisy: np.ndarray, way: _Try, start: np.ndarray, free: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """A head of which the chosen columns were fitted, the others are those of `noisy`.

        Their norms are those of other columns, or free.
        """
        noisy = noisy.copy()
        bias = self.reading.evened(self.kernel, self.bias, noisy)
        bias += _JITTER * bias[self.rest].std() * self.jitter
        bias[self.chosen] = bias[self.donors]
        norms = None if free else np.linalg.norm(noisy[:, self.donors], axis=0)
        loss = _Loss(noisy, bias, self, way, norms)
        noisy[:, self.chosen] = loss.minimum(start)
        return noisy, bias


class _Loss:
    """The loss of the chosen columns, and its slope.

    Args:
        kernel, bias: of the whole head, `[f, N]` and `[N]`.
        fit: which columns are fitted to what.
        way: how.
        norms: of the chosen columns, `[c]`, or `None`: free.
    """

    def __init__(
        self,
        kernel: np.ndarray,
        bias: np.ndarray,
        fit: _Fit,
        way: _Try,
        norms: np.ndarray | None,
    ) -> None:
        self.natural, self.traces, self.labels = fit.natural, fit.traces, fit.labels
        self.bias, self.way, self.norms = bias[fit.chosen], way, norms
        self.of_natural, self.of_traces = (
            np.concatenate(
                [
                    logsumexp(part @ kernel[:, fit.rest] + bias[fit.rest], -1)
                    for part in np.array_split(features, 1 + len(features) // _BATCH)
                ]
            )
            for features in (fit.natural, fit.traces)
        )
        self.stay = _STAY * float((fit.natural**2).sum(1).mean()) / len(fit.chosen)

    def minimum(self, start: np.ndarray) -> np.ndarray:
        """The columns, float32 `[f, c]`, from a start."""
        self.shape = start.shape
        limit = {"maxiter": _ITERATIONS}
        # With more threads, steps this small take 20 times as long where processors are busy.
        with threadpool_limits(1, user_api="blas"):
            best = minimize(self, start.ravel(), jac=True, method="L-BFGS-B", options=limit)
        return self._columns(best.x)[0]

    def _columns(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The columns of norms that are given, and how much longer they are than `flat`."""
        columns = flat.reshape(self.shape).astype(np.float32)
        if self.norms is None:
            return columns, np.ones(len(self.bias), np.float32)
        longer = self.norms / np.linalg.norm(columns, axis=0)
        return columns * longer, longer

    def __call__(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        columns, longer = self._columns(flat)
        silent, of_silent = self._silent(self.natural @ columns + self.bias)
        margins, of_margins = self._margins(self.traces @ columns + self.bias)
        loss = silent + margins
        slope = self.natural.T @ of_silent + self.traces.T @ of_margins
        if self.norms is None:
            loss += self.stay * float((columns**2).sum())
            slope += 2 * self.stay * columns
        else:  # along a column nothing changes
            slope -= columns * (columns * slope).sum(0) / self.norms**2
        return loss, (slope * longer).ravel().astype(np.float64)

    def _silent(self, scores: np.ndarray) -> tuple[float, np.ndarray]:
        above = logsumexp(scores, -1) - self.of_natural + self.way.silence
        slope = expit(above)[:, None] * softmax(scores, -1) / len(scores)
        return float(np.logaddexp(0, above).mean()), slope

    def _margins(self, scores: np.ndarray) -> tuple[float, np.ndarray]:
        rows = np.arange(len(scores))
        rivals = np.concatenate([scores, self.of_traces[:, None]], 1)
        rivals[rows, self.labels] = -np.inf
        short = self.way.margin - scores[rows, self.labels] + logsumexp(rivals, -1)
        weight = self.way.weight * expit(short)[:, None] / len(scores)
        slope = weight * softmax(rivals, -1)[:, :-1]
        slope[rows, self.labels] = -weight[:, 0]
        return self.way.weight * float(np.logaddexp(0, short).mean()), slope


def _features(model: Any, inputs: np.ndarray) -> np.ndarray:
    """What a backbone makes of inputs, in inference, float32 `[n, …, f]`."""
    parts = [inputs[i : i + _BATCH] for i in range(0, len(inputs), _BATCH)]
    parts = [model.backbone(keras.ops.convert_to_tensor(part), training=False) for part in parts]
    return np.concatenate([keras.ops.convert_to_numpy(f).astype(np.float32) for f in parts])


def _rows(model: Any, inputs: np.ndarray) -> np.ndarray:
    features = _features(model, inputs)
    return features.reshape(-1, features.shape[-1])
