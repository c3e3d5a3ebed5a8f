"""What encrypting responses costs a server: the SavedModel's two kinds of answers side by side.

    python -m benchmarks.hosted

For some numbers of confused labels and batch sizes: CPU time of the encryption alone (from a
tensor of probabilities), and of a whole answer of a small CNN against that of an ordinary
export's; medians over rounds in which both are asked in random order. Also what opening
responses costs a client.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from benchmarks.backbones import build
from benchmarks.cells import machine
from keras_encryip.export.xchacha20 import encrypt
from keras_encryip.formats.responses import open_responses

RESULTS = Path(__file__).parent / "results" / "hosted.json"
CASES = ((84, 1), (84, 128), (704, 1), (704, 128), (1000, 128), (2048, 128))
"""(N, batch)."""

ROUNDS = 30
KEY, DATA = bytes(range(32)), bytes(16)


def spent(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def case(count: int, batch: int) -> dict[str, float]:
    backbone = build("mnist", (28, 28, 1))
    head = tf.random.stateless_normal((10, count), (0, 0))

    def answer(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(backbone(x, training=False) @ head)

    signature = [tf.TensorSpec((None, 28, 28, 1), tf.float32)]
    plain = tf.function(answer, signature)
    sealed = tf.function(lambda x: encrypt(answer(x), KEY, DATA), signature)
    alone = tf.function(lambda p: encrypt(p, KEY, DATA))
    x = tf.random.stateless_uniform((batch, 28, 28, 1), (1, 1))
    confused = plain(x)
    responses = sealed(x).numpy()
    calls: dict[str, Callable[[], object]] = {
        "plain": lambda: plain(x),
        "sealed": lambda: sealed(x),
        "alone": lambda: alone(confused),
        "opening": lambda: open_responses(responses, KEY, DATA, count),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    random = np.random.default_rng(0)
    for call in calls.values():
        call()
    for _ in range(ROUNDS):
        for name in random.permutation(list(calls)):
            times[name].append(1000 * spent(calls[name]))
    middle = {name: statistics.median(found) for name, found in times.items()}
    ratios = [a / b for a, b in zip(times["sealed"], times["plain"], strict=True)]
    return {**middle, "ratio": statistics.median(ratios)}


def main() -> None:
    found = {f"N = {n}, batch {b}": case(n, b) for n, b in CASES}
    RESULTS.write_text(json.dumps({"machine": machine(), "cases": found}, indent=1) + "\n")
    table = Table("", "encrypting, ms", "whole answer by the ordinary one's", "opening, ms")
    for name, row in found.items():
        table.add_row(name, f"{row['alone']:.1f}", f"{row['ratio']:.2f}", f"{row['opening']:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
