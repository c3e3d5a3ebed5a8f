"""The part of a graph before its head: functional models and `Sequential`."""

from typing import Any

import keras
from keras import ops

from keras_encryip.errors import ArgumentError
from keras_encryip.models.head import (
    Head,
    activation,
    effect,
    is_head,
    layer_name,
    make_head,
    output_kind,
    read_head,
    round_to_8_bits,
)


@keras.saving.register_keras_serializable(package="keras_encryip")
class RoundTo8Bits(keras.layers.Layer):
    """What an int8 head does to its inputs: it rounds them. The slope passes as if it did not.

    Input shape, output shape:
        `(batch, ..., features)`, float.
    """

    def call(self, inputs: Any) -> Any:
        rounded = ops.cast(round_to_8_bits(inputs), inputs.dtype)
        return inputs + ops.stop_gradient(rounded - inputs)


def is_plain_graph(layer: Any) -> bool:
    """A functional model or built `Sequential` of Keras's own classes: its layers can be walked."""
    return (
        isinstance(layer, keras.Model)
        and bool(getattr(layer, "outputs", None))
        and type(layer).__module__.partition(".")[0] == "keras"
    )


def before_head_unbuilt(classifier: keras.Sequential) -> tuple[keras.layers.Layer, Head]:
    """(layers before the head, the head) of a `Sequential` that is not built."""
    layers = list(classifier.layers)
    acts: list[str] = []
    while layers and not _holds_head(layers[-1]):
        act = effect(layers[-1], (None, 5)) if not layers[-1].weights else None
        if act is None:
            break
        acts.append(act)
        layers.pop()
    last = layers[-1] if layers else None
    if last is None or not isinstance(last, keras.layers.Dense):
        raise no_head(classifier, last)
    outputs = output_kind(last, [*acts, activation(last)])
    head = make_head(last, None, None, outputs, units=last.units)
    backbone = keras.Sequential(layers[:-1], name="backbone")
    return backbone, head


def _holds_head(layer: Any) -> bool:
    return is_head(layer) or isinstance(layer, keras.Model)


def before_head(classifier: keras.Model) -> tuple[keras.layers.Layer, Head, Any]:
    """(layers before the head, the head, inputs) of a graph."""
    features, head = _before_head(classifier, classifier.outputs[0], [])
    inputs = classifier.inputs[0] if isinstance(classifier, keras.Sequential) else classifier.input
    if head.rounded:
        features = RoundTo8Bits(name="round_to_8_bits")(features)
    axes = reshaped(features.shape, classifier.outputs[0].shape)
    if axes is not None:
        features = keras.layers.Reshape((*axes, features.shape[-1]), name="as_outputs")(features)
    backbone = keras.Model(inputs, features, name="backbone")
    return backbone, head, inputs


def _before_head(model: keras.Model, output: Any, acts: list[str]) -> tuple[Any, Head]:
    """Walk back from an output over activations to the head; look inside nested models."""
    operation, index, inputs, call = _made_by(output)
    while not _holds_head(operation):
        act = _act(operation, call, inputs)
        if act is None:
            break
        acts.append(act)
        output = inputs[0]
        operation, index, inputs, call = _made_by(output)
    if is_plain_graph(operation):
        inner, head = _before_head(operation, operation.outputs[index], acts)
        features = keras.Model(operation.inputs, inner, name=f"{operation.name}_features")
        return features(inputs if len(inputs) > 1 else inputs[0]), head
    if not is_head(operation) or len(inputs) != 1 or inputs[0].shape[-1] is None:
        raise no_head(model, operation)
    return inputs[0], read_head(operation, call, inputs[0].shape, acts)


def _made_by(tensor: Any) -> tuple[Any, int, list[Any], Any]:
    """(operation, which of its outputs, its inputs, what it does with the first) of a tensor."""
    operation, at, index = tensor._keras_history
    node = operation._inbound_nodes[at]
    positional = keras.tree.flatten(node.arguments.args)
    inputs = [t for t in positional if isinstance(t, keras.KerasTensor)] or node.input_tensors

    def call(value: Any, **more: Any) -> Any:
        args, kwargs = node.arguments.fill_in({id(inputs[0]): value})
        known = {k: v for k, v in kwargs.items() if not isinstance(v, keras.KerasTensor)}
        return operation(*args, **{**known, **more})  # a mask is not known

    return operation, index, inputs, call


def _act(operation: Any, call: Any, inputs: list[Any]) -> str | None:
    """What an operation after the head does; `None` for what is none, or differs in training."""
    if len(inputs) != 1 or getattr(operation, "weights", None):
        return None
    shape = inputs[0].shape
    act = effect(call, shape)
    if act is None or not getattr(operation, "_call_has_training_arg", False):
        return act
    return act if effect(lambda x: call(x, training=True), shape) == act else None


def reshaped(features: tuple[int | None, ...], outputs: tuple[int | None, ...]) -> list[int] | None:
    """Axes of the features as the classifier's outputs have them; `None`: they do already."""
    have, want = list(features[1:-1]), list(outputs[1:-1])
    if have == want:
        return None
    axes = [-1 if size is None else int(size) for size in want]
    if axes.count(-1) > 1:
        raise ArgumentError(
            f"The outputs of `classifier` have the shape {outputs}, its last layer {features}: "
            "protect a classifier whose last layer gives one row for each label."
        )
    return axes


def no_head(classifier: keras.Model, last: Any) -> ArgumentError:
    """What to raise for a classifier that ends in something else."""
    what = "nothing" if last is None else layer_name(last)
    return ArgumentError(
        f"`classifier` {classifier.name!r} ({type(classifier).__name__}) must end in `Dense(K)` "
        f"(or a convolution of size 1), with a softmax or without activation; it ends in {what}. "
        "Put a Dense layer with one unit per class last."
    )
