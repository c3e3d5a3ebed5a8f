"""Where passphrases are asked for: at a terminal alone, whatever standard input is."""

import contextlib
import fcntl
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import keras_encryip as ke

RUN = [sys.executable, "-c", "from keras_encryip.cli import main; main()"]
QUIET = {k: v for k, v in os.environ.items() if not k.startswith("ENCRYIP_")} | {"COLUMNS": "200"}


def at_a_terminal(
    *arguments: str | Path, typed: list[str], stdin: bytes | None = None
) -> tuple[int, str, str]:
    """Exit code, standard output, and what the terminal shows; `stdin` comes through a pipe.

    A line is typed at each prompt, and not before: what comes early is thrown away.
    """
    keyboard, screen = pty.openpty()

    def take_the_terminal() -> None:
        fcntl.ioctl(screen, termios.TIOCSCTTY, 0)

    with subprocess.Popen(
        [*RUN, *map(str, arguments)],
        stdin=screen if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=screen,
        env=QUIET,
        start_new_session=True,
        preexec_fn=take_the_terminal,
    ) as running:
        os.close(screen)
        shown = ""
        with contextlib.suppress(OSError):  # the program has ended
            while part := os.read(keyboard, 1 << 16).decode():
                shown += part
                if typed and shown.endswith(": "):
                    os.write(keyboard, f"{typed.pop(0)}\n".encode())
        out, _ = running.communicate(stdin, timeout=60)
    os.close(keyboard)
    return running.returncode, out.decode(), shown


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with ke.Authority.create(tmp_path / "a.authority", "owner", scrypt_log2_n=14) as authority:
        bundle = tmp_path / "alice.keybundle"
        authority.issue("alice", bundle, passphrase="user", scrypt_log2_n=14)
    return tmp_path


def test_asked_at_the_terminal(place: Path) -> None:
    code, out, shown = at_a_terminal("key", "list", place / "a.authority", typed=["owner"])
    assert code == 0, shown
    assert "alice" in out
    assert "Passphrase of the authority: " in shown
    assert "owner" not in shown + out


def test_a_new_pair_asks_for_its_passphrase_twice(tmp_path: Path) -> None:
    words = "my own words"
    code, out, shown = at_a_terminal("key", "new", tmp_path / "carol", typed=[words, words])
    assert code == 0, shown
    assert "Passphrase of the new private key: " in shown
    assert words not in shown + out
    assert {p.name for p in tmp_path.iterdir()} == {"carol.private.pem", "carol.public.pem"}


def test_asked_at_the_terminal_though_something_comes_through_a_pipe(place: Path) -> None:
    """As in `curl … | encryip decode`: the terminal is there, and standard input is not it."""
    command = ("key", "list", place / "a.authority")
    code, out, shown = at_a_terminal(*command, typed=["owner"], stdin=b"answers of a server")
    assert code == 0, shown
    assert "alice" in out


@pytest.mark.parametrize(
    ("command", "variable"),
    [
        (("key", "list", "a.authority"), "AUTHORITY"),
        (("authority", "create", "b.authority"), "AUTHORITY"),
        (("key", "new", "bob"), "BUNDLE"),
        (("unseal", "a.sealed", "opened", "alice.keybundle"), "BUNDLE"),
    ],
    ids=" ".join,
)
def test_without_a_terminal_the_ways_are_named(
    place: Path, command: tuple[str, ...], variable: str
) -> None:
    done = subprocess.run(
        [*RUN, *command],
        cwd=place,
        env=QUIET,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: The passphrase of the ")
    for way in (
        f"ENCRYIP_{variable}_PASSPHRASE or",
        f"ENCRYIP_{variable}_PASSPHRASE_FILE",
        f"--{variable.lower()}-passphrase-file",
    ):
        assert way in done.stderr


def test_an_output_that_is_full(place: Path) -> None:
    """One line, without a traceback, at once or when the program ends."""
    command = [*RUN, "authority", "info", str(place / "a.authority"), "--json"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            env=QUIET | {"ENCRYIP_AUTHORITY_PASSPHRASE": "owner"},
        )
    assert done.returncode == 1
    assert done.stderr.decode() == "Error: No space left on device.\n"
