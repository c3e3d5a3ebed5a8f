"""What an outsider gets (P1, P2): every attack, on every way to protect.

For each seed: the unprotected twin, then models protected in several ways, each attacked without
labels and with n labelled samples per class. What needs no model is measured beside it on the
same samples.
"""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_encryip as ke
from keras_encryip.client import unlock_key
from keras_encryip.tracing.checkpoint import Checkpoint

from .attacks import ATTACKS, UNLABELLED, Case, Outsider, noise
from .data import Data
from .rows import Rows
from .training import accuracy, augments
from .trainings import DEFAULTS, Protected, Trainings, Way

GRID = {
    "permuted only": Way({"homophones": 1, "trace_labels": 0, "confusion_weight": 0.0}),
    "confusion 0.1": Way({"confusion_weight": 0.1}),
    "confusion 3": Way({"confusion_weight": 3.0}),
    "teacher 0.3": Way({"teacher": True, "teacher_weight": 0.3}),
    "h = 8": Way({"homophones": 8}),
    "one copy": Way({"copies": 1}),
    "random homophones": Way({"strategy": "random"}),
}
"""The trade-off curve."""

LOCKED = "locked export"
ALONE = "no model"
"""What attacks that need no model have instead of a method."""


def run(trainings: Trainings, rows: Rows) -> None:
    """The main ways, with every n."""
    size = trainings.size
    rows.measure("twin", "training", "", lambda: about_twin(trainings))
    for n in (0, *size.labelled):
        attacked(trainings, rows, ALONE, n)
    for name in size.ways:
        under_attack(trainings, rows, name, size.labelled, partial(trainings.main, name))


def run_locked(trainings: Trainings, rows: Rows) -> None:
    """The folder of a locked export of the defaults, with the first two n."""

    @cache
    def stored() -> Outsider:
        return as_stored(trainings.main(DEFAULTS), tested(trainings))

    for n in (0, *trainings.size.labelled[:2]):
        attacked(trainings, rows, LOCKED, n, stored)


def run_grid(trainings: Trainings, rows: Rows) -> None:
    """Other ways, with the first two n."""
    for name, way in GRID.items():
        made = cache(partial(trainings.protected, way))
        under_attack(trainings, rows, name, trainings.size.labelled[:2], made)


def under_attack(
    trainings: Trainings,
    rows: Rows,
    name: str,
    samples: Iterable[int],
    made: Callable[[], Protected],
) -> None:
    """All rows of one way; the model is trained when the first of them is missing."""

    @cache
    def outsider() -> Outsider:
        return Outsider.of(made().model, tested(trainings))

    rows.measure(name, "training", "", lambda: about(made(), trainings))
    for n in (0, *samples):
        attacked(trainings, rows, name, n, outsider)


def attacked(
    trainings: Trainings,
    rows: Rows,
    method: str,
    n: int,
    look: Callable[[], Outsider] | None = None,
) -> None:
    """Every attack with n labelled samples per class, 0 being those without a label.

    Args:
        look: gives the outsider; without one, the attacks that need no model.
    """

    @cache
    def case() -> Case:
        data = tested(trainings)
        return Case(data, n, trainings.seed, augments(data), trainings.size.steps, look)

    for attack in ATTACKS.values():
        if attack.labelled == (n > 0) and attack.needs_model == (look is not None):
            rows.measure(method, attack.name, with_labels(n), lambda a=attack: a.run(case()))


def with_labels(n: int) -> str:
    """The setting of an attack."""
    return f"n = {n}"


def tested(trainings: Trainings) -> Data:
    """The data with as many test inputs as attacks are measured on."""
    every, most = trainings.data, trainings.size.tests
    return replace(every, x_test=every.x_test[:most], y_test=every.y_test[:most])


def as_stored(made: Protected, data: Data) -> Outsider:
    """Who has the folder of a locked export, and takes what its variables hold for weights."""
    model = made.model
    with tempfile.TemporaryDirectory() as place:
        folder, bundle = Path(place) / "1", Path(place) / "host.keybundle"
        ke.export_saved_model(model, folder, weights="locked")
        made.authority.issue("host", bundle, passphrase="p", roles=("run",))
        checkpoint = Checkpoint(folder)
        stored = {}
        for name, value in checkpoint.unlocked([unlock_key(folder, bundle, "p")]).items():
            stored[value.tobytes(), value.shape] = checkpoint.read(name)

    def held(variable: keras.Variable) -> np.ndarray:
        value = keras.ops.convert_to_numpy(variable)
        return noise(stored[value.tobytes(), value.shape], variable)

    backbone = keras.models.clone_model(model.backbone)
    there = {(layer.name, v.name): v for layer in backbone.layers for v in layer.variables}
    for layer in model.backbone.layers:
        for variable in layer.weights:
            there[layer.name, variable.name].assign(held(variable))
    head = model.confused_labels
    kernel, bias = held(head.kernel), held(head.bias)
    return Outsider(backbone, kernel, bias, data.x[:UNLABELLED], data.x_test)


def about_twin(trainings: Trainings) -> dict[str, Any]:
    """`accuracy before` is that of the classifier after one cycle, which is protected then."""
    found, data = trainings.twin, trainings.data
    return {
        "accuracy": accuracy(found.model, data),
        "accuracy before": accuracy(trainings.started.model, data),
        "cpu seconds": found.seconds,
    }


def about(made: Protected, trainings: Trainings) -> dict[str, Any]:
    return {"accuracy": accuracy(made.model, trainings.data), "cpu seconds": made.seconds}
