"""Uchida, Nagai, Sakazawa, Satoh: Embedding Watermarks into Deep Neural Networks, ICMR 2017.

White box: bits b are read from one kernel with the secret matrix X. w is the mean of the
kernel over its output filters, flattened, and

    E(w) = E0(w) + lambda * sum_j BCE(sigmoid(sum_i X_ji w_i), b_j)     (eq. 1, 4, 5)
    b'_j = 1 if sum_i X_ji w_i >= 0 else 0                              (eq. 2, 3)

with X of N(0, 1) ("random"), lambda 0.01. As in the authors' code, but for:

- Adam over the cosine cycles of all methods, instead of SGD with steps;
- random bits instead of ones: users are told apart by their own X and b;
- the kernel is the largest of the last stage (of equal ones the last), and bits keep the
  authors' share of its inputs: 256 of 3 x 3 x 64 in ResNet-20, 128 of 3 x 3 x 32 for digits,
  64 of 3 x 3 x 16 for MNIST.

The function is not locked. There are no users in the paper; a user's copy is marked
without data, by gradient descent on the penalty alone until every bit is right.
"""

import time
from typing import ClassVar

import keras
import numpy as np
from keras import ops
from scipy.special import expit

from .. import backbones
from ..data import Data
from ..training import Schedule, accuracy, augments, train
from .base import Detection, Peer, copied, judged, late_convolutions

INPUTS_PER_BIT = 2.25  # the authors': 3 x 3 x 64 inputs for 256 bits
WEIGHT = 0.01  # lambda
MARGIN = 1e-3  # of a copy's bits, so that rounding to float32 turns none
STEPS = 100_000  # of a copy's marking, at most


class Penalty(keras.regularizers.Regularizer):
    """lambda * sum_j BCE (eq. 4, 5). Its secrets never enter a saved model."""

    def __init__(self, secret: np.ndarray, bits: np.ndarray) -> None:
        self.secret, self.bits = secret.astype("float32"), bits.astype("float32")

    def __call__(self, kernel: keras.Variable) -> keras.KerasTensor:
        logits = ops.reshape(ops.mean(kernel, -1), (1, -1)) @ self.secret
        # BCE from logits is softplus(z) - b z.
        return WEIGHT * ops.sum(ops.softplus(logits) - logits * self.bits)


class Uchida(Peer):
    name: ClassVar[str] = "uchida"

    def fit(self, data: Data, first: Schedule, second: Schedule) -> float:
        keras.utils.set_random_seed(self.seed)
        self.model = backbones.build(data.name, data.x.shape[1:])
        # Not in the layer's configuration, so copies of the model are free of it.
        kernel = marked_kernel(self.model)
        kernel.regularizer = Penalty(*self._secrets(kernel, None))
        cost = sum(
            train(self.model, data.x, data.y, cycle, augments(data)) for cycle in (first, second)
        )
        kernel.regularizer = None
        return cost

    def detect(self, model: keras.Model | None = None, user: str | None = None) -> Detection:
        """Right bits of T; `1 - score` is the bit error rate."""
        kernel = marked_kernel(self.model if model is None else model)
        secret, bits = self._secrets(kernel, user)
        return judged((projected(kernel, secret) >= 0) == bits, 1 / 2)

    def personalise(
        self, data: Data, user: str, steps: int | None = None
    ) -> tuple[keras.Model, float]:
        """Gradient descent on the penalty until every bit is right, or for `steps`.

        The penalty depends on the filters' mean alone, and moves all filters alike, so the
        descent runs on the mean; its step is 1 / L, L a bound on the curvature. No data is
        used.
        """
        copy = copied(self.model)
        kernel = marked_kernel(copy)
        start = time.process_time()
        secret, bits = self._secrets(kernel, user)
        before = filters_mean(kernel)
        mean, rate = before.copy(), 4 / np.linalg.norm(secret, 2) ** 2
        for _ in range(STEPS if steps is None else steps):
            logits = mean @ secret
            if np.all(np.where(bits, logits, -logits) > MARGIN):
                break
            mean -= rate * (secret @ (expit(logits) - bits))
        moved = (mean - before).reshape(*kernel.shape[:-1], 1).astype("float32")
        kernel.assign_add(np.broadcast_to(moved, kernel.shape))
        return copy, time.process_time() - start

    def without_key(self, data: Data) -> float:
        """The plain accuracy: nothing is locked."""
        return accuracy(self.model, data)

    def forge(self, model: keras.Model) -> Detection:
        """Columns of a new X whose bits are wrong change their sign: all bits of any model."""
        kernel = marked_kernel(model)
        secret, bits = self._secrets(kernel, "forger")
        secret = np.where((projected(kernel, secret) >= 0) == bits, secret, -secret)
        return judged((projected(kernel, secret) >= 0) == bits, 1 / 2)

    def _secrets(self, kernel: keras.Variable, user: str | None) -> tuple[np.ndarray, np.ndarray]:
        """X `[D, T]` and b `[T]`."""
        size = int(np.prod(kernel.shape[:-1]))
        random, count = self.random(user), int(size / INPUTS_PER_BIT)
        return random.standard_normal((size, count)), random.integers(0, 2, count).astype(bool)


def marked_kernel(model: keras.Model) -> keras.Variable:
    """The largest of the last stage; of equal ones the last."""
    kernels = [layer.kernel for layer in late_convolutions(model)]
    return max(reversed(kernels), key=lambda kernel: np.prod(kernel.shape))


def filters_mean(kernel: keras.Variable) -> np.ndarray:
    """w of the paper, `[D]`."""
    return np.asarray(ops.mean(kernel, -1), np.float64).ravel()


def projected(kernel: keras.Variable, secret: np.ndarray) -> np.ndarray:
    return filters_mean(kernel) @ secret
