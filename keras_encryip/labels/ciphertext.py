"""One prediction as self-contained bytes: a key holder needs nothing but the key to read it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from Crypto.Cipher import AES

from keras_encryip.crypto.kem import Header, SharedSecret
from keras_encryip.crypto.slots import SLOT_KEY_BYTES, ReaderKey, SlotKeys
from keras_encryip.errors import ForeignKeyError, FormatError
from keras_encryip.labels.assignment import MAX_CLASSES, MAX_LABELS

VERSION: Final = 2
CODEBOOK_ID_BYTES: Final = 16
DIGEST_BYTES: Final = 32
LABEL_KEY_BYTES: Final = 16
_FIXED_BYTES: Final = 1 + CODEBOOK_ID_BYTES + DIGEST_BYTES + 4
_SUFFIX_BYTES: Final = 2 + 4 + 4 + 4
_LABEL_PURPOSE: Final = "label keys v2"
_MASK_TAG: Final = b"encryip label mask v2\0"


def label_keys(secret: SharedSecret, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """L_j, and what label j's slot is masked with: AES-256 of the 16-byte blocks 2·j and 2·j + 1.

    The AES key comes from a codebook's secret. L_j together with a slot key opens label j, and
    tells nothing of other labels. Slots are masked, because a label has the same slot in every
    codebook of a model: in the clear, they would carry an old decode table to a new numbering.

    Args:
        secret: what the codebook's header opens to.
        labels: int `[n]`, the confused labels j.

    Returns:
        (L_j, uint8 `[n, 16]`; the first two bytes of the other block, big-endian, uint16 `[n]`).
    """
    counters = np.zeros((len(labels), 2, 2), ">u8")
    counters[:, :, 1] = 2 * labels.astype(np.int64)[:, None] + np.arange(2)
    words = AES.new(secret.derive(_LABEL_PURPOSE), AES.MODE_ECB).encrypt(counters.tobytes())
    blocks = np.frombuffer(words, np.uint8).reshape(-1, 2, LABEL_KEY_BYTES)
    masks = np.ascontiguousarray(blocks[:, 1, :2]).view(">u2")[:, 0].astype(np.uint16)
    return np.ascontiguousarray(blocks[:, 0]), masks


def label_masks(slot_keys: np.ndarray, keys: np.ndarray, num_classes: int) -> np.ndarray:
    """What the values of labels are masked with, mod K.

    The first 16 bytes of SHA-256 over a tag, the slot key and the label's key, big-endian.

    Args:
        slot_keys: uint8 `[n, 16]`, one of the two keys of each label's slot.
        keys: uint8 `[n, 16]` from `label_keys`.
        num_classes: K, at most 2²⁰ (so that products fit 64 bits).

    Returns:
        int64 `[n]`, values in 0 … K−1. The bias is below 2⁻¹⁰⁸.
    """
    size = SLOT_KEY_BYTES + LABEL_KEY_BYTES
    both = np.concatenate([slot_keys, keys], axis=1).tobytes()
    digests = b"".join(
        hashlib.sha256(_MASK_TAG + both[i : i + size]).digest() for i in range(0, len(both), size)
    )
    words = np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 4)
    k = np.uint64(num_classes)
    shift = np.uint64(pow(2, 64, num_classes))
    return ((words[:, 0] % k * shift + words[:, 1] % k) % k).astype(np.int64)


def read_labels(
    secret: SharedSecret,
    slots: SlotKeys,
    labels: np.ndarray,
    masked_slots: np.ndarray,
    values: np.ndarray,
    num_classes: int,
) -> np.ndarray:
    """What a user reads: (e[j, v] − mask) mod K, with v the user's bit at the label's slot.

    Args:
        secret: what the labels' header opens to.
        slots: the user's.
        labels: int `[n]`, the confused labels j.
        masked_slots: uint16 `[n]`. A foreign key finds random ones, mod M.
        values: uint32 `[n, 2]`, e.
        num_classes: K.

    Returns:
        int32 `[n]`.
    """
    keys, slot_masks = label_keys(secret, labels)
    of_label = (masked_slots ^ slot_masks) % len(slots.bits)
    chosen = np.take_along_axis(values, slots.bits[of_label][:, None], 1)[:, 0]
    masks = label_masks(slots.keys[of_label], keys, num_classes)
    return np.asarray((chosen.astype(np.int64) - masks) % num_classes, np.int32)


@dataclass(frozen=True)
class LabelCiphertext:
    """An encrypted label: header, label j, its masked slot and two values. Public, not
    authenticated.

    Bytes: version (1) ‖ codebook id (16) ‖ authority digest (32) ‖ K (4) ‖ header ‖ masked slot
    (2) ‖ j (4) ‖ e[j, 0] (4) ‖ e[j, 1] (4), integers big-endian.
    """

    codebook_id: bytes
    authority: bytes
    num_classes: int
    header: Header
    masked_slot: int
    label: int
    values: tuple[int, int]

    def to_bytes(self) -> bytes:
        return ciphertext_prefix(
            self.codebook_id, self.authority, self.num_classes, self.header
        ) + ciphertext_suffix(self.masked_slot, self.label, self.values)

    @classmethod
    def from_bytes(cls, data: bytes) -> "LabelCiphertext":
        least = _FIXED_BYTES + _SUFFIX_BYTES
        if not least < len(data) <= least + Header.size(255):
            raise FormatError(f"A label ciphertext has a wrong length: {len(data)} bytes.")
        if data[0] != VERSION:
            older = " Release 0.3 of keras_encryip reads it." if data[0] == 1 else ""
            raise FormatError(
                f"Label ciphertext version {data[0]} is not read by this release, which reads "
                f"{VERSION}.{older}"
            )
        fixed, suffix = data[1:_FIXED_BYTES], data[-_SUFFIX_BYTES:]
        codebook_id, rest = fixed[:CODEBOOK_ID_BYTES], fixed[CODEBOOK_ID_BYTES:]
        authority, num_classes = rest[:DIGEST_BYTES], int.from_bytes(rest[DIGEST_BYTES:], "big")
        header = Header.from_bytes(data[_FIXED_BYTES:-_SUFFIX_BYTES])
        masked_slot = int.from_bytes(suffix[:2], "big")
        label, *values = (int.from_bytes(suffix[i : i + 4], "big") for i in (2, 6, 10))
        if not 2 <= num_classes <= MAX_CLASSES or label >= MAX_LABELS or max(values) >= num_classes:
            raise FormatError("A label ciphertext has a field out of range.")
        pair = (values[0], values[1])
        return cls(codebook_id, authority, num_classes, header, masked_slot, label, pair)

    def class_for(self, secret: SharedSecret, key: ReaderKey) -> int:
        """class(j) = (e[j, v] − mask) mod K, with v the user's bit at the label's slot."""
        label, slot = np.array([self.label]), np.array([self.masked_slot], np.uint16)
        values = np.array([self.values], np.uint32)
        return int(read_labels(secret, key.slots, label, slot, values, self.num_classes)[0])


def ciphertext_prefix(
    codebook_id: bytes, authority: bytes, num_classes: int, header: Header
) -> bytes:
    """The bytes that all labels of a codebook share."""
    fixed = bytes([VERSION]) + codebook_id + authority + num_classes.to_bytes(4, "big")
    return fixed + header.to_bytes()


def ciphertext_suffix(slot: int, label: int, values: Iterable[int]) -> bytes:
    """The bytes of one label: masked slot ‖ j ‖ e[j, 0] ‖ e[j, 1]."""
    numbers = b"".join(int(number).to_bytes(4, "big") for number in (label, *values))
    return slot.to_bytes(2, "big") + numbers


def ciphertext_label(data: bytes) -> int:
    """The label j of a ciphertext's bytes, or of anything else that long."""
    return int.from_bytes(bytes(data[2 - _SUFFIX_BYTES : 6 - _SUFFIX_BYTES]), "big")


def decrypt_labels(
    ciphertexts: Iterable[bytes], key: ReaderKey, *, authority: bytes | None = None
) -> np.ndarray:
    """Read label ciphertexts with a key alone.

    Args:
        ciphertexts: encoded `LabelCiphertext`s, of any models and codebooks.
        key: the user's.
        authority: digest of the public key that the user key belongs to; with it,
            a foreign ciphertext is refused. Without it, it reads as a random class.

    Returns:
        int64 `[n]` of class indices.

    Raises:
        FormatError, RevokedKeyError, ForeignKeyError
    """
    secrets: dict[Header, SharedSecret] = {}
    classes = []
    for data in ciphertexts:
        ciphertext = LabelCiphertext.from_bytes(bytes(data))
        if authority is not None and ciphertext.authority != authority:
            raise ForeignKeyError(
                "This label was encrypted under another authority's public key. "
                "Use the key bundle that belongs to the model that produced it."
            )
        if ciphertext.header not in secrets:
            secrets[ciphertext.header] = key.point.decapsulate(ciphertext.header)
        classes.append(ciphertext.class_for(secrets[ciphertext.header], key))
    return np.array(classes, np.int64)
