"""The examples run as a newcomer would run them, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
    )


def accuracy(output: str, start: str) -> float:
    lines = [line for line in output.splitlines() if line.startswith(start)]
    assert len(lines) == 1, output
    return float(lines[0].split()[-1])


def test_protect_trained_then_decode(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    made = run("protect_trained.py", folder)
    assert made.returncode == 0, made.stderr
    assert accuracy(made.stdout, "original") > 0.9
    protected = accuracy(made.stdout, "protected")
    assert protected > 0.9

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
