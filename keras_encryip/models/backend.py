"""Refuses Keras backends that models cannot be protected on, before Keras is imported."""

import json
import os
import sys
from pathlib import Path

from keras_encryip.errors import BackendError

NEEDED = "tensorflow"


def chosen_backend() -> str:
    """The backend that Keras runs on, or would, without importing it."""
    keras = sys.modules.get("keras")
    if keras is not None:
        return str(keras.config.backend())
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"]
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    try:
        return str(json.loads((home / "keras.json").read_text()).get("backend", NEEDED))
    except (OSError, ValueError, AttributeError):  # Keras goes on with its default, too
        return NEEDED


def require_backend() -> None:
    """Raise unless Keras runs on TensorFlow.

    Raises:
        BackendError: names the backend, and the fix.
    """
    backend = chosen_backend()
    if backend != NEEDED:
        raise BackendError(
            f"keras_encryip protects models on the TensorFlow backend of Keras only, and the "
            f"backend is {backend!r}: set KERAS_BACKEND=tensorflow before Keras is imported."
        )


require_backend()
