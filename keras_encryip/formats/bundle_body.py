"""The sealed body of a key bundle: under a passphrase, or to the user's own public key."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import msgspec
from Crypto.Random import get_random_bytes

from keras_encryip.crypto.aead import (
    MAX_SCRYPT_LOG2_N,
    MIN_SCRYPT_LOG2_N,
    OVERHEAD,
    SALT_BYTES,
    TAG_BYTES,
    passphrase_key,
    seal,
    unseal,
)
from keras_encryip.crypto.encoding import decode_base64, encode_base64
from keras_encryip.errors import FormatError, instead_of
from keras_encryip.formats.bundle_keys import check_length
from keras_encryip.formats.key_pair import KEY_BYTES, X25519PrivateKey, X25519PublicKey

INFO: Final = b"encryip key bundle v3"
PASSPHRASE: Final = "passphrase"
PRIVATE_KEY: Final = "private key"


class PassphraseBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """AES-256-GCM under scrypt."""

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

    def check(self, roles: Sequence[str]) -> None:
        decode_base64(self.salt, what="salt", length=SALT_BYTES)
        _check_sealed(self.sealed, OVERHEAD, roles)

    def open(self, passphrase: str, header: bytes) -> bytes:
        """The secret; raises `SignatureError` if it does not open."""
        salt = decode_base64(self.salt, what="salt")
        key = passphrase_key(passphrase, salt, self.scrypt_log2_n)
        return unseal(key, decode_base64(self.sealed, what="sealed"), header)


class PublicKeyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """HPKE to the user's X25519 public key."""

    encapsulated: str
    recipient: str
    sealed: str

    @classmethod
    def seal(cls, secret: bytes, public_key: X25519PublicKey, header: bytes) -> "PublicKeyBody":
        encapsulated, sealed = public_key.seal(secret, info=INFO, associated_data=header)
        return cls(*map(encode_base64, (encapsulated, public_key.raw, sealed)))

    def check(self, roles: Sequence[str]) -> None:
        for name in ("encapsulated", "recipient"):
            _public_key(getattr(self, name), name)
        _check_sealed(self.sealed, TAG_BYTES, roles)

    @property
    def public_key(self) -> X25519PublicKey:
        return _public_key(self.recipient, "recipient")

    def open(self, private_key: X25519PrivateKey, header: bytes) -> bytes:
        """The secret; raises `SignatureError` if it does not open."""
        encapsulated = decode_base64(self.encapsulated, what="encapsulated")
        sealed = decode_base64(self.sealed, what="sealed")
        return private_key.unseal(encapsulated, sealed, info=INFO, associated_data=header)


Body = PassphraseBody | PublicKeyBody

_BODIES: Final[dict[str, type[Body]]] = {PASSPHRASE: PassphraseBody, PRIVATE_KEY: PublicKeyBody}


def read_body(fields: Mapping[str, str | int], opens_with: str, roles: Sequence[str]) -> Body:
    """The body of a bundle, checked against what its header says.

    Args:
        fields: as parsed.
        opens_with: `PASSPHRASE` or `PRIVATE_KEY`.
        roles: of the keys inside.

    Raises:
        FormatError
    """
    with instead_of(
        msgspec.ValidationError,
        raises=lambda error: FormatError(
            f"The key bundle is malformed: {error} in a body that a {opens_with} opens"
        ),
    ):
        body = msgspec.convert(fields, _BODIES[opens_with])
    body.check(roles)
    return body


def _check_sealed(sealed: str, overhead: int, roles: Sequence[str]) -> None:
    length = len(decode_base64(sealed, what="sealed")) - overhead
    with instead_of(
        FormatError, raises=lambda error: FormatError(f"Field sealed has a wrong length: {error}")
    ):
        check_length(length, roles)


def _public_key(text: str, field: str) -> X25519PublicKey:
    message = f"Field {field} is not base64 of an X25519 public key that can be used."
    with instead_of(FormatError, raises=lambda _: FormatError(message)):
        return X25519PublicKey(decode_base64(text, what=field, length=KEY_BYTES))
