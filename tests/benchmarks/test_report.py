"""The report on made-up results: complete, incomplete, and changed."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.ladder import GRID, MAIN
from benchmarks.main import report
from benchmarks.report import document, readings, write
from benchmarks.report.figures import apart
from benchmarks.report.formats import count, number, p_value, points, seconds, table
from benchmarks.report.found import METHODS, Results, Suite, tamperings
from benchmarks.report.verdicts import Verdict
from benchmarks.report.weaknesses import findings
from benchmarks.sizes import NIGHTLY, QUICK, Size

pytestmark = pytest.mark.long

Cells = dict[str, dict[str, Any]]
Files = dict[str, Cells]
"""Suite → key → cell, of one data set."""

MACHINE = {"machine": "a test's machine", "seconds": 1.5}
FIGURES = ("benchmarks-label-cost.png", "benchmarks-trade-off.png", "benchmarks-removal.png")
REFUSED = "EvidenceError: The file 'trace-set-4919af0498538759.npy' was changed."


def attack(best: float, family: str, needs_model: bool = True, **more: Any) -> dict[str, Any]:
    entry = {"best": best, "setting": "any", "tried": 3, "family": family}
    return {**entry, "needs_model": needs_model, **more}


def ladder(seeds: tuple[int, ...], samples: tuple[int, ...] = (1, 5, 20, 100)) -> Cells:
    """The twin 0.99; decoded 0.988; attacks 0.93, without a model 0.90, from scratch 0.60."""
    cells: Cells = {}
    for seed in seeds:
        shift, start = 0.0001 * seed, f"seed {seed}"
        cells[f"{start}, twin"] = {
            "accuracy": 0.99 + shift,
            "accuracy before": 0.96 + shift,
            "cpu seconds": 10.0,
        }
        for n in samples:
            cells[f"{start}, no model, n = {n}"] = {
                "self-training": attack(0.90 + shift, "no model", False),
                "from scratch": attack(0.60 + 0.0003 * n, "no model", False),
            }
        for way in (*MAIN, *GRID):
            cells[f"{start}, {way}, model"] = {"accuracy": 0.988 + shift, "cpu seconds": 15.0}
            cells[f"{start}, {way}, no labels"] = {
                "one class for all": attack(0.1135, "no model", False, reachable=True),
                "identity": attack(0.1208, "no labels", reachable=True),
                "frequencies, balanced": attack(0.1123, "no labels", reachable=True),
                "frequencies, long tail": attack(0.7012, "no labels", reachable=True),
                "clusters named at random": attack(0.1001, "no labels", reachable=True),
                "clusters matched by an oracle": attack(
                    0.9511, "clustering quality", reachable=False
                ),
            }
            for n in samples if way in MAIN else samples[:2]:
                cells[f"{start}, {way}, n = {n}"] = {
                    "centroids": attack(0.93 + shift, "reading"),
                    "linear probes": attack(0.85 + shift, "layers"),
                    "fine-tuning": attack(0.91 + 0.0001 * n, "training"),
                }
    return cells


def trace(guilty: bool, **more: Any) -> dict[str, Any]:
    verdict = "guilty" if guilty else "inconclusive"
    return {
        "verdict": verdict,
        "traitor guilty": guilty,
        "innocents guilty": 0,
        "best innocent": 4.5,
        "p_value": 1e-60 if guilty else 1.0,
        **more,
    }


def rung(accuracy: float, weights: bool, service: bool) -> dict[str, Any]:
    hits = 64 if service else 11
    asked = trace(service, coincidences=hits, of=64, **{"ownership p_value": 1e-32})
    return {
        "accuracy": accuracy,
        "trained": "abc",
        "weights": trace(weights, z=480.5 if weights else 1.5, threshold=6.5),
        "service": {**asked, "ownership": "32 of 32"},
    }


def removals(seeds: tuple[int, ...], size: Size) -> tuple[Cells, Cells]:
    """Every rung is traced, but for pruning of 90 %, which leaves no accuracy."""
    own: Cells = {}
    theirs: Cells = {}
    for seed in seeds:
        table_trace = trace(True, coincidences=64.0)
        own[f"seed {seed}: model"] = {"accuracy": 0.98, "users": 1000, "table": table_trace}
        for name in tamperings(size):
            useless = name == "pruned 90%"
            accuracy = 0.11 if useless else 0.98 if name == "untouched" else 0.975
            own[f"seed {seed}: {name}"] = rung(accuracy, not useless, not useless)
            for method in METHODS:
                p = 0.5 if useless else 1e-20
                mark = {"hits": 33 if useless else 64, "trials": 64, "p_value": p}
                theirs[f"{method}, seed {seed}: {name}"] = {"accuracy": accuracy, **mark}
    return own, theirs


def peers(seeds: tuple[int, ...]) -> Cells:
    batches = {f"batch {n}": dict.fromkeys(("twin", "ours", *METHODS), 1.0625) for n in (1, 64)}
    cells: Cells = {"inference": batches}
    seen, unseen = {"hits": 64, "trials": 64, "p_value": 1e-19}, {"hits": 30, "trials": 64}
    for seed in seeds:
        shift, start = 0.0001 * seed, f"seed {seed}"
        cells[f"{start}: twin"] = {"accuracy": 0.99 + shift, "cpu seconds": 20.0}
        for name, spent in (("ours", 30.0), ("ours from scratch", 34.0)):
            users = {"cpu seconds a key": 0.0007, "cpu seconds a bundle": 0.25}
            cells[f"{start}: {name}"] = {"accuracy": 0.987 + shift, "cpu seconds": spent, **users}
        for method in METHODS:
            made = {"accuracy": 0.97, "cpu seconds": 5.0, "p_value": 1e-19, "named": True}
            cells[f"{start}: {method}"] = {
                "accuracy": 0.985 + shift,
                "cpu seconds": 24.0,
                "without key": 0.985,
                "own mark": seen,
                "mark in the twin": {**unseen, "p_value": 0.7},
                "forged in the twin": seen,
                "copies": [made] * 4 + [{**made, "named": False}],
            }
        cells[f"{start}: passport"] |= {
            "cpu seconds before": 20.0,
            "with a similar key": 0.9812,
            "folded, no key": 0.9834,
        }
    return cells


def forgery(seeds: tuple[int, ...]) -> Cells:
    cells: Cells = {}
    for seed in seeds:
        start = f"seed {seed}"
        cells[f"{start}: random keys"] = {
            "tried": 1000,
            "on the polynomial": 0,
            "opened": 0,
            "opened at most": 0.003,
            "ordinary labels read": 0.0987,
        }
        for t in (1, 2, 4, 8):
            rows = {}
            for m in range(1, t + 3):
                honest, framing = m <= max(1, t // 2), t + 2 - max(1, t // 2) <= m <= t + 1
                rows[f"{m} users"] = {
                    "coalitions": 10,
                    "opened": 10,
                    "read all": 10,
                    "all": 10 * honest,
                    "some": 0,
                    "nobody": 10 * (not honest),
                    "innocents": 0,
                    "framed": 10 * framing,
                    "minted": 10 * (m > t),
                    "on the polynomial": 10 * (m > t),
                }
            cells[f"{start}: pooled keys, t = {t}"] = rows
        replaced = {"files alone": REFUSED, "signed by the owner": REFUSED}
        cells[f"{start}: evidence"] = {
            "honest": "accepted",
            "honest, another issuer expected": REFUSED,
            "one byte": {"tried": 15, "refused": 15},
            "trace set replaced": replaced,
            "codebook replaced": replaced,
        }
        claim = {
            "verdict": "guilty",
            "accused": ["scapegoat"],
            "coincidences": 64.0,
            "p_value": 1e-62,
            "ownership": "32 of 32",
            "this is the model": "yes",
            "not committed": REFUSED,
            "committed": "accepted",
            "the owner's signature expected": REFUSED,
            "dated before the release": False,
        }
        innocent = {**claim, "verdict": "inconclusive", "accused": [], "p_value": 0.99}
        cells[f"{start}: claims"] = {
            "honest trace inputs": {"our model": claim, "the twin": innocent},
            "another authority, natural inputs": {"our model": claim, "the twin": claim},
            "the owner, natural inputs": {
                service: {**claim, "the owner's signature expected": "accepted"}
                for service in ("our model", "the twin")
            },
        }
    return cells


def complete(size: Size, seeds: tuple[int, ...]) -> Files:
    own, theirs = removals(seeds, size)
    return {
        "ladder": ladder(seeds),
        "peers": peers(seeds),
        "removal": own,
        "removal-peers": theirs,
        "forgery": forgery(seeds),
    }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results are and the report goes."""
    monkeypatch.setattr(document, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(document, "DOCS", tmp_path / "docs")
    return tmp_path


def save(place: Path, size: Size, files: Files, quick: bool = False) -> None:
    folder = place / "results" / "quick" if quick else place / "results"
    folder.mkdir(parents=True, exist_ok=True)
    cycle = {"epochs": 4, "batch": 128, "rate": 0.001}
    setting = {"data": size.data, "samples": 20_000, "others": 10_000}
    for suite, cells in files.items():
        whole = {key: {**cell, **MACHINE} for key, cell in cells.items()}
        saved = {"setting": {**setting, "first": cycle, "second": cycle}, "cells": whole}
        (folder / f"{suite}-{size.data}.json").write_text(json.dumps(saved, sort_keys=True))


def results(files: Files, size: Size = NIGHTLY[0]) -> Results:
    """Without files or figures."""

    def suite(name: str) -> Suite:
        return Suite.of_cells({}, files[name]) if name in files else Suite()

    names = ("ladder", "peers", "removal", "removal-peers", "forgery")
    return Results(size, *map(suite, names))


def text_of(files: Files) -> str:
    return document.composed([results(files)], False, set(), "")


THREE = (0, 1, 2)


@pytest.fixture(scope="module")
def three() -> Files:
    """Do not change; take `copy.deepcopy`."""
    return complete(NIGHTLY[0], THREE)


# --- the files ----------------------------------------------------------------------------


def test_nightly_report_is_whole_and_the_same_every_time(place: Path, three: Files) -> None:
    save(place, NIGHTLY[0], three)
    path = report("nightly")
    assert path == place / "docs" / "evidence" / "benchmarks.md"
    text = path.read_text()
    assert text.startswith(
        "# Benchmarks\n\n*Generated by `python -m benchmarks report`. Do not edit"
    )
    assert "a test's machine" in text
    titles = re.findall("^## (.+)", text, re.M)
    assert titles == ["Weaknesses first", *(section.title for section in document.SECTIONS)]
    first = {p: p.read_bytes() for p in (path, *(place / "docs" / "figures").iterdir())}
    assert sorted(p.name for p in first if p != path) == sorted(FIGURES)
    for name in FIGURES:
        assert f"](../figures/{name})" in text
    assert write("nightly") == path
    assert {p: p.read_bytes() for p in first} == first
    assert sorted(p.name for p in path.parent.iterdir()) == ["benchmarks.md"]


def test_quick_report_lies_beside_its_results(place: Path) -> None:
    save(place, QUICK[0], {"ladder": ladder((0,), (1, 5))}, quick=True)
    path = write("quick")
    assert path == place / "results" / "quick" / "report.md"
    text = path.read_text()
    assert "(benchmarks-label-cost.png)" in text
    assert (path.parent / "benchmarks-label-cost.png").exists()
    assert "(../../../docs/evidence/threat-model.md)" in text
    assert "{" not in text


def test_links_of_the_nightly_report_are_beside_it(place: Path) -> None:
    text = write("nightly").read_text()
    assert "](threat-model.md)" in text
    assert "{" not in text


def test_nothing_was_run(place: Path) -> None:
    figures = place / "docs" / "figures"
    figures.mkdir(parents=True)
    (figures / FIGURES[0]).write_bytes(b"of earlier results")
    (figures / "another.png").write_bytes(b"not ours")
    text = write("nightly").read_text()
    assert text.count("Not run.") == len(document.SECTIONS) * len(NIGHTLY)
    assert "Aims that are" not in text
    assert [path.name for path in figures.iterdir()] == ["another.png"]
    assert ".png" not in text


# --- incomplete results -------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["ladder", "peers", "removal", "removal-peers", "forgery"])
def test_a_missing_suite_is_said_to_be_missing(three: Files, gone: str) -> None:
    text = text_of({suite: cells for suite, cells in three.items() if suite != gone})
    name = {"removal-peers": "removal of peers"}.get(gone, gone)
    assert re.search(rf"\| {name} +\| not run", text)
    shown = {
        "ladder": "What an outsider gets",
        "removal": None,  # the peers' part remains
        "removal-peers": None,
        "peers": None,  # the ladder's, and the peers' removal, remain
        "forgery": "Ambiguity and forgery",
    }[gone]
    if shown:
        assert f"- mnist: {shown}" in text


@pytest.mark.parametrize("suite", ["ladder", "peers", "removal", "removal-peers", "forgery"])
def test_any_missing_cell_is_survived_and_named(three: Files, suite: str) -> None:
    whole = text_of(three)
    kinds = {re.sub(r".*[,:]|\d+", "", key): key for key in three[suite]}
    for key in list(kinds.values())[:6]:
        files = {**three, suite: {k: c for k, c in three[suite].items() if k != key}}
        text = text_of(files)
        assert text != whole
        name = re.sub(r"^(?:(.+), )?seed \d[,:] ", lambda m: f"{m[1]}: " if m[1] else "", key)
        assert (f"without `{name}`" in text) or (key == "inference")


def test_a_partial_seed_is_marked_and_its_cells_listed(three: Files) -> None:
    files = copy.deepcopy(three)
    del files["ladder"]["seed 2, defaults, n = 1"]
    for key in [key for key in files["ladder"] if key.startswith("seed 1")]:
        del files["ladder"][key]
    files["ladder"]["seed 1, twin"] = three["ladder"]["seed 1, twin"]
    text = text_of(files)
    assert "seed 1: 1 of 17 cells, without `no model, n = 1`, `no model, n = 5`" in text
    assert "seed 2: 16 of 17 cells, without `defaults, n = 1`" in text
    assert re.search(r"centroids +\| \*\*93.00 \[1\]\*\* +\| \*\*93.01 \(0.01\) \[2\]", text)


def test_the_classifier_that_was_protected_is_shown(three: Files) -> None:
    row = r"\| classifier after one cycle +\| 96\.00 +\| 96\.01 +\| 96\.02 +\| 96\.01 "
    assert len(re.findall(row, text_of(three))) == 1  # of the ladder; the comparison has none


def test_one_seed_has_no_interval() -> None:
    text = text_of(complete(NIGHTLY[0], (0,)))
    assert "-0.20 points (one seed, so no interval)" in text
    assert re.search(r"ours, finetuned +\| 98.70 +\| 98.70 +\| – +\| -0.30 .+\| one seed", text)
    assert "seed 1 not run; seed 2 not run" in text


def test_three_seeds_have_one(three: Files) -> None:
    text = text_of(three)
    assert "one seed" not in text
    assert "| seed 0 | seed 1 | seed 2 | mean % | sd " in text
    row = ["98.50", "98.51", "98.52", "98.51", "0.01", "-0.50", "-0.50 … -0.50", "3"]
    assert re.search(r" +\| ".join(["uchida", *row]), text)


def test_unknown_ways_attacks_methods_and_rungs_are_shown(three: Files) -> None:
    files = copy.deepcopy(three)
    files["ladder"]["seed 0, h = 99, model"] = {"accuracy": 0.7654, "cpu seconds": 1.0}
    files["ladder"]["seed 0, defaults, n = 1"]["telepathy"] = attack(0.5678, "mind")
    files["peers"]["seed 0: newcomer"] = {"accuracy": 0.4567, "cpu seconds": 1.0}
    files["removal"]["seed 0: hammered"] = rung(0.3456, True, True)
    text = text_of(files)
    for row in ("h = 99 .+76.54", "mind +. telepathy +. 56.78", "newcomer .+45.67"):
        assert re.search(rf"\| {row}", text)
    assert re.search(r"\| hammered .+34.56", text)


# --- figures come from cells --------------------------------------------------------------

CHANGES: dict[str, tuple[str, str, tuple[Any, ...], Any, str]] = {
    "twin": ("peers", "seed 0: twin", ("accuracy",), 0.9123, "91.23"),
    "way": ("ladder", "seed 0, h = 8, model", ("accuracy",), 0.9123, "91.23"),
    "attack": ("ladder", "seed 0, defaults, n = 20", ("centroids", "best"), 0.9456, "94.56"),
    "tried": ("ladder", "seed 0, defaults, n = 1", ("centroids", "tried"), 4321, "4321"),
    "alone": ("ladder", "seed 0, no model, n = 1", ("from scratch", "best"), 0.4321, "43.21"),
    "long tail": (
        "ladder",
        "seed 0, defaults, no labels",
        ("frequencies, long tail", "best"),
        0.4321,
        "43.21",
    ),
    "rung": ("removal", "seed 0: int8", ("accuracy",), 0.8321, "83.21"),
    "z": ("removal", "seed 0: int8", ("weights", "z"), 77.7, "77.7"),
    "service": ("removal", "seed 0: int8", ("service", "coincidences"), 43, "43 of 64"),
    "service p": ("removal", "seed 0: int8", ("service", "p_value"), 7e-33, "7e-33"),
    "innocents": (
        "removal",
        "seed 0: int8",
        ("service", "innocents guilty"),
        7,
        "7 innocent users",
    ),
    "table": ("removal", "seed 0: model", ("table", "coincidences"), 57.0, "| 57 "),
    "peer's rung": ("removal-peers", "adi, seed 0: int8", ("p_value",), 7e-33, "7e-33"),
    "random": ("forgery", "seed 0: random keys", ("ordinary labels read",), 0.1234, "12.34"),
    "pooled": ("forgery", "seed 0: pooled keys, t = 4", ("2 users", "some"), 77, "| 77 "),
    "claim": (
        "forgery",
        "seed 0: claims",
        ("the owner, natural inputs", "the twin", "p_value"),
        7e-33,
        "7e-33",
    ),
    "evidence": ("forgery", "seed 0: evidence", ("honest",), "KeyError: why", "refused: why"),
    "training": ("peers", "seed 0: adi", ("cpu seconds",), 246.0, "12.30"),
    "inference": ("peers", "inference", ("batch 64", "adi"), 3.21, "3.21"),
    "key": ("peers", "seed 0: ours", ("cpu seconds a key",), 0.03, "0.03 (0.0015)"),
    "copy": ("peers", "seed 0: adi", ("copies", 0, "cpu seconds"), 30.0, "10 (0.5)"),
    "folded": ("peers", "seed 0: passport", ("folded, no key",), 0.4321, "43.21"),
    "forged": ("peers", "seed 0: adi", ("forged in the twin", "p_value"), 7e-33, "7e-33"),
}


@pytest.fixture(scope="module")
def single() -> Files:
    return complete(NIGHTLY[0], (0,))


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_cell_changes_its_figure(single: Files, name: str) -> None:
    suite, key, path, value, expected = CHANGES[name]
    assert expected not in text_of(single)
    files = copy.deepcopy(single)
    target: Any = files[suite][key]
    for step in path[:-1]:
        target[step] = copy.deepcopy(target[step])
        target = target[step]
    target[path[-1]] = value
    assert expected in text_of(files)


def test_a_changed_cell_changes_the_figure_drawn(place: Path, single: Files) -> None:
    save(place, NIGHTLY[0], single)
    figure = write("nightly").parents[1] / "figures" / FIGURES[2]
    before = figure.read_bytes()
    files = copy.deepcopy(single)
    files["removal"]["seed 0: int8"]["service"]["p_value"] = 1e-3
    save(place, NIGHTLY[0], files)
    write("nightly")
    assert figure.read_bytes() != before


def test_readings_state_no_figures() -> None:
    prose = [*readings.INTRODUCTIONS.values(), *readings.READINGS.values()]
    for text in [readings.CONVENTIONS, readings.WEAKNESSES, *prose]:
        assert not re.search(r"\d", text)
    assert readings.INTRODUCTIONS.keys() == {section.prose for section in document.SECTIONS}
    assert readings.READINGS.keys() == {*readings.INTRODUCTIONS, "weaknesses"}


# --- weaknesses ---------------------------------------------------------------------------


def found(files: Files, start: str) -> dict[Verdict, list[str]]:
    """Texts that begin so, by verdict."""
    texts: dict[Verdict, list[str]] = {}
    for each in findings([results(files)]):
        if each.text.startswith(f"**{start}"):
            texts.setdefault(each.verdict, []).append(each.text)
    return texts


def every_seed(
    files: Files, suite: str, key: str, change: Callable[[dict[str, Any]], None]
) -> Files:
    changed = copy.deepcopy(files)
    for seed in THREE:
        change(changed[suite][f"seed {seed}{key}"])
    return changed


@pytest.mark.parametrize(
    ("lead", "verdict"),
    [(0.05, Verdict.MET), (0.0501, Verdict.MISSED), (-0.10, Verdict.MET), (0.10, Verdict.MISSED)],
)
def test_few_labels(three: Files, lead: float, verdict: Verdict) -> None:
    files = copy.deepcopy(three)
    for seed in THREE:
        reached = files["ladder"][f"seed {seed}, no model, n = 1"]["self-training"]["best"] + lead
        cell = files["ladder"][f"seed {seed}, defaults, n = 1"]
        for name in cell:
            cell[name]["best"] = reached - 0.01 * (name != "fine-tuning")
    texts = found(files, "Few labels, mnist, 1 sample")
    assert list(texts) == [verdict]
    assert f"{100 * lead:+.2f} points" in texts[verdict][0]
    assert "(`fine-tuning`)" in texts[verdict][0]
    assert "(`self-training`)" in texts[verdict][0]


def test_few_labels_is_open_while_the_interval_reaches_beyond(three: Files) -> None:
    files = copy.deepcopy(three)
    for seed, best in zip(THREE, (0.93, 0.94, 0.96), strict=True):  # leads 3, 4, 6 points
        files["ladder"][f"seed {seed}, defaults, n = 5"]["centroids"]["best"] = best
        files["ladder"][f"seed {seed}, no model, n = 5"]["self-training"]["best"] = 0.90
    texts = found(files, "Few labels, mnist, 5 samples")
    assert list(texts) == [Verdict.OPEN]
    assert "+4.33 points (95 % interval +0.54 … +8.13, 3 seeds)" in texts[Verdict.OPEN][0]


@pytest.mark.parametrize(
    ("loss", "verdict"),
    [(0.005, Verdict.MET), (0.0051, Verdict.MISSED), (-0.01, Verdict.MET), (0.02, Verdict.MISSED)],
)
def test_decoded(three: Files, loss: float, verdict: Verdict) -> None:
    files = copy.deepcopy(three)
    for seed in THREE:
        twin = files["ladder"][f"seed {seed}, twin"]["accuracy"]
        files["ladder"][f"seed {seed}, defaults, model"]["accuracy"] = twin - loss
    texts = found(files, "Accuracy, mnist, defaults")
    assert list(texts) == [verdict]
    assert f"{-100 * loss:+.2f} points" in texts[verdict][0]


def test_decoded_comes_from_the_comparison_without_a_ladder(three: Files) -> None:
    texts = found({"peers": three["peers"]}, "Accuracy, mnist, defaults")
    assert "-0.30 points" in texts[Verdict.MET][0]


def test_one_seed_within_the_aim_is_not_shown() -> None:
    files = complete(NIGHTLY[0], (1,))
    assert list(found(files, "Accuracy, mnist, defaults")) == [Verdict.OPEN]
    assert list(found(files, "Few labels")) == [Verdict.OPEN]


def test_trade_off_names_the_ways_that_meet_both_aims(three: Files) -> None:
    files = copy.deepcopy(three)
    for key, cell in files["ladder"].items():
        if key.endswith(", model"):
            cell["accuracy"] = 0.97
    assert "none meets" in found(files, "Trade-off")[Verdict.MISSED][0]
    files = every_seed(files, "ladder", ", h = 8, model", lambda cell: cell.update(accuracy=0.99))
    assert "1 on average meet both" in (text := found(files, "Trade-off")[Verdict.OPEN][0])
    assert text.endswith("`h = 8`.")


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        (0.01, "for at most 2 points of accuracy: `int8` (-1.00 points; 3 of 3 seeds)."),
        (0.02, "for at most 2 points of accuracy: `int8` (-2.00 points; 3 of 3 seeds)."),
        (0.04, "for at most 5 points of accuracy: `int8` (-4.00 points; 3 of 3 seeds)."),
        (0.06, None),
    ],
)
def test_removal_counts_while_the_model_is_useful(
    three: Files, cost: float, said: str | None
) -> None:
    lost = rung(0.98 - cost, False, True)
    files = every_seed(three, "removal", ": int8", lambda cell: cell.update(lost))
    texts = found(files, "Removal, mnist, ours, weights (P7)")
    if said:
        assert texts[Verdict.MISSED][0].endswith(f"Defeated {said}")
    else:
        assert "Not defeated in any of" in texts[Verdict.MET][0]
    # The service's trace still names the traitor.
    assert list(found(files, "Removal, mnist, ours, service (P8)")) == [Verdict.MET]
    assert list(found(files, "Removal, mnist, both tracers together")) == [Verdict.MET]


def test_removal_of_both_in_one_seed(three: Files) -> None:
    files = copy.deepcopy(three)
    files["removal"]["seed 1: distilled"] = rung(0.98, False, False)
    (text,) = found(files, "Removal, mnist, both tracers together")[Verdict.MISSED]
    assert "`distilled` (+0.00 points; 1 of 3 seeds)" in text


def test_a_trace_that_was_refused_finds_nobody(three: Files) -> None:
    refused = {"verdict": "refused", "message": "kernels"}
    change = {"weights": refused}
    files = every_seed(three, "removal", ": int8", lambda cell: cell.update(change))
    assert list(found(files, "Removal, mnist, ours, weights")) == [Verdict.MISSED]
    assert re.search(r"\| int8 .+\| refused +\| 0 of 3", text_of(files))


def test_false_accusations(three: Files) -> None:
    texts = found(three, "False accusations")
    assert "called 0 innocent users guilty" in texts[Verdict.MET][0]
    files = copy.deepcopy(three)
    files["removal"]["seed 2: int8"]["weights"]["innocents guilty"] = 1
    assert "called 1 innocent user guilty" in found(files, "False accusations")[Verdict.MISSED][0]


@pytest.mark.parametrize("field", ["opened", "on the polynomial"])
def test_random_keys(three: Files, field: str) -> None:
    assert list(found(three, "Random keys")) == [Verdict.MET]
    files = copy.deepcopy(three)
    files["forgery"]["seed 0: random keys"][field] = 1
    assert len(found(files, "Random keys")[Verdict.MISSED]) == 1


@pytest.mark.parametrize(
    ("t", "members", "outcome", "said"),
    [
        (4, 2, "innocents", "innocents named (t = 4: 2 users)"),
        (8, 5, "framed", "innocents framed on purpose (t = 8: 5 users)"),
        (4, 4, "minted", "a new key made (t = 4: 4 users)"),
    ],
)
def test_pooled_keys_beyond_what_is_stated(
    three: Files, t: int, members: int, outcome: str, said: str
) -> None:
    known = found(three, "Pooled keys")
    assert set(known) == {Verdict.MET, Verdict.LIMIT}
    assert "t = 4: 5 / 6 users" in known[Verdict.LIMIT][0]
    files = copy.deepcopy(three)
    files["forgery"][f"seed 0: pooled keys, t = {t}"][f"{members} users"][outcome] = 1
    assert said in found(files, "Pooled keys")[Verdict.MISSED][0]


def test_traitors_within_the_bound_who_are_not_all_named(three: Files) -> None:
    files = copy.deepcopy(three)
    files["forgery"]["seed 0: pooled keys, t = 8"]["4 users"]["all"] = 9
    (text,) = found(files, "Pooled keys")[Verdict.MISSED]
    assert text.endswith("traitors not all named (t = 8: 4 users).")


def test_claims(three: Files) -> None:
    texts = found(three, "Forged claims by another authority")
    assert len(texts[Verdict.MET]) == 2
    assert "6 of 6 accepted (`another authority, natural inputs`)" in texts[Verdict.LIMIT][0]
    files = copy.deepcopy(three)
    row = files["forgery"]["seed 0: claims"]["another authority, natural inputs"]
    row["our model"] = {**row["our model"], "the owner's signature expected": "accepted"}
    (text,) = found(files, "Forged claims by another authority")[Verdict.MISSED]
    assert "expects the owner's signature: 1 of 6 accepted" in text
    row = files["forgery"]["seed 0: claims"]["the owner, natural inputs"]
    row["our model"] = {**row["our model"], "not committed": "accepted"}
    (text,) = found(files, "Forged claims by the owner")[Verdict.MISSED]
    assert "committed to nowhere: 1 of 6 accepted" in text


def test_honest_trace_inputs_that_accuse_the_twin(three: Files) -> None:
    assert "6 of 6 traces" in found(three, "Honest trace inputs")[Verdict.MET][0]
    files = copy.deepcopy(three)
    files["forgery"]["seed 0: claims"]["honest trace inputs"]["the twin"]["verdict"] = "guilty"
    assert "5 of 6 traces" in found(files, "Honest trace inputs")[Verdict.MISSED][0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"one byte": {"tried": 15, "refused": 14}}, "Accepted: `one byte changed`."),
        ({"codebook replaced": {"files alone": "accepted"}}, "`codebook replaced, files alone`"),
        ({"honest": REFUSED}, "Honest evidence was refused."),
    ],
)
def test_changed_evidence(three: Files, change: dict[str, Any], said: str) -> None:
    assert list(found(three, "Changed evidence")) == [Verdict.MET]
    files = every_seed(three, "forgery", ": evidence", lambda cell: cell.update(change))
    assert said in found(files, "Changed evidence")[Verdict.MISSED][0]


def test_most_severe_first(three: Files) -> None:
    files = copy.deepcopy(three)
    files["forgery"]["seed 0: random keys"]["opened"] = 1
    order = [list(Verdict).index(each.verdict) for each in findings([results(files)])]
    assert order == sorted(order)
    text = text_of(files)
    at = [text.index(f"### {v.value}") for v in (Verdict.MISSED, Verdict.LIMIT, Verdict.MET)]
    assert at == sorted(at)


# --- formats ------------------------------------------------------------------------------


def test_formats() -> None:
    assert (points(-0.00001), points(0.0575)) == ("+0.00", "+5.75")
    assert [p_value(p) for p in (3.2e-12, 1e-6, 0.0, 0.42, 1.0)] == [
        "3e-12",
        "1e-6",
        "0",
        "0.42",
        "1",
    ]
    assert [seconds(s) for s in (0.00067, 4.75, 9.96, 4770.2)] == ["0.00067", "4.8", "10", "4,770"]
    assert (number(1234.5, 1), count(1, "seed"), count(2, "seed")) == (
        "1,234.5",
        "1 seed",
        "2 seeds",
    )


def test_table_is_padded_and_keeps_bars_inside_cells() -> None:
    lines = table(["a", "b"], [["long cell", "x|y"]]).split("\n")
    assert lines == ["| a         | b    |", "|-----------|------|", "| long cell | x\\|y |"]


def test_names_of_points_stay_apart_and_in_order() -> None:
    wanted = np.array([0.1, 0.4, 0.4, 0.9, 0.99, 1.0])
    placed = apart(wanted, 0.05)
    assert (np.diff(placed) >= 0.05 - 1e-9).all()
    assert placed.min() >= 0
    assert placed.max() <= 1
    assert placed[:3] == pytest.approx([0.1, 0.375, 0.425])
    assert (np.diff(apart(np.full(40, 0.5), 0.05)) > 0).all()
