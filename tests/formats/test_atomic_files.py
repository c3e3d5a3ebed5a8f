"""Bounded reading; new files written whole or not at all."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from keras_encryip.errors import ArgumentError, FormatError
from keras_encryip.formats.atomic_files import (
    make_new_file,
    make_new_folder,
    read_bounded,
    replace_file,
    sync_folder,
    sync_tree,
    write_new_file,
)

OLD = b"what was there"


@pytest.fixture(autouse=True)
def usual_umask() -> None:
    """Modes below are exact under the usual umask."""
    previous = os.umask(0o022)
    yield
    os.umask(previous)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- reading -----------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 10])
def test_files_up_to_the_bound_are_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    assert read_bounded(path, what="thing", max_bytes=10) == bytes(size)
    assert read_bounded(str(path), what="thing", max_bytes=10) == bytes(size)


def test_a_larger_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(11))
    with pytest.raises(FormatError, match=r"The thing '.*file' is too large: more than 10 bytes"):
        read_bounded(path, what="thing", max_bytes=10)


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(FormatError, match=r"'/dev/zero': It is a pipe or device"):
        read_bounded("/dev/zero", what="thing", max_bytes=10)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing", "No such file or directory"), ("folder", "Is a directory")],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(FormatError, match=rf"Cannot read the thing '.*{name}': {reason}\."):
        read_bounded(tmp_path / name, what="thing", max_bytes=10)


# --- writing -----------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400], ids=oct)
def test_a_new_file_has_its_bytes_and_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "new"
    write_new_file(path, b"bytes\0\xff", mode=mode)
    assert path.read_bytes() == b"bytes\0\xff"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert names(tmp_path) == ["new"]
    assert path.stat().st_nlink == 1


def test_a_secret_is_never_readable_by_others_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary file has the final mode from the start."""
    modes = []
    monkeypatch.setattr(os, "fsync", lambda fd: modes.append(stat.S_IMODE(os.fstat(fd).st_mode)))
    write_new_file(tmp_path / "new", b"secret", mode=0o600)
    assert modes[0] == 0o600


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "alice.keybundle"
    path.write_bytes(OLD)
    before = path.stat()
    message = r"Cannot write '.*alice.keybundle': it exists already, and is never overwritten"
    with pytest.raises(ArgumentError, match=message):
        write_new_file(path, b"new", mode=0o600)
    assert path.read_bytes() == OLD
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert names(tmp_path) == ["alice.keybundle"]


@pytest.mark.parametrize("kind", ["folder", "dangling link", "link to a file"])
def test_what_else_has_the_name_is_kept(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "name", tmp_path / "other"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(other)
        if kind == "link to a file":
            other.write_bytes(OLD)
    before = names(tmp_path)
    with pytest.raises(ArgumentError, match="it exists already, and is never overwritten"):
        write_new_file(path, b"new")
    assert names(tmp_path) == before
    assert not other.exists() or other.read_bytes() == OLD


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"Cannot write '.*/nowhere/new': No such file or dir"):
        write_new_file(tmp_path / "nowhere" / "new", b"bytes")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("call", "code", "message"),
    [
        ("open", errno.EACCES, "Permission denied"),
        ("open", errno.EROFS, "Read-only file system"),
        ("fsync", errno.ENOSPC, "No space left on device"),
        ("fsync", errno.EIO, "Input/output error"),
    ],
)
def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, message: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ArgumentError, match=rf"Cannot write '.*new': {message}\.") as caught:
        write_new_file(tmp_path / "new", b"bytes")
    monkeypatch.undo()
    assert caught.value.__context__ is None
    assert names(tmp_path) == []


def test_an_interruption_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_new_file(tmp_path / "new", b"bytes")
    assert names(tmp_path) == []


def test_two_writers_do_not_overwrite_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that appears between the check and the end is kept, for the link is atomic."""
    path, link = tmp_path / "new", os.link

    def late(source: Path, target: Path) -> None:
        path.write_bytes(OLD)
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(ArgumentError, match="it exists already, and is never overwritten"):
        write_new_file(path, b"new")
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["new"]


REFUSALS = [
    errno.EPERM,
    errno.ENOTSUP,
    errno.EXDEV,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EACCES,
    errno.EMLINK,
    errno.EINVAL,
]


def refuse_links(patch: pytest.MonkeyPatch, code: int = errno.EPERM) -> None:
    """As file systems without hard links do it."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    patch.setattr(os, "link", refuse)


@pytest.mark.parametrize("code", REFUSALS, ids=errno.errorcode.get)
def test_a_file_system_without_hard_links_takes_new_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refuse_links(monkeypatch, code)
    path = tmp_path / "new"
    write_new_file(path, b"bytes", mode=0o600)
    assert path.read_bytes() == b"bytes"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(tmp_path) == ["new"]
    with pytest.raises(ArgumentError, match="it exists already, and is never overwritten"):
        write_new_file(path, b"other")
    assert path.read_bytes() == b"bytes"


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_without_hard_links_what_appears_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "new"

    def fill(draft: Path) -> None:
        draft.write_bytes(b"new")
        if kind == "file":
            path.write_bytes(OLD)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(tmp_path / "target")

    refuse_links(monkeypatch)
    with pytest.raises(
        ArgumentError, match="it exists already, and is never overwritten"
    ) as caught:
        make_new_file(path, fill)
    assert caught.value.__context__ is None
    assert names(tmp_path) == ["new"]
    assert kind != "file" or path.read_bytes() == OLD
    assert kind != "folder" or path.is_dir()
    assert kind != "dangling link" or path.is_symlink()


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), ArgumentError, "'.*new': No space left"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_without_hard_links_a_failure_leaves_nothing_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
    message: str,
) -> None:
    def fail(draft: Path, path: Path) -> None:
        assert draft.read_bytes() == b"bytes", "whole before it has its name"
        assert path.read_bytes() == b"", "never half of it"
        raise error

    refuse_links(monkeypatch)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(raised, match=message):
        write_new_file(tmp_path / "new", b"bytes")
    assert names(tmp_path) == []


def test_a_taken_name_is_refused_before_work_is_done(tmp_path: Path) -> None:
    path = tmp_path / "new"
    path.write_bytes(OLD)
    with pytest.raises(ArgumentError, match="it exists already, and is never overwritten"):
        make_new_file(path, lambda _: pytest.fail("filled"))


@pytest.mark.parametrize("name", ["a\0b", "a\0b/c", "\ud800", "/", "."])
@pytest.mark.parametrize("write", [write_new_file, replace_file])
def test_what_is_no_files_name_is_refused(write: Callable[..., None], name: str) -> None:
    with pytest.raises(ArgumentError, match=r"Cannot write .*: (no file can have this|it exists)"):
        write(name, b"bytes")


# --- replacing -----------------------------------------------------------------


def test_a_replaced_file_has_the_new_bytes_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(OLD)
    replace_file(path, b"new", what="transcript")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    replace_file(tmp_path / "first", b"", what="transcript", mode=0o644)
    assert stat.S_IMODE((tmp_path / "first").stat().st_mode) == 0o644
    assert names(tmp_path) == ["first", "kept"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_failure_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "kept"
    path.write_bytes(OLD)
    monkeypatch.setattr(os, call, fail)
    message = r"^Cannot write the transcript '.*kept': No space left on device\.$"
    with pytest.raises(ArgumentError, match=message) as caught:
        replace_file(path, b"new", what="transcript")
    monkeypatch.undo()
    assert caught.value.__context__ is None
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["kept"]


# --- folders -------------------------------------------------------------------


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "above" / "new"

    def fill(draft: Path) -> None:
        assert draft.parent == path.parent
        assert not path.exists()
        draft.chmod(0o700)
        (draft / "inner").mkdir()
        (draft / "inner" / "file").write_bytes(b"bytes")

    make_new_folder(path, fill)
    assert (path / "inner" / "file").read_bytes() == b"bytes"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert names(path.parent) == ["new"]


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (KeyError("own"), KeyError, "own"),
        (FormatError("own"), FormatError, "^own$"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (OSError(errno.ENOSPC, "No space left"), ArgumentError, "'.*/new': No space left"),
        (FileExistsError(errno.EEXIST, "File exists"), ArgumentError, "'.*/new': File exists"),
    ],
)
def test_what_fails_in_a_folder_leaves_nothing_behind(
    tmp_path: Path, error: BaseException, raised: type[BaseException], message: str
) -> None:
    def fill(draft: Path) -> None:
        (draft / "file").write_bytes(b"bytes")
        raise error

    with pytest.raises(raised, match=message):
        make_new_folder(tmp_path / "new", fill)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_existing_folder_is_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "taken"
    path.mkdir() if kind == "folder" else path.write_bytes(OLD)
    with pytest.raises(ArgumentError, match="taken': it exists already, and is never overwritten"):
        make_new_folder(path, lambda _: pytest.fail("filled"))
    assert names(tmp_path) == ["taken"]


# --- syncing -------------------------------------------------------------------


def test_syncing_a_folder_that_is_gone_is_no_error(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    assert sync_folder(tmp_path / "gone") is None


def test_a_tree_is_synced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and folder once, the outermost last."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("top", "a/one", "a/b/two"):
        (tmp_path / name).write_text(name)
    synced = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    sync_tree(tmp_path)
    assert sorted(synced) == sorted([tmp_path, *tmp_path.rglob("*")])
    assert synced[-1] == tmp_path
