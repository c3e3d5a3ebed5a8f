"""What an outsider gets (P1, P2): every attack, on every way to protect.

For each seed: the unprotected twin, then models protected in several ways, each attacked without
labels and with n labelled samples per class. What needs no model is measured beside it on the
same samples.
"""

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_encryip as ke
from keras_encryip.client import unlock_key
from keras_encryip.tracing.checkpoint import Checkpoint

from .attacks import (
    UNLABELLED,
    Outsider,
    probe_others,
    unlabelled_attacks,
    with_model,
    without_model,
)
from .cells import Cells
from .data import Data
from .sizes import Size
from .training import accuracy, augments
from .trainings import MAIN, Protected, Trainings, Way

GRID = {
    "permuted only": Way({"homophones": 1, "trace_labels": 0, "confusion_weight": 0.0}),
    "confusion 0.1": Way({"confusion_weight": 0.1}),
    "confusion 3": Way({"confusion_weight": 3.0}),
    "teacher 0.3": Way({"teacher": True, "teacher_weight": 0.3}),
    "h = 8": Way({"homophones": 8}),
    "one copy": Way({"copies": 1}),
    "random homophones": Way({"strategy": "random"}),
}
"""The trade-off curve: attacked with the first two n only."""

LOCKED = "locked export"


def settings(size: Size) -> dict[str, Any]:
    """What all cells of a results file share; the rest of a size says which cells there are."""
    shared = ("data", "samples", "others", "first", "second", "steps", "tests")
    return {k: v for k, v in asdict(size).items() if k in shared}


def run(trainings: Trainings, cells: Cells, grid: bool) -> None:
    """The cells of one seed; a model is trained only if one of its cells is missing."""
    size, seed = trainings.size, trainings.seed
    ways = GRID if grid else {name: MAIN[name] for name in size.ways}
    samples = size.labelled[:2] if grid else size.labelled
    every, most = trainings.data, size.tests
    data = replace(every, x_test=every.x_test[:most], y_test=every.y_test[:most])
    augment = augments(data)
    prefix = f"seed {seed}"

    cells.get(f"{prefix}, twin", lambda: about_twin(trainings))
    for n in samples:
        cells.get(
            f"{prefix}, no model, n = {n}",
            lambda n=n: without_model(data, n, seed, augment, size.steps),
        )
    if not grid:
        run_locked(trainings, cells, data)
    for name, way in ways.items():
        keys = [f"{prefix}, {name}, {part}" for part in ("model", "no labels")]
        keys += [f"{prefix}, {name}, n = {n}" for n in samples]
        if all(key in cells for key in keys):
            continue
        made = trainings.protected(way) if grid else trainings.main(name)
        outsider = Outsider.of(made.model, data)
        cells.get(keys[0], lambda made=made: about(made, trainings))
        cells.get(keys[1], lambda o=outsider: unlabelled_attacks(o, data, seed))
        for n, key in zip(samples, keys[2:], strict=True):
            cells.get(
                key,
                lambda o=outsider, n=n: with_model(o, data, n, seed, augment, size.steps),
            )


def as_stored(made: Protected, data: Data) -> Outsider:
    """Who has the folder of a locked export, and takes what its variables hold for weights.

    Random bits are floats of any size: they are cut to -1 … 1, or no layer would be finite.
    """
    model = made.model
    with tempfile.TemporaryDirectory() as place:
        folder, bundle = Path(place) / "1", Path(place) / "host.keybundle"
        ke.export_saved_model(model, folder, weights="locked")
        made.authority.issue("host", bundle, passphrase="p", roles=("run",))
        checkpoint = Checkpoint(folder)
        stored = {}
        for name, value in checkpoint.unlocked([unlock_key(folder, bundle, "p")]).items():
            noise = np.nan_to_num(checkpoint.read(name), posinf=1, neginf=-1)
            stored[value.tobytes(), value.shape] = noise.clip(-1, 1)

    def held(variable: keras.Variable) -> np.ndarray:
        value = keras.ops.convert_to_numpy(variable)
        found = stored[value.tobytes(), value.shape]
        return np.abs(found) if variable.name == "moving_variance" else found

    backbone = keras.models.clone_model(model.backbone)
    there = {(layer.name, v.name): v for layer in backbone.layers for v in layer.variables}
    for layer in model.backbone.layers:
        for variable in layer.weights:
            there[layer.name, variable.name].assign(held(variable))
    head = model.confused_labels
    kernel, bias = held(head.kernel), held(head.bias)
    return Outsider(backbone, kernel, bias, data.x[:UNLABELLED], data.x_test)


def run_locked(trainings: Trainings, cells: Cells, data: Data) -> None:
    """The same attacks on the folder of a locked export of the defaults."""
    size, seed = trainings.size, trainings.seed
    keys = {n: f"seed {seed}, {LOCKED}, n = {n}" for n in size.labelled[:2]}
    if all(key in cells for key in keys.values()):
        return
    made = trainings.main("defaults")
    cells.get(f"seed {seed}, {LOCKED}, model", lambda: about(made, trainings))
    stored = as_stored(made, data)
    for n, key in keys.items():
        cells.get(key, lambda n=n: with_model(stored, data, n, seed, augments(data), size.steps))


def run_probes(trainings: Trainings, cells: Cells) -> None:
    """Linear probes on the layers that the other attacks leave out."""
    size, seed = trainings.size, trainings.seed
    every, most = trainings.data, size.tests
    data = replace(every, x_test=every.x_test[:most], y_test=every.y_test[:most])
    for name in size.ways:
        keys = {n: f"seed {seed}, {name}, other layers, n = {n}" for n in size.labelled}
        if all(key in cells for key in keys.values()):
            continue
        outsider = Outsider.of(trainings.main(name).model, data, others=True)
        for n, key in keys.items():
            cells.get(key, lambda o=outsider, n=n: probe_others(o, data, n, seed))


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
