"""Coalitions: what traitors can do against black-box tracing, and what innocents risk.

    python -m benchmarks coalitions

No network is trained. Every live label of a model lies on a slot of its own and reads as class
a or b by the user's bit. Members of a coalition know their own versions alone. A label at which
they agree looks ordinary to them and is answered truly; `strategies` says what they answer
where they differ. The owner scores users as the library does.

coalitions     the least T that names a member in 95 % of runs, and how many are named at some T
lone traitor   one who recognises a share of the live labels somehow, and answers them at random
innocents      simulated codewords against many answers, with the library's own functions
reports        how many reports name anybody, where everybody is innocent
"""

from functools import partial

from ..cells import RESULTS, Cells
from . import detection, innocents
from .strategies import STRATEGIES

SEED = 20261128
CLASSES = (10, 100)
COALITIONS = tuple(range(1, 9))
SHARES = (0.25, 0.5, 0.75, 0.9)
SETTING = {
    "seed": SEED,
    "runs": detection.RUNS,
    "users": detection.USERS,
    "wanted": detection.WANTED,
    "innocents": innocents.INNOCENTS,
    "reports": innocents.REPORTS,
}


def run() -> Cells:
    """All cells; those that are there already are not run again."""
    cells = Cells(RESULTS / "coalitions.json", SETTING)
    for classes in CLASSES:
        for c in COALITIONS:
            key = f"coalitions, K = {classes}, c = {c}"
            cells.get(key, partial(detection.coalitions, classes, c, SEED))
        cells.get(f"lone traitor, K = {classes}", partial(detection.lone, classes, SHARES, SEED))
    cells.get("tails", partial(detection.compare_tails, SEED))
    for kind in (*STRATEGIES, *innocents.OTHERS):
        cells.get(f"innocents, {kind}", partial(innocents.innocents, kind, SEED))
        cells.get(f"reports, {kind}", partial(innocents.reports, kind, SEED))
    return cells


def main() -> None:
    """Run what is missing, and print tables."""
    from .tables import show

    show(run().saved["cells"])
