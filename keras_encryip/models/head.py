"""The head of a protected model: one output for each confused label."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.models.backbone import SplitClassifier

_TRACE_BIAS = -16.0


@keras.saving.register_keras_serializable(package="keras_encryip")
class ConfusedLabels(keras.layers.Dense):
    """The head of a protected model: a softmax over N confused labels.

    A `Dense` layer in float32 (also under mixed precision). It knows how many
    confused labels there are, and nothing of what they stand for.

    Args:
        num_labels: N, a positive integer.
        **kwargs: as `keras.layers.Dense`, but for `units` and `activation`.

    Input shape:
        `(batch, ..., features)`

    Output shape:
        `(batch, ..., num_labels)`, float32, each row sums to 1.

    Example:
    >>> head = ConfusedLabels(44)
    >>> head(np.zeros((2, 16), "float32")).shape
    TensorShape([2, 44])
    """

    def __init__(self, num_labels: int, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(num_labels, activation="softmax", **kwargs)
        self.num_labels = num_labels

    def logits(self, features: Any) -> Any:
        """The scores before the softmax, for a numerically safe cross-entropy."""
        features = ops.cast(features, self.compute_dtype)
        scores = ops.matmul(features, self.kernel)
        return scores if self.bias is None else ops.add(scores, self.bias)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["units"], config["activation"]
        return {**config, "num_labels": self.num_labels}


def copy_head(head: ConfusedLabels, split: SplitClassifier, assignment: LabelAssignment) -> None:
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
