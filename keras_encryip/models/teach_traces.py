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
from keras_encryip.models.hide_traces import Hiding, can_hide, class_scores

_BATCH = 256
_ROWS = 4_096
_ITERATIONS = 150
_NATURAL_MARGIN = 8.0
_TRACE_MARGIN = 8.0
_TRACE_WEIGHTS = (1.0, 0.3, 0.1, 0.03)
"""Tried in turn, until the samples are read as before."""

_MISREAD, _FEW, _MOST_MISREAD = 0.005, 2, 0.02
"""The share of samples that may be read as another class, how many of few samples, and the share
if there is no other way: then the way is taken that moves the fewest."""

_STAYS = (1e-4, 5e-4, 2e-3)
"""How strongly columns are held to their start. They are shorter with the later ones, and smaller
offsets hide them: for heads in which larger offsets would cost too much."""

_KEPT_BACK, _LOST = 4, 0.005
"""One sample in so many is kept back from the offsets; what accuracy may fall by on these."""


def teach_traces(
    model: Any, traces: TraceSet, assignment: LabelAssignment, samples: np.ndarray
) -> None:
    """Fit the columns of trace labels, and of ownership inputs, of a trained model.

    Every such column starts anew, as the mean of a class's columns; of a random class for a trace
    label, which gets the bias of a random other column, moved as far as homophones differ.
    With z the logits of the fitted columns C and of the others R, the loss is

        mean over samples of softplus(lse(z[C]) − lse(z[R]) + 8)
        + w · mean over trace inputs of softplus(8 − z[own] + lse(z[all but own]))
        + 0.0001 · mean ‖f‖² · mean over C of ‖change of the column‖²

    It is convex, so L-BFGS finds the one minimum, from any start. A class that lost a homophone
    to ownership inputs gets its share back: the biases of its others rise together. The largest w
    of 1, 0.3, 0.1 and 0.03 is taken that leaves all samples but 0.5 % (or two) in their class; else
    all but 1 %; else the one that moves the fewest, at most 2 %. With none, nothing changes; nor
    if training diverged, to weights or features that are not finite.

    Then the other columns get offsets, among which the fitted ones do not stand out
    (`hide_traces.py`), and these are fitted once more. If that costs more than 0.5 points on
    samples that were kept back, or a trace input, 0.0005 is tried in place of 0.0001, then 0.002.
    If all do so, there are no offsets.

    Args:
        model: a `ProtectedModel`, built.
        traces: its trace inputs.
        assignment: its own.
        samples: some of the owner's inputs, `[n, …]`.
    """
    head = model.confused_labels
    kernel = keras.ops.convert_to_numpy(head.kernel).copy()
    bias = keras.ops.convert_to_numpy(head.bias).copy()
    # With one homophone, a class has no other to go on with: only trace labels learn.
    learned = np.isin(traces.labels, assignment.trace) | (assignment.homophones > 1)
    natural, of_traces = _rows(model, samples), _features(model, traces.inputs[learned])
    if not all(np.isfinite(each).all() for each in (kernel, bias, natural, of_traces)):
        return
    labels = traces.labels[learned]
    lesson = _Lesson(kernel, bias, head.kernel_constraint, assignment, natural, of_traces, labels)
    taught = lesson.taught()
    if taught is None:
        return
    kernel, bias, weight = taught
    hidden = lesson.hidden(kernel, weight)
    head.kernel.assign(kernel if hidden is None else hidden)
    head.bias.assign(bias if hidden is None else lesson.bias)


class _Lesson:
    """What a head is to learn, and from what.

    Args:
        kernel, bias: of the head, `[f, N]` and `[N]`; both will change.
        constraint: on the kernel, or `None`.
        assignment: the model's.
        natural, traces: features, `[n, f]` and `[m, …, f]`.
        labels: of `traces`, int `[m]`.

    Attributes:
        bias: where it starts, `[N]`; it is not fitted.
    """

    def __init__(
        self,
        kernel: np.ndarray,
        bias: np.ndarray,
        constraint: Any,
        assignment: LabelAssignment,
        natural: np.ndarray,
        traces: np.ndarray,
        labels: np.ndarray,
    ) -> None:
        self._constraint, self._assignment = constraint, assignment
        # Alike in all workers of a strategy.
        self._random = random = np.random.default_rng(zlib.crc32(kernel.tobytes()))
        self._before = kernel.copy(), bias.copy()
        self._chosen = chosen = np.unique(np.concatenate([assignment.trace, labels]))
        self._rest = rest = np.setdiff1d(np.arange(assignment.num_labels), chosen)
        self._silenced = np.intersect1d(chosen, assignment.labels)
        self._natural = natural[random.permutation(len(natural))[:_ROWS]]
        self._traces = traces.reshape(-1, kernel.shape[0])
        self._labels = np.searchsorted(chosen, labels).repeat(len(self._traces) // len(labels))
        trace = assignment.trace
        donors = random.choice(rest, trace.size, replace=trace.size > rest.size)
        apart = bias[assignment.labels].std(1).mean()  # as homophones differ, so that none is equal
        bias[trace] = bias[donors] + apart * random.normal(size=trace.size)
        classes = assignment.classes.copy()
        classes[trace] = classes[donors]
        for column in chosen:
            same = np.setdiff1d(assignment.labels[classes[column]], chosen)
            kernel[:, column] = kernel[:, same].mean(1)
        self._start, self.bias = kernel, bias

    def taught(self) -> tuple[np.ndarray, np.ndarray, float] | None:
        """(kernel, bias, weight of the trace inputs); `None` if samples would be misread."""
        reading = _Reading(self._natural, self._before, self._assignment, self._silenced)
        ways: list[tuple[float, np.ndarray, np.ndarray, float]] = []
        for weight in _TRACE_WEIGHTS:
            kernel = self._fitted(self._start, weight, _STAYS[0], self._start)
            bias = reading.evened(kernel, self.bias)
            ways.append((reading.moved(kernel, bias), kernel, bias, weight))
            if ways[-1][0] <= reading.few:
                return ways[-1][1:]
        ways = [way for way in ways if way[0] <= _MOST_MISREAD]
        near = [way for way in ways if way[0] <= _MOST_MISREAD / 2]
        best = near[:1] or sorted(ways, key=lambda way: way[0])[:1]
        return best[0][1:] if best else None

    def hidden(self, kernel: np.ndarray, weight: float) -> np.ndarray | None:
        """The kernel whose fitted columns do not stand out; `None` if samples would be misread."""
        kept, known = np.split(self._natural, [len(self._natural) // _KEPT_BACK])
        if not (len(kept) and can_hide(*self._before, self._assignment)):
            return None
        reading = _Reading(kept, self._before, self._assignment, self._silenced)
        hiding = Hiding(
            *self._before, self._chosen, self._assignment, known, self._traces, self._random
        )
        least = self._read_traces(kernel)
        for stay in _STAYS:
            if stay > _STAYS[0]:
                kernel = self._fitted(self._start, weight, stay, kernel)
            for settle in (np.copy, hiding.reading_as_before):
                offset = settle(hiding.offset(kernel[:, self._chosen]))
                offset[:, self._chosen] = self._start[:, self._chosen]
                kernel = self._fitted(offset, weight, stay, kernel)
            # Neither holds for what is no number.
            if reading.lost(kernel, self.bias) <= _LOST and self._read_traces(kernel) >= least:
                return kernel
        return None

    def _read_traces(self, kernel: np.ndarray) -> float:
        """The share of the trace inputs, ownership inputs among them, that get their labels."""
        answers = (self._traces @ kernel + self.bias).argmax(-1)
        return float((answers == self._chosen[self._labels]).mean())

    def _fitted(
        self, kernel: np.ndarray, weight: float, stay: float, guess: np.ndarray
    ) -> np.ndarray:
        """A kernel, its chosen columns at their start, with these fitted to its others.

        Args:
            weight, stay: of the trace inputs, and of the start.
            guess: a kernel whose chosen columns are near, to begin with.
        """
        loss = _Loss(
            kernel,
            self.bias,
            self._chosen,
            self._rest,
            self._natural,
            self._traces,
            self._labels,
        )
        kernel = kernel.copy()
        kernel[:, self._chosen] = loss.minimum(weight, stay, guess[:, self._chosen])
        if self._constraint is not None:
            kernel = keras.ops.convert_to_numpy(self._constraint(kernel)).copy()
        return kernel


class _Reading:
    """How samples were read before the columns changed.

    Args:
        features: of the samples, `[n, f]`.
        head: kernel and bias before, `[f, N]` and `[N]`.
        assignment: the model's.
        silenced: homophones that fall silent, int `[s]`, at most one of a class.

    Attributes:
        few: the share of samples that may be read as another class.
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
        self._head = head
        self.classes, self.scores, self.shares = self._read(*head)
        self.few = max(_MISREAD, min(_FEW / max(1, len(features)), _MOST_MISREAD))

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

    def lost(self, kernel: np.ndarray, bias: np.ndarray) -> float:
        """How much accuracy the changes cost by what the model itself thought of each class.

        Inputs that lie between two classes may change sides: that costs little.
        """
        lost, classes = 0.0, self._read(kernel, bias)[0]
        for rows in np.array_split(np.arange(len(classes)), 1 + len(classes) // _BATCH):
            thought = softmax(self._scores(self.features[rows], *self._head), -1)
            at = np.arange(len(rows))
            lost += float((thought[at, self.classes[rows]] - thought[at, classes[rows]]).sum())
        return lost / len(classes)

    def _scores(self, features: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return class_scores(features @ kernel + bias, self.labels)

    def _read(
        self, kernel: np.ndarray, bias: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(class `[n]`; of the touched classes scores and probabilities, `[n, s]`)."""
        classes, touched, shares = [], [], []
        for part in np.array_split(self.features, 1 + len(self.features) // _BATCH):
            scores = self._scores(part, kernel, bias)
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
        self.weight, self.stay = _TRACE_WEIGHTS[0], _STAYS[0]
        self.size = float((natural**2).sum(1).mean()) / len(chosen)

    def minimum(self, weight: float, stay: float, guess: np.ndarray) -> np.ndarray:
        """The columns, float32 `[f, c]`, from a guess, with these weights of inputs and start."""
        self.weight, self.stay = weight, stay * self.size
        limit = {"maxiter": _ITERATIONS}
        # With more threads, steps this small take 20 times as long where processors are busy.
        with threadpool_limits(1, user_api="blas"):
            best = minimize(self, guess.ravel(), jac=True, method="L-BFGS-B", options=limit)
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
        together, shares = _together(scores)
        above = together - self.of_natural + _NATURAL_MARGIN
        slope = (expit(above) / len(scores))[:, None] * shares
        return float(np.logaddexp(0, above).mean()), slope

    def _margins(self, scores: np.ndarray) -> tuple[float, np.ndarray]:
        rows = np.arange(len(scores))
        rivals = np.concatenate([scores, self.of_traces[:, None]], 1)
        rivals[rows, self.labels] = -np.inf
        together, shares = _together(rivals)
        short = _TRACE_MARGIN - scores[rows, self.labels] + together
        weight = self.weight * expit(short)[:, None] / len(scores)
        slope = weight * shares[:, :-1]
        slope[rows, self.labels] = -weight[:, 0]
        return self.weight * float(np.logaddexp(0, short).mean()), slope


def _together(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(logsumexp `[n]`, softmax `[n, c]`) of rows, at the price of one."""
    highest = scores.max(-1, keepdims=True)
    parts = np.exp(scores - highest)
    sums = parts.sum(-1, keepdims=True)
    return (np.log(sums) + highest)[:, 0], parts / sums


def _features(model: Any, inputs: np.ndarray) -> np.ndarray:
    """What a backbone makes of inputs, in inference, float32 `[n, …, f]`."""
    parts = [inputs[i : i + _BATCH] for i in range(0, len(inputs), _BATCH)]
    parts = [model.backbone(keras.ops.convert_to_tensor(part), training=False) for part in parts]
    return np.concatenate([keras.ops.convert_to_numpy(f).astype(np.float32) for f in parts])


def _rows(model: Any, inputs: np.ndarray) -> np.ndarray:
    features = _features(model, inputs)
    return features.reshape(-1, features.shape[-1])
