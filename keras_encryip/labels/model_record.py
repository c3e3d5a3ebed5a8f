"""What an owner keeps of a protected model, and the owner as `models/` knows it."""

import io
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import numpy as np

from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata
from keras_encryip.labels.trace_set import TraceSet

SAMPLES: Final = "samples"


@dataclass(frozen=True, repr=False)
class ModelRecord:
    """What the ledger keeps of one protected model. All but its metadata is secret.

    Attributes:
        model_id: its number in the ledger.
        metadata: name, class names and notes.
        assignment: which confused label stands for what.
        training: what `adapt` learned, sealed by nobody else; `None` until then.
        traces: the trace inputs of now, or `None`.
    """

    model_id: int
    metadata: ModelMetadata
    assignment: LabelAssignment
    training: bytes | None
    traces: TraceSet | None

    @property
    def samples(self) -> np.ndarray | None:
        """The owner's inputs `[n, …]` that training kept, or `None`.

        Entry `SAMPLES` of the training state, an `.npz`; the rest is for `models/` alone.
        """
        if self.training is None:
            return None
        with np.load(io.BytesIO(self.training), allow_pickle=False) as file:
            samples: np.ndarray | None = file.get(SAMPLES)
        return samples


class ModelKeeper(Protocol):
    """Keeps the records of protected models; `authority.model_store.ModelStore` is one."""

    @property
    def num_slots(self) -> int:
        """M, the slots that labels of the owner's models lie on."""

    def add_model(self, metadata: ModelMetadata, assignment: LabelAssignment) -> Codebook:
        """Keep a new model's assignment, and make its first codebook."""

    def model_of(self, codebook_id: bytes) -> ModelRecord:
        """The model that a codebook was made for.

        Raises:
            LedgerError: the owner did not make that codebook.
        """

    def save_training(self, model_id: int, state: bytes, traces: TraceSet | None) -> None:
        """Keep what training learned about the data and must not be in any model file."""


@runtime_checkable
class ModelOwner(Protocol):
    """The owner of protected models; `Authority` is one."""

    @property
    def model_store(self) -> ModelKeeper:
        """Where the owner keeps the records of models."""
