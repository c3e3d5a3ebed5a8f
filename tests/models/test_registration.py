"""Importing `keras_encryip.models` registers its Keras classes, and needs little else."""

import subprocess
import sys

import keras
import pytest

import keras_encryip.models

CLASSES = {
    "ConfusedLabels": "head",
    "ConfusedLabelCrossentropy": "losses",
    "Distillation": "losses",
    "Headless": "backbone",
    "ProtectedModel": "protected_model",
}

SCRIPT = """
import sys
import keras

for name in ("sklearn", "scipy", "sqlalchemy", "tensorflow"):
    sys.modules[name] = None  # importing it fails from here on
import keras_encryip.models

print(*sorted(
    name for name in keras.saving.get_custom_objects() if name.startswith("keras_encryip>")
))
"""


@pytest.mark.parametrize("name", CLASSES)
def test_registered_names_do_not_change(name: str) -> None:
    """Saved files contain them."""
    registered = keras.saving.get_registered_object(f"keras_encryip>{name}")
    assert registered.__module__ == f"keras_encryip.models.{CLASSES[name]}"


def test_importing_registers_without_sklearn_sql_and_tensorflow() -> None:
    """Of TensorFlow, only what Keras has loaded by itself."""
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == sorted(f"keras_encryip>{name}" for name in CLASSES)


def test_the_room_offers_protect_and_its_model() -> None:
    assert keras_encryip.models.__all__ == ["ProtectedModel", "protect"]
