"""A host's key: who gets it, and where its file may be."""

import os
import shutil
import stat
import subprocess
import sys
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from keras_encryip.client import Decoder, unlock_key
from keras_encryip.client.unlock_key import write_key_file
from keras_encryip.errors import (
    ArgumentError,
    ExpiredKeyError,
    ForeignKeyError,
    FormatError,
    KeyRefusedError,
    PassphraseError,
    RevokedKeyError,
    SignatureError,
    WrongModelError,
)
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.formats.lock import FILE_NAME, Lock
from keras_encryip.formats.version_folder import ASSETS

PASSPHRASE = "correct horse"


def lock_folder(world: Any, folder: Path, model: str = "digits") -> bytes:
    """A version folder with a lock, and its key."""
    shutil.copytree(world.model, folder)
    authority = world.authority
    lock, key = Lock.make(
        world.codebook,
        model,
        authority.run,
        authority.signing_key,
        key_file="/run/secrets/encryip/digits.key",
        revoked=[world.revoked.z],
    )
    (folder / ASSETS / FILE_NAME).write_bytes(lock.to_bytes())
    return key


@pytest.fixture
def locked(world: Any, tmp_path: Path) -> tuple[Path, bytes]:
    return tmp_path / "1", lock_folder(world, tmp_path / "1")


def bundle_of(world: Any, *roles: str, **changes: Any) -> KeyBundle:
    authority = world.authority
    return KeyBundle.from_bytes(authority.bundle(authority.issue(*roles), **changes))


def test_hosts_get_the_key(world: Any, locked: tuple[Path, bytes], alice_file: Path) -> None:
    folder, key = locked
    assert unlock_key(folder, alice_file, PASSPHRASE) == key
    assert unlock_key(str(folder), str(alice_file), passphrase=PASSPHRASE) == key
    assert unlock_key(folder, bundle_of(world, "run"), PASSPHRASE) == key
    private = X25519PrivateKey.generate()
    bundle = bundle_of(world, "run", passphrase=None, public_key=private.public_key)
    assert unlock_key(folder, bundle, private_key=private) == key


def test_roles(world: Any, locked: tuple[Path, bytes]) -> None:
    folder, _ = locked
    with pytest.raises(KeyRefusedError, match="role 'run'"):
        unlock_key(folder, bundle_of(world, "read"), PASSPHRASE)
    with pytest.raises(KeyRefusedError, match="role 'read'"):
        Decoder.open(folder, bundle_of(world, "run"), PASSPHRASE)


def test_refusals(world: Any, locked: tuple[Path, bytes], make_authority: Any) -> None:
    folder, _ = locked
    bundle = bundle_of(world)
    with pytest.raises(PassphraseError):
        unlock_key(folder, bundle, "wrong horse")
    with pytest.raises(ArgumentError, match="pass `passphrase`"):
        unlock_key(folder, bundle)
    revoked = KeyBundle.from_bytes(world.authority.bundle(world.revoked))
    with pytest.raises(RevokedKeyError):
        unlock_key(folder, revoked, PASSPHRASE)
    with pytest.raises(WrongModelError, match=r"for model\(s\) cats, not for 'digits'"):
        unlock_key(folder, bundle_of(world, scope=["cats"]), PASSPHRASE)
    past = datetime(2025, 1, 1, tzinfo=UTC)
    with pytest.raises(ExpiredKeyError):
        unlock_key(folder, bundle_of(world, not_after=past), PASSPHRASE)
    other = make_authority()
    foreign = KeyBundle.from_bytes(other.bundle(other.issue()))
    with pytest.raises(ForeignKeyError, match="another authority"):
        unlock_key(folder, foreign, PASSPHRASE)
    with pytest.raises(FormatError, match="run without a key"):
        unlock_key(world.model, bundle, PASSPHRASE)


def test_a_forged_lock_is_refused_before_the_passphrase(
    world: Any, locked: tuple[Path, bytes]
) -> None:
    path = locked[0] / ASSETS / FILE_NAME
    path.write_bytes(path.read_bytes().replace(b"digits.key", b"forged.key"))
    with pytest.raises(SignatureError):
        unlock_key(locked[0], bundle_of(world), "not even asked")


def test_order_of_the_checks(
    world: Any, locked: tuple[Path, bytes], make_authority: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each bundle is wrong in what is named and in all that is checked later."""
    folder, _ = locked
    other, past = make_authority(), datetime(2025, 1, 1, tzinfo=UTC)
    late = {"not_after": past, "scope": ["cats"]}
    foreign = KeyBundle.from_bytes(other.bundle(other.issue("read"), **late))
    expired = bundle_of(world, "read", **late)
    reader = bundle_of(world, "read", scope=["cats"])
    revoked_keys = world.authority.issue("run", z=world.revoked.z)
    revoked = KeyBundle.from_bytes(world.authority.bundle(revoked_keys, scope=["cats"]))
    with pytest.raises(FormatError, match="run without a key"):
        unlock_key(world.model, foreign, "wrong horse")
    with pytest.raises(ForeignKeyError):
        unlock_key(folder, foreign, "wrong horse")
    with pytest.raises(ExpiredKeyError):
        unlock_key(folder, expired, "wrong horse")
    with pytest.raises(PassphraseError):
        unlock_key(folder, reader, "wrong horse")
    with pytest.raises(KeyRefusedError, match="role 'run'"):
        unlock_key(folder, reader, PASSPHRASE)
    with pytest.raises(RevokedKeyError):
        unlock_key(folder, revoked, PASSPHRASE)
    path = folder / ASSETS / FILE_NAME
    path.write_bytes(path.read_bytes().replace(b"digits.key", b"forged.key"))
    with pytest.raises(SignatureError):  # before the dates, too
        unlock_key(folder, expired, "wrong horse")


def test_only_the_lock_is_read(
    world: Any, locked: tuple[Path, bytes], alice_file: Path, tmp_path: Path
) -> None:
    folder, key = locked
    for path in (folder / ASSETS).iterdir():
        if path.name != FILE_NAME:
            path.unlink()
    assert unlock_key(folder, alice_file, PASSPHRASE) == key


# --- its file ------------------------------------------------------------------------------


def test_the_key_file(locked: tuple[Path, bytes], tmp_path: Path) -> None:
    folder, key = locked
    path = tmp_path / "digits.key"
    for content in (bytes(32), key):  # the second replaces the first
        write_key_file(path, content, outside=folder)
        assert path.read_bytes() == content
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "digits.key"]


def test_never_inside_of_the_folder(
    locked: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, key = locked
    link = tmp_path / "link"
    link.symlink_to(folder)
    (folder / "outwards").symlink_to(tmp_path / "elsewhere.key")
    monkeypatch.chdir(folder / "assets.extra")
    before = sorted(folder.rglob("*"))
    for path in (
        folder / "x.key",
        str(folder / "assets.extra" / "x.key"),
        tmp_path / "other" / ".." / "1" / "x.key",
        link / "x.key",
        "x.key",
        "../x.key",
        folder / "outwards",
    ):
        with pytest.raises(ArgumentError, match="inside of the locked folder"):
            write_key_file(path, key, outside=link)
    assert sorted(folder.rglob("*")) == before
    assert not (tmp_path / "elsewhere.key").exists()
    write_key_file(tmp_path / "1.key", key, outside=folder)  # a name that only begins like it


def test_a_link_is_followed_before_dots_go_up(
    locked: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system does: `sub/..` is the folder, whatever the path looks like."""
    folder, key = locked
    (tmp_path / "sub").symlink_to(folder / "assets.extra")
    monkeypatch.chdir(tmp_path)
    before = sorted(folder.rglob("*"))
    for path in (f"{tmp_path}/sub/../x.key", "sub/../x.key", "./sub/../new/../x.key"):
        with pytest.raises(ArgumentError, match="inside of the locked folder"):
            write_key_file(path, key, outside=folder)
    assert sorted(folder.rglob("*")) == before
    (tmp_path / "away" / "inner").mkdir(parents=True)
    (folder / "sub").symlink_to(tmp_path / "away" / "inner")  # a link that leads out of it
    write_key_file(f"{folder}/sub/../x.key", key, outside=folder)
    assert (tmp_path / "away" / "x.key").read_bytes() == key


def test_an_empty_path(locked: tuple[Path, bytes]) -> None:
    with pytest.raises(ArgumentError, match="key file needs a name"):
        write_key_file("", locked[1], outside=locked[0])


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(
    failing: str, locked: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, key = locked
    path = tmp_path / "digits.key"
    path.write_bytes(bytes(32))
    modes = []

    def fail(*_: Any) -> None:
        modes.extend(stat.S_IMODE(p.stat().st_mode) for p in tmp_path.glob(".digits.key.*"))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(ArgumentError, match=r"Cannot write the key file .*No space left") as caught:
        write_key_file(path, key, outside=folder)
    assert modes == [0o600]  # the draft, while it holds the key
    assert path.read_bytes() == bytes(32)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "digits.key"]
    assert key.hex() not in str(caught.value)
    assert repr(key) not in str(caught.value)


def test_the_mode_is_that_of_the_first_byte(
    locked: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the umask lets through: the file is made with it, and not changed to it."""
    made = []
    real = os.open

    def opened(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        if flags & os.O_CREAT:
            made.append((flags & os.O_EXCL != 0, mode))
        return real(path, flags, mode, **options)

    monkeypatch.setattr(os, "open", opened)
    before = os.umask(0)
    try:
        write_key_file(tmp_path / "x.key", locked[1], outside=locked[0])
    finally:
        os.umask(before)
    assert made == [(True, 0o600)]
    assert stat.S_IMODE((tmp_path / "x.key").stat().st_mode) == 0o600


def test_other_files_are_not_overwritten(locked: tuple[Path, bytes], tmp_path: Path) -> None:
    folder, key = locked
    precious = tmp_path / "alice.keybundle"
    precious.write_bytes(b"x" * 500)
    (tmp_path / "linked").symlink_to(precious)
    for path in (precious, tmp_path / "linked", tmp_path):
        with pytest.raises(ArgumentError, match="is no key file"):
            write_key_file(path, key, outside=folder)
    assert precious.read_bytes() == b"x" * 500
    with pytest.raises(ArgumentError):
        write_key_file(tmp_path / "missing" / "x.key", key, outside=folder)


def test_without_tensorflow(
    world: Any, locked: tuple[Path, bytes], alice_file: Path, tmp_path: Path
) -> None:
    code = """
import sys
from keras_encryip.client import unlock_key
sys.stdout.buffer.write(unlock_key(sys.argv[1], sys.argv[2], "correct horse"))
assert not {"tensorflow", "keras", "sqlalchemy"} & set(sys.modules)
"""
    command = [sys.executable, "-c", code, str(locked[0]), str(alice_file)]
    done = subprocess.run(command, capture_output=True, check=True, env=dict(os.environ))
    assert done.stdout == locked[1]


# --- on the command line -------------------------------------------------------------------


def encryip(*arguments: str | Path, passphrase: str = PASSPHRASE) -> Any:
    return subprocess.run(
        [sys.executable, "-c", "from keras_encryip.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        env=dict(os.environ) | {"ENCRYIP_BUNDLE_PASSPHRASE": passphrase},
        timeout=120,
    )


def test_unlock_writes_a_file(locked: tuple[Path, bytes], alice_file: Path, tmp_path: Path) -> None:
    folder, key = locked
    path = tmp_path / "digits.key"
    done = encryip("unlock", folder, alice_file, "--out", path)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"looks for its key at /run/secrets/encryip/digits.key" in done.stdout
    for form in (key, key.hex().encode(), b64encode(key), PASSPHRASE.encode()):
        assert form not in done.stdout + done.stderr


def test_unlock_to_a_pipe(locked: tuple[Path, bytes], alice_file: Path) -> None:
    done = encryip("unlock", locked[0], alice_file, "--out", "-")
    assert done.stdout == locked[1]
    assert done.stderr == b""


def test_unlock_says_why_not(
    world: Any, locked: tuple[Path, bytes], alice_file: Path, tmp_path: Path
) -> None:
    folder, _ = locked
    reader = tmp_path / "reader.keybundle"
    reader.write_bytes(bundle_of(world, "read").to_bytes())
    out = tmp_path / "x.key"
    for arguments, passphrase, message in (
        ((folder, alice_file, "--out", folder / "x.key"), PASSPHRASE, "inside of the locked"),
        ((folder, reader, "--out", out), PASSPHRASE, "with the role 'run'"),
        ((folder, alice_file, "--out", out), "wrong horse", "passphrase does not open"),
        ((world.model, alice_file, "--out", out), PASSPHRASE, "run without a key"),
        ((folder, alice_file, "--out", alice_file), PASSPHRASE, "is no key file"),
        ((folder, alice_file, "--out", ""), PASSPHRASE, "key file needs a name"),
    ):
        done = encryip("unlock", *arguments, passphrase=passphrase)
        assert done.returncode == 1
        assert message in done.stderr.decode()
        assert done.stderr.startswith(b"Error: ")
        assert done.stdout == b""
    assert not out.exists()


def test_inspect_says_that_a_folder_is_locked(world: Any, locked: tuple[Path, bytes]) -> None:
    done = encryip("inspect", locked[0])
    shown = done.stdout.decode().splitlines()
    assert "locked           yes" in shown
    assert "key file         /run/secrets/encryip/digits.key" in shown
    plain = encryip("inspect", world.model).stdout.decode()
    assert "locked           no" in plain.splitlines()
    assert "key file" not in plain
    path = locked[0] / ASSETS / FILE_NAME
    path.write_bytes(path.read_bytes().replace(b"digits.key", b"forged.key"))
    assert encryip("inspect", locked[0]).returncode == 1


def test_inspect_refuses_the_lock_of_another_export(
    world: Any, locked: tuple[Path, bytes], tmp_path: Path
) -> None:
    authority = world.authority
    codebook = authority.codebook(world.assignment)
    lock, _ = Lock.make(codebook, "digits", authority.run, authority.signing_key, key_file="/k")
    (locked[0] / ASSETS / FILE_NAME).write_bytes(lock.to_bytes())
    done = encryip("inspect", locked[0])
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"Error: The lock is not of the codebook beside it" in done.stderr
