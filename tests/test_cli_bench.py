"""`encryip bench`: what it starts, and what it refuses."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from keras_encryip import cli
from keras_encryip.cli import bench
from keras_encryip.errors import ArgumentError

main = importlib.import_module("benchmarks.main")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["bench", *arguments])


def test_quick_runs_the_short_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(main, "run", lambda suite, name, _: started.append((suite, name)))
    assert invoke("quick").exit_code == 0
    assert started == [(suite, "quick") for suite in main.QUICK_SUITES]


def test_nightly_runs_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def run(suite: str, name: str, trainings: Any) -> None:
        started.append((suite, trainings.size.data, trainings.seed))

    monkeypatch.setattr(main, "run", run)
    assert invoke("nightly", "--suite", "peers", "--data", "mnist", "--seed", "2").exit_code == 0
    assert started == [("peers", "mnist", 2)]
    started.clear()
    assert invoke("nightly").exit_code == 0
    assert {data for _, data, _ in started} == {"mnist", "cifar10"}
    assert {seed for *_, seed in started} == {0, 1, 2}


def test_unknown_suite_is_refused() -> None:
    error = invoke("nightly", "--suite", "peers", "--suite", "tables").exception
    assert isinstance(error, ArgumentError)
    assert "one of ladder, probes, peers, inference" in str(error)
    assert str(error).endswith("Received: tables")


def test_unknown_data_are_refused() -> None:
    error = invoke("nightly", "--data", "digits").exception
    assert isinstance(error, ArgumentError)
    assert str(error) == "`--data` must be one of mnist, cifar10. Received: digits"


def test_without_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installed wheel has no benchmarks beside it."""
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "keras_encryip" / "cli" / "bench.py"))
    error = invoke("quick").exception
    assert isinstance(error, ArgumentError)
    assert "clone the repository" in str(error)
