"""`python -m benchmarks`: what it starts, and what it refuses."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import main
from benchmarks.__main__ import app
from benchmarks.report.found import GONE, Results, Suite
from benchmarks.sizes import QUICK
from keras_encryip.errors import ArgumentError

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "TERM": "dumb", "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_the_commands() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "python -m benchmarks" in done.stdout
    for command in ("quick", "nightly", "report"):
        assert re.search(rf"\b{command}\b", done.stdout), command


def test_a_refusal_has_no_traceback() -> None:
    done = run("nightly", "--data", "digits")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    expected = "Error: `--data` must be one of mnist, cifar10. Received: digits"
    assert done.stderr.splitlines()[-1] == expected  # below TensorFlow's own lines


def test_quick_runs_the_short_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(main, "run", lambda suite, name, _: started.append((suite, name)))
    assert invoke("quick").exit_code == 0
    assert started == [(suite, "quick") for suite in main.QUICK_SUITES]


def test_nightly_runs_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def note(suite: str, name: str, trainings: Any) -> None:
        started.append((suite, trainings.size.data, trainings.seed))

    monkeypatch.setattr(main, "run", note)
    assert invoke("nightly", "--suite", "peers", "--data", "mnist", "--seed", "2").exit_code == 0
    assert started == [("peers", "mnist", 2)]
    started.clear()
    assert invoke("nightly").exit_code == 0
    assert {data for _, data, _ in started} == {"mnist", "cifar10"}
    assert {seed for *_, seed in started} == {0, 1, 2}


@pytest.mark.parametrize(("options", "size"), [((), "nightly"), (("--quick",), "quick")])
def test_report_prints_where_it_wrote(
    options: tuple[str, ...], size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "report", lambda name: Path(f"{name}.md"))
    done = invoke("report", *options)
    assert (done.exit_code, done.output) == (0, f"{size}.md\n")


def test_unknown_suite_is_refused() -> None:
    error = invoke("nightly", "--suite", "peers", "--suite", "tables").exception
    assert isinstance(error, ArgumentError)
    assert "one of ladder, probes, peers, inference" in str(error)
    assert str(error).endswith("Received: tables")


def test_ways_that_are_gone_are_not_shown() -> None:
    """Results of 0.3 hold a way that later releases do not have."""
    cells = {f"seed 0, {way}, model": {"accuracy": 0.9} for way in ("defaults", *GONE)}
    none = Suite()
    results = Results(QUICK[0], Suite.of_cells({}, cells), none, none, none, none)
    assert results.ways == ["defaults"]
