"""The public table that gives every confused label its ciphertext.

docs/codebook.md describes the file byte by byte.
"""

from collections.abc import Iterable, Sequence
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
from keras_encryip.crypto.tracing_header import TracingHeader
from keras_encryip.errors import (
    ForeignKeyError,
    FormatError,
    RevokedKeyError,
    SignatureError,
    instead_of,
)
from keras_encryip.labels.assignment import (
    MAX_BLOCKS,
    MAX_CLASSES,
    MAX_LABELS,
    TRACE,
    LabelAssignment,
)
from keras_encryip.labels.ciphertext import (
    CODEBOOK_ID_BYTES,
    DIGEST_BYTES,
    ciphertext_prefix,
    ciphertext_suffix,
    label_masks,
    mask_key,
)

FORMAT: Final = "encryip-codebook"
VERSION: Final = 1
MAX_CODEBOOK_BYTES: Final = 256 << 20
FILE_NAME: Final = "codebook.json"
_DOMAIN: Final = "codebook v1"
_ACCESS_PURPOSE: Final = "access metadata v1"
_RESPONSE_PURPOSE: Final = "hosted responses v1"

_Name = Annotated[str, msgspec.Meta(max_length=256)]


class ModelMetadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What only key holders learn: sealed under the access header."""

    model: _Name
    class_names: list[_Name]
    notes: Annotated[str, msgspec.Meta(max_length=65536)] = ""


class _Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    header: str
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_LABELS)]


class _Access(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    header: str
    sealed: str


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    access: _Access
    authority: str
    blocks: Annotated[list[_Block], msgspec.Meta(min_length=1, max_length=MAX_BLOCKS)]
    codebook_id: str
    format: Literal["encryip-codebook"]
    issuer: str
    num_classes: Annotated[int, msgspec.Meta(ge=2, le=MAX_CLASSES)]
    values: str
    version: Literal[1]


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
        headers, block_sizes: one per block, in label order.
        values: uint32 `[N]`, e_j of every confused label.
        access_header, sealed_metadata: who may read the model's metadata.
        signature: Ed25519 over the canonical body.
    """

    codebook_id: bytes
    authority: bytes
    issuer: bytes
    num_classes: int
    headers: tuple[Header, ...]
    block_sizes: tuple[int, ...]
    values: np.ndarray
    access_header: Header
    sealed_metadata: bytes
    signature: bytes = b""

    @property
    def num_labels(self) -> int:
        return len(self.values)

    @cached_property
    def block_of(self) -> np.ndarray:
        """int32 `[N]`: the block of each confused label."""
        return np.repeat(np.arange(len(self.block_sizes), dtype=np.int32), self.block_sizes)

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
        file = parse_canonical_json(data, _File, what="codebook", max_bytes=MAX_CODEBOOK_BYTES)
        body = file.body
        sizes = tuple(block.size for block in body.blocks)
        if sum(sizes) > MAX_LABELS:
            raise FormatError(f"The codebook has more than {MAX_LABELS} labels.")
        raw = decode_base64(body.values, what="codebook values", length=4 * sum(sizes))
        values = np.frombuffer(raw, ">u4").astype(np.uint32)
        if values.max(initial=0) >= body.num_classes:
            raise FormatError("A codebook value is not below num_classes.")
        headers = tuple(_read_header(b.header, "codebook block header") for b in body.blocks)
        access = _read_header(body.access.header, "codebook access header")
        if {h.threshold for h in headers} != {access.threshold}:
            raise FormatError("Codebook headers have different thresholds.")
        return cls(
            decode_base64(body.codebook_id, what="codebook_id", length=CODEBOOK_ID_BYTES),
            decode_base64(body.authority, what="authority", length=DIGEST_BYTES),
            decode_base64(body.issuer, what="issuer", length=PUBLIC_BYTES),
            body.num_classes,
            headers,
            sizes,
            values,
            access,
            decode_base64(body.access.sealed, what="access metadata"),
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
            access=_Access(
                encode_base64(self.access_header.to_bytes()), encode_base64(self.sealed_metadata)
            ),
            authority=encode_base64(self.authority),
            blocks=[
                _Block(encode_base64(header.to_bytes()), size)
                for header, size in zip(self.headers, self.block_sizes, strict=True)
            ],
            codebook_id=encode_base64(self.codebook_id),
            format=FORMAT,
            issuer=encode_base64(self.issuer),
            num_classes=self.num_classes,
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
        signing_key: SigningKey,
        *,
        revoked: Iterable[int] = (),
    ) -> tuple["Codebook", tuple[TracingHeader, ...]]:
        """Encrypt an assignment to all users but the revoked ones.

        Args:
            assignment: the secret label assignment.
            metadata: sealed under the access header.
            revoked: the z of at most t users who must not open it.

        Returns:
            The signed codebook, and the tracing headers of its tracing blocks in
            order, whose exponents the owner keeps to predict users' trace answers.
        """
        revoked = tuple(revoked)
        headers, values, tracing_headers = _encrypt(assignment, master, revoked)
        authority = master.public_key().digest
        access_header, secret = master.encapsulate(revoked)
        codebook_id = get_random_bytes(CODEBOOK_ID_BYTES)
        access_key = secret.derive(_ACCESS_PURPOSE)
        unsigned = cls(
            codebook_id,
            authority,
            signing_key.public_bytes(),
            assignment.num_classes,
            tuple(headers),
            assignment.block_sizes,
            values,
            access_header,
            seal(access_key, canonical_json(metadata), codebook_id + authority),
        )
        signature = signing_key.sign(_DOMAIN, canonical_json(unsigned._body()))
        return replace(unsigned, signature=signature), tuple(tracing_headers)

    # --- reading (key holder) ------------------------------------------------

    def open_metadata(self, key: UserKey) -> ModelMetadata:
        """The sealed metadata: the test of whether the key may read this model.

        Raises:
            RevokedKeyError: the key was revoked before the codebook was made.
            ForeignKeyError: the key is not of this authority.
        """
        revoked = RevokedKeyError(
            f"Key {key.key_id} was revoked before this model version was exported. "
            "Ask the model's owner for a new key."
        )
        foreign = ForeignKeyError(
            f"Key {key.key_id} does not open this codebook: another authority issued it."
        )
        with instead_of(RevokedKeyError, raises=lambda _: revoked):
            secret = key.decapsulate(self.access_header)
        with instead_of(SignatureError, raises=lambda _: foreign):
            plaintext = unseal(
                secret.derive(_ACCESS_PURPOSE),
                self.sealed_metadata,
                self.codebook_id + self.authority,
            )
        metadata = parse_canonical_json(
            plaintext, ModelMetadata, what="model metadata", max_bytes=MAX_CODEBOOK_BYTES
        )
        if len(metadata.class_names) != self.num_classes:
            raise FormatError("The model metadata names another number of classes.")
        return metadata

    def response_key(self, key: UserKey) -> bytes:
        """What a host encrypts its responses with, 32 bytes: the access header's secret.

        Access is not checked here: a foreign key gets other bytes.

        Raises:
            RevokedKeyError: the key was revoked before the codebook was made.
        """
        return key.decapsulate(self.access_header).derive(_RESPONSE_PURPOSE)

    def decode_table(self, key: UserKey) -> np.ndarray:
        """int32 `[N]`: the class that each confused label stands for, to this key.

        Costs one decapsulation per block, at most 64. Access is not checked here:
        a foreign key gets a table of random classes.
        """
        ends = np.cumsum(self.block_sizes)
        blocks = [
            self.read_block(key.decapsulate(header), np.arange(end - size, end))
            for header, end, size in zip(self.headers, ends, self.block_sizes, strict=True)
        ]
        return np.concatenate(blocks)

    def predicted_answers(
        self, keys: Sequence[UserKey], assignment: LabelAssignment, tracing: Sequence[TracingHeader]
    ) -> np.ndarray:
        """The owner's prediction of what users' decode tables say at the trace labels.

        Costs one multiplication per user and tracing block.

        Returns:
            int32 `[users, T]`, columns in the order of `assignment.trace`; `TRACE`
            throughout for users whom this codebook shuts out.
        """
        answers = np.full((len(keys), self.num_labels), TRACE, np.int32)
        remaining = iter(tracing)
        ends = np.cumsum(self.block_sizes)
        for end, size, is_trace in zip(
            ends, self.block_sizes, assignment.tracing_blocks, strict=True
        ):
            if is_trace:
                labels = np.arange(end - size, end)
                for row, secret in zip(answers, next(remaining).predict_many(keys), strict=True):
                    if secret is not None:
                        row[labels] = self.read_block(secret, labels)
        return answers[:, assignment.trace]

    def read_block(self, secret: SharedSecret, labels: np.ndarray) -> np.ndarray:
        """class(j) = (e_j − mask_j) mod K for labels j of one block, given its secret: int32."""
        masks = label_masks(mask_key(secret), labels, self.num_classes)
        values = self.values[labels].astype(np.int64)
        classes: np.ndarray = ((values - masks) % self.num_classes).astype(np.int32)
        return classes

    # --- ciphertexts ---------------------------------------------------------

    @cached_property
    def ciphertext_prefixes(self) -> tuple[bytes, ...]:
        """For each block, the bytes that all its label ciphertexts begin with."""
        return tuple(
            ciphertext_prefix(self.codebook_id, self.authority, self.num_classes, header)
            for header in self.headers
        )

    @cached_property
    def ciphertext_suffixes(self) -> tuple[bytes, ...]:
        """For each confused label, the bytes that its ciphertext ends with."""
        return tuple(ciphertext_suffix(j, int(e)) for j, e in enumerate(self.values))

    def ciphertext(self, label: int) -> bytes:
        """The `LabelCiphertext` bytes of one confused label."""
        return self.ciphertext_prefixes[int(self.block_of[label])] + self.ciphertext_suffixes[label]


def _encrypt(
    assignment: LabelAssignment, master: MasterKey, revoked: tuple[int, ...]
) -> tuple[list[Header], np.ndarray, list[TracingHeader]]:
    """The blocks' headers, the labels' values, and the tracing blocks' headers with exponents."""
    k, classes = assignment.num_classes, assignment.classes
    # A trace label's value is uniform: every user reads another class there.
    noise = np.frombuffer(get_random_bytes(8 * len(classes)), np.uint64) % np.uint64(k)
    values = noise.astype(np.uint32)
    headers: list[Header] = []
    tracing_headers: list[TracingHeader] = []
    start = 0
    for size, tracing in zip(assignment.block_sizes, assignment.tracing_blocks, strict=True):
        if tracing:
            tracing_headers.append(TracingHeader.generate(master.threshold, revoked))
            headers.append(tracing_headers[-1].header)
        else:
            header, secret = master.encapsulate(revoked)
            headers.append(header)
            labels = np.arange(start, start + size)
            masks = label_masks(mask_key(secret), labels, k)
            values[labels] = (classes[labels] + masks) % k
        start += size
    return headers, values, tracing_headers


def _read_header(text: str, what: str) -> Header:
    return Header.from_bytes(decode_base64(text, what=what))
