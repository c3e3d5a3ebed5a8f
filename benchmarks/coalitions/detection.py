"""The least number of live labels that names a traitor.

All weights of a score have one size, so that users are ranked by their agreements with what
was observed. An innocent's are Bin(n₁, p) + Bin(n₂, 1 - p), for n₁ labels whose observed bit is
rare and n₂ whose is common. Here the tail of that is a lattice saddle point (Daniels, 1987), for
speed; `compare_tails` compares it with the library's, which is exact.
"""

from typing import Any

import numpy as np
from scipy.special import log_ndtr, logsumexp

from keras_encryip.crypto.biases import bias_thresholds
from keras_encryip.tracing.statistics import SIGNIFICANCE, innocent_tail

from .strategies import STRATEGIES, Labels, draw, random_class, serve

RUNS = 1_000
USERS = (1_000, 10_000, 100_000, 1_000_000)
LABELS = sorted({round(2 ** (k / 8)) for k in range(40, 97)})
"""The T that are tried: 32 … 4,096, in steps of 2^(1/8)."""
SHOWN = (64, 91, 128, 256, 512, 1024)
WANTED = 0.95
BATCH = 25
"""Models that are simulated at a time, to bound memory."""
RARE = int(bias_thresholds(np.zeros(1, np.uint32))[0]) / 2**32

Row = dict[str, Any]


def observe(said: np.ndarray, labels: Labels) -> np.ndarray:
    """int8 `[runs, T]`: the bit that an answer is, or -1."""
    bits = np.where(said == labels.pairs[..., 1], 1, np.where(said == labels.pairs[..., 0], 0, -1))
    return bits.astype(np.int8)


def log_tail(agreements: np.ndarray, rare: np.ndarray, common: np.ndarray) -> np.ndarray:
    """ln P(Bin(rare, p) + Bin(common, 1 - p) ≥ agreements), p = `RARE`; all of one shape."""
    x, n, m = (np.asarray(a, np.float64) for a in (agreements, rare, common))
    low, high = np.full(x.shape, -40.0), np.full(x.shape, 40.0)
    for _ in range(60):
        tilt = (low + high) / 2
        more = n * _tilted(RARE, tilt) + m * _tilted(1 - RARE, tilt) > x
        low, high = np.where(more, low, tilt), np.where(more, tilt, high)
    p, q = _tilted(RARE, tilt), _tilted(1 - RARE, tilt)
    variance = n * p * (1 - p) + m * q * (1 - q)
    cumulant = n * np.log1p(RARE * np.expm1(tilt)) + m * np.log1p((1 - RARE) * np.expm1(tilt))
    root = np.sqrt(2 * np.maximum(tilt * x - cumulant, 0))
    # Φ(-w) + φ(w) (1/u - 1/w)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = -np.expm1(-tilt) * np.sqrt(variance)
        density = -(root**2) / 2 - np.log(2 * np.pi) / 2
        terms = [log_ndtr(-root), density - np.log(u), density - np.log(root)]
        signs = np.array([1, 1, -1]).reshape(-1, *[1] * x.ndim)
        found = logsumexp(np.array(terms), axis=0, b=signs)
    mean = n * RARE + m * (1 - RARE)
    found = np.where(x <= mean + 1, 0.0, found)  # far from any threshold
    certain = n * np.log(RARE) + m * np.log(1 - RARE)
    return np.where(x >= n + m, certain, found)


def _tilted(p: float, tilt: np.ndarray) -> np.ndarray:
    odds = p / (1 - p) * np.exp(tilt)
    return odds / (1 + odds)


def compare_tails(seed: int) -> Row:
    """The saddle point against the library's tails, between 1e-5 and 1e-15."""
    random = np.random.default_rng((seed, 1))
    ratios = []
    while len(ratios) < 300:
        n = int(2 ** random.uniform(5, 11))
        biases = bias_thresholds(random.integers(2**32, size=n, dtype=np.uint32)) / 2**32
        observed = random.random(n) < random.choice([0.5, biases.mean()])
        weights = np.where(observed, 1, -1) / np.sqrt(biases * (1 - biases))
        rare = int((observed == (biases < 0.5)).sum())
        expected = rare * RARE + (n - rare) * (1 - RARE)
        x = round(expected + random.uniform(4.5, 8) * (n * RARE * (1 - RARE)) ** 0.5)
        exact = float(innocent_tail(weights, biases, (x - expected) * abs(weights[0])))
        if x < n and 1e-15 < exact < 1e-5:
            args = (np.array(value) for value in (x, rare, n - rare))
            ratios.append(float(np.exp(log_tail(*args))) / exact)
    return {"compared": len(ratios), "least_ratio": min(ratios), "largest_ratio": max(ratios)}


def _up_to(flags: np.ndarray) -> np.ndarray:
    """Sums over the first T entries of the last axis, for each T of `LABELS`."""
    parts = np.add.reduceat(flags, [0, *LABELS[:-1]], axis=-1, dtype=np.int32)
    found: np.ndarray = parts.cumsum(-1)
    return found


def count(said: np.ndarray, labels: Labels, bits: np.ndarray) -> tuple[np.ndarray, ...]:
    """Members' agreements `[runs, c, T]`, rare and common observed bits `[runs, 1, T]`."""
    observed = observe(said, labels)
    counted = observed >= 0
    rare = counted & ((observed == 1) == (labels.biases < 0.5))
    agreed = counted[:, None] & (observed[:, None] == bits)
    return _up_to(agreed), _up_to(rare)[:, None], _up_to(counted & ~rare)[:, None]


def judge(found: list[tuple[np.ndarray, ...]]) -> Row:
    """For each number of users: the least T, and who is named at some T."""
    agreements, rare, common = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    tails = log_tail(agreements, *np.broadcast_arrays(rare, common, agreements)[:2])
    row: Row = {}
    for users in USERS:
        named = (tails <= np.log(SIGNIFICANCE / users)).sum(1)
        share = (named > 0).mean(0)
        # From there on, not by a lucky T.
        short = np.flatnonzero(share < WANTED)
        first = int(short[-1]) + 1 if short.size else 0
        row[str(users)] = {
            "least_T": LABELS[first] if first < len(LABELS) else None,
            "at": {
                str(labels): {"share": float(share[i]), "named": float(named[:, i].mean())}
                for i, labels in enumerate(LABELS)
                if labels in SHOWN
            },
        }
    return row


def coalitions(classes: int, c: int, seed: int) -> Row:
    """Every strategy meets the same coalitions; a lone traitor has none."""
    strategies = STRATEGIES if c > 1 else {"alone": STRATEGIES["majority"]}
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in strategies}
    for batch in range(RUNS // BATCH):
        random = np.random.default_rng((seed, 2, classes, c, batch))
        labels = draw(BATCH, LABELS[-1], classes, random)
        bits = labels.bits(c, random)
        read = labels.classes(bits)
        for name, strategy in strategies.items():
            parts[name].append(count(serve(strategy, read, classes, random), labels, bits))
    return {name: judge(found) for name, found in parts.items()}


def lone(classes: int, shares: tuple[float, ...], seed: int) -> Row:
    """One traitor who recognises a share of the live labels, and answers at random there."""
    rows = {}
    for share in shares:
        parts = []
        for batch in range(RUNS // BATCH):
            random = np.random.default_rng((seed, 3, classes, round(100 * share), batch))
            labels = draw(BATCH, LABELS[-1], classes, random)
            bits = labels.bits(1, random)
            read = labels.classes(bits)
            known = random.random(labels.biases.shape) < share
            said = np.where(known, random_class(read, classes, random), read[:, 0])
            parts.append(count(said, labels, bits))
        rows[f"{share:.0%} recognised"] = judge(parts)
    return rows
