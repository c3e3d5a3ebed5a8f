"""STREAM: round trips of any size, and every change is noticed."""

import io
import itertools

import pytest
from Crypto.Cipher import AES
from hypothesis import given
from hypothesis import strategies as st

from keras_encryip.crypto import streaming_aead as stream
from keras_encryip.crypto.aead import TAG_BYTES
from keras_encryip.crypto.streaming_aead import CHUNK_BYTES, seal_stream, sealed_size, unseal_stream
from keras_encryip.errors import SignatureError

KEY = bytes(range(32))
REFUSED = "cannot be opened with this key, or was changed or cut off"
WHOLE = CHUNK_BYTES + TAG_BYTES


def sealed(plaintext: bytes, key: bytes = KEY, data: bytes = b"head") -> bytes:
    return b"".join(seal_stream(key, [plaintext], data))


def opened(found: bytes, key: bytes = KEY, data: bytes = b"head") -> bytes:
    return b"".join(unseal_stream(key, io.BytesIO(found).read, data))


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 200_000])
def test_round_trip(size: int) -> None:
    plaintext = bytes(i % 251 for i in range(size))
    found = sealed(plaintext)
    assert opened(found) == plaintext
    assert len(found) == sealed_size(size)


@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(1, 16))
def test_parts_do_not_matter(parts: list[bytes], chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK_BYTES", chunk)
        found = b"".join(seal_stream(KEY, parts, b""))
        assert found == b"".join(seal_stream(KEY, [b"".join(parts)], b""))
        assert b"".join(unseal_stream(KEY, io.BytesIO(found).read, b"")) == b"".join(parts)
        assert len(found) == sealed_size(sum(map(len, parts)))


def test_chunks_are_what_the_docs_say() -> None:
    """By AES-GCM alone: the counter in 11 bytes, then whether it is the last."""
    found = sealed(bytes(CHUNK_BYTES) + b"end")
    for number, last, part in ((0, 0, found[:WHOLE]), (1, 1, found[WHOLE:])):
        cipher = AES.new(KEY, AES.MODE_GCM, nonce=number.to_bytes(11, "big") + bytes([last]))
        cipher.update(b"head")
        assert cipher.decrypt_and_verify(part[:-16], part[-16:]) in (bytes(CHUNK_BYTES), b"end")


def pieces(found: bytes) -> list[bytes]:
    return [found[i : i + WHOLE] for i in range(0, len(found), WHOLE)]


CHUNKS = pieces(sealed(bytes(2 * CHUNK_BYTES) + b"the end"))
EMPTY = AES.new(KEY, AES.MODE_GCM, nonce=(3).to_bytes(11, "big") + b"\1").update(b"head")


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([], id="nothing"),
        pytest.param(CHUNKS[:1], id="first-alone"),
        pytest.param(CHUNKS[:2], id="last-cut-off"),
        pytest.param(CHUNKS[1:], id="first-cut-off"),
        pytest.param([CHUNKS[1], CHUNKS[0], CHUNKS[2]], id="swapped"),
        pytest.param([CHUNKS[0], CHUNKS[0], CHUNKS[2]], id="repeated"),
        pytest.param([CHUNKS[0], CHUNKS[2]], id="middle-cut-out"),
        pytest.param([*CHUNKS, CHUNKS[2]], id="last-twice"),
        pytest.param([*CHUNKS, b"\0"], id="one-byte-more"),
        pytest.param([*CHUNKS[:2], CHUNKS[2][:-1]], id="one-byte-less"),
        pytest.param([*CHUNKS[:2], b"", EMPTY.encrypt_and_digest(b"")[1]], id="empty-last-chunk"),
    ],
)
def test_moved_chunks_are_refused(chunks: list[bytes]) -> None:
    with pytest.raises(SignatureError, match=REFUSED):
        opened(b"".join(chunks))


def test_every_byte_counts() -> None:
    found = sealed(b"short")
    for place, bit in itertools.product(range(len(found)), (1, 128)):
        changed = bytearray(found)
        changed[place] ^= bit
        with pytest.raises(SignatureError, match=REFUSED):
            opened(bytes(changed))


def test_wrong_key_and_wrong_head() -> None:
    found = sealed(b"short")
    for key, data in ((bytes(32), b"head"), (KEY, b"hea"), (KEY, b"")):
        with pytest.raises(SignatureError, match=REFUSED) as error:
            opened(found, key, data)
        assert error.value.__context__ is None


def test_nothing_is_given_out_before_it_was_checked() -> None:
    changed = bytearray(b"".join(CHUNKS))
    changed[WHOLE + 5] ^= 1
    chunks = unseal_stream(KEY, io.BytesIO(changed).read, b"head")
    assert next(chunks) == bytes(CHUNK_BYTES)
    with pytest.raises(SignatureError):
        next(chunks)
