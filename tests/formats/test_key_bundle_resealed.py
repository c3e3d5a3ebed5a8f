"""Key bundles that their own issuer sealed and signed around something else."""

import json
from base64 import b64encode

import pytest

from keras_encryip.crypto.aead import passphrase_key, seal
from keras_encryip.crypto.encoding import canonical_json
from keras_encryip.errors import EncryipError, FormatError
from keras_encryip.formats.key_bundle import KeyBundle
from tests.bundles import PASSPHRASE, new_authority

AUTHORITY = new_authority()
ALICE = AUTHORITY.issue("run")
HOST, READER = AUTHORITY.bundle(ALICE), AUTHORITY.bundle(AUTHORITY.issue())


def reseal(data: bytes, secret: bytes) -> bytes:
    """A bundle with other bytes inside."""
    begin, line, end = data.splitlines()
    bundle = json.loads(line)["bundle"]
    salt = bytes(16)
    sealed = seal(passphrase_key(PASSPHRASE, salt, 14), secret, canonical_json(bundle["header"]))
    bundle["body"] |= {"salt": b64encode(salt).decode(), "sealed": b64encode(sealed).decode()}
    signature = AUTHORITY.signing_key.sign("key bundle v3", canonical_json(bundle))
    file = {"bundle": bundle, "signature": b64encode(signature).decode()}
    return b"\n".join((begin, canonical_json(file), end, b""))


def test_a_key_that_is_not_the_named_one_is_refused() -> None:
    assert KeyBundle.from_bytes(reseal(HOST, ALICE.secret_bytes())).unlock(PASSPHRASE).z == ALICE.z
    other = KeyBundle.from_bytes(reseal(HOST, AUTHORITY.issue("run").secret_bytes()))
    with pytest.raises(FormatError, match="key_id does not belong to the key inside"):
        other.unlock(PASSPHRASE)


@pytest.mark.parametrize("scalar", [bytes(32), b"\xff" * 32], ids=["zero", "too large"])
@pytest.mark.parametrize("at", [0, 32])
def test_scalars_out_of_range_are_refused_inside(at: int, scalar: bytes) -> None:
    secret = ALICE.secret_bytes()
    changed = KeyBundle.from_bytes(reseal(HOST, secret[:at] + scalar + secret[at + 32 :]))
    with pytest.raises(
        FormatError, match=r"User key (z|value) is not a scalar in 1 … q−1"
    ) as caught:
        changed.unlock(PASSPHRASE)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (96 + 129 * 31, "Keys for read and run never have 4095 bytes"),  # 248 slots
        (96 + 129 * 32 - 1, "never have 4223 bytes"),
        (96 + 129 * 32 + 16, "never have 4240 bytes"),
        (96 + 129 * 32 + 17, "never have 4241 bytes"),  # one bit and one key more
        (64 + 129 * 32, "never have 4192 bytes"),  # of one role
        (96 + 129 * 513, "never have 66273 bytes"),  # 4,104 slots
        (96, "never have 96 bytes"),
        (0, "never have 0 bytes"),
    ],
)
def test_lengths_that_no_slots_have_are_refused(length: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        KeyBundle.from_bytes(reseal(READER, bytes(length)))


@pytest.mark.parametrize("slots", [256, 264, 1024, 4096])
def test_the_length_tells_the_number_of_slots(slots: int) -> None:
    opened = KeyBundle.from_bytes(READER).unlock(PASSPHRASE).secret_bytes()
    secret = opened[:96] + bytes(slots // 8 * 129)
    keys = KeyBundle.from_bytes(reseal(READER, secret)).unlock(PASSPHRASE)
    assert len(keys.reader.slots.bits) == slots


def test_a_bundle_that_reads_can_be_cut_and_changed_nowhere() -> None:
    for length in range(len(READER)):
        with pytest.raises(FormatError, match="This is not a whole key bundle"):
            KeyBundle.from_bytes(READER[:length])
    for at in range(35, len(READER), 23):
        with pytest.raises(EncryipError, match=r"(?i)key bundle|field"):
            KeyBundle.from_bytes(READER[:at] + bytes([READER[at] ^ 1]) + READER[at + 1 :])
