"""The trainings of one seed, each run once for all suites."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import keras

import keras_encryip as ke

from .backbones import build
from .data import Data, load
from .peers import Passport, Peer
from .sizes import Size
from .training import augments, train

PASSPHRASE = "benchmark"
SCRYPT = 14
"""log2 of scrypt's N: ledgers and bundles that need not withstand anybody."""


@dataclass(frozen=True)
class Way:
    """How a model is protected.

    Attributes:
        options: of `protect`.
        scratch: from the start, for both cycles; otherwise between them.
    """

    options: dict[str, Any] = field(default_factory=dict)
    scratch: bool = False


DEFAULTS, SCRATCH = "defaults", "from scratch"
MAIN = {DEFAULTS: Way(), SCRATCH: Way(scratch=True)}
"""Attacked with all n."""


@dataclass(frozen=True)
class Trained:
    """A model, and the CPU seconds of all its cycles."""

    model: keras.Model
    seconds: float


@dataclass(frozen=True)
class Protected(Trained):
    model: ke.ProtectedModel
    authority: ke.Authority


def copy_of(model: keras.Model) -> keras.Model:
    """A model with weights of its own: a protected model shares its classifier's."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


class Trainings:
    """What the suites of one seed train, when the first of them asks for it.

    A context manager: ledgers and temporary folders go at its end. Nobody may leave a model
    changed that it gives.

    Args:
        size: of the run.
        seed: of every training.
    """

    def __init__(self, size: Size, seed: int) -> None:
        self.size, self.seed = size, seed
        self._stack = ExitStack()
        self._kept: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._kept.clear()
        self._stack.close()

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made at the first call."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def folder(self) -> Path:
        """A new one."""
        return Path(self._stack.enter_context(TemporaryDirectory()))

    @cached_property
    def data(self) -> Data:
        return load(self.size.data, self.size.samples, self.size.others)

    def build(self) -> keras.Model:
        """A fresh classifier."""
        return build(self.size.data, self.data.x.shape[1:])

    @property
    def started(self) -> Trained:
        """The classifier after the first cycle."""

        def make() -> Trained:
            keras.utils.set_random_seed(self.seed)
            model = self.build()
            return Trained(model, self._train(model, first=True))

        return self.once("started", make)

    @property
    def twin(self) -> Trained:
        """The unprotected classifier after both cycles."""

        def make() -> Trained:
            start = self.started
            keras.utils.set_random_seed(self.seed)
            model = copy_of(start.model)
            return Trained(model, start.seconds + self._train(model, first=False))

        return self.once("twin", make)

    def main(self, name: str) -> Protected:
        """The model of one of the `MAIN` ways."""
        return self.once(name, lambda: self.protected(MAIN[name]))

    def protected(self, way: Way) -> Protected:
        """A model protected in a way, trained for both cycles in all. Not kept."""
        start = None if way.scratch else self.started
        keras.utils.set_random_seed(self.seed)
        classifier = copy_of(start.model) if start else self.build()
        seconds = start.seconds if start else 0.0
        authority = self._stack.enter_context(
            ke.Authority.create(
                f"sqlite:///{self.folder()}/ledger", PASSPHRASE, scrypt_log2_n=SCRYPT
            )
        )
        model = ke.protect(classifier, authority, name=self.size.data, **way.options)
        model.adapt(self.data.x, self.data.y)
        for first in (True, False) if way.scratch else (False,):
            seconds += self._train(model, first)
        return Protected(model, seconds, authority)

    def peer(self, kind: type[Peer]) -> tuple[Peer, float]:
        """A peer, trained, and the CPU seconds."""

        def make() -> tuple[Peer, float]:
            peer, cycles = kind(self.seed), (self.size.first, self.size.second)
            if isinstance(peer, Passport):
                return peer, peer.fit(self.data, *cycles, pretrained=self.twin.model)
            return peer, peer.fit(self.data, *cycles)

        return self.once(kind.name, make)

    def _train(self, model: keras.Model, first: bool) -> float:
        cycle = self.size.first if first else self.size.second
        return train(model, self.data.x, self.data.y, cycle, augments(self.data))
