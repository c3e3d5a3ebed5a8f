"""Pages and figures that code, tests and pages name exist, and every public name has an entry."""

import json
import re
from pathlib import Path

import keras_encryip as ke
from keras_encryip import client

ROOT = Path(__file__).parents[1]
CODE = [
    path
    for folder in ("keras_encryip", "tests", "benchmarks", "examples", "clients/js/src")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".c", ".ts"}
]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\(([^)\s:#\"]+)(?:#[^)\s]*)?\)")


def test_pages_that_code_names_exist() -> None:
    named = {
        (page, path)
        for path in CODE
        for page in re.findall(r"\bdocs/[\w/.-]+\.(?:md|png)", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    assert [each for each in named if not (ROOT / each[0]).is_file()] == []


def test_links_between_pages_lead_somewhere() -> None:
    links = []
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        links += [(page, link) for link in LINK.findall(prose)]
    assert len(links) > 100
    assert [(page, link) for page, link in links if not (page.parent / link).exists()] == []


def test_public_names_are_in_the_reference() -> None:
    reference = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs/reference").iterdir())
    shown = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", reference, re.M)}
    assert {*ke.__all__, *client.__all__, "ServingClient"} == shown


def test_prose_has_at_most_100_columns() -> None:
    """Tables, code and links are as wide as they must be."""
    long = []
    for page in PAGES:
        prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for line in prose.splitlines():
            words = line.lstrip("-* ")
            if (
                len(line) > 100
                and "|" not in line[:1]
                and " " in re.sub(r"\[.*?\]\(.*?\)", "", words)
            ):
                long.append((page.name, line))
    assert long == []


def test_tutorials_are_kept_without_outputs() -> None:
    notebooks = [json.loads(path.read_text(encoding="utf-8")) for path in TUTORIALS]
    code = [each for book in notebooks for each in book["cells"] if each["cell_type"] == "code"]
    assert len(code) > 40
    assert [each["source"] for each in code if each["outputs"] or each["execution_count"]] == []
