"""Ctrl-C is quiet wherever it falls, and leaves nothing half-made; versions; odd terminals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import keras_encryip as ke

RUN = [sys.executable, "-c", "from keras_encryip.cli import main; main()"]


@pytest.mark.parametrize("seconds", [0.4, 1.5, 4, 12])
def test_interrupted(tmp_path: Path, seconds: float) -> None:
    """During the imports, and during the demo."""
    command = [*RUN, "demo", "--directory", str(tmp_path / "demo")]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    time.sleep(seconds)
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "Traceback" not in said
    assert "Interrupt" not in said
    assert list(tmp_path.iterdir()) == []


def test_version() -> None:
    said = subprocess.run([*RUN, "--version"], capture_output=True, text=True, check=True).stdout
    assert said == f"keras_encryip {ke.__version__}\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_letters_that_the_output_has_not(shipped: Any, tmp_path: Path, encoding: str) -> None:
    """Names are escaped, and no name is lost."""
    with ke.Authority.create(tmp_path / "a.authority", "owner", scrypt_log2_n=14) as authority:
        authority.enroll(["Zoë", "李"])
    environment = {
        **os.environ,
        "ENCRYIP_AUTHORITY_PASSPHRASE": "owner",
        "PYTHONIOENCODING": encoding,
        "COLUMNS": "200",
    }
    command = [*RUN, "key", "list", str(tmp_path / "a.authority")]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"\u674e" in done.stdout
    assert (rb"Zo\xeb" if encoding == "ascii" else "Zoë".encode(encoding)) in done.stdout
