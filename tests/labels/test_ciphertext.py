"""One prediction as bytes, and the masks that hide its class."""

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from Crypto.Cipher import AES
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_encryip.crypto.kem import Header, MasterKey, SharedSecret, UserKey
from keras_encryip.crypto.slots import ReaderKey, SlotKeys
from keras_encryip.errors import EncryipError, ForeignKeyError, FormatError, RevokedKeyError
from keras_encryip.labels.ciphertext import (
    LabelCiphertext,
    ciphertext_label,
    decrypt_labels,
    label_keys,
    label_masks,
)
from keras_encryip.labels.codebook import Codebook

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "codebook.json").read_text(encoding="ascii")
)
KEY = bytes(range(32))

# --- masks -------------------------------------------------------------------


def secret_with(monkeypatch: pytest.MonkeyPatch, key: bytes) -> SharedSecret:
    """A secret that derives `key` for label keys."""
    _, secret = MasterKey.generate(1).encapsulate()
    keys = {"label keys v2": key}
    monkeypatch.setattr(SharedSecret, "derive", lambda self, purpose: keys[purpose])
    return secret


def test_label_keys_and_slot_masks_are_aes_of_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """FIPS 197, appendix C.3: AES-256 of 00112233…ff under 000102…1f."""
    block = bytes.fromhex("00112233445566778899aabbccddeeff")
    cipher = AES.new(KEY, AES.MODE_ECB)
    assert cipher.encrypt(block).hex() == "8ea2b7ca516745bfeafc49904b496089"
    labels = [0, 1, 255, 256, (1 << 22) - 1]
    keys, slot_masks = label_keys(secret_with(monkeypatch, KEY), np.array(labels))
    assert (keys.shape, keys.dtype) == ((5, 16), np.uint8)
    assert (slot_masks.shape, slot_masks.dtype) == ((5,), np.uint16)
    blocks = [[cipher.encrypt((2 * j + i).to_bytes(16, "big")) for i in (0, 1)] for j in labels]
    assert [row.tobytes() for row in keys] == [block for block, _ in blocks]
    assert slot_masks.tolist() == [int.from_bytes(block[:2], "big") for _, block in blocks]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16)),
        max_size=20,
    ),
    st.integers(2, 1 << 20),
)
def test_masks_are_the_digest_of_both_keys(
    pairs: list[tuple[bytes, bytes]], num_classes: int
) -> None:
    expected = [
        int.from_bytes(
            hashlib.sha256(b"encryip label mask v2\0" + slot_key + label_key).digest()[:16], "big"
        )
        % num_classes
        for slot_key, label_key in pairs
    ]
    slot_keys, keys = (
        np.frombuffer(b"".join(column), np.uint8).reshape(-1, 16)
        for column in (zip(*pairs, strict=True) if pairs else (b"", b""))
    )
    masks = label_masks(slot_keys, keys, num_classes)
    assert masks.tolist() == expected
    assert masks.dtype == np.int64


def test_masks_need_both_keys() -> None:
    a, b = (np.full((1, 16), n, np.uint8) for n in (1, 2))
    masks = {int(label_masks(x, y, 1 << 20)[0]) for x in (a, b) for y in (a, b)}
    assert len(masks) == 4


def test_purposes_are_apart() -> None:
    _, secret = MasterKey.generate(1).encapsulate()
    purposes = ("label keys v2", "model metadata v2", "hosted responses v2", "label mask v1")
    assert len({secret.derive(purpose) for purpose in purposes}) == 4


# --- bytes -------------------------------------------------------------------

# t = 1: version at 0, codebook id 1, authority 17, K 49, header 53 (99 bytes), masked slot 152,
# j 154, e[j, 0] 158, e[j, 1] 162.
SIZE = 166
SLOT = 77

Opened = tuple[LabelCiphertext, ReaderKey, int]


@pytest.fixture(scope="module")
def opened(make_owner: Any) -> Opened:
    """A ciphertext of class 3 of 5 for the key here, and of 1 for those with the other bit."""
    owner = make_owner()
    header, secret = owner.master.encapsulate()
    key = owner.issue()
    slot_keys = owner.slots.keys[[SLOT, SLOT], [0, 1]]
    keys, slot_masks = label_keys(secret, np.array([1234, 1234]))
    masks, masked = label_masks(slot_keys, keys, 5), SLOT ^ int(slot_masks[0])
    classes = (3, 1) if key.slots.bits[SLOT] == 0 else (1, 3)
    values = tuple(int((c + m) % 5) for c, m in zip(classes, masks, strict=True))
    authority = owner.master.public_key().digest
    ciphertext = LabelCiphertext(b"C" * 16, authority, 5, header, masked, 1234, values)
    return ciphertext, key, 3


def test_bytes_field_by_field(opened: Opened) -> None:
    ciphertext, _, _ = opened
    data = ciphertext.to_bytes()
    assert data == (
        b"\x02"
        + b"C" * 16
        + ciphertext.authority
        + bytes([0, 0, 0, 5])
        + ciphertext.header.to_bytes()
        + ciphertext.masked_slot.to_bytes(2, "big")
        + bytes([0, 0, 4, 210])
        + bytes([0, 0, 0, ciphertext.values[0]])
        + bytes([0, 0, 0, ciphertext.values[1]])
    )
    assert len(data) == SIZE
    assert LabelCiphertext.from_bytes(data) == ciphertext
    assert ciphertext_label(data) == 1234


def test_a_key_reads_its_class(opened: Opened) -> None:
    ciphertext, key, expected = opened
    data = ciphertext.to_bytes()
    assert decrypt_labels([data], key).tolist() == [expected]
    assert decrypt_labels([data, data], key, authority=ciphertext.authority).tolist() == [3, 3]


def relabelled(ciphertext: LabelCiphertext, key: ReaderKey, label: int) -> bytes:
    """With another j, on the same slot."""
    secret = key.point.decapsulate(ciphertext.header)
    _, (mask,) = label_keys(secret, np.array([label]))
    return dataclasses.replace(ciphertext, label=label, masked_slot=SLOT ^ int(mask)).to_bytes()


def test_what_the_other_bit_reads_stays_closed(opened: Opened) -> None:
    """With the slot key of one bit, the value of the other is of a random class."""
    ciphertext, key, _ = opened
    flipped = key.slots.bits.copy()
    flipped[SLOT] ^= 1
    other = ReaderKey(key.point, SlotKeys(flipped, key.slots.keys))
    swapped = dataclasses.replace(ciphertext, values=ciphertext.values[::-1])
    read = [
        [decrypt_labels([relabelled(c, k, j)], k)[0] for j in range(100)]
        for c, k in ((ciphertext, other), (swapped, key))
    ]
    assert read[0] == read[1]  # the bit chooses the value and nothing else
    assert len(set(read[0])) == 5


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
        pytest.param(lambda d: d[:67], f"{LENGTH}: 67 bytes", id="no header"),
        pytest.param(lambda d: d + bytes(20_000), f"{LENGTH}: 20166 bytes", id="oversized"),
        pytest.param(put(0, b"\x00"), "version 0 is not read by this release", id="version 0"),
        pytest.param(put(0, b"\x03"), r"version 3 .*, which reads 2\.$", id="version 3"),
        pytest.param(
            put(0, b"\x01"),
            r"version 1 is not read .*, which reads 2\. Release 0\.3 of keras_encryip reads it",
            id="version 1",
        ),
        pytest.param(put(49, bytes(4)), RANGE, id="K = 0"),
        pytest.param(put(49, bytes([0, 0, 0, 1])), RANGE, id="K = 1"),
        pytest.param(put(49, bytes([0, 16, 0, 1])), RANGE, id="K = 2^20 + 1"),
        pytest.param(put(154, bytes([0, 64, 0, 0])), RANGE, id="j = 2^22"),
        pytest.param(put(154, b"\xff" * 4), RANGE, id="j = 2^32 - 1"),
        pytest.param(put(158, bytes([0, 0, 0, 5])), RANGE, id="e[j, 0] = K"),
        pytest.param(put(158, b"\xff" * 4), RANGE, id="e[j, 0] = 2^32 - 1"),
        pytest.param(put(162, bytes([0, 0, 0, 5])), RANGE, id="e[j, 1] = K"),
        pytest.param(put(162, b"\xff" * 4), RANGE, id="e[j, 1] = 2^32 - 1"),
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


def test_slots_are_taken_modulo_the_keys(opened: Opened) -> None:
    """Any two bytes are a masked slot; those 256 apart are one slot of this key."""
    ciphertext, key, expected = opened
    assert len(key.slots.bits) == 256
    read = [
        decrypt_labels(
            [dataclasses.replace(ciphertext, masked_slot=ciphertext.masked_slot ^ n).to_bytes()],
            key,
            authority=ciphertext.authority,
        )[0]
        for n in (256, 4096, 65_280, *range(1, 200))
    ]
    assert read[:3] == [expected] * 3
    assert set(read[3:]) == {0, 1, 2, 3, 4}


def test_a_foreign_key_without_its_authority_reads_other_classes(
    opened: Opened, make_owner: Any
) -> None:
    """Documented: with no authority to compare, a foreign ciphertext reads as a random class."""
    ciphertext, key, _ = opened
    data = [dataclasses.replace(ciphertext, label=j).to_bytes() for j in range(200)]
    own, foreign = decrypt_labels(data, key), decrypt_labels(data, make_owner().issue())
    assert set(foreign) == {0, 1, 2, 3, 4}
    assert 5 < (own == foreign).sum() < 90  # 40 expected


def test_a_revoked_key_is_refused(make_owner: Any) -> None:
    owner = make_owner()
    key = owner.issue()
    header, _ = owner.master.encapsulate([key.point.z])
    data = LabelCiphertext(bytes(16), bytes(32), 2, header, 0, 0, (0, 0)).to_bytes()
    with pytest.raises(RevokedKeyError, match="revoked when the header was made"):
        decrypt_labels([data], key)


# --- vectors -----------------------------------------------------------------


def vector_key(point: str) -> ReaderKey:
    slots = bytes.fromhex(VECTORS["codeword"] + VECTORS["slot_keys"])
    user_key = UserKey.from_secret_bytes(bytes.fromhex(VECTORS[point]))
    return ReaderKey(user_key, SlotKeys.from_secret_bytes(slots))


def test_vector_masks() -> None:
    key, codebook = vector_key("user_key"), Codebook.from_bytes(VECTORS["codebook"].encode())
    secret = key.point.decapsulate(codebook.header)
    keys, slot_masks = label_keys(secret, np.arange(32))
    assert slot_masks.tolist() == VECTORS["slot_masks"]
    assert (codebook.masked_slots ^ slot_masks).tolist() == VECTORS["slots"]
    assert [row.tobytes().hex() for row in keys] == VECTORS["label_keys"]
    masks = label_masks(key.slots.keys[VECTORS["slots"]], keys, 3)
    assert masks.tolist() == VECTORS["masks"]


def test_vector_ciphertexts() -> None:
    data = [bytes.fromhex(text) for text in VECTORS["ciphertexts"]]
    assert decrypt_labels(data, vector_key("user_key")).tolist() == VECTORS["classes"]
    assert [LabelCiphertext.from_bytes(item).to_bytes() for item in data] == data
    with pytest.raises(RevokedKeyError, match="revoked when the header was made"):
        decrypt_labels(data, vector_key("revoked_user_key"))
