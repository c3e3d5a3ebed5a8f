"""Layers and models of the kinds that users write, for the tests of `protect`."""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

K = 3
serializable: Callable[..., Any] = keras.saving.register_keras_serializable(package="tests.models")


# --- layers ----------------------------------------------------------------------


@serializable
class WithoutKwargs(layers.Layer):
    """Its `__init__` takes no `name` and no `dtype`; its config is its own argument alone."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor

    def get_config(self) -> dict[str, Any]:
        return {"factor": self.factor}


@serializable
class SetAfterwards(layers.Layer):
    """Its factor is no argument, but an attribute, and in the config."""

    factor = 1.0

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SetAfterwards":
        config = dict(config)
        factor = config.pop("factor")
        layer = cls(**config)
        layer.factor = factor
        return layer


class NotInConfig(layers.Layer):
    """Plain Keras loses this factor when it saves: only the object itself knows it."""

    factor = 1.0

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor


@serializable
class HalvedDense(layers.Dense):
    """A `Dense` that does something else than `Dense`."""

    def call(self, inputs: Any, training: Any = None) -> Any:
        return super().call(inputs, training=training) / 2


@serializable
class FrozenInside(layers.Layer):
    """Two Dense layers, of which `freeze` freezes the first; Keras saves no such thing."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first = layers.Dense(6, activation="tanh")
        self.second = layers.Dense(6, activation="tanh")

    def build(self, input_shape: Any) -> None:
        self.first.build(input_shape)
        self.second.build((*input_shape[:-1], 6))

    def call(self, inputs: Any) -> Any:
        return self.second(self.first(inputs))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], 6)


@serializable
class AddsLoss(layers.Layer):
    def call(self, inputs: Any) -> Any:
        self.add_loss(0.5 * ops.mean(ops.square(inputs)))
        return inputs


@serializable
class WrappedHead(layers.Wrapper):
    """`keras.layers.Wrapper` around the head."""

    def call(self, inputs: Any) -> Any:
        return self.layer(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)


# --- models ----------------------------------------------------------------------


@serializable
class Subclass(keras.Model):
    """Pixels → a hidden layer, dropout → a head of the given kind.

    Args:
        kind: `softmax`, `logits`, `layer` (a softmax layer), `call` (a softmax in `call`), `list`,
            `dict` (where the head is kept), `sigmoid`, `sigmoid-call` (binary).
    """

    def __init__(self, kind: str = "softmax", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind = kind
        self.flatten = layers.Flatten()
        self.base = layers.Dense(6, activation="tanh")
        self.norm = layers.BatchNormalization()
        self.dropout = layers.Dropout(0.3, seed=1)
        activation = kind if kind in ("softmax", "sigmoid") else None
        head = layers.Dense(1 if "sigmoid" in kind else K, activation=activation, name="head")
        if kind == "list":
            self.head_layers = [head, layers.Softmax()]
        elif kind == "dict":
            self.by_name = {"head": head}
        else:
            self.head = head
        self.softmax = layers.Softmax() if kind == "layer" else None

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        hidden = self.norm(self.base(self.flatten(inputs)), training=training)
        hidden = self.dropout(hidden, training=training)
        if self.kind == "list":
            for layer in self.head_layers:
                hidden = layer(hidden)
            return hidden
        outputs = (self.by_name["head"] if self.kind == "dict" else self.head)(hidden)
        if self.kind == "sigmoid-call":
            return ops.sigmoid(outputs)
        if self.kind == "call":
            return ops.softmax(outputs, axis=-1)
        return outputs if self.softmax is None else self.softmax(outputs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind}


@serializable
class Outer(keras.Model):
    """A subclass of levels: its head is the innermost classifier's."""

    def __init__(self, levels: int = 2, kind: str = "softmax", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.levels, self.kind = levels, kind
        self.inner = Subclass(kind) if levels == 1 else Outer(levels - 1, kind)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.inner(1.0 - inputs, training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "levels": self.levels, "kind": self.kind}


class Bare(keras.Model):
    """No `**kwargs`, no `get_config`, and an argument that no config could hold."""

    def __init__(self, backbone: keras.Model) -> None:
        super().__init__()
        self.backbone = backbone
        self.scale = 1.0
        self.head = layers.Dense(K)

    def call(self, inputs: Any) -> Any:
        return keras.activations.softmax(self.head(self.backbone(inputs) * self.scale))


@serializable
class Valid(keras.Model):
    """Convolutions without padding: images below 9 × 9 have no output."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.body = [layers.Conv2D(4, 5, activation="relu") for _ in range(2)]
        self.pool = layers.GlobalAveragePooling2D()
        self.head = layers.Dense(K, activation="softmax")

    def call(self, inputs: Any) -> Any:
        for layer in self.body:
            inputs = layer(inputs)
        return self.head(self.pool(inputs))


@serializable
class FunctionalSubclass(keras.Model):
    """A subclass that is a graph: `super().__init__(inputs, outputs)`."""

    def __init__(self, width: int = 6, **kwargs: Any) -> None:
        inputs = keras.Input((8, 8, 1))
        hidden = layers.Dense(width, activation="relu")(layers.Flatten()(inputs))
        outputs = layers.Dense(K, activation="softmax")(hidden)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.width = width

    def get_config(self) -> dict[str, Any]:
        return {"width": self.width, "name": self.name}


@serializable
class Tied(keras.Model):
    """The head's weights are the embedding's."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embedding = layers.ReversibleEmbedding(K, 4)
        self.hidden = layers.Dense(4, activation="tanh")

    def call(self, inputs: Any) -> Any:
        hidden = self.hidden(self.embedding(inputs))
        return ops.softmax(self.embedding(hidden, reverse=True))


@serializable
class OwnStep(Subclass):
    """The `train_step` of the guides of Keras, with a factor of its own for the gradients."""

    factor = 1.0
    calls = 0

    def train_step(self, data: Any) -> dict[str, Any]:
        import tensorflow as tf

        OwnStep.calls += 1
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
        variables = self.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply([g * self.factor for g in gradients], variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {metric.name: metric.result() for metric in self.metrics}


@serializable
class OwnLoss(Subclass):
    """A `compute_loss` that punishes confidence by the outputs' squares."""

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss + 0.5 * ops.mean(ops.sum(ops.square(y_pred), axis=-1))
