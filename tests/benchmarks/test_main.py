"""`python -m benchmarks`: what it starts, and what it refuses."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import main, rows
from benchmarks.__main__ import app
from benchmarks.rows import Rows
from benchmarks.trainings import Trainings
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


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str, int]]:
    """(suite, data, seed) of what would be run."""
    found: list[tuple[str, str, int]] = []
    monkeypatch.setattr(rows, "RESULTS", tmp_path)

    def noted(suite: str) -> Any:
        def run(trainings: Trainings, rows: Rows) -> None:
            assert (rows.data, rows.seed) == (trainings.size.data, trainings.seed)
            found.append((suite, rows.data, rows.seed))

        return run

    monkeypatch.setattr(main, "SUITES", {suite: noted(suite) for suite in main.SUITES})
    return found


def test_quick_runs_the_short_suites(started: list[tuple[str, str, int]], tmp_path: Path) -> None:
    assert invoke("quick").exit_code == 0
    assert started == [(suite, "digits", 0) for suite in main.QUICK_SUITES]
    assert [path.name for path in (tmp_path / "quick").iterdir()] == ["rows.jsonl"]


def test_nightly_runs_what_is_asked_for(started: list[tuple[str, str, int]]) -> None:
    assert invoke("nightly", "--suite", "peers", "--data", "mnist", "--seed", "2").exit_code == 0
    assert started == [("peers", "mnist", 2)]
    started.clear()
    assert invoke("nightly").exit_code == 0
    wanted = {(s, d, n) for s in main.SUITES for d in ("mnist", "cifar10") for n in (0, 1, 2)}
    assert len(started) == len(wanted)
    assert set(started) == wanted


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
    assert "one of ladder, locked, peers, inference" in str(error)
    assert str(error).endswith("Received: tables")
