"""Run by `test_state_survives` in a process that has not seen the models: load, export, decode.

`python -m tests.models.reload_in_fresh_process FOLDER URL PASSPHRASE NAME …` reads `NAME.keras`
and the inputs `NAME.inputs`, and writes what it finds to `FOLDER/reloaded.pickle`.
"""

import pickle
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_encryip as ke
import tests.models.custom_layers  # noqa: F401  (registers its classes)


def in_training(model: ke.ProtectedModel, x: Any) -> np.ndarray:
    """Outputs with dropout and noise, as they are: the warning to own loops is not for us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return np.asarray(model(x, training=True))


def outcome(model: ke.ProtectedModel, x: Any) -> dict[str, Any]:
    """What must not change: predictions, dropout's and noise's draws, what is trainable."""
    confused, weights = np.asarray(model(x, training=False)), model.get_weights()
    noisy = [in_training(model, x) for _ in range(2)]
    model.set_weights(weights)  # batch statistics moved
    return {
        "confused": confused,
        "noisy": noisy,
        "trainable": sorted(v.path for v in model.trainable_variables),
        "frozen": sorted(v.path for v in model.non_trainable_variables),
    }


def exported(model: ke.ProtectedModel, x: Any, folder: Path, bundle: Path) -> np.ndarray:
    """Class probabilities of an export, as a key holder decodes them."""
    ke.export_saved_model(model, folder)
    serving = tf.saved_model.load(str(folder)).signatures["serving_default"]
    _, named = serving.structured_input_signature
    (name,) = named
    (confused,) = serving(**{name: tf.cast(x, named[name].dtype)}).values()
    return ke.Decoder.open(folder, bundle, "p").probabilities(confused.numpy())


def reload_one(folder: Path, name: str, x: Any, authority: ke.Authority) -> dict[str, Any]:
    if name == "lambda":  # as plain Keras asks for
        model = keras.models.load_model(folder / f"{name}.keras", safe_mode=False)
    else:
        model = keras.models.load_model(folder / f"{name}.keras")
    found = {"locked": model.is_locked(), **outcome(model, x)}
    model.unlock(authority=authority)
    found["decoded"] = model.decode(found["confused"])
    found["exported"] = exported(model, x, folder / name, folder / "alice.keybundle")
    return found


def main(folder: str, url: str, passphrase: str, *names: str) -> None:
    place, results = Path(folder), {}
    inputs = pickle.loads((place / "inputs.pickle").read_bytes())
    with ke.Authority.open(url, passphrase) as authority:
        for name in names:
            x = inputs[name]
            x = tf.constant(x) if np.asarray(x).dtype.kind in "OSU" else x
            try:
                results[name] = reload_one(place, name, x, authority)
            except Exception:  # the test shows it
                results[name] = {"error": traceback.format_exc()}
    (place / "reloaded.pickle").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
