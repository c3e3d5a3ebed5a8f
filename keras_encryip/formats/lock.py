"""What a host's key is made from: `lock.json` of a locked export.

docs/formats/locked.md describes the file byte by byte.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from keras_encryip.crypto.aead import seal, unseal
from keras_encryip.crypto.encoding import (
    canonical_json,
    decode_base64,
    encode_base64,
    parse_canonical_json,
)
from keras_encryip.crypto.kem import Header, MasterKey, SharedSecret, UserKey
from keras_encryip.crypto.signing import PUBLIC_BYTES, SIGNATURE_BYTES, SigningKey, verify
from keras_encryip.errors import (
    ForeignKeyError,
    FormatError,
    RevokedKeyError,
    SignatureError,
    instead_of,
)
from keras_encryip.formats.atomic_files import read_bounded
from keras_encryip.formats.version_folder import ASSETS
from keras_encryip.labels.ciphertext import DIGEST_BYTES
from keras_encryip.labels.codebook import Codebook

FORMAT: Final = "encryip-lock"
VERSION: Final = 1
FILE_NAME: Final = "lock.json"
MAX_LOCK_BYTES: Final = 64 << 10

_DOMAIN: Final = "lock v1"
_METADATA_PURPOSE: Final = "lock metadata v1"
_CONTENT_PURPOSE: Final = "locked weights v1"


class _Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What only hosts with a key learn, and by which they know that it is the right one."""

    model: Annotated[str, msgspec.Meta(max_length=256)]


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    authority: str
    codebook_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    format: Literal["encryip-lock"]
    header: str
    issuer: str
    key_file: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    metadata: str
    version: Literal[1]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    body: _Body
    signature: str


@dataclass(frozen=True)
class Lock:
    """A parsed `lock.json`. Everything in it is public.

    Attributes:
        codebook_id: of the codebook beside it.
        authority: SHA-256 digest of the authority's public key.
        issuer: the authority's Ed25519 public key.
        header: of the running polynomial, opens to the secret of this export.
        key_file: where the model looks for its key.
        sealed_metadata: the model's name, under that secret.
        signature: Ed25519 over the canonical body.
    """

    codebook_id: bytes
    authority: bytes
    issuer: bytes
    header: Header
    key_file: str
    sealed_metadata: bytes
    signature: bytes = b""

    # --- files ---------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The signed file, canonical JSON."""
        return canonical_json(_File(self._body(), encode_base64(self.signature)))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Lock":
        """Parse and check the form. The signature is checked by `verify`.

        Raises:
            FormatError: the file is malformed; the message names the field.
        """
        file = parse_canonical_json(data, _File, what="lock", max_bytes=MAX_LOCK_BYTES)
        body = file.body
        return cls(
            bytes.fromhex(body.codebook_id),
            decode_base64(body.authority, what="authority", length=DIGEST_BYTES),
            decode_base64(body.issuer, what="issuer", length=PUBLIC_BYTES),
            Header.from_bytes(decode_base64(body.header, what="lock header")),
            body.key_file,
            decode_base64(body.metadata, what="lock metadata"),
            decode_base64(file.signature, what="lock signature", length=SIGNATURE_BYTES),
        )

    def verify(self, issuer: bytes) -> None:
        """Check that `issuer` (an Ed25519 public key that you trust) signed this lock."""
        if self.issuer != issuer:
            raise ForeignKeyError(
                "The lock was made by another authority than the one that issued this key."
            )
        verify(issuer, _DOMAIN, canonical_json(self._body()), self.signature, what="lock")

    def _body(self) -> _Body:
        return _Body(
            authority=encode_base64(self.authority),
            codebook_id=self.codebook_id.hex(),
            format=FORMAT,
            header=encode_base64(self.header.to_bytes()),
            issuer=encode_base64(self.issuer),
            key_file=self.key_file,
            metadata=encode_base64(self.sealed_metadata),
            version=VERSION,
        )

    # --- making (owner) ------------------------------------------------------

    @classmethod
    def make(
        cls,
        codebook: Codebook,
        model: str,
        master: MasterKey,
        signing_key: SigningKey,
        *,
        key_file: str,
        revoked: Iterable[int] = (),
    ) -> tuple["Lock", bytes]:
        """A new lock for one export, and its content key.

        Args:
            codebook: of the export.
            model: the model's name, for the scope of hosts' bundles.
            master: the polynomial that hosts' keys are points of.
            signing_key: the authority's.
            key_file: where the model will look for its key.
            revoked: the z of at most t users who must not open it.

        Returns:
            (the lock, 32 bytes. Secret.)
        """
        header, secret = master.encapsulate(revoked)
        identity = codebook.codebook_id + codebook.authority
        sealed = seal(secret.derive(_METADATA_PURPOSE), canonical_json(_Metadata(model)), identity)
        issuer = signing_key.public_bytes()
        unsigned = cls(codebook.codebook_id, codebook.authority, issuer, header, key_file, sealed)
        signature = signing_key.sign(_DOMAIN, canonical_json(unsigned._body()))
        lock = cls.from_bytes(replace(unsigned, signature=signature).to_bytes())
        lock.verify(issuer)  # what is handed out can be read
        return lock, secret.derive(_CONTENT_PURPOSE)

    # --- opening -------------------------------------------------------------

    def open(self, key: UserKey) -> tuple[str, bytes]:
        """The model's name, and the 32 bytes of its key. Secret.

        Args:
            key: a point of the running polynomial.

        Raises:
            RevokedKeyError: the key was revoked before the export was made.
            ForeignKeyError: the key is not of this authority.
        """
        revoked = RevokedKeyError(
            f"Key {key.key_id} was revoked before this model version was exported. "
            "Ask the model's owner for a new key."
        )
        with instead_of(RevokedKeyError, raises=lambda _: revoked):
            secret = key.decapsulate(self.header)
        return self._model(secret, key.key_id), secret.derive(_CONTENT_PURPOSE)

    def content_key(self, master: MasterKey) -> bytes:
        """The key, for the owner, whom nobody shuts out. 32 bytes. Secret."""
        secret = master.decapsulate(self.header)
        self._model(secret, "of the owner")
        return secret.derive(_CONTENT_PURPOSE)

    def _model(self, secret: SharedSecret, key_id: str) -> str:
        foreign = ForeignKeyError(
            f"Key {key_id} does not open this lock: another authority issued it."
        )
        with instead_of(SignatureError, raises=lambda _: foreign):
            plaintext = unseal(
                secret.derive(_METADATA_PURPOSE),
                self.sealed_metadata,
                self.codebook_id + self.authority,
            )
        metadata = parse_canonical_json(
            plaintext, _Metadata, what="lock metadata", max_bytes=MAX_LOCK_BYTES
        )
        return metadata.model


def is_locked(directory: str | os.PathLike[str]) -> bool:
    """Whether a version folder is a locked export."""
    return os.path.lexists(Path(directory) / ASSETS / FILE_NAME)


def read_lock(directory: str | os.PathLike[str]) -> Lock:
    """Read `lock.json` of a version folder.

    Raises:
        FormatError: the folder is no locked export, or the file is malformed.
    """
    path = Path(directory) / ASSETS / FILE_NAME
    if not is_locked(directory) and os.path.isdir(Path(directory) / ASSETS):
        raise FormatError(
            f"{os.fspath(directory)!r} is not the version folder of a locked export: it has no "
            f"{(ASSETS / FILE_NAME).as_posix()!r}. Other exports run without a key."
        )
    return Lock.from_bytes(read_bounded(path, what="lock", max_bytes=MAX_LOCK_BYTES))
