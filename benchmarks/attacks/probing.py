"""Attacks on the layers: probes, nearest means, clusters, and label spreading."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ..data import CLASSES
from .outsider import NEIGHBOURS, SPREAD_TEST, Space

Known = dict[str, np.ndarray]
"""The labelled inputs in every representation, `{space: [n·K, d]}`."""
Spreads = dict[str, np.ndarray]
"""{setting: class scores `[nodes, K]`}: of the unlabelled inputs, then of test inputs."""

STILL = 1e-12
"""A dimension that varies less tells nothing."""

Accuracies = Iterator[tuple[str, float]]
"""(setting, accuracy on the test set)."""

Probe = Callable[[dict[str, Space], Known, np.ndarray, np.ndarray], Accuracies]


def score(classes: np.ndarray, y: np.ndarray) -> float:
    return float((classes == y).mean())


def linear_probes(
    spaces: dict[str, Space], known: Known, y: np.ndarray, y_test: np.ndarray
) -> Accuracies:
    """Logistic regression; also on dimensions that the unlabelled inputs standardise."""
    for name, space in spaces.items():
        scaler = StandardScaler().fit(space.unlabelled)
        scaler.scale_[scaler.scale_ < STILL] = 1  # float32 would divide by zero
        forms = {
            "": (10 * known[name], 10 * space.test),
            ", whitened": (scaler.transform(known[name]), scaler.transform(space.test)),
        }
        for form, (x, x_test) in forms.items():
            for c in (0.01, 0.1, 1.0):
                probe = LogisticRegression(C=c, max_iter=300, tol=1e-3).fit(x, y)
                yield f"{name}{form}, C = {c}", score(probe.predict(x_test), y_test)


def nearest_means(
    spaces: dict[str, Space], known: Known, y: np.ndarray, y_test: np.ndarray
) -> Accuracies:
    """The class whose labelled samples' mean is nearest, by distance or by angle."""
    for name, space in spaces.items():
        means = np.stack([known[name][y == k].mean(0) for k in range(CLASSES)])
        products = space.test @ means.T
        distances = products - 0.5 * (means**2).sum(1)
        yield f"{name}, distance", score(distances.argmax(1), y_test)
        lengths = np.linalg.norm(means, axis=1) + 1e-12
        yield f"{name}, angle", score((products / lengths).argmax(1), y_test)


def named_clusters(
    spaces: dict[str, Space], known: Known, y: np.ndarray, y_test: np.ndarray
) -> Accuracies:
    """k-means on the unlabelled inputs; a cluster has the class that most of its labelled samples
    have, or the class mean nearest to its centre."""
    for name, space in spaces.items():
        means = np.stack([known[name][y == k].mean(0) for k in range(CLASSES)])
        for k, found in space.clusters.items():
            centres = found.cluster_centers_
            near = ((centres[:, None] - means) ** 2).sum(-1)
            votes = np.zeros((k, CLASSES))
            np.add.at(votes, (found.predict(known[name]), y), 1.0)
            names = (votes - near / (1e-9 + near.max()) * 0.5).argmax(1)
            yield f"{name}, {k} clusters", score(names[found.predict(space.test)], y_test)


def spread(affinity: Any, seeds: np.ndarray, alpha: float) -> np.ndarray:
    """Zhou et al., NeurIPS 2003, equation 4 up to scale: F = (I − α S)^(−1) Y with
    S = D^(−1/2) W D^(−1/2), by conjugate gradients.

    Args:
        affinity: W, symmetric, `[m, m]`, dense or sparse.
        seeds: Y, `[m, K]`.
        alpha: 0 … 1.
    """
    root = 1 / np.sqrt(np.maximum(np.asarray(affinity.sum(1)), 1e-12))[:, None]

    def residual(flat: np.ndarray) -> np.ndarray:
        scores = flat.reshape(seeds.shape)
        return (scores - alpha * root * (affinity @ (root * scores))).ravel()

    operator = LinearOperator((seeds.size, seeds.size), residual, dtype="float64")
    found, _ = cg(operator, seeds.ravel().astype("float64"), rtol=1e-5, maxiter=300)
    return np.maximum(found.reshape(seeds.shape), 0.0)


def balanced(scores: np.ndarray) -> np.ndarray:
    """Class mass normalisation, Zhu et al., ICML 2003, section 4, for equally frequent classes."""
    return scores / np.maximum(scores.sum(0), 1e-12)


def rows(scores: np.ndarray) -> np.ndarray:
    """Every row made to sum to 1."""
    return scores / np.maximum(scores.sum(1, keepdims=True), 1e-30)


def confident(shares: np.ndarray, part: float) -> np.ndarray:
    """Indices of the most confident part of every predicted class (Cascante-Bonilla et al.,
    AAAI 2021, choose by percentile too)."""
    classes = shares.argmax(1)
    chosen = []
    for k in range(CLASSES):
        own = np.flatnonzero(classes == k)
        order = np.argsort(-shares[own, k], kind="stable")
        chosen.append(own[order[: int(np.ceil(part * len(own)))]])
    return np.concatenate(chosen)


def spread_scores(
    space: Space, known: np.ndarray, y: np.ndarray, neighbours: int, alpha: float
) -> np.ndarray:
    """Class scores `[nodes, K]` by label spreading over a k-nearest-neighbour graph of the
    unlabelled inputs, the test inputs and the labelled samples."""
    size, labels = len(space.nodes), len(known)
    own = space.neighbours[:, :neighbours]
    theirs = space.finder.kneighbors(known, neighbours, return_distance=False)
    rows = np.repeat(np.arange(size + labels), neighbours)
    columns = np.concatenate([own.ravel(), theirs.ravel()])
    shape = (size + labels, size + labels)
    graph = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
    seeds = np.zeros((size + labels, CLASSES))
    seeds[size + np.arange(labels), y] = 1.0
    return spread(graph + graph.T, seeds, alpha)[:size]


def spread_over(spaces: dict[str, Space], known: Known, y: np.ndarray) -> Spreads:
    """Label spreading over every representation."""
    return {
        f"{name}, {neighbours} neighbours, alpha = {alpha}": spread_scores(
            space, known[name], y, neighbours, alpha
        ).astype("float32")
        for name, space in spaces.items()
        for neighbours in (7, NEIGHBOURS)
        for alpha in (0.9, 0.99)
    }


def label_spreading(spreads: Spreads, y_test: np.ndarray) -> Accuracies:
    """Accuracy on the first 4,000 test inputs."""
    seen = y_test[:SPREAD_TEST]
    for setting, scores in spreads.items():
        found = scores[-len(seen) :]
        yield setting, score(found.argmax(1), seen)
        yield f"{setting}, balanced", score(balanced(found).argmax(1), seen)
