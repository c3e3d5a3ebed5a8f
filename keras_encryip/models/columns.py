"""Columns of a head as points: which lie together, and how well a sign tells some from others."""

from typing import Final

import numpy as np
from scipy.stats import rankdata  # type: ignore[import-untyped]

from keras_encryip.labels.assignment import LabelAssignment

_SPREAD_SAMPLE: Final = 2048
_EQUAL: Final = 1e-5
_CHUNK: Final = 1 << 21


def exact_copies(
    kernel: np.ndarray, bias: np.ndarray | None, assignment: LabelAssignment
) -> np.ndarray:
    """Which real labels have the same column as another label of their class.

    Args:
        kernel: `[features, N]`.
        bias: `[N]` or `None`.
        assignment: tells which columns belong together.

    Returns:
        bool `[K, h]`.
    """
    columns = _columns(kernel, bias)
    copies = np.zeros(assignment.labels.shape, bool)
    if assignment.homophones == 1:
        return copies
    size = max(1, _CHUNK // (assignment.homophones * columns.shape[1]))
    for start in range(0, len(copies), size):
        points = columns[assignment.labels[start : start + size]].astype(np.float64)
        nearest = _distances(points).min(-1)
        copies[start : start + size] = nearest <= _EQUAL * np.linalg.norm(points, axis=-1)
    return copies


def column_spread(
    kernel: np.ndarray,
    bias: np.ndarray | None,
    assignment: LabelAssignment,
    counted: np.ndarray | None = None,
) -> float:
    """How far apart the homophones of a class lie in the head, against other classes.

    Median, over confused labels, of the distance to the nearest column of the same
    class by that to the nearest column of another class. 0: the head consists of
    copies, and shows whoever reads it which labels belong together; around 1: same
    and other are alike.

    Args:
        kernel: `[features, N]`.
        bias: `[N]` or `None`.
        assignment: tells which columns belong together.
        counted: bool `[K, h]`, the labels to take the median over; by default all.

    Returns:
        A ratio ≥ 0; infinity with one homophone per class.
    """
    if assignment.homophones == 1:
        return float("inf")
    counted = np.ones(assignment.labels.shape, bool) if counted is None else counted
    columns = _columns(kernel, bias)
    random = np.random.default_rng(0)
    # Classes with labels to count come first; at least one other class is there to compare with.
    chosen = random.permutation(assignment.num_classes)
    reached = np.flatnonzero(counted.any(axis=-1))
    chosen = chosen[np.argsort(~np.isin(chosen, reached), kind="stable")]
    chosen = chosen[: max(2, _SPREAD_SAMPLE // assignment.homophones)]
    labels = assignment.labels[chosen].reshape(-1)
    classes = np.repeat(chosen, assignment.homophones)
    distances = _distances(columns[labels].astype(np.float64))
    same = classes[:, None] == classes
    nearest_same = np.where(same, distances, np.inf).min(1)
    nearest_other = np.where(same, np.inf, distances).min(1)
    ratios = nearest_same / np.maximum(nearest_other, 1e-12)
    return float(np.median(ratios[counted[chosen].reshape(-1)]))


def nearest_distances(points: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
    """From each of `[n, d]` points, or the chosen ones, int `[c]`, to the nearest other one."""
    return np.asarray(_distances(points, chosen).min(-1))


def tells(sign: np.ndarray, marked: np.ndarray) -> float:
    """The AUC of a sign: how often it is greater where `marked` than elsewhere; half for ties.

    Args:
        sign: `[n]`.
        marked: bool `[n]`, some and not all.

    Returns:
        0 … 1; at 0.5 it tells nothing.
    """
    ranks, count = rankdata(sign)[marked], int(marked.sum())
    return float((ranks.sum() - count * (count + 1) / 2) / (count * (len(marked) - count)))


def _columns(kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return kernel.T if bias is None else np.column_stack([kernel.T, bias])


def _distances(points: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
    """`[…, n, n]` between all pairs of `[…, n, d]`, and infinity from each point to itself.

    From chosen ones of `[n, d]` alone, if they are given: int `[c]` → `[c, n]`.
    """
    chosen = np.arange(points.shape[-2]) if chosen is None else chosen
    squares, rows = (points**2).sum(-1), np.arange(len(chosen))
    products = points[..., chosen, :] @ points.swapaxes(-1, -2)
    sums = squares[..., chosen, None] + squares[..., None, :]
    distances = np.sqrt(np.maximum(sums - 2 * products, 0))
    distances[..., rows, chosen] = np.inf
    return np.asarray(distances)
