"""ChaCha20 in plain TensorFlow operations (RFC 8439, 2.1–2.4), for graphs that any runtime runs."""

from typing import Any, Final

import numpy as np
import tensorflow as tf

_CONSTANTS: Final = np.frombuffer(b"expand 32-byte k", "<u4")


def hchacha20(key: Any, nonces: Any) -> Any:
    """The subkeys, uint32 `[8, rows]`, from a key `[8]` and words `[rows, 4]`."""
    like = tf.zeros_like(nonces[:, 0])[None]
    parts = (_CONSTANTS, key[:4], key[4:])
    rows = [tf.convert_to_tensor(part, tf.uint32)[:, None] + like for part in parts]
    a, _, _, d = _rounds([*rows, tf.transpose(nonces)])
    return tf.concat([a, d], axis=0)


def chacha20(subkey: Any, nonces: Any, blocks: int, first: Any = 0, *, looped: bool = False) -> Any:
    """The key stream from block `first` on, uint32 `[rows, 16 · blocks]`.

    Args:
        subkey: uint32 `[8, rows]`.
        nonces: uint32 `[rows, 2]`, of which the first word of RFC 8439's nonce is zero.
        blocks: of 64 bytes.
        first: uint32, the first block's number.
        looped: as a loop: for many blocks, in a graph that is small and so is quick to load.
    """
    like = tf.zeros_like(nonces[:, :1]) + tf.zeros([1, blocks], tf.uint32)
    counter = tf.cast(tf.range(blocks, dtype=tf.int32), tf.uint32) + tf.cast(first, tf.uint32)
    last = [
        counter[None] + like,
        like,
        *(n[:, None] + like for n in (nonces[:, 0], nonces[:, 1])),
    ]
    state = [
        tf.constant(_CONSTANTS[:, None, None], tf.uint32) + like,
        subkey[:4, :, None] + like,
        subkey[4:, :, None] + like,
        tf.stack(last),
    ]
    rounds = _looped_rounds if looped else _rounds
    mixed = [row + start for row, start in zip(rounds(state), state, strict=True)]
    words = tf.transpose(tf.concat(mixed, axis=0), [1, 2, 0])
    return tf.reshape(words, [-1, 16 * blocks])


def _rounds(state: list[Any]) -> list[Any]:
    """20 rounds on the four rows of the state, `[4, …]` each."""
    for _ in range(10):
        state = _double_round(state)
    return state


def _looped_rounds(state: list[Any]) -> list[Any]:
    """`_rounds`, as a loop."""
    _, *rows = tf.while_loop(
        lambda count, *_: count < 10,
        lambda count, *state: (count + 1, *_double_round(list(state))),
        (0, *state),
        parallel_iterations=1,
    )
    return rows


def _double_round(state: list[Any]) -> list[Any]:
    state = _quarter_rounds(*state)
    state = [state[0], *(_turned(state[i], i) for i in (1, 2, 3))]
    state = _quarter_rounds(*state)
    return [state[0], *(_turned(state[i], 4 - i) for i in (1, 2, 3))]


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
    """A product and a sum in place of a shift and an "or": the kernels are several times faster."""
    return x * tf.constant(1 << bits, tf.uint32) + tf.bitwise.right_shift(
        x, tf.constant(32 - bits, tf.uint32)
    )
