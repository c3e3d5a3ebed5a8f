"""Attacks without a single label: guessed numberings, frequencies, and clusters."""

from collections.abc import Iterator

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import spectral_clustering

from ..data import CLASSES
from .probing import Accuracies, score
from .reading import FORMS, LAST, LabelPoints, Labels

NAMINGS = 1_000
ORDERS = 20


def identity(confused: np.ndarray, y: np.ndarray) -> Accuracies:
    """As if nothing had been permuted."""
    count = confused.shape[1]
    j = np.arange(count)
    for setting, classes in {"j mod K": j % CLASSES, "j K // N": j * CLASSES // count}.items():
        yield setting, score((confused @ np.eye(CLASSES)[classes]).argmax(1), y)
    yield "the first K", score(confused[:, :CLASSES].argmax(1), y)


def long_tail(y: np.ndarray, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a subset whose class frequencies fall geometrically by `ratio` from the first
    to the last, in a random order of the classes; and the class priors, `[K]`."""
    random = np.random.default_rng(seed)
    shares = random.permutation(ratio ** -(np.arange(CLASSES) / (CLASSES - 1)))
    most = min(np.sum(y == k) / shares[k] for k in range(CLASSES))
    sizes = np.maximum(1, np.round(most * shares)).astype(int)
    own = [np.flatnonzero(y == k) for k in range(CLASSES)]
    chosen = [random.choice(own[k], sizes[k], replace=False) for k in range(CLASSES)]
    return np.concatenate(chosen), shares / shares.sum()


def by_frequency(
    labels: Labels, mass: np.ndarray, priors: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """(setting, class of every confused label), from the answers to a stream of queries.

    By rank: labels, or groups of labels, sorted by their mass are matched with the classes
    sorted by their priors. By lift: a label whose mass in the stream is r times that among
    the unlabelled inputs, where classes are equally frequent, is of the class that is r times
    as frequent as there.

    Args:
        mass: of the N labels, over the stream.
        priors: of the K classes in the stream, which the outsider knows.
    """
    ranked = np.argsort(-priors, kind="stable")
    order = np.argsort(-mass, kind="stable")
    even = np.minimum(np.arange(len(mass)) * CLASSES // len(labels.used), CLASSES - 1)
    yield "rank, as many labels for each class", _placed(len(mass), order, ranked[even])
    middle = (np.cumsum(mass[order]) - mass[order] / 2) / mass.sum()
    place = np.minimum(np.searchsorted(np.cumsum(priors[ranked]), middle), CLASSES - 1)
    yield "rank, as much mass as the prior", _placed(len(mass), order, ranked[place])
    reference = labels.outsider.answers.unlabelled.sum(0)
    every = np.arange(len(mass))
    yield "lift of labels", named_by_lift(every, mass, reference, priors)
    own, theirs = mass[labels.used], reference[labels.used]
    for name, points in last_points(labels).items():
        groups = points.groups(CLASSES)
        names = np.zeros(CLASSES, int)
        names[np.argsort(-np.bincount(groups, own, CLASSES), kind="stable")] = ranked
        yield f"rank of groups, {name}", _placed(len(mass), labels.used, names[groups])
        for count in (CLASSES, 2 * CLASSES, 4 * CLASSES):
            names = named_by_lift(points.groups(count), own, theirs, priors)
            yield f"lift of {count} groups, {name}", _placed(len(mass), labels.used, names)


def named_by_lift(
    groups: np.ndarray, mass: np.ndarray, reference: np.ndarray, priors: np.ndarray
) -> np.ndarray:
    """The class of every label, by the lift of its group."""
    stream, usual = np.bincount(groups, mass), np.bincount(groups, reference)
    tiny = 1e-12
    lift = (stream / stream.sum() + tiny) / (usual / usual.sum() + tiny)
    distances = np.abs(np.log(lift)[:, None] - np.log(CLASSES * priors))
    return distances.argmin(1)[groups]


def _placed(count: int, where: np.ndarray, values: np.ndarray) -> np.ndarray:
    found = np.zeros(count, int)
    found[where] = values
    return found


def last_points(labels: Labels) -> dict[str, LabelPoints]:
    """The head, co-activation, and the last layers' centroids."""
    last = {f"{name}{form}" for name in LAST for form in FORMS}
    centroids = {name: points for name, points in labels.centroids.items() if name in last}
    return {**labels.columns, **labels.embeddings, **centroids}


def frequency_balanced(labels: Labels, y_test: np.ndarray, seed: int) -> dict[str, float]:
    """Equal priors order nothing: the mean over random orders of the classes."""
    random = np.random.default_rng(seed)
    answers = labels.outsider.answers
    sums: dict[str, float] = {}
    for _ in range(ORDERS):
        priors = random.permutation(1 + 1e-6 * np.arange(CLASSES)) / CLASSES
        _add(sums, labels, answers.test.sum(0), priors, y_test)
    return {setting: total / ORDERS for setting, total in sums.items()}


def frequency_long_tail(
    labels: Labels, y_test: np.ndarray, ratio: float, seed: int
) -> dict[str, float]:
    """Named on a long-tailed stream of test inputs, measured on the whole test set; the mean
    over random orders of the classes."""
    sums: dict[str, float] = {}
    for order in range(ORDERS):
        stream, priors = long_tail(y_test, ratio, seed + order)
        _add(sums, labels, labels.outsider.answers.test[stream].sum(0), priors, y_test)
    return {setting: total / ORDERS for setting, total in sums.items()}


def _add(
    sums: dict[str, float], labels: Labels, mass: np.ndarray, priors: np.ndarray, y: np.ndarray
) -> None:
    for setting, classes in by_frequency(labels, mass, priors):
        decoded = labels.outsider.answers.test @ np.eye(CLASSES, dtype="float32")[classes]
        sums[setting] = sums.get(setting, 0.0) + score(decoded.argmax(1), y)


def clusterings(labels: Labels) -> Iterator[tuple[str, np.ndarray]]:
    """(setting, group 0 … K − 1 of every test input)."""
    answers = labels.outsider.answers.test
    points = {**labels.columns, **labels.embeddings, **labels.centroids}
    groups = {name: found.groups(CLASSES) for name, found in points.items()}
    together = labels.affinities["co-activation"]
    if len(together) > CLASSES:
        groups["spectral, co-activation"] = spectral_clustering(
            together + 1e-6, n_clusters=CLASSES, random_state=0
        )
    for name, group in groups.items():
        mass = answers[:, labels.used] @ np.eye(CLASSES, dtype="float32")[group]
        yield f"labels: {name}", mass.argmax(1)
    for name, space in labels.outsider.spaces.items():
        yield f"inputs: {name}", space.clusters[CLASSES].predict(space.test)


def named_at_random(groups: np.ndarray, y: np.ndarray, seed: int) -> float:
    """Mean accuracy over 1,000 random one-to-one namings of the groups: all that an outsider
    without labels can expect, 1/K."""
    table = contingency(groups, y)
    namings = np.random.default_rng(seed).permuted(
        np.tile(np.arange(CLASSES), (NAMINGS, 1)), axis=1
    )
    return float(table[np.arange(CLASSES), namings].sum(1).mean() / len(y))


def matched_by_oracle(groups: np.ndarray, y: np.ndarray) -> float:
    """Accuracy under the best one-to-one naming, which takes the test labels to find: a measure
    of the clustering, out of an outsider's reach."""
    table = contingency(groups, y)
    return float(table[linear_sum_assignment(-table)].sum() / len(y))


def contingency(groups: np.ndarray, y: np.ndarray) -> np.ndarray:
    table = np.zeros((CLASSES, CLASSES))
    np.add.at(table, (groups, y), 1.0)
    return table
