"""One training or test step of a protected model: what it is asked, and what losses see of it."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
from keras import ops
from tensorflow.python.saved_model.save_context import in_save_context

from keras_encryip.errors import ArgumentError
from keras_encryip.models.losses import TINY


@dataclass(eq=False)
class Step:
    """What a model was asked in a step, and what it answered.

    Attributes:
        training: whether it is a training step.
        inputs: of the last call.
        scores: its answer, `[b, …, N]`: confused labels before their softmax.
        classes: `UnlockedSecrets.class_scores` of them, `[b, …, K]`.
        taught: whether the loss was computed with the terms of `models/terms.py`.
        terms: the names of those terms.
    """

    training: bool
    inputs: Any = None
    scores: Any = None
    classes: Any = None
    taught: bool = False
    terms: list[str] = field(default_factory=list)


class Running(threading.local):
    """The step of this thread: replicas of a strategy train in threads of their own.

    Attributes:
        step: while there is one.
        refusal: why weights that were being loaded are refused.
    """

    step: Step | None = None
    refusal: Exception | None = None


@contextmanager
def running(current: Running, training: bool) -> Iterator[Step]:
    """A step, meanwhile: the model decodes, and remembers what it was asked."""
    before, current.step = current.step, Step(training)
    try:
        yield current.step
    finally:
        current.step = before


def shown(step: Step, binary: bool) -> Any:
    """What losses and metrics see: class probabilities, with Keras's marks.

    Keras's crossentropies read the scores of a softmax or sigmoid where they find them, since
    a probability near 0 has no digits left.

    Args:
        step: with the model's answer.
        binary: whether they see one probability, of class 1.
    """
    classes = step.classes
    if binary:
        classes = classes[..., 1:] - classes[..., :1]
    result = ops.sigmoid(classes) if binary else ops.softmax(classes)
    result = with_mask(result, mask_of(step.scores))
    result._keras_logits = classes
    return result


def check_taught(model: Any, step: Step) -> None:
    """Refuse a training step that does not teach the confused labels.

    Raises:
        ArgumentError: the classifier's own `train_step` computes its loss in another way.
    """
    if not step.taught:
        raise ArgumentError(
            f"The `train_step` of {model.name!r}'s classifier must compute its loss by "
            "`self.compute_loss(x=x, y=y, y_pred=self(x, training=True))`: the confused labels "
            "are learned there."
        )


def guarded(confused: Any) -> Any:
    """The same; whoever takes a gradient through it is warned.

    Class labels mean nothing to confused labels, and a loop over both trains on nonsense.
    `scores_of` takes the guard off.
    """
    result = _guarded(confused)
    result._unguarded = confused
    return with_mask(result, mask_of(confused))


def scores_of(confused: Any) -> Any:
    """Scores of confused labels that a model gave, without their guard."""
    confused = getattr(confused, "_unguarded", ops.convert_to_tensor(confused))
    return with_mask(ops.log(ops.maximum(confused, TINY)), mask_of(confused))


@tf.custom_gradient
def _guarded(confused: Any) -> Any:

    def gradient(upstream: Any) -> Any:
        if not in_save_context():  # a SavedModel keeps gradients, and takes none
            warnings.warn(
                "A gradient is taken through the confused labels of a protected model: with class "
                "labels this trains on nonsense. Train the protected model itself by `fit` or "
                "`train_on_batch`, which decode; do not put it inside another model.",
                stacklevel=2,
            )
        return upstream

    return tf.identity(confused), gradient


def mask_of(tensor: Any) -> Any:
    """Keras's mask of a tensor, if it has one."""
    return getattr(tensor, "_keras_mask", None)


def with_mask(tensor: Any, mask: Any) -> Any:
    """The same values under another mask."""
    if mask is None:
        return tensor
    tensor = tf.identity(tensor)
    tensor._keras_mask = mask
    return tensor
