"""The public table: what each key reads from it, and what the file looks like."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from keras_encryip.crypto.encoding import decode_base64
from keras_encryip.crypto.kem import Header, MasterKey, PublicKey, UserKey
from keras_encryip.crypto.signing import SigningKey
from keras_encryip.errors import ForeignKeyError, FormatError, RevokedKeyError, SignatureError
from keras_encryip.labels.assignment import TRACE, LabelAssignment
from keras_encryip.labels.ciphertext import LabelCiphertext, decrypt_labels
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
def test_any_number_of_classes_opens_with_at_most_64_decapsulations(
    num_classes: int, homophones: int, decapsulations: list[Header]
) -> None:
    master, signing_key = MasterKey.generate(1), SigningKey.generate()
    assignment = LabelAssignment.draw(num_classes, homophones, 64)
    metadata = ModelMetadata(model="m", class_names=[f"class {i}" for i in range(num_classes)])
    made, _ = Codebook.make(assignment, metadata, master, signing_key)
    codebook = Codebook.from_bytes(made.to_bytes())
    codebook.verify(signing_key.public_bytes())
    table = codebook.decode_table(master.issue())
    assert len(decapsulations) == len(codebook.headers) <= 64
    assert table.shape == (assignment.num_labels,)
    assert table.dtype == np.int32
    classes = np.arange(num_classes)
    assert np.array_equal(table[assignment.labels], np.tile(classes[:, None], homophones))
    assert table[assignment.trace].min() >= 0
    assert table[assignment.trace].max() < num_classes


def test_all_users_agree_on_real_labels_only(world: Any) -> None:
    alice, bob = (world.codebook.decode_table(key) for key in (world.alice, world.bob))
    classes = world.assignment.classes
    assert np.array_equal(alice[world.real], classes[world.real])
    assert np.array_equal(bob[world.real], classes[world.real])
    # On 64 trace labels two users agree by chance alone, 1 in 5.
    agreements = int((alice == bob)[world.assignment.trace].sum())
    assert stats.binomtest(agreements, 64, 1 / 5).pvalue > 1e-6
    assert agreements < 64


def test_trace_labels_are_legal_and_uniform_over_users(world: Any) -> None:
    keys = [world.master.issue() for _ in range(30)]
    tables = np.stack([world.codebook.decode_table(key) for key in keys])
    answers = tables[:, world.assignment.trace]
    assert stats.chisquare(np.bincount(answers.ravel(), minlength=5)).pvalue > 1e-6
    assert len(np.unique(answers, axis=0)) == 30


def test_the_owner_predicts_every_users_trace_answers(world: Any) -> None:
    for key in (world.alice, world.bob, world.master.issue()):
        predicted = world.codebook.predicted_answers([key], world.assignment, world.tracing)
        table = world.codebook.decode_table(key)
        assert np.array_equal(predicted, table[None, world.assignment.trace])
        assert predicted.dtype == np.int32


def test_a_revoked_user_has_no_answers(world: Any) -> None:
    keys = [world.alice, world.revoked, world.bob]
    answers = world.codebook.predicted_answers(keys, world.assignment, world.tracing)
    assert (answers[1] == TRACE).all()
    assert (answers[[0, 2]] != TRACE).all()


def test_prediction_decapsulates_nothing(world: Any, decapsulations: list[Header]) -> None:
    world.codebook.predicted_answers([world.alice], world.assignment, world.tracing)
    assert decapsulations == []


def test_metadata_is_read_with_one_decapsulation(world: Any, decapsulations: list[Header]) -> None:
    assert world.codebook.open_metadata(world.alice) == world.metadata
    assert decapsulations == [world.codebook.access_header]


def test_a_revoked_key_is_told_so(world: Any) -> None:
    message = rf"Key {world.revoked.key_id} was revoked before this model version was exported"
    with pytest.raises(RevokedKeyError, match=message) as caught:
        world.codebook.open_metadata(world.revoked)
    assert caught.value.__context__ is None
    with pytest.raises(RevokedKeyError, match="revoked when the header was made"):
        world.codebook.decode_table(world.revoked)


def test_a_foreign_key_is_told_so(world: Any) -> None:
    message = rf"Key {world.stranger.key_id} does not open this codebook: another authority"
    with pytest.raises(ForeignKeyError, match=message) as caught:
        world.codebook.open_metadata(world.stranger)
    assert caught.value.__context__ is None


def test_a_foreign_key_reads_random_classes(world: Any) -> None:
    table = world.codebook.decode_table(world.stranger)
    right = int((table == world.assignment.classes)[world.real].sum())
    assert stats.binomtest(right, 40, 1 / 5).pvalue > 1e-6
    assert right < 40


def test_values_without_a_key_say_nothing_about_classes(world: Any) -> None:
    """e_j = class + mask: over many codebooks a fixed label's value is uniform."""
    labels, trace = np.array([[0, 1], [2, 3]], np.int32), np.array([4, 5], np.int32)
    assignment = LabelAssignment(labels, trace, [4, 2], [False, True])
    metadata = ModelMetadata(model="m", class_names=["a", "b"])
    values = np.stack(
        [
            Codebook.make(assignment, metadata, world.master, world.signing_key)[0].values
            for _ in range(200)
        ]
    )
    for ones in values.sum(0):
        assert stats.binomtest(int(ones), 200, 0.5).pvalue > 1e-6


def test_more_revoked_users_than_t_are_refused(world: Any) -> None:
    with pytest.raises(ValueError, match="At most threshold=1 users can be revoked at a time"):
        Codebook.make(
            world.assignment,
            world.metadata,
            world.master,
            world.signing_key,
            revoked=[world.alice.z, world.bob.z],
        )


def test_revoking_shuts_out_of_tracing_blocks_too(world: Any) -> None:
    assert {world.revoked.z} <= set.intersection(*(set(h.nodes) for h in world.codebook.headers))


# --- the file ----------------------------------------------------------------


def test_round_trip(world: Any) -> None:
    read = Codebook.from_bytes(world.codebook.to_bytes())
    read.verify(world.signing_key.public_bytes())
    assert read.to_bytes() == world.codebook.to_bytes()
    assert np.array_equal(read.values, world.codebook.values)
    assert np.array_equal(read.decode_table(world.alice), world.codebook.decode_table(world.alice))
    assert read.num_labels == 104
    assert read.block_sizes == (8,) * 13


def test_the_file_is_canonical_json_with_these_fields(world: Any) -> None:
    data = world.codebook.to_bytes()
    file = json.loads(data)
    assert json.dumps(file, sort_keys=True, separators=(",", ":")).encode() == data
    assert list(file) == ["body", "signature"]
    body = file["body"]
    assert list(body) == [
        "access",
        "authority",
        "blocks",
        "codebook_id",
        "format",
        "issuer",
        "num_classes",
        "values",
        "version",
    ]
    assert (body["format"], body["version"], body["num_classes"]) == ("encryip-codebook", 1, 5)
    assert list(body["access"]) == ["header", "sealed"]


def test_tracing_and_real_blocks_look_alike(world: Any) -> None:
    blocks = json.loads(world.codebook.to_bytes())["body"]["blocks"]
    kinds = world.assignment.tracing_blocks
    shapes = {
        kind: {
            (
                tuple(block),
                block["size"],
                len(block["header"]),
                decode_base64(block["header"], what="h")[0],
            )
            for block, tracing in zip(blocks, kinds, strict=True)
            if tracing == kind
        }
        for kind in (False, True)
    }
    # One shape each, and the same: 1 + 32 + 2·33 = 99 bytes are 132 characters; t = 1.
    assert shapes[False] == shapes[True] == {(("header", "size"), 8, 132, 1)}
    headers = [Header.from_bytes(decode_base64(b["header"], what="h")) for b in blocks]
    assert len({h.encoded_points for h in headers}) == len(blocks) == 13


def test_nothing_in_the_file_is_secret(world: Any) -> None:
    data = world.codebook.to_bytes()
    secrets = [
        *(name.encode() for name in ("birds", "K\\u00e4uze")),
        *(key.secret_bytes()[32:].hex().encode() for key in (world.alice, world.bob)),
        world.signing_key.secret_bytes().hex().encode(),
        world.assignment.secret_bytes(),
    ]
    assert not [secret for secret in secrets if secret in data]


def test_two_codebooks_of_one_assignment_differ_everywhere(world: Any) -> None:
    again, _ = Codebook.make(world.assignment, world.metadata, world.master, world.signing_key)
    assert again.codebook_id != world.codebook.codebook_id
    assert not {h.digest for h in again.headers} & {h.digest for h in world.codebook.headers}
    assert again.sealed_metadata != world.codebook.sealed_metadata
    assert np.array_equal(
        again.decode_table(world.alice)[world.real],
        world.codebook.decode_table(world.alice)[world.real],
    )


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
        {"headers": world.codebook.headers[::-1]},
        {"block_sizes": (7, 9, *world.codebook.block_sizes[2:])},
        {"access_header": world.codebook.headers[0]},
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


def test_ciphertexts_hold_their_block_and_value(world: Any) -> None:
    for label in (0, 7, 8, 103):
        parsed = LabelCiphertext.from_bytes(world.codebook.ciphertext(label))
        assert parsed.label == label
        assert parsed.value == world.codebook.values[label]
        assert parsed.header == world.codebook.headers[label // 8]
        assert parsed.codebook_id == world.codebook.codebook_id
        assert parsed.num_classes == 5


def test_prefixes_and_suffixes_make_up_the_ciphertexts(world: Any) -> None:
    """What an exported graph joins: the same length for all labels, real or not."""
    codebook = world.codebook
    assert len(codebook.ciphertext_prefixes) == 13
    assert {len(p) for p in codebook.ciphertext_prefixes} == {1 + 16 + 32 + 4 + 99}
    assert {len(s) for s in codebook.ciphertext_suffixes} == {8}
    assert codebook.ciphertext(9) == (
        codebook.ciphertext_prefixes[1] + codebook.ciphertext_suffixes[9]
    )
    assert codebook.block_of.tolist() == [j // 8 for j in range(104)]


# --- vectors -------------------------------------------------------------------


def test_vector_opens() -> None:
    codebook = Codebook.from_bytes(VECTORS["codebook"].encode("ascii"))
    issuer = decode_base64(json.loads(VECTORS["codebook"])["body"]["issuer"], what="issuer")
    codebook.verify(issuer)
    assert codebook.authority == PublicKey.from_bytes(bytes.fromhex(VECTORS["public_key"])).digest
    key = UserKey.from_secret_bytes(bytes.fromhex(VECTORS["user_key"]))
    assert codebook.decode_table(key).tolist() == VECTORS["table"]
    access = key.decapsulate(codebook.access_header).derive("access metadata v1")
    assert access.hex() == VECTORS["access_key"]
    assert json.loads(VECTORS["metadata"])["class_names"] == ["cat", "dog", "Käfer"]
    metadata = codebook.open_metadata(key)
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
    codebook, _ = Codebook.make(world.assignment, metadata, world.master, world.signing_key)
    with pytest.raises(FormatError, match="metadata names another number of classes"):
        codebook.open_metadata(world.alice)
