"""The data sets, as numpy arrays."""

import os
from dataclasses import dataclass

import numpy as np

CLASSES = 10


@dataclass(frozen=True)
class Data:
    """Inputs are float32 in 0 … 1, `[n, height, width, channels]`; labels int64 `[n]`.

    Attributes:
        x, y: for training.
        x_test, y_test: for measuring.
        x_other, y_other: samples that nobody trained with: an attacker's own.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    x_other: np.ndarray
    y_other: np.ndarray


def load(name: str, samples: int, others: int) -> Data:
    """`"digits"` (bundled with scikit-learn), or `"mnist"` or `"cifar10"` through TFDS.

    Args:
        name: the data set. `TFDS_DATA_DIR` names TFDS's folder.
        samples: for training, the same whatever the seed of a run.
        others: for attackers, from the rest of the training split.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(x))
        x, y = (x[order] / 16).astype("float32").reshape(-1, 8, 8, 1), y[order]
        x, y, x_test, y_test = x[:1397], y[:1397], x[1397:], y[1397:]
    else:
        import tensorflow_datasets as tfds

        parts = tfds.load(
            name,
            split=["train", "test"],
            data_dir=os.environ.get("TFDS_DATA_DIR"),
            batch_size=-1,
            as_supervised=True,
        )
        (x, y), (x_test, y_test) = ((np.array(a), np.array(b)) for a, b in parts)
        order = np.random.default_rng(0).permutation(len(x))[: samples + others]
        x, y = x[order].astype("float32") / 255, y[order]
        x_test = x_test.astype("float32") / 255
    cut = slice(samples, samples + others)
    return Data(name, x[:samples], y[:samples], x_test, y_test, x[cut], y[cut])


def labelled(data: Data, n: int, seed: int) -> np.ndarray:
    """Indices of n training samples per class, which an outsider has labels of."""
    random = np.random.default_rng(seed)
    found = [random.choice(np.flatnonzero(data.y == k), n, replace=False) for k in range(CLASSES)]
    return np.concatenate(found)
