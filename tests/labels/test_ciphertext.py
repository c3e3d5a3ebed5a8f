"""One prediction as bytes, and the masks that hide its class."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from Crypto.Cipher import AES
from hypothesis import given
from hypothesis import strategies as st

from keras_encryip.crypto.kem import Header, MasterKey, UserKey
from keras_encryip.errors import EncryipError, ForeignKeyError, FormatError, RevokedKeyError
from keras_encryip.labels.ciphertext import LabelCiphertext, decrypt_labels, label_masks, mask_key

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "codebook.json").read_text(encoding="ascii")
)
KEY = bytes(range(32))

# --- masks -------------------------------------------------------------------


@given(st.lists(st.integers(0, (1 << 22) - 1), max_size=20), st.integers(2, 1 << 20))
def test_masks_are_aes_of_the_label_as_one_integer(labels: list[int], num_classes: int) -> None:
    cipher = AES.new(KEY, AES.MODE_ECB)
    expected = [
        int.from_bytes(cipher.encrypt(label.to_bytes(16, "big")), "big") % num_classes
        for label in labels
    ]
    masks = label_masks(KEY, np.array(labels, np.int64), num_classes)
    assert masks.tolist() == expected
    assert masks.dtype == np.int64


def test_mask_vector() -> None:
    """FIPS 197, appendix C.3: AES-256 of 00112233…ff under 000102…1f ends in 6089."""
    whole = AES.new(KEY, AES.MODE_ECB).encrypt(bytes.fromhex("00112233445566778899aabbccddeeff"))
    assert whole.hex() == "8ea2b7ca516745bfeafc49904b496089"
    zero = AES.new(KEY, AES.MODE_ECB).encrypt(bytes(16))
    assert label_masks(KEY, np.array([0]), 1 << 16)[0] == int.from_bytes(zero[-2:], "big")


def test_mask_key_has_its_own_purpose() -> None:
    _, secret = MasterKey.generate(1).encapsulate()
    assert mask_key(secret) == secret.derive("label mask v1")
    assert mask_key(secret) != secret.derive("access metadata v1")


# --- bytes -------------------------------------------------------------------

# t = 1: version at 0, codebook id 1, authority 17, K 49, header 53 (99 bytes), j 152, e_j 156.
SIZE = 160


@pytest.fixture(scope="module")
def opened() -> tuple[LabelCiphertext, UserKey, int]:
    """A ciphertext of class 3 of 5, and the key that reads it."""
    master = MasterKey.generate(1)
    header, secret = master.encapsulate()
    mask = int(label_masks(mask_key(secret), np.array([1234]), 5)[0])
    ciphertext = LabelCiphertext(
        b"C" * 16, master.public_key().digest, 5, header, 1234, (3 + mask) % 5
    )
    return ciphertext, master.issue(), 3


Opened = tuple[LabelCiphertext, UserKey, int]


def test_bytes_field_by_field(opened: Opened) -> None:
    ciphertext, _, _ = opened
    assert ciphertext.to_bytes() == (
        b"\x01"
        + b"C" * 16
        + ciphertext.authority
        + bytes([0, 0, 0, 5])
        + ciphertext.header.to_bytes()
        + bytes([0, 0, 4, 210])
        + bytes([0, 0, 0, ciphertext.value])
    )
    assert len(ciphertext.to_bytes()) == SIZE
    assert LabelCiphertext.from_bytes(ciphertext.to_bytes()) == ciphertext


def test_a_key_reads_its_class(opened: Opened) -> None:
    ciphertext, key, expected = opened
    data = ciphertext.to_bytes()
    assert decrypt_labels([data], key).tolist() == [expected]
    assert decrypt_labels([data, data], key, authority=ciphertext.authority).tolist() == [3, 3]


def test_no_ciphertexts_give_no_classes(opened: Opened) -> None:
    classes = decrypt_labels([], opened[1])
    assert (classes.shape, classes.dtype) == ((0,), np.int64)


def test_one_decapsulation_per_header(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    ciphertext, key, _ = opened
    seen: list[Header] = []
    decapsulate = UserKey.decapsulate
    monkeypatch.setattr(
        UserKey, "decapsulate", lambda self, h: seen.append(h) or decapsulate(self, h)
    )
    data = [dataclasses.replace(ciphertext, label=j).to_bytes() for j in range(50)]
    assert len(decrypt_labels(data, key)) == 50
    assert seen == [ciphertext.header]


def put(start: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda original: original[:start] + data + original[start + len(data) :]


LENGTH = "A label ciphertext has a wrong length"
RANGE = "A label ciphertext has a field out of range"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda d: b"", f"{LENGTH}: 0 bytes", id="empty"),
        pytest.param(lambda d: d[:61], f"{LENGTH}: 61 bytes", id="no header"),
        pytest.param(lambda d: d + bytes(20_000), f"{LENGTH}: 20160 bytes", id="oversized"),
        pytest.param(put(0, b"\x00"), "version 0 is unknown; this release reads 1", id="version 0"),
        pytest.param(put(0, b"\x02"), "version 2 is unknown; this release reads 1", id="version 2"),
        pytest.param(put(49, bytes(4)), RANGE, id="K = 0"),
        pytest.param(put(49, bytes([0, 0, 0, 1])), RANGE, id="K = 1"),
        pytest.param(put(49, bytes([0, 16, 0, 1])), RANGE, id="K = 2^20 + 1"),
        pytest.param(put(152, bytes([0, 64, 0, 0])), RANGE, id="j = 2^22"),
        pytest.param(put(152, b"\xff" * 4), RANGE, id="j = 2^32 - 1"),
        pytest.param(put(156, bytes([0, 0, 0, 5])), RANGE, id="e_j = K"),
        pytest.param(put(156, b"\xff" * 4), RANGE, id="e_j = 2^32 - 1"),
        pytest.param(put(53, b"\x02"), "header has a wrong length or threshold", id="threshold"),
        pytest.param(put(54, bytes(32)), "Header node is not a scalar", id="node 0"),
        pytest.param(put(86, bytes(33)), "Header point is not a compressed", id="R infinity"),
        pytest.param(put(119, b"\x04"), "Header point is not a compressed", id="H tag 4"),
        pytest.param(lambda d: d[:60] + d[61:], "header has a wrong length", id="byte removed"),
        pytest.param(lambda d: d + b"\0", "header has a wrong length", id="byte appended"),
    ],
)
def test_malformed_ciphertexts_are_refused(
    opened: Opened, change: Callable[[bytes], bytes], message: str
) -> None:
    ciphertext, key, _ = opened
    changed = change(ciphertext.to_bytes())
    with pytest.raises(FormatError, match=message):
        LabelCiphertext.from_bytes(changed)
    with pytest.raises(FormatError, match=message):
        decrypt_labels([ciphertext.to_bytes(), changed], key)


def test_every_truncation_is_refused(opened: Opened) -> None:
    data = opened[0].to_bytes()
    for length in range(len(data)):
        with pytest.raises(FormatError, match="wrong length"):
            LabelCiphertext.from_bytes(data[:length])


def test_flipped_bits_raise_package_errors_or_read_as_a_legal_class(opened: Opened) -> None:
    """A ciphertext is not authenticated: what a flip yields is refused, or some class."""
    ciphertext, key, _ = opened
    data, draw = ciphertext.to_bytes(), random.Random(2)
    refused = 0
    for position in range(SIZE):
        changed = bytearray(data)
        changed[position] ^= 1 << draw.randrange(8)
        parsed = None
        try:
            parsed = LabelCiphertext.from_bytes(bytes(changed))
            (read,) = decrypt_labels([bytes(changed)], key, authority=ciphertext.authority)
        except EncryipError:
            refused += 1
        else:
            assert 0 <= read < parsed.num_classes
        # Version and authority digest are checked in full.
        if position == 0 or 17 <= position < 49:
            assert parsed is None or parsed.authority != ciphertext.authority
    assert refused > 33


def test_another_authority_is_refused(opened: Opened) -> None:
    ciphertext, key, _ = opened
    with pytest.raises(ForeignKeyError, match="encrypted under another authority's public key"):
        decrypt_labels([ciphertext.to_bytes()], key, authority=bytes(32))


def test_a_foreign_key_without_its_authority_reads_other_classes(opened: Opened) -> None:
    """Documented: with no authority to compare, a foreign ciphertext reads as a random class."""
    ciphertext, key, _ = opened
    data = [dataclasses.replace(ciphertext, label=j).to_bytes() for j in range(200)]
    stranger = MasterKey.generate(1).issue()
    own, foreign = decrypt_labels(data, key), decrypt_labels(data, stranger)
    assert set(foreign) == {0, 1, 2, 3, 4}
    assert 5 < (own == foreign).sum() < 90  # 40 expected


def test_a_revoked_key_is_refused() -> None:
    master = MasterKey.generate(1)
    key = master.issue()
    header, _ = master.encapsulate([key.z])
    data = LabelCiphertext(bytes(16), bytes(32), 2, header, 0, 0).to_bytes()
    with pytest.raises(RevokedKeyError, match="revoked when the header was made"):
        decrypt_labels([data], key)


# --- vectors -----------------------------------------------------------------


def test_vector_masks() -> None:
    masks = np.stack(
        [
            label_masks(bytes.fromhex(key), np.arange(8 * block, 8 * block + 8), 3)
            for block, key in enumerate(VECTORS["mask_keys"])
        ]
    )
    assert masks.ravel().tolist() == VECTORS["masks"]


def test_vector_ciphertexts() -> None:
    key = UserKey.from_secret_bytes(bytes.fromhex(VECTORS["user_key"]))
    data = [bytes.fromhex(text) for text in VECTORS["ciphertexts"]]
    assert decrypt_labels(data, key).tolist() == VECTORS["classes"]
    assert [LabelCiphertext.from_bytes(item).to_bytes() for item in data] == data
    revoked = UserKey.from_secret_bytes(bytes.fromhex(VECTORS["revoked_user_key"]))
    with pytest.raises(RevokedKeyError, match="revoked when the header was made"):
        decrypt_labels(data, revoked)
