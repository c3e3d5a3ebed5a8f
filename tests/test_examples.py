"""The examples run as a newcomer would run them, each in a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import keras_encryip as ke
from tests.serving.scripted import Reply, Server

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **env},
    )


def accuracy(output: str, start: str) -> float:
    lines = [line for line in output.splitlines() if line.startswith(start)]
    assert len(lines) == 1, output
    return float(lines[0].split()[-1])


def test_protect_trained_then_decode(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    made = run("protect_trained.py", folder)
    assert made.returncode == 0, made.stderr
    assert accuracy(made.stdout, "original") > 0.85
    protected = accuracy(made.stdout, "protected")
    assert protected > 0.87

    alice = run("decode_in_application.py", folder, "alice")
    assert alice.returncode == 0, alice.stderr
    # A user's trace labels mean another class than the owner's average: a hair of difference.
    assert accuracy(alice.stdout, "accuracy:") == pytest.approx(protected, abs=0.02)

    bob = run("decode_in_application.py", folder, "bob")
    assert bob.returncode == 1
    assert "bob cannot read this model" in bob.stderr
    assert "revoked" in bob.stderr


def test_train_from_scratch(tmp_path: Path) -> None:
    finished = run("train_from_scratch.py", tmp_path / "out")
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "out" / "served" / "digits" / "1" / "saved_model.pb").is_file()
    assert (tmp_path / "out" / "alice.keybundle").is_file()


@pytest.mark.slow
def test_tfds_mnist(tmp_path: Path) -> None:
    assert "TFDS_DATA_DIR" in os.environ, "set TFDS_DATA_DIR to a folder with mnist prepared"
    finished = run("tfds_mnist.py", tmp_path / "out", "1")
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "out" / "served" / "mnist" / "1" / "saved_model.pb").is_file()


@pytest.fixture
def named(shipped: Any, digits: Any) -> list[str]:
    """What alice reads for the test images."""
    decoder = ke.Decoder.open(shipped.exported, shipped.bundles["alice"], shipped.passphrase)
    names: list[str] = decoder.names(shipped.model.predict(digits.x_test, verbose=0))
    return names


# --- fastapi_service.py ----------------------------------------------------------------------


def start_service(shipped: Any, server: str, passphrase: str) -> subprocess.Popen[str]:
    command = ["uvicorn", "--app-dir", str(EXAMPLES), "fastapi_service:app", "--port", "0"]
    env = {
        "MODEL_SERVER": server,
        "MODEL_FOLDER": str(shipped.exported),
        "KEY_BUNDLE": str(shipped.bundles["alice"]),
        "PASSPHRASE": passphrase,
    }
    return subprocess.Popen(
        [sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True, env=os.environ | env
    )


@contextmanager
def service(shipped: Any, server: str) -> Iterator[str]:
    """The service's address, once it answers."""
    with start_service(shipped, server, shipped.passphrase) as process:
        assert process.stderr is not None
        said = []
        try:
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"Uvicorn running on (\S+)", line):
                    yield found[1]
                    break
        finally:  # a test that fails does not wait for it
            process.terminate()
    assert found, "".join(said)


def test_fastapi_service(shipped: Any, digits: Any, named: list[str], model_server: Any) -> None:
    with service(shipped, model_server.rest_url) as url:
        images = digits.x_test[:20, ..., 0].tolist()
        answer = httpx.post(f"{url}/classify", json={"images": images}, timeout=60)
        assert answer.status_code == 200
        assert [item["name"] for item in answer.json()] == named[:20]
        assert all(0.1 < item["probability"] <= 1 for item in answer.json())
        for wrong in ("[]", "[[[0.5]]]", str([[[1e39] * 8] * 8])):
            refused = httpx.post(f"{url}/classify", content=f'{{"images": {wrong}}}', timeout=60)
            assert refused.status_code == 422, wrong


def test_fastapi_service_without_a_model_server(shipped: Any, digits: Any) -> None:
    refusing = Server("inputs", lambda _: Reply({"error": "no such model"}, 404))
    with refusing as server, service(shipped, server.address) as url:
        images = digits.x_test[:1, ..., 0].tolist()
        answer = httpx.post(f"{url}/classify", json={"images": images}, timeout=60)
        assert answer.status_code == 502
        assert answer.json() == {"detail": "The model server gave no answer."}


def test_fastapi_service_does_not_start_with_a_wrong_passphrase(shipped: Any) -> None:
    with start_service(shipped, "http://127.0.0.1:1", "wrong battery staple") as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "PassphraseError" in said
    assert "wrong battery staple" not in said


# --- batch_parquet.py ------------------------------------------------------------------------


@pytest.fixture
def images_file(digits: Any, tmp_path: Path) -> Path:
    """2,500 images with ids, in row groups of 700."""
    chosen = np.arange(2500) % len(digits.x_test)
    pixels = digits.x_test.reshape(-1, 64)[chosen]
    table = pa.table({"id": [f"image-{i}" for i in chosen], "pixels": list(pixels)})
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=700)
    return tmp_path / "images.parquet"


def test_batch_parquet(
    shipped: Any, named: list[str], model_server: Any, images_file: Path
) -> None:
    target = images_file.with_name("labels.parquet")
    fixed = (shipped.exported, shipped.bundles["alice"], images_file, target)
    wrong = run("batch_parquet.py", model_server.rest_url, *fixed, PASSPHRASE="wrong horse")
    assert wrong.returncode == 1
    assert "Nothing was written" in wrong.stderr
    with Server("inputs", lambda _: Reply({"error": "no such model"}, 404)) as server:
        failed = run("batch_parquet.py", server.address, *fixed, PASSPHRASE=shipped.passphrase)
    assert failed.returncode == 1
    assert "no such model" in failed.stderr
    assert {path.name for path in images_file.parent.iterdir()} == {"images.parquet"}

    done = run("batch_parquet.py", model_server.rest_url, *fixed, PASSPHRASE=shipped.passphrase)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2500 rows labelled")
    table = pq.read_table(target)
    assert table.column_names == ["id", "label", "name", "probability"]
    numbers = [int(name.removeprefix("image-")) for name in table["id"].to_pylist()]
    assert numbers == (np.arange(2500) % len(named)).tolist()
    assert table["name"].to_pylist() == [named[i] for i in numbers]
    assert 0.1 < min(table["probability"].to_pylist()) <= 1
    before = target.read_bytes()

    again = run("batch_parquet.py", model_server.rest_url, *fixed, PASSPHRASE=shipped.passphrase)
    assert again.returncode == 1
    assert "exists already, and is not overwritten" in again.stderr
    assert target.read_bytes() == before
    assert len(list(images_file.parent.iterdir())) == 2
