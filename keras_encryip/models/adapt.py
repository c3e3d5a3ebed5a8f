"""What `ProtectedModel.adapt` does: homophones and trace inputs from a look at the data."""

from typing import Any

import numpy as np

from keras_encryip.errors import ArgumentError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.models.data import batches, check_labels, class_indices
from keras_encryip.models.homophones import STRATEGIES
from keras_encryip.models.secrets import TrainingState
from keras_encryip.models.trace_inputs import make_traces

_RESERVOIR = 512


def needs_data(strategy: str, assignment: LabelAssignment, copies: int) -> bool:
    """Whether `fit_training_state` looks at the data at all."""
    reads_inputs = STRATEGIES[strategy].reads_inputs(assignment.homophones, copies)
    return reads_inputs or bool(assignment.trace.size)


def fit_training_state(
    x: Any, y: Any, *, strategy: str, assignment: LabelAssignment, copies: int
) -> TrainingState:
    """Read up to 20,000 samples once, and learn the training state from them.

    Args:
        x, y: training data, as for `ProtectedModel.adapt`; anything if not `needs_data`.
        strategy: a key of `STRATEGIES`.
        assignment: the model's.
        copies: homophones that may stand for the same inputs.
    """
    kind, num_classes = STRATEGIES[strategy], assignment.num_classes
    reads_inputs = kind.reads_inputs(assignment.homophones, copies)
    features: list[np.ndarray] = []
    classes: list[np.ndarray] = []
    samples: list[np.ndarray] = []
    random = np.random.default_rng(0)
    if needs_data(strategy, assignment, copies):
        for inputs, labels in batches(x, y):
            indices = np.asarray(class_indices(labels, num_classes))
            check_labels(indices, num_classes)
            if reads_inputs:
                features.append(kind.features(inputs, indices))
                classes.append(indices)
            if assignment.trace.size:
                _keep_some(samples, inputs, random)
        if not (classes or samples):
            raise ArgumentError("The training data has no samples.")
    homophones = kind.fit(
        np.concatenate(features or [np.zeros((0, 0), np.float32)]),
        np.concatenate(classes or [np.zeros(0, np.int32)]),
        num_classes,
        assignment.homophones,
        copies,
    )
    traces = make_traces(np.stack(samples), assignment) if assignment.trace.size else None
    return TrainingState(homophones, traces)


def _keep_some(samples: list[np.ndarray], batch: np.ndarray, random: np.random.Generator) -> None:
    """Keep a few hundred samples spread over all that is seen."""
    for sample in batch:
        if len(samples) < _RESERVOIR:
            samples.append(sample)
        elif random.random() < 0.1:
            samples[random.integers(_RESERVOIR)] = sample
