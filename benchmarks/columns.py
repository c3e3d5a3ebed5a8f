"""How well signs tell the columns of trace labels from the other columns of a head.

A row for each sign, with the AUC: how often the sign is further out for a random trace label than
for a random other one, whichever way out; 0.5 tells nothing. Weights are all that the first five
need. The others need unlabelled inputs of the owner's kind, or a key.
"""

import keras
import numpy as np

from keras_encryip.models.columns import nearest_distances, tells

from .rows import Rows
from .trainings import MAIN, Protected, Trainings

UNLABELLED = 1_000


def signs(kernel: np.ndarray, bias: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """What the weights alone show of each column, `[N]` each.

    Args:
        kernel, bias: `[f, N]` and `[N]`.
        classes: K; the head's K − 1 first principal components are those of its classes, if any.
    """
    centred = kernel - kernel.mean(1, keepdims=True)
    angles = (centred / np.linalg.norm(centred, axis=0)).T
    left, _, _ = np.linalg.svd(centred, full_matrices=False)
    return {
        "bias": bias,
        "norm": np.linalg.norm(kernel, axis=0),
        "distance to the nearest": nearest_distances(kernel.T),
        "angle to the nearest": nearest_distances(angles),
        "length in the first K - 1 components": np.linalg.norm(
            left[:, : classes - 1].T @ centred, axis=0
        ),
    }


def along_class(kernel: np.ndarray, table: np.ndarray) -> np.ndarray:
    """How far each column goes the way of the columns that a key reads as the same class, `[N]`."""
    centred = kernel - kernel.mean(1, keepdims=True)
    means = np.stack([centred[:, table == k].mean(1) for k in range(table.max() + 1)], 1)
    return np.asarray((centred * means[:, table]).sum(0) / np.linalg.norm(means, axis=0)[table])


def measured(found: Protected, unlabelled: np.ndarray, seed: int) -> dict[str, float]:
    """The AUC of every sign, of a protected model with trace labels."""
    model = found.model
    assignment = model._secrets.assignment()
    kernel, bias = (keras.ops.convert_to_numpy(w) for w in model.confused_labels.weights)
    random, table = np.random.default_rng(seed), assignment.classes.copy()
    bits = random.integers(0, 2, assignment.trace.size)
    table[assignment.trace] = assignment.pairs[np.arange(bits.size), bits]
    shown = {
        **signs(kernel, bias, assignment.num_classes),
        "mass on unlabelled inputs": model.predict(unlabelled, verbose=0).mean(0),
        "with a key: along the class that it reads": along_class(kernel, table),
    }
    marked = np.isin(np.arange(len(bias)), assignment.trace)
    found_by = {name: tells(sign, marked) for name, sign in shown.items()}
    return {name: max(auc, 1 - auc) for name, auc in found_by.items()}


def run(trainings: Trainings, rows: Rows) -> None:
    """The rows of one seed; trains only if one is missing."""
    for way in trainings.size.ways:
        if way in MAIN:
            rows.measure(
                way,
                "columns",
                "",
                lambda way=way: measured(
                    trainings.main(way), trainings.data.x_other[:UNLABELLED], rows.seed
                ),
            )
