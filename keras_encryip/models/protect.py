"""`protect` turns any Keras classifier into a `ProtectedModel`."""

import operator
import re
from collections.abc import Sequence
from typing import Any

import keras
import msgspec
import numpy as np

from keras_encryip.errors import ArgumentError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import ModelMetadata
from keras_encryip.models.head import ConfusedLabels
from keras_encryip.authority.authority import Authority
from keras_encryip.models.protected_model import CLUSTERED, ProtectedModel
from keras_encryip.models.backbone import SplitClassifier, as_teacher, is_trained, split_classifier

__all__ = ["ProtectedModel", "default_homophones", "protect"]

_MAX_DEFAULT_LABELS = 2048
_TRACE_BIAS = -16.0
_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.>-]*")  # of a root scope


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
    neutrality_weight: float = 0.0,
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
        neutrality_weight: around 1 keeps the labels of a class from being recognised by their
            neighbourhood in the head, and costs accuracy. Off by default, because the strongest
            attack does without: docs/threat-model.md.
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
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise ArgumentError(
            "`name` must consist of letters, digits and _ . > -, because TensorFlow cannot export "
            f"others. Received: name={name!r}"
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
    trained = is_trained(classifier, split)
    distils = teacher if teacher is not None else trained
    source = classifier if distils is True else distils
    if confusion_weight is None:
        confusion_weight = 1.0 if source else 0.1
    guide = as_teacher(source, split.num_classes) if source else None
    assignment = LabelAssignment.draw(split.num_classes, homophones, trace_labels)
    draft: dict[str, Any] = {
        "strategy": strategy,
        "copies": min(copies, homophones),
        "confusion_weight": confusion_weight,
        "neutrality_weight": neutrality_weight,
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
