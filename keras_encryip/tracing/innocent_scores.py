"""The law of an innocent user's score: bounds on its tail that hold for any weights."""

from typing import Final

import numpy as np

_STEPS: Final = 4096
_STEPS_PER_LABEL: Final = 4
"""Grid steps per standard deviation, and how many more for each label. A rounding moves a label's
rarer value by half a step; the bound is below 1.4 times a chance of 10⁻¹²."""
_MOST_CELLS: Final = 1 << 22
_SLACK: Final = 1e-5
"""Scores count as this part of a step higher: more than all errors of floating point."""
_EQUAL: Final = 1e-9
"""Parts of a step that are no difference; all labels' together are below the slack."""
_ROUNDING: Final = 1 + 1e-9
"""More than the relative error of a sum of that many positive numbers."""
_DEEP: Final = 1e-40
"""Chances below this are bounded by Chernoff's inequality alone."""
_LUMP_LOW: Final = 1e-5
_LUMP_HIGH: Final = 1e-52
_EVERY: Final = 32


class InnocentScores:
    """What an innocent user scores: sum_i w_i (β_i - p_i), β_i = 1 with chance p_i.

    An innocent's bits are independent of each other and of the weights, however these came
    about. The law is computed by convolution on a grid. The rarer value of each label is
    rounded up, the other one and the mean are exact, so no bound is below the true chance.
    The grid has 4096 + 4·T steps per standard deviation (at most 2^22 in all), and the law is
    exact where all weights have one size. Else bounds near 1e-12 were below 1.4 times the chance,
    but for scores just above one of few possible values: these count as that value. There is no
    Fourier transform: only positive numbers are added, so that tails keep their digits.
    Below 1e-40 the bound is min over θ of E[exp(θ (score - s))] (Chernoff, 1952).

    Args:
        weights: float64 `[T]`, finite; 0 where a label does not count. Subnormal numbers have too
            few digits for bounds to hold.
        biases: float64 `[T]`, each p_i in (0, 1).
    """

    def __init__(self, weights: np.ndarray, biases: np.ndarray) -> None:
        counted = np.flatnonzero(weights)
        weights, biases = (np.asarray(a, np.float64)[counted] for a in (weights, biases))
        # The score is a sum of sizes a > 0 times (B - q), with B = 1 at chance q.
        self._unit = float(np.abs(weights).max(initial=0.0)) or 1.0
        sizes, chances = np.abs(weights) / self._unit, np.where(weights > 0, biases, 1 - biases)
        order = np.argsort(sizes**2 * chances * (1 - chances), kind="stable")  # narrow ones first
        self._sizes, self._chances = sizes[order], chances[order]
        self._highest = float((self._sizes * (1 - self._chances)).sum())
        deviation = float(np.sqrt((self._sizes**2 * self._chances * (1 - self._chances)).sum()))
        self._tilts = np.geomspace(0.01, 1e4, 256) / (deviation or 1.0)
        self._cumulants = self._logarithms_of_moments()
        self._reach = self._far_score(_DEEP)
        self._make_grid(deviation)

    def tail(self, scores: np.ndarray) -> np.ndarray:
        """Upper bounds on the chance of a score of s or more.

        Args:
            scores: float64, any shape.

        Returns:
            float64, in the shape of `scores`; higher scores have no higher bounds.
        """
        scores = np.asarray(scores, np.float64) / self._unit
        if not scores.size:
            return np.zeros(scores.shape)
        near = np.minimum(scores, self._reach)
        first, chances = self._table(float(near.max()))
        bounds = np.array(chances[np.maximum(self._cell(near) - first, 0)])
        far = scores > self._reach
        bounds[far] = np.minimum(bounds[far], self._chernoff(scores[far]))
        return bounds

    def least(self, chance: float) -> float:
        """The smallest score whose bound is at most `chance`; inf if there is none."""
        if chance < _DEEP:
            score = self._far_score(chance)
            return score * self._unit if score < self._highest else np.inf
        for score in (self._far_score(chance), self._reach):
            first, chances = self._table(score)
            enough = np.flatnonzero(chances <= chance)
            if enough.size and first + enough[0] <= self._cell(np.array(self._highest)):
                cell = first + int(enough[0])
                return float(self._origin + (cell - 1 + 2 * _SLACK) * self._step) * self._unit
        return np.inf

    # --- Chernoff's bound ----------------------------------------------------------------

    def _logarithms_of_moments(self) -> np.ndarray:
        """ln E[exp(θ score)] for each θ of the tilts."""
        a, q, tilts = self._sizes, self._chances, self._tilts[:, None]
        moments = np.logaddexp(np.log1p(-q) - tilts * (a * q), np.log(q) + tilts * (a * (1 - q)))
        total: np.ndarray = moments.sum(1)
        return total

    def _chernoff(self, scores: np.ndarray) -> np.ndarray:
        best = np.full(scores.shape, np.inf)
        for tilt, cumulant in zip(self._tilts, self._cumulants, strict=True):
            np.minimum(best, cumulant - tilt * scores, out=best)
        bounds: np.ndarray = np.exp(np.minimum(best + _SLACK, 0))
        return bounds

    def _far_score(self, chance: float) -> float:
        """A score whose Chernoff bound is `chance`, or the highest one."""
        scores = (self._cumulants - np.log(max(chance, 1e-320))) / self._tilts
        return min(float(scores.min()) * _ROUNDING, self._highest)

    # --- the grid ------------------------------------------------------------------------

    def _make_grid(self, deviation: float) -> None:
        """Score ≤ origin + step · sum of `_jumps` times independent bits."""
        fineness = _STEPS + _STEPS_PER_LABEL * len(self._sizes)
        steps = np.ceil(fineness / (deviation or 1.0))
        room = np.floor(_MOST_CELLS / (self._reach + 5 * deviation or 1.0))
        steps = max(1.0, min(steps, room))
        exact, step = self._sizes * steps, 1 / steps
        likely = self._chances > 0.5
        jumps = np.where(likely, np.floor(exact + _EQUAL), np.ceil(exact - _EQUAL)).astype(np.int64)
        means = self._sizes * self._chances
        self._origin = float(np.where(likely, self._sizes - step * jumps, 0.0).sum() - means.sum())
        common = int(np.gcd.reduce(jumps)) or 1
        self._jumps, self._step = jumps // common, step * common

    def _cell(self, scores: np.ndarray) -> np.ndarray:
        """The first cell whose value is that score or more, but for the slack."""
        scores = np.maximum(scores, self._origin)
        cells: np.ndarray = np.ceil((scores - self._origin) / self._step - _SLACK).astype(np.int64)
        return cells

    def _table(self, score: float) -> tuple[int, np.ndarray]:
        """(first cell, chance of each cell or more from there up to that of `score`).

        Small mass at the lower end moves up to the first cell that is kept; at the upper
        end, to the last one. Neither lowers a tail.
        """
        top = int(self._cell(np.array(score)))
        if top == 0:
            return 0, np.ones(1)
        first, mass, above = 0, np.ones(1), 0.0
        for i, (jump, q) in enumerate(
            zip(self._jumps.tolist(), self._chances.tolist(), strict=True)
        ):
            size = min(len(mass) + jump, top - first)
            kept = max(0, size - jump)
            moved = np.zeros(size)
            np.multiply(mass, 1 - q, out=moved[: len(mass)])
            moved[size - kept :] += q * mass[:kept]
            above += q * float(mass[kept:].sum())
            mass = moved
            if i % _EVERY == _EVERY - 1:
                low = int(np.searchsorted(mass.cumsum(), _LUMP_LOW))
                low = min(low, len(mass) - 1)
                high = int(np.searchsorted(mass[::-1].cumsum(), _LUMP_HIGH))
                high = max(low + 1, len(mass) - high)
                above += float(mass[high:].sum())
                mass[low] = mass[: low + 1].sum()
                first, mass = first + low, mass[low:high]
        tails = np.full(top - first + 1, above)
        tails[: len(mass)] += mass[::-1].cumsum()[::-1]
        tails[0] = 1.0
        return first, np.minimum(1.0, tails * _ROUNDING)
