"""Which homophone a sample is taught to come out as."""

from io import BytesIO
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_encryip.errors import FormatError
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.models.homophones import (
    STRATEGIES,
    ClusteredHomophones,
    Homophones,
    RandomHomophones,
    _shared_out,
    flatten,
)
from keras_encryip.models.secrets import TrainingState

Blobs = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw(homophones: Homophones, x: Any, classes: Any, seed: int = 7) -> np.ndarray:
    generator = keras.random.SeedGenerator(seed)
    return np.asarray(homophones.draw(tf.constant(x), tf.constant(classes, "int32"), generator))


def draws(homophones: Homophones, x: Any, classes: Any, times: int) -> np.ndarray:
    """`times` draws of every sample, `[times, n]`."""
    many = np.tile(x, (times,) + (1,) * (np.ndim(x) - 1))
    return draw(homophones, many, np.tile(classes, times)).reshape(times, -1)


def is_uniform(counts: np.ndarray) -> bool:
    """Chi-square at one in 10⁶: the seeds are fixed, so this does not flicker."""
    return bool(stats.chisquare(counts).pvalue > 1e-6)


def nearest(homophones: ClusteredHomophones, x: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The nearest centroid of each sample's class, one distance at a time."""
    groups = []
    for sample, k in zip(x, classes, strict=True):
        point = (sample.reshape(-1) - homophones.mean) @ homophones.components
        distances = [float(np.sum((point - c) ** 2)) for c in homophones.centroids[k]]
        groups.append(int(np.argmin(distances)))
    return np.array(groups)


# --- random ----------------------------------------------------------------------


def test_random_homophones_are_uniform_whatever_the_class() -> None:
    homophones = RandomHomophones(8)
    for k in range(3):
        drawn = draw(homophones, np.zeros((4000, 2), "float32"), np.full(4000, k))
        assert drawn.dtype == np.int32
        assert is_uniform(np.bincount(drawn, minlength=8))
        assert set(drawn) == set(range(8))


@pytest.mark.parametrize("shape", [(5,), (5, 4), (2, 3, 4)], ids=["rows", "tokens", "pixels"])
def test_random_homophones_take_labels_of_any_shape(shape: tuple[int, ...]) -> None:
    drawn = draw(RandomHomophones(4), np.zeros((5, 2), "float32"), np.ones(shape))
    assert drawn.shape == shape


def test_one_homophone_leaves_nothing_to_draw() -> None:
    assert not draw(RandomHomophones(1), np.zeros((50, 2), "float32"), np.ones(50)).any()


# --- clustered -------------------------------------------------------------------


@pytest.fixture(scope="module")
def clustered(blobs: Blobs) -> ClusteredHomophones:
    """Two clusters of three homophones for each of the two classes."""
    x, classes, _ = blobs
    return ClusteredHomophones.fit(x, classes, 2, homophones=6, copies=3)


def test_the_clusters_are_the_data_s(clustered: ClusteredHomophones, blobs: Blobs) -> None:
    x, classes, parts = blobs
    groups = draw(clustered, x, classes) // 3
    for k in range(2):
        of_part = [set(groups[(classes == k) & (parts == part)]) for part in range(2)]
        assert sorted(map(list, of_part)) == [[0], [1]]


def test_draws_follow_the_nearest_centroid(clustered: ClusteredHomophones, blobs: Blobs) -> None:
    """Also for samples the clusters were not learned from, and of the wrong class."""
    x = np.random.default_rng(1).uniform(-5, 14, (200, 3)).astype(np.float32)
    classes = np.arange(200) % 2
    groups = nearest(clustered, x, classes)
    assert 20 < groups.sum() < 180
    np.testing.assert_array_equal(draw(clustered, x, classes) // 3, groups)
    np.testing.assert_array_equal(
        nearest(clustered, blobs[0], blobs[1]), draw(clustered, blobs[0], blobs[1]) // 3
    )


def test_inside_a_cluster_homophones_are_uniform(
    clustered: ClusteredHomophones, blobs: Blobs
) -> None:
    x, classes, _ = blobs
    drawn = draws(clustered, x[:4], classes[:4], 1500)
    for sample in drawn.T:
        values, counts = np.unique(sample, return_counts=True)
        assert list(values) in ([0, 1, 2], [3, 4, 5])
        assert is_uniform(counts)


@pytest.mark.parametrize(
    ("homophones", "copies", "sizes"),
    [(6, 3, [3, 3]), (7, 6, [7]), (5, 2, [2, 3]), (4, 1, [1, 1, 1, 1])],
    ids=["even", "one-cluster", "uneven", "no-copies"],
)
def test_groups_cover_all_homophones_once(
    blobs: Blobs, homophones: int, copies: int, sizes: list[int]
) -> None:
    x, classes, _ = blobs
    learned = ClusteredHomophones.fit(x, classes, 2, homophones, copies)
    for k in range(2):
        assert sorted(learned.sizes[k]) == sizes
        ends = learned.starts[k] + learned.sizes[k]
        assert list(learned.starts[k]) == [0, *ends[:-1]]
        assert ends[-1] == homophones


@pytest.mark.parametrize(("homophones", "copies"), [(6, 6), (2, 4), (1, 1)])
def test_with_one_cluster_the_draw_is_uniform(homophones: int, copies: int) -> None:
    """No sample is looked at."""
    assert not ClusteredHomophones.reads_inputs(homophones, copies)
    nothing = np.zeros((0, 0), "float32"), np.zeros(0, "int32")
    uniform = ClusteredHomophones.fit(*nothing, 2, homophones, copies)
    assert isinstance(uniform, RandomHomophones)
    assert uniform.homophones == homophones


@pytest.mark.parametrize(("samples", "clusters"), [(0, 1), (1, 1), (39, 1), (40, 2), (59, 2)])
def test_a_class_with_few_samples_gets_fewer_clusters(
    blobs: Blobs, samples: int, clusters: int
) -> None:
    """20 samples a cluster: class 1 has `samples` of them, and still all 8 homophones."""
    x, classes, _ = blobs
    keep = np.concatenate([np.flatnonzero(classes == 0), np.flatnonzero(classes == 1)[:samples]])
    learned = ClusteredHomophones.fit(x[keep], classes[keep], 2, homophones=8, copies=2)
    assert len(set(learned.starts[0])) == 4
    assert len(set(learned.starts[1])) == clusters
    both = x[:4][classes[:4] == 1]  # one sample of each sub-class
    drawn = draws(learned, both, np.ones(len(both)), 300)
    assert set(drawn.reshape(-1)) == set(range(8))


@pytest.mark.parametrize("distinct", [1, 2, 3])
def test_equal_samples_make_one_cluster(distinct: int) -> None:
    """No homophone belongs to an empty cluster, where it would never be drawn."""
    classes, kind = np.arange(300) % 2, np.arange(300) // 2 % distinct
    x = np.random.default_rng(0).normal(size=(2, distinct, 5)).astype(np.float32)[classes, kind]
    learned = ClusteredHomophones.fit(x, classes, 2, homophones=6, copies=1)
    for k in range(2):
        assert len(set(learned.starts[k])) == distinct
        drawn = draws(learned, x[classes == k][:distinct], np.full(distinct, k), 200)
        assert set(drawn.reshape(-1)) == set(range(6))


def test_fewer_features_than_components_are_enough() -> None:
    x = np.random.default_rng(0).normal(size=(90, 1)).astype(np.float32)
    learned = ClusteredHomophones.fit(x, np.zeros(90, int), 2, homophones=4, copies=2)
    assert learned.components.shape == (1, 1)
    assert set(draws(learned, x, np.zeros(90), 30).reshape(-1)) == {0, 1, 2, 3}


# --- in graph --------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_graph_and_eager_draw_the_same(
    clustered: ClusteredHomophones, blobs: Blobs, strategy: str
) -> None:
    homophones = {"clustered": clustered, "random": RandomHomophones(6)}[strategy]
    x, classes, _ = blobs
    generator = keras.random.SeedGenerator(7)

    @tf.function(
        input_signature=[tf.TensorSpec([None, 3], "float32"), tf.TensorSpec([None], "int32")]
    )
    def in_graph(x: Any, classes: Any) -> Any:
        return homophones.draw(x, classes, generator)

    first = np.asarray(in_graph(x, classes))
    np.testing.assert_array_equal(first, draw(homophones, x, classes, seed=7))
    assert (np.asarray(in_graph(x, classes)) != first).any(), "a fresh draw at every step"


# --- flatten ---------------------------------------------------------------------


def test_small_images_are_flattened_as_they_are() -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype="uint8").reshape(2, 4, 4, 3)
    np.testing.assert_array_equal(flatten(images), images.reshape(2, 48).astype("float32"))


def test_large_images_are_averaged_to_32_pixels() -> None:
    """64 × 64: each value is the mean of a 2 × 2 square."""
    image = np.random.default_rng(0).random((1, 64, 64, 1), "float32")
    squares = image.reshape(32, 2, 32, 2).mean((1, 3)).reshape(1, -1)
    np.testing.assert_allclose(flatten(image), squares, rtol=1e-6)
    assert flatten(np.zeros((1, 33, 70, 1), "float32")).shape == (1, 11 * 24)


# --- keeping ---------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("traces", [None, "uint8", "float32"])
def test_the_training_state_survives_its_bytes(
    clustered: ClusteredHomophones, blobs: Blobs, strategy: str, traces: str | None
) -> None:
    homophones = {"clustered": clustered, "random": RandomHomophones(6)}[strategy]
    inputs = None if traces is None else np.arange(60).reshape(5, 3, 4).astype(traces)
    trace_set = None if inputs is None else TraceSet(inputs, np.arange(5))
    data = TrainingState(homophones, trace_set).secret_bytes()
    again = TrainingState.from_secret_bytes(data, trace_set)
    assert type(again.homophones) is STRATEGIES[strategy]
    x, classes, _ = blobs
    np.testing.assert_array_equal(draw(again.homophones, x, classes), draw(homophones, x, classes))
    assert again.traces is trace_set
    with np.load(BytesIO(data), allow_pickle=False) as file:
        assert set(file) == {"strategy", *homophones.to_arrays()}
        assert file["strategy"] == strategy


def test_a_state_of_an_unknown_strategy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(STRATEGIES, "mine", type("Mine", (RandomHomophones,), {}))
        data = TrainingState(STRATEGIES["mine"].fit(None, None, 2, 6, 1), None).secret_bytes()
    with pytest.raises(FormatError, match=r"strategy 'mine', .* has 'clustered', 'random'"):
        TrainingState.from_secret_bytes(data, None)


def test_a_pickle_among_the_bytes_is_not_loaded() -> None:
    buffer = BytesIO()
    np.savez_compressed(buffer, mean=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded when allow_pickle=False"):
        TrainingState.from_secret_bytes(buffer.getvalue(), None)


@pytest.mark.parametrize(
    ("counts", "copies", "shares"),
    [
        pytest.param([100, 100], 2, [5, 5], id="alike"),
        pytest.param([180, 20], 2, [7, 3], id="by-size"),
        pytest.param([199, 1], 2, [9, 1], id="one-sample-one-homophone"),
        pytest.param([50, 40, 2], 2, [4, 4, 2], id="copies-at-least"),
        pytest.param([1], 2, [10], id="alone"),
    ],
)
def test_homophones_are_shared_out_by_samples(
    counts: list[int], copies: int, shares: list[int]
) -> None:
    assert list(_shared_out(10, np.array(counts), copies)) == shares
