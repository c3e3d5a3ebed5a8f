"""The attacks find what they should where it is there to be found, and nothing where it is not."""

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import adjusted_rand_score

import keras_encryip as ke
from benchmarks import attacks, backbones, data, sizes, training
from benchmarks.attacks import outsider as view
from benchmarks.attacks import probing, reading, unlabelled
from benchmarks.attacks import training as lessons
from benchmarks.trainings import copy_of

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore:.shuffle=True. was passed")]

SIZE = sizes.QUICK[0]
WITH_MODEL = {
    "slot voting": "reading",
    "head columns": "reading",
    "co-activation": "reading",
    "centroids": "reading",
    "spread inputs vote": "reading",
    "respread inputs vote": "reading",
    "linear probes": "layers",
    "nearest means": "layers",
    "named clusters": "layers",
    "linear probes, other layers": "layers",
    "label spreading": "layers",
    "new head": "training",
    "fine-tuning": "training",
    "pseudo-labels by input": "training",
    "pseudo-labels by confused label": "training",
}
WITHOUT_MODEL = {
    "linear probes of raw inputs",
    "nearest means of raw inputs",
    "named clusters of raw inputs",
    "label spreading of raw inputs",
    "label spreading of random features",
    "from scratch",
    "self-training",
}


@pytest.fixture(scope="module")
def digits() -> data.Data:
    return data.load("digits", SIZE.samples, SIZE.others)


@pytest.fixture(scope="module")
def models(digits: data.Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One trained classifier under a bare secret numbering, and under eight copies of its head."""
    path: Path = tmp_path_factory.mktemp("attacks") / "authority"
    authority = ke.Authority.create(f"sqlite:///{path}", "attacks", scrypt_log2_n=14)
    keras.utils.set_random_seed(0)
    classifier = backbones.build("digits", digits.x.shape[1:])
    training.train(classifier, digits.x, digits.y, dataclasses.replace(SIZE.first, epochs=4), False)
    return {
        name: ke.protect(copy_of(classifier), authority, name=name, homophones=h, trace_labels=0)
        for name, h in {"permuted": 1, "copies": 8}.items()
    }


@pytest.fixture(scope="module")
def permuted(models: dict[str, Any], digits: data.Data) -> attacks.Outsider:
    return attacks.Outsider.of(models["permuted"], digits)


@pytest.fixture(scope="module")
def copies(models: dict[str, Any], digits: data.Data) -> attacks.Outsider:
    return attacks.Outsider.of(models["copies"], digits)


Results = dict[str, dict[str, Any]]
"""Attack → its figures."""


@pytest.fixture(scope="module")
def one_each(permuted: attacks.Outsider, digits: data.Data) -> Results:
    """Every attack with labels; trainings so short that tracing graphs would take longest."""
    case = attacks.Case(digits, 1, 0, augment=False, steps=3, look=lambda: permuted)
    tf.config.run_functions_eagerly(True)
    found = {name: a.run(case) for name, a in attacks.ATTACKS.items() if a.labelled}
    tf.config.run_functions_eagerly(False)
    return found


@pytest.fixture(scope="module")
def without_labels(permuted: attacks.Outsider, digits: data.Data) -> Results:
    case = attacks.Case(digits, 0, 0, augment=False, steps=3, look=lambda: permuted)
    return {name: a.run(case) for name, a in attacks.ATTACKS.items() if not a.labelled}


# --- the view ------------------------------------------------------------------


def test_the_outsider_sees_what_the_model_answers(
    models: dict[str, Any], copies: attacks.Outsider, digits: data.Data
) -> None:
    expected = models["copies"].predict(digits.x_test[:20], verbose=0)
    np.testing.assert_allclose(copies.confused(digits.x_test[:20]), expected, atol=1e-5)


def test_layers_are_all_boundaries_in_at_most_256_dimensions(
    permuted: attacks.Outsider, digits: data.Data
) -> None:
    found = permuted.layers(digits.x_test[:20])
    assert {name: values.shape for name, values in found.items()} == {
        "layer 1, pooled": (20, 32),
        "layer 1": (20, 256),
        "layer 2, pooled": (20, 64),
        "layer 2": (20, 256),
        "features": (20, 128),
        "logits": (20, 10),
        "answers": (20, 10),
    }
    for name, space in permuted.spaces.items():
        assert 0.8 < np.sqrt(space.unlabelled.var(0).sum()) < 1.2, name
        np.testing.assert_allclose(found[name], space.test[:20], atol=1e-5, err_msg=name)


def test_the_other_layers() -> None:
    """ResNet-20: of 9 blocks 2 normalisations, an activation and a sum; 3 normalisations more."""
    backbone = backbones.build("cifar10", (32, 32, 3))
    backbone = keras.Model(backbone.input, backbone.layers[-2].output)
    around, others = (view._boundaries(backbone, which).output_names for which in (False, True))
    assert len(others) - 1 == 9 * 4 + 3
    assert len(around) - 1 == 10
    x = np.random.default_rng(0).random((12, 32, 32, 3), "float32")
    outsider = attacks.Outsider(
        backbone, np.eye(64, 10, dtype="float32"), np.zeros(10, "float32"), x, x, others=True
    )
    names = {name for name in outsider.spaces if name.startswith("other")}
    assert names == {f"other {i}{p}" for i in range(1, 40) for p in ("", ", pooled")}


def test_probes_of_other_layers_read_what_is_there(digits: data.Data) -> None:
    """A branch that passes digits on, beside one that passes nothing, and their sum."""
    inputs = keras.Input(digits.x.shape[1:])
    seen = keras.layers.ReLU()(keras.layers.Conv2D(4, 3, padding="same")(inputs))
    nothing = keras.layers.Conv2D(4, 1, kernel_initializer="zeros")(inputs)
    joined = keras.layers.Flatten()(keras.layers.Add()([seen, nothing]))
    backbone = keras.Model(inputs, keras.layers.Dense(4, activation="relu")(joined))
    outsider = attacks.Outsider(
        backbone,
        np.eye(4, 10, dtype="float32"),
        np.zeros(10, "float32"),
        digits.x[:500],
        digits.x_test,
    )
    case = attacks.Case(digits, 20, 0, augment=False, steps=3, look=lambda: outsider)
    found = attacks.ATTACKS["linear probes, other layers"].run(case)
    assert found["accuracy"] > 0.8
    assert found["best setting"].startswith("other 1")
    assert found["settings tried"] == 4 * 6


# --- without labels ------------------------------------------------------------


def test_guessed_numberings_are_chance(permuted: attacks.Outsider, digits: data.Data) -> None:
    """Over many numberings; a single one may agree with the classes in some places."""
    answers, random = permuted.answers.test, np.random.default_rng(0)
    found = [
        dict(unlabelled.identity(answers[:, random.permutation(10)], digits.y_test))
        for _ in range(300)
    ]
    assert len({tuple(settings.values()) for settings in found}) > 5
    for setting in found[0]:
        assert np.mean([settings[setting] for settings in found]) == pytest.approx(0.1, abs=0.025)


def test_frequencies_name_a_long_tail_and_nothing_else(without_labels: Results) -> None:
    assert without_labels["frequencies, balanced"]["accuracy"] < 0.3
    assert without_labels["frequencies, long tail"]["accuracy"] > 0.5


def test_a_long_tail_has_the_frequencies_that_it_says() -> None:
    y = np.repeat(np.arange(10), 1000)
    stream, priors = unlabelled.long_tail(y, 100.0, 0)
    assert len(set(stream)) == len(stream)
    assert priors.max() / priors.min() == pytest.approx(100)
    np.testing.assert_allclose(np.bincount(y[stream]) / len(stream), priors, atol=2e-3)


def test_lift_names_labels_whose_masses_say_nothing() -> None:
    """20 labels of equal mass in balanced data; the stream has classes 1, 2, 4, … times."""
    classes = np.random.default_rng(0).permutation(np.arange(20) % 10)
    priors = 2.0 ** np.arange(10)
    priors /= priors.sum()
    found = unlabelled.named_by_lift(np.arange(20), priors[classes], np.full(20, 0.05), priors)
    np.testing.assert_array_equal(found, classes)


def test_an_oracle_names_perfect_clusters_and_chance_does_not() -> None:
    y = np.repeat(np.arange(10), 30)
    clusters = (y + 3) % 10
    assert unlabelled.matched_by_oracle(clusters, y) == 1.0
    assert unlabelled.named_at_random(clusters, y, 0) == pytest.approx(0.1, abs=0.02)


def test_the_oracle_is_reported_apart_from_what_can_be_reached(without_labels: Results) -> None:
    oracle = without_labels["clusters matched by an oracle"]
    honest = without_labels["clusters named at random"]
    assert oracle["accuracy"] > 0.9
    assert honest["accuracy"] == pytest.approx(0.1, abs=0.03)
    assert honest["best setting"] == oracle["best setting"]
    unreachable = [a.name for a in attacks.ATTACKS.values() if a.family == "out of reach"]
    assert unreachable == ["clusters matched by an oracle"]


# --- with labels ---------------------------------------------------------------


def test_copied_columns_are_grouped_by_class(
    models: dict[str, Any], copies: attacks.Outsider, digits: data.Data
) -> None:
    labels = reading.Labels(copies)
    secret = models["copies"]._unlocked().assignment().classes
    for name, points in labels.columns.items():
        assert adjusted_rand_score(secret[points.labels], points.groups(10)) == 1.0, name
    chosen = data.labelled(digits, 1, 0)
    mass = reading.votes(copies, digits.x[chosen], digits.y[chosen])
    grouped = dict(labels.columns["columns"].readings(mass))["10 groups"]
    found = reading.decode(grouped, copies.answers.test)
    assert probing.score(found, digits.y_test) > 0.9


def test_one_sample_per_class_reads_a_permutation_and_trains_no_network(
    digits: data.Data, one_each: Results
) -> None:
    assert one_each["slot voting"]["accuracy"] > 0.9
    chosen = data.labelled(digits, 1, 0)
    plan = lessons.Lessons(100, False, 0)
    model = lessons.from_scratch(digits, digits.x[chosen], digits.y[chosen], plan, 1e-3)
    found = view.batched(model, digits.x_test).argmax(1)
    assert 0.2 < probing.score(found, digits.y_test) < one_each["slot voting"]["accuracy"] - 0.1


def test_probes_work_with_twenty_samples(permuted: attacks.Outsider, digits: data.Data) -> None:
    chosen = data.labelled(digits, 20, 0)
    known, y = permuted.layers(digits.x[chosen]), digits.y[chosen]
    for attack in attacks.catalogue.PROBES.values():
        found = dict(attack(permuted.spaces, known, y, digits.y_test))
        assert max(found.values()) > 0.9, attack.__name__
    spreads = probing.spread_over(permuted.spaces, known, y)
    assert max(dict(probing.label_spreading(spreads, digits.y_test)).values()) > 0.9
    shuffled = np.random.default_rng(0).permutation(y)
    blind = dict(probing.nearest_means(permuted.spaces, known, shuffled, digits.y_test))
    assert max(blind.values()) < 0.5


def test_spreading_follows_the_graph_and_not_the_distance() -> None:
    """Two rings, one inside the other, with a labelled point on each."""
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    points = np.concatenate([ring, 2 * ring]).astype("float32")
    space = view.Space(points[::2], points[1::2])
    known = np.array([[1.0, 0.0], [-2.0, 0.0]], "float32")
    found = probing.spread_scores(space, known, np.array([3, 7]), 7, 0.99)
    np.testing.assert_array_equal(found.argmax(1), np.tile(np.repeat([3, 7], 100), 2))


def test_the_most_confident_of_every_class_are_taken() -> None:
    shares = np.zeros((6, 10))
    shares[np.arange(6), [0, 0, 0, 0, 5, 5]] = [0.9, 0.5, 0.8, 0.4, 0.3, 0.6]
    assert sorted(lessons.confident(shares, 0.5)) == [0, 2, 5]


# --- the ladder ----------------------------------------------------------------


def test_every_attack_is_registered_and_says_what_it_tried(one_each: Results) -> None:
    assert set(one_each) == set(WITH_MODEL) | WITHOUT_MODEL
    for name, found in one_each.items():
        attack = attacks.ATTACKS[name]
        assert 0 <= found["accuracy"] <= 1, name
        assert found["settings tried"] >= 1, name
        assert attack.family == WITH_MODEL.get(name, "raw inputs")
        assert attack.needs_model == (name in WITH_MODEL)


def test_attacks_that_need_no_model_ask_for_none(digits: data.Data) -> None:
    case = attacks.Case(digits, 1, 0, augment=False, steps=3)
    for name in ("nearest means of raw inputs", "one class for all"):
        assert 0 < attacks.ATTACKS[name].run(case)["accuracy"] < 1
    with pytest.raises(ValueError, match="without one"):
        attacks.ATTACKS["nearest means"].run(case)


@pytest.mark.filterwarnings("default")  # of libraries, on what never changes
@pytest.mark.parametrize("certain", [40.0, 400.0])
def test_noise_that_answers_one_label_alone_tells_nothing(
    certain: float, permuted: attacks.Outsider, digits: data.Data
) -> None:
    """As the variables of a locked folder may. Attacks on the answers fail without an error."""
    bias = np.zeros_like(permuted.bias)
    bias[3] = certain
    kernel = np.zeros_like(permuted.kernel)
    deaf = view.Outsider(permuted.backbone, kernel, bias, digits.x, digits.x_test)
    for n in (0, 1):
        case = attacks.Case(digits, n, 0, augment=False, steps=3, look=lambda: deaf)
        for name, attack in attacks.ATTACKS.items():
            if attack.family in ("reading", "no labels") and attack.labelled == bool(n):
                assert 0 <= attack.run(case)["accuracy"] <= 1, name


def test_a_dimension_that_stands_still_is_no_division_by_zero() -> None:
    """Answers of random weights vary by less than float32 can tell."""
    random = np.random.default_rng(0)
    points = np.column_stack([random.random(50), 1e-30 * random.random(50)]).astype("float32")
    y = np.arange(50) % 10
    space = view.Space(points, points)
    found = dict(probing.linear_probes({"answers": space}, {"answers": points}, y, y))
    assert all(np.isfinite(value) for value in found.values())


def test_readings_and_probes_are_deterministic(
    permuted: attacks.Outsider, digits: data.Data, one_each: Results
) -> None:
    chosen = data.labelled(digits, 1, 0)
    x, y = digits.x[chosen], digits.y[chosen]
    known, labels = permuted.layers(x), reading.Labels(permuted)
    mass = reading.votes(permuted, x, y)
    again = {
        name: dict(reading.accuracies(reader(labels, mass), permuted.answers.test, digits.y_test))
        for name, reader in reading.READERS.items()
    }
    for name, attack in attacks.catalogue.PROBES.items():
        again[name] = dict(attack(permuted.spaces, known, y, digits.y_test))
    spreads = probing.spread_over(permuted.spaces, known, y)
    again["label spreading"] = dict(probing.label_spreading(spreads, digits.y_test))
    for name, found in again.items():
        assert max(found.values()) == one_each[name]["accuracy"], name


def test_training_is_seeded(digits: data.Data) -> None:
    chosen = data.labelled(digits, 1, 0)
    x, y, plan = digits.x[chosen], digits.y[chosen], lessons.Lessons(3, False, 0)
    models = [lessons.from_scratch(digits, x, y, plan, 1e-3) for _ in range(2)]
    first, same = (view.batched(model, digits.x_test) for model in models)
    np.testing.assert_allclose(first, same, atol=1e-5)
    assert first.std() > 1e-3
