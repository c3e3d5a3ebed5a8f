"""Key bundles: what they say, who opens them, when they are refused."""

import copy
import json
import pickle
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.crypto.encoding import canonical_json
from keras_encryip.errors import (
    ArgumentError,
    ExpiredKeyError,
    ForeignKeyError,
    FormatError,
    KeyRefusedError,
    PassphraseError,
    RevokedKeyError,
)
from keras_encryip.formats import bundle_body
from keras_encryip.formats.key_bundle import MAX_BUNDLE_BYTES, KeyBundle, make_bundle

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "codebook.json").read_text(encoding="ascii")
)
PASSPHRASE = "correct horse"


def body_of(data: bytes) -> dict[str, Any]:
    return json.loads(data.decode().splitlines()[1])


# --- making and opening --------------------------------------------------------


def test_a_bundle_is_three_lines_of_ascii(world: Any) -> None:
    lines = world.authority.bundle(world.alice).decode("ascii").split("\n")
    assert lines[0] == "-----BEGIN ENCRYIP KEY BUNDLE-----"
    assert lines[2:] == ["-----END ENCRYIP KEY BUNDLE-----", ""]
    file = json.loads(lines[1])
    assert json.dumps(file, sort_keys=True, separators=(",", ":")) == lines[1]
    assert sorted(file["bundle"]["header"]) == [
        "authority",
        "format",
        "issued_at",
        "issuer",
        "issuer_name",
        "key_id",
        "not_after",
        "not_before",
        "opens_with",
        "roles",
        "scope",
        "subject",
        "version",
    ]
    assert sorted(file["bundle"]["body"]) == ["salt", "scrypt_log2_n", "sealed"]
    assert len(b64decode(file["bundle"]["body"]["sealed"])) == 12 + 96 + 32 + 16 * 256 + 16


def test_what_a_bundle_says_in_the_clear(world: Any) -> None:
    bundle = KeyBundle.from_bytes(world.authority.bundle(world.alice, scope=["pets", "digits"]))
    assert bundle.header.subject == "alice"
    assert bundle.header.issuer_name == "ACME"
    assert bundle.header.key_id == world.alice.key_id
    assert bundle.header.version == 3
    assert bundle.header.opens_with == "passphrase"
    assert bundle.header.roles == ["read", "run"]
    assert bundle.header.scope == ["digits", "pets"]
    assert bundle.header.not_before == "2024-01-01T00:00:00Z"
    assert bundle.not_after == datetime(2999, 1, 1, tzinfo=UTC)
    assert bundle.authority == world.authority.digest
    assert bundle.issuer == world.authority.signing_key.public_bytes()
    issued = datetime.strptime(bundle.header.issued_at, "%Y-%m-%dT%H:%M:%S%z")
    assert abs(datetime.now(UTC) - issued) < timedelta(minutes=5)


def test_the_passphrase_opens_it(world: Any) -> None:
    bundle = KeyBundle.from_bytes(world.authority.bundle(world.alice))
    assert bundle.unlock(PASSPHRASE).secret_bytes() == world.alice.secret_bytes()


def test_a_file_reads_as_its_bytes(world: Any, alice_file: Path) -> None:
    for path in (alice_file, str(alice_file)):
        assert KeyBundle.read(path).header.key_id == world.alice.key_id
    with pytest.raises(FormatError, match=r"Cannot read the key bundle '.*nobody': No such file"):
        KeyBundle.read(alice_file.with_name("nobody"))


@pytest.mark.parametrize("wrong", ["correct horse ", "Correct horse", "x", "\0"], ids=repr)
def test_a_wrong_passphrase_is_refused_and_leaves_no_trace(world: Any, wrong: str) -> None:
    bundle = KeyBundle.from_bytes(world.authority.bundle(world.alice))
    message = rf"passphrase does not open key bundle {world.alice.key_id} \(subject 'alice'\)"
    with pytest.raises(PassphraseError, match=message) as caught:
        bundle.unlock(wrong)
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_an_empty_passphrase_is_refused(world: Any) -> None:
    with pytest.raises(ArgumentError, match="`passphrase` must be a string that is not empty"):
        world.authority.bundle(world.alice, passphrase="")
    with pytest.raises(ArgumentError, match="`passphrase` must be a string that is not empty"):
        KeyBundle.from_bytes(world.authority.bundle(world.alice)).unlock("")


def test_two_bundles_of_one_key_share_no_ciphertext(world: Any) -> None:
    first, second = (body_of(world.authority.bundle(world.alice)) for _ in range(2))
    for field in ("salt", "sealed"):
        assert first["bundle"]["body"][field] != second["bundle"]["body"][field]


def test_no_secret_in_the_clear(world: Any) -> None:
    data = world.authority.bundle(world.alice)
    secret = world.alice.secret_bytes()
    for part in (secret[32:64], secret[64:96], secret[128:144], secret[-16:]):
        for form in (part.hex(), str(int.from_bytes(part, "big")), b64encode(part)[:20].decode()):
            assert form.encode() not in data
    assert PASSPHRASE.encode() not in data


def test_names_may_hold_any_letters(world: Any) -> None:
    data = world.authority.bundle(world.alice, subject="Zoë 🐟", issuer_name='"\\\n')
    header = KeyBundle.from_bytes(data).header
    assert (header.subject, header.issuer_name) == ("Zoë 🐟", '"\\\n')
    assert len(data.splitlines()) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"subject": ""}, "fields are not valid: .*subject", id="no subject"),
        pytest.param({"subject": "x" * 257}, "length <= 256.*subject", id="subject too long"),
        pytest.param({"subject": "\ud800"}, "fields are not valid", id="lone surrogate"),
        pytest.param({"issuer_name": ""}, "fields are not valid: .*issuer_name", id="no issuer"),
        pytest.param({"scope": []}, "fields are not valid: .*scope", id="empty scope"),
        pytest.param({"scope": [""]}, "fields are not valid: .*scope", id="empty model name"),
        pytest.param({"scope": [f"m{i}" for i in range(65)]}, "length <= 64", id="65 models"),
        pytest.param({"scope": "digits"}, "`scope` must be a list of model names", id="scope text"),
        pytest.param({"authority": bytes(31)}, "authority has 31 bytes", id="short digest"),
        pytest.param(
            {"not_after": datetime(2023, 1, 1, tzinfo=UTC)}, "in this order", id="dates swapped"
        ),
        pytest.param({"not_after": datetime(2999, 1, 1)}, "have a timezone", id="naive date"),
    ],
)
def test_fields_that_could_not_be_read_are_not_issued(
    world: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        world.authority.bundle(world.alice, **changes)


@pytest.mark.parametrize("log2_n", [13, 21])
def test_passphrase_costs_out_of_bounds_are_not_issued(world: Any, log2_n: int) -> None:
    with pytest.raises(FormatError, match=r"is outside 2\^14 … 2\^20"):
        world.authority.bundle(world.alice, scrypt_log2_n=log2_n)


def test_the_default_cost(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = []
    monkeypatch.setattr(bundle_body, "passphrase_key", lambda p, s, n: costs.append(n) or bytes(32))
    make_bundle(
        world.alice,
        passphrase="x",
        subject="a",
        issuer_name="b",
        authority=bytes(32),
        signing_key=world.authority.signing_key,
        not_before=datetime(2024, 1, 1, tzinfo=UTC),
        not_after=datetime(2025, 1, 1, tzinfo=UTC),
    )
    assert costs == [16]


# --- dates and scope -----------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "message"),
    [
        pytest.param("2024-06-01T11:54:59Z", "is valid from 2024-06-01T12:00:00Z on", id="before"),
        pytest.param("2024-06-01T12:00:00Z", "", id="first second"),
        pytest.param("2024-06-30T12:00:00Z", "", id="last second"),
        pytest.param("2024-06-30T12:00:01Z", "expired on 2024-06-30T12:00:00Z", id="after"),
    ],
)
def test_dates(world: Any, now: str, message: str) -> None:
    data = world.authority.bundle(
        world.alice,
        not_before=datetime(2024, 6, 1, 14, tzinfo=timezone(timedelta(hours=2))),
        not_after=datetime(2024, 6, 30, 12, tzinfo=UTC),
    )
    bundle = KeyBundle.from_bytes(data)
    moment = datetime.strptime(now, "%Y-%m-%dT%H:%M:%S%z")
    if not message:
        assert bundle.check_dates(moment) is None
    else:
        with pytest.raises(ExpiredKeyError, match=rf"Key bundle {world.alice.key_id} {message}"):
            bundle.check_dates(moment)


def test_dates_are_checked_against_the_clock(world: Any) -> None:
    past = world.authority.bundle(world.alice, not_after=datetime(2025, 1, 1, tzinfo=UTC))
    future = world.authority.bundle(world.alice, not_before=datetime(2900, 1, 1, tzinfo=UTC))
    with pytest.raises(ExpiredKeyError, match=r"expired on 2025-01-01T00:00:00Z\. Ask the model's"):
        KeyBundle.from_bytes(past).check_dates()
    with pytest.raises(ExpiredKeyError, match=r"valid from 2900-01-01.*check this machine's clock"):
        KeyBundle.from_bytes(future).check_dates()
    KeyBundle.from_bytes(world.authority.bundle(world.alice)).check_dates()


def test_clocks_may_differ_by_five_minutes(world: Any) -> None:
    """A bundle is used on another machine than the one that made it."""
    start = datetime(2026, 1, 1, 12, tzinfo=UTC)
    bundle = KeyBundle.from_bytes(world.authority.bundle(world.alice, not_before=start))
    bundle.check_dates(start - timedelta(minutes=5))
    with pytest.raises(ExpiredKeyError, match="check this machine's clock"):
        bundle.check_dates(start - timedelta(minutes=5, seconds=1))


@pytest.mark.parametrize(
    ("scope", "model", "allowed"),
    [
        (("*",), "anything", True),
        (("digits",), "digits", True),
        (("digits",), "digit", False),
        (("digits", "pets"), "pets", True),
        (("digits", "*"), "pets", True),
        (("dig*",), "digits", False),
    ],
    ids=["any", "named", "prefix", "second", "any besides", "no patterns"],
)
def test_scope(world: Any, scope: tuple[str, ...], model: str, allowed: bool) -> None:
    bundle = KeyBundle.from_bytes(world.authority.bundle(world.alice, scope=scope))
    assert bundle.allows(model) is allowed


# --- decrypt -------------------------------------------------------------------


def test_a_bundle_alone_decrypts_labels(world: Any) -> None:
    bundle = KeyBundle.from_bytes(world.authority.bundle(world.alice))
    labels = world.assignment.labels[[3, 0, 9], [0, 1, 7]]
    ciphertexts = [world.codebook.ciphertext(int(label)) for label in labels]
    classes = bundle.decrypt(iter(ciphertexts), PASSPHRASE)
    assert classes.tolist() == [3, 0, 9]
    assert classes.dtype == np.int64


def test_decrypt_refuses(world: Any, make_authority: Callable[..., Any]) -> None:
    label = [world.codebook.ciphertext(0)]
    bundles = {
        ForeignKeyError: make_authority("Other").bundle(world.alice),
        RevokedKeyError: world.authority.bundle(world.revoked),
        ExpiredKeyError: world.authority.bundle(
            world.alice, not_after=datetime(2025, 1, 1, tzinfo=UTC)
        ),
    }
    messages = {
        ForeignKeyError: "encrypted under another authority's public key",
        RevokedKeyError: "This key was revoked",
        ExpiredKeyError: "expired on 2025-01-01",
    }
    for error, data in bundles.items():
        with pytest.raises(error, match=messages[error]):
            KeyBundle.from_bytes(data).decrypt(label, PASSPHRASE)
    with pytest.raises(PassphraseError, match="passphrase does not open"):
        KeyBundle.from_bytes(world.authority.bundle(world.alice)).decrypt(label, "wrong")


def test_what_does_not_read_decrypts_nothing(world: Any) -> None:
    host = KeyBundle.from_bytes(world.authority.bundle(world.authority.issue("run")))
    assert host.header.roles == ["run"]
    with pytest.raises(KeyRefusedError, match="runs models, and does not read their answers: ask"):
        host.decrypt([world.codebook.ciphertext(0)], PASSPHRASE)


def test_bundles_of_release_0_3_say_who_reads_them() -> None:
    path = Path(__file__).parents[1] / "vectors" / "release-0.3" / "alice.keybundle"
    message = (
        r"has version 1, which release 0\.3 of keras_encryip reads; this release reads 3\. Ask the "
        r"model's owner for a new one, or use release 0\.3"
    )
    with pytest.raises(FormatError, match=message):
        KeyBundle.read(path)


# --- holding it ----------------------------------------------------------------


def test_repr_shows_ids_only(world: Any) -> None:
    bundle = KeyBundle.from_bytes(world.authority.bundle(world.alice))
    assert repr(bundle) == f"<KeyBundle key_id={world.alice.key_id} subject='alice'>"


@pytest.mark.parametrize(
    "copier", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda c: c.__name__
)
def test_pickling_and_copying_are_refused(world: Any, copier: Callable[[object], object]) -> None:
    bundle = KeyBundle.from_bytes(world.authority.bundle(world.alice))
    with pytest.raises(TypeError, match="KeyBundle holds a secret and cannot be pickled or copied"):
        copier(bundle)


# --- vectors -------------------------------------------------------------------


def test_vector_opens() -> None:
    bundle = KeyBundle.from_bytes(VECTORS["key_bundle"].encode("ascii"))
    bundle.check_dates(datetime(2024, 1, 1, tzinfo=UTC))
    bundle.check_dates(datetime(9999, 12, 31, tzinfo=UTC))
    assert canonical_json(bundle.header).decode() == VECTORS["bundle_associated_data"]
    keys = bundle.unlock(VECTORS["passphrase"])
    assert keys.secret_bytes().hex() == VECTORS["bundle_keys"]
    assert keys.reader.point.secret_bytes().hex() == VECTORS["user_key"]
    assert keys.runner.secret_bytes().hex() == VECTORS["run_key"]
    slots = keys.reader.slots.secret_bytes()
    assert slots.hex() == VECTORS["codeword"] + VECTORS["slot_keys"]
    assert bundle.unlock("correct h\u00f6rse").z == keys.z  # composed, as another keyboard does
    assert bundle.allows("pets")
    assert not bundle.allows("digits")
    ciphertexts = [bytes.fromhex(text) for text in VECTORS["ciphertexts"]]
    assert bundle.decrypt(ciphertexts, VECTORS["passphrase"]).tolist() == VECTORS["classes"]
    reader = KeyBundle.from_bytes(VECTORS["reader_bundle"].encode("ascii"))
    assert reader.header.roles == ["read"]
    opened = reader.unlock(VECTORS["passphrase"])
    assert opened.secret_bytes().hex() == VECTORS["reader_bundle_keys"]


def test_bundles_are_bounded() -> None:
    assert MAX_BUNDLE_BYTES == 196608
    line = b"-----%s ENCRYIP KEY BUNDLE-----"
    data = line % b"BEGIN" + b"\n" + b" " * 196609 + b"\n" + line % b"END" + b"\n"
    with pytest.raises(FormatError, match="key bundle is too large: 196609 bytes, at most 196608"):
        KeyBundle.from_bytes(data)


def test_a_larger_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.keybundle"
    path.write_bytes(b"-" * 196609)
    with pytest.raises(FormatError, match="too large: more than 196608 bytes"):
        KeyBundle.read(path)
