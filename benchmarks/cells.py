"""Results on disk, a cell at a time: what was measured is never measured again."""

import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tensorflow as tf
from rich.console import Console

import keras_encryip as ke

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("keras", "numpy", "scikit-learn", "pycryptodome")

console = Console()


def hardware() -> str:
    """In words: processor, cores, card, versions of what is not ours."""
    versions = ", ".join(f"{p} {version(p)}" for p in PACKAGES)
    versions = f"tensorflow {tf.__version__}, {versions}"  # its package goes by several names
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {card()}, "
        f"Python {platform.python_version()}, {versions}"
    )


def card() -> str:
    """The accelerator that TensorFlow computes on."""
    found = tf.config.list_physical_devices("GPU")
    if not found:
        return "no GPU used"
    return str(tf.config.experimental.get_device_details(found[0])["device_name"])


def machine() -> str:
    """As `hardware`, with our release."""
    return f"{hardware()}, keras_encryip {ke.__version__}"


class Cells:
    """One JSON file of a suite: `{"setting": …, "cells": {key: figures}}`.

    Every cell carries the machine and how long it took. A file of another setting is
    refused, never overwritten.

    Args:
        path: the file; its folder is made.
        setting: what all cells share (sizes, epochs), as plain JSON.
    """

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self.path = path
        self.saved: dict[str, Any] = {"setting": setting, "cells": {}}
        if path.exists():
            self.saved = json.loads(path.read_text())
            if self.saved["setting"] != json.loads(json.dumps(setting)):
                raise SystemExit(
                    f"{path} holds results of another setting, {self.saved['setting']}; "
                    "move it away to measure anew."
                )

    def __contains__(self, key: str) -> bool:
        return key in self.saved["cells"]

    def get(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures of `key`, computed and saved if they are not there yet."""
        cells = self.saved["cells"]
        if key not in cells:
            start = time.perf_counter()
            with console.status(f"{self.path.stem}: {key}"):
                found = compute()
            cells[key] = {**found, "seconds": time.perf_counter() - start, "machine": machine()}
            self._write()
            console.print(f"{self.path.stem}: {key} ({cells[key]['seconds']:.0f} s)")
        return cells[key]

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".tmp")
        with draft.open("w") as file:
            json.dump(self.saved, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)
