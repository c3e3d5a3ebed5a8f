"""`protect` turns any Keras classifier into a `ProtectedModel`."""

import math
import operator
from collections.abc import Sequence
from os import PathLike
from typing import Any, Self

import keras
import msgspec
import numpy as np
from keras import ops

from keras_encryip.client.bundle import KeyBundle
from keras_encryip.client.decoder import Decoder
from keras_encryip.errors import ArgumentError, LockedModelError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata
from keras_encryip.layers import ConfusedLabels
from keras_encryip.losses import ConfusedLabelCrossentropy, Distillation
from keras_encryip.owner.authority import Authority
from keras_encryip.training.adapt import learn
from keras_encryip.training.classifier import SplitClassifier, split_classifier
from keras_encryip.training.data import check_labels, class_indices
from keras_encryip.training.homophones import Homophones, TrainingState
from keras_encryip.training.protection import MIN_TRACES, TRACE_SHARE, Protection

CLUSTERED = "clustered"
RANDOM = "random"
_MAX_DEFAULT_LABELS = 2048
_TRACE_BIAS = -16.0
TRACE_WEIGHT = 0.1
"""Weight of the trace term: enough to learn them all, too little to slow the start of training."""


class _Shared(keras.losses.Loss):
    """A value as it counts in Keras's total: divided by the number of replicas."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred


@keras.saving.register_keras_serializable(package="keras_encryip")
class ProtectedModel(keras.Model):
    """A classifier that outputs confused labels. Make one with `protect`.

    `fit`, `evaluate`, losses, metrics, callbacks and class or sample weights work as
    on any Keras model: they see *decoded* class probabilities `(batch, K)`. Calling
    the model, `predict`, and everything saved or exported give confused labels
    `(batch, N)`.

    The training loss is `(1−κ)·your loss + κ·distillation + confusion_weight · cross-entropy
    of the target confused label + 0.1 · cross-entropy of the trace labels`, κ = 0 without
    a teacher. `val_loss` and `evaluate` report your loss alone.

    Args:
        backbone: inputs → features.
        num_classes: K.
        num_labels: N.
        codebook: the codebook's canonical JSON. Public.
        strategy: `"clustered"` or `"random"`, how homophones are chosen.
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
        strategy: str = CLUSTERED,
        copies: int = 2,
        confusion_weight: float = 0.1,
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
        self.backbone = backbone
        self.num_classes = num_classes
        self.num_labels = num_labels
        self.codebook = codebook
        self.strategy = strategy
        self.copies = copies
        self.confusion_weight = confusion_weight
        self.teacher_weight = teacher_weight
        self.temperature = temperature
        self.use_bias = use_bias
        self.confused_labels = ConfusedLabels(num_labels, use_bias=use_bias, name="confused_labels")
        self._seed_generator = keras.random.SeedGenerator()
        self._protection: Protection | None = None

    # --- the model -------------------------------------------------------------

    def build(self, input_shape: Any) -> None:
        inputs = keras.tree.map_shape_structure(keras.KerasTensor, input_shape)
        self.confused_labels.build(self.backbone(inputs).shape)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        protection = self._protection
        state = protection.training if protection is not None else None
        if not training or protection is None or state is None or state.trace_inputs is None:
            return self.confused_labels(self.backbone(inputs, training=training))
        # Trace inputs join the batch, so that BatchNormalization sees one batch.
        batch = ops.shape(inputs)[0]
        count = ops.maximum(batch // TRACE_SHARE, MIN_TRACES)
        chosen = keras.random.randint(
            (count,), 0, len(state.trace_inputs), seed=self._seed_generator
        )
        _check_same_kind(state.trace_inputs.dtype, inputs.dtype)
        traces = ops.take(ops.convert_to_tensor(state.trace_inputs), chosen, axis=0)
        joined = ops.concatenate([inputs, ops.cast(traces, inputs.dtype)], axis=0)
        logits = self.confused_labels.logits(self.backbone(joined, training=True))
        targets = ops.take(ops.convert_to_tensor(protection.assignment().trace), chosen)
        self.add_loss(
            TRACE_WEIGHT
            * ops.mean(
                keras.losses.sparse_categorical_crossentropy(
                    targets, logits[batch:], from_logits=True
                )
            )
        )
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
                added = ops.reshape(sum(self.losses), (1,))
                own = loss - _Shared(name="shared")(ops.zeros_like(added), added)
            distilled = Distillation(self.temperature)(
                protection.teach(x), decoded, sample_weight=sample_weight
            )
            loss = loss + self.teacher_weight * (distilled - own)
        if self.confusion_weight:
            classes = class_indices(y, self.num_classes, ndim=len(y_pred.shape))
            targets = protection.targets(x, classes, self._seed_generator)
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
        protection = self._unlocked()
        assignment = protection.assignment()
        protection.training = learn(
            x,
            y,
            num_classes=self.num_classes,
            homophones=assignment.homophones,
            copies=self.copies,
            clustered=self._clusters_inputs(assignment),
            trace_labels=assignment.trace.size,
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
        teacher: keras.Model | None = None,
    ) -> Self:
        """Make a loaded model train and evaluate again.

        Args:
            authority: the owner's; restores everything but the teacher.
            bundle: a user's key bundle (path or object). `evaluate` then shows what that
                user gets; `fit` trains on your loss alone, without confusion and traces.
            passphrase: of the bundle.
            teacher: the original trained classifier, to go on distilling from it.

        Returns:
            The model itself.

        Raises:
            LedgerError: the authority did not protect this model.
            KeyRefusedError: the bundle may not read it.
        """
        if (authority is None) == (bundle is None):
            raise ArgumentError("Pass either `authority` or `bundle` to `unlock`.")
        if bundle is not None and passphrase is None:
            raise ArgumentError("Pass the bundle's `passphrase` to `unlock`.")
        codebook = Codebook.from_bytes(self.codebook.encode("ascii"))
        if authority is not None:
            record = authority.model_of(codebook.codebook_id)
            protection = Protection(record.assignment.classes, self.num_classes, record, authority)
            if protection.training is None and not self._needs_data(record.assignment):
                protection.training = TrainingState(
                    Homophones.uniform(self.num_classes, record.assignment.homophones), None
                )
        elif bundle is not None and passphrase is not None:
            decoder = Decoder.open(codebook, bundle, passphrase)
            protection = Protection(decoder.secret_table(), self.num_classes)
        if teacher is not None:
            protection.teacher = _teacher(teacher, self.num_classes)
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

    def _unlocked(self) -> Protection:
        if self._protection is None:
            raise LockedModelError(
                f"Model {self.name!r} is locked: it predicts confused labels, and cannot be "
                "trained or evaluated. Unlock it with `model.unlock(authority=...)` or "
                "`model.unlock(bundle=..., passphrase=...)`."
            )
        return self._protection

    def _ready(self) -> Protection:
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


def protect(
    classifier: keras.Model,
    authority: Authority,
    *,
    name: str,
    class_names: Sequence[str] | None = None,
    homophones: int | None = None,
    trace_labels: int = 64,
    strategy: str = CLUSTERED,
    copies: int = 2,
    teacher: keras.Model | bool | None = None,
    confusion_weight: float | None = None,
    teacher_weight: float = 0.7,
    temperature: float = 2.0,
    notes: str = "",
) -> ProtectedModel:
    """Protect a classifier, trained or not.

    The classifier is cloned; its last `Dense(K)` becomes a softmax over N = K·h + T
    confused labels. A trained classifier's head is copied to its homophones, so that
    decoded outputs equal the original's at first, and it becomes the teacher: fit
    some more epochs before you export.

    Args:
        classifier: Sequential, functional, or a built subclass, ending in `Dense(K)`
            with a softmax or without activation. Left untouched.
        authority: keeps the label assignment.
        name: the model's name, which key bundles can be limited to.
        class_names: K names, sealed for key holders; by default `"0"`, `"1"`, …
        homophones: h ≥ 1; by default as many as keep N ≤ 2,048, within 2 … 64.
        trace_labels: T ≥ 0, rounded up to whole blocks.
        strategy: `"clustered"` (homophones follow the inputs), or `"random"` for inputs
            without a useful geometry, such as token ids.
        copies: homophones per cluster, drawn at random.
        teacher: by default the classifier itself if it looks trained; `True`, `False`,
            or another trained classifier.
        confusion_weight: by default 0.1, or 1.0 with a teacher. More hides the classes
            better from who labels samples, and costs accuracy.
        teacher_weight: κ, the share of distillation in the loss, 0 … 1.
        temperature: τ of the distillation, > 0.
        notes: sealed for key holders.

    Returns:
        An unlocked, uncompiled `ProtectedModel`.

    Raises:
        ArgumentError: names the argument and the fix.

    Example:
    >>> model = protect(classifier, authority, name="digits", trace_labels=16)
    >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    >>> history = model.fit(x, y, verbose=0)
    """
    if not isinstance(authority, Authority):
        raise ArgumentError(
            f"`authority` must be an Authority. Received: {type(authority).__name__}"
        )
    if not isinstance(name, str) or not name or "/" in name:
        raise ArgumentError(
            f"`name` must be a non-empty string without '/'. Received: name={name!r}"
        )
    trace_labels = _whole("trace_labels", trace_labels, 0)
    copies = _whole("copies", copies, 1)
    split = split_classifier(classifier)
    names = [str(n) for n in class_names] if class_names is not None else None
    if names is None:
        names = [str(k) for k in range(split.num_classes)]
    if len(names) != split.num_classes:
        raise ArgumentError(
            f"`class_names` must have one name per class: the classifier has {split.num_classes} "
            f"outputs. Received: {len(names)} names"
        )
    if homophones is None:
        homophones = default_homophones(split.num_classes, trace_labels, copies)
    homophones = _whole("homophones", homophones, 1)
    metadata = _metadata(name, names, notes)
    trained = _is_trained(classifier, split)
    distils = teacher if teacher is not None else trained
    source = classifier if distils is True else distils
    if confusion_weight is None:
        confusion_weight = 1.0 if source else 0.1
    guide = _teacher(source, split.num_classes) if source else None
    assignment = LabelAssignment.draw(split.num_classes, homophones, trace_labels)
    draft: dict[str, Any] = {
        "strategy": strategy,
        "copies": min(copies, homophones),
        "confusion_weight": confusion_weight,
        "teacher_weight": teacher_weight,
        "temperature": temperature,
        "use_bias": split.use_bias or bool(assignment.trace.size),
        "name": name,
    }
    # Arguments are checked before the ledger gets a new model.
    model = ProtectedModel(
        split.backbone, split.num_classes, assignment.num_labels, codebook="", **draft
    )
    model.codebook = authority.add_model(metadata, assignment).to_bytes().decode("ascii")
    if split.input_shape is not None:
        model.build(split.input_shape)
        if split.kernel is not None and (homophones == 1 or trained or distils is True):
            _copy_head(model.confused_labels, split, assignment)
    model.unlock(authority=authority)
    model._unlocked().teacher = guide
    return model


def default_homophones(num_classes: int, trace_labels: int, copies: int) -> int:
    """h: as many whole clusters as keep N ≤ 2,048, within 2 … 64.

    >>> [default_homophones(k, 64, 2) for k in (10, 100, 5000)]
    [64, 18, 2]
    """
    fit = max(2, min(64, (_MAX_DEFAULT_LABELS - trace_labels) // num_classes))
    return max(fit - fit % copies, min(fit, copies))


def rotate_codebook(model: ProtectedModel) -> None:
    """Draw a new codebook under the revocations of now; the next export ships it.

    `export_saved_model` does this by itself whenever users were revoked since the
    last codebook. The outputs keep their meaning: who decoded before still can.

    Args:
        model: unlocked with its authority.
    """
    protection = model._unlocked()
    if protection.authority is None:
        raise LockedModelError("Rotating a codebook needs `model.unlock(authority=...)`.")
    own = Codebook.from_bytes(model.codebook.encode("ascii"))
    new = protection.authority.current_codebook(own.codebook_id, fresh=True)
    model.codebook = new.to_bytes().decode("ascii")


def _whole(name: str, value: Any, least: int) -> int:
    try:
        whole = int(operator.index(value))
    except TypeError:
        whole = least - 1
    if whole < least:
        kind = "a positive integer" if least else "an integer, not negative"
        raise ArgumentError(f"`{name}` must be {kind}. Received: {name}={value!r}")
    return whole


def _metadata(name: str, class_names: list[str], notes: str) -> ModelMetadata:
    metadata = ModelMetadata(model=name, class_names=class_names, notes=notes)
    try:
        msgspec.convert(msgspec.to_builtins(metadata), ModelMetadata)
    except msgspec.ValidationError as error:
        fields = "`name`, `class_names` or `notes`"
        raise ArgumentError(f"{fields} cannot be kept: {error}") from None
    return metadata


def _is_trained(classifier: keras.Model, split: SplitClassifier) -> bool:
    optimizer = getattr(classifier, "optimizer", None)
    stepped = optimizer is not None and int(ops.convert_to_numpy(optimizer.iterations)) > 0
    return stepped or split.looks_trained


def _teacher(classifier: keras.Model, num_classes: int) -> SplitClassifier:
    if not isinstance(classifier, keras.Model):
        raise ArgumentError(
            "`teacher` must be True, False or a trained keras.Model. "
            f"Received: {type(classifier).__name__}"
        )
    teacher = split_classifier(classifier)
    if teacher.num_classes != num_classes or teacher.kernel is None:
        raise ArgumentError(
            f"`teacher` must be a trained classifier with {num_classes} outputs. "
            f"Received: {teacher.num_classes} outputs, "
            f"{'not built' if teacher.kernel is None else 'built'}"
        )
    return teacher


def _copy_head(head: ConfusedLabels, split: SplitClassifier, assignment: LabelAssignment) -> None:
    """Each class's column goes to its h homophones with bias − log h; trace labels start silent."""
    assert split.kernel is not None
    kernel = np.zeros((split.kernel.shape[0], assignment.num_labels), np.float32)
    bias = np.full(assignment.num_labels, _TRACE_BIAS, np.float32)
    original = split.bias if split.bias is not None else np.zeros(split.num_classes, np.float32)
    for i in range(assignment.homophones):
        kernel[:, assignment.labels[:, i]] = split.kernel
        bias[assignment.labels[:, i]] = original - np.log(assignment.homophones)
    head.kernel.assign(kernel)
    if head.use_bias:
        head.bias.assign(bias)


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
