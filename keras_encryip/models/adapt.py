"""What `ProtectedModel.adapt` does: clusters and trace inputs from a look at the data."""

from typing import Any

import numpy as np

from keras_encryip.errors import ArgumentError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.models.data import batches, check_labels, class_indices
from keras_encryip.models.homophones import Homophones, flatten
from keras_encryip.models.secrets import TrainingState
from keras_encryip.models.trace_inputs import make_traces

_RESERVOIR = 512


def learn(
    x: Any,
    y: Any,
    *,
    assignment: LabelAssignment,
    copies: int,
    clustered: bool,
) -> TrainingState:
    """Read up to 20,000 samples once, and learn the training state from them."""
    num_classes, homophones = assignment.num_classes, assignment.homophones
    trace_labels = assignment.trace.size
    features: list[np.ndarray] = []
    classes: list[np.ndarray] = []
    samples: list[np.ndarray] = []
    random = np.random.default_rng(0)
    if clustered or trace_labels:
        for inputs, labels in batches(x, y):
            indices = np.asarray(class_indices(labels, num_classes))
            check_labels(indices, num_classes)
            if clustered:
                _check_clusterable(inputs, indices)
                features.append(np.asarray(flatten(inputs)))
                classes.append(indices)
            if trace_labels:
                _reservoir(samples, inputs, random)
        if not (classes or samples):
            raise ArgumentError("The training data has no samples.")
    if clustered:
        found = Homophones.clustered(
            np.concatenate(features), np.concatenate(classes), num_classes, homophones, copies
        )
    else:
        found = Homophones.uniform(num_classes, homophones)
    traces = make_traces(np.stack(samples), assignment) if trace_labels else None
    return TrainingState(found, traces)


def _reservoir(samples: list[np.ndarray], batch: np.ndarray, random: np.random.Generator) -> None:
    """Keep a few hundred samples spread over all that is seen."""
    for sample in batch:
        if len(samples) < _RESERVOIR:
            samples.append(sample)
        elif random.random() < 0.1:
            samples[random.integers(_RESERVOIR)] = sample


def _check_clusterable(inputs: np.ndarray, classes: np.ndarray) -> None:
    if np.issubdtype(inputs.dtype, np.integer) and inputs.ndim < 3:
        raise ArgumentError(
            "Clustered homophones need inputs with a geometry; integer inputs of shape "
            f"{inputs.shape[1:]} look like token ids or categories. Pass `strategy='random'` to "
            "`protect` (and `trace_labels=0`)."
        )
    if inputs.dtype.kind in "OSU":
        raise ArgumentError(
            "Clustered homophones need inputs that are numbers. Pass `strategy='random'` to "
            f"`protect` (and `trace_labels=0`). Received: inputs of dtype {inputs.dtype}"
        )
    if inputs.ndim < 2 or classes.ndim != 1:
        raise ArgumentError(
            "Clustered homophones need one label per input with features. Received: inputs of "
            f"shape {inputs.shape}, labels of shape {classes.shape}. Pass `strategy='random'`."
        )
