"""Time of a training step of protected models, by that of the plain model.

    python -m benchmarks.steps [--rounds 7] [--save]

`train_on_batch` on random data, on all cores; variants take turns in random order in every
round, and each round gives one ratio of wall-clock times. Shown are the median and the
quartiles. ResNet-20 at batch 64; an MLP of one hidden layer of 256 at batch 128 with K classes.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from rich.table import Table

import keras_encryip as ke

from .backbones import build
from .cells import RESULTS, console, machine

PLAIN = "plain"


def mlp(classes: int) -> keras.Model:
    """784 inputs, 256 hidden units, K classes."""
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((784,)), layers.Dense(256, "relu"), layers.Dense(classes, "softmax")]
    )


def variants(
    make: Callable[[], keras.Model], x: np.ndarray, y: np.ndarray, folder: Path, teacher: bool
) -> dict[str, keras.Model]:
    """The plain model and protected ones, compiled."""
    authority = ke.Authority.create(f"sqlite:///{folder}/a", "benchmark", scrypt_log2_n=14)
    models = {PLAIN: make(), "scratch": ke.protect(make(), authority, name="scratch")}
    if teacher:
        models["teacher"] = ke.protect(make(), authority, name="teacher", teacher=True)
    for name, model in models.items():
        if name != PLAIN:
            model.adapt(x, y)
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return models


def ratios(
    models: dict[str, keras.Model], x: np.ndarray, y: np.ndarray, batch: int, rounds: int
) -> dict[str, list[float]]:
    """For each protected model, one ratio a round; a first round is not counted."""
    random = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in models if name != PLAIN}
    for turn in range(rounds + 1):
        seconds = {}
        for name in random.permutation(list(models)):
            start = time.perf_counter()
            for at in range(0, len(x), batch):
                models[name].train_on_batch(x[at : at + batch], y[at : at + batch])
            seconds[name] = time.perf_counter() - start
        if turn:
            for name, values in found.items():
                values.append(seconds[name] / seconds[PLAIN])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    cases: dict[str, tuple[Callable[[], keras.Model], tuple[int, ...], int, int, int]] = {
        "ResNet-20": (lambda: build("cifar10", (32, 32, 3)), (32, 32, 3), 10, 64, 6),
        "MLP, K = 1,000": (lambda: mlp(1_000), (784,), 1_000, 128, 30),
        "MLP, K = 10,000": (lambda: mlp(10_000), (784,), 10_000, 128, 10),
    }
    table, saved = Table("model", "variant", "step ÷ plain", "quartiles"), {}
    for title, (make, shape, classes, batch, steps) in cases.items():
        x = random.random((batch * steps, *shape), "float32")
        y = random.integers(0, classes, len(x))
        with tempfile.TemporaryDirectory() as folder:
            models = variants(make, x, y, Path(folder), teacher=True)
            saved[title] = ratios(models, x, y, batch, arguments.rounds)
        for name, values in saved[title].items():
            low, median, high = np.percentile(values, [25, 50, 75])
            table.add_row(title, name, f"{median:.2f}", f"{low:.2f} … {high:.2f}")
    console.print(table)
    if arguments.save:
        text = json.dumps({"machine": machine(), "ratios": saved}, indent=1)
        (RESULTS / "steps.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
