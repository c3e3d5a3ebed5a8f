"""Claims to invented models, with trace inputs made to suit an innocent user's key."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_encryip as ke
from keras_encryip.crypto.slots import ReaderKey
from keras_encryip.tracing.events import MODEL_EXPORTED
from keras_encryip.tracing.report import TraceReport
from keras_encryip.tracing.verify_evidence import verify_evidence

from ..data import Data
from ..removal import World
from ..tampering import decoded_classifier, predict
from .ground import ACCEPTED, USERS, MakeInputs, authority, commit, issued, outcome, traced_release

FITTING_STEPS = 200
SCAPEGOAT = "scapegoat"


def fitted(model: keras.Model, start: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Inputs in 0 … 1 to which a classifier gives the wanted classes, by gradient descent."""
    inputs = tf.Variable(start)
    optimizer = keras.optimizers.Adam(0.02)

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            found = model(inputs, training=False)
            loss = tf.reduce_sum(keras.losses.sparse_categorical_crossentropy(wanted, found))
        optimizer.apply([tape.gradient(loss, inputs)], [inputs])
        inputs.assign(tf.clip_by_value(inputs, 0, 1))

    for _ in range(FITTING_STEPS):
        step()
    return np.asarray(inputs.numpy())


def makers(models: dict[str, keras.Model], data: Data, seed: int) -> dict[str, MakeInputs]:
    """`"natural"` takes samples of the wanted class, and needs no model."""
    random = np.random.default_rng(seed)
    x, y = data.x_other, data.y_other

    def noise(wanted: np.ndarray) -> np.ndarray:
        return random.random((len(wanted), *x.shape[1:]), np.float32)

    return {
        "random": noise,
        "natural": lambda wanted: x[[random.choice(np.flatnonzero(y == k)) for k in wanted]],
        **{
            f"fitted to {name}": lambda wanted, model=model: fitted(model, noise(wanted), wanted)
            for name, model in models.items()
        },
    }


def asked(owner: ke.Authority, model: Any, service: keras.Model) -> TraceReport:
    tracer = ke.Tracer(owner)
    return tracer.service(lambda batch: predict(service, batch), model=model, batch_size=256)


def facts(report: TraceReport) -> dict[str, Any]:
    return {
        "verdict": report.verdict,
        "accused": ", ".join(s.subject for s in report.guilty),
        "score": report.suspects[0].score,
        "p_value": report.p_value,
        "ownership": report.evidence["ordinary answers right"],
        "this is the model": report.evidence["this is the model"],
    }


def claim(
    forger: ke.Authority,
    key: ReaderKey,
    make: MakeInputs,
    services: dict[str, keras.Model],
    owner: ke.Authority,
    folder: Path,
) -> dict[str, dict[str, Any]]:
    """What a forger proves against the user who holds `key`, and runs none of the services.

    Args:
        services: what is really asked, by name.
        owner: whose signature a judge knows, and who released a model before.
        folder: for folders of evidence.

    Returns:
        For each service the trace; what comes of evidence before the trace inputs are
        committed to, and after; and, if it is believed, whether also of who expects the
        owner's signature, and whether it is dated before the owner's release.
    """
    name = f"claim {len(forger.models())}"
    codebook, _, _ = traced_release(forger, name, key, make)
    tracer = ke.Tracer(forger)
    early = {}
    for each, service in services.items():
        report, path = asked(forger, name, service), folder / f"{name}, {each}, early"
        early[each] = outcome(lambda r=report, p=path: tracer.evidence(r, p))
    commit(forger, codebook)
    released = next(e.at for e in owner.events() if e.kind == MODEL_EXPORTED)
    rows = {}
    for each, service in services.items():
        report, path = asked(forger, name, service), folder / f"{name}, {each}"
        row = {**facts(report), "not committed": early[each]}
        row["committed"] = outcome(lambda r=report, p=path: tracer.evidence(r, p))
        if row["committed"] == ACCEPTED:
            row["the owner's signature expected"] = outcome(
                lambda p=path: verify_evidence(p, issuer=owner.issuer)
            )
            row["dated before the release"] = verify_evidence(path).committed < released
        rows[each] = row
    return rows


def claims(made: World, twin: keras.Model, seed: int) -> dict[str, dict[str, Any]]:
    """`"{who}, {which} inputs"` → service → what came out; honest trace inputs first."""
    services = {"our model": decoded_classifier(made.copy, made.table), "the twin": twin}
    found: dict[str, dict[str, Any]] = {
        "honest trace inputs": {
            each: facts(asked(made.authority, made.model, service))
            for each, service in services.items()
        }
    }
    with authority() as (other, folder):
        other.enroll(f"user {i}" for i in range(USERS))
        for who, forger in {"another authority": other, "the owner": made.authority}.items():
            place = folder / who
            place.mkdir()
            key = issued(forger, SCAPEGOAT, place)
            for kind, make in makers(services, made.data, seed).items():
                rows = claim(forger, key, make, services, made.authority, place)
                found[f"{who}, {kind} inputs"] = rows
    return found
