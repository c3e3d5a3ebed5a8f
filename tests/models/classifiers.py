"""Builders of classifiers, and what is compared before and after `protect`."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tests.models.custom_layers import (
    Bare,
    FrozenInside,
    K,
    Subclass,
)

ROWS = 12
_random = np.random.default_rng(0)
IMAGES = _random.random((ROWS, 8, 8, 1), dtype="float32")
COLOURS = _random.random((ROWS, 12, 11, 3), dtype="float32")
NUMBERS = _random.normal(3, 5, (ROWS, 6)).astype("float32")
SERIES = _random.normal(0, 1, (ROWS, 7, 4)).astype("float32")
TOKENS = _random.integers(1, 9, (ROWS, 7)).astype("int32")
TOKENS[:, 5:] = 0  # padding
WORDS = [["red", "green", "blue", "grey"][i % 4] for i in range(ROWS)]
TEXTS = [f"the {word} house is {WORDS[(3 * i + 1) % 4]}" for i, word in enumerate(WORDS)]
SOFT = {"activation": "softmax", "name": "head"}


def chain(*parts: Any, shape: tuple[Any, ...] = (8, 8, 1), **of_input: Any) -> keras.Model:
    """A functional model of layers (or functions) one after another."""
    inputs = tensor = keras.Input(shape, **of_input)
    for part in parts:
        tensor = part(tensor)
    return keras.Model(inputs, tensor)


def called(model: keras.Model, x: Any) -> keras.Model:
    model(x, training=False)
    return model


def flat(*tail: Any) -> keras.Model:
    """Pixels → 6 features → the given head."""
    return chain(layers.Flatten(), layers.Dense(6, activation="tanh"), *tail)


def sequential(*tail: Any) -> keras.Model:
    body = [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(6, activation="relu")]
    return keras.Sequential([*body, *tail])


def with_policy(policy: str, make: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
    def made() -> keras.Model:
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            return make()
        finally:
            keras.config.set_dtype_policy(before)

    return made


def frozen_in_subclass() -> keras.Model:
    model = called(Subclass(), IMAGES[:1])
    model.base.trainable = False
    return model


def frozen_in_layer() -> keras.Model:
    layer = FrozenInside()
    layer.first.trainable = False
    return chain(layers.Flatten(), layer, layers.Dense(K, **SOFT))


def frozen_backbone() -> keras.Model:
    backbone = chain(layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten())
    backbone.trainable = False
    return chain(backbone, layers.Dense(K, **SOFT))


def frozen_head() -> keras.Model:
    model = flat(layers.Dense(K, **SOFT))
    model.get_layer("head").trainable = False
    return model


def with_attribute_set() -> keras.Model:
    model = called(Bare(chain(layers.Flatten(), layers.Dense(5, activation="tanh"))), IMAGES[:1])
    model.scale = 3.0
    return model


def set_afterwards(kind: type) -> keras.Model:
    layer = kind()
    model = flat(layer, layers.Dense(K, **SOFT))
    layer.factor = 3.0
    model.make_predict_function(force=True)
    return model


def adapted_normalization() -> keras.Model:
    layer = layers.Normalization()
    layer.adapt(NUMBERS)
    return keras.Sequential(
        [keras.Input((6,)), layer, layers.Dense(5, activation="tanh"), layers.Dense(K, **SOFT)]
    )


def text_vectorization() -> keras.Model:
    layer = layers.TextVectorization(output_sequence_length=6)
    layer.adapt(TEXTS)
    tail = layers.Embedding(16, 5), layers.GlobalAveragePooling1D(), layers.Dense(K, **SOFT)
    return chain(layer, *tail, shape=(), dtype="string")


def lookup(kind: Any, data: Any, dtype: str, **options: Any) -> Callable[[], keras.Model]:
    def make() -> keras.Model:
        layer = kind(output_mode="one_hot", **options)
        layer.adapt(data)
        return chain(layer, layers.Dense(K, **SOFT), shape=(1,), dtype=dtype)

    return make


def lora(where: str, make_layer: Callable[[], Any] | None = None) -> keras.Model:
    hidden = (make_layer or (lambda: layers.Dense(6, activation="tanh")))()
    hidden.name = "hidden" if make_layer is None else hidden.name
    model = chain(layers.Flatten(), hidden, layers.Dense(K, **SOFT))
    layer = model.get_layer("head") if where == "head" else hidden
    layer.enable_lora(2)
    for variable in (layer.lora_kernel_a, layer.lora_kernel_b):
        variable.assign(np.random.default_rng(1).normal(0, 0.3, variable.shape))
    return model


def quantized(*which: int) -> keras.Model:
    model = sequential(layers.Dense(5, activation="tanh"), layers.Dense(K, **SOFT))
    for index in which:
        model.layers[index].quantize("int8")
    return model


def shared_layers() -> keras.Model:
    """Siamese: one hidden layer reads both halves of the image."""
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Dense(5, activation="tanh")
    upper = hidden(layers.Flatten()(inputs[:, :4]))
    lower = hidden(layers.Flatten()(inputs[:, 4:]))
    return keras.Model(inputs, layers.Dense(K, **SOFT)(layers.Concatenate()([upper, lower])))


def head_used_twice() -> keras.Model:
    inputs = keras.Input((8, 8, 1))
    head = layers.Dense(K, **SOFT)
    upper, lower = head(layers.Flatten()(inputs[:, :4])), head(layers.Flatten()(inputs[:, 4:]))
    return keras.Model(inputs, layers.Average()([upper, lower]))


def of_inputs(kind: type) -> keras.Model:
    first, second = keras.Input((6,), name="first"), keras.Input((7, 4), name="second")
    joined = layers.Concatenate()([first, layers.Flatten()(second)])
    inputs = {"first": first, "second": second} if kind is dict else kind([first, second])
    return keras.Model(inputs, layers.Dense(K, **SOFT)(joined))


def tagging(head: Any = None, **of_embedding: Any) -> keras.Model:
    body = layers.Embedding(9, 5, **of_embedding), layers.LSTM(5, return_sequences=True)
    return chain(*body, head or layers.Dense(K, **SOFT), shape=(7,), dtype="int32")


def attention() -> keras.Model:
    inputs = keras.Input((7, 4))
    hidden = layers.MultiHeadAttention(2, 3)(inputs, inputs)
    hidden = layers.LayerNormalization()(hidden + inputs)[:, 0]
    return keras.Model(inputs, layers.Dense(K, **SOFT)(hidden))


def small_mobilenet(version: int) -> keras.Model:
    """The heads of `keras.applications.MobileNet` and `MobileNetV3Small`."""
    body = layers.Conv2D(4, 3, activation="relu"), layers.GlobalAveragePooling2D(keepdims=True)
    after = layers.Reshape((K,)) if version == 1 else layers.Flatten()
    head = layers.Conv2D(K, 1, padding="same", name="head")
    return chain(*body, layers.Dropout(0.1, seed=0), head, after, layers.Activation("softmax"))


def small_unet(head: Any) -> keras.Model:
    inputs = keras.Input((8, 8, 1))
    wide = layers.Conv2D(3, 3, padding="same", activation="relu")(inputs)
    deep = layers.UpSampling2D()(layers.MaxPooling2D()(wide))
    return keras.Model(inputs, head(layers.Concatenate()([wide, deep])))


# --- what is compared -----------------------------------------------------------------


def randomise(model: keras.Model) -> None:
    """Trainable weights as after some training: no bias is zero."""
    random = np.random.default_rng(3)
    for variable in model.trainable_variables:
        variable.assign(variable + random.normal(0, 0.3, variable.shape))


def class_probabilities(classifier: keras.Model, x: Any) -> np.ndarray:
    """`[…, K]` of a plain classifier that ends in a softmax, a sigmoid (K = 2) or scores."""
    outputs = ops.convert_to_numpy(ops.cast(classifier(x, training=False), "float64"))
    if outputs.shape[-1] == 1:
        return np.concatenate([1 - outputs, outputs], axis=-1)
    if outputs.ndim > 2 and outputs.shape[1] == K and np.allclose(outputs.sum(1), 1, atol=1e-4):
        return np.moveaxis(outputs, 1, -1)
    if np.allclose(outputs.sum(-1), 1, atol=2e-2):
        return outputs
    return ops.convert_to_numpy(ops.softmax(outputs))


def decoded(model: Any, x: Any, classes: int = K) -> np.ndarray:
    """`[…, K]` of a protected model, also where its labels are on the second axis."""
    confused = ops.convert_to_numpy(model(x, training=False))
    if confused.ndim > 2 and confused.shape[-1] < 2 * classes < confused.shape[1]:
        confused = np.moveaxis(confused, 1, -1)
    return model.decode(confused)
