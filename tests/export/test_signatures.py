"""Signatures of exported models: whatever inputs a classifier takes, a folder takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_encryip as ke
from keras_encryip.errors import ExportError

layers = keras.layers


@keras.saving.register_keras_serializable(package="tests_export")
class Subclass(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.flatten = layers.Flatten()
        self.head = layers.Dense(3)

    def call(self, inputs: Any) -> Any:
        return self.head(self.flatten(inputs))


def subclassed() -> keras.Model:
    model = Subclass()
    model(np.zeros((2, 4, 4), "float32"))
    return model


def dictionary() -> keras.Model:
    inputs = {"left": keras.Input((4,), name="left"), "right": keras.Input((2,), name="right")}
    return keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(list(inputs.values()))))


def pixels() -> keras.Model:
    inputs = keras.Input((4, 4, 1), dtype="uint8")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, layers.Dense(3)(x))


def tokens() -> keras.Model:
    inputs = keras.Input((None,), dtype="int32")
    return keras.Model(inputs, layers.Dense(3)(layers.Embedding(9, 4)(inputs)))


def half_precision() -> keras.Model:
    hidden = layers.Dense(5, dtype="mixed_float16")
    return keras.Sequential([keras.Input((4,)), hidden, layers.Dense(3, activation="softmax")])


F = np.float32
SIGNATURES: dict[str, tuple[Callable[[], keras.Model], dict[str, Any], dict[str, Any]]] = {
    "sequential": (
        lambda: keras.Sequential([keras.Input((4,)), layers.Dense(3)]),
        {"inputs": ((None, 4), "float32")},
        {"inputs": np.ones((5, 4), F)},
    ),
    "functional-uint8": (
        pixels,
        {"inputs": ((None, 4, 4, 1), "uint8")},
        {"inputs": np.full((5, 4, 4, 1), 200, np.uint8)},
    ),
    "subclass": (
        subclassed,
        {"inputs": ((None, 4, 4), "float32")},
        {"inputs": np.ones((5, 4, 4), F)},
    ),
    "dictionary": (
        dictionary,
        {"left": ((None, 4), "float32"), "right": ((None, 2), "float32")},
        {"left": np.ones((5, 4), F), "right": np.ones((5, 2), F)},
    ),
    "token-sequences": (
        tokens,
        {"inputs": ((None, None), "int32")},
        {"inputs": np.arange(35, dtype=np.int32).reshape(5, 7) % 9},
    ),
    "mixed-precision": (
        half_precision,
        {"inputs": ((None, 4), "float32")},
        {"inputs": np.ones((5, 4), F)},
    ),
}


def untrained(classifier: keras.Model, authority: ke.Authority) -> ke.ProtectedModel:
    """One homophone per class: nothing to hide in the head, so it can be exported as it is."""
    options = {"homophones": 1, "trace_labels": 0, "strategy": "random"}
    return ke.protect(classifier, authority, name="m", **options)


@pytest.mark.parametrize("kind", SIGNATURES)
def test_input_signature(kind: str, shared_authority: ke.Authority, tmp_path: Path) -> None:
    make, expected, feed = SIGNATURES[kind]
    model = untrained(make(), shared_authority)
    ke.export_saved_model(model, tmp_path / "1")
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    outputs = {}
    for name in ("serving_default", "encrypted_label"):
        signature = loaded.signatures[name]
        specs = signature.structured_input_signature[1]
        assert {k: (tuple(s.shape), s.dtype.name) for k, s in specs.items()} == expected
        tensors = {k: tf.constant(v) for k, v in feed.items()}
        outputs |= {k: v.numpy() for k, v in signature(**tensors).items()}
    inputs = feed if len(feed) > 1 else feed["inputs"]
    confused = model.predict(inputs, verbose=0)
    assert set(outputs) == {"confused", "ciphertext_bytes"}
    np.testing.assert_allclose(outputs["confused"], confused, atol=1e-5)
    assert outputs["ciphertext_bytes"].shape == confused.shape[:-1]
    assert all(type(c) is bytes for c in outputs["ciphertext_bytes"].ravel())


def test_model_built_by_fit(shared_authority: ke.Authority, tmp_path: Path) -> None:
    model = untrained(keras.Sequential([layers.Flatten(), layers.Dense(3)]), shared_authority)
    with pytest.raises(ExportError, match="Model 'm' has no weights yet: train it first"):
        ke.export_saved_model(model, tmp_path / "1")
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(np.ones((6, 2, 2), F), np.arange(6) % 3, verbose=0)
    ke.export_saved_model(model, tmp_path / "1")
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    specs = loaded.signatures["serving_default"].structured_input_signature[1]
    assert tuple(specs["inputs"].shape) == (None, 2, 2)


def test_several_inputs_need_names(shared_authority: ke.Authority, tmp_path: Path) -> None:
    inputs = [keras.Input((4,)), keras.Input((4,))]
    model = untrained(keras.Model(inputs, layers.Dense(3)(layers.Add()(inputs))), shared_authority)
    with pytest.raises(ExportError, match="several inputs needs them as a dictionary"):
        ke.export_saved_model(model, tmp_path / "1")
    assert not list(tmp_path.iterdir())
