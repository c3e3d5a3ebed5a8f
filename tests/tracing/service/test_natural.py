"""Live labels read out of natural answers: simulated services, and innocents beside them."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats

from keras_encryip.tracing.service.natural import _Fit, natural_weights
from keras_encryip.tracing.statistics import innocent_tail, scores

CLASSES, HOMOPHONES, LIVE, USERS = 10, 4, 64, 1_000


class Model(NamedTuple):
    """Outputs for natural inputs, with 4e-5 of the mass on live labels in all."""

    confused: np.ndarray
    labels: np.ndarray
    trace: np.ndarray
    pairs: np.ndarray
    biases: np.ndarray
    codewords: np.ndarray

    def answers(self, user: int) -> np.ndarray:
        """What an honest service on that user's key answers."""
        found = self.confused[:, self.labels].sum(2).astype(np.float64)
        for i, (pair, column) in enumerate(zip(self.pairs, self.trace, strict=True)):
            found[:, pair[self.codewords[user, i]]] += self.confused[:, column]
        return found

    def weights(self, answers: np.ndarray) -> np.ndarray:
        return natural_weights(self.confused, answers, *self[1:5])

    def judge(self, answers: np.ndarray, traitors: int = 1) -> tuple[float, float]:
        """(the best traitor's chance times all users, that of the best innocent)."""
        weights = self.weights(answers)
        found = scores(weights, self.biases, self.codewords)
        tails = innocent_tail(weights, self.biases, found) * USERS
        return float(tails[:traitors].min()), float(tails[traitors:].min())


def simulate(seed: int, queries: int = 100, mass: float = 4e-5) -> Model:
    random = np.random.default_rng(seed)
    columns = random.permutation(CLASSES * HOMOPHONES + LIVE)
    labels = columns[: CLASSES * HOMOPHONES].reshape(CLASSES, HOMOPHONES)
    trace = columns[CLASSES * HOMOPHONES :]
    logits = 2 * random.normal(size=(queries, CLASSES))
    logits[np.arange(queries), random.integers(CLASSES, size=queries)] += 8
    shares = random.dirichlet(np.full(HOMOPHONES, 2.0), (queries, CLASSES))
    confused = np.zeros((queries, len(columns)))
    real = np.exp(logits)[:, :, None] * shares
    confused[:, labels.ravel()] = (real / real.sum((1, 2), keepdims=True)).reshape(queries, -1)
    live = np.exp(1.5 * random.normal(size=(queries, LIVE)) + random.normal(size=LIVE) / 2)
    confused[:, trace] = live * mass / live.sum(1).mean()
    confused /= confused.sum(1, keepdims=True)
    biases = np.where(random.random(LIVE) < 0.5, 0.2113, 0.7887)
    first = random.integers(CLASSES, size=LIVE)
    pairs = np.stack([first, (first + random.integers(1, CLASSES, LIVE)) % CLASSES], 1)
    codewords = (random.random((USERS, LIVE)) < biases).astype(np.uint8)
    return Model(confused.astype(np.float32), labels, trace, pairs, biases, codewords)


def renormalised(answers: np.ndarray) -> np.ndarray:
    return answers / answers.sum(1, keepdims=True)


def strange_rows(answers: np.ndarray) -> np.ndarray:
    random = np.random.default_rng(9)
    answers = answers.copy()
    answers[::9] = random.dirichlet(np.ones(CLASSES), len(answers[::9]))
    answers[3] = np.nan
    answers[4] = 0
    return answers


HONEST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they are": lambda y: y,
    "float32": lambda y: y.astype(np.float32),
    "7 digits": lambda y: y.round(7),
    "6 digits": lambda y: y.round(6),
    "5 digits": lambda y: y.round(5),
    "6 digits, renormalised": lambda y: renormalised(y.round(6)),
    "sharpened": lambda y: renormalised(y**1.4).round(7),
    "flattened": lambda y: renormalised(y**0.7).round(5),
    "logits": lambda y: np.log(y) - 3,
    "per cent": lambda y: 100 * y,
    "clipped": lambda y: np.clip(y, 1e-6, 1 - 1e-6),
    "strange rows": strange_rows,
    "noise": lambda y: y + np.random.default_rng(8).normal(scale=1e-7, size=y.shape).clip(-y, 1),
}


@pytest.mark.parametrize("change", HONEST.values(), ids=HONEST)
def test_a_key_is_found_through(change: Callable[[np.ndarray], np.ndarray]) -> None:
    found = []
    for seed in range(3):
        model = simulate(seed)
        with np.errstate(all="raise", under="ignore"):
            guilty, innocent = model.judge(change(model.answers(0)))
        assert innocent > 1e-3
        found.append(guilty)
    assert np.median(found) <= 1e-6


def test_exact_answers_give_the_whole_codeword() -> None:
    model = simulate(5)
    weights = model.weights(model.answers(0))
    assert ((weights > 0) == model.codewords[0]).all()
    np.testing.assert_allclose(
        np.abs(weights), 1 / np.sqrt(model.biases * (1 - model.biases)), rtol=0.05
    )


def test_coarse_rounding_says_little_and_is_not_taken_for_more() -> None:
    """At 4 digits of such a model, and at 2 surely."""
    for digits, most in ((4, 0.6), (2, 0.05)):
        model = simulate(6)
        weights = model.weights(model.answers(0).round(digits))
        sure = np.abs(weights) * np.sqrt(model.biases * (1 - model.biases))
        assert np.mean(sure) < most
        _, innocent = model.judge(model.answers(0).round(digits))
        assert innocent > 1e-3


def test_labels_at_which_averaged_keys_differ_hardly_count() -> None:
    for seed in range(3):
        model = simulate(seed)
        weights = model.weights((model.answers(0) + model.answers(1)) / 2)
        differ = model.codewords[0] != model.codewords[1]
        sizes = np.abs(weights) * np.sqrt(model.biases * (1 - model.biases))
        assert sizes[~differ].mean() > 0.9
        assert sizes[differ].mean() < 0.25


def test_two_averaged_keys_are_found_with_enough_labels() -> None:
    """The chances of three models' labels, taken together."""
    together = []
    for seed in range(3):
        model = simulate(seed)
        model.codewords[:2] = np.random.default_rng(50 + seed).random((2, LIVE)) < model.biases
        weights = model.weights(((model.answers(0) + model.answers(1)) / 2).round(7))
        together.append((weights, model.biases, model.codewords))
    weights, biases = (np.concatenate([part[i] for part in together]) for i in (0, 1))
    codewords = np.concatenate([part[2] for part in together], 1)
    tails = innocent_tail(weights, biases, scores(weights, biases, codewords)) * USERS
    assert tails[:2].min() <= 1e-6
    assert tails[2:].min() > 1e-3


def test_another_model_says_nothing() -> None:
    model, other = simulate(1), simulate(2)
    weights = model.weights(other.answers(0))
    assert (np.abs(weights) * np.sqrt(model.biases * (1 - model.biases)) < 0.3).all()


@pytest.mark.parametrize("change", ["as they are", "4 digits", "another model"])
def test_innocents_are_accused_no_more_often_than_stated(change: str) -> None:
    """1,000 innocents' uncorrected chances in each of 8 models: 2 % are below 2 %, or fewer."""
    low = 0
    for seed in range(8):
        model = simulate(10 + seed, queries=40)
        answers = simulate(100).answers(0)[:40] if change == "another model" else model.answers(0)
        weights = model.weights(answers.round(4) if change == "4 digits" else answers)
        found = scores(weights, model.biases, model.codewords[1:])
        low += int((innocent_tail(weights, model.biases, found) <= 0.02).sum())
    assert stats.binom.sf(low - 1, 8 * (USERS - 1), 0.02) > 1e-4


def test_no_answers_and_no_labels() -> None:
    model = simulate(1)
    nothing = np.full((len(model.confused), CLASSES), np.nan)
    assert (model.weights(nothing) == 0).all()
    none = np.zeros(0, int)
    found = natural_weights(
        model.confused, model.answers(0), model.labels, none, none.reshape(0, 2), np.zeros(0)
    )
    assert found.shape == (0,)


def test_one_query_is_read_as_far_as_it_goes() -> None:
    model = simulate(3, queries=1)
    assert np.isfinite(model.weights(model.answers(0))).all()


# --- the normal equations --------------------------------------------------------------------


def dense(fit: _Fit, sharpness: float, trust: np.ndarray) -> np.ndarray:
    """What `_Fit._solve` solves, with every entry of the design written out."""
    powers = fit._powers(sharpness)
    tilt = powers * (fit._logs - (powers * fit._logs).sum(1, keepdims=True))
    touched, labels = fit._touched, len(fit._spread)
    residuals = fit._residuals(np.zeros(labels), sharpness)
    gains, scale = (sharpness * powers / fit._mean)[:, touched], powers[:, touched, None]
    design = gains[:, :, None] * fit._turn * fit._live[:, None, :]
    design = np.concatenate([design, np.stack([tilt[:, touched], residuals], -1)], -1)
    weight = trust[:, :, None]
    design -= scale * (
        (weight * scale * design).sum(1, keepdims=True)
        / ((weight * scale**2).sum(1, keepdims=True) + 1e-30)
    )
    flat = design.reshape(-1, labels + 2)
    normal = flat.T @ (flat * weight.reshape(-1, 1))
    matrix = normal[:-1, :-1] + np.diag(np.append(1 / fit._spread, 1e-6))
    return np.linalg.solve(matrix, normal[:-1, -1])


@pytest.mark.parametrize("seed", range(3))
def test_normal_equations_are_those_of_the_dense_design(seed: int) -> None:
    model, random = simulate(seed, queries=40), np.random.default_rng(seed)
    answers, live = model.answers(0), model.confused[:, model.trace].astype(np.float64)
    mean = model.answers(1)
    fit = _Fit(answers, mean, live, model.pairs, model.biases)
    trust = random.exponential(size=(40, len(fit._touched))) * 1e8
    bits, _, change = fit._solve(0.9, trust)
    np.testing.assert_allclose([*bits, change], dense(fit, 0.9, trust), rtol=1e-6, atol=1e-9)


def test_a_thousand_classes_and_labels_take_seconds() -> None:
    """25 minutes once: the design was dense."""
    random = np.random.default_rng(0)
    classes, live, rows = 1_000, 1_024, 1_048
    confused = random.gamma(0.2, size=(rows, classes + live))
    confused[:, classes:] *= 1e-4
    first = random.integers(classes, size=live)
    pairs = np.stack([first, (first + random.integers(1, classes, live)) % classes], 1)
    bits, biases = random.integers(0, 2, live), np.full(live, 0.5)
    answers = confused[:, :classes].copy()
    np.add.at(answers.T, pairs[np.arange(live), bits], confused[:, classes:].T)
    start = time.process_time()
    weights = natural_weights(
        confused,
        answers,
        np.arange(classes)[:, None],
        np.arange(classes, classes + live),
        pairs,
        biases,
    )
    assert time.process_time() - start < 30
    assert ((weights > 0) == bits).mean() > 0.99
