"""Taking a classifier apart: its own layers up to the head here, what the head computes there.

Nothing is cloned. A functional model or a `Sequential` gives its graph up to the head; a model of
any other class is run by its own `call` up to the head (`Headless`).
"""

import warnings
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_encryip.errors import ArgumentError
from keras_encryip.models.head import (
    SIGMOID,
    Head,
    activation,
    effect,
    is_head,
    layer_name,
    make_head,
    output_kind,
    probabilities,
    read_head,
    round_to_8_bits,
)
from keras_encryip.models.headless import Headless, all_layers, path_to, sublayers
from keras_encryip.models.probe import answer_to_probe

_ROUNDING = 2e-2
_EXACT = 1e-4


@keras.saving.register_keras_serializable(package="keras_encryip")
class RoundTo8Bits(keras.layers.Layer):
    """What an int8 head does to its inputs: it rounds them. The slope passes as if it did not.

    Input shape, output shape:
        `(batch, ..., features)`, float.
    """

    def call(self, inputs: Any) -> Any:
        rounded = ops.cast(round_to_8_bits(inputs), inputs.dtype)
        return inputs + ops.stop_gradient(rounded - inputs)


@dataclass(frozen=True, eq=False)
class Graft:
    """A classifier's parts.

    Attributes:
        classifier: whole, as it was given.
        backbone: inputs → features; made of the classifier's own layers.
        head: what the classifier ends in.
        inputs: `KerasTensor`, or a structure of them, with a batch axis; `None` if unbuilt.
        rank: of the classifier's outputs; 2 for one label per input.
    """

    classifier: keras.Model
    backbone: keras.layers.Layer
    head: Head
    inputs: Any
    rank: int = 2

    @property
    def is_trained(self) -> bool:
        """Whether the classifier looks trained: its optimizer stepped, or its bias moved."""
        optimizer = getattr(self.classifier, "optimizer", None)
        stepped = optimizer is not None and int(ops.convert_to_numpy(optimizer.iterations)) > 0
        return stepped or self.head.looks_trained

    @property
    def is_rounded(self) -> bool:
        """Whether a layer computes in 16 bits or fewer."""
        layers = all_layers(self.classifier)
        policies = [str(x.dtype_policy.name) for x in layers if hasattr(x, "dtype_policy")]
        return any("16" in name or "8" in name for name in policies)

    @property
    def is_stateful(self) -> bool:
        """Whether a layer goes on from batch to batch, so that all batches have one size."""
        return any(getattr(layer, "stateful", False) for layer in all_layers(self.backbone))


def graft(classifier: keras.Model) -> Graft:
    """A classifier without its head.

    Args:
        classifier: Sequential (built or not), functional, or of a class of its own, built. It
            shares its layers with what is returned.

    Raises:
        ArgumentError: it does not end in a head over K ≥ 2 classes; the message names the layer.
    """
    if not isinstance(classifier, keras.Model):
        raise ArgumentError(
            f"`classifier` must be a keras.Model. Received: {type(classifier).__name__}"
        )
    _check_outputs(classifier)
    if isinstance(classifier, keras.Sequential) and not classifier.built:
        found = _graft_unbuilt(classifier)
    elif is_plain_graph(classifier):
        found = _graft_graph(classifier)
    else:
        found = _graft_class(classifier)
    _check_purpose(classifier, found.head)
    return found


def is_plain_graph(layer: Any) -> bool:
    """A functional model or built `Sequential` of Keras's own classes: its layers can be walked."""
    return (
        isinstance(layer, keras.Model)
        and bool(getattr(layer, "outputs", None))
        and type(layer).__module__.partition(".")[0] == "keras"
    )


def _check_outputs(classifier: keras.Model) -> None:
    outputs = getattr(classifier, "outputs", None) or [None]
    if len(outputs) != 1:
        raise ArgumentError(
            f"`classifier` {classifier.name!r} must have one output. Received: {len(outputs)} "
            "outputs. Protect a model of the one output that needs it: "
            "keras.Model(classifier.input, classifier.outputs[i])."
        )


def _check_purpose(classifier: keras.Model, head: Head) -> None:
    """Refuse what was compiled for another purpose than naming one of K classes."""
    inner = getattr(head.layer, "layer", head.layer)
    if getattr(inner, "activity_regularizer", None) is not None:
        raise ArgumentError(
            f"The last layer of `classifier`, {layer_name(head.layer)}, has an "
            "activity_regularizer: a penalty of K outputs has no equal for confused labels."
        )
    for loss in keras.tree.flatten(getattr(classifier, "loss", None)):
        name = str(getattr(loss, "name", loss)).lower()
        kind = None
        if head.outputs != SIGMOID and "binary" in name:
            kind = "several labels per input"
        if head.outputs not in (SIGMOID, "softmax") and any(
            word in name for word in ("squared", "absolute", "mse", "mae", "huber", "cosh")
        ):
            kind = "regression"
        if kind:
            raise ArgumentError(
                f"`classifier` {classifier.name!r} was compiled with loss {name!r}, for {kind}. "
                "Only a classifier with one class per input can be protected."
            )


# --- an unbuilt Sequential ---------------------------------------------------------------


def _graft_unbuilt(classifier: keras.Sequential) -> Graft:
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
        raise _no_head(classifier, last)
    outputs = output_kind(last, [*acts, activation(last)])
    head = make_head(last, None, None, outputs, units=last.units)
    backbone = keras.Sequential(layers[:-1], name="backbone")
    return Graft(classifier, backbone, head, None)


def _holds_head(layer: Any) -> bool:
    return is_head(layer) or isinstance(layer, keras.Model)


# --- a graph -----------------------------------------------------------------------------


def _graft_graph(classifier: keras.Model) -> Graft:
    features, head = _before_head(classifier, classifier.outputs[0], [])
    inputs = classifier.inputs[0] if isinstance(classifier, keras.Sequential) else classifier.input
    if head.rounded:
        features = RoundTo8Bits(name="round_to_8_bits")(features)
    axes = _reshaped(features.shape, classifier.outputs[0].shape)
    if axes is not None:
        features = keras.layers.Reshape((*axes, features.shape[-1]), name="as_outputs")(features)
    backbone = keras.Model(inputs, features, name="backbone")
    return Graft(classifier, backbone, head, inputs, len(classifier.outputs[0].shape))


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
    linear = is_head(operation) or not isinstance(operation, keras.layers.Layer)
    if not linear or len(inputs) != 1 or inputs[0].shape[-1] is None:
        raise _no_head(model, operation)
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


def _reshaped(
    features: tuple[int | None, ...], outputs: tuple[int | None, ...]
) -> list[int] | None:
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


# --- any other class ---------------------------------------------------------------------


def _graft_class(classifier: keras.Model) -> Graft:
    inputs = _inputs_of(classifier)
    calls: list[tuple[Any, Any, Any]] = []
    with _recording(classifier, calls):
        inputs, _, outputs = answer_to_probe(classifier, inputs, forget=calls.clear)
    given = ops.convert_to_numpy(ops.cast(outputs, "float32"))
    for at in reversed(range(len(calls))):
        layer, features, _ = calls[at]
        if not is_head(layer):
            continue
        head = _fitting_head(layer, features, given)
        if head is not None:
            _check_after(classifier, layer, calls, at)
            return _headless(classifier, head, features, given.shape, inputs)
    raise _no_head(classifier, calls[-1][0] if calls else None)


def _headless(
    classifier: keras.Model, head: Head, features: Any, outputs: tuple[int, ...], inputs: Any
) -> Graft:
    path = path_to(classifier, head.layer)
    if path is None:
        raise _no_head(classifier, head.layer)
    axes = _reshaped(tuple(features.shape), outputs)
    units = 1 if head.outputs == SIGMOID else head.num_classes
    backbone: Any = Headless(classifier, path, units, axes, name="backbone")
    if head.rounded:
        backbone = keras.Sequential([backbone, RoundTo8Bits()], name="rounded_backbone")
    return Graft(classifier, backbone, head, inputs, len(outputs))


def _inputs_of(classifier: keras.Model) -> Any:
    """What a classifier of any class takes, as far as Keras knows."""
    if getattr(classifier, "outputs", None):
        return classifier.input
    shape = (classifier.get_build_config() or {}).get("input_shape")
    if not classifier.built or shape is None:
        raise ArgumentError(
            f"A subclassed `classifier` must be built first: call {classifier.name!r} once on a "
            "batch, or give it a `build` method and call `build(input_shape)`."
        )

    def open_batch(axes: Any) -> keras.KerasTensor:
        return keras.KerasTensor((None, *tuple(axes)[1:]))

    return keras.tree.map_shape_structure(open_batch, shape)


class _recording:
    """Meanwhile all calls of layers without sublayers are noted, as (layer, input, output)."""

    def __init__(self, classifier: keras.Model, calls: list[tuple[Any, Any, Any]]) -> None:
        self.calls = calls
        self.layers = [x for x in all_layers(classifier) if is_head(x) or not sublayers(x)]
        self.kept: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> None:
        for layer in self.layers:
            quantised = getattr(layer, "quantization_mode", None) is not None
            name = "quantized_call" if quantised else "call"
            self.kept.append((layer, name, vars(layer).get(name)))
            vars(layer)[name] = self._noting(layer, getattr(layer, name))

    def _noting(self, layer: Any, method: Any) -> Any:
        def noting(*args: Any, **kwargs: Any) -> Any:
            outputs = method(*args, **kwargs)
            self.calls.append((layer, args[0] if args else None, outputs))
            return outputs

        return noting

    def __exit__(self, *error: object) -> None:
        for layer, name, before in self.kept:
            if before is None:
                del vars(layer)[name]
            else:
                vars(layer)[name] = before


def _fitting_head(layer: Any, features: Any, given: np.ndarray) -> Head | None:
    """The head that a layer is, if it explains what the classifier gave."""
    near = _ROUNDING if "16" in str(layer.compute_dtype) else _EXACT
    for act in ("linear", "softmax", "sigmoid"):
        try:
            head = read_head(layer, layer, tuple(features.shape), [act])
        except ArgumentError:
            continue
        assert head.kernel is not None
        x = ops.convert_to_numpy(ops.cast(features, "float32"))
        x = np.asarray(round_to_8_bits(x)) if head.rounded else x
        scores = x @ head.kernel + (0 if head.bias is None else head.bias)
        expected = (
            given if head.outputs == "logits" else np.asarray(probabilities(given, head.outputs))
        )
        found = scores if head.outputs == "logits" else np.asarray(ops.softmax(scores))
        if found.size == expected.size and np.allclose(
            found.ravel(), expected.ravel(), rtol=near, atol=near
        ):
            return head
    return None


def _check_after(
    classifier: keras.Model, head: Any, calls: list[tuple[Any, Any, Any]], at: int
) -> None:
    """Refuse what acts on the head's outputs in training only, and a head that is used twice."""
    if sum(layer is head for layer, _, _ in calls) > 1:
        raise ArgumentError(
            f"The last layer of `classifier` {classifier.name!r}, {layer_name(head)}, is called "
            "several times. Use it once."
        )
    for layer, _, _ in calls[at + 1 :]:
        if hasattr(layer, "seed_generator"):
            raise ArgumentError(
                f"{layer_name(layer)} of `classifier` {classifier.name!r} acts on the outputs of "
                f"the last layer, {layer_name(head)}. Put it before that layer."
            )


def _no_head(classifier: keras.Model, last: Any) -> ArgumentError:
    what = "nothing" if last is None else layer_name(last)
    return ArgumentError(
        f"`classifier` {classifier.name!r} ({type(classifier).__name__}) must end in `Dense(K)` "
        f"(or a convolution of size 1), with a softmax or without activation; it ends in {what}. "
        "Put a Dense layer with one unit per class last."
    )


def frozen(backbone: keras.layers.Layer) -> dict[str, list[int]]:
    """Which layers and variables of a backbone do not learn, by number."""
    return {
        "layers": [i for i, x in enumerate(all_layers(backbone)) if not x.trainable],
        "variables": [i for i, v in enumerate(backbone.variables) if not v.trainable],
        "of": [len(all_layers(backbone)), len(backbone.variables)],
    }


def freeze(backbone: keras.layers.Layer, which: dict[str, list[int]]) -> None:
    """Make the layers and variables of a loaded backbone learn as they did, or not.

    Keras keeps `trainable` of layers that a functional model lists, and of no others.
    """
    layers, variables = all_layers(backbone), backbone.variables
    if [len(layers), len(variables)] != which["of"]:
        warnings.warn(
            "The loaded model has other layers than the saved one: check which are frozen.",
            stacklevel=2,
        )
        return
    for i, layer in enumerate(layers):
        if layer.trainable != (i not in which["layers"]):
            layer.trainable = not layer.trainable
    for i, variable in enumerate(variables):
        if variable.trainable != (i not in which["variables"]):
            variable.trainable = not variable.trainable


def features_shape(
    backbone: keras.layers.Layer, input_shape: Any, dtypes: list[str] | None
) -> tuple[int | None, ...]:
    """The shape of a backbone's features; builds it.

    Args:
        input_shape: shape, or structure of shapes, with a batch axis.
        dtypes: of the inputs, flat; float32 by default.
    """
    if is_plain_graph(backbone):
        return tuple(backbone.outputs[0].shape)
    inputs = keras.tree.map_shape_structure(keras.KerasTensor, input_shape)
    flat = keras.tree.flatten(inputs)
    if dtypes:
        flat = [keras.KerasTensor(t.shape, d) for t, d in zip(flat, dtypes, strict=True)]
    return tuple(backbone(keras.tree.pack_sequence_as(inputs, flat)).shape)
