"""Kills, faults, odd servers, files, names and versions: counted by running the tests of each kind.

    python -m tests.reliability

Prints the second table of docs/evidence/reliability.md; `python -m tests.fuzz` prints the first. A
test that does many things in a loop (kills, changed files) says how many, and counts as many cases.
The exit code is 1 if a test fails.
"""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

KINDS = {
    "killed between any two steps, and at random, while it writes the ledger": [
        "tests/authority/test_killed.py",
    ],
    "SQLite: journal modes, busy, read-only, full disk, threads, other databases": [
        "tests/authority/test_ledger.py",
        "tests/authority/test_ledger_turns.py",
    ],
    "ledgers that were changed, cut, moved, or copied": [
        "tests/authority/test_ledger_damage.py",
        "tests/authority/test_ledger_files.py",
        "tests/authority/test_log_head.py",
    ],
    "writes that fail or are interrupted; no hard links; taken names": [
        "tests/formats/test_atomic_files.py",
        "tests/authority/test_issue_paths.py",
    ],
    "pipes, sockets, devices and loops as files; changed arrays": [
        "tests/formats/test_odd_files.py"
    ],
    "Ctrl-C during imports and the demo; letters that a terminal lacks": [
        "tests/cli/test_interrupts.py",
    ],
    "servers that trickle, lie about sizes, fail; proxies of the environment": [
        "tests/client/serving/test_deadline.py",
        "tests/client/serving/test_failures.py",
        "tests/client/serving/test_wire.py",
    ],
    "rows that no model answers, and answers of another version": ["tests/client/test_decoder.py"],
    "names, paths and text of people": [
        "tests/cli/test_text.py",
        "tests/authority/test_names.py",
        "tests/authority/test_places.py",
        "tests/formats/test_text.py",
    ],
    "what systems put beside a version; warm-up requests": ["tests/export/test_beside.py"],
    "hostile codebooks, key bundles, sealed folders, manifests": [
        "tests/labels/test_codebook_hostile.py",
        "tests/formats/test_hostile_vectors.py",
        "tests/formats/test_key_bundle_hostile.py",
        "tests/formats/test_sealed_folder.py",
        "tests/formats/test_manifest.py",
        "tests/formats/test_lock.py",
    ],
}


def counted(files: list[str]) -> tuple[int, int, list[str]]:
    """Tests and cases of some files, and the names of those that fail."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        options += ["-m", "not slow and not integration"]  # those of many seconds, too
        command = [sys.executable, "-m", "pytest", *options, *files]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode not in (0, 1):  # a file that is gone, for instance
            sys.exit(ran.stdout + ran.stderr)
        tests = ElementTree.parse(report).getroot().findall(".//testcase")
    failed = [
        f"{test.get('classname')}::{test.get('name')}"
        for test in tests
        if any(test.find(kind) is not None for kind in ("failure", "error", "skipped"))
    ]
    cases = 0
    for test in tests:
        said = test.find("./properties/property[@name='cases']")
        cases += 1 if said is None else int(said.attrib["value"])
    return len(tests), cases, failed


def main() -> int:
    table = Table(title="kills, faults, odd servers and files", title_justify="left")
    table.add_column("kind")
    for column in ("tests", "cases", "failures"):
        table.add_column(column, justify="right")
    failures: list[str] = []
    for kind in track(KINDS, "testing", console=Console(stderr=True)):
        tests, cases, failed = counted(KINDS[kind])
        table.add_row(kind, f"{tests:,}", f"{cases:,}", str(len(failed)))
        failures += failed
    console = Console(width=100)
    console.print(table)
    for failure in failures[:50]:
        console.print(failure, markup=False, highlight=False)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
