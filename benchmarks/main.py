"""What `python -m benchmarks` runs: suites, each resumable, whose results the report reads."""

from collections.abc import Callable, Sequence
from pathlib import Path

from keras_encryip.errors import ArgumentError

from . import columns, compare, forgery, ladder, removal
from .cells import console
from .rows import Rows, path_of
from .sizes import SIZES
from .trainings import Trainings

SUITES: dict[str, Callable[[Trainings, Rows], None]] = {
    "ladder": ladder.run,
    "locked": ladder.run_locked,
    "peers": compare.run,
    "inference": compare.run_inference,
    "removal": removal.run,
    "removal-peers": compare.run_removal,
    "forgery": forgery.run,
    "claims": forgery.run_claims,
    "columns": columns.run,
    "grid": ladder.run_grid,
}
QUICK_SUITES = ("ladder", "peers", "removal", "forgery", "columns")


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
    check("suite", suites, [*SUITES])
    check("data", data, [size.data for size in SIZES[name]])
    for size in SIZES[name]:
        if data and size.data not in data:
            continue
        for seed in seeds or size.seeds:
            rows = Rows(path_of(name), size.data, seed, size.in_words())
            with Trainings(size, seed) as trainings:
                for suite in suites or (QUICK_SUITES if name == "quick" else SUITES):
                    console.rule(f"{suite}, {size.data}, seed {seed}")
                    SUITES[suite](trainings, rows)


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
