"""A user's key file. docs/formats/key-bundle.md describes it byte by byte."""

import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

import msgspec
import numpy as np

from keras_encryip.crypto.aead import DEFAULT_SCRYPT_LOG2_N
from keras_encryip.crypto.encoding import (
    Time,
    canonical_json,
    decode_base64,
    encode_base64,
    format_time,
    parse_canonical_json,
    parse_time,
)
from keras_encryip.crypto.secret import Secret
from keras_encryip.crypto.signing import PUBLIC_BYTES, SIGNATURE_BYTES, SigningKey, verify
from keras_encryip.errors import (
    ArgumentError,
    ExpiredKeyError,
    FormatError,
    KeyRefusedError,
    PassphraseError,
    SignatureError,
    instead_of,
)
from keras_encryip.formats.atomic_files import read_bounded
from keras_encryip.formats.bundle_body import (
    PASSPHRASE,
    PRIVATE_KEY,
    Body,
    PassphraseBody,
    PublicKeyBody,
    read_body,
)
from keras_encryip.formats.bundle_keys import BundleKeys, Role, check_roles
from keras_encryip.formats.key_pair import X25519PrivateKey, X25519PublicKey
from keras_encryip.labels.ciphertext import DIGEST_BYTES, decrypt_labels

FORMAT: Final = "encryip-key-bundle"
VERSION: Final = 3
MAX_BUNDLE_BYTES: Final = 192 << 10
ANY_MODEL: Final = "*"
LEEWAY: Final = timedelta(minutes=5)
"""How far clocks may differ."""

_BEGIN: Final = b"-----BEGIN ENCRYIP KEY BUNDLE-----\n"
_END: Final = b"\n-----END ENCRYIP KEY BUNDLE-----\n"
_DOMAIN: Final = "key bundle v3"
_TAIL: Final = 256
_OLD: Final = re.compile(rb'"version":([12])\}\},"signature"')
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class BundleHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a bundle says in the clear.

    Attributes:
        authority: base64 SHA-256 digest of the authority's public key.
        format: `"encryip-key-bundle"`.
        issued_at, not_before, not_after: UTC, `YYYY-MM-DDThh:mm:ssZ`; advisory.
        issuer: base64 Ed25519 key of the authority.
        issuer_name: free text.
        key_id: 16 hexadecimal digits.
        opens_with: `"passphrase"`, or `"private key"` of the user.
        roles: what the keys are for, sorted: `"read"`, `"run"`.
        scope: names of the models the bundle is meant for; `["*"]` means any.
        subject: who the key was issued to.
        version: 3.
    """

    authority: str
    format: Literal["encryip-key-bundle"]
    issued_at: Time
    issuer: str
    issuer_name: _Name
    key_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
    not_after: Time
    not_before: Time
    opens_with: Literal["passphrase", "private key"]
    roles: list[Role]
    scope: Annotated[list[_Name], msgspec.Meta(min_length=1, max_length=64)]
    subject: _Name
    version: Literal[3]


class _Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    body: dict[str, str | int]
    header: BundleHeader


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bundle: _Signed
    signature: str


class KeyBundle(Secret):
    """A key bundle whose signature has been checked, still sealed.

    Attributes:
        header: `BundleHeader`, what it says in the clear.
        authority, issuer: bytes of its fields.
        not_before, not_after: its dates, in UTC.
        recipient: the `X25519PublicKey` it was made to; `None` if a passphrase opens it.

    Example:
    >>> bundle = KeyBundle.read(folder / "alice.keybundle")
    >>> bundle.header.subject
    'alice'
    >>> keys = bundle.unlock("correct horse")
    >>> keys.roles
    ('read', 'run')
    """

    __slots__ = (
        "_body",
        "_signature",
        "authority",
        "header",
        "issuer",
        "not_after",
        "not_before",
        "recipient",
    )

    def __init__(self, header: BundleHeader, body: Body, signature: str) -> None:
        self.header = header
        self._body = body
        self._signature = signature
        self.authority = decode_base64(header.authority, what="authority", length=DIGEST_BYTES)
        self.issuer = decode_base64(header.issuer, what="issuer", length=PUBLIC_BYTES)
        self.not_before = parse_time(header.not_before, what="not_before")
        self.not_after = parse_time(header.not_after, what="not_after")
        parse_time(header.issued_at, what="issued_at")
        self.recipient = body.public_key if isinstance(body, PublicKeyBody) else None

    def _describe(self) -> str:
        return f"key_id={self.header.key_id} subject={self.header.subject!r}"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "KeyBundle":
        """Read a bundle file and check its form and signature.

        Raises:
            FormatError: as `from_bytes`, or the file cannot be read.
            SignatureError: as `from_bytes`.

        Example:
        >>> KeyBundle.read(folder / "alice.keybundle").header.roles
        ['read', 'run']
        """
        return cls.from_bytes(read_bounded(path, what="key bundle", max_bytes=MAX_BUNDLE_BYTES))

    @classmethod
    def from_bytes(cls, data: bytes) -> "KeyBundle":
        """Parse a bundle; the signature is checked before anything could be decrypted.

        Raises:
            FormatError: malformed, truncated, oversized, unknown version or field.
            SignatureError: the issuer named in the bundle did not sign it.

        Example:
        >>> KeyBundle.from_bytes((folder / "alice.keybundle").read_bytes()).header.subject
        'alice'
        """
        if not data.startswith(_BEGIN) or not data.endswith(_END):
            raise FormatError(
                "This is not a whole key bundle: its first line must be "
                f"{_BEGIN.decode().strip()!r} and its last {_END.decode().strip()!r}, as it "
                "was issued: without a byte order mark, and with LF as line end."
            )
        text = data.removeprefix(_BEGIN).removesuffix(_END)
        if old := _OLD.search(text[-_TAIL:]):
            raise FormatError(
                f"This key bundle has version {old[1].decode()}, which release 0.3 of "
                f"keras_encryip reads; this release reads {VERSION}. Ask the model's owner for a "
                "new one, or use release 0.3."
            )
        file = parse_canonical_json(text, _File, what="key bundle", max_bytes=MAX_BUNDLE_BYTES)
        header = file.bundle.header
        check_roles(header.roles)
        body = read_body(file.bundle.body, header.opens_with, header.roles)
        bundle = cls(header, body, file.signature)
        signature = decode_base64(file.signature, what="signature", length=SIGNATURE_BYTES)
        verify(bundle.issuer, _DOMAIN, canonical_json(file.bundle), signature, what="key bundle")
        return bundle

    def to_bytes(self) -> bytes:
        """The file, at most 192 KiB: still sealed, and signed.

        Example:
        >>> bundle.to_bytes() == (folder / "alice.keybundle").read_bytes()
        True
        """
        signed = _Signed(msgspec.to_builtins(self._body), self.header)
        return _BEGIN + canonical_json(_File(signed, self._signature)) + _END

    def unlock(
        self, passphrase: str | None = None, private_key: X25519PrivateKey | None = None
    ) -> BundleKeys:
        """Decrypt the user's keys. Pass one of the two, as the bundle was made.

        Args:
            passphrase: for a bundle whose `recipient` is `None`.
            private_key: that of the `recipient`.

        Raises:
            ArgumentError: the other one, both or none were passed.
            PassphraseError: wrong passphrase or changed body.
            KeyRefusedError: the bundle was made to another public key.
            SignatureError: header or body were changed since the keys were sealed.
            FormatError: the keys inside are malformed, or not those that the header names.

        Example:
        >>> bundle.unlock("correct horse").key_id == bundle.header.key_id
        True
        """
        opened = self._open(passphrase, private_key)
        keys = BundleKeys.from_secret_bytes(opened, self.header.roles)
        if keys.key_id != self.header.key_id:
            raise FormatError("The key bundle's key_id does not belong to the key inside.")
        return keys

    def _open(self, passphrase: str | None, private_key: X25519PrivateKey | None) -> bytes:
        if private_key is not None and not isinstance(private_key, X25519PrivateKey):
            raise ArgumentError(
                "`private_key` must be an X25519PrivateKey, from `X25519PrivateKey.read(path, "
                f"passphrase)`. Received: {type(private_key).__name__}"
            )
        name = f"key bundle {self.header.key_id} (subject {self.header.subject!r})"
        header = canonical_json(self.header)
        if isinstance(self._body, PassphraseBody):
            if passphrase is None or private_key is not None:
                raise ArgumentError(
                    f"A passphrase opens {name}: pass `passphrase` and nothing else."
                )
            message = f"The passphrase does not open {name}, or its body was changed."
            with instead_of(SignatureError, raises=lambda _: PassphraseError(message)):
                return self._body.open(passphrase, header)
        recipient = self._body.public_key
        if private_key is None or passphrase is not None:
            raise ArgumentError(
                f"The private key of {recipient.fingerprint!r} opens {name}: "
                "pass `private_key`, an `X25519PrivateKey`, and nothing else."
            )
        if private_key.public_key != recipient:
            raise KeyRefusedError(
                f"The {name} was made to the public key {recipient.fingerprint!r}, and not to "
                f"yours, {private_key.public_key.fingerprint!r}. Send yours to the model's owner."
            )
        message = f"The header or body of {name} was changed."
        with instead_of(SignatureError, raises=lambda _: SignatureError(message)):
            return self._body.open(private_key, header)

    def check_dates(self, now: datetime | None = None) -> None:
        """Refuse a bundle outside its dates. Advisory: the holder's clock decides.

        Args:
            now: the moment, timezone-aware; by default this machine's.

        Raises:
            ExpiredKeyError: more than five minutes before `not_before`, which clocks may differ
                by, or after `not_after`.
            ArgumentError: `now` has no timezone.

        Example:
        >>> bundle.check_dates()
        >>> bundle.check_dates(bundle.not_after + timedelta(seconds=1))
        Traceback (most recent call last):
        keras_encryip.errors.ExpiredKeyError: Key bundle ... expired on ...
        """
        if now is not None and now.tzinfo is None:
            raise ArgumentError(f"`now` must have a timezone. Received: now={now}")
        now, name = now or datetime.now(UTC), f"Key bundle {self.header.key_id}"
        if now < self.not_before - LEEWAY:
            why = f"is valid from {self.header.not_before} on; check this machine's clock."
            raise ExpiredKeyError(f"{name} {why}")
        if now > self.not_after:
            why = f"expired on {self.header.not_after}. Ask the model's owner for a new one."
            raise ExpiredKeyError(f"{name} {why}")

    def allows(self, model: str) -> bool:
        """Whether the bundle's scope names this model, or is `["*"]`.

        Example:
        >>> bundle.allows("digits")
        True
        """
        return ANY_MODEL in self.header.scope or model in self.header.scope

    def decrypt(
        self,
        ciphertexts: Iterable[bytes],
        passphrase: str | None = None,
        private_key: X25519PrivateKey | None = None,
    ) -> np.ndarray:
        """Read label ciphertexts with nothing but this bundle.

        Args:
            ciphertexts: outputs `ciphertext_bytes` of the `encrypted_label` signature.
            passphrase: opens the bundle, as for `unlock`; or
            private_key: the one that the bundle was made to.

        Returns:
            int64 `[n]` of class indices.

        Raises:
            KeyRefusedError: the bundle lacks the role `read`.
            ExpiredKeyError: as `check_dates`.
            PassphraseError, ArgumentError, SignatureError: as `unlock`.
            FormatError, RevokedKeyError, ForeignKeyError: as for `decrypt_labels`.

        Example:
        >>> bundle.decrypt(ciphertexts, "correct horse")
        array([7, 2, 1])
        """
        self.check_dates()
        key = self.unlock(passphrase, private_key).reader
        return decrypt_labels(ciphertexts, key, authority=self.authority)


def make_bundle(
    keys: BundleKeys,
    *,
    passphrase: str | None = None,
    public_key: X25519PublicKey | None = None,
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
        keys: the user's, to seal.
        passphrase: opens the bundle; give it to the user another way.
        public_key: or the user's own: its private key opens the bundle.
        subject, issuer_name: 1 … 256 characters.
        authority: digest of the authority's public key.
        signing_key: the authority's.
        not_before, not_after: timezone-aware, in this order.
        scope: model names, or `("*",)`.
        scrypt_log2_n: cost of trying a passphrase, 14 … 20.

    Raises:
        ArgumentError: a field is invalid, or not one of passphrase and public key was passed.
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
        key_id=keys.key_id,
        not_after=format_time(not_after),
        not_before=format_time(not_before),
        opens_with=PASSPHRASE if public_key is None else PRIVATE_KEY,
        roles=list(keys.roles),
        scope=sorted(set(scope)),
        subject=subject,
        version=VERSION,
    )
    secret, context = keys.secret_bytes(), canonical_json(header)
    body: Body
    if passphrase is not None and public_key is None:
        body = PassphraseBody.seal(secret, passphrase, context, scrypt_log2_n=scrypt_log2_n)
    elif isinstance(public_key, X25519PublicKey) and passphrase is None:
        body = PublicKeyBody.seal(secret, public_key, context)
    else:
        raise ArgumentError(
            "Pass either `passphrase` or `public_key`, an `X25519PublicKey`, from "
            "`X25519PublicKey.read(path)`."
        )
    signed = _Signed(msgspec.to_builtins(body), header)
    signature = signing_key.sign(_DOMAIN, canonical_json(signed))
    data = _BEGIN + canonical_json(_File(signed, encode_base64(signature))) + _END
    with instead_of(
        FormatError,
        raises=lambda error: ArgumentError(f"The key bundle's fields are not valid: {error}"),
    ):
        KeyBundle.from_bytes(data)  # what is handed out can be read
    return data
