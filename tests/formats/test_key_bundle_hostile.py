"""Key bundles that somebody changed, re-signed or made up: always refused."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from keras_encryip.crypto.signing import SigningKey
from keras_encryip.errors import EncryipError, FormatError, PassphraseError, SignatureError
from keras_encryip.formats.key_bundle import KeyBundle
from tests.bundles import PASSPHRASE, new_authority

AUTHORITY = new_authority()
SIGNING_KEY = AUTHORITY.signing_key
ATTACKER = SigningKey.generate()
ALICE = AUTHORITY.issue("run")
DATA = AUTHORITY.bundle(ALICE, scope=["digits", "pets"])
"""Of a host: without slot keys it is short enough to change everywhere."""
BEGIN, END = b"-----BEGIN ENCRYIP KEY BUNDLE-----\n", b"\n-----END ENCRYIP KEY BUNDLE-----\n"
JSON = DATA[len(BEGIN) : -len(END)]
ANY_MESSAGE = "(?i)key bundle|field"

many = settings(max_examples=1200, deadline=None, suppress_health_check=list(HealthCheck))


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def armour(file: Any) -> bytes:
    return BEGIN + canonical(file) + END


def resign(file: dict[str, Any], key: SigningKey = SIGNING_KEY) -> bytes:
    """Name this signer as the issuer and sign, as who holds the signer's key can."""
    file["bundle"]["header"]["issuer"] = b64encode(key.public_bytes()).decode()
    return sign(file, key)


def sign(file: dict[str, Any], key: SigningKey = SIGNING_KEY) -> bytes:
    signature = key.sign("key bundle v3", canonical(file["bundle"]))
    return armour({"bundle": file["bundle"], "signature": b64encode(signature).decode()})


def refuse(data: bytes, message: str = ANY_MESSAGE) -> None:
    with pytest.raises(EncryipError, match=message):
        KeyBundle.from_bytes(data)


def test_the_unchanged_bundle_is_accepted() -> None:
    for data in (DATA, armour(json.loads(JSON)), resign(json.loads(JSON))):
        assert data == DATA
        assert KeyBundle.from_bytes(data).unlock(PASSPHRASE).z == ALICE.z


# --- bytes -------------------------------------------------------------------


def test_every_flipped_bit_is_refused() -> None:
    for bit in range(8 * len(DATA)):
        changed = bytearray(DATA)
        changed[bit // 8] ^= 1 << bit % 8
        refuse(bytes(changed))


def test_every_truncation_is_refused_at_either_end() -> None:
    for length in range(len(DATA)):
        for data in (DATA[:length], DATA[len(DATA) - length :]):
            with pytest.raises(FormatError, match="This is not a whole key bundle"):
                KeyBundle.from_bytes(data)


def test_every_removed_byte_is_refused() -> None:
    for position in range(len(DATA)):
        refuse(DATA[:position] + DATA[position + 1 :])


def edit(data: bytes, operation: str, at: int, other: int, fill: bytes) -> bytes:
    """One change of a byte string between two positions."""
    low, high = sorted((at % (len(data) + 1), other % (len(data) + 1)))
    return {
        "overwrite": data[:low] + fill + data[low + len(fill) :],
        "insert": data[:low] + fill + data[low:],
        "delete": data[:low] + data[high:],
        "repeat": data[:high] + data[low:high] + data[high:],
        "move": data[:low] + data[high:] + data[low:high],
        "reverse": data[:low] + data[low:high][::-1] + data[high:],
    }[operation]


edits = st.tuples(
    st.sampled_from(["overwrite", "insert", "delete", "repeat", "move", "reverse"]),
    st.integers(0, len(JSON)),
    st.integers(0, len(JSON)),
    st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b'"', b"}", b",", b"=", b"A"])),
)


@many
@given(st.lists(edits, min_size=1, max_size=3), st.booleans())
def test_edited_bytes_are_refused(changes: list[tuple[str, int, int, bytes]], inside: bool) -> None:
    data = JSON if inside else DATA
    for operation, at, other, fill in changes:
        data = edit(data, operation, at, other, fill)
    data = BEGIN + data + END if inside else data
    assume(data != DATA)
    refuse(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_are_refused(data: bytes, inside: bool) -> None:
    refuse(BEGIN + data + END if inside else data, "key bundle")


# --- JSON --------------------------------------------------------------------


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a JSON document stands."""
    found = [prefix] if prefix else []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += paths(value[key], (*prefix, key))
    return found


def at_path(file: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        file = file[key]
    return file


PATHS = paths(json.loads(JSON))
ATOMS: list[Any] = [None, True, -1, 0, 1, 2, 13, 14, 20, 21, 1.5, 2**63, 2**64, 10**40]
ATOMS += ["", "A", "AAAA", "AA==", "*", "x" * 300, "ä", "\ud800", "\0", [], [[]], ["a"], {}]
ATOMS += ["2024-01-01T00:00:00Z", "2024-02-30T00:00:00Z", "٢٠٢٤-01-01T00:00:00Z"]
ATOMS += [b64encode(bytes(n)).decode() for n in (16, 32, 64, 92)]

json_changes = st.tuples(
    st.sampled_from(PATHS),
    st.sampled_from(["replace", "delete", "copy from elsewhere", "rename", "add", "repeat"]),
    st.sampled_from(ATOMS),
    st.sampled_from(PATHS),
)


def change_json(path: tuple[Any, ...], action: str, atom: Any, source: tuple[Any, ...]) -> Any:
    file = json.loads(JSON)
    parent, key = at_path(file, path[:-1]), path[-1]
    if action == "replace":
        parent[key] = atom
    elif action == "delete":
        del parent[key]
    elif action == "copy from elsewhere":
        parent[key] = json.loads(canonical(at_path(file, source)))
    elif action == "rename" and isinstance(parent, dict):
        parent[f"{key}_"] = parent.pop(key)
    elif action == "add" and isinstance(parent, dict):
        parent["extra"] = atom
    elif action == "repeat" and isinstance(parent, list):
        parent.append(parent[key])
    return file


@many
@given(json_changes)
def test_changed_json_is_refused(change: tuple[Any, str, Any, Any]) -> None:
    data = armour(change_json(*change))
    assume(data != DATA)
    refuse(data)


@many
@given(json_changes)
def test_what_an_attacker_signs_is_refused_or_does_not_unlock(
    change: tuple[Any, str, Any, Any],
) -> None:
    """Behind a good signature of the attacker's own: never a crash, never the key."""
    file = change_json(*change)
    try:
        bundle = KeyBundle.from_bytes(resign(file, ATTACKER))
    except EncryipError as error:
        assert str(error)  # noqa: PT017  either outcome is fine, nothing else is
    except (KeyError, TypeError):
        assume(False)  # the change left nothing to sign
    else:
        assert bundle.issuer == ATTACKER.public_bytes()


@pytest.mark.parametrize("name", ["body", "header", "salt", "subject", "scope", "bundle"])
def test_duplicated_fields_are_refused(name: str) -> None:
    start = JSON.index(b'"' + name.encode() + b'":')
    value = start + len(name) + 3
    _, length = json.JSONDecoder().raw_decode(JSON[value:].decode())
    end = value + length
    data = JSON[:end] + b"," + JSON[start:end] + JSON[end:]
    assert json.loads(data) == json.loads(JSON)
    refuse(BEGIN + data + END, "The key bundle is not in canonical form")


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param(lambda f: json.dumps(f, sort_keys=True), id="spaces"),
        pytest.param(lambda f: json.dumps(f, sort_keys=True, indent=1), id="lines"),
        pytest.param(lambda f: canonical(f).decode() + "\n", id="empty line"),
        pytest.param(
            lambda f: json.dumps({k: f[k] for k in reversed(f)}, separators=(",", ":")),
            id="order",
        ),
        pytest.param(lambda f: canonical(f).decode().replace("alice", "\\u0061lice"), id="escape"),
    ],
)
def test_other_spellings_are_refused(spelling: Callable[[Any], str]) -> None:
    data = spelling(json.loads(JSON)).encode()
    assert json.loads(data) == json.loads(JSON)
    refuse(BEGIN + data + END, "The key bundle is not in canonical form")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(JSON, id="no lines around"),
        pytest.param(b"\n" + DATA, id="line before"),
        pytest.param(DATA + b"\n", id="line after"),
        pytest.param(DATA[:-1], id="no final newline"),
        pytest.param(DATA.replace(b"\n", b"\r\n"), id="DOS lines"),
        pytest.param(b"\xef\xbb\xbf" + DATA, id="byte order mark"),
        pytest.param(DATA.replace(b"KEY BUNDLE", b"KEY  BUNDLE"), id="other words"),
        pytest.param(DATA.replace(b"BEGIN", b"begin"), id="lower case"),
    ],
)
def test_other_lines_are_refused(data: bytes) -> None:
    refuse(data, "This is not a whole key bundle: its first line must be '-----BEGIN ENCRYIP")


@pytest.mark.parametrize(
    "data", [BEGIN[:-1] + END, BEGIN + END, DATA + DATA], ids=["overlap", "nothing", "two"]
)
def test_lines_without_one_object_between_are_refused(data: bytes) -> None:
    refuse(data, "The key bundle is malformed")


# --- each rule, behind a good signature ----------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("header.version", 1, r"has version 1, which release 0\.3 .*this release reads 3\. Ask"),
        ("header.version", 2, r"has version 2, which release 0\.3 .*this release reads 3\. Ask"),
        ("header.version", 4, "malformed: Invalid enum value 4"),
        ("header.version", 0, "malformed: Invalid enum value 0"),
        ("header.opens_with", "private key", "unknown field `salt` in a body that a private key"),
        ("header.opens_with", "a password", "malformed: Invalid enum value 'a password'"),
        ("header.roles", [], "Field roles must be a sorted list of distinct"),
        ("header.roles", ["run", "run"], "Field roles must be a sorted list of distinct"),
        ("header.roles", ["run", "read"], "Field roles must be a sorted list of distinct"),
        ("header.roles", ["write"], "malformed: Invalid enum value 'write'"),
        ("header.roles", "run", "malformed: Expected `array`, got `str`"),
        ("header.roles", ["read"], "sealed has a wrong length: Keys for read never have 64 bytes"),
        ("header.roles", ["read", "run"], "Keys for read and run never have 64 bytes"),
        ("header.format", "encryip-key-bundle2", "malformed: Invalid enum value"),
        ("header.key_id", "0" * 15, "malformed: .*matching regex.*key_id"),
        ("header.key_id", "0" * 15 + "A", "malformed: .*matching regex.*key_id"),
        ("header.key_id", "0" * 16 + "\n", "malformed: .*matching regex.*key_id"),
        ("header.not_after", "2999-01-01", "malformed: .*matching regex.*not_after"),
        ("header.not_after", "2999-01-01T00:00:00Z\n", "malformed: .*matching regex"),
        ("header.not_after", "2999-01-01T00:00:00+", "malformed: .*matching regex"),
        ("header.not_after", "٢٩٩٩-01-01T00:00:00Z", "malformed: .*matching regex"),
        ("header.not_after", "2999-02-29T00:00:00Z", "Field not_after is not a date"),
        ("header.not_before", "2024-13-01T00:00:00Z", "Field not_before is not a date"),
        ("header.not_before", "2024-01-01T24:00:00Z", "Field not_before is not a date"),
        ("header.issued_at", "2024-01-01T00:00:60Z", "Field issued_at is not a date"),
        ("header.issued_at", "0000-01-01T00:00:00Z", "Field issued_at is not a date"),
        ("header.scope", [], "malformed: .*length >= 1.*scope"),
        ("header.scope", ["m"] * 65, "malformed: .*length <= 64.*scope"),
        ("header.scope", "digits", "malformed: Expected `array`, got `str`"),
        ("header.subject", "", "malformed: .*length >= 1.*subject"),
        ("header.subject", "x" * 257, "malformed: .*length <= 256.*subject"),
        ("header.authority", b64encode(bytes(31)).decode(), "authority has 31 bytes, expected 32"),
        ("header.authority", "A" * 44, "authority has 33 bytes, expected 32"),
        ("header.authority", "A" * 43, "authority is not canonical base64"),
        ("header.authority", "A" * 42 + "B=", "authority is not canonical base64"),
        ("header.issuer", b64encode(bytes(33)).decode(), "issuer has 33 bytes, expected 32"),
        ("header.issuer", b64encode(b"\xff" * 32).decode(), "signature of the key bundle is wrong"),
        ("body.salt", b64encode(bytes(15)).decode(), "salt has 15 bytes, expected 16"),
        ("body.scrypt_log2_n", 13, "malformed: Expected `int` >= 14"),
        ("body.scrypt_log2_n", 21, "malformed: Expected `int` <= 20"),
        ("body.scrypt_log2_n", True, "malformed: Expected `int | str`, got `bool`"),
        ("body.sealed", b64encode(bytes(91)).decode(), "Keys for run never have 63 bytes"),
        ("body.sealed", b64encode(bytes(93)).decode(), "Keys for run never have 65 bytes"),
        ("body.sealed", "", "Keys for run never have -28 bytes"),
        ("body.zzz", 1, "malformed: .*unknown field `zzz`"),
        ("header.hint", "the usual", "malformed: .*unknown field `hint`"),
        ("zzz", 1, "malformed: .*unknown field `zzz`"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_rules_hold_behind_a_good_signature(path: str, value: Any, message: str) -> None:
    file = json.loads(JSON)
    *parents, name = path.split(".")
    at_path(file["bundle"], tuple(parents))[name] = value
    refuse(sign(file), message)


@pytest.mark.parametrize(
    "path", [p for p in PATHS if isinstance(p[-1], str)], ids=lambda path: ".".join(path)
)
def test_missing_fields_are_refused(path: tuple[str, ...]) -> None:
    file = json.loads(JSON)
    del at_path(file, path[:-1])[path[-1]]
    refuse(armour(file), f"malformed: .*missing required field `{path[-1]}`")


# --- forged bundles ------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("issuer_name", "ACME", id="nothing but the signer"),
        pytest.param("not_after", "9999-01-01T00:00:00Z", id="longer life"),
        pytest.param("scope", ["*"], id="wider scope"),
        pytest.param("subject", "bob", id="another subject"),
        pytest.param("authority", b64encode(bytes(32)).decode(), id="another authority"),
    ],
)
def test_a_bundle_signed_anew_by_an_attacker_does_not_unlock(field: str, value: Any) -> None:
    """Its signature is good, but the header is bound to the sealed key."""
    file = json.loads(JSON)
    file["bundle"]["header"][field] = value
    bundle = KeyBundle.from_bytes(resign(file, ATTACKER))
    with pytest.raises(PassphraseError, match="or its body was changed") as caught:
        bundle.unlock(PASSPHRASE)
    assert caught.value.__context__ is None


def test_a_changed_header_does_not_unlock_even_for_its_own_issuer() -> None:
    file = json.loads(JSON)
    file["bundle"]["header"]["scope"] = ["*"]
    with pytest.raises(PassphraseError, match="or its body was changed"):
        KeyBundle.from_bytes(sign(file)).unlock(PASSPHRASE)


@pytest.mark.parametrize("field", ["salt", "sealed"])
def test_a_changed_body_does_not_unlock(field: str) -> None:
    file = json.loads(JSON)
    body = file["bundle"]["body"]
    raw = bytearray(b64decode(body[field]))
    raw[-1] ^= 1
    body[field] = b64encode(raw).decode()
    with pytest.raises(PassphraseError, match="or its body was changed"):
        KeyBundle.from_bytes(sign(file)).unlock(PASSPHRASE)


def test_a_signature_of_another_purpose_is_refused() -> None:
    file = json.loads(JSON)
    signature = SIGNING_KEY.sign("codebook v1", canonical(file["bundle"]))
    file["signature"] = b64encode(signature).decode()
    with pytest.raises(SignatureError, match="signature of the key bundle is wrong"):
        KeyBundle.from_bytes(armour(file))


def test_an_attackers_signature_under_the_issuers_name_is_refused() -> None:
    with pytest.raises(SignatureError, match="signature of the key bundle is wrong"):
        KeyBundle.from_bytes(sign(json.loads(JSON), ATTACKER))
