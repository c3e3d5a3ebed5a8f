"""Owners and models that nobody trained, for forgers to try on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import keras_encryip as ke
from keras_encryip.crypto.slots import ReaderKey
from keras_encryip.errors import EncryipError
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata
from keras_encryip.labels.trace_set import TraceSet

from ..data import CLASSES
from ..trainings import PASSPHRASE, SCRYPT

USERS = 100
HOMOPHONES, TRACE_LABELS, OWNERSHIP_INPUTS = 4, 64, 32
ACCEPTED = "accepted"

MakeInputs = Callable[[np.ndarray], np.ndarray]
"""Wanted classes `[n]` → inputs `[n, …]`."""


def outcome(action: Callable[[], Any]) -> str:
    """`"accepted"`, or the library's refusal."""
    try:
        action()
    except EncryipError as error:
        return f"{type(error).__name__}: {error}"
    return ACCEPTED


@contextmanager
def authority(threshold: int = 4) -> Iterator[tuple[ke.Authority, Path]]:
    """An authority of its own, in a folder that is deleted with it."""
    with TemporaryDirectory() as name:
        options: dict[str, Any] = {"threshold": threshold, "scrypt_log2_n": SCRYPT}
        with ke.Authority.create(f"sqlite:///{name}/a", PASSPHRASE, **options) as made:
            yield made, Path(name)


def issued(owner: ke.Authority, subject: str, folder: Path) -> ReaderKey:
    """What a user reads models with, out of the bundle that the user gets."""
    path = folder / f"{subject}.keybundle"
    owner.issue(subject, path, passphrase=PASSPHRASE, scrypt_log2_n=SCRYPT)
    return KeyBundle.read(path).unlock(PASSPHRASE).reader


def release(owner: ke.Authority, name: str) -> tuple[Codebook, LabelAssignment]:
    """The codebook of a model that nobody trained."""
    slots = owner.model_store.num_slots
    assignment = LabelAssignment.draw(CLASSES, HOMOPHONES, TRACE_LABELS, slots)
    metadata = ModelMetadata(model=name, class_names=[str(k) for k in range(CLASSES)])
    return owner.model_store.add_model(metadata, assignment), assignment


def commit(owner: ke.Authority, codebook: Codebook) -> None:
    """What an export writes into the ledger."""
    kernels = [np.zeros((1, 1), np.float32)]
    owner.export_store.add_export(codebook, b"", folder="1", recipient=None, kernels=kernels)


def traced_release(
    owner: ke.Authority, name: str, key: ReaderKey, make: MakeInputs
) -> tuple[Codebook, np.ndarray, TraceSet]:
    """A model that nobody trained, with trace inputs made for what `key` reads: the wanted
    classes, `[n]`. Not committed to yet."""
    codebook, assignment = release(owner, name)
    ordinary = np.random.default_rng().choice(assignment.labels.ravel(), OWNERSHIP_INPUTS)
    labels = np.concatenate([assignment.trace, ordinary])
    wanted = codebook.decode_table(key)[labels]
    traces = TraceSet(make(wanted).astype(np.float32), labels)
    record = owner.model_store.model_of(codebook.codebook_id)
    owner.model_store.save_training(record.model_id, b"", traces)
    return codebook, wanted, traces
