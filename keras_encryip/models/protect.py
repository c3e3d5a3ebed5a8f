"""`protect` turns any Keras classifier into a `ProtectedModel`."""

import re
from collections.abc import Iterable, Mapping, Sequence

import keras
import msgspec

from keras_encryip.client.checks import check_count
from keras_encryip.crypto.encoding import canonical_json
from keras_encryip.errors import ArgumentError, instead_of
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import ModelMetadata
from keras_encryip.labels.model_record import ModelOwner
from keras_encryip.models.backbone import Graft, graft
from keras_encryip.models.head import SIGMOID, copy_head, layer_name
from keras_encryip.models.headless import all_layers
from keras_encryip.models.homophones import AUTOMATIC, STRATEGIES, narrowed
from keras_encryip.models.own_steps import with_own_steps
from keras_encryip.models.protected_model import ProtectedModel
from keras_encryip.models.secrets import UnlockedSecrets, check_owner
from keras_encryip.models.start import check_start
from keras_encryip.models.teacher import Teacher, as_teacher, teacher_of

_MAX_DEFAULT_LABELS = 2048
_TRACE_LABELS = 128
_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.>-]*")  # of a root scope


def protect(
    classifier: keras.Model,
    authority: ModelOwner,
    *,
    name: str,
    class_names: Sequence[str] | None = None,
    homophones: int | None = None,
    trace_labels: int | None = None,
    strategy: str = AUTOMATIC,
    copies: int = 2,
    teacher: keras.Model | bool | None = None,
    confusion_weight: float = 0.1,
    teacher_weight: float = 0.7,
    temperature: float = 2.0,
    notes: str = "",
) -> ProtectedModel:
    """Protect a classifier, trained or not.

    The protected model uses the classifier's own layers, so the two share weights from then on.
    Its last layer becomes a softmax over N = K·h + T confused labels, and each class's column is
    copied to its homophones: decoded outputs equal the classifier's, and the same variables learn.
    Both are compared at every call. Fit some more epochs before you export: homophones must part.

    Args:
        classifier: Sequential (built or not), functional, or a built model of any class. It ends
            in a layer that is linear in its features (`Dense`, a convolution of size 1,
            `TimeDistributed(Dense)`, `EinsumDense`) with K ≥ 2 units and a softmax or no
            activation, or with one unit and a sigmoid.
        authority: keeps the label assignment.
        name: the model's name, which key bundles can be limited to.
        class_names: K names, sealed for key holders; by default `"0"`, `"1"`, …
        homophones: h ≥ 1; by default as many as keep N ≤ 2,048, within 1 … 64.
        trace_labels: T, 0 … half as many as the authority has slots; by default 128 where the
            classifier takes a single input of numbers, else 0.
        strategy: a key of `homophones.STRATEGIES`: `"clustered"` (homophones follow the inputs)
            or `"random"`; by default the first that suits the inputs and labels.
        copies: homophones per cluster, drawn at random.
        teacher: what to distil from, by default nothing: `True` for the classifier as it is now,
            or another trained classifier. It holds the model to its own accuracy: for classifiers
            that are trained to their end.
        confusion_weight: ≥ 0, of the term that sets homophones apart.
        teacher_weight: κ, the share of distillation in the loss, 0 … 1.
        temperature: τ of the distillation, > 0.
        notes: sealed for key holders.

    Returns:
        An unlocked, uncompiled `ProtectedModel`.

    Raises:
        ArgumentError: names the argument or the layer, and the fix. Nothing is kept then.

    Example:
    >>> model = protect(classifier, authority, name="digits", trace_labels=16)
    >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    >>> history = model.fit(x, y, verbose=0)
    >>> confused = model.predict(x[:5], verbose=0)
    >>> confused.shape, model.decode(confused).shape  # N = 10·64 homophones + 16 trace labels
    ((5, 656), (5, 10))
    """
    # Arguments are checked, and the model compared, before the ledger gets a new model.
    check_owner(authority)
    copies = check_count("copies", copies, 1)
    _check_unprotected(classifier)
    parts = graft(classifier)
    metadata = _metadata(name, class_names, parts.head.num_classes, notes)
    guide = _teacher(teacher, parts)
    trace_labels = _trace_labels(trace_labels, parts)
    homophones = _homophones(homophones, trace_labels, copies, parts)
    slots = authority.model_store.num_slots
    assignment = LabelAssignment.draw(parts.head.num_classes, homophones, trace_labels, slots)
    dtypes = None if parts.inputs is None else [t.dtype for t in keras.tree.flatten(parts.inputs)]
    use_bias = parts.head.use_bias or bool(assignment.trace.size)
    model: ProtectedModel = with_own_steps(ProtectedModel, parts.backbone)(
        parts.backbone,
        parts.head.num_classes,
        assignment.num_labels,
        codebook="",
        strategy=_strategy(strategy, parts),
        copies=min(copies, homophones),
        confusion_weight=confusion_weight,
        teacher_weight=teacher_weight,
        temperature=temperature,
        binary=parts.head.outputs == SIGMOID,
        head={"use_bias": use_bias, **parts.head.settings(homophones)},
        dtypes=dtypes,
        output=parts.output,
        name=name,
    )
    start = UnlockedSecrets(assignment.classes, parts.head.num_classes)
    start.original = parts
    if parts.inputs is not None:
        model.build(keras.tree.map_structure(lambda t: tuple(t.shape), parts.inputs))
        copy_head(model.confused_labels, parts.head, assignment)
        check_start(model, start)
    codebook = authority.model_store.add_model(metadata, assignment)
    model.codebook = codebook.to_bytes().decode("ascii")
    model.unlock(authority=authority)
    model._unlocked().teacher = guide
    model._unlocked().original = parts
    return model


def _check_unprotected(classifier: keras.Model) -> None:
    parts = [classifier, *(all_layers(classifier) if isinstance(classifier, keras.Model) else [])]
    for part in parts:
        if isinstance(part, ProtectedModel):
            raise ArgumentError(
                f"`classifier` {classifier.name!r} is, or holds, a protected model, "
                f"{part.name!r}. Protect the classifier that it was made of, or go on training it."
            )


def default_homophones(num_classes: int, trace_labels: int, copies: int) -> int:
    """h: as many whole clusters as keep N ≤ 2,048, within 1 … 64.

    >>> [default_homophones(k, 64, 2) for k in (10, 100, 5000)]
    [64, 18, 1]
    """
    fit = max(1, min(64, (_MAX_DEFAULT_LABELS - trace_labels) // num_classes))
    return max(fit - fit % copies, min(fit, copies))


def _homophones(homophones: int | None, trace_labels: int, copies: int, parts: Graft) -> int:
    """h, by `protect`'s argument."""
    frozen = not parts.head.trainable
    if homophones is None:
        return 1 if frozen else default_homophones(parts.head.num_classes, trace_labels, copies)
    homophones = check_count("homophones", homophones, 1)
    if frozen and homophones > 1:
        raise ArgumentError(
            f"The last layer of `classifier`, {layer_name(parts.head.layer)}, is frozen, so that "
            "homophones would stay copies of each other. Pass `homophones=1`, or make it trainable."
        )
    return homophones


def _trace_labels(trace_labels: int | None, parts: Graft) -> int:
    """T, by `protect`'s argument."""
    reason = None
    inputs = [] if parts.inputs is None else keras.tree.flatten(parts.inputs)
    if not parts.head.trainable:
        reason = f"the last layer, {layer_name(parts.head.layer)}, is frozen"
    elif parts.inputs is not None and not isinstance(parts.inputs, keras.KerasTensor):
        if len(inputs) > 1 or isinstance(parts.inputs, dict):
            reason = f"it takes {len(inputs)} inputs in a {type(parts.inputs).__name__}"
    elif inputs and inputs[0].dtype == "string":
        reason = "it takes strings"
    elif inputs and len(inputs[0].shape) < 2:
        reason = "its inputs have no features"
    if reason is None and parts.is_stateful:
        reason = "it goes on from batch to batch (`stateful=True`)"
    if trace_labels is None:
        return 0 if reason else _TRACE_LABELS
    trace_labels = check_count("trace_labels", trace_labels, 0)
    if reason and trace_labels:
        raise ArgumentError(
            f"Trace labels cannot be taught to `classifier` {parts.classifier.name!r}: {reason}. "
            f"Pass `trace_labels=0`. Received: trace_labels={trace_labels}"
        )
    return trace_labels


def _strategy(strategy: str, parts: Graft) -> str:
    """Which homophones, by `protect`'s argument; what does not suit is refused here."""
    if strategy not in (AUTOMATIC, *STRATEGIES) or parts.inputs is None:
        return strategy
    return narrowed(strategy, parts.inputs, parts.rank - 1)


def _metadata(
    name: str, class_names: Sequence[str] | None, num_classes: int, notes: str
) -> ModelMetadata:
    """What is sealed for key holders, by `protect`'s arguments."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise ArgumentError(
            "`name` must consist of letters, digits and _ . > -, because TensorFlow cannot export "
            f"others. Received: name={name!r}"
        )
    if class_names is not None and (
        isinstance(class_names, (str, bytes, Mapping))
        or not isinstance(class_names, Iterable)
        or isinstance(class_names, (set, frozenset))
    ):
        raise ArgumentError(
            "`class_names` must be a list of names, one per class, in the order of the outputs. "
            f"Received: {type(class_names).__name__}"
        )
    names = [str(n) for n in (range(num_classes) if class_names is None else class_names)]
    if len(names) != num_classes:
        raise ArgumentError(
            f"`class_names` must have one name per class: the classifier has {num_classes} "
            f"outputs. Received: {len(names)} names"
        )
    metadata = ModelMetadata(model=name, class_names=names, notes=notes)
    with instead_of(
        msgspec.DecodeError,
        raises=lambda error: ArgumentError(
            f"`name`, `class_names` or `notes` cannot be kept: {error}"
        ),
    ):
        return msgspec.json.decode(canonical_json(metadata), type=ModelMetadata)


def _teacher(teacher: keras.Model | bool | None, parts: Graft) -> Teacher | None:
    """What to distil from, by `protect`'s argument."""
    if teacher is None or teacher is False:
        return None
    classes = parts.head.num_classes
    return teacher_of(parts, classes) if teacher is True else as_teacher(teacher, classes)
