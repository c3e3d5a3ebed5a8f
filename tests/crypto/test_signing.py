"""Ed25519 over domain-separated digests."""

import hashlib

import pytest
from Crypto.Signature import eddsa

from keras_encryip.crypto.signing import SigningKey, verify
from keras_encryip.errors import FormatError, SignatureError

# RFC 8032, section 7.1, test 1.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
ORDER = 2**252 + 27742317777372353535851937790883648493
WRONG = "The signature of the thing is wrong: it was changed, or is forged"


def check(
    message: bytes, signature: bytes, *, public: bytes = PUBLIC, domain: str = "thing v1"
) -> None:
    verify(public, domain, message, signature, what="thing")


def test_public_key_vector() -> None:
    assert SigningKey(SEED).public_bytes() == PUBLIC
    assert SigningKey(SEED).secret_bytes() == SEED


def test_what_is_signed() -> None:
    """PureEd25519 over `encryip DOMAIN`, a zero byte, and the message's SHA-512 digest."""
    signature = SigningKey(SEED).sign("thing v1", b"message")
    signed = b"encryip thing v1\0" + hashlib.sha512(b"message").digest()
    eddsa.new(eddsa.import_public_key(PUBLIC), "rfc8032").verify(signed, signature)
    assert len(signature) == 64
    check(b"message", signature)


def test_signing_is_deterministic() -> None:
    first, second = SigningKey(SEED), SigningKey(SEED)
    assert first.sign("thing v1", b"message") == second.sign("thing v1", b"message")


def test_generated_keys_differ_and_use_the_given_bytes() -> None:
    assert SigningKey.generate().public_bytes() != SigningKey.generate().public_bytes()
    assert SigningKey.generate(random_bytes=lambda n: SEED[:n]).public_bytes() == PUBLIC


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        pytest.param("thing v2", b"message", id="another domain"),
        pytest.param("thing v1", b"Message", id="another message"),
        pytest.param("thing v1", b"", id="empty message"),
        pytest.param("thing v", b"1message", id="shifted border"),
    ],
)
def test_other_uses_are_refused(domain: str, message: bytes) -> None:
    signature = SigningKey(SEED).sign("thing v1", b"message")
    with pytest.raises(SignatureError, match=WRONG):
        check(message, signature, domain=domain)


def test_every_flipped_bit_is_refused() -> None:
    signature = SigningKey(SEED).sign("thing v1", b"message")
    for bit in range(512):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError, match=WRONG):
            check(b"message", bytes(changed))


def test_every_truncation_is_refused() -> None:
    signature = SigningKey(SEED).sign("thing v1", b"message")
    for changed in [signature[:n] for n in range(64)] + [signature + b"\0"]:
        with pytest.raises(SignatureError, match=WRONG):
            check(b"message", changed)


def test_a_second_spelling_of_the_same_signature_is_refused() -> None:
    """RFC 8032, section 5.1.7: S must be below the group order."""
    signature = SigningKey(SEED).sign("thing v1", b"message")
    larger = int.from_bytes(signature[32:], "little") + ORDER
    with pytest.raises(SignatureError, match=WRONG):
        check(b"message", signature[:32] + larger.to_bytes(32, "little"))


@pytest.mark.parametrize(
    "public",
    [
        pytest.param(SigningKey(bytes(32)).public_bytes(), id="another key"),
        pytest.param(b"", id="empty"),
        pytest.param(PUBLIC[:31], id="short"),
        pytest.param(PUBLIC + b"\0", id="long"),
        pytest.param(b"\xff" * 32, id="y above p"),
        pytest.param(b"\x02" + bytes(31), id="not on the curve"),
        pytest.param(b"\x04" + PUBLIC * 2, id="length of a P-256 point"),
        pytest.param(PUBLIC + bytes(25), id="length of an Ed448 key"),
    ],
)
def test_other_public_keys_are_refused(public: bytes) -> None:
    signature = SigningKey(SEED).sign("thing v1", b"message")
    with pytest.raises(SignatureError, match=WRONG) as caught:
        check(b"message", signature, public=public)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("size", [0, 31, 33])
def test_seeds_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(FormatError, match="A signing seed has 32 bytes"):
        SigningKey(bytes(size))
