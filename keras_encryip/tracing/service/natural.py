"""Reads live labels out of the probabilities that a service answers to natural inputs.

A live label has a little of every answer's mass, c_i(x). It stands at class a_i for users with
bit 0 and at b_i for users with bit 1. So an answer y(x) differs from the mean over all users by

    sum_i c_i(x) (β_i - p_i) (onehot(b_i) - onehot(a_i)) + noise

which is linear in the bits β_i of the key that the service runs on.
"""

from typing import Final

import numpy as np

_ROUNDS: Final = 5
_SMALLEST: Final = 1e-30
_BINS: Final = 16
_PER_BIN: Final = 40
_FLOAT: Final = 2e-7
"""Relative error of a probability that nobody rounded."""
_FREEDOM: Final = 4.0
"""Of the Student distribution of residuals: outliers lose their weight."""
_SHARPEST: Final = 8.0
_BITS: Final = np.linspace(0, 1, 25)
_PRIOR: Final = np.array([0.3, *[0.4 / 23] * 23, 0.3])
"""Of a label's bit in the service's key, or of the mean of several keys' bits."""


def natural_weights(
    confused: np.ndarray,
    answers: np.ndarray,
    labels: np.ndarray,
    trace: np.ndarray,
    pairs: np.ndarray,
    biases: np.ndarray,
) -> np.ndarray:
    """What answers to natural inputs say about each live label's bit.

    All labels are estimated at once by weighted least squares, with the variance of a bit as
    prior. The noise is estimated from the residuals, for small and large probabilities apart,
    and is at least what rounding to the step of the answers makes. Outliers lose their
    weight (Student's t). A row's scale and a temperature of all rows are estimated along,
    so that renormalised and sharpened answers are read as well.

    The result is E[2 β_i - 1] / sqrt(p_i (1 - p_i)), where the estimate's likelihood meets a
    prior of 0, 1 and, for averaged keys, anything between. That is the weight of
    `observed_weights` for labels that are sure, and near 0 for those that are not, or at which
    two averaged keys differ. Use it with `scores` and `innocent_tail`: innocents' codewords
    are independent of the answers, whatever these are, so that their bound does not rest on
    this model of the answers.

    Args:
        confused: float `[n, N]`, what the model itself outputs for n natural inputs.
        answers: float `[n, K]`, the service's probabilities, or logits if there are negative
            numbers; rows with NaN are left out.
        labels: int `[K, h]`, columns of `confused` that stand for each class.
        trace: int `[T]`, columns of the live labels.
        pairs: int `[T, 2]`, (a_i, b_i).
        biases: float64 `[T]`, each p_i in (0, 1).

    Returns:
        float64 `[T]`, 0 where the answers say nothing.
    """
    rows = np.isfinite(answers).all(1)
    given = _probabilities(np.asarray(answers, np.float64)[rows])
    outputs = np.asarray(confused, np.float64)[rows]
    if not len(given) or not len(trace):
        return np.zeros(len(trace))
    live = outputs[:, trace]
    mean = outputs[:, labels].sum(2)
    for column, odds in ((0, 1 - biases), (1, biases)):
        np.add.at(mean.T, pairs[:, column], (live * odds).T)
    signs = _Fit(given, mean, live, pairs, biases).signs()
    weights: np.ndarray = signs / np.sqrt(biases * (1 - biases))
    return weights


def _probabilities(answers: np.ndarray) -> np.ndarray:
    if (answers < 0).any():
        answers = np.exp(answers - answers.max(1, keepdims=True))
    total = answers.sum(1, keepdims=True)
    shares: np.ndarray = answers / np.where(total > 0, total, 1.0)
    return shares


def _step(given: np.ndarray) -> float:
    """How far apart the smallest answers lie, if these were rounded or clipped; else 0."""
    values, times = np.unique(given, return_counts=True)
    if len(values) < 2 or times[0] < 3:
        return 0.0
    return float(max(values[0], values[1] - values[0]))


class _Fit:
    """Answers as a power of the mean over users, plus what the live labels' bits change.

    Args:
        given: float64 `[n, K]`, probabilities.
        mean: float64 `[n, K]`, expected over users.
        live: float64 `[n, T]`, mass of the live labels.
        pairs, biases: as of `natural_weights`.
    """

    def __init__(
        self,
        given: np.ndarray,
        mean: np.ndarray,
        live: np.ndarray,
        pairs: np.ndarray,
        biases: np.ndarray,
    ) -> None:
        # Classes that no live label touches say nothing.
        touched, places = np.unique(pairs, return_inverse=True)
        places = places.reshape(pairs.shape)
        columns = np.arange(len(pairs))
        self._turn = np.zeros((len(touched), len(pairs)))
        self._turn[places[:, 1], columns] += 1
        self._turn[places[:, 0], columns] -= 1
        self._touched, self._live, self._given = touched, live, given
        self._logs = np.log(np.maximum(mean, _SMALLEST))
        self._mean = np.maximum(mean, _SMALLEST)
        self._spread = biases * (1 - biases)
        self._biases = biases
        self._floor = _step(given) ** 2 / 12
        self._sharpness = self._first_sharpness()

    def signs(self) -> np.ndarray:
        """float64 `[T]`: what 2 β - 1 is by the data, -1 … 1."""
        bits, sharpness = np.zeros(len(self._spread)), self._sharpness
        noise, factors = self._noise(self._residuals(bits, sharpness), 0.0)
        for _ in range(_ROUNDS):
            bits, variances, change = self._solve(sharpness, factors / noise)
            sharpness = float(np.clip(sharpness + change, 1 / _SHARPEST, _SHARPEST))
            known = float((1 - variances / self._spread).sum())
            noise, factors = self._noise(self._residuals(bits, sharpness), known)
        # The likelihood: without the prior that the fit had.
        precision = np.maximum(1 / variances - 1 / self._spread, 0)
        shifts = _BITS[:, None] - self._biases
        logs = shifts * (bits / variances) - shifts**2 * precision / 2
        odds = _PRIOR[:, None] * np.exp(logs - logs.max(0))
        signs: np.ndarray = (2 * _BITS - 1) @ odds / odds.sum(0)
        return signs

    def _powers(self, sharpness: float) -> np.ndarray:
        """The mean's power, normalised: float64 `[n, K]`."""
        logs = sharpness * self._logs
        powers = np.exp(logs - logs.max(1, keepdims=True))
        normalised: np.ndarray = powers / powers.sum(1, keepdims=True)
        return normalised

    def _first_sharpness(self) -> float:
        """The power that leaves the least absolute residuals, by golden section."""

        def left(power: float) -> float:
            return float(np.abs(self._given - self._powers(np.exp(power))).sum())

        low, high = -np.log(_SHARPEST), np.log(_SHARPEST)
        ratio = (5**0.5 - 1) / 2
        while high - low > 1e-6:
            first, second = high - ratio * (high - low), low + ratio * (high - low)
            low, high = (low, second) if left(first) < left(second) else (first, high)
        return float(np.exp((low + high) / 2))

    def _shift(self, bits: np.ndarray) -> np.ndarray:
        shift: np.ndarray = (self._live * bits) @ self._turn.T
        return shift

    def _residuals(self, bits: np.ndarray, sharpness: float) -> np.ndarray:
        """What is left of the answers: float64 `[n, touched]`."""
        powers = self._powers(sharpness)[:, self._touched]
        gains = sharpness * powers / self._mean[:, self._touched]
        expected = powers + gains * self._shift(bits)
        left: np.ndarray = self._given[:, self._touched] - expected
        return left

    def _noise(self, residuals: np.ndarray, known: float) -> tuple[np.ndarray, np.ndarray]:
        """(variance, Student weight) of each entry, float64 `[n, touched]` both."""
        powers = self._powers(self._sharpness)[:, self._touched]
        order = np.argsort(powers, axis=None)
        size = residuals.size
        variances: np.ndarray = np.empty(size)
        inflation = size / max(size - known, size / 10)
        for part in np.array_split(order, max(1, min(_BINS, size // _PER_BIN))):
            spread = 1.4826 * np.median(np.abs(residuals.ravel()[part]))
            variances[part] = spread**2 * inflation
        variances = variances.reshape(residuals.shape)
        variances += self._floor + (_FLOAT * powers) ** 2 + _SMALLEST
        squares = residuals**2 / variances
        factors = (_FREEDOM + 1) / (_FREEDOM + squares)
        factors *= ((_FREEDOM + 1) / (_FREEDOM + squares.mean(1)))[:, None]
        return variances, factors

    def _solve(self, sharpness: float, trust: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """(β - p and its variance, float64 `[T]` both; change of the sharpness)."""
        labels = len(self._spread)
        powers = self._powers(sharpness)
        level = (powers * self._logs).sum(1, keepdims=True)
        tilt = (powers * (self._logs - level))[:, self._touched]
        residuals = self._residuals(np.zeros(labels), sharpness)
        gains = (sharpness * powers / self._mean)[:, self._touched]
        powers = powers[:, self._touched]
        # A label's column is not 0 at its two classes alone: live · gain · turn.
        normal = np.zeros((labels + 2, labels + 2))
        squares = trust * gains**2
        for row, turn in enumerate(self._turn):
            (here,) = np.nonzero(turn)
            columns = self._live[:, here] * turn[here]
            normal[np.ix_(here, here)] += columns.T @ (columns * squares[:, row, None])
        for column, rest in ((-2, tilt), (-1, residuals)):
            products = (self._live * ((trust * gains * rest) @ self._turn)).sum(0)
            normal[:-2, column] = normal[column, :-2] = products
        rests = np.stack([tilt.ravel(), residuals.ravel()])
        normal[-2:, -2:] = (rests * trust.ravel()) @ rests.T
        # Each row's scale is free: what lies along it is taken off.
        weighted = trust * powers
        along = np.empty((len(trust), labels + 2))
        along[:, :-2] = self._live * ((weighted * gains) @ self._turn)
        along[:, -2] = (weighted * tilt).sum(1)
        along[:, -1] = (weighted * residuals).sum(1)
        scale = (weighted * powers).sum(1, keepdims=True)
        share = (scale + 2 * _SMALLEST) / (scale + _SMALLEST) ** 2
        normal -= along.T @ (along * share)
        matrix, right = normal[:-1, :-1], normal[:-1, -1]
        matrix = matrix + np.diag(np.append(1 / self._spread, 1e-6))
        size = np.sqrt(matrix.diagonal())
        inverse = np.linalg.inv(matrix / np.outer(size, size)) / np.outer(size, size)
        solution = inverse @ right
        return solution[:-1], inverse.diagonal()[:-1], float(solution[-1])
