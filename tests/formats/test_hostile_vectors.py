"""Changed files, as `tests/vectors/hostile.json` lists them for readers in any language."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import keras_encryip.errors
from keras_encryip.client.decoder import Decoder
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.formats.responses import parse_response
from keras_encryip.labels.codebook import Codebook

FOLDER = Path(__file__).parents[1] / "vectors"
VECTORS = json.loads((FOLDER / "codebook.json").read_text(encoding="ascii"))
OWN = json.loads((FOLDER / "public_key_bundle.json").read_text(encoding="ascii"))
HOSTILE = json.loads((FOLDER / "hostile.json").read_text(encoding="ascii"))
GOOD = {
    "key_bundle": VECTORS["key_bundle"],
    "codebook": VECTORS["codebook"],
    "ciphertext": VECTORS["ciphertexts"][0],
    "response": HOSTILE["response"],
    "public_key_bundle": OWN["key_bundle"],
    "private_key": OWN["private_key_pem"],
}


@cache
def private_key(text: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_pem(text.encode(), OWN["passphrase"])


def open_all(files: dict[str, str]) -> Any:
    own = KeyBundle.from_bytes(files["public_key_bundle"].encode())
    own.unlock(private_key=private_key(files["private_key"]))
    bundle = KeyBundle.from_bytes(files["key_bundle"].encode())
    codebook = Codebook.from_bytes(files["codebook"].encode())
    decoder = Decoder.open(codebook, bundle, VECTORS["passphrase"])
    decoder.decrypt([bytes.fromhex(files["ciphertext"])])
    return parse_response(files["response"])


def test_the_good_files_open() -> None:
    assert open_all(GOOD).tolist() == [[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]
    assert len(HOSTILE["cases"]) == 562


@pytest.mark.parametrize("name", GOOD)
def test_changed_files_give_the_listed_errors(name: str) -> None:
    for number, case in enumerate(HOSTILE["cases"]):
        if case["file"] == name:
            start, end = case["at"], case["at"] + case["remove"]
            changed = GOOD[name][:start] + case["insert"] + GOOD[name][end:]
            with pytest.raises(keras_encryip.errors.EncryipError) as caught:
                open_all({**GOOD, name: changed})
            assert type(caught.value).__name__ == case["error"], number
