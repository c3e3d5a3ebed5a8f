"""What a thief does to a classifier: any Keras model of inputs → `[n, K]` probabilities.

Our own model becomes one by `decoded_classifier`; those of other methods are one already.
`finetune`, `prune` and `quantise` change a model in place, `distil` and `replace_head` give
another one.
"""

from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np

from keras_encryip.models.protected_model import ProtectedModel

from .training import Schedule, batches, train

BATCH = 500
"""For predictions."""


class Decode(keras.layers.Layer):
    """Confused labels `[n, N]` → classes `[n, K]`: each label's probability to its class.

    Holds no variable, so that nothing can train, prune or quantise it.
    """

    def __init__(self, table: np.ndarray, classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.matrix = (table[:, None] == np.arange(classes)).astype(np.float32)

    def call(self, confused: Any) -> Any:
        return keras.ops.matmul(confused, self.matrix)


def decoded_classifier(model: ProtectedModel, table: np.ndarray) -> keras.Model:
    """A key holder's classifier, which shares the variables of `model`.

    A trace label means what this key's table says. The owner's trace inputs do not join
    its training, whether or not `model` is unlocked.

    Args:
        model: built, with a functional backbone.
        table: int `[N]`, the key's class of each confused label.
    """
    inputs = keras.Input(model.backbone.input_shape[1:])
    confused = model.confused_labels(model.backbone(inputs))
    return keras.Model(inputs, Decode(table, model.num_classes)(confused))


def kernels(model: keras.Model) -> list[Any]:
    """The kernels of all dense layers and convolutions, nested ones too."""
    return [variable for variable in model.weights if variable.name == "kernel"]


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    return float((predict(model, x).argmax(-1) == y).mean())


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(model.predict(x, batch_size=BATCH, verbose=0))


# --- the same weights, changed -----------------------------------------------------------


def finetune(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    schedule: Schedule,
    augment: bool,
    after_epoch: Callable[[], None] | None = None,
) -> None:
    """Adam at a constant rate on all weights, BatchNormalization in training mode."""
    model.trainable = True
    model.compile(keras.optimizers.Adam(schedule.rate), "sparse_categorical_crossentropy")
    found = batches(x, y, schedule.batch, augment)
    callbacks = []
    if after_epoch is not None:
        callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: after_epoch())]
    options = {"shuffle": False, "verbose": 0, "callbacks": callbacks}  # shuffled above
    model.fit(found, epochs=schedule.epochs, **options)


def prune(model: keras.Model, share: float) -> None:
    """Every kernel `pruned`, without retraining."""
    _change(model, lambda kernel: pruned(kernel, share))


def quantise(model: keras.Model, kind: Literal["int8", "float16"]) -> None:
    """Replaces every kernel by what is left of it in fewer bits; the rest stays float32."""
    _change(model, {"int8": _int8, "float16": _float16}[kind])


def pruned(kernel: np.ndarray, share: float) -> np.ndarray:
    """Its smallest weights set to 0."""
    least = np.argsort(np.abs(kernel), axis=None)[: round(share * kernel.size)]
    values = kernel.copy()
    values.flat[least] = 0
    return values


def noisy(kernel: np.ndarray, size: float, random: np.random.Generator) -> np.ndarray:
    """With normal noise of `size` standard deviations of the kernel."""
    noise = random.standard_normal(kernel.shape, np.float32)
    return np.asarray(kernel + np.float32(size * kernel.std()) * noise)


def integers(kernel: np.ndarray) -> np.ndarray:
    """int8, symmetric, one scale for the tensor, which the suspect does not tell."""
    return np.round(kernel / np.abs(kernel).max() * 127).astype(np.int8)


def _int8(kernel: np.ndarray) -> np.ndarray:
    """Symmetric, −127 … 127, one scale for each output (the last axis), as LiteRT's 8-bit
    quantisation specification has it for weights."""
    scale = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / 127
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.asarray(np.rint(kernel / scale).astype(np.int8) * scale)


def _float16(kernel: np.ndarray) -> np.ndarray:
    return kernel.astype(np.float16).astype(np.float32)


def _change(model: keras.Model, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for kernel in kernels(model):
        kernel.assign(change(keras.ops.convert_to_numpy(kernel)))


# --- other weights -----------------------------------------------------------------------


def distil(
    model: keras.Model,
    inputs: np.ndarray,
    schedule: Schedule,
    build: Callable[[], keras.Model],
    augment: bool,
) -> keras.Model:
    """A fresh student, trained on the model's probabilities of unlabelled inputs.

    Cross-entropy with soft labels, which has the gradients of the Kullback–Leibler
    divergence (Hinton et al., 2015). With `augment` the student sees changed inputs with the
    answers to the unchanged ones: the model is asked once for each input.
    """
    student = build()
    answers = predict(model, inputs)
    train(student, inputs, answers, schedule, augment, loss="categorical_crossentropy")
    return student


def replace_head(model: keras.Model, inputs: np.ndarray, schedule: Schedule) -> keras.Model:
    """A new `Dense(K)` in place of the last dense layer and all after it.

    It learns the model's labels of unlabelled inputs from their features; the weights below
    stay, and are shared.
    """
    body = _body(model)
    new = keras.layers.Dense(model.output_shape[-1], activation="softmax", name="new_head")
    learner = keras.Sequential([keras.Input(body.output_shape[1:]), new])
    train(learner, predict(body, inputs), predict(model, inputs).argmax(-1), schedule, False)
    return keras.Model(body.inputs, new(body.output))


def _body(model: keras.Model) -> keras.Model:
    """The functional model up to the input of its last dense layer, with the same layers."""
    dense = [isinstance(layer, keras.layers.Dense) for layer in model.layers]
    head = model.layers[len(dense) - 1 - dense[::-1].index(True) :]

    def kept(layer: keras.layers.Layer) -> keras.layers.Layer:
        return keras.layers.Identity() if any(layer is gone for gone in head) else layer

    return keras.models.clone_model(model, clone_function=kept)
