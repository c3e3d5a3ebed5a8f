"""The term against neighbouring homophones: what it sees, where it stays finite, what it brings."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

import keras_encryip as ke
from keras_encryip.training.homophones import Homophones
from keras_encryip.training.neutrality import (
    MAX_LABELS,
    SCALES,
    exposure,
    grouping,
    labels_to_compare,
)

CLASSES, CLUSTERS = 10, 12
KINDS = np.repeat(np.arange(CLASSES, dtype="int32"), CLUSTERS)
PARTS = np.tile(np.arange(CLUSTERS, dtype="int32"), CLASSES)


def seen(points: Any, classes: np.ndarray = KINDS, clusters: np.ndarray = PARTS) -> float:
    return float(grouping(np.asarray(points, "float32"), classes, clusters))


def noise(seed: int, dimensions: int, points: int = len(KINDS)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((points, dimensions))


# --- grouping: what it sees --------------------------------------------------------------


@pytest.mark.parametrize(("classes", "clusters"), [(2, 2), (3, 4), (10, 12)])
def test_equal_points_of_equidistant_classes(classes: int, clusters: int) -> None:
    """By hand: own class at distance 0, all others at the same one, K / (K − 1) of the mean."""
    kinds = np.repeat(np.arange(classes), clusters)
    others, far = classes * clusters - 1, classes / (classes - 1)
    expected = np.log(clusters)  # all variance between the classes; 1 / clusters by chance
    for scale in SCALES:
        own = clusters - 1
        share = own / (own + (others - own) * np.exp(-far / scale))
        expected += np.log(share * others / own) / len(SCALES)
    found = seen(np.eye(classes)[kinds], kinds, np.tile(np.arange(clusters), classes))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dimensions", [4, 33, 200])
def test_points_that_know_no_class(dimensions: int) -> None:
    """0 but for chance, which the clipping at 0 adds up."""
    assert np.mean([seen(noise(s, dimensions)) for s in range(10)]) < 0.3


CENTRES = noise(100, 16, CLASSES)[KINDS]
GROUPED: dict[str, Callable[[float], np.ndarray]] = {
    "apart": lambda strength: strength * CENTRES + noise(1, 16),
    "in-2-of-32-dimensions": lambda strength: (
        noise(2, 32) + 3 * strength * np.pad(CENTRES[:, :2], ((0, 0), (0, 30)))
    ),
    # The means coincide: only the neighbourhood tells.
    "each-on-an-axis-of-its-own": lambda strength: (
        strength * np.sign(noise(3, 1)) * np.eye(CLASSES)[KINDS] * 8 + noise(4, CLASSES)
    ),
    # Neighbours are of all classes: only the means tell.
    "a-little-in-each-of-600-dimensions": lambda strength: (
        0.3 * strength * noise(5, 600, CLASSES)[KINDS] + noise(6, 600)
    ),
}


@pytest.mark.parametrize("kind", GROUPED)
def test_points_that_are_grouped_by_class(kind: str) -> None:
    none, half, full = (seen(GROUPED[kind](strength)) for strength in (0.0, 0.5, 1.0))
    assert none < 0.35
    assert none + 0.1 < half < full
    assert full > 0.8


def test_grouping_by_anything_else_is_not_seen() -> None:
    """By cluster, where each cluster has one label of every class."""
    assert seen(4 * noise(7, 16, CLUSTERS)[PARTS] + noise(8, 16)) < 0.3


def test_turned_scaled_and_moved_points_are_the_same() -> None:
    points = GROUPED["apart"](0.5)
    turn = np.linalg.qr(noise(9, 16, 16))[0]
    expected = seen(points)
    for same in (points @ turn, 100 * points, points / 100, points + 5):
        assert seen(same) == pytest.approx(expected, rel=1e-3)


def test_order_does_not_matter() -> None:
    points, order = GROUPED["apart"](0.5), np.random.default_rng(0).permutation(len(KINDS))
    assert seen(points[order], KINDS[order], PARTS[order]) == pytest.approx(seen(points), rel=1e-4)


# --- twins: labels of one cluster, which stand for the same inputs -----------------------


def test_classes_of_one_cluster_show_nothing() -> None:
    """All labels of a class are twins: they may lie together, wherever that is."""
    one = np.zeros_like(PARTS)
    assert seen(CENTRES, clusters=one) < 1e-3
    assert seen(CENTRES + noise(1, 16), clusters=one) < 1e-3


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_twins_count_once(strength: float) -> None:
    """Some clusters were drawn twice, or five times: as if once."""
    points, times = GROUPED["apart"](strength), np.array([1, 2, 5, 1])[np.arange(len(KINDS)) % 4]
    again = (np.repeat(a, times, axis=0) for a in (points, KINDS, PARTS))
    assert seen(*again) == pytest.approx(seen(points), rel=1e-3)


def test_a_class_of_one_cluster_beside_others() -> None:
    """Its labels coincide and are far from all: no more is seen than with the class left out."""
    points, parts = noise(11, 16), PARTS.copy()
    points[KINDS == 0] = points[0]
    parts[KINDS == 0] = 0
    rest = KINDS > 0
    assert seen(points, clusters=parts) < seen(points[rest], KINDS[rest], PARTS[rest]) + 0.05


# --- grouping and exposure: degenerate cases ---------------------------------------------


def value_and_gradient(measure: Callable[..., Any], *variables: Any) -> tuple[float, list[Any]]:
    tracked = [tf.Variable(np.asarray(v, "float32")) for v in variables]
    with tf.GradientTape() as tape:
        value = measure(*tracked)
    gradients = tape.gradient(value, tracked, unconnected_gradients="zero")
    return float(value), [np.asarray(g) for g in gradients]


POINTS: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {
    "all-zero": (np.zeros((120, 16)), KINDS, PARTS),
    "all-equal": (np.full((120, 16), 0.1), KINDS, PARTS),
    "nearly-equal": (0.1 + 1e-8 * noise(0, 16), KINDS, PARTS),
    "a-zero-column": (noise(0, 16) * (np.arange(120) != 5)[:, None], KINDS, PARTS),
    "one-dimension": (noise(0, 1), KINDS, PARTS),
    "huge": (1e6 * noise(0, 16), KINDS, PARTS),
    "one-cluster-in-all-classes": (noise(0, 16), KINDS, PARTS * 0),
    "one-cluster-in-a-class": (noise(0, 16), KINDS, np.where(KINDS == 3, 0, PARTS)),
    "two-classes-two-clusters": (noise(0, 3, 4), KINDS[:24:6], PARTS[:24:6]),
    "two-points-of-a-class": (noise(0, 3, 2), KINDS[:2], PARTS[:2]),
    "two-points-of-two-classes": (noise(0, 3, 2), KINDS[::60], PARTS[::60]),
}


@pytest.mark.parametrize("name", POINTS)
def test_grouping_is_finite(name: str) -> None:
    points, classes, clusters = POINTS[name]
    value, (gradient,) = value_and_gradient(lambda p: grouping(p, classes, clusters), points)
    assert 0 <= value < 20
    assert np.isfinite(gradient).all()


def uniform_clusters(classes: int, clusters: int, copies: int) -> Homophones:
    """Every class has all its clusters. Nothing of the inputs is needed here."""
    starts = np.tile(np.arange(clusters, dtype="int32") * copies, (classes, 1))
    nothing = np.zeros((0, 0), "float32")
    return Homophones(nothing, nothing, nothing, starts, np.full_like(starts, copies))


def numbering(classes: int, homophones: int) -> np.ndarray:
    order = np.random.default_rng(1).permutation(classes * homophones)
    return order.reshape(classes, homophones)


LABELS = numbering(CLASSES, 2 * CLUSTERS)
WHOLE = uniform_clusters(CLASSES, CLUSTERS, 2)
NUMBER, FEATURES = LABELS.size, 16


def head(kind: str) -> np.ndarray:
    """Columns `[16, 240]` of a head."""
    fresh = 0.3 * noise(20, NUMBER, FEATURES)
    copied = np.empty_like(fresh)
    copied[:, LABELS] = noise(21, CLASSES, FEATURES)[..., None]
    return {
        "fresh": fresh,
        "copied": copied,
        "stirred": copied + fresh / 3,
        "flat": 0 * fresh,
        "equal": np.repeat(fresh[:, :1], NUMBER, 1),
        "zero-columns": fresh * (np.arange(NUMBER) % 7 > 0),
        "saturated": 300 * fresh,
    }[kind]


def exposed(kernel: Any, features: np.ndarray, drawn: Any, bias: Any = None) -> Any:
    scores = tf.cast(features, "float32") @ kernel
    scores = scores if bias is None else scores + bias
    return exposure(kernel, bias, tf.nn.softmax(scores), drawn)


@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("batch", [1, 32, "equal"], ids=lambda b: f"batch-{b}")
@pytest.mark.parametrize("kind", ["fresh", "copied", "flat", "equal", "zero-columns", "saturated"])
def test_exposure_is_finite(kind: str, batch: Any, use_bias: bool) -> None:
    features = noise(22, FEATURES, 32)
    features = np.repeat(features[:1], 32, 0) if batch == "equal" else features[:batch]
    drawn = labels_to_compare(WHOLE, LABELS, keras.random.SeedGenerator(0))
    variables = [head(kind), *([np.zeros(NUMBER)] if use_bias else [])]
    value, gradients = value_and_gradient(
        lambda kernel, bias=None: exposed(kernel, features, drawn, bias), *variables
    )
    assert 0 <= value < 20
    assert all(np.isfinite(g).all() for g in gradients)
    if kind in ("flat", "equal"):
        assert value < 1e-5
    if kind == "copied":
        assert value > 2  # the columns and their directions are, whatever the batch


@pytest.mark.parametrize(
    ("classes", "clusters", "copies"),
    [(2, 2, 1), (2, 2, 2), (2, 400, 1), (1000, 2, 1)],
    ids=["K=2,h=2", "K=2,h=4", "K=2,h=400", "K=1000,h=2"],
)
def test_few_and_many_classes(classes: int, clusters: int, copies: int) -> None:
    labels = numbering(classes, clusters * copies)
    homophones = uniform_clusters(classes, clusters, copies)
    drawn = labels_to_compare(homophones, labels, keras.random.SeedGenerator(0))
    grouped = np.empty((8, labels.size))
    grouped[:, labels] = noise(0, classes, 8)[..., None]
    values = []
    for kernel in (grouped, noise(1, labels.size, 8)):
        value, gradients = value_and_gradient(
            lambda kernel, bias: exposed(kernel, noise(2, 8, 16), drawn, bias),
            kernel,
            np.zeros(labels.size),
        )
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in gradients)
        values.append(value)
    assert values[0] > values[1] + 0.5


# --- labels_to_compare -------------------------------------------------------------------


def drawn_often(homophones: Homophones, labels: np.ndarray, times: int) -> list[np.ndarray]:
    """`[labels, classes, clusters]` of each draw."""
    generator = keras.random.SeedGenerator(3)
    draws = []
    for _ in range(times):
        found = [
            keras.ops.convert_to_numpy(a) for a in labels_to_compare(homophones, labels, generator)
        ]
        assert {a.dtype for a in found} == {np.dtype("int32")}
        draws.append(np.array(found))
    return draws


@pytest.mark.parametrize(
    ("classes", "clusters", "copies", "count"),
    [
        pytest.param(10, 12, 2, 120, id="all-clusters"),
        pytest.param(10, 64, 1, 250, id="25-clusters-each"),
        pytest.param(2, 500, 2, 256, id="128-clusters-each"),
        pytest.param(100, 9, 2, 200, id="2-clusters-each"),
        pytest.param(1000, 2, 1, 256, id="128-of-1000-classes"),
        pytest.param(2, 2, 1, 4, id="smallest"),
    ],
)
def test_labels_are_of_the_classes_and_clusters_that_are_named(
    classes: int, clusters: int, copies: int, count: int
) -> None:
    table = numbering(classes, clusters * copies)
    homophones = uniform_clusters(classes, clusters, copies)
    for labels, kinds, parts in drawn_often(homophones, table, 5):
        assert len(labels) <= MAX_LABELS
        found = np.array([np.argwhere(table == label)[0] for label in labels])
        np.testing.assert_array_equal(found[:, 0], kinds)
        cells = {(k, h // copies) for k, h in found}
        assert len(cells) == len(labels), "one label of a cluster"
        assert len(set(zip(kinds, parts, strict=True))) == len(labels), "no twins"
        sizes = np.unique(kinds, return_counts=True)[1]
        assert len(set(sizes)) == 1
        assert sizes[0] >= 2
        assert len(labels) == count


def test_every_label_is_drawn_at_some_step() -> None:
    """And labels of a cluster evenly: 60 draws of 2, a share below 0.15 has p = 1e-8."""
    table = numbering(10, 24)
    draws = drawn_often(uniform_clusters(10, 12, 2), table, 60)
    sets = {frozenset(labels) for labels, _, _ in draws}
    assert len(sets) == 60
    counts = np.bincount(np.concatenate([labels for labels, _, _ in draws]), minlength=240)
    assert (counts[table].reshape(10, 12, 2).sum(-1) == 60).all()
    assert counts.min() > 9


def test_many_classes_take_turns() -> None:
    draws = drawn_often(uniform_clusters(1000, 2, 1), numbering(1000, 2), 100)
    assert len(np.unique(np.concatenate([kinds for _, kinds, _ in draws]))) == 1000


def test_a_graph_draws_anew_at_every_call() -> None:
    generator = keras.random.SeedGenerator(0)
    draw = tf.function(lambda: labels_to_compare(WHOLE, LABELS, generator)[0])
    first, second = draw().numpy(), draw().numpy()
    assert (np.sort(first) != np.sort(second)).any()


def test_clusters_that_a_small_class_repeats() -> None:
    """Class 1 has 30 samples: one cluster of all 8 homophones, where class 0 has four of 2."""
    x = noise(0, 5, 330).astype("float32")
    kinds = (np.arange(330) >= 300).astype(int)
    homophones = Homophones.clustered(x, kinds, 2, homophones=8, copies=2)
    table = numbering(2, 8)
    used: set[int] = set()
    for labels, classes, parts in drawn_often(homophones, table, 80):
        assert sorted(parts[classes == 0]) == [0, 2, 4, 6]
        assert set(parts[classes == 1]) == {0}, "all of one cluster: twins"
        assert set(labels[classes == 0]) <= set(table[0])
        assert set(labels[classes == 1]) <= set(table[1])
        used |= set(labels)
    assert used == set(range(16))


# --- what an outsider sees ---------------------------------------------------------------


def neighbours_of_own_class(points: np.ndarray, classes: np.ndarray, clusters: np.ndarray) -> float:
    """The share of points whose nearest, twins left out, is of their own class."""
    own = classes[:, None] == classes
    distances = ((points[:, None] - points) ** 2).sum(-1)
    distances[own & (clusters[:, None] == clusters)] = np.inf
    return float((classes[distances.argmin(1)] == classes).mean())


def ward(points: np.ndarray, classes: np.ndarray) -> float:
    """Adjusted Rand index of the columns' clusters: 1 when they are the classes."""
    found = AgglomerativeClustering(len(np.unique(classes))).fit_predict(points)
    return float(adjusted_rand_score(classes, found))


def outsider(kernel: Any) -> tuple[float, float]:
    columns = keras.ops.convert_to_numpy(kernel).T[LABELS.reshape(-1)]
    kinds = np.repeat(np.arange(CLASSES), 2 * CLUSTERS)
    parts = np.tile(np.arange(2 * CLUSTERS) // 2, CLASSES)
    return neighbours_of_own_class(columns, kinds, parts), ward(columns, kinds)


def test_one_gradient_step_lowers_the_exposure() -> None:
    features = noise(22, FEATURES, 32)
    drawn = labels_to_compare(WHOLE, LABELS, keras.random.SeedGenerator(0))
    kernel = head("stirred")
    before, (gradient,) = value_and_gradient(lambda k: exposed(k, features, drawn), kernel)
    assert before > 2
    step = 0.3 / np.abs(gradient).max()
    after, _ = value_and_gradient(lambda k: exposed(k, features, drawn), kernel - step * gradient)
    assert after < before - 0.01


def test_steps_take_the_classes_from_the_columns() -> None:
    """Nothing but this term: neither nearest neighbours nor Ward find the classes at the end."""
    features, generator = noise(22, FEATURES, 32), keras.random.SeedGenerator(0)
    kernel = tf.Variable(head("stirred").astype("float32"))
    optimizer = keras.optimizers.Adam(0.05)

    @tf.function
    def step() -> None:
        drawn = labels_to_compare(WHOLE, LABELS, generator)
        with tf.GradientTape() as tape:
            value = exposed(kernel, features, drawn)
        optimizer.apply([tape.gradient(value, kernel)], [kernel])

    assert min(outsider(kernel)) > 0.95
    optimizer.build([kernel])
    for _ in range(100):
        step()
    assert max(outsider(kernel)) < 0.2


# --- on a model --------------------------------------------------------------------------


def outsider_of(model: ke.ProtectedModel) -> tuple[float, float]:
    """The same from a model's head, its bias among the columns."""
    head, state = model.confused_labels, model._unlocked().training
    labels = model._unlocked().assignment().labels
    parts = np.empty_like(labels)
    for k, (starts, sizes) in enumerate(
        zip(state.homophones.starts, state.homophones.sizes, strict=True)
    ):
        for start, size in zip(starts, sizes, strict=True):
            parts[k, start : start + size] = start
    kernel, bias = (keras.ops.convert_to_numpy(v) for v in (head.kernel, head.bias))
    columns = np.column_stack([kernel.T, bias])[labels.reshape(-1)]
    kinds = np.repeat(np.arange(len(labels)), labels.shape[1])
    return neighbours_of_own_class(columns, kinds, parts.reshape(-1)), ward(columns, kinds)


def trained_from_a_copied_head(
    classifier: keras.Model, authority: ke.Authority, digits: Any, **options: Any
) -> ke.ProtectedModel:
    keras.utils.set_random_seed(0)
    model = ke.protect(classifier, authority, name="digits", trace_labels=0, **options)
    model.compile(
        keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.adapt(digits.x, digits.y)
    assert outsider_of(model) == (1, pytest.approx(1)), "copies of ten columns"
    model.fit(digits.x, digits.y, batch_size=64, epochs=12, verbose=0)
    return model


def test_training_takes_the_classes_from_the_head(
    trained_classifier: keras.Model, shared_authority: ke.Authority, digits: Any
) -> None:
    """Six clusters of two homophones in each class; weight 1, and 0, the default.

    In 10 trainings of each: nearest 0.05 … 0.16 and 1.0, Ward 0.00 … 0.03 and 0.96 … 1.0.
    """
    with_term, without = (
        trained_from_a_copied_head(
            trained_classifier, shared_authority, digits, homophones=12, **options
        )
        for options in ({"neutrality_weight": 1.0}, {})
    )
    assert max(outsider_of(with_term)) < 0.4
    assert min(outsider_of(without)) > 0.8
    for model in (with_term, without):
        assert model.evaluate(digits.x_test, digits.y_test, verbose=0)[1] > 0.93
