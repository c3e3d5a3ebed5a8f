"""What a protected model knows while it is unlocked: never seen by Keras, never saved."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from keras_encryip.crypto.secret import Secret
from keras_encryip.errors import ArgumentError, FormatError, LockedModelError
from keras_encryip.labels.assignment import TRACE, LabelAssignment
from keras_encryip.labels.model_record import ModelOwner, ModelRecord
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.models.backbone import Graft
from keras_encryip.models.homophones import (
    STRATEGIES,
    Homophones,
)
from keras_encryip.models.losses import TINY
from keras_encryip.models.teacher import Teacher


@dataclass(frozen=True, repr=False)
class TrainingState:
    """What `adapt` learned about the data: kept sealed in the ledger, never in a model file.

    Attributes:
        homophones: what a strategy learned.
        traces: the trace inputs, or `None` without trace labels.
        samples: some of the owner's inputs, `[n, …]`, or `None` without trace labels.
    """

    homophones: Homophones
    traces: TraceSet | None
    samples: np.ndarray | None = None

    def secret_bytes(self) -> bytes:
        """The homophones for sealing, an `.npz`; the trace set is kept apart. Secret."""
        strategy = {kind: name for name, kind in STRATEGIES.items()}[type(self.homophones)]
        arrays: dict[str, Any] = {"strategy": np.array(strategy), **self.homophones.to_arrays()}
        if self.samples is not None:
            arrays["samples"] = self.samples
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # numbers and a name, so nothing is pickled
        return buffer.getvalue()

    @classmethod
    def from_secret_bytes(cls, data: bytes, traces: TraceSet | None) -> "TrainingState":
        """Read what `secret_bytes` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = dict(file)
        samples = arrays.pop("samples", None)
        strategy = str(arrays.pop("strategy"))
        if strategy not in STRATEGIES:
            raise FormatError(
                f"The training state was learned with strategy {strategy!r}, which this program "
                f"does not have; it has {', '.join(map(repr, STRATEGIES))}."
            )
        return cls(STRATEGIES[strategy].from_arrays(arrays), traces, samples)


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
        teacher: what is distilled from, or `None`.
        original: the classifier until the first look at its owner's data, or `None`.
    """

    __slots__ = ("num_classes", "original", "owner", "record", "table", "teacher", "training")

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
        self.teacher: Teacher | None = None
        self.original: Graft | None = None

    @property
    def traces(self) -> TraceSet | None:
        """The trace inputs, as far as there are any and they are known."""
        return None if self.training is None else self.training.traces

    def awaits_adapt(self) -> bool:
        """Whether the owner is to learn the training state before the model can train."""
        return self.record is not None and self.training is None

    def adapted(self) -> TrainingState:
        """The training state, which `adapt` learns."""
        if self.training is None:
            raise LockedModelError("The homophones are not learned yet: call `adapt(x, y)`.")
        return self.training

    def class_scores(self, scores: Any) -> Any:
        """Scores of the classes `[..., K]` from those of confused labels `[..., N]`, in graph.

        A softmax of the one gives the sums over homophones of a softmax of the other:
        `log Σ exp(scores)` over each class. A trace label means another class to every user, so
        its probability is spread evenly: the mean over users.
        """
        return _class_scores(self.table, self.num_classes)(ops.convert_to_tensor(scores))

    def decode(self, confused: Any) -> Any:
        """Class probabilities `[..., K]` from confused labels `[..., N]`, in graph."""
        confused = ops.convert_to_tensor(confused)
        return ops.softmax(self.class_scores(ops.log(ops.maximum(confused, TINY))))

    def separates(self) -> bool:
        """Whether homophones of a class are to come apart: there are several, and a state."""
        return self.training is not None and self.assignment().homophones > 1

    def targets(self, inputs: Any, classes: Any, seed: Any) -> Any:
        """The confused label each sample is taught to come out as: int32, shape of `classes`."""
        homophone = self.adapted().homophones.draw(inputs, classes, seed)
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


def _class_scores(table: np.ndarray, num_classes: int) -> Callable[[Any], Any]:
    """`UnlockedSecrets.class_scores` for a table."""
    real = np.flatnonzero(table != TRACE)
    trace = np.flatnonzero(table == TRACE)
    order = real[np.argsort(table[real], kind="stable")]
    counts = np.bincount(table[real], minlength=num_classes)
    most = int(counts.max())
    even = bool((counts == most).all())
    columns = np.full((num_classes, most), len(table))  # one of nothing, where there are fewer
    columns[np.arange(most) < counts[:, None]] = order
    taken = np.concatenate([columns.ravel(), trace])
    back = np.argsort(taken, kind="stable")[: len(table)]  # where each label went

    @tf.custom_gradient
    def permuted(scores: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            return tf.gather(upstream, back, axis=-1)

        if not even:
            scores = tf.concat([scores, tf.fill(tf.shape(scores[..., :1]), scores.dtype.min)], -1)
        return tf.gather(scores, taken, axis=-1), gradient

    def class_scores(scores: Any) -> Any:
        columns_taken = permuted(scores)
        classes = columns_taken[..., : num_classes * most]
        if most > 1:
            shape = tf.concat([tf.shape(scores)[:-1], [num_classes, most]], 0)
            classes = tf.reduce_logsumexp(tf.reshape(classes, shape), -1)
        if trace.size:
            shared = tf.reduce_logsumexp(
                columns_taken[..., num_classes * most :], -1, keepdims=True
            )
            shared = shared - np.log(num_classes)
            high = tf.stop_gradient(tf.maximum(classes, shared))
            classes = high + tf.math.log(tf.exp(classes - high) + tf.exp(shared - high))
        return tf.ensure_shape(classes, [*scores.shape[:-1], num_classes])

    return class_scores


def check_owner(authority: Any) -> ModelOwner:
    """Refuse what cannot keep the records of protected models."""
    if isinstance(authority, ModelOwner):
        return authority
    raise ArgumentError(
        "`authority` must be an Authority, from `Authority.open(path, passphrase)`. "
        f"Received: {type(authority).__name__}"
    )
