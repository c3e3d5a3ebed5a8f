"""What an outsider has: the exported weights, inputs without labels, and no key."""

from dataclasses import dataclass
from functools import cached_property

import keras
import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from keras_encryip.models.protected_model import ProtectedModel

from ..data import Data

UNLABELLED = 5_000
SPREAD_TEST = 4_000
DIMENSIONS = 256
NEIGHBOURS = 15
_FIT = 1_000
_BATCH = 500


class Projection:
    """Units standardised, then PCA to at most 256 dimensions, then one scale for all.

    Args:
        sample: `[n, …]`, of which 1,000 are looked at.
    """

    def __init__(self, sample: np.ndarray) -> None:
        flat = _flat(sample[:_FIT])
        self.scaler = StandardScaler().fit(flat)
        count = min(DIMENSIONS, *flat.shape)
        self.pca = PCA(count, random_state=0).fit(self.scaler.transform(flat))
        self.scale = np.sqrt(self.pca.explained_variance_.sum()) or 1.0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (self.pca.transform(self.scaler.transform(_flat(x))) / self.scale).astype("float32")


@dataclass(frozen=True)
class Space:
    """One representation (a layer, or the raw inputs) of the inputs without labels.

    Attributes:
        unlabelled: `[u, d]`.
        test: `[t, d]`, the test inputs.
    """

    unlabelled: np.ndarray
    test: np.ndarray

    @cached_property
    def nodes(self) -> np.ndarray:
        """What label spreading runs over: the unlabelled inputs, then the first test inputs."""
        return np.concatenate([self.unlabelled, self.test[:SPREAD_TEST]])

    @cached_property
    def finder(self) -> NearestNeighbors:
        return NearestNeighbors(n_neighbors=NEIGHBOURS).fit(self.nodes)

    @cached_property
    def neighbours(self) -> np.ndarray:
        """int `[nodes, 15]`: the nearest other nodes, nearest first."""
        return self.finder.kneighbors(return_distance=False)

    @cached_property
    def clusters(self) -> dict[int, MiniBatchKMeans]:
        """k-means of the unlabelled inputs, K … 10 K clusters."""
        return {
            k: MiniBatchKMeans(k, n_init=3, batch_size=1024, random_state=0).fit(self.unlabelled)
            for k in (10, 20, 50, 100)
            if k <= len(self.unlabelled)
        }


def noise(stored: np.ndarray, variable: keras.Variable) -> np.ndarray:
    """Floats of random bits, as a variable's values.

    They are of any size: they are cut to -1 … 1, or no layer would be finite.
    """
    values = np.nan_to_num(stored.reshape(variable.shape), posinf=1, neginf=-1).clip(-1, 1)
    return np.abs(values) if variable.name == "moving_variance" else values


class Outsider:
    """Who holds a model's weights and no key.

    The unlabelled inputs are the owner's own training inputs, up to 5,000 of them, and the test
    inputs are there for transductive attacks too. Both favour the outsider.

    Args:
        backbone: inputs → features, a functional or sequential model.
        kernel, bias: the head, `[d, N]` and `[N]`.
        unlabelled, test: inputs.
        others: look at the layers that are not boundaries, instead of those that are.
    """

    def __init__(
        self,
        backbone: keras.Model,
        kernel: np.ndarray,
        bias: np.ndarray,
        unlabelled: np.ndarray,
        test: np.ndarray,
        *,
        others: bool = False,
    ) -> None:
        self.backbone = backbone
        self.kernel = kernel
        self.bias = bias
        self.unlabelled = unlabelled
        self.test = test
        self._boundaries = _boundaries(backbone, others)
        self._projections: dict[str, Projection] = {}
        for name, values in self._raw(unlabelled[:_FIT]).items():
            self._projections[name] = Projection(values)

    @classmethod
    def of(cls, model: ProtectedModel, data: Data) -> "Outsider":
        head = model.confused_labels
        kernel = keras.ops.convert_to_numpy(head.kernel)
        bias = np.zeros(model.num_labels, "float32")
        if head.use_bias:
            bias = keras.ops.convert_to_numpy(head.bias)
        return cls(model.backbone, kernel, bias, data.x[:UNLABELLED], data.x_test)

    def others(self) -> "Outsider":
        """The same, who looks at the layers that are not boundaries."""
        given = (self.backbone, self.kernel, self.bias, self.unlabelled, self.test)
        return Outsider(*given, others=True)

    # --- what the model says ---------------------------------------------------

    def features(self, x: np.ndarray) -> np.ndarray:
        return batched(self.backbone, x)

    def logits(self, x: np.ndarray) -> np.ndarray:
        return self.features(x) @ self.kernel + self.bias

    def confused(self, x: np.ndarray) -> np.ndarray:
        """Probabilities of the confused labels, `[n, N]`."""
        return softmax(self.logits(x))

    def layers(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Every layer boundary, pooled over space and flattened; logits and answers; all in at
        most 256 dimensions."""
        parts = [
            {name: self._projections[name](values) for name, values in self._raw(part).items()}
            for part in _batches(x)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _raw(self, x: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for name, output in self._boundaries(x, training=False).items():
            values = keras.ops.convert_to_numpy(output)
            if values.ndim == 4:
                found[f"{name}, pooled"] = values.mean((1, 2))
            found[name] = _flat(values)
        logits = found["features"] @ self.kernel + self.bias
        found["logits"] = logits - logits.mean(1, keepdims=True)
        found["answers"] = np.sqrt(softmax(logits))
        return found

    # --- the same for the inputs without labels, computed once -----------------

    @cached_property
    def spaces(self) -> dict[str, Space]:
        unlabelled, test = self.layers(self.unlabelled), self.layers(self.test)
        return {name: Space(unlabelled[name], test[name]) for name in unlabelled}

    @cached_property
    def answers(self) -> Space:
        """Confused labels' probabilities, as they are."""
        return Space(self.confused(self.unlabelled), self.confused(self.test))


def raw_inputs(data: Data) -> tuple[Space, Projection]:
    """The inputs themselves as a representation: needs no model."""
    unlabelled = data.x[:UNLABELLED]
    project = Projection(unlabelled)
    return Space(project(unlabelled), project(data.x_test)), project


def batched(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """A model's outputs. No graph is traced, since most models are asked once or twice."""
    parts = [keras.ops.convert_to_numpy(model(part, training=False)) for part in _batches(x)]
    return np.concatenate(parts)


def softmax(logits: np.ndarray) -> np.ndarray:
    scores = np.exp(logits - logits.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def _boundaries(backbone: keras.Model, others: bool) -> keras.Model:
    """The backbone with the features, and the outputs of all activations that everything passes
    through: in a residual network, those between its blocks. Numbered from the inputs.

    Or the outputs of all `others`: activations inside of blocks, sums and normalisations.
    Convolutions before a normalisation are left out: probes standardise units, and see the
    same in both."""
    found = {}
    bridges = _bridges(backbone)
    for layer in backbone.layers:
        rectified = isinstance(layer, keras.layers.ReLU | keras.layers.Activation)
        activation = getattr(layer, "activation", None)
        active = rectified or activation not in (None, keras.activations.linear)
        linear = isinstance(layer, keras.layers.BatchNormalization | keras.layers.Add)
        if others and (linear or (active and layer not in bridges)):
            found[f"other {len(found) + 1}"] = layer.output
        elif not others and active and layer in bridges:
            found[f"layer {len(found) + 1}"] = layer.output
    kept = {n: output for n, output in found.items() if output is not backbone.outputs[0]}
    return keras.Model(backbone.input, {**kept, "features": backbone.outputs[0]})


def _bridges(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers that no path from the inputs to the outputs avoids."""
    places = {id(layer): place for place, layer in enumerate(model.layers)}
    free = [True] * len(places)
    for layer in model.layers:
        for tensor in keras.tree.flatten(layer.input):
            before = places[id(tensor._keras_history.operation)]
            for place in range(before + 1, places[id(layer)]):
                free[place] = False
    return [layer for layer, alone in zip(model.layers, free, strict=True) if alone]


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def _batches(x: np.ndarray) -> list[np.ndarray]:
    return [x[i : i + _BATCH] for i in range(0, len(x), _BATCH)]
