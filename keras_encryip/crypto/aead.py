"""Authenticated encryption (AES-256-GCM, NIST SP 800-38D); passphrase keys (scrypt, RFC 7914)."""

import unicodedata
from typing import Final

from Crypto.Cipher import AES
from Crypto.Cipher._mode_gcm import GcmMode
from Crypto.Protocol.KDF import scrypt
from Crypto.Random import get_random_bytes

from keras_encryip.crypto.polynomial import RandomBytes
from keras_encryip.errors import (
    ArgumentError,
    FormatError,
    PassphraseError,
    SignatureError,
    instead_of,
)

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
SALT_BYTES: Final = 16
OVERHEAD: Final = NONCE_BYTES + TAG_BYTES

MIN_SCRYPT_LOG2_N: Final = 14
MAX_SCRYPT_LOG2_N: Final = 20
DEFAULT_SCRYPT_LOG2_N: Final = 16


def gcm(key: bytes, nonce: bytes, associated_data: bytes) -> GcmMode:
    """AES-GCM for one message."""
    cipher = AES.new(key, AES.MODE_GCM, nonce=nonce)
    cipher.update(associated_data)
    return cipher


def seal(
    key: bytes,
    plaintext: bytes,
    associated_data: bytes,
    *,
    random_bytes: RandomBytes = get_random_bytes,
) -> bytes:
    """Encrypt under a 32-byte key. Returns nonce (12) ‖ ciphertext ‖ tag (16)."""
    nonce = random_bytes(NONCE_BYTES)
    ciphertext, tag = gcm(key, nonce, associated_data).encrypt_and_digest(plaintext)
    return nonce + ciphertext + tag


def unseal(key: bytes, sealed: bytes, associated_data: bytes) -> bytes:
    """Decrypt what `seal` made.

    Raises:
        SignatureError: wrong key, or any byte was changed. One message for all.
    """
    if len(sealed) < OVERHEAD:
        raise SignatureError("The sealed data is too short.")
    nonce, ciphertext, tag = (
        sealed[:NONCE_BYTES],
        sealed[NONCE_BYTES:-TAG_BYTES],
        sealed[-TAG_BYTES:],
    )
    message = "The sealed data cannot be opened with this key, or was changed."
    with instead_of(ValueError, raises=lambda _: SignatureError(message)):
        return gcm(key, nonce, associated_data).decrypt_and_verify(ciphertext, tag)


def passphrase_bytes(passphrase: str) -> bytes:
    """The passphrase as NFC-normalised UTF-8: the same from every keyboard.

    Raises:
        ArgumentError: it is empty, or not Unicode text.
    """
    if not isinstance(passphrase, str) or not passphrase:
        raise ArgumentError("`passphrase` must be a string that is not empty.")
    message = "`passphrase` is not Unicode text: it was read from bytes that are not UTF-8."
    with instead_of(UnicodeEncodeError, raises=lambda _: ArgumentError(message)):
        return unicodedata.normalize("NFC", passphrase).encode("utf-8")


def passphrase_key(passphrase: str, salt: bytes, log2_n: int) -> bytes:
    """scrypt over the bytes of a passphrase, r = 8, p = 1 and N = 2^log2_n.

    The cost is bounded both ways: 2^14 … 2^20, that is 16 MiB … 1 GiB of memory.
    """
    password = passphrase_bytes(passphrase)
    if not MIN_SCRYPT_LOG2_N <= log2_n <= MAX_SCRYPT_LOG2_N:
        raise FormatError(
            f"The scrypt cost 2^{log2_n} is outside 2^{MIN_SCRYPT_LOG2_N} … 2^{MAX_SCRYPT_LOG2_N}."
        )
    if len(salt) != SALT_BYTES:
        raise FormatError(f"A scrypt salt has {SALT_BYTES} bytes.")
    needed = 1 << log2_n - 10
    with instead_of(
        *(MemoryError, ValueError, OSError),
        raises=lambda _: PassphraseError(
            f"Trying a passphrase needs {needed} MiB of memory here (scrypt, N = 2^{log2_n}), and "
            "the system gives less. Free some, or raise this process's limit."
        ),
    ):
        key = scrypt(password, salt, KEY_BYTES, 1 << log2_n, 8, 1)
    assert isinstance(key, bytes)  # a tuple only for num_keys > 1
    return key
