"""Decoding: who may, what comes out, and that it is the plain sum."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_encryip.client import decoder as decoder_module
from keras_encryip.client.decoder import Decoder
from keras_encryip.crypto.kem import MasterKey, UserKey
from keras_encryip.crypto.slots import SlotSecrets
from keras_encryip.errors import (
    ArgumentError,
    ExpiredKeyError,
    ForeignKeyError,
    FormatError,
    KeyRefusedError,
    PassphraseError,
    RevokedKeyError,
    SignatureError,
    WrongModelError,
)
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.version_folder import ASSETS
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata
from keras_encryip.labels.codebook_mark import CodebookMark

PASSPHRASE = "correct horse"


@pytest.fixture(scope="module")
def decoder(world: Any, alice_file: Path) -> Decoder:
    return Decoder.open(world.model, alice_file, PASSPHRASE)


def decoder_of(table: np.ndarray, classes: int) -> Decoder:
    """A decoder of a table as it is, without any key."""
    names = [f"class {i}" for i in range(classes)]
    codebook: Any = SimpleNamespace(num_labels=len(table), codebook_id=bytes(16))
    return Decoder(
        codebook, ModelMetadata(model="m", class_names=names), table, "0" * 16, bytes(32)
    )


# --- opening -----------------------------------------------------------------


def test_opens_from_a_folder_or_a_codebook_with_a_path_or_a_bundle(
    world: Any, alice_file: Path, confused: np.ndarray
) -> None:
    bundle = KeyBundle.read(alice_file)
    for place in (world.model, str(world.model), world.codebook_file):
        for key in (alice_file, str(alice_file), bundle):
            decoder = Decoder.open(place, key, PASSPHRASE)
            assert decoder.model == "digits"
            assert decoder.num_labels == world.codebook.num_labels
            assert decoder.class_names == [f"class {i}" for i in range(10)]
            assert decoder.labels(confused).tolist() == [7, 2, 1]


def test_a_revoked_key_is_told_so(world: Any) -> None:
    bundle = KeyBundle.from_bytes(world.authority.bundle(world.revoked))
    message = rf"Key {world.revoked.key_id} was revoked before this model version was exported"
    with pytest.raises(RevokedKeyError, match=message):
        Decoder.open(world.model, bundle, PASSPHRASE)


def test_a_key_of_another_authority_is_told_so(
    world: Any, make_authority: Callable[..., Any]
) -> None:
    other = make_authority("Other Ltd")
    bundle = KeyBundle.from_bytes(other.bundle(other.issue()))
    message = rf"Key bundle {bundle.header.key_id} was issued by another authority \('Other Ltd'\)"
    with pytest.raises(ForeignKeyError, match=message):
        Decoder.open(world.model, bundle, PASSPHRASE)


def test_a_bundle_that_runs_models_only_is_told_so(world: Any) -> None:
    host = world.authority.issue("run")
    bundle = KeyBundle.from_bytes(world.authority.bundle(host))
    message = rf"Key {host.key_id} runs models, and does not read their answers: ask the model's"
    with pytest.raises(KeyRefusedError, match=message):
        Decoder.open(world.model, bundle, PASSPHRASE)


def test_a_bundle_that_reads_only_reads(world: Any, confused: np.ndarray) -> None:
    bundle = KeyBundle.from_bytes(world.authority.bundle(world.authority.issue("read")))
    assert Decoder.open(world.model, bundle, PASSPHRASE).labels(confused).tolist() == [7, 2, 1]


def test_a_key_with_other_slots_reads_random_classes(world: Any) -> None:
    """No authority makes these files: points and signature of one, slot keys of two."""
    other = replace(world.authority, slots=SlotSecrets(bytes(32), 512))
    assignment = LabelAssignment.draw(10, 64, 32, 512)
    bundle = KeyBundle.from_bytes(world.authority.bundle(world.alice))
    decoder = Decoder.open(other.codebook(assignment), bundle, PASSPHRASE)
    right = (decoder.secret_table() == assignment.classes)[assignment.labels.ravel()]
    assert 20 < right.sum() < 120  # of 640: 64 expected


def test_opening_costs_one_decapsulation(
    world: Any, alice_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    decapsulate = UserKey.decapsulate
    monkeypatch.setattr(
        UserKey, "decapsulate", lambda key, header: opened.append(1) or decapsulate(key, header)
    )
    Decoder.open(world.model, alice_file, PASSPHRASE)
    assert opened == [1]


def test_the_metadata_is_tested_first(
    world: Any, alice_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is not of this authority reads no label, and gets no table of random classes."""
    stranger = replace(world.authority, read=MasterKey.generate(2))
    keys = stranger.issue()
    bundle = KeyBundle.from_bytes(stranger.bundle(keys, authority=world.authority.digest))
    monkeypatch.setattr(Codebook, "_table", lambda *_: pytest.fail("read"))
    with pytest.raises(ForeignKeyError, match=f"Key {keys.key_id} does not open this codebook"):
        Decoder.open(world.model, bundle, PASSPHRASE)


def test_an_expired_bundle_is_told_so(world: Any) -> None:
    past = datetime(2025, 1, 1, tzinfo=UTC)
    bundle = KeyBundle.from_bytes(world.authority.bundle(world.alice, not_after=past))
    message = rf"Key bundle {world.alice.key_id} expired on 2025-01-01T00:00:00Z"
    with pytest.raises(ExpiredKeyError, match=message):
        Decoder.open(world.model, bundle, PASSPHRASE)


def test_a_bundle_for_other_models_is_told_so(world: Any) -> None:
    bundle = KeyBundle.from_bytes(world.authority.bundle(world.alice, scope=["pets", "birds"]))
    message = rf"Key bundle {world.alice.key_id} is for model\(s\) birds, pets, not for 'digits'"
    with pytest.raises(WrongModelError, match=message):
        Decoder.open(world.model, bundle, PASSPHRASE)
    allowed = KeyBundle.from_bytes(world.authority.bundle(world.alice, scope=["digits"]))
    assert Decoder.open(world.model, allowed, PASSPHRASE).model == "digits"


def test_a_wrong_passphrase_is_told_so(world: Any, alice_file: Path) -> None:
    with pytest.raises(PassphraseError, match="The passphrase does not open key bundle") as caught:
        Decoder.open(world.model, alice_file, "wrong")
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_a_changed_codebook_is_told_so(world: Any, alice_file: Path, tmp_path: Path) -> None:
    data = world.codebook_file.read_bytes()
    at = data.index(b'"values":"') + 10
    # The values of the first 30 labels and the next 30 change places: well-formed as ever.
    swapped = data[:at] + data[at + 160 : at + 320] + data[at : at + 160] + data[at + 320 :]
    path = tmp_path / "codebook.json"
    path.write_bytes(swapped)
    assert swapped != data
    with pytest.raises(SignatureError, match="The signature of the codebook is wrong"):
        Decoder.open(path, alice_file, PASSPHRASE)


def test_a_codebook_of_another_signer_with_the_same_digest_is_refused(
    world: Any, alice_file: Path, make_authority: Callable[..., Any], tmp_path: Path
) -> None:
    """Who copies the authority's public digest still cannot sign for it."""
    impostor = replace(world.authority, signing_key=make_authority().signing_key)
    path = tmp_path / "codebook.json"
    path.write_bytes(impostor.codebook(world.assignment).to_bytes())
    with pytest.raises(ForeignKeyError, match="codebook was made by another authority"):
        Decoder.open(path, alice_file, PASSPHRASE)


def test_nothing_is_decrypted_for_a_foreign_or_expired_bundle(
    world: Any, make_authority: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeyBundle, "unlock", lambda *_: pytest.fail("unlocked"))
    past = datetime(2025, 1, 1, tzinfo=UTC)
    foreign = KeyBundle.from_bytes(make_authority().bundle(world.alice))
    expired = KeyBundle.from_bytes(world.authority.bundle(world.alice, not_after=past))
    with pytest.raises(ForeignKeyError, match="issued by another authority"):
        Decoder.open(world.model, foreign, "x")
    with pytest.raises(ExpiredKeyError, match="expired on"):
        Decoder.open(world.model, expired, "x")


def test_a_folder_without_a_codebook_is_named(tmp_path: Path, alice_file: Path) -> None:
    where = str(tmp_path / ASSETS / "codebook.json")
    with pytest.raises(FormatError, match=rf"Cannot read the codebook '{where}': No such file"):
        Decoder.open(tmp_path, alice_file, PASSPHRASE)


# --- probabilities -----------------------------------------------------------


def by_hand(confused: np.ndarray, table: np.ndarray, classes: int) -> np.ndarray:
    """The definition: each confused label's share goes to the class it stands for."""
    decoded = np.zeros((*confused.shape[:-1], classes))
    for index in np.ndindex(confused.shape[:-1]):
        for label, kind in enumerate(table):
            decoded[(*index, kind)] += float(confused[(*index, label)])
    return decoded


def test_probabilities_of_known_rows(decoder: Decoder, confused: np.ndarray) -> None:
    decoded = decoder.probabilities(confused)
    expected = np.zeros((3, 10))
    expected[:, 0] = 0.2
    expected[[0, 1, 2], [7, 2, 1]] = 0.8
    np.testing.assert_allclose(decoded, expected, atol=1e-7)
    assert decoded.dtype == np.float32


SHAPES = [(), (0,), (1,), (7,), (2, 3), (2, 0, 3), (1, 2, 1, 2)]
TOLERANCE = {np.float16: 1e-6, np.float32: 1e-6, np.float64: 1e-12}


@pytest.mark.parametrize("path", ["dense", "runs"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    classes=st.integers(2, 12),
    spare=st.integers(0, 20),
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    chunk=st.sampled_from([1, 50, 1 << 22]),
    seed=st.integers(0, 2**32 - 1),
)
def test_decoding_is_the_sum_over_each_class(
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    classes: int,
    spare: int,
    shape: tuple[int, ...],
    dtype: type[np.floating],
    chunk: int,
    seed: int,
) -> None:
    """Random tables, also such that leave classes without a label."""
    monkeypatch.setattr(decoder_module, "_MAX_DENSE", 1 << 22 if path == "dense" else 0)
    monkeypatch.setattr(decoder_module, "_CHUNK_ELEMENTS", chunk)
    random = np.random.default_rng(seed)
    table = random.integers(0, classes, 1 + spare).astype(np.int32)
    confused = random.random((*shape, len(table)))
    confused = (confused / confused.sum(-1, keepdims=True)).astype(dtype)
    before = confused.copy()
    decoded = decoder_of(table, classes).probabilities(confused)
    assert decoded.shape == (*shape, classes)
    assert decoded.dtype == (np.float64 if dtype == np.float64 else np.float32)
    expected = by_hand(confused, table, classes)
    np.testing.assert_allclose(decoded, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert np.array_equal(confused, before)


@pytest.mark.parametrize(
    ("classes", "labels"), [(600, 700), (400, 12_000)], ids=["many classes", "large matrix"]
)
def test_many_classes_are_decoded_without_a_dense_matrix(classes: int, labels: int) -> None:
    random = np.random.default_rng(5)
    table = np.concatenate([np.arange(classes), random.integers(0, classes, labels - classes)])
    random.shuffle(table)
    decoder = decoder_of(table.astype(np.int32), classes)
    assert decoder._matrix is None
    confused = random.random((2, 2, labels))
    confused /= confused.sum(-1, keepdims=True)
    expected = np.zeros((2, 2, classes))
    np.add.at(expected, (slice(None), slice(None), table), confused)
    np.testing.assert_allclose(decoder.probabilities(confused), expected, rtol=1e-12)


def test_views_and_lists_are_decoded_like_arrays(decoder: Decoder, confused: np.ndarray) -> None:
    expected = decoder.probabilities(confused)
    for same in (
        np.asfortranarray(confused),
        np.repeat(confused, 2, axis=0)[::2],
        confused[:, ::-1][:, ::-1],
        confused.astype(">f4"),
    ):
        np.testing.assert_array_equal(decoder.probabilities(same), expected)
    np.testing.assert_allclose(decoder.probabilities(confused.tolist()), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("confused", "message"),
    [
        pytest.param(np.zeros((2, 111), np.float32), r"last axis of 112.*=\(2, 111\)", id="short"),
        pytest.param(np.zeros((112, 2), np.float32), r"shape=\(112, 2\)", id="transposed"),
        pytest.param(np.float32(1), r"confused.shape=\(\)", id="scalar"),
        pytest.param(np.zeros(0, np.float32), r"confused.shape=\(0,\)", id="nothing"),
        pytest.param(np.zeros((2, 112), int), "floating-point outputs. .*dtype=int64", id="ints"),
        pytest.param(np.zeros((2, 112), bool), "confused.dtype=bool", id="booleans"),
        pytest.param(np.zeros((2, 112), complex), "confused.dtype=complex128", id="complex"),
        pytest.param(np.zeros((2, 112), object), "confused.dtype=object", id="objects"),
    ],
)
def test_other_arrays_are_refused(decoder: Decoder, confused: np.ndarray, message: str) -> None:
    assert decoder.num_labels == 112
    for read in (decoder.probabilities, decoder.labels, decoder.names, decoder.top_k):
        with pytest.raises(ArgumentError, match=message):
            read(confused)


NO_OUTPUTS = {
    "NaN": (5, np.nan, "hold NaN or infinity"),
    "infinite": (0, np.inf, "hold NaN or infinity"),
    "infinite twice": (slice(0, 2), [np.inf, -np.inf], "hold NaN or infinity"),
    "negative": (slice(0, 2), [-0.002, 0.102], "be no probabilities"),
    "too much": (3, 0.25, "be no probabilities"),
    "too little": (slice(0, 4), 0.02, "be no probabilities"),
    "nothing": (slice(None), 0, "be no probabilities"),
    "a header": (slice(None), np.arange(112), "be no probabilities"),
    "logits": (slice(None), np.linspace(-9, 9, 112), "be no probabilities"),
    "huge": (0, 1e300, "be no probabilities|hold NaN or infinity"),
}


@pytest.mark.parametrize("kind", NO_OUTPUTS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_that_cannot_be_outputs(decoder: Decoder, kind: str, dtype: type) -> None:
    rows = np.zeros((2, 2, 112), dtype)
    rows[..., :10] = 0.1
    for read in (decoder.probabilities, decoder.labels, decoder.names, decoder.top_k):
        read(rows)
    where, value, message = NO_OUTPUTS[kind]
    with np.errstate(over="ignore"):
        rows[1, 0, where] = value
    for read in (decoder.probabilities, decoder.labels, decoder.names, decoder.top_k):
        with pytest.raises(ArgumentError, match=rf"Row 2 seems to ({message})"):
            read(rows)
        if kind not in ("NaN", "infinite", "infinite twice", "huge"):
            read(rows, quantised=True)


@pytest.mark.parametrize("steps", [255, 127, 15])
def test_what_few_bits_leave_of_outputs(decoder: Decoder, steps: int) -> None:
    """8 or 4 bits: sums are far from 1, and that is said unless the caller knows."""
    random = np.random.default_rng(steps)
    rows = random.dirichlet(np.full(112, 0.5), 50)
    rounded = (np.ceil(rows * steps) / steps).astype(np.float32)
    with pytest.raises(ArgumentError, match="Pass `quantised=True`"):
        decoder.probabilities(rounded)
    decoded = decoder.probabilities(rounded, quantised=True)
    np.testing.assert_allclose(decoded, decoder.probabilities(rows), atol=112 / steps)


def test_sixteen_bits_are_outputs(decoder: Decoder) -> None:
    """bfloat16 and float16 keep sums near 1."""
    rows = np.random.default_rng(0).dirichlet(np.full(112, 0.5), 2000).astype(np.float32)
    decoder.probabilities(rows.astype(np.float16))
    decoder.probabilities((rows.view(np.uint32) & 0xFFFF0000).view(np.float32))


# --- other versions ------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_answers_of_another_version_are_noticed(
    world: Any, decoder: Decoder, confused: np.ndarray, dtype: type
) -> None:
    mark = CodebookMark(world.codebook.codebook_id, 112)
    mine = mark.put(confused).astype(dtype)
    other = CodebookMark(bytes(16), 112).put(confused).astype(dtype)
    for read in (decoder.probabilities, decoder.labels, decoder.names, decoder.top_k):
        read(mine)
        for rows in (other, other[0], other[None], np.concatenate([mine, other[:1]])):
            with pytest.raises(WrongModelError, match="of another version of model 'digits'"):
                read(rows)
    np.testing.assert_allclose(
        decoder.probabilities(mine), decoder.probabilities(confused), atol=1e-6
    )
    decoder.probabilities(np.round(other, 5))  # rounded: nothing is noticed, nothing is refused
    decoder.probabilities(other.astype(np.float16), quantised=True)


# --- labels, names, top k ------------------------------------------------------


def test_labels_and_names(decoder: Decoder, confused: np.ndarray) -> None:
    assert decoder.labels(confused).tolist() == [7, 2, 1]
    assert decoder.labels(confused).dtype == np.int64
    assert decoder.names(confused) == ["class 7", "class 2", "class 1"]


def test_labels_and_names_follow_the_leading_axes(decoder: Decoder, confused: np.ndarray) -> None:
    assert decoder.names(confused[0]) == "class 7"
    assert decoder.labels(confused[0]) == 7
    assert decoder.names(confused[None, :2]) == [["class 7", "class 2"]]
    assert decoder.labels(confused.reshape(3, 1, 1, -1)).tolist() == [[[7]], [[2]], [[1]]]
    assert decoder.names(confused[:0]) == []


def test_top_k(decoder: Decoder, confused: np.ndarray) -> None:
    classes, probabilities = decoder.top_k(confused, 2)
    assert classes.tolist() == [[7, 0], [2, 0], [1, 0]]
    np.testing.assert_allclose(probabilities, [[0.8, 0.2]] * 3, atol=1e-6)
    assert decoder.top_k(confused)[0].shape == (3, 5)
    one, best = decoder.top_k(confused[0], 1)
    assert (one.tolist(), best.shape) == ([7], (1,))


def test_top_k_breaks_ties_by_class_number() -> None:
    decoder = decoder_of(np.array([2, 0, 1, 0], np.int32), 3)
    classes, probabilities = decoder.top_k(np.array([1 / 3, 1 / 6, 1 / 3, 1 / 6]), 3)
    assert probabilities.tolist() == [1 / 3, 1 / 3, 1 / 3]
    assert classes.tolist() == [0, 1, 2]


@pytest.mark.parametrize("k", [0, -1, 11])
def test_top_k_out_of_range(decoder: Decoder, confused: np.ndarray, k: int) -> None:
    with pytest.raises(ArgumentError, match=rf"`k` must be in 1 … 10. Received: k={k}"):
        decoder.top_k(confused, k)


# --- ciphertexts ---------------------------------------------------------------


def test_decrypt_reads_every_label(decoder: Decoder, world: Any) -> None:
    ciphertexts = [world.codebook.ciphertext(j) for j in range(decoder.num_labels)]
    classes = decoder.decrypt(iter(ciphertexts))
    assert np.array_equal(classes, world.codebook.decode_table(world.alice.reader))
    assert classes.dtype == np.int64
    assert decoder.decrypt([]).tolist() == []
    assert decoder.decrypt([bytearray(ciphertexts[3])])[0] == classes[3]


def test_decrypt_agrees_with_the_bundle_alone(
    decoder: Decoder, world: Any, alice_file: Path
) -> None:
    ciphertexts = [world.codebook.ciphertext(j) for j in range(0, decoder.num_labels, 9)]
    read = KeyBundle.read(alice_file).decrypt(ciphertexts, PASSPHRASE)
    assert np.array_equal(read, decoder.decrypt(ciphertexts))


def test_ciphertexts_of_another_codebook_are_refused(decoder: Decoder, world: Any) -> None:
    message = "A ciphertext does not belong to this version of model 'digits'"
    again = world.authority.codebook(world.assignment)
    for other in (again.ciphertext(0), again.ciphertext(decoder.num_labels - 1)):
        with pytest.raises(WrongModelError, match=message):
            decoder.decrypt([world.codebook.ciphertext(0), other])
    large = world.codebook.ciphertext(0)
    beyond = large[:-12] + decoder.num_labels.to_bytes(4, "big") + large[-8:]
    other_slot = large[:-14] + bytes([large[-14] ^ 255]) + large[-13:]
    for changed in (beyond, other_slot):
        with pytest.raises(WrongModelError, match=message):
            decoder.decrypt([changed])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d: b"", id="empty"),
        pytest.param(lambda d: d[:-1], id="truncated"),
        pytest.param(lambda d: d + b"\0", id="longer"),
        pytest.param(lambda d: b"\1" + d[1:], id="version 1"),
        pytest.param(lambda d: b"\3" + d[1:], id="version 3"),
        pytest.param(lambda d: d[:-4] + b"\xff" * 4, id="value out of range"),
        pytest.param(lambda d: d[:-8] + b"\xff" * 4 + d[-4:], id="other value out of range"),
        pytest.param(lambda d: d[:-12] + b"\xff" * 4 + d[-8:], id="label out of range"),
    ],
)
def test_malformed_ciphertexts_are_refused(
    decoder: Decoder, world: Any, change: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(
        FormatError, match=r"(label ciphertext|Label ciphertext|header) .*(wrong|not read|range)"
    ):
        decoder.decrypt([change(world.codebook.ciphertext(5))])


# --- holding it ----------------------------------------------------------------


def test_repr_shows_ids_only(decoder: Decoder, world: Any) -> None:
    assert repr(decoder) == f"<Decoder model='digits' key_id={world.alice.key_id}>"


@pytest.mark.parametrize(
    "copier", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda c: c.__name__
)
def test_pickling_and_copying_are_refused(
    decoder: Decoder, copier: Callable[[object], object]
) -> None:
    with pytest.raises(TypeError, match="Decoder holds a secret and cannot be pickled or copied"):
        copier(decoder)


def test_the_callers_list_of_names_is_not_the_decoders(decoder: Decoder) -> None:
    names = ["a", "b"]
    metadata = ModelMetadata(model="m", class_names=names)
    codebook: Any = SimpleNamespace(num_labels=2, codebook_id=bytes(16))
    own = Decoder(codebook, metadata, np.array([0, 1], np.int32), "0" * 16, bytes(32))
    names.append("c")
    assert own.class_names == ["a", "b"]
