"""Coalitions: traitors know their own versions alone, and the fast tail is the library's."""

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cells as cells_module
from benchmarks import coalitions
from benchmarks.coalitions import detection, innocents, tables
from benchmarks.coalitions.strategies import NOTHING, STRATEGIES, draw, serve
from keras_encryip.tracing.statistics import innocent_tail

pytestmark = pytest.mark.long


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("members", [2, 3, 8])
def test_what_members_agree_on_is_answered(
    name: str, members: int, random: np.random.Generator
) -> None:
    labels = draw(20, 100, 10, random)
    read = labels.classes(labels.bits(members, random))
    said = serve(STRATEGIES[name], read, 10, random)
    agreed = (read == read[:, :1]).all(1)
    assert (said[agreed] == read[:, 0][agreed]).all()
    assert ((said >= NOTHING) & (said < 10)).all()
    differ = ~agreed
    reads = (read == said[:, None]).any(1)[differ]
    if name in ("strip", "a class nobody reads"):
        assert not reads.any()
        assert (said[differ] == NOTHING).all() == (name == "strip")
    elif name != "strip + random class":
        assert reads.all()


@pytest.mark.parametrize(("name", "expected"), [("majority", 5), ("minority", 2)])
def test_three_members_by_hand(name: str, expected: int, random: np.random.Generator) -> None:
    read = np.array([[[5, 1], [2, 1], [5, 1]]])
    assert serve(STRATEGIES[name], read, 10, random).tolist() == [[expected, 1]]


def test_biases_pairs_and_bits_are_as_designed(random: np.random.Generator) -> None:
    labels = draw(100, 500, 10, random)
    assert (labels.pairs[..., 0] != labels.pairs[..., 1]).all()
    assert sorted(np.unique(labels.pairs).tolist()) == list(range(10))
    bits = labels.bits(4, random)
    low = labels.biases < 0.5
    assert bits.transpose(0, 2, 1)[low].mean() == pytest.approx(0.2113, abs=0.01)
    assert (labels.classes(bits)[:, 0] == labels.pairs[..., 1]).sum() == bits[:, 0].sum()


@pytest.mark.parametrize(("rare", "common"), [(30, 34), (0, 200), (300, 100)])
def test_the_fast_tail_is_the_librarys(rare: int, common: int) -> None:
    p = detection.RARE
    biases = np.array([p] * rare + [1 - p] * common)
    weights = 1 / np.sqrt(biases * (1 - biases))
    mean = biases.sum()
    agreements = np.arange(math.ceil(mean + 8), rare + common + 1)
    exact = innocent_tail(weights, biases, (agreements - mean) * weights[0])
    fast = np.exp(detection.log_tail(*np.broadcast_arrays(agreements, rare, common)))
    counted = exact > 1e-30
    assert counted.sum() > 5
    np.testing.assert_allclose(fast[counted], exact[counted], rtol=0.12)


def test_a_lone_traitor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "RUNS", 100)
    found = detection.coalitions(10, 1, 0)["alone"]
    assert 45 <= found["1000"]["least_T"] <= 64 <= found["1000000"]["least_T"] <= 83
    assert found["1000"]["at"]["128"] == {"share": 1, "named": 1}


@pytest.mark.parametrize("kind", ["minority", "one class", "weights of a natural service"])
def test_innocents_are_within_their_bounds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(innocents, "INNOCENTS", 10_000)
    monkeypatch.setattr(innocents, "REPORTS", 1_000)
    monkeypatch.setattr(innocents, "MODELS", 20)
    for row in (innocents.innocents(kind, 0), innocents.reports(kind, 0)):
        assert not any(at["contradicts_bound"] for at in row["below"].values())
        assert row["below"]["0.1"]["times"] > 0.01 * row["runs"]


def test_all_cells_become_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalitions, "RESULTS", tmp_path)
    monkeypatch.setattr(coalitions, "CLASSES", (10,))
    monkeypatch.setattr(coalitions, "COALITIONS", (1, 2))
    monkeypatch.setattr(coalitions, "SHARES", (0.5,))
    monkeypatch.setattr(detection, "RUNS", detection.BATCH)
    for name, value in (("INNOCENTS", 2_000), ("REPORTS", 200), ("MODELS", 4)):
        monkeypatch.setattr(innocents, name, value)
    saved = coalitions.run().saved["cells"]
    assert (tmp_path / "coalitions.json").exists()
    assert len(saved) == 4 + 2 * (len(STRATEGIES) + len(innocents.OTHERS))
    console = cells_module.console
    with console.capture() as captured:
        tables.show(saved)
    for word in ("c = 2", "a class nobody reads", "50% recognised", "p ≤ 1e-06"):
        assert word in captured.get()
