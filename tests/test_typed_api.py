"""What a type checker and an editor know of the public names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import keras_encryip as ke

SNIPPET = """
import keras_encryip as ke
from keras_encryip.client import Decoder

reveal_type(ke.protect)
reveal_type(ke.export_saved_model)
reveal_type(ke.Authority.create)
reveal_type(ke.Tracer.service)
authority = ke.Authority.create("acme.authority", "secret")
reveal_type(authority.issue("alice", "alice.keybundle", passphrase="secret"))
reveal_type(ke.Tracer(authority).bundle("alice.keybundle"))
reveal_type(ke.Decoder.open("served/1", "alice.keybundle", "secret"))
reveal_type(Decoder)
"""
WRONG = """
import keras_encryip as ke

ke.unprotect
ke.Authority.create("acme.authority", passphrase=3)
ke.Authority.creat("acme.authority", "secret")
ke.Tracer("acme.authority")
ke.protect(None, ke.Authority.open("a", "b"), name="x", homophone=3)
ke.export_saved_model("digits.keras", "served/1")
ke.verify_evidence(3)
"""


def mypy(code: str, folder: Path) -> list[str]:
    path = folder / "snippet.py"
    path.write_text(code)
    root = Path(ke.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", root / "setup.cfg", path],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert not done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if "snippet.py" in line]


def test_names_have_types(tmp_path: Path) -> None:
    notes = mypy(SNIPPET, tmp_path)
    assert not [line for line in notes if "error" in line], notes
    revealed = [line.partition('Revealed type is "')[2] for line in notes]
    assert len(revealed) == SNIPPET.count("reveal_type")
    assert revealed[0].startswith("def (classifier: Any, authority: keras_encryip.labels.model_r")
    assert "-> keras_encryip.models.protected_model.ProtectedModel" in revealed[0]
    assert revealed[1].startswith("def (model: keras_encryip.models.protected_model.ProtectedM")
    assert "-> keras_encryip.authority.authority.Authority" in revealed[2]
    assert "-> keras_encryip.tracing.report.TraceReport" in revealed[3]
    assert [line.rstrip('"').rpartition(".")[2] for line in revealed[4:7]] == [
        "User",
        "TraceReport",
        "Decoder",
    ]
    assert not [line for line in revealed if line.startswith("Any")]


def test_mistakes_are_errors(tmp_path: Path) -> None:
    errors = mypy(WRONG, tmp_path)
    wrong = [number for number, line in enumerate(WRONG.splitlines(), 1) if line.startswith("ke.")]
    assert sorted({int(line.split(":")[1]) for line in errors}) == wrong, errors


def test_what_checkers_see_is_what_there_is() -> None:
    """The imports under TYPE_CHECKING name each public name's own home."""
    tree = ast.parse(Path(ke.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.asname: f"{node.module}"
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen.keys() == set(ke.__all__)
    for name, module in seen.items():
        assert getattr(ke, name).__module__ == module, name


@pytest.mark.parametrize("name", ["protect", "Tracer", "__version__"])
def test_names_are_listed(name: str) -> None:
    assert name in dir(ke)
