"""Authorities: create, open, issue, revoke, and the models' codebooks."""

import copy
import hashlib
import io
import pickle
import re
import stat
import struct
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.authority import authority as authority_module
from keras_encryip.authority.authority import Authority, User
from keras_encryip.crypto.kem import PublicKey, UserKey
from keras_encryip.crypto.signing import verify
from keras_encryip.crypto.slots import commitment
from keras_encryip.errors import (
    ArgumentError,
    EncryipError,
    LedgerError,
    PassphraseError,
    SignatureError,
)
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.labels.trace_set import TraceSet

CREATED = ["authority created"]
BUNDLE_PASSPHRASE = "correct horse"


def kinds(authority: Authority) -> list[str]:
    return [event.kind for event in authority.events()]


def sha256(tag: str, *parts: bytes) -> str:
    return hashlib.sha256(tag.encode() + b"\0" + b"".join(parts)).hexdigest()


@pytest.fixture
def key_of(tmp_path: Path) -> Callable[[str], UserKey]:
    """The key in a subject's bundle."""
    return lambda subject: (
        KeyBundle.read(tmp_path / f"{subject}.keybundle").unlock(BUNDLE_PASSPHRASE).reader.point
    )


# --- create and open -------------------------------------------------------------


def test_a_new_authority_has_no_users_and_one_event(authority: Authority) -> None:
    assert authority.users() == []
    assert authority.models() == []
    [event] = authority.events()
    assert (event.number, event.kind) == (1, "authority created")
    digest = sha256("encryip public key v1", authority.public_key.to_bytes())
    running = authority.keys.run_master.public_key()
    assert event.details == {
        "name": "acme",
        "threshold": 2,
        "public_key": digest,
        "run_public_key": sha256("encryip public key v1", running.to_bytes()),
        "slots": 1024,
        "slot_commitment": commitment(authority.keys.slots.slot_leaves()),
    }
    assert authority.threshold == 2
    assert len(authority.issuer) == 32


def test_the_file_is_the_owners_alone_and_nothing_else_is_left(
    authority: Authority, file: Path
) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_opening_gives_the_same_authority(
    authority: Authority, reopen: Any, issue: Any, key_of: Any
) -> None:
    alice = issue(authority, "alice")
    again = reopen()
    assert again.issuer == authority.issuer
    assert again.public_key == authority.public_key
    assert (again.name, again.threshold) == ("acme", 2)
    assert again.users() == authority.users() == [alice]
    assert again.events() == authority.events()
    # The same polynomial: what the public key encapsulates, a key issued before still opens.
    header, secret = PublicKey(again.public_key.encoded_points).encapsulate()
    assert key_of("alice").decapsulate(header).derive("x") == secret.derive("x")


def test_the_name_can_be_given(create: Any, issue: Any, tmp_path: Path) -> None:
    authority = create(name="ACME Vision Ltd.")
    issue(authority, "alice")
    assert KeyBundle.read(tmp_path / "alice.keybundle").header.issuer_name == "ACME Vision Ltd."


def test_an_authority_can_live_in_memory(create: Any, issue: Any) -> None:
    authority = create("sqlite://")
    assert issue(authority, "alice").status == "active"
    assert [user.subject for user in authority.users()] == ["alice"]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_plain_path_is_taken(
    create: Any, issue: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    """Absolute and relative ones, also where they hold what means something in a URL."""
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "a.authority", Path("b.authority"), Path("c? #%20@x:y.authority")):
        authority = create(kind(place))
        assert authority.name == place.stem
        issue(authority, place.stem, path=f"{place.name}.keybundle")
        assert place.is_file()
        with Authority.open(kind(place), "owner's passphrase") as again:
            assert again.users() == authority.users()
        with pytest.raises(LedgerError, match="exists already"):
            create(kind(place))
    with pytest.raises(LedgerError, match=r"There is no authority at '.*/none'"):
        Authority.open(kind("none"), "any")


def test_a_with_block_closes_it(create: Any, reopen: Any) -> None:
    with create() as authority:
        assert authority.users() == []
    assert reopen().users() == []


@pytest.mark.parametrize("threshold", [0, -1, 65, 2.0, "4"], ids=repr)
def test_create_refuses_a_wrong_threshold(create: Any, file: Path, threshold: Any) -> None:
    with pytest.raises(ArgumentError, match=r"threshold. must be an integer in 1 … 64"):
        create(threshold=threshold)
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"passphrase": ""}, "`passphrase` must be a string that is not empty"),
        ({"scrypt_log2_n": 13}, r"scrypt cost 2\^13 is outside"),
        ({"scrypt_log2_n": 21}, r"scrypt cost 2\^21 is outside"),
        ({"name": "x" * 257}, "`name` must be a string of 1 … 256"),
        ({"url": 3}, "`url` must be a path or a sqlite URL"),
        ({"url": "nosuchdatabase://x"}, "`url` must be a path or a sqlite URL"),
        ({"url": "firebird+nosuchdriver://x"}, "`url` must be a path or a sqlite URL"),
    ],
    ids=["empty-passphrase", "cheap", "dear", "long-name", "number", "no-dialect", "no-driver"],
)
def test_create_refuses(create: Any, file: Path, arguments: Any, message: str) -> None:
    with pytest.raises(EncryipError, match=message):
        create(**arguments)
    assert not file.exists()


@pytest.mark.parametrize("passphrase", ["Owner's passphrase", "x", "owner's passphrase "])
def test_a_wrong_passphrase_opens_nothing(
    authority: Authority, file: Path, passphrase: str
) -> None:
    with pytest.raises(PassphraseError, match=r"does not open the authority .*acme") as caught:
        Authority.open(f"sqlite:///{file}", passphrase)
    assert passphrase not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_passphrase_is_the_same_in_both_unicode_forms(create: Any, file: Path) -> None:
    create(passphrase="caf\u00e9")
    with Authority.open(f"sqlite:///{file}", "cafe\u0301") as again:
        assert again.name == "acme"


# --- issue -----------------------------------------------------------------------


def test_issue_writes_a_bundle_and_lists_the_user(
    authority: Authority, issue: Any, tmp_path: Path
) -> None:
    alice = issue(authority, "alice", days=30, models=["digits", "cats", "digits"])
    path = tmp_path / "alice.keybundle"
    bundle = KeyBundle.read(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert authority.users() == [alice]
    assert (alice.subject, alice.status, alice.revoked_at) == ("alice", "active", None)
    assert alice.scope == bundle.header.scope == ["cats", "digits"]
    assert alice.key_id == bundle.header.key_id == bundle.unlock(BUNDLE_PASSPHRASE).key_id
    assert alice.not_after == bundle.header.not_after
    days = bundle.not_after - datetime.fromisoformat(alice.issued_at)
    assert days == timedelta(days=30)
    assert (bundle.issuer, bundle.authority) == (authority.issuer, authority.public_key.digest)
    assert kinds(authority) == [*CREATED, "key issued", "bundle written"]


def test_by_default_a_bundle_is_for_any_model_and_a_year(authority: Authority, issue: Any) -> None:
    alice = issue(authority, "alice")
    assert alice.scope == ["*"]
    length = datetime.fromisoformat(alice.not_after) - datetime.fromisoformat(alice.issued_at)
    assert length == timedelta(days=365)


def test_users_are_listed_in_the_order_of_issue_with_keys_of_their_own(
    authority: Authority, issue: Any, key_of: Any
) -> None:
    names = ["zoe", "alice", "mallory"]
    ids = [issue(authority, name).key_id for name in names]
    assert [user.subject for user in authority.users()] == names
    assert len(set(ids)) == 3
    assert len({key_of(name).secret_bytes() for name in names}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subject": ""}, "`subject` must be a string of 1 … 256"),
        ({"subject": "x" * 257}, "`subject` must be a string of 1 … 256"),
        ({"subject": "a\ud800"}, "`subject` must be a string of 1 … 256"),
        ({"subject": 7}, "`subject` must be a string of 1 … 256"),
        ({"days": 0}, "`days` must be in 0"),
        ({"days": -1}, "`days` must be in 0"),
        ({"days": float("nan")}, "`days` must be in 0"),
        ({"days": 40_000}, "`days` must be in 0"),
        ({"days": "365"}, "`days` must be in 0"),
        ({"models": "digits"}, "`models` must be a list of model names"),
        ({"models": []}, "`models` must be a list of model names"),
        ({"models": [""]}, "`models` must be a string of 1 … 256"),
        ({"models": ["x" * 257]}, "`models` must be a string of 1 … 256"),
        ({"models": [f"m{i}" for i in range(65)]}, "fields are not valid"),
        ({"passphrase": ""}, "`passphrase` must be a string"),
        ({"scrypt_log2_n": 13}, r"scrypt cost 2\^13 is outside"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_issue_refuses_and_leaves_no_trace(
    authority: Authority, issue: Any, tmp_path: Path, arguments: Any, message: str
) -> None:
    path = tmp_path / "new.keybundle"
    with pytest.raises(EncryipError, match=message):
        issue(authority, arguments.pop("subject", "alice"), path=path, **arguments)
    assert not path.exists()
    assert authority.users() == []
    assert kinds(authority) == CREATED


def test_a_bundle_is_never_overwritten(authority: Authority, issue: Any, tmp_path: Path) -> None:
    path = tmp_path / "alice.keybundle"
    path.write_text("something else")
    with pytest.raises(ArgumentError, match="exists already, and is never overwritten"):
        issue(authority, "alice")
    assert path.read_text() == "something else"
    assert authority.users() == []


@pytest.mark.parametrize("status", ["active", "revoked"])
def test_a_name_is_used_once(authority: Authority, issue: Any, tmp_path: Path, status: str) -> None:
    issue(authority, "alice")
    if status == "revoked":
        authority.revoke("alice")
    before = authority.events()
    with pytest.raises(LedgerError, match=rf"'alice' has a key already \([0-9a-f]{{16}}, {status}"):
        issue(authority, "alice", path=tmp_path / "second.keybundle")
    assert not (tmp_path / "second.keybundle").exists()
    assert authority.events() == before


# --- to a public key -------------------------------------------------------------


@pytest.fixture
def own() -> X25519PrivateKey:
    return X25519PrivateKey.generate()


def test_a_bundle_to_a_public_key_is_logged_with_its_fingerprint(
    authority: Authority, issue: Any, reopen: Any, own: X25519PrivateKey, tmp_path: Path
) -> None:
    alice = issue(authority, "alice", passphrase=None, public_key=own.public_key, days=30)
    bob = issue(authority, "bob")
    path = tmp_path / "alice.keybundle"
    bundle = KeyBundle.read(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert bundle.recipient == own.public_key
    assert bundle.unlock(private_key=own).key_id == alice.key_id
    assert kinds(authority) == [*CREATED, *["key issued", "bundle written"] * 2]
    *_, first, _, second = authority.events()
    assert first.details["made_to"] == own.public_key.digest.hex()
    assert first.details["made_to"].startswith(own.public_key.fingerprint.replace(" ", ""))
    assert "made_to" not in second.details
    assert reopen().users() == [alice, bob]


def test_a_pending_user_can_get_a_bundle_to_a_public_key(
    pending: Any, issue: Any, reopen: Any, own: X25519PrivateKey, tmp_path: Path
) -> None:
    authority, before = pending
    after = issue(authority, "alice", passphrase=None, public_key=own.public_key)
    assert (after.status, after.key_id) == ("active", before.key_id)
    bundle = KeyBundle.read(tmp_path / "alice.keybundle")
    assert bundle.unlock(private_key=own).key_id == before.key_id
    assert reopen().users() == [after]


@pytest.mark.parametrize("passphrase", [None, "correct horse"], ids=["neither", "both"])
def test_a_bundle_needs_one_of_passphrase_and_public_key(
    authority: Authority, issue: Any, own: X25519PrivateKey, tmp_path: Path, passphrase: Any
) -> None:
    public_key = own.public_key if passphrase else None
    with pytest.raises(ArgumentError, match="Pass either `passphrase` or `public_key`"):
        issue(authority, "alice", passphrase=passphrase, public_key=public_key)
    assert authority.users() == []
    assert not (tmp_path / "alice.keybundle").exists()


# --- pending ---------------------------------------------------------------------


@pytest.fixture
def pending(
    authority: Authority, issue: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[Authority, User]:
    """An authority whose disk was full when alice's bundle was to be written."""

    def full(*arguments: Any, **keywords: Any) -> None:
        raise ArgumentError("Cannot write 'alice.keybundle': No space left on device.")

    with monkeypatch.context() as patch:
        patch.setattr(authority_module, "write_synced", full)
        with pytest.raises(ArgumentError, match="No space left"):
            issue(authority, "alice", days=10)
    return authority, authority.users()[0]


def test_a_user_whose_bundle_was_not_written_is_pending(pending: Any, reopen: Any) -> None:
    authority, alice = pending
    assert (alice.subject, alice.status) == ("alice", "pending")
    assert kinds(authority) == [*CREATED, "key issued"]
    assert reopen().users() == [alice]


def test_issuing_again_completes_a_pending_user_with_the_same_key(
    pending: Any, issue: Any, key_of: Any, reopen: Any
) -> None:
    authority, before = pending
    after = issue(authority, "alice", days=20, models=["digits"])
    assert (after.status, after.key_id) == ("active", before.key_id)
    assert key_of("alice").key_id == before.key_id
    assert after.not_after > before.not_after
    assert after.scope == ["digits"]
    assert kinds(authority) == [*CREATED, "key issued", "key issued", "bundle written"]
    first, second = (e.details["codeword"] for e in authority.events() if e.kind == "key issued")
    assert first == second, "committed to before any bundle was out"
    assert reopen().users() == [after]


def test_a_pending_user_can_be_revoked(pending: Any, issue: Any, reopen: Any) -> None:
    authority, before = pending
    assert authority.revoke("alice").key_id == before.key_id
    with pytest.raises(LedgerError, match=r"'alice' has a key already \(.*, revoked\)"):
        issue(authority, "alice")
    assert [user.status for user in reopen().users()] == ["revoked"]


# --- revoke ----------------------------------------------------------------------


def test_revoke_marks_the_user_and_nobody_else(
    authority: Authority, issue: Any, reopen: Any
) -> None:
    alice, bob = issue(authority, "alice"), issue(authority, "bob")
    revoked = authority.revoke("bob")
    assert (revoked.status, revoked.key_id) == ("revoked", bob.key_id)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", revoked.revoked_at or "")
    assert authority.users() == [alice, revoked]
    assert authority.events()[-1].details["key_id"] == bob.key_id
    assert reopen().users() == [alice, revoked]


def test_revoke_refuses_the_unknown_and_the_revoked(authority: Authority, issue: Any) -> None:
    issue(authority, "alice")
    authority.revoke("alice")
    before = authority.events()
    with pytest.raises(LedgerError, match="There is no user 'bob'"):
        authority.revoke("bob")
    with pytest.raises(LedgerError, match=r"'alice' was revoked on \d{4}-.*Z already"):
        authority.revoke("alice")
    assert authority.events() == before


def test_at_most_threshold_users_can_be_revoked(authority: Authority, issue: Any) -> None:
    for name in ("alice", "bob", "carol"):
        issue(authority, name)
    authority.revoke("alice")
    authority.revoke("bob")
    with pytest.raises(LedgerError, match="threshold=2 users are revoked already"):
        authority.revoke("carol")
    assert [user.status for user in authority.users()] == ["revoked", "revoked", "active"]


# --- the log and the signature -----------------------------------------------------


def test_sign_is_for_one_domain(authority: Authority) -> None:
    signature = authority.keys.sign("export v1", b"message")
    verify(authority.issuer, "export v1", b"message", signature, what="export")
    with pytest.raises(SignatureError, match="signature of the export is wrong"):
        verify(authority.issuer, "export v2", b"message", signature, what="export")


KERNELS = [np.arange(6, dtype="float32").reshape(2, 3), np.ones((3, 1), "float64")]
KERNELS_DIGEST = sha256(
    "encryip kernels v1",
    b"(2, 3)\0" + struct.pack("<6f", 0, 1, 2, 3, 4, 5),
    b"(3, 1)\0" + struct.pack("<3f", 1, 1, 1),
)


def test_an_export_is_committed_to_in_the_log(
    authority: Authority, protect: Any, reopen: Any
) -> None:
    codebook, assignment = protect(authority)
    model_id = authority.model_store.model_of(codebook.codebook_id).model_id
    inputs = np.arange(24, dtype="float32").reshape(12, 2)
    traces = TraceSet(inputs, assignment.trace)
    authority.model_store.save_training(model_id, b"centroids", traces)
    authority.export_store.add_export(codebook, b"{}", folder="v1", recipient=None, kernels=KERNELS)
    buffer = io.BytesIO()
    np.save(buffer, inputs)
    np.save(buffer, assignment.trace.astype("<i4"))
    event = reopen().events()[-1]
    assert (event.number, event.kind) == (4, "model exported")
    assert event.details == {
        "model": "digits",
        "model_id": model_id,
        "codebook": codebook.codebook_id.hex(),
        "codebook_digest": hashlib.sha256(codebook.to_bytes()).hexdigest(),
        "manifest_digest": hashlib.sha256(b"{}").hexdigest(),
        "public_key": sha256("encryip public key v1", authority.public_key.to_bytes()),
        "trace_set": sha256("encryip trace set v1", buffer.getvalue()),
        "kernels_digest": KERNELS_DIGEST,
        "folder": "v1",
    }


def test_an_export_for_a_recipient_commits_to_their_fingerprint(
    authority: Authority, protect: Any, issue: Any, reopen: Any
) -> None:
    codebook, _ = protect(authority)
    alice = issue(authority, "alice")
    assert authority.user_store.recipient("alice") == alice.key_id
    authority.export_store.add_export(codebook, b"m", folder="v1", recipient=None, kernels=KERNELS)
    authority.export_store.add_export(
        codebook, b"m", folder="v2", recipient=alice.key_id, kernels=KERNELS
    )
    plain, own = (event.details for event in reopen().events()[-2:])
    model_id = authority.model_store.model_of(codebook.codebook_id).model_id
    key = authority.keys.fingerprint_key(model_id, alice.key_id)
    assert own == {
        **plain,
        "folder": "v2",
        "recipient": alice.key_id,
        "fingerprint": sha256("encryip fingerprint key v1", key),
    }
    assert plain["trace_set"] == "", "nothing was trained"


def test_an_exports_event_holds_no_secret(authority: Authority, protect: Any, issue: Any) -> None:
    codebook, assignment = protect(authority)
    model_id = authority.model_store.model_of(codebook.codebook_id).model_id
    inputs = np.random.default_rng(0).random((12, 40))
    authority.model_store.save_training(model_id, b"centroids", TraceSet(inputs, assignment.trace))
    alice = issue(authority, "alice")
    authority.export_store.add_export(
        codebook, b"m", folder="v", recipient=alice.key_id, kernels=KERNELS
    )
    text = repr(authority.events()[-1])
    strings = set(re.findall("[0-9a-f]{16,}", text))
    assert {len(string) for string in strings} == {16, 32, 64}, "a key id, a codebook id, digests"
    assert len(strings) == 8
    key = authority.keys.fingerprint_key(model_id, alice.key_id)
    for secret in (key, authority.keys._secret[:32], inputs.tobytes()[:32]):
        assert secret.hex() not in text
    assert str(assignment.trace.tolist())[1:-1] not in text


def test_fingerprint_keys_differ_by_model_user_and_authority(
    authority: Authority, create: Any, tmp_path: Path, reopen: Any
) -> None:
    other = create(f"sqlite:///{tmp_path}/other.authority")
    keys = {
        a.keys.fingerprint_key(model, user)
        for a in (authority, other)
        for model in (1, 2)
        for user in ("0" * 16, "1" * 16)
    }
    assert len(keys) == 8
    assert {len(key) for key in keys} == {32}
    assert reopen().keys.fingerprint_key(1, "0" * 16) == authority.keys.fingerprint_key(1, "0" * 16)


@pytest.mark.parametrize("recipient", ["f" * 16, ""])
def test_an_export_for_nobody_known_is_refused(
    authority: Authority, protect: Any, recipient: str
) -> None:
    codebook, _ = protect(authority)
    before = authority.events()
    with pytest.raises(LedgerError, match="refused the change: FOREIGN KEY"):
        authority.export_store.add_export(
            codebook, b"m", folder="v", recipient=recipient, kernels=KERNELS
        )
    assert authority.events() == before


def test_a_recipient_has_an_active_key(authority: Authority, issue: Any) -> None:
    authority.enroll(["ann"])
    issue(authority, "bob")
    authority.revoke("bob")
    for name, state in (("eve", "is not a user"), ("ann", "is pending"), ("bob", "is revoked")):
        with pytest.raises(LedgerError, match=f"`recipient` must .*: '{name}' {state}"):
            authority.user_store.recipient(name)


# --- secrecy ---------------------------------------------------------------------


def test_an_authority_shows_public_facts_only(authority: Authority) -> None:
    public = authority.public_key.digest.hex()[:16]
    assert re.fullmatch(rf"<Authority /.*acme\.authority public={public}>", repr(authority))
    assert not hasattr(authority, "__dict__")


@pytest.mark.parametrize("copier", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_authority_and_a_models_record_cannot_be_copied(
    authority: Authority, protect: Any, copier: Callable[[Any], Any]
) -> None:
    with pytest.raises(TypeError, match="Authority holds a secret and cannot be pickled"):
        copier(authority)
    record = authority.model_store.model_of(protect(authority)[0].codebook_id)
    assert "[" not in repr(record)
    if copier is not copy.copy:  # a shallow copy shares the opaque assignment
        with pytest.raises(TypeError, match="LabelAssignment holds a secret"):
            copier(record)
