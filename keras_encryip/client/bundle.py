"""A user's key file. docs/key-bundle.md describes it byte by byte."""

import contextlib
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from Crypto.Random import get_random_bytes

from keras_encryip.client.files import read_bounded
from keras_encryip.crypto.encoding import (
    canonical_json,
    decode_base64,
    encode_base64,
    parse_canonical_json,
)
from keras_encryip.crypto.kem import UserKey
from keras_encryip.crypto.opaque import Opaque
from keras_encryip.crypto.sealing import (
    DEFAULT_SCRYPT_LOG2_N,
    MAX_SCRYPT_LOG2_N,
    MIN_SCRYPT_LOG2_N,
    OVERHEAD,
    SALT_BYTES,
    passphrase_key,
    seal,
    unseal,
)
from keras_encryip.crypto.signing import PUBLIC_BYTES, SIGNATURE_BYTES, SigningKey, verify
from keras_encryip.errors import (
    ArgumentError,
    ExpiredKeyError,
    FormatError,
    PassphraseError,
    SignatureError,
)
from keras_encryip.labels.ciphertext import DIGEST_BYTES, decrypt_labels

FORMAT: Final = "encryip-key-bundle"
VERSION: Final = 1
MAX_BUNDLE_BYTES: Final = 64 << 10
ANY_MODEL: Final = "*"

_BEGIN: Final = b"-----BEGIN ENCRYIP KEY BUNDLE-----\n"
_END: Final = b"\n-----END ENCRYIP KEY BUNDLE-----\n"
_DOMAIN: Final = "key bundle v1"
_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
_USER_KEY_BYTES: Final = 64

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Time = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z\Z")]


class BundleHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a bundle says in the clear.

    Attributes:
        authority: base64 SHA-256 digest of the authority's public key.
        format, version: `"encryip-key-bundle"`, 1.
        issued_at, not_before, not_after: UTC, `YYYY-MM-DDThh:mm:ssZ`; advisory.
        issuer: base64 Ed25519 key of the authority.
        issuer_name: free text.
        key_id: 16 hexadecimal digits.
        scope: names of the models the bundle is meant for; `["*"]` means any.
        subject: who the key was issued to.
    """

    authority: str
    format: Literal["encryip-key-bundle"]
    issued_at: _Time
    issuer: str
    issuer_name: _Name
    key_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
    not_after: _Time
    not_before: _Time
    scope: Annotated[list[_Name], msgspec.Meta(min_length=1, max_length=64)]
    subject: _Name
    version: Literal[1]


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    salt: str
    scrypt_log2_n: Annotated[int, msgspec.Meta(ge=MIN_SCRYPT_LOG2_N, le=MAX_SCRYPT_LOG2_N)]
    sealed: str


class _Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    body: _Body
    header: BundleHeader


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bundle: _Signed
    signature: str


class KeyBundle(Opaque):
    """A key bundle whose signature has been checked, still sealed.

    Attributes:
        header: `BundleHeader`, what it says in the clear.

    Example:
    >>> bundle = KeyBundle.read(folder / "alice.keybundle")
    >>> bundle.header.subject
    'alice'
    >>> key = bundle.unlock("correct horse")
    """

    __slots__ = ("_body", "_signature", "authority", "header", "issuer", "not_after", "not_before")

    def __init__(self, header: BundleHeader, body: _Body, signature: str) -> None:
        self.header = header
        self._body = body
        self._signature = signature
        self.authority = decode_base64(header.authority, what="authority", length=DIGEST_BYTES)
        self.issuer = decode_base64(header.issuer, what="issuer", length=PUBLIC_BYTES)
        self.not_before = _parse_time(header.not_before, "not_before")
        self.not_after = _parse_time(header.not_after, "not_after")
        _parse_time(header.issued_at, "issued_at")
        decode_base64(body.salt, what="salt", length=SALT_BYTES)
        decode_base64(body.sealed, what="sealed", length=_USER_KEY_BYTES + OVERHEAD)

    def _describe(self) -> str:
        return f"key_id={self.header.key_id} subject={self.header.subject!r}"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "KeyBundle":
        """Read a bundle file and check its form and signature."""
        return cls.from_bytes(read_bounded(path, what="key bundle", max_bytes=MAX_BUNDLE_BYTES))

    @classmethod
    def from_bytes(cls, data: bytes) -> "KeyBundle":
        """Parse a bundle; the signature is checked before anything could be decrypted.

        Raises:
            FormatError: malformed, truncated, oversized, unknown version or field.
            SignatureError: the issuer named in the bundle did not sign it.
        """
        if not data.startswith(_BEGIN) or not data.endswith(_END):
            raise FormatError(
                "This is not a whole key bundle: its first line must be "
                f"{_BEGIN.decode().strip()!r} and its last {_END.decode().strip()!r}."
            )
        file = parse_canonical_json(
            data[len(_BEGIN) : len(data) - len(_END)],
            _File,
            what="key bundle",
            max_bytes=MAX_BUNDLE_BYTES,
        )
        bundle = cls(file.bundle.header, file.bundle.body, file.signature)
        signature = decode_base64(file.signature, what="signature", length=SIGNATURE_BYTES)
        verify(bundle.issuer, _DOMAIN, canonical_json(file.bundle), signature, what="key bundle")
        return bundle

    def to_bytes(self) -> bytes:
        """The file: still sealed, and signed."""
        signed = _Signed(self._body, self.header)
        return _BEGIN + canonical_json(_File(signed, self._signature)) + _END

    def unlock(self, passphrase: str) -> UserKey:
        """Decrypt the user key.

        Raises:
            PassphraseError: wrong passphrase or changed body.
        """
        key = passphrase_key(
            passphrase,
            decode_base64(self._body.salt, what="salt"),
            self._body.scrypt_log2_n,
        )
        secret = None
        with contextlib.suppress(SignatureError):
            secret = unseal(
                key, decode_base64(self._body.sealed, what="sealed"), canonical_json(self.header)
            )
        if secret is None:
            raise PassphraseError(
                f"The passphrase does not open key bundle {self.header.key_id} "
                f"(subject {self.header.subject!r}), or its body was changed."
            )
        user_key = UserKey.from_secret_bytes(secret)
        if user_key.key_id != self.header.key_id:
            raise FormatError("The key bundle's key_id does not belong to the key inside.")
        return user_key

    def check_dates(self, now: datetime | None = None) -> None:
        """Refuse a bundle outside its dates. Advisory: the holder's clock decides.

        Raises:
            ExpiredKeyError: before `not_before` or after `not_after`.
        """
        now = now or datetime.now(UTC)
        if now < self.not_before:
            raise ExpiredKeyError(
                f"Key bundle {self.header.key_id} is valid from {self.header.not_before} on; "
                "check this machine's clock."
            )
        if now > self.not_after:
            raise ExpiredKeyError(
                f"Key bundle {self.header.key_id} expired on {self.header.not_after}. "
                "Ask the model's owner for a new one."
            )

    def allows(self, model: str) -> bool:
        """Whether the bundle's scope names this model."""
        return ANY_MODEL in self.header.scope or model in self.header.scope

    def decrypt(self, ciphertexts: Iterable[bytes], passphrase: str) -> np.ndarray:
        """Read label ciphertexts with nothing but this bundle.

        Args:
            ciphertexts: outputs `ciphertext_bytes` of the `encrypted_label` signature.
            passphrase: opens the bundle.

        Returns:
            int64 `[n]` of class indices.
        """
        self.check_dates()
        return decrypt_labels(ciphertexts, self.unlock(passphrase), authority=self.authority)


def make_bundle(
    key: UserKey,
    *,
    passphrase: str,
    subject: str,
    issuer_name: str,
    authority: bytes,
    signing_key: SigningKey,
    not_before: datetime,
    not_after: datetime,
    scope: Iterable[str] = (ANY_MODEL,),
    scrypt_log2_n: int = DEFAULT_SCRYPT_LOG2_N,
) -> bytes:
    """The bytes of a key bundle file (the owner's side).

    Args:
        key: the user key to seal.
        passphrase: opens the bundle; give it to the user another way.
        subject, issuer_name: 1 … 256 characters.
        authority: digest of the authority's public key.
        signing_key: the authority's.
        not_before, not_after: timezone-aware, in this order.
        scope: model names, or `("*",)`.
        scrypt_log2_n: cost of trying a passphrase, 14 … 20.
    """
    if isinstance(scope, str):
        raise ArgumentError(f"`scope` must be a list of model names. Received: scope={scope!r}")
    if not_before.tzinfo is None or not_after.tzinfo is None or not_before > not_after:
        raise ArgumentError(
            "`not_before` and `not_after` must have a timezone and be in this order. "
            f"Received: not_before={not_before}, not_after={not_after}"
        )
    header = BundleHeader(
        authority=encode_base64(authority),
        format=FORMAT,
        issued_at=format_time(datetime.now(UTC)),
        issuer=encode_base64(signing_key.public_bytes()),
        issuer_name=issuer_name,
        key_id=key.key_id,
        not_after=format_time(not_after),
        not_before=format_time(not_before),
        scope=sorted(set(scope)),
        subject=subject,
        version=VERSION,
    )
    salt = get_random_bytes(SALT_BYTES)
    sealed = seal(
        passphrase_key(passphrase, salt, scrypt_log2_n), key.secret_bytes(), canonical_json(header)
    )
    body = _Body(encode_base64(salt), scrypt_log2_n, encode_base64(sealed))
    signed = _Signed(body, header)
    signature = signing_key.sign(_DOMAIN, canonical_json(signed))
    data = _BEGIN + canonical_json(_File(signed, encode_base64(signature))) + _END
    try:
        KeyBundle.from_bytes(data)  # what is handed out can be read
    except FormatError as error:
        raise ArgumentError(f"The key bundle's fields are not valid: {error}") from None
    return data


def format_time(moment: datetime) -> str:
    """UTC to the second, `YYYY-MM-DDThh:mm:ssZ`."""
    return moment.astimezone(UTC).strftime(_TIME_FORMAT)


def _parse_time(text: str, field: str) -> datetime:
    try:
        return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        pass
    raise FormatError(f"Field {field} is not a date of the form YYYY-MM-DDThh:mm:ssZ.")
