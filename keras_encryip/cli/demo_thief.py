"""The demo's thief: what one labelled sample of each class makes of what was stolen."""

from pathlib import Path

import keras
import numpy as np

from keras_encryip.tracing.checkpoint import Checkpoint

DRAWS = 20
"""Choices of the labelled samples that an accuracy is the mean of."""


def thief_accuracy(known: np.ndarray, y: np.ndarray) -> float:
    """Nearest prototypes: every input gets the class of the labelled sample that is most alike.

    Args:
        known: what the thief knows of each input, numbers `[n, ...]`.
        y: int `[n]`, the true classes. He knows those of one sample of each class.

    Returns:
        The share of the other samples that he names, mean over `DRAWS` choices of the labelled.
    """
    points = _directions(known)
    random = np.random.default_rng(0)
    classes = np.unique(y)
    accuracies = []
    for _ in range(DRAWS):
        chosen = np.array([random.choice(np.flatnonzero(y == k)) for k in classes])
        named = classes[(points @ points[chosen].T).argmax(-1)]
        others = np.setdiff1d(np.arange(len(y)), chosen)
        accuracies.append((named[others] == y[others]).mean())
    return float(np.mean(accuracies))


def stored_network(folder: Path, classifier: keras.Model, x: np.ndarray) -> list[np.ndarray]:
    """What the network computes from the weights as they stand in a folder, without any key.

    A thief reads the layers off the graph; here they are the classifier's.

    Args:
        folder: a plain or a locked export.
        classifier: what was protected. Its weights are not used.
        x: inputs.

    Returns:
        Last features, float32 `[n, d]`, and confused probabilities, float32 `[n, N]`.
    """
    checkpoint = Checkpoint(folder)
    stored = {
        tuple(shape): _usable(checkpoint.read(name))
        for name, shape in checkpoint.shapes.items()
        if checkpoint.dtypes[name] == "float32"
    }
    network = keras.models.clone_model(classifier)
    for variable in network.weights[:-2]:
        variable.assign(stored.pop(tuple(variable.shape)))
    kernel, bias = sorted(stored.values(), key=np.ndim, reverse=True)  # the head's
    last = keras.Model(network.inputs[0], network.layers[-2].output)
    features = np.asarray(last(x, training=False))
    return [features, np.asarray(keras.ops.softmax(features @ kernel + bias))]


def _usable(weights: np.ndarray) -> np.ndarray:
    """Numbers that can be computed with: noise has others, and huge ones; a network has none."""
    finite = np.nan_to_num(weights, posinf=0, neginf=0)
    return np.asarray(finite / max(1.0, np.abs(finite).max()))


def _directions(known: np.ndarray) -> np.ndarray:
    """Rows about their mean, of length 1: what is alike has a small angle."""
    flat = known.reshape(len(known), -1).astype(float)
    centred = flat - flat.mean(0)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-30))
