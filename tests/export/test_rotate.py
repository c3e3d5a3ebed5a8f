"""`rotate_codebook` on exported folders: reordered outputs, and revocation in the field."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import keras_encryip as ke
from keras_encryip.authority.tracer import Tracer
from keras_encryip.errors import (
    ArgumentError,
    EncryipError,
    ExportError,
    ForeignKeyError,
    LedgerError,
    RevokedKeyError,
    SignatureError,
    WrongModelError,
)
from keras_encryip.export import checkpoints
from keras_encryip.export import rotate as rotation
from keras_encryip.formats.manifest import RESPONSE_KEY_INSIDE as WARNING
from keras_encryip.formats.version_folder import read_codebook

LEAKER = "alice"


@dataclass(frozen=True)
class Field:
    """Three folders of version 1, and of version 2 after bob was revoked."""

    authority: ke.Authority
    model: ke.ProtectedModel
    folder: Path
    bundles: dict[str, Path]
    passphrase: str

    def version(self, name: str, number: int = 1) -> Path:
        return self.folder / name / str(number)

    def decoder(self, user: str, path: Path) -> ke.Decoder:
        return ke.Decoder.open(path, self.bundles[user], self.passphrase)


@pytest.fixture(scope="module")
def field(shipped: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    folder = tmp_path_factory.mktemp("field")
    shutil.copy(shipped.url.removeprefix("sqlite:///"), folder / "a.authority")
    with ke.Authority.open(f"sqlite:///{folder}/a.authority", shipped.passphrase) as authority:
        model = shipped.copy(unlock=False).unlock(authority=authority)
        made = Field(authority, model, folder, shipped.bundles, shipped.passphrase)
        ke.export_saved_model(model, made.version("digits"))
        ke.export_saved_model(model, made.version("marked"), recipient=LEAKER)
        ke.export_saved_model(model, made.version("hosted"), responses="encrypted")
        authority.revoke("bob")
        for name in ("digits", "marked", "hosted"):
            ke.rotate_codebook(made.version(name), made.version(name, 2), authority=authority)
        yield made


def ask(path: Path, x: np.ndarray, signature: str = "serving_default") -> np.ndarray:
    loaded = tf.saved_model.load(str(path))
    (found,) = loaded.signatures[signature](inputs=tf.constant(x)).values()
    return np.asarray(found)


# --- users -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "marked", "hosted"])
def test_others_read_on_and_the_revoked_user_does_not(field: Field, digits: Any, name: str) -> None:
    old, new = (ask(field.version(name, number), digits.x_test) for number in (1, 2))
    for user in ("alice", "carol"):
        before = field.decoder(user, field.version(name)).probabilities(old)
        after = field.decoder(user, field.version(name, 2)).probabilities(new)
        np.testing.assert_allclose(after, before, atol=1e-5)
        assert (after.argmax(-1) == digits.y_test).mean() > 0.9
    with pytest.raises(RevokedKeyError, match="revoked before this model version was exported"):
        field.decoder("bob", field.version(name, 2))
    kept = field.decoder("bob", field.version(name))  # the decode table of before
    assert (kept.labels(old) == digits.y_test).mean() > 0.9
    if name == "hosted":
        with pytest.raises(SignatureError, match="another model version"):
            kept.labels(new)
    else:
        with pytest.raises(WrongModelError, match="of another version of model"):
            kept.labels(new)
        by_table = new @ np.eye(10)[kept.secret_table()]  # who strips the mark reads nonsense
        assert (by_table.argmax(-1) == digits.y_test).mean() < 0.6


@pytest.mark.parametrize("user", ["alice", "carol"])
def test_a_user_reads_the_same_at_every_label_of_both_versions(field: Field, user: str) -> None:
    """What differed would be the trace labels: two codebooks of a model must not show them."""
    paths = [field.version("digits"), field.version("digits", 2), field.version("hosted")]
    books = [read_codebook(path) for path in paths]
    assert len({book.codebook_id for book in books}) == 3
    orders = [field.authority.model_store.assignment_of(book) for book in books]
    old, rotated, again = (field.decoder(user, path).secret_table() for path in paths)
    np.testing.assert_array_equal(again, old)
    moved = orders[0].moved_to(orders[1])
    np.testing.assert_array_equal(rotated[moved], old)
    np.testing.assert_array_equal(orders[1].slots[moved], orders[0].slots)
    assert not np.array_equal(moved, np.arange(len(moved)))


@pytest.mark.parametrize("name", ["digits", "marked", "hosted"])
def test_public_files_do_not_carry_an_old_table_to_the_new_version(
    field: Field, digits: Any, name: str
) -> None:
    """Bob's table of before, and both codebooks: sorted by the slot field, as when it was clear.

    A label has the same slot in both, so with slots in the clear, equal slots lined up, and where
    one label lies on each, this read every answer of the new version.
    """
    old, new = (read_codebook(field.version(name, number)) for number in (1, 2))
    kept = field.decoder("bob", field.version(name)).secret_table()
    now = field.decoder("carol", field.version(name, 2)).secret_table()
    before, after = (field.authority.model_store.assignment_of(book) for book in (old, new))
    expected = 1 / old.num_classes
    carried = {}
    for kind, fields in (
        ("public", (old.masked_slots, new.masked_slots)),
        ("public, mod M", (old.masked_slots % 256, new.masked_slots % 256)),
        ("secret", (before.slots, after.slots)),
    ):
        first, second = (np.argsort(numbers, kind="stable") for numbers in fields)
        carried[kind] = kept[first][np.argsort(second)]
    for kind in ("public", "public, mod M"):
        right = int((carried[kind] == now).sum())
        assert stats.binomtest(right, len(now), expected).pvalue > 1e-6
    assert (carried["secret"] == now).mean() > 0.5  # carol's traces differ from bob's
    if name == "hosted":
        return
    answers = ask(field.version(name, 2), digits.x_test)
    sums = answers @ np.eye(old.num_classes)[carried["public"]]
    assert (sums.argmax(-1) == digits.y_test).mean() < 0.6


def test_labels_are_encrypted_under_the_new_codebook(field: Field, digits: Any) -> None:
    found = ask(field.version("digits", 2), digits.x_test, "encrypted_label").tolist()
    labels = field.decoder("alice", field.version("digits", 2)).decrypt(found)
    assert (labels == digits.y_test).mean() > 0.9
    bundle = ke.KeyBundle.read(field.bundles["carol"])
    np.testing.assert_array_equal(bundle.decrypt(found, field.passphrase), labels)
    with pytest.raises(RevokedKeyError):
        ke.KeyBundle.read(field.bundles["bob"]).decrypt(found, field.passphrase)


def test_a_version_that_was_rotated_can_be_rotated(
    field: Field, digits: Any, tmp_path: Path
) -> None:
    target = tmp_path / "a" / "b" / "3"
    ke.rotate_codebook(field.version("digits", 2), target, authority=field.authority)
    decoder = field.decoder("carol", target)
    assert (decoder.labels(ask(target, digits.x_test)) == digits.y_test).mean() > 0.9
    orders = [
        field.authority.model_store.assignment_of(read_codebook(path)).labels.tolist()
        for path in (field.version("digits"), field.version("digits", 2), target)
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]


# --- folders ---------------------------------------------------------------------------


def test_only_the_head_is_permuted(field: Field) -> None:
    """A permutation of its columns, and not a trace of the old order beside them."""
    old, new = (
        tf.train.load_checkpoint(str(field.version("digits", number) / "variables" / "variables"))
        for number in (1, 2)
    )
    count = field.model.num_labels
    assert old.get_variable_to_shape_map() == new.get_variable_to_shape_map()
    moved = set()
    for name, shape in old.get_variable_to_shape_map().items():
        before, after = old.get_tensor(name), new.get_tensor(name)
        if shape[-1:] != [count]:
            assert np.array_equal(before, after), name
            continue
        assert not np.array_equal(before, after)
        columns = [sorted(map(tuple, np.atleast_2d(x).T.tolist())) for x in (before, after)]
        assert columns[0] == columns[1]
        moved.add(tuple(shape))
    assert moved == {(32, count), (count,)}


def test_nothing_of_the_old_codebook_stays(field: Field) -> None:
    old = read_codebook(field.version("digits"))
    data = b"".join(p.read_bytes() for p in field.version("digits", 2).rglob("*") if p.is_file())
    assert old.codebook_id not in data
    assert old.ciphertext_prefix not in data
    graphs = [(field.version("digits", n) / "saved_model.pb").read_bytes() for n in (1, 2)]
    assert old.ciphertext_prefix in graphs[0]
    new = read_codebook(field.version("digits", 2))
    assert new.ciphertext_prefix in graphs[1]
    for book, graph, other in ((old, graphs[0], graphs[1]), (new, graphs[1], graphs[0])):
        assert all(suffix in graph for suffix in book.ciphertext_suffixes)
        assert sum(suffix in other for suffix in book.ciphertext_suffixes) <= 2, "by chance"


def test_a_response_key_of_its_own(field: Field) -> None:
    path = field.version("hosted", 2)
    keys = [
        field.authority.keys.response_key(read_codebook(field.version("hosted", n))) for n in (1, 2)
    ]
    graph = (path / "saved_model.pb").read_bytes()
    for half in (slice(0, 16), slice(16, 32)):
        assert keys[0][half] not in graph
        assert keys[1][half] in graph
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert ke.verify_export(path, issuer=field.authority.issuer).warning == WARNING


def test_the_folder_verifies_and_seals_like_any_export(field: Field, tmp_path: Path) -> None:
    path = field.version("digits", 2)
    ke.verify_export(path, issuer=field.authority.issuer)
    names = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    assert "fingerprint.pb" not in names
    assert {"saved_model.pb", "variables/variables.index"} <= names
    assert [p.name for p in sorted(path.parent.iterdir())] == ["1", "2"], "no draft is left"
    ke.seal_folder(field.authority, path, tmp_path / "digits.sealed", model="digits")


def two_inputs() -> tuple[Any, dict[str, np.ndarray], np.ndarray]:
    """In bfloat16, where what is exported is rounded elsewhere than in training."""
    random = np.random.default_rng(0)
    ids, numbers = random.integers(0, 50, (256, 6)), random.normal(size=(256, 4))
    inputs = {"ids": keras.Input((6,), name="ids", dtype="int32")}
    inputs |= {"numbers": keras.Input((4,), name="numbers")}
    seen = keras.layers.Embedding(50, 8, dtype="mixed_bfloat16")(inputs["ids"])
    joined = keras.layers.Concatenate()([keras.layers.Flatten()(seen), inputs["numbers"]])
    hidden = keras.layers.Dense(32, "relu", dtype="mixed_bfloat16")(joined)
    x = {"ids": ids.astype("int32"), "numbers": numbers.astype("float32")}
    return keras.Model(inputs, keras.layers.Dense(3)(hidden)), x, ids[:, 0] % 3


def labels_per_position() -> tuple[Any, dict[str, np.ndarray], np.ndarray]:
    x = np.random.default_rng(0).normal(size=(256, 7, 5)).astype("float32")
    inputs = keras.Input((7, 5))
    hidden = keras.layers.Dense(32, "relu")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(hidden)), {"inputs": x}, x.argmax(-1) // 2


@pytest.mark.long
@pytest.mark.parametrize("responses", ["confused", "encrypted"])
@pytest.mark.parametrize("make", [two_inputs, labels_per_position])
def test_models_of_other_forms(
    authority: ke.Authority, tmp_path: Path, make: Any, responses: str
) -> None:
    keras.utils.set_random_seed(0)
    classifier, x, y = make()
    options = {"homophones": 6, "strategy": "random", "trace_labels": 0}
    model = ke.protect(classifier, authority, name="form", **options)
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(x if len(x) > 1 else x["inputs"], y, epochs=15, verbose=0)
    ke.export_saved_model(model, tmp_path / "1", responses=responses)
    ke.rotate_codebook(tmp_path / "1", tmp_path / "2", authority=authority)
    bundle = tmp_path / "alice.keybundle"
    authority.issue("alice", bundle, passphrase="x", scrypt_log2_n=14)
    answers = []
    for version in ("1", "2"):
        loaded = tf.saved_model.load(str(tmp_path / version))
        feed = {name: tf.constant(array) for name, array in x.items()}
        (found,) = loaded.signatures["serving_default"](**feed).values()
        answers.append(ke.Decoder.open(tmp_path / version, bundle, "x").probabilities(found))
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)  # no trace labels
    assert (answers[1].argmax(-1) == y).mean() > 0.8


# --- tracing ---------------------------------------------------------------------------


@pytest.mark.long
def test_who_leaks_the_new_version_is_traced(field: Field, tmp_path: Path) -> None:
    path = field.version("digits", 2)
    decoder = field.decoder(LEAKER, path)
    answer = tf.saved_model.load(str(path)).signatures["serving_default"]

    def service(batch: np.ndarray) -> Any:
        return decoder.labels(answer(inputs=tf.constant(batch))["confused"].numpy())

    model = field.model
    service_report = Tracer(field.authority).service(service, model=model)
    assert [s.subject for s in service_report.guilty] == [LEAKER]
    assert service_report.evidence["this is the model"] == "yes"
    table = Tracer(field.authority).table(decoder, model="digits")
    assert [s.subject for s in table.guilty] == [LEAKER]
    assert table.evidence["live labels read"] == "64 of 64"
    assert table.evidence["this is the model"] == "yes"
    weights = Tracer(field.authority).weights(field.version("marked", 2), model=model)
    assert [s.subject for s in weights.guilty] == [LEAKER]
    Tracer(field.authority).evidence(weights, tmp_path / "case")
    found = ke.verify_evidence(tmp_path / "case", issuer=field.authority.issuer)
    assert found.p_values[LEAKER] < 1e-6


# --- command line ----------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(("name", "warning"), [("digits", ""), ("hosted", WARNING + "\n")])
def test_the_command(field: Field, digits: Any, tmp_path: Path, name: str, warning: str) -> None:
    shutil.copy(field.folder / "a.authority", tmp_path)
    arguments = [
        *(field.version(name), tmp_path / "2", "--authority", tmp_path / "a.authority"),
    ]
    finished = subprocess.run(
        [sys.executable, "-c", "from keras_encryip.cli import main; main()", "rotate", *arguments],
        env={**os.environ, "ENCRYIP_AUTHORITY_PASSPHRASE": field.passphrase, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout == f"Rotated {field.version(name)} to {tmp_path / '2'}.\n"
    assert finished.stderr.endswith(warning)
    assert (WARNING in finished.stderr) is bool(warning)
    labels = field.decoder("carol", tmp_path / "2").labels(ask(tmp_path / "2", digits.x_test))
    assert (labels == digits.y_test).mean() > 0.9


# --- refused ---------------------------------------------------------------------------


def state(field: Field) -> tuple[list[Any], int]:
    return sorted(field.folder.rglob("*")), len(field.authority.events())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"directory": None}, r"`directory` must be the path of a .* folder\. Received: NoneType"),
        ({"authority": None}, r"`authority` must be an Authority, from `Authority\.open"),
    ],
)
def test_a_folder_needs_both(
    field: Field, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    given = {"directory": str(tmp_path / "2"), "authority": field.authority, **arguments}
    with pytest.raises(ArgumentError, match=message):
        rotation.rotate_codebook(field.version("digits"), **given)


def test_a_model_is_no_folder(field: Field, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"`source` must be the path of a .*\. Received: Prot"):
        rotation.rotate_codebook(field.model, tmp_path / "2", authority=field.authority)


def test_a_model_keeps_its_order(field: Field, digits: Any, tmp_path: Path) -> None:
    """After folders were rotated, the model goes on in the order that it was trained in."""
    model = field.model
    ke.export_saved_model(model, tmp_path / "9")
    confused = ask(tmp_path / "9", digits.x_test)
    np.testing.assert_allclose(confused, model.predict(digits.x_test, verbose=0), atol=1e-5)
    decoder = field.decoder("carol", tmp_path / "9")
    assert (decoder.labels(confused) == digits.y_test).mean() > 0.9
    with pytest.raises(RevokedKeyError):
        field.decoder("bob", tmp_path / "9")


def damaged(path: Path) -> None:
    with (path / "saved_model.pb").open("ab") as file:
        file.write(b"\0")


REFUSED: dict[str, tuple[Any, type[EncryipError], str]] = {
    "changed": (damaged, ExportError, r"file 'saved_model\.pb' in .* was changed"),
    "extra file": (lambda path: (path / "x").touch(), ExportError, "does not belong to it: 'x'"),
    "no export": (shutil.rmtree, EncryipError, "Cannot read the manifest"),
}


@pytest.mark.parametrize(("change", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_a_folder_that_is_not_whole_is_refused(
    field: Field, tmp_path: Path, change: Any, error: type[EncryipError], message: str
) -> None:
    shutil.copytree(field.version("digits"), tmp_path / "1")
    change(tmp_path / "1")
    before = state(field)
    with pytest.raises(error, match=message):
        ke.rotate_codebook(tmp_path / "1", tmp_path / "2", authority=field.authority)
    assert state(field) == before
    assert not (tmp_path / "2").exists()


def test_a_folder_that_changes_meanwhile_is_refused(
    field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authority signs nothing that came in after the folder was verified."""
    shutil.copytree(field.version("digits"), tmp_path / "1")
    copy_rest = rotation._copy_rest

    def late(old: Path, draft: Path) -> None:
        (old / "planted").touch()
        copy_rest(old, draft)

    monkeypatch.setattr(rotation, "_copy_rest", late)
    with pytest.raises(ExportError, match="does not belong to it: 'planted'"):
        ke.rotate_codebook(tmp_path / "1", tmp_path / "2", authority=field.authority)
    assert not (tmp_path / "2").exists()


def test_an_existing_folder_is_left_alone(field: Field) -> None:
    before = state(field)
    with pytest.raises(ArgumentError, match="it exists already, and is never overwritten"):
        ke.rotate_codebook(
            field.version("digits"), field.version("digits", 2), authority=field.authority
        )
    assert state(field) == before


@pytest.mark.parametrize("inside", ["2", "assets/2", "../1/a/../2"])
def test_a_folder_is_not_rotated_into_itself(field: Field, inside: str) -> None:
    """The old version would not be whole any more."""
    before, source = state(field), field.version("digits")
    with pytest.raises(ArgumentError, match="`directory` must not be inside of what is rotated"):
        ke.rotate_codebook(source, source / inside, authority=field.authority)
    assert state(field) == before


def test_another_authority_is_refused(
    field: Field, authority: ke.Authority, tmp_path: Path
) -> None:
    with pytest.raises(ForeignKeyError, match="signed by another authority"):
        ke.rotate_codebook(field.version("digits"), tmp_path / "2", authority=authority)


def test_a_ledger_from_before_the_export_is_refused(
    shipped: Any, field: Field, tmp_path: Path
) -> None:
    """The same authority, restored from a backup that does not know the export."""
    shutil.copy(shipped.url.removeprefix("sqlite:///"), tmp_path / "a.authority")
    url = f"sqlite:///{tmp_path}/a.authority"
    with (
        ke.Authority.open(url, field.passphrase) as restored,
        pytest.raises(LedgerError, match="did not export the folder that is to be rotated"),
    ):
        ke.rotate_codebook(field.version("marked"), tmp_path / "2", authority=restored)
    assert not (tmp_path / "2").exists()


@pytest.mark.parametrize("fails", ["write_graph", "_write_variables", "_check_rotated"])
def test_a_failure_leaves_no_folder(
    field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(rotation, fails, fail)
    with pytest.raises(ZeroDivisionError):
        ke.rotate_codebook(field.version("digits"), tmp_path / "2", authority=field.authority)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_permutation_is_noticed(
    field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison can fail: each check once."""
    write = rotation._write_variables

    def write_backwards(old: Path, draft: Path, moved: np.ndarray, *keys: Any) -> None:
        write(old, draft, moved[::-1], *keys)

    monkeypatch.setattr(rotation, "_write_variables", write_backwards)
    with pytest.raises(ExportError, match="does not give the outputs of the old one"):
        ke.rotate_codebook(field.version("digits"), tmp_path / "2", authority=field.authority)
    monkeypatch.undo()
    kept = np.array([read_codebook(field.version("digits")).ciphertext_prefix], object)
    monkeypatch.setattr(rotation, "_swaps", lambda *_, **__: [(kept, kept)])
    with pytest.raises(ExportError, match="other ciphertexts than its codebook's"):
        ke.rotate_codebook(field.version("digits"), tmp_path / "2", authority=field.authority)
    monkeypatch.setattr(rotation, "_swaps", lambda *_, **__: [(np.arange(77), np.arange(77))])
    with pytest.raises(ExportError, match="not one that `export_saved_model` wrote"):
        ke.rotate_codebook(field.version("digits"), tmp_path / "2", authority=field.authority)
    monkeypatch.undo()
    monkeypatch.setattr(checkpoints, "_HEAD", ("/another/kernel",))
    with pytest.raises(ExportError, match="has no head `confused_labels` of 104 out"):
        ke.rotate_codebook(field.version("digits"), tmp_path / "2", authority=field.authority)
    assert list(tmp_path.iterdir()) == []
