"""What `ProtectedModel.adapt` does: homophones and trace inputs from a look at the data."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_encryip.errors import ArgumentError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.models.data import batches, check_labels, class_indices
from keras_encryip.models.homophones import kinds_of, suiting
from keras_encryip.models.secrets import TrainingState
from keras_encryip.models.trace_inputs import make_traces

SAMPLES = (64, 2_048)
"""So many inputs of the owner's are kept, as far as they take 16 MiB: trace labels are learned
against them, and exports measure on them."""

_BYTES = 1 << 24


def needs_data(strategy: str, assignment: LabelAssignment, copies: int) -> bool:
    """Whether `fit_training_state` looks at the data at all."""
    preferred = kinds_of(strategy)[0]
    return preferred.reads_inputs(assignment.homophones, copies) or bool(assignment.trace.size)


def fit_training_state(
    x: Any,
    y: Any,
    *,
    strategy: str,
    assignment: LabelAssignment,
    copies: int,
    ignored: int | None = None,
    look: Callable[[Any], None] = lambda inputs: None,
    prepare: Callable[..., Any] | None = None,
) -> TrainingState:
    """Read up to 20,000 samples once, and learn the training state from them.

    Args:
        x, y: training data, as for `ProtectedModel.adapt`; anything if not `needs_data`.
        strategy: the model's.
        assignment: the model's.
        copies: homophones that may stand for the same inputs.
        ignored: a label that is of no class.
        look: is shown the first batch.
        prepare: as for `batches`.
    """
    kind, num_classes = kinds_of(strategy)[0], assignment.num_classes
    features: list[np.ndarray] = []
    classes: list[np.ndarray] = []
    samples: list[np.ndarray] = []
    random, seen = np.random.default_rng(0), 0
    if needs_data(strategy, assignment, copies):
        for at, (inputs, labels) in enumerate(batches(x, y, prepare)):
            indices = np.asarray(class_indices(labels, num_classes))
            check_labels(indices, num_classes, ignored)
            seen += len(indices)
            if at == 0:
                look(inputs)
                if kind.reads_inputs(assignment.homophones, copies):
                    kind = suiting(strategy, inputs, indices.ndim)
            if kind.reads_inputs(assignment.homophones, copies):
                known = slice(None) if ignored is None else indices != ignored
                features.append(kind.features(inputs, indices)[known])
                classes.append(indices[known])
            if assignment.trace.size:
                _keep_some(samples, inputs, random)
        if not seen:
            raise ArgumentError("The training data has no samples.")
    homophones = kind.fit(
        np.concatenate(features or [np.zeros((0, 0), np.float32)]),
        np.concatenate(classes or [np.zeros(0, np.int32)]),
        num_classes,
        assignment.homophones,
        copies,
    )
    if not assignment.trace.size:
        return TrainingState(homophones, None)
    kept = np.stack([sample for sample in samples if sample.shape == samples[0].shape])
    return TrainingState(homophones, make_traces(kept, assignment), kept)


def _keep_some(samples: list[np.ndarray], batch: Any, random: np.random.Generator) -> None:
    """Keep some samples spread over all that is seen, of single inputs."""
    if isinstance(batch, (dict, list, tuple)):
        raise ArgumentError(
            "Trace inputs need a single input array. Received: inputs of type "
            f"{type(batch).__name__}. Pass `trace_labels=0` to `protect`."
        )
    batch = keras.ops.convert_to_numpy(batch)
    least, most = SAMPLES
    wanted = min(most, max(least, _BYTES // max(1, batch[:1].nbytes)))
    for sample in batch:
        if len(samples) < wanted:
            samples.append(sample)
        elif random.random() < 0.1:
            samples[random.integers(wanted)] = sample
