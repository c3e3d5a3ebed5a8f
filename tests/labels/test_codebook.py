"""The public table: what each key reads from it, and what the file looks like."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from keras_encryip.crypto.encoding import decode_base64
from keras_encryip.crypto.kem import Header, MasterKey, PublicKey, UserKey
from keras_encryip.crypto.signing import SigningKey
from keras_encryip.crypto.slots import ReaderKey, SlotKeys, SlotSecrets
from keras_encryip.errors import ForeignKeyError, FormatError, RevokedKeyError, SignatureError
from keras_encryip.labels.assignment import TRACE, LabelAssignment
from keras_encryip.labels.ciphertext import (
    LabelCiphertext,
    ciphertext_label,
    decrypt_labels,
    label_keys,
)
from keras_encryip.labels.codebook import Codebook, ModelMetadata

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "codebook.json").read_text(encoding="ascii")
)


@pytest.fixture
def decapsulations(monkeypatch: pytest.MonkeyPatch) -> list[Header]:
    """Every header that a user key decapsulates from now on."""
    seen: list[Header] = []
    decapsulate = UserKey.decapsulate
    monkeypatch.setattr(
        UserKey, "decapsulate", lambda self, h: seen.append(h) or decapsulate(self, h)
    )
    return seen


# --- what keys read ----------------------------------------------------------


@pytest.mark.parametrize(
    ("num_classes", "homophones"),
    [(2, 64), (10, 64), (1000, 2), (100_000, 1)],
    ids=["K=2", "K=10", "K=1,000", "K=100,000"],
)
def test_one_decapsulation_opens_any_number_of_classes(
    num_classes: int, homophones: int, make_owner: Any, decapsulations: list[Header]
) -> None:
    owner = make_owner()
    assignment = LabelAssignment.draw(num_classes, homophones, 64, 256)
    codebook = Codebook.from_bytes(owner.codebook(assignment).to_bytes())
    codebook.verify(owner.signing_key.public_bytes())
    key = owner.issue()
    metadata, table, response_key = codebook.open(key)
    assert decapsulations == [codebook.header]
    assert len(metadata.class_names) == num_classes
    assert table.shape == (assignment.num_labels,)
    assert table.dtype == np.int32
    classes = np.arange(num_classes)
    assert np.array_equal(table[assignment.labels], np.tile(classes[:, None], homophones))
    bits = key.slots.bits[assignment.slots[assignment.trace]]
    assert np.array_equal(table[assignment.trace], assignment.pairs[np.arange(64), bits])
    assert len(response_key) == 32


def test_opening_is_the_parts_together(world: Any) -> None:
    metadata, table, response_key = world.codebook.open(world.alice)
    assert metadata == world.codebook.open_metadata(world.alice.point) == world.metadata
    assert np.array_equal(table, world.codebook.decode_table(world.alice))
    assert response_key == world.codebook.response_key(world.alice.point)
    assert response_key == world.codebook.response_key(world.bob.point)


def test_two_users_differ_at_trace_labels_where_their_bits_do_and_nowhere_else(world: Any) -> None:
    alice, bob = (world.codebook.decode_table(key) for key in (world.alice, world.bob))
    classes = world.assignment.classes
    assert np.array_equal(alice[world.real], classes[world.real])
    bits = world.alice.slots.bits != world.bob.slots.bits
    expected = bits[world.assignment.slots] & (classes == TRACE)
    assert np.array_equal(alice != bob, expected)
    assert 0 < expected.sum() < 64


def test_trace_labels_are_legal_and_tell_users_apart(world: Any) -> None:
    keys = [world.owner.issue() for _ in range(30)]
    tables = np.stack([world.codebook.decode_table(key) for key in keys])
    answers = tables[:, world.assignment.trace]
    assert answers.min() >= 0
    assert answers.max() < 5
    assert len(np.unique(answers, axis=0)) == 30


def test_metadata_is_read_with_one_decapsulation(world: Any, decapsulations: list[Header]) -> None:
    assert world.codebook.open_metadata(world.alice.point) == world.metadata
    assert decapsulations == [world.codebook.header]


def test_a_revoked_key_is_told_so(world: Any) -> None:
    key, codebook = world.revoked, world.codebook
    message = rf"Key {key.key_id} was revoked before this model version was exported"
    for read in (codebook.open, codebook.decode_table):
        with pytest.raises(RevokedKeyError, match=message) as caught:
            read(key)
        assert caught.value.__context__ is None
    for of_point in (codebook.open_metadata, codebook.response_key):
        with pytest.raises(RevokedKeyError, match=message):
            of_point(key.point)


def test_a_foreign_key_is_told_so(world: Any) -> None:
    message = rf"Key {world.stranger.key_id} does not open this codebook: another authority"
    with pytest.raises(ForeignKeyError, match=message) as caught:
        world.codebook.open(world.stranger)
    assert caught.value.__context__ is None
    with pytest.raises(ForeignKeyError, match=message):
        world.codebook.open_metadata(world.stranger.point)


def test_slots_beyond_the_keys_are_taken_modulo_them(world: Any) -> None:
    """What only a wrong file has: each field of 2 bytes is some slot of every key."""
    table = world.codebook.decode_table(world.alice)
    for multiple in (256, 512, 4096, 65_280):
        slots = world.codebook.masked_slots ^ np.uint16(multiple)
        moved = replace(world.codebook, masked_slots=slots)
        assert np.array_equal(moved.decode_table(world.alice), table)
    for wrong in (0, 65_535):
        slots = np.full_like(world.codebook.masked_slots, wrong)
        read = replace(world.codebook, masked_slots=slots).decode_table(world.alice)
        assert stats.binomtest(int((read == table).sum()), 104, 1 / 5).pvalue > 1e-6


def test_a_foreign_key_with_another_number_of_slots_is_told_by_the_metadata(world: Any) -> None:
    """Its M does not divide the numbers that it finds, and no slot is out of its range."""
    point = MasterKey.generate(1).issue()
    for count in (264, 1000, 4096):
        slots = SlotSecrets(os.urandom(32), count).of_user(point.key_id)
        foreign = ReaderKey(point, slots)
        with pytest.raises(ForeignKeyError, match=f"Key {point.key_id} does not open"):
            world.codebook.open(foreign)
        table = world.codebook.decode_table(foreign)
        agreements = int((table == world.codebook.decode_table(world.alice)).sum())
        assert stats.binomtest(agreements, 104, 1 / 5).pvalue > 1e-6


@pytest.mark.parametrize("mixed", ["stranger's", "point", "slots"])
def test_a_foreign_key_reads_random_classes(world: Any, mixed: str) -> None:
    """Also one with the point of this authority and the slot keys of another, or vice versa."""
    point = world.alice.point if mixed == "point" else world.stranger.point
    slots = world.alice.slots if mixed == "slots" else world.stranger.slots
    table = world.codebook.decode_table(ReaderKey(point, slots))
    right = int((table == world.assignment.classes)[world.real].sum())
    assert stats.binomtest(right, 40, 1 / 5).pvalue > 1e-6
    assert right < 40


def test_more_revoked_users_than_t_are_refused(world: Any) -> None:
    revoked = [world.alice.point.z, world.bob.point.z]
    with pytest.raises(ValueError, match="At most threshold=1 users can be revoked at a time"):
        world.owner.codebook(world.assignment, revoked=revoked)


def test_one_label_is_read_from_its_sub_key_and_a_slot_key(world: Any) -> None:
    """As evidence shows it: the key of one label opens no other."""
    secret = world.alice.point.decapsulate(world.codebook.header)
    keys, slot_masks = label_keys(secret, np.arange(104))
    table = world.codebook.decode_table(world.alice)
    slots, held = world.codebook.masked_slots ^ slot_masks, world.alice.slots
    assert np.array_equal(slots, world.assignment.slots)
    others = []
    for j in range(104):
        bit, slot_key = int(held.bits[slots[j]]), held.keys[slots[j]].tobytes()
        assert world.codebook.read_label(j, bit, keys[j].tobytes(), slot_key) == table[j]
        others.append(world.codebook.read_label(j, bit, keys[j - 1].tobytes(), slot_key))
    agreements = int((np.array(others) == table).sum())
    assert stats.binomtest(agreements, 104, 1 / 5).pvalue > 1e-6


# --- the file ----------------------------------------------------------------


def test_round_trip(world: Any) -> None:
    read = Codebook.from_bytes(world.codebook.to_bytes())
    read.verify(world.owner.signing_key.public_bytes())
    assert read.to_bytes() == world.codebook.to_bytes()
    assert np.array_equal(read.values, world.codebook.values)
    assert np.array_equal(read.masked_slots, world.codebook.masked_slots)
    assert (read.values.dtype, read.masked_slots.dtype) == (np.uint32, np.uint16)
    assert np.array_equal(read.decode_table(world.alice), world.codebook.decode_table(world.alice))
    assert read.num_labels == 104


def test_the_file_is_canonical_json_with_these_fields(world: Any) -> None:
    data = world.codebook.to_bytes()
    file = json.loads(data)
    assert json.dumps(file, sort_keys=True, separators=(",", ":")).encode() == data
    assert list(file) == ["body", "signature"]
    body = file["body"]
    assert list(body) == [
        "authority",
        "codebook_id",
        "format",
        "header",
        "issuer",
        "metadata",
        "num_classes",
        "slots",
        "values",
        "version",
    ]
    assert (body["format"], body["version"], body["num_classes"]) == ("encryip-codebook", 2, 5)
    slots, values = (decode_base64(body[field], what=field) for field in ("slots", "values"))
    assert slots == b"".join(int(s).to_bytes(2, "big") for s in world.codebook.masked_slots)
    assert values == b"".join(int(e).to_bytes(4, "big") for e in world.codebook.values.ravel())


def test_nothing_in_the_file_is_secret(world: Any) -> None:
    data = world.codebook.to_bytes()
    secrets = [
        *(name.encode() for name in ("birds", "K\\u00e4uze")),
        *(k.point.secret_bytes()[32:].hex().encode() for k in (world.alice, world.bob)),
        *(key.tobytes().hex().encode() for key in world.owner.slots.keys.reshape(-1, 16)),
        world.owner.signing_key.secret_bytes().hex().encode(),
        world.assignment.secret_bytes(),
    ]
    assert not [secret for secret in secrets if secret in data]


def test_two_codebooks_of_one_assignment_share_nothing(world: Any) -> None:
    again = world.owner.codebook(world.assignment, world.metadata)
    assert again.codebook_id != world.codebook.codebook_id
    assert again.header.digest != world.codebook.header.digest
    assert again.sealed_metadata != world.codebook.sealed_metadata
    assert (again.masked_slots == world.codebook.masked_slots).sum() <= 2, "by chance"


def test_the_signature_is_of_the_body_and_of_this_issuer(world: Any) -> None:
    other = SigningKey.generate()
    with pytest.raises(ForeignKeyError, match="codebook was made by another authority"):
        world.codebook.verify(other.public_bytes())
    claimed = replace(world.codebook, issuer=other.public_bytes())
    with pytest.raises(SignatureError, match="signature of the codebook is wrong"):
        claimed.verify(other.public_bytes())
    for change in (
        {"num_classes": 6},
        {"values": (world.codebook.values + 1) % 5},
        {"authority": bytes(32)},
        {"codebook_id": bytes(16)},
        {"header": world.owner.master.encapsulate()[0]},
        {"masked_slots": world.codebook.masked_slots[::-1]},
        {"values": world.codebook.values[:, ::-1]},
        {"sealed_metadata": world.codebook.sealed_metadata[:-1]},
        {"signature": b""},
    ):
        with pytest.raises(SignatureError, match="signature of the codebook is wrong"):
            replace(world.codebook, **change).verify(world.codebook.issuer)


# --- ciphertexts ---------------------------------------------------------------


def test_ciphertexts_decrypt_to_the_table(world: Any) -> None:
    ciphertexts = [world.codebook.ciphertext(j) for j in range(world.codebook.num_labels)]
    for key in (world.alice, world.bob):
        read = decrypt_labels(ciphertexts, key, authority=world.codebook.authority)
        assert np.array_equal(read, world.codebook.decode_table(key))


def test_ciphertexts_hold_their_slot_and_values(world: Any) -> None:
    for label in (0, 7, 8, 103):
        parsed = LabelCiphertext.from_bytes(world.codebook.ciphertext(label))
        assert parsed.label == ciphertext_label(world.codebook.ciphertext(label)) == label
        assert parsed.values == tuple(world.codebook.values[label].tolist())
        assert parsed.masked_slot == world.codebook.masked_slots[label]
        assert parsed.header == world.codebook.header
        assert parsed.codebook_id == world.codebook.codebook_id
        assert parsed.num_classes == 5


def test_prefix_and_suffixes_make_up_the_ciphertexts(world: Any) -> None:
    """What an exported graph joins: the same length for all labels, real or not."""
    codebook = world.codebook
    assert len(codebook.ciphertext_prefix) == 1 + 16 + 32 + 4 + 99
    assert {len(s) for s in codebook.ciphertext_suffixes} == {14}
    assert codebook.ciphertext(9) == codebook.ciphertext_prefix + codebook.ciphertext_suffixes[9]


# --- vectors -------------------------------------------------------------------


def test_vector_opens() -> None:
    codebook = Codebook.from_bytes(VECTORS["codebook"].encode("ascii"))
    issuer = decode_base64(json.loads(VECTORS["codebook"])["body"]["issuer"], what="issuer")
    codebook.verify(issuer)
    assert codebook.authority == PublicKey.from_bytes(bytes.fromhex(VECTORS["public_key"])).digest
    point = UserKey.from_secret_bytes(bytes.fromhex(VECTORS["user_key"]))
    slots = bytes.fromhex(VECTORS["codeword"] + VECTORS["slot_keys"])
    key = ReaderKey(point, SlotKeys.from_secret_bytes(slots))
    assert codebook.decode_table(key).tolist() == VECTORS["table"]
    secret = point.decapsulate(codebook.header)
    assert secret.derive("model metadata v2").hex() == VECTORS["metadata_key"]
    assert secret.derive("label keys v2").hex() == VECTORS["labels_key"]
    assert json.loads(VECTORS["metadata"])["class_names"] == ["cat", "dog", "Käfer"]
    metadata = codebook.open_metadata(point)
    assert (metadata.model, metadata.class_names, metadata.notes) == (
        "pets",
        ["cat", "dog", "Käfer"],
        "vector",
    )
    for j, hexadecimal in zip((0, 1, 8, 17, 31), VECTORS["ciphertexts"], strict=True):
        assert codebook.ciphertext(j).hex() == hexadecimal


@pytest.mark.parametrize(
    ("holder", "error", "message"),
    [
        ("revoked_user_key", RevokedKeyError, "was revoked before this model version"),
        ("foreign_user_key", ForeignKeyError, "another authority issued it"),
    ],
    ids=["revoked", "foreign"],
)
def test_vector_refuses(holder: str, error: type[Exception], message: str) -> None:
    codebook = Codebook.from_bytes(VECTORS["codebook"].encode("ascii"))
    with pytest.raises(error, match=message):
        codebook.open_metadata(UserKey.from_secret_bytes(bytes.fromhex(VECTORS[holder])))


def test_assignment_marks_trace_labels_that_no_table_shows(world: Any) -> None:
    assert (world.assignment.classes == TRACE).sum() == 64
    assert (world.codebook.decode_table(world.alice) != TRACE).all()


def test_metadata_with_another_number_of_names_is_refused(world: Any) -> None:
    metadata = ModelMetadata(model="m", class_names=["a", "b"])
    codebook = world.owner.codebook(world.assignment, metadata)
    with pytest.raises(FormatError, match="metadata names another number of classes"):
        codebook.open_metadata(world.alice.point)
