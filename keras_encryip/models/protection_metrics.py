"""How well a model is protected, as metrics of each epoch."""

from typing import Any

import keras
import numpy as np

from keras_encryip.errors import ArgumentError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.models.measures import (
    evenness,
    homophones_answered,
    outputs_by_batch,
    outputs_of,
    trace_labels_read,
)
from keras_encryip.models.protected_model import ProtectedModel


class ProtectionMetrics(keras.callbacks.Callback):
    """Adds to the logs of each epoch how well the model is protected.

    - `confusion`, 0 … 1: how evenly answers spread over the homophones of a class. 0: each class
      comes out as one confused label alone; 1: as all of them, equally often. The answer to an
      input is the most probable label of its most probable class. NaN where answers are no numbers.
      Left out with one homophone.
    - `trace_labels_read`, 0 … 1: the share of trace labels that users' keys read as they should,
      so that a leaked key is found. Left out without trace labels. Trace labels are learned when
      `fit` ends, and more epochs undo some of it: during a first `fit`, this is about 1 / K. Call
      `measure` afterwards.

    Put it before the callbacks that are to see them (`TensorBoard`, `CSVLogger`); Keras's own
    `History` and progress bar come last. It runs the model on its trace inputs and on up to 2,048
    kept samples.

    Args:
        inputs: samples `[n, …]` to measure `confusion` on, or a structure of such arrays, as the
            network takes them; by default those that `adapt` kept. It keeps some only for trace
            labels.

    Raises:
        ArgumentError: `inputs` are no arrays.

    Example:
    >>> import keras_encryip as ke
    >>> model = ke.protect(classifier, authority, name="digits", homophones=4, trace_labels=16)
    >>> model.compile("adam", "sparse_categorical_crossentropy")
    >>> metrics = ke.ProtectionMetrics()
    >>> history = model.fit(x, y, epochs=2, callbacks=[metrics], verbose=0).history
    >>> len(history["confusion"]), len(history["trace_labels_read"])
    (2, 2)
    >>> metrics.measure(model)["trace_labels_read"]  # learned when `fit` ended
    1.0
    """

    def __init__(self, inputs: Any = None) -> None:
        super().__init__()
        parts = keras.tree.flatten(inputs)
        if inputs is not None and not (parts and all(map(_is_array, parts))):
            raise ArgumentError(
                "`inputs` must be an array [n, …], n ≥ 1, or a structure of such, as the network "
                f"takes them. Received: {type(inputs).__name__}"
            )
        self.inputs = inputs

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.measure(self.model)  # what cannot be measured is said before an epoch is spent

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        measured = self.measure(self.model)
        if logs is not None:
            logs.update(measured)

    def measure(self, model: ProtectedModel) -> dict[str, float]:
        """The metrics of a model, as it is now, by name.

        Args:
            model: unlocked with its authority, and trained.

        Returns:
            `{"confusion": float, "trace_labels_read": float}`, 0 … 1 each, without those that the
            model has not.

        Raises:
            LockedModelError: the model is not unlocked with its authority, or not adapted.
            ArgumentError: it is no protected model, or no samples are known.

        Example:
        >>> measured = ProtectionMetrics().measure(model)
        >>> measured["trace_labels_read"], 0 < measured["confusion"] <= 1
        (1.0, True)
        """
        if not isinstance(model, ProtectedModel):
            raise ArgumentError(
                "`ProtectionMetrics` measures protected models, which `protect` makes. "
                f"Received: a model of class {type(model).__name__}"
            )
        secrets = model._unlocked()
        assignment, state = secrets.assignment(), secrets.adapted()
        metrics = {}
        if assignment.homophones > 1:
            samples = state.samples if self.inputs is None else self.inputs
            if samples is None:
                raise ArgumentError(
                    f"Model {model.name!r} has no trace labels, so that none of its owner's "
                    "samples were kept. Pass some: `ProtectionMetrics(inputs=x[:1000])`."
                )
            metrics["confusion"] = _confusion(model, samples, assignment)
        if state.traces is not None:
            confused = outputs_of(model, state.traces.inputs)
            metrics["trace_labels_read"] = trace_labels_read(confused, state.traces, assignment)
        return metrics


def _confusion(model: ProtectedModel, samples: Any, assignment: LabelAssignment) -> float:
    """Not a number where an answer is none: the training has diverged, or the inputs are none."""
    counts = np.zeros(assignment.labels.shape, np.int64)
    for confused in outputs_by_batch(model, samples):
        if not np.isfinite(confused).all():
            return float("nan")
        counts += homophones_answered(confused, assignment)
    return evenness(counts)


def _is_array(part: Any) -> bool:
    return hasattr(part, "shape") and hasattr(part, "__getitem__") and any(part.shape[:1])
