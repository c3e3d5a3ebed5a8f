"""`encryip demo`, the main job, as a newcomer runs it."""

import base64
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from keras_encryip.cli import main; main()"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(its folder, what it printed)."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    newcomers = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "CUDA_"))}
    finished = subprocess.run(
        [*COMMAND, "demo", "--directory", str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**newcomers, "COLUMNS": "200"},
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""  # no line of TensorFlow's log
    assert [path.name for path in folder.parent.iterdir()] == ["demo"]
    return folder, finished.stdout


@pytest.fixture(scope="module")
def summary(demo: tuple[Path, str]) -> dict[tuple[str, str], str]:
    """What each gets, by who and what they hold."""
    table = demo[1].partition(" Summary ")[2]
    cells = re.findall(r"^│ ([^│]+)│ ([^│]+)│ ([^│]+)│$", table, re.M)
    return {(who.strip(), holds.strip()): gets.strip() for who, holds, gets in cells}


def accuracy(gets: str) -> float:
    return float(re.fullmatch(r"accuracy (\d\.\d{3})", gets)[1])  # type: ignore[index]


def test_who_reads(summary: dict[tuple[str, str], str]) -> None:
    twin = accuracy(summary["owner: the twin", "the model, never protected"])
    protected = accuracy(summary["owner: the protected model", "all secrets"])
    assert twin > 0.95
    assert abs(protected - twin) < 0.04
    kept, revoked = "a key bundle", "a key bundle, revoked before version 2"
    both = f"version 1: {protected:.3f}; version 2: {protected:.3f}; TensorFlow loaded: no"
    assert summary["alice", kept] == summary["bob", kept] == both
    assert summary["carol", revoked] == (
        f"version 1: {protected:.3f}; version 2: refused (RevokedKeyError); TensorFlow loaded: no"
    )
    foreign = "another owner's key bundle"
    assert summary["mallory", foreign].count("refused (ForeignKeyError)") == 2
    assert accuracy(summary["mallory, ignoring the refusal", foreign]) < 0.3
    assert accuracy(summary["outsider", "the plain folder, no key, no labels"]) < 0.3


def test_what_a_thief_gets(summary: dict[tuple[str, str], str]) -> None:
    thief = {holds: accuracy(gets) for (who, holds), gets in summary.items() if who == "thief"}
    pixels, plain, locked, hosted = thief.values()
    assert plain > 0.9 > pixels > 0.5
    assert locked < plain - 0.15
    assert hosted < 0.2
    assert accuracy(summary["alice", "the same answers, and her key"]) > 0.92


def test_who_is_named(summary: dict[tuple[str, str], str], demo: tuple[Path, str]) -> None:
    named = summary["owner: tracer", "labels that bob's service sells"]
    found = re.fullmatch(r"guilty: bob, p = (\S+)", named)
    assert found is not None, named
    assert float(found[1]) <= 1e-6
    innocent = summary["owner: tracer", "labels of a service on the twin"]
    assert innocent == "inconclusive; is it our model: not shown"
    evidence = [*COMMAND, "verify-evidence", "evidence", "--bundle", "alice.keybundle"]
    verified = subprocess.run(evidence, cwd=demo[0], capture_output=True, text=True)
    assert verified.stdout.startswith("guilty: bob, service, p = "), verified.stderr


def test_what_it_leaves(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    for name in (
        "served/digits/2/assets.extra/encryip/codebook.json",
        "locked/digits/1/assets.extra/encryip/lock.json",
        "hosted/digits/1/saved_model.pb",
    ):
        assert (folder / name).is_file(), name
    application = subprocess.run(
        [sys.executable, "application.py", "alice"], cwd=folder, capture_output=True, text=True
    )
    assert len(json.loads(application.stdout)["2"]) == 500
    # Its key file is where the locked export looks, once the demo has its name.
    key = [*COMMAND, "unlock", "locked/digits/1", "alice.keybundle", "--out", "digits.key"]
    environment = {**os.environ, "ENCRYIP_BUNDLE_PASSPHRASE": "demo passphrase"}
    unlocked = subprocess.run(key, cwd=folder, capture_output=True, text=True, env=environment)
    assert unlocked.returncode == 0, unlocked.stderr
    assert (
        str(folder / "digits.key").encode()
        in (folder / "locked/digits/1/saved_model.pb").read_bytes()
    )


class Page(HTMLParser):
    """Checks that tags close in order, and keeps links, pictures and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.alternatives: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        given = dict(attributes)
        self.loads += [given[name] or "" for name in ("src", "href") if name in given]
        self.alternatives += [given["alt"] or ""] if tag == "img" else []
        assert tag not in ("script", "link", "iframe")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page(demo: tuple[Path, str], summary: dict[tuple[str, str], str]) -> None:
    folder, printed = demo
    assert f"{folder}/index.html" in printed
    text = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    pictures = [
        base64.b64decode(load.removeprefix("data:image/png;base64,")) for load in page.loads
    ]
    names = ("confused-labels.png", "all-answers.png", "trace.png")
    assert pictures == [(folder / name).read_bytes() for name in names]
    assert all(page.alternatives)
    for row in (cell for key, gets in summary.items() for cell in (*key, gets)):
        assert row in page.text
    assert not re.search(r"https?:|url\(|@import", text)
    for name in ("acme.authority", "other.authority", "alice.keybundle", "bob.keybundle"):
        assert (folder / name).read_bytes()[-24:] not in text.encode()


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    """And said before TensorFlow is loaded."""
    (tmp_path / "demo").mkdir()
    code = (
        "import sys; from keras_encryip.cli import main\n"
        "try: main()\n"
        "finally: assert 'tensorflow' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "demo", "--directory", str(tmp_path / "demo")]
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert "Traceback" not in again.stderr
    assert [*tmp_path.rglob("*")] == [tmp_path / "demo"]
