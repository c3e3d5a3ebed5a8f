"""The results that exist: cells read from their files, whatever a run has left undone."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from .. import forgery, removal
from ..data import Data
from ..ladder import GRID, MAIN
from ..peers import PEERS
from ..sizes import Size

Cell = dict[str, Any]
BySeed = Mapping[int, Cell]

KEY = re.compile(r"(?:(?P<who>.+), )?seed (?P<seed>\d+)[:,] (?P<rest>.+)")
"""`seed 0, twin` · `seed 0: model` · `uchida, seed 0: untouched`."""

GONE = {"neutrality 1"}
"""Ways that release 0.3 had: its results keep their cells, which are not shown."""

METHODS = tuple(kind.name for kind in PEERS)


@dataclass(frozen=True)
class Suite:
    """One file of results, or an empty one.

    Attributes:
        setting: what all cells share; `None` without a file.
        cells: key without its seed → seed → cell.
        once: cells that belong to no seed.
    """

    setting: Cell | None = None
    cells: Mapping[str, BySeed] = field(default_factory=dict)
    once: Mapping[str, Cell] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Suite":
        if not path.exists():
            return cls()
        saved = json.loads(path.read_text(encoding="utf-8"))
        return cls.of_cells(saved["setting"], saved["cells"])

    @classmethod
    def of_cells(cls, setting: Cell, cells: Mapping[str, Cell]) -> "Suite":
        found: dict[str, dict[int, Cell]] = {}
        once = {}
        for key, cell in sorted(cells.items()):
            parts = KEY.fullmatch(key)
            if parts is None:
                once[key] = cell
                continue
            name = parts["rest"] if parts["who"] is None else f"{parts['who']}: {parts['rest']}"
            found.setdefault(name, {})[int(parts["seed"])] = cell
        return cls(setting, found, once)

    def of(self, key: str) -> BySeed:
        return self.cells.get(key, {})

    def figures(self, key: str, *path: str) -> dict[int, Any]:
        """Seed → the figure at `path` inside the cell, of the seeds that have it."""
        found = {}
        for seed, cell in self.of(key).items():
            value: Any = cell
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                found[seed] = value
        return found

    @property
    def seeds(self) -> set[int]:
        return {seed for cells in self.cells.values() for seed in cells}

    @property
    def machines(self) -> set[str]:
        cells = [cell for by_seed in self.cells.values() for cell in by_seed.values()]
        return {cell["machine"] for cell in [*cells, *self.once.values()] if "machine" in cell}


@dataclass(frozen=True)
class Results:
    """All suites of one data set."""

    size: Size
    ladder: Suite
    peers: Suite
    removal: Suite
    peer_removal: Suite
    forgery: Suite

    @classmethod
    def read(cls, folder: Path, size: Size) -> "Results":
        names = ("ladder", "peers", "removal", "removal-peers", "forgery")
        return cls(size, *(Suite.read(folder / f"{name}-{size.data}.json") for name in names))

    @property
    def data(self) -> str:
        return self.size.data

    @property
    def suites(self) -> tuple[Suite, ...]:
        return (self.ladder, self.peers, self.removal, self.peer_removal, self.forgery)

    @property
    def ways(self) -> list[str]:
        """To protect, as far as there are models: main ones first, unknown ones last."""
        found = {key.removesuffix(", model") for key in self.ladder.cells if ", model" in key}
        return in_order(found - GONE, (*MAIN, *GRID))

    @property
    def samples(self) -> list[int]:
        """The n of which there is any cell."""
        ends = (re.search(r", n = (\d+)$", key) for key in self.ladder.cells)
        return sorted({int(end[1]) for end in ends if end})

    @property
    def methods(self) -> list[str]:
        """Peers of which there is a cell."""
        return in_order(
            {key for key in self.peers.cells if key != "twin" and not key.startswith("ours")}
            | {key.partition(": ")[0] for key in self.peer_removal.cells},
            METHODS,
        )

    @property
    def rungs(self) -> list[str]:
        """Tamperings of which there is a cell."""
        own = {key for key in self.removal.cells if key != "model"}
        theirs = {key.partition(": ")[2] for key in self.peer_removal.cells}
        return in_order(own | theirs, tamperings(self.size))


def in_order(found: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those found, in the known order; others after them."""
    places = {name: place for place, name in enumerate(known)}
    return sorted(found, key=lambda name: (places.get(name, len(places)), name))


# --- the outsider ladder ------------------------------------------------------------------


def attacks(cell: Cell, needs_model: bool | None = None) -> dict[str, Cell]:
    """A cell's attacks; with `needs_model`, only those that do, or only those that do not."""
    found = {name: each for name, each in cell.items() if isinstance(each, dict) and "best" in each}
    if needs_model is None:
        return found
    return {name: each for name, each in found.items() if each["needs_model"] == needs_model}


def best(cells: BySeed, needs_model: bool) -> dict[int, float]:
    """Seed → accuracy of the best attack of that seed."""
    found = {seed: attacks(cell, needs_model) for seed, cell in cells.items()}
    return {seed: max(a["best"] for a in each.values()) for seed, each in found.items() if each}


def best_names(cells: BySeed, needs_model: bool) -> list[str]:
    """The attacks that no other beats in some seed."""
    most = best(cells, needs_model)
    return sorted(
        {
            name
            for seed, accuracy in most.items()
            for name, each in attacks(cells[seed], needs_model).items()
            if each["best"] == accuracy
        }
    )


def from_scratch(cells: BySeed) -> dict[int, float]:
    """Seed → accuracy of an ordinary classifier, from cells of attacks without a model."""
    found = {seed: attacks(cell).get("from scratch") for seed, cell in cells.items()}
    return {seed: each["best"] for seed, each in found.items() if each}


# --- what a whole run has -----------------------------------------------------------------


def tamperings(size: Size) -> list[str]:
    """Names of the rungs, which depend on the data set's name alone."""
    none = np.empty(0)
    data = Data(size.data, none, none, none, none, none, none)
    return list(removal.tamperings(data, removal.ladder_of(size), keras.Model))


def coverage(results: Results) -> dict[str, str]:
    """Suite → which of its seeds are there, and what is missing."""
    samples = results.size.labelled
    rungs = tamperings(results.size)
    ladder = ["twin", *(f"no model, n = {n}" for n in samples), *_parts(results.size.ways, samples)]
    keys = {
        "ladder": (results.ladder, ladder),
        "probes of other layers": (
            results.ladder,
            [f"{way}, other layers, n = {n}" for way in results.size.ways for n in samples],
        ),
        "grid": (results.ladder, _parts(GRID, samples[:2])),
        "peers": (results.peers, ["twin", "ours", "ours from scratch", *METHODS]),
        "removal": (results.removal, ["model", *rungs]),
        "removal of peers": (
            results.peer_removal,
            [f"{method}: {rung}" for method in METHODS for rung in rungs],
        ),
        "forgery": (
            results.forgery,
            [
                "random keys",
                *(f"pooled keys, t = {t}" for t in forgery.THRESHOLDS),
                "evidence",
                "claims",
            ],
        ),
    }
    found = {name: _covered(suite, wanted, results.size) for name, (suite, wanted) in keys.items()}
    timed = "run" if "inference" in results.peers.once else "not run"
    return found | {"peers, inference time": timed}


def _parts(ways: Iterable[str], samples: Iterable[int]) -> list[str]:
    parts = ["model", "no labels", *(f"n = {n}" for n in samples)]
    return [f"{way}, {part}" for way in ways for part in parts]


def _covered(suite: Suite, wanted: list[str], size: Size) -> str:
    missing = {
        seed: [key for key in wanted if seed not in suite.of(key)]
        for seed in sorted({*size.seeds, *suite.seeds})
    }
    if all(len(keys) == len(wanted) for keys in missing.values()):
        return "not run"
    whole = [str(seed) for seed, keys in missing.items() if not keys]
    found = [f"complete: seed {', '.join(whole)}"] if whole else []
    for seed, keys in missing.items():
        if len(keys) == len(wanted):
            found.append(f"seed {seed} not run")
        elif keys:
            named = ", ".join(f"`{key}`" for key in keys[:3])
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            there = len(wanted) - len(keys)
            found.append(f"seed {seed}: {there} of {len(wanted)} cells, without {named}{more}")
    return "; ".join(found)
