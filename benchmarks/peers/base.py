"""What the peers have in common: the interface, copies, the judge's count."""

import hashlib
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf
from scipy.stats import binom

from ..data import Data
from ..training import Schedule, adam

LOSS = "sparse_categorical_crossentropy"


@dataclass(frozen=True)
class Detection:
    """A verifier's count: bits, triggers or signs that agree with the secret.

    Attributes:
        p_value: of as many hits or more by chance; exact, as the secret was drawn at
            random and without a look at the suspect.
    """

    hits: int
    trials: int
    p_value: float

    @property
    def score(self) -> float:
        return self.hits / self.trials

    @property
    def errors(self) -> int:
        return self.trials - self.hits


def judged(agree: np.ndarray, chance: float) -> Detection:
    """The binomial test of independent trials."""
    hits, trials = int(np.sum(agree)), agree.size
    return Detection(hits, trials, float(binom.sf(hits - 1, trials, chance)))


class Peer(ABC):
    """A published method that protects the classifier of `backbones.build`.

    Args:
        seed: of the training and of all secrets of the owner and of its users.

    Attributes:
        model: the trained classifier, `[n, 10]` probabilities.
    """

    name: ClassVar[str]
    model: keras.Model

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def random(self, user: str | None) -> np.random.Generator:
        """Draws the secrets of a user, or of the owner."""
        digest = hashlib.sha256(b"owner" if user is None else b"user " + user.encode()).digest()
        return np.random.default_rng([self.seed, *digest])

    @abstractmethod
    def fit(self, data: Data, first: Schedule, second: Schedule) -> float:
        """Trains from scratch over both cycles. Returns CPU seconds."""

    @abstractmethod
    def detect(self, model: keras.Model | None = None, user: str | None = None) -> Detection:
        """Looks for the owner's or a user's mark in a suspect of the same architecture.

        Layers are found by kind, size and position, not by name: a suspect may have been
        rebuilt.
        """

    @abstractmethod
    def personalise(
        self, data: Data, user: str, steps: int | None = None
    ) -> tuple[keras.Model, float]:
        """A copy of the model with the user's own mark, and CPU seconds."""

    @abstractmethod
    def without_key(self, data: Data) -> float:
        """Test accuracy for who has the weights but no secret."""

    @abstractmethod
    def forge(self, model: keras.Model) -> Detection:
        """What a forger's own made-up secret yields on the model, given the same verifier."""


def copied(model: keras.Model) -> keras.Model:
    """The same graph and weights; no loss terms of the owner."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.compile(loss=LOSS, metrics=["accuracy"])
    return copy


def tune(
    model: keras.Model, batches: tf.data.Dataset, steps: int, batch: int, rate: float
) -> float:
    """One cosine cycle of so many steps on repeated batches. Returns CPU seconds."""
    optimizer = adam(Schedule(1, batch, rate), steps * batch)
    model.compile(optimizer, loss=LOSS, metrics=["accuracy"])
    start = time.process_time()
    model.fit(batches.repeat().take(steps), shuffle=False, verbose=0)
    return time.process_time() - start


def late_convolutions(model: keras.Model) -> list[keras.layers.Conv2D]:
    """Those of the last stage, which has the most filters, in the order of `model.layers`."""
    found = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    most = max(layer.filters for layer in found)
    return [layer for layer in found if layer.filters == most]
