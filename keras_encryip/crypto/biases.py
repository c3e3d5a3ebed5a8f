"""How often users' codeword bits are 1: each slot's secret bias, as an exact fraction of 2^32."""

from typing import Final

import numpy as np

_LOW: Final = 907_633_386
"""(3 - √3)/6 · 2^32, rounded: p = 0.21132…"""


def bias_thresholds(words: np.ndarray) -> np.ndarray:
    """Slots' biases: a user's bit is 1 if a uniform 32-bit word of theirs is below the threshold.

    A slot is rare or common at even odds: p = (3 ∓ √3)/6 = 0.2113 or 0.7887, the two points of
    the Gauss-Legendre code for three or four traitors (Nuida et al., 2009, "An improvement of
    discrete Tardos fingerprinting codes"). As p (1 - p) = 1/6 in every slot, all weights of a score
    have one size, and an innocent's law is that of a sum of bits: exact.

    Simulated: live labels that name a traitor in 95 % of runs (100 to 3,000 runs; T in steps of up
    to a quarter), at a corrected p-value of 1e-6, among 1,000 / 1,000,000 users, against the worst
    of several strategies of traitors who know each other's versions: for all rows but those of 1/2
    and arcsine also mixtures of the majority's answer, the minority's and none where they
    differ. With p = 1/2, three traitors who answer as the minority were never named:

    | biases           | one     | two       | three         |
    |------------------|---------|-----------|---------------|
    | 1/2              | 30 / 40 | 192 / 224 | never         |
    | 0.25, 0.75       | 46 / 62 | 204 / 288 | 912 / 1,148   |
    | 0.2113, 0.7887   | 54 / 68 | 256 / 324 | 576 / 724     |
    | 0.18, 0.82       | 64 / 80 | 288 / 364 | 724 / 912     |
    | arcsine, 0.05 …  | 56 / 80 | 256 / 320 | 1,024 / more  |

    `python -m benchmarks coalitions` has more: four traitors need 939 / 1,328 live labels.

    Args:
        words: uint32 `[M]`, uniform, one for each slot.

    Returns:
        uint32 `[M]`, thresholds tau = p · 2^32, 0 < tau < 2^32.

    Example:
    >>> bias_thresholds(np.array([0, 2**31 - 1, 2**31], np.uint32)) / 2**32
    array([0.21132487, 0.21132487, 0.78867513])
    """
    low = np.uint32(_LOW)
    return np.where(words < np.uint32(1 << 31), low, ~low + np.uint32(1))
