"""Key bundles that were made to a user's own public key."""

import json
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.client import Decoder, KeyBundle, unseal_folder
from keras_encryip.crypto.signing import SigningKey
from keras_encryip.errors import (
    ArgumentError,
    EncryipError,
    ExpiredKeyError,
    ForeignKeyError,
    FormatError,
    KeyRefusedError,
    SignatureError,
)
from keras_encryip.formats.bundle_body import INFO
from keras_encryip.formats.folder_index import list_folder
from keras_encryip.formats.key_pair import X25519PrivateKey, X25519PublicKey, write_key_pair
from keras_encryip.formats.sealed_folder import write_sealed_folder

PASSPHRASE = "correct horse"
OWN = X25519PrivateKey.generate()
VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "public_key_bundle.json").read_text(encoding="ascii")
)


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def parse(data: bytes) -> dict[str, Any]:
    return json.loads(data.splitlines()[1])


def armour(file: Any) -> bytes:
    lines = (b"-----BEGIN ENCRYIP KEY BUNDLE-----", canonical(file))
    return b"\n".join((*lines, b"-----END ENCRYIP KEY BUNDLE-----", b""))


def sign(bundle: Any, key: SigningKey) -> bytes:
    signature = key.sign("key bundle v3", canonical(bundle))
    return armour({"bundle": bundle, "signature": b64encode(signature).decode()})


def text(data: bytes) -> str:
    return b64encode(data).decode()


@pytest.fixture(scope="module")
def data(world: Any) -> bytes:
    return world.authority.bundle(world.alice, passphrase=None, public_key=OWN.public_key)


@pytest.fixture(scope="module")
def with_passphrase(world: Any) -> bytes:
    return world.authority.bundle(world.alice)


# --- making and opening --------------------------------------------------------


def test_the_private_key_opens_it(world: Any, data: bytes) -> None:
    bundle = KeyBundle.from_bytes(data)
    assert bundle.recipient == OWN.public_key
    assert bundle.header.opens_with == "private key"
    assert bundle.unlock(private_key=OWN).secret_bytes() == world.alice.secret_bytes()
    assert bundle.to_bytes() == data
    assert KeyBundle.from_bytes(world.authority.bundle(world.alice)).recipient is None


def test_the_body(data: bytes) -> None:
    body = parse(data)["bundle"]["body"]
    assert sorted(body) == ["encapsulated", "recipient", "sealed"]
    assert b64decode(body["recipient"]) == OWN.public_key.raw
    assert len(b64decode(body["encapsulated"])) == 32
    assert len(b64decode(body["sealed"])) == 96 + 32 + 16 * 256 + 16


def test_two_bundles_to_one_key_share_no_ciphertext(world: Any, data: bytes) -> None:
    again = world.authority.bundle(world.alice, passphrase=None, public_key=OWN.public_key)
    first, second = (parse(d)["bundle"]["body"] for d in (data, again))
    assert first["recipient"] == second["recipient"]
    for field in ("encapsulated", "sealed"):
        assert first[field] != second[field]


def test_no_secret_in_the_clear(world: Any, data: bytes) -> None:
    secret = world.alice.secret_bytes()
    for part in (secret[32:64], secret[64:96], secret[128:144], secret[-16:]):
        for form in (part.hex(), str(int.from_bytes(part, "big")), text(part)[:20]):
            assert form.encode() not in data


def test_everything_that_takes_a_bundle_takes_the_private_key(
    world: Any, data: bytes, confused: np.ndarray, tmp_path: Path
) -> None:
    write_key_pair(tmp_path / "a.private.pem", tmp_path / "a.public.pem", "my own")
    own = X25519PrivateKey.read(tmp_path / "a.private.pem", "my own")
    public_key = X25519PublicKey.read(tmp_path / "a.public.pem")
    path = tmp_path / "alice.keybundle"
    path.write_bytes(world.authority.bundle(world.alice, passphrase=None, public_key=public_key))

    decoder = Decoder.open(world.model, path, private_key=own)
    assert decoder.labels(confused).tolist() == [7, 2, 1]
    ciphertext = world.codebook.ciphertext(int(world.assignment.labels[3, 0]))
    assert KeyBundle.read(path).decrypt([ciphertext], private_key=own).tolist() == [3]

    header, secret = world.authority.read.encapsulate([world.revoked.z])
    write_sealed_folder(
        world.model,
        tmp_path / "digits.sealed",
        index=list_folder(world.model, "digits"),
        authority=world.authority.digest,
        issuer=world.authority.signing_key.public_bytes(),
        header=header,
        secret=secret,
        sign=world.authority.signing_key.sign,
    )
    unseal_folder(tmp_path / "digits.sealed", tmp_path / "opened", path, private_key=own)
    assert any((tmp_path / "opened").rglob("codebook.json"))
    other = X25519PrivateKey.generate()
    with pytest.raises(KeyRefusedError, match="was made to the public key"):
        unseal_folder(tmp_path / "digits.sealed", tmp_path / "no", path, private_key=other)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("passphrase", "public_key"),
    [(None, None), (PASSPHRASE, OWN.public_key), (None, "alice.public.pem"), (None, OWN)],
    ids=["none", "both", "a path", "the private key"],
)
def test_a_bundle_is_made_in_one_of_two_ways(
    world: Any, passphrase: str | None, public_key: Any
) -> None:
    with pytest.raises(ArgumentError, match=r"Pass either `passphrase` or `public_key`, an `X25"):
        world.authority.bundle(world.alice, passphrase=passphrase, public_key=public_key)


# --- who is refused ------------------------------------------------------------


def test_another_private_key_is_refused(data: bytes, world: Any) -> None:
    other = X25519PrivateKey.generate()
    message = (
        rf"The key bundle {world.alice.key_id} \(subject 'alice'\) was made to the public key "
        rf"'{OWN.public_key.fingerprint}', and not to yours, '{other.public_key.fingerprint}'"
    )
    with pytest.raises(KeyRefusedError, match=message):
        KeyBundle.from_bytes(data).unlock(private_key=other)


@pytest.mark.parametrize(
    "given",
    [{}, {"passphrase": PASSPHRASE}, {"passphrase": PASSPHRASE, "private_key": OWN}],
    ids=["nothing", "a passphrase", "both"],
)
def test_a_passphrase_does_not_open_it(data: bytes, given: dict[str, Any]) -> None:
    message = f"private key of '{OWN.public_key.fingerprint}' opens key bundle .*pass `private_key`"
    with pytest.raises(ArgumentError, match=message):
        KeyBundle.from_bytes(data).unlock(**given)


def test_a_path_is_no_private_key(data: bytes) -> None:
    message = r"`private_key` must be an X25519PrivateKey, from .*\.read.*Received: str"
    with pytest.raises(ArgumentError, match=message):
        KeyBundle.from_bytes(data).unlock(private_key="alice.private.pem")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [{}, {"private_key": OWN}, {"passphrase": PASSPHRASE, "private_key": OWN}],
    ids=["nothing", "a private key", "both"],
)
def test_a_private_key_does_not_open_a_passphrase_bundle(
    with_passphrase: bytes, given: dict[str, Any]
) -> None:
    with pytest.raises(ArgumentError, match=r"A passphrase opens key bundle .* pass `passphrase`"):
        KeyBundle.from_bytes(with_passphrase).unlock(**given)


def test_dates_and_authority_hold_as_ever(
    world: Any, make_authority: Any, data: bytes, tmp_path: Path
) -> None:
    ways = {"passphrase": None, "public_key": OWN.public_key}
    past = world.authority.bundle(world.alice, not_after=datetime(2025, 1, 1, tzinfo=UTC), **ways)
    with pytest.raises(ExpiredKeyError, match="expired on 2025-01-01"):
        Decoder.open(world.model, KeyBundle.from_bytes(past), private_key=OWN)
    foreign = make_authority("Other")
    theirs = KeyBundle.from_bytes(foreign.bundle(foreign.issue(), **ways))
    with pytest.raises(ForeignKeyError, match="issued by another authority"):
        Decoder.open(world.model, theirs, private_key=OWN)


# --- what was changed ----------------------------------------------------------


def test_every_flipped_bit_is_refused(world: Any) -> None:
    host = world.authority.issue("run")  # short, without slot keys
    data = world.authority.bundle(host, passphrase=None, public_key=OWN.public_key)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EncryipError):
            KeyBundle.from_bytes(bytes(changed))


@pytest.mark.parametrize(
    "field", ["issued_at", "issuer_name", "key_id", "not_after", "scope", "subject"]
)
def test_a_changed_header_does_not_open_even_for_its_own_issuer(
    world: Any, data: bytes, field: str
) -> None:
    other = {
        "issued_at": "2024-01-01T00:00:00Z",
        "issuer_name": "Acme",
        "key_id": "0" * 16,
        "not_after": "9999-01-01T00:00:00Z",
        "scope": ["digits"],
        "subject": "bob",
    }
    bundle = parse(data)["bundle"]
    bundle["header"][field] = other[field]
    changed = KeyBundle.from_bytes(sign(bundle, world.authority.signing_key))
    with pytest.raises(SignatureError, match=r"header or body of key bundle .* was changed") as got:
        changed.unlock(private_key=OWN)
    assert got.value.__context__ is None


@pytest.mark.parametrize("at", [0, 95, 96, 127, 128, 4223, 4239])
def test_a_changed_ciphertext_does_not_open(world: Any, data: bytes, at: int) -> None:
    bundle = parse(data)["bundle"]
    sealed = bytearray(b64decode(bundle["body"]["sealed"]))
    sealed[at] ^= 1
    bundle["body"]["sealed"] = text(sealed)
    with pytest.raises(SignatureError, match="header or body of key bundle"):
        KeyBundle.from_bytes(sign(bundle, world.authority.signing_key)).unlock(private_key=OWN)


def test_parts_of_two_bundles_do_not_mix(world: Any, data: bytes) -> None:
    other = X25519PrivateKey.generate()
    for public_key in (OWN.public_key, other.public_key):
        again = world.authority.bundle(world.alice, passphrase=None, public_key=public_key)
        for field in ("encapsulated", "recipient", "sealed"):
            bundle = parse(data)["bundle"]
            if bundle["body"][field] == parse(again)["bundle"]["body"][field]:
                assert field == "recipient"
                continue
            bundle["body"][field] = parse(again)["bundle"]["body"][field]
            mixed = KeyBundle.from_bytes(sign(bundle, world.authority.signing_key))
            with pytest.raises((SignatureError, KeyRefusedError)):
                mixed.unlock(private_key=OWN)


WAYS = ("passphrase", "private key")


@pytest.mark.parametrize("says", WAYS)
def test_header_and_body_of_two_ways_are_refused(
    world: Any, data: bytes, with_passphrase: bytes, says: str
) -> None:
    first, second = parse(with_passphrase)["bundle"], parse(data)["bundle"]
    if says == "private key":
        first, second = second, first
    mixed = {"header": first["header"], "body": second["body"]}
    with pytest.raises(FormatError, match=f"malformed: .* in a body that a {says} opens"):
        KeyBundle.from_bytes(sign(mixed, world.authority.signing_key))


SMALL = b64encode(bytes(32)).decode()
SECOND = text((9 + (1 << 255)).to_bytes(32, "little"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("recipient", SMALL, "Field recipient is not base64 of an X25519 public key"),
        ("encapsulated", SMALL, "Field encapsulated is not base64 of an X25519 public key"),
        ("recipient", SECOND, "Field recipient is not base64 of an X25519 public key"),
        ("encapsulated", SECOND, "Field encapsulated is not base64 of an X25519 public key"),
        ("recipient", text(bytes(31)), "Field recipient is not base64 of an X25519"),
        ("encapsulated", "*", "Field encapsulated is not base64 of an X25519"),
        ("sealed", text(bytes(80)), "Field sealed has a wrong length: Keys for .*never have 64"),
        (
            "sealed",
            text(bytes(4241)),
            "Field sealed has a wrong length: Keys for .*never have 4225",
        ),
        ("sealed", 80, "malformed: Expected `str`, got `int`"),
        ("salt", text(bytes(16)), "malformed: .*unknown field `salt`"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_rules_hold_behind_a_good_signature(
    world: Any, data: bytes, field: str, value: Any, message: str
) -> None:
    bundle = parse(data)["bundle"]
    bundle["body"][field] = value
    with pytest.raises(FormatError, match=message):
        KeyBundle.from_bytes(sign(bundle, world.authority.signing_key))


@pytest.mark.parametrize("field", ["encapsulated", "recipient", "sealed"])
def test_missing_fields_are_refused(world: Any, data: bytes, field: str) -> None:
    bundle = parse(data)["bundle"]
    del bundle["body"][field]
    with pytest.raises(FormatError, match=f"malformed: .*missing required field `{field}`"):
        KeyBundle.from_bytes(sign(bundle, world.authority.signing_key))


def test_a_bundle_signed_anew_by_an_attacker_does_not_open(data: bytes) -> None:
    attacker = SigningKey.generate()
    bundle = parse(data)["bundle"]
    bundle["header"]["issuer"] = text(attacker.public_bytes())
    with pytest.raises(SignatureError, match="header or body of key bundle"):
        KeyBundle.from_bytes(sign(bundle, attacker)).unlock(private_key=OWN)


def test_anybody_can_make_a_bundle_but_not_in_the_authoritys_name(
    world: Any, make_authority: Any
) -> None:
    """HPKE names no sender: whose bundle it is, only the issuer's key says (threat model)."""
    stranger = make_authority("ACME")
    made = stranger.bundle(stranger.issue(), passphrase=None, public_key=OWN.public_key)
    bundle = KeyBundle.from_bytes(made)
    bundle.unlock(private_key=OWN)
    assert bundle.issuer != world.authority.signing_key.public_bytes()
    with pytest.raises(ForeignKeyError):
        Decoder.open(world.model, bundle, private_key=OWN)


def test_a_key_that_is_not_the_named_one_is_refused(world: Any, data: bytes) -> None:
    bundle = parse(data)["bundle"]
    other = world.authority.issue().secret_bytes()
    sealed = OWN.public_key.seal(other, info=INFO, associated_data=canonical(bundle["header"]))
    bundle["body"] |= {"encapsulated": text(sealed[0]), "sealed": text(sealed[1])}
    with pytest.raises(FormatError, match="key_id does not belong to the key inside"):
        KeyBundle.from_bytes(sign(bundle, world.authority.signing_key)).unlock(private_key=OWN)


def test_vector_opens() -> None:
    bundle = KeyBundle.from_bytes(VECTORS["key_bundle"].encode("ascii"))
    own = X25519PrivateKey.from_pem(VECTORS["private_key_pem"].encode(), VECTORS["passphrase"])
    assert bundle.header.roles == ["run"]
    keys = bundle.unlock(private_key=own)
    assert keys.secret_bytes().hex() == VECTORS["bundle_keys"]
    assert keys.runner.secret_bytes().hex() == VECTORS["run_key"]
    with pytest.raises(KeyRefusedError, match="does not read their answers"):
        _ = keys.reader
