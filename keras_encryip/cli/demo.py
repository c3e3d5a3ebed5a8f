"""`encryip demo`: the whole path on scikit-learn's digits, in about a minute."""

import json
import os
import subprocess
import sys
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

from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.client.decoder import Decoder
from keras_encryip.formats.version_folder import read_codebook
from keras_encryip.errors import ArgumentError
from keras_encryip.export.saved_model import export_saved_model
from keras_encryip.models.protected_model import ProtectedModel
from keras_encryip.models.protect import protect
from keras_encryip.authority.authority import Authority

EPOCHS = 12
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


def run_demo(directory: Path, console: Console) -> None:
    """Run the demo and leave everything it made in `directory`, a new folder."""
    if directory.exists():
        raise ArgumentError(
            f"{str(directory)!r} exists already. Remove it, or name another: "
            "encryip demo --directory NAME"
        )
    directory.mkdir(parents=True)
    keras.utils.set_random_seed(SEED)
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(x))
    x, y = (x[order] / 16).astype("float32").reshape(-1, 8, 8, 1), y[order]
    x, y, x_test, y_test = x[:1297], y[:1297], x[1297:], y[1297:]

    console.rule("1. The owner trains a classifier, as usual")
    classifier = _classifier()
    _fit(classifier, x, y, console, "classifier")

    console.rule("2. Protects it, and trains some more; a twin goes on unprotected")
    authority = Authority.create(f"sqlite:///{directory / 'acme.authority'}", PASSPHRASE)
    model = protect(classifier, authority, name="digits", class_names=NAMES)
    _fit(classifier, x, y, console, "twin")
    _fit(model, x, y, console, "protected")
    model.save(directory / "digits.keras")
    console.print(
        f"{model.num_labels} confused labels stand for {len(NAMES)} classes and 64 trace labels."
    )

    console.rule("3. Issues keys, exports, revokes carol, exports again")
    for user in ("alice", "bob", "carol"):
        authority.issue(user, directory / f"{user}.keybundle", passphrase=PASSPHRASE)
    stranger = Authority.create(f"sqlite:///{directory / 'other.authority'}", PASSPHRASE)
    stranger.issue("mallory", directory / "mallory.keybundle", passphrase=PASSPHRASE)
    export_saved_model(model, directory / "served" / "digits" / "1")
    authority.revoke("carol")
    export_saved_model(model, directory / "served" / "digits" / "2")
    console.print(f"Key bundles and two versions of the model are in {directory}/.")

    console.rule("4. A host runs the SavedModel; applications decode without TensorFlow")
    served = tf.saved_model.load(str(directory / "served" / "digits" / "2"))
    confused = served.signatures["serving_default"](tf.constant(x_test))["confused"].numpy()
    np.save(directory / "confused.npy", confused)
    (directory / "application.py").write_text(_APPLICATION)

    table = Table("who reads the model", "accuracy", "")
    twin_accuracy = classifier.evaluate(x_test, y_test, verbose=0)[1]
    table.add_row("nobody protected it: the twin", f"{twin_accuracy:.3f}", "as many epochs")
    for user in ("alice", "bob", "carol", "mallory"):
        table.add_row(*_application(directory, user, y_test))
    foreign = _forced(directory, "mallory", confused)
    table.add_row(
        "mallory, ignoring the refusal", f"{(foreign == y_test).mean():.3f}", "about chance"
    )
    outsider = confused.argmax(-1) % len(NAMES)
    table.add_row("outsider without a key", f"{(outsider == y_test).mean():.3f}", "about chance")
    console.print(table)

    _picture(directory / "confused-labels.png", model, confused, y_test)

    console.rule("5. Bob runs a service on his key, and is found by its labels")
    authority.enroll(f"customer {number:03}" for number in range(1, 301))
    decoder = Decoder.open(
        directory / "served" / "digits" / "2", directory / "bob.keybundle", PASSPHRASE
    )

    def service(images: np.ndarray) -> list[str]:
        return decoder.names(
            served.signatures["serving_default"](tf.constant(images))["confused"].numpy()
        )

    report = authority.trace_service(service, model="digits")
    console.print(report.table())
    report.save(directory / "trace.png")
    authority.evidence(report, directory / "evidence")
    innocent = authority.trace_service(
        lambda images: classifier.predict(images, verbose=0), model="digits"
    )
    console.print(
        f"A service on the unprotected twin: {innocent.verdict}; is it our model: "
        f"{innocent.evidence['this is the model']}."
    )

    console.rule("Try next")
    console.print(
        f"see       {directory}/confused-labels.png, {directory}/trace.png\n"
        f"check     encryip verify-evidence {directory}/evidence --bundle "
        f"{directory}/alice.keybundle\n"
        f"decode    ENCRYIP_BUNDLE_PASSPHRASE='{PASSPHRASE}' encryip decode "
        f"{directory}/served/digits/2 {directory}/alice.keybundle {directory}/confused.npy\n"
        f"verify    encryip verify {directory}/served/digits/2 --bundle "
        f"{directory}/alice.keybundle\n"
        f"audit     ENCRYIP_AUTHORITY_PASSPHRASE='{PASSPHRASE}' encryip authority info "
        f"{directory}/acme.authority\n"
        f"read      {directory}/application.py: all that an application needs",
        soft_wrap=True,
        highlight=False,
    )


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


class _Bar(keras.callbacks.Callback):
    """Epochs on a rich progress bar."""

    def __init__(self, progress: Progress, task: Any) -> None:
        super().__init__()
        self._progress, self._task = progress, task

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._progress.update(
            self._task, advance=1, accuracy=f"accuracy {(logs or {}).get('accuracy', 0):.3f}"
        )


def _fit(model: keras.Model, x: np.ndarray, y: np.ndarray, console: Console, name: str) -> None:
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    columns = (
        TextColumn("{task.description:12}"),
        BarColumn(),
        TextColumn("{task.fields[accuracy]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=EPOCHS, accuracy="")
        model.fit(x, y, epochs=EPOCHS, verbose=0, callbacks=[_Bar(progress, task)])


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


def _forced(directory: Path, user: str, confused: np.ndarray) -> np.ndarray:
    """What a foreign key reads if nothing stops it."""
    codebook = read_codebook(directory / "served" / "digits" / "2")
    key = KeyBundle.read(directory / f"{user}.keybundle").unlock(PASSPHRASE)
    table = codebook.decode_table(key)
    return (confused @ (table[:, None] == np.arange(len(NAMES)))).argmax(-1)


def _picture(path: Path, model: ProtectedModel, confused: np.ndarray, y: np.ndarray) -> None:
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
