"""A process killed at any moment leaves a ledger that opens, and no key that it does not know."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import keras_encryip
from keras_encryip.authority.authority import Authority
from keras_encryip.errors import LedgerError
from keras_encryip.formats.key_bundle import KeyBundle

PASSPHRASE = "owner's passphrase"
KILLS = 30


class Victims:
    """Starts children of `victim.py`, one at a time."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def start(self, task: str, **order: Any) -> int:
        """Returns the child's process id."""
        self.process.stdin.write(json.dumps({"task": task, **order}) + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        # The child may have spoken before its parent.
        self.early: list[str] = []
        while not (line := self.read()).isdigit():
            self.early.append(line)
        return int(line)

    def read(self) -> str:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        assert line, "the victims' process has ended"
        assert not line.startswith("failed"), line
        return line.strip()

    def last_words(self) -> list[str]:
        """All that the child said, once it is dead."""
        lines = self.early
        while (line := self.read()) != "dead":
            lines.append(line)
        return lines

    def run(self, task: str, **order: Any) -> list[str]:
        self.start(task, **order)
        return self.last_words()


pytestmark = pytest.mark.usefixtures("cheap_scrypt")


@pytest.fixture(scope="module")
def victims() -> Iterator[Victims]:
    script = Path(__file__).with_name("victim.py")
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    package = str(Path(keras_encryip.__file__).parents[1])
    environment = {**os.environ, **threads, "PYTHONPATH": package}
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        watchdog = threading.Timer(300, process.kill)  # a test fails rather than hangs
        watchdog.start()
        yield Victims(process)
        watchdog.cancel()
        process.communicate()
    assert process.returncode == 0


@pytest.fixture
def authority_file(file: Path, create: Callable[..., Authority], issue: Any) -> Path:
    """Threshold 60; alice and bob are active."""
    with create(threshold=60) as authority:
        for name in ("alice", "bob"):
            issue(authority, name)
    return file


def check(file: Path, folder: Path) -> Authority:
    """The ledger opens, and knows every key in `folder`; the caller closes it."""
    authority = Authority.open(f"sqlite:///{file}", PASSPHRASE)  # the tables agree with the log
    users = {user.subject: user for user in authority.users()}
    written = {path.stem for path in folder.glob("*.keybundle") if not path.name.startswith(".")}
    for name in written:
        bundle = KeyBundle.read(folder / f"{name}.keybundle")  # whole, and signed
        assert bundle.issuer == authority.issuer
        assert bundle.header.key_id == users[name].key_id
    for name, user in users.items():
        assert user.status in ("pending", "active", "revoked")
        assert user.status == "pending" or name in written
    return authority


def complete(authority: Authority, folder: Path, subject: str) -> None:
    """A pending user gets a bundle, with the key that the ledger knew already."""
    [before] = [user for user in authority.users() if user.subject == subject]
    path = folder / f"{subject}.keybundle"
    if path.exists():  # the process was killed right after writing it
        path = folder / f"{subject} again.bundle"
    after = authority.issue(subject, path, passphrase="new", scrypt_log2_n=14)
    assert (after.status, after.key_id) == ("active", before.key_id)
    assert KeyBundle.read(path).unlock("new").key_id == before.key_id


def test_the_owners_side_does_without_tensorflow(victims: Victims) -> None:
    assert victims.run("import") == [""]


def test_killed_at_random_moments(
    victims: Victims, authority_file: Path, record_property: Any
) -> None:
    record_property("cases", KILLS)
    folder = authority_file.parent
    chance = random.Random(0)
    names: set[str] = set()
    interrupted = 0
    for kill in range(KILLS):
        pid = victims.start(
            "loop", url=f"sqlite:///{authority_file}", path=str(folder), first=100 * kill
        )
        while "open" not in victims.early:
            victims.early.append(victims.read())
        time.sleep(chance.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        words = victims.last_words()
        authority = check(authority_file, folder)
        users = {user.subject: user.status for user in authority.users()}
        # What the process reported done, is done.
        for line in words[1:]:
            verb, name = line.split()
            assert users[name] == "revoked" if verb == "revoked" else users[name] != "pending"
        assert names <= set(users), "a user that was there has gone"
        names = set(users)
        pending = [name for name, status in users.items() if status == "pending"]
        assert len(pending) <= 1
        for name in pending:
            complete(authority, folder, name)
            interrupted += 1
        authority.close()
    assert len(names) > 2, "no child lived long enough to issue a key"
    check(authority_file, folder).close()


@pytest.mark.parametrize("task", ["issue", "revoke"])
def test_killed_at_every_step(
    victims: Victims, authority_file: Path, task: str, record_property: Any
) -> None:
    """Between any two changes of the disk, the ledger is as before, or as after."""
    original, folder = authority_file.read_bytes(), authority_file.parent
    subject = {"issue": "carol", "revoke": "alice"}[task]
    path = folder / "carol.keybundle"
    seen: list[str] = []
    tried: set[tuple[str, bool]] = set()
    for step in range(1, 200):
        for name in folder.glob("*carol*"):
            name.unlink()
        authority_file.with_name(authority_file.name + "-journal").unlink(missing_ok=True)
        authority_file.write_bytes(original)
        order = {"url": f"sqlite:///{authority_file}", "path": str(path), "die_at": step}
        words = victims.run(task, **order)
        authority = check(authority_file, folder)
        status = {user.subject: user.status for user in authority.users()}.get(subject, "unknown")
        seen.append(status)
        assert path.exists() or status != "active" or task == "revoke"
        if (status, path.exists()) not in tried and status == "pending":
            tried.add((status, path.exists()))
            complete(authority, folder, subject)
        authority.close()
        if words != ["open"]:
            assert words == ["open", f"done {step - 1}"]
            break
    record_property("cases", len(seen) - 1)
    order_of = {
        "issue": ["unknown", "pending", "active"],
        "revoke": ["active", "revoked"],
    }[task]
    assert [status for i, status in enumerate(seen) if seen[i - 1 : i] != [status]] == order_of
    assert len(seen) >= {"issue": 18, "revoke": 5}[task]
    assert len(tried) == (2 if task == "issue" else 0), "pending before and after the bundle"


def test_killed_while_creating(victims: Victims, tmp_path: Path, record_property: Any) -> None:
    """The file is there and whole, or is not there."""
    there: list[bool] = []
    for step in range(1, 200):
        folder = tmp_path / str(step)
        folder.mkdir()
        file = folder / "acme.authority"
        words = victims.run("create", url=f"sqlite:///{file}", die_at=step)
        there.append(file.exists())
        if there[-1]:
            check(file, folder).close()
        else:
            with pytest.raises(LedgerError, match="There is no authority at"):
                check(file, folder)
        shutil.rmtree(folder)
        if words:
            assert words == [f"done {step - 1}"]
            break
    record_property("cases", len(there) - 1)
    assert there == sorted(there), "it came and went"
    assert there[0] is False
    assert there[-1] is True
