"""The layers of a protected model."""

import warnings
from typing import Any

import keras
from keras import ops


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


@keras.saving.register_keras_serializable(package="keras_encryip")
class Headless(keras.layers.Layer):
    """A subclassed classifier whose head is passed through: it returns features.

    Args:
        classifier: an instance of the subclass; its head attributes are replaced.
        head: names of the attributes that hold the last `Dense(K)` and, where
            there is one, the softmax layer after it.
    """

    def __init__(self, classifier: keras.Model, head: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in head:
            setattr(classifier, name, keras.layers.Identity())
        self.classifier = classifier
        self.head = list(head)

    def build(self, input_shape: Any) -> None:
        if self.classifier.built:
            return
        with warnings.catch_warnings():
            # Keras goes on tracking the layers that were replaced: it says they are not built.
            warnings.filterwarnings("ignore", r"`build\(\)` was called on layer", UserWarning)
            self.classifier(keras.tree.map_shape_structure(keras.KerasTensor, input_shape))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.classifier(inputs, training=training)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        classifier = keras.saving.serialize_keras_object(self.classifier)
        return {**config, "classifier": classifier, "head": self.head}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Headless":
        config = dict(config)
        serialized = dict(config.pop("classifier"))
        serialized.pop("build_config", None)  # it must not be built before its head is replaced
        return cls(keras.saving.deserialize_keras_object(serialized), **config)
