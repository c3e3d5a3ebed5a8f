"""Write a protected model as a TF Serving version folder, beside its codebook."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from keras_encryip.authority.authority import Authority
from keras_encryip.authority.keys import AuthorityKeys
from keras_encryip.errors import ArgumentError, ExportError, LockedModelError, instead_of
from keras_encryip.export.checks import (
    Answers,
    check_spread,
    check_trace_mass,
    check_traces,
    check_written,
)
from keras_encryip.export.xchacha20 import encrypt
from keras_encryip.formats.atomic_files import make_new_folder, sync_tree, write_new_file
from keras_encryip.formats.manifest import FILE_NAME as MANIFEST
from keras_encryip.formats.manifest import RESPONSE_KEY_INSIDE, make_manifest, verify_export
from keras_encryip.formats.progress import progress_bar
from keras_encryip.formats.version_folder import ASSETS
from keras_encryip.labels.assignment import TRACE
from keras_encryip.labels.codebook import FILE_NAME as CODEBOOK
from keras_encryip.labels.codebook import Codebook
from keras_encryip.labels.model_record import ModelRecord
from keras_encryip.models.headless import all_layers
from keras_encryip.models.protected_model import ProtectedModel
from keras_encryip.models.secrets import UnlockedSecrets
from keras_encryip.models.trace_inputs import STEPS, harden
from keras_encryip.tracing.fingerprint import embed
from keras_encryip.tracing.weights import kernels_of

CONFUSED: Final = "confused"
ENCRYPTED: Final = "encrypted"

SHARPNESS: Final = 8.0
"""`encrypted_label` draws from the probabilities to this power, renormalised."""

_PHASES: Final = 3  # write, load, compare


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
            that user's noise, of 1 % of its standard deviation (less in small kernels), which
            `Tracer.weights` finds again; docs/tracing.md has what that costs. Give every copy that
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
    unlocked = model._unlocked()
    owner, record = _owner(model, unlocked)
    target = Path(directory)
    if target.exists():
        raise ExportError(f"{str(target)!r} exists already, and is never overwritten.")
    marked = None if recipient is None else owner.user_store.recipient(recipient)
    check_spread(model, record.assignment)
    hosted = responses == ENCRYPTED
    signature = _input_signature(model)
    codebook_id = Codebook.from_bytes(model.codebook.encode("ascii")).codebook_id

    def fill(draft: Path) -> None:
        # Every encrypted export makes a new codebook, and with it a new response key.
        codebook = owner.model_store.current_codebook(codebook_id, fresh=hosted)
        key = owner.keys.response_key(codebook) if hosted else None
        kernels = kernels_of(model)
        originals = [keras.ops.convert_to_numpy(kernel) for kernel in kernels]
        _harden_traces(model, unlocked, owner, kernels, originals)
        mark = None if marked is None else owner.keys.fingerprint_key(record.model_id, marked)
        with _marked(kernels, originals, mark):
            slots = record.assignment.slots[record.assignment.trace]
            check_traces(model, unlocked, owner.keys.slots.biases[slots])
            if unlocked.training is not None:
                check_trace_mass(model, unlocked.training.samples, record.assignment)
            with progress_bar("writing the SavedModel", _PHASES) as advance:
                _write(model, signature, codebook, key, draft)
                advance(1)
                written = Answers(draft, codebook, key)
                advance(1)
                check_written(model, written, by_name=isinstance(signature, dict))
                advance(1)
        manifest = complete_version(draft, codebook, owner.keys, hosted=hosted)
        owner.export_store.add_export(
            codebook, manifest, folder=target.name, recipient=marked, kernels=originals
        )

    with instead_of(ArgumentError, raises=lambda error: ExportError(str(error))):
        make_new_folder(target, fill)


def complete_version(
    draft: Path, codebook: Codebook, keys: AuthorityKeys, *, hosted: bool
) -> bytes:
    """Add codebook and manifest to a written SavedModel, check the whole, and make it durable.

    Args:
        hosted: whether the folder holds a response key; then only the owner may enter it.

    Returns:
        The bytes of `manifest.json`.
    """
    if hosted:
        draft.chmod(0o700)
    assets = draft / ASSETS
    assets.mkdir(parents=True)
    write_new_file(assets / CODEBOOK, codebook.to_bytes())
    manifest = make_manifest(draft, codebook, keys.sign, RESPONSE_KEY_INSIDE if hosted else None)
    write_new_file(assets / MANIFEST, manifest)
    verify_export(draft, issuer=keys.issuer)
    sync_tree(draft)
    return manifest


def _owner(model: ProtectedModel, unlocked: UnlockedSecrets) -> tuple[Authority, ModelRecord]:
    """Whose model it is, ready to be exported."""
    if not isinstance(unlocked.owner, Authority) or unlocked.record is None:
        raise LockedModelError(
            f"Model {model.name!r} is unlocked with a key bundle; exporting needs its owner: "
            "`model.unlock(authority=...)`."
        )
    if not model.built:
        raise ExportError(f"Model {model.name!r} has no weights yet: train it first.")
    return unlocked.owner, unlocked.record


def _harden_traces(
    model: ProtectedModel,
    unlocked: UnlockedSecrets,
    owner: Authority,
    kernels: list[Any],
    originals: list[np.ndarray],
) -> None:
    """Fit the trace inputs to these weights, unless that was done for an earlier export."""
    record, state = unlocked.record, unlocked.training
    if record is None or state is None or state.traces is None:
        return
    if owner.export_store.was_exported(record.model_id, originals, state.traces):
        return

    def logits(inputs: Any) -> Any:
        return model.confused_labels.logits(model.backbone(inputs, training=False))

    tracing = record.assignment.classes[state.traces.labels] == TRACE
    with progress_bar("hardening trace inputs", STEPS) as advance:
        traces = harden(logits, kernels, state.traces, tracing, advance, secrets.randbits(64))
    if traces is not state.traces:
        unlocked.training = replace(state, traces=traces)
        unlocked.save_training()
        model._forget_traces()


@contextmanager
def _marked(
    kernels: Sequence[Any], originals: Sequence[np.ndarray], key: bytes | None
) -> Iterator[None]:
    """The kernels carry a recipient's mark meanwhile, if there is one."""
    if key is None:
        yield
        return
    try:
        _assign(kernels, embed(originals, key))
        yield
    finally:
        _assign(kernels, originals)


def _assign(kernels: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    for kernel, value in zip(kernels, values, strict=True):
        kernel.assign(value)


def _write(
    model: ProtectedModel, signature: Any, codebook: Codebook, key: bytes | None, directory: Path
) -> None:
    """The SavedModel. Endpoints close over the model and public bytes, and the response key."""

    def confused(inputs: Any) -> dict[str, tf.Tensor]:
        return {"confused": model(inputs, training=False)}

    def encrypted_label(inputs: Any) -> dict[str, tf.Tensor]:
        scores = tf.math.log(tf.maximum(model(inputs, training=False), 1e-30))
        # A seed from the operating system at every call: tf.random's is fixed at export.
        seed = tf.raw_ops.NonDeterministicInts(shape=tf.constant([2], tf.int64), dtype=tf.int64)
        uniform = tf.random.stateless_uniform(tf.shape(scores), seed, minval=1e-12)
        gumbel = -tf.math.log(-tf.math.log(uniform))
        label = tf.argmax(SHARPNESS * scores + gumbel, axis=-1)
        prefix = tf.constant(codebook.ciphertext_prefix)
        suffixes = tf.constant(list(codebook.ciphertext_suffixes))
        return {"ciphertext_bytes": tf.strings.join([prefix, tf.gather(suffixes, label)])}

    def encrypted(inputs: Any) -> dict[str, tf.Tensor]:
        outputs = model(inputs, training=False)
        return {"encrypted": encrypt(outputs, key or b"", codebook.codebook_id)}

    archive = keras.export.ExportArchive()
    for table in _tables(model):  # and nothing else: a tracked model is stored twice
        archive.track(table)
    if key is None:
        archive.add_endpoint("serving_default", confused, input_signature=[signature])
        archive.add_endpoint("encrypted_label", encrypted_label, input_signature=[signature])
    else:
        archive.add_endpoint("serving_default", encrypted, input_signature=[signature])
    archive.write_out(str(directory), verbose=False)


def _tables(model: ProtectedModel) -> list[Any]:
    """The vocabularies that layers look up, which the graph holds by reference."""
    held = [value for layer in all_layers(model) for value in vars(layer).values()]
    return [x for x in held if isinstance(x, tf.saved_model.experimental.TrackableResource)]


def _input_signature(model: ProtectedModel) -> Any:
    """TensorSpecs with an open batch axis, named `inputs` or by the dictionary's keys."""
    shape = model.get_build_config()["input_shape"]
    specs = keras.tree.map_shape_structure(lambda s: tf.TensorSpec(s, "float32"), shape)
    if model.dtypes:
        flat = zip(keras.tree.flatten(specs), model.dtypes, strict=True)
        specs = keras.tree.pack_sequence_as(specs, [tf.TensorSpec(s.shape, d) for s, d in flat])
    if isinstance(specs, dict):
        return {k: tf.TensorSpec(s.shape, s.dtype, name=k) for k, s in specs.items()}
    if isinstance(specs, (list, tuple)):
        if len(specs) > 1:
            raise ExportError("A model with several inputs needs them as a dictionary.")
        specs = specs[0]
    return tf.TensorSpec((None, *specs.shape[1:]), specs.dtype, name="inputs")
