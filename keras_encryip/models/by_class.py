"""The part of a classifier of any class before its head, found by watching a call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_encryip.errors import ArgumentError
from keras_encryip.models.by_graph import RoundTo8Bits, no_head, reshaped
from keras_encryip.models.head import (
    SIGMOID,
    Head,
    is_head,
    layer_name,
    probabilities,
    read_head,
    round_to_8_bits,
)
from keras_encryip.models.headless import Headless, all_layers, path_to, sublayers
from keras_encryip.models.probe import answer_to_probe

_ROUNDING = 2e-2
_EXACT = 1e-4

Call = tuple[Any, Any, Any]
"""A layer, its first input, and its output."""


def before_head_called(classifier: keras.Model) -> tuple[keras.layers.Layer, Head, Any, int]:
    """(the classifier up to its head, the head, inputs, rank of the outputs)."""
    calls: list[Call] = []
    with _recording(classifier, calls):
        inputs, _, outputs = answer_to_probe(classifier, _inputs_of(classifier), calls.clear)
    given = ops.convert_to_numpy(ops.cast(outputs, "float32"))
    for at in reversed(range(len(calls))):
        layer, features, _ = calls[at]
        head = _fitting_head(layer, features, given) if is_head(layer) else None
        path = None if head is None else path_to(classifier, layer)
        if head is None or path is None:
            continue
        _check_around(classifier, path, calls, at)
        axes = reshaped(tuple(features.shape), given.shape)
        units = 1 if head.outputs == SIGMOID else head.num_classes
        backbone: Any = Headless(classifier, path, units, axes, name="backbone")
        if head.rounded:
            backbone = keras.Sequential([backbone, RoundTo8Bits()], name="rounded_backbone")
        return backbone, head, inputs, given.ndim
    raise no_head(classifier, calls[-1][0] if calls else None)


def unsteady_layer(classifier: keras.Model, inputs: Any) -> Any:
    """The first layer that gives other outputs for the same input, in inference; or `None`."""
    runs: list[list[Call]] = [[], []]
    for calls in runs:
        with _recording(classifier, calls):
            classifier(inputs, training=False)
    for (layer, _, one), (_, _, other) in zip(*runs, strict=False):
        pairs = zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True)
        if any(not np.array_equal(*map(ops.convert_to_numpy, pair)) for pair in pairs):
            return layer
    return None


def _inputs_of(classifier: keras.Model) -> Any:
    """What a classifier of any class takes, as far as Keras knows."""
    if getattr(classifier, "outputs", None):
        sequential = isinstance(classifier, keras.Sequential)
        return classifier.inputs[0] if sequential else classifier.input
    shape = (classifier.get_build_config() or {}).get("input_shape")
    if not classifier.built or shape is None:
        raise ArgumentError(
            f"A subclassed `classifier` must be built first: call {classifier.name!r} once on a "
            "batch, or give it a `build` method and call `build(input_shape)`."
        )

    def open_batch(axes: Any) -> keras.KerasTensor:
        return keras.KerasTensor((None, *tuple(axes)[1:]))

    return keras.tree.map_shape_structure(open_batch, shape)


@contextmanager
def _recording(classifier: keras.Model, calls: list[Call]) -> Iterator[None]:
    """Meanwhile all calls of layers without sublayers are noted, and those of possible heads."""
    kept: list[tuple[Any, str, Any]] = []

    def noting(layer: Any, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            outputs = method(*args, **kwargs)
            calls.append((layer, args[0] if args else None, outputs))
            return outputs

        return call

    try:
        for layer in all_layers(classifier):
            if is_head(layer) or not sublayers(layer):
                quantised = getattr(layer, "quantization_mode", None) is not None
                name = "quantized_call" if quantised else "call"
                kept.append((layer, name, vars(layer).get(name)))
                vars(layer)[name] = noting(layer, getattr(layer, name))
        yield
    finally:
        for layer, name, before in kept:
            del vars(layer)[name]
            if before is not None:
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
        answer = scores if head.outputs == "logits" else np.asarray(ops.softmax(scores))
        if answer.size == expected.size and np.allclose(
            answer.ravel(), expected.ravel(), rtol=near, atol=near
        ):
            return head
    return None


def _check_around(classifier: keras.Model, path: list[int], calls: list[Call], at: int) -> None:
    """Refuse what changes the head or its outputs in training only, and a head used twice."""
    head = calls[at][0]
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
    holder: Any = classifier
    for index in path:
        if isinstance(holder, keras.layers.SpectralNormalization):
            raise ArgumentError(
                f"{layer_name(holder)} changes the last layer of `classifier` {classifier.name!r} "
                "as it trains, and cannot be kept. Take it off that layer."
            )
        holder = sublayers(holder)[index]
