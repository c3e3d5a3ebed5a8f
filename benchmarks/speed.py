"""Training-step and inference time of protected models, as ratios to the unprotected one.

    python benchmarks/speed.py [--model mnist|cifar10] [--json FILE]

The variants take turns in random order within every round, on one thread, and each
round gives one ratio of process CPU times; shown are the median ratio and the
quartiles. Inputs are random: the times do not depend on them.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from accuracy import cnn, copy_of
from rich.console import Console
from rich.progress import track
from rich.table import Table

import keras_encryip as ke

SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
BATCH = 128
STEPS = 30


def paired(
    variants: dict[str, Callable[[], object]], rounds: int, what: str
) -> dict[str, list[float]]:
    """CPU seconds of each variant, one list entry a round; a first round is not counted."""
    random = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for i in track(range(rounds + 1), description=what):
        for name in random.permutation(list(variants)):
            start = time.process_time()
            variants[name]()
            if i:
                seconds[name].append(time.process_time() - start)
    return seconds


def call_often(signature: Callable[..., object], feed: dict[str, tf.Tensor], times: int) -> None:
    for _ in range(times):
        signature(**feed)


def models(name: str, folder: Path) -> dict[str, keras.Model]:
    shape = SHAPES[name]
    random = np.random.default_rng(0)
    x, y = random.random((4000, *shape), "float32"), random.integers(0, 10, 4000)
    authority = ke.Authority.create(f"sqlite:///{folder}/a", "benchmark", scrypt_log2_n=14)
    unprotected = cnn(name, shape)
    made = {
        "unprotected": unprotected,
        "protected": ke.protect(cnn(name, shape), authority, name="scratch"),
        "protected, no trace labels": ke.protect(
            cnn(name, shape), authority, name="no-trace", trace_labels=0
        ),
        "protected, teacher": ke.protect(
            copy_of(unprotected), authority, name="teacher", teacher=True
        ),
    }
    for model in made.values():
        if model is not unprotected:
            model.adapt(x, y)
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="mnist")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    folder = Path(tempfile.mkdtemp())
    made = models(args.model, folder)
    random = np.random.default_rng(0)
    x = random.random((BATCH * STEPS, *SHAPES[args.model]), "float32")
    y = random.integers(0, 10, len(x))

    def step(model: keras.Model) -> Callable[[], object]:
        return lambda: model.fit(x, y, batch_size=BATCH, verbose=0)

    trained = paired({n: step(m) for n, m in made.items()}, args.rounds, "training")
    results = {"training step, batch 128": trained}

    made["unprotected"].export(str(folder / "plain"), verbose=False)
    ke.export_saved_model(made["protected"], folder / "protected")
    for batch in (1, 128):
        served = {
            "unprotected": tf.saved_model.load(str(folder / "plain")),
            "protected": tf.saved_model.load(str(folder / "protected")),
        }
        inputs = tf.constant(x[:batch])
        calls = {}
        for name, loaded in served.items():
            signature = loaded.signatures["serving_default"]
            key = next(iter(signature.structured_input_signature[1]))
            calls[name] = partial(call_often, signature, {key: inputs}, 2000 // (batch + 9))
        results[f"SavedModel inference, batch {batch}"] = paired(
            calls, 2 * args.rounds, f"inference, batch {batch}"
        )
    machine = (
        f"{platform.machine()}, one thread, Python {platform.python_version()}, "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    )
    table = Table("", "variant", "CPU time ÷ unprotected", "quartiles")
    for what, seconds in results.items():
        for name, values in seconds.items():
            ratios = np.array(values) / np.array(seconds["unprotected"])
            low, median, high = np.percentile(ratios, [25, 50, 75])
            table.add_row(what, name, f"{median:.3f}", f"{low:.3f} … {high:.3f}")
    console = Console()
    console.print(f"{args.model} CNN, N = {made['protected'].num_labels}; {machine}")
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "seconds": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
