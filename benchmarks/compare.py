"""The peers beside ours and the unprotected twin: same data, backbone, cycles and optimiser.

Accuracy, CPU time of training against the twin's, what a further user costs, what who holds
the weights without a secret gets, whether the user of a copy is named, and what a forger
achieves. Removal is in `removal`, through which the peers go as well.
"""

import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import keras_encryip as ke

from . import removal
from .cells import Cells
from .ladder import about_twin
from .peers import PEERS, Passport, Peer
from .sizes import Size
from .training import Schedule, accuracy
from .trainings import DEFAULTS, SCRATCH, Trainings

ROUNDS = {1: 200, 64: 20}
"""Batch size → rounds of the inference timing."""


def run(trainings: Trainings, cells: Cells) -> None:
    """The cells of one seed."""
    prefix = f"seed {trainings.seed}"
    cells.get(f"{prefix}: twin", lambda: about_twin(trainings))
    for name, way in (("ours", DEFAULTS), ("ours from scratch", SCRATCH)):
        cells.get(f"{prefix}: {name}", lambda way=way: ours(trainings, way))
    for kind in PEERS:
        cells.get(f"{prefix}: {kind.name}", lambda kind=kind: about(kind, trainings))


def run_removal(trainings: Trainings, cells: Cells) -> None:
    """The peers through the ladder that our model goes through in `removal`."""
    data, ladder = trainings.data, removal.ladder_of(trainings.size)
    for kind in PEERS:
        name = f"{kind.name}, seed {trainings.seed}"
        if removal.survived(name, data, ladder, cells):
            continue
        peer, _ = trainings.peer(kind)
        removal.survival(
            name,
            peer.model,
            trainings.build,
            lambda model, p=peer: asdict(p.detect(model)),
            data,
            ladder,
            cells,
            trainings.seed,
        )


def ours(trainings: Trainings, way: str) -> dict[str, Any]:
    """Accuracy, cost, and the cost of users: 1,000 keys drawn, ten bundles written."""
    made = trainings.main(way)
    with (
        tempfile.TemporaryDirectory() as folder,
        # An authority of its own: the model's has the users of the removal suite.
        ke.Authority.create(f"sqlite:///{folder}/ledger", "benchmark") as authority,
    ):
        start = time.process_time()
        authority.enroll(f"user {i}" for i in range(1000))
        keys = (time.process_time() - start) / 1000
        start = time.process_time()
        for i in range(10):
            path = Path(folder) / f"{i}.keybundle"
            authority.issue(f"bundle {i}", path, passphrase="benchmark")
        bundles = (time.process_time() - start) / 10
    return {
        "accuracy": accuracy(made.model, trainings.data),
        "cpu seconds": made.seconds,
        "cpu seconds a key": keys,
        "cpu seconds a bundle": bundles,
    }


def about(kind: type[Peer], trainings: Trainings) -> dict[str, Any]:
    """A peer's figures; `named` counts copies whose own user fits best of all, at p < 1e-6."""
    (peer, seconds), twin, data = trainings.peer(kind), trainings.twin, trainings.data
    users = [f"user {i}" for i in range(trainings.size.copies)]
    found: dict[str, Any] = {
        "accuracy": accuracy(peer.model, data),
        "cpu seconds": seconds,
        "without key": peer.without_key(data),
        "own mark": asdict(peer.detect()),
        "mark in the twin": asdict(peer.detect(twin.model)),
        "forged in the twin": asdict(peer.forge(twin.model)),
        "copies": [],
    }
    if isinstance(peer, Passport):
        found["cpu seconds before"] = twin.seconds
        found["with a similar key"] = peer.with_similar_key(data)
        folded = peer.folded()
        folded.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        found["folded, no key"] = accuracy(folded, data)
    for user in users:
        copy, spent = peer.personalise(data, user)
        copy.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        marks = {other: peer.detect(copy, user=other) for other in users}
        first = max(marks, key=lambda other: marks[other].score)
        found["copies"].append(
            {
                "accuracy": accuracy(copy, data),
                "cpu seconds": spent,
                "p_value": marks[user].p_value,
                "named": first == user and marks[user].p_value < 1e-6,
            }
        )
    return found


def inference(size: Size) -> dict[str, Any]:
    """CPU time of each SavedModel by that of the twin, in random order within each round.

    Weights do not matter for it, so nothing is trained to the end.
    """
    short = Schedule(1, 64)
    few = Size(size.data, 256, 0, short, short)
    with Trainings(few, 0) as trainings, tempfile.TemporaryDirectory() as folder:
        data = trainings.data
        trainings.twin.model.export(f"{folder}/twin", verbose=False)
        # Hardening and the trace set leave the served graph as it is.
        ke.export_saved_model(trainings.main(SCRATCH).model, f"{folder}/ours")
        for kind in PEERS:
            peer, _ = trainings.peer(kind)
            peer.model.export(f"{folder}/{kind.name}", verbose=False)
        names = ["twin", "ours", *(kind.name for kind in PEERS)]
        loaded = {name: tf.saved_model.load(f"{folder}/{name}") for name in names}
        calls = {name: model.signatures["serving_default"] for name, model in loaded.items()}
        return {
            f"batch {batch}": ratios(calls, data.x[:batch], rounds)
            for batch, rounds in ROUNDS.items()
        }


def ratios(calls: dict[str, Any], x: np.ndarray, rounds: int) -> dict[str, Any]:
    """Median of the rounds' ratios to the twin."""
    random = np.random.default_rng(0)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    inputs = tf.constant(x)
    for call in calls.values():
        call(inputs)
    for _ in range(rounds):
        for name in random.permutation(list(calls)):
            start = time.process_time()
            calls[name](inputs)
            spent[name].append(time.process_time() - start)
    return {
        name: statistics.median(a / b for a, b in zip(times, spent["twin"], strict=True))
        for name, times in spent.items()
    }
