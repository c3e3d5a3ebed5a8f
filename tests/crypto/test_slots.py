"""Slots: their keys and biases, users' codewords, and the commitments to both."""

import copy
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from keras_encryip.crypto import slots as slots_module
from keras_encryip.crypto.biases import bias_thresholds
from keras_encryip.crypto.kem import MasterKey
from keras_encryip.crypto.slots import (
    CodewordOpening,
    ReaderKey,
    SlotKeys,
    SlotOpening,
    SlotSecrets,
    check_slots,
    commitment,
)
from keras_encryip.errors import ArgumentError, FormatError

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "slots.json").read_text(encoding="ascii")
)
SECRETS = SlotSecrets(bytes(range(32)), 256)
KEY_ID = "0123456789abcdef"
key_ids = st.integers(0, 2**64 - 1).map(lambda number: f"{number:016x}")


def skewed(words: np.ndarray) -> np.ndarray:
    """Biases far from ½ and from each other, to see that codewords follow them."""
    return (words >> 3).astype(np.uint32) + np.uint32(1 << 28)


# --- derivation ------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 8, 248, 257, 252, 4104, -256, 256.0, True, "256", None])
def test_numbers_of_slots_that_no_authority_has(count: Any) -> None:
    with pytest.raises(ArgumentError, match=r"`slots` must be a multiple of 8 in 256 … 4096\. Rec"):
        check_slots(count)
    with pytest.raises(ArgumentError, match="`slots` must be a multiple of 8"):
        SlotSecrets(bytes(32), count)


@pytest.mark.parametrize("count", [256, 264, 1024, 4096])
def test_shapes(count: int) -> None:
    slots = SlotSecrets(os.urandom(32), count)
    assert slots.count == count
    assert (slots.keys.shape, slots.keys.dtype) == ((count, 2, 16), np.uint8)
    assert (slots.thresholds.shape, slots.thresholds.dtype) == ((count,), np.uint32)
    assert np.array_equal(slots.biases, slots.thresholds / 2**32)
    assert len(np.unique(slots.keys.reshape(-1, 16), axis=0)) == 2 * count


def test_a_seed_of_another_length_is_refused() -> None:
    for length in (0, 16, 31, 33):
        with pytest.raises(FormatError, match="A slot seed has 32 bytes"):
            SlotSecrets(bytes(length), 256)


def test_everything_follows_from_the_seed() -> None:
    again, other = SlotSecrets(bytes(range(32)), 256), SlotSecrets(bytes(32), 256)
    assert np.array_equal(again.keys, SECRETS.keys)
    assert again.of_user(KEY_ID).secret_bytes() == SECRETS.of_user(KEY_ID).secret_bytes()
    assert again.codeword_leaves(KEY_ID) == SECRETS.codeword_leaves(KEY_ID)
    assert not set(map(bytes, SECRETS.keys.reshape(-1, 16))) & set(
        map(bytes, other.keys.reshape(-1, 16))
    )
    assert other.slot_leaves() != SECRETS.slot_leaves()


def test_slot_keys_look_random() -> None:
    """Every bit is as often 1, and the two keys of a slot have nothing to do with each other."""
    slots = SlotSecrets(b"\5" * 32, 4096)
    bits = np.unpackbits(slots.keys.reshape(-1, 16), axis=1)
    z = (bits.mean(0) - 0.5) * 2 * np.sqrt(len(bits))
    assert np.abs(z).max() < 5
    both = np.unpackbits(slots.keys[:, 0] ^ slots.keys[:, 1])
    assert stats.binomtest(int(both.sum()), both.size, 0.5).pvalue > 1e-6


# --- codewords ---------------------------------------------------------------------


def many_users(count: int) -> list[str]:
    return [os.urandom(8).hex() for _ in range(count)]


@pytest.mark.parametrize("density", [bias_thresholds, skewed], ids=["own", "skewed"])
def test_bits_have_the_biases(
    density: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots_module, "bias_thresholds", density)
    slots, users = SlotSecrets(b"\7" * 32, 256), 20_000
    ones = slots.codewords(many_users(users), np.arange(256)).sum(0, dtype=np.int64)
    p = slots.biases
    z = (ones - users * p) / np.sqrt(users * p * (1 - p))
    assert np.abs(z).max() < 5
    assert abs(stats.kstest(z, "norm").pvalue) > 1e-6


def test_bits_of_users_and_of_slots_are_independent() -> None:
    bits = SECRETS.codewords(many_users(4000), np.arange(256)).astype(np.float64)
    centred = (bits - SECRETS.biases) / np.sqrt(SECRETS.biases * (1 - SECRETS.biases))
    between_slots = centred.T @ centred / np.sqrt(len(centred))
    np.fill_diagonal(between_slots, 0)
    assert np.abs(between_slots).max() < 6.5  # 32,640 pairs
    neighbours = (centred[1:] * centred[:-1]).sum() / np.sqrt(centred[1:].size)
    assert abs(neighbours) < 5


def test_key_ids_that_follow_each_other_have_nothing_in_common() -> None:
    bits = SECRETS.codewords([f"{i:016x}" for i in range(512)], np.arange(256))
    p = SECRETS.biases
    expected = 511 * (p**2 + (1 - p) ** 2).sum()
    same = int((bits[1:] == bits[:-1]).sum())
    assert stats.binomtest(same, 511 * 256, expected / (511 * 256)).pvalue > 1e-6


@settings(max_examples=30, deadline=None)
@given(st.lists(key_ids, max_size=5), st.lists(st.integers(0, 255), max_size=9))
def test_codewords_of_many_are_the_codewords_of_each(users: list[str], slots: list[int]) -> None:
    bits = SECRETS.codewords(users, np.array(slots, np.int64))
    assert (bits.shape, bits.dtype) == ((len(users), len(slots)), np.uint8)
    assert bits.flags.f_contiguous
    for user, row in zip(users, bits, strict=True):
        whole = SECRETS.codeword(user)
        assert (whole.shape, whole.dtype) == ((256,), np.uint8)
        assert row.tolist() == whole[slots].tolist()


@settings(max_examples=30, deadline=None)
@given(key_ids)
def test_a_user_holds_one_key_of_each_slot(user: str) -> None:
    held = SECRETS.of_user(user)
    assert np.array_equal(held.bits, SECRETS.codeword(user))
    for slot in range(256):
        assert np.array_equal(held.keys[slot], SECRETS.keys[slot, held.bits[slot]])


def test_more_slots_begin_alike() -> None:
    """The number of slots is no input of the derivation: only how far it goes."""
    larger = SlotSecrets(bytes(range(32)), 264)
    assert np.array_equal(larger.keys[:256], SECRETS.keys)
    assert np.array_equal(larger.codeword(KEY_ID)[:256], SECRETS.codeword(KEY_ID))


# --- bytes -------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(32, 512), st.integers(0, 2**32 - 1))
def test_slot_keys_round_trip(eights: int, seed: int) -> None:
    data = np.random.default_rng(seed).bytes(129 * eights)
    keys = SlotKeys.from_secret_bytes(data)
    assert keys.secret_bytes() == data
    assert (keys.bits.shape, keys.keys.shape) == ((8 * eights,), (8 * eights, 16))
    assert set(keys.bits.tolist()) <= {0, 1}


def test_slot_keys_by_hand() -> None:
    bits = np.zeros(256, np.uint8)
    bits[[0, 9, 255]] = 1
    keys = SlotKeys(bits, np.full((256, 16), 7, np.uint8))
    assert keys.secret_bytes() == b"\x80\x40" + bytes(29) + b"\x01" + b"\7" * 4096


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 70_000))
def test_other_lengths_are_refused(length: int) -> None:
    if length % 129 == 0 and 32 <= length // 129 <= 512:
        return
    with pytest.raises(FormatError, match=f"Slot keys have a wrong length: {length} bytes"):
        SlotKeys.from_secret_bytes(bytes(length))


# --- commitments -------------------------------------------------------------------


def test_openings_open_the_commitment_to_slots() -> None:
    leaves = SECRETS.slot_leaves()
    assert len(leaves) == len(set(leaves)) == 256
    for opening in SECRETS.slot_openings([0, 17, 255]):
        assert opening.leaf == leaves[opening.slot]
        assert opening.threshold == SECRETS.thresholds[opening.slot]
        for bit in (0, 1):
            key = SECRETS.keys[opening.slot, bit].tobytes()
            assert opening.has(bit, key)
            assert not opening.has(1 - bit, key)
            assert not opening.has(bit, bytes(16))


def test_openings_open_the_commitment_to_a_codeword() -> None:
    leaves = SECRETS.codeword_leaves(KEY_ID)
    assert len(leaves) == len(set(leaves)) == 256
    openings = SECRETS.codeword_openings(KEY_ID, range(256))
    assert [opening.leaf for opening in openings] == leaves
    assert [opening.bit for opening in openings] == SECRETS.codeword(KEY_ID).tolist()
    assert not set(leaves) & set(SECRETS.codeword_leaves("f" * 16))


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_every_change_of_a_slots_opening_is_found() -> None:
    (opening,) = SECRETS.slot_openings([17])
    changed = [replace(opening, slot=16), replace(opening, threshold=opening.threshold ^ 1)]
    changed += [replace(opening, blind=flip(opening.blind, i)) for i in range(16)]
    changed += [replace(opening, digest_0=flip(opening.digest_0, i)) for i in range(32)]
    changed += [replace(opening, digest_1=flip(opening.digest_1, i)) for i in range(32)]
    changed += [replace(opening, digest_0=opening.digest_1, digest_1=opening.digest_0)]
    assert len({opening.leaf, *(other.leaf for other in changed)}) == 1 + len(changed)


def test_every_change_of_a_codewords_opening_is_found() -> None:
    (opening,) = SECRETS.codeword_openings(KEY_ID, [17])
    changed = [replace(opening, slot=16), replace(opening, bit=1 - opening.bit)]
    changed += [replace(opening, blind=flip(opening.blind, i)) for i in range(16)]
    assert len({opening.leaf, *(other.leaf for other in changed)}) == 1 + len(changed)


def test_leaves_hide_bits_and_biases() -> None:
    """Blinds are there: without them 2 guesses would tell a bit, 2³² a bias."""
    blinds = [opening.blind for opening in SECRETS.codeword_openings(KEY_ID, range(256))]
    blinds += [opening.blind for opening in SECRETS.slot_openings(range(256))]
    assert {len(blind) for blind in blinds} == {16}
    assert len(set(blinds)) == 512


def test_a_commitment_is_to_all_leaves_in_order() -> None:
    leaves = SECRETS.codeword_leaves(KEY_ID)
    whole = commitment(leaves)
    assert len(whole) == 64
    changed = [leaves[:-1], [*leaves, leaves[0]], leaves[::-1], [bytes(32), *leaves[1:]]]
    assert whole not in {commitment(other) for other in changed}


# --- holding it ----------------------------------------------------------------------


def holders() -> list[Any]:
    point = MasterKey.generate(1).issue()
    slots = SECRETS.of_user(point.key_id)
    return [SECRETS, slots, ReaderKey(point, slots)]


def test_openings_hide_what_they_open() -> None:
    secrets = SlotSecrets(bytes(32), 256)
    for opening in (secrets.slot_openings([3])[0], secrets.codeword_openings("0" * 16, [3])[0]):
        assert str(opening.blind)[2:-1] not in repr(opening)
        assert "blind" not in repr(opening)


def test_repr_shows_no_secret() -> None:
    secrets, slots, reader = holders()
    assert repr(secrets) == "<SlotSecrets slots=256>"
    assert repr(slots) == "<SlotKeys slots=256>"
    assert repr(reader) == f"<ReaderKey {reader.point.key_id}>"
    assert reader.key_id == reader.point.key_id


@pytest.mark.parametrize(
    "copier", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda c: c.__name__
)
def test_pickling_and_copying_are_refused(copier: Callable[[object], object]) -> None:
    for secret in holders():
        with pytest.raises(TypeError, match="holds a secret and cannot be pickled or copied"):
            copier(secret)


# --- vectors ---------------------------------------------------------------------------


def test_vectors() -> None:
    slots = SlotSecrets(bytes.fromhex(VECTORS["seed"]), VECTORS["slots"])
    assert slots.thresholds.tolist() == VECTORS["thresholds"]
    assert slots.keys.tobytes().hex() == VECTORS["slot_keys"]
    assert commitment(slots.slot_leaves()) == VECTORS["commitment"]
    for listed in VECTORS["openings"]:
        blind, *digests = map(bytes.fromhex, (listed["blind"], *listed["digests"]))
        opening = SlotOpening(listed["slot"], listed["threshold"], blind, *digests)
        assert slots.slot_openings([opening.slot]) == [opening]
        assert opening.leaf.hex() == listed["leaf"]
    for user in VECTORS["users"]:
        held = slots.of_user(user["key_id"]).secret_bytes().hex()
        assert held == user["codeword"] + user["slot_keys"]
        assert commitment(slots.codeword_leaves(user["key_id"])) == user["commitment"]
        for listed in user["openings"]:
            blind = bytes.fromhex(listed["blind"])
            opening = CodewordOpening(listed["slot"], listed["bit"], blind)
            assert slots.codeword_openings(user["key_id"], [opening.slot]) == [opening]
            assert opening.leaf.hex() == listed["leaf"]
