"""How much a protected model shows which confused labels stand for one class.

A head that is trained on decoded probabilities draws the homophones of a class together: their
columns become neighbours, and their outputs rise and fall together. Whoever clusters either
recovers the classes without a single label, and names them with one labelled sample each. This
term is that attack turned round: it is small when neighbours of a confused label belong to its own
class no more often than chance, and when the means of the classes coincide. It hides the classes
from who looks at the head and at the *correlation* of the outputs' logarithms. Who clusters the
outputs' co-activation still finds them (docs/threat-model.md has the figures).
"""

from typing import Any

import numpy as np
from keras import ops, random

from keras_encryip.training.homophones import Homophones

MAX_LABELS = 256
"""Confused labels compared in one step, drawn anew each time."""

SCALES = (0.1, 0.4)
"""Widths of the neighbourhood, in mean squared distances."""


def labels_to_compare(homophones: Homophones, labels: np.ndarray, seed: Any) -> Any:
    """Draw one confused label from each of some clusters of some classes.

    Args:
        homophones: the clusters of each class.
        labels: int `[K, h]`, the confused labels of each class.
        seed: a `keras.random.SeedGenerator`.

    Returns:
        int32 `(labels [n], classes [n], clusters [n])`, n ≤ 256; clusters are numbered within
        their class.
    """
    num_classes, clusters = homophones.starts.shape
    each = min(clusters, max(2, MAX_LABELS // num_classes))
    many = min(num_classes, MAX_LABELS // each)
    classes = random.shuffle(ops.arange(num_classes, dtype="int32"), seed=seed)[:many]
    chosen = random.shuffle(ops.arange(clusters, dtype="int32"), seed=seed)[:each]
    classes = ops.repeat(classes, each)
    cells = classes * clusters + ops.tile(chosen, [many])
    starts = ops.take(ops.convert_to_tensor(homophones.starts.reshape(-1)), cells)
    sizes = ops.take(ops.convert_to_tensor(homophones.sizes.reshape(-1)), cells)
    drawn = random.uniform(ops.shape(cells), seed=seed) * ops.cast(sizes, "float32")
    copies = ops.minimum(ops.cast(drawn, "int32"), sizes - 1)
    flat = ops.convert_to_tensor(labels.reshape(-1).astype(np.int32))
    return ops.take(flat, classes * labels.shape[1] + starts + copies), classes, starts


def grouping(points: Any, classes: Any, clusters: Any) -> Any:
    """How far the classes of points can be told from where the points lie; 0 is not at all.

    Formula: `mean_i [log p_i − log chance]₊`, with `p_i` the share that points of i's class
    have in the neighbourhood `Σ_j exp(−‖x_i − x_j‖² / s)`, averaged over two scales s
    (Goldberger et al., NIPS 2004, eq. 2, turned round), plus `[log b − log chance]₊`,
    with b the share of the variance that lies between the classes.

    Args:
        points: float `[n, d]`.
        classes, clusters: int `[n]`; points of the same cluster of a class, which stand for the
            same inputs, are not compared.

    Returns:
        A scalar ≥ 0.
    """
    own = classes[:, None] == classes[None]
    twins = ops.logical_and(own, clusters[:, None] == clusters[None])
    same = ops.cast(ops.logical_and(own, ops.logical_not(twins)), "float32")
    others = ops.cast(ops.logical_not(twins), "float32")
    weights = 1.0 / ops.sum(ops.cast(twins, "float32"), axis=1)  # of a cluster: 1 in all
    points = points - _mean(points, weights)
    products = ops.matmul(points, ops.transpose(points))
    squares = ops.diagonal(products)
    distances = ops.maximum(squares[:, None] + squares[None] - 2 * products, 0.0)
    average = _mean(ops.matmul(distances, weights[:, None]), weights) / ops.sum(weights)
    distances = distances / (average + _TINY)
    counted = ops.matmul(same, weights[:, None])[:, 0]
    chance = ops.maximum(counted, 1.0) / ops.maximum(
        ops.matmul(others, weights[:, None])[:, 0], 1.0
    )
    total = 0.0
    for scale in SCALES:
        near = ops.softmax(-distances / scale + ops.log(others * weights + _TINY), axis=1)
        share = ops.sum(near * same, axis=1)
        excess = ops.relu(ops.log(ops.maximum(share, _TINY) / chance))
        total = total + _mean(excess[:, None], weights)[0] / len(SCALES)
    return total + _between(points, ops.cast(own, "float32"), weights)


def _between(points: Any, own: Any, weights: Any) -> Any:
    """`[log b − log chance]₊` over the classes of several clusters: others have nothing to hide."""
    clusters = ops.matmul(own, weights[:, None])[:, 0]
    weights = weights * ops.cast(clusters > 1.5, "float32")
    points = points - _mean(points, weights)
    means = ops.matmul(own * weights, points) / clusters[:, None]
    variances = (ops.sum(ops.square(p), axis=1, keepdims=True) for p in (means, points))
    between, everything = (_mean(v, weights)[0] for v in variances)
    expected = _mean(1.0 / clusters[:, None], weights)[0]
    share = between / (everything + _TINY)
    return ops.relu(ops.log(ops.maximum(share, _TINY) / ops.maximum(expected, _TINY)))


def _mean(values: Any, weights: Any) -> Any:
    """Of the rows of `[n, d]`; 0 if no row has weight."""
    total = ops.maximum(ops.sum(weights), _TINY)
    return ops.matmul(weights[None], values)[0] / total


def exposure(kernel: Any, bias: Any | None, confused: Any, drawn: Any) -> Any:
    """`grouping` of the head's columns, of their directions, and of the outputs: the mean.

    Args:
        kernel, bias: the head's, `[d, N]` and `[N]`.
        confused: float `[b, N]`, probabilities of a batch.
        drawn: what `labels_to_compare` gave.
    """
    labels, classes, clusters = drawn
    columns = ops.take(kernel, labels, axis=1)
    if bias is not None:
        columns = ops.concatenate([columns, ops.take(bias, labels)[None]], axis=0)
    scores = ops.log(ops.maximum(confused, _SMALLEST))
    scores = ops.take(scores, labels, axis=1)
    scores = scores - ops.mean(scores, axis=1, keepdims=True)
    scores = scores - ops.mean(scores, axis=0, keepdims=True)
    seen = [columns, _directions(columns), _directions(scores)]
    return sum(grouping(ops.transpose(p), classes, clusters) for p in seen) / len(seen)


def _directions(columns: Any) -> Any:
    squares = ops.sum(ops.square(columns), axis=0, keepdims=True)
    return columns / ops.sqrt(squares + _TINY**2)


_TINY = 1e-6
_SMALLEST = 1e-30
