"""Which homophone a training sample is taught to come out as.

Mu et al. (AAAI 2024) draw a class's confused label at random. Here
the draw depends on the input: each class is split into clusters, and a sample's
target is one of its cluster's homophones. An outsider who labels one sample
learns about one cluster, not about the class.
"""

import io
import warnings
from typing import Any

import numpy as np
from keras import ops, random
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

from keras_encryip.labels.trace_set import TraceSet

PCA_COMPONENTS = 32
MAX_SIDE = 32
MIN_CLUSTER_SAMPLES = 20
"""Smaller clusters would be learned by heart, at the cost of accuracy."""


class Homophones:
    """Maps (input, class) to a homophone index 0 … h−1.

    Homophones of a class are cut into consecutive groups, one per cluster; a
    sample's group is that of the nearest centroid in PCA space, and the homophone
    inside it is drawn uniformly. One group of all h is the *random* strategy.

    Attributes:
        mean, components: PCA, float32 `[d]` and `[d, p]`; `p` is 0 for random.
        centroids: float32 `[K, c, p]`.
        starts, sizes: int32 `[K, c]`, the group of each centroid.
    """

    def __init__(
        self,
        mean: np.ndarray,
        components: np.ndarray,
        centroids: np.ndarray,
        starts: np.ndarray,
        sizes: np.ndarray,
    ) -> None:
        self.mean = mean
        self.components = components
        self.centroids = centroids
        self.starts = starts
        self.sizes = sizes

    @classmethod
    def uniform(cls, num_classes: int, homophones: int) -> "Homophones":
        """The random strategy: a fresh uniform draw for every sample and step."""
        return cls(
            np.zeros(0, np.float32),
            np.zeros((0, 0), np.float32),
            np.zeros((num_classes, 1, 0), np.float32),
            np.zeros((num_classes, 1), np.int32),
            np.full((num_classes, 1), homophones, np.int32),
        )

    @classmethod
    def clustered(
        cls,
        features: np.ndarray,
        classes: np.ndarray,
        num_classes: int,
        homophones: int,
        copies: int,
    ) -> "Homophones":
        """Learn the clusters: PCA over all samples, then k-means inside each class.

        Args:
            features: float32 `[n, d]`, from `flatten`.
            classes: int `[n]`.
            num_classes: K.
            homophones: h.
            copies: homophones per cluster; a class with fewer than 20 samples for each
                of its h / copies clusters gets fewer clusters with more homophones.
        """
        pca = PCA(min(PCA_COMPONENTS, *features.shape), svd_solver="randomized", random_state=0)
        points = pca.fit_transform(features).astype(np.float32)
        grid = 1e-5 * float(np.abs(points).max(initial=0)) or 1.0
        points = np.round(points / grid) * grid  # equal samples make equal points
        clusters = max(1, homophones // copies)
        centroids = np.zeros((num_classes, clusters, points.shape[1]), np.float32)
        starts = np.zeros((num_classes, clusters), np.int32)
        sizes = np.zeros((num_classes, clusters), np.int32)
        for k in range(num_classes):
            own = points[classes == k]
            found = _centroids(own, clusters)
            bounds = np.linspace(0, homophones, len(found) + 1).round().astype(np.int32)
            # A class with fewer clusters repeats its first one: argmin takes the first.
            index = np.minimum(np.arange(clusters), len(found) - 1)
            index[len(found) :] = 0
            centroids[k] = found[index]
            starts[k] = bounds[:-1][index]
            sizes[k] = np.diff(bounds)[index]
        return cls(
            pca.mean_.astype(np.float32),
            pca.components_.T.astype(np.float32),
            centroids,
            starts,
            sizes,
        )

    def draw(self, inputs: Any, classes: Any, seed: Any) -> Any:
        """Homophone indices for a batch, in graph.

        Args:
            inputs: the model's inputs `[b, …]`; unused by the random strategy.
            classes: int32, `[b]` (clustered) or any shape (random).
            seed: a `keras.random.SeedGenerator`.

        Returns:
            int32, shape of `classes`.
        """
        starts, sizes = ops.convert_to_tensor(self.starts), ops.convert_to_tensor(self.sizes)
        if self.components.size:
            points = ops.matmul(flatten(inputs) - self.mean, self.components)
            own = ops.take(ops.convert_to_tensor(self.centroids), classes, axis=0)
            distances = ops.sum(ops.square(ops.expand_dims(points, 1) - own), axis=-1)
            group = ops.cast(ops.argmin(distances, axis=-1), "int32")
        else:
            group = ops.zeros_like(classes)
        flat = classes * self.starts.shape[1] + group
        start = ops.take(ops.reshape(starts, (-1,)), flat)
        size = ops.cast(ops.take(ops.reshape(sizes, (-1,)), flat), "float32")
        u = random.uniform(ops.shape(classes), dtype="float32", seed=seed)
        return start + ops.cast(ops.minimum(ops.floor(u * size), size - 1), "int32")

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "mean": self.mean,
            "components": self.components,
            "centroids": self.centroids,
            "starts": self.starts,
            "sizes": self.sizes,
        }


def flatten(inputs: Any) -> Any:
    """Inputs as float32 `[b, d]`; images are average-pooled to at most 32 pixels a side."""
    x = ops.cast(inputs, "float32")
    if len(x.shape) == 4:
        height, width = x.shape[1], x.shape[2]
        if height and width and max(height, width) > MAX_SIDE:
            pool = -(-max(height, width) // MAX_SIDE)
            x = ops.average_pool(x, pool, padding="same", data_format="channels_last")
    return ops.reshape(x, (ops.shape(x)[0], int(np.prod(x.shape[1:]))))


def _centroids(points: np.ndarray, clusters: int) -> np.ndarray:
    """At most `clusters` distinct centroids of `[n, p]` points; one at 0 for no points."""
    if not len(points):
        return np.zeros((1, points.shape[1]), np.float32)
    clusters = min(clusters, len(points) // MIN_CLUSTER_SAMPLES)
    if clusters <= 1:
        return points.mean(0, keepdims=True)
    with warnings.catch_warnings():
        # Equal samples can make fewer clusters than were asked for: the empty ones go.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(clusters, n_init=1, random_state=0).fit(points)
    return found.cluster_centers_[np.unique(found.labels_)].astype(np.float32)


class TrainingState:
    """What `adapt` learned about the data: kept sealed in the ledger, never in a model file.

    Attributes:
        homophones: `Homophones`.
        traces: `TraceSet`, or `None` without trace labels.
    """

    def __init__(self, homophones: Homophones, traces: TraceSet | None) -> None:
        self.homophones = homophones
        self.traces = traces

    def secret_bytes(self) -> bytes:
        """The homophones for sealing, an `.npz`; the trace set is kept apart. Secret."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = self.homophones.arrays()
        np.savez_compressed(buffer, **arrays)  # numbers only, so nothing is pickled
        return buffer.getvalue()

    @classmethod
    def from_secret_bytes(cls, data: bytes, traces: TraceSet | None) -> "TrainingState":
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return cls(Homophones(**file), traces)
