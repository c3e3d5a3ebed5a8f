"""`encryip demo`: the whole path on scikit-learn's digits, in less than a minute."""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits

import keras_encryip as ke
from keras_encryip.cli.demo_page import Row, Summary, write_page
from keras_encryip.cli.demo_pictures import draw_all_answers, draw_one_answer
from keras_encryip.cli.demo_thief import DRAWS, stored_network, thief_accuracy
from keras_encryip.errors import ArgumentError, printable
from keras_encryip.export.locked_folder import check_key_file
from keras_encryip.formats.text import as_shown
from keras_encryip.formats.version_folder import read_codebook

EPOCHS = 5
SEED = 0
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
USERS = {
    "alice": "a key bundle",
    "bob": "a key bundle",
    "carol": "a key bundle, revoked before version 2",
    "mallory": "another owner's key bundle",
}
THIEF = "A thief with one labelled sample of each class"
PASSPHRASE = "demo passphrase"

_APPLICATION = """\
\"\"\"What an application does. Run it in this folder: python application.py alice\"\"\"
import json, sys
import numpy as np
from keras_encryip.client import Decoder
from keras_encryip.errors import EncryipError

user = sys.argv[1]
result = {}
for version in ("1", "2"):
    try:
        decoder = Decoder.open(f"served/digits/{version}", f"{user}.keybundle", "demo passphrase")
        result[version] = decoder.labels(np.load(f"confused-{version}.npy")).tolist()
    except EncryipError as error:
        result[version] = f"refused ({type(error).__name__})"
result["tensorflow loaded"] = "tensorflow" in sys.modules
print(json.dumps(result))
"""

_NEXT = """\
see       {directory}/index.html: what happened here, in pictures, for any browser
check     encryip verify-evidence {directory}/evidence --bundle {directory}/alice.keybundle
decode    ENCRYIP_BUNDLE_PASSPHRASE='{passphrase}' encryip decode \
{directory}/served/digits/2 {directory}/alice.keybundle {directory}/confused-2.npy
unlock    ENCRYIP_BUNDLE_PASSPHRASE='{passphrase}' encryip unlock \
{directory}/locked/digits/1 {directory}/alice.keybundle --out {directory}/digits.key
audit     ENCRYIP_AUTHORITY_PASSPHRASE='{passphrase}' encryip authority info \
{directory}/acme.authority
read      {directory}/application.py: all that an application needs"""


def run_demo(folder: Path, directory: Path, console: Console) -> None:
    """Run the demo and leave everything it made in an empty folder.

    Args:
        folder: where it is now.
        directory: where it will be at the end.
        console: prints what happens.
    """
    keras.utils.set_random_seed(SEED)
    with ke.Authority.create(folder / "acme.authority", PASSPHRASE) as authority:
        demo = _Demo(folder, directory, console, authority)
        demo.train()
        demo.protect()
        demo.issue_and_export()
        demo.serve_and_decode()
        demo.steal()
        demo.trace()
    console.rule("Summary")
    table = Table("who", "holds", "gets")
    for rows in demo.summary.values():
        for row in rows:
            table.add_row(*map(as_shown, row))
        table.add_section()
    console.print(table)
    hints = _hints(directory)
    write_page(folder, demo.summary, hints, draws=DRAWS)
    console.rule("Try next")
    for hint in hints:
        console.print(as_shown(hint), soft_wrap=True, highlight=False)


def _hints(directory: Path) -> list[str]:
    """Command lines to paste, whatever the folder's name is."""
    quoted = shlex.quote(str(directory))
    lines = (line.format(directory=quoted, passphrase=PASSPHRASE) for line in _NEXT.splitlines())
    return list(map(printable, lines))


def _key_file(directory: Path) -> str | None:
    """In the demo's folder, where TensorFlow can find it there; else where hosts have it."""
    path = str(directory.absolute() / "digits.key")
    try:
        return check_key_file(path, "digits")
    except ArgumentError:
        return None


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

    def __init__(
        self, folder: Path, directory: Path, console: Console, authority: ke.Authority
    ) -> None:
        self.folder, self.directory, self.console = folder, directory, console
        self.authority, self.digits = authority, _digits()
        self.summary: Summary = {}

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
        self.model.save(self.folder / "digits.keras")
        self.console.print(
            f"{self.model.num_labels} confused labels stand for {len(NAMES)} classes and "
            f"{self.model._unlocked().assignment().trace.size} trace labels."
        )
        x, y = self.digits.x_test, self.digits.y_test
        twin, protected = (m.evaluate(x, y, verbose=0)[1] for m in (self.twin, self.model))
        self.summary["The owner"] = [
            Row("owner: the twin", "the model, never protected", f"accuracy {twin:.3f}"),
            Row("owner: the protected model", "all secrets", f"accuracy {protected:.3f}"),
        ]

    def issue_and_export(self) -> None:
        self.console.rule("3. Issues keys, exports, revokes carol, and makes version 2")
        folder = self.folder
        stranger = ke.Authority.create(folder / "other.authority", PASSPHRASE)
        with stranger:
            for user in USERS:
                issuer = stranger if user == "mallory" else self.authority
                issuer.issue(user, folder / f"{user}.keybundle", passphrase=PASSPHRASE)
        served = folder / "served" / "digits"
        ke.export_saved_model(self.model, served / "1")
        self.authority.revoke("carol")
        ke.rotate_codebook(served / "1", served / "2", authority=self.authority)
        key_file = _key_file(self.directory)
        locked = folder / "locked" / "digits" / "1"
        ke.export_saved_model(self.model, locked, weights="locked", key_file=key_file)
        hosted = folder / "hosted" / "digits" / "1"
        ke.export_saved_model(self.model, hosted, responses="encrypted")
        self.console.print(
            as_shown(
                f"Key bundles, two versions of the model, a locked and a hosted export are in "
                f"{self.directory}/."
            )
        )

    def serve_and_decode(self) -> None:
        self.console.rule("4. A host runs the SavedModel; applications decode without TensorFlow")
        x, y = self.digits.x_test, self.digits.y_test
        for version in ("1", "2"):
            self.served = _Served(self.folder / "served" / "digits" / version)
            self.confused = self.served.ask(x)
            np.save(self.folder / f"confused-{version}.npy", self.confused)
        (self.folder / "application.py").write_text(_APPLICATION)
        rows = _applications(self.folder, y)
        foreign = _forced(self.served.folder, self.folder / "mallory.keybundle", self.confused)
        outsider = self.confused.argmax(-1) % len(NAMES)
        self.summary["Who reads the answers"] = [
            *rows,
            Row("mallory, ignoring the refusal", USERS["mallory"], _share(foreign == y)),
            Row("outsider", "the plain folder, no key, no labels", _share(outsider == y)),
        ]
        for row in rows:
            self.console.print(as_shown(f"{row.who}: {row.gets}"))
        self._draw()

    def _draw(self) -> None:
        """Of version 1, whose labels are numbered as the model's."""
        x, y = self.digits.x_test, self.digits.y_test
        confused = np.load(self.folder / "confused-1.npy")
        version = self.folder / "served" / "digits" / "1"
        decoder = ke.Decoder.open(version, self.folder / "alice.keybundle", PASSPHRASE)
        read = decoder.probabilities(confused[:1])[0]
        draw_one_answer(self.folder / "confused-labels.png", x[0], confused[0], read, NAMES)
        assignment = self.model._unlocked().assignment()
        order = np.concatenate([assignment.labels.reshape(-1), assignment.trace])
        draw_all_answers(self.folder / "all-answers.png", confused, y, order, NAMES)

    def steal(self) -> None:
        self.console.rule("5. A thief with one labelled sample of each class")
        x, y = self.digits.x_test, self.digits.y_test
        hosted = _Served(self.folder / "hosted" / "digits" / "1")
        answers = hosted.ask(x)
        plain, locked = (
            stored_network(self.folder / kind / "digits" / "1", self.classifier, x)
            for kind in ("served", "locked")
        )
        stolen = {
            "nothing of ours, pixels alone": [x],
            "the plain folder": plain,
            "the locked folder, without its key": locked,
            "answers of the hosted service, no folder": [answers],
        }
        accuracies = {
            holds: max(thief_accuracy(known, y) for known in every)
            for holds, every in stolen.items()
        }
        self.summary[THIEF] = [
            Row("thief", holds, f"accuracy {accuracy:.3f}")
            for holds, accuracy in accuracies.items()
        ]
        decoder = ke.Decoder.open(hosted.folder, self.folder / "alice.keybundle", PASSPHRASE)
        right = decoder.labels(answers) == y
        self.summary[THIEF].append(Row("alice", "the same answers, and her key", _share(right)))
        for row in self.summary[THIEF]:
            self.console.print(as_shown(f"{row.who} with {row.holds}: {row.gets}"))

    def trace(self) -> None:
        self.console.rule("6. Bob runs a service on his key, and is found by its labels")
        self.authority.enroll(f"customer {number:03}" for number in range(1, 301))
        decoder = ke.Decoder.open(self.served.folder, self.folder / "bob.keybundle", PASSPHRASE)
        tracer = ke.Tracer(self.authority)
        report = tracer.service(
            lambda images: decoder.names(self.served.ask(images)), model="digits"
        )
        self.console.print(report.table())
        report.save(self.folder / "trace.png")
        tracer.evidence(report, self.folder / "evidence")
        innocent = tracer.service(
            lambda images: self.twin.predict(images, verbose=0), model="digits"
        )
        names = ", ".join(suspect.subject for suspect in report.guilty) or "nobody"
        self.summary["The tracer"] = [
            Row(
                "owner: tracer",
                "labels that bob's service sells",
                f"{report.verdict}: {names}, p = {report.p_value:.1e}",
            ),
            Row(
                "owner: tracer",
                "labels of a service on the twin",
                f"{innocent.verdict}; is it our model: {innocent.evidence['this is the model']}",
            ),
        ]

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
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(64, activation="relu"),
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


class _Served:
    """A version folder, as a host runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded = tf.saved_model.load(str(folder))  # lives as long as its signatures

    def ask(self, images: np.ndarray) -> np.ndarray:
        """What the host answers."""
        (answers,) = self._loaded.signatures["serving_default"](tf.constant(images)).values()
        return answers.numpy()


def _applications(folder: Path, y: np.ndarray) -> list[Row]:
    """Run every user's application at once, each in a process of its own."""
    running = {
        user: subprocess.Popen(  # noqa: S603  our own program, written above
            [sys.executable, "application.py", user], cwd=folder, stdout=subprocess.PIPE
        )
        for user in USERS
    }
    answers = {user: process.communicate()[0] for user, process in running.items()}
    for user, process in running.items():
        if process.returncode:
            raise RuntimeError(f"{user}'s application failed.")
    return [_row(user, json.loads(answer), y) for user, answer in answers.items()]


def _row(user: str, result: dict[str, Any], y: np.ndarray) -> Row:
    """What an application printed."""
    first, second = (
        answer if isinstance(answer, str) else f"{(np.array(answer) == y).mean():.3f}"
        for answer in (result["1"], result["2"])
    )
    loaded = "yes" if result["tensorflow loaded"] else "no"
    gets = f"version 1: {first}; version 2: {second}; TensorFlow loaded: {loaded}"
    return Row(user, USERS[user], gets)


def _share(right: np.ndarray) -> str:
    return f"accuracy {right.mean():.3f}"


def _forced(version: Path, bundle: Path, confused: np.ndarray) -> np.ndarray:
    """What a foreign key reads if nothing stops it."""
    key = ke.KeyBundle.read(bundle).unlock(PASSPHRASE).reader
    table = read_codebook(version).decode_table(key)
    return (confused @ (table[:, None] == np.arange(len(NAMES)))).argmax(-1)
