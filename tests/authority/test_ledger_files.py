"""The authority's file after a kill, a failed open, or a failed write: whole, and let go of."""

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import keras_encryip
from keras_encryip.authority.authority import Authority
from keras_encryip.authority.event_log import append_event
from keras_encryip.authority.ledger import Ledger
from keras_encryip.errors import LedgerError, PassphraseError

PASSPHRASE = "owner's passphrase"
MODES = ["delete", "truncate", "persist", "wal"]

pytestmark = pytest.mark.usefixtures("cheap_scrypt")

KILLED = f"""
import os, signal, sys
import sqlalchemy as sa
from keras_encryip.authority.authority import Authority

@sa.event.listens_for(sa.Engine, "connect")
def on_connect(connection, record):
    connection.execute("PRAGMA journal_mode = " + sys.argv[2])
    connection.execute("PRAGMA cache_size = 1")  # changes go to the disk before the commit

authority = Authority.open(sys.argv[1], {PASSPHRASE!r})
authority.enroll(f"user{{i}}" for i in range(300))
with authority.ledger.writing() as connection:
    connection.exec_driver_sql("UPDATE events SET details = zeroblob(100000)")
    connection.exec_driver_sql("UPDATE users SET subject = 'x' || subject")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_in_the_middle(file: Path, mode: str) -> None:
    """A process commits 300 users, and is killed in its next transaction."""
    package = str(Path(keras_encryip.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(file), mode],
        env={**os.environ, "PYTHONPATH": package},
        capture_output=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def quick_check(file: Path) -> str:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return str(connection.execute("PRAGMA quick_check").fetchone()[0])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- killed ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_what_was_committed_before_a_kill_is_there(
    authority: Authority, file: Path, mode: str
) -> None:
    authority.close()
    kill_in_the_middle(file, mode)
    left = {"delete": "-journal", "truncate": "-journal", "persist": "-journal", "wal": "-wal"}
    assert file.with_name(file.name + left[mode]).stat().st_size > 0
    with Authority.open(file, PASSPHRASE) as again:
        assert [user.subject for user in again.users()] == [f"user{i}" for i in range(300)]
        again.enroll(["last"])
    assert names(file.parent) == [file.name]
    with Authority.open(file, PASSPHRASE) as again:
        assert again.users()[-1].subject == "last"
    assert quick_check(file) == "ok"


def test_a_file_whose_log_another_process_keeps_open_is_read(
    authority: Authority, file: Path
) -> None:
    """What is committed is still in the log, and in no page of the file."""
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("PRAGMA journal_mode = wal")
        other.execute("PRAGMA wal_autocheckpoint = 0")
        authority.enroll(f"user{i}" for i in range(300))
        other.execute("SELECT count(*) FROM users").fetchone()
        with Authority.open(file, PASSPHRASE) as again:
            assert len(again.users()) == 300
            again.enroll(["last"])
        assert authority.users()[-1].subject == "last"


def test_a_copy_without_its_log_has_what_was_in_the_file(authority: Authority, file: Path) -> None:
    authority.close()
    kill_in_the_middle(file, "wal")
    copy = file.with_name("copy.authority")
    shutil.copy(file, copy)
    with Authority.open(copy, PASSPHRASE) as again:
        assert again.users() == []
        again.enroll(["last"])
    with Authority.open(copy, PASSPHRASE) as again:
        assert [user.subject for user in again.users()] == ["last"]


@pytest.mark.parametrize("pages", [1, 2, -1])
def test_a_copy_without_its_log_and_pages_says_what_may_be_missing(
    authority: Authority, file: Path, pages: int
) -> None:
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("PRAGMA journal_mode = wal")
    authority.close()
    data = file.read_bytes()
    file.write_bytes(data[: 4096 * (pages % (len(data) // 4096))])
    with pytest.raises(LedgerError, match=r"Restore a full copy, with the file .* '-wal' or '-jou"):
        Authority.open(file, PASSPHRASE)


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_no_authority_is_made_beside_what_another_left(
    authority: Authority, create: Any, file: Path, mode: str
) -> None:
    """SQLite would write the old pages into the new file."""
    authority.close()
    kill_in_the_middle(file, mode)
    moved = file.with_name("moved")
    file.rename(moved)
    before = names(file.parent)
    with pytest.raises(LedgerError, match=r"acme.authority-(journal|wal)' was left there by an"):
        create()
    assert names(file.parent) == before
    moved.rename(file)
    with Authority.open(file, PASSPHRASE) as again:
        assert len(again.users()) == 300


# --- failed opens --------------------------------------------------------------------


def descriptors(folder: Path) -> list[str]:
    """What this process holds open in a folder, but for the listing itself."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry))
    return [name for name in found if name.startswith(str(folder))]


def edit(file: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement)


def damage(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:5000] + bytes(20000) + data[25000:])


def in_wal_mode(file: Path) -> None:
    edit(file, "PRAGMA journal_mode = wal")


FAILURES: dict[str, Any] = {
    "passphrase": lambda file: None,
    "passphrase-wal": in_wal_mode,
    "text": lambda file: file.write_bytes(b"precious"),
    "empty": lambda file: file.write_bytes(b""),
    "zeros": lambda file: file.write_bytes(bytes(4096)),
    "damaged": damage,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-4096]),
    "version": lambda file: edit(file, "UPDATE authority SET ledger_version = 9"),
    "no-rows": lambda file: edit(file, "DELETE FROM authority"),
    "table": lambda file: edit(file, "DROP TABLE exports"),
    "log": lambda file: edit(file, "UPDATE events SET kind = 'x'"),
    "name": lambda file: edit(file, "UPDATE authority SET name = 'x'"),
    "missing": lambda file: file.unlink(),
    "folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("spoil", FAILURES.values(), ids=FAILURES)
def test_a_failed_open_lets_go_of_the_file(authority: Authority, file: Path, spoil: Any) -> None:
    authority.close()
    spoil(file)
    before = names(file.parent)
    passphrase = "wrong" if spoil in (FAILURES["passphrase"], in_wal_mode) else PASSPHRASE
    with pytest.raises((LedgerError, PassphraseError)) as caught:
        Authority.open(file, passphrase)
    assert descriptors(file.parent) == [], "while its traceback is still held"
    assert names(file.parent) == before
    assert caught.value.__context__ is None
    if file.exists():
        moved = file.rename(file.with_name("moved"))
        shutil.rmtree(moved) if moved.is_dir() else moved.unlink()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET kind = 'x' WHERE number = 3",
        "UPDATE users SET subject = 'x' || subject",
        "UPDATE users SET roles = '5'",
        "DELETE FROM users WHERE user_id > 12000",
    ],
)
def test_a_file_that_fails_in_the_middle_of_the_check_is_let_go_of(
    authority: Authority, file: Path, statement: str
) -> None:
    """With rows that were not read yet."""
    authority.enroll(f"user{i}" for i in range(15_000))
    authority.close()
    edit(file, statement)
    with pytest.raises(LedgerError, match=r"event log was changed|do not agree") as caught:
        Authority.open(file, PASSPHRASE)
    assert descriptors(file.parent) == [], "while its traceback is still held"
    assert caught.value.__context__ is None


def test_a_log_that_cannot_be_read_is_let_go_of(authority: Authority, file: Path) -> None:
    for i in range(5):
        authority.enroll([f"user{i}"])
        with authority.ledger.writing() as connection:
            append_event(connection, authority.keys, "key revoked", key_id=5, at={})
            append_event(connection, authority.keys, "keys enrolled", count="many")
    authority.close()
    with pytest.raises(LedgerError, match="cannot read") as caught:
        Authority.open(file, PASSPHRASE)
    assert descriptors(file.parent) == []
    assert caught.value.__context__ is None


def test_an_earlier_log_head_that_is_not_there_lets_go_of_the_file(
    authority: Authority, file: Path
) -> None:
    authority.close()
    with pytest.raises(LedgerError, match="ends before event 9"):
        Authority.open(file, PASSPHRASE, expect_log=f"9:{'0' * 64}")
    assert descriptors(file.parent) == []


def test_an_open_authority_holds_its_file(authority: Authority, file: Path) -> None:
    """That `descriptors` sees it is what makes the tests above tests."""
    assert authority.users() == []
    assert descriptors(file.parent) == [str(file)]
    authority.close()
    assert descriptors(file.parent) == []


def test_a_failed_create_lets_go_of_its_draft(file: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        Ledger.create(file, lambda connection: 1 / 0)
    assert descriptors(file.parent) == []
    assert names(file.parent) == []
    assert caught.value is not None


def test_a_file_that_went_after_closing_is_not_made_anew(authority: Authority, file: Path) -> None:
    authority.close()
    file.unlink()
    with pytest.raises(LedgerError, match="There is no authority at"):
        authority.users()
    assert names(file.parent) == []


@pytest.mark.parametrize("name", ["a/acme.authority", "x" * 300])
def test_a_path_that_cannot_be_looked_at_is_a_ledger_error(
    file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A folder that is closed to us, as `Path.is_file` says it; a name that is too long."""

    def closed(path: str, *arguments: Any, **keywords: Any) -> os.stat_result:
        if "a/acme" in str(path):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *arguments, **keywords)

    stat = os.stat
    monkeypatch.setattr(os, "stat", closed)
    with pytest.raises(LedgerError, match=r"(Cannot read|There is no authority at) '"):
        Authority.open(file.parent / name, PASSPHRASE)
    assert names(file.parent) == []


# --- failed writes --------------------------------------------------------------------


@contextlib.contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """As a quota does it: writing further fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def full_disk(authority: Authority) -> Iterator[None]:
    """As SQLite reports it."""
    with authority.ledger.reading() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    yield
    with authority.ledger.reading() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000000")


def many() -> list[str]:
    return [f"user{i}" for i in range(2000)]


@pytest.mark.parametrize("mode", ["delete", "wal"])
@pytest.mark.parametrize("kind", ["full", "quota"])
def test_a_write_without_space_changes_nothing_and_says_so(
    authority: Authority, file: Path, kind: str, mode: str
) -> None:
    edit(file, f"PRAGMA journal_mode = {mode}")
    authority.enroll(["ann"])
    before = authority.users()
    with (
        full_disk(authority) if kind == "full" else no_file_longer_than(100_000),
        pytest.raises(
            LedgerError, match=r"Nothing was changed: |What was in it before is kept: "
        ) as caught,
    ):
        authority.enroll(many())
    assert "space" in str(caught.value)
    assert "Restore" not in str(caught.value)
    assert caught.value.__context__ is None
    assert authority.users() == before
    assert len(authority.enroll(many())) == 2000
    authority.close()
    assert quick_check(file) == "ok"
    with Authority.open(file, PASSPHRASE) as again:
        assert len(again.users()) == 2001


def test_a_create_without_space_names_the_file_and_leaves_nothing(create: Any, file: Path) -> None:
    with (
        no_file_longer_than(20_000),
        pytest.raises(
            LedgerError, match=r"/acme\.authority' could not be read or written: "
        ) as caught,
    ):
        create()
    assert ".tmp" not in str(caught.value)
    assert names(file.parent) == []
    create().close()


def test_a_damaged_file_is_still_called_so_when_it_is_written(
    authority: Authority, file: Path
) -> None:
    authority.enroll(many())
    data = file.read_bytes()
    file.write_bytes(data[:4096] + bytes(len(data) - 4096))
    with contextlib.closing(sqlite3.connect(file)) as other, other:
        other.execute("PRAGMA user_version = 1")  # so that nobody reads on from their cache
    with pytest.raises(LedgerError, match=r"is damaged or only partly copied\. Restore a"):
        authority.enroll(["ann"])


def test_a_file_that_was_moved_while_open_is_named(authority: Authority, file: Path) -> None:
    authority.enroll(["ann"])
    moved = file.rename(file.with_name("moved"))
    with pytest.raises(LedgerError, match="was moved, replaced or removed while it was open"):
        authority.enroll(["ben"])
    moved.rename(file)
    assert [user.subject for user in authority.enroll(["ben"])] == ["ben"]
    authority.close()
    with Authority.open(file, PASSPHRASE) as again:
        assert [user.subject for user in again.users()] == ["ann", "ben"]


# Statements: BEGIN and SELECT; then BEGIN, INSERT, SELECT, INSERT.
INTERRUPTS = [
    *((f"{when}_cursor_execute", step) for when in ("before", "after") for step in range(1, 7)),
    ("commit", 2),
]


@pytest.mark.parametrize(("event", "step"), INTERRUPTS)
@pytest.mark.parametrize("where", ["file", "memory"])
def test_an_interrupted_write_leaves_nothing_of_itself(
    create: Any, file: Path, where: str, step: int, event: str
) -> None:
    authority = create("sqlite://" if where == "memory" else f"sqlite:///{file}")
    authority.enroll(["ann"])
    before = authority.users(), authority.events()
    left = step

    def interrupt(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    engine = authority.ledger._engine
    sa.event.listen(engine, event, interrupt)
    with pytest.raises(KeyboardInterrupt):
        authority.enroll(["ben"])
    sa.event.remove(engine, event, interrupt)
    assert (authority.users(), authority.events()) == before
    authority.enroll(["ben"])
    after = authority.users()
    assert [user.subject for user in after] == ["ann", "ben"]
    if where == "file":
        authority.close()
        assert quick_check(file) == "ok"
        with Authority.open(file, PASSPHRASE) as again:
            assert again.users() == after
