"""A service of four classes and its inputs, for tests of `ask`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ["ant", "bee", "cicada", "Dragonfly"]
INPUTS = np.arange(24, dtype=np.float32).reshape(12, 2)
TRUTH = np.arange(12) % 4


def places(batch: np.ndarray) -> list[int]:
    """Which inputs a batch holds."""
    return (batch[:, 0] / 2).astype(int).tolist()


def says(answers: dict[int, Any] | list[Any]) -> Callable[[np.ndarray], list[Any]]:
    """A service that gives these answers to the inputs."""
    return lambda batch: [answers[place] for place in places(batch)]


class Service:
    """Answers truly, but raises what `failures` says for the n-th request; counts requests."""

    def __init__(self, failures: dict[int, BaseException] | None = None, **special: Any) -> None:
        self.failures = failures or {}
        self.asked: list[list[int]] = []
        self.answers: dict[int, Any] = dict(enumerate(TRUTH.tolist()))
        self.answers |= {int(place[1:]): answer for place, answer in special.items()}

    def __call__(self, batch: np.ndarray) -> list[Any]:
        self.asked.append(places(batch))
        if (failure := self.failures.get(len(self.asked) - 1)) is not None:
            raise failure
        return [self.answers[place] for place in self.asked[-1]]

    @property
    def inputs(self) -> list[int]:
        return sorted(place for batch in self.asked for place in batch)


def check_naps(naps: list[float], longest: list[float]) -> None:
    """Each delay is between half and all of these."""
    for nap, most in zip(naps, longest, strict=True):
        assert most / 2 <= nap <= most


def down(*requests: int) -> dict[int, BaseException]:
    return {request: TimeoutError("no answer") for request in requests}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
