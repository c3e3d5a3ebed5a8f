"""Exported models in runtimes that are not ours: docs/guides/runtimes.md's programs, as printed."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import keras_encryip as ke
from keras_encryip.errors import SignatureError

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "runtimes.md").read_text(encoding="utf-8")
SOURCE = ROOT / "examples" / "predict.c"
PASSPHRASE = "correct horse"
SIZES = (1, 7, 397)
ALONE = "\nimport sys\nassert not {'keras_encryip', 'tensorflow', 'keras'} & set(sys.modules)\n"
CONVERTERS = {"litert.py": "convert_litert.py", "onnx.py": "convert_onnx.sh"}


@dataclass(frozen=True)
class Served:
    """A CNN with BatchNormalization, exported twice, and what Keras says of the test inputs."""

    folder: Path
    x: np.ndarray
    y: np.ndarray
    expected: np.ndarray
    model: Any

    @property
    def ordinary(self) -> Path:
        return self.folder / "ordinary"

    @property
    def hosted(self) -> Path:
        return self.folder / "hosted"

    def decoder(self, book: Path | None = None) -> ke.Decoder:
        """By the version folder, or a codebook alone."""
        return ke.Decoder.open(book or self.ordinary, self.folder / "alice.keybundle", PASSPHRASE)

    def accuracy(self, outputs: np.ndarray, decoder: ke.Decoder) -> float:
        return float((decoder.labels(outputs) == self.y[: len(outputs)]).mean())

    def check(self, confused: np.ndarray, decoder: ke.Decoder, runtime: str) -> None:
        """The outputs of a batch from the front of the test inputs: the same, and of use."""
        expected = self.expected[: len(confused)]
        assert confused.dtype == np.float32
        assert confused.shape == expected.shape
        print(f"{runtime}, {len(confused)} rows: {np.abs(confused - expected).max():.1e}")
        np.testing.assert_allclose(confused, expected, rtol=0, atol=1e-5)
        assert decoder.names(confused) == decoder.names(expected)
        assert len(confused) < len(self.y) or self.accuracy(confused, decoder) > 0.9

    def place(self, folder: Path, rows: int, model: Path) -> Path:
        """A folder as the page's programs find it: the model, a batch, the user's bundle."""
        folder.mkdir()
        (folder / "served" / "digits").mkdir(parents=True)
        (folder / "served" / "digits" / "1").symlink_to(model)
        (folder / "alice.keybundle").symlink_to(self.folder / "alice.keybundle")
        np.save(folder / "x.npy", self.x[:rows])
        self.x[:rows].tofile(folder / "x.f32")
        return folder


@pytest.fixture(scope="module")
def served(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    keras.utils.set_random_seed(0)
    classifier = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    url = f"sqlite:///{folder}/acme.authority"
    with ke.Authority.create(url, PASSPHRASE, scrypt_log2_n=14) as authority:
        model = ke.protect(classifier, authority, name="digits", homophones=4, trace_labels=8)
        optimizer = keras.optimizers.Adam(0.005)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(digits.x, digits.y, batch_size=64, epochs=20, verbose=0)
        bundle = folder / "alice.keybundle"
        authority.issue("alice", bundle, passphrase=PASSPHRASE, scrypt_log2_n=14)
        ke.export_saved_model(model, folder / "ordinary")
        ke.export_saved_model(model, folder / "hosted", responses="encrypted")
        expected = model.predict(digits.x_test, verbose=0)
        yield Served(folder, digits.x_test, digits.y_test, expected, model)


def program(name: str) -> str:
    found = re.findall(rf"^<!-- {re.escape(name)} -->\n```\w+\n(.*?)^```$", PAGE, re.M | re.S)
    assert len(found) == 1, name
    return found[0]


def run(
    name: str, place: Path, text: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A program of the page in a process of its own, in a folder, without this checkout."""
    (place / name).write_text(text or program(name), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    shell = ["bash", "-euo", "pipefail"] if name.endswith(".sh") else ["python3", "-P"]
    return subprocess.run(
        [*shell, name], cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )


def test_other_outputs_would_be_noticed(served: Served) -> None:
    decoder = served.decoder()
    served.check(served.expected, decoder, "Keras")
    permuted = np.roll(served.expected, 1, axis=1)
    assert served.accuracy(permuted, decoder) < 0.5
    for wrong in (permuted, served.expected[::-1], served.expected + np.float32(2e-5)):
        with pytest.raises(AssertionError, match=r"Not equal to tolerance"):
            served.check(wrong, decoder, "wrong")


# --- C -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of examples/, compiled as the page says."""
    folder = tmp_path_factory.mktemp("predict")
    (folder / "predict.c").symlink_to(SOURCE)
    built = run("build.sh", folder)
    assert built.returncode == 0, built.stderr
    return folder / "predict"


@pytest.fixture
def ask(
    served: Served, predict: Path, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The page's command for a signature and a batch; it leaves `outputs.bin`."""

    def asked(
        model: Path, signature: str, rows: int, name: str = "c"
    ) -> subprocess.CompletedProcess[str]:
        found = SavedModel.FromString((model / "saved_model.pb").read_bytes())
        tensors = found.meta_graphs[0].signature_def[signature]
        (target,) = tensors.inputs.values()
        (source,) = tensors.outputs.values()
        place = served.place(tmp_path / name, rows, model)
        (place / "predict").symlink_to(predict)
        return run("run.sh", place, INPUT=target.name, OUTPUT=source.name)

    return asked


def test_the_page_shows_the_program(predict: Path) -> None:
    assert program("predict.c") in SOURCE.read_text(encoding="utf-8")


@pytest.mark.parametrize("rows", SIZES)
def test_c(ask: Any, served: Served, tmp_path: Path, rows: int) -> None:
    asked = ask(served.ordinary, "serving_default", rows)
    assert asked.returncode == 0, asked.stderr
    confused = np.fromfile(tmp_path / "c" / "outputs.bin", np.float32).reshape(rows, -1)
    served.check(confused, served.decoder(), "C")


def test_c_encrypted_label(ask: Any, served: Served, tmp_path: Path) -> None:
    decoder, draws = served.decoder(), []
    for name in ("first", "second"):
        asked = ask(served.ordinary, "encrypted_label", len(served.x), name)
        assert asked.returncode == 0, asked.stderr
        data = (tmp_path / name / "outputs.bin").read_bytes()
        length, rest = divmod(len(data), len(served.x))
        assert rest == 0
        draws.append([data[i : i + length] for i in range(0, len(data), length)])
        assert (decoder.decrypt(draws[-1]) == served.y).mean() > 0.85
    assert draws[0] != draws[1]  # drawn anew in each process


@pytest.mark.parametrize("rows", SIZES)
def test_c_encrypted_responses(ask: Any, served: Served, tmp_path: Path, rows: int) -> None:
    decoder, answers = served.decoder(served.hosted), []
    for name in ("first", "second"):
        asked = ask(served.hosted, "serving_default", rows, name)
        assert asked.returncode == 0, asked.stderr
        words = np.fromfile(tmp_path / name / "outputs.bin", np.int32).reshape(rows, -1)
        # By one codebook: trace labels mean another class in each.
        assert decoder.names(words) == decoder.names(served.expected[:rows])
        assert rows < len(served.y) or served.accuracy(words, decoder) > 0.9
        answers.append(words)
    assert len(np.unique(np.concatenate(answers)[:, :6], axis=0)) == 2 * rows  # nonces
    with pytest.raises(SignatureError, match=r"cannot be opened"):
        decoder.names(answers[0] ^ 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["{model}", "{input}", "Absent:0", "8"], "Absent:0: no such tensor", id="op"),
        pytest.param(["{model}", "{input}", "{input}:1", "8"], "no such output", id="output"),
        pytest.param(["{model}", "{input}", "{input}", "9"], "not a whole number", id="length"),
        pytest.param(["{model}", "{input}", "{input}", "-8"], "-8: not a dimension", id="shape"),
        pytest.param(["{model}/none", "{input}", "{input}", "8"], "not find SavedMo", id="folder"),
        pytest.param(["{model}"], "usage: FOLDER INPUT", id="usage"),
    ],
)
def test_c_errors(served: Served, predict: Path, arguments: list[str], message: str) -> None:
    words = {"model": str(served.ordinary), "input": "serving_default_inputs"}
    arguments = [argument.format_map(words) for argument in arguments]
    asked = subprocess.run([predict, *arguments], input=bytes(64), capture_output=True, timeout=60)
    assert (asked.returncode, asked.stdout) == (1, b"")
    assert message in asked.stderr.decode().splitlines()[-1]


# --- OpenVINO, LiteRT, ONNX Runtime ---------------------------------------------------------


def test_openvino(served: Served, tmp_path: Path) -> None:
    decoder = served.decoder()
    for rows in SIZES:
        place = served.place(tmp_path / str(rows), rows, served.ordinary)
        asked = run("openvino.py", place, program("openvino.py") + ALONE)
        assert asked.returncode == 0, asked.stderr
        served.check(np.load(place / "confused.npy"), decoder, "OpenVINO")


@pytest.mark.parametrize("name", CONVERTERS)
def test_converted(served: Served, tmp_path: Path, name: str) -> None:
    """With the codebook alone: a converted file has no assets."""
    first = served.place(tmp_path / "converted", 1, served.ordinary)
    converted = run(CONVERTERS[name], first)
    assert converted.returncode == 0, converted.stderr
    (file,) = first.glob("digits.*")
    for rows in SIZES:
        place = served.place(tmp_path / str(rows), rows, served.ordinary)
        (place / file.name).symlink_to(file)
        asked = run(name, place, program(name) + ALONE)
        assert asked.returncode == 0, asked.stderr
        confused = np.load(place / "confused.npy")
        decoded = run("decode.sh", place, ENCRYIP_BUNDLE_PASSPHRASE=PASSPHRASE)
        assert decoded.returncode == 0, decoded.stderr
        decoder = served.decoder(place / "codebook.json")
        served.check(confused, decoder, name)
        assert decoded.stdout.split() == decoder.names(confused)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openvino.py", r"No conversion rule found for operations:.* NonDeterministicInts"),
        ("convert_litert.py", r"Custom ops: NonDeterministicInts"),
        ("convert_onnx.sh", r"don't know how to cast type 7"),
    ],
)
def test_encrypted_responses_are_refused(
    served: Served, tmp_path: Path, name: str, message: str
) -> None:
    """Rather than served with randomness that repeats, and nonces with it."""
    place = served.place(tmp_path / "hosted", 1, served.hosted)
    refused(run(name, place), place, message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convert_litert.py", r"Custom ops: NonDeterministicInts"),
        ("convert_onnx.sh", r"UnicodeDecodeError"),
    ],
)
def test_encrypted_label_is_refused(
    served: Served, tmp_path: Path, name: str, message: str
) -> None:
    """By LiteRT's converter also where it may keep TensorFlow's operations."""
    place = served.place(tmp_path / "ordinary", 1, served.ordinary)
    text = program(name).replace("serving_default", "encrypted_label")
    more = "converter.target_spec.supported_ops = [tf.lite.OpsSet.SELECT_TF_OPS]\nPath("
    refused(run(name, place, text.replace("Path(", more)), place, message)


def refused(asked: subprocess.CompletedProcess[str], place: Path, message: str) -> None:
    assert asked.returncode != 0
    assert re.search(message, asked.stderr)
    assert not [*place.glob("digits.*"), *place.glob("confused.*")]
