"""Taking a classifier apart: features here, the last `Dense(K)` there."""

import warnings
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_encryip.errors import ArgumentError, instead_of, reason

_SOFTMAX = keras.activations.softmax
_LINEAR = keras.activations.linear


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


@dataclass(frozen=True)
class SplitClassifier:
    """A classifier's parts; the backbone is a clone with its own weights.

    Attributes:
        backbone: inputs → features; unbuilt for an unbuilt `Sequential`.
        num_classes: K.
        kernel, bias: float arrays `[f, K]` and `[K]`, or `None` where unbuilt or without bias.
        use_bias: whether the head has a bias.
        from_logits: whether the classifier's outputs are scores without a softmax.
        input_shape: shape (or structure of shapes) with a batch axis, or `None` if unbuilt.
    """

    backbone: keras.layers.Layer
    num_classes: int
    kernel: np.ndarray | None
    bias: np.ndarray | None
    use_bias: bool
    from_logits: bool
    input_shape: Any

    def logits(self, inputs: Any) -> Any:
        """The classifier's scores `[b, …, K]` in float32, at inference."""
        features = keras.ops.cast(self.backbone(inputs, training=False), "float32")
        scores = keras.ops.matmul(features, self.kernel)
        return scores if self.bias is None else scores + self.bias

    @property
    def looks_trained(self) -> bool:
        """A fresh `Dense` has a zero bias; training moves it."""
        return self.bias is not None and bool(np.any(self.bias))


def split_classifier(classifier: keras.Model) -> SplitClassifier:
    """Clone a classifier without its last `Dense(K)` (and the softmax after it).

    Args:
        classifier: Sequential (built or not), functional, or a built subclass. Its
            own weights are left untouched.

    Raises:
        ArgumentError: it does not end in `Dense(K)` with softmax, K ≥ 2, or without
            activation, or is a subclass that has not been built.
    """
    if not isinstance(classifier, keras.Model):
        raise ArgumentError(
            f"`classifier` must be a keras.Model. Received: {type(classifier).__name__}"
        )
    if isinstance(classifier, keras.Sequential) and not classifier.built:
        return _split_unbuilt(classifier)
    if _is_graph(classifier):
        return _split_functional(classifier)
    return _split_subclass(classifier)


def is_trained(classifier: keras.Model, split: SplitClassifier) -> bool:
    """Whether a classifier looks trained: its optimizer has stepped, or its head's bias moved."""
    optimizer = getattr(classifier, "optimizer", None)
    stepped = optimizer is not None and int(keras.ops.convert_to_numpy(optimizer.iterations)) > 0
    return stepped or split.looks_trained


def as_teacher(classifier: keras.Model, num_classes: int) -> SplitClassifier:
    """A frozen copy of a trained classifier with K outputs, to distil from."""
    if not isinstance(classifier, keras.Model):
        raise ArgumentError(
            "`teacher` must be True, False or a trained keras.Model. "
            f"Received: {type(classifier).__name__}"
        )
    teacher = split_classifier(classifier)
    if teacher.num_classes != num_classes or teacher.kernel is None:
        raise ArgumentError(
            f"`teacher` must be a trained classifier with {num_classes} outputs. "
            f"Received: {teacher.num_classes} outputs, "
            f"{'not built' if teacher.kernel is None else 'built'}"
        )
    return teacher


def _split_unbuilt(classifier: keras.Sequential) -> SplitClassifier:
    layers = list(classifier.layers)
    softmaxes = 0
    while layers and _is_activation(layers[-1]):
        softmaxes += _is_softmax(layers.pop())
    head = _check_head(layers[-1] if layers else None, classifier, softmaxes)
    backbone = keras.models.clone_model(keras.Sequential(layers[:-1], name="backbone"))
    return SplitClassifier(
        backbone,
        head.units,
        None,
        None,
        head.use_bias,
        not softmaxes and not _is_softmax(head),
        None,
    )


def _split_functional(classifier: keras.Model) -> SplitClassifier:
    if len(classifier.outputs) != 1:
        raise ArgumentError(
            f"`classifier` must have one output. Received: {len(classifier.outputs)} outputs"
        )
    features, head, softmax = _before_head(classifier, classifier.outputs[0])
    sequential = isinstance(classifier, keras.Sequential)
    inputs = classifier.inputs[0] if sequential else classifier.input
    part = keras.Model(inputs, features, name="backbone")
    backbone = keras.models.clone_model(part)
    backbone.set_weights(part.get_weights())
    shape = keras.tree.map_structure(lambda tensor: tensor.shape, inputs)
    return _with_head(backbone, head, softmax, shape)


def _before_head(model: keras.Model, output: Any) -> tuple[Any, keras.layers.Dense, bool]:
    """Walk back from an output over activations to the head; look inside nested models."""
    softmaxes = 0
    operation, node, index = output._keras_history
    while _is_activation(operation):
        softmaxes += _is_softmax(operation)
        output = operation._inbound_nodes[node].input_tensors[0]
        operation, node, index = output._keras_history
    if _is_graph(operation):
        inner, head, softmax = _before_head(operation, operation.outputs[index])
        features = keras.Model(operation.inputs, inner, name=f"{operation.name}_features")
        outer = operation._inbound_nodes[node].input_tensors
        return features(outer if len(outer) > 1 else outer[0]), head, softmax or bool(softmaxes)
    head = _check_head(operation, model, softmaxes)
    features = head._inbound_nodes[node].input_tensors[0]
    return features, head, bool(softmaxes) or _is_softmax(head)


def _split_subclass(classifier: keras.Model) -> SplitClassifier:
    shape = (classifier.get_build_config() or {}).get("input_shape")
    if not classifier.built or shape is None:
        raise ArgumentError(
            f"A subclassed `classifier` must be built first: call {classifier.name!r} once on a "
            "batch, or give it a `build` method and call `build(input_shape)`."
        )
    probe = keras.tree.map_shape_structure(
        lambda s: np.random.default_rng(0).random([d or 2 for d in s], "float32"), shape
    )
    reference = keras.ops.convert_to_numpy(classifier(probe, training=False))
    heads = [n for n, v in vars(classifier).items() if isinstance(v, keras.layers.Dense)]
    softmaxes = [n for n, v in vars(classifier).items() if _is_activation(v) and _is_softmax(v)]
    for name in reversed(heads):
        head = getattr(classifier, name)
        if head.units != reference.shape[-1]:
            continue
        for softmax in [None, *softmaxes]:
            attempt = _try_head(classifier, name, softmax, shape)
            if attempt is None:
                continue
            values = head(attempt(probe, training=False))
            values = keras.ops.softmax(values) if softmax else values
            if np.allclose(keras.ops.convert_to_numpy(values), reference, rtol=1e-4, atol=1e-5):
                _check_head(head, classifier, int(softmax is not None))
                return _with_head(attempt, head, softmax is not None or _is_softmax(head), shape)
    raise ArgumentError(
        f"`classifier` {classifier.name!r} ({type(classifier).__name__}) does not end in an "
        "attribute that is `keras.layers.Dense(K)`, alone or before an attribute that is "
        "`keras.layers.Softmax`. Make these layers attributes, the last to be called."
    )


def _try_head(
    classifier: keras.Model, head: str, softmax: str | None, shape: Any
) -> keras.layers.Layer | None:
    """A clone whose head attribute is passed through, with the original's other weights."""
    names = [head] if softmax is None else [head, softmax]
    clone = _rebuild(classifier)
    if not all(hasattr(clone, name) for name in names):
        return None
    features = Headless(clone, names, name="backbone")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Keras warns before it raises
            features(keras.tree.map_shape_structure(keras.KerasTensor, shape))
    except (TypeError, ValueError):  # not the head: the layers after it need its shape
        return None
    of_head = {id(w) for w in getattr(classifier, head).weights}
    weights = [w for w in classifier.weights if id(w) not in of_head]
    if [w.shape for w in weights] != [w.shape for w in features.weights]:
        return None
    features.set_weights(weights)
    return features


def _rebuild(classifier: keras.Model) -> keras.Model:
    rule = (
        f"A subclassed `classifier` must allow Keras to rebuild it: {type(classifier).__name__} "
        "needs an `__init__` that passes `**kwargs` on to `super().__init__`, and a `get_config` "
        "that returns its arguments."
    )
    with instead_of(
        TypeError,
        NotImplementedError,
        raises=lambda error: ArgumentError(
            f"{rule} Keras says: {reason(error).strip().splitlines()[0]}"
        ),
    ):
        return type(classifier).from_config(classifier.get_config())


def _with_head(
    backbone: keras.layers.Layer, head: keras.layers.Dense, softmax: bool, shape: Any
) -> SplitClassifier:
    convert = keras.ops.convert_to_numpy
    return SplitClassifier(
        backbone,
        head.units,
        convert(head.kernel).astype("float32"),
        convert(head.bias).astype("float32") if head.use_bias else None,
        head.use_bias,
        not softmax,
        shape,
    )


def _check_head(layer: Any, classifier: keras.Model, softmaxes: int) -> keras.layers.Dense:
    if not isinstance(layer, keras.layers.Dense):
        what = "nothing" if layer is None else f"{type(layer).__name__} {layer.name!r}"
        raise ArgumentError(
            f"`classifier` {classifier.name!r} must end in `Dense(K)`, with a softmax or without "
            f"activation; it ends in {what}. Put a Dense layer with one unit per class last."
        )
    if layer.units < 2:
        raise ArgumentError(
            f"The last layer of `classifier`, {layer.name!r}, must have one unit per class, at "
            f"least 2. Received: units={layer.units}. A binary classifier needs "
            "Dense(2, 'softmax')."
        )
    allowed = (_LINEAR,) if softmaxes else (_LINEAR, _SOFTMAX)
    if softmaxes > 1 or layer.activation not in allowed:
        name = getattr(layer.activation, "__name__", str(layer.activation))
        raise ArgumentError(
            f"The last layer of `classifier`, {layer.name!r}, must have a single softmax or no "
            f"activation. Received: activation={name!r}"
        )
    return layer


def _is_graph(layer: Any) -> bool:
    """A functional model or a built `Sequential`: its layers can be walked."""
    return isinstance(layer, keras.Model) and bool(getattr(layer, "outputs", None))


def _is_activation(layer: Any) -> bool:
    return isinstance(layer, keras.layers.Softmax) or (
        isinstance(layer, keras.layers.Activation) and layer.activation in (_SOFTMAX, _LINEAR)
    )


def _is_softmax(layer: Any) -> bool:
    return isinstance(layer, keras.layers.Softmax) or getattr(layer, "activation", None) is _SOFTMAX
