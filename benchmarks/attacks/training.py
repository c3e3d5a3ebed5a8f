"""Attacks that train: on the labelled samples, and on pseudo-labels from the model's structure."""

from collections.abc import Mapping
from dataclasses import dataclass

import keras
import numpy as np

from .. import backbones, training
from ..data import CLASSES, Data
from .outsider import Outsider, batched
from .probing import Accuracies, confident, rows, score

BATCH = 32
SHARES = (0.5, 0.9)
"""Of the pseudo-labels of every class, the most confident, round by round."""


@dataclass(frozen=True)
class Lessons:
    """How every network of an attack is trained.

    Attributes:
        steps: gradient steps.
        augment: as the owner does.
        seed: of weights and batches.
    """

    steps: int
    augment: bool
    seed: int

    def fit(self, model: keras.Model, x: np.ndarray, y: np.ndarray, rate: float) -> None:
        """One pass over samples that are repeated as often as it takes."""
        batch, random = min(BATCH, len(x)), np.random.default_rng(self.seed)
        passes = -(-self.steps * batch // len(x))
        order = np.concatenate([random.permutation(len(x)) for _ in range(passes)])
        order = order[: self.steps * batch]
        training.train(model, x[order], y[order], training.Schedule(1, batch, rate), self.augment)


def with_new_head(outsider: Outsider, seed: int) -> keras.Model:
    """A copy of the backbone, its weights included, under a fresh head of K."""
    keras.utils.set_random_seed(seed)
    backbone = keras.models.clone_model(outsider.backbone)
    backbone.set_weights(outsider.backbone.get_weights())
    outputs = keras.layers.Dense(CLASSES, activation="softmax", name="outsider_head")(
        backbone.output
    )
    return keras.Model(backbone.input, outputs)


def freeze(model: keras.Model, statistics_only: bool) -> None:
    """Fix all but the head, or only BatchNormalization, which then keeps the model's statistics."""
    for layer in model.layers[:-1]:
        normalises = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = statistics_only and not normalises


def probed(outsider: Outsider, x: np.ndarray, y: np.ndarray, plan: Lessons) -> keras.Model:
    """The backbone as it is, under a new head that was trained."""
    model = with_new_head(outsider, plan.seed)
    freeze(model, statistics_only=False)
    plan.fit(model, x, y, 1e-2)
    return model


def fine_tuned(
    outsider: Outsider,
    start: list[np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    y_test: np.ndarray,
    plan: Lessons,
) -> Accuracies:
    """Everything is trained, from a probed head (Kumar et al., ICLR 2022) and from a fresh one.

    Args:
        start: weights of `probed`.
    """
    kept = {True: ", statistics kept", False: ""}
    for weights, rate, fixed in (
        (start, 1e-3, True),
        (start, 1e-4, True),
        (start, 1e-3, False),
        (None, 1e-3, False),
    ):
        model = with_new_head(outsider, plan.seed)
        if weights is not None:
            model.set_weights(weights)
        if fixed:
            freeze(model, statistics_only=True)
        plan.fit(model, x, y, rate)
        found = batched(model, outsider.test).argmax(1)
        name = "fresh head" if weights is None else "probed head"
        yield f"{name}, rate {rate}{kept[fixed]}", score(found, y_test)


def mixed(
    x: np.ndarray, y: np.ndarray, unlabelled: np.ndarray, shares: np.ndarray, part: float
) -> tuple[np.ndarray, np.ndarray]:
    """Labelled samples, a fifth of all, with the most confident pseudo-labelled ones."""
    chosen = confident(shares, part)
    own = np.tile(np.arange(len(x)), max(1, len(chosen) // (4 * len(x))))
    return (
        np.concatenate([x[own], unlabelled[chosen]]),
        np.concatenate([y[own], shares[chosen].argmax(1)]),
    )


def pseudo_labelled(
    outsider: Outsider,
    x: np.ndarray,
    y: np.ndarray,
    shares: np.ndarray,
    y_test: np.ndarray,
    plan: Lessons,
    *,
    structured: bool,
) -> Accuracies:
    """The whole model fine-tuned on pseudo-labels, twice.

    Args:
        shares: the first pseudo-labels; the next ones come from the network that learned them.
        structured: all inputs with the same confused label get the class that these inputs have
            most of.
    """
    answers = outsider.answers.unlabelled
    for number, part in enumerate(SHARES, 1):
        if structured:
            shares = rows(answers.T @ shares)[answers.argmax(1)]
        model = with_new_head(outsider, plan.seed)
        plan.fit(model, *mixed(x, y, outsider.unlabelled, shares, part), 1e-3)
        found = batched(model, outsider.test).argmax(1)
        yield f"round {number}", score(found, y_test)
        shares = batched(model, outsider.unlabelled)


def from_scratch(
    data: Data, x: np.ndarray, y: np.ndarray, plan: Lessons, rate: float
) -> keras.Model:
    """The owner's architecture, which needs no model."""
    keras.utils.set_random_seed(plan.seed)
    model = backbones.build(data.name, x.shape[1:])
    plan.fit(model, x, y, rate)
    return model


def self_trained(
    data: Data,
    unlabelled: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    starts: Mapping[str, np.ndarray],
    plan: Lessons,
) -> Accuracies:
    """From scratch on pseudo-labels, twice.

    Args:
        starts: name → class shares of the unlabelled inputs.
    """
    for start, first in starts.items():
        shares = first
        for number, part in enumerate(SHARES, 1):
            model = from_scratch(data, *mixed(x, y, unlabelled, shares, part), plan, 1e-3)
            found = batched(model, data.x_test).argmax(1)
            yield f"from {start}, round {number}", score(found, data.y_test)
            shares = batched(model, unlabelled)
