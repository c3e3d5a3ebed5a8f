"""Adi, Baum, Cisse, Pinkas, Keshet: Turning Your Weakness Into a Strength: Watermarking
Deep Neural Networks by Backdooring, USENIX Security 2018.

Black box: 100 abstract images with random labels (the trigger set) are learned beside the
data. Every batch holds 2 of them per 100 images, from the start ("from scratch"), and the
loss is the mean over both:

    E = 1 / (B + k) * (sum_batch CE(f(x), y) + sum_k triggers CE(f(t), l))

KeyGen publishes commitments to images and labels in advance; Verify opens them
and counts f(t) = l. Hits of a model that never saw the labels are binomial at 1/10. As in
the authors' code, but for:

- Adam over the cosine cycles of all methods, instead of SGD with steps;
- our own images (smooth random noise) instead of photos of unknown licence;
- short runs hold more triggers per batch, so that each is shown `SHOWS` times (600 in the
  paper's run); never fewer than 2 per 100 images;
- commitments are SHA-256 of a nonce and the content; images have no true label that Verify
  could compare with.

The function is not locked. There are no users in the paper; a user's copy is fine-tuned on
the data and 100 triggers of its own (the paper's "pre-trained" mode).
"""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf
from scipy.ndimage import gaussian_filter

from .. import backbones
from ..data import CLASSES, Data
from ..training import Schedule, accuracy, augments, batches
from .base import Detection, Peer, copied, judged, tune

TRIGGERS = 100
PER_100 = 2  # triggers per 100 images, at least
SHOWS = 20  # of each trigger in a training, at least
COPY_STEPS = 0.25  # of a training, to mark a user's copy
COPY_SHOWS = 20  # of each trigger meanwhile, at least


@dataclass(frozen=True)
class TriggerKey:
    """The secret marking key: images, labels and the nonces of their commitments."""

    images: np.ndarray
    labels: np.ndarray
    nonces: tuple[bytes, ...]

    def commitments(self) -> tuple[str, ...]:
        """To publish before the model: one per trigger, hiding image and label."""
        return tuple(
            hashlib.sha256(nonce + image.tobytes() + int(label).to_bytes(8)).hexdigest()
            for nonce, image, label in zip(self.nonces, self.images, self.labels, strict=True)
        )


def drawn(random: np.random.Generator, shape: tuple[int, ...]) -> TriggerKey:
    """100 images of smooth colour noise in 0 … 1, and labels that know nothing of them."""
    noise = random.standard_normal((TRIGGERS, *shape))
    smooth = gaussian_filter(noise, (0, shape[0] / 16, shape[1] / 16, 0), mode="wrap")
    low, high = smooth.min((1, 2, 3), keepdims=True), smooth.max((1, 2, 3), keepdims=True)
    images = ((smooth - low) / (high - low)).astype("float32")
    labels = random.integers(0, CLASSES, TRIGGERS)
    return TriggerKey(images, labels, tuple(random.bytes(32) for _ in range(TRIGGERS)))


def verify(model: keras.Model, key: TriggerKey, published: tuple[str, ...]) -> Detection:
    """Counts hits, if the key opens what was published; else there are none."""
    if key.commitments() != published:
        return judged(np.zeros(TRIGGERS, bool), 1 / CLASSES)
    return judged(answers(model, key.images) == key.labels, 1 / CLASSES)


def answers(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(model(images, training=False)).argmax(-1)


def triggers_per_batch(batch: int, steps: int, shows: int) -> int:
    return max(-(-PER_100 * batch // 100), -(-shows * TRIGGERS // steps))


def with_triggers(
    data: Data, key: TriggerKey, batch: int, steps: int, shows: int
) -> tf.data.Dataset:
    """Batches of the data, augmented as ever, each with some triggers as they are."""
    extra = tf.data.Dataset.from_tensor_slices((key.images, key.labels)).shuffle(TRIGGERS)
    extra = extra.repeat().batch(triggers_per_batch(batch, steps, shows))
    found = batches(data.x, data.y, batch, augments(data))
    return tf.data.Dataset.zip(found, extra).map(joined).prefetch(2)


def joined(clean: tuple[tf.Tensor, tf.Tensor], extra: tuple[tf.Tensor, tf.Tensor]) -> tuple:
    return tuple(tf.concat(pair, 0) for pair in zip(clean, extra, strict=True))


class Adi(Peer):
    """Attributes:
    published: the owner's commitments, from the start.
    """

    name: ClassVar[str] = "adi"

    def fit(self, data: Data, first: Schedule, second: Schedule) -> float:
        keras.utils.set_random_seed(self.seed)
        self.model = backbones.build(data.name, data.x.shape[1:])
        self.published = self.key(None).commitments()
        self._batch, self._rate = second.batch, second.rate
        counts = [cycle.epochs * -(-len(data.x) // cycle.batch) for cycle in (first, second)]
        self._steps = sum(counts)
        cost = 0.0
        for cycle, steps in zip((first, second), counts, strict=True):
            found = with_triggers(data, self.key(None), cycle.batch, self._steps, SHOWS)
            cost += tune(self.model, found, steps, cycle.batch, cycle.rate)
        return cost

    def key(self, user: str | None) -> TriggerKey:
        """The marking key of a user, or of the owner."""
        return drawn(self.random(user), self.model.input_shape[1:])

    def detect(self, model: keras.Model | None = None, user: str | None = None) -> Detection:
        """Triggers that get their label. Reads answers only."""
        key = self.key(user)
        published = self.published if user is None else key.commitments()
        return verify(self.model if model is None else model, key, published)

    def personalise(
        self, data: Data, user: str, steps: int | None = None
    ) -> tuple[keras.Model, float]:
        """Fine-tunes on the data and the user's triggers, `COPY_STEPS` of a training."""
        copy = copied(self.model)
        steps = round(COPY_STEPS * self._steps) if steps is None else steps
        found = with_triggers(data, self.key(user), self._batch, steps, COPY_SHOWS)
        return copy, tune(copy, found, steps, self._batch, self._rate)

    def without_key(self, data: Data) -> float:
        """The plain accuracy: nothing is locked."""
        return accuracy(self.model, data)

    def forge(self, model: keras.Model) -> Detection:
        """New images, labelled with the model's own answers: all hits, of any model.

        The forger opens its own commitments. Only a date before the model's would tell.
        """
        made = drawn(self.random("forger"), model.input_shape[1:])
        key = TriggerKey(made.images, answers(model, made.images), made.nonces)
        return verify(model, key, key.commitments())
