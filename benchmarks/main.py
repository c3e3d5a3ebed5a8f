"""What `python -m benchmarks` runs: suites, each resumable, whose results the report reads."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from keras_encryip.errors import ArgumentError

from .cells import RESULTS, Cells, console
from .ladder import settings
from .sizes import SIZES, Size
from .trainings import Trainings

SUITES = (
    "ladder",
    "probes",
    "peers",
    "inference",
    "removal",
    "removal-peers",
    "forgery",
    "claims",
    "grid",
)
QUICK_SUITES = ("ladder", "peers", "removal", "forgery")
FILES = {"grid": "ladder", "probes": "ladder", "inference": "peers", "claims": "forgery"}
"""Suites whose cells join the file of another one."""


def cells_of(suite: str, size: Size, name: str) -> Cells:
    """The results file of a suite on one data set; quick runs have a folder of their own."""
    folder = RESULTS / "quick" if name == "quick" else RESULTS
    return Cells(folder / f"{suite}-{size.data}.json", settings(size))


def run(suite: str, name: str, trainings: Trainings) -> None:
    """One suite on one data set with one seed."""
    from . import compare, forgery, ladder, removal

    size = trainings.size
    cells = cells_of(FILES.get(suite, suite), size, name)
    if suite == "inference":
        cells.get("inference", lambda: compare.inference(size))
        return
    {
        "ladder": partial(ladder.run, grid=False),
        "grid": partial(ladder.run, grid=True),
        "probes": ladder.run_probes,
        "peers": compare.run,
        "removal": removal.run,
        "removal-peers": compare.run_removal,
        "forgery": forgery.run,
        "claims": forgery.run_claims,
    }[suite](trainings, cells)


def main(
    name: str,
    suites: Sequence[str] | None = None,
    data: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> None:
    """Suites of a size, one after another; what is there already is not run again.

    Args:
        name: `"quick"` (digits, minutes) or `"nightly"` (MNIST and CIFAR-10, through TFDS).
        suites, data, seeds: fewer than there are.
    """
    check("suite", suites, SUITES)
    check("data", data, [size.data for size in SIZES[name]])
    for size in SIZES[name]:
        if data and size.data not in data:
            continue
        for seed in seeds or size.seeds:
            with Trainings(size, seed) as trainings:
                for suite in suites or (QUICK_SUITES if name == "quick" else SUITES):
                    console.rule(f"{suite}, {size.data}, seed {seed}")
                    run(suite, name, trainings)


def report(name: str) -> Path:
    """Writes the report of a size, and returns its path."""
    from .report import write

    return write(name)


def check(argument: str, given: Sequence[str] | None, known: Sequence[str]) -> None:
    unknown = sorted(set(given or ()) - set(known))
    if unknown:
        raise ArgumentError(
            f"`--{argument}` must be one of {', '.join(known)}. Received: {', '.join(unknown)}"
        )
