"""`export_saved_model`: what is written, who can use it, and what is refused."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import keras_encryip as ke
from keras_encryip.authority.tracer import Tracer
from keras_encryip.errors import (
    ArgumentError,
    ExportError,
    ForeignKeyError,
    LockedModelError,
    RevokedKeyError,
)
from keras_encryip.export import rotate
from keras_encryip.export import saved_model as export
from keras_encryip.formats.version_folder import ASSETS, read_codebook

UNLEARNED = r"has learned \d+ of its 64 trace labels.*those of 1,000 other users"

CONSUMER = """
import sys
import numpy as np
import tensorflow as tf

folder, data, out = sys.argv[1:]
x = np.load(data)
model = tf.saved_model.load(folder)
confused, label = (model.signatures[n] for n in ("serving_default", "encrypted_label"))
batch = tf.constant(x)
draws = [label(inputs=batch)["ciphertext_bytes"].numpy() for _ in range(2)]
assert not [m for m in sys.modules if m.startswith("keras_encryip")]
np.savez(
    out,
    all=confused(inputs=batch)["confused"].numpy(),
    one=confused(inputs=batch[:1])["confused"].numpy(),
    first=np.array([list(d) for d in draws[0]], np.uint8),
    second=np.array([list(d) for d in draws[1]], np.uint8),
)
"""


def consume(folder: Path, x: np.ndarray, place: Path) -> dict[str, np.ndarray]:
    """Outputs from a process that knows TensorFlow and nothing of this package."""
    np.save(place / "x.npy", x)
    arguments = [str(folder), str(place / "x.npy"), str(place / "out.npz")]
    finished = subprocess.run(
        [sys.executable, "-c", CONSUMER, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert finished.returncode == 0, finished.stderr
    return dict(np.load(place / "out.npz"))


@pytest.fixture(scope="module")
def consumed(
    shipped: Any, digits: Any, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, np.ndarray]]:
    """What two processes, one after the other, get from the exported model."""
    places = [tmp_path_factory.mktemp("consumer") for _ in range(2)]
    return [consume(shipped.exported, digits.x_test, place) for place in places]


def as_bytes(rows: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in rows]


def test_other_processes_get_the_same_outputs(consumed: Any, shipped: Any, digits: Any) -> None:
    expected = shipped.model.predict(digits.x_test, verbose=0)
    for outputs in consumed:
        assert outputs["all"].dtype == np.float32
        np.testing.assert_allclose(outputs["all"], expected, atol=1e-6)
        np.testing.assert_allclose(outputs["one"], expected[:1], atol=1e-6)


def test_encrypted_labels_agree_with_the_prediction(
    consumed: Any, shipped: Any, digits: Any
) -> None:
    decoder = ke.Decoder.open(shipped.exported, shipped.bundles["alice"], shipped.passphrase)
    predicted = decoder.labels(consumed[0]["all"])
    assert (predicted == digits.y_test).mean() > 0.9
    for outputs in consumed:
        for draw in (outputs["first"], outputs["second"]):
            decrypted = decoder.decrypt(as_bytes(draw))
            assert (decrypted == predicted).mean() >= 0.95
    bundle = ke.KeyBundle.read(shipped.bundles["bob"])
    decrypted = bundle.decrypt(as_bytes(consumed[0]["first"][:20]), shipped.passphrase)
    assert (decrypted == predicted[:20]).mean() >= 0.9


def test_encrypted_labels_are_drawn_anew(consumed: Any) -> None:
    """Between calls and between processes; most inputs have two or more likely homophones."""
    draws = [outputs[name] for outputs in consumed for name in ("first", "second")]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            different = (one != other).any(axis=1).mean()
            assert 0.02 < different < 0.9


def test_equal_inputs_of_a_batch_get_different_ciphertexts(shipped: Any, digits: Any) -> None:
    confused = shipped.model.predict(digits.x_test, verbose=0)
    best = np.sort(confused, axis=1)
    image = digits.x_test[(best[:, -1] - best[:, -2]).argmin()]
    loaded = tf.saved_model.load(str(shipped.exported))
    batch = tf.constant(np.stack([image] * 40))
    drawn = loaded.signatures["encrypted_label"](inputs=batch)["ciphertext_bytes"].numpy()
    assert len(set(drawn)) >= 2


def test_folder(shipped: Any) -> None:
    names = {p.relative_to(shipped.exported).as_posix() for p in shipped.exported.rglob("*")}
    assets = {"assets.extra", "assets.extra/encryip"}
    assert {n for n in names if n.startswith("assets.extra")} - assets == {
        "assets.extra/encryip/codebook.json",
        "assets.extra/encryip/manifest.json",
    }
    assert "saved_model.pb" in names
    manifest = ke.verify_export(shipped.exported, issuer=shipped.authority.issuer)
    listed = [f.path for f in manifest.files]
    assert listed == sorted(listed)
    assert "saved_model.pb" in listed
    assert "variables/variables.index" in listed
    with pytest.raises(ForeignKeyError, match="signed by another authority than expected"):
        ke.verify_export(shipped.exported, issuer=bytes(32))
    exports = [e for e in shipped.authority.events() if e.kind == "model exported"]
    assert exports[0].details["model"] == "digits"
    assert exports[0].details["codebook"] == manifest.codebook_id
    assert exports[0].details["folder"] == "1"


def test_the_graph_holds_one_prefix_and_the_suffixes(shipped: Any) -> None:
    """And no other string as long as a part of a ciphertext."""
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((shipped.exported / "saved_model.pb").read_bytes())
    (graph,) = (meta.graph_def for meta in saved.meta_graphs)
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    strings = [
        tf.make_ndarray(node.attr["value"].tensor).ravel().tolist()
        for node in nodes
        if node.op == "Const" and node.attr["dtype"].type == tf.string.as_datatype_enum
    ]
    book = read_codebook(shipped.exported)
    assert strings.count([book.ciphertext_prefix]) == 1
    assert strings.count(list(book.ciphertext_suffixes)) == 1
    rest = [x for x in strings if x not in ([book.ciphertext_prefix], [*book.ciphertext_suffixes])]
    assert not [text for texts in rest for text in texts if book.codebook_id in text]
    assert all(len(suffix) == 14 for suffix in book.ciphertext_suffixes)
    assert book.ciphertext(7) == book.ciphertext_prefix + book.ciphertext_suffixes[7]


# --- refused -------------------------------------------------------------------------


def test_refuses_copied_heads(
    trained_classifier: keras.Model, digits: Any, shared_authority: ke.Authority, tmp_path: Path
) -> None:
    """Never trained, or trained without the confusion term: the head shows the grouping."""
    message = (
        "head of model 'copied' still consists of copies .column spread .*, at least 0.003.: it "
        "would show .* Train it with `fit` and a `confusion_weight` above 0"
    )
    options = {"homophones": 4, "trace_labels": 0, "confusion_weight": 0.0}
    model = ke.protect(trained_classifier, shared_authority, name="copied", **options)
    with pytest.raises(ExportError, match=message):
        ke.export_saved_model(model, tmp_path / "1")
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(digits.x[:320], digits.y[:320], epochs=2, verbose=0)
    with pytest.raises(ExportError, match=message):
        ke.export_saved_model(model, tmp_path / "1")
    assert not list(tmp_path.iterdir())
    model.confusion_weight = 1.0
    model.lock().unlock(authority=shared_authority)
    model.fit(digits.x[:320], digits.y[:320], epochs=2, verbose=0)
    ke.export_saved_model(model, tmp_path / "1")


def test_refuses_existing_folders(shipped: Any, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    with pytest.raises(ExportError, match="1' exists already, and is never overwritten"):
        ke.export_saved_model(shipped.model, tmp_path / "1")
    assert list((tmp_path / "1").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"Cannot write .*file/1': Not a directory"):
        ke.export_saved_model(shipped.model, tmp_path / "file" / "1")


@pytest.mark.parametrize(
    ("name", "served"),
    [
        *[("0", True), ("1", True), ("20261231", True), (str((1 << 63) - 1), True)],
        *[("v1", False), ("1.0", False), ("-1", False), ("01", False), (str(1 << 63), False)],
    ],
)
@pytest.mark.parametrize("rotated", [False, True], ids=["export", "rotate"])
def test_names_that_tf_serving_passes_over(
    rotated: bool, name: str, served: bool, shipped: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise ExportError("far enough")

    def write() -> None:
        if rotated:
            ke.rotate_codebook(shipped.exported, target, authority=shipped.authority)
        else:
            ke.export_saved_model(shipped.model, target)

    monkeypatch.setattr(export, "check_spread", stop)
    monkeypatch.setattr(rotate, "verify_export", stop)
    target = tmp_path / name
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ExportError, match="far enough"):
            write()
    said = [f"{w.filename}: {w.message}" for w in caught if w.category is UserWarning]
    expected = f"{__file__}: TF Serving finds no version in {str(target)!r}: "
    assert [text.startswith(expected) for text in said] == ([] if served else [True])


def test_refuses_other_models(shipped: Any, new_classifier: Any, tmp_path: Path) -> None:
    message = r"`model` must be a ProtectedModel, from `protect\(...\)`.*Received: Sequential"
    with pytest.raises(ArgumentError, match=message):
        ke.export_saved_model(new_classifier(), tmp_path / "1")
    model = shipped.copy(unlock=False)
    with pytest.raises(LockedModelError, match="Model 'digits' is locked"):
        ke.export_saved_model(model, tmp_path / "1")
    model.unlock(bundle=shipped.bundles["alice"], passphrase=shipped.passphrase)
    with pytest.raises(LockedModelError, match=r"exporting needs its owner"):
        ke.export_saved_model(model, tmp_path / "1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["_write", "check_written", "make_manifest", "verify_export"])
def test_failure_leaves_nothing(
    step: str, shipped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    events = len(shipped.authority.events())
    monkeypatch.setattr(export, step, fail)
    with pytest.raises(ExportError, match=r"Cannot write .*1': disk full"):
        ke.export_saved_model(shipped.model, tmp_path / "digits" / "1")
    assert list((tmp_path / "digits").iterdir()) == []
    assert len(shipped.authority.events()) == events


def test_wrong_outputs_are_noticed(
    shipped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shipped.copy()
    write = export._write

    def write_another(given: ke.ProtectedModel, *arguments: Any) -> None:
        write(given, *arguments)
        given.confused_labels.bias.assign_add(np.arange(given.num_labels) % 2)

    monkeypatch.setattr(export, "_write", write_another)
    with pytest.raises(ExportError, match=r"does not give the model's outputs .*nothing was kept"):
        ke.export_saved_model(model, tmp_path / "1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_wrong_outputs_are_noticed_among_many_labels(
    authority: ke.Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Each of 2,000 labels holds so little that none of them differs much."""
    hidden = keras.layers.Dense(32, "relu", dtype=dtype)
    classifier = keras.Sequential([keras.Input((20,)), hidden, keras.layers.Dense(10)])
    model = ke.protect(classifier, authority, name="m", homophones=200, trace_labels=0)
    kernel = model.confused_labels.kernel
    kernel.assign(np.random.default_rng(0).normal(0, 1, kernel.shape))  # no copies any more
    ke.export_saved_model(model, tmp_path / "1")
    write = export._write

    def write_another(given: ke.ProtectedModel, *arguments: Any) -> None:
        write(given, *arguments)
        kernel.assign(kernel[:, ::-1])

    monkeypatch.setattr(export, "_write", write_another)
    with pytest.raises(ExportError, match="does not give the model's outputs"):
        ke.export_saved_model(model, tmp_path / "2")


# --- revocation ----------------------------------------------------------------------


def test_revoked_user_is_shut_out_of_the_next_export(
    new_classifier: Any, digits: Any, authority: ke.Authority, tmp_path: Path
) -> None:
    options = {"homophones": 1, "trace_labels": 0}  # never trained
    model = ke.protect(new_classifier(), authority, name="digits", **options)
    bundles = {user: tmp_path / f"{user}.keybundle" for user in ("alice", "bob", "carol")}
    for user, path in bundles.items():
        authority.issue(user, path, passphrase="p", scrypt_log2_n=14)
    for version in ("1", "2"):
        ke.export_saved_model(model, tmp_path / version)
    authority.revoke("bob")
    ke.export_saved_model(model, tmp_path / "3")
    codebooks = [(tmp_path / v / ASSETS / "codebook.json").read_bytes() for v in "123"]
    assert codebooks[0] == codebooks[1] != codebooks[2]
    confused = model.predict(digits.x_test, verbose=0)
    expected = model.decode(confused)
    for user, path in bundles.items():
        for version in "123":
            if (user, version) == ("bob", "3"):
                with pytest.raises(RevokedKeyError, match="was revoked before this model version"):
                    ke.Decoder.open(tmp_path / version, path, "p")
                continue
            decoder = ke.Decoder.open(tmp_path / version, path, "p")
            np.testing.assert_allclose(decoder.probabilities(confused), expected, atol=1e-6)


def test_a_user_reads_every_codebook_of_a_model_alike(
    new_classifier: Any, authority: ke.Authority, tmp_path: Path
) -> None:
    """Labels that two codebooks read differently would be the trace labels."""
    options = {"homophones": 1, "trace_labels": 64}  # never trained
    model = ke.protect(new_classifier(), authority, name="digits", **options)
    for user in ("alice", "bob", "carol"):
        authority.issue(user, tmp_path / user, passphrase="p", scrypt_log2_n=14)
    tables: dict[str, list[np.ndarray]] = {"alice": [], "carol": []}
    for version in ("1", "2"):
        ke.export_saved_model(model, tmp_path / version)
        for user, found in tables.items():
            decoder = ke.Decoder.open(tmp_path / version, tmp_path / user, "p")
            found.append(decoder.secret_table())
        if version == "1":
            authority.revoke("bob")
    books = [read_codebook(tmp_path / version) for version in ("1", "2")]
    assert books[0].codebook_id != books[1].codebook_id
    assert (books[0].values != books[1].values).any(), "drawn anew"
    assert (books[0].masked_slots == books[1].masked_slots).sum() <= 2, "by chance"
    for first, second in tables.values():
        np.testing.assert_array_equal(first, second)
    differ = np.flatnonzero(tables["alice"][0] != tables["carol"][0])
    assert differ.size > 5, "a third of 64 in the mean"
    assert set(differ) <= set(model._unlocked().assignment().trace)


# --- trace labels that were not learned ----------------------------------------------


@pytest.mark.parametrize("taught", [False, True])
def test_the_owner_is_told_if_a_service_could_not_be_traced(
    taught: bool,
    digits: Any,
    new_classifier: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not taught:
        monkeypatch.setattr(ke.ProtectedModel, "teach_traces", lambda self: None)
    url = f"sqlite:///{tmp_path}/own.authority"
    with (
        ke.Authority.create(url, "owner", scrypt_log2_n=14) as authority,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        model = ke.protect(
            new_classifier(), authority, name="digits", homophones=4, trace_labels=64
        )
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
        model.fit(digits.x, digits.y, epochs=3, verbose=0)
        ke.export_saved_model(model, tmp_path / "digits" / "1")
        bundle = tmp_path / "alice.keybundle"
        authority.issue("alice", bundle, passphrase="x", scrypt_log2_n=14)
        authority.enroll(f"user {number}" for number in range(999))
        decoder = ke.Decoder.open(tmp_path / "digits" / "1", bundle, "x")
        report = Tracer(authority).service(
            lambda batch: decoder.labels(model.predict(batch, verbose=0)), model=model
        )
    found = [str(w.message) for w in caught if re.search(UNLEARNED, str(w.message))]
    assert len(found) == (not taught)
    assert ([s.subject for s in report.guilty] == ["alice"]) is taught, "and it is true"
