"""The Keras model that answers in confused labels."""

import math
from os import PathLike
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.client.decoder import Decoder
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.errors import ArgumentError, LockedModelError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook
from keras_encryip.models.head import ConfusedLabels
from keras_encryip.models.losses import ConfusedLabelCrossentropy, Distillation
from keras_encryip.authority.authority import Authority
from keras_encryip.models.adapt import fit_training_state
from keras_encryip.models.backbone import as_teacher
from keras_encryip.models.data import check_labels, class_indices
from keras_encryip.models.homophones import Homophones
from keras_encryip.models.secrets import TrainingState
from keras_encryip.models.neutrality import exposure, labels_to_compare
from keras_encryip.models.secrets import MIN_TRACES, TRACE_SHARE, UnlockedSecrets

CLUSTERED = "clustered"
RANDOM = "random"
TRACE_TERMS = ((0.1, 1.0), (0.1, 8.0))
"""(weight, temperature) of the trace terms. The first learns the labels soon; the softened second
goes on widening their margins for long, and these survive fine-tuning."""


class _Shared(keras.losses.Loss):
    """A value as it counts in Keras's total: divided by the number of replicas."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred


def _shared(value: Any) -> Any:
    value = ops.reshape(value, (1,))
    return _Shared(name="shared")(ops.zeros_like(value), value)


@keras.saving.register_keras_serializable(package="keras_encryip")
class ProtectedModel(keras.Model):
    """A classifier that outputs confused labels. Make one with `protect`.

    `fit`, `evaluate`, losses, metrics, callbacks and class or sample weights work as
    on any Keras model: they see *decoded* class probabilities `(batch, K)`. Calling
    the model, `predict`, and everything saved or exported give confused labels
    `(batch, N)`.

    The training loss is `(1−κ)·your loss + κ·distillation + confusion_weight · cross-entropy
    of the target confused label + neutrality_weight · exposure of the classes + 0.1 ·
    cross-entropy of the trace labels + 0.1 · the same at temperature 8`, κ = 0 without a
    teacher. `val_loss` and `evaluate` report your loss alone.

    Args:
        backbone: inputs → features.
        num_classes: K.
        num_labels: N.
        codebook: the codebook's canonical JSON. Public.
        strategy: `"clustered"` or `"random"`, how homophones are chosen.
        copies: homophones per cluster.
        confusion_weight: weight of the confused-label term, ≥ 0.
        neutrality_weight: weight of the term against neighbouring homophones, ≥ 0; without
            effect where a class has one cluster.
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
        strategy: str = CLUSTERED,
        copies: int = 2,
        confusion_weight: float = 0.1,
        neutrality_weight: float = 0.0,
        teacher_weight: float = 0.7,
        temperature: float = 2.0,
        use_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if strategy not in (CLUSTERED, RANDOM):
            raise ArgumentError(
                f"`strategy` must be 'clustered' or 'random'. Received: strategy={strategy!r}"
            )
        if not isinstance(copies, int) or copies < 1:
            raise ArgumentError(f"`copies` must be a positive integer. Received: copies={copies}")
        weights = {"confusion_weight": confusion_weight, "neutrality_weight": neutrality_weight}
        for argument, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ArgumentError(
                    f"`{argument}` must be a number, not negative. Received: {argument}={weight}"
                )
        if not 0 <= teacher_weight <= 1:
            raise ArgumentError(
                f"`teacher_weight` must be in 0 … 1. Received: teacher_weight={teacher_weight}"
            )
        if not 0 < temperature < math.inf:
            raise ArgumentError(
                f"`temperature` must be a positive number. Received: temperature={temperature}"
            )
        self.backbone = backbone
        self.num_classes = num_classes
        self.num_labels = num_labels
        self.codebook = codebook
        self.strategy = strategy
        self.copies = copies
        self.confusion_weight = confusion_weight
        self.neutrality_weight = neutrality_weight
        self.teacher_weight = teacher_weight
        self.temperature = temperature
        self.use_bias = use_bias
        self.confused_labels = ConfusedLabels(num_labels, use_bias=use_bias, name="confused_labels")
        self._seed_generator = keras.random.SeedGenerator()
        self._protection: UnlockedSecrets | None = None

    # --- the model -------------------------------------------------------------

    def build(self, input_shape: Any) -> None:
        inputs = keras.tree.map_shape_structure(keras.KerasTensor, input_shape)
        self.confused_labels.build(self.backbone(inputs).shape)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        protection = self._protection
        state = protection.training if protection is not None else None
        if not training or protection is None or state is None or state.traces is None:
            return self.confused_labels(self.backbone(inputs, training=training))
        # Trace inputs join the batch, so that BatchNormalization sees one batch.
        batch = ops.shape(inputs)[0]
        count = ops.maximum(batch // TRACE_SHARE, MIN_TRACES)
        inputs_known, labels = state.traces.inputs, state.traces.labels
        chosen = keras.random.randint((count,), 0, len(labels), seed=self._seed_generator)
        _check_same_kind(inputs_known.dtype, inputs.dtype)
        traces = ops.take(ops.convert_to_tensor(inputs_known), chosen, axis=0)
        joined = ops.concatenate([inputs, ops.cast(traces, inputs.dtype)], axis=0)
        logits = self.confused_labels.logits(self.backbone(joined, training=True))
        targets = ops.take(ops.convert_to_tensor(labels), chosen)
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
        protection = self._unlocked()
        decoded = protection.decode(y_pred)
        loss = super().compute_loss(
            x=x, y=y, y_pred=decoded, sample_weight=sample_weight, training=training
        )
        if not training or protection.training is None:
            return loss
        if protection.teacher is not None:
            own = loss
            if self.losses:
                own = loss - _shared(sum(self.losses))
            distilled = Distillation(self.temperature)(
                protection.teach(x), decoded, sample_weight=sample_weight
            )
            loss = loss + self.teacher_weight * (distilled - own)
        if self.confusion_weight:
            classes = class_indices(y, self.num_classes, ndim=len(y_pred.shape))
            targets = protection.targets(x, classes, self._seed_generator)
            confusion = ConfusedLabelCrossentropy()(targets, y_pred, sample_weight=sample_weight)
            loss = loss + self.confusion_weight * confusion
        if self.neutrality_weight and protection.training.homophones.starts.shape[1] > 1:
            head = self.confused_labels
            drawn = labels_to_compare(
                protection.training.homophones, protection.assignment().labels, self._seed_generator
            )
            shown = exposure(head.kernel, head.bias, y_pred, drawn)
            loss = loss + self.neutrality_weight * _shared(shown)
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
        protection = self._unlocked()
        assignment = protection.assignment()
        protection.training = fit_training_state(
            x,
            y,
            copies=self.copies,
            clustered=self._clusters_inputs(assignment),
            assignment=assignment,
        )
        protection.save_training()
        self._forget_traces()

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`, on decoded probabilities."""
        protection = self._ready()
        if isinstance(y, np.ndarray):
            check_labels(np.asarray(class_indices(y, self.num_classes)), self.num_classes)
        if protection.record is not None and protection.training is None:
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
        protection = self._ready()
        if protection.record is not None and protection.training is None:
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
        authority: Authority | None = None,
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
        if authority is not None:
            record = authority.model_of(codebook.codebook_id)
            protection = UnlockedSecrets(record.assignment.classes, self.num_classes, record, authority)
            if protection.training is None and not self._needs_data(record.assignment):
                protection.training = TrainingState(
                    Homophones.uniform(self.num_classes, record.assignment.homophones), None
                )
        elif bundle is not None:
            decoder = Decoder.open(codebook, bundle, passphrase, private_key)
            protection = UnlockedSecrets(decoder.secret_table(), self.num_classes)
        if teacher is not None:
            protection.teacher = as_teacher(teacher, self.num_classes)
        self._protection = protection
        self._forget_traces()
        return self

    def lock(self) -> Self:
        """Forget the assignment, trace inputs and teacher. Returns the model itself."""
        self._protection = None
        self._forget_traces()
        return self

    def is_locked(self) -> bool:
        """Whether the model needs `unlock` before it can train or evaluate."""
        return self._protection is None

    def decode(self, confused: Any) -> np.ndarray:
        """Class probabilities `[..., K]` of confused labels `[..., N]`, as numpy."""
        return np.asarray(
            ops.convert_to_numpy(self._unlocked().decode(ops.convert_to_tensor(confused)))
        )

    def _unlocked(self) -> UnlockedSecrets:
        if self._protection is None:
            raise LockedModelError(
                f"Model {self.name!r} is locked: it predicts confused labels, and cannot be "
                "trained or evaluated. Unlock it with `model.unlock(authority=...)` or "
                "`model.unlock(bundle=..., passphrase=...)`."
            )
        return self._protection

    def _ready(self) -> UnlockedSecrets:
        """Unlocked, and compiled with losses that take probabilities."""
        protection = self._unlocked()
        for loss in keras.tree.flatten(getattr(self, "loss", None)):
            if getattr(loss, "from_logits", False) or getattr(loss, "_fn_kwargs", {}).get(
                "from_logits"
            ):
                raise ArgumentError(
                    "A protected model decodes to probabilities: compile it with "
                    f"`from_logits=False`. Received: loss={loss.name!r} with from_logits=True"
                )
        return protection

    def _forget_traces(self) -> None:
        """Traced train and test functions hold the old secrets as constants."""
        self.train_function = None
        self.test_function = None

    def _clusters_inputs(self, assignment: LabelAssignment) -> bool:
        return self.strategy == CLUSTERED and assignment.homophones > self.copies

    def _needs_data(self, assignment: LabelAssignment) -> bool:
        return bool(assignment.trace.size) or self._clusters_inputs(assignment)

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
            "neutrality_weight": self.neutrality_weight,
            "teacher_weight": self.teacher_weight,
            "temperature": self.temperature,
            "use_bias": self.use_bias,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        config = dict(config)
        backbone = keras.saving.deserialize_keras_object(
            config.pop("backbone"), custom_objects=custom_objects
        )
        return cls(backbone, **config)


def _check_same_kind(learned: Any, given: Any) -> None:
    kinds = [
        "int" if "int" in str(keras.backend.standardize_dtype(d)) else "float"
        for d in (learned, given)
    ]
    if kinds[0] != kinds[1]:
        raise ArgumentError(
            f"The model was adapted to {learned} inputs and is trained on {given} inputs. "
            "Call `adapt(x, y)` again with data as `fit` gets it."
        )
