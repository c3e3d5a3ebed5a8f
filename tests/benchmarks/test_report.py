"""The page has the tables of the committed rows; verdicts follow from intervals and counts."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import report, rows
from benchmarks.attacks import ATTACKS
from benchmarks.ladder import GRID, LOCKED
from benchmarks.removal import LADDERS, TAMPERINGS, tamperings
from benchmarks.report import BLOCK, PAGE, TABLES, aims, filled, pictures, tables
from benchmarks.rows import path_of, read
from benchmarks.trainings import MAIN
from keras_encryip.errors import ArgumentError


@pytest.fixture(scope="module")
def nightly() -> pd.DataFrame:
    return read(path_of("nightly"))


@pytest.fixture(scope="module")
def mnist(nightly: pd.DataFrame) -> pd.DataFrame:
    return nightly[nightly.data == "mnist"]


@pytest.fixture(scope="module")
def lines(mnist: pd.DataFrame) -> pd.DataFrame:
    return aims.aims(mnist)


# --- the page ----------------------------------------------------------------------------


def test_the_page_has_the_tables_of_the_committed_rows(nightly: pd.DataFrame) -> None:
    """If not, run `python -m benchmarks report`."""
    page = PAGE.read_text(encoding="utf-8")
    assert [mark[2] for mark in BLOCK.finditer(page)] == [*TABLES]
    assert filled(page, nightly) == page


def test_other_rows_make_other_tables(mnist: pd.DataFrame) -> None:
    page = PAGE.read_text(encoding="utf-8")
    best = (mnist.method == "defaults") & (mnist.attack == "co-activation")
    other = mnist.assign(value=mnist["value"].mask(best & (mnist.metric == "accuracy"), 0.123456))
    made = filled(page, other)
    assert "12.35 (0.00)" in made
    assert "12.35 (0.00)" not in page
    assert BLOCK.sub("", made) == BLOCK.sub("", page), "the prose is left alone"


def test_the_prose_has_no_measured_figures() -> None:
    """They stand in the tables, which the rows fill in. Bounds and definitions are named here."""
    prose = BLOCK.sub("", PAGE.read_text(encoding="utf-8"))
    code, links, names = r"^```.*?^```$|`[^`]*`", r"\(\S+\.(?:md|png)\)", r"P\d+|CIFAR-10|x86-64"
    prose = re.sub(f"{code}|{links}|{names}", "", prose, flags=re.M | re.S)
    allowed = {"0.3", "0.4", "95", "64", "1", "2"}
    assert set(re.findall(r"\d+(?:[.,]\d+)*", prose)) <= allowed


def test_the_releases_that_the_prose_names_are_those_of_the_rows(nightly: pd.DataFrame) -> None:
    said = re.search(r"\*\*The rows are of releases (.+)\.\*\*", PAGE.read_text(encoding="utf-8"))
    assert said is not None
    assert {version.rpartition(".")[0] for version in nightly.version} == set(
        said[1].split(" and ")
    )


def test_headings_that_other_pages_link_to() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for heading in ("What an outsider gets (P1, P2)", "Removal (P7, P8)"):
        assert f"\n## {heading}\n" in page


def test_every_method_and_attack_of_the_rows_is_known(nightly: pd.DataFrame) -> None:
    """Or tables would leave them out in silence. Release 0.3 had a way that was removed."""
    ways = {*MAIN, *GRID, *tables.METHODS, LOCKED, "neutrality 1"}
    assert set(nightly.method) <= ways | {"run", "twin", "no model", "all", "forger"}
    measurements = {"", "training", "issuing", "inference", "marks", "outsider", "copy", "columns"}
    forgeries = {"random keys", "pooled keys", "changed evidence", "claims", "decode table"}
    assert set(nightly.attack) <= {*ATTACKS, *TAMPERINGS} | measurements | forgeries


def test_tamperings_of_a_ladder_are_known() -> None:
    none = np.empty(0)
    data: Any = type("Data", (), {"name": "digits", "x_other": none, "y_other": none})
    for ladder in LADDERS.values():
        assert {attack for attack, _ in tamperings(data, ladder, dict)} == {*TAMPERINGS}


def test_pictures_are_drawn(nightly: pd.DataFrame) -> None:
    drawn = pictures(nightly)
    page = PAGE.read_text(encoding="utf-8")
    assert len(drawn) == 3
    for name, data in drawn.items():
        assert data.startswith(b"\x89PNG")
        assert f"](../figures/{name})" in page


def test_a_quick_report_is_tables_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = path_of("quick").read_bytes()
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    with pytest.raises(ArgumentError, match="run `python -m benchmarks quick`"):
        report.write("quick")
    path_of("quick").parent.mkdir()
    path_of("quick").write_bytes(quick)
    page = report.write("quick")
    assert sorted(file.name for file in page.parent.iterdir()) == ["report.md", "rows.jsonl"]
    assert re.findall("^## (.+)$", page.read_text(encoding="utf-8"), re.M) == [*TABLES]


@pytest.mark.parametrize("block", TABLES)
def test_tables_survive_missing_rows(nightly: pd.DataFrame, block: str) -> None:
    """A night that was stopped early: one measurement, one seed of one attack."""
    only = nightly[(nightly.attack == "") & (nightly.seed == 0)]
    report.table(block, only)
    twin = nightly[(nightly.method == "twin") & (nightly.seed == 0)]
    report.table(block, pd.concat([only, twin]))


# --- what the tables pick ----------------------------------------------------------------


def test_the_best_attack_is_the_best_of_each_seed() -> None:
    lines = [
        ("defaults", "co-activation", "n = 1", 0, 0.6),
        ("defaults", "centroids", "n = 1", 0, 0.7),
        ("defaults", "co-activation", "n = 1", 1, 0.9),
        ("defaults", "co-activation", "n = 5", 0, 0.95),
        ("no model", "from scratch", "n = 1", 0, 0.99),
        ("defaults", "identity", "n = 0", 0, 0.2),
        ("defaults", "frequencies, long tail", "n = 0", 0, 0.8),
        ("defaults", "clusters matched by an oracle", "n = 0", 0, 0.85),
    ]
    names = ["method", "attack", "setting", "seed", "value"]
    found = pd.DataFrame(lines, columns=names).assign(metric="accuracy")
    assert dict(tables.best(found, "defaults", 1)) == {0: 0.7, 1: 0.9}
    assert dict(tables.best(found, "defaults", 0)) == {0: 0.2}


def test_a_proof_is_found_by_its_verdict_or_by_its_p_value(mnist: pd.DataFrame) -> None:
    found = tables.proofs(mnist)
    untouched = found[found.tampering == "untouched"]
    assert untouched.found.all()
    assert (untouched.cost == 0).all()
    peers = found[found.proof == "passport"]
    assert (peers.found == (peers.p <= 1e-6)).all()
    assert 0 < peers.found.sum() < len(peers)
    refused = mnist[~mnist.metric.isin(["weights: traitor guilty", "weights: p_value"])]
    extra = mnist[mnist.metric.isin(["weights: traitor guilty", "weights: p_value"])]
    extra = extra[extra.attack == "untouched"]
    found = tables.proofs(pd.concat([refused, extra]))
    weights = found[found.proof == "ours, weights"]
    assert set(weights[weights.found].tampering) == {"untouched"}


def test_costs_are_against_the_untouched_copy_wherever_its_row_stands(mnist: pd.DataFrame) -> None:
    untouched = mnist.attack == "untouched"
    moved = pd.concat([mnist[~untouched], mnist[untouched]])
    pd.testing.assert_frame_equal(tables.proofs(moved), tables.proofs(mnist))
    lost = tables.proofs(mnist[~(untouched & (mnist.seed == 1))])
    assert lost[lost.seed == 1].cost.isna().all()
    assert lost[lost.seed != 1].cost.notna().all()


def test_a_copy_that_is_not_worth_stealing_does_not_count() -> None:
    assert [*tables.useful(pd.DataFrame({"cost": [-0.1, 0.05, 0.0501, 0.5]})).index] == [0, 1]


# --- verdicts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.03, 0.03, 0.03], aims.MET),
        ([0.05, 0.05], aims.MET),
        ([0.02, 0.04, 0.06], aims.OPEN),  # 0.04 ± 0.0497
        ([0.03], aims.OPEN),
        ([], aims.OPEN),
        ([0.06], aims.MISSED),
        ([0.01, 0.01, 0.2], aims.MISSED),
    ],
)
def test_a_mean_is_judged_by_its_interval(values: list[float], verdict: str) -> None:
    found = pd.Series(values, dtype=float)
    assert aims.judged(found, 0.05, at_most=True) == verdict
    assert aims.judged(-found, -0.05, at_most=False) == verdict


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ((0, 10, 3), aims.MET),
        ((0, 10, 1), aims.OPEN),
        ((0, 0, 0), aims.OPEN),
        ((1, 9, 1), "missed"),
    ],
)
def test_one_failure_misses_an_aim(counts: tuple[int, int, int], verdict: str) -> None:
    assert aims.of_none("P6", "keys", *counts)["verdict"] == verdict


def test_the_interval_of_a_share_is_exact() -> None:
    """Clopper and Pearson's for 0 of n ends at 1 − 0.025^(1/n): 0.3085 for n = 10."""
    found = aims.of_none("P6", "keys", 0, 10, 3)
    assert (found["found"], found[aims.INTERVAL]) == ("0 of 10", "0.00 … 30.85 %")


def changed(found: pd.DataFrame, attack: str, metric: str, value: Any) -> pd.DataFrame:
    mask = (found.attack == attack) & (found.metric == metric)
    assert mask.any()
    return found.assign(value=found["value"].mask(mask, value))


def verdict(lines: pd.DataFrame, what: str) -> str:
    return str(lines[lines.what.str.startswith(what)].verdict.item())


SIGNED = "another authority, natural inputs: the twin: the owner's signature expected"


@pytest.mark.parametrize(
    ("attack", "metric", "value", "what"),
    [
        ("claims", SIGNED, "accepted", "forged claims"),
        ("claims", "honest trace inputs: the twin: verdict", "guilty", "honest claims"),
        ("claims", "honest trace inputs: our model: verdict", "unclear", "honest claims"),
        ("changed evidence", "one byte: refused", 14, "changed folders"),
        ("changed evidence", "codebook replaced: files alone", "accepted", "changed folders"),
        ("random keys", "opened", 1, "random keys"),
        ("random keys", "on the polynomial", 1, "random keys"),
        ("pooled keys", "1 users: framed", 1, "coalitions"),
        ("pooled keys", "1 users: minted", 1, "coalitions"),
        ("pooled keys", "1 users: all", 9, "coalitions"),
        ("pooled keys", "6 users: innocents", 1, "coalitions"),
        ("pruned", "service: innocents guilty", 1, "traces that name"),
        ("pruned", "weights: innocents guilty", 1, "traces that name"),
        ("decode table", "traitor guilty", False, "decode tables"),
        ("issuing", "cpu seconds a key", 0.02, "a further user's key"),
        ("identity", "accuracy", 0.5, "best attack without labels"),
    ],
)
def test_what_would_miss_an_aim_that_is_met(
    mnist: pd.DataFrame, lines: pd.DataFrame, attack: str, metric: str, value: Any, what: str
) -> None:
    assert verdict(lines, what) == aims.MET
    assert verdict(aims.aims(changed(mnist, attack, metric, value)), what) == aims.MISSED


def test_framing_by_those_who_are_stated_to_do_so_is_no_failure(mnist: pd.DataFrame) -> None:
    found = mnist[(mnist.attack != "pooled keys") | (mnist.setting == "t = 4")]
    for members, expected in {3: aims.MISSED, 4: aims.MET}.items():
        lines = aims.aims(changed(found, "pooled keys", f"{members} users: framed", 10))
        assert verdict(lines, "coalitions") == expected


def test_the_weakest_come_first(nightly: pd.DataFrame) -> None:
    lines = report.table("aims", nightly).splitlines()[2:]
    verdicts = [line.split(" | ")[1].strip() for line in lines if line]
    assert set(verdicts) == {*aims.VERDICTS}
    assert verdicts == sorted(verdicts, key=aims.VERDICTS.index)
