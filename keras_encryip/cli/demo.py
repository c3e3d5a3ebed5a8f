"""`encryip demo`: the whole path on scikit-learn's digits, in about a minute."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # small enough for any processor

import keras
import matplotlib as mpl
import numpy as np
import tensorflow as tf
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits

import keras_encryip as ke
from keras_encryip.errors import ArgumentError
from keras_encryip.formats.text import as_shown
from keras_encryip.formats.version_folder import read_codebook

EPOCHS = 6
SEED = 0
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PASSPHRASE = "demo passphrase"

_APPLICATION = """\
\"\"\"What an application does. Run it in this folder: python application.py alice\"\"\"
import json, sys
import numpy as np
from keras_encryip.client import Decoder
from keras_encryip.errors import EncryipError

user = sys.argv[1]
try:
    decoder = Decoder.open("served/digits/2", f"{user}.keybundle", "demo passphrase")
    result = {"labels": decoder.labels(np.load("confused.npy")).tolist()}
except EncryipError as error:
    result = {"refused": f"{type(error).__name__}: {error}"}
result["tensorflow loaded"] = "tensorflow" in sys.modules
print(json.dumps(result))
"""

_NEXT = """\
see       {directory}/confused-labels.png, {directory}/trace.png
check     encryip verify-evidence {directory}/evidence --bundle {directory}/alice.keybundle
decode    ENCRYIP_BUNDLE_PASSPHRASE='{passphrase}' encryip decode \
{directory}/served/digits/2 {directory}/alice.keybundle {directory}/confused.npy
verify    encryip verify {directory}/served/digits/2 --bundle {directory}/alice.keybundle
audit     ENCRYIP_AUTHORITY_PASSPHRASE='{passphrase}' encryip authority info \
{directory}/acme.authority
read      {directory}/application.py: all that an application needs"""


def run_demo(directory: Path, console: Console) -> None:
    """Run the demo and leave everything it made in `directory`, a new folder."""
    if directory.exists():
        raise ArgumentError(
            f"{str(directory)!r} exists already. Remove it, or name another: "
            "encryip demo --directory NAME"
        )
    directory.mkdir(parents=True)
    keras.utils.set_random_seed(SEED)
    try:
        demo = _Demo(directory, console, _digits())
        demo.train()
        demo.protect()
        demo.issue_and_export()
        demo.serve_and_decode()
        demo.trace()
    except BaseException:  # interrupted, too: half a demo is of no use
        shutil.rmtree(directory, ignore_errors=True)
        raise
    console.rule("Try next")
    hints = _NEXT.format(directory=directory, passphrase=PASSPHRASE)
    for hint in hints.splitlines():
        console.print(as_shown(hint), soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class _Digits:
    """scikit-learn's digits, float32 in 0 … 1, `[n, 8, 8, 1]`."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def _digits() -> _Digits:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(x))
    x, y = (x[order] / 16).astype("float32").reshape(-1, 8, 8, 1), y[order]
    return _Digits(x[:1297], y[:1297], x[1297:], y[1297:])


class _Demo:
    """The owner's way from a classifier to a verdict, step by step."""

    def __init__(self, directory: Path, console: Console, digits: _Digits) -> None:
        self.directory, self.console, self.digits = directory, console, digits
        self.version = directory / "served" / "digits" / "2"
        self.authority = ke.Authority.create(directory / "acme.authority", PASSPHRASE)

    def train(self) -> None:
        self.console.rule("1. The owner trains a classifier, as usual")
        self.classifier = _classifier()
        self._fit(self.classifier, "classifier")

    def protect(self) -> None:
        self.console.rule("2. Protects it, and trains some more; a twin goes on unprotected")
        self.twin = _copy(self.classifier)  # the protected model shares the classifier's weights
        self.model = ke.protect(self.classifier, self.authority, name="digits", class_names=NAMES)
        self._fit(self.twin, "twin")
        self._fit(self.model, "protected")
        self.model.save(self.directory / "digits.keras")
        self.console.print(
            f"{self.model.num_labels} confused labels stand for {len(NAMES)} classes and "
            f"{self.model._unlocked().assignment().trace.size} trace labels."
        )

    def issue_and_export(self) -> None:
        self.console.rule("3. Issues keys, exports, revokes carol, exports again")
        folder = self.directory
        for user in ("alice", "bob", "carol"):
            self.authority.issue(user, folder / f"{user}.keybundle", passphrase=PASSPHRASE)
        stranger = ke.Authority.create(folder / "other.authority", PASSPHRASE)
        stranger.issue("mallory", folder / "mallory.keybundle", passphrase=PASSPHRASE)
        ke.export_saved_model(self.model, self.version.with_name("1"))
        self.authority.revoke("carol")
        ke.export_saved_model(self.model, self.version)
        self.console.print(as_shown(f"Key bundles and two versions of the model are in {folder}/."))

    def serve_and_decode(self) -> None:
        self.console.rule("4. A host runs the SavedModel; applications decode without TensorFlow")
        self.served = tf.saved_model.load(str(self.version))
        x, y = self.digits.x_test, self.digits.y_test
        confused = self._ask(x)
        np.save(self.directory / "confused.npy", confused)
        (self.directory / "application.py").write_text(_APPLICATION)
        table = Table("who reads the model", "accuracy", "")
        twin_accuracy = self.twin.evaluate(x, y, verbose=0)[1]
        table.add_row("nobody protected it: the twin", f"{twin_accuracy:.3f}", "as many epochs")
        for user in ("alice", "bob", "carol", "mallory"):
            table.add_row(*map(as_shown, _application(self.directory, user, y)))
        foreign = _forced(self.version, self.directory / "mallory.keybundle", confused)
        outsider = confused.argmax(-1) % len(NAMES)
        for who, labels in (
            ("mallory, ignoring the refusal", foreign),
            ("outsider without a key", outsider),
        ):
            table.add_row(who, f"{(labels == y).mean():.3f}", "about chance")
        self.console.print(table)
        _picture(self.directory / "confused-labels.png", self.model, confused, y)

    def trace(self) -> None:
        self.console.rule("5. Bob runs a service on his key, and is found by its labels")
        self.authority.enroll(f"customer {number:03}" for number in range(1, 301))
        decoder = ke.Decoder.open(self.version, self.directory / "bob.keybundle", PASSPHRASE)
        tracer = ke.Tracer(self.authority)
        report = tracer.service(lambda images: decoder.names(self._ask(images)), model="digits")
        self.console.print(report.table())
        report.save(self.directory / "trace.png")
        tracer.evidence(report, self.directory / "evidence")
        innocent = tracer.service(
            lambda images: self.twin.predict(images, verbose=0), model="digits"
        )
        self.console.print(
            f"A service on the unprotected twin: {innocent.verdict}; is it our model: "
            f"{innocent.evidence['this is the model']}."
        )

    def _ask(self, images: np.ndarray) -> np.ndarray:
        """What the host answers."""
        answers = self.served.signatures["serving_default"](tf.constant(images))
        confused: np.ndarray = answers["confused"].numpy()
        return confused

    def _fit(self, model: keras.Model, name: str) -> None:
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        columns = (
            TextColumn("{task.description:12}"),
            BarColumn(),
            TextColumn("{task.fields[accuracy]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(name, total=EPOCHS, accuracy="")
            callbacks = [_Bar(progress, task)]
            model.fit(self.digits.x, self.digits.y, epochs=EPOCHS, verbose=0, callbacks=callbacks)


def _classifier() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def _copy(model: keras.Model) -> keras.Model:
    """The same model with weights of its own."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


class _Bar(keras.callbacks.Callback):
    """Epochs on a rich progress bar."""

    def __init__(self, progress: Progress, task: Any) -> None:
        super().__init__()
        self._progress, self._task = progress, task

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._progress.update(
            self._task, advance=1, accuracy=f"accuracy {(logs or {}).get('accuracy', 0):.3f}"
        )


def _application(directory: Path, user: str, y_test: np.ndarray) -> tuple[str, str, str]:
    """Run the application as a user, in a process of its own: a row of the table."""
    finished = subprocess.run(  # noqa: S603  our own program, written above
        [sys.executable, "application.py", user],
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(finished.stdout)
    if result["tensorflow loaded"]:
        raise RuntimeError("The light client loaded TensorFlow.")
    if "refused" in result:
        return user, "refused", result["refused"]
    return user, f"{(np.array(result['labels']) == y_test).mean():.3f}", "with a key, no TensorFlow"


def _forced(version: Path, bundle: Path, confused: np.ndarray) -> np.ndarray:
    """What a foreign key reads if nothing stops it."""
    key = ke.KeyBundle.read(bundle).unlock(PASSPHRASE).reader
    table = read_codebook(version).decode_table(key)
    return (confused @ (table[:, None] == np.arange(len(NAMES)))).argmax(-1)


def _picture(path: Path, model: ke.ProtectedModel, confused: np.ndarray, y: np.ndarray) -> None:
    """Class-by-confused-label counts: in the order the host sees, and in the owner's."""
    mpl.use("Agg")
    counts = np.zeros((len(NAMES), model.num_labels), int)
    np.add.at(counts, (y, confused.argmax(-1)), 1)
    assignment = model._unlocked().assignment()
    order = np.concatenate([assignment.labels.reshape(-1), assignment.trace])
    figure, axes = plt.subplots(2, 1, figsize=(12, 5), layout="constrained")
    for axis, shown, title in (
        (axes[0], counts, "What the host sees: confused labels in their numbering"),
        (axes[1], counts[:, order], "What the owner knows: grouped by class, trace labels last"),
    ):
        image = axis.imshow(
            shown, aspect="auto", cmap="magma_r", interpolation="nearest", vmin=0, vmax=5
        )
        axis.set(title=title, ylabel="true class", yticks=range(len(NAMES)), yticklabels=NAMES)
    axes[1].set_xlabel("confused label")
    figure.colorbar(image, ax=axes, label="predictions (5 or more: darkest)")
    figure.savefig(path, dpi=120)
    plt.close(figure)
