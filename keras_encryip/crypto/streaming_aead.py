"""Authenticated encryption of streams in constant memory: STREAM over AES-256-GCM.

Hoang, Reyhanitabar, Rogaway and Vizár, *Online authenticated-encryption and its nonce-reuse
misuse-resistance*, CRYPTO 2015, as `age` (C2SP, age.md, "Payload") lays it out: chunks of 64 KiB,
each sealed under a nonce of an 11-byte counter and a byte that says whether it is the last. So
chunks cannot be changed, reordered, dropped or repeated, and a stream that ends early is
noticed. A key must serve one stream only.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from keras_encryip.crypto.aead import TAG_BYTES, gcm
from keras_encryip.errors import SignatureError, instead_of

CHUNK_BYTES: Final = 64 << 10


def sealed_size(plaintext: int) -> int:
    """Bytes of the stream that so many bytes of plaintext become."""
    return plaintext + TAG_BYTES * max(1, -(-plaintext // CHUNK_BYTES))


def seal_stream(key: bytes, parts: Iterable[bytes], associated_data: bytes) -> Iterator[bytes]:
    """Encrypt what the parts hold together; at least one chunk, which is empty for no bytes.

    Args:
        key: 32 bytes, never used for another stream.
        parts: of any lengths.
        associated_data: what every chunk is bound to.
    """
    number, waiting = 0, bytearray()
    for part in parts:
        waiting += part
        while len(waiting) > CHUNK_BYTES:  # a full chunk stays: it may be the last
            yield _sealed(key, number, False, bytes(waiting[:CHUNK_BYTES]), associated_data)
            del waiting[:CHUNK_BYTES]
            number += 1
    yield _sealed(key, number, True, bytes(waiting), associated_data)


def unseal_stream(
    key: bytes, read: Callable[[int], bytes], associated_data: bytes
) -> Iterator[bytes]:
    """Decrypt what `seal_stream` made, a chunk at a time.

    A chunk is given out only after it was checked, but only the last one shows that the
    stream is whole: use nothing of it before the end.

    Args:
        key: as for `seal_stream`.
        read: gives as many bytes as asked for, fewer only at the end.
        associated_data: as for `seal_stream`.

    Raises:
        SignatureError: wrong key, or any byte was changed, cut off or added. One message.
    """
    number, sealed = 0, read(CHUNK_BYTES + TAG_BYTES)
    while True:
        following = read(CHUNK_BYTES + TAG_BYTES)
        yield _unsealed(key, number, not following, sealed, associated_data)
        if not following:
            return
        number, sealed = number + 1, following


def _sealed(key: bytes, number: int, last: bool, plaintext: bytes, associated_data: bytes) -> bytes:
    cipher = gcm(key, _nonce(number, last), associated_data)
    ciphertext, tag = cipher.encrypt_and_digest(plaintext)
    return ciphertext + tag


def _unsealed(key: bytes, number: int, last: bool, sealed: bytes, associated_data: bytes) -> bytes:
    message = "The sealed data cannot be opened with this key, or was changed or cut off."
    if len(sealed) < TAG_BYTES + (number > 0):  # only the first chunk may be empty
        raise SignatureError(message)
    cipher = gcm(key, _nonce(number, last), associated_data)
    with instead_of(ValueError, raises=lambda _: SignatureError(message)):
        return cipher.decrypt_and_verify(sealed[:-TAG_BYTES], sealed[-TAG_BYTES:])


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
