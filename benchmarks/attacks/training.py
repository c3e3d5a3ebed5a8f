"""Attacks that train: on the labelled samples, and on pseudo-labels from the model's structure."""

from collections.abc import Iterator
from dataclasses import dataclass

import keras
import numpy as np

from .. import backbones, training
from ..data import CLASSES, Data
from .outsider import Outsider, batched
from .probing import Known, confident, rows, score
from .reading import respread

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


def fine_tuned(
    outsider: Outsider, x: np.ndarray, y: np.ndarray, y_test: np.ndarray, plan: Lessons
) -> Iterator[tuple[str, str, float]]:
    """(attack, setting, accuracy): a new head alone; then everything, from that head
    (Kumar et al., ICLR 2022) and from a fresh one."""
    model = with_new_head(outsider, plan.seed)
    fresh = model.get_weights()
    freeze(model, statistics_only=False)
    plan.fit(model, x, y, 1e-2)
    yield "new head", "rate 0.01", score(batched(model, outsider.test).argmax(1), y_test)
    probed = model.get_weights()
    kept = {True: ", statistics kept", False: ""}
    for start, rate, fixed in (
        (probed, 1e-3, True),
        (probed, 1e-4, True),
        (probed, 1e-3, False),
        (fresh, 1e-3, False),
    ):
        model = with_new_head(outsider, plan.seed)
        model.set_weights(start)
        if fixed:
            freeze(model, statistics_only=True)
        plan.fit(model, x, y, rate)
        found = batched(model, outsider.test).argmax(1)
        name = "fresh head" if start is fresh else "probed head"
        yield "fine-tuning", f"{name}, rate {rate}{kept[fixed]}", score(found, y_test)


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
    known: Known,
    y_test: np.ndarray,
    plan: Lessons,
) -> Iterator[tuple[str, str, float]]:
    """(attack, setting, accuracy): the whole model fine-tuned on pseudo-labels, twice.

    The first pseudo-labels come from `reading.respread`, which no test label has chosen; the
    next ones from the network that learned them. `by input` takes them as they are; `by confused
    label`, all inputs with the same confused label get the class that these inputs have most of.
    """
    answers = outsider.answers.unlabelled
    _, first = respread(outsider.spaces, known, y, 0.3, 1)
    for structured in (False, True):
        attack = "pseudo-labels by " + ("confused label" if structured else "input")
        shares = first
        for number, part in enumerate(SHARES, 1):
            if structured:
                shares = rows(answers.T @ shares)[answers.argmax(1)]
            model = with_new_head(outsider, plan.seed)
            plan.fit(model, *mixed(x, y, outsider.unlabelled, shares, part), 1e-3)
            found = batched(model, outsider.test).argmax(1)
            yield attack, f"round {number}", score(found, y_test)
            shares = batched(model, outsider.unlabelled)


def from_scratch(
    data: Data, x: np.ndarray, y: np.ndarray, plan: Lessons, rate: float
) -> keras.Model:
    keras.utils.set_random_seed(plan.seed)
    model = backbones.build(data.name, x.shape[1:])
    plan.fit(model, x, y, rate)
    return model


def alone(
    data: Data,
    unlabelled: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    nearby: np.ndarray,
    plan: Lessons,
) -> Iterator[tuple[str, str, float]]:
    """(attack, setting, accuracy) without any model: the owner's architecture from scratch, and
    self-training from its pseudo-labels or from label spreading over the raw inputs.

    Args:
        nearby: class scores of the unlabelled inputs by that label spreading.
    """
    starts = {"label spreading": nearby}
    for rate in (1e-3, 3e-3):
        model = from_scratch(data, x, y, plan, rate)
        found = batched(model, data.x_test).argmax(1)
        yield "from scratch", f"rate {rate}", score(found, data.y_test)
        starts.setdefault("network", batched(model, unlabelled))
    for start, shares in starts.items():
        for number, part in enumerate(SHARES, 1):
            model = from_scratch(data, *mixed(x, y, unlabelled, shares, part), plan, 1e-3)
            found = batched(model, data.x_test).argmax(1)
            yield "self-training", f"from {start}, round {number}", score(found, data.y_test)
            shares = batched(model, unlabelled)
