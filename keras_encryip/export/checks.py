"""What must hold before a model leaves the house, and whether what was written answers alike."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from keras_encryip.errors import ExportError
from keras_encryip.formats.responses import open_responses
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook
from keras_encryip.models.protected_model import ProtectedModel
from keras_encryip.models.secrets import UnlockedSecrets
from keras_encryip.models.trace_inputs import learned_traces
from keras_encryip.tracing.statistics import least_hits

MIN_COLUMN_SPREAD: Final = 0.003
"""A head whose homophones lie closer together than this still consists of copies."""

WATCHED_USERS: Final = 1_000
"""Among as many, `Tracer.service` should find a leaker; the export warns if it could not."""

EXACT: Final = 1e-4
ROUNDED: Final = 5e-2
"""How much of the probability may lie elsewhere, in 32 and in 16 bits: `difference`."""

_SPREAD_SAMPLE: Final = 2048
_TRACE_BATCH: Final = 32
_OPEN_DIMENSION: Final = 4


# --- before ------------------------------------------------------------------------------


def check_spread(model: ProtectedModel, assignment: LabelAssignment) -> None:
    """Refuse a head that consists of copies.

    Raises:
        ExportError: it would show which confused labels stand for the same class.
    """
    head = model.confused_labels
    kernel = keras.ops.convert_to_numpy(head.kernel)
    bias = keras.ops.convert_to_numpy(head.bias) if head.use_bias else None
    spread = column_spread(kernel, bias, assignment)
    if spread < MIN_COLUMN_SPREAD:
        raise ExportError(
            f"The head of model {model.name!r} still consists of copies (column spread "
            f"{spread:.1e}, at least {MIN_COLUMN_SPREAD}): it would show which confused labels "
            "stand for the same class. Train it with `fit` and a `confusion_weight` above 0, for "
            "some epochs, before exporting."
        )


def column_spread(
    kernel: np.ndarray, bias: np.ndarray | None, assignment: LabelAssignment
) -> float:
    """How far apart the homophones of a class lie in the head, against other classes.

    Median, over confused labels, of the distance to the nearest column of the same
    class by that to the nearest column of another class. 0: the head consists of
    copies, and shows whoever reads it which labels belong together; around 1: same
    and other are alike.

    Args:
        kernel: `[features, N]`.
        bias: `[N]` or `None`.
        assignment: tells which columns belong together.

    Returns:
        A ratio ≥ 0; infinity with one homophone per class.
    """
    if assignment.homophones == 1:
        return float("inf")
    columns = kernel.T if bias is None else np.column_stack([kernel.T, bias])
    random = np.random.default_rng(0)
    chosen = random.permutation(assignment.num_classes)
    chosen = chosen[: max(2, _SPREAD_SAMPLE // assignment.homophones)]
    labels = assignment.labels[chosen].reshape(-1)
    classes = np.repeat(chosen, assignment.homophones)
    points = columns[labels].astype(np.float64)
    squares = (points**2).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0))
    np.fill_diagonal(distances, np.inf)
    same = classes[:, None] == classes
    nearest_same = np.where(same, distances, np.inf).min(1)
    nearest_other = np.where(same, np.inf, distances).min(1)
    return float(np.median(nearest_same / np.maximum(nearest_other, 1e-12)))


def check_traces(model: ProtectedModel, unlocked: UnlockedSecrets) -> None:
    """Warn where a service that runs on a leaked key could not be told from others."""
    state = unlocked.training
    if state is None or state.traces is None:
        return
    assignment, inputs = unlocked.assignment(), state.traces.inputs
    batches = [inputs[i : i + _TRACE_BATCH] for i in range(0, len(inputs), _TRACE_BATCH)]
    confused = [keras.ops.convert_to_numpy(model(batch, training=False)) for batch in batches]
    learned, count = learned_traces(np.concatenate(confused), state.traces, assignment)
    classes = assignment.num_classes
    expected = learned + (count - learned) / classes
    if learned < count and expected < least_hits(count, classes, WATCHED_USERS):
        warnings.warn(
            f"Model {model.name!r} has learned {learned} of its {count} trace labels: a service "
            f"that runs on a leaked key could not be told from those of {WATCHED_USERS:,} other "
            "users. Train it for more epochs before exporting, or rely on marked copies "
            "(`recipient=...`).",
            stacklevel=5,
        )


# --- after -------------------------------------------------------------------------------


class Answers:
    """What a version folder answers.

    Args:
        folder: with a SavedModel that `export_saved_model` or `rotate_codebook` wrote.
        codebook: the folder's.
        key: the response key of a folder with encrypted responses, or `None`.

    Attributes:
        inputs: `TensorSpec` of each input, by name.
    """

    def __init__(self, folder: Path, codebook: Codebook, key: bytes | None) -> None:
        self.codebook, self.key = codebook, key
        self._loaded = tf.saved_model.load(str(folder))  # signatures do not keep it alive
        self._signatures = self._loaded.signatures
        self.inputs: dict[str, Any] = self._signatures[
            "serving_default"
        ].structured_input_signature[1]

    def confused(self, feed: Mapping[str, Any]) -> np.ndarray:
        """float32 `[b, N]`, decrypted where they are encrypted."""
        outputs = self._signatures["serving_default"](**feed)
        if self.key is None:
            return np.asarray(outputs["confused"])
        responses = np.asarray(outputs["encrypted"])
        book = self.codebook
        return open_responses(responses, self.key, book.codebook_id, book.num_labels)

    def ciphertexts_fit(self, feed: Mapping[str, Any]) -> bool:
        """Whether the ciphertexts of labels that are drawn are the codebook's."""
        if self.key is not None:
            return True
        outputs = self._signatures["encrypted_label"](**feed)["ciphertext_bytes"]
        return all(
            data == self.codebook.ciphertext(int.from_bytes(data[-8:-4], "big"))
            for data in np.asarray(outputs).ravel()
        )


def probes(inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Random inputs at two batch sizes, by name, for specs by name."""
    random = np.random.default_rng(0)
    for batch in (1, 3):
        yield {
            name: tf.cast(
                random.random([batch, *(d or _OPEN_DIMENSION for d in spec.shape[1:])], "float32"),
                spec.dtype,
            )
            for name, spec in inputs.items()
        }


def check_written(model: ProtectedModel, written: Answers, *, by_name: bool) -> None:
    """Compare what was written with the model.

    Args:
        by_name: whether the model takes its inputs as a dictionary.

    Raises:
        ExportError: their outputs differ.
    """
    # 16 bits are rounded elsewhere once operations are fused.
    rounded = any("16" in layer.compute_dtype for layer in model._flatten_layers())
    for feed in probes(written.inputs):
        inputs = feed if by_name else feed["inputs"]
        expected = keras.ops.convert_to_numpy(model(inputs, training=False))
        moved = difference(written.confused(feed), expected)
        if not moved <= (ROUNDED if rounded else EXACT):
            raise ExportError(
                f"The exported model {model.name!r} does not give the model's outputs "
                f"(difference {moved:.1e}); nothing was kept."
            )


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest distance of two outputs, of N probabilities each: 0 … 1, or NaN.

    Half the sum over the labels: any one of many labels may hold next to nothing.
    """
    return float(np.abs(one - other).sum(-1).max() / 2)
