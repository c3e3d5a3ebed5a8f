"""What an attack works with, each part computed when the first attack asks for it."""

import math
from collections.abc import Callable
from functools import cached_property

import keras
import numpy as np

from .. import backbones
from ..data import Data, labelled
from . import probing, reading, training
from .outsider import NEIGHBOURS, UNLABELLED, Outsider, Space, noise, raw_inputs
from .unlabelled import clusterings

COLUMNS = 768
"""Of a protected head, by default, for ten classes."""


class Case:
    """One outsider with n labelled samples per class.

    Args:
        data: its test labels only measure.
        n: samples per class; the training split must have as many.
        seed: of the choice of the samples, and of training.
        augment: as the owner's training does.
        steps: of every network that is trained.
        look: gives the outsider; is called if an attack needs the model.
    """

    def __init__(
        self,
        data: Data,
        n: int,
        seed: int,
        augment: bool,
        steps: int,
        look: Callable[[], Outsider] | None = None,
    ) -> None:
        self.data, self.seed = data, seed
        self.plan = training.Lessons(steps, augment, seed)
        chosen = labelled(data, n, seed)
        self.x, self.y, self.y_test = data.x[chosen], data.y[chosen], data.y_test
        self._look = look

    # --- with the model --------------------------------------------------------

    @cached_property
    def outsider(self) -> Outsider:
        if self._look is None:
            raise ValueError("An attack that needs the model was run without one.")
        return self._look()

    @cached_property
    def known(self) -> probing.Known:
        return self.outsider.layers(self.x)

    @cached_property
    def spreads(self) -> probing.Spreads:
        return probing.spread_over(self.outsider.spaces, self.known, self.y)

    @cached_property
    def shares(self) -> np.ndarray:
        """Class shares of the unlabelled inputs, which no test label has chosen."""
        return reading.respread(self.outsider.spaces, self.known, self.y, 0.3, 1)[-1]

    @property
    def labels(self) -> reading.Labels:
        return reading.labels_of(self.outsider)

    @cached_property
    def mass(self) -> np.ndarray:
        return reading.votes(self.outsider, self.x, self.y)

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """Clusterings of the test inputs."""
        return dict(clusterings(self.labels))

    @cached_property
    def probed(self) -> keras.Model:
        """The backbone under a new head, which alone was trained."""
        return training.probed(self.outsider, self.x, self.y, self.plan)

    # --- without it ------------------------------------------------------------

    @cached_property
    def _raw(self) -> tuple[Space, probing.Known]:
        space, project = raw_inputs(self.data)
        return space, {"inputs": project(self.x)}

    @property
    def inputs(self) -> dict[str, Space]:
        return {"inputs": self._raw[0]}

    @property
    def known_inputs(self) -> probing.Known:
        return self._raw[1]

    @cached_property
    def input_spreads(self) -> probing.Spreads:
        return probing.spread_over(self.inputs, self.known_inputs, self.y)

    @cached_property
    def random_spreads(self) -> probing.Spreads:
        """Over the layers of the owner's architecture with weights that anybody can draw: fresh
        ones, and random bits, which is all that a locked export holds."""
        keras.utils.set_random_seed(self.seed)
        whole = backbones.build(self.data.name, self.data.x.shape[1:])
        features = keras.Model(whole.input, whole.layers[-1].input)
        network = keras.Sequential([features, keras.layers.Dense(COLUMNS)])
        random, found = np.random.default_rng(self.seed), {}
        for kind in ("fresh", "bits"):
            if kind == "bits":
                for variable in network.weights:
                    bits = random.bytes(4 * math.prod(variable.shape))
                    variable.assign(noise(np.frombuffer(bits, "<f4"), variable))
            head = network.layers[-1].get_weights()
            view = Outsider(features, *head, self.unlabelled, self.data.x_test)
            spreads = probing.spread_over(view.spaces, view.layers(self.x), self.y)
            found |= {f"{kind}, {name}": spread for name, spread in spreads.items()}
        return found

    @property
    def nearby(self) -> np.ndarray:
        """Class shares of the unlabelled inputs by label spreading over the raw ones."""
        scores = self.input_spreads[f"inputs, {NEIGHBOURS} neighbours, alpha = 0.99"]
        return probing.rows(probing.balanced(scores))[: len(self.inputs["inputs"].unlabelled)]

    @cached_property
    def network(self) -> keras.Model:
        """The owner's architecture, from scratch on the labelled samples."""
        return training.from_scratch(self.data, self.x, self.y, self.plan, 1e-3)

    @property
    def unlabelled(self) -> np.ndarray:
        return self.data.x[:UNLABELLED]
