"""What is left of each proof of theft after a thief has tampered with the weights.

For each seed a classifier is trained for a cycle, protected, and trained for another. A
traitor has a key bundle and a personalised copy, and tampers with it as `Ladder` says, with
samples that nobody trained with. After each tampering: the traitor's own accuracy, and what
the owner's tracers find among all users, every one of whom has a copy in the ledger. The
trace of the decode table does not depend on weights, and is measured once.

`survival` takes any other classifier, with any other method of detection, through the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_encryip as ke
from keras_encryip.errors import ArgumentError
from keras_encryip.labels.codebook import Codebook
from keras_encryip.labels.trace_set import plurality
from keras_encryip.tracing.alignment import match
from keras_encryip.tracing.fingerprint import correlate, kernels_digest, whiten
from keras_encryip.tracing.report import TraceReport
from keras_encryip.tracing.statistics import corrected, innocent_tail, observed_weights, scores
from keras_encryip.tracing.weights import kernels_of, read_kernels

from .data import Data
from .rows import Rows
from .tampering import (
    accuracy,
    decoded_classifier,
    distil,
    finetune,
    kernels,
    predict,
    prune,
    quantise,
    replace_head,
)
from .training import Schedule, augments
from .trainings import DEFAULTS, PASSPHRASE, SCRYPT, Trainings

USERS = 1000
TRAITOR = "traitor"


@dataclass(frozen=True)
class Ladder:
    """Tamperings of growing strength.

    Attributes:
        tunings: of all weights, at constant rates.
        shares: of every kernel's weights, set to 0.
        distil, head: schedules of the student, and of the new head.
    """

    tunings: tuple[Schedule, ...]
    shares: tuple[float, ...]
    distil: Schedule
    head: Schedule


SHARES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
LADDERS: dict[str, Ladder] = {
    "digits": Ladder(
        (Schedule(5, 32, 1e-3), Schedule(1, 32, 1e-2)),
        SHARES,
        Schedule(20, 32),
        Schedule(20, 32, 1e-2),
    ),
    "mnist": Ladder(
        (
            Schedule(20, 128, 1e-4),
            *(Schedule(n, 128, 1e-3) for n in (1, 5, 20)),
            *(Schedule(n, 128, 1e-2) for n in (1, 5)),
        ),
        SHARES,
        Schedule(20, 128),
        Schedule(20, 128, 1e-2),
    ),
    "cifar10": Ladder(
        (
            Schedule(5, 128, 1e-4),
            *(Schedule(n, 128, 1e-3) for n in (1, 5, 20)),
            Schedule(5, 128, 1e-2),
        ),
        SHARES,
        Schedule(8, 128),
        Schedule(10, 128, 1e-2),
    ),
}


# --- any classifier ----------------------------------------------------------------------

Detect = Callable[[keras.Model], dict[str, Any]]
"""What a method finds in a classifier that was tampered with."""

Tamper = Callable[[keras.Model], keras.Model]
"""Gives the tampered model: its argument, changed, or another."""

TAMPERINGS = (
    "untouched",
    "fine-tuned",
    "pruned",
    "int8",
    "float16",
    "distilled",
    "replaced head",
)
"""The attacks of the rows."""


def tamperings(
    data: Data, ladder: Ladder, build: Callable[[], keras.Model]
) -> dict[tuple[str, str], Tamper]:
    """(attack, setting) → what is done."""
    x, y, augment = data.x_other, data.y_other, augments(data)

    def in_place(change: Callable[..., None], *arguments: Any) -> Tamper:
        def changed(model: keras.Model) -> keras.Model:
            change(model, *arguments)
            return model

        return changed

    made: dict[tuple[str, str], Tamper] = {("untouched", ""): lambda model: model}
    for schedule in ladder.tunings:
        epochs = "1 epoch" if schedule.epochs == 1 else f"{schedule.epochs} epochs"
        how = f"at {schedule.rate:g}, {epochs}"
        made["fine-tuned", how] = in_place(finetune, x, y, schedule, augment)
    for share in ladder.shares:
        made["pruned", f"{share:.0%}"] = in_place(prune, share)
    for kind in ("int8", "float16"):
        made[kind, ""] = in_place(quantise, kind)
    made["distilled", ""] = lambda model: distil(model, x, ladder.distil, build, augment)
    made["replaced head", ""] = lambda model: replace_head(model, x, ladder.head)
    return made


def survival(
    rows: Rows,
    method: str,
    model: Callable[[], keras.Model],
    build: Callable[[], keras.Model],
    detect: Detect,
    data: Data,
    ladder: Ladder,
) -> None:
    """Rows of every tampering: accuracy, and what `detect` gives.

    Every rung starts from the model as it is now, and leaves it so. `trained` tells
    trainings apart: rows that were measured after an interruption come from another one.

    Args:
        model: gives a functional model, inputs → `[n, K]` probabilities; is called when the
            first row is missing.
        build: a fresh network of the same architecture, for the student.
        detect: gets the tampered model.
        data: `x_other` and `y_other` are the thief's.
    """
    stolen = cache(model)

    def measure(tamper: Tamper) -> dict[str, Any]:
        given = stolen()
        original = given.get_weights()
        trained = kernels_digest([keras.ops.convert_to_numpy(k) for k in kernels(given)])[:8]
        keras.utils.set_random_seed(rows.seed)
        try:
            found = tamper(given)
            right = accuracy(found, data.x_test, data.y_test)
            return {"accuracy": right, "trained": trained, **detect(found)}
        finally:
            given.set_weights(original)

    for key, tamper in tamperings(data, ladder, build).items():
        rows.measure(method, *key, lambda tamper=tamper: measure(tamper))


# --- our model ---------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A protected model of which everybody has a copy, and the traitor's.

    Attributes:
        model: the owner's.
        copy: the traitor's, locked, with personalised weights.
        table: what the traitor's key reads, int `[N]`.
        others: users beside the traitor.
    """

    authority: ke.Authority
    data: Data
    model: ke.ProtectedModel
    copy: ke.ProtectedModel
    table: np.ndarray
    others: int
    folder: Path

    @property
    def bundle(self) -> Path:
        return self.folder / "traitor.keybundle"

    @property
    def codebook(self) -> Codebook:
        return Codebook.from_bytes(self.model.codebook.encode("ascii"))


def world(trainings: Trainings, users: int = USERS) -> World:
    """Gives the model that the defaults protect its users, and exports the traitor's copy.

    Only the traitor's files are written. The other users' copies stand in the ledger, with
    the marks that they would have.
    """

    def make() -> World:
        made, folder = trainings.main(DEFAULTS), trainings.folder()
        model, authority = made.model, made.authority
        bundle = folder / "traitor.keybundle"
        authority.issue(TRAITOR, bundle, passphrase=PASSPHRASE, scrypt_log2_n=SCRYPT)
        others = authority.enroll(f"user {i}" for i in range(users - 1))
        ke.export_saved_model(model, folder / "copy", recipient=TRAITOR)
        codebook = Codebook.from_bytes(model.codebook.encode("ascii"))
        originals = [keras.ops.convert_to_numpy(kernel) for kernel in kernels_of(model)]
        for other in others:
            authority.export_store.add_export(
                codebook, b"", folder="1", recipient=other.key_id, kernels=originals
            )
        copy = _loaded(model, folder, originals)
        table = ke.Decoder.open(folder / "copy", bundle, PASSPHRASE).secret_table()
        return World(authority, trainings.data, model, copy, table, len(others), folder)

    return trainings.once("world", make)


def _loaded(
    model: ke.ProtectedModel, folder: Path, originals: list[np.ndarray]
) -> ke.ProtectedModel:
    """The traitor's copy in Keras: all that the export marks are kernels."""
    model.save(folder / "model.keras")
    copy = keras.models.load_model(folder / "model.keras", compile=False)
    found = match(read_kernels(folder / "copy"), originals)
    for variable, kernel in zip(kernels_of(copy), found, strict=True):
        variable.assign(kernel)
    return copy


def detect(world: World, classifier: keras.Model) -> dict[str, Any]:
    """What the tracers of weights and of services find."""
    return {"weights": by_weights(world, classifier), "service": by_service(world, classifier)}


def by_table(world: World) -> dict[str, Any]:
    report = ke.Tracer(world.authority).table(world.table, model=world.model)
    read = int(report.evidence["live labels read"].split()[0])
    first = report.suspects[0].subject == TRAITOR
    return {"coincidences": read if first else None, **_verdict(report)}


def by_weights(world: World, classifier: keras.Model) -> dict[str, Any]:
    """z of the traitor from the tracer's own parts: a report lists only the first users."""
    try:
        report = ke.Tracer(world.authority).weights(classifier, model=world.model)
    except ArgumentError as error:  # kernels of other shapes
        return {"verdict": "refused", "message": str(error)}
    record = report.exhibits["record"]
    recipient = world.authority.user_store.recipient(TRAITOR)
    mark = world.authority.keys.fingerprint_key(record.model_id, recipient)
    residual = whiten(report.exhibits["suspect"], report.exhibits["reference"])
    return {
        "z": float(correlate(residual, mark)),
        "threshold": report.threshold,
        "kernels found": report.evidence["kernels found"],
        **_verdict(report),
    }


def by_service(world: World, classifier: keras.Model) -> dict[str, Any]:
    """The traitor's score computed again, since a report lists only the first users.

    `"coincidences"`: the trace labels, of as many that were answered, whose inputs are answered
    with the class that the traitor's key reads there.
    """
    report = ke.Tracer(world.authority).service(
        lambda batch: predict(classifier, batch), model=world.model, batch_size=256
    )
    (traces,), (answers,) = report.exhibits["sets"], report.exhibits["answers"]
    assignment = report.exhibits["record"].assignment
    said, own = plurality(traces, answers, assignment.trace), world.table[assignment.trace]
    biases = world.authority.keys.slots.biases[assignment.slots[assignment.trace]]
    weights = observed_weights(said, assignment.pairs, biases)
    score = scores(weights, biases, (own == assignment.pairs[:, 1])[None])
    return {
        "coincidences": int((said == own).sum()),
        "of": int((said >= 0).sum()),
        "score": float(score[0]),
        "threshold": report.threshold,
        "p_value": corrected(float(innocent_tail(weights, biases, score)[0]), report.tests),
        "ownership": report.evidence["ordinary answers right"],
        "ownership p_value": report.evidence["p-value of that"],
        **_verdict(report),
    }


def _verdict(report: TraceReport) -> dict[str, Any]:
    """Whether the traitor is guilty, and how near the others come."""
    guilty = [s.subject for s in report.guilty]
    found = {
        "verdict": report.verdict,
        "traitor guilty": TRAITOR in guilty,
        "innocents guilty": sum(subject != TRAITOR for subject in guilty),
        "best innocent": max(s.score for s in report.suspects if s.subject != TRAITOR),
    }
    return found if report.kind == "service" else {**found, "p_value": report.p_value}


def run(trainings: Trainings, rows: Rows, ladder: Ladder | None = None, users: int = USERS) -> None:
    """The rows of one seed; trains only if one of them is missing.

    `decode table` has the accuracy that the traitor gets from the owner's weights, and the trace
    of the traitor's table.
    """
    data, ladder = trainings.data, ladder or LADDERS[trainings.size.data]

    def table() -> dict[str, Any]:
        made = world(trainings, users)
        own = decoded_classifier(made.model, made.table)
        right = accuracy(own, data.x_test, data.y_test)
        return {"accuracy": right, "users": made.others + 1, **by_table(made)}

    def stolen() -> keras.Model:
        made = world(trainings, users)
        return decoded_classifier(made.copy, made.table)

    def found(classifier: keras.Model) -> dict[str, Any]:
        return detect(world(trainings, users), classifier)

    rows.measure(DEFAULTS, "decode table", "", table)
    survival(rows, DEFAULTS, stolen, trainings.build, found, data, ladder)
