"""What is said of figures over seeds: mean, deviation, paired difference with its interval."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

LEVEL = 0.95
"""Of every confidence interval."""


@dataclass(frozen=True)
class Summary:
    """Attributes:
    deviation: of the sample, n − 1 degrees of freedom; `None` for one value.
    """

    count: int
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Difference:
    """The mean of differences within seeds.

    Attributes:
        seeds: that both sides have.
        interval: Student's, `LEVEL`; `None` with one seed. It is about the choice of seeds
            alone: the test set is the same for all of them.
    """

    seeds: tuple[int, ...]
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None


def summary(values: Collection[float]) -> Summary:
    """Of at least one value."""
    found = np.asarray(list(values), float)
    deviation = float(found.std(ddof=1)) if found.size > 1 else None
    return Summary(found.size, float(found.mean()), deviation)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Ours minus theirs over the seeds that both have; `None` if there is none."""
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    if not seeds:
        return None
    found = summary([ours[seed] - theirs[seed] for seed in seeds])
    if found.deviation is None:
        return Difference(seeds, found.mean, None, None)
    half = float(t.ppf((1 + LEVEL) / 2, found.count - 1)) * found.deviation
    half /= math.sqrt(found.count)
    return Difference(seeds, found.mean, found.deviation, (found.mean - half, found.mean + half))
