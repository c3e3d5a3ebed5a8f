"""How a bundle's user key is sealed: with a passphrase, or to the user's public key."""

import contextlib
from typing import Annotated, Final

import msgspec
from Crypto.Random import get_random_bytes

from keras_encryip.client.keypair import KEY_BYTES, X25519PrivateKey, X25519PublicKey
from keras_encryip.crypto.encoding import decode_base64, encode_base64
from keras_encryip.crypto.sealing import (
    MAX_SCRYPT_LOG2_N,
    MIN_SCRYPT_LOG2_N,
    OVERHEAD,
    SALT_BYTES,
    TAG_BYTES,
    passphrase_key,
    seal,
    unseal,
)
from keras_encryip.errors import FormatError, SignatureError

USER_KEY_BYTES: Final = 64
INFO: Final = b"encryip key bundle v2"


class PassphraseBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of version 1: AES-256-GCM under scrypt."""

    salt: str
    scrypt_log2_n: Annotated[int, msgspec.Meta(ge=MIN_SCRYPT_LOG2_N, le=MAX_SCRYPT_LOG2_N)]
    sealed: str

    @classmethod
    def seal(
        cls, secret: bytes, passphrase: str, header: bytes, *, scrypt_log2_n: int
    ) -> "PassphraseBody":
        salt = get_random_bytes(SALT_BYTES)
        sealed = seal(passphrase_key(passphrase, salt, scrypt_log2_n), secret, header)
        return cls(encode_base64(salt), scrypt_log2_n, encode_base64(sealed))

    def check(self) -> None:
        decode_base64(self.salt, what="salt", length=SALT_BYTES)
        decode_base64(self.sealed, what="sealed", length=USER_KEY_BYTES + OVERHEAD)

    def open(self, passphrase: str, header: bytes) -> bytes | None:
        """The secret, or `None`."""
        salt = decode_base64(self.salt, what="salt")
        key = passphrase_key(passphrase, salt, self.scrypt_log2_n)
        with contextlib.suppress(SignatureError):
            return unseal(key, decode_base64(self.sealed, what="sealed"), header)
        return None


class PublicKeyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of version 2: HPKE to the user's X25519 public key."""

    encapsulated: str
    recipient: str
    sealed: str

    @classmethod
    def seal(cls, secret: bytes, public_key: X25519PublicKey, header: bytes) -> "PublicKeyBody":
        encapsulated, sealed = public_key.seal(secret, info=INFO, associated_data=header)
        fields = (encapsulated, public_key.raw, sealed)
        return cls(*(encode_base64(field) for field in fields))

    def check(self) -> None:
        for name in ("encapsulated", "recipient"):
            _public_key(getattr(self, name), name)
        decode_base64(self.sealed, what="sealed", length=USER_KEY_BYTES + TAG_BYTES)

    @property
    def public_key(self) -> X25519PublicKey:
        return _public_key(self.recipient, "recipient")

    def open(self, private_key: X25519PrivateKey, header: bytes) -> bytes | None:
        """The secret, or `None`."""
        encapsulated = decode_base64(self.encapsulated, what="encapsulated")
        sealed = decode_base64(self.sealed, what="sealed")
        with contextlib.suppress(SignatureError):
            return private_key.unseal(encapsulated, sealed, info=INFO, associated_data=header)
        return None


Body = PassphraseBody | PublicKeyBody
BODIES: Final[dict[int, type[Body]]] = {1: PassphraseBody, 2: PublicKeyBody}


def _public_key(text: str, field: str) -> X25519PublicKey:
    with contextlib.suppress(FormatError):
        return X25519PublicKey(decode_base64(text, what=field, length=KEY_BYTES))
    raise FormatError(f"Field {field} is not base64 of an X25519 public key that can be used.")
