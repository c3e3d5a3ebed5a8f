"""What locked exports cost: loading, unlocking, memory and answers, beside the plain export.

    python -m benchmarks.locked [--megabytes 1 10 100 1000] [--save]

Networks of dense layers that grow, ResNet-20 and ResNet-50, with random weights (times do not
depend on them), each exported plain and locked. A process of one thread each loads the folder,
the locked one with its key file, and says its time and the most memory it ever held; another
loads both, and asks them in turns. `unlocking` is the difference of the two loads, a rate where
the fixed part is taken off, which the smallest network shows.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from rich.table import Table

import keras_encryip as ke
from keras_encryip.formats.lock import read_lock

from .backbones import build
from .cells import RESULTS, console, machine

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "locked.png"
ROUNDS = 3
WIDTH = 1024

CHILD = """
import json, sys, time
import numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
def most():  # kB ever held; getrusage would count the parent's, too
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1])
before = most()
start, cpu = time.perf_counter(), time.process_time()
models = [tf.saved_model.load(folder) for folder in sys.argv[1:]]
said = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
said["megabytes"] = (most() - before) * 1024 / 1e6
if len(models) == 2:
    calls = [model.signatures["serving_default"] for model in models]
    shape = [16, *calls[0].structured_input_signature[1]["inputs"].shape[1:]]
    x = tf.random.stateless_uniform(shape, (0, 0))
    times, random = [[], []], np.random.default_rng(0)
    for call in calls:
        call(inputs=x)
    for _ in range(60):
        for i in random.permutation(2):
            start = time.process_time()
            calls[i](inputs=x)
            times[i].append(time.process_time() - start)
    said["ratio"] = float(np.median(np.array(times[1]) / np.array(times[0])))
print(json.dumps(said))
"""


def networks(megabytes: list[int]) -> dict[str, keras.Model]:
    """Classifiers of 10 classes, by name."""
    found = {}
    for size in megabytes:
        count = max(1, round(size * 1e6 / (4 * WIDTH * WIDTH)))
        width = WIDTH if size >= 4 else 256
        layers = [keras.layers.Dense(width, activation="relu") for _ in range(count + 1)]
        found[f"dense, {size} MB"] = keras.Sequential(
            [keras.Input((width,)), *layers, keras.layers.Dense(10)]
        )
    backbone = build("cifar10", (32, 32, 3))
    found["ResNet-20"] = backbone
    found["ResNet-50"] = keras.applications.ResNet50(
        weights=None, classes=10, classifier_activation="softmax"
    )
    return found


def measure(name: str, classifier: keras.Model, place: Path) -> dict[str, float]:
    """Of one network."""
    with ke.Authority.create(place / "a.authority", "owner", scrypt_log2_n=14) as authority:
        model = ke.protect(classifier, authority, name="m", homophones=2, trace_labels=0)
        random = np.random.default_rng(0)
        for variable in model.confused_labels.variables:  # else it consists of copies
            variable.assign(random.normal(0, 0.05, variable.shape))
        folders = [place / "plain", place / "locked"]
        key_file = place / "keys" / "m.key"
        ke.export_saved_model(model, folders[0])
        ke.export_saved_model(model, folders[1], weights="locked", key_file=key_file)
        key_file.parent.mkdir()
        key_file.write_bytes(read_lock(folders[1]).content_key(authority.keys.run_master))
    size = sum(p.stat().st_size for p in (folders[0] / "variables").iterdir()) / 1e6
    runs: list[list[dict[str, float]]] = [[], []]
    for _ in range(ROUNDS):
        for said, folder in zip(runs, folders, strict=True):
            said.append(child(folder))
    plain, locked = (
        {key: float(np.median([said[key] for said in each])) for key in each[0]} for each in runs
    )
    return {
        "megabytes": size,
        "load_plain": plain["seconds"],
        "load_locked": locked["seconds"],
        "unlocking": locked["cpu"] - plain["cpu"],
        "memory": locked["megabytes"] - plain["megabytes"],
        "ratio": child(*folders)["ratio"],
    }


def child(*folders: Path) -> dict[str, float]:
    """What a process of its own says of loading them."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", CHILD, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    said: dict[str, float] = json.loads(done.stdout)
    return said


def draw(cells: dict[str, dict[str, float]]) -> None:
    """Loading over the size of the weights, to docs/figures."""
    from matplotlib.figure import Figure

    dense = sorted(
        (c for n, c in cells.items() if n.startswith("dense")), key=lambda c: c["megabytes"]
    )
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    sizes = [cell["megabytes"] for cell in dense]
    for key, label in (("load_plain", "plain"), ("load_locked", "locked, with its key file")):
        axes.loglog(sizes, [cell[key] for cell in dense], marker="o", label=label)
    for name in ("ResNet-20", "ResNet-50"):
        if name in cells:
            axes.annotate(name, (cells[name]["megabytes"], cells[name]["load_locked"]))
            axes.plot(cells[name]["megabytes"], cells[name]["load_locked"], "k.")
    axes.set(xlabel="weights, MB", ylabel="seconds to load, one thread")
    axes.legend()
    figure.savefig(FIGURE, dpi=120)


def show(cells: dict[str, dict[str, float]]) -> None:
    """The table."""
    table = Table(
        title="locked beside plain, one thread; MB/s beyond the smallest network",
        title_justify="left",
    )
    for column in ("network", "weights, MB", "load, s", "locked, s", "unlocking, CPU s",
                   "MB/s", "memory, MB", "answers"):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    least = min(cells.values(), key=lambda cell: cell["megabytes"])
    for name, cell in cells.items():
        seconds = cell["unlocking"] - least["unlocking"]
        rate = (cell["megabytes"] - least["megabytes"]) / seconds if seconds > 0.05 else 0
        table.add_row(
            name,
            f"{cell['megabytes']:.1f}",
            f"{cell['load_plain']:.2f}",
            f"{cell['load_locked']:.2f}",
            f"{cell['unlocking']:.2f}",
            f"{rate:.0f}" if rate else "",
            f"{cell['memory']:+.0f}",
            f"{cell['ratio']:.3f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--save", action="store_true", help="keep results and figure")
    arguments = parser.parse_args()
    cells: dict[str, Any] = {}
    for name, classifier in networks(arguments.megabytes).items():
        console.print(f"[dim]{name}")
        with tempfile.TemporaryDirectory() as place:
            cells[name] = measure(name, classifier, Path(place))
        if arguments.save:
            text = json.dumps({"machine": machine(), "cells": cells}, indent=1)
            (RESULTS / "locked.json").write_text(text + "\n")
            draw(cells)
    show(cells)


if __name__ == "__main__":
    main()
