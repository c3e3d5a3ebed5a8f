"""How unlikely an innocent user's score is: exact, and whatever the traitors did.

User u's codeword bit β_u(s) in slot s is 1 with probability p_s, independent of all other bits
and of everything that anybody else can compute (a pseudo-random function of the authority).
Live label i of a model reads as class a_i for users with bit 0 and as b_i for users with bit 1.
Given *any* answers, made by whatever strategy without that user's key, an innocent's score is a
sum of independent two-point variables of known law.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from keras_encryip.tracing.innocent_scores import InnocentScores

SIGNIFICANCE: Final = 1e-6
"""The chance, over all users tested, that a report accuses anybody who is innocent."""


FORGERY: Final = 2.0**-128
"""Stated chance of a forged signature, or of a point of P that was never issued."""

_COUNTED: Final = 4096


_CHUNK: Final = 1 << 17
"""Bits scored at a time: they stay in the processor's cache."""


def observed_weights(said: np.ndarray, pairs: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """What each live label's answer says about its bit, for the symmetric Tardos score.

    An answer a_i is bit 0 and b_i is bit 1. The weight is 1/sqrt(p_i (1 - p_i)) for bit 1 and
    minus that for bit 0, so that a guess earns nothing on average and a label counts the
    more the rarer its bits are (Skoric, Katzenbeisser and Celik, 2008, "Symmetric Tardos
    fingerprinting codes for arbitrary alphabet sizes").

    Args:
        said: int `[T]`, the class that was answered; below 0 for none.
        pairs: int `[T, 2]`, (a_i, b_i).
        biases: float64 `[T]`, each p_i in (0, 1).

    Returns:
        float64 `[T]`, 0 where the answer is neither or none: such labels do not count.

    Example:
    >>> observed_weights(np.array([3, 5, 7]), np.array([[3, 4], [4, 5], [1, 2]]), np.full(3, 0.5))
    array([-2., 2., 0.])
    """
    bits = (said == pairs[:, 1]).astype(np.float64) - (said == pairs[:, 0])
    weights: np.ndarray = np.where(said >= 0, bits, 0.0) / np.sqrt(biases * (1 - biases))
    return weights


def scores(weights: np.ndarray, biases: np.ndarray, codewords: np.ndarray) -> np.ndarray:
    """Each user's score: sum_i w_i (β_u(i) - p_i).

    Args:
        weights: float64 `[T]`, as of `observed_weights`.
        biases: float64 `[T]`.
        codewords: uint8 `[users, T]`, users' bits at the live labels' slots.

    Returns:
        float64 `[users]`.
    """
    totals = np.empty(len(codewords))
    step = max(1, _CHUNK // max(1, len(weights)))
    for start in range(0, len(codewords), step):
        bits = codewords[start : start + step].astype(np.float64)
        np.matmul(bits, weights, out=totals[start : start + step])
    totals -= weights @ biases
    return totals


def innocent_tail(weights: np.ndarray, biases: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Upper bounds on the chance that an innocent user's score is s or more.

    They hold for whatever made the weights, as long as it knew nothing about that user's
    codeword. Not corrected for the users tested. `InnocentScores` says how tight they are.

    Args:
        weights: float64 `[T]`, any finite numbers.
        biases: float64 `[T]`.
        scores: float64, any shape.

    Returns:
        float64, in the shape of `scores`.

    Example:
    >>> innocent_tail(np.full(3, 2.0), np.full(3, 0.5), np.array([-3.0, 0.5, 3.0]))
    array([1. , 0.5 , 0.125])
    """
    return InnocentScores(weights, biases).tail(scores)


def least_score(
    weights: np.ndarray, biases: np.ndarray, tests: int, level: float = SIGNIFICANCE
) -> float:
    """The smallest score whose corrected tail is at most `level`; inf if there is none.

    Args:
        weights, biases: float64 `[T]`.
        tests: users times comparisons.
        level: chance over all tests.
    """
    return InnocentScores(weights, biases).least(level / max(1, tests))


@dataclass(frozen=True, repr=False)
class Ranking:
    """Users by the comparison that speaks most against each.

    Attributes:
        best: int `[users]`, the number of that comparison.
        scores: `[users]`, the score in it.
        p_values: float64 `[users]`, corrected for all users and comparisons.
        order: int `[users]`, positions of users, the strongest evidence first.
        tests: users times comparisons.
    """

    best: np.ndarray
    scores: np.ndarray
    p_values: np.ndarray
    order: np.ndarray
    tests: int

    @property
    def guilty(self) -> int:
        """How many users are proved guilty."""
        return int((self.p_values <= SIGNIFICANCE).sum())


def rank_users(comparisons: Sequence[tuple[np.ndarray, np.ndarray]]) -> Ranking:
    """Rank users over several comparisons: the best p-value of each, corrected for all.

    Args:
        comparisons: for each reading of the answers (`scores` of users, `innocent_tail` of
            these), both `[users]`, in the order of issue. Users whom one of them lacks, added
            meanwhile, are left out.
    """
    if not comparisons:
        nobody = np.zeros(0, int)
        return Ranking(nobody, np.zeros(0), np.zeros(0), nobody, tests=0)
    users = min(len(chances) for _, chances in comparisons)
    values, chances = (np.array([pair[i][:users] for pair in comparisons]) for i in (0, 1))
    best = np.argmin(chances, axis=0)
    values, chances = (array[best, np.arange(users)] for array in (values, chances))
    tests = users * len(comparisons)
    order = np.lexsort((-values, chances))
    return Ranking(best, values, np.minimum(1.0, chances * tests), order, tests)


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
    """Bonferroni: the chance that any of `tests` innocents scores so high, at most 1.

    Nothing is impossible: what a float cannot hold is rounded up to the smallest normal one.
    """
    return min(1.0, max(p_value, sys.float_info.min) * max(1, tests))
