"""The terms that training a protected model adds to the user's own loss."""

from typing import Any

import keras
from keras import ops

TINY = 1e-37
"""Smallest probability whose logarithm is taken: float32, before denormals."""


def confused_label_crossentropy(target: Any, scores: Any) -> Any:
    """Cross-entropy of the confused labels against target labels.

    Formula: `−log softmax(scores)[target]` (for one drawn label, after Mu et al. 2024).

    Args:
        target: int `[...]`, confused labels in 0 … N−1.
        scores: float `[..., N]`, confused labels before their softmax.

    Returns:
        float `[...]`.

    Example:
    >>> scores = np.log(np.array([[0.5, 0.25, 0.25]], "float32"))
    >>> np.round(np.array(confused_label_crossentropy(np.array([0]), scores)), 4)
    array([0.6931], dtype=float32)
    """
    return keras.losses.sparse_categorical_crossentropy(target, scores, from_logits=True)


@keras.saving.register_keras_serializable(package="keras_encryip")
class ConfusedLabelCrossentropy(keras.losses.Loss):
    """`confused_label_crossentropy` as a Keras loss, averaged over the batch.

    Args:
        name: as of any `keras.losses.Loss`.
        reduction: as of any `keras.losses.Loss`.
        dtype: as of any `keras.losses.Loss`.

    Call arguments:
        y_true: int `[batch, ...]`, confused labels in 0 … N−1.
        y_pred: float `[batch, ..., N]`, confused labels before their softmax.

    Example:
    >>> loss = ConfusedLabelCrossentropy()
    >>> scores = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], "float32"))
    >>> round(float(loss(np.array([0, 1]), scores)), 4)
    0.6931
    """

    def __init__(
        self,
        name: str = "confused_label_crossentropy",
        reduction: str = "sum_over_batch_size",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return confused_label_crossentropy(y_true, y_pred)


def distillation(teacher: Any, decoded: Any, temperature: float) -> Any:
    """Divergence of the decoded probabilities from a teacher's, both softened.

    Formula: `τ²·KL(teacher^(1/τ) ‖ decoded^(1/τ))`, each renormalised (Hinton et al. 2015).

    Args:
        teacher, decoded: float `[..., K]` probabilities.
        temperature: τ > 0.

    Returns:
        float `[...]`, zero where the two agree.
    """

    def soften(probabilities: Any) -> Any:
        scores = ops.log(ops.maximum(ops.cast(probabilities, "float32"), 1e-30))
        return ops.log_softmax(scores / temperature, axis=-1)

    target, answer = soften(teacher), soften(decoded)
    return temperature**2 * ops.sum(ops.exp(target) * (target - answer), axis=-1)


@keras.saving.register_keras_serializable(package="keras_encryip")
class Distillation(keras.losses.Loss):
    """`distillation` as a Keras loss, averaged over the batch.

    Args:
        temperature: τ > 0.
        name, reduction, dtype: as any `keras.losses.Loss`.
    """

    def __init__(
        self,
        temperature: float = 2.0,
        name: str = "distillation",
        reduction: str = "sum_over_batch_size",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.temperature = temperature

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return distillation(y_true, y_pred, self.temperature)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature}


class _PerReplica(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred


def per_replica(value: Any) -> Any:
    """A value as it counts in Keras's total: divided by the number of replicas."""
    value = ops.reshape(value, (1,))
    return _PerReplica(name="per_replica")(ops.zeros_like(value), value)
