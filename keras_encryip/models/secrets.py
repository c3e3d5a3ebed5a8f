"""What a protected model knows while it is unlocked: never seen by Keras, never saved."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_encryip.crypto.secret import Secret
from keras_encryip.errors import ArgumentError, FormatError, LockedModelError
from keras_encryip.labels.assignment import TRACE, LabelAssignment
from keras_encryip.labels.model_record import ModelOwner, ModelRecord
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.models.backbone import SplitClassifier
from keras_encryip.models.homophones import (
    STRATEGIES,
    ClusteredHomophones,
    Homophones,
    RandomHomophones,
)


@dataclass(frozen=True, repr=False)
class TrainingState:
    """What `adapt` learned about the data: kept sealed in the ledger, never in a model file.

    Attributes:
        homophones: what a strategy learned.
        traces: the trace inputs, or `None` without trace labels.
    """

    homophones: Homophones
    traces: TraceSet | None

    def secret_bytes(self) -> bytes:
        """The homophones for sealing, an `.npz`; the trace set is kept apart. Secret."""
        strategy = {kind: name for name, kind in STRATEGIES.items()}[type(self.homophones)]
        arrays: dict[str, Any] = {"strategy": np.array(strategy), **self.homophones.to_arrays()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # numbers and a name, so nothing is pickled
        return buffer.getvalue()

    @classmethod
    def from_secret_bytes(cls, data: bytes, traces: TraceSet | None) -> "TrainingState":
        """Read what `secret_bytes` wrote, in this release or in 0.3."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = dict(file)
        if "strategy" not in arrays:  # of 0.3: clusters, or without components a uniform draw
            clustered = arrays["components"].size
            uniform = RandomHomophones(int(arrays["sizes"][0, 0]))
            return cls(ClusteredHomophones(**arrays) if clustered else uniform, traces)
        strategy = str(arrays.pop("strategy"))
        if strategy not in STRATEGIES:
            raise FormatError(
                f"The training state was learned with strategy {strategy!r}, which this program "
                f"does not have; it has {', '.join(map(repr, STRATEGIES))}."
            )
        return cls(STRATEGIES[strategy].from_arrays(arrays), traces)


class UnlockedSecrets(Secret):
    """The unlocked state of a `ProtectedModel`.

    A plain holder outside Keras's sight: Keras tracks layers, variables and
    containers, saves properties and configs, and pickles models through their
    saved form, and none of these reaches in here.

    Attributes:
        table: int32 `[N]`, class of each confused label; `TRACE` for the owner's trace labels.
        record: the ledger's `ModelRecord`, or `None` when unlocked with a key bundle.
        owner: who keeps the record, or `None` when unlocked with a key bundle.
        training: `TrainingState`, or `None` until `adapt`.
        teacher: a frozen `SplitClassifier`, or `None`.
    """

    __slots__ = ("num_classes", "owner", "record", "table", "teacher", "training")

    def __init__(
        self,
        table: np.ndarray,
        num_classes: int,
        record: ModelRecord | None = None,
        owner: ModelOwner | None = None,
    ) -> None:
        self.table = table
        self.num_classes = num_classes
        self.record = record
        self.owner = owner
        self.training: TrainingState | None = None
        if record is not None and record.training is not None:
            self.training = TrainingState.from_secret_bytes(record.training, record.traces)
        self.teacher: SplitClassifier | None = None

    @property
    def traces(self) -> TraceSet | None:
        """The trace inputs, as far as there are any and they are known."""
        return None if self.training is None else self.training.traces

    def awaits_adapt(self) -> bool:
        """Whether the owner is to learn the training state before the model can train."""
        return self.record is not None and self.training is None

    def decode(self, confused: Any) -> Any:
        """Class probabilities `[..., K]` from confused labels `[..., N]`, in graph.

        A trace label means another class to every user, so its probability is
        spread evenly: the mean over users.
        """
        shape = ops.shape(confused)
        columns = ops.transpose(ops.reshape(confused, (-1, len(self.table))))
        real = np.where(self.table == TRACE, self.num_classes, self.table)
        sums = ops.segment_sum(columns, real, num_segments=self.num_classes + 1)
        decoded = ops.transpose(sums[:-1])
        if np.any(self.table == TRACE):
            decoded = decoded + ops.expand_dims(sums[-1], -1) / self.num_classes
        return ops.reshape(decoded, (*shape[:-1], self.num_classes))

    def targets(self, inputs: Any, classes: Any, seed: Any) -> Any:
        """The confused label each sample is taught to come out as: int32, shape of `classes`."""
        if self.training is None:
            raise LockedModelError("The homophones are not learned yet: call `adapt(x, y)`.")
        homophone = self.training.homophones.draw(inputs, classes, seed)
        labels = self.assignment().labels
        return ops.take(
            ops.convert_to_tensor(labels.reshape(-1)), classes * labels.shape[1] + homophone
        )

    def assignment(self) -> LabelAssignment:
        """The label assignment, which only the owner has. Secret."""
        if self.record is None:
            raise LockedModelError(
                "The model is unlocked with a key bundle; this needs its owner: "
                "`unlock(authority=...)`."
            )
        return self.record.assignment

    def save_training(self) -> None:
        """Keep the training state, sealed, in the owner's ledger."""
        if self.owner is not None and self.record is not None and self.training is not None:
            state = self.training.secret_bytes()
            self.owner.model_store.save_training(self.record.model_id, state, self.training.traces)

    def teach(self, inputs: Any) -> Any:
        """The class probabilities of `teacher`, which must be set, without gradient."""
        assert self.teacher is not None
        return ops.stop_gradient(ops.softmax(self.teacher.logits(inputs)))


def check_owner(authority: Any) -> ModelOwner:
    """Refuse what cannot keep the records of protected models."""
    if isinstance(authority, ModelOwner):
        return authority
    raise ArgumentError(f"`authority` must be an Authority. Received: {type(authority).__name__}")
