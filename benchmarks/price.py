"""What protection costs: decoded accuracy minus the unprotected twin's, with the defaults.

    TFDS_DATA_DIR=... python -m benchmarks.price --data mnist cifar10 --seeds 0 1 2

The twin trains both cycles of the nightly size; `scratch` is protected before the first,
`trained` between the two. All share seed, data, batches and schedule.
Accuracy is over the whole test set; `user` is what one key reads, the worst of eight.
`read` counts trace labels that keys decode (median), `ours` the 32 ownership inputs.
Finished cells are kept in the results file, and are not run again.
"""

import argparse
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from rich.table import Table

from keras_encryip.export.checks import what_keys_show
from keras_encryip.labels.assignment import TRACE

from .cells import RESULTS, Cells, console
from .sizes import NIGHTLY
from .training import accuracy
from .trainings import DEFAULTS, SCRATCH, Protected, Trainings

SIZES = {size.data: size for size in NIGHTLY}
KEYS = 8


def figures(found: Protected, trainings: Trainings) -> dict[str, Any]:
    """Of a protected model."""
    data, model = trainings.data, found.model
    unlocked = model._secrets
    assignment, traces = unlocked.assignment(), unlocked.traces
    confused = model.predict(data.x_test, batch_size=500, verbose=0)
    real = confused[:, assignment.labels].sum(-1)
    random, users = np.random.default_rng(0), []
    for _ in range(KEYS):
        read = real.copy()
        bits = random.integers(0, 2, assignment.trace.size)
        table = assignment.pairs[np.arange(bits.size), bits]
        np.add.at(read.T, table, confused[:, assignment.trace].T)
        users.append(float((read.argmax(-1) == data.y_test).mean()))
    asked = model.predict(traces.inputs, verbose=0)
    even = np.full(assignment.trace.size, 0.5)
    owned = assignment.classes[traces.labels] != TRACE
    ours = model.decode(asked[owned]).argmax(-1) == assignment.classes[traces.labels[owned]]
    return {
        "accuracy": accuracy(model, data),
        "user": min(users),
        "mass": float(confused[:, assignment.trace].sum(-1).mean()),
        "read": int(np.median(what_keys_show(asked, traces, assignment, even)[0])),
        "ours": int(ours.sum()),
        "cpu_seconds": found.seconds,
    }


def run(data: str, seed: int) -> None:
    """All cells of a seed that are not there yet."""
    size = SIZES[data]
    cells = Cells(RESULTS / f"price-{data}.json", _setting(data))
    names = {"twin": None, "trained": DEFAULTS, "scratch": SCRATCH}
    if all(f"{seed} {name}" in cells for name in names):
        return
    with Trainings(size, seed) as trainings:
        for name, way in names.items():

            def measure(way: str | None = way) -> dict[str, Any]:
                if way is not None:
                    return figures(trainings.main(way), trainings)
                twin = trainings.twin
                return {
                    "accuracy": accuracy(twin.model, trainings.data),
                    "cpu_seconds": twin.seconds,
                }

            cells.get(f"{seed} {name}", measure)


def show(data: str, seeds: list[int]) -> None:
    """The table."""
    cells = Cells(RESULTS / f"price-{data}.json", _setting(data)).saved["cells"]
    table = Table(title=f"{data}: decoded minus twin, points", title_justify="left")
    for column in ("seed", "twin %", "way", "difference", "user", "mass %", "read", "ours", "CPU"):
        table.add_column(column, justify="right")
    for seed in seeds:
        for name in ("scratch", "trained"):
            twin, found = cells.get(f"{seed} twin"), cells.get(f"{seed} {name}")
            if twin and found:
                table.add_row(
                    str(seed),
                    f"{100 * twin['accuracy']:.2f}",
                    name,
                    f"{100 * (found['accuracy'] - twin['accuracy']):+.2f}",
                    f"{100 * (found['user'] - twin['accuracy']):+.2f}",
                    f"{100 * found['mass']:.2f}",
                    str(found["read"]),
                    str(found["ours"]),
                    f"{found['cpu_seconds'] / twin['cpu_seconds']:.2f}",
                )
    console.print(table)


def _setting(data: str) -> dict[str, Any]:
    size = SIZES[data]
    return {"samples": size.samples, "first": vars(size.first), "second": vars(size.second)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    for data in arguments.data:
        for seed in arguments.seeds:
            run(data, seed)
        show(data, arguments.seeds)


if __name__ == "__main__":
    main()
