"""Rows are written once, whole, and of one size; a new attack is a missing row."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import keras_encryip as ke
from benchmarks import ladder, rows
from benchmarks.attacks import registry
from benchmarks.cells import hardware
from benchmarks.rows import COLUMNS, Rows, flat, read
from benchmarks.sizes import QUICK
from benchmarks.trainings import Trainings
from keras_encryip.errors import ArgumentError

SIZE = "10 samples"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rows, "hardware", lambda: "here")
    return tmp_path / "results" / "rows.jsonl"


def opened(path: Path, seed: int = 0, size: str = SIZE) -> Rows:
    return Rows(path, "digits", seed, size)


def found(path: Path) -> list[tuple[Any, ...]]:
    """(seed, method, attack, setting, metric, value) of all rows but seconds."""
    table = read(path)
    kept = table[table.metric != "seconds"]
    return [tuple(row) for row in kept[[*COLUMNS[1:7]]].to_numpy().tolist()]


def none() -> dict[str, Any]:
    raise AssertionError("measured again")


def test_a_row_has_all_columns_and_a_measurement_its_seconds(path: Path) -> None:
    opened(path, 3).measure("ours", "cut", "10%", lambda: {"accuracy": 0.5, "all": {"z": 2}})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(tuple(line) == COLUMNS for line in lines)
    assert {(line["version"], line["machine"]) for line in lines} == {(ke.__version__, "here")}
    assert found(path) == [
        (3, "run", "", "", "size", SIZE),
        (3, "ours", "cut", "10%", "accuracy", 0.5),
        (3, "ours", "cut", "10%", "all: z", 2),
    ]
    assert lines[-1]["metric"] == "seconds"
    assert 0 <= lines[-1]["value"] < 60


def test_nested_figures_are_joined() -> None:
    assert flat({"a": 1, "b": {"c": {"d": "x"}, "e": None}}) == {
        "a": 1,
        "b: c: d": "x",
        "b: e": None,
    }


def test_what_is_there_is_not_measured_again(path: Path) -> None:
    opened(path).measure("ours", "cut", "10%", lambda: {"accuracy": 0.5})
    before = path.read_bytes()
    opened(path).measure("ours", "cut", "10%", none)
    assert path.read_bytes() == before
    for seed, key in ((1, ("ours", "cut", "10%")), (0, ("twin", "cut", "10%"))):
        opened(path, seed).measure(*key, lambda: {"accuracy": 0.25})
    assert [row[-1] for row in found(path) if row[-2] == "accuracy"] == [0.5, 0.25, 0.25]


def test_rows_of_another_release_count(path: Path) -> None:
    opened(path).measure("ours", "cut", "10%", lambda: {"accuracy": 0.5})
    path.write_text(path.read_text().replace(ke.__version__, "0.0.1"))
    opened(path).measure("ours", "cut", "10%", none)
    opened(path).measure("ours", "cut", "20%", lambda: {"accuracy": 0.4})
    assert set(read(path).version) == {"0.0.1", ke.__version__}


@pytest.mark.parametrize("cut", [1, 60, 100, 150])
def test_a_torn_last_line_is_dropped_with_its_measurement(
    path: Path, cut: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut at many places of the last line; its measurement is made anew."""
    opened(path).measure("ours", "cut", "10%", lambda: {"accuracy": 0.5})
    whole = path.read_bytes()
    opened(path).measure("ours", "cut", "20%", lambda: {"accuracy": 0.4, "z": 1.0})
    data = path.read_bytes()
    last = data[:-1].rfind(b"\n") + 1
    path.write_bytes(data[: last + cut])
    capsys.readouterr()
    assert len(found(path)) == 2
    assert "The last line of the rows is torn" in " ".join(capsys.readouterr().out.split())
    again = opened(path)
    assert path.read_bytes() == whole
    again.measure("ours", "cut", "10%", none)
    again.measure("ours", "cut", "20%", lambda: {"accuracy": 0.3})
    assert found(path)[-1][-2:] == ("accuracy", 0.3)


def test_a_first_line_that_is_torn(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"data": "digi')
    opened(path)
    assert [row[-1] for row in found(path)] == [SIZE]


def test_the_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ", no GPU used, Python 3." in hardware()
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    details = {"GPU": {"device_name": "NVIDIA H100"}}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", details.__getitem__)
    assert ", NVIDIA H100, Python 3." in hardware()


def test_a_failure_leaves_no_row(path: Path) -> None:
    made = opened(path)
    with pytest.raises(AssertionError):
        made.measure("ours", "cut", "10%", none)
    made.measure("ours", "cut", "10%", lambda: {"accuracy": 0.5})
    assert len(found(path)) == 2


def test_another_size_is_refused(path: Path) -> None:
    opened(path)
    with pytest.raises(ArgumentError, match=r"another size.*Expected: 20.*Received: 10 samples\."):
        opened(path, seed=1, size="20 samples")
    Rows(path, "mnist", 0, "20 samples")
    assert [row[-1] for row in found(path)] == [SIZE, "20 samples"]


def test_a_size_says_in_words_what_rows_share() -> None:
    assert QUICK[0].in_words() == (
        "1,000 training samples, 397 of attackers; first cycle 5 epochs of batch 32 from rate "
        "0.001, second 16 epochs of batch 32 from rate 0.001; attackers' networks 40 steps; "
        "10,000 test inputs of attacks"
    )


@pytest.fixture
def no_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    empty: dict[str, Any] = {}
    for module in (registry, ladder):
        monkeypatch.setattr(module, "ATTACKS", empty)


@pytest.mark.usefixtures("no_attacks")
def test_a_new_attack_is_a_missing_row(path: Path) -> None:
    ran = []

    def register(name: str, family: str, needs_model: bool = False) -> None:
        @registry.attack(name, family=family, needs_model=needs_model)
        def tries(case: Any) -> Iterator[tuple[str, float]]:
            ran.append((name, len(case.y)))
            yield from {"weak": 0.1, "strong": 0.3, "middling": 0.2}.items()

    def nightly() -> list[tuple[str, int]]:
        ran.clear()
        with Trainings(QUICK[0], 0) as trainings:
            for n in (0, 2):
                ladder.attacked(trainings, opened(path), ladder.ALONE, n)
        return list(ran)

    register("guess", "no labels")
    register("learn", "raw inputs")
    register("steal", "layers", needs_model=True)
    assert nightly() == [("guess", 0), ("learn", 20)]
    assert nightly() == []
    register("think", "raw inputs")
    assert nightly() == [("think", 20)]
    assert found(path)[-3:] == [
        (0, "no model", "think", "n = 2", "accuracy", 0.3),
        (0, "no model", "think", "n = 2", "best setting", "strong"),
        (0, "no model", "think", "n = 2", "settings tried", 3),
    ]


@pytest.mark.usefixtures("no_attacks")
def test_names_are_registered_once_and_families_are_known() -> None:
    registry.attack("guess", family="no labels")(lambda case: [])
    for name, family in (("guess", "no labels"), ("other", "magic")):
        with pytest.raises(ValueError, match=f"{name}, {family}"):
            registry.attack(name, family=family)
