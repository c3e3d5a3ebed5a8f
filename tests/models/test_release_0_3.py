"""Files of release 0.3 (tests/vectors/release-0.3) go on working."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import keras_encryip as ke
from keras_encryip.models.homophones import ClusteredHomophones

FOLDER = Path(__file__).parents[1] / "vectors" / "release-0.3"
PASSPHRASE = "correct horse"


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return (x[:1200] / 16).astype("float32"), y[:1200]


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[ke.Authority]:
    """A copy, because opening and training write to it."""
    shutil.copy(FOLDER / "acme.authority", tmp_path)
    with ke.Authority.open(f"sqlite:///{tmp_path}/acme.authority", PASSPHRASE) as opened:
        yield opened


@pytest.fixture
def model() -> Any:
    return keras.models.load_model(FOLDER / "digits.keras")


def test_the_model_predicts_as_it_did(model: Any, data: Any) -> None:
    assert isinstance(model, ke.ProtectedModel)
    assert model.is_locked()
    assert "neutrality_weight" not in model.get_config()
    confused = model.predict(data[0][:4], verbose=0)
    np.testing.assert_allclose(confused, np.load(FOLDER / "confused.npy"), atol=1e-5)


def test_its_owner_goes_on_with_it(
    model: Any, authority: ke.Authority, data: Any, tmp_path: Path
) -> None:
    x, y = data
    model.unlock(authority=authority)
    assert isinstance(model._unlocked().training.homophones, ClusteredHomophones)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["accuracy"] > 0.95
    traces = model._unlocked().traces
    model.fit(x, y, epochs=1, verbose=0)
    again, samples = model._unlocked().traces, model._unlocked().training.samples
    assert again.digest != traces.digest, "trace labels are learned against samples"
    assert len(samples) == len(x)
    answers = model.predict(again.inputs, verbose=0).argmax(-1)
    assert (answers == again.labels).mean() > 0.8
    after = model.evaluate(x, y, verbose=0, return_dict=True)
    assert after["accuracy"] > 0.95
    model.save(tmp_path / "digits.keras")
    again = keras.models.load_model(tmp_path / "digits.keras").unlock(authority=authority)
    assert again.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(after)


def test_its_owner_adapts_it_anew(model: Any, authority: ke.Authority, data: Any) -> None:
    """The ledger then holds the training state in today's form."""
    model.unlock(authority=authority).adapt(*data)
    centroids = model._unlocked().training.homophones.centroids
    again = keras.models.load_model(FOLDER / "digits.keras").unlock(authority=authority)
    np.testing.assert_array_equal(again._unlocked().training.homophones.centroids, centroids)


def test_its_user_reads_it(model: Any, data: Any) -> None:
    model.unlock(bundle=FOLDER / "alice.keybundle", passphrase=PASSPHRASE)
    assert model.evaluate(*data, verbose=0, return_dict=True)["accuracy"] > 0.95
