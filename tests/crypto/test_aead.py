"""AES-256-GCM and scrypt, against published vectors and another implementation."""

import hashlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_encryip.crypto.aead import OVERHEAD, passphrase_key, seal, unseal
from keras_encryip.errors import ArgumentError, FormatError, SignatureError

KEY = bytes(range(32))
SALT = bytes(range(16))


def test_gcm_vector() -> None:
    """McGrew and Viega, *The Galois/Counter Mode of Operation*, test case 16."""
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    nonce = bytes.fromhex("cafebabefacedbaddecaf888")
    plaintext = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    associated_data = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    sealed = nonce + bytes.fromhex(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    )
    assert seal(key, plaintext, associated_data, random_bytes=lambda n: nonce[:n]) == sealed
    assert unseal(key, sealed, associated_data) == plaintext


@given(st.binary(max_size=100), st.binary(max_size=20))
def test_round_trip(plaintext: bytes, associated_data: bytes) -> None:
    sealed = seal(KEY, plaintext, associated_data)
    assert len(sealed) == len(plaintext) + OVERHEAD == len(plaintext) + 28
    assert unseal(KEY, sealed, associated_data) == plaintext


def test_equal_plaintexts_are_sealed_differently() -> None:
    assert seal(KEY, b"x", b"") != seal(KEY, b"x", b"")


def test_every_flipped_bit_is_refused() -> None:
    sealed = seal(KEY, b"some plaintext", b"context")
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError, match="cannot be opened with this key, or was changed"):
            unseal(KEY, bytes(changed), b"context")


def test_every_truncation_is_refused() -> None:
    sealed = seal(KEY, b"some plaintext", b"context")
    for length in range(len(sealed)):
        message = "too short" if length < OVERHEAD else "cannot be opened"
        with pytest.raises(SignatureError, match=message):
            unseal(KEY, sealed[:length], b"context")


@pytest.mark.parametrize(
    ("key", "associated_data"),
    [
        pytest.param(bytes(32), b"context", id="another key"),
        pytest.param(KEY, b"contexts", id="another context"),
        pytest.param(KEY, b"", id="no context"),
    ],
)
def test_another_key_or_context_is_refused(key: bytes, associated_data: bytes) -> None:
    sealed = seal(KEY, b"some plaintext", b"context")
    with pytest.raises(SignatureError, match="cannot be opened with this key") as caught:
        unseal(key, sealed, associated_data)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("log2_n", [14, 15])
def test_passphrase_key_is_scrypt(log2_n: int) -> None:
    expected = hashlib.scrypt(
        b"correct horse", salt=SALT, n=2**log2_n, r=8, p=1, dklen=32, maxmem=2**26
    )
    assert passphrase_key("correct horse", SALT, log2_n) == expected


def test_passphrases_are_normalised() -> None:
    """The same letters typed on two systems: one code point, or letter and accent."""
    composed, decomposed = "h\u00f6rse", "ho\u0308rse"
    assert unicodedata.normalize("NFC", decomposed) == composed != decomposed
    assert passphrase_key(decomposed, SALT, 14) == passphrase_key(composed, SALT, 14)
    assert passphrase_key("horse", SALT, 14) != passphrase_key(composed, SALT, 14)


@pytest.mark.parametrize("log2_n", [-1, 0, 13, 21, 64])
def test_costs_out_of_bounds_are_refused(log2_n: int) -> None:
    message = rf"scrypt cost 2\^{log2_n} is outside 2\^14 … 2\^20"
    with pytest.raises(FormatError, match=message):
        passphrase_key("x", SALT, log2_n)


@pytest.mark.parametrize("passphrase", ["", None, b"bytes"], ids=repr)
def test_empty_and_non_text_passphrases_are_refused(passphrase: str) -> None:
    with pytest.raises(ArgumentError, match="`passphrase` must be a string that is not empty"):
        passphrase_key(passphrase, SALT, 14)


def test_a_passphrase_read_from_other_bytes_is_refused_without_showing_it() -> None:
    from_environment = b"secret \xff".decode("utf-8", "surrogateescape")
    with pytest.raises(ArgumentError, match="`passphrase` is not Unicode text") as caught:
        passphrase_key(from_environment, SALT, 14)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("size", [0, 15, 17])
def test_salts_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(FormatError, match="A scrypt salt has 16 bytes"):
        passphrase_key("x", bytes(size), 14)
