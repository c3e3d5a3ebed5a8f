"""Whether the weights of a head tell which confused labels are trace labels.

    TFDS_DATA_DIR=... python -m benchmarks.tellable --data digits mnist cifar10 --save

A classifier trains the first cycle of the quick (digits) or the nightly size, is protected with the
defaults, and fitted for the second one. Then, for statistics that an attacker with the head can
compute, the area under the curve (AUC) of trace labels against all others, and of labels that
ownership inputs lie on against the other real ones. 0.5 is chance, 0 and 1 tell exactly.

`bias`, `norm` (about the mean column), `nearest`, `fifth`, `twentieth` (distance to that
neighbour), `cosine` (to the most alike column), `forest` (isolation forest on all of these) need
weights alone; `supervised` is a random forest, cross-validated, of an attacker who knows
the trace labels of a like model: an upper bound. `mass` (mean probability on unlabelled test
inputs) needs data too. Finished cells are kept in the results file, with the machine.
"""

import argparse
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from rich.table import Table
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from .cells import RESULTS, Cells, console
from .price import figures
from .sizes import NIGHTLY, QUICK
from .trainings import DEFAULTS, Trainings

SIZES = {size.data: size for size in (*QUICK, *NIGHTLY)}
FILE = "tellable.json"


def statistics(kernel: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """Of each column of a head, `[N]`.

    Args:
        kernel: `[f, N]`.
        bias: `[N]`.
    """
    columns = (kernel - kernel.mean(1, keepdims=True)).T.astype(np.float64)
    norms = np.linalg.norm(columns, axis=1)
    products = columns @ columns.T
    squares = norms[:, None] ** 2 + norms**2 - 2 * products
    np.fill_diagonal(squares, np.inf)
    distances = np.sqrt(np.maximum(np.sort(squares, 1), 0))
    cosines = products / np.outer(norms, norms)
    np.fill_diagonal(cosines, -1)
    return {
        "bias": bias,
        "norm": norms,
        "nearest": distances[:, 0],
        "fifth": distances[:, 4],
        "twentieth": distances[:, 19],
        "cosine": cosines.max(1),
    }


def tellable(statistics: dict[str, np.ndarray], told: np.ndarray) -> dict[str, float]:
    """AUC of each statistic, of an isolation forest and of a classifier; `told`: bool `[N]`."""
    found = {name: float(roc_auc_score(told, values)) for name, values in statistics.items()}
    table = np.stack(list(statistics.values()), 1)
    strange = -IsolationForest(random_state=0).fit(table).score_samples(table)
    found["forest"] = float(roc_auc_score(told, strange))
    trees = RandomForestClassifier(200, min_samples_leaf=3, random_state=0)
    chances = cross_val_predict(trees, table, told, cv=5, method="predict_proba")[:, 1]
    found["supervised"] = float(roc_auc_score(told, chances))
    return found


def run(data: str, seed: int) -> dict[str, Any]:
    """Figures of one model."""
    with Trainings(SIZES[data], seed) as trainings:
        found = trainings.main(DEFAULTS)
        model, unlocked = found.model, found.model._secrets
        assignment = unlocked.assignment()
        kernel, bias = (keras.ops.convert_to_numpy(w) for w in model.confused_labels.weights)
        trace = np.isin(np.arange(len(bias)), assignment.trace)
        owned = np.isin(np.arange(len(bias)), unlocked.traces.labels)[~trace]
        values = statistics(kernel, bias)
        mass = model.predict(trainings.data.x_test, batch_size=500, verbose=0).mean(0)
        return {
            "trace": {**tellable(values, trace), "mass": float(roc_auc_score(trace, mass))},
            "owned": {
                **tellable({name: each[~trace] for name, each in values.items()}, owned),
                "mass": float(roc_auc_score(owned, mass[~trace])),
            },
            "price": figures(found, trainings),
        }


def show(cells: dict[str, Any]) -> None:
    """The table."""
    names = list(next(iter(cells.values()))["trace"])
    table = Table("data, seed", "labels", *names, "read", "ours", title="AUC; 0.5 is chance")
    for key, cell in cells.items():
        for labels in ("trace", "owned"):
            price = [str(cell["price"][name]) for name in ("read", "ours")]
            table.add_row(key, labels, *(f"{cell[labels][n]:.2f}" for n in names), *price)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", choices=SIZES, default=["digits"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--save", action="store_true", help=f"keep results in {FILE}")
    arguments = parser.parse_args()
    keys = [(data, seed) for data in arguments.data for seed in arguments.seeds]
    if not arguments.save:
        show({f"{data}, {seed}": run(data, seed) for data, seed in keys})
        return
    cells = Cells(RESULTS / FILE, {name: vars(size.second) for name, size in SIZES.items()})
    for data, seed in keys:
        cells.get(f"{data}, {seed}", lambda data=data, seed=seed: run(data, seed))
    show(cells.saved["cells"])


if __name__ == "__main__":
    main()
