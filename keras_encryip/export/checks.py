"""What must hold before a model leaves the house, and whether what was written answers alike."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from keras_encryip.errors import ExportError
from keras_encryip.export.checkpoints import without_key_file
from keras_encryip.export.weight_lock import UNLOCK
from keras_encryip.formats.responses import open_responses
from keras_encryip.formats.version_folder import number_of
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.ciphertext import ciphertext_label
from keras_encryip.labels.codebook import Codebook
from keras_encryip.labels.trace_set import TraceSet, read_by_keys, trace_labels_by_keys
from keras_encryip.models.columns import column_spread, exact_copies
from keras_encryip.models.measures import outputs_of
from keras_encryip.models.probe import answer_to_probe
from keras_encryip.models.protected_model import ProtectedModel
from keras_encryip.models.secrets import UnlockedSecrets
from keras_encryip.tracing.statistics import (
    SIGNIFICANCE,
    innocent_tail,
    observed_weights,
    scores,
)

MIN_COLUMN_SPREAD: Final = 0.003
"""A head whose homophones lie closer together than this still consists of copies."""

WATCHED_USERS: Final = 1_000
"""Among as many, `Tracer.service` should find a leaker; the export warns if it could not."""

EXACT: Final = 1e-4
ROUNDED: Final = 5e-2
"""How much of the probability may lie elsewhere, in 32 and in 16 bits: `difference`."""

MISREAD: Final = 0.005
"""The export warns if some key reads more of the real inputs as another class than it should."""

_KEYS: Final = 64
_PESSIMISTIC: Final = 0.25


# --- before ------------------------------------------------------------------------------


def warn_of_name(target: Path) -> None:
    """TF Serving passes over folders whose names are no version numbers."""
    if number_of(target.absolute().name) is None:
        warnings.warn(
            f"TF Serving finds no version in {str(target)!r}: its versions are folders with "
            f"numbers for names, such as {str(target / '1')!r}. Other runtimes take any name.",
            stacklevel=3,
        )


def check_spread(model: ProtectedModel, assignment: LabelAssignment) -> None:
    """Refuse a head that consists of copies, and warn of copies that training did not reach.

    Raises:
        ExportError: it would show which confused labels stand for the same class.
    """
    head = model.confused_labels
    kernel = keras.ops.convert_to_numpy(head.kernel)
    bias = keras.ops.convert_to_numpy(head.bias) if head.use_bias else None
    copies = exact_copies(kernel, bias, assignment)
    spread = 0.0 if copies.all() else column_spread(kernel, bias, assignment, ~copies)
    if spread < MIN_COLUMN_SPREAD:
        raise ExportError(
            f"The head of model {model.name!r} still consists of copies (column spread "
            f"{spread:.1e}, at least {MIN_COLUMN_SPREAD}): it would show which confused labels "
            "stand for the same class. Train it with `fit` and a `confusion_weight` above 0, for "
            "some epochs, before exporting."
        )
    if copies.any():
        classes = int(copies.any(1).sum())
        warnings.warn(
            f"In the head of model {model.name!r}, {copies.sum():,} of {copies.size:,} confused "
            f"labels are still exact copies: no training sample reached them, in {classes:,} of "
            f"{len(copies):,} classes. Whoever reads the weights can tell which of these labels "
            "belong together, though not which class they are. Train with samples of every class "
            "before exporting, or use fewer homophones.",
            stacklevel=3,
        )


def check_traces(model: ProtectedModel, unlocked: UnlockedSecrets, biases: np.ndarray) -> None:
    """Warn where a service that runs on a leaked key could not be told from others.

    Args:
        biases: float64 `[T]`, of the trace labels' slots.
    """
    state = unlocked.training
    if state is None or state.traces is None:
        return
    assignment, count = unlocked.assignment(), unlocked.assignment().trace.size
    hits, chances = what_keys_show(
        outputs_of(model, state.traces.inputs), state.traces, assignment, biases
    )
    typical = int(np.quantile(hits, _PESSIMISTIC, method="lower"))
    shown = np.quantile(chances, 1 - _PESSIMISTIC) * WATCHED_USERS <= SIGNIFICANCE
    if not shown and typical < count:
        warnings.warn(
            f"Model {model.name!r} has learned {typical} of its {count} trace labels, as users' "
            "keys decode them, and that is too few: a service that runs on a leaked key could not "
            f"be told from those of {WATCHED_USERS:,} other users. Call `model.teach_traces()` "
            "after more epochs (`fit` does so when it ends), protect it with more `trace_labels`, "
            "or rely on marked copies (`recipient=...`).",
            stacklevel=5,
        )


def what_keys_show(
    confused: np.ndarray, traces: TraceSet, assignment: LabelAssignment, biases: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What `Tracer.service` will find of a user on whose key a service runs.

    Random codewords are simulated.

    Args:
        confused: `[n, N]`, the model's outputs for `traces.inputs`; other leading axes
            between these are averaged.
        traces: n inputs.
        assignment: the model's.
        biases: float64 `[T]`, of the trace labels' slots.

    Returns:
        (int `[_KEYS]`: for each key the trace labels whose inputs are answered with the class that
        the key reads there; float64 `[_KEYS]`: the chance of its score for an innocent).
    """
    hits, chances = [], []
    keys = trace_labels_by_keys(confused, traces, assignment, biases, _KEYS)
    for bits, said, read in keys:
        hits.append(read.sum())
        weights = observed_weights(said, assignment.pairs, biases)
        chances.append(innocent_tail(weights, biases, scores(weights, biases, bits[None]))[0])
    return np.array(hits), np.array(chances)


def check_trace_mass(
    model: ProtectedModel, samples: np.ndarray | None, assignment: LabelAssignment
) -> None:
    """Warn where users would read real inputs as other classes than the model means.

    A trace label means no class of the input's, so its probability is noise to a reader.

    Args:
        samples: real inputs, `[n, …]`; nothing is measured without any.
        assignment: the model's.
    """
    if samples is None or not len(samples) or not assignment.trace.size:
        return
    confused = outputs_of(model, samples).reshape(-1, assignment.num_labels)
    meant = confused[:, assignment.labels].sum(-1).argmax(-1)
    even = np.full(assignment.trace.size, 0.5)
    shares = [(read != meant).mean() for _, read in read_by_keys(confused, assignment, even, _KEYS)]
    if max(shares) > MISREAD:
        mass = float(confused[:, assignment.trace].sum(-1).mean())
        warnings.warn(
            f"Model {model.name!r} puts {mass:.1%} of its probability on trace labels for real "
            f"inputs: users would read {np.mean(shares):.1%} of {len(confused):,} samples "
            f"differently, up to {max(shares):.1%} with some keys (more than {MISREAD:.1%}). Train "
            "it for more epochs before exporting, or protect it with fewer `trace_labels`.",
            stacklevel=5,
        )


# --- after -------------------------------------------------------------------------------


class Answers:
    """What a version folder answers.

    Args:
        folder: with a SavedModel that `export_saved_model` or `rotate_codebook` wrote.
        codebook: the folder's.
        key: the response key of a folder with encrypted responses, or `None`.
        key_file: of a locked folder, where it looks for its key.
        opening: the key of a locked folder.

    Attributes:
        inputs: `TensorSpec` of each input, by name.
    """

    def __init__(
        self,
        folder: Path,
        codebook: Codebook,
        key: bytes | None,
        key_file: str | None = None,
        opening: bytes | None = None,
    ) -> None:
        self.codebook, self.key = codebook, key
        finding = nullcontext(folder) if key_file is None else without_key_file(folder, key_file)
        with finding as place:
            self._loaded = tf.saved_model.load(str(place))  # signatures do not keep it alive
        self._signatures = self._loaded.signatures
        if opening is not None:
            self._signatures[UNLOCK](key_bytes=tf.constant(opening))
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
            data == self.codebook.ciphertext(ciphertext_label(data))
            for data in np.asarray(outputs).ravel()
        )


def probes(answers: Answers) -> Iterator[dict[str, Any]]:
    """Random inputs that a version folder answers, at two batch sizes, by name."""
    for batch in (1, 3):
        specs = {
            name: keras.KerasTensor((batch, *spec.shape[1:]), spec.dtype.name)
            for name, spec in answers.inputs.items()
        }
        _, feed, _ = answer_to_probe(lambda feed, training: answers.confused(feed), specs)
        yield {name: tf.cast(value, answers.inputs[name].dtype) for name, value in feed.items()}


def real_inputs(model: ProtectedModel, answers: Answers) -> Iterator[dict[str, Any]]:
    """Some of the owner's inputs, which answers differ more on than on random ones, by name."""
    state = model._unlocked().training
    if state is None or state.samples is None or len(answers.inputs) > 1:
        return
    ((name, spec),) = answers.inputs.items()
    samples = state.samples[:3]
    if spec.shape[1:].is_compatible_with(samples.shape[1:]):
        yield {name: tf.cast(samples, spec.dtype)}


def check_written(model: ProtectedModel, written: Answers, *, by_name: bool) -> None:
    """Compare what was written with the model.

    Args:
        by_name: whether the model takes its inputs as a dictionary.

    Raises:
        ExportError: their outputs differ.
    """
    # 16 bits are rounded elsewhere once operations are fused.
    rounded = any("16" in layer.compute_dtype for layer in model._flatten_layers())
    for feed in chain(probes(written), real_inputs(model, written)):
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
