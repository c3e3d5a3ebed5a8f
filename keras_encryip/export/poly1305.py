"""Poly1305 in plain TensorFlow operations (RFC 8439, 2.5), for graphs that any runtime runs.

Numbers modulo 2^130 − 5 are five limbs of 26 bits, int64 `[…, 5]`.
"""

import math
from typing import Any, Final

import numpy as np
import tensorflow as tf

_LIMB: Final = (1 << 26) - 1
_CLAMP: Final = (0x0FFFFFFF, 0x0FFFFFFC, 0x0FFFFFFC, 0x0FFFFFFC)

_GROUP_BLOCKS: Final = 2048
_GROUPS: Final = 32
CHUNK_WORDS: Final = _GROUPS * _GROUP_BLOCKS * 4


def poly1305(key: Any, message: Any) -> Any:
    """Tags, uint32 `[rows, 4]`, under one-time keys `[rows, 8]`.

    Σ c_i r^(m − i + 1) mod 2^130 − 5, in about √m lanes side by side: Horner's rule by r^lanes in
    each, and the lanes' sums by the powers of r.
    """
    blocks = message.shape[1] // 4
    lanes = math.isqrt(blocks - 1) + 1
    steps = -(-blocks // lanes)
    limbs = to_limbs(tf.reshape(message, [-1, blocks, 4]), 1 << 24)
    limbs = tf.pad(limbs, [[0, 0], [lanes * steps - blocks, 0], [0, 0]])  # zeros add nothing
    limbs = tf.reshape(limbs, [-1, steps, lanes, 5])
    clamped = tf.bitwise.bitwise_and(key[:, :4], tf.constant(_CLAMP, tf.uint32))
    r = to_limbs(clamped, 0)
    powers = [r]
    for _ in range(lanes - 1):
        powers.append(product(powers[-1], factors(r)))
    leap = factors(powers[-1])[:, None]
    total = limbs[:, 0]
    for step in range(1, steps):
        total = product(total, leap) + limbs[:, step]
    weights = factors(tf.stack(powers[::-1], axis=1))
    total = carried(tf.reduce_sum(product(total, weights), axis=1))
    return plus(reduced(total), key[:, 4:])


# --- long messages -------------------------------------------------------------------------


class LongTag:
    """A tag of a message that comes in chunks of `CHUNK_WORDS`, each by one matrix product.

    A chunk is 32 groups of 2,048 blocks. The sums Σ c_i r^(2048 − i) of all groups are a product of
    the blocks' words, of 16 bits, and the powers' limbs, of 26: sums of 2,048 such products
    are whole numbers below 2^53, exact in float64.

    Args:
        key: the one-time key, uint32 `[8]`.
    """

    def __init__(self, key: Any) -> None:
        r = to_limbs(tf.bitwise.bitwise_and(key[:4], tf.constant(_CLAMP, tf.uint32)), 0)
        powers = _powers(r, _GROUP_BLOCKS)
        leaps = _powers(powers[0], _GROUPS)
        self._r, self._s = factors(r), key[4:]
        self.powers = tf.cast(powers, tf.float64)
        self.leaps = tf.concat([leaps[1:], tf.constant([[1, 0, 0, 0, 0]], tf.int64)], axis=0)
        self.leap = leaps[0]

    @staticmethod
    def start() -> Any:
        """Of no chunks: int64 `[5]`."""
        return tf.zeros([5], tf.int64)

    @staticmethod
    def absorb(total: Any, chunk: Any, powers: Any, leaps: Any, leap: Any) -> Any:
        """Of one chunk more, uint32 `[CHUNK_WORDS]`; all of the key that a loop needs is passed."""
        words = tf.cast(tf.bitcast(chunk, tf.uint16), tf.float64)
        words = tf.transpose(tf.reshape(words, [_GROUPS, _GROUP_BLOCKS, 8]), [0, 2, 1])
        sums = tf.reshape(
            tf.matmul(tf.reshape(words, [_GROUPS * 8, _GROUP_BLOCKS]), powers), [_GROUPS, 8, 5]
        )
        tops = tf.tile(tf.reduce_sum(powers, axis=0)[None, None], [_GROUPS, 1, 1])
        whole = tf.cast(tf.concat([sums, tops], axis=1), tf.int64)
        thirds = [
            tf.bitwise.bitwise_and(tf.bitwise.right_shift(whole, int64(shift)), int64(_LIMB))
            for shift in (0, 26, 52)
        ]
        flat = tf.reshape(tf.stack(thirds, axis=-1), [_GROUPS, len(FOLDED)])
        groups = carried(tf.reduce_sum(flat[:, :, None] * tf.constant(FOLDED), axis=1))
        weighted = tf.reduce_sum(product(groups, factors(leaps)), axis=0)
        return carried(product(total, factors(leap)) + weighted)

    def finish(self, total: Any, block: Any) -> Any:
        """The tag, uint32 `[4]`, after one last block `[4]`."""
        total = product(total + to_limbs(block, 1 << 24), self._r)
        return plus(reduced(total[None]), self._s[None])[0]


def _powers(r: Any, count: int) -> Any:
    """r^count … r^1, int64 `[count, 5]`, by the bits of the exponents."""
    exponents = tf.range(count, 0, -1)

    def step(bit: Any, square: Any, powers: Any) -> Any:
        bits = tf.bitwise.bitwise_and(tf.bitwise.right_shift(exponents, bit), 1)
        powers = tf.where(bits[:, None] > 0, product(powers, factors(square)), powers)
        return bit + 1, product(square, factors(square)), powers

    one = tf.tile(tf.constant([[1, 0, 0, 0, 0]], tf.int64), [count, 1])
    return tf.while_loop(
        lambda bit, *_: bit < count.bit_length(), step, (0, r, one), parallel_iterations=1
    )[2]


def _folded() -> np.ndarray:
    """Where words of 16 bits, limbs of 26 and thirds of their sums stand: int64 `[9·5·3, 5]`."""
    matrix = np.zeros((9, 5, 3, 5), np.int64)
    for word, limb, third in np.ndindex(9, 5, 3):
        place, bits = divmod(16 * word, 26)
        turns, place = divmod(place + limb + third, 5)
        matrix[word, limb, third, place] = 5**turns << bits  # 2^130 = 5
    return matrix.reshape(-1, 5)


FOLDED: Final = _folded()

# --- arithmetic ----------------------------------------------------------------------------


def to_limbs(words: Any, top: int) -> Any:
    """int64 `[…, 5]` of words `[…, 4]`, plus `top` in the highest limb."""
    t = [tf.cast(word, tf.int64) for word in tf.unstack(words, axis=-1)]
    limbs = [t[0]]
    for i, shift in ((0, 26), (1, 20), (2, 14)):
        low = tf.bitwise.right_shift(t[i], int64(shift))
        limbs.append(low + tf.bitwise.left_shift(t[i + 1], int64(32 - shift)))
    limbs = [tf.bitwise.bitwise_and(limb, int64(_LIMB)) for limb in limbs]
    limbs.append(tf.bitwise.right_shift(t[3], int64(8)) + int64(top))
    return tf.stack(limbs, axis=-1)


def factors(r: Any) -> Any:
    """The matrix `[…, 5, 5]` that multiplies limbs by r modulo 2^130 − 5."""
    limbs = tf.unstack(r, axis=-1)
    rows = [[limbs[j - i] if j >= i else 5 * limbs[5 + j - i] for j in range(5)] for i in range(5)]
    return tf.stack([tf.stack(row, axis=-1) for row in rows], axis=-2)


def product(h: Any, factors: Any) -> Any:
    """h < 2^28 in each limb, factors < 2^29: sums stay below 2^60."""
    return carried(tf.reduce_sum(h[..., None] * factors, axis=-2))


def carried(h: Any) -> Any:
    """Limbs of 26 bits, but for a carry of one more in the second."""
    limbs = tf.unstack(h, axis=-1)
    carry = tf.zeros_like(limbs[0])
    for i in range(5):
        limbs[i] = limbs[i] + carry
        carry = tf.bitwise.right_shift(limbs[i], int64(26))
        limbs[i] = tf.bitwise.bitwise_and(limbs[i], int64(_LIMB))
    limbs[0] = limbs[0] + 5 * carry
    carry = tf.bitwise.right_shift(limbs[0], int64(26))
    limbs[0] = tf.bitwise.bitwise_and(limbs[0], int64(_LIMB))
    limbs[1] = limbs[1] + carry
    return tf.stack(limbs, axis=-1)


def reduced(h: Any) -> Any:
    """The remainder itself, below 2^130 − 5: h or h − p = h + 5 − 2^130."""
    h = carried(h)
    limbs, above = tf.unstack(h, axis=-1), tf.unstack(h, axis=-1)
    carry = tf.zeros_like(limbs[0]) + 5
    for i in range(5):
        above[i] = above[i] + carry
        carry = tf.bitwise.right_shift(above[i], int64(26))
        above[i] = tf.bitwise.bitwise_and(above[i], int64(_LIMB))
    return tf.where((carry > 0)[..., None], tf.stack(above, axis=-1), tf.stack(limbs, axis=-1))


def plus(h: Any, words: Any) -> Any:
    """(h + s) mod 2^128 as words `[rows, 4]`."""
    limbs = tf.unstack(h, axis=-1)
    carry = tf.zeros_like(limbs[0])
    sums = []
    for i, word in enumerate(tf.unstack(words, axis=-1)):
        shift = 6 * i
        low = tf.bitwise.right_shift(limbs[i], int64(shift))
        high = tf.bitwise.left_shift(limbs[i + 1], int64(26 - shift))
        part = tf.bitwise.bitwise_and(low + high, int64(0xFFFFFFFF))
        total = part + tf.cast(word, tf.int64) + carry
        sums.append(low_word(total))
        carry = tf.bitwise.right_shift(total, int64(32))
    return tf.stack(sums, axis=-1)


def low_word(x: Any) -> Any:
    return tf.cast(tf.bitwise.bitwise_and(x, int64(0xFFFFFFFF)), tf.uint32)


def int64(value: int) -> Any:
    return tf.constant(value, tf.int64)
