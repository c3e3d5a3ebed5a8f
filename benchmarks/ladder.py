"""What an outsider gets (P1, P2): every attack, on every way to protect.

For each seed: the unprotected twin, then models protected in several ways, each attacked without
labels and with n labelled samples per class. What needs no model is measured beside it on the
same samples.
"""

import tempfile
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import keras

import keras_encryip as ke

from .attacks import Outsider, unlabelled_attacks, with_model, without_model
from .backbones import build
from .cells import Cells
from .data import Data, load
from .sizes import Size
from .training import accuracy, augments, train


@dataclass(frozen=True)
class Way:
    """How a model is protected.

    Attributes:
        options: of `protect`.
        scratch: from the start, for both cycles; otherwise between them.
    """

    options: dict[str, Any] = field(default_factory=dict)
    scratch: bool = False


PERMUTED = Way(
    {"homophones": 1, "trace_labels": 0, "teacher": False, "confusion_weight": 0.0}, scratch=False
)
MAIN = {
    "defaults": Way(),
    "from scratch": Way(scratch=True),
    "neutrality 1": Way({"neutrality_weight": 1.0}),
    "permuted only": PERMUTED,
}
"""Attacked with all n."""

GRID = {
    "neutrality 0.3": Way({"neutrality_weight": 0.3}),
    "neutrality 3": Way({"neutrality_weight": 3.0}),
    "confusion 0.3": Way({"confusion_weight": 0.3}),
    "confusion 3": Way({"confusion_weight": 3.0}),
    "teacher 0.3": Way({"teacher_weight": 0.3}),
    "teacher 0.9": Way({"teacher_weight": 0.9}),
    "h = 8": Way({"homophones": 8}),
    "h = 16": Way({"homophones": 16}),
    "one copy": Way({"copies": 1}),
    "random homophones": Way({"strategy": "random"}),
}
"""The trade-off curve: attacked with the first two n only."""


def settings(size: Size) -> dict[str, Any]:
    """What all cells of a results file share; the rest of a size says which cells there are."""
    shared = ("data", "samples", "others", "first", "second", "steps")
    return {k: v for k, v in asdict(size).items() if k in shared}


def run(size: Size, seed: int, cells: Cells, grid: bool) -> None:
    """The cells of one seed; a model is trained only if one of its cells is missing."""
    ways = GRID if grid else {name: MAIN[name] for name in size.ways}
    samples = size.labelled[:2] if grid else size.labelled
    data = load(size.data, size.samples, size.others)
    augment = augments(data)
    prefix = f"seed {seed}"

    cells.get(f"{prefix}, twin", lambda: about_twin(size, seed, data))
    for n in samples:
        cells.get(
            f"{prefix}, no model, n = {n}",
            lambda n=n: without_model(data, n, seed, augment, size.steps),
        )
    for name, way in ways.items():
        keys = [f"{prefix}, {name}, {part}" for part in ("model", "no labels")]
        keys += [f"{prefix}, {name}, n = {n}" for n in samples]
        if all(key in cells for key in keys):
            continue
        with tempfile.TemporaryDirectory() as folder:
            model, seconds = protected(size, data, seed, way, folder)
            outsider = Outsider.of(model, data)

            def about(model: ke.ProtectedModel = model, seconds: float = seconds) -> dict[str, Any]:
                return {"accuracy": accuracy(model, data), "cpu seconds": seconds}

            cells.get(keys[0], about)
            cells.get(keys[1], lambda o=outsider: unlabelled_attacks(o, data, seed))
            for n, key in zip(samples, keys[2:], strict=True):
                cells.get(
                    key,
                    lambda o=outsider, n=n: with_model(o, data, n, seed, augment, size.steps),
                )


@lru_cache(maxsize=1)
def twin(size: Size, seed: int) -> tuple[keras.Model, float]:
    """The unprotected classifier after both cycles, and CPU seconds; kept for the next suite."""
    data = load(size.data, size.samples, size.others)
    keras.utils.set_random_seed(seed)
    model = build(size.data, data.x.shape[1:])
    seconds = sum(
        train(model, data.x, data.y, cycle, augments(data)) for cycle in (size.first, size.second)
    )
    return model, seconds


def about_twin(size: Size, seed: int, data: Data) -> dict[str, Any]:
    model, seconds = twin(size, seed)
    return {"accuracy": accuracy(model, data), "cpu seconds": seconds}


def protected(
    size: Size, data: Data, seed: int, way: Way, folder: str
) -> tuple[ke.ProtectedModel, float]:
    """A model protected in a way, trained for both cycles in all, and the CPU seconds."""
    keras.utils.set_random_seed(seed)
    augment = augments(data)
    classifier = build(size.data, data.x.shape[1:])
    seconds = 0.0
    if not way.scratch:
        seconds += train(classifier, data.x, data.y, size.first, augment)
    authority = ke.Authority.create(f"sqlite:///{folder}/ledger", "benchmark", scrypt_log2_n=14)
    model = ke.protect(classifier, authority, name=size.data, **way.options)
    model.adapt(data.x, data.y)
    for cycle in (size.first, size.second) if way.scratch else (size.second,):
        seconds += train(model, data.x, data.y, cycle, augment)
    return model, seconds
