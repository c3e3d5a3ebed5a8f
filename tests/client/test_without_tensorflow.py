"""The light client imports numpy and pycryptodome, never a framework or the owner's side."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import keras_encryip
from tests.serving.scripted import Reply, Server

PACKAGE = Path(keras_encryip.__file__).parent
FORBIDDEN = ("tensorflow", "keras", "jax", "torch", "sklearn", "scipy", "sqlalchemy")

USE = """
import numpy as np
from keras_encryip.client import Decoder, KeyBundle
decoder = Decoder.open({model!r}, {bundle!r}, "correct horse")
confused = np.full((2, 3, decoder.num_labels), 1 / decoder.num_labels, np.float32)
assert decoder.probabilities(confused).shape == (2, 3, 10)
assert np.allclose(decoder.probabilities(confused).sum(-1), 1)
decoder.labels(confused), decoder.names(confused), decoder.top_k(confused)
ciphertexts = [bytes.fromhex({ciphertext!r})]
bundle = KeyBundle.read({bundle!r})
assert decoder.decrypt(ciphertexts) == bundle.decrypt(ciphertexts, "correct horse")
"""

FORBID = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {forbidden!r} or name.startswith("keras_encryip.authority"):
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)
sys.meta_path.insert(0, Forbid())
"""

LIST = """
import sys
print("loaded:", *sorted(
    name for name in sys.modules
    if name.partition(".")[0] in {forbidden!r} or name.startswith("keras_encryip.")
))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def use(world: Any, alice_file: Path) -> str:
    return USE.format(
        model=str(world.model),
        bundle=str(alice_file),
        ciphertext=world.codebook.ciphertext(0).hex(),
    )


def test_using_the_client_loads_no_framework(use: str) -> None:
    done = run(use + LIST.format(forbidden=FORBIDDEN))
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split("loaded:")[1].split()
    assert "keras_encryip.client.decoder" in loaded
    rooms = {"client", "formats", "labels", "crypto", "errors", "registration"}
    assert {name.split(".")[1] for name in loaded if name.startswith("keras_encryip.")} == rooms
    assert [name for name in loaded if not name.startswith("keras_encryip.")] == []


def test_the_client_works_where_no_framework_is_installed(use: str) -> None:
    done = run(FORBID.format(forbidden=FORBIDDEN) + use)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["tensorflow", "keras", "keras_encryip.authority"])
def test_the_hook_of_these_tests_does_forbid(name: str) -> None:
    done = run(FORBID.format(forbidden=FORBIDDEN) + f"import {name}")
    assert done.returncode == 1
    assert f"{name} is not installed here" in done.stderr


# --- asking a model server ---------------------------------------------------------


ASK = """
from keras_encryip.client import Decoder
from keras_encryip.client.serving import ServingClient
from keras_encryip.errors import MissingExtraError
decoder = Decoder.open({model!r}, {bundle!r}, "correct horse")
try:
    with ServingClient({url!r}, "digits", decoder) as client:
        print("answers:", client.predict([[0.5], [1]]).shape)
except MissingExtraError as error:
    print("problem:", error)
"""


def ask(world: Any, alice_file: Path, url: str, forbidden: tuple[str, ...]) -> str:
    code = ASK.format(model=str(world.model), bundle=str(alice_file), url=url)
    done = run(FORBID.format(forbidden=forbidden) + code + LIST.format(forbidden=FORBIDDEN))
    assert done.returncode == 0, done.stderr
    assert not set(FORBIDDEN) & set(done.stdout.split("loaded:")[1].split())
    return done.stdout


def test_rest_needs_no_framework(world: Any, alice_file: Path) -> None:
    row = [1 / world.codebook.num_labels] * world.codebook.num_labels
    with Server("inputs", lambda _: Reply({"outputs": [row, row]})) as server:
        said = ask(world, alice_file, server.address, (*FORBIDDEN, "grpc", "tensorflow_serving"))
    assert said.startswith("answers: (2, 10)")


@pytest.mark.parametrize(
    ("url", "missing", "package"),
    [
        ("http://127.0.0.1:1", ("httpx",), "httpx"),
        ("grpc://127.0.0.1:1", ("tensorflow", "tensorflow_serving"), "tensorflow_serving"),
        ("grpc://127.0.0.1:1", ("grpc",), "grpc"),
    ],
)
def test_missing_packages_are_named(
    world: Any, alice_file: Path, url: str, missing: tuple[str, ...], package: str
) -> None:
    said = ask(world, alice_file, url, missing)
    assert said.startswith(
        f"problem: The package {package!r} is not installed. "
        'Install it with: pip install "keras_encryip[serving]"\n'
    )
