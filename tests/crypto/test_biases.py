"""Biases are two exact fractions, as likely one as the other."""

from fractions import Fraction

import numpy as np
import pytest

from keras_encryip.crypto.biases import bias_thresholds


@pytest.mark.parametrize(
    ("word", "threshold"),
    [
        (0, 907_633_386),
        (2**31 - 1, 907_633_386),
        (2**31, 3_387_333_910),
        (2**32 - 1, 3_387_333_910),
    ],
)
def test_thresholds_by_hand(word: int, threshold: int) -> None:
    found = bias_thresholds(np.array([word], np.uint32))
    assert found.dtype == np.uint32
    assert found.tolist() == [threshold]


def test_the_two_are_complements_and_roots_of_the_legendre_polynomial() -> None:
    """p (1 - p) = 1/6, to the 32 bits that a threshold has."""
    low, high = (int(t) for t in bias_thresholds(np.array([0, 2**31], np.uint32)))
    assert low + high == 2**32
    assert abs(Fraction(low * high, 2**64) - Fraction(1, 6)) < Fraction(1, 2**32)


def test_both_are_drawn_as_often() -> None:
    words = np.random.default_rng(0).integers(2**32, size=100_000, dtype=np.uint32)
    share = (bias_thresholds(words) == 907_633_386).mean()
    assert abs(share - 0.5) < 5 * 0.5 / 100_000**0.5
