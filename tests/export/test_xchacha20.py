"""XChaCha20-Poly1305 in TensorFlow: published vectors, pycryptodome, and the nonces."""

import itertools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from Crypto.Cipher import ChaCha20, ChaCha20_Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from keras_encryip.export import xchacha20 as hosted
from keras_encryip.formats.responses import EXTRA_WORDS, NONCE_WORDS, open_responses

KEY, DATA = bytes(range(32)), bytes(range(100, 116))


def words(data: bytes) -> Any:
    return tf.constant(np.frombuffer(data, "<u4")[None].copy())


def octets(found: Any) -> bytes:
    return np.asarray(found).astype("<u4").tobytes()


# --- published vectors ---------------------------------------------------------------------


def test_hchacha20() -> None:
    """draft-irtf-cfrg-xchacha-03, 2.2.1."""
    nonce = bytes.fromhex("000000090000004a0000000031415927")
    found = hosted.hchacha20(np.frombuffer(KEY, "<u4"), words(nonce))
    expected = "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
    assert octets(tf.transpose(found)).hex() == expected


def test_chacha20_block() -> None:
    """RFC 8439, 2.3.2, whose nonce begins with 9 instead of 0: by pycryptodome for ours."""
    subkey = tf.transpose(words(KEY))
    nonce = bytes.fromhex("0000004a00000000")
    found = octets(hosted.chacha20(subkey, words(nonce), 3))
    cipher = ChaCha20.new(key=KEY, nonce=bytes(4) + nonce)
    assert found == cipher.encrypt(bytes(192))


FOUR = (
    "e33594d7505e43b90000000000000000"
    "3394d7505e4379cd0100000000000000"
    "00000000000000000000000000000000"
    "01000000000000000000000000000000"
)
R10 = "01000000000000000400000000000000" + "00" * 16
POLY1305 = {
    # RFC 8439, A.3: number → (r ‖ s, message, tag); those of whole blocks.
    "1": ("00" * 32, "00" * 64, "00" * 16),
    "5": ("02" + "00" * 31, "ff" * 16, "03" + "00" * 15),
    "6": ("02" + "00" * 15 + "ff" * 16, "02" + "00" * 15, "03" + "00" * 15),
    "7": ("01" + "00" * 31, "ff" * 16 + "f0" + "ff" * 15 + "11" + "00" * 15, "05" + "00" * 15),
    "8": ("01" + "00" * 31, "ff" * 16 + "fb" + "fe" * 15 + "01" * 16, "00" * 16),
    "9": ("02" + "00" * 31, "fd" + "ff" * 15, "fa" + "ff" * 15),
    "10": (R10, FOUR, "14000000000000005500000000000000"),
    "11": (R10, FOUR[:96], "13" + "00" * 15),
}


@pytest.mark.parametrize("number", POLY1305)
def test_poly1305(number: str) -> None:
    key, message, tag = (bytes.fromhex(part) for part in POLY1305[number])
    assert len(message) % 16 == 0
    assert octets(hosted.poly1305(words(key), words(message))) == tag


# --- against pycryptodome ------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 15, 16, 17, 64, 704, 2065])
def test_pycryptodome_opens_it(count: int) -> None:
    values = np.random.default_rng(count).normal(size=(3, count)).astype(np.float32)
    found = hosted.encrypt(tf.constant(values), KEY, DATA)
    assert found.dtype == tf.int32
    assert found.shape == (3, count + EXTRA_WORDS)
    np.testing.assert_array_equal(open_responses(found.numpy(), KEY, DATA, count), values)


@settings(deadline=None, max_examples=25)
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=24, max_size=24), st.data())
def test_bit_for_bit(key: bytes, nonce: bytes, data: st.DataObject) -> None:
    """Any key, nonce and bits, also of numbers that are none."""
    raw = data.draw(st.binary(min_size=4, max_size=80).filter(lambda b: len(b) % 4 == 0))
    values = np.frombuffer(raw, "<f4")[None]
    found = octets(hosted.encrypt(tf.constant(values), key, DATA, words(nonce)))
    cipher = ChaCha20_Poly1305.new(key=key, nonce=nonce)
    cipher.update(DATA)
    sealed, tag = cipher.encrypt_and_digest(raw)
    assert found == nonce + sealed + tag


def poly1305(key: bytes, message: bytes) -> bytes:
    """RFC 8439, 2.5.1, in Python's integers."""
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for i in range(0, len(message), 16):
        total = (total + int.from_bytes(message[i : i + 16] + b"\1", "little")) * r % (2**130 - 5)
    return ((total + int.from_bytes(key[16:], "little")) % 2**128).to_bytes(16, "little")


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 9, 16, 17, 178])
def test_the_longest_carries(blocks: int) -> None:
    for r, s, byte in itertools.product((b"\xff", b"\0"), (b"\xff", b"\0"), (b"\xff", b"\0")):
        key, message = r * 16 + s * 16, byte * 16 * blocks
        assert octets(hosted.poly1305(words(key), words(message))) == poly1305(key, message)


def test_leading_axes_and_half_precision() -> None:
    values = np.random.default_rng(0).random((2, 3, 4, 5)).astype(np.float32)
    found = hosted.encrypt(tf.constant(values), KEY, DATA)
    assert found.shape == (2, 3, 4, 5 + EXTRA_WORDS)
    np.testing.assert_array_equal(open_responses(found.numpy(), KEY, DATA, 5), values)
    half = tf.constant(values, tf.float16)
    opened = open_responses(hosted.encrypt(half, KEY, DATA).numpy(), KEY, DATA, 5)
    np.testing.assert_array_equal(opened, half.numpy().astype(np.float32))


def test_no_rows() -> None:
    found = hosted.encrypt(tf.zeros([0, 7]), KEY, DATA)
    assert found.shape == (0, 17)
    assert open_responses(found.numpy(), KEY, DATA, 7).shape == (0, 7)


# --- nonces, and what can be seen ----------------------------------------------------------


def test_nonces_differ_in_and_between_calls() -> None:
    call = tf.function(lambda x: hosted.encrypt(x, KEY, DATA))
    same = tf.zeros([500, 3])
    found = np.concatenate([call(same).numpy() for _ in range(20)])
    nonces = found[:, :NONCE_WORDS]
    assert len(np.unique(nonces, axis=0)) == len(nonces)
    assert len(np.unique(found[:, NONCE_WORDS:], axis=0)) == len(found)


def test_clock_or_generator_is_enough_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a batch the row's number, between calls the clock or the generator."""
    rows = tf.constant(4)
    with monkeypatch.context() as patch:
        patch.setattr(
            tf.raw_ops, "NonDeterministicInts", lambda shape, dtype: tf.zeros(shape, dtype)
        )
        found = np.concatenate([hosted.fresh_nonces(rows).numpy() for _ in range(50)])
        assert len(np.unique(found, axis=0)) == len(found)
    monkeypatch.setattr(tf, "timestamp", lambda: tf.constant(1.7e9, tf.float64))
    found = np.concatenate([hosted.fresh_nonces(rows).numpy() for _ in range(50)])
    assert len(np.unique(found, axis=0)) == len(found)
    assert len(np.unique(found[:, :2], axis=0)) == 1
    monkeypatch.setattr(
        tf.raw_ops, "NonDeterministicInts", lambda shape, dtype: tf.zeros(shape, dtype)
    )
    found = hosted.fresh_nonces(rows).numpy()
    assert len(np.unique(found, axis=0)) == 4


def test_the_clock_is_the_clock() -> None:
    import time

    before = time.time()
    low, high = hosted.fresh_nonces(tf.constant(1)).numpy()[0, :2].astype(np.int64)
    seconds = (low + (high << 32)) / 1e6
    assert before - 1 < seconds < time.time() + 1


DRAW = """
import keras, tensorflow as tf
from keras_encryip.export.xchacha20 import fresh_nonces
keras.utils.set_random_seed(0)
print(fresh_nonces(tf.constant(2)).numpy()[:, 2:5].tolist())
"""


def test_a_seed_does_not_fix_them() -> None:
    runs = [
        subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout != runs[1].stdout


def test_equal_rows_look_like_noise() -> None:
    """Bytes of ciphertexts and tags are uniform: chi-squared, one in 10,000 by chance."""
    found = hosted.encrypt(tf.zeros([2000, 16]), os.urandom(32), DATA).numpy()
    for part in (found[:, NONCE_WORDS:-4], found[:, -4:]):
        counts = np.bincount(np.frombuffer(octets(part), np.uint8), minlength=256)
        assert chisquare(counts).pvalue > 1e-4
    bits = np.unpackbits(np.frombuffer(octets(found[:, NONCE_WORDS:]), np.uint8)).reshape(2000, -1)
    shares = bits.mean(0)  # of 640 bits; six standard deviations
    assert np.abs(shares - 0.5).max() < 6 * 0.5 / np.sqrt(2000)
