"""How unlikely an innocent user's score is: exact, and whatever the traitors did.

An innocent user's trace answers are uniform over the K classes and independent of
everything that anybody else can compute (DDH, and AES-256 as a pseudo-random
function). So given *any* answers of a service or table, made by whatever
strategy without that user's key, the number of coincidences is Bin(n, 1/K).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

SIGNIFICANCE: Final = 1e-6
"""The chance, over all users tested, that a report accuses anybody who is innocent."""


FORGERY: Final = 2.0**-128
"""Stated chance of a forged signature, or of a point of P that was never issued."""

_COUNTED: Final = 4096


def coincidences(
    said: np.ndarray, predicted: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The accusation rule for answers: how often users' keys predict what was said.

    Args:
        said: int `[T]`, the answers at the trace labels, below 0 for none.
        predicted: int `[users, T]`, what each user's key reads there.
        num_classes: K.

    Returns:
        (int `[users]` agreements, float64 `[users]` chances of as many or more for an innocent
        user, before any correction).
    """
    answered = said >= 0
    expected = said[answered].astype(predicted.dtype)
    hits: np.ndarray = (predicted[:, answered] == expected).sum(1)
    return hits, binomial_tail(int(answered.sum()), num_classes)[hits]


@dataclass(frozen=True)
class Ranking:
    """Users by the comparison that speaks most against each.

    Attributes:
        best: int `[users]`, the number of that comparison.
        hits: int `[users]`, the agreements in it.
        p_values: float64 `[users]`, corrected for all users and comparisons.
        order: int `[users]`, positions of users, the strongest evidence first.
        tests: users times comparisons.
    """

    best: np.ndarray
    hits: np.ndarray
    p_values: np.ndarray
    order: np.ndarray
    tests: int

    @property
    def guilty(self) -> int:
        """How many users are proved guilty."""
        return int((self.p_values <= SIGNIFICANCE).sum())


def rank_users(comparisons: Sequence[tuple[np.ndarray, np.ndarray]]) -> Ranking:
    """Rank users over several comparisons, each as `coincidences` gives it."""
    # Users who were added meanwhile are in the later comparisons only.
    users = min((len(hits) for hits, _ in comparisons), default=0)
    hits, chances = (np.array([pair[i][:users] for pair in comparisons]) for i in (0, 1))
    best = np.argmin(chances, axis=0) if users else np.zeros(0, int)
    hits, chances = (values[best, np.arange(users)] for values in (hits, chances))
    tests = users * len(comparisons)
    order = np.lexsort((-hits, chances))
    return Ranking(best, hits, np.minimum(1.0, chances * tests), order, tests)


def proves_guilt(p_value: float) -> bool:
    """Whether a corrected p-value is at most `SIGNIFICANCE`."""
    return p_value <= SIGNIFICANCE


def ownership(
    readings: Sequence[tuple[np.ndarray, np.ndarray]], num_classes: int
) -> dict[str, Any]:
    """Whether this is the model at all: answers that are alike under every key.

    Args:
        readings: (said, meant) in each order that the model's labels had; the best counts.
        num_classes: K.

    Returns:
        Facts for a report.
    """
    results = []
    for said, meant in readings:
        n, hits = int((said >= 0).sum()), int(((said == meant) & (said >= 0)).sum())
        # Terms far out underflow; a few thousand answers prove as much as a million.
        counted = min(n, _COUNTED)
        tail = binomial_tail(counted, num_classes)
        results.append((float(tail[hits * counted // n if n else 0]), hits, n))
    chance, hits, n = min(results)
    chance = corrected(chance, len(readings))
    return {
        "this is the model": "yes" if proves_guilt(chance) else "not shown",
        "p-value of that": chance,
        "ordinary answers right": f"{hits} of {n}",
    }


@lru_cache(maxsize=64)
def binomial_tail(n: int, num_classes: int) -> np.ndarray:
    """P(X ≥ h) for X ~ Bin(n, 1/K), from exact integers.

    Args:
        n: number of answers, ≥ 0.
        num_classes: K ≥ 2.

    Returns:
        float64 `[n + 1]`, entry h for h coincidences; 0 where below the smallest float.

    Example:
    >>> binomial_tail(2, 10)
    array([1.  , 0.19, 0.01])
    """
    total = num_classes**n
    tail, sums = 0, []
    for hits in range(n, -1, -1):
        tail += math.comb(n, hits) * (num_classes - 1) ** (n - hits)
        sums.append(tail / total)
    chances = np.array(sums[::-1])
    chances.flags.writeable = False  # it is shared
    return chances


def corrected(p_value: float, tests: int) -> float:
    """Bonferroni: the chance that any of `tests` innocents scores so high, at most 1."""
    return min(1.0, p_value * max(1, tests))


def least_hits(n: int, num_classes: int, tests: int) -> int:
    """The smallest number of coincidences whose corrected p-value is at most `SIGNIFICANCE`.

    Returns:
        1 … n, or n + 1 if even n coincidences are too few.
    """
    enough = np.flatnonzero(binomial_tail(n, num_classes) * max(1, tests) <= SIGNIFICANCE)
    return int(enough[0]) if enough.size else n + 1
