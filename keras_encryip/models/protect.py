"""`protect` turns any Keras classifier into a `ProtectedModel`."""

import re
from collections.abc import Sequence

import keras
import msgspec

from keras_encryip.client.checks import check_count
from keras_encryip.errors import ArgumentError, instead_of
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import ModelMetadata
from keras_encryip.labels.model_record import ModelOwner
from keras_encryip.models.backbone import as_teacher, is_trained, split_classifier
from keras_encryip.models.head import copy_head
from keras_encryip.models.protected_model import ProtectedModel
from keras_encryip.models.secrets import check_owner

_MAX_DEFAULT_LABELS = 2048
_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.>-]*")  # of a root scope


def protect(
    classifier: keras.Model,
    authority: ModelOwner,
    *,
    name: str,
    class_names: Sequence[str] | None = None,
    homophones: int | None = None,
    trace_labels: int = 64,
    strategy: str = "clustered",
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
        strategy: a key of `homophones.STRATEGIES`: `"clustered"` (homophones follow the inputs),
            or `"random"` for inputs without a useful geometry, such as token ids.
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
    # Arguments are checked before the ledger gets a new model.
    check_owner(authority)
    trace_labels = check_count("trace_labels", trace_labels, 0)
    copies = check_count("copies", copies, 1)
    split = split_classifier(classifier)
    metadata = _metadata(name, class_names, split.num_classes, notes)
    if homophones is None:
        homophones = default_homophones(split.num_classes, trace_labels, copies)
    homophones = check_count("homophones", homophones, 1)
    trained = is_trained(classifier, split)
    source = _distilled_from(teacher, classifier, trained)
    guide = None if source is None else as_teacher(source, split.num_classes)
    assignment = LabelAssignment.draw(split.num_classes, homophones, trace_labels)
    if confusion_weight is None:
        confusion_weight = 0.1 if guide is None else 1.0
    model = ProtectedModel(
        split.backbone,
        split.num_classes,
        assignment.num_labels,
        codebook="",
        strategy=strategy,
        copies=min(copies, homophones),
        confusion_weight=confusion_weight,
        teacher_weight=teacher_weight,
        temperature=temperature,
        use_bias=split.use_bias or bool(assignment.trace.size),
        name=name,
    )
    codebook = authority.model_store.add_model(metadata, assignment)
    model.codebook = codebook.to_bytes().decode("ascii")
    if split.input_shape is not None:
        model.build(split.input_shape)
        if split.kernel is not None and (homophones == 1 or trained or teacher is True):
            copy_head(model.confused_labels, split, assignment)
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


def _metadata(
    name: str, class_names: Sequence[str] | None, num_classes: int, notes: str
) -> ModelMetadata:
    """What is sealed for key holders, by `protect`'s arguments."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise ArgumentError(
            "`name` must consist of letters, digits and _ . > -, because TensorFlow cannot export "
            f"others. Received: name={name!r}"
        )
    names = [str(n) for n in (range(num_classes) if class_names is None else class_names)]
    if len(names) != num_classes:
        raise ArgumentError(
            f"`class_names` must have one name per class: the classifier has {num_classes} "
            f"outputs. Received: {len(names)} names"
        )
    metadata = ModelMetadata(model=name, class_names=names, notes=notes)
    with instead_of(
        msgspec.ValidationError,
        raises=lambda error: ArgumentError(
            f"`name`, `class_names` or `notes` cannot be kept: {error}"
        ),
    ):
        return msgspec.convert(msgspec.to_builtins(metadata), ModelMetadata)


def _distilled_from(
    teacher: keras.Model | bool | None, classifier: keras.Model, trained: bool
) -> keras.Model | None:
    """The classifier to distil from, by `protect`'s argument."""
    if teacher is None:
        teacher = trained
    return classifier if teacher is True else teacher or None
