"""Heads: what a classifier ends in, and what a protected model ends in."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_encryip.errors import ArgumentError
from keras_encryip.labels.assignment import LabelAssignment

SOFTMAX, SIGMOID, LOGITS = "softmax", "sigmoid", "logits"

_SILENT = 16.0
_ROWS = 512
_PRODUCTS = ("Matmul", "Einsum", "Dot", "Tensordot")
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_LAYERS = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    *([keras.layers.ReversibleEmbedding] if hasattr(keras.layers, "ReversibleEmbedding") else []),
)


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
        """The scores before the softmax, for a numerically safe cross-entropy.

        Args:
            features: `[batch, ..., features]`, of any floating dtype; the layer must be built.

        Returns:
            `[batch, ..., num_labels]`, of the layer's dtype, which is float32 by default.

        Example:
        >>> head = ConfusedLabels(44)
        >>> features = np.ones((2, 16), "float32")
        >>> outputs = head(features)
        >>> np.allclose(keras.ops.softmax(head.logits(features)), outputs, atol=1e-6)
        True
        """
        features = ops.cast(features, self.compute_dtype)
        scores = ops.matmul(features, self.kernel)
        return scores if self.bias is None else ops.add(scores, self.bias)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["units"], config["activation"]
        return {**config, "num_labels": self.num_labels}


@keras.saving.register_keras_serializable(package="keras_encryip")
class Shared(keras.regularizers.Regularizer):
    """A penalty of a head with one column per class, for a head with several: their mean.

    Copies of a column are penalised together as the column was.

    Args:
        regularizer: of the classifier's head.
        copies: h, homophones per class.
    """

    def __init__(self, regularizer: Any, copies: int) -> None:
        self.regularizer = keras.regularizers.get(regularizer)
        self.copies = copies

    def __call__(self, x: Any) -> Any:
        if len(x.shape) == 1:  # of biases, those of silent labels are not of the classifier's
            x = ops.where(x > -_SILENT / 2, x, 0)
        return self.regularizer(x) / self.copies

    def get_config(self) -> dict[str, Any]:
        regularizer = keras.saving.serialize_keras_object(self.regularizer)
        return {"regularizer": regularizer, "copies": self.copies}


@dataclass(frozen=True, eq=False)
class Head:
    """What a classifier ends in, read as `act(features · kernel + bias)`.

    Attributes:
        layer: the classifier's own, a Keras layer or operation.
        num_classes: K; 2 for a single sigmoid.
        kernel, bias: float32 `[f, K]` and `[K]`. `kernel` is `None` where unbuilt, `bias` where
            there is none.
        outputs: `SOFTMAX`, `SIGMOID` (one unit), or `LOGITS`: what the classifier gives.
        rounded: whether the layer rounds its inputs to 8 bits.
    """

    layer: Any
    num_classes: int
    kernel: np.ndarray | None
    bias: np.ndarray | None
    outputs: str
    rounded: bool = False

    @property
    def use_bias(self) -> bool:
        """Whether the layer adds a bias."""
        return self.bias is not None if self.kernel is not None else _inner(self.layer).use_bias

    @property
    def trainable(self) -> bool:
        """Whether the classifier's owner lets it learn."""
        return bool(getattr(self.layer, "trainable", True))

    def settings(self, homophones: int) -> dict[str, Any]:
        """Arguments of the `ConfusedLabels` in its place: penalties and constraints."""
        layer = _inner(self.layer)
        result: dict[str, Any] = {"trainable": self.trainable}
        for name in ("kernel_regularizer", "bias_regularizer"):
            if getattr(layer, name, None) is not None:
                result[name] = Shared(getattr(layer, name), homophones)
        for name in ("kernel_constraint", "bias_constraint"):
            if getattr(layer, name, None) is not None:
                result[name] = getattr(layer, name)
        return result


def probabilities(outputs: Any, kind: str) -> Any:
    """A classifier's outputs as class probabilities `[…, K]`, K ≥ 2, float32, in graph.

    Args:
        outputs: float `[…, K]`, or `[…, 1]` of a sigmoid.
        kind: `SOFTMAX`, `SIGMOID` or `LOGITS`.
    """
    outputs = ops.cast(outputs, "float32")
    if kind == SIGMOID:
        return ops.concatenate([1 - outputs, outputs], axis=-1)
    return ops.softmax(outputs) if kind == LOGITS else outputs


def is_head(operation: Any) -> bool:
    """Whether a layer may be a classifier's head: linear in its features."""
    if isinstance(operation, keras.layers.TimeDistributed):
        return is_head(operation.layer)
    if isinstance(operation, _CONVOLUTIONS):
        sizes = (*operation.kernel_size, *operation.strides, operation.groups)
        return set(sizes) == {1} and operation.data_format == "channels_last"
    if not isinstance(operation, keras.layers.Layer):  # a product with a table of the user's
        return type(operation).__name__ in _PRODUCTS
    return isinstance(operation, _LAYERS)


def read_head(
    layer: Any, call: Callable[[Any], Any], shape: tuple[int | None, ...], acts: list[str]
) -> Head:
    """The kernel of a layer or operation that is linear in its last axis.

    Args:
        layer: whose call it is.
        call: what it does with features.
        shape: of its features; the last axis must be known.
        acts: what is done to its outputs later, as `effect` says.

    Raises:
        ArgumentError: it is not linear, or not of one unit per class.
    """
    inner = _inner(layer)
    acts = [*acts, activation(layer)]
    outputs = output_kind(layer, acts)
    activation_before = getattr(inner, "activation", None)
    if activation_before is not None:
        inner.activation = keras.activations.linear
    try:
        kernel, bias, rounded = _linear(layer, call, shape)
    finally:
        if activation_before is not None:
            inner.activation = activation_before
    return make_head(layer, kernel, bias, outputs, rounded=rounded)


def make_head(
    layer: Any,
    kernel: np.ndarray | None,
    bias: np.ndarray | None,
    outputs: str,
    *,
    units: int | None = None,
    rounded: bool = False,
) -> Head:
    """Check the number of units, and turn one sigmoid into two classes (logits 0 and z)."""
    units = units or (kernel.shape[1] if kernel is not None else 0)
    name = layer_name(layer)
    if outputs == SIGMOID and units > 1:
        raise ArgumentError(
            f"The last layer of `classifier`, {name}, has {units} sigmoid units: a multi-label "
            "classifier has no single class per input to confuse. Only a softmax over K classes, "
            "or Dense(1, 'sigmoid'), can be protected."
        )
    if outputs != SIGMOID and units < 2:
        raise ArgumentError(
            f"The last layer of `classifier`, {name}, must have one unit per class, at least 2. "
            f"Received: units={units}, which is regression, not classification. A binary "
            "classifier needs Dense(1, 'sigmoid') or Dense(2, 'softmax')."
        )
    if outputs == SIGMOID and kernel is not None:
        kernel = np.concatenate([np.zeros_like(kernel), kernel], axis=1)
        bias = None if bias is None else np.concatenate([np.zeros_like(bias), bias])
    return Head(layer, 2 if outputs == SIGMOID else units, kernel, bias, outputs, rounded)


def output_kind(layer: Any, acts: list[str]) -> str:
    """What a classifier gives, from what is done to its head's outputs."""
    nonlinear = [act for act in acts if act != "linear"]
    if len(nonlinear) > 1 or not set(nonlinear) <= {SOFTMAX, SIGMOID}:
        raise ArgumentError(
            f"The last layer of `classifier`, {layer_name(layer)}, must have a single softmax or "
            "no activation (or a sigmoid, with one unit). Received: activation="
            + " and ".join(map(repr, reversed(nonlinear)))
        )
    return nonlinear[0] if nonlinear else LOGITS


def effect(call: Callable[[Any], Any], shape: tuple[int | None, ...]) -> str | None:
    """What an operation does to scores: `softmax`, `sigmoid`, `linear` (or a reshape), or none.

    Found out by trying, so that layers, operations and functions of all libraries are alike.

    Args:
        call: the operation.
        shape: of its input, with `None` for open axes.
    """
    scores = np.random.default_rng(0).normal(size=[d or 2 for d in shape]).astype(np.float32)
    try:
        answer = call(ops.convert_to_tensor(scores))
        result = ops.convert_to_numpy(ops.cast(answer, "float32"))
    except Exception:  # whatever a layer of anybody's raises, it is not one of these
        return None
    near = 1e-2 if "16" in keras.backend.standardize_dtype(answer.dtype) else 1e-5
    if result.size == scores.size and np.allclose(result.ravel(), scores.ravel(), atol=near):
        return "linear"
    if result.shape != scores.shape:
        return None
    for name in (SOFTMAX, SIGMOID)[scores.shape[-1] == 1 :]:
        expected = ops.convert_to_numpy(getattr(ops, name)(scores))
        if np.allclose(result, expected, atol=near):
            return name
    return None


def copy_head(head: ConfusedLabels, original: Head, assignment: LabelAssignment) -> None:
    """Each class's column goes to its h homophones; trace labels start silent.

    The softmax over h copies is that over the classes, each class's share cut into h. A trace
    label's column is the mean of the classes', so that it lies below the best of them by `_SILENT`
    at least, whatever the inputs; with a penalty on the kernel it is 0, which costs nothing.
    """
    assert original.kernel is not None
    count = assignment.trace.size
    biases = np.zeros(original.num_classes) if original.bias is None else original.bias
    kernel = np.zeros((original.kernel.shape[0], assignment.num_labels), np.float32)
    bias = np.zeros(assignment.num_labels, np.float32)
    kernel[:, assignment.labels] = original.kernel[:, :, None]
    bias[assignment.labels] = biases[:, None]
    if getattr(_inner(original.layer), "kernel_regularizer", None) is None:
        kernel[:, assignment.trace] = original.kernel.mean(1, keepdims=True)
    bias[assignment.trace] = biases.mean() - _SILENT - np.log(max(1, count / 64))
    head.kernel.assign(kernel)
    if head.use_bias:
        head.bias.assign(bias)


def layer_name(operation: Any) -> str:
    """A layer as errors name it."""
    return f"{type(operation).__name__} {getattr(operation, 'name', '')!r}"


def _inner(layer: Any) -> Any:
    return layer.layer if isinstance(layer, keras.layers.TimeDistributed) else layer


def activation(layer: Any) -> str:
    """The effect of a layer's own activation; its name, where it is none of those."""
    function = getattr(_inner(layer), "activation", None)
    if function is None:
        return "linear"
    return effect(function, (2, 5)) or str(getattr(function, "__name__", function))


def _linear(
    layer: Any, call: Callable[[Any], Any], shape: tuple[int | None, ...]
) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """(kernel, bias or `None`, whether inputs are rounded to 8 bits) of a linear layer."""
    width = int(shape[-1] or 0)
    between = [1] * (len(shape) - 2)

    def apply(rows: np.ndarray) -> np.ndarray:
        result = call(ops.convert_to_tensor(rows.reshape(len(rows), *between, width)))
        return ops.convert_to_numpy(ops.cast(result, "float32")).reshape(len(rows), -1)

    if _is_plain_dense(layer):
        kernel = ops.convert_to_numpy(layer.kernel).astype(np.float32)
        bias = ops.convert_to_numpy(layer.bias).astype(np.float32) if layer.use_bias else None
        return kernel, bias, False
    offset = apply(np.zeros((1, width), np.float32))[0]
    unit = np.eye(width, dtype=np.float32)
    kernel = np.concatenate([apply(unit[i : i + _ROWS]) for i in range(0, width, _ROWS)]) - offset
    bias = offset if getattr(_inner(layer), "use_bias", None) or offset.any() else None
    trial = np.random.default_rng(0).normal(size=(8, width)).astype(np.float32)
    result = apply(trial)
    for rounded in (False, True):
        rows = np.asarray(round_to_8_bits(trial)) if rounded else trial
        near = 2e-2 if "16" in str(getattr(_inner(layer), "compute_dtype", "")) else 1e-4
        if np.allclose(rows @ kernel + offset, result, atol=near * np.abs(result).max()):
            return kernel, bias, rounded
    raise ArgumentError(
        f"The last layer of `classifier`, {layer_name(layer)}, is not linear in its inputs, so it "
        "cannot be replaced by one with several columns per class. Use keras.layers.Dense."
    )


def _is_plain_dense(layer: Any) -> bool:
    return (
        isinstance(layer, keras.layers.Dense)
        and type(layer).call is keras.layers.Dense.call
        and getattr(layer, "quantization_mode", None) is None
        and inspect.getattr_static(type(layer), "kernel")
        is inspect.getattr_static(keras.layers.Dense, "kernel")
    )


def round_to_8_bits(features: Any) -> Any:
    """What an int8 layer makes of its inputs, by `keras.quantizers.abs_max_quantize`, float32."""
    values, scale = keras.quantizers.abs_max_quantize(features, axis=-1, to_numpy=False)
    return ops.cast(values, "float32") / ops.cast(scale, "float32")
