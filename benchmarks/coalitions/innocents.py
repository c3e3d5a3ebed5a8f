"""How often innocents score as high as a bound says, whatever the answers are."""

from typing import Any

import numpy as np
from scipy.stats import binomtest

from keras_encryip.tracing.statistics import (
    SIGNIFICANCE,
    innocent_tail,
    least_score,
    observed_weights,
    scores,
)

from .strategies import STRATEGIES, Labels, draw, serve

CLASSES, LABELS, USERS = 10, 64, 1_000
INNOCENTS = 200_000
"""Codewords drawn for each kind of answers, `USERS` of them for each model."""
REPORTS = 20_000
"""Models for each kind of answers, each with `USERS` innocents."""
STEP = 50
MODELS = 200
"""Sets of answers; a report's innocents are drawn anew for each."""
BOUNDS = (0.1, 0.01, 1e-3, 1e-4, 1e-5)
LEVELS = (0.1, 0.01, 1e-3, SIGNIFICANCE)
OTHERS = ("one class", "half of them one class", "weights of a natural service")

Row = dict[str, Any]


def weights_of(kind: str, labels: Labels, random: np.random.Generator) -> np.ndarray:
    """float64 `[runs, T]`: of answers that owe nothing to the users tested."""
    runs, count = labels.biases.shape
    if kind == OTHERS[2]:
        sizes = random.exponential(size=(runs, count)) ** 2
        return sizes * np.where(labels.bits(1, random)[:, 0] == 1, 1, -1)
    if kind in STRATEGIES:
        read = labels.classes(labels.bits(int(random.integers(2, 9)), random))
        said = serve(STRATEGIES[kind], read, CLASSES, random)
    else:
        said = random.integers(CLASSES, size=(runs, count), dtype=np.int16)
        half = random.random((runs, count)) < 0.5
        said = np.where(half | (kind == OTHERS[0]), said[:, :1], said)
    every = [
        observed_weights(*parts) for parts in zip(said, labels.pairs, labels.biases, strict=True)
    ]
    return np.array(every)


def innocents(kind: str, seed: int) -> Row:
    """Innocents' uncorrected chances, against their bounds: all by the library's functions."""
    below = np.zeros(len(BOUNDS), int)
    random = np.random.default_rng((seed, 4, _number(kind)))
    for _ in range(INNOCENTS // USERS):
        labels = draw(1, LABELS, CLASSES, random)
        weights, biases = weights_of(kind, labels, random)[0], labels.biases[0]
        found = scores(weights, biases, labels.bits(USERS, random)[0])
        tails = innocent_tail(weights, biases, found)
        below += (tails[:, None] <= BOUNDS).sum(0)
    return _rates(BOUNDS, below, INNOCENTS)


def reports(kind: str, seed: int) -> Row:
    """How many reports on 1,000 innocents name somebody, by the library's least score.

    The best of 1,000 innocents: agreements are counted in place of scores where all weights
    have one size, and drawn as binomial numbers; else codewords are drawn.
    """
    named = np.zeros(len(LEVELS), int)
    random = np.random.default_rng((seed, 5, _number(kind)))
    each = REPORTS // MODELS
    for _ in range(MODELS):
        labels = draw(1, LABELS, CLASSES, random)
        weights, biases = weights_of(kind, labels, random)[0], labels.biases[0]
        least = [least_score(weights, biases, USERS, level) for level in LEVELS]
        best = _best_of(weights, biases, each, random)
        named += (best[:, None] >= np.array(least)).sum(0)
    return _rates(LEVELS, named, REPORTS)


def _best_of(
    weights: np.ndarray, biases: np.ndarray, times: int, random: np.random.Generator
) -> np.ndarray:
    """float64 `[times]`: the best score of `USERS` innocents."""
    sizes = np.abs(weights[weights != 0])
    if sizes.size and np.ptp(sizes) > 1e-6 * sizes[0]:
        best = []
        for _ in range(0, times, STEP):
            bits = random.random((STEP * USERS, len(biases)), np.float32) < biases
            found = scores(weights, biases, bits.view(np.uint8))
            best.append(found.reshape(STEP, USERS).max(1))
        return np.concatenate(best)[:times]
    chances = np.where(weights > 0, biases, 1 - biases)[weights != 0]
    agreed = np.zeros((times, USERS), np.int64)
    for chance in np.unique(chances):
        agreed += random.binomial(int((chances == chance).sum()), chance, (times, USERS))
    size = float(sizes[0]) if sizes.size else 0.0
    return size * (agreed.max(1) - chances.sum())


def _number(kind: str) -> int:
    return [*STRATEGIES, *OTHERS].index(kind)


def _rates(bounds: tuple[float, ...], found: np.ndarray, runs: int) -> Row:
    row: Row = {"runs": runs, "below": {}}
    for bound, times in zip(bounds, found.tolist(), strict=True):
        interval = binomtest(times, runs).proportion_ci(method="exact")
        row["below"][f"{bound:g}"] = {
            "times": times,
            "interval_95": [float(interval.low), float(interval.high)],
            "contradicts_bound": bool(binomtest(times, runs, bound, "greater").pvalue < 1e-3),
        }
    return row
