"""Accuracy of protected models against an unprotected twin.

    python benchmarks/accuracy.py --data digits
    TFDS_DATA_DIR=... python benchmarks/accuracy.py --data mnist
    TFDS_DATA_DIR=... python benchmarks/accuracy.py --data cifar10

For every seed, with the same architecture, data, batch size and learning-rate
schedule (two cosine cycles, Adam from 1e-3; the first of more epochs where that is
needed for the accuracy to settle):

twin       ordinary training for both cycles
scratch    a fresh classifier protected, then trained for both cycles
finetuned  the twin after its first cycle, protected (its own teacher), trained for the second
light      as finetuned, with teacher_weight 0.3 (cifar10 only)

Finished seeds are kept in the results file, and are not run again.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import keras_encryip as ke
from keras_encryip.formats.text import as_shown
from keras_encryip.models.protected_model import ProtectedModel

EPOCHS = {"digits": (10, 10), "mnist": (3, 3), "cifar10": (12, 4)}
MAX_SAMPLES = {"digits": 1297, "mnist": 60_000, "cifar10": 25_000}
BATCH = {"digits": 32, "mnist": 128, "cifar10": 128}


def load(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x_train, y_train, x_test, y_test; inputs float32 in 0 … 1."""
    if name == "digits":
        x, y = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(x))
        x, y = (x[order] / 16).astype("float32").reshape(-1, 8, 8, 1), y[order]
        return x[:1297], y[:1297], x[1297:], y[1297:]
    import tensorflow_datasets as tfds

    data_dir = os.environ.get("TFDS_DATA_DIR")
    parts = tfds.load(
        name, split=["train", "test"], data_dir=data_dir, batch_size=-1, as_supervised=True
    )
    (x, y), (x_test, y_test) = ((np.array(a), np.array(b)) for a, b in parts)
    order = np.random.default_rng(0).permutation(len(x))
    order = order[: MAX_SAMPLES[name]]
    return x[order].astype("float32") / 255, y[order], x_test.astype("float32") / 255, y_test


def cnn(name: str, shape: tuple[int, ...]) -> keras.Model:
    """The small CNN of each data set."""
    layers = keras.layers
    widths = {"digits": (32, 64), "mnist": (16, 32), "cifar10": (32, 64, 64)}[name]
    model = keras.Sequential([keras.Input(shape)], name=f"{name}_cnn")
    for i, width in enumerate(widths):
        model.add(layers.Conv2D(width, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.Activation("relu"))
        if name != "digits" or i:
            model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dropout(0.2))
    model.add(layers.Dense(128, activation="relu"))
    model.add(layers.Dense(10, activation="softmax"))
    return model


def copy_of(model: keras.Model) -> keras.Model:
    """A model with weights of its own: a protected model shares its classifier's."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def train(model: keras.Model, x: np.ndarray, y: np.ndarray, epochs: int, batch: int) -> float:
    """One cosine cycle; returns the seconds it took."""
    steps = epochs * -(-len(x) // batch)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps, alpha=0.01)
    model.compile(
        keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    start = time.perf_counter()
    model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0)
    return time.perf_counter() - start


def report(model: keras.Model, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Accuracy of a model; for a protected one, what its outputs are like."""
    found = {"accuracy": float(model.evaluate(x, y, batch_size=500, verbose=0)[1])}
    if not isinstance(model, ProtectedModel):
        return found
    opened = model._secrets
    trace = opened.record.assignment.trace
    confused = model.predict(x, batch_size=500, verbose=0)
    decoded = model.decode(confused).argmax(-1)
    traces = opened.training.traces
    found["trace inputs recognised"] = float(
        (model.predict(traces.inputs, verbose=0).argmax(-1) == traces.labels).mean()
    )
    found["trace mass on data"] = float(confused[:, trace].sum(-1).mean())
    random = np.random.default_rng(0)
    table = opened.record.assignment.classes
    for sharpness in (1, 4, 8):
        drawn = (sharpness * np.log(confused + 1e-30) + random.gumbel(size=confused.shape)).argmax(
            -1
        )
        found[f"label agrees, sharpness {sharpness}"] = float((table[drawn] == decoded).mean())
    return found


def run_seed(name: str, seed: int, epochs: tuple[int, int], options: dict) -> dict:
    x, y, x_test, y_test = load(name)
    batch, (first, second) = BATCH[name], epochs
    folder = tempfile.mkdtemp()
    authority = ke.Authority.create(f"sqlite:///{folder}/a", "benchmark", scrypt_log2_n=14)
    results = {}

    keras.utils.set_random_seed(seed)
    twin = cnn(name, x.shape[1:])
    seconds = train(twin, x, y, first, batch)
    taught = {**options, "teacher": True}
    finetuned = {"finetuned": ke.protect(copy_of(twin), authority, name="finetuned", **taught)}
    if name == "cifar10":
        light = {**taught, "teacher_weight": 0.3}
        finetuned["light"] = ke.protect(copy_of(twin), authority, name="light", **light)
    seconds += train(twin, x, y, second, batch)
    results["twin"] = {**report(twin, x_test, y_test), "seconds": seconds}

    for kind, model in finetuned.items():
        model.adapt(x, y)
        seconds = train(model, x, y, second, batch)
        results[kind] = {**report(model, x_test, y_test), "seconds": seconds}

    keras.utils.set_random_seed(seed)
    scratch = ke.protect(cnn(name, x.shape[1:]), authority, name="scratch", **options)
    scratch.adapt(x, y)
    seconds = train(scratch, x, y, first, batch) + train(scratch, x, y, second, batch)
    results["scratch"] = {**report(scratch, x_test, y_test), "seconds": seconds}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=EPOCHS, default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, nargs=2, help="of the two cycles")
    parser.add_argument("--confusion-weight", type=float, default=0.1)
    parser.add_argument("--homophones", type=int)
    parser.add_argument("--trace-labels", type=int, default=64)
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/accuracy-DATA.json")
    args = parser.parse_args()
    epochs = list(args.epochs or EPOCHS[args.data])
    options = {
        "confusion_weight": args.confusion_weight,
        "homophones": args.homophones,
        "trace_labels": args.trace_labels,
    }
    path = args.json or Path(__file__).parent / "results" / f"accuracy-{args.data}.json"
    setting = {
        "data": args.data,
        "samples": MAX_SAMPLES[args.data],
        "epochs": epochs,
        **options,
    }
    saved = json.loads(path.read_text()) if path.exists() else {}
    if saved.get("setting") != setting:
        saved = {"setting": setting, "seeds": {}}
    saved["machine"] = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    )
    console = Console()
    for seed in args.seeds:
        if str(seed) not in saved["seeds"]:
            with console.status(f"{args.data}, seed {seed}: training three models"):
                saved["seeds"][str(seed)] = run_seed(args.data, seed, epochs, options)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(saved, indent=1) + "\n")
    show(console, saved)


def show(console: Console, saved: dict) -> None:
    setting, seeds = saved["setting"], saved["seeds"]
    console.print(as_shown(f"{setting} seeds {', '.join(seeds)}; {saved['machine']}"))
    table = Table("", "accuracy per seed", "mean − twin", "trace inputs recognised", "label agrees")
    twin = np.array([s["twin"]["accuracy"] for s in seeds.values()])
    for kind in ("twin", "scratch", "finetuned", "light"):
        if not all(kind in s for s in seeds.values()):
            continue
        rows = [s[kind] for s in seeds.values()]
        accuracy = np.array([row["accuracy"] for row in rows])
        difference = 100 * (accuracy - twin)
        table.add_row(
            kind,
            " ".join(f"{100 * a:.2f}" for a in accuracy),
            f"{difference.mean():+.2f} (sd {difference.std(ddof=min(1, len(rows) - 1)):.2f})",
            " ".join(f"{r.get('trace inputs recognised', float('nan')):.2f}" for r in rows),
            " ".join(f"{100 * r.get('label agrees, sharpness 8', float('nan')):.2f}" for r in rows),
        )
    console.print(table)


if __name__ == "__main__":
    main()
