"""`weights="locked"`: noise without a host's key, and with it the plain export bit for bit."""

import re
import shutil
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_encryip as ke
from keras_encryip.authority.tracer import Tracer
from keras_encryip.client import unlock_key
from keras_encryip.errors import (
    ArgumentError,
    FormatError,
    KeyRefusedError,
    RevokedKeyError,
    SignatureError,
)
from keras_encryip.formats.lock import read_lock
from keras_encryip.formats.manifest import verify_export
from keras_encryip.tracing.checkpoint import Checkpoint
from keras_encryip.tracing.weights import read_kernels

layers = keras.layers


class House:
    """An authority of its own with the shipped model, and locked exports of it."""

    def __init__(self, shipped: Any, folder: Path) -> None:
        self.folder, self.passphrase = folder, shipped.passphrase
        shutil.copy(shipped.url.removeprefix("sqlite:///"), folder / "a.authority")
        self.authority = ke.Authority.open(folder / "a.authority", shipped.passphrase)
        self.model = shipped.copy(unlock=False).unlock(authority=self.authority)
        for user, roles in (("reader", ["read"]), ("host", ["run"]), ("both", ["read", "run"])):
            self.authority.issue(
                user, self.bundle(user), roles=roles, passphrase=self.passphrase, scrypt_log2_n=14
            )
        self.key_file = str(folder / "keys" / "digits.key")

    def bundle(self, user: str) -> Path:
        return self.folder / f"{user}.keybundle"

    def export(self, name: str, **options: Any) -> Path:
        path = self.folder / name
        ke.export_saved_model(self.model, path, **options)
        return path

    def lock(self, name: str, **options: Any) -> Path:
        return self.export(name, weights="locked", key_file=self.key_file, **options)

    def key(self, folder: Path, user: str = "host") -> bytes:
        return unlock_key(folder, self.bundle(user), self.passphrase)

    def open(self, folder: Path) -> Any:
        loaded = tf.saved_model.load(str(folder))
        loaded.signatures["unlock"](key_bytes=tf.constant(self.key(folder)))
        return loaded

    def decoder(self, folder: Path, user: str = "both") -> ke.Decoder:
        return ke.Decoder.open(folder, self.bundle(user), self.passphrase)


@pytest.fixture(scope="module")
def house(shipped: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(shipped, tmp_path_factory.mktemp("house"))
    yield house
    house.authority.close()


@pytest.fixture(scope="module")
def plain(house: House) -> Path:
    return house.export("plain")


@pytest.fixture(scope="module")
def locked(house: House) -> Path:
    return house.lock("locked")


def answer(loaded: Any, x: np.ndarray, output: str = "confused") -> np.ndarray:
    return np.asarray(loaded.signatures["serving_default"](inputs=tf.constant(x))[output])


def in_session(folder: Path, x: np.ndarray, key: bytes) -> np.ndarray:
    with warnings.catch_warnings(), tf.Graph().as_default(), tf.compat.v1.Session() as session:
        warnings.simplefilter("ignore")
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))
        asked, unlock = (meta.signature_def[name] for name in ("serving_default", "unlock"))
        session.run(unlock.outputs["unlocked"].name, {unlock.inputs["key_bytes"].name: [key]})
        feed = {asked.inputs["inputs"].name: x}
        return np.asarray(session.run(asked.outputs["confused"].name, feed))


# --- with the key --------------------------------------------------------------------------


def test_the_plain_export_bit_for_bit(house: House, plain: Path, locked: Path, digits: Any) -> None:
    expected = answer(tf.saved_model.load(str(plain)), digits.x_test)
    loaded = house.open(locked)
    np.testing.assert_array_equal(answer(loaded, digits.x_test), expected)
    assert set(loaded.signatures) == {"serving_default", "encrypted_label", "unlock"}
    label = loaded.signatures["encrypted_label"](inputs=tf.constant(digits.x_test))
    classes = house.decoder(locked).decrypt(label["ciphertext_bytes"].numpy())
    assert (classes == digits.y_test).mean() > 0.8
    np.testing.assert_array_equal(
        in_session(locked, digits.x_test, house.key(locked)),
        np.asarray(in_plain_session(plain, digits.x_test)),
    )


def in_plain_session(folder: Path, x: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings(), tf.Graph().as_default(), tf.compat.v1.Session() as session:
        warnings.simplefilter("ignore")
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))
        asked = meta.signature_def["serving_default"]
        feed = {asked.inputs["inputs"].name: x}
        return np.asarray(session.run(asked.outputs["confused"].name, feed))


@pytest.mark.long
def test_the_key_file_in_a_process_without_this_package(
    house: House, locked: Path, plain: Path, digits: Any, tmp_path: Path
) -> None:
    code = """
import sys, numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
found = model.signatures["serving_default"](inputs=tf.constant(np.load(sys.argv[2])))
np.save(sys.argv[3], found["confused"].numpy())
assert not [name for name in sys.modules if name.startswith("keras_encryip")]
"""
    np.save(tmp_path / "x.npy", digits.x_test)
    command = [sys.executable, "-P", "-c", code, str(locked)]
    command += [str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    before = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert before.returncode != 0
    assert f"This model is locked. Put its key at {house.key_file}" in before.stderr
    Path(house.key_file).parent.mkdir()
    Path(house.key_file).write_bytes(house.key(locked))
    try:
        after = subprocess.run(command, capture_output=True, text=True, timeout=300)
        # An export made while another version's key is there does not trip over it.
        house.lock("beside another key")
    finally:
        shutil.rmtree(Path(house.key_file).parent)
    assert after.returncode == 0, after.stderr
    expected = answer(tf.saved_model.load(str(plain)), digits.x_test)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


@pytest.mark.long
def test_encrypted_responses(house: House, digits: Any) -> None:
    folder = house.lock("hosted", responses="encrypted")
    loaded = house.open(folder)
    assert set(loaded.signatures) == {"serving_default", "unlock"}
    responses, decoder = answer(loaded, digits.x_test, "encrypted"), house.decoder(folder)
    assert (decoder.labels(responses) == digits.y_test).mean() > 0.9
    assert not verify_export(folder).warning  # nobody reads the response key in the folder
    assert house.authority.keys.response_key(decoder._codebook) not in everything_of(folder)
    other = house.folder / "hosted rotated"
    ke.rotate_codebook(folder, other, authority=house.authority)
    responses = answer(house.open(other), digits.x_test, "encrypted")
    assert (house.decoder(other).labels(responses) == digits.y_test).mean() > 0.9
    with pytest.raises(SignatureError):
        decoder.labels(responses)


# --- without it ----------------------------------------------------------------------------


def everything_of(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())


def test_no_file_holds_weights_or_the_key(house: House, locked: Path, plain: Path) -> None:
    everything, key = everything_of(locked), house.key(locked)
    for form in (key, key[::-1], key.hex().encode(), key[:16], key[16:]):
        assert form not in everything
    searched = 0
    for variable in house.model.variables:
        data = keras.ops.convert_to_numpy(variable).tobytes()
        for at in range(0, len(data) - 16, 16):
            if len(set(data[at : at + 16])) > 8:  # not the zeros and ones that any file has
                searched += 1
                assert data[at : at + 16] not in everything
                if at == 0:
                    assert data[:16] in everything_of(plain)  # the search finds what is there
    assert searched > 100


def test_the_checkpoint_is_noise(locked: Path, plain: Path) -> None:
    """Not compressible, bits even, and unlike what it stands for."""
    checkpoint = Checkpoint(locked)
    data = b"".join(checkpoint.read(name).tobytes() for name in checkpoint.locked)
    assert len(zlib.compress(data, 9)) > 0.999 * len(data)
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(bits))
    others = set(checkpoint.dtypes) - set(checkpoint.locked)
    assert all(checkpoint.dtypes[n] in (tf.string, tf.uint8, tf.bool) for n in others), others


def test_two_exports_have_nothing_in_common(house: House, locked: Path) -> None:
    again = house.lock("again")
    one, two = Checkpoint(locked), Checkpoint(again)
    for name in one.locked:
        assert not np.array_equal(one.read(name), two.read(name))
    assert house.key(locked) != house.key(again)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not the key of this version"):
        tf.saved_model.load(str(again)).signatures["unlock"](
            key_bytes=tf.constant(house.key(locked))
        )


def test_changed_files_are_refused_or_harmless(
    house: House, locked: Path, digits: Any, tmp_path: Path
) -> None:
    """Bit flips at random places of the checkpoint: no answer is ever another than the true one."""
    data = locked / "variables" / "variables.data-00000-of-00001"
    expected = answer(house.open(locked), digits.x_test[:8])
    random, refused = np.random.default_rng(0), 0
    copy = tmp_path / "copy"
    for _ in range(6):
        shutil.copytree(locked, copy)
        changed = bytearray(data.read_bytes())
        changed[random.integers(len(changed))] ^= 1 << int(random.integers(8))
        (copy / "variables" / data.name).write_bytes(bytes(changed))
        try:
            found = answer(house.open(copy), digits.x_test[:8])
        except (tf.errors.OpError, ValueError):
            refused += 1
        else:
            np.testing.assert_array_equal(found, expected)
        shutil.rmtree(copy)
    assert refused


def test_an_outsider_with_labelled_samples_has_no_model(
    house: House, locked: Path, plain: Path, digits: Any
) -> None:
    """Nearest prototypes of five labelled samples per class, on features of the network as it
    stands in the file: of the plain one a classifier, of the locked one noise."""
    chosen = np.concatenate([np.flatnonzero(digits.y == k)[:5] for k in range(10)])
    accuracies = []
    for folder in (plain, locked):
        checkpoint = Checkpoint(folder)
        kernels = [
            checkpoint.read(name).reshape(64, 32)
            for name, shape in checkpoint.shapes.items()
            if shape == [64, 32]
        ]
        flat = digits.x.reshape(-1, 64), digits.x_test.reshape(-1, 64)
        with np.errstate(all="ignore"):
            few, many = (np.maximum(np.nan_to_num(x @ kernels[0]), 0) for x in flat)
            prototypes = np.stack([few[chosen[5 * k : 5 * k + 5]].mean(0) for k in range(10)])
            distances = ((many[:, None] - prototypes) ** 2).sum(-1)
        accuracies.append((distances.argmin(1) == digits.y_test).mean())
    assert accuracies[0] > 0.8
    assert accuracies[1] < 0.3


# --- whose key -----------------------------------------------------------------------------


def test_roles(house: House, locked: Path) -> None:
    assert house.key(locked, "host") == house.key(locked, "both")
    with pytest.raises(KeyRefusedError, match="role 'run'"):
        house.key(locked, "reader")
    with pytest.raises(KeyRefusedError, match="role 'read'"):
        house.decoder(locked, "host")


def test_plain_folders_need_no_key(house: House, plain: Path) -> None:
    with pytest.raises(FormatError, match="not the version folder of a locked export"):
        house.key(plain)


def test_rotation_shuts_out_a_revoked_host(shipped: Any, digits: Any, tmp_path: Path) -> None:
    house = House(shipped, tmp_path)
    with house.authority:
        first, second = house.lock("1"), tmp_path / "2"
        house.authority.revoke("host")
        ke.rotate_codebook(first, second, authority=house.authority)
        house.key(first)  # what was released stays
        with pytest.raises(RevokedKeyError, match="revoked before this model version was exported"):
            house.key(second)
        loaded = tf.saved_model.load(str(second))
        loaded.signatures["unlock"](key_bytes=tf.constant(house.key(second, "both")))
        found = house.decoder(second).labels(answer(loaded, digits.x_test))
        assert (found == digits.y_test).mean() > 0.9
        assert read_lock(second).key_file == house.key_file


@pytest.mark.long
def test_tracing_a_customers_copy(house: House, locked: Path, tmp_path: Path) -> None:
    """From the key file alone, from a locked folder, and from what a host made of it."""
    alice = house.lock("for alice", recipient="alice")
    house.lock("for bob", recipient="bob")
    tracer = Tracer(house.authority)
    report = tracer.key(house.key(alice))
    assert report.verdict == "identified"
    assert [s.subject for s in report.suspects if s.identified] == ["alice"]
    assert report.evidence["opens the locked export"] == "for alice"
    assert tracer.key(bytes(32)).verdict == "inconclusive"
    assert tracer.key(house.key(locked)).evidence["made for"] == "nobody by name"
    rotated = tmp_path / "rotated"
    ke.rotate_codebook(alice, rotated, authority=house.authority)
    assert tracer.key(house.key(rotated)).evidence["opens the locked export"] == "rotated"
    for found in (alice, rotated):
        assert [s.subject for s in tracer.weights(found, model=house.model).guilty] == ["alice"]
    loaded = house.open(alice)
    weights = [v.numpy() for v in loaded.signatures["serving_default"].variables]
    assert [s.subject for s in tracer.weights(weights, model=house.model).guilty] == ["alice"]
    with pytest.raises(FormatError, match="locked, and not by an export of this authority"):
        read_kernels(alice)


# --- arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "sealed"}, "`weights` must be 'plain' or 'locked'"),
        ({"weights": None}, "`weights` must be 'plain' or 'locked'"),
        ({"key_file": "/run/x.key"}, "`key_file` is for `weights='locked'` alone"),
        *(
            ({"weights": "locked", "key_file": path}, "`key_file` must be")
            for path in ("x.key", "", "/", "/run/", "/run/*.key", "/run/a?", "/r/\n", 7, b"/run/x")
        ),
    ],
)
def test_bad_arguments(house: House, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ke.export_saved_model(house.model, tmp_path / "1", **options)
    assert not (tmp_path / "1").exists()


def test_the_default_key_file(house: House, tmp_path: Path) -> None:
    ke.export_saved_model(house.model, tmp_path / "1", weights="locked")
    assert read_lock(tmp_path / "1").key_file == "/run/secrets/encryip/digits.key"


def test_a_failure_leaves_nothing(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras_encryip.export import saved_model

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(saved_model, "lock_folder", fail)
    before = [keras.ops.convert_to_numpy(v).copy() for v in house.model.variables]
    with pytest.raises(ZeroDivisionError):
        ke.export_saved_model(house.model, tmp_path / "1", weights="locked")
    assert list(tmp_path.iterdir()) == []
    assert not [d for d in tf.io.gfile.glob("ram://*") if "encryip" in d]
    for one, two in zip(before, house.model.variables, strict=True):
        np.testing.assert_array_equal(one, keras.ops.convert_to_numpy(two))


# --- vocabularies and what stays readable --------------------------------------------------

WORDS = ["unicorn", "pegasus", "chimäre", "hippogriff"]


def words_model(authority: ke.Authority, *more: Any) -> Any:
    vectorize = layers.TextVectorization(output_mode="multi_hot", vocabulary=WORDS)
    head = layers.Dense(2, activation="softmax")
    inputs = keras.Input((), dtype="string")
    classifier = keras.Sequential([inputs, vectorize, layers.Dense(8), *more, head])
    model = ke.protect(classifier, authority, name="words", homophones=2, trace_labels=0)
    model.compile(keras.optimizers.Adam(0.03), "sparse_categorical_crossentropy")
    x = tf.constant([f"{a} {b}" for a in WORDS for b in WORDS])
    model.fit(x, np.array([0, 1] * 8), epochs=30, batch_size=4, verbose=0)
    return model, vectorize, x


@pytest.mark.long
def test_vocabularies_are_locked(authority: ke.Authority, tmp_path: Path) -> None:
    model, vectorize, x = words_model(authority)
    ke.export_saved_model(model, tmp_path / "plain")
    table = vectorize._lookup_layer.lookup_table
    ke.export_saved_model(model, tmp_path / "locked", weights="locked")
    assert vectorize._lookup_layer.lookup_table is table
    everything = everything_of(tmp_path / "locked")
    for word in WORDS:
        assert word.encode() in everything_of(tmp_path / "plain")
        assert word.encode() not in everything
    authority.issue("host", tmp_path / "h", roles=["run"], passphrase="p", scrypt_log2_n=14)
    loaded = tf.saved_model.load(str(tmp_path / "locked"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="This model is locked"):
        loaded.signatures["serving_default"](inputs=x)
    key = unlock_key(tmp_path / "locked", tmp_path / "h", "p")
    loaded.signatures["unlock"](key_bytes=tf.constant(key))
    expected = tf.saved_model.load(str(tmp_path / "plain")).signatures["serving_default"](inputs=x)
    found = loaded.signatures["serving_default"](inputs=x)
    np.testing.assert_array_equal(found["confused"], expected["confused"])


@keras.saving.register_keras_serializable("tests")
class Constant(layers.Layer):
    """Holds numbers that are no variable."""

    def call(self, inputs: Any) -> Any:
        table = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
        return inputs @ tf.constant(table)


@pytest.mark.long
def test_what_stays_readable_is_named(authority: ke.Authority, tmp_path: Path) -> None:
    model, _, _ = words_model(authority, Constant())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ke.export_saved_model(model, tmp_path / "1", weights="locked")
    (told,) = [str(w.message) for w in caught if "reads without a key" in str(w.message)]
    assert re.search(
        r"reads without a key: the constant '.*' of saved_model.pb, float32 \[8, 8\]", told
    )
    assert told.count("the constant") == 1
