"""Means, deviations and paired intervals against hand-computed values and scipy's own test."""

import pytest
from scipy.stats import ttest_rel

from benchmarks.report.statistics import LEVEL, paired, summary


def test_summary_has_the_sample_deviation() -> None:
    found = summary([1.0, 2.0, 4.0, 5.0])
    # Squares of the distances from 3 sum to 4 + 1 + 1 + 4 = 10; 10 / 3 = 3.333.
    assert (found.count, found.mean) == (4, 3.0)
    assert found.deviation == pytest.approx((10 / 3) ** 0.5)


def test_one_value_has_no_deviation() -> None:
    assert summary([0.9]).deviation is None


def test_paired_by_hand() -> None:
    found = paired({0: 0.98, 1: 0.97, 2: 0.99}, {2: 0.99, 1: 0.99, 0: 0.99})
    assert found is not None
    assert found.seeds == (0, 1, 2)
    assert found.mean == pytest.approx(-0.01)
    assert found.deviation == pytest.approx(0.01)
    # Student's quantile for 2 degrees of freedom is 4.3027; by the root of 3: 2.4842.
    assert found.interval == pytest.approx((-0.01 - 0.024842, -0.01 + 0.024842), abs=1e-6)


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_interval_equals_that_of_scipy(seeds: int) -> None:
    ours = {seed: (0.31 * seed) % 0.07 for seed in range(seeds)}
    theirs = {seed: (0.17 * seed * seed) % 0.05 for seed in range(seeds)}
    found = paired(ours, theirs)
    assert found is not None
    interval = ttest_rel([*ours.values()], [*theirs.values()]).confidence_interval(LEVEL)
    assert found.interval == pytest.approx((interval.low, interval.high))


def test_only_common_seeds_count() -> None:
    found = paired({0: 0.5, 1: 0.7, 4: 0.9}, {1: 0.6, 4: 0.7, 5: 0.0})
    assert found is not None
    assert found.seeds == (1, 4)
    assert found.mean == pytest.approx(0.15)


def test_one_common_seed_gives_no_interval() -> None:
    found = paired({0: 0.5, 1: 0.7}, {1: 0.6})
    assert found is not None
    assert (found.seeds, found.deviation, found.interval) == ((1,), None, None)


def test_no_common_seed_gives_nothing() -> None:
    assert paired({0: 0.5}, {1: 0.6}) is None


def test_equal_differences_give_a_point() -> None:
    found = paired({0: 0.75, 1: 1.0}, {0: 0.5, 1: 0.75})
    assert found is not None
    assert found.interval == (0.25, 0.25)
