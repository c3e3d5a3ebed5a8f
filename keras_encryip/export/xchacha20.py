"""Responses encrypted in the graph: XChaCha20-Poly1305 in plain TensorFlow operations.

Arciszewski, *XChaCha: eXtended-nonce ChaCha and AEAD_XChaCha20_Poly1305*,
draft-irtf-cfrg-xchacha-03, over RFC 8439; the extended nonce is Bernstein's (*Extending the
Salsa20 nonce*, 2011). Nothing is needed of a runtime but TensorFlow's own kernels for integers.

Secrecy rests on the key alone. A nonce must not repeat under it: within a batch the row's number
keeps nonces apart; between batches the server's clock in microseconds or 96 bits of its generator
for each row, either of which is enough. TensorFlow seeds its generator with few bits, and forked
processes share its state; docs/formats/responses.md has the argument and its limits.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_encryip.export.chacha20 import chacha20, hchacha20
from keras_encryip.export.poly1305 import int64, low_word, poly1305
from keras_encryip.formats.responses import NONCE_WORDS


def encrypt(confused: Any, key: Any, associated_data: bytes, nonces: Any = None) -> Any:
    """Encrypt every row.

    Args:
        confused: float32 `[..., N]`.
        key: 32 bytes, which become a constant, or a tensor of their words, uint32 `[8]`.
        associated_data: 16 bytes that every row is bound to.
        nonces: int `[rows, 6]` words, for test vectors only.

    Returns:
        int32 `[..., 6 + N + 4]`: words of nonce, ciphertext and tag; bytes of a word are in
        little-endian order, as in RFC 8439.
    """
    count = confused.shape[-1]
    rows = tf.reshape(tf.bitcast(tf.cast(confused, tf.float32), tf.uint32), [-1, count])
    if nonces is None:
        nonces = fresh_nonces(tf.shape(rows)[0])
    words = np.frombuffer(key, "<u4") if isinstance(key, bytes) else key
    subkey = hchacha20(words, nonces[:, :4])
    stream = chacha20(subkey, nonces[:, 4:], 1 + -(-count // 16))
    sealed = tf.bitwise.bitwise_xor(rows, stream[:, 16 : 16 + count])
    tag = poly1305(stream[:, :8], _message(sealed, count, associated_data))
    responses = tf.bitcast(tf.concat([nonces, sealed, tag], axis=1), tf.int32)
    shape = tf.concat([tf.shape(confused)[:-1], [responses.shape[1]]], 0)
    return tf.reshape(responses, shape)


def fresh_nonces(rows: Any) -> Any:
    """uint32 `[rows, 6]`: two words of the clock, three drawn, and the row's number."""
    now = tf.cast(tf.timestamp() * 1e6, tf.int64)
    clock = tf.stack([low_word(now), low_word(tf.bitwise.right_shift(now, int64(32)))])
    shape = tf.stack([tf.cast(rows, tf.int64), int64(NONCE_WORDS - 3)])
    drawn = tf.raw_ops.NonDeterministicInts(shape=shape, dtype=tf.uint32)
    number = tf.cast(tf.range(rows), tf.uint32)
    return tf.concat([tf.tile(clock[None], [rows, 1]), drawn, number[:, None]], axis=1)


def _message(sealed: Any, count: int, associated_data: bytes) -> Any:
    """What the tag is of (RFC 8439, 2.8), as words `[rows, 4 · blocks]`."""
    data = np.frombuffer(associated_data, "<u4")
    lengths = np.array([len(associated_data), 0, 4 * count, 0], np.uint32)
    like = tf.zeros_like(sealed[:, :1])
    parts = [like + tf.constant(data[None], tf.uint32), sealed]
    parts += [like + tf.zeros([1, -count % 4], tf.uint32), like + tf.constant(lengths[None])]
    return tf.concat(parts, axis=1)
