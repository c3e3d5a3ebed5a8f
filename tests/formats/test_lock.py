"""`lock.json`: what a host's key is made from, and who gets none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_encryip.crypto.signing import SigningKey
from keras_encryip.errors import (
    EncryipError,
    ForeignKeyError,
    FormatError,
    RevokedKeyError,
    SignatureError,
)
from keras_encryip.formats.lock import FILE_NAME, Lock, read_lock
from keras_encryip.formats.version_folder import ASSETS

KEY_FILE = "/run/secrets/encryip/digits.key"


def make(world: Any, **changes: Any) -> tuple[Lock, bytes]:
    options = {"key_file": KEY_FILE, "revoked": [world.revoked.z], **changes}
    authority = world.authority
    return Lock.make(world.codebook, "digits", authority.run, authority.signing_key, **options)


@pytest.fixture(scope="module")
def made_lock(world: Any) -> tuple[Lock, bytes]:
    return make(world)


@pytest.fixture(scope="module")
def lock(made_lock: tuple[Lock, bytes]) -> Lock:
    return made_lock[0]


def test_round_trip(lock: Lock, world: Any) -> None:
    again = Lock.from_bytes(lock.to_bytes())
    assert again == lock
    assert again.to_bytes() == lock.to_bytes()
    assert again.key_file == KEY_FILE
    assert again.codebook_id == world.codebook.codebook_id
    again.verify(world.authority.signing_key.public_bytes())
    body = json.loads(lock.to_bytes())["body"]
    assert body["codebook_id"] == world.codebook.codebook_id.hex()
    assert sorted(body) == [
        "authority", "codebook_id", "format", "header", "issuer", "key_file", "metadata", "version"
    ]  # fmt: skip


def test_hosts_and_the_owner_get_the_key(made_lock: tuple[Lock, bytes], world: Any) -> None:
    lock, key = made_lock
    assert len(key) == 32
    assert lock.open(world.alice.runner) == ("digits", key)
    assert lock.open(world.authority.issue("run").runner) == ("digits", key)
    assert lock.content_key(world.authority.run) == key
    assert make(world)[1] != key


def test_others_do_not(lock: Lock, world: Any, make_authority: Any) -> None:
    with pytest.raises(RevokedKeyError, match="was revoked before this model version was exp"):
        lock.open(world.revoked.runner)
    for key in (world.alice.reader.point, make_authority().issue("run").runner):
        with pytest.raises(ForeignKeyError, match="does not open this lock"):
            lock.open(key)
    with pytest.raises(ForeignKeyError):
        lock.content_key(world.authority.read)


def test_nothing_shows_the_key(made_lock: tuple[Lock, bytes]) -> None:
    lock, key = made_lock
    shown = repr(lock).encode() + lock.to_bytes()
    assert not [form for form in (key, key.hex().encode(), repr(key).encode()) if form in shown]
    assert b'"digits"' not in lock.to_bytes()  # the name is for hosts alone


def test_it_is_signed(lock: Lock, world: Any) -> None:
    issuer = world.authority.signing_key.public_bytes()
    for changed in (
        replace(lock, key_file="/tmp/other"),
        replace(lock, codebook_id=bytes(16)),
        replace(lock, signature=bytes(64)),
        replace(lock, sealed_metadata=lock.sealed_metadata[:-1] + b"\0"),
    ):
        with pytest.raises(SignatureError):
            changed.verify(issuer)
    with pytest.raises(ForeignKeyError, match="another authority"):
        lock.verify(SigningKey.generate().public_bytes())


def changed_body(lock: Lock, **changes: Any) -> bytes:
    file = json.loads(lock.to_bytes())
    file["body"] = {k: v for k, v in (file["body"] | changes).items() if v is not ...}
    return json.dumps(file, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version"),
        ({"format": "encryip-codebook"}, "format"),
        ({"key_file": ""}, "key_file"),
        ({"key_file": "x" * 4097}, "key_file"),
        ({"key_file": 7}, "key_file"),
        ({"codebook_id": "0" * 31}, "codebook_id"),
        ({"codebook_id": "G" * 32}, "codebook_id"),
        ({"header": "AAAA"}, "header"),
        ({"issuer": "AAAA"}, "issuer"),
        ({"authority": "####"}, "authority"),
        ({"metadata": ...}, "metadata"),
        ({"more": 1}, "more"),
    ],
)
def test_each_field_is_checked(lock: Lock, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Lock.from_bytes(changed_body(lock, **changes))


FIELDS = [
    "authority", "codebook_id", "format", "header", "issuer", "key_file", "metadata", "version"
]  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [..., None, True, 1.5, [], {}])
def test_no_field_is_missing_or_of_another_type(lock: Lock, field: str, value: Any) -> None:
    with pytest.raises(FormatError, match=f"`{field}`" if value is ... else rf"\$\.body\.{field}"):
        Lock.from_bytes(changed_body(lock, **{field: value}))


@pytest.mark.parametrize("field", sorted({*FIELDS} - {"version"}))
def test_texts_are_no_numbers(lock: Lock, field: str) -> None:
    with pytest.raises(FormatError, match=rf"\$\.body\.{field}"):
        Lock.from_bytes(changed_body(lock, **{field: 7}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signature": ...}, "`signature`"),
        ({"signature": 7}, r"\$\.signature"),
        ({"signature": "AAAA"}, "lock signature"),
        ({"body": ...}, "`body`"),
        ({"body": []}, r"\$\.body"),
        ({"more": 1}, "`more`"),
    ],
)
def test_the_file_around_the_body_is_checked(
    lock: Lock, changes: dict[str, Any], message: str
) -> None:
    file = json.loads(lock.to_bytes()) | changes
    file = {k: v for k, v in file.items() if v is not ...}
    with pytest.raises(FormatError, match=message):
        Lock.from_bytes(json.dumps(file, sort_keys=True, separators=(",", ":")).encode())


def test_other_spellings_are_refused(lock: Lock) -> None:
    file = json.loads(lock.to_bytes())
    turned = {"signature": file["signature"], "body": file["body"]}
    for text in (json.dumps(file, indent=1), json.dumps(file), json.dumps(turned)):
        with pytest.raises(FormatError, match="canonical form"):
            Lock.from_bytes(text.encode())
    with pytest.raises(FormatError, match=r"malformed|canonical form"):
        Lock.from_bytes(lock.to_bytes() + b"\n")


def test_what_the_name_is_bound_to(lock: Lock, world: Any) -> None:
    """The sealed name opens for this codebook and authority only, whoever signs."""
    for changed in (replace(lock, codebook_id=bytes(16)), replace(lock, authority=bytes(32))):
        with pytest.raises(ForeignKeyError, match="does not open this lock"):
            changed.open(world.alice.runner)
        with pytest.raises(ForeignKeyError):
            changed.content_key(world.authority.run)


def test_the_owner_is_never_shut_out(world: Any) -> None:
    lock, key = make(world, revoked=[world.alice.z, world.revoked.z])
    assert lock.content_key(world.authority.run) == key
    with pytest.raises(RevokedKeyError):
        lock.open(world.alice.runner)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_change_is_refused(lock: Lock, world: Any, data: st.DataObject) -> None:
    good = lock.to_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    cut, fill = data.draw(st.integers(0, 3)), data.draw(st.binary(max_size=3))
    changed = good[:at] + fill + good[at + cut :]
    if changed == good:
        return
    with pytest.raises(EncryipError):
        Lock.from_bytes(changed).verify(world.authority.signing_key.public_bytes())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        Lock.from_bytes(data)


def test_reading(lock: Lock, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="Cannot read the lock"):
        read_lock(tmp_path / "nowhere")
    (tmp_path / ASSETS).mkdir(parents=True)
    with pytest.raises(FormatError, match=r"not the version folder.*run without a key"):
        read_lock(tmp_path)
    (tmp_path / ASSETS / FILE_NAME).write_bytes(lock.to_bytes())
    assert read_lock(str(tmp_path)) == lock
    (tmp_path / ASSETS / FILE_NAME).write_bytes(bytes(70_000))
    with pytest.raises(FormatError, match="too large"):
        read_lock(tmp_path)
