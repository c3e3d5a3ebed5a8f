"""The report: tables from the rows, between marks in a page whose prose is written by hand."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from keras_encryip.errors import ArgumentError

from ..rows import path_of, read
from . import aims, tables
from .numbers import markdown
from .pictures import pictures

PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "benchmarks.md"
FIGURES = PAGE.parents[1] / "figures"
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- /table -->)", re.S)

TABLES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "measured": tables.measured,
    "aims": aims.aims,
    "accuracy": tables.accuracy,
    "attacks": tables.attacks,
    "best-attacks": tables.best_attacks,
    "unlabelled": tables.unlabelled,
    "removal": tables.removal,
    "pooled-keys": tables.pooled_keys,
    "claims": tables.claims,
    "evidence": tables.evidence,
    "peers": tables.peers,
    "users": tables.users,
}
"""Name of a block → its table of one data set."""


def write(name: str) -> Path:
    """Fills in the page of the nightly run and draws its pictures; of a quick run, tables alone.

    Returns:
        The page: docs/evidence/benchmarks.md, or benchmarks/results/quick/report.md.
    """
    rows = read(path_of(name))
    if rows.empty:
        raise ArgumentError(f"{path_of(name)} has no rows: run `python -m benchmarks {name}`.")
    if name == "quick":
        page = path_of(name).with_name("report.md")
        found = (f"## {block}\n\n{table(block, rows)}" for block in TABLES)
        page.write_text("\n".join(["# Quick run\n", *found]), encoding="utf-8")
        return page
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
    for file, data in pictures(rows).items():
        (FIGURES / file).write_bytes(data)
    return PAGE


def filled(page: str, rows: pd.DataFrame) -> str:
    """The page with the tables of these rows in its blocks."""
    return BLOCK.sub(lambda mark: f"{mark[1]}\n{table(mark[2], rows)}\n{mark[3]}", page)


def table(block: str, rows: pd.DataFrame) -> str:
    """In Markdown, of all data sets."""
    found = [TABLES[block](own).assign(data=data) for data, own in rows.groupby("data", sort=False)]
    made = pd.concat(found, ignore_index=True)
    if made.empty:
        return "Nothing was measured.\n"
    if block == "aims":
        made = made.sort_values("verdict", key=lambda v: v.map(aims.VERDICTS.index), kind="stable")
    return f"{markdown(made[['data', *made.columns.drop('data')]])}\n"
