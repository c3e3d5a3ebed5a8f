"""The package's names, and its documented example run as written."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import pytest

import keras_encryip as ke

NAMES = {
    "Authority",
    "ConfusedLabelCrossentropy",
    "ConfusedLabels",
    "Decoder",
    "EncryipError",
    "KeyBundle",
    "ProtectedModel",
    "export_saved_model",
    "protect",
    "rotate_codebook",
    "verify_export",
}


def test_names() -> None:
    assert set(ke.__all__) >= NAMES
    assert set(dir(ke)) >= NAMES | {"__version__"}
    for name in ke.__all__:
        value = getattr(ke, name)
        assert value.__name__ == name
        assert value.__module__.startswith("keras_encryip.")
        assert value.__doc__
    namespace: dict[str, Any] = {}
    exec("from keras_encryip import *", namespace)
    assert set(namespace) >= NAMES


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'keras_encryip' has no attribute 'unprotect'"):
        ke.unprotect  # noqa: B018


HEAVY = "[m for m in ('tensorflow', 'keras', 'sklearn', 'sqlalchemy', 'numpy') if m in sys.modules]"


@pytest.mark.parametrize(
    ("use", "loaded"),
    [
        pytest.param("", [], id="import-alone"),
        pytest.param("dir(ke); ke.__version__", [], id="looking-around"),
        pytest.param("ke.EncryipError", [], id="errors"),
        pytest.param("ke.Decoder, ke.KeyBundle, ke.verify_export", ["numpy"], id="light-client"),
        pytest.param("ke.Authority", ["sqlalchemy", "numpy"], id="authority"),
    ],
)
def test_import_loads_no_more_than_is_used(use: str, loaded: list[str]) -> None:
    code = f"import sys; import keras_encryip as ke; {use}\nprint({HEAVY})"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stdout.strip() == str(loaded), finished.stderr


def test_serialised_names_are_stable() -> None:
    """Saved models refer to these names."""
    for name in ("ProtectedModel", "ConfusedLabels", "ConfusedLabelCrossentropy"):
        registered = keras.saving.get_registered_name(getattr(ke, name))
        assert registered == f"keras_encryip>{name}"


def test_documented_example(
    new_classifier: Any, digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    classifier, x, y, xv, yv = (
        new_classifier(),
        digits.x,
        digits.y,
        digits.x_test,
        digits.y_test,
    )
    class_names = [f"digit {k}" for k in range(10)]

    import keras_encryip as ke

    authority = ke.Authority.create("sqlite:///acme.authority", passphrase="…", threshold=4)
    model = ke.protect(
        classifier, authority, name="digits", class_names=class_names, trace_labels=64
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, validation_data=(xv, yv), epochs=15, verbose=0)
    ke.export_saved_model(model, "served/digits/1")
    authority.issue("alice", "alice.keybundle", passphrase="…")
    authority.issue("bob", "bob.keybundle", passphrase="…")
    authority.revoke("bob")
    ke.rotate_codebook("served/digits/1", "served/digits/3", authority=authority)
    ke.export_saved_model(model, "served/digits/2")
    confused = model.predict(xv, verbose=0)

    from keras_encryip.client import Decoder

    for version in ("1", "2"):
        decoder = Decoder.open(f"served/digits/{version}", "alice.keybundle", passphrase="…")
        decoded = decoder.probabilities(confused)
        assert decoded.shape == (len(xv), 10)
        assert (decoded.argmax(1) == yv).mean() > 0.85
        assert decoder.names(confused[:1]) == [f"digit {decoded[0].argmax()}"]
    Decoder.open("served/digits/3", "alice.keybundle", passphrase="…")
    Decoder.open("served/digits/1", "bob.keybundle", passphrase="…")
    for version in ("2", "3"):
        with pytest.raises(ke.EncryipError, match="was revoked before this model version"):
            Decoder.open(f"served/digits/{version}", "bob.keybundle", passphrase="…")
    assert {p.name for p in tmp_path.iterdir()} == {
        "acme.authority",
        "alice.keybundle",
        "bob.keybundle",
        "served",
    }
    assert {p.name for p in (tmp_path / "served" / "digits").iterdir()} == {"1", "2", "3"}
    authority.close()
