"""What `encryip --help` says: everything, of every command."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

import keras_encryip as ke
from keras_encryip.cli.app import app


def commands(command: Any, name: str = "encryip") -> Iterator[tuple[str, Any]]:
    yield name, command
    for inner, child in getattr(command, "commands", {}).items():
        yield from commands(child, f"{name} {inner}")


COMMANDS = dict(commands(typer.main.get_command(app)))
FACTS = {
    "authority info",
    "decode",
    "inspect",
    "key inspect",
    "key list",
    "trace key",
    "trace service",
    "trace weights",
    "verify",
    "verify-evidence",
}


def test_the_tree_is_walked() -> None:
    assert len(COMMANDS) > 20
    assert "encryip trace service" in COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_everything_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert [p.name for p in command.params if not getattr(p, "help", None)] == []


def test_what_prints_facts_prints_json() -> None:
    having = {
        name.removeprefix("encryip ")
        for name, command in COMMANDS.items()
        if any("--json" in parameter.opts for parameter in command.params)
    }
    assert having == FACTS


@pytest.mark.parametrize(
    "start", [["-m", "keras_encryip"], ["-c", "from keras_encryip.cli import main; main()"]]
)
def test_started_either_way(start: list[str]) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *start, *arguments], capture_output=True, text=True, timeout=60
        )

    assert run("--version").stdout == f"keras_encryip {ke.__version__}\n"
    assert run("decode").returncode == 2
    said = " ".join(run("--help").stdout.split())
    assert "Exit codes: 0 done; 1 an error" in said
    assert "2 wrong usage; 130 interrupted" in said
