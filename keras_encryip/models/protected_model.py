"""The Keras model that answers in confused labels."""

import math
from os import PathLike
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_encryip.client.checks import check_count
from keras_encryip.client.decoder import Decoder
from keras_encryip.errors import ArgumentError, LockedModelError
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.labels.codebook import Codebook
from keras_encryip.labels.model_record import ModelOwner
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.models.adapt import fit_training_state, needs_data
from keras_encryip.models.backbone import as_teacher
from keras_encryip.models.data import check_labels, check_same_kind, class_indices
from keras_encryip.models.head import ConfusedLabels
from keras_encryip.models.homophones import STRATEGIES
from keras_encryip.models.losses import ConfusedLabelCrossentropy, Distillation, per_replica
from keras_encryip.models.secrets import UnlockedSecrets, check_owner

TRACE_SHARE = 32
MIN_TRACES = 4
"""A training batch of b inputs is joined by b / 32 trace inputs, at least 4."""

TRACE_TERMS = ((0.1, 1.0), (0.1, 8.0))
"""(weight, temperature) of the trace terms. The first learns the labels soon; the softened second
goes on widening their margins for long, and these survive fine-tuning."""


@keras.saving.register_keras_serializable(package="keras_encryip")
class ProtectedModel(keras.Model):
    """A classifier that outputs confused labels. Make one with `protect`.

    `fit`, `evaluate`, losses, metrics, callbacks and class or sample weights work as
    on any Keras model: they see *decoded* class probabilities `(batch, K)`. Calling
    the model, `predict`, and everything saved or exported give confused labels
    `(batch, N)`.

    The training loss is `(1−κ)·your loss + κ·distillation + confusion_weight · cross-entropy
    of the target confused label + 0.1 · cross-entropy of the trace labels + 0.1 · the same at
    temperature 8`, κ = 0 without a teacher. `val_loss` and `evaluate` report your loss alone.

    Args:
        backbone: inputs → features.
        num_classes: K.
        num_labels: N.
        codebook: the codebook's canonical JSON. Public.
        strategy: how homophones are chosen, a key of `homophones.STRATEGIES`.
        copies: homophones per cluster.
        confusion_weight: weight of the confused-label term, ≥ 0.
        teacher_weight: κ, 0 … 1; used only with a teacher.
        temperature: τ > 0 of the distillation.
        use_bias: whether the head has a bias.
        **kwargs: as `keras.Model`.

    Nothing secret is an argument, a weight, or an attribute that Keras looks at: a
    loaded model is *locked*, predicts confused labels, and refuses to train or
    evaluate until `unlock`.
    """

    def __init__(
        self,
        backbone: keras.layers.Layer,
        num_classes: int,
        num_labels: int,
        codebook: str,
        *,
        strategy: str = "clustered",
        copies: int = 2,
        confusion_weight: float = 0.1,
        teacher_weight: float = 0.7,
        temperature: float = 2.0,
        use_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_settings(strategy, confusion_weight, teacher_weight, temperature)
        self.backbone = backbone
        self.num_classes = num_classes
        self.num_labels = num_labels
        self.codebook = codebook
        self.strategy = strategy
        self.copies = check_count("copies", copies, 1)
        self.confusion_weight = confusion_weight
        self.teacher_weight = teacher_weight
        self.temperature = temperature
        self.use_bias = use_bias
        self.confused_labels = ConfusedLabels(num_labels, use_bias=use_bias, name="confused_labels")
        self._seed_generator = keras.random.SeedGenerator()
        self._secrets: UnlockedSecrets | None = None

    # --- the model -------------------------------------------------------------

    def build(self, input_shape: Any) -> None:
        inputs = keras.tree.map_shape_structure(keras.KerasTensor, input_shape)
        self.confused_labels.build(self.backbone(inputs).shape)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        traces = None if self._secrets is None else self._secrets.traces
        if training and traces is not None:
            return self._call_with_traces(inputs, traces)
        return self.confused_labels(self.backbone(inputs, training=training))

    def _call_with_traces(self, inputs: Any, traces: TraceSet) -> Any:
        """Trace inputs join the batch, so that BatchNormalization sees one batch."""
        check_same_kind(traces.inputs.dtype, inputs.dtype)
        batch = ops.shape(inputs)[0]
        count = ops.maximum(batch // TRACE_SHARE, MIN_TRACES)
        chosen = keras.random.randint((count,), 0, len(traces.labels), seed=self._seed_generator)
        added = ops.take(ops.convert_to_tensor(traces.inputs), chosen, axis=0)
        joined = ops.concatenate([inputs, ops.cast(added, inputs.dtype)], axis=0)
        logits = self.confused_labels.logits(self.backbone(joined, training=True))
        targets = ops.take(ops.convert_to_tensor(traces.labels), chosen)
        for weight, temperature in TRACE_TERMS:
            term = keras.losses.sparse_categorical_crossentropy(
                targets, logits[batch:] / temperature, from_logits=True
            )
            self.add_loss(weight * ops.mean(term))
        return ops.softmax(logits[:batch])

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        secrets = self._unlocked()
        decoded = secrets.decode(y_pred)
        loss = super().compute_loss(
            x=x, y=y, y_pred=decoded, sample_weight=sample_weight, training=training
        )
        if not training or secrets.training is None:
            return loss
        if secrets.teacher is not None:
            unregularised = loss - per_replica(sum(self.losses)) if self.losses else loss
            distillation = Distillation(self.temperature)(
                secrets.teach(x), decoded, sample_weight=sample_weight
            )
            loss = loss + self.teacher_weight * (distillation - unregularised)
        if self.confusion_weight:
            classes = class_indices(y, self.num_classes, ndim=len(y_pred.shape))
            targets = secrets.targets(x, classes, self._seed_generator)
            confusion = ConfusedLabelCrossentropy()(targets, y_pred, sample_weight=sample_weight)
            loss = loss + self.confusion_weight * confusion
        return loss

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        decoded = self._unlocked().decode(y_pred)
        metrics: dict[str, Any] = super().compute_metrics(x, y, decoded, sample_weight)
        return metrics

    # --- training --------------------------------------------------------------

    def adapt(self, x: Any, y: Any = None) -> None:
        """Learn the homophones' clusters and make the trace inputs, once.

        `fit` does this by itself from its own data. Call it first for data that
        `fit` can only read once (a generator), or with a better sample. The result
        is kept sealed in the authority's ledger.

        Args:
            x: inputs `(n, …)`, a `tf.data.Dataset` or a `keras.utils.PyDataset` with labels;
                at most 20,000 samples are looked at.
            y: labels `(n,)` or one-hot `(n, K)`; `None` for a dataset.

        Raises:
            LockedModelError: the model is not unlocked with its authority.
            ArgumentError: labels out of range, or inputs that cannot be clustered.
        """
        secrets = self._unlocked()
        secrets.training = fit_training_state(
            x, y, strategy=self.strategy, assignment=secrets.assignment(), copies=self.copies
        )
        secrets.save_training()
        self._forget_traces()

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`, on decoded probabilities."""
        secrets = self._ready()
        if isinstance(y, np.ndarray):
            check_labels(np.asarray(class_indices(y, self.num_classes)), self.num_classes)
        if secrets.awaits_adapt():
            split = kwargs.get("validation_split") or 0.0
            if split and y is not None:  # as Keras splits: the last samples are held out
                rows = int(len(y) * (1 - split))
                self.adapt(keras.tree.map_structure(lambda a: a[:rows], x), y[:rows])
            else:
                self.adapt(x, y)
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`, on decoded probabilities."""
        self._ready()
        return super().evaluate(x, y, *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`, on decoded probabilities; call `adapt` first."""
        if self._ready().awaits_adapt():
            raise ArgumentError("Call `adapt(x, y)` on a sample before `train_on_batch`.")
        return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.test_on_batch`, on decoded probabilities."""
        self._ready()
        return super().test_on_batch(x, y, *args, **kwargs)

    # --- locking ---------------------------------------------------------------

    def unlock(
        self,
        *,
        authority: ModelOwner | None = None,
        bundle: str | PathLike[str] | KeyBundle | None = None,
        passphrase: str | None = None,
        private_key: X25519PrivateKey | None = None,
        teacher: keras.Model | None = None,
    ) -> Self:
        """Make a loaded model train and evaluate again.

        Args:
            authority: the owner's; restores everything but the teacher.
            bundle: a user's key bundle (path or object). `evaluate` then shows what that
                user gets; `fit` trains on your loss alone, without confusion and traces.
            passphrase, private_key: what opens the bundle, as for `Decoder.open`.
            teacher: the original trained classifier, to go on distilling from it.

        Returns:
            The model itself.

        Raises:
            LedgerError: the authority did not protect this model.
            KeyRefusedError: the bundle may not read it.
        """
        if (authority is None) == (bundle is None):
            raise ArgumentError("Pass either `authority` or `bundle` to `unlock`.")
        codebook = Codebook.from_bytes(self.codebook.encode("ascii"))
        if bundle is not None:
            decoder = Decoder.open(codebook, bundle, passphrase, private_key)
            secrets = UnlockedSecrets(decoder.secret_table(), self.num_classes)
        else:
            secrets = self._secrets_of(check_owner(authority), codebook.codebook_id)
        if teacher is not None:
            secrets.teacher = as_teacher(teacher, self.num_classes)
        self._secrets = secrets
        self._forget_traces()
        return self

    def _secrets_of(self, owner: ModelOwner, codebook_id: bytes) -> UnlockedSecrets:
        record = owner.model_store.model_of(codebook_id)
        assignment = record.assignment
        secrets = UnlockedSecrets(assignment.classes, self.num_classes, record, owner)
        if secrets.training is None and not needs_data(self.strategy, assignment, self.copies):
            secrets.training = fit_training_state(
                None, None, strategy=self.strategy, assignment=assignment, copies=self.copies
            )
        return secrets

    def lock(self) -> Self:
        """Forget the assignment, trace inputs and teacher. Returns the model itself."""
        self._secrets = None
        self._forget_traces()
        return self

    def is_locked(self) -> bool:
        """Whether the model needs `unlock` before it can train or evaluate."""
        return self._secrets is None

    def decode(self, confused: Any) -> np.ndarray:
        """Class probabilities `[..., K]` of confused labels `[..., N]`, as numpy."""
        return np.asarray(
            ops.convert_to_numpy(self._unlocked().decode(ops.convert_to_tensor(confused)))
        )

    def _unlocked(self) -> UnlockedSecrets:
        if self._secrets is None:
            raise LockedModelError(
                f"Model {self.name!r} is locked: it predicts confused labels, and cannot be "
                "trained or evaluated. Unlock it with `model.unlock(authority=...)` or "
                "`model.unlock(bundle=..., passphrase=...)`."
            )
        return self._secrets

    def _ready(self) -> UnlockedSecrets:
        """Unlocked, and compiled with losses that take probabilities."""
        secrets = self._unlocked()
        for loss in keras.tree.flatten(getattr(self, "loss", None)):
            if getattr(loss, "from_logits", False) or getattr(loss, "_fn_kwargs", {}).get(
                "from_logits"
            ):
                raise ArgumentError(
                    "A protected model decodes to probabilities: compile it with "
                    f"`from_logits=False`. Received: loss={loss.name!r} with from_logits=True"
                )
        return secrets

    def _forget_traces(self) -> None:
        """Traced train and test functions hold the old secrets as constants."""
        self.train_function = None
        self.test_function = None

    # --- saving ----------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": self.num_classes,
            "num_labels": self.num_labels,
            "codebook": self.codebook,
            "strategy": self.strategy,
            "copies": self.copies,
            "confusion_weight": self.confusion_weight,
            "teacher_weight": self.teacher_weight,
            "temperature": self.temperature,
            "use_bias": self.use_bias,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        config = dict(config)
        config.pop("neutrality_weight", None)  # files of 0.3 have it, usually 0.0
        backbone = keras.saving.deserialize_keras_object(
            config.pop("backbone"), custom_objects=custom_objects
        )
        return cls(backbone, **config)


def _check_settings(
    strategy: str, confusion_weight: float, teacher_weight: float, temperature: float
) -> None:
    if strategy not in STRATEGIES:
        raise ArgumentError(
            f"`strategy` must be {' or '.join(map(repr, STRATEGIES))}. "
            f"Received: strategy={strategy!r}"
        )
    if not 0 <= confusion_weight < math.inf:
        raise ArgumentError(
            "`confusion_weight` must be a number, not negative. "
            f"Received: confusion_weight={confusion_weight}"
        )
    if not 0 <= teacher_weight <= 1:
        raise ArgumentError(
            f"`teacher_weight` must be in 0 … 1. Received: teacher_weight={teacher_weight}"
        )
    if not 0 < temperature < math.inf:
        raise ArgumentError(
            f"`temperature` must be a positive number. Received: temperature={temperature}"
        )
