"""Tardos scores: tails against enumeration and simulation, and that innocents are safe."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from keras_encryip.tracing.innocent_scores import InnocentScores
from keras_encryip.tracing.statistics import (
    SIGNIFICANCE,
    innocent_tail,
    least_score,
    observed_weights,
    rank_users,
    scores,
)


def every_score(weights: np.ndarray, biases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All 2^T scores, in descending order, and the exact chance of each or more."""
    bits = np.array(list(itertools.product((0, 1), repeat=len(weights))), np.uint8)
    chances = np.where(bits == 1, biases, 1 - biases).prod(1)
    found = bits @ weights - weights @ biases
    order = np.argsort(-found, kind="stable")
    return found[order], chances[order].cumsum()


def tardos(bits: np.ndarray, biases: np.ndarray) -> np.ndarray:
    return np.where(bits == 1, 1.0, -1.0) / np.sqrt(biases * (1 - biases))


# --- weights and scores ------------------------------------------------------------------


def test_weights_by_hand() -> None:
    biases = np.array([0.5, 0.2, 0.2, 0.5, 0.5])
    pairs = np.array([[3, 1], [0, 2], [0, 2], [1, 2], [1, 2]])
    weights = observed_weights(np.array([1, 0, 2, 0, -1]), pairs, biases)
    np.testing.assert_allclose(weights, [2, -2.5, 2.5, 0, 0])


def test_no_answer_is_not_mistaken_for_a_class_below_0() -> None:
    weights = observed_weights(np.array([-1, -2]), np.array([[-1, 0], [1, -2]]), np.full(2, 0.5))
    assert weights.tolist() == [0, 0]


@pytest.mark.parametrize("users", [0, 1, 5000])
@pytest.mark.parametrize("labels", [0, 1, 64, 1024])
def test_scores_are_sums(users: int, labels: int) -> None:
    random = np.random.default_rng(0)
    weights, biases = random.normal(size=labels), random.uniform(0.1, 0.9, labels)
    bits = random.integers(0, 2, (users, labels), dtype=np.uint8)
    expected = [math.fsum(weights * (row - biases)) for row in bits]
    np.testing.assert_allclose(scores(weights, biases, bits), expected, atol=1e-11)


# --- tails -------------------------------------------------------------------------------

weight = st.one_of(
    st.just(0.0), st.sampled_from([2.0, -2.0, 2.45]), st.floats(-5, 5, allow_subnormal=False)
)
labels = st.lists(st.tuples(weight, st.floats(1e-6, 1 - 1e-6)), max_size=9)


@given(labels)
@settings(max_examples=150, deadline=None)
def test_tails_are_never_below_the_truth_and_close_to_it(found: list[tuple[float, float]]) -> None:
    weights, biases = (np.array([pair[i] for pair in found]) for i in (0, 1))
    values, chances = every_score(weights, biases)
    law = InnocentScores(weights, biases)
    bounds = law.tail(values)
    # Scores that differ by rounding errors alone are one score.
    last = np.searchsorted(-values, -values + 1e-9 * np.abs(weights).max(initial=1), "right") - 1
    assert (bounds >= chances * (1 - 1e-9)).all()
    # Up to the rounding of each label, a bound is the chance of a slightly smaller score.
    lower = values - len(weights) * law._step * law._unit - 1e-9
    reached = np.searchsorted(-values, -lower, "right") - 1
    assert (bounds <= np.maximum(chances[last], chances[reached]) * (1 + 1e-4) + 1e-40).all()


@pytest.mark.parametrize("labels", [16, 64, 257, 1024])
@pytest.mark.parametrize("bias", [0.5, 0.2113])
def test_equal_weights_are_exact(labels: int, bias: float) -> None:
    """The score is then a binomial number of agreements."""
    biases = np.full(labels, bias)
    weights = tardos(np.ones(labels), biases)
    agreements = np.arange(labels + 1)
    expected = stats.binom.sf(agreements - 1, labels, bias)
    values = weights[0] * (agreements - labels * bias)
    counted = expected > 1e-39
    found = innocent_tail(weights, biases, values)
    np.testing.assert_allclose(found[counted], expected[counted], rtol=2e-4)
    assert (found[counted] >= expected[counted] * (1 - 1e-12)).all()
    assert (found[~counted] >= np.minimum(expected[~counted], 1e-40)).all()


@pytest.mark.parametrize("labels", [16, 64, 256])
@pytest.mark.parametrize("kind", ["arcsine", "natural", "rare"])
def test_bounds_are_tight_where_guilt_begins(
    labels: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(labels)
    biases = np.sin(random.uniform(0.3, math.pi / 2 - 0.3, labels)) ** 2
    if kind == "rare":
        biases = random.uniform(0.001, 0.02, labels)
    weights = tardos(random.random(labels) < (1 if kind == "rare" else 0.5), biases)
    if kind == "natural":
        weights *= random.exponential(size=labels)
    chance = 1e-12 if labels > 64 or kind == "rare" else 1e-4
    score = InnocentScores(weights, biases).least(chance)
    assert score < np.inf
    bound = innocent_tail(weights, biases, np.array(score))
    monkeypatch.setattr("keras_encryip.tracing.innocent_scores._STEPS", 1 << 15)
    finer = innocent_tail(weights, biases, np.array(score))
    assert finer <= bound <= 1.4 * finer


def test_simulated_scores_are_as_frequent_as_stated() -> None:
    random = np.random.default_rng(1)
    biases = random.uniform(0.05, 0.95, 40)
    weights = random.normal(size=40) * random.choice([0.01, 1, 3], 40)
    bits = (random.random((200_000, 40)) < biases).astype(np.uint8)
    found = np.sort(scores(weights, biases, bits))[::-1]
    for rank in (100, 1_000, 20_000, 100_000):
        bound = float(innocent_tail(weights, biases, found[rank]))
        assert abs(rank - 200_000 * bound) < 5 * (200_000 * bound) ** 0.5 + 0.01 * rank


@pytest.mark.parametrize("labels", [0, 1, 64, 4096])
def test_higher_scores_have_no_higher_bounds(labels: int) -> None:
    random = np.random.default_rng(2)
    biases = np.where(random.random(labels) < 0.5, 0.2113, 0.7887)
    weights = tardos(random.random(labels) < biases, biases)
    wide = np.abs(weights).sum() + 1
    found = innocent_tail(weights, biases, np.linspace(-wide, wide, 3001))
    assert (np.diff(found) <= 0).all()
    assert found[0] == 1
    assert found[-1] < 1e-30
    assert (found >= 0).all()


def test_wildly_different_weights() -> None:
    """One label of 10⁹: it alone decides."""
    weights, biases = np.array([1e9, 1.0, -1e-9, 0.0]), np.array([0.01, 0.5, 0.5, 0.5])
    found = innocent_tail(weights, biases, np.array([9e8, 1.1e9, -1.1e7]))
    np.testing.assert_allclose(found, [0.01, 0, 1], rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("unit", [1e-300, 1e-9, 1e300])
def test_the_unit_of_weights_does_not_matter(unit: float) -> None:
    weights, biases = np.array([1.0, -2.0, 3.5]), np.array([0.3, 0.6, 0.5])
    values, chances = every_score(weights, biases)
    np.testing.assert_allclose(innocent_tail(weights * unit, biases, values * unit), chances)
    assert least_score(weights * unit, biases, 1, 0.2) == pytest.approx(
        least_score(weights, biases, 1, 0.2) * unit
    )


@pytest.mark.parametrize("labels", [1, 64])
def test_low_scores_alone_are_certain(labels: int) -> None:
    found = innocent_tail(np.ones(labels), np.full(labels, 0.2), np.array([-1e9, -labels * 0.2]))
    assert found.tolist() == [1, 1]


def test_biases_of_complements_are_exact_in_spite_of_rounding() -> None:
    """Weights of 0.2113 and of 1 - 0.2113 differ in their last bit."""
    biases = np.array([0.2113] * 40 + [1 - 0.2113] * 24)
    bits = np.array([1] * 40 + [0] * 24)
    score = float(np.abs(tardos(bits, biases)) @ np.where(bits == 1, 1 - biases, biases))
    assert innocent_tail(tardos(bits, biases), biases, np.array(score)) == pytest.approx(
        0.2113**64, rel=1e-3
    )
    near = innocent_tail(tardos(bits, biases), biases, np.array(score * 0.5))
    agreements = math.ceil(64 * 0.2113 + 64 * (1 - 0.2113) / 2 - 1e-9)
    assert near == pytest.approx(stats.binom.sf(agreements - 1, 64, 0.2113), rel=1e-6)


def test_extreme_biases_of_32_bits() -> None:
    biases = np.array([2.0**-32, 1 - 2.0**-32] * 8)
    weights = tardos(np.array([1, 0] * 8), biases)
    highest = float((np.abs(weights) * (1 - 2.0**-32)).sum())
    (one, all_of_them) = innocent_tail(weights, biases, np.array([6e4, highest * (1 - 1e-9)]))
    assert one == pytest.approx(16 * 2.0**-32, rel=1e-3)
    assert 2.0**-512 <= all_of_them < 1e-100


def test_nothing_counted_proves_nothing() -> None:
    found = innocent_tail(np.zeros(5), np.full(5, 0.5), np.array([[0.0, -1.0], [0.0, 0.0]]))
    assert found.tolist() == [[1, 1], [1, 1]]
    assert least_score(np.zeros(5), np.full(5, 0.5), 1) == np.inf
    assert innocent_tail(np.zeros(0), np.zeros(0), np.zeros(0)).shape == (0,)


# --- the rule ----------------------------------------------------------------------------


@pytest.mark.parametrize("tests", [1, 1_000, 10**6, 10**30])
@pytest.mark.parametrize("labels", [8, 19, 20, 64, 300])
def test_least_scores_are_enough_and_less_is_not(labels: int, tests: int) -> None:
    random = np.random.default_rng(labels)
    biases = random.uniform(0.2, 0.8, labels)
    weights = random.normal(size=labels)
    least = least_score(weights, biases, tests)
    if least == np.inf:
        highest = np.maximum(weights * (1 - biases), -weights * biases).sum()
        assert innocent_tail(weights, biases, np.array(highest)) * tests > SIGNIFICANCE
        return
    less = least - 1e-3 * np.abs(least)
    bounds = innocent_tail(weights, biases, np.array([least, less])) * tests
    assert bounds[0] <= SIGNIFICANCE < bounds[1]


@pytest.mark.parametrize(
    ("labels", "tests", "enough"),
    [(19, 1, False), (20, 1, True), (29, 1_000, False), (30, 1_000, True)],
)
def test_least_scores_by_hand(labels: int, tests: int, enough: bool) -> None:
    """2^-20 is below 1e-6, and 2^-30 below 1e-9."""
    found = least_score(np.full(labels, 2.0), np.full(labels, 0.5), tests)
    assert (found <= labels) == enough
    assert (found > labels - 2) or not enough


def test_users_are_ranked_by_their_best_comparison() -> None:
    biases = np.full(40, 0.5)
    bits = np.random.default_rng(3).integers(0, 2, (100, 40), dtype=np.uint8)
    comparisons = []
    for said in (bits[7], bits[55], 1 - bits[0]):
        weights = tardos(said, biases)
        found = scores(weights, biases, bits)
        comparisons.append((found, innocent_tail(weights, biases, found)))
    ranking = rank_users(comparisons)
    assert set(ranking.order[:2].tolist()) == {7, 55}
    assert (ranking.guilty, ranking.tests) == (2, 300)
    assert (ranking.best[7], ranking.best[55]) == (0, 1)
    assert ranking.scores[7] == 40
    assert ranking.p_values[7] == pytest.approx(300 * 2.0**-40)


def test_users_whom_one_comparison_lacks_are_left_out() -> None:
    ranking = rank_users([(np.zeros(3), np.ones(3)), (np.ones(2), np.full(2, 0.5))])
    assert ranking.scores.tolist() == [1, 1]
    assert rank_users([]).tests == 0


@pytest.mark.parametrize("level", [0.2, 0.02])
def test_innocents_are_accused_no_more_often_than_stated(level: float) -> None:
    """Traitors who answer as two of their three members; 50 innocents, 400 models."""
    random = np.random.default_rng(4)
    accused, models = 0, 400
    for _ in range(models):
        biases = np.where(random.random(48) < 0.5, 0.2113, 0.7887)
        traitors = random.random((3, 48)) < biases
        weights = tardos(traitors.sum(0) >= 2, biases)
        weights[random.random(48) < 0.3] = 0
        bits = (random.random((50, 48)) < biases).astype(np.uint8)
        best = float(scores(weights, biases, bits).max())
        accused += best >= least_score(weights, biases, 50, level)
    assert stats.binom.sf(accused - 1, models, level) > 1e-4
    assert accused > models * level / 8  # and the rule is not blunt
