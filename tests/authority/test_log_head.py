"""An owner who notes number and digest of the newest event sees that the log was cut later."""

import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from keras_encryip.authority.authority import Authority
from keras_encryip.errors import ArgumentError, LedgerError
from tests.authority.conftest import PASSPHRASE


def opened(file: Path, expect_log: str | None) -> None:
    Authority.open(file, PASSPHRASE, expect_log=expect_log).close()


def test_the_head_is_number_and_digest(authority: Authority, issue: Any, file: Path) -> None:
    first = authority.log_head
    issue(authority, "alice")
    number, digest = authority.log_head.split(":")
    assert (first.split(":")[0], number, len(digest)) == ("1", "3", 64)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        [(kept,)] = connection.execute("SELECT digest FROM events WHERE number = 3")
    assert kept.hex() == digest
    for head in (first, authority.log_head, None):
        opened(file, head)


def test_a_log_that_was_cut_is_noticed(
    authority: Authority, issue: Any, file: Path, tmp_path: Path
) -> None:
    """Cut cleanly, or an old copy: the file alone looks whole."""
    issue(authority, "alice")
    shutil.copy(file, tmp_path / "old")
    authority.revoke("alice")
    head = authority.log_head
    opened(tmp_path / "old", None)
    with pytest.raises(LedgerError, match="ends before event 4: it was cut, or the file is an old"):
        opened(tmp_path / "old", head)
    with Authority.open(tmp_path / "old", PASSPHRASE) as old:
        old.enroll(["bob"])
    with pytest.raises(LedgerError, match="has another event 4 than was expected"):
        opened(tmp_path / "old", head)
    opened(file, head)


@pytest.mark.parametrize("text", ["", "3", "0:" + "a" * 64, "1:abc", "1:" + "G" * 64, "x"])
def test_what_is_no_head(authority: Authority, file: Path, text: str) -> None:
    with pytest.raises(ArgumentError, match="`expect_log` must be the number of an event and its"):
        opened(file, text)


def test_roles_are_in_the_log_and_in_the_bundle(
    authority: Authority, issue: Any, tmp_path: Path
) -> None:
    assert issue(authority, "host", roles=("run",)).roles == ["run"]
    assert issue(authority, "both", roles=("run", "read")).roles == ["read", "run"]
    roles = [e.details["roles"] for e in authority.events() if e.kind == "key issued"]
    assert roles == ['["run"]', '["read","run"]']
    assert (tmp_path / "host.keybundle").stat().st_size < 2000
    for wrong in ((), ("write",), "read"):
        with pytest.raises(ArgumentError, match="`roles` must hold 'read', 'run' or both"):
            issue(authority, "eve", roles=wrong)


@pytest.mark.parametrize("slots", [255, 260, 4104, True, 1024.0])
def test_numbers_of_slots(create: Any, slots: Any) -> None:
    with pytest.raises(ArgumentError, match="`slots` must be a multiple of 8 in 256"):
        create(slots=slots)


def test_other_numbers_of_slots(create: Any, issue: Any, protect: Any, file: Path) -> None:
    authority = create(slots=256)
    issue(authority, "alice")
    _, assignment = protect(authority)
    assert assignment.slots.max() < 256 == authority.model_store.num_slots
    authority.close()
    opened(file, None)
