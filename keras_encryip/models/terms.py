"""The terms that training adds to the user's loss: they move the weights, and are shown apart."""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_encryip.models.data import class_indices
from keras_encryip.models.losses import ConfusedLabelCrossentropy, Distillation, per_replica
from keras_encryip.models.secrets import UnlockedSecrets
from keras_encryip.models.step import Step, mask_of, with_mask

TERMS = TEACHER, CONFUSION = "teacher_loss", "confusion_loss"


class TermMetrics:
    """The means of the terms since the last reset, before their weights.

    Not among the model's `metrics`: a classifier's own `train_step` updates all of these with
    labels and predictions.
    """

    def __init__(self) -> None:
        self._means = {name: keras.metrics.Mean(name=name) for name in TERMS}

    def update(self, name: str, value: Any, rows: Any) -> None:
        """Add a batch, in graph.

        Args:
            value: of the term, as it counts in Keras's total.
            rows: of the batch.
        """
        self._means[name].update_state(value / per_replica(ops.ones(())), sample_weight=rows)

    def results(self, names: Iterable[str]) -> dict[str, Any]:
        """The means of some terms, in graph."""
        return {name: self._means[name].result() for name in names}

    def seen(self) -> list[str]:
        """The terms that there was a batch of since the last reset. In graph, that is not known."""
        if not tf.executing_eagerly():
            return []
        return [name for name, mean in self._means.items() if ops.convert_to_numpy(mean.count) > 0]

    def reset(self) -> None:
        for mean in self._means.values():
            mean.reset_state()


def with_terms(
    model: Any,
    secrets: UnlockedSecrets,
    step: Step,
    loss: Any,
    labels: Any,
    sample_weight: Any,
) -> Any:
    """The user's loss, with the gradient of what a protected model learns.

    Args:
        loss: the user's, with penalties and `add_loss`.
        labels: as the user gave them.
    """
    step.taught = True
    mask = mask_of(step.scores)
    classes = class_indices(labels, model.num_classes, ndim=len(step.scores.shape))
    if model.ignored_class is not None:
        valid = ops.not_equal(classes, model.ignored_class)
        classes = ops.where(valid, classes, 0)
        mask = valid if mask is None else ops.logical_and(valid, ops.cast(mask, "bool"))
    terms, total = {}, loss
    if secrets.teacher is not None:
        penalties = [ops.cast(each, loss.dtype) for each in model.losses]
        data_loss = (
            loss - per_replica(sum(ops.sum(each) for each in penalties)) if penalties else loss
        )
        terms[TEACHER] = Distillation(model.temperature)(
            secrets.teacher.probabilities(step.inputs),
            with_mask(ops.softmax(step.classes), mask),
            sample_weight=sample_weight,
        )
        total = total + model.teacher_weight * (ops.cast(terms[TEACHER], loss.dtype) - data_loss)
    if model.confusion_weight and secrets.separates():
        targets = secrets.targets(step.inputs, classes, model._seed_generator)
        terms[CONFUSION] = ConfusedLabelCrossentropy()(
            targets, with_mask(step.scores, mask), sample_weight=sample_weight
        )
        total = total + model.confusion_weight * ops.cast(terms[CONFUSION], loss.dtype)
    for name, value in terms.items():
        model._terms.update(name, value, ops.shape(step.scores)[0])
    step.terms = list(terms)
    return with_gradient_of(total, loss)


def with_gradient_of(total: Any, loss: Any) -> Any:
    """The value of one scalar, with the gradient of another; not a number where that one is none.

    Example:
    >>> x = tf.Variable(3.0)
    >>> with tf.GradientTape() as tape:
    ...     loss = with_gradient_of(total=x**2, loss=5 * x)
    >>> float(loss), float(tape.gradient(loss, x))
    (15.0, 6.0)
    """
    return ops.stop_gradient(loss) + (total - ops.stop_gradient(total))
