"""The coalitions' results as tables in the terminal."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..cells import console
from .detection import LABELS, SHOWN, USERS, WANTED
from .strategies import STRATEGIES

Cells = dict[str, dict[str, Any]]
_FACTS = ("seconds", "machine")


def show(cells: Cells) -> None:
    console.width = max(console.width, 130)
    for classes in sorted({_classes(key) for key in cells if key.startswith("coalitions")}):
        prefix = f"coalitions, K = {classes}, c = "
        members = sorted(int(key[len(prefix) :]) for key in cells if key.startswith(prefix))
        for users in map(str, USERS):
            _print(_least(cells, classes, members, users))
        for labels in map(str, SHOWN):
            _print(_named(cells, classes, members, labels))
        _print(_lone(cells[f"lone traitor, K = {classes}"], classes))
    _print(_innocents(cells, "innocents", "Innocents whose chance is at most a bound"))
    _print(_innocents(cells, "reports", "Reports on 1,000 innocents that name somebody"))


def _classes(key: str) -> int:
    return int(key.split("K = ")[1].split(",")[0])


def _print(table: Table) -> None:
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _of(cells: Cells, classes: int, c: int, name: str) -> dict[str, Any]:
    cell = cells[f"coalitions, K = {classes}, c = {c}"]
    found: dict[str, Any] = cell["alone" if c == 1 else name]
    return found


def _labels(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"


def _least(cells: Cells, classes: int, members: list[int], users: str) -> Table:
    table = _table(
        f"K = {classes}, {int(users):,} users: least T that names a member in {WANTED:.0%} of runs "
        f"(none: not up to {LABELS[-1]:,})",
        "where they differ",
        *(f"c = {c}" for c in members),
    )
    for name in STRATEGIES:
        found = [_of(cells, classes, c, name)[users]["least_T"] for c in members]
        table.add_row(name, *map(_labels, found))
    return table


def _named(cells: Cells, classes: int, members: list[int], labels: str) -> Table:
    table = _table(
        f"K = {classes}, 1,000 users, T = {labels}: share of runs that name a member / members "
        "named on average",
        "where they differ",
        *(f"c = {c}" for c in members),
    )
    for name in STRATEGIES:
        found = [_of(cells, classes, c, name)["1000"]["at"][labels] for c in members]
        table.add_row(name, *(f"{at['share']:.2f} / {at['named']:.2f}" for at in found))
    return table


def _lone(cell: dict[str, Any], classes: int) -> Table:
    table = _table(
        f"K = {classes}: a lone traitor who recognises live labels and answers them at random, "
        "least T",
        "share",
        *(f"{users:,} users" for users in USERS),
    )
    for name, row in cell.items():
        if name not in _FACTS:
            table.add_row(name, *(_labels(row[str(users)]["least_T"]) for users in USERS))
    return table


def _innocents(cells: Cells, kind: str, title: str) -> Table:
    rows = {
        key.removeprefix(f"{kind}, "): cell
        for key, cell in cells.items()
        if key.startswith(f"{kind}, ")
    }
    bounds = list(next(iter(rows.values()))["below"])
    table = _table(
        f"{title}: number, 95 % interval of the rate (!: more than the bound allows)",
        "answers",
        "runs",
        *(f"p ≤ {bound}" for bound in bounds),
    )
    for name, cell in rows.items():
        found = []
        for at in cell["below"].values():
            low, high = at["interval_95"]
            mark = " !" if at["contradicts_bound"] else ""
            found.append(f"{at['times']:,}: {low:.2g} … {high:.2g}{mark}")
        table.add_row(name, f"{cell['runs']:,}", *found)
    return table
