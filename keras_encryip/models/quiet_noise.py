"""Noise in the columns of a head that the owner's inputs do not show.

Features of natural inputs vary much in few directions, and little in the others. What a column has
in the others, the *quiet part*, hardly changes any score. It is replaced by noise: columns that
were fitted to trace inputs, which do show there, then look like all others in norm and distance.
"""

import numpy as np

RADIUS = 3.0
"""Norm of the noise, in the median of those of the columns themselves."""

_SPREAD = 0.05
_NARROWEST, _STEPS = 1e-4, 60
_COLUMNS = 128
_SAMPLE = 512


class QuietNoise:
    """Noise for all columns of a head, drawn once.

    A direction in which features vary by σ takes part by 1 / (1 + (σ / τ)²). Where noise of two
    columns of a class is to be nearer, they share some.

    Args:
        features: of natural inputs, float32 `[n, f]`. One half says what is quiet, the other
            half how much noise it shows.
        labels: int `[K, h]`, the homophones of each class.
        count: N, the number of columns.
        random: draws.
    """

    def __init__(
        self, features: np.ndarray, labels: np.ndarray, count: int, random: np.random.Generator
    ) -> None:
        half, self._other = features[::2], features[1::2]
        squares, self._axes = np.linalg.eigh(half.T @ half / len(half))
        self._deviations = np.sqrt(np.maximum(squares, 0))
        shape = (features.shape[1], count)
        self._own = random.normal(size=shape).astype(np.float32)
        self._common = random.normal(size=shape).astype(np.float32)
        self._common[:, labels] = self._common[:, labels[:, :1]]
        self._radii = RADIUS * np.exp(_SPREAD * random.normal(size=count)).astype(np.float32)

    def widest(self, kernel: np.ndarray, limit: float) -> float | None:
        """The largest τ at which scores change by `limit` at most (root of mean square).

        Args:
            kernel: float32 `[f, N]`.
            limit: > 0.

        Returns:
            `None` where features are more than their number can tell anything about.
        """
        some = slice(None, None, -(-kernel.shape[1] // _COLUMNS))
        for width in self._deviations.max() * np.geomspace(1, _NARROWEST, _STEPS):
            change = self.replaced(kernel, width, 0.0, some) - kernel[:, some]
            if np.sqrt(((self._other @ change) ** 2).mean()) <= limit:
                return float(width)
        return None

    def replaced(
        self, kernel: np.ndarray, width: float, shared: float, some: slice = slice(None)
    ) -> np.ndarray:
        """The columns with noise as their quiet part.

        Args:
            kernel: float32 `[f, N]`.
            width: τ.
            shared: 0 … 1, the share of the noise that is common to a class.
            some: of the columns.

        Returns:
            float32 `[f, N]`, the columns of `some`.
        """
        quiet = (1 / (1 + (self._deviations / width) ** 2))[:, None]
        single, common = self._own[:, some], self._common[:, some]
        noise = quiet * (np.sqrt(1 - shared) * single + np.sqrt(shared) * common)
        loud = (1 - quiet) * (self._axes.T @ kernel[:, some])
        radius = float(np.median(np.linalg.norm(loud, axis=0)))  # fitted columns may be longer
        noise *= radius * self._radii[some] / np.linalg.norm(noise, axis=0)
        return np.asarray(self._axes @ (loud + noise), np.float32)


def nearest(kernel: np.ndarray, chosen: np.ndarray) -> float:
    """Median distance of columns to the nearest other one.

    Args:
        kernel: `[f, N]`.
        chosen: int `[c]`, the columns to look at; at most 512 are.
    """
    chosen = chosen[:: -(-len(chosen) // _SAMPLE)]
    points = kernel.T.astype(np.float64)
    squares = (points**2).sum(1)
    distances = squares[chosen, None] + squares - 2 * points[chosen] @ points.T
    distances[np.arange(len(chosen)), chosen] = np.inf
    return float(np.sqrt(np.maximum(np.median(distances.min(1)), 0)))
