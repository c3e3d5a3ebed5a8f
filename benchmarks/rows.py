"""What was measured: one figure a row, in JSON lines, and nothing measured twice.

    {"data": "mnist", "seed": 0, "method": "defaults", "attack": "co-activation",
     "setting": "n = 1", "metric": "accuracy", "value": 0.98, "version": "0.4.0", "machine": "…"}

The method is what was attacked or measured. The attack is what was done to it, or another
measurement, as `training`. Rows that share all before the metric are one *measurement*, and are
written together. A measurement of any release counts as made: to make it anew, remove its lines.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import keras_encryip as ke
from keras_encryip.errors import ArgumentError

from .cells import RESULTS, console, hardware

COLUMNS = ("data", "seed", "method", "attack", "setting", "metric", "value", "version", "machine")
RUN = ("run", "", "")
"""The measurement whose metric `size` says how much of everything a data set's rows come from."""


def path_of(name: str) -> Path:
    """The file of a run; quick runs have a folder of their own."""
    return (RESULTS / "quick" if name == "quick" else RESULTS) / "rows.jsonl"


def read(path: Path) -> pd.DataFrame:
    """All rows, in the order of the file."""
    return pd.DataFrame([json.loads(line) for line in lines(text_of(path))], columns=[*COLUMNS])


def text_of(path: Path) -> str:
    return path.read_text(encoding="ascii") if path.exists() else ""


def lines(text: str) -> list[str]:
    """Those of whole measurements: a torn last line is dropped, and what goes with it."""
    *found, torn = text.split("\n")
    if torn:
        console.print("The last line of the rows is torn: its measurement is dropped.")
        last = _measurement(found[-1]) if found else ""
        if last.startswith(_measurement(torn)):
            while found and _measurement(found[-1]) == last:
                found.pop()
    return found


def _measurement(line: str) -> str:
    """The part of a line that the rows of a measurement share."""
    return line.partition('"metric": ')[0]


def flat(found: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Nested figures with the names on their way joined: `{"a": {"b": 1}}` → `{"a: b": 1}`."""
    figures: dict[str, Any] = {}
    for name, value in found.items():
        key = f"{start}{name}"
        figures |= flat(value, f"{key}: ") if isinstance(value, Mapping) else {key: value}
    return figures


class Rows:
    """The rows of one data set and seed.

    Args:
        path: the file; its folder is made.
        data, seed: of the rows.
        size: all that rows of one data set must share (samples, epochs), in words.

    Raises:
        ArgumentError: the file has rows of this data set that were measured with another size.
    """

    def __init__(self, path: Path, data: str, seed: int, size: str) -> None:
        self.path, self.data, self.seed = path, data, seed
        text = text_of(path)
        whole = lines(text)
        kept = sum(len(line) + 1 for line in whole)
        if kept < len(text):
            os.truncate(path, kept)
        rows = [row for line in whole if (row := json.loads(line))["data"] == data]
        other = {row["value"] for row in rows if row["metric"] == "size"} - {size}
        if other:
            raise ArgumentError(
                f"{path} has rows of {data} with another size; move them away to measure anew. "
                f"Expected: {size}. Received: {', '.join(sorted(other))}."
            )
        self.made = {
            (row["method"], row["attack"], row["setting"]) for row in rows if row["seed"] == seed
        }
        if RUN not in self.made:
            self._append(RUN, {"size": size})

    def measure(
        self, method: str, attack: str, setting: str, compute: Callable[[], Mapping[str, Any]]
    ) -> None:
        """Adds what `compute` finds and the seconds it took, unless the measurement is there."""
        key = (method, attack, setting)
        if key in self.made:
            return
        what = ", ".join(part for part in (self.data, f"seed {self.seed}", *key) if part)
        start = time.perf_counter()
        with console.status(what):
            found = flat(compute())
        seconds = time.perf_counter() - start
        self._append(key, {**found, "seconds": seconds})
        console.print(f"{what} ({seconds:.1f} s)", highlight=False)

    def _append(self, key: tuple[str, str, str], figures: Mapping[str, Any]) -> None:
        """In one write, which an interruption leaves out or lets happen."""
        whence = (ke.__version__, hardware())
        rows = ((self.data, self.seed, *key, *figure, *whence) for figure in figures.items())
        text = "".join(f"{json.dumps(dict(zip(COLUMNS, row, strict=True)))}\n" for row in rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            file.write(text.encode("ascii"))
            os.fsync(file.fileno())
        self.made.add(key)
