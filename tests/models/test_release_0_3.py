"""Files of release 0.3 (tests/vectors/release-0.3): each error says what reads them."""

import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import msgspec
import numpy as np
import pytest

import keras_encryip as ke
from keras_encryip.errors import EncryipError, FormatError, LedgerError, WrongModelError
from keras_encryip.formats.version_folder import ASSETS, read_codebook
from keras_encryip.labels.ciphertext import LabelCiphertext

FOLDER = Path(__file__).parents[1] / "vectors" / "release-0.3"
PASSPHRASE = "correct horse"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """As much of an exported folder of 0.3 as tells its release: the model's codebook."""
    with zipfile.ZipFile(FOLDER / "digits.keras") as saved:
        codebook = msgspec.json.decode(saved.read("config.json"))["config"]["codebook"]
    (tmp_path / "1" / ASSETS).mkdir(parents=True)
    (tmp_path / "1" / ASSETS / "codebook.json").write_text(codebook)
    return tmp_path / "1"


def refused(error: type[EncryipError], release: str, what_to_do: str, work: Any) -> None:
    with pytest.raises(error) as caught:
        work()
    (message,) = caught.value.args
    assert release in message
    assert what_to_do in message
    assert caught.value.__cause__ is None


def test_a_ledger(tmp_path: Path) -> None:
    """It is left as it was."""
    shutil.copy(FOLDER / "acme.authority", tmp_path)
    copy = tmp_path / "acme.authority"
    refused(
        LedgerError,
        "has ledger version 3; this release reads 4. Release 0.3 of keras_encryip reads it",
        "create a new authority and issue keys and protect models anew",
        lambda: ke.Authority.open(f"sqlite:///{copy}", PASSPHRASE),
    )
    assert copy.read_bytes() == (FOLDER / "acme.authority").read_bytes()


def test_a_bundle() -> None:
    refused(
        FormatError,
        "has version 1, which release 0.3 of keras_encryip reads",
        "Ask the model's owner for a new one, or use release 0.3",
        lambda: ke.KeyBundle.read(FOLDER / "alice.keybundle"),
    )


def test_a_codebook_and_the_folder_that_it_lies_in(exported: Path, tmp_path: Path) -> None:
    """Whichever key is tried."""
    said = "has version 1, which release 0.3 of keras_encryip reads"
    refused(FormatError, said, "Export the model anew", lambda: read_codebook(exported))
    with ke.Authority.create(tmp_path / "a.authority", "p", scrypt_log2_n=14) as authority:
        authority.issue("alice", tmp_path / "alice", passphrase="p", scrypt_log2_n=14)
    for bundle in (tmp_path / "alice", FOLDER / "alice.keybundle"):
        with pytest.raises(FormatError, match=re.escape(said)):
            ke.Decoder.open(exported, bundle, "p")


def test_a_label_ciphertext() -> None:
    data = bytes([1]) + bytes(300)
    with pytest.raises(FormatError, match=r"version 1 is not read .*Release 0.3 .* reads it"):
        LabelCiphertext.from_bytes(data)


def test_a_saved_model() -> None:
    refused(
        FormatError,
        "Model 'digits' was protected by release 0.3 of keras_encryip, which reads it",
        "Protect the classifier anew with this release, or use release 0.3",
        lambda: keras.models.load_model(FOLDER / "digits.keras"),
    )


def test_weights(new_classifier: Any, shared_authority: ke.Authority, tmp_path: Path) -> None:
    """They have no codebook's id, and could belong to labels in any order."""
    options = {"homophones": 2, "trace_labels": 0}
    model = ke.protect(new_classifier(), shared_authority, name="digits", **options)
    path = tmp_path / "m.weights.h5"
    model.save_weights(path)
    with h5py.File(path, "r+") as file:
        del file["vars"]["codebook"]
    before = model.get_weights()
    with pytest.raises(WrongModelError, match=r"trained for no codebook, or by release 0\.3, and"):
        model.load_weights(path)
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
