"""Responses encrypted in the graph: XChaCha20-Poly1305 in plain TensorFlow operations.

Arciszewski, *XChaCha: eXtended-nonce ChaCha and AEAD_XChaCha20_Poly1305*,
draft-irtf-cfrg-xchacha-03, over RFC 8439; the extended nonce is Bernstein's (*Extending the
Salsa20 nonce*, 2011). Nothing is needed of a runtime but TensorFlow's own kernels for integers.

Secrecy rests on the key alone. A nonce must not repeat under it: within a batch the row's number
keeps nonces apart; between batches the server's clock in microseconds or 96 bits of its generator
for each row, either of which is enough. TensorFlow seeds its generator with few bits, and forked
processes share its state; docs/serving.md has the argument and its limits.
"""

import math
from typing import Any, Final

import numpy as np
import tensorflow as tf

from keras_encryip.formats.responses import NONCE_WORDS

_CONSTANTS: Final = np.frombuffer(b"expand 32-byte k", "<u4")
_LIMB: Final = (1 << 26) - 1
_CLAMP: Final = (0x0FFFFFFF, 0x0FFFFFFC, 0x0FFFFFFC, 0x0FFFFFFC)


def encrypt(confused: Any, key: bytes, associated_data: bytes, nonces: Any = None) -> Any:
    """Encrypt every row.

    Args:
        confused: float32 `[..., N]`.
        key: 32 bytes.
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
    words = np.frombuffer(key, "<u4")
    subkey = _hchacha20(words, nonces[:, :4])
    stream = _chacha20(subkey, nonces[:, 4:], 1 + -(-count // 16))
    sealed = tf.bitwise.bitwise_xor(rows, stream[:, 16 : 16 + count])
    tag = _poly1305(stream[:, :8], _message(sealed, count, associated_data))
    responses = tf.bitcast(tf.concat([nonces, sealed, tag], axis=1), tf.int32)
    shape = tf.concat([tf.shape(confused)[:-1], [responses.shape[1]]], 0)
    return tf.reshape(responses, shape)


def fresh_nonces(rows: Any) -> Any:
    """uint32 `[rows, 6]`: two words of the clock, three drawn, and the row's number."""
    now = tf.cast(tf.timestamp() * 1e6, tf.int64)
    clock = tf.stack([_low(now), _low(tf.bitwise.right_shift(now, _int64(32)))])
    shape = tf.stack([tf.cast(rows, tf.int64), _int64(NONCE_WORDS - 3)])
    drawn = tf.raw_ops.NonDeterministicInts(shape=shape, dtype=tf.uint32)
    number = tf.cast(tf.range(rows), tf.uint32)
    return tf.concat([tf.tile(clock[None], [rows, 1]), drawn, number[:, None]], axis=1)


# --- ChaCha20 (RFC 8439, 2.1–2.4) ----------------------------------------------------------


def _hchacha20(key: np.ndarray, nonces: Any) -> Any:
    """The subkeys, uint32 `[8, rows]`, from a key `[8]` and words `[rows, 4]`."""
    like = tf.zeros_like(nonces[:, 0])[None]
    rows = [tf.constant(part[:, None], tf.uint32) + like for part in (_CONSTANTS, key[:4], key[4:])]
    a, _, _, d = _rounds([*rows, tf.transpose(nonces)])
    return tf.concat([a, d], axis=0)


def _chacha20(subkey: Any, nonces: Any, blocks: int) -> Any:
    """The key stream from block 0 on, uint32 `[rows, 16 · blocks]`."""
    like = tf.zeros_like(nonces[:, :1]) + tf.zeros([1, blocks], tf.uint32)
    counter = tf.range(blocks, dtype=tf.int32)
    last = [
        tf.cast(counter, tf.uint32)[None] + like,
        like,
        *(n[:, None] + like for n in (nonces[:, 0], nonces[:, 1])),
    ]
    state = [
        tf.constant(_CONSTANTS[:, None, None], tf.uint32) + like,
        subkey[:4, :, None] + like,
        subkey[4:, :, None] + like,
        tf.stack(last),
    ]
    mixed = [row + start for row, start in zip(_rounds(state), state, strict=True)]
    words = tf.transpose(tf.concat(mixed, axis=0), [1, 2, 0])
    return tf.reshape(words, [-1, 16 * blocks])


def _rounds(state: list[Any]) -> list[Any]:
    """20 rounds on the four rows of the state, `[4, …]` each."""
    for _ in range(10):
        state = _quarter_rounds(*state)
        state = [state[0], *(_turned(state[i], i) for i in (1, 2, 3))]
        state = _quarter_rounds(*state)
        state = [state[0], *(_turned(state[i], 4 - i) for i in (1, 2, 3))]
    return state


def _quarter_rounds(a: Any, b: Any, c: Any, d: Any) -> list[Any]:
    for first, second in ((16, 12), (8, 7)):
        a = a + b
        d = _rotated(tf.bitwise.bitwise_xor(d, a), first)
        c = c + d
        b = _rotated(tf.bitwise.bitwise_xor(b, c), second)
    return [a, b, c, d]


def _turned(row: Any, places: int) -> Any:
    return tf.concat([row[places:], row[:places]], axis=0)


def _rotated(x: Any, bits: int) -> Any:
    left = tf.bitwise.left_shift(x, tf.constant(bits, tf.uint32))
    return tf.bitwise.bitwise_or(left, tf.bitwise.right_shift(x, tf.constant(32 - bits, tf.uint32)))


# --- Poly1305 (RFC 8439, 2.5), numbers as five limbs of 26 bits in int64 ---------------------


def _message(sealed: Any, count: int, associated_data: bytes) -> Any:
    """What the tag is of (RFC 8439, 2.8), as words `[rows, 4 · blocks]`."""
    data = np.frombuffer(associated_data, "<u4")
    lengths = np.array([len(associated_data), 0, 4 * count, 0], np.uint32)
    like = tf.zeros_like(sealed[:, :1])
    parts = [like + tf.constant(data[None], tf.uint32), sealed]
    parts += [like + tf.zeros([1, -count % 4], tf.uint32), like + tf.constant(lengths[None])]
    return tf.concat(parts, axis=1)


def _poly1305(key: Any, message: Any) -> Any:
    """Tags, uint32 `[rows, 4]`, under one-time keys `[rows, 8]`.

    Σ c_i r^(m − i + 1) mod 2^130 − 5, in about √m lanes side by side: Horner's rule by r^lanes in
    each, and the lanes' sums by the powers of r.
    """
    blocks = message.shape[1] // 4
    lanes = math.isqrt(blocks - 1) + 1
    steps = -(-blocks // lanes)
    limbs = _limbs(tf.reshape(message, [-1, blocks, 4]), 1 << 24)
    limbs = tf.pad(limbs, [[0, 0], [lanes * steps - blocks, 0], [0, 0]])  # zeros add nothing
    limbs = tf.reshape(limbs, [-1, steps, lanes, 5])
    clamped = tf.bitwise.bitwise_and(key[:, :4], tf.constant(_CLAMP, tf.uint32))
    r = _limbs(clamped, 0)
    powers = [r]
    for _ in range(lanes - 1):
        powers.append(_product(powers[-1], _factors(r)))
    leap = _factors(powers[-1])[:, None]
    total = limbs[:, 0]
    for step in range(1, steps):
        total = _product(total, leap) + limbs[:, step]
    weights = _factors(tf.stack(powers[::-1], axis=1))
    total = _carried(tf.reduce_sum(_product(total, weights), axis=1))
    return _plus(_reduced(total), key[:, 4:])


def _limbs(words: Any, top: int) -> Any:
    """int64 `[…, 5]` of words `[…, 4]`, plus `top` in the highest limb."""
    t = [tf.cast(word, tf.int64) for word in tf.unstack(words, axis=-1)]
    limbs = [t[0]]
    for i, shift in ((0, 26), (1, 20), (2, 14)):
        low = tf.bitwise.right_shift(t[i], _int64(shift))
        limbs.append(low + tf.bitwise.left_shift(t[i + 1], _int64(32 - shift)))
    limbs = [tf.bitwise.bitwise_and(limb, _int64(_LIMB)) for limb in limbs]
    limbs.append(tf.bitwise.right_shift(t[3], _int64(8)) + _int64(top))
    return tf.stack(limbs, axis=-1)


def _factors(r: Any) -> Any:
    """The matrix `[…, 5, 5]` that multiplies limbs by r modulo 2^130 − 5."""
    limbs = tf.unstack(r, axis=-1)
    rows = [[limbs[j - i] if j >= i else 5 * limbs[5 + j - i] for j in range(5)] for i in range(5)]
    return tf.stack([tf.stack(row, axis=-1) for row in rows], axis=-2)


def _product(h: Any, factors: Any) -> Any:
    """h < 2^28 in each limb, factors < 2^29: sums stay below 2^60."""
    return _carried(tf.reduce_sum(h[..., None] * factors, axis=-2))


def _carried(h: Any) -> Any:
    """Limbs of 26 bits, but for a carry of one more in the second."""
    limbs = tf.unstack(h, axis=-1)
    carry = tf.zeros_like(limbs[0])
    for i in range(5):
        limbs[i] = limbs[i] + carry
        carry = tf.bitwise.right_shift(limbs[i], _int64(26))
        limbs[i] = tf.bitwise.bitwise_and(limbs[i], _int64(_LIMB))
    limbs[0] = limbs[0] + 5 * carry
    carry = tf.bitwise.right_shift(limbs[0], _int64(26))
    limbs[0] = tf.bitwise.bitwise_and(limbs[0], _int64(_LIMB))
    limbs[1] = limbs[1] + carry
    return tf.stack(limbs, axis=-1)


def _reduced(h: Any) -> Any:
    """The remainder itself, below 2^130 − 5: h or h − p = h + 5 − 2^130."""
    h = _carried(h)
    limbs, above = tf.unstack(h, axis=-1), tf.unstack(h, axis=-1)
    carry = tf.zeros_like(limbs[0]) + 5
    for i in range(5):
        above[i] = above[i] + carry
        carry = tf.bitwise.right_shift(above[i], _int64(26))
        above[i] = tf.bitwise.bitwise_and(above[i], _int64(_LIMB))
    return tf.where((carry > 0)[..., None], tf.stack(above, axis=-1), tf.stack(limbs, axis=-1))


def _plus(h: Any, words: Any) -> Any:
    """(h + s) mod 2^128 as words `[rows, 4]`."""
    limbs = tf.unstack(h, axis=-1)
    carry = tf.zeros_like(limbs[0])
    sums = []
    for i, word in enumerate(tf.unstack(words, axis=-1)):
        shift = 6 * i
        low = tf.bitwise.right_shift(limbs[i], _int64(shift))
        high = tf.bitwise.left_shift(limbs[i + 1], _int64(26 - shift))
        part = tf.bitwise.bitwise_and(low + high, _int64(0xFFFFFFFF))
        total = part + tf.cast(word, tf.int64) + carry
        sums.append(_low(total))
        carry = tf.bitwise.right_shift(total, _int64(32))
    return tf.stack(sums, axis=-1)


def _low(x: Any) -> Any:
    return tf.cast(tf.bitwise.bitwise_and(x, _int64(0xFFFFFFFF)), tf.uint32)


def _int64(value: int) -> Any:
    return tf.constant(value, tf.int64)
