"""README's quickstart runs as it is pasted; README stays short, and keeps what CI reads."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = README.splitlines()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the Python blocks print, pasted in order in one session, in an empty folder."""
    folder = tmp_path_factory.mktemp("quickstart")
    pasted = subprocess.run(
        [sys.executable, "-c", "".join(blocks("python"))],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert pasted.returncode == 0, pasted.stderr
    assert "Warning" not in pasted.stderr, "the export says that the leak may not be traced"
    return pasted.stdout


def test_a_key_reads_the_answers(output: str) -> None:
    read = re.search(r"^with a key (\S+)$", output, re.M)
    assert read is not None
    assert float(read[1]) > 0.85
    assert "(397, 10)" in output


def test_a_revoked_key_is_refused(output: str) -> None:
    assert re.search(r"^.*revoked.*$", output, re.M)


def test_a_locked_folder_answers_once_unlocked(output: str) -> None:
    assert re.search(r"^\(1, \d+\)$", output, re.M)


def test_leakers_are_named(output: str) -> None:
    assert re.search(r"service of 'digits': guilty: bob\s", output)
    assert re.search(r"weights of 'digits': guilty: alice\s", output)


def test_there_is_a_quickstart() -> None:
    assert len(blocks("python")) == 5


def test_ci_finds_the_test_command() -> None:
    """As .ci/run reads it."""
    command = README.split("<!-- test command -->\n```bash\n")[1].split("```")[0]
    assert command.splitlines()[-1] == "python3 -m pytest"


def test_readme_is_short() -> None:
    assert len(LINES) <= 150


def test_lines_are_no_longer_than_100_columns() -> None:
    """But for tables, which Markdown cannot wrap."""
    assert [line for line in LINES if len(line) > 100 and not line.startswith("|")] == []
