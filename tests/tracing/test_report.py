"""Trace reports: the verdict, the table, the file and the picture."""

import copy
import io
import json
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from PIL import Image
from rich.console import Console

from keras_encryip.errors import ArgumentError, FormatError
from keras_encryip.tracing.report import Findings, Suspect, TraceReport
from keras_encryip.tracing.statistics import SIGNIFICANCE

FIELDS = {
    "at": "2025-01-02T03:04:05Z",
    "evidence": {"queries": 64, "endpoint": "https://example.org", "answers": [1, 2]},
    "kind": "service",
    "model": "digits",
    "score_name": "coincidences",
    "scores": [40.0, 9.0, 8.0],
    "significance": SIGNIFICANCE,
    "tested": 12_345,
    "tests": 24_690,
    "threshold": 21.0,
}


def suspect(name: str = "alice", p_value: float = 1e-20, **changes: Any) -> Suspect:
    fields = {"subject": name, "key_id": f"{name}-key", "status": "active", "score": 40.0}
    return Suspect(**{**fields, "p_value": p_value, **changes})


def make(*suspects: Suspect, **changes: Any) -> TraceReport:
    return TraceReport(Findings(**{**FIELDS, "suspects": list(suspects), **changes}))


GUILTY = make(suspect(), suspect("bob", 0.3, score=9.0), suspect("eve", 1.0, score=8.0))
INCONCLUSIVE = make(suspect("bob", 0.3, score=9.0))


# --- the verdict -----------------------------------------------------------------


probabilities = st.floats(0, 1) | st.sampled_from([0, 1e-7, SIGNIFICANCE, 1.0000000001e-6, 1])


@given(st.lists(probabilities, max_size=8), st.floats(0, 1))
def test_guilt_is_a_p_value_of_at_most_the_significance(
    p_values: list[float], claimed: float
) -> None:
    """Whatever threshold, scores or significance the findings claim."""
    suspects = [suspect(f"user{i}", p) for i, p in enumerate(p_values)]
    report = make(*suspects, significance=claimed, threshold=0)
    proved = [s.subject for s in suspects if s.p_value <= 1e-6]
    assert [s.subject for s in report.guilty] == proved
    assert report.verdict == ("guilty" if proved else "inconclusive")
    assert report.p_value == min([*p_values, 1.0])
    assert (report.verdict == "guilty") == (report.p_value <= SIGNIFICANCE)
    assert (
        repr(report)
        == " ".join([f"<TraceReport service: {report.verdict}", *proved])
        .replace(" user", ", user")
        .replace("guilty, ", "guilty ")
        + ">"
    )


def test_no_suspects_no_guilt() -> None:
    report = make(scores=[], tested=0)
    assert (report.verdict, report.p_value, report.guilty) == ("inconclusive", 1, [])
    assert repr(report) == "<TraceReport service: inconclusive>"


def test_a_report_has_the_attributes_of_its_findings() -> None:
    for name, value in FIELDS.items():
        assert getattr(GUILTY, name) == value
    assert [s.subject for s in GUILTY.suspects] == ["alice", "bob", "eve"]
    with pytest.raises(AttributeError, match="'TraceReport' object has no attribute 'culprit'"):
        _ = GUILTY.culprit


@pytest.mark.parametrize("copier", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_report_cannot_be_pickled(copier: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="TraceReport holds a secret and cannot be pickled"):
        copier(GUILTY)


# --- the table -------------------------------------------------------------------


def lines(report: TraceReport) -> list[list[str]]:
    """The words of the table's rows."""
    rows = [line.strip("│ ").split("│") for line in str(report).splitlines() if "│" in line]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_table_shows_the_suspects() -> None:
    assert lines(GUILTY) == [
        ["alice", "alice-key", "active", "40", "1.0e-20", "guilty"],
        ["bob", "bob-key", "active", "9", "3.0e-01"],
        ["eve", "eve-key", "active", "8", "1.0e+00"],
    ]


def test_the_text_says_what_was_found_and_how() -> None:
    text = " ".join(str(GUILTY).split())
    assert "service of 'digits': guilty: alice" in text
    assert "12,345 users tested; guilty from coincidences 21 on" in text
    assert "corrected p-value at most 1e-06" in text
    assert re.search(r"queries +64 ", text)
    assert re.search(r"endpoint +https://example\.org", text)
    assert "[1, 2]" not in text, "lists are for the file"
    assert "\x1b" not in text


def test_the_text_is_the_same_in_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(GUILTY)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as ipykernel does
    assert str(GUILTY) == text


def test_an_inconclusive_text_accuses_nobody() -> None:
    text = str(INCONCLUSIVE)
    assert "'digits': inconclusive" in text
    assert lines(INCONCLUSIVE) == [["bob", "bob-key", "active", "9", "3.0e-01"]]
    assert "guilty: " not in text


def test_the_table_is_one_for_rich() -> None:
    console = Console(width=120, file=io.StringIO())
    console.print(GUILTY.table())
    assert "alice" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("guilty", "innocent", "rows"), [(25, 5, 25), (3, 20, 10), (0, 4, 4)])
def test_all_guilty_are_listed_and_some_others(guilty: int, innocent: int, rows: int) -> None:
    suspects = [suspect(f"g{i:02}", 0) for i in range(guilty)]
    report = make(*suspects, *[suspect(f"i{i:02}", 0.5) for i in range(innocent)])
    found = [row[0] for row in lines(report)]
    assert found == [s.subject for s in report.suspects[:rows]]
    assert [s.subject for s in report.guilty] == [s.subject for s in suspects]
    assert all(s.subject in repr(report) for s in suspects)


NAMES = ["[bold]al[/bold]", "[/x]", "a[1]b", "\\[x]", "$\\foo$", "5$ and 6$"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name: str) -> None:
    """Square brackets are no markup."""
    report = make(suspect(name, key_id="k"), evidence={"endpoint": name})
    assert lines(report)[0][0] == name
    assert f"service of 'digits': guilty: {name}" in " ".join(str(report).split())
    assert re.search(rf"endpoint +{re.escape(name)}", str(report))
    assert f"'digits{name}'" in str(make(model=f"digits{name}")).replace("\\\\", "\\")


# --- the file --------------------------------------------------------------------


@pytest.mark.parametrize("report", [GUILTY, INCONCLUSIVE, make()], ids=repr)
def test_what_is_saved_is_read(tmp_path: Path, report: TraceReport) -> None:
    path = tmp_path / "report.json"
    report.save(path)
    again = TraceReport.read(path)
    assert again.to_bytes() == report.to_bytes() == path.read_bytes()
    assert again.suspects == report.suspects
    assert (again.verdict, again.p_value) == (report.verdict, report.p_value)
    assert str(again) == str(report)


def test_the_file_is_plain_json() -> None:
    data = GUILTY.to_bytes()
    content = json.loads(data)
    assert data.endswith(b"}\n")
    assert content == {
        **FIELDS,
        "version": 2,
        "suspects": [
            {
                "subject": n,
                "key_id": f"{n}-key",
                "status": "active",
                "score": s,
                "p_value": p,
                "identified": False,
            }
            for n, s, p in (("alice", 40, 1e-20), ("bob", 9, 0.3), ("eve", 8, 1))
        ],
    }


def changed(**fields: Any) -> bytes:
    content = {**json.loads(GUILTY.to_bytes()), **fields}
    return json.dumps({k: v for k, v in content.items() if v is not ...}).encode()


SUSPECT = json.loads(GUILTY.to_bytes())["suspects"][0]
MALFORMED = {
    "empty": b"",
    "text": b"guilty",
    "null": b"null",
    "list": b"[]",
    "half": GUILTY.to_bytes()[:-40],
    "two": GUILTY.to_bytes() * 2,
    "not utf-8": b'{"at": 1, \xff}',
    "deep": b'{"evidence": {"x": ' + b"[" * 100_000,
    "field missing": changed(threshold=...),
    "field unknown": changed(guilty=["bob"]),
    "version": changed(version=3),
    "kind": changed(kind=7),
    "scores": changed(scores=["40"]),
    "NaN": changed(threshold=float("nan")),
    "suspects": changed(suspects={"alice": 1}),
    "p-value above 1": changed(suspects=[{**SUSPECT, "p_value": 1.5}]),
    "p-value below 0": changed(suspects=[{**SUSPECT, "p_value": -1e-9}]),
    "suspect's guilt": changed(suspects=[{**SUSPECT, "guilty": True}]),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(data)
    with pytest.raises(FormatError, match="The trace report is malformed: "):
        TraceReport.read(path)


def test_the_content_that_the_malformed_come_from_is_read() -> None:
    assert TraceReport.from_bytes(changed()).verdict == "guilty"


def test_a_missing_or_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FormatError, match="Cannot read the trace report"):
        TraceReport.read(tmp_path / "none.json")
    GUILTY.save(tmp_path / "report.json")
    monkeypatch.setattr(sys.modules[TraceReport.__module__], "MAX_REPORT_BYTES", 100)
    with pytest.raises(FormatError, match="too large: more than 100 bytes"):
        TraceReport.read(tmp_path / "report.json")


@pytest.mark.parametrize("name", ["report.json", "report.png"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"precious")
    with pytest.raises(ArgumentError, match="exists already, and is never overwritten"):
        GUILTY.save(path)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "name", ["report", "report.txt", "report.svg", "report.pdf", "report.json.gz", ".json"]
)
def test_another_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match=r"`path` must end in \.json or \.png"):
        GUILTY.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# --- the picture -----------------------------------------------------------------


def texts(report: TraceReport, folder: Path) -> str:
    """All that is written in a picture, which is drawn and saved first."""
    report.save(folder / "report.png")
    return " ".join(text.get_text() for text in report._figure().findobj(Text))


def test_pictures_are_what_their_endings_say(tmp_path: Path) -> None:
    for ending in ("png", "PNG"):
        GUILTY.save(tmp_path / f"{ending}.{ending}")
        with Image.open(tmp_path / f"{ending}.{ending}") as image:
            image.verify()
            assert image.format == "PNG"
            assert min(image.size) > 300


def test_a_picture_names_the_guilty_and_nobody_else(tmp_path: Path) -> None:
    words = texts(GUILTY, tmp_path)
    for text in ("alice", "service", "digits", "1.0e-20", "coincidences", "guilty from 21"):
        assert text in words
    assert "12,345" in words
    assert "bob" not in words


def test_an_inconclusive_picture_names_nobody(tmp_path: Path) -> None:
    words = texts(INCONCLUSIVE, tmp_path)
    assert "inconclusive" in words
    assert "bob" not in words


@pytest.mark.parametrize("count", [0, 1, 10_000])
def test_pictures_of_few_and_many_scores(tmp_path: Path, count: int) -> None:
    scores = [float(count - i) for i in range(count)]
    report = make(suspect(score=40.0), scores=scores, tested=10**6) if count else make(scores=[])
    words = texts(report, tmp_path)
    assert f"best {count:,} of" in words


@pytest.mark.parametrize("name", [*NAMES, "日本", "a\nb", "x" * 256], ids=ascii)
def test_any_name_can_be_in_a_picture(tmp_path: Path, name: str) -> None:
    """Dollar signs are no formula; what a font has not and what is too long does not warn."""
    assert "guilty" in texts(make(suspect(name), model=name), tmp_path)


def test_a_picture_of_many_guilty_names_the_first(tmp_path: Path) -> None:
    suspects = [suspect(f"user{i:02}", 0, score=100.0 - i) for i in range(40)]
    report = make(*suspects, scores=[s.score for s in suspects])
    words = texts(report, tmp_path)
    assert all(f"user{i:02}" in words for i in range(10))
    assert "user39" not in words


def test_who_is_identified_and_not_convicted() -> None:
    named = [msgspec.structs.replace(s, p_value=1.0) for s in GUILTY.suspects]
    named[1] = msgspec.structs.replace(named[1], identified=True)
    report = TraceReport(msgspec.structs.replace(GUILTY._findings, suspects=named, threshold=None))
    assert (report.verdict, report.guilty) == ("identified", [])
    assert [s.subject for s in report.identified] == ["bob"]
    assert TraceReport.from_bytes(report.to_bytes()).identified == report.identified
    assert "identified: bob" in str(report)
    assert "would prove guilt" in " ".join(str(report).split())
    convicted = msgspec.structs.replace(named[1], p_value=1e-9)
    both = TraceReport(msgspec.structs.replace(report._findings, suspects=[convicted]))
    assert (both.verdict, both.identified) == ("guilty", [])


def test_reports_of_release_0_3_say_who_reads_them() -> None:
    content = json.loads(GUILTY.to_bytes()) | {"version": 1}
    for suspect in content["suspects"]:
        del suspect["identified"]
    with pytest.raises(FormatError, match=r"version 1, which release 0\.3 of keras_encryip reads"):
        TraceReport.from_bytes(json.dumps(content).encode())


def test_a_report_from_elsewhere_plays_no_tricks() -> None:
    """Whatever a saved report says, its table stands as it is, and on its lines."""
    odd = "[/x][red] :x:\x1b[2J\u202e"
    shown = r"[/x][red] :x:\x1b[2J\u202e"
    suspect = Suspect(odd, odd, odd, 1.0, 0.5)
    findings = Findings.now(
        evidence={odd: odd, "of": f"a\nguilty {odd}"},
        kind=odd,
        model="m",
        score_name=odd,
        scores=[1.0],
        suspects=[suspect],
        tested=1,
        tests=1,
        threshold=None,
    )
    report = TraceReport.from_bytes(TraceReport(findings).to_bytes())
    text = str(report)
    assert all(line.isprintable() for line in text.split("\n"))
    assert f"{shown:24} {shown}" in text
    assert rf"{'of':24} a\nguilty {shown}" in text
    assert report._picture().startswith(b"\x89PNG")


def test_a_report_that_an_editor_saved_is_read(tmp_path: Path) -> None:
    findings = Findings.now(
        evidence={},
        kind="key",
        model="",
        score_name="bits",
        scores=[],
        suspects=[],
        tested=1,
        tests=1,
        threshold=None,
    )
    data = TraceReport(findings).to_bytes()
    (tmp_path / "r.json").write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"))
    assert TraceReport.read(tmp_path / "r.json").to_bytes() == data
    (tmp_path / "u.json").write_bytes(data.decode().encode("utf-16"))
    with pytest.raises(FormatError, match=r"trace report '.*u\.json' is UTF-16 text: save it as"):
        TraceReport.read(tmp_path / "u.json")
