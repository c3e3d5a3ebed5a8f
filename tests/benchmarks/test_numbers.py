"""Means, intervals and paired differences against hand-computed values and scipy's own test."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from benchmarks.report.numbers import (
    LEVEL,
    figures,
    interval,
    markdown,
    number,
    p_value,
    paired,
    points,
    seconds,
    spread,
    within,
)


def test_figures_are_picked_by_all_names() -> None:
    columns = ["seed", "method", "attack", "setting", "metric", "value"]
    lines = [
        [0, "twin", "training", "", "accuracy", 0.5],
        [1, "twin", "training", "", "accuracy", True],
        [0, "ours", "training", "", "accuracy", 0.1],
        [0, "twin", "cut", "", "accuracy", 0.2],
        [0, "twin", "training", "n = 1", "accuracy", 0.3],
        [0, "twin", "training", "", "seconds", 0.4],
    ]
    found = figures(pd.DataFrame(lines, columns=columns), "twin", "training", "accuracy")
    assert dict(found) == {0: 0.5, 1: 1.0}


def test_interval_by_hand() -> None:
    """Mean 3; squares of the distances 4 + 1 + 1 + 4 = 10, deviation √(10 / 3), error √(10 / 12).
    Student's quantile for 3 degrees of freedom is 3.18245."""
    half = 3.18245 * math.sqrt(10 / 12)
    expected = pytest.approx((3 - half, 3 + half), abs=1e-4)
    assert interval(pd.Series([1.0, 2.0, 4.0, 5.0])) == expected


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_interval_equals_that_of_scipys_paired_test(seeds: int) -> None:
    ours = pd.Series([(0.31 * seed) % 0.07 for seed in range(seeds)])
    theirs = pd.Series([(0.17 * seed * seed) % 0.05 for seed in range(seeds)])
    expected = ttest_rel(ours, theirs).confidence_interval(LEVEL)
    assert interval(paired(ours, theirs)) == pytest.approx((expected.low, expected.high))


def test_only_common_seeds_are_paired() -> None:
    ours, theirs = pd.Series({0: 0.5, 1: 0.7, 4: 0.9}), pd.Series({4: 0.7, 1: 0.6, 5: 0.0})
    assert dict(paired(ours, theirs)) == pytest.approx({1: 0.1, 4: 0.2})


def test_one_seed_has_no_interval_and_equal_ones_a_point() -> None:
    assert np.isnan(interval(pd.Series([0.5]))).all()
    assert within(pd.Series([0.5]), points) == "–"
    assert interval(pd.Series([0.25, 0.25])) == (0.25, 0.25)


def test_spread() -> None:
    values = pd.Series([0.97, 0.98, 0.99])
    assert spread(values) == spread(values, of=3) == "98.00 (1.00)"
    assert spread(values, of=4) == "98.00 (1.00) [3]"
    assert spread(values - 1, points) == "-2.00 (1.00)"
    assert (spread(values[:1]), spread(values[:0])) == ("97.00", "–")


def test_formats() -> None:
    assert (points(-0.00001), points(0.0575), number(1234.5, 1)) == ("+0.00", "+5.75", "1,234.5")
    found = [p_value(p) for p in (3.2e-12, 1e-6, 0.0, 0.42, 1.0)]
    assert found == ["3e-12", "1e-6", "0", "0.42", "1"]
    assert [seconds(s) for s in (0.00067, 4.75, 9.96, 4770.2)] == ["0.00067", "4.8", "10", "4,770"]


def test_markdown_is_padded_and_keeps_bars_inside_cells() -> None:
    table = pd.DataFrame({"a": ["long cell", np.nan], "b": ["x|y", 3]})
    assert markdown(table).split("\n") == [
        "| a         | b    |",
        "| --------- | ---- |",
        "| long cell | x\\|y |",
        "| –         | 3    |",
    ]
