"""What a protected model knows while it is unlocked: never seen by Keras, never saved."""

from typing import Any

import numpy as np
from keras import ops

from keras_encryip.crypto.secret import Secret
from keras_encryip.errors import LockedModelError
from keras_encryip.labels.assignment import TRACE, LabelAssignment
from keras_encryip.authority.authority import Authority
from keras_encryip.labels.model_record import ModelRecord
from keras_encryip.models.backbone import SplitClassifier
from keras_encryip.models.secrets import TrainingState

TRACE_SHARE = 32
MIN_TRACES = 4
"""A training batch of b inputs is joined by b / 32 trace inputs, at least 4."""


class Protection(Secret):
    """The unlocked state of a `ProtectedModel`.

    A plain holder outside Keras's sight: Keras tracks layers, variables and
    containers, saves properties and configs, and pickles models through their
    saved form, and none of these reaches in here.

    Attributes:
        table: int32 `[N]`, class of each confused label; `TRACE` for the owner's trace labels.
        record: the ledger's `ModelRecord`, or `None` when unlocked with a key bundle.
        authority: the `Authority`, or `None` when unlocked with a key bundle.
        training: `TrainingState`, or `None` until `adapt`.
        teacher: a frozen `SplitClassifier`, or `None`.
    """

    __slots__ = (
        "authority",
        "num_classes",
        "record",
        "table",
        "teacher",
        "training",
    )

    def __init__(
        self,
        table: np.ndarray,
        num_classes: int,
        record: ModelRecord | None = None,
        authority: Authority | None = None,
    ) -> None:
        self.table = table
        self.num_classes = num_classes
        self.record = record
        self.authority = authority
        self.training: TrainingState | None = None
        if record is not None and record.training is not None:
            self.training = TrainingState.from_secret_bytes(record.training, record.traces)
        self.teacher: SplitClassifier | None = None

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
        if self.authority is not None and self.record is not None and self.training is not None:
            state = self.training.secret_bytes()
            self.authority.save_training(self.record.model_id, state, self.training.traces)

    def teach(self, inputs: Any) -> Any:
        """The class probabilities of `teacher`, which must be set, without gradient."""
        assert self.teacher is not None
        return ops.stop_gradient(ops.softmax(self.teacher.logits(inputs)))
