"""Processes and threads that use one authority take turns."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import keras_encryip
from keras_encryip.authority import ledger as ledger_module
from keras_encryip.authority.authority import Authority
from keras_encryip.errors import LedgerError
from keras_encryip.formats.key_bundle import KeyBundle

PASSPHRASE = "owner's passphrase"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(keras_encryip.__file__).parents[1])}

HOLDER = """
import sqlite3, sys, time
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
c.execute("ROLLBACK")
"""

ISSUER = f"""
import sys
from keras_encryip.authority.authority import Authority
file, folder, name = sys.argv[1:]
with Authority.open(file, {PASSPHRASE!r}) as authority:
    print("open", flush=True)
    sys.stdin.readline()
    for i in range(6):
        path = f"{{folder}}/{{name}}{{i}}.keybundle"
        authority.issue(f"{{name}}{{i}}", path, passphrase="x", scrypt_log2_n=14)
"""


def start(code: str, *arguments: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() in ("held", "open")
    return process


def test_a_process_that_holds_the_file_for_a_while_is_waited_for(
    authority: Authority, file: Path
) -> None:
    with start(HOLDER, str(file), "1.5") as holder:
        began = time.monotonic()
        authority.enroll(["ann"])
        assert time.monotonic() - began > 1
        holder.communicate()
    assert [user.subject for user in authority.users()] == ["ann"]


def test_the_wait_for_another_process_has_an_end(
    create: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_BUSY_SECONDS", 1)
    authority = create()
    with start(HOLDER, str(file), "60") as holder:
        began = time.monotonic()
        with pytest.raises(LedgerError, match="is busy: another process or thread is changing it"):
            authority.enroll(["ann"])
        assert 0.9 < time.monotonic() - began < 10
        holder.kill()
    authority.enroll(["ann"])


def test_two_processes_issue_at_once(authority: Authority, file: Path, tmp_path: Path) -> None:
    with (
        start(ISSUER, str(file), str(tmp_path), "ann") as first,
        start(ISSUER, str(file), str(tmp_path), "ben") as second,
    ):
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in (first, second):
            process.communicate(timeout=60)
            assert process.returncode == 0
    users = authority.users()
    assert {user.subject for user in users} == {f"{n}{i}" for n in ("ann", "ben") for i in range(6)}
    for user in users:
        assert user.status == "active"
        bundle = KeyBundle.read(tmp_path / f"{user.subject}.keybundle")
        assert bundle.header.key_id == user.key_id
    with Authority.open(file, PASSPHRASE) as again:
        assert again.users() == users


def in_threads(count: int, work: Callable[[int], None]) -> list[BaseException]:
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("where", ["file", "memory"])
def test_threads_take_turns(create: Any, file: Path, tmp_path: Path, where: str) -> None:
    authority = create("sqlite://" if where == "memory" else f"sqlite:///{file}")

    def work(number: int) -> None:
        for i in range(3):
            authority.enroll([f"user{number}-{i}"])
            assert f"user{number}-{i}" in {user.subject for user in authority.users()}
        path = tmp_path / f"user{number}-0.keybundle"
        authority.issue(f"user{number}-0", path, passphrase="x", scrypt_log2_n=14)

    assert in_threads(24, work) == []
    assert len(authority.users()) == 72
    assert sum(user.status == "active" for user in authority.users()) == 24
    assert len(authority.events()) == 1 + 72 + 48


@pytest.mark.parametrize("where", ["file", "memory"])
def test_a_thread_that_does_not_let_go_is_called_busy(
    create: Any, file: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(ledger_module, "_BUSY_SECONDS", 0)
    authority = create("sqlite://" if where == "memory" else f"sqlite:///{file}")

    def late(_: int) -> None:
        authority.enroll(["ann"])

    with authority.ledger.writing():
        [error] = in_threads(1, late)
    assert isinstance(error, LedgerError)
    assert "is busy: another process or thread is changing it. Try again" in str(error)
    assert in_threads(1, late) == []


@pytest.mark.parametrize("where", ["file", "memory"])
def test_an_authority_goes_on_after_the_thread_that_made_it(
    create: Any, file: Path, where: str
) -> None:
    made: list[Authority] = []

    def make(_: int) -> None:
        made.append(create("sqlite://" if where == "memory" else f"sqlite:///{file}"))

    assert in_threads(1, make) == []
    assert [user.subject for user in made[0].enroll(["ann"])] == ["ann"]
    assert made[0].users()[0].subject == "ann"
