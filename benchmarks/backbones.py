"""The classifiers that all methods protect: a small CNN, and ResNet-20."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from .data import CLASSES

layers = keras.layers

Unit = Callable[..., Any]
"""`unit(x, filters, size, strides, late)`: a convolution and its normalisation, without
activation. `late` says that it belongs to the last stage, where passports sit."""


@keras.saving.register_keras_serializable(package="benchmarks")
class BatchNormalization(layers.BatchNormalization):
    """Keras's, but for TensorFlow's fused operation in training: ResNet-20 then trains half
    again as fast on 2 cores. Of all methods, so that it changes no comparison."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not (training and self.trainable):
            return super().call(inputs, training=training)
        channels = inputs.shape[-1]
        outputs, mean, variance, *_ = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            keras.ops.convert_to_tensor(self.gamma) if self.scale else tf.ones(channels),
            keras.ops.convert_to_tensor(self.beta) if self.center else tf.zeros(channels),
            epsilon=self.epsilon,
        )
        for moving, seen in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(self.momentum * moving + (1 - self.momentum) * seen)
        return outputs


def conv_norm(x: Any, filters: int, size: int, strides: int, late: bool) -> Any:
    """Convolution without bias, then BatchNormalization."""
    x = layers.Conv2D(
        filters, size, strides, padding="same", use_bias=False, kernel_initializer="he_normal"
    )(x)
    return BatchNormalization(momentum=0.9)(x)


def build(data: str, shape: tuple[int, ...], unit: Unit = conv_norm) -> keras.Model:
    """The classifier of a data set, a functional model that ends in `Dense(10, softmax)`."""
    inputs = keras.Input(shape)
    features = resnet20(inputs, unit) if data == "cifar10" else small_cnn(inputs, data, unit)
    outputs = layers.Dense(CLASSES, activation="softmax", name="head")(features)
    return keras.Model(inputs, outputs, name=data)


def small_cnn(x: Any, data: str, unit: Unit) -> Any:
    """Two convolutions and a dense layer of 128."""
    first, second = (32, 64) if data == "digits" else (16, 32)
    x = layers.ReLU()(unit(x, first, 3, 1, False))
    if data != "digits":
        x = layers.MaxPooling2D()(x)
    x = layers.MaxPooling2D()(layers.ReLU()(unit(x, second, 3, 1, True)))
    x = layers.Dropout(0.2)(layers.Flatten()(x))
    return layers.Dense(128, activation="relu")(x)


def resnet20(x: Any, unit: Unit) -> Any:
    """He et al., CVPR 2016, section 4.2: n = 3, with projections where the width changes."""
    x = layers.ReLU()(unit(x, 16, 3, 1, False))
    for filters in (16, 32, 64):
        late = filters == 64
        for block in range(3):
            strides = 2 if block == 0 and filters > 16 else 1
            y = layers.ReLU()(unit(x, filters, 3, strides, late))
            y = unit(y, filters, 3, 1, late)
            if strides > 1:
                x = unit(x, filters, 1, strides, late)
            x = layers.ReLU()(layers.Add()([x, y]))
    return layers.GlobalAveragePooling2D()(x)
