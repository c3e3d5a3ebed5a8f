"""Tables of accuracy against the unprotected twin (P3)."""

from collections.abc import Mapping, Sequence

from .formats import INTERVAL, NONE, interval, number, percent, points, table
from .found import Results, in_order
from .statistics import paired, summary

METHODS = {
    "twin": "twin",
    "ours": "ours, finetuned",
    "ours from scratch": "ours, from scratch",
}
"""Cells of the comparison → names."""

BEFORE = "classifier after one cycle"
"""What *defaults* protect."""


def tables(results: Results) -> list[str]:
    """Of the comparison with peers, and of the models that the outsider ladder attacks."""
    peers, ladder = results.peers, results.ladder
    found = []
    if peers.cells:
        names = in_order(peers.cells, (*METHODS, *results.methods))
        rows = {METHODS.get(name, name): peers.figures(name, "accuracy") for name in names}
        rows[BEFORE] = peers.figures("twin", "accuracy before")
        found.append("Ours and peers:\n\n" + _table(rows, peers.figures("twin", "accuracy")))
    if ladder.cells:
        twin = ladder.figures("twin", "accuracy")
        rows = {"twin": twin, BEFORE: ladder.figures("twin", "accuracy before")}
        rows |= {way: ladder.figures(f"{way}, model", "accuracy") for way in results.ways}
        found.append("Every way to protect, of the ladder and the grid:\n\n" + _table(rows, twin))
    return found


def _table(rows: Mapping[str, Mapping[int, float]], twin: Mapping[int, float]) -> str:
    seeds = sorted({seed for accuracies in rows.values() for seed in accuracies})
    header = [
        "",
        *(f"seed {seed}" for seed in seeds),
        "mean %",
        "sd",
        "minus twin, points",
        INTERVAL,
        "pairs of seeds",
    ]
    return table(header, [_row(name, found, twin, seeds) for name, found in rows.items() if found])


def _row(
    name: str, found: Mapping[int, float], twin: Mapping[int, float], seeds: Sequence[int]
) -> list[str]:
    every = summary(found.values())
    row = [name, *(percent(found[seed]) if seed in found else NONE for seed in seeds)]
    row += [percent(every.mean), NONE]
    if every.deviation is not None:
        row[-1] = number(100 * every.deviation, 2)
    if name == "twin":
        return [*row, "", "", ""]
    apart = paired(found, twin)
    mean = NONE if apart is None else points(apart.mean)
    return [*row, mean, interval(apart), str(len(apart.seeds) if apart else 0)]
