"""Chances of coincidences: against SciPy, and against numbers worked out by hand."""

import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from keras_encryip.tracing.statistics import binomial_tail, corrected


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100, 1000, 2**20])
@pytest.mark.parametrize("n", [1, 2, 7, 32, 100, 513])
def test_tails_are_scipys(n: int, num_classes: int) -> None:
    hits = np.arange(n + 1)
    expected = stats.binom.sf(hits - 1, n, 1 / num_classes)
    tail = binomial_tail(n, num_classes)
    assert tail.shape == (n + 1,)
    normal = expected > 1e-290  # SciPy loses digits of denormal numbers
    assert normal.sum() >= min(n, 30)
    np.testing.assert_allclose(tail[normal], expected[normal], rtol=1e-9)
    assert (tail[~normal] < 1e-289).all()


@pytest.mark.parametrize(
    ("n", "num_classes", "tail"),
    [
        (0, 2, [1]),
        (0, 10, [1]),
        (1, 4, [1, 1 / 4]),
        (2, 10, [1, 19 / 100, 1 / 100]),
        (3, 2, [1, 7 / 8, 4 / 8, 1 / 8]),
        (3, 3, [1, 19 / 27, 7 / 27, 1 / 27]),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_tails_by_hand(n: int, num_classes: int, tail: list[float]) -> None:
    assert binomial_tail(n, num_classes).tolist() == tail


@given(st.integers(0, 40), st.integers(2, 50))
def test_a_tail_is_the_sum_of_its_chances(n: int, num_classes: int) -> None:
    p = Fraction(1, num_classes)
    chances = [math.comb(n, h) * p**h * (1 - p) ** (n - h) for h in range(n + 1)]
    assert binomial_tail(n, num_classes).tolist() == [float(sum(chances[h:])) for h in range(n + 1)]


def test_extremes_neither_overflow_nor_lose_digits() -> None:
    """(2²⁰)⁴⁰⁹⁶ has 81,921 bits; no float holds it."""
    tail = binomial_tail(4096, 2**20)
    assert tail.shape == (4097,)
    assert tail[0] == 1
    assert tail[1] == pytest.approx(-math.expm1(4096 * math.log1p(-(2**-20))), rel=1e-12)
    assert tail[10] == pytest.approx(stats.binom.sf(9, 4096, 2**-20), rel=1e-9)
    assert tail[-1] == 0
    assert (np.diff(tail) <= 0).all()
    assert np.isfinite(tail).all()


@pytest.mark.parametrize(
    ("p_value", "tests", "expected"),
    [
        (0.25, 1, 0.25),
        (0.25, 3, 0.75),
        (0.25, 4, 1),
        (0.25, 5, 1),
        (0, 10**9, sys.float_info.min * 10**9),  # nothing is impossible
        (0.25, 0, 0.25),
    ],
)
def test_corrected(p_value: float, tests: int, expected: float) -> None:
    assert corrected(p_value, tests) == expected
