"""The public table that gives every confused label its ciphertext.

docs/formats/codebook.md describes the file byte by byte.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from Crypto.Random import get_random_bytes

from keras_encryip.crypto.aead import seal, unseal
from keras_encryip.crypto.encoding import (
    canonical_json,
    decode_base64,
    encode_base64,
    parse_canonical_json,
)
from keras_encryip.crypto.kem import Header, MasterKey, SharedSecret, UserKey
from keras_encryip.crypto.signing import PUBLIC_BYTES, SIGNATURE_BYTES, SigningKey, verify
from keras_encryip.crypto.slots import ReaderKey, SlotSecrets
from keras_encryip.errors import (
    ForeignKeyError,
    FormatError,
    RevokedKeyError,
    SignatureError,
    instead_of,
)
from keras_encryip.labels.assignment import MAX_CLASSES, MAX_LABELS, LabelAssignment
from keras_encryip.labels.ciphertext import (
    CODEBOOK_ID_BYTES,
    DIGEST_BYTES,
    ciphertext_prefix,
    ciphertext_suffix,
    label_keys,
    label_masks,
    read_labels,
)

FORMAT: Final = "encryip-codebook"
VERSION: Final = 2
MAX_CODEBOOK_BYTES: Final = 256 << 20
FILE_NAME: Final = "codebook.json"
_DOMAIN: Final = "codebook v2"
_METADATA_PURPOSE: Final = "model metadata v2"
_RESPONSE_PURPOSE: Final = "hosted responses v2"

_OLD: Final = b'"version":1}'
_OLD_TAIL: Final = 256

_Name = Annotated[str, msgspec.Meta(max_length=256)]


class ModelMetadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What only key holders learn: sealed under the codebook's secret."""

    model: _Name
    class_names: list[_Name]
    notes: Annotated[str, msgspec.Meta(max_length=65536)] = ""


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    authority: str
    codebook_id: str
    format: Literal["encryip-codebook"]
    header: str
    issuer: str
    metadata: str
    num_classes: Annotated[int, msgspec.Meta(ge=2, le=MAX_CLASSES)]
    slots: str
    values: str
    version: Literal[2]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    body: _Body
    signature: str


@dataclass(frozen=True)
class Codebook:
    """A parsed codebook. Everything in it is public.

    Attributes:
        codebook_id: 16 random bytes.
        authority: SHA-256 digest of the authority's public key.
        issuer: the authority's Ed25519 public key.
        num_classes: K.
        header: opens to the secret of all labels.
        sealed_metadata: under that secret.
        masked_slots: uint16 `[N]`, the slot of every confused label, masked (`label_keys`).
        values: uint32 `[N, 2]`, e[j, v] for users whose bit at the label's slot is v.
        signature: Ed25519 over the canonical body.
    """

    codebook_id: bytes
    authority: bytes
    issuer: bytes
    num_classes: int
    header: Header
    sealed_metadata: bytes
    masked_slots: np.ndarray
    values: np.ndarray
    signature: bytes = b""

    @property
    def num_labels(self) -> int:
        return len(self.values)

    # --- files ---------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The signed file, canonical JSON."""
        return canonical_json(_File(self._body(), encode_base64(self.signature)))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Codebook":
        """Parse and check the form. The signature is checked by `verify`.

        Raises:
            FormatError: the file is malformed; the message names the field.
        """
        if _OLD in data[-_OLD_TAIL:]:
            raise FormatError(
                "This codebook has version 1, which release 0.3 of keras_encryip reads; this "
                f"release reads {VERSION}. Export the model anew, or use release 0.3."
            )
        file = parse_canonical_json(data, _File, what="codebook", max_bytes=MAX_CODEBOOK_BYTES)
        body = file.body
        slots = np.frombuffer(decode_base64(body.slots, what="codebook slots"), ">u1")
        if len(slots) % 2 or not 4 <= len(slots) <= 2 * MAX_LABELS:
            raise FormatError(f"The codebook must have 2 … {MAX_LABELS} labels, 2 bytes each.")
        slots = slots.view(">u2").astype(np.uint16)
        raw = decode_base64(body.values, what="codebook values", length=8 * len(slots))
        values = np.frombuffer(raw, ">u4").astype(np.uint32).reshape(-1, 2)
        if values.max() >= body.num_classes:
            raise FormatError("A codebook value is not below num_classes.")
        return cls(
            decode_base64(body.codebook_id, what="codebook_id", length=CODEBOOK_ID_BYTES),
            decode_base64(body.authority, what="authority", length=DIGEST_BYTES),
            decode_base64(body.issuer, what="issuer", length=PUBLIC_BYTES),
            body.num_classes,
            Header.from_bytes(decode_base64(body.header, what="codebook header")),
            decode_base64(body.metadata, what="codebook metadata"),
            slots,
            values,
            decode_base64(file.signature, what="codebook signature", length=SIGNATURE_BYTES),
        )

    def verify(self, issuer: bytes) -> None:
        """Check that `issuer` (an Ed25519 public key that you trust) signed this codebook."""
        if self.issuer != issuer:
            raise ForeignKeyError(
                "The codebook was made by another authority than the one that issued this key."
            )
        verify(issuer, _DOMAIN, canonical_json(self._body()), self.signature, what="codebook")

    def _body(self) -> _Body:
        return _Body(
            authority=encode_base64(self.authority),
            codebook_id=encode_base64(self.codebook_id),
            format=FORMAT,
            header=encode_base64(self.header.to_bytes()),
            issuer=encode_base64(self.issuer),
            metadata=encode_base64(self.sealed_metadata),
            num_classes=self.num_classes,
            slots=encode_base64(self.masked_slots.astype(">u2").tobytes()),
            values=encode_base64(self.values.astype(">u4").tobytes()),
            version=VERSION,
        )

    # --- making (owner) ------------------------------------------------------

    @classmethod
    def make(
        cls,
        assignment: LabelAssignment,
        metadata: ModelMetadata,
        master: MasterKey,
        slots: SlotSecrets,
        signing_key: SigningKey,
        *,
        revoked: Iterable[int] = (),
    ) -> "Codebook":
        """Encrypt an assignment to all users but the revoked ones.

        Args:
            assignment: the secret label assignment.
            metadata: sealed together with it.
            master: the polynomial that readers' keys are points of.
            slots: the authority's slot keys.
            signing_key: the authority's.
            revoked: the z of at most t users who must not open it.
        """
        header, secret = master.encapsulate(revoked)
        keys, slot_masks = label_keys(secret, np.arange(assignment.num_labels))
        versions, classes = assignment.versions, assignment.num_classes
        masks = [label_masks(slots.keys[assignment.slots, v], keys, classes) for v in (0, 1)]
        authority = master.public_key().digest
        codebook_id = get_random_bytes(CODEBOOK_ID_BYTES)
        sealed = seal(
            secret.derive(_METADATA_PURPOSE), canonical_json(metadata), codebook_id + authority
        )
        unsigned = cls(
            codebook_id,
            authority,
            signing_key.public_bytes(),
            classes,
            header,
            sealed,
            assignment.slots ^ slot_masks,
            ((versions + np.stack(masks, 1)) % classes).astype(np.uint32),
        )
        return replace(
            unsigned, signature=signing_key.sign(_DOMAIN, canonical_json(unsigned._body()))
        )

    # --- reading (key holder) ------------------------------------------------

    def open(self, key: ReaderKey) -> tuple[ModelMetadata, np.ndarray, bytes]:
        """All that a key reads, for one decapsulation.

        Returns:
            (as `open_metadata`, which comes first; as `decode_table`; as `response_key`).

        Raises:
            RevokedKeyError: the key was revoked before the codebook was made.
            ForeignKeyError: the key is not of this authority.
        """
        secret = self._secret(key.point)
        metadata = self._metadata(secret, key.key_id)
        return metadata, self._table(secret, key), secret.derive(_RESPONSE_PURPOSE)

    def open_metadata(self, key: UserKey) -> ModelMetadata:
        """The sealed metadata: the test of whether the key may read this model.

        Raises:
            RevokedKeyError: the key was revoked before the codebook was made.
            ForeignKeyError: the key is not of this authority.
        """
        return self._metadata(self._secret(key), key.key_id)

    def response_key(self, key: UserKey | MasterKey) -> bytes:
        """What a host encrypts its responses with, 32 bytes.

        Access is not checked here: a foreign key gets other bytes. The owner's opens it always.

        Raises:
            RevokedKeyError: the key was revoked before the codebook was made.
        """
        return self._secret(key).derive(_RESPONSE_PURPOSE)

    def decode_table(self, key: ReaderKey) -> np.ndarray:
        """int32 `[N]`: the class that each confused label stands for, to this key.

        Access is not checked here: a foreign key gets a table of random classes.

        Raises:
            RevokedKeyError: the key was revoked before the codebook was made.
        """
        return self._table(self._secret(key.point), key)

    def _secret(self, key: UserKey | MasterKey) -> SharedSecret:
        if isinstance(key, MasterKey):  # nobody shuts out the owner
            return key.decapsulate(self.header)
        revoked = RevokedKeyError(
            f"Key {key.key_id} was revoked before this model version was exported. "
            "Ask the model's owner for a new key."
        )
        with instead_of(RevokedKeyError, raises=lambda _: revoked):
            return key.decapsulate(self.header)

    def _metadata(self, secret: SharedSecret, key_id: str) -> ModelMetadata:
        context = self.codebook_id + self.authority
        with instead_of(SignatureError, raises=lambda _: _foreign(key_id)):
            plaintext = unseal(secret.derive(_METADATA_PURPOSE), self.sealed_metadata, context)
        metadata = parse_canonical_json(
            plaintext, ModelMetadata, what="model metadata", max_bytes=MAX_CODEBOOK_BYTES
        )
        if len(metadata.class_names) != self.num_classes:
            raise FormatError("The model metadata names another number of classes.")
        return metadata

    def _table(self, secret: SharedSecret, key: ReaderKey) -> np.ndarray:
        labels = np.arange(self.num_labels)
        slots, values = self.masked_slots, self.values
        return read_labels(secret, key.slots, labels, slots, values, self.num_classes)

    def read_label(self, label: int, bit: int, label_key: bytes, slot_key: bytes) -> int:
        """The class of one label to users with a bit, given its key and its slot's: evidence."""
        slot_keys, keys = (np.frombuffer(k, np.uint8)[None] for k in (slot_key, label_key))
        mask = int(label_masks(slot_keys, keys, self.num_classes)[0])
        return (int(self.values[label, bit]) - mask) % self.num_classes

    # --- ciphertexts ---------------------------------------------------------

    @cached_property
    def ciphertext_prefix(self) -> bytes:
        """The bytes that all its label ciphertexts begin with."""
        return ciphertext_prefix(self.codebook_id, self.authority, self.num_classes, self.header)

    @cached_property
    def ciphertext_suffixes(self) -> tuple[bytes, ...]:
        """For each confused label, the bytes that its ciphertext ends with."""
        pairs = zip(self.masked_slots.tolist(), self.values.tolist(), strict=True)
        return tuple(ciphertext_suffix(slot, j, pair) for j, (slot, pair) in enumerate(pairs))

    def ciphertext(self, label: int) -> bytes:
        """The `LabelCiphertext` bytes of one confused label."""
        return self.ciphertext_prefix + self.ciphertext_suffixes[label]


def _foreign(key_id: str) -> ForeignKeyError:
    return ForeignKeyError(
        f"Key {key_id} does not open this codebook: another authority issued it."
    )
