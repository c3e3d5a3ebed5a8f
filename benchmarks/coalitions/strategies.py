"""What traitors answer where their versions of a label differ."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from keras_encryip.crypto.biases import bias_thresholds

NOTHING = -1

Strategy = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
"""(members' classes int `[runs, c, T]`, K, random) → answers int `[runs, T]`."""


class Labels(NamedTuple):
    """Live labels of some models.

    Attributes:
        biases: float64 `[runs, T]`.
        pairs: int16 `[runs, T, 2]`, the class of bit 0 and that of bit 1.
    """

    biases: np.ndarray
    pairs: np.ndarray

    def bits(self, users: int, random: np.random.Generator) -> np.ndarray:
        """uint8 `[runs, users, T]`, drawn."""
        runs, labels = self.biases.shape
        drawn = random.random((runs, users, labels), np.float32) < self.biases[:, None]
        return drawn.astype(np.uint8)

    def classes(self, bits: np.ndarray) -> np.ndarray:
        """int16 `[runs, users, T]`: what users with these bits read."""
        return np.where(bits, self.pairs[:, None, :, 1], self.pairs[:, None, :, 0])


def draw(runs: int, labels: int, classes: int, random: np.random.Generator) -> Labels:
    words = random.integers(2**32, size=(runs, labels), dtype=np.uint32)
    first = random.integers(classes, size=(runs, labels), dtype=np.int16)
    other = random.integers(1, classes, size=(runs, labels), dtype=np.int16)
    return Labels(bias_thresholds(words) / 2**32, np.stack([first, (first + other) % classes], -1))


def serve(
    strategy: Strategy, read: np.ndarray, classes: int, random: np.random.Generator
) -> np.ndarray:
    """int16 `[runs, T]`: what a service of members who read these classes answers."""
    agreed = (read == read[:, :1]).all(1)
    return np.where(agreed, read[:, 0], strategy(read, classes, random)).astype(np.int16)


def _held(read: np.ndarray) -> np.ndarray:
    """How many members read what each of them reads: float32, shape of `read`."""
    counts = np.zeros(read.shape, np.float32)
    for i in range(read.shape[1]):
        counts += read == read[:, i : i + 1]
    return counts


def _pick(read: np.ndarray, preference: np.ndarray) -> np.ndarray:
    return np.take_along_axis(read, preference.argmax(1)[:, None], 1)[:, 0]


def majority(read: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
    """What most read, ties at random."""
    return _pick(read, _held(read) + random.random(read.shape, np.float32))


def minority(read: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
    """What the fewest read."""
    return _pick(read, random.random(read.shape, np.float32) - _held(read))


def random_member(read: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
    """What a member reads who is drawn for each label."""
    return _pick(read, random.random(read.shape, np.float32))


def either(read: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
    """One of the two classes, at even odds."""
    low, high = read.min(1), read.max(1)
    return np.where(random.random(low.shape, np.float32) < 0.5, low, high)


def lowest(read: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
    """The lower class: nobody knows which of the two stands for bit 1."""
    found: np.ndarray = read.min(1)
    return found


def strip(read: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
    """Nothing."""
    return np.full(read[:, 0].shape, NOTHING)


def random_class(read: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
    """A uniformly random class."""
    return random.integers(classes, size=read[:, 0].shape, dtype=np.int16)


def nobodys(read: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
    """A random class that no member reads."""
    low, high = read.min(1), read.max(1)
    said = random.integers(classes - 2, size=low.shape, dtype=np.int16)
    said += said >= low
    return said + (said >= high)


STRATEGIES: dict[str, Strategy] = {
    "majority": majority,
    "minority": minority,
    "random member": random_member,
    "either": either,
    "lower class": lowest,
    "strip": strip,
    "strip + random class": random_class,
    "a class nobody reads": nobodys,
}
