"""Write a protected model as a TF Serving version folder, beside its codebook."""

import secrets
import shutil
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_encryip.formats.version_folder import ASSETS
from keras_encryip.formats.atomic_files import sync_folder, sync_tree, write_new_file
from keras_encryip.formats.responses import open_responses
from keras_encryip.formats.manifest import FILE_NAME as MANIFEST
from keras_encryip.formats.manifest import RESPONSE_KEY_INSIDE, make_manifest, verify_export
from keras_encryip.formats.progress import progress_bar
from keras_encryip.errors import ArgumentError, ExportError, LockedModelError
from keras_encryip.export.xchacha20 import encrypt
from keras_encryip.labels.assignment import TRACE, LabelAssignment
from keras_encryip.labels.codebook import FILE_NAME as CODEBOOK
from keras_encryip.labels.codebook import Codebook
from keras_encryip.models.protected_model import ProtectedModel
from keras_encryip.tracing.weights import kernels_of
from keras_encryip.tracing.fingerprint import embed
from keras_encryip.tracing.statistics import least_hits
from keras_encryip.models.trace_inputs import STEPS, harden
from keras_encryip.models.secrets import TrainingState
from keras_encryip.models.secrets import UnlockedSecrets
from keras_encryip.models.trace_inputs import learned_traces

CONFUSED = "confused"
ENCRYPTED = "encrypted"
SHARPNESS = 8.0
"""`encrypted_label` draws from the probabilities to this power, renormalised."""

MIN_COLUMN_SPREAD = 0.003
"""A head whose homophones lie closer together than this still consists of copies."""

WATCHED_USERS = 1_000
"""Among as many, `trace_service` should find a leaker; the export warns if it could not."""

_SPREAD_SAMPLE = 2048
EXACT, _ROUNDED = 1e-4, 5e-2
"""How much of the probability may lie elsewhere: `difference`."""

_TRACE_BATCH = 32


def export_saved_model(
    model: ProtectedModel,
    directory: str | PathLike[str],
    *,
    recipient: str | None = None,
    responses: str = CONFUSED,
) -> None:
    """Export a protected model for TF Serving and other runtimes (docs/consumers.md).

    Signatures:
        `serving_default`: inputs → `confused`, float32 `[b, N]`.
        `encrypted_label`: inputs → `ciphertext_bytes`, string `[b]`: one label, drawn
            anew at every call, as a `LabelCiphertext`.

    With `responses="encrypted"` there is one signature, `serving_default`: inputs →
    `encrypted`, int32 `[b, N + 10]`, which is noise to whoever has no key: for owners who host
    the model themselves (docs/serving.md). Only the owner may enter such a folder (mode 0700).

    The folder also holds `assets.extra/encryip/codebook.json`, made anew if users were
    revoked since the last one, and `manifest.json`. It holds no key and no assignment, BUT WITH
    `responses="encrypted"` IT HOLDS THE RESPONSE KEY, AND IS FOR THE OWNER'S SERVER ALONE.

    Args:
        model: built, and unlocked with its authority.
        directory: the version folder, e.g. `"served/digits/1"`. Must not exist; it
            appears whole or not at all.
        recipient: subject of an active user. Every kernel of the copy is then marked with
            that user's noise, of 3 % of its standard deviation, which `Authority.trace_weights`
            finds again; docs/tracing.md has what that costs in accuracy. Give every copy that
            leaves the house a recipient: the difference to an unmarked copy is the mark.
        responses: `"confused"`, or `"encrypted"` under a key of this export, which all users
            but the revoked ones can derive from its codebook.

    What is about to be released is committed to in the authority's event log: digests of
    the codebook, the manifest, the trace inputs, the public key and the mark.

    Raises:
        LockedModelError: the model is not unlocked with its authority.
        LedgerError: `recipient` is not an active user.
        ExportError: a copied head was not trained, or the written model does not
            give the same outputs.

    Example:
    >>> export_saved_model(model, folder / "digits" / "1")
    >>> verify_export(folder / "digits" / "1").format
    'encryip-manifest'
    """
    if not isinstance(model, ProtectedModel):
        raise ArgumentError(
            "`model` must be a ProtectedModel: only `protect(...)` makes an export safe. "
            f"Received: {type(model).__name__}"
        )
    if responses not in (CONFUSED, ENCRYPTED):
        raise ArgumentError(
            f"`responses` must be 'confused' or 'encrypted'. Received: responses={responses!r}"
        )
    protection = model._unlocked()
    if protection.authority is None or protection.record is None:
        raise LockedModelError(
            f"Model {model.name!r} is unlocked with a key bundle; exporting needs its owner: "
            "`model.unlock(authority=...)`."
        )
    if not model.built:
        raise ExportError(f"Model {model.name!r} has no weights yet: train it first.")
    target = Path(directory)
    if target.exists():
        raise ExportError(f"{str(target)!r} exists already, and is never overwritten.")
    authority = protection.authority
    marked = None if recipient is None else authority.recipient_of(recipient)
    _check_spread(model, protection.record.assignment)
    own = Codebook.from_bytes(model.codebook.encode("ascii"))
    # Every encrypted export makes a new codebook, and with it a new response key.
    codebook = authority.current_codebook(own.codebook_id, fresh=responses == ENCRYPTED)
    key = authority.response_key(codebook) if responses == ENCRYPTED else None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"Cannot create {str(target.parent)!r}: {error.strerror}.") from None
    kernels = kernels_of(model)
    originals = [keras.ops.convert_to_numpy(kernel) for kernel in kernels]
    _harden_traces(model, protection, kernels, originals)
    _check_traces(model, protection)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        if marked is not None:
            own_mark = authority.fingerprint_key(protection.record.model_id, marked)
            _assign(kernels, embed(originals, own_mark))
        _write(model, codebook, key, draft)
        if key is not None:
            draft.chmod(0o700)
        _compare(model, codebook, key, draft)
        assets = draft / ASSETS
        assets.mkdir(parents=True)
        write_new_file(assets / CODEBOOK, codebook.to_bytes())
        warning = None if key is None else RESPONSE_KEY_INSIDE
        manifest = make_manifest(draft, codebook, authority.sign, warning)
        write_new_file(assets / MANIFEST, manifest)
        verify_export(draft, issuer=authority.issuer)
        sync_tree(draft)
        authority.add_export(
            codebook, manifest, folder=target.name, recipient=marked, kernels=originals
        )
        draft.rename(target)
    finally:
        if marked is not None:
            _assign(kernels, originals)
        shutil.rmtree(draft, ignore_errors=True)
    sync_folder(target.parent)


def _harden_traces(
    model: ProtectedModel, protection: UnlockedSecrets, kernels: list[Any], originals: list[np.ndarray]
) -> None:
    """Fit the trace inputs to these weights, unless that was done for an earlier export."""
    authority, record, state = protection.authority, protection.record, protection.training
    if authority is None or record is None or state is None or state.traces is None:
        return
    if authority.was_exported(record.model_id, originals, state.traces):
        return

    def logits(inputs: Any) -> Any:
        return model.confused_labels.logits(model.backbone(inputs, training=False))

    tracing = record.assignment.classes[state.traces.labels] == TRACE
    with progress_bar("hardening trace inputs", STEPS) as advance:
        traces = harden(logits, kernels, state.traces, tracing, advance, secrets.randbits(64))
    if traces is not state.traces:
        protection.training = TrainingState(state.homophones, traces)
        protection.save_training()
        model._forget_traces()


def _check_traces(model: ProtectedModel, protection: UnlockedSecrets) -> None:
    """Warn where a service that runs on a leaked key could not be told from others."""
    record, state = protection.record, protection.training
    if record is None or state is None or state.traces is None:
        return
    inputs = state.traces.inputs
    batches = [inputs[i : i + _TRACE_BATCH] for i in range(0, len(inputs), _TRACE_BATCH)]
    confused = [keras.ops.convert_to_numpy(model(batch, training=False)) for batch in batches]
    classes = record.assignment.num_classes
    learned, count = learned_traces(np.concatenate(confused), state.traces, record.assignment)
    expected = learned + (count - learned) / classes
    if learned < count and expected < least_hits(count, classes, WATCHED_USERS):
        warnings.warn(
            f"Model {model.name!r} has learned {learned} of its {count} trace labels: a service "
            f"that runs on a leaked key could not be told from those of {WATCHED_USERS:,} other "
            "users. Train it for more epochs before exporting, or rely on marked copies "
            "(`recipient=...`).",
            stacklevel=3,
        )


def _assign(kernels: list[Any], values: list[np.ndarray]) -> None:
    for kernel, value in zip(kernels, values, strict=True):
        kernel.assign(value)


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


def _check_spread(model: ProtectedModel, assignment: LabelAssignment) -> None:
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


def _write(model: ProtectedModel, codebook: Codebook, key: bytes | None, directory: Path) -> None:
    """The SavedModel. Endpoints close over the model and public bytes, and the response key."""
    signature = _input_signature(model)

    def confused(inputs: Any) -> dict[str, tf.Tensor]:
        return {"confused": model(inputs, training=False)}

    def encrypted_label(inputs: Any) -> dict[str, tf.Tensor]:
        scores = tf.math.log(tf.maximum(model(inputs, training=False), 1e-30))
        # A seed from the operating system at every call: tf.random's is fixed at export.
        seed = tf.raw_ops.NonDeterministicInts(shape=tf.constant([2], tf.int64), dtype=tf.int64)
        uniform = tf.random.stateless_uniform(tf.shape(scores), seed, minval=1e-12)
        gumbel = -tf.math.log(-tf.math.log(uniform))
        label = tf.argmax(SHARPNESS * scores + gumbel, axis=-1)
        prefixes = tf.constant(list(codebook.ciphertext_prefixes))
        suffixes = tf.constant(list(codebook.ciphertext_suffixes))
        block = tf.gather(tf.constant(codebook.block_of), label)
        joined = tf.strings.join([tf.gather(prefixes, block), tf.gather(suffixes, label)])
        return {"ciphertext_bytes": joined}

    def encrypted(inputs: Any) -> dict[str, tf.Tensor]:
        outputs = model(inputs, training=False)
        return {"encrypted": encrypt(outputs, key or b"", codebook.codebook_id)}

    archive = keras.export.ExportArchive()
    if key is None:
        archive.add_endpoint("serving_default", confused, input_signature=[signature])
        archive.add_endpoint("encrypted_label", encrypted_label, input_signature=[signature])
    else:
        archive.add_endpoint("serving_default", encrypted, input_signature=[signature])
    archive.write_out(str(directory), verbose=False)


def _input_signature(model: ProtectedModel) -> Any:
    """TensorSpecs with an open batch axis, named `inputs` or by the dictionary's keys."""
    backbone = model.backbone
    if getattr(backbone, "inputs", None):
        single = isinstance(backbone, keras.Sequential)
        structure = backbone.inputs[0] if single else backbone.input
        specs = keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), structure)
    else:
        shape = model.get_build_config()["input_shape"]
        specs = keras.tree.map_shape_structure(lambda s: tf.TensorSpec(s, "float32"), shape)
    if isinstance(specs, dict):
        return {k: tf.TensorSpec(s.shape, s.dtype, name=k) for k, s in specs.items()}
    if isinstance(specs, (list, tuple)):
        if len(specs) > 1:
            raise ExportError("A model with several inputs needs them as a dictionary.")
        specs = specs[0]
    return tf.TensorSpec((None, *specs.shape[1:]), specs.dtype, name="inputs")


def _compare(model: ProtectedModel, codebook: Codebook, key: bytes | None, directory: Path) -> None:
    """Re-open what was written, and compare it with the model at two batch sizes."""
    loaded = tf.saved_model.load(str(directory))
    random = np.random.default_rng(0)
    # 16 bits are rounded elsewhere once operations are fused.
    rounded = any("16" in layer.compute_dtype for layer in model._flatten_layers())
    tolerance = _ROUNDED if rounded else EXACT
    for batch in (1, 3):
        probe = keras.tree.map_structure(
            lambda s, b=batch: tf.cast(
                random.random([b, *(d or 4 for d in s.shape[1:])], "float32"), s.dtype
            ),
            _input_signature(model),
        )
        feed = probe if isinstance(probe, dict) else {"inputs": probe}
        found = loaded.signatures["serving_default"](**feed)
        if key is None:
            written = found["confused"].numpy()
        else:
            written = open_responses(
                found["encrypted"].numpy(), key, codebook.codebook_id, codebook.num_labels
            )
        expected = keras.ops.convert_to_numpy(model(probe, training=False))
        moved = difference(written, expected)
        if not moved <= tolerance:
            raise ExportError(
                f"The exported model {model.name!r} does not give the model's outputs "
                f"(difference {moved:.1e}); nothing was kept."
            )


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest distance of two outputs, of N probabilities each: 0 … 1, or NaN.

    Half the sum over the labels: any one of many labels may hold next to nothing.
    """
    return float(np.abs(one - other).sum(-1).max() / 2)
