"""Taking a classifier apart: its own layers up to the head here, what the head computes there.

Nothing is cloned. A functional model or a `Sequential` gives its graph up to the head; a model of
any other class is run by its own `call` up to the head (`Headless`).
"""

import warnings
from dataclasses import dataclass
from typing import Any

import keras

from keras_encryip.errors import ArgumentError
from keras_encryip.models.by_class import before_head_called
from keras_encryip.models.by_graph import before_head, before_head_unbuilt, is_plain_graph
from keras_encryip.models.head import SIGMOID, Head, layer_name
from keras_encryip.models.headless import all_layers, sublayers


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
    def output(self) -> str:
        """What Keras calls the classifier's output."""
        names = getattr(self.classifier, "output_names", None) or [self.head.layer.name]
        return str(names[0])

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
            "`classifier` must be a keras.Model, e.g. from `keras.models.load_model(path)`. "
            f"Received: {type(classifier).__name__}"
        )
    _check_outputs(classifier)
    if isinstance(classifier, keras.Sequential) and not classifier.built:
        parts = Graft(classifier, *before_head_unbuilt(classifier), None)
    else:
        parts = _graft_built(classifier)
    _check_purpose(classifier, parts)
    return parts


def _graft_built(classifier: keras.Model) -> Graft:
    if not is_plain_graph(classifier):
        return Graft(classifier, *before_head_called(classifier))
    try:
        return Graft(classifier, *before_head(classifier), len(classifier.outputs[0].shape))
    except ArgumentError as error:  # its last layer may hold the head inside
        if not any(sublayers(layer) for layer in classifier.layers):
            raise
        first = error
    try:
        return Graft(classifier, *before_head_called(classifier))
    except ArgumentError:
        raise first from None


def _check_outputs(classifier: keras.Model) -> None:
    outputs = getattr(classifier, "outputs", None) or [None]
    if len(outputs) != 1:
        raise ArgumentError(
            f"`classifier` {classifier.name!r} must have one output. Received: {len(outputs)} "
            "outputs. Protect a model of the one output that needs it: "
            "keras.Model(classifier.input, classifier.outputs[i])."
        )


def _check_purpose(classifier: keras.Model, graft: Graft) -> None:
    """Refuse heads that do more than name one of K classes."""
    head = graft.head
    left = is_plain_graph(graft.backbone) and head.layer in all_layers(graft.backbone)
    if left and type(head.layer).__name__ != "ReversibleEmbedding":  # which is tied on purpose
        raise ArgumentError(
            f"The last layer of `classifier` {classifier.name!r}, {layer_name(head.layer)}, "
            "is called several times. Use it once."
        )
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
