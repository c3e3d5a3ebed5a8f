"""Sealed folders: what goes in comes out, for whom it was meant, or nothing does."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keras_encryip.crypto.signing import SigningKey
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
from keras_encryip.formats import sealed_folder as sealed
from keras_encryip.formats.folder_index import Entry, Index, list_folder
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.sealed_folder import unseal_folder, write_sealed_folder

PASSPHRASE = "correct horse"
Seal = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of several sizes, nested, empty; an empty folder; a name that is not ASCII."""
    made = tmp_path / "digits" / "1"
    (made / "variables").mkdir(parents=True)
    (made / "assets").mkdir()
    (made / "saved_model.pb").write_bytes(b"graph")
    (made / "variables" / "variables.data").write_bytes(os.urandom(200_000))
    (made / "variables" / "chunk").write_bytes(bytes(sealed.CHUNK_BYTES))
    (made / "variables" / "empty").touch()
    (made / "Käfer.txt").write_text("ä")
    return made


@pytest.fixture
def seal(world: Any, folder: Path, tmp_path: Path) -> Seal:
    """Seals the folder for all but `world.revoked`."""

    def made(**changes: Any) -> Path:
        header, secret = world.authority.read.encapsulate([world.revoked.z])
        path: Path = tmp_path / f"{len(list(tmp_path.iterdir()))}.sealed"
        source = changes.pop("directory", folder)
        options = {
            "index": changes.pop("index", None) or list_folder(source, "digits"),
            "authority": world.authority.digest,
            "issuer": world.authority.signing_key.public_bytes(),
            "header": header,
            "secret": secret,
            "sign": world.authority.signing_key.sign,
        }
        write_sealed_folder(source, path, **{**options, **changes})
        return path

    return made


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def nothing_left(path: Path) -> bool:
    return not path.exists() and not [p for p in path.parent.iterdir() if p.name.startswith(".")]


def test_round_trip(seal: Seal, folder: Path, alice_file: Path, tmp_path: Path) -> None:
    path = seal()
    target = tmp_path / "new" / "opened"
    unseal_folder(path, str(target), alice_file, PASSPHRASE)
    assert content(target) == content(folder)
    assert {p.name for p in target.parent.iterdir()} == {"opened"}
    unseal_folder(path, tmp_path / "again", KeyBundle.read(alice_file), PASSPHRASE)
    assert content(tmp_path / "again") == content(folder)


def test_the_file_tells_nothing_of_its_content(seal: Seal, folder: Path, world: Any) -> None:
    path = seal()
    found = path.read_bytes()
    for secret in (b"saved_model", b"graph", b"variables", b"digits"):
        assert secret not in found
    assert found.startswith(b"encryip sealed folder\n")
    total = sum(len(data) for data in content(folder).values() if data)
    assert total < len(found) < total + 3000
    assert seal().read_bytes()[-500:] != found[-500:]


def test_revoked_and_foreign_keys_are_refused(
    seal: Seal, world: Any, make_authority: Callable[..., Any], tmp_path: Path
) -> None:
    path, target = seal(), tmp_path / "opened"
    revoked = KeyBundle.from_bytes(world.authority.bundle(world.revoked))
    with pytest.raises(RevokedKeyError, match=r"was revoked before '.*' was sealed"):
        unseal_folder(path, target, revoked, PASSPHRASE)
    other = make_authority("Other")
    foreign = KeyBundle.from_bytes(other.bundle(other.issue()))
    with pytest.raises(ForeignKeyError, match=r"by another authority .'Other'. than the one"):
        unseal_folder(path, target, foreign, PASSPHRASE)
    host = KeyBundle.from_bytes(world.authority.bundle(world.authority.issue("run")))
    with pytest.raises(KeyRefusedError, match="does not read their answers"):
        unseal_folder(path, target, host, PASSPHRASE)
    assert nothing_left(target)


def test_dates_scope_and_passphrase(seal: Seal, world: Any, tmp_path: Path) -> None:
    from datetime import UTC, datetime

    path, target = seal(), tmp_path / "opened"
    past = {"not_before": datetime(2020, 1, 1, tzinfo=UTC)}
    past["not_after"] = datetime(2020, 1, 2, tzinfo=UTC)
    cases: list[tuple[dict[str, Any], str, type[Exception]]] = [
        (past, PASSPHRASE, ExpiredKeyError),
        ({"scope": ["pets"]}, PASSPHRASE, WrongModelError),
        ({}, "wrong", PassphraseError),
    ]
    for changes, passphrase, error in cases:
        bundle = KeyBundle.from_bytes(world.authority.bundle(world.alice, **changes))
        with pytest.raises(error):
            unseal_folder(path, target, bundle, passphrase)
    assert nothing_left(target)
    bundle = KeyBundle.from_bytes(world.authority.bundle(world.alice, scope=["digits"]))
    unseal_folder(path, target, bundle, PASSPHRASE)


def test_nothing_is_overwritten(
    seal: Seal, folder: Path, alice_file: Path, tmp_path: Path, world: Any
) -> None:
    path = seal()
    before = content(folder)
    with pytest.raises(ArgumentError, match="exists already, and is never overwritten"):
        unseal_folder(path, folder, alice_file, PASSPHRASE)
    assert content(folder) == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArgumentError, match="exists already, and is never overwritten"):
        unseal_folder(path, tmp_path / "empty", alice_file, PASSPHRASE)


def test_every_kind_of_damage_is_noticed(
    seal: Seal, alice_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit of each part, each cut, and bytes at the end; nothing is left behind."""
    bundle = KeyBundle.read(alice_file)
    key = bundle.unlock(PASSPHRASE)
    monkeypatch.setattr(KeyBundle, "unlock", lambda self, *_: key)  # scrypt once, not 100 times
    path, target = seal(), tmp_path / "opened"
    whole = path.read_bytes()
    places = [*range(0, 1200, 17), len(whole) // 2, *range(len(whole) - 100, len(whole), 13)]
    damaged = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in places]
    damaged += [whole[:i] for i in (0, 10, 26, 400, 900, len(whole) // 2, len(whole) - 1)]
    damaged += [whole + b"\0", whole + whole]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises((SignatureError, FormatError, ForeignKeyError)):
            unseal_folder(path, target, bundle, PASSPHRASE)
        assert nothing_left(target)


def test_only_the_authority_can_make_one(seal: Seal, alice_file: Path, tmp_path: Path) -> None:
    """A user knows the stream's key, but cannot sign."""
    path = seal(sign=SigningKey.generate().sign)
    with pytest.raises(
        SignatureError, match=r"Cannot open .*: The signature of the sealed file is wrong"
    ):
        unseal_folder(path, tmp_path / "opened", alice_file, PASSPHRASE)
    assert nothing_left(tmp_path / "opened")


# --- files that an attacker who holds a key has made ---------------------------------------


def entry(path: str, size: int = 0) -> Entry:
    return Entry(path, size)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.encode("unicode_escape").decode() or "empty")
        for path in (
            "../outside",
            "a/../../outside",
            "/tmp/outside",
            "a//b",
            "./a",
            "a/",
            "..",
            ".",
            "a\\..\\b",
            "C:outside",
            "a\0b",
            "a\nb",
            "a/.",
            "what?",
            ".. /o",
            "a.",
            "a /b",
            "a\x9bb",
            "NUL",
            "a/aux.txt",
        )
    ],
)
def test_escaping_paths_are_refused(
    path: str, seal: Seal, alice_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for field in ("files", "folders"):
        lists = {"files": [], "folders": [], field: [entry(path) if field == "files" else path]}
        monkeypatch.setattr(sealed, "_contents", lambda *_: iter(()))
        made = seal(index=Index(model="digits", **lists))
        with pytest.raises(FormatError, match="is not plain and relative"):
            unseal_folder(made, tmp_path / "opened", alice_file, PASSPHRASE)
        assert nothing_left(tmp_path / "opened")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param([entry("a"), entry("a")], "occurs twice", id="twice"),
        pytest.param([entry("a"), entry("A")], "differs in case only", id="case"),
        pytest.param([entry("\xe4"), entry("a\u0308")], "occurs twice", id="unicode-forms"),
        pytest.param([entry("a"), entry("a/b")], "both an entry and a folder", id="file-in-file"),
        pytest.param([entry("A/x"), entry("a/y")], "'a' occurs in two spellings", id="folders"),
        pytest.param([entry("a/" * 32 + "b")], "is deeper than 32", id="deep"),
        pytest.param(
            [entry(f"{i}{'/a' * 31}") for i in range(400)], "more than 10000 folders", id="many"
        ),
        pytest.param([entry("a", 1 << 40)], "do not add up to its size", id="bomb"),
        pytest.param([entry("a", 3)], "do not add up to its size", id="more-than-there-is"),
    ],
)
def test_lists_that_lie_are_refused(
    files: list[Any],
    message: str,
    seal: Seal,
    alice_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sealed, "_contents", lambda *_: iter(()))
    path = seal(index=Index(files=files, folders=[], model="digits"))
    with pytest.raises(FormatError, match=message):
        unseal_folder(path, tmp_path / "opened", alice_file, PASSPHRASE)
    assert nothing_left(tmp_path / "opened")


def test_a_long_list_is_refused_before_it_is_read(
    seal: Seal, alice_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = seal()
    monkeypatch.setattr(sealed, "MAX_INDEX_BYTES", 100)
    with pytest.raises(FormatError, match="list of files is too large"):
        unseal_folder(path, tmp_path / "opened", alice_file, PASSPHRASE)


def test_unknown_versions_and_fields_are_refused(
    seal: Seal, alice_file: Path, tmp_path: Path
) -> None:
    path = seal()
    whole = path.read_bytes()
    for old, new in ((b'"version":1', b'"version":2'), (b'"version":1', b'"version":1,"x":1')):
        text = whole.replace(old, new, 1)
        start = len(sealed._MAGIC)
        length = int.from_bytes(text[start : start + 4], "big") + len(new) - len(old)
        path.write_bytes(text[:start] + length.to_bytes(4, "big") + text[start + 4 :])
        with pytest.raises(FormatError, match="head is malformed"):
            unseal_folder(path, tmp_path / "opened", alice_file, PASSPHRASE)


@pytest.mark.parametrize("data", [b"", b"encryip sealed folder", b"PK\3\4" * 50])
def test_other_files_are_refused(data: bytes, alice_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(data)
    with pytest.raises(FormatError, match="is not a sealed file of this package"):
        unseal_folder(tmp_path / "other", tmp_path / "opened", alice_file, PASSPHRASE)


def test_a_missing_file(alice_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"Cannot open the sealed file .*No such file"):
        unseal_folder(tmp_path / "none", tmp_path / "opened", alice_file, PASSPHRASE)


# --- what cannot be sealed -----------------------------------------------------------------


def test_a_file_that_became_a_link(folder: Path, seal: Seal) -> None:
    index = list_folder(folder, "digits")
    (folder / "saved_model.pb").unlink()
    (folder / "secret").write_bytes(b"thing")
    (folder / "saved_model.pb").symlink_to("secret")
    with pytest.raises(ArgumentError, match=r"Cannot read 'saved_model.pb' in .*symbolic link"):
        seal(index=index)


def test_names_too_long_and_failing_disks(
    seal: Seal, alice_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = seal()
    with pytest.raises(ArgumentError, match=r"Cannot write .*File name too long"):
        unseal_folder(path, tmp_path / ("n" * 300), alice_file, PASSPHRASE)

    class Failing(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            if self.tell() > 100_000:
                raise OSError(5, "Input/output error")
            return super().read(count)

    def opened(*_: Any) -> Any:
        return Failing(path.read_bytes())

    monkeypatch.setattr(sealed, "open", opened, raising=False)
    real = path.open("rb")
    monkeypatch.setattr(Failing, "fileno", lambda _: real.fileno())
    with (
        real,
        pytest.raises(FormatError, match=r"Cannot open the sealed file .*: Input/output error"),
    ):
        unseal_folder(path, tmp_path / "opened", KeyBundle.read(alice_file), PASSPHRASE)
    assert nothing_left(tmp_path / "opened")


@pytest.mark.parametrize("size", [4, 6])
def test_a_file_that_changes_meanwhile(size: int, folder: Path, seal: Seal, tmp_path: Path) -> None:
    index = list_folder(folder, "digits")
    (folder / "saved_model.pb").write_bytes(bytes(size))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ArgumentError, match=r"'saved_model.pb' changed while it was being sealed"):
        seal(index=index)
    assert sorted(tmp_path.iterdir()) == before


def test_an_interruption_leaves_nothing(
    seal: Seal, alice_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, target = seal(), tmp_path / "opened"

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sealed, "_extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unseal_folder(path, target, alice_file, PASSPHRASE)
    assert nothing_left(target)
    monkeypatch.setattr(sealed, "_contents", interrupted)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        seal()
    assert sorted(tmp_path.iterdir()) == before


# --- memory --------------------------------------------------------------------------------

PEAK = """
import sys
from pathlib import Path
from keras_encryip.formats.folder_index import list_folder
from keras_encryip.formats.sealed_folder import unseal_folder, write_sealed_folder
from keras_encryip.crypto.kem import MasterKey
from keras_encryip.crypto.signing import SigningKey

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

what, path, folder, bundle = sys.argv[1:]
start = peak()
if what == "read":
    Path(path).read_bytes()
elif what == "open":
    unseal_folder(path, folder, bundle, "correct horse")
else:
    header, secret = MasterKey.generate(1).encapsulate()
    write_sealed_folder(
        folder, path, index=list_folder(folder, "digits"), authority=bytes(32), issuer=bytes(32),
        header=header, secret=secret, sign=SigningKey.generate().sign,
    )
print(peak() - start)
"""


def test_memory_is_constant(seal: Seal, folder: Path, alice_file: Path, tmp_path: Path) -> None:
    """128 MiB are sealed, and opened, in some megabytes more than scrypt's 16."""
    with (folder / "large").open("wb") as file:
        file.truncate(128 << 20)
    path = seal()

    def growth(what: str, *arguments: Path) -> int:
        command = [sys.executable, "-c", PEAK, what, *map(str, arguments)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert growth("open", path, tmp_path / "opened", alice_file) < 50 << 10  # KiB
    assert growth("seal", tmp_path / "again.sealed", folder, alice_file) < 30 << 10
    assert growth("read", path, folder, alice_file) > 120 << 10, "the control"
    assert (tmp_path / "opened" / "large").stat().st_size == 128 << 20
