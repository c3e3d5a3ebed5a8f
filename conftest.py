"""Fixtures for tests and docstring examples; the costly ones are made once a session."""

from __future__ import annotations  # naming `ke.Authority` would load TensorFlow

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from tests.randomness import drawn_again  # before anything that draws is imported

# isort: split
import importlib
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_encryip as ke

PASSPHRASE = "correct horse"
USERS = ("alice", "bob", "carol")
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CHEAP = 14  # scrypt_log2_n: tests need no costly passphrases


def pytest_collect_file(file_path: Path) -> None:
    """Modules with examples are imported by their names, or pytest makes a second copy of each."""
    root = Path(__file__).parent
    if file_path.suffix == ".py" and file_path.is_relative_to(root / "keras_encryip"):
        name = ".".join(file_path.relative_to(root).with_suffix("").parts)
        if not name.endswith("__main__"):
            importlib.import_module(name.removesuffix(".__init__"))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Each fixture draws the same, whichever test asks for it first."""
    owner = request.node.nodeid if fixturedef.scope == "function" else fixturedef.baseid
    name = f"{owner} {fixturedef.argname} {getattr(request, 'param_index', 0)}"
    with drawn_again(name):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Each test draws the same, alone or among others."""
    with drawn_again(item.nodeid):
        return (yield)


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 8 × 8 digits, float32 in 0 … 1, `[n, 8, 8, 1]`."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclass(frozen=True)
class Shipped:
    """A trained protected model, saved and exported, with its authority and three users."""

    authority: ke.Authority
    url: str
    model: ke.ProtectedModel
    saved: Path
    folder: Path
    bundles: dict[str, Path]
    history: dict[str, list[float]]
    passphrase: str = PASSPHRASE

    @property
    def exported(self) -> Path:
        return self.folder / "digits" / "1"

    def copy(self, *, unlock: bool = True) -> ke.ProtectedModel:
        """The model as loaded from its file, to be trained or broken."""
        import keras

        model = keras.models.load_model(self.saved)
        return model.unlock(authority=self.authority) if unlock else model

    def own_authority(self, folder: Path) -> ke.Authority:
        """A copy of the authority, open: for exports with a codebook of their own, for instance."""
        file = folder / "own.authority"
        shutil.copy(self.url.removeprefix("sqlite:///"), file)
        return ke.Authority.open(file, self.passphrase)


@pytest.fixture(scope="session")
def digits() -> Digits:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype("float32").reshape(-1, 8, 8, 1), y[order]
    return Digits(x[:1400], y[:1400], x[1400:], y[1400:])


def build_classifier(seed: int = 0, classes: int = 10, **head: Any) -> Any:
    """A fresh classifier of digits: 64 pixels → 32 features → K classes."""
    import keras

    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(classes, **{"activation": "softmax", **head}),
        ]
    )


@pytest.fixture(scope="session")
def new_classifier() -> Callable[..., Any]:
    return build_classifier


@pytest.fixture(scope="session")
def trained_weights(digits: Digits) -> list[np.ndarray]:
    import keras

    classifier = build_classifier()
    classifier.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    classifier.fit(digits.x, digits.y, batch_size=64, epochs=6, verbose=0)
    return list(classifier.get_weights())


@pytest.fixture
def trained_classifier(trained_weights: list[np.ndarray]) -> Any:
    """A trained classifier of the test's own; its test accuracy is above 0.9."""
    classifier = build_classifier()
    classifier.set_weights(trained_weights)
    classifier.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return classifier


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[ke.Authority]:
    """An authority of the test's own."""
    url = f"sqlite:///{tmp_path}/own.authority"
    with ke.Authority.create(url, PASSPHRASE, scrypt_log2_n=CHEAP) as made:
        yield made


@pytest.fixture(scope="session")
def shared_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ke.Authority]:
    """For tests that only protect, and neither issue nor revoke."""
    url = f"sqlite:///{tmp_path_factory.mktemp('shared')}/shared.authority"
    with ke.Authority.create(url, PASSPHRASE, scrypt_log2_n=CHEAP) as made:
        yield made


@pytest.fixture(scope="session")
def shipped(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shipped]:
    import keras

    folder = tmp_path_factory.mktemp("shipped")
    url = f"sqlite:///{folder}/acme.authority"
    with ke.Authority.create(url, PASSPHRASE, scrypt_log2_n=CHEAP) as made:
        options = {"class_names": NAMES, "homophones": 4, "trace_labels": 64}
        model = ke.protect(build_classifier(), made, name="digits", **options)
        optimizer = keras.optimizers.Adam(0.01)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        fitted = model.fit(digits.x, digits.y, batch_size=64, epochs=16, verbose=0)
        model.save(folder / "digits.keras")
        bundles = {user: folder / f"{user}.keybundle" for user in USERS}
        for user, path in bundles.items():
            made.issue(user, path, passphrase=PASSPHRASE, scrypt_log2_n=CHEAP)
        ke.export_saved_model(model, folder / "digits" / "1")
        saved = folder / "digits.keras"
        yield Shipped(made, url, model, saved, folder, bundles, fitted.history)


@pytest.fixture(scope="session")
def model_server(shipped: Shipped) -> Iterator[Any]:
    """A server at the shipped model, by REST and gRPC: `rest_url` and `grpc_url`."""
    from tests.serving.tf_serving import ModelServer

    with ModelServer("digits", shipped.exported.parent) as server:
        yield server


@pytest.fixture
def confused(shipped: Shipped) -> np.ndarray:
    """Three outputs of the shipped model: classes 7, 2 and 1, spread over their homophones."""
    labels = shipped.model._unlocked().assignment().labels
    rows = np.zeros((3, shipped.model.num_labels), np.float32)
    for row, label in zip(rows, (7, 2, 1), strict=True):
        row[labels[label]] = 0.2  # 4 homophones: 0.8
        row[labels[0]] = 0.05  # 0.2
    return rows


def results_by_hand(
    model: ke.ProtectedModel, x: Any, y: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, float]:
    """Loss, accuracy and weighted accuracy from outputs and the assignment, with numpy alone."""
    confused = np.asarray(model(x, training=False)).astype(np.float64)
    assignment = model._unlocked().assignment()
    decoded = confused[..., assignment.labels].sum(-1)
    decoded += confused[..., assignment.trace].sum(-1, keepdims=True) / decoded.shape[-1]
    hits = decoded.argmax(-1) == y
    losses = -np.log(np.take_along_axis(decoded, y[..., None], -1)[..., 0])
    weights = np.ones(len(y)) if weights is None else weights.astype(np.float64)
    return {
        "loss": float((weights * losses.T).T.mean()),
        "accuracy": float(hits.mean()),
        "weighted_accuracy": float((weights * hits.T).sum() / (weights.sum() * hits[0].size)),
    }


@pytest.fixture(scope="session")
def by_hand() -> Callable[..., dict[str, float]]:
    return results_by_hand


# --- docstring examples ------------------------------------------------------------


@pytest.fixture
def own_authority(shipped: Shipped, tmp_path: Path) -> Iterator[ke.Authority]:
    """A copy of the shipped model's authority, which a test may change."""
    with shipped.own_authority(tmp_path) as own:
        yield own


@pytest.fixture(autouse=True)
def docstring_names(
    request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]
) -> Iterator[None]:
    """What docstring examples may use without saying where it comes from."""
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    from tests.docstring_names import names_for

    names = names_for(request.node.name, request.getfixturevalue)
    doctest_namespace.update(names)
    yield
    for name in names:
        del doctest_namespace[name]
