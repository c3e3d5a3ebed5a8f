"""The lock of a locked export alone: the same in numpy and in TensorFlow, and nothing by halves."""

import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from Crypto.Cipher import ChaCha20
from Crypto.Hash import Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_encryip.crypto import locked_weights
from keras_encryip.crypto.locked_weights import (
    CHUNK_BYTES,
    SEGMENT_BYTES,
    lock_arrays,
    padded,
    segments,
    unlock_arrays,
)
from keras_encryip.errors import SignatureError
from keras_encryip.export.poly1305 import CHUNK_WORDS, LongTag
from keras_encryip.export.weight_lock import KEY_BYTES, LockedTable, WeightLock
from keras_encryip.tracing.checkpoint import PREFIX, Checkpoint

ATTRIBUTE = ".ATTRIBUTES/VARIABLE_VALUE"
KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def some_arrays() -> list[np.ndarray]:
    """Of every type that variables have, with what bits can be: NaNs, zeros of both signs."""
    random = np.random.default_rng(0)
    floats = random.normal(size=(3, 5))
    return [
        floats.astype(np.float32),
        np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
        floats.astype(np.float64),
        floats.astype(np.float16)[:, :3],
        floats.astype(ml_dtypes.bfloat16)[:1],
        np.array(2.5, np.float32),
        np.array(True),
        random.random((4, 3)) < 0.5,
        np.zeros((0, 3), np.float32),
        *(random.integers(0, 100, 7).astype(t) for t in ("i1", "u1", "i2", "u2", "i4", "u4")),
        *(random.integers(0, 100, 3).astype(t) for t in ("i8", "u8")),
        (floats + 1j).astype(np.complex64),
    ]


def same(found: Any, expected: Any) -> bool:
    pairs = list(zip(found, expected, strict=True))
    return all(a.tobytes() == b.tobytes() and a.dtype == b.dtype for a, b in pairs) and all(
        a.shape == b.shape for a, b in pairs
    )


# --- numpy ---------------------------------------------------------------------------------


def test_it_is_chacha20_and_poly1305() -> None:
    """By pycryptodome's own AEAD, of bytes that fill a chunk."""
    data = np.arange(CHUNK_BYTES // 4, dtype=np.uint32)
    (locked,), proof = lock_arrays(KEY, [data])
    cipher = ChaCha20.new(key=KEY, nonce=bytes(12))
    cipher.seek(64)
    assert locked.tobytes() == cipher.encrypt(data.tobytes())
    mac = Poly1305.new(key=KEY, cipher=ChaCha20, nonce=bytes(12))
    mac.update(locked.tobytes() + bytes(8) + CHUNK_BYTES.to_bytes(8, "little"))
    assert proof[16:] == mac.digest()


def test_arrays_of_any_type_come_back() -> None:
    arrays = some_arrays()
    locked, proof = lock_arrays(KEY, arrays)
    assert [a.dtype for a in locked] == [a.dtype for a in arrays]
    changed = sum(a.tobytes() != b.tobytes() for a, b in zip(arrays, locked, strict=True))
    assert changed >= len(arrays) - 2  # an empty one, and perhaps a single bit
    assert same(unlock_arrays(KEY, locked, proof), arrays)
    with pytest.raises(SignatureError, match="not the key of these weights"):
        unlock_arrays(OTHER, locked, proof)


def test_any_changed_bit_is_refused() -> None:
    locked, proof = lock_arrays(KEY, some_arrays())
    for i, array in enumerate(locked):
        for at in range(array.nbytes):
            data = bytearray(array.tobytes())
            data[at] ^= 1
            changed = np.frombuffer(bytes(data), array.dtype).reshape(array.shape)
            with pytest.raises(SignatureError, match="were changed"):
                unlock_arrays(KEY, [*locked[:i], changed, *locked[i + 1 :]], proof)
    with pytest.raises(SignatureError):
        unlock_arrays(KEY, locked[::-1], proof)
    for at in range(32):
        bad = proof[:at] + bytes([proof[at] ^ 128]) + proof[at + 1 :]
        with pytest.raises(SignatureError):
            unlock_arrays(KEY, locked, bad)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 5 * SEGMENT_BYTES // 2), max_size=12))
def test_segments_hold_everything_once_and_in_order(sizes: list[int]) -> None:
    gathered = segments(sizes)
    seen = [[0, 0] for _ in sizes]
    for segment in gathered:
        assert sum(p.stop - p.start for p in segment) <= SEGMENT_BYTES
        assert padded(segment) % CHUNK_BYTES == 0
        for piece in segment:
            assert piece.start == seen[piece.array][1]
            seen[piece.array][1] = piece.stop
    assert [stop for _, stop in seen] == sizes
    assert [p.array for s in gathered for p in s] == sorted(p.array for s in gathered for p in s)
    assert len(gathered) <= 1 + sum(sizes) // SEGMENT_BYTES


# --- TensorFlow ----------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["random", "ones", "zeros"])
def test_long_tags(fill: str) -> None:
    """The sums stay exact with the largest words and the largest r."""
    data = {
        "random": np.random.default_rng(1).bytes(8 * CHUNK_WORDS),
        "ones": b"\xff" * 8 * CHUNK_WORDS,
        "zeros": bytes(8 * CHUNK_WORDS),
    }[fill]
    one_time = KEY if fill == "random" else b"\xff" * 32
    tag = LongTag(tf.constant(np.frombuffer(one_time, "<u4").copy()))
    total = tag.start()
    for words in np.frombuffer(data, "<u4").reshape(2, -1):
        total = tag.absorb(total, tf.constant(words), tag.powers, tag.leaps, tag.leap)
    found = np.asarray(tag.finish(total, tf.zeros([4], tf.uint32))).astype("<u4").tobytes()
    assert found == by_whole_numbers(one_time, data + bytes(16))


def by_whole_numbers(key: bytes, message: bytes) -> bytes:
    """Poly1305 as RFC 8439, 2.5.1, writes it."""
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for at in range(0, len(message), 16):
        block = int.from_bytes(message[at : at + 16] + b"\1", "little")
        total = (total + block) * r % ((1 << 130) - 5)
    total = (total + int.from_bytes(key[16:], "little")) % (1 << 128)
    return total.to_bytes(16, "little")


class Saved:
    """A SavedModel with nothing but a lock on some arrays."""

    def __init__(self, folder: Path, arrays: list[np.ndarray], key_file: str = "") -> None:
        self.folder, self.arrays = folder, arrays
        module = tf.Module()
        module.variables_ = [tf.Variable(array) for array in arrays]
        lock = WeightLock(key_file or f"{folder}/none.key")
        lock.locks(module.variables_)
        locked, proof = lock_arrays(KEY, [v.numpy() for v in lock.variables])
        for variable, value in zip(lock.variables, locked, strict=True):
            variable.assign(value)
        lock.proof.assign(np.frombuffer(proof, np.uint8))
        module.lock = lock

        def first(inputs: Any) -> dict[str, Any]:
            return {"found": tf.cast(module.variables_[0].read_value() + inputs, tf.float32)}

        signatures = {
            "first": tf.function(lock.guard(first), [tf.TensorSpec([], tf.float32, "inputs")]),
            "unlock": tf.function(lock.unlock, [KEY_BYTES]),
        }
        tf.saved_model.save(module, str(folder), signatures)

    def load(self) -> Any:
        return tf.saved_model.load(str(self.folder))


def unlock(loaded: Any, key: Any) -> Any:
    return loaded.signatures["unlock"](key_bytes=tf.constant(key))["unlocked"]


def ask(loaded: Any) -> Any:
    return loaded.signatures["first"](inputs=tf.constant(0.0))["found"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("saved") / "1", some_arrays())


def values(loaded: Any) -> list[np.ndarray]:
    return [variable.numpy() for variable in loaded.variables_]


def test_the_graph_unlocks_every_type(saved: Saved) -> None:
    loaded = saved.load()
    assert not same(values(loaded), saved.arrays)
    assert unlock(loaded, KEY).numpy().item() is True
    assert same(values(loaded), saved.arrays)
    np.testing.assert_array_equal(ask(loaded), saved.arrays[0])


@pytest.mark.parametrize("shape", [KEY, [KEY], [[KEY]]])
def test_a_key_alone_or_in_a_batch_of_one(saved: Saved, shape: Any) -> None:
    found = unlock(saved.load(), shape)
    assert found.shape == tf.constant(shape).shape
    assert found.dtype == tf.bool


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (OTHER, "not the key of this version"),
        (KEY[:-1], "has 32 bytes; this one has another length"),
        (KEY + b"\n", "has 32 bytes; this one has another length"),
        (b"", "has 32 bytes; this one has another length"),
        ([KEY, KEY], "2 values"),
    ],
)
def test_another_key_assigns_nothing(saved: Saved, key: Any, message: str) -> None:
    loaded = saved.load()
    before = values(loaded)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        unlock(loaded, key)
    assert same(values(loaded), before)
    with pytest.raises(tf.errors.InvalidArgumentError, match="This model is locked"):
        ask(loaded)
    unlock(loaded, KEY)
    assert same(values(loaded), saved.arrays)


def test_a_changed_variable_assigns_nothing(saved: Saved) -> None:
    flip_and_unlock(saved, 30)


def flip_and_unlock(saved: Saved, times: int) -> None:
    """One bit at a random place each: refused, with nothing assigned."""
    loaded, random = saved.load(), np.random.default_rng(0)
    variables = [*loaded.variables_, loaded.lock.proof]
    sizes = np.array([v.numpy().nbytes for v in variables])
    locked = values(loaded)
    for _ in range(times):
        i = int(random.choice(len(sizes), p=sizes / sizes.sum()))
        array = variables[i].numpy()
        flat = bytearray(array.tobytes())
        bit = 1 if array.dtype == bool else 1 << int(random.integers(8))
        flat[random.integers(len(flat))] ^= bit
        variables[i].assign(np.frombuffer(bytes(flat), array.dtype).reshape(array.shape))
        with pytest.raises(tf.errors.InvalidArgumentError, match="nothing was unlocked"):
            unlock(loaded, KEY)
        variables[i].assign(array)
    assert same(values(loaded), locked)
    unlock(loaded, KEY)
    assert same(values(loaded), saved.arrays)


def test_a_file_that_says_it_is_open(saved: Saved, tmp_path: Path) -> None:
    """Else a changed flag would turn an error into noise."""
    folder = tmp_path / "1"
    shutil.copytree(saved.folder, folder)
    checkpoint = Checkpoint(folder)
    (flag,) = [n for n in checkpoint.dtypes if n.endswith("opened/" + ATTRIBUTE)]
    values_ = {name: checkpoint.read(name) for name in checkpoint.dtypes} | {flag: np.array(True)}
    shutil.rmtree(folder / "variables")
    (folder / "variables").mkdir()
    tf.raw_ops.SaveV2(
        prefix=f"{folder}/{PREFIX}",
        tensor_names=list(values_),
        shape_and_slices=[""] * len(values_),
        tensors=[tf.constant(value) for value in values_.values()],
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="This model is locked"):
        ask(tf.saved_model.load(str(folder)))


def test_the_sentence_of_a_locked_model(saved: Saved) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        ask(saved.load())
    (line,) = [line for line in str(caught.value).splitlines() if "is locked" in line]
    assert f"{saved.folder}/none.key" in line
    assert "encryip unlock" in line
    assert "signature unlock" in line


def test_unlocking_twice_and_with_another_key_afterwards(saved: Saved) -> None:
    loaded = saved.load()
    for _ in range(2):
        assert unlock(loaded, KEY).numpy().item() is True
    with pytest.raises(tf.errors.InvalidArgumentError, match="not the key of this version"):
        unlock(loaded, OTHER)
    assert same(values(loaded), saved.arrays)


def test_many_at_once_and_requests_meanwhile(tmp_path: Path) -> None:
    """Unlocked exactly once; who asks meanwhile gets an error or the true answer, never noise."""
    big = np.random.default_rng(0).normal(size=(3 << 20,)).astype(np.float32)
    saved = Saved(tmp_path / "1", [big, big[:5]])
    loaded, failures, answers = saved.load(), list[Exception](), list[str]()
    start, done = threading.Barrier(5), threading.Event()

    def unlocks() -> None:
        start.wait()
        try:
            unlock(loaded, KEY)
        except Exception as error:
            failures.append(error)

    def asks() -> None:
        start.wait()
        while not done.is_set() or not answers:
            try:
                found = ask(loaded).numpy()
            except tf.errors.InvalidArgumentError as error:
                answers.append("locked" if "This model is locked" in str(error) else str(error))
            else:
                answers.append("true" if np.array_equal(found, big) else "noise")

    threads = [threading.Thread(target=unlocks) for _ in range(3)]
    threads += [threading.Thread(target=asks) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads[:3]:
        thread.join()
    done.set()
    for thread in threads[3:]:
        thread.join()
    assert not failures
    assert same(values(loaded), saved.arrays)
    assert set(answers) <= {"locked", "true"}
    assert "locked" in answers


@pytest.mark.long
@pytest.mark.parametrize("pieces", [1, 3])
def test_variables_larger_than_a_segment(
    tmp_path: Path, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut into pieces, and put together again: with segments of 2 MiB, so that it is quick."""
    monkeypatch.setattr(locked_weights, "SEGMENT_BYTES", 2 * CHUNK_BYTES)
    random = np.random.default_rng(0)
    arrays = [
        random.normal(size=5).astype(np.float32),
        random.normal(size=(pieces, (2 * CHUNK_BYTES) // 8 + 1)).astype(np.float64),
        random.random(3 * CHUNK_BYTES + 1) < 0.5,
        np.arange(3, dtype=np.int64),
    ]
    saved = Saved(tmp_path / "1", arrays)
    assert len(segments([a.nbytes for a in arrays])) > pieces
    loaded = saved.load()
    unlock(loaded, KEY)
    assert same(values(loaded), arrays)


@pytest.mark.slow
def test_ten_thousand_bits(saved: Saved) -> None:
    """Some minutes."""
    flip_and_unlock(saved, 10_000)


# --- the initialiser -----------------------------------------------------------------------


def sessions_answer(folder: Path) -> np.ndarray:
    graph = tf.Graph()
    with warnings.catch_warnings(), graph.as_default(), tf.compat.v1.Session() as session:
        warnings.simplefilter("ignore")
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))
        signature = meta.signature_def["first"]
        feed = {signature.inputs["inputs"].name: 0.0}
        return np.asarray(session.run(signature.outputs["found"].name, feed))


@pytest.mark.long
@pytest.mark.parametrize("how", ["saved_model.load", "session"])
def test_the_key_file(tmp_path: Path, how: str) -> None:
    key_file = tmp_path / "keys" / "digits.key"
    saved = Saved(tmp_path / "1", some_arrays(), str(key_file))

    def answer() -> np.ndarray:
        if how == "session":
            return sessions_answer(saved.folder)
        return np.asarray(ask(saved.load()))

    with pytest.raises(tf.errors.InvalidArgumentError, match="This model is locked"):
        answer()
    key_file.parent.mkdir()
    for content, message in (
        (KEY[:20], "another length"),
        (OTHER, "not the key of this version"),
    ):
        key_file.write_bytes(content)
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            answer()
    key_file.write_bytes(KEY)
    np.testing.assert_array_equal(answer(), saved.arrays[0])
    key_file.unlink()  # nothing of it was kept
    with pytest.raises(tf.errors.InvalidArgumentError, match="This model is locked"):
        answer()


# --- vocabularies --------------------------------------------------------------------------

TABLES = {
    "strings to numbers": (["", "née", "\x00\xff", "x" * 300], np.arange(4, dtype=np.int64)),
    "numbers to numbers": (np.array([5, -7], np.int64), np.array([1, 2], np.int64)),
    "numbers to strings": (np.array([5, 6], np.int64), ["five", "six"]),
}


def test_tables(tmp_path: Path) -> None:
    """Of each kind, filled with the variables, once, and empty in the file."""
    module, lock, signatures = tf.Module(), WeightLock(f"{tmp_path}/none.key"), {}
    contents = {kind: [tf.constant(part) for part in parts] for kind, parts in TABLES.items()}
    missing = {"strings to numbers": -1, "numbers to numbers": 0, "numbers to strings": "none"}
    for kind, (keys, found) in contents.items():
        initial = tf.lookup.KeyValueTensorInitializer(keys, found)
        other = tf.constant(missing[kind], found.dtype)
        table = LockedTable(tf.lookup.StaticHashTable(initial, other))
        lock.tables.append(table)
        signatures[kind] = tf.function(
            lock.guard(lambda inputs, table=table: {"found": table.lookup(inputs)}),
            [tf.TensorSpec([None], keys.dtype, "inputs")],
        )
    lock.locks([])
    locked, proof = lock_arrays(KEY, [v.numpy() for v in lock.variables])
    for variable, value in zip(lock.variables, locked, strict=True):
        variable.assign(value)
    lock.proof.assign(np.frombuffer(proof, np.uint8))
    module.lock, module.tables = lock, lock.tables
    signatures["unlock"] = tf.function(lock.unlock, [KEY_BYTES])
    tf.saved_model.save(module, str(tmp_path / "1"), signatures)
    everything = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert b"x" * 20 not in everything
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    for _ in range(2):
        unlock(loaded, KEY)
    for kind, (keys, found) in contents.items():
        odd = tf.constant(["odd"]) if keys.dtype == tf.string else tf.constant([99], keys.dtype)
        answer = loaded.signatures[kind](inputs=tf.concat([keys, odd], 0))["found"]
        expected = np.append(found.numpy(), missing[kind])
        assert [str(a) for a in answer.numpy()] == [str(e) for e in expected] or (
            found.dtype == tf.string
            and answer.numpy().tolist() == [*found.numpy().tolist(), b"none"]
        )
