"""Attacks that find out which class each confused label stands for.

The labelled samples put mass on some labels; the attacks carry it to labels that look alike: by
their columns of the head, by answering the same inputs, or by the inputs that they answer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.linalg import eigh
from scipy.spatial.distance import cdist

from ..data import CLASSES
from .outsider import NEIGHBOURS, Outsider, Space
from .probing import (
    Accuracies,
    Known,
    Spreads,
    balanced,
    confident,
    rows,
    score,
    spread,
    spread_scores,
)

BANDWIDTHS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
GROUPS = (CLASSES, CLASSES + 1, 2 * CLASSES, 4 * CLASSES, 100, 200)
ALPHAS = (0.3, 0.6, 0.9, 0.99)
LAST = ("features", "logits", "answers")
FORMS = ("", ", first")
"""Of centroids: weighted by probability, or of the inputs whose most probable label it is."""

Readings = Iterator[tuple[str, np.ndarray]]
"""(setting, class scores `[N, K]`)."""


@dataclass(frozen=True)
class LabelPoints:
    """A point for every label that the model uses.

    Attributes:
        points: `[m, d]`.
        labels: int `[m]`, which of the N labels they are.
    """

    points: np.ndarray
    labels: np.ndarray

    @cached_property
    def tree(self) -> np.ndarray:
        return linkage(self.points, "ward")

    def groups(self, count: int) -> np.ndarray:
        """Ward's grouping into at most `count`; int `[m]` from 0."""
        return fcluster(self.tree, count, "maxclust") - 1

    def readings(self, mass: np.ndarray) -> Readings:
        """From the labelled samples' mass `[N, K]` on every label."""
        own = mass[self.labels]
        for count in GROUPS:
            if count < len(self.labels):
                member = np.eye(count)[self.groups(count)]
                yield f"{count} groups", self._all(member @ (member.T @ own), mass)
        distances = cdist(self.points, self.points, "sqeuclidean")
        near = min(5, len(self.labels) - 1)
        scale = max(np.median(np.partition(distances, near, axis=1)[:, near]), 1e-12)
        for bandwidth in BANDWIDTHS:
            kernel = np.exp(-distances / (bandwidth * scale))
            yield f"bandwidth {bandwidth}", self._all(kernel @ own, mass)
        for alpha in ALPHAS:
            kernel = np.exp(-distances / scale)
            yield f"walk, alpha = {alpha}", self._all(spread(kernel, own, alpha), mass)

    def _all(self, scores: np.ndarray, mass: np.ndarray) -> np.ndarray:
        found = mass.copy()
        found[self.labels] = scores
        return found


@dataclass(frozen=True)
class Labels:
    """All that an outsider can say of the confused labels without a labelled sample."""

    outsider: Outsider

    @cached_property
    def used(self) -> np.ndarray:
        """Labels with a tenth of an even share of the mass: no trace labels. At least as many as
        classes, though noise may answer one label alone."""
        share = self.outsider.answers.unlabelled.mean(0)
        enough = min(0.1 / len(share), np.sort(share)[-CLASSES])
        return np.flatnonzero(share >= enough)

    @cached_property
    def columns(self) -> dict[str, LabelPoints]:
        """Columns of the head with their bias, as they are, centred, and by angle."""
        kernel = self.outsider.kernel.T
        columns = np.column_stack([kernel, self.outsider.bias])[self.used]
        centred = kernel[self.used] - kernel[self.used].mean(0)
        angles = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
        return {
            "columns": LabelPoints(columns, self.used),
            "columns' angles": LabelPoints(angles, self.used),
        }

    @cached_property
    def centroids(self) -> dict[str, LabelPoints]:
        """Means, in every layer, of the unlabelled inputs that come out as a label; weighted by
        its probability, or (first) only those whose most probable label it is."""
        found = {}
        answers = self.outsider.answers.unlabelled
        first = np.zeros_like(answers)
        first[np.arange(len(answers)), answers.argmax(1)] = 1.0
        first += 1e-3 * answers  # labels that are nowhere first
        for name, space in self.outsider.spaces.items():
            for form, weights in zip(FORMS, (answers, first), strict=True):
                own = weights[:, self.used]
                means = own.T @ space.unlabelled / np.maximum(own.sum(0), 1e-12)[:, None]
                found[f"{name}{form}"] = LabelPoints(means, self.used)
        return found

    @cached_property
    def affinities(self) -> dict[str, np.ndarray]:
        """`[m, m]`, of the used labels: how they answer together."""
        answers = self.outsider.answers.unlabelled
        own = answers[:, self.used]
        order = np.argsort(own, axis=1)
        seconds = np.zeros((len(self.used),) * 2)
        np.add.at(seconds, (order[:, -1], order[:, -2]), 1.0)
        together = own.T @ own
        power = together.diagonal()
        logs = np.nan_to_num(np.corrcoef(np.log(own + 1e-9).T))  # none where nothing changes
        found = {
            "runners-up": seconds + seconds.T,
            "co-activation": together / np.maximum(np.sqrt(np.outer(power, power)), 1e-12),
        }
        for exponent in (1, 4, 16, 64):
            found[f"log-probabilities' correlation ^ {exponent}"] = np.clip(logs, 0, 1) ** exponent
        return found

    @cached_property
    def embeddings(self) -> dict[str, LabelPoints]:
        """Spectral: leading eigenvectors of the normalised co-activation."""
        together = self.affinities["co-activation"]
        root = 1 / np.sqrt(np.maximum(together.sum(1), 1e-12))
        size = len(together)
        most = min(4 * CLASSES, size)
        _, vectors = eigh(together * root[:, None] * root, subset_by_index=[size - most, size - 1])
        found = {}
        for count in (CLASSES, 2 * CLASSES, 4 * CLASSES):
            points = vectors[:, -count:]
            points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
            found[f"{count} eigenvectors"] = LabelPoints(points, self.used)
        return found


@lru_cache(maxsize=1)
def labels_of(outsider: Outsider) -> Labels:
    """Kept for the next n."""
    return Labels(outsider)


def votes(outsider: Outsider, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The labelled samples' mass on every label, `[N, K]`."""
    return outsider.confused(x).T @ np.eye(CLASSES)[y]


def decode(scores: np.ndarray, confused: np.ndarray) -> np.ndarray:
    """Classes from class scores `[N, K]`, each label's normalised."""
    return (confused @ rows(scores).astype("float32")).argmax(-1)


def accuracies(readings: Readings, confused: np.ndarray, y: np.ndarray) -> Accuracies:
    """Of every reading, with and without balanced classes."""
    for setting, scores in readings:
        yield setting, score(decode(scores, confused), y)
        yield f"{setting}, balanced", score(decode(balanced(scores), confused), y)


def slot_voting(labels: Labels, mass: np.ndarray) -> Readings:
    yield "probabilities", mass


def by_points(kind: str) -> Callable[[Labels, np.ndarray], Readings]:
    """Readings over the points of `Labels.<kind>`."""

    def readings(labels: Labels, mass: np.ndarray) -> Readings:
        for name, points in getattr(labels, kind).items():
            for setting, scores in points.readings(mass):
                yield f"{name}, {setting}", scores

    return readings


def by_affinity(labels: Labels, mass: np.ndarray) -> Readings:
    """Random walks with restart over how labels answer together."""
    for name, affinity in labels.affinities.items():
        for alpha in ALPHAS:
            found = mass.copy()
            found[labels.used] = spread(affinity, mass[labels.used], alpha)
            yield f"{name}, alpha = {alpha}", found
    yield from by_points("embeddings")(labels, mass)


def by_inputs(labels: Labels, spreads: Spreads) -> Readings:
    """Label spreading names the unlabelled inputs, and they vote for the labels that they get."""
    answers = labels.outsider.answers.unlabelled
    for setting, scores in spreads.items():
        yield setting, answers.T @ rows(balanced(scores[: len(answers)]))


def respread(
    spaces: dict[str, Space], known: Known, y: np.ndarray, part: float, rounds: int
) -> list[np.ndarray]:
    """Class shares of the unlabelled inputs: the mean of label spreading over features, logits
    and answers; then, round by round, with the most confident part of them as labelled too."""
    found = []
    seeds, classes = known, y
    for _ in range(rounds + 1):
        shares = [
            rows(balanced(spread_scores(spaces[name], seeds[name], classes, NEIGHBOURS, 0.99)))
            for name in LAST
        ]
        found.append(np.mean(shares, axis=0)[: len(spaces["features"].unlabelled)])
        chosen = confident(found[-1], part)
        seeds = {
            name: np.concatenate([known[name], spaces[name].unlabelled[chosen]]) for name in LAST
        }
        classes = np.concatenate([y, found[-1][chosen].argmax(1)])
    return found


def by_respreading(labels: Labels, known: Known, y: np.ndarray) -> Readings:
    """As `by_inputs`, with `respread`."""
    answers = labels.outsider.answers.unlabelled
    for part in (0.3, 0.5):
        for number, shares in enumerate(respread(labels.outsider.spaces, known, y, part, 2)):
            yield f"round {number}, most confident {part}", answers.T @ shares


Reader = Callable[[Labels, np.ndarray], Readings]

READERS: dict[str, Reader] = {
    "slot voting": slot_voting,
    "head columns": by_points("columns"),
    "co-activation": by_affinity,
    "centroids": by_points("centroids"),
}
