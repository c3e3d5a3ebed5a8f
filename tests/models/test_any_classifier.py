"""`protect` changes nothing, or refuses: decoded outputs, trainable variables, the ledger."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_encryip as ke
from keras_encryip.errors import ArgumentError
from tests.models.cases import CASES, fresh
from tests.models.classifiers import (
    IMAGES,
    chain,
    class_probabilities,
    decoded,
    flat,
    randomise,
    sequential,
)
from tests.models.custom_layers import K, Subclass

OPTIONS = {"homophones": 2, "trace_labels": 8}
TRAINED = [
    "normalization", "string-lookup", "dense-subclass", "lambda", "lora-einsum", "int8-hidden",
    "frozen-in-layer", "frozen-backbone", "frozen-head", "two-levels", "logits", "no-bias",
    "nested-head", "functional-subclass", "subclass-head-in-list", "subclass-three-levels",
    "subclass-attribute-set", "ops-softmax", "sigmoid", "subclass-sigmoid-in-call", "conv-head",
    "mobilenet-v1", "mobilenet-v3", "masked-tagging", "einsum-head", "open-valid", "float64",
    "mixed-bfloat16", "dropout-after-head", "temperature", "dense-subclass-head", "lora-head",
    "int8-head", "tied-head", "head-used-twice", "normalised-scores", "softmax-axis-1",
]  # fmt: skip


def options_for(name: str) -> dict[str, int]:
    """With trace labels and homophones where the classifier can have them."""
    if name == "frozen-head":
        return {"homophones": 1, "trace_labels": 0}
    several = any(
        word in name for word in ("text", "string", "dict", "list-in", "tuple", "stateful")
    )
    return {"homophones": 2, "trace_labels": 0} if several else OPTIONS


@dataclass(frozen=True)
class Protected:
    """A classifier, its probabilities from before, and the model: `None` where refused."""

    classifier: keras.Model
    before: np.ndarray
    model: ke.ProtectedModel | None


@pytest.fixture(scope="module")
def protect_case(shared_authority: ke.Authority) -> Callable[[str, bool], Protected]:
    """Protects a case, once; a refusal leaves no trace in the ledger and names a layer."""

    @functools.cache
    def protect(name: str, trained: bool) -> Protected:
        case, classifier = CASES[name], fresh(name)
        if trained:
            randomise(classifier)
        before = class_probabilities(classifier, case.x) if classifier.built else None
        models, refusal = shared_authority.models(), None
        try:
            model = ke.protect(classifier, shared_authority, name=name, **options_for(name))
        except ArgumentError as error:
            if not case.may_refuse:
                raise
            model, refusal = None, str(error)
        if refusal is not None:
            assert shared_authority.models() == models
            assert re.search(r"'[^']+'", refusal), "the message names no layer"
        elif before is None:  # unbuilt: calling the model builds the layers that both use
            decoded(model, case.x)
            before = class_probabilities(classifier, case.x)
        return Protected(classifier, before, model)

    return protect


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        *(pytest.param(name, False, id=f"{name}-fresh") for name in CASES),
        *(pytest.param(name, True, id=f"{name}-trained") for name in TRAINED),
    ],
)
def test_step_0(name: str, trained: bool, protect_case: Callable[..., Protected]) -> None:
    """Decoded outputs equal the classifier's, which goes on giving its own."""
    made, case = protect_case(name, trained), CASES[name]
    if made.model is not None:
        after = decoded(made.model, case.x, classes=2 if "sigmoid" in name else K)
        np.testing.assert_allclose(after, made.before, rtol=0, atol=case.tolerance)
    again = class_probabilities(made.classifier, case.x)
    np.testing.assert_allclose(again, made.before, rtol=0, atol=case.tolerance)


@pytest.mark.parametrize("name", CASES)
def test_trainable_variables(name: str, protect_case: Callable[..., Protected]) -> None:
    """The very variables of the classifier, but for the head's: frozen stays frozen."""
    made, case = protect_case(name, False), CASES[name]
    if made.model is None:
        return
    ours = {id(v): v for v in made.model.trainable_variables}
    theirs = {id(v): v for v in made.classifier.trainable_variables}
    lost = [v.path for key, v in theirs.items() if key not in ours]
    added = [v.path for key, v in ours.items() if key not in theirs]
    assert len(lost) <= case.head_variables, lost
    assert case.may_refuse or len(lost) == case.head_variables, lost
    # Trace labels need a bias, so that a head may get one; LoRA's are merged.
    assert len(added) <= 2 * bool(lost), added
    assert not [v.path for v in made.classifier.non_trainable_variables if id(v) in ours]


@pytest.mark.parametrize("name", ["softmax", "subclass-head-in-list", "open-valid", "conv-head"])
def test_weights_are_shared(name: str, shared_authority: ke.Authority) -> None:
    """As in transfer learning, training the protected model trains the classifier's layers."""
    case, classifier = CASES[name], fresh(name)
    model = ke.protect(classifier, shared_authority, name=name, **OPTIONS)
    before = [ops.convert_to_numpy(v) for v in classifier.trainable_variables]
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    classes = np.random.default_rng(0).integers(0, K, decoded(model, case.x).shape[:-1])
    model.fit(case.x, classes, verbose=0)
    moved = [
        np.abs(ops.convert_to_numpy(v) - old).max() > 1e-6
        for v, old in zip(classifier.trainable_variables, before, strict=True)
    ]
    assert all(moved[:-2])


def test_probe_sees_each_part_of_a_large_input(shared_authority: ke.Authority) -> None:
    """Windows larger than the probe's guess for open dimensions must not be an error."""
    classifier = chain(
        layers.Conv2D(3, 5, strides=3), layers.Conv2D(3, 7), layers.GlobalAveragePooling2D(),
        layers.Dense(K, activation="softmax"), shape=(None, None, 3),
    )  # fmt: skip
    images = np.random.default_rng(0).random((4, 40, 33, 3), dtype="float32")
    expected = class_probabilities(classifier, images)
    model = ke.protect(classifier, shared_authority, name="wide", **OPTIONS)
    np.testing.assert_allclose(decoded(model, images), expected, atol=1e-5)


def test_teacher_is_the_classifier_as_it_was(shared_authority: ke.Authority) -> None:
    """Shared layers move in `fit`; what is distilled must not move with them.

    Without trace labels: on 36 samples, what teaches them at the end moves outputs by 0.2.
    """
    classifier = flat(layers.Dense(K, activation="softmax"))
    randomise(classifier)
    options = {
        **OPTIONS,
        "teacher": True,
        "teacher_weight": 1.0,
        "confusion_weight": 0.0,
        "trace_labels": 0,
    }
    before = class_probabilities(classifier, IMAGES)
    wrong = (before.argmax(1) + 1) % K
    model = ke.protect(classifier, shared_authority, name="taught", **options)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(IMAGES, wrong, epochs=15, batch_size=4, verbose=0)
    np.testing.assert_allclose(decoded(model, IMAGES), before, atol=0.1)


# --- refused ---------------------------------------------------------------------


def two_outputs() -> keras.Model:
    inputs = keras.Input((6,))
    return keras.Model(inputs, [layers.Dense(K, activation="softmax")(inputs) for _ in range(2)])


class Random(keras.Model):
    """No two calls are equal, so that nothing can be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.head = layers.Flatten(), layers.Dense(K, activation="softmax")

    def call(self, inputs: Any) -> Any:
        noise = keras.random.uniform(ops.shape(inputs))
        return self.head(self.flatten(inputs + noise))


class TwoHeads(keras.Model):
    """The sum of two heads: neither is the last."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = layers.Flatten()
        self.left, self.right = layers.Dense(K), layers.Dense(K)

    def call(self, inputs: Any) -> Any:
        flat = self.flatten(inputs)
        return ops.softmax(self.left(flat) + self.right(flat) ** 2)


def built(model: keras.Model) -> keras.Model:
    model(IMAGES[:1])
    return model


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "multi-label": (
        lambda: flat(layers.Dense(K, activation="sigmoid", name="labels")),
        r"'labels'[\s\S]*sigmoid|sigmoid[\s\S]*'labels'",
    ),
    "multi-label-layer": (
        lambda: flat(layers.Dense(K, name="labels"), layers.Activation("sigmoid")),
        "sigmoid",
    ),
    "regression": (lambda: flat(layers.Dense(1, name="price")), "'price'"),
    "regression-relu": (
        lambda: flat(layers.Dense(K, "relu", name="price")),
        r"'price'[\s\S]*relu|relu[\s\S]*'price'",
    ),
    "two-outputs": (two_outputs, "one output"),
    "two-softmaxes": (
        lambda: flat(layers.Dense(K, activation="softmax"), layers.Softmax()),
        "softmax",
    ),
    "no-head": (lambda: flat(layers.Dense(K), layers.LayerNormalization(name="tail")), "'tail'"),
    "sum-of-heads": (lambda: built(TwoHeads()), "TwoHeads|two_heads|'dense"),
    "random": (lambda: built(Random()), "Random|random"),
    "unbuilt-subclass": (Subclass, "built"),
    "no-layers": (keras.Sequential, "nothing|no layer|empty"),
    "no-model": (lambda: layers.Dense(K), "keras.Model"),
    "string": (lambda: "model.keras", "keras.Model"),
    "none": (lambda: None, "keras.Model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_classifier(name: str, shared_authority: ke.Authority) -> None:
    make, message = REFUSED[name]
    before = shared_authority.models()
    with pytest.raises(ArgumentError, match=message):
        ke.protect(make(), shared_authority, name=name, **OPTIONS)
    assert shared_authority.models() == before


@pytest.mark.parametrize("option", [{}, {"teacher": True}], ids=["default", "with-teacher"])
def test_refuses_a_protected_model(option: dict[str, Any], shared_authority: ke.Authority) -> None:
    model = ke.protect(
        flat(layers.Dense(K, activation="softmax")), shared_authority, name="once", **OPTIONS
    )
    before = shared_authority.models()
    for classifier in (model, chain(model)):
        with pytest.raises(ArgumentError, match="protected"):
            ke.protect(classifier, shared_authority, name="twice", **OPTIONS, **option)
    assert shared_authority.models() == before


@pytest.mark.parametrize(
    "names",
    [
        pytest.param({"a": 0, "b": 1, "c": 2}, id="dict"),
        pytest.param({"a", "b", "c"}, id="set"),
        pytest.param(frozenset("abc"), id="frozenset"),
        pytest.param("abc", id="str"),
        pytest.param(b"abc", id="bytes"),
        pytest.param(3, id="number"),
    ],
)
def test_refuses_class_names(names: Any, shared_authority: ke.Authority) -> None:
    before = shared_authority.models()
    with pytest.raises(ArgumentError, match="class_names"):
        ke.protect(sequential(layers.Dense(K)), shared_authority, name="n", class_names=names)
    assert shared_authority.models() == before


def test_takes_class_names_in_any_order_of_its_own(shared_authority: ke.Authority) -> None:
    """Tuples, arrays and dictionary views have an order."""
    for names in (("a", "b", "c"), np.array(["a", "b", "c"]), {"a": 0, "b": 1, "c": 2}.keys()):
        ke.protect(sequential(layers.Dense(K)), shared_authority, name="n", class_names=names)


# --- defaults fit ------------------------------------------------------------------

FITTING = [
    "masked-tagging", "time-distributed", "dict-inputs", "conv-head", "text-vectorization",
    "string-lookup", "integer-lookup", "open-valid", "sigmoid", "einsum-head", "list-inputs",
    "tuple-inputs", "tied-head", "spectral-normalization", "sigmoid-per-pixel",
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", FITTING)
def test_defaults_fit(name: str, shared_authority: ke.Authority) -> None:
    """`protect` with its defaults chooses what `fit` can do, for any inputs and labels."""
    case, classifier = CASES[name], fresh(name)
    expected = class_probabilities(classifier, case.x)
    before = shared_authority.models()
    try:
        model = ke.protect(classifier, shared_authority, name=name)
    except ArgumentError:
        if not case.may_refuse:
            raise
        model = None
    if model is None:
        assert shared_authority.models() == before
        return
    kind = "binary" if "sigmoid" in name else "sparse_categorical"
    model.compile(keras.optimizers.Adam(1e-3), f"{kind}_crossentropy")
    classes = np.random.default_rng(0).integers(0, expected.shape[-1], expected.shape[:-1])
    classes = classes[..., None] if expected.ndim > 2 and kind == "binary" else classes
    history = model.fit(case.x, classes, batch_size=6, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    np.testing.assert_allclose(decoded(model, case.x).sum(-1), 1, atol=1e-2)
