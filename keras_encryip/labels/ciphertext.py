"""One prediction as self-contained bytes: a key holder needs nothing but the key to read it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from Crypto.Cipher import AES

from keras_encryip.crypto.kem import Header, SharedSecret, UserKey
from keras_encryip.errors import ForeignKeyError, FormatError
from keras_encryip.labels.assignment import MAX_CLASSES, MAX_LABELS

VERSION: Final = 1
CODEBOOK_ID_BYTES: Final = 16
DIGEST_BYTES: Final = 32
_FIXED_BYTES: Final = 1 + CODEBOOK_ID_BYTES + DIGEST_BYTES + 4 + 4 + 4
_MASK_PURPOSE: Final = "label mask v1"


def mask_key(secret: SharedSecret) -> bytes:
    """The AES-256 key under which a block's masks are made."""
    return secret.derive(_MASK_PURPOSE)


def label_masks(key: bytes, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """mask_j = AES-256(key, j) as a 128-bit big-endian integer mod K.

    Args:
        key: 32 bytes from `mask_key`.
        labels: int `[n]`, the confused labels j.
        num_classes: K, at most 2²⁰ (so that products fit 64 bits).

    Returns:
        int64 `[n]`, values in 0 … K−1. The bias is below 2⁻¹⁰⁸.
    """
    counters = np.zeros((len(labels), 2), ">u8")
    counters[:, 1] = labels
    words = AES.new(key, AES.MODE_ECB).encrypt(counters.tobytes())
    high, low = np.frombuffer(words, ">u8").astype(np.uint64).reshape(-1, 2).T
    k = np.uint64(num_classes)
    shift = np.uint64(pow(2, 64, num_classes))
    return ((high % k * shift + low % k) % k).astype(np.int64)


@dataclass(frozen=True)
class LabelCiphertext:
    """An encrypted label: header, label j and value e_j. Public, and not authenticated.

    Bytes: version (1) ‖ codebook id (16) ‖ authority digest (32) ‖ K (4) ‖ header ‖ j (4) ‖
    e_j (4), integers big-endian.
    """

    codebook_id: bytes
    authority: bytes
    num_classes: int
    header: Header
    label: int
    value: int

    def to_bytes(self) -> bytes:
        return ciphertext_prefix(
            self.codebook_id, self.authority, self.num_classes, self.header
        ) + ciphertext_suffix(self.label, self.value)

    @classmethod
    def from_bytes(cls, data: bytes) -> "LabelCiphertext":
        if len(data) <= _FIXED_BYTES or len(data) > _FIXED_BYTES + Header.size(255):
            raise FormatError(f"A label ciphertext has a wrong length: {len(data)} bytes.")
        if data[0] != VERSION:
            raise FormatError(
                f"Label ciphertext version {data[0]} is unknown; this release reads {VERSION}."
            )
        rest = memoryview(data)[1:]
        codebook_id, rest = bytes(rest[:CODEBOOK_ID_BYTES]), rest[CODEBOOK_ID_BYTES:]
        authority, rest = bytes(rest[:DIGEST_BYTES]), rest[DIGEST_BYTES:]
        num_classes, header, label, value = (
            int.from_bytes(rest[:4], "big"),
            Header.from_bytes(bytes(rest[4:-8])),
            int.from_bytes(rest[-8:-4], "big"),
            int.from_bytes(rest[-4:], "big"),
        )
        if not 2 <= num_classes <= MAX_CLASSES or label >= MAX_LABELS or value >= num_classes:
            raise FormatError("A label ciphertext has a field out of range.")
        return cls(codebook_id, authority, num_classes, header, label, value)

    def class_for(self, key: bytes) -> int:
        """class(j) = (e_j − mask_j) mod K, with the block's mask key."""
        mask = label_masks(key, np.array([self.label]), self.num_classes)[0]
        return int((self.value - mask) % self.num_classes)


def ciphertext_prefix(
    codebook_id: bytes, authority: bytes, num_classes: int, header: Header
) -> bytes:
    """The bytes that all labels of a block share."""
    fixed = bytes([VERSION]) + codebook_id + authority + num_classes.to_bytes(4, "big")
    return fixed + header.to_bytes()


def ciphertext_suffix(label: int, value: int) -> bytes:
    """The bytes of one label: j ‖ e_j."""
    return label.to_bytes(4, "big") + value.to_bytes(4, "big")


def decrypt_labels(
    ciphertexts: Iterable[bytes], key: UserKey, *, authority: bytes | None = None
) -> np.ndarray:
    """Read label ciphertexts with a user key alone.

    Args:
        ciphertexts: encoded `LabelCiphertext`s, of any models and codebooks.
        key: the user key.
        authority: digest of the public key that the user key belongs to; with it,
            a foreign ciphertext is refused. Without it, it reads as a random class.

    Returns:
        int64 `[n]` of class indices.

    Raises:
        FormatError, RevokedKeyError, ForeignKeyError
    """
    keys: dict[Header, bytes] = {}
    classes = []
    for data in ciphertexts:
        ciphertext = LabelCiphertext.from_bytes(bytes(data))
        if authority is not None and ciphertext.authority != authority:
            raise ForeignKeyError(
                "This label was encrypted under another authority's public key. "
                "Use the key bundle that belongs to the model that produced it."
            )
        if ciphertext.header not in keys:
            keys[ciphertext.header] = mask_key(key.decapsulate(ciphertext.header))
        classes.append(ciphertext.class_for(keys[ciphertext.header]))
    return np.array(classes, np.int64)
