"""Slot keys and codewords: what makes each user's key read trace labels in a way of its own.

An authority has M slots. Slot s has two slot keys κ[s, 0] and κ[s, 1], and a secret bias: a user's
bit there is 1 with probability τ_s / 2³². A user's M bits are their *codeword*, and a user holds
κ[s, bit] of every slot. Everything follows from one seed and the key ids: nothing is stored per
user. This is a collusion-secure fingerprinting code (Tardos, STOC 2003), of which each codebook
uses the slots that its trace labels lie on.
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from Crypto.Cipher import AES

from keras_encryip.crypto.biases import bias_thresholds
from keras_encryip.crypto.kem import UserKey
from keras_encryip.crypto.secret import Secret
from keras_encryip.errors import ArgumentError, FormatError

DEFAULT_SLOTS: Final = 1024
MIN_SLOTS: Final = 256
MAX_SLOTS: Final = 4096
SLOT_KEY_BYTES: Final = 16
SEED_BYTES: Final = 32
LEAF_BYTES: Final = 32
BLIND_BYTES: Final = 16

_BLOCK: Final = 16
_CODEWORD_TAG: Final = b"encryip codeword v1\0"
_CODEWORD_LEAF: Final = len(_CODEWORD_TAG) + 2 + 1 + BLIND_BYTES
_ONE_USER: Final = 1 + 8 * SLOT_KEY_BYTES
"""Bits that a user holds of one slot: the codeword's, and a slot key."""


def check_slots(count: int) -> None:
    """Refuse a number of slots that no authority has.

    Raises:
        ArgumentError: it is not a multiple of 8 in 256 … 4,096.
    """
    whole = isinstance(count, int) and not isinstance(count, bool)
    if not whole or not MIN_SLOTS <= count <= MAX_SLOTS or count % 8:
        raise ArgumentError(
            f"`slots` must be a multiple of 8 in {MIN_SLOTS} … {MAX_SLOTS}. Received: slots={count}"
        )


class SlotKeys(Secret):
    """What one user holds: the codeword, and one slot key of each slot.

    Attributes:
        bits: uint8 `[M]`, the codeword, 0 or 1 each.
        keys: uint8 `[M, 16]`.
    """

    __slots__ = ("bits", "keys")

    def __init__(self, bits: np.ndarray, keys: np.ndarray) -> None:
        self.bits = bits
        self.keys = keys

    def _describe(self) -> str:
        return f"slots={len(self.bits)}"

    def secret_bytes(self) -> bytes:
        """Codeword, M/8 bytes, the first bit highest ‖ slot keys, 16·M bytes. Secret."""
        return np.packbits(self.bits).tobytes() + self.keys.tobytes()

    @classmethod
    def from_secret_bytes(cls, data: bytes) -> "SlotKeys":
        """Read what `secret_bytes` wrote."""
        count, rest = divmod(8 * len(data), _ONE_USER)
        if rest or count % 8 or not MIN_SLOTS <= count <= MAX_SLOTS:
            raise FormatError(f"Slot keys have a wrong length: {len(data)} bytes.")
        words = np.frombuffer(data, np.uint8)
        bits, keys = words[: count // 8], words[count // 8 :]
        return cls(np.unpackbits(bits), keys.reshape(count, SLOT_KEY_BYTES))


class ReaderKey(Secret):
    """All that a user reads models with: a point on the reading polynomial, and slot keys."""

    __slots__ = ("point", "slots")

    def __init__(self, point: UserKey, slots: SlotKeys) -> None:
        self.point = point
        self.slots = slots

    def _describe(self) -> str:
        return self.key_id

    @property
    def key_id(self) -> str:
        """16 hexadecimal digits that name the key."""
        return self.point.key_id


class SlotSecrets(Secret):
    """The owner's slots: all slot keys, biases and users' codewords.

    With AES-256 under keys derived from the seed as a pseudo-random function F:

        κ[s, v]   = F_slot(2·s + v)
        τ_s       = `bias_thresholds` of the first 4 bytes of F_bias(s)
        bit(u, s) = 1 if the first 4 bytes of F_codeword(key id ‖ s) are below τ_s

    Args:
        seed: 32 bytes.
        count: M.

    Attributes:
        keys: uint8 `[M, 2, 16]`.
        thresholds: uint32 `[M]`, the τ.
    """

    __slots__ = ("_blind", "_codeword", "_slot_blinds", "keys", "thresholds")

    def __init__(self, seed: bytes, count: int) -> None:
        check_slots(count)
        if len(seed) != SEED_BYTES:
            raise FormatError(f"A slot seed has {SEED_BYTES} bytes.")

        def derived(purpose: str) -> bytes:
            return hmac.digest(seed, b"encryip slots v1 " + purpose.encode(), "sha256")

        self._codeword, self._blind = derived("codeword"), derived("codeword blind")
        keys = _blocks(derived("slot key"), np.arange(2 * count))
        self.keys = keys.reshape(count, 2, SLOT_KEY_BYTES)
        words = _blocks(derived("bias"), np.arange(count))[:, :4]
        self.thresholds = bias_thresholds(_words(words))
        self._slot_blinds = _blocks(derived("slot blind"), np.arange(count))

    def _describe(self) -> str:
        return f"slots={self.count}"

    @property
    def count(self) -> int:
        """M."""
        return len(self.keys)

    @property
    def biases(self) -> np.ndarray:
        """float64 `[M]`: how likely each slot's bit is 1."""
        return self.thresholds / 2.0**32

    # --- users' ----------------------------------------------------------------------

    def codewords(self, key_ids: Sequence[str], slots: np.ndarray) -> np.ndarray:
        """Users' bits at some slots.

        One pass of AES per slot, over all users, in two buffers that are used again.

        Args:
            key_ids: of the users, 16 hexadecimal digits each; several can stand in one string.
            slots: int `[n]`.

        Returns:
            uint8 `[users, n]`, in Fortran order: each slot's bits lie together.
        """
        users = np.frombuffer(bytes.fromhex("".join(key_ids)), ">u8")
        cipher = AES.new(self._codeword, AES.MODE_ECB)
        blocks = np.zeros((len(users), 2), ">u8")
        blocks[:, 0] = users
        encrypted = bytearray(blocks.nbytes)
        plain, words = blocks.view(np.uint8).reshape(-1).data, np.frombuffer(encrypted, ">u4")[::4]
        bits = np.empty((len(users), len(slots)), np.uint8, order="F")
        for column, slot in enumerate(slots):
            blocks[:, 1] = slot
            cipher.encrypt(plain, output=encrypted)
            bits[:, column] = words < self.thresholds[slot]
        return bits

    def codeword(self, key_id: str) -> np.ndarray:
        """One user's bits at all slots, uint8 `[M]`."""
        words = _words(_blocks(self._codeword, np.arange(self.count), key_id)[:, :4])
        return (words < self.thresholds).astype(np.uint8)

    def of_user(self, key_id: str) -> SlotKeys:
        """What the user gets."""
        bits = self.codeword(key_id)
        return SlotKeys(bits, self.keys[np.arange(self.count), bits])

    # --- commitments -----------------------------------------------------------------

    def slot_openings(self, slots: Iterable[int]) -> list["SlotOpening"]:
        """What opens the authority's commitment at some slots, but for the slot keys."""
        return [
            SlotOpening(
                int(s),
                int(self.thresholds[s]),
                self._slot_blinds[s].tobytes(),
                _slot_key_digest(self.keys[s, 0].tobytes()),
                _slot_key_digest(self.keys[s, 1].tobytes()),
            )
            for s in slots
        ]

    def slot_leaves(self) -> list[bytes]:
        """What the authority's commitment to its slots is made of, M times 32 bytes. Public."""
        return [opening.leaf for opening in self.slot_openings(range(self.count))]

    def codeword_openings(self, key_id: str, slots: Iterable[int]) -> list["CodewordOpening"]:
        """What opens the commitment to a user's codeword at some slots."""
        bits = self.codeword(key_id)
        blinds = _blocks(self._blind, np.arange(self.count), key_id)
        return [CodewordOpening(int(s), int(bits[s]), blinds[s].tobytes()) for s in slots]

    def codeword_leaves(self, key_id: str) -> list[bytes]:
        """What the commitment to a user's codeword is made of, M times 32 bytes. Public.

        The leaves of `codeword_openings` at all slots, without an object for each.
        """
        rows = np.empty((self.count, _CODEWORD_LEAF), np.uint8)
        tag, rest = np.split(rows, [len(_CODEWORD_TAG)], axis=1)
        tag[:] = np.frombuffer(_CODEWORD_TAG, np.uint8)
        rest[:, :2] = np.arange(self.count, dtype=">u2").view(np.uint8).reshape(-1, 2)
        rest[:, 2] = self.codeword(key_id)
        rest[:, 3:] = _blocks(self._blind, np.arange(self.count), key_id)
        data, size, sha256 = rows.tobytes(), _CODEWORD_LEAF, hashlib.sha256
        return [sha256(data[i : i + size]).digest() for i in range(0, len(data), size)]


@dataclass(frozen=True, slots=True, repr=False)
class SlotOpening:
    """Shows what an authority's commitment says of one slot: its bias, and its keys' digests.

    Attributes:
        slot: its number.
        threshold: τ: a user's bit is 1 with probability τ / 2³².
        blind: 16 bytes.
        digest_0, digest_1: of the two slot keys, 32 bytes each.
    """

    slot: int
    threshold: int
    blind: bytes
    digest_0: bytes
    digest_1: bytes

    @property
    def leaf(self) -> bytes:
        """The 32 bytes that were committed to."""
        numbers = self.slot.to_bytes(2, "big") + self.threshold.to_bytes(4, "big")
        content = numbers + self.blind + self.digest_0 + self.digest_1
        return hashlib.sha256(b"encryip slot v1\0" + content).digest()

    def has(self, bit: int, key: bytes) -> bool:
        """Whether `key` is the slot key of users with this bit."""
        return _slot_key_digest(key) == (self.digest_1 if bit else self.digest_0)


@dataclass(frozen=True, slots=True, repr=False)
class CodewordOpening:
    """Shows what the commitment to a user's codeword says of one slot.

    Attributes:
        slot: its number.
        bit: 0 or 1.
        blind: 16 bytes.
    """

    slot: int
    bit: int
    blind: bytes

    @property
    def leaf(self) -> bytes:
        """The 32 bytes that were committed to."""
        content = self.slot.to_bytes(2, "big") + bytes([self.bit]) + self.blind
        return hashlib.sha256(_CODEWORD_TAG + content).digest()


def commitment(leaves: Iterable[bytes]) -> str:
    """What the event log keeps of leaves: SHA-256, in hexadecimal. Each can be opened alone."""
    return hashlib.sha256(b"encryip leaves v1\0" + b"".join(leaves)).hexdigest()


def _slot_key_digest(key: bytes) -> bytes:
    return hashlib.sha256(b"encryip slot key v1\0" + key).digest()


def _blocks(key: bytes, numbers: np.ndarray, prefix: str = "0" * 16) -> np.ndarray:
    """AES-256 of the 16-byte blocks prefix ‖ number, uint8 `[n, 16]`."""
    blocks = np.zeros((len(numbers), 2), ">u8")
    blocks[:, 0] = int(prefix, 16)
    blocks[:, 1] = numbers
    words = AES.new(key, AES.MODE_ECB).encrypt(blocks.tobytes())
    return np.frombuffer(words, np.uint8).reshape(-1, _BLOCK)


def _words(data: np.ndarray) -> np.ndarray:
    """uint32 `[n]` of uint8 `[n, 4]`, big-endian."""
    return np.ascontiguousarray(data).view(">u4").reshape(-1).astype(np.uint32)
