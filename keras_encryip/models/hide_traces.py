"""How the other columns of a head come to look like those of its trace labels.

A column of a trace label answers an input that no other column answers, and is silent otherwise:
it is longer than columns of classes, and lies further from its neighbours. So every other column
gets an offset of its own, where natural features hardly vary and trace inputs do, until neither its
length nor its nearest neighbour tells. What the offsets change in the classes of samples is fitted
away afterwards.
"""

from typing import Final

import numpy as np
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import logsumexp, softmax  # type: ignore[import-untyped]
from threadpoolctl import threadpool_limits

from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.models.columns import exact_copies, nearest_distances, tells

MOST_WEIGHTS: Final = 1 << 23
"""Heads of more are left alone: L-BFGS keeps ten vectors of this length."""

_QUIET, _RIDGE = 50.0, 0.3
_FACTORS: Final = np.arange(0.9, 1.19, 0.02)
_ORTHOGONAL: Final = (-1.0, -0.5, 0.0, 0.5, 1.0)
_LOOKED_AT: Final = 512
_SOFT, _STAY, _ITERATIONS = 4.0, 1e-9, 100
_LEAST_ROWS, _WORK = 256, 1 << 27
_LEAST_CENTRED = 4
_TINY = 1e-37


def can_hide(kernel: np.ndarray, bias: np.ndarray, assignment: LabelAssignment) -> bool:
    """Whether `Hiding` is for this head: homophones have parted, and it is not too large.

    Args:
        kernel, bias: `[f, N]` and `[N]`.
        assignment: the model's.
    """
    return (
        assignment.homophones > 1
        and kernel.size <= MOST_WEIGHTS
        and not exact_copies(kernel, bias, assignment).all()
    )


class Hiding:
    """Offsets for every column of a head but the fitted ones.

    With S and T the second moments of natural and of trace features, offsets are random directions
    of the metric (50 S + T + 0.3 tr(T)/f)⁻¹, more or less orthogonal within a class, and of sum 0.
    Copies that training did not tell apart get none, so that an export finds them.

    Args:
        kernel, bias: of the head before its columns were fitted, `[f, N]` and `[N]`.
        fitted: which columns these are, int `[c]`.
        assignment: the model's.
        natural, traces: features of samples and of trace inputs, `[n, f]` and `[m, f]`.
        random: draws the directions.
    """

    def __init__(
        self,
        kernel: np.ndarray,
        bias: np.ndarray,
        fitted: np.ndarray,
        assignment: LabelAssignment,
        natural: np.ndarray,
        traces: np.ndarray,
        random: np.random.Generator,
    ) -> None:
        self._kernel, self._bias, self._fitted = kernel, bias, fitted
        self._assignment, self._random = assignment, random
        self._natural = natural[: max(_LEAST_ROWS, _WORK // kernel.size)]
        copies = np.zeros(assignment.num_labels, bool)
        copies[assignment.labels] = exact_copies(kernel, bias, assignment)
        groups = [row[~copies[row] & ~np.isin(row, fitted)] for row in assignment.labels]
        groups = [group for group in groups if group.size]
        self._order = np.concatenate(groups)
        sizes = [group.size for group in groups]
        self._directions = _directions(sizes, natural, traces, random)

    def offset(self, lone: np.ndarray) -> np.ndarray:
        """A new kernel. Its fitted columns are as they were before.

        The i-th shortest column becomes as long as the i-th shortest fitted one, times a factor of
        0.9 … 1.18. This, and how orthogonal the offsets of a class are, is chosen such that lengths
        and nearest distances tell least.

        Args:
            lone: the fitted columns, `[f, c]`.
        """
        columns = self._kernel[:, self._order]
        kernel = self._kernel.copy()
        kernel[:, self._order] += _offsets(columns, self._directions, lone, self._random)
        return kernel

    def reading_as_before(self, kernel: np.ndarray) -> np.ndarray:
        """A kernel that `offset` gave, changed until samples have their classes again.

        L-BFGS minimises, by the columns with offsets,

            mean over samples of KL(classes before ‖ classes now), softened at temperature 4
            + 1e-9 · mean ‖f‖² · sum of ‖change of the column‖²
        """
        assignment, order, natural = self._assignment, self._order, self._natural
        classes = assignment.classes[order]
        starts = np.flatnonzero(np.diff(classes, prepend=-1))
        before = natural @ self._kernel + self._bias
        target = softmax(class_scores(before, assignment.labels) / _SOFT, -1)
        start = kernel[:, order]
        fixed = natural @ start + self._bias[order]
        before[:, np.union1d(order, self._fitted)] = -np.inf
        beside = class_scores(before, assignment.labels)  # copies, in classes that have some
        above = beside.max(1, keepdims=True)
        stay = _STAY * float((natural**2).sum(1).mean())

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            change = flat.reshape(start.shape).astype(np.float32)
            scores = fixed + natural @ change
            highest = np.maximum(scores.max(1, keepdims=True), above)
            parts, sums = np.exp(scores - highest), np.exp(beside - highest)
            sums[:, classes[starts]] += np.add.reduceat(parts, starts, axis=1)
            sums = np.maximum(sums, _TINY)  # of classes far below the best
            soft = (np.log(sums) + highest) / _SOFT
            soft = soft - logsumexp(soft, -1, keepdims=True)
            slope = (np.exp(soft) - target) / (len(natural) * _SOFT)
            slope = natural.T @ ((slope / sums)[:, classes] * parts) + 2 * stay * change
            value = -(target * soft).sum(1).mean() + stay * (change**2).sum()
            return float(value), slope.ravel().astype(np.float64)

        limit = {"maxiter": _ITERATIONS}
        with threadpool_limits(1, user_api="blas"):
            best = minimize(loss, np.zeros(start.size), jac=True, method="L-BFGS-B", options=limit)
        result = kernel.copy()
        result[:, order] += best.x.reshape(start.shape).astype(np.float32)
        return result


def _directions(
    groups: list[int], natural: np.ndarray, traces: np.ndarray, random: np.random.Generator
) -> list[np.ndarray]:
    """A unit vector for each column, `[f, c]`, of columns in groups of these sizes.

    Several ways: the vectors of a group are the closer to orthogonal, the later.
    """
    width = natural.shape[1]
    of_traces = traces.T @ traces / len(traces)
    metric = _QUIET * natural.T @ natural / len(natural) + of_traces
    metric += (_RIDGE * np.trace(of_traces) / width + 1e-12) * np.eye(width, dtype=metric.dtype)
    drawn = traces.T @ random.normal(size=(len(traces), sum(groups)))
    drawn = np.linalg.solve(metric, drawn)
    ways: list[list[np.ndarray]] = [[] for _ in _ORTHOGONAL]
    for part in np.split(drawn, np.cumsum(groups)[:-1], axis=1):
        left, values, right = np.linalg.svd(part, full_matrices=False)
        for way, power in zip(ways, _ORTHOGONAL, strict=True):
            turned = (left * values ** (1 - power)) @ right
            centred = turned.shape[1] >= _LEAST_CENTRED
            way.append(turned - turned.mean(1, keepdims=True) if centred else turned)
    joined = [np.concatenate(way, axis=1) for way in ways]
    return [
        np.asarray(each / np.maximum(np.linalg.norm(each, axis=0), _TINY), np.float32)
        for each in joined
    ]


def _offsets(
    columns: np.ndarray, ways: list[np.ndarray], lone: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Offsets of the columns, `[f, c]`, by which `lone` columns are told from them least."""
    lengths = np.linalg.norm(columns, axis=0)
    ranks = np.argsort(np.argsort(lengths, kind="stable"), kind="stable")
    wanted = np.quantile(np.linalg.norm(lone, axis=0), (ranks + 0.5) / len(ranks))
    marked = np.arange(lone.shape[1] + columns.shape[1]) < lone.shape[1]
    looked_at = random.permutation(len(marked))[:_LOOKED_AT]
    least, best = 1.0, np.zeros_like(columns)
    if marked[looked_at].all() or not marked[looked_at].any():
        return best
    for directions in ways:
        for factor in _FACTORS:
            offsets = directions * np.sqrt(np.maximum((factor * wanted) ** 2 - lengths**2, 0))
            points = np.concatenate([lone, columns + offsets], axis=1).T
            nearest = nearest_distances(points, looked_at)
            signs = np.linalg.norm(points[looked_at], axis=1), nearest
            worst = max(abs(tells(sign, marked[looked_at]) - 0.5) for sign in signs)
            if worst < least:
                least, best = worst, offsets
    return best


def class_scores(confused: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scores of classes `[n, K]` from those of confused labels `[n, N]`, by labels `[K, h]`."""
    return np.asarray(logsumexp(confused[:, labels], -1))
