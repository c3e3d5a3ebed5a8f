"""Opening a host's encrypted responses: XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03)."""

import contextlib
from typing import Final

import numpy as np
from Crypto.Cipher import ChaCha20_Poly1305

from keras_encryip.errors import ArgumentError, SignatureError

NONCE_WORDS: Final = 6
TAG_WORDS: Final = 4
EXTRA_WORDS: Final = NONCE_WORDS + TAG_WORDS


def open_responses(
    responses: np.ndarray, key: bytes, associated_data: bytes, num_labels: int
) -> np.ndarray:
    """Decrypt and check every row.

    Args:
        responses: integers `[..., 6 + N + 4]`: 32-bit words of nonce, ciphertext and tag.
        key: 32 bytes.
        associated_data: what the rows are bound to.
        num_labels: N.

    Returns:
        float32 `[..., N]`.

    Raises:
        ArgumentError: not such an array.
        SignatureError: any row does not verify. One message for all causes.
    """
    words = np.asarray(responses)
    width = num_labels + EXTRA_WORDS
    if words.ndim == 0 or words.shape[-1] != width or not np.issubdtype(words.dtype, np.integer):
        raise ArgumentError(
            f"`responses` must be integers with a last axis of {width}, the encrypted outputs of "
            f"{num_labels} confused labels. Received: shape {words.shape}, dtype {words.dtype}"
        )
    if words.size and not (int(words.min()) >= -(2**31) and int(words.max()) < 2**32):
        raise ArgumentError("`responses` must hold 32-bit words.")
    rows = (words.astype(np.int64) & 0xFFFFFFFF).astype("<u4").reshape(-1, width)
    opened = np.empty((len(rows), num_labels), "<f4")
    for row, target in zip(rows, opened, strict=True):
        data = row.tobytes()
        nonce, sealed, tag = data[: 4 * NONCE_WORDS], data[4 * NONCE_WORDS : -16], data[-16:]
        cipher = ChaCha20_Poly1305.new(key=key, nonce=nonce)
        cipher.update(associated_data)
        plaintext = None
        with contextlib.suppress(ValueError):
            plaintext = cipher.decrypt_and_verify(sealed, tag)
        if plaintext is None:
            raise SignatureError(
                "A response cannot be opened with this key, belongs to another model version, or "
                "was changed."
            )
        target[:] = np.frombuffer(plaintext, "<f4")
    return opened.astype(np.float32).reshape(*words.shape[:-1], num_labels)
