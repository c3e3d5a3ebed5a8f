"""Files that others put into a version folder, and TF Serving's warm-up requests."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import keras_encryip as ke
from keras_encryip.errors import ArgumentError, ExportError
from keras_encryip.formats.version_folder import WARMUP

BESIDE = [
    ".DS_Store",
    "variables/.DS_Store",
    "._saved_model.pb",
    "Thumbs.db",
    "assets/desktop.ini",
    "assets.extra/encryip/.nfs000000000a3f00120000001b",
    "assets.extra/tf_serving_warmup_requests",
]
STRANGE = ["saved_model.pbtxt", "variables/extra", ".nfs", ".hidden", "DS_Store", "x/Thumbs.db.py"]


@pytest.fixture
def folder(shipped: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped.exported, tmp_path / "digits" / "1"))


def put(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")


@pytest.fixture
def own(shipped: Any, tmp_path: Path) -> Any:
    with shipped.own_authority(tmp_path) as opened:
        yield opened


def test_what_systems_put_beside(folder: Path, own: Any) -> None:
    for name in BESIDE:
        put(folder, name)
    ke.verify_export(folder)
    ke.rotate_codebook(folder, folder.parent / "2", authority=own)
    found = {p.relative_to(folder.parent / "2").as_posix() for p in folder.parent.rglob("2/**/*")}
    assert not found & set(BESIDE)  # nothing of others is signed
    ke.verify_export(folder.parent / "2")


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_not_passed_over(folder: Path, own: Any, name: str) -> None:
    put(folder, name)
    with pytest.raises(ExportError, match="has a file that does not belong to it"):
        ke.verify_export(folder)
    with pytest.raises(ExportError, match="has a file that does not belong to it"):
        ke.rotate_codebook(folder, folder.parent / "2", authority=own)


def requests(folder: Path) -> list[Any]:
    from tensorflow_serving.apis import prediction_log_pb2

    records = tf.data.TFRecordDataset(str(folder / WARMUP)).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"responses": "encrypted"}, {"weights": "locked"}])
def test_warm_up(shipped: Any, own: Any, digits: Any, tmp_path: Path, options: Any) -> None:
    model = shipped.copy(unlock=False).unlock(authority=own)
    first, second = tmp_path / "digits" / "1", tmp_path / "digits" / "2"
    ke.export_saved_model(model, first, warmup=digits.x_test[:3], **options)
    ke.rotate_codebook(first, second, authority=own)
    for folder in (first, second):
        manifest = ke.verify_export(folder)
        assert WARMUP.as_posix() in {entry.path for entry in manifest.files}
        (log,) = requests(folder)
        request = log.predict_log.request
        assert (request.model_spec.name, request.model_spec.signature_name) == (
            "digits",
            "serving_default",
        )
        inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        np.testing.assert_array_equal(inputs["inputs"], digits.x_test[:3])
        if not options:
            loaded = tf.saved_model.load(str(folder))
            answer = loaded.signatures["serving_default"](inputs=tf.constant(inputs["inputs"]))
            assert answer["confused"].shape == (3, model.num_labels)
    (second / WARMUP).write_bytes(b"other requests")
    with pytest.raises(ExportError, match="was changed"):
        ke.verify_export(second)


@pytest.mark.parametrize(
    ("warmup", "message"),
    [
        (np.zeros((3, 7, 7, 1)), r"inputs 'inputs' of shape \(None, 8, 8, 1\).*\(3, 7, 7, 1\)"),
        (np.zeros((0, 8, 8, 1)), r"of shape"),
        (np.zeros((8, 8, 1)), r"of shape"),
        ({"images": np.zeros((1, 8, 8, 1))}, r"must have the model's inputs: 'inputs'"),
        ("images.npy", r"`warmup` must hold arrays"),
        ([[1], [2, 3]], r"`warmup` must hold arrays"),
        (np.array(["a"]), r"`warmup` must hold arrays"),
    ],
)
def test_warm_up_of_something_else(shipped: Any, tmp_path: Path, warmup: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ke.export_saved_model(shipped.model, tmp_path / "1", warmup=warmup)
    assert not (tmp_path / "1").exists()


def test_an_encrypted_export_is_the_owners_from_the_first_byte(
    shipped: Any, own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras_encryip.export import saved_model

    modes, write = [], saved_model._write

    def watched(*arguments: Any) -> None:
        folder = Path(arguments[4])
        modes.append(folder.stat().st_mode & 0o777)
        write(*arguments)
        modes.append(folder.stat().st_mode & 0o777)

    monkeypatch.setattr(saved_model, "_write", watched)
    model = shipped.copy(unlock=False).unlock(authority=own)
    ke.export_saved_model(model, tmp_path / "new" / "1", responses="encrypted")
    modes.append((tmp_path / "new" / "1").stat().st_mode & 0o777)
    assert modes == [0o700] * 3
