"""Nobody is in the ledger for a bundle that cannot be written; a failed write can be repeated."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from keras_encryip.authority import authority as authority_module
from keras_encryip.authority.authority import Authority
from keras_encryip.errors import ArgumentError, EncryipError, LedgerError
from keras_encryip.formats.key_bundle import KeyBundle

PASSPHRASE = "owner's passphrase"
ISSUE = "from keras_encryip.cli import main; main()"

pytestmark = pytest.mark.usefixtures("cheap_scrypt")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


PATHS = {
    "missing-folder": ("nowhere/b", "No such file or directory"),
    "file-as-folder": ("file/b", "Not a directory"),
    "file": ("file", "exists already, and is never overwritten"),
    "folder": ("folder", "exists already, and is never overwritten"),
    "dangling-link": ("link", "exists already, and is never overwritten"),
    "too-long": ("x" * 300, "File name too long"),
    "zero-byte": ("a\0b", "no file can have this name"),
    "zero-byte-in-folder": ("a\0b/c", "no file can have this name"),
    "no-text": ("\ud800", "no file can have this name"),
    "proc": ("/proc/b", "No such file or directory"),
    "root": ("/", "exists already|no file can have this name"),
    "nothing": ("", "exists already|no file can have this name"),
}


@pytest.mark.parametrize(("path", "message"), PATHS.values(), ids=PATHS)
def test_a_path_that_cannot_be_written_is_refused_before_a_key_is_drawn(
    authority: Authority,
    issue: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    before, events = names(tmp_path), authority.events()
    with monkeypatch.context() as patch:
        patch.setattr(authority_module, "random_scalar", lambda _: pytest.fail("drawn"))
        with pytest.raises(ArgumentError, match=f"Cannot write .*({message})"):
            issue(authority, "alice", path=path)
    assert (authority.users(), authority.events()) == ([], events)
    assert names(tmp_path) == before
    assert issue(authority, "alice").status == "active"
    assert [user.subject for user in authority.users()] == ["alice"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_takes_no_files_is_refused_before_a_key_is_drawn(
    authority: Authority, issue: Any, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(authority_module, "random_scalar", lambda _: pytest.fail("drawn"))
        patch.setattr(os, "open", fail)
        with pytest.raises(ArgumentError, match=f"Cannot write .*: {os.strerror(code)}"):
            issue(authority, "alice")
    assert authority.users() == []
    assert issue(authority, "alice").status == "active"


FAILURES: dict[str, tuple[str, BaseException]] = {
    "full": ("fsync", OSError(errno.ENOSPC, "No space left on device")),
    "broken": ("fsync", OSError(errno.EIO, "Input/output error")),
    "interrupted": ("fsync", KeyboardInterrupt()),
    "interrupted-late": ("link", KeyboardInterrupt()),
    "taken-meanwhile": ("link", FileExistsError(errno.EEXIST, "File exists")),
}


@pytest.mark.parametrize(("call", "error"), FAILURES.values(), ids=FAILURES)
def test_after_a_failed_write_the_same_key_goes_to_another_path(
    authority: Authority,
    issue: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    error: BaseException,
) -> None:
    def fail(*_: object) -> None:
        raise error

    before = names(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises((EncryipError, KeyboardInterrupt)):
            issue(authority, "alice")
    assert names(tmp_path) == before
    [pending] = authority.users()
    assert pending.status == "pending"
    again = issue(authority, "alice", path=tmp_path / "other.keybundle")
    assert (again.status, again.key_id) == ("active", pending.key_id)
    assert authority.users() == [again]
    assert KeyBundle.read(tmp_path / "other.keybundle").header.key_id == pending.key_id


def test_a_bundle_that_the_ledger_could_not_note_is_issued_again(
    authority: Authority, issue: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise LedgerError("The authority is busy.")

    with monkeypatch.context() as patch:
        patch.setattr(authority.user_store, "activate", busy)
        with pytest.raises(LedgerError, match="busy"):
            issue(authority, "alice")
    [pending] = authority.users()
    again = issue(authority, "alice", path=tmp_path / "other.keybundle")
    assert authority.users() == [again]
    assert again.key_id == pending.key_id
    for name in ("alice", "other"):
        assert KeyBundle.read(tmp_path / f"{name}.keybundle").header.key_id == again.key_id


@pytest.mark.parametrize("out", ["nowhere/b", "taken"])
def test_the_command_leaves_nobody_pending(
    authority: Authority, file: Path, tmp_path: Path, out: str
) -> None:
    (tmp_path / "taken").write_bytes(b"")
    environment = {
        **os.environ,
        "ENCRYIP_AUTHORITY_PASSPHRASE": PASSPHRASE,
        "ENCRYIP_BUNDLE_PASSPHRASE": "x",
    }
    ended = subprocess.run(
        [sys.executable, "-c", ISSUE, "key", "issue", file, "alice", "--out", tmp_path / out],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "Cannot write" in ended.stderr
    assert authority.users() == []
