"""What a classifier learned or was told survives: protect, fit, save, load elsewhere, export."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_encryip as ke
from tests.models.cases import CASES, STATE, fresh
from tests.models.classifiers import (
    IMAGES,
    SOFT,
    class_probabilities,
    decoded,
    flat,
    frozen_backbone,
    randomise,
)
from tests.models.custom_layers import FrozenInside, K, Subclass
from tests.models.reload_in_fresh_process import exported, in_training, outcome

ROOT = Path(__file__).parents[2]
OPTIONS = {"homophones": 2, "trace_labels": 0, "strategy": "random", "confusion_weight": 1.0}
ALSO = [
    "sigmoid", "mobilenet-v3", "masked-tagging", "subclass-three-levels", "mixed-bfloat16",
    "open-valid-subclass",
]  # fmt: skip
JOURNEYS = [*STATE, *ALSO]


def labels_for(outputs: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).integers(0, outputs.shape[-1], outputs.shape[:-1])


def protected(name: str, authority: ke.Authority, **options: Any) -> Any:
    """A trained classifier of that name, its probabilities before, and the model, after `fit`."""
    classifier, x = fresh(name), CASES[name].x
    randomise(classifier)
    before = class_probabilities(classifier, x)
    alone = {"homophones": 1} if name == "frozen-head" else {}
    model = ke.protect(classifier, authority, name=name, **{**OPTIONS, **options, **alone})
    after = decoded(model, x)
    # Long enough that copies in the head part, or else they are not exported.
    kind = "binary" if name == "sigmoid" else "sparse_categorical"
    model.compile(keras.optimizers.Adam(0.02), f"{kind}_crossentropy")
    model.fit(x, labels_for(before), epochs=6, batch_size=4, verbose=0)
    return classifier, before, after, model


@pytest.fixture(scope="module")
def journeys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """For each case, what the process that trained it saw, and under `reloaded` what another did.

    One other process loads them all. An exception is kept, for the test of its own case.
    """
    folder = tmp_path_factory.mktemp("journeys")
    url, seen, inputs = f"sqlite:///{folder}/own.authority", {}, {}
    with ke.Authority.create(url, "p", scrypt_log2_n=14) as authority:
        authority.issue("alice", folder / "alice.keybundle", passphrase="p", scrypt_log2_n=14)
        for name in JOURNEYS:
            try:
                seen[name] = travel(name, authority, folder)
                x = CASES[name].x
                inputs[name] = x.numpy() if isinstance(x, tf.Tensor) else x
            except Exception as error:
                seen[name] = {"error": error}
    (folder / "inputs.pickle").write_bytes(pickle.dumps(inputs))
    command = [sys.executable, "-m", "tests.models.reload_in_fresh_process"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [*command, str(folder), url, "p", *inputs],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    reloaded = pickle.loads((folder / "reloaded.pickle").read_bytes())
    for name, found in reloaded.items():
        seen[name]["reloaded"] = found
    return seen


def travel(name: str, authority: ke.Authority, folder: Path) -> dict[str, Any]:
    _, before, after, model = protected(name, authority)
    model.save(folder / f"{name}.keras")
    model.lock()
    found = outcome(model, CASES[name].x)
    if name == "seeds":
        found["loaded here"] = outcome(
            keras.models.load_model(folder / f"{name}.keras"), CASES[name].x
        )["noisy"]
    model.unlock(authority=authority)
    return {"before": before, "after": after, **found, "decoded": decoded(model, CASES[name].x)}


def arrived(journeys: dict[str, dict[str, Any]], name: str) -> tuple[Any, Any]:
    seen = journeys[name]
    if "error" in seen:
        raise seen["error"]
    if "error" in seen["reloaded"]:
        pytest.fail(seen["reloaded"]["error"])
    return seen, seen["reloaded"]


@pytest.mark.long
@pytest.mark.parametrize("name", JOURNEYS)
def test_answers_survive(name: str, journeys: dict[str, Any]) -> None:
    """Equal before `protect`, and after training equal in another process and in its export."""
    seen, found = arrived(journeys, name)
    tolerance = CASES[name].tolerance
    np.testing.assert_allclose(seen["after"], seen["before"], rtol=0, atol=tolerance)
    assert found["locked"]
    np.testing.assert_allclose(found["confused"], seen["confused"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["decoded"], seen["decoded"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["exported"], seen["decoded"], rtol=0, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", JOURNEYS)
def test_frozen_stays_frozen_in_another_process(name: str, journeys: dict[str, Any]) -> None:
    seen, found = arrived(journeys, name)
    shapes = len(seen["trainable"]), len(seen["frozen"])
    assert (len(found["trainable"]), len(found["frozen"])) == shapes
    trainable = len(fresh(name).trainable_variables)
    assert len(found["trainable"]) == trainable


@pytest.mark.long
def test_seeds_survive(journeys: dict[str, Any]) -> None:
    """Keras starts a loaded model's seeds anew: their draws are equal in any process."""
    seen, found = arrived(journeys, "seeds")
    np.testing.assert_allclose(found["noisy"], seen["loaded here"], rtol=0, atol=1e-5)
    assert np.abs(found["noisy"][0] - found["noisy"][1]).max() > 1e-3


def test_draws_are_the_layers_own(shared_authority: ke.Authority) -> None:
    """The seeds of the classifier's own layers advance, and decide."""
    classifier = fresh("seeds")
    states = [v for v in classifier.variables if "seed" in v.path]
    model = ke.protect(classifier, shared_authority, name="seeds", **OPTIONS).lock()
    before = [ops.convert_to_numpy(v) for v in states]
    first = in_training(model, IMAGES)
    assert all((ops.convert_to_numpy(v) != old).any()
               for v, old in zip(states, before, strict=True))  # fmt: skip
    for variable, old in zip(states, before, strict=True):
        variable.assign(old)
    np.testing.assert_allclose(in_training(model, IMAGES), first, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", ["attribute-not-in-config", "subclass-attribute-set"])
def test_what_only_the_object_knows(name: str, authority: ke.Authority, tmp_path: Path) -> None:
    """Plain Keras cannot save these. They train and export all the same."""
    _, before, after, model = protected(name, authority)
    np.testing.assert_allclose(after, before, atol=1e-5)
    bundle = tmp_path / "alice.keybundle"
    authority.issue("alice", bundle, passphrase="p", scrypt_log2_n=14)
    found = exported(model, IMAGES, tmp_path / name / "1", bundle)
    np.testing.assert_allclose(found, decoded(model, IMAGES), atol=1e-5)


# --- frozen parts in training --------------------------------------------------------


@pytest.mark.parametrize("name", ["frozen-in-subclass", "frozen-in-layer", "frozen-backbone"])
def test_frozen_does_not_move(name: str, shared_authority: ke.Authority) -> None:
    classifier = fresh(name)
    by_layer = [
        variable
        for layer in classifier._flatten_layers()
        if not layer.trainable
        for variable in layer.variables
    ]
    if name == "frozen-backbone":
        assert any("moving" in v.path for v in by_layer)
    model = ke.protect(classifier, shared_authority, name=name, **OPTIONS)
    before = [ops.convert_to_numpy(v) for v in by_layer]
    assert before
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    model.fit(IMAGES, np.arange(12) % K, epochs=2, verbose=0)
    for variable, old in zip(by_layer, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), old, variable.path)


@pytest.mark.parametrize("when", ["before", "after"])
def test_unfreezing_works_as_in_transfer_learning(
    when: str, shared_authority: ke.Authority
) -> None:
    """First the head, then, unfrozen through the classifier's own objects, all of it."""
    classifier = frozen_backbone()
    backbone = classifier.layers[1]
    if when == "before":
        backbone.trainable = True
    model = ke.protect(classifier, shared_authority, name="transfer", **OPTIONS)
    if when == "after":
        assert len(model.trainable_variables) == 2
        backbone.trainable = True
    assert len(model.trainable_variables) == 6


# --- the head's own settings -----------------------------------------------------------


def head_kernel(model: ke.ProtectedModel) -> np.ndarray:
    return ops.convert_to_numpy(model.confused_labels.kernel)


def fitted_with_head(authority: ke.Authority, **head: Any) -> Any:
    keras.utils.set_random_seed(7)
    classifier = flat(layers.Dense(K, **SOFT, **head))
    expected = class_probabilities(classifier, IMAGES)
    alone = {"homophones": 1} if not head.get("trainable", True) else {}
    model = ke.protect(classifier, authority, name="head", **{**OPTIONS, **alone})
    np.testing.assert_allclose(decoded(model, IMAGES), expected, atol=1e-5)
    before = head_kernel(model)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    model.fit(IMAGES, np.arange(12) % K, epochs=20, batch_size=4, verbose=0)
    return before, head_kernel(model)


def test_regularizer_of_the_head_survives(shared_authority: ke.Authority) -> None:
    before, after = fitted_with_head(shared_authority, kernel_regularizer=keras.regularizers.L2(1))
    assert np.linalg.norm(after) < 0.2 * np.linalg.norm(before)


@pytest.mark.parametrize("constraint", ["non_neg", "unit_norm"])
def test_constraint_of_the_head_survives(constraint: str, shared_authority: ke.Authority) -> None:
    initial = np.abs(np.random.default_rng(0).normal(0, 1, (6, K)))
    start = keras.initializers.Constant(initial / np.linalg.norm(initial, axis=0))
    _, after = fitted_with_head(
        shared_authority, kernel_constraint=constraint, kernel_initializer=start
    )
    if constraint == "non_neg":
        assert after.min() >= 0
    else:
        np.testing.assert_allclose(np.linalg.norm(after, axis=0), 1, atol=1e-4)


def test_frozen_head_does_not_move(shared_authority: ke.Authority) -> None:
    before, after = fitted_with_head(shared_authority, trainable=False)
    np.testing.assert_array_equal(after, before)


def test_losses_of_layers_survive(shared_authority: ke.Authority) -> None:
    """`add_loss` and `activity_regularizer` count in `evaluate` as they did."""
    for name in ("add-loss", "activity-regularizer"):
        classifier, y = fresh(name), np.arange(12) % K
        classifier.compile("sgd", "sparse_categorical_crossentropy")
        expected = classifier.evaluate(IMAGES, y, verbose=0)
        model = ke.protect(classifier, shared_authority, name=name, **OPTIONS)
        model.compile("sgd", "sparse_categorical_crossentropy")
        assert model.evaluate(IMAGES, y, verbose=0) == pytest.approx(expected, rel=1e-4)


def test_training_flag_reaches_layers(shared_authority: ke.Authority) -> None:
    """Batch statistics move and dropout drops in `fit` alone, in a subclass too."""
    classifier = Subclass("list")
    classifier(IMAGES[:1])
    model = ke.protect(classifier, shared_authority, name="flag", **OPTIONS)
    before = ops.convert_to_numpy(classifier.norm.moving_mean)
    decoded(model, IMAGES)
    np.testing.assert_array_equal(ops.convert_to_numpy(classifier.norm.moving_mean), before)
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(IMAGES, np.arange(12) % K, verbose=0)
    assert np.abs(ops.convert_to_numpy(classifier.norm.moving_mean) - before).max() > 1e-5


def test_frozen_inside_is_what_it_says() -> None:
    """The builder of these tests: the first of two layers is frozen."""
    layer = FrozenInside()
    layer.build((None, 4))
    layer.first.trainable = False
    assert [v.path.split("/")[-1] for v in layer.trainable_variables] == ["kernel", "bias"]
