"""How unlikely an innocent user's score is: exact, and whatever the traitors did.

An innocent user's trace answers are uniform over the K classes and independent of
everything that anybody else can compute (DDH, and AES-256 as a pseudo-random
function). So given *any* answers of a service or table, made by whatever
strategy without that user's key, the number of coincidences is Bin(n, 1/K).
"""

import math
from typing import Final

import numpy as np

SIGNIFICANCE: Final = 1e-6
"""The chance, over all users tested, that a report accuses anybody who is innocent."""


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
    return np.array(sums[::-1])


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
