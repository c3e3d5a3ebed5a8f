"""A homophone strategy is a row of a table: nothing else knows it by its name."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
import pytest
from keras import ops

import keras_encryip as ke
from keras_encryip.errors import ArgumentError, FormatError
from keras_encryip.models.homophones import (
    AUTOMATIC,
    STRATEGIES,
    Homophones,
    narrowed,
    suiting,
)


class ByBrightness(Homophones):
    """The first half of a class's homophones for dark inputs, the second for bright ones."""

    def __init__(self, middle: np.ndarray, homophones: int) -> None:
        self.middle = middle
        self.homophones = homophones

    @classmethod
    def reads_inputs(cls, homophones: int, copies: int) -> bool:
        return True

    @classmethod
    def features(cls, inputs: np.ndarray, classes: np.ndarray) -> np.ndarray:
        if inputs.ndim != 4:
            raise ArgumentError(f"Brightness is an image's. Received: shape {inputs.shape}")
        return inputs.mean((1, 2))

    @classmethod
    def fit(
        cls, features: Any, classes: Any, num_classes: int, homophones: int, copies: int
    ) -> "ByBrightness":
        return cls(np.median(features).astype("float32"), homophones)

    def draw(self, inputs: Any, classes: Any, seed: Any) -> Any:
        bright = ops.cast(ops.mean(inputs, (1, 2, 3)) > float(self.middle), "int32")
        return bright * (self.homophones // 2)

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {"middle": self.middle, "homophones": np.array(self.homophones)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(arrays["middle"], int(arrays["homophones"]))


@pytest.fixture
def brightness(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(STRATEGIES, "brightness", ByBrightness)
    return "brightness"


def protect(classifier: Any, authority: ke.Authority, strategy: str) -> ke.ProtectedModel:
    options = {"name": "digits", "homophones": 4, "trace_labels": 0}
    model = ke.protect(classifier, authority, strategy=strategy, confusion_weight=1.0, **options)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    return model


def test_a_strategy_of_ones_own_lasts(
    brightness: str, new_classifier: Any, digits: Any, authority: ke.Authority, tmp_path: Path
) -> None:
    model = protect(new_classifier(), authority, brightness)
    x, y = digits.x, digits.y
    model.fit(x, y, batch_size=64, epochs=16, verbose=0)
    labels = model._unlocked().assignment().labels
    confused = model.predict(x, verbose=0)
    dark, bright = (confused[:, labels[:, i]].sum(1) for i in (0, 2))
    assert (dark + bright).mean() > 0.9, "of four labels each class has two in use"
    order = np.argsort(x.mean((1, 2, 3)))
    assert (dark > bright)[order[:300]].mean() > 0.7
    assert (bright > dark)[order[-300:]].mean() > 0.7
    model.save(tmp_path / "digits.keras")
    again = keras.models.load_model(tmp_path / "digits.keras").unlock(authority=authority)
    assert again.strategy == brightness
    homophones = again._unlocked().training.homophones
    assert isinstance(homophones, ByBrightness)
    assert homophones.to_arrays() == model._unlocked().training.homophones.to_arrays()
    again.fit(x, y, verbose=0)


def test_a_strategy_refuses_inputs(brightness: str, digits: Any, authority: ke.Authority) -> None:
    classifier = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    model = protect(classifier, authority, brightness)
    with pytest.raises(ArgumentError, match="Brightness is an image's"):
        model.adapt(digits.x.reshape(-1, 64), digits.y)


def test_without_the_strategy_neither_file_nor_ledger_are_read(
    brightness: str,
    new_classifier: Any,
    digits: Any,
    authority: ke.Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = protect(new_classifier(), authority, brightness)
    model.adapt(digits.x, digits.y)
    model.save(tmp_path / "digits.keras")
    monkeypatch.delitem(STRATEGIES, brightness)
    with pytest.raises(
        ValueError, match="`strategy` must be 'automatic' or 'clustered' or 'random'"
    ):
        keras.models.load_model(tmp_path / "digits.keras")
    model.lock()
    with pytest.raises(FormatError, match="strategy 'brightness', which this program does not"):
        model.unlock(authority=authority)


def test_an_unknown_strategy_is_refused(
    brightness: str, new_classifier: Any, authority: ke.Authority
) -> None:
    message = "`strategy` must be .* 'clustered' or 'random' or 'brightness'. .*='best'"
    with pytest.raises(ArgumentError, match=message):
        protect(new_classifier(), authority, "best")


class OfVectors(ByBrightness):
    """For images it does not do."""

    @classmethod
    def unsuited(cls, inputs: Any, rank: int) -> str | None:
        return None if len(inputs.shape) == 2 else "Vectors are needed."


@pytest.fixture
def vectors_first() -> Iterator[None]:
    """A row on top of the table, whose order counts."""
    before = STRATEGIES.copy()
    STRATEGIES.clear()
    STRATEGIES.update({"of-vectors": OfVectors, **before})
    yield
    STRATEGIES.clear()
    STRATEGIES.update(before)


@pytest.mark.usefixtures("vectors_first")
def test_the_first_strategy_that_suits_is_taken(
    new_classifier: Any, authority: ke.Authority
) -> None:
    """The order of the table is the order of preference; an error names what suits."""
    images = keras.KerasTensor((None, 8, 8, 1))
    vectors = keras.KerasTensor((None, 8))
    tokens = keras.KerasTensor((None, 8, 3), "int32")
    assert suiting(AUTOMATIC, images, 1) is STRATEGIES["clustered"]
    assert suiting(AUTOMATIC, images, 2) is STRATEGIES["random"]
    assert suiting(AUTOMATIC, vectors, 2) is OfVectors
    assert narrowed(AUTOMATIC, vectors, 1) == AUTOMATIC, "the data may not suit it"
    assert narrowed(AUTOMATIC, images, 1) == "clustered"
    assert narrowed(AUTOMATIC, [tokens], 2) == "random"
    assert narrowed("of-vectors", [vectors], 1) == "of-vectors"
    message = "Vectors are needed. Pass `strategy='clustered'` or `strategy='random'` to `protect`"
    with pytest.raises(ArgumentError, match=message):
        protect(new_classifier(), authority, "of-vectors")
