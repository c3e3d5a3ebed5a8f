"""What a protected model is distilled from: a classifier as it was at one moment."""

from typing import Any

import keras
from keras import ops

from keras_encryip.errors import ArgumentError
from keras_encryip.models.backbone import Graft, graft
from keras_encryip.models.head import probabilities
from keras_encryip.models.probe import answer_to_probe, check_same, the_output


class Teacher:
    """A classifier under a snapshot of its variables, which later training does not change.

    The classifier itself is called, so that all that is neither argument nor variable is kept.

    Args:
        model: built.
        outputs: what it gives, as `Head.outputs`.
    """

    def __init__(self, model: keras.Model, outputs: str) -> None:
        self._model = model
        self._outputs = outputs
        self._state = [(v, ops.convert_to_tensor(ops.convert_to_numpy(v))) for v in model.variables]

    def probabilities(self, inputs: Any) -> Any:
        """Class probabilities `[…, K]` of inputs, without gradient."""
        with keras.StatelessScope(state_mapping=self._state):
            outputs = the_output(self._model(inputs, training=False))
        return ops.stop_gradient(probabilities(outputs, self._outputs))


def as_teacher(model: Any, num_classes: int) -> Teacher:
    """A trained classifier with K outputs, to distil from.

    Raises:
        ArgumentError: it is not one, or does not answer alike under a snapshot.
    """
    if not isinstance(model, keras.Model):
        raise ArgumentError(
            "`teacher` must be True, False or a trained keras.Model, e.g. from "
            "`keras.models.load_model(path)`. "
            f"Received: {type(model).__name__}"
        )
    return teacher_of(graft(model), num_classes)


def teacher_of(parts: Graft, num_classes: int) -> Teacher:
    """As `as_teacher`, of what was taken apart already."""
    head = parts.head
    if head.num_classes != num_classes or head.kernel is None:
        raise ArgumentError(
            f"`teacher` must be a trained classifier with {num_classes} outputs. "
            f"Received: {head.num_classes} outputs, {'not ' if head.kernel is None else ''}built"
        )
    teacher = Teacher(parts.classifier, head.outputs)
    _, probe, outputs = answer_to_probe(parts.classifier, parts.inputs)
    rounded = parts.is_rounded
    check_same(
        teacher.probabilities(probe),
        probabilities(outputs, head.outputs),
        f"A snapshot of {parts.classifier.name!r}",
        rounded=rounded,
    )
    return teacher
