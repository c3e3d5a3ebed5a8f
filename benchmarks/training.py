"""How every method, and every attacker, trains: Adam over one cosine cycle."""

import time
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .data import Data


@dataclass(frozen=True)
class Schedule:
    """A cycle: epochs, batch size, and the learning rate that it starts from."""

    epochs: int
    batch: int
    rate: float = 1e-3

    def in_words(self) -> str:
        return f"{self.epochs} epochs of batch {self.batch} from rate {self.rate:g}"


def batches(x: np.ndarray, y: np.ndarray, batch: int, augment: bool) -> tf.data.Dataset:
    """Shuffled batches; with `augment`, flipped and shifted by up to 4 pixels (CIFAR-10's rule)."""
    found = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x)).batch(batch)
    return found.map(augmented, tf.data.AUTOTUNE).prefetch(2) if augment else found.prefetch(2)


def augmented(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    size, shape = tf.shape(x)[0], x.shape[1:]
    flip = tf.random.uniform([size, 1, 1, 1]) < 0.5
    x = tf.where(flip, tf.reverse(x, [2]), x)
    x = tf.pad(x, [[0, 0], [4, 4], [4, 4], [0, 0]])
    offsets = tf.random.uniform([size, 2], 0, 9, tf.int32)
    rows = offsets[:, :1] + tf.range(shape[0])
    columns = offsets[:, 1:] + tf.range(shape[1])
    x = tf.gather(x, rows, axis=1, batch_dims=1)
    return tf.gather(x, columns, axis=2, batch_dims=1), y


def augments(data: Data) -> bool:
    return data.name == "cifar10"


def adam(schedule: Schedule, samples: int) -> keras.optimizers.Optimizer:
    steps = schedule.epochs * -(-samples // schedule.batch)
    return keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(schedule.rate, steps, alpha=0.01)
    )


def train(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    schedule: Schedule,
    augment: bool,
    **options: Any,
) -> float:
    """One cycle of `fit` on a classifier; `options` go to `compile`. Returns CPU seconds."""
    options.setdefault("loss", "sparse_categorical_crossentropy")
    model.compile(adam(schedule, len(x)), metrics=["accuracy"], **options)
    found = batches(x, y, schedule.batch, augment)
    start = time.process_time()
    model.fit(found, epochs=schedule.epochs, shuffle=False, verbose=0)  # shuffled above
    return time.process_time() - start


def accuracy(model: keras.Model, data: Data) -> float:
    """Of a classifier, on the test set; of a protected model, decoded."""
    return float(model.evaluate(data.x_test, data.y_test, batch_size=500, verbose=0)[1])
