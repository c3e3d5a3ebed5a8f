"""An authority and a model that is as if it was trained: inputs name the label they come out as.

Everything that tracing sees of a model, in milliseconds and without TensorFlow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_encryip.authority.authority import Authority
from keras_encryip.authority.tracer import Tracer
from keras_encryip.client.decoder import Decoder
from keras_encryip.formats.bundle_keys import BundleKeys
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.tracing.report import TraceReport

PASSPHRASE = "correct horse"
OWNER = "owner's passphrase"
MODEL = "digits"


@dataclass(frozen=True)
class World:
    """Users with bundles in `folder`, and one exported model.

    Attributes:
        assignment: as the model numbers labels.
        traces: its trace inputs, and some 40 on ordinary labels.
    """

    authority: Authority
    folder: Path
    codebook: Codebook
    assignment: LabelAssignment
    traces: TraceSet

    @property
    def tracer(self) -> Tracer:
        return Tracer(self.authority)

    def bundle(self, user: str) -> Path:
        return self.folder / f"{user}.keybundle"

    def keys(self, user: str) -> BundleKeys:
        return KeyBundle.read(self.bundle(user)).unlock(PASSPHRASE)

    def decoder(self, user: str, codebook: Codebook | None = None) -> Decoder:
        return Decoder.open(codebook or self.codebook, self.bundle(user), PASSPHRASE)

    def table(self, user: str) -> np.ndarray:
        return self.decoder(user).secret_table()

    def service(self, table: np.ndarray) -> Callable[[np.ndarray], Any]:
        """What answers with a decode table; -1 refuses."""
        return lambda batch: [int(c) if c >= 0 else None for c in table[labels_of(batch)]]

    def confused(self, batch: np.ndarray) -> np.ndarray:
        """The model: float32 `[b, N]`."""
        outputs = np.zeros((len(batch), self.assignment.num_labels), np.float32)
        outputs[np.arange(len(batch)), labels_of(batch)] = 1
        return outputs

    def trace(self, table: np.ndarray) -> TraceReport:
        return self.tracer.service(self.service(table), model=MODEL, batch_size=1024)

    def evidence(self, report: TraceReport, name: str) -> Path:
        self.tracer.evidence(report, self.folder / name)
        return self.folder / name


def labels_of(batch: np.ndarray) -> np.ndarray:
    return batch[:, 0].astype(np.int64)


def make_world(
    folder: Path,
    users: Sequence[str] = ("alice", "bob", "carol"),
    *,
    classes: int = 10,
    homophones: int = 4,
    trace_labels: int = 64,
    crowd: int = 100,
    revoked: Sequence[str] = (),
    **options: Any,
) -> World:
    """Issue bundles, protect, revoke and export, in this order."""
    options = {"threshold": 2, "scrypt_log2_n": 14, **options}
    authority = Authority.create(folder / "acme.authority", OWNER, **options)
    for user in users:
        path = folder / f"{user}.keybundle"
        authority.issue(user, path, passphrase=PASSPHRASE, scrypt_log2_n=14)
    authority.enroll([f"pending {i}" for i in range(crowd)])
    store = authority.model_store
    assignment = LabelAssignment.draw(classes, homophones, trace_labels, store.num_slots)
    metadata = ModelMetadata(model=MODEL, class_names=[f"class {i}" for i in range(classes)])
    codebook = store.add_model(metadata, assignment)
    ordinary = assignment.labels.ravel()[:: max(1, assignment.labels.size // 40)]
    numbers = np.concatenate([assignment.trace, ordinary]).astype(np.float32)
    inputs = np.stack([numbers, np.arange(len(numbers), dtype=np.float32)], 1)
    traces = TraceSet(inputs, numbers.astype(np.int32))
    store.save_training(1, b"what training learned", traces)
    for user in revoked:
        authority.revoke(user)
    codebook = store.current_codebook(codebook.codebook_id)
    kernels = [np.ones((3, 3), np.float32)]
    authority.export_store.add_export(
        codebook, b"manifest", folder="digits/1", recipient=None, kernels=kernels
    )
    return World(authority, folder, codebook, assignment, traces)
