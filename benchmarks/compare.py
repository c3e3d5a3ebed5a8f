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

import keras
import numpy as np
import tensorflow as tf

import keras_encryip as ke
from keras_encryip.tracing.statistics import SIGNIFICANCE

from . import removal
from .ladder import about, about_twin
from .peers import PEERS, Passport, Peer
from .rows import Rows
from .sizes import Size
from .training import Schedule, accuracy
from .trainings import DEFAULTS, SCRATCH, Trainings

ROUNDS = {1: 200, 64: 20}
"""Batch size → rounds of the inference timing."""


def run(trainings: Trainings, rows: Rows) -> None:
    """The rows of one seed."""
    rows.measure("twin", "training", "", lambda: about_twin(trainings))
    for way in (DEFAULTS, SCRATCH):
        rows.measure(way, "training", "", lambda way=way: about(trainings.main(way), trainings))
    rows.measure(DEFAULTS, "issuing", "", issuing)
    for kind in PEERS:
        about_peer(kind, trainings, rows)


def run_removal(trainings: Trainings, rows: Rows) -> None:
    """The peers through the ladder that our model goes through in `removal`."""
    for kind in PEERS:

        def model(kind: type[Peer] = kind) -> keras.Model:
            return trainings.peer(kind)[0].model

        def detect(model: keras.Model, kind: type[Peer] = kind) -> dict[str, Any]:
            return asdict(trainings.peer(kind)[0].detect(model))

        ladder = removal.LADDERS[trainings.size.data]
        given = (trainings.build, detect, trainings.data, ladder)
        removal.survival(rows, kind.name, model, *given)


def issuing() -> dict[str, Any]:
    """CPU time of 1,000 users' keys, and of ten bundles at the default cost of a passphrase."""
    with (
        tempfile.TemporaryDirectory() as folder,
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
    return {"cpu seconds a key": keys, "cpu seconds a bundle": bundles}


def about_peer(kind: type[Peer], trainings: Trainings, rows: Rows) -> None:
    """A peer's rows, but for those of removal."""
    users = [f"user {i}" for i in range(trainings.size.copies)]

    def peer() -> Peer:
        return trainings.peer(kind)[0]

    def training() -> dict[str, Any]:
        made, seconds = trainings.peer(kind)
        found = {"accuracy": accuracy(made.model, trainings.data), "cpu seconds": seconds}
        if kind is Passport:
            found["cpu seconds before"] = trainings.twin.seconds
        return found

    def marks() -> dict[str, Any]:
        twin = trainings.twin.model
        found = {
            "own": peer().detect(),
            "in the twin": peer().detect(twin),
            "forged in the twin": peer().forge(twin),
        }
        return {name: asdict(each) for name, each in found.items()}

    def outsider() -> dict[str, Any]:
        made, data = peer(), trainings.data
        found = {"without secret": made.without_key(data)}
        if isinstance(made, Passport):
            found["with a similar secret"] = made.with_similar_key(data)
            found["folded by who had it"] = accuracy(classified(made.folded()), data)
        return found

    def copy(user: str) -> dict[str, Any]:
        """Named is a copy whose own user fits best of all, at a significant p-value."""
        made = peer()
        copy, spent = made.personalise(trainings.data, user)
        marks = {other: made.detect(copy, user=other) for other in users}
        first = max(marks, key=lambda other: marks[other].score)
        return {
            "accuracy": accuracy(classified(copy), trainings.data),
            "cpu seconds": spent,
            "p_value": marks[user].p_value,
            "named": first == user and marks[user].p_value <= SIGNIFICANCE,
        }

    rows.measure(kind.name, "training", "", training)
    rows.measure(kind.name, "marks", "", marks)
    rows.measure(kind.name, "outsider", "", outsider)
    for user in users:
        rows.measure(kind.name, "copy", user, lambda user=user: copy(user))


def classified(model: keras.Model) -> keras.Model:
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def run_inference(trainings: Trainings, rows: Rows) -> None:
    """Once for all seeds: the ratios stand under seed 0."""
    if trainings.seed == 0:
        rows.measure("all", "inference", "", lambda: inference(trainings.size))


def inference(size: Size) -> dict[str, Any]:
    """CPU time of each SavedModel by that of the twin, in random order within each round.

    Weights do not matter for it, so nothing is trained to the end.
    """
    short = Schedule(1, 64)
    few = Size(size.data, 256, 0, short, short)
    with Trainings(few, 0) as trainings, tempfile.TemporaryDirectory() as folder:
        data = trainings.data
        trainings.twin.model.export(f"{folder}/twin/1", verbose=False)
        # Hardening and the trace set leave the served graph as it is.
        ours = trainings.main(SCRATCH).model
        kernel = ours.confused_labels.kernel  # an export refuses copies, which are left so early
        kernel.assign_add(0.1 * np.random.default_rng(0).standard_normal(kernel.shape, np.float32))
        ke.export_saved_model(ours, f"{folder}/{DEFAULTS}/1")
        for kind in PEERS:
            peer, _ = trainings.peer(kind)
            peer.model.export(f"{folder}/{kind.name}/1", verbose=False)
        names = ["twin", DEFAULTS, *(kind.name for kind in PEERS)]
        loaded = {name: tf.saved_model.load(f"{folder}/{name}/1") for name in names}
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
