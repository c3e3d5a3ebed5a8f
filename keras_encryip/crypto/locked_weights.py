"""Weights as ciphertext of the same shapes and types: ChaCha20 and Poly1305 of RFC 8439.

The bytes of all arrays, one after another, are cut into pieces, and the pieces gathered into
segments of whole chunks; the last chunk of a segment is filled up with zeros. The segments are the
ciphertext of RFC 8439, section 2.8, without associated data and under a nonce of zeros: a key
serves one export. Of a boolean, which has no room for more, the lowest bit is encrypted.

`export.unlock_graph` does the same in TensorFlow operations; docs/formats/locked.md has the bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from Crypto.Cipher import ChaCha20
from Crypto.Hash import Poly1305

from keras_encryip.errors import SignatureError

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
CHECK_BYTES: Final = 16
CHECKED_BLOCK: Final = (1 << 32) - 2
"""The block of the key stream that the key check begins: no ciphertext gets that far, and older
versions of pycryptodome do not reach the last."""

CHUNK_BYTES: Final = 1 << 20
SEGMENT_BYTES: Final = 32 << 20
"""Of a segment, at most; a multiple of `CHUNK_BYTES`."""

_NONCE: Final = bytes(12)
_BLOCK_BYTES: Final = 64


@dataclass(frozen=True)
class Piece:
    """Bytes `start` … `stop` of the array with a number."""

    array: int
    start: int
    stop: int


def segments(sizes: Sequence[int]) -> list[list[Piece]]:
    """How arrays of these sizes, in bytes, are cut and gathered."""
    gathered: list[list[Piece]] = [[]]
    room = SEGMENT_BYTES
    for array, size in enumerate(sizes):
        start = 0
        while start < size:
            if not room:
                gathered.append([])
                room = SEGMENT_BYTES
            stop = min(size, start + room)
            gathered[-1].append(Piece(array, start, stop))
            room -= stop - start
            start = stop
    return gathered


def padded(segment: Sequence[Piece]) -> int:
    """Bytes of a segment with the zeros at its end."""
    length = sum(piece.stop - piece.start for piece in segment)
    return -(-length // CHUNK_BYTES) * CHUNK_BYTES


def lengths(sizes: Sequence[int]) -> bytes:
    """The block that ends what the tag is of: no associated data, and so many bytes."""
    total = sum(map(padded, segments(sizes)))
    return bytes(8) + total.to_bytes(8, "little")


def lock_arrays(key: bytes, arrays: Sequence[np.ndarray]) -> tuple[list[np.ndarray], bytes]:
    """Encrypt arrays of numbers or booleans, of any types.

    Args:
        key: 32 bytes, which served nothing else.
        arrays: in an order that belongs to the ciphertext.

    Returns:
        (arrays of the same shapes and types, noise; proof: key check (16) ‖ tag (16)).
    """
    locked = _crypted(key, arrays)
    return locked, _key_check(key) + _tag(key, locked)


def unlock_arrays(key: bytes, locked: Sequence[np.ndarray], proof: bytes) -> list[np.ndarray]:
    """Decrypt what `lock_arrays` made.

    Raises:
        SignatureError: wrong key, or any byte was changed.
    """
    if not is_key_of(key, proof):
        raise SignatureError("This is not the key of these weights.")
    if _tag(key, locked) != proof[CHECK_BYTES:]:
        raise SignatureError("The locked weights were changed.")
    return _crypted(key, locked)


def is_key_of(key: bytes, proof: bytes) -> bool:
    """Whether a key is that of locked weights, by their proof."""
    return len(key) == KEY_BYTES and _key_check(key) == proof[:CHECK_BYTES]


def _key_check(key: bytes) -> bytes:
    return bytes(_cipher(key, CHECKED_BLOCK).encrypt(bytes(CHECK_BYTES)))


def _cipher(key: bytes, block: int) -> Any:
    """The key stream from a block on."""
    cipher: Any = ChaCha20.new(key=key, nonce=_NONCE)
    cipher.seek(block * _BLOCK_BYTES)
    return cipher


def _crypted(key: bytes, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Encryption is decryption."""
    out = [np.empty(array.nbytes, np.uint8) for array in arrays]
    cipher = _cipher(key, 1)  # block 0 is the tag's key
    for segment, data in _filled(arrays):
        stream, at = np.frombuffer(cipher.encrypt(data), np.uint8), 0
        for piece in segment:
            part = stream[at : at + piece.stop - piece.start]
            boolean = arrays[piece.array].dtype == bool
            out[piece.array][piece.start : piece.stop] = part & 1 if boolean else part
            at += len(part)
    return [
        flat.view(array.dtype).reshape(array.shape) for flat, array in zip(out, arrays, strict=True)
    ]


def _tag(key: bytes, arrays: Sequence[np.ndarray]) -> bytes:
    mac: Any = Poly1305.new(key=key, cipher=ChaCha20, nonce=_NONCE)
    for _, data in _filled(arrays):
        mac.update(data)
    mac.update(lengths([array.nbytes for array in arrays]))
    return bytes(mac.digest())


def _filled(arrays: Sequence[np.ndarray]) -> Iterator[tuple[list[Piece], bytes]]:
    """Each segment and its bytes, with the zeros at its end."""
    for segment in segments([array.nbytes for array in arrays]):
        data = np.zeros(padded(segment), np.uint8)
        at = 0
        for piece in segment:
            flat = np.ascontiguousarray(arrays[piece.array]).reshape(-1).view(np.uint8)
            part = flat[piece.start : piece.stop]
            data[at : at + len(part)] = part
            at += len(part)
        yield segment, data.tobytes()
