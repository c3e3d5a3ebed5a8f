"""Fan, Ng, Chan: Rethinking Deep Neural Network Ownership Verification: Embedding Passports
to Defeat Ambiguity Attacks, NeurIPS 2019; Fan, Ng, Chan, Yang: DeepIPR, TPAMI 2021.

White box, scheme V1: the passport travels with the model and is needed for inference. Each
convolution of the last stage (V1's layers) has a passport (P_beta, P_gamma), shaped as its
inputs, and takes scale and bias from them instead of learning them:

    y = gamma * BN(W * x) + beta,  gamma = Avg(W * P_gamma),  beta = Avg(W * P_beta)
    E = CE + 0.1 * sum_i max(0, 0.1 - b_i gamma_i) + 1e-5 * sum_i gamma_i^2

The second term of E is the papers' sign loss, the third is in the authors' code only.
Bits b in {-1, 1} are random. Passports are drawn from U(-1, 1), or ("shuffle", the authors'
default) hold the feature maps of 20 images in an ordinarily trained model, mixed over the
images channel by channel. As in the authors' code, but for:

- Adam over the cosine cycles of all methods, without weight decay, instead of SGD with steps;
- BatchNormalization with the momentum of the backbones; ReLU where the backbone has it;
- passport images come from the training set, not the test set;
- b stays with the owner: the authors save it in the model, where inference needs it not.

There are no users in the paper; a user's copy gets a passport and bits of its own, and is
fine-tuned with E.
"""

from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from .. import backbones
from ..data import Data
from ..training import Schedule, accuracy, augments, batches, train
from .base import LOSS, Detection, Peer, copied, judged, late_convolutions, tune

SIGN_WEIGHT, MARGIN, SQUARE_WEIGHT = 0.1, 0.1, 1e-5
IMAGES = 20  # of a shuffled passport
COPY_STEPS = 0.4  # of a training, to give a user's copy its passport

Passports = list[np.ndarray]
"""P_beta and P_gamma, `[2, height, width, channels]`, of every late convolution."""
Bits = list[np.ndarray]
"""-1 or 1 for each filter of every late convolution."""


@keras.saving.register_keras_serializable(package="benchmarks")
class PassportConv2D(keras.layers.Conv2D):
    """Convolution, normalisation and the passport's scale and bias.

    Both passports are convolved again at every call, as one batch. They are weights, so
    they are saved with the model, as in V1.

    Attributes:
        bits: `[filters]`, -1 or 1, while the owner trains: adds the sign loss.
            Neither saved nor copied.
    """

    bits: np.ndarray | None = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        options = {"shape": (2, *input_shape[1:]), "initializer": "zeros", "trainable": False}
        self.passport = self.add_weight(name="passport", **options)
        self.norm = backbones.BatchNormalization(momentum=0.9, center=False, scale=False)
        self.norm.build(self.compute_output_shape(input_shape))

    def scale_and_bias(self) -> Any:
        """beta and gamma, `[2, filters]`."""
        return ops.mean(self.convolution_op(self.passport, self.kernel), (1, 2))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        normal = self.norm(self.convolution_op(inputs, self.kernel), training=training)
        beta, gamma = ops.unstack(self.scale_and_bias(), 2)
        if training and self.bits is not None:
            gap = ops.relu(MARGIN - self.bits.astype("float32") * gamma)
            self.add_loss(SIGN_WEIGHT * ops.sum(gap) + SQUARE_WEIGHT * ops.sum(gamma**2))
        return gamma * normal + beta

    # Conv2D's own save the kernel alone.
    def save_own_variables(self, store: dict[str, Any]) -> None:
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: dict[str, Any]) -> None:
        keras.layers.Layer.load_own_variables(self, store)


def passport_unit(x: Any, filters: int, size: int, strides: int, late: bool) -> Any:
    """For `backbones.build`: passports in the last stage. He-normal of the fan-out."""
    if not late:
        return backbones.conv_norm(x, filters, size, strides, late)
    he = keras.initializers.VarianceScaling(2, "fan_out", "untruncated_normal")
    return PassportConv2D(
        filters, size, strides, padding="same", use_bias=False, kernel_initializer=he
    )(x)


class Passport(Peer):
    name: ClassVar[str] = "passport"

    def fit(
        self,
        data: Data,
        first: Schedule,
        second: Schedule,
        pretrained: keras.Model | None = None,
    ) -> float:
        """With `pretrained`, an ordinary classifier of the same backbone, passports are
        "shuffle", else "random". Its training is not in the CPU seconds."""
        passports, bits = self.build(data, pretrained)
        install(self.model, passports)
        sign(self.model, bits)
        self._batch, self._rate = second.batch, second.rate
        self._steps = sum(c.epochs * -(-len(data.x) // c.batch) for c in (first, second))
        cost = sum(
            train(self.model, data.x, data.y, cycle, augments(data)) for cycle in (first, second)
        )
        sign(self.model, None)
        return cost

    def build(self, data: Data, pretrained: keras.Model | None = None) -> tuple[Passports, Bits]:
        """The untrained model. Returns the owner's secrets."""
        keras.utils.set_random_seed(self.seed)
        self.model = backbones.build(data.name, data.x.shape[1:], passport_unit)
        self._images, self._maps = data.x, None
        if pretrained is not None:
            inputs = [layer.input for layer in late_convolutions(pretrained)]
            self._maps = keras.Model(pretrained.input, inputs)
        return self.secrets(None)

    def secrets(self, user: str | None) -> tuple[Passports, Bits]:
        """Passports and signature of a user, or of the owner."""
        random = self.random(user)
        bits = random_bits(self.model, random)
        if self._maps is None:
            return random_passports(self.model, random), bits
        pairs = []
        for _ in range(2):
            chosen = random.choice(len(self._images), IMAGES, replace=False)
            maps = keras.tree.flatten(self._maps(self._images[chosen], training=False))
            pairs.append([mixed(np.asarray(m), random) for m in maps])
        return [np.stack(pair) for pair in zip(*pairs, strict=True)], bits

    def detect(self, model: keras.Model | None = None, user: str | None = None) -> Detection:
        """Signs of gamma, of the suspect's kernels and the owner's passport, that equal b.

        Reads kernels alone, so that a folded model is judged as well.
        """
        model = self.model if model is None else model
        return signs(model, *self.secrets(user))

    def personalise(
        self, data: Data, user: str, steps: int | None = None
    ) -> tuple[keras.Model, float]:
        """New passport and bits, then `COPY_STEPS` of a training."""
        copy = copied(self.model)
        steps = round(COPY_STEPS * self._steps) if steps is None else steps
        passports, bits = self.secrets(user)
        install(copy, passports)
        sign(copy, bits)
        found = batches(data.x, data.y, self._batch, augments(data))
        cost = tune(copy, found, steps, self._batch, self._rate)
        sign(copy, None)
        return copy, cost

    def without_key(self, data: Data) -> float:
        """With a passport of U(-1, 1), which takes no knowledge of the model."""
        return self._accuracy_with(random_passports(self.model, self.random("nobody")), data)

    def with_similar_key(self, data: Data) -> float:
        """With a passport drawn as the owner's was, by who has the pretrained model as well."""
        return self._accuracy_with(self.secrets("nobody")[0], data)

    def _accuracy_with(self, passports: Passports, data: Data) -> float:
        copy = copied(self.model)
        install(copy, passports)
        return accuracy(copy, data)

    def folded(self, model: keras.Model | None = None) -> keras.Model:
        """The published attack by whoever holds one passport: the same outputs without it.

        gamma and beta become the parameters of an ordinary BatchNormalization, as in the
        authors' own `load_passport_model_to_normal_model`.
        """
        model = self.model if model is None else model
        plain = backbones.build(model.name, model.input_shape[1:])
        for kind in (keras.layers.Conv2D, keras.layers.Dense):
            for to, of in zip(having(plain, kind), having(model, kind), strict=True):
                to.set_weights(of.get_weights()[: len(to.get_weights())])
        norms = having(model, (keras.layers.BatchNormalization, PassportConv2D))
        for to, of in zip(having(plain, keras.layers.BatchNormalization), norms, strict=True):
            if isinstance(of, PassportConv2D):
                beta, gamma = np.asarray(of.scale_and_bias())
                to.set_weights([gamma, beta, *of.norm.get_weights()])
            else:
                to.set_weights(of.get_weights())
        plain.compile(loss=LOSS, metrics=["accuracy"])
        return plain

    def forge(self, model: keras.Model) -> Detection:
        """A random passport and signature of the forger's own: nothing is optimised.

        Bits read off its gammas would all agree; the papers' verifier then sees that accuracy
        is lost with that passport (`without_key`). Attacks that train a passport are
        published and are not tried here.
        """
        random = self.random("forger")
        return signs(model, random_passports(model, random), random_bits(model, random))


def random_passports(model: keras.Model, random: np.random.Generator) -> Passports:
    """Of U(-1, 1)."""
    shapes = [(2, *layer.input.shape[1:]) for layer in late_convolutions(model)]
    return [random.uniform(-1, 1, shape) for shape in shapes]


def random_bits(model: keras.Model, random: np.random.Generator) -> Bits:
    return [random.choice((-1, 1), layer.filters) for layer in late_convolutions(model)]


def mixed(maps: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Channel i is one of image `i % images`, none of them twice."""
    images, *_, channels = maps.shape
    order = [random.permutation(channels) for _ in range(images)]
    found = [maps[i % images, ..., order[i % images][i // images]] for i in range(channels)]
    return np.stack(found, -1)


def install(model: keras.Model, passports: Passports) -> None:
    for layer, passport in zip(late_convolutions(model), passports, strict=True):
        layer.passport.assign(passport)


def sign(model: keras.Model, bits: Bits | None) -> None:
    """Sets, or with None ends, the sign loss."""
    layers = late_convolutions(model)
    for layer, signature in zip(layers, bits or [None] * len(layers), strict=True):
        layer.bits = signature


def signs(model: keras.Model, passports: Passports, bits: Bits) -> Detection:
    """Reads the kernels of a passport model or of a folded one."""
    agree = []
    layers = late_convolutions(model)
    for layer, passport, signature in zip(layers, passports, bits, strict=True):
        scales = layer.convolution_op(passport[1:].astype("float32"), layer.kernel)
        agree.append(np.sign(ops.mean(scales, (0, 1, 2))) == signature)
    return judged(np.concatenate(agree), 1 / 2)


def having(model: keras.Model, kind: Any) -> list[keras.layers.Layer]:
    return [layer for layer in model.layers if isinstance(layer, kind)]
