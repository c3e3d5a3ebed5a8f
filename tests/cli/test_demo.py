"""`encryip demo`, the main job, as a newcomer runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path


def test_demo(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from keras_encryip.cli import main; main()", "demo"]
    folder = tmp_path / "demo"
    finished = subprocess.run(
        [*command, "--directory", str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert finished.returncode == 0, finished.stderr
    rows = {
        name: re.search(rf"│ [^│\n]*{name}[^│\n]*│ (\S+)", finished.stdout).group(1)  # type: ignore[union-attr]
        for name in (
            "the twin",
            "alice",
            "bob",
            "carol",
            "mallory ",
            "mallory, ignoring",
            "outsider",
        )
    }
    twin = float(rows["the twin"])
    assert twin > 0.95
    assert abs(float(rows["alice"]) - twin) < 0.04
    assert abs(float(rows["bob"]) - twin) < 0.04
    assert rows["carol"] == rows["mallory "] == "refused"
    assert float(rows["mallory, ignoring"]) < 0.3
    assert float(rows["outsider"]) < 0.3
    assert re.search(r"service of 'digits': guilty: bob\s", finished.stdout)
    assert "twin: inconclusive; is it our model: not shown." in finished.stdout
    assert "RevokedKeyError" in finished.stdout
    assert "ForeignKeyError" in finished.stdout
    for name in (
        "alice.keybundle",
        "confused-labels.png",
        "trace.png",
        "served/digits/2/saved_model.pb",
        "served/digits/2/assets.extra/encryip/codebook.json",
    ):
        assert (folder / name).is_file(), name
    # The application it leaves behind runs.
    application = subprocess.run(
        [sys.executable, "application.py", "alice"], cwd=folder, capture_output=True, text=True
    )
    assert len(json.loads(application.stdout)["labels"]) == 500

    evidence = [*command[:-1], "verify-evidence", "evidence", "--bundle", "alice.keybundle"]
    verified = subprocess.run(evidence, cwd=folder, capture_output=True, text=True)
    assert verified.stdout.startswith("guilty: bob, service, p = "), verified.stderr

    again = subprocess.run([*command, "--directory", str(folder)], capture_output=True, text=True)
    assert again.returncode == 1
    assert "exists already" in again.stderr
