"""Which homophone a training sample is taught to come out as: a table of strategies.

Mu et al. (AAAI 2024) draw a class's confused label at random. *Clustered* homophones
follow the input instead: each class is split into clusters, and a sample's target is
one of its cluster's homophones. An outsider who labels one sample learns about one
cluster, not about the class.

A further strategy is a subclass of `Homophones` here, and a row of `STRATEGIES`. A model's strategy
is one of them by name, or `AUTOMATIC`: the first of the table that suits its inputs.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import tensorflow as tf
from keras import ops, random, tree

from keras_encryip.errors import ArgumentError

PCA_COMPONENTS = 32
MAX_SIDE = 32
MIN_CLUSTER_SAMPLES = 20
"""Smaller clusters would be learned by heart, at the cost of accuracy."""


class Homophones(ABC):
    """A strategy: maps (input, class) to a homophone index 0 … h−1.

    Instances hold what was learned about the data. It is kept in the ledger as arrays, so a
    strategy's arrays are a file format: they must be read again later.
    """

    @classmethod
    def reads_inputs(cls, homophones: int, copies: int) -> bool:
        """Whether `fit` looks at the data, and `draw` at its inputs."""
        return False

    @classmethod
    def unsuited(cls, inputs: Any, rank: int) -> str | None:
        """What the strategy needs instead of such inputs and labels; `None` if it can have them.

        Args:
            inputs: a batch, or what is known of all batches: `KerasTensor`s in their structure.
            rank: of the labels; 1 for one label per input.
        """
        return None

    @classmethod
    def features(cls, inputs: Any, classes: np.ndarray) -> np.ndarray:
        """What `fit` is to keep of a batch, float32 `[b, d]`.

        Raises:
            ArgumentError: the strategy is not made for such inputs or labels.
        """
        check_suits(cls, inputs, classes.ndim)
        return np.asarray(flatten(inputs))

    @classmethod
    @abstractmethod
    def fit(
        cls,
        features: np.ndarray,
        classes: np.ndarray,
        num_classes: int,
        homophones: int,
        copies: int,
    ) -> "Homophones":
        """Learn from the data.

        Args:
            features: float32 `[n, d]`, from `features`; empty if not `reads_inputs`.
            classes: int `[n]`.
            num_classes: K.
            homophones: h.
            copies: how many homophones may stand for the same inputs.
        """

    @abstractmethod
    def draw(self, inputs: Any, classes: Any, seed: Any) -> Any:
        """Homophone indices for a batch, in graph.

        Args:
            inputs: the model's inputs `[b, …]`.
            classes: int32, `[b]`; any shape if not `reads_inputs`.
            seed: a `keras.random.SeedGenerator`.

        Returns:
            int32, shape of `classes`.
        """

    @abstractmethod
    def to_arrays(self) -> dict[str, np.ndarray]:
        """What was learned, as arrays of numbers. Secret."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Read what `to_arrays` gave."""


@dataclass(frozen=True, repr=False, eq=False)
class RandomHomophones(Homophones):
    """A fresh uniform draw for every sample and step, whatever the input.

    Attributes:
        homophones: h.
    """

    homophones: int

    @classmethod
    def fit(
        cls, features: Any, classes: Any, num_classes: int, homophones: int, copies: int
    ) -> "RandomHomophones":
        return cls(homophones)

    def draw(self, inputs: Any, classes: Any, seed: Any) -> Any:
        return _below(float(self.homophones), classes, seed)

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {"homophones": np.array(self.homophones)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(int(arrays["homophones"]))


@dataclass(frozen=True, repr=False, eq=False)
class ClusteredHomophones(Homophones):
    """Homophones of a class are cut into consecutive groups, one per cluster.

    A sample's group is that of the nearest centroid in PCA space, and the homophone
    inside it is drawn uniformly.

    Attributes:
        mean, components: PCA, float32 `[d]` and `[d, p]`.
        centroids: float32 `[K, c, p]`.
        starts, sizes: int32 `[K, c]`, the group of each centroid.
    """

    mean: np.ndarray
    components: np.ndarray
    centroids: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def reads_inputs(cls, homophones: int, copies: int) -> bool:
        return homophones > copies  # else there is one cluster

    @classmethod
    def unsuited(cls, inputs: Any, rank: int) -> str | None:
        if isinstance(inputs, (dict, list, tuple)) or not hasattr(inputs, "dtype"):
            wanted, looks = "a single input", f"inputs of type {type(inputs).__name__}"
        else:
            axes = tuple(inputs.shape)[1:]
            looks = f"inputs of shape {axes} and dtype {inputs.dtype}, labels of rank {rank}"
            dtype = str(getattr(inputs.dtype, "name", inputs.dtype))
            if "int" in dtype and len(axes) < 2:
                wanted = "inputs with a geometry, and these look like token ids or categories"
            elif "float" not in dtype and "int" not in dtype and dtype != "bool":
                wanted = "inputs that are numbers"
            elif not axes or rank != 1:
                wanted = "one label per input with features"
            elif None in axes or getattr(inputs, "sparse", False):
                wanted = "dense inputs of one shape"
            else:
                return None
        return f"Clustered homophones need {wanted}. Received: {looks}."

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        classes: np.ndarray,
        num_classes: int,
        homophones: int,
        copies: int,
    ) -> Homophones:
        """Learn the clusters: PCA over all samples, then k-means inside each class.

        A class with fewer than 20 samples for each of its h / copies clusters gets fewer clusters
        with more homophones, shared out by size: a homophone that no sample is drawn to would
        stay a copy. One cluster in all is a uniform draw.
        """
        if not cls.reads_inputs(homophones, copies):
            return RandomHomophones(homophones)
        from sklearn.decomposition import PCA

        pca = PCA(min(PCA_COMPONENTS, *features.shape), svd_solver="randomized", random_state=0)
        points = pca.fit_transform(features).astype(np.float32)
        grid = 1e-5 * float(np.abs(points).max(initial=0)) or 1.0
        points = np.round(points / grid) * grid  # equal samples make equal points
        clusters = homophones // copies
        centroids = np.zeros((num_classes, clusters, points.shape[1]), np.float32)
        starts = np.zeros((num_classes, clusters), np.int32)
        sizes = np.zeros((num_classes, clusters), np.int32)
        for k in range(num_classes):
            centres, counts = _centroids(points[classes == k], clusters)
            bounds = np.concatenate([[0], _shared_out(homophones, counts, copies).cumsum()])
            # A class with fewer clusters repeats its first one: argmin takes the first.
            index = np.arange(clusters)
            index[len(centres) :] = 0
            centroids[k] = centres[index]
            starts[k] = bounds[:-1][index]
            sizes[k] = np.diff(bounds)[index]
        components = pca.components_.T.astype(np.float32)
        return cls(pca.mean_.astype(np.float32), components, centroids, starts, sizes)

    def draw(self, inputs: Any, classes: Any, seed: Any) -> Any:
        points = ops.matmul(flatten(inputs) - self.mean, self.components)
        centroids = ops.take(ops.convert_to_tensor(self.centroids), classes, axis=0)
        distances = ops.sum(ops.square(ops.expand_dims(points, 1) - centroids), axis=-1)
        group = ops.cast(ops.argmin(distances, axis=-1), "int32")
        chosen = classes * self.starts.shape[1] + group
        start, size = (
            ops.take(ops.reshape(ops.convert_to_tensor(table), (-1,)), chosen)
            for table in (self.starts, self.sizes)
        )
        return start + _below(ops.cast(size, "float32"), classes, seed)

    def to_arrays(self) -> dict[str, np.ndarray]:
        return dict(vars(self))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(**arrays)


STRATEGIES: dict[str, type[Homophones]] = {
    "clustered": ClusteredHomophones,
    "random": RandomHomophones,
}
"""What `protect(…, strategy=…)` can be; the key also names the strategy in a training state."""

AUTOMATIC = "automatic"
"""The first of `STRATEGIES` that suits a model's inputs and labels, whatever its name is."""


def kinds_of(strategy: str) -> list[type[Homophones]]:
    """What a model's strategy can come to, the preferred one first."""
    return list(STRATEGIES.values()) if strategy == AUTOMATIC else [STRATEGIES[strategy]]


def suiting(strategy: str, inputs: Any, rank: int) -> type[Homophones]:
    """What a strategy comes to, for inputs and labels as `Homophones.unsuited` takes them.

    Raises:
        ArgumentError: it does not suit them.
    """
    kinds = kinds_of(strategy)
    for kind in kinds:
        if kind.unsuited(inputs, rank) is None:
            return kind
    check_suits(kinds[0], inputs, rank)
    return kinds[0]


def narrowed(strategy: str, inputs: Any, rank: int) -> str:
    """The strategy of a model, by name, from what is known before its data is.

    Args:
        inputs: `KerasTensor`, or a structure of them.
        rank: of the labels.

    Returns:
        `strategy`; in place of `AUTOMATIC`, whose preference the data is asked for, the name of
        another strategy where that one is ruled out already.

    Raises:
        ArgumentError: it does not suit such inputs.
    """
    flat = tree.flatten(inputs)
    if len(flat) == 1 and not isinstance(inputs, dict):
        inputs = flat[0]
    kind = suiting(strategy, inputs, rank)
    if kind is kinds_of(strategy)[0]:
        return strategy
    return next(name for name, each in STRATEGIES.items() if each is kind)


def check_suits(kind: type[Homophones], inputs: Any, rank: int) -> None:
    """Refuse inputs and labels that a strategy is not made for.

    Raises:
        ArgumentError: names what it needs, and a strategy that suits.
    """
    wanted = kind.unsuited(inputs, rank)
    if wanted is not None:
        others = [n for n, each in STRATEGIES.items() if each.unsuited(inputs, rank) is None]
        hint = " or ".join(f"`strategy={name!r}`" for name in others)
        raise ArgumentError(f"{wanted} Pass {hint} to `protect`.")


def flatten(inputs: Any) -> Any:
    """Inputs as float32 `[b, d]`; images are average-pooled to at most 32 pixels a side."""
    if isinstance(inputs, tf.SparseTensor):
        inputs = tf.sparse.to_dense(inputs)
    x = ops.cast(inputs, "float32")
    if len(x.shape) == 4:
        height, width = x.shape[1], x.shape[2]
        if height and width and max(height, width) > MAX_SIDE:
            pool = -(-max(height, width) // MAX_SIDE)
            x = ops.average_pool(x, pool, padding="same", data_format="channels_last")
    return ops.reshape(x, (ops.shape(x)[0], int(np.prod(x.shape[1:]))))


def _below(size: Any, classes: Any, seed: Any) -> Any:
    """Uniform int32 in 0 … `size` − 1, a float; one for each of `classes`."""
    uniform = random.uniform(ops.shape(classes), dtype="float32", seed=seed)
    return ops.cast(ops.minimum(ops.floor(uniform * size), size - 1), "int32")


def _shared_out(homophones: int, counts: np.ndarray, copies: int) -> np.ndarray:
    """How many homophones each cluster gets: by its samples, `copies` at least.

    A cluster of fewer samples than that gets one for each.
    """
    least = np.clip(counts, 1, copies)
    wanted = least + (homophones - least.sum()) * counts / counts.sum()
    shares = np.floor(wanted).astype(int)
    shares[np.argsort(shares - wanted, kind="stable")[: homophones - shares.sum()]] += 1
    return shares


def _centroids(points: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `clusters` distinct centroids of `[n, p]` points, and how many lie at each.

    One at 0 for no points.
    """
    if not len(points):
        return np.zeros((1, points.shape[1]), np.float32), np.ones(1, int)
    clusters = min(clusters, len(points) // MIN_CLUSTER_SAMPLES)
    if clusters <= 1:
        return points.mean(0, keepdims=True), np.array([len(points)])
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Equal samples can make fewer clusters than were asked for: the empty ones go.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(clusters, n_init=1, random_state=0).fit(points)
    used, counts = np.unique(fitted.labels_, return_counts=True)
    return np.asarray(fitted.cluster_centers_[used], np.float32), counts
