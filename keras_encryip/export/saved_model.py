"""Write a protected model as a TF Serving version folder, beside its codebook."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from os.path import lexists
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from keras_encryip.authority.authority import Authority
from keras_encryip.authority.keys import AuthorityKeys
from keras_encryip.errors import ArgumentError, ExportError, LockedModelError, instead_of
from keras_encryip.export.checkpoints import in_memory
from keras_encryip.export.checks import (
    Answers,
    check_spread,
    check_trace_mass,
    check_traces,
    check_written,
    warn_of_name,
)
from keras_encryip.export.locked_folder import check_key_file, lock_folder, warn_of_readable
from keras_encryip.export.warmup import check_warmup, write_warmup
from keras_encryip.export.weight_lock import KEY_BYTES, UNLOCK, WeightLock, lookup_tables
from keras_encryip.export.xchacha20 import encrypt
from keras_encryip.formats.atomic_files import make_new_folder, sync_tree, write_new_file
from keras_encryip.formats.lock import FILE_NAME as LOCK
from keras_encryip.formats.lock import Lock
from keras_encryip.formats.manifest import FILE_NAME as MANIFEST
from keras_encryip.formats.manifest import RESPONSE_KEY_INSIDE, make_manifest, verify_export
from keras_encryip.formats.progress import progress_bar
from keras_encryip.formats.version_folder import ASSETS
from keras_encryip.labels.assignment import TRACE
from keras_encryip.labels.codebook import FILE_NAME as CODEBOOK
from keras_encryip.labels.codebook import Codebook
from keras_encryip.labels.codebook_mark import NAME as MARK
from keras_encryip.labels.codebook_mark import UNIT, CodebookMark
from keras_encryip.labels.model_record import ModelRecord
from keras_encryip.models.protected_model import ProtectedModel
from keras_encryip.models.secrets import UnlockedSecrets
from keras_encryip.models.trace_inputs import STEPS, harden
from keras_encryip.tracing.fingerprint import embed
from keras_encryip.tracing.weights import kernels_of

PLAIN: Final = "plain"
LOCKED: Final = "locked"
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
    weights: str = PLAIN,
    key_file: str | PathLike[str] | None = None,
    warmup: Any = None,
) -> None:
    """Export a protected model for TF Serving and other runtimes (docs/guides/runtimes.md).

    Signatures:
        `serving_default`: inputs → `confused`, float32 `[b, N]`. Their last bits tell decoders
            which version answers (`labels/codebook_mark.py`).
        `encrypted_label`: inputs → `ciphertext_bytes`, string `[b]`: one label, drawn
            anew at every call, as a `LabelCiphertext`.

    With `responses="encrypted"` there is one signature, `serving_default`: inputs →
    `encrypted`, int32 `[b, N + 10]`, which is noise to whoever has no key: for owners who host
    the model themselves (docs/guides/host.md). Only the owner may enter such a folder (mode 0700).

    With `weights="locked"` the folder is noise without a host's key (docs/guides/host.md): every
    variable is encrypted, and decrypted in memory on stock runtimes, by the initialiser from the
    key file, or by one more signature, `unlock`: `key_bytes`, string → `unlocked`. Until then all
    others fail. `client.unlock_key` makes the key.

    The folder also holds `assets.extra/encryip/codebook.json`, made anew if users were
    revoked since the last one, and `manifest.json`. It holds no key and no assignment, BUT WITH
    `responses="encrypted"` IT HOLDS THE RESPONSE KEY, AND IS FOR THE OWNER'S SERVER ALONE.

    Args:
        model: built, and unlocked with its authority.
        directory: the version folder, e.g. `"served/digits/1"`. Must not exist; it
            appears whole or not at all. TF Serving takes versions by number: other names bring
            a warning.
        recipient: subject of an active user. Every kernel of the copy is then marked with
            that user's noise, of 1 % of its standard deviation (less in small kernels), which
            `Tracer.weights` finds again; docs/evidence/tracing.md has what that costs. Give every
            copy that leaves the house a recipient: the difference to an unmarked copy is the mark.
        responses: `"confused"`, or `"encrypted"` under a key of this export, which all users
            but the revoked ones can derive from its codebook.
        weights: `"plain"`, or `"locked"` under a key of this export, which all users with the role
            `run` but the revoked ones can derive from its `lock.json`.
        key_file: of a locked export, where the host will have the key: an absolute path, by
            default `/run/secrets/encryip/NAME.key`.
        warmup: inputs `[n, ...]`, or a dictionary of them by name, that TF Serving asks the model
            for when it loads it, so that the first answer to others is as quick as the next. Not
            for locked exports that are opened by the signature: theirs fails.

    What is about to be released is committed to in the authority's event log: digests of
    the codebook, the manifest, the trace inputs, the public key and the mark.

    Raises:
        ArgumentError: an argument is none of these, or `key_file` is no absolute path.
        LockedModelError: the model is not unlocked with its authority.
        LedgerError: `recipient` is not an active user.
        ExportError: a copied head was not trained, or the written model does not
            give the same outputs.

    Example:
    >>> export_saved_model(model, folder / "digits" / "1")
    >>> verify_export(folder / "digits" / "1").format
    'encryip-manifest'
    """
    _check_arguments(model, responses, weights, key_file)
    if responses == ENCRYPTED or weights == LOCKED:
        _check_determinism()
    unlocked = model._unlocked()
    owner, record = _owner(model, unlocked)
    name = record.metadata.model
    place = None if weights == PLAIN else check_key_file(key_file, name)
    target = Path(directory)
    if lexists(target):
        raise ExportError(f"{str(target)!r} exists already, and is never overwritten.")
    warn_of_name(target)
    marked = None if recipient is None else owner.user_store.recipient(recipient)
    check_spread(model, record.assignment)
    hosted = responses == ENCRYPTED
    signature = _input_signature(model)
    warming = None if warmup is None else check_warmup(warmup, signature)
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
                lock = opening = None
                if place is None:
                    _write(model, signature, codebook, key, str(draft))
                else:
                    lock, opening = owner.model_store.make_lock(codebook, place)
                    with in_memory() as folder, WeightLock(place).locking(model) as weight_lock:
                        _write(model, signature, codebook, key, folder, weight_lock)
                        lock_folder(folder, draft, opening)
                    warn_of_readable(draft, model.name, codebook)
                advance(1)
                written = Answers(draft, codebook, key, place, opening)
                advance(1)
                check_written(model, written, by_name=isinstance(signature, dict))
                advance(1)
        if warming is not None:
            write_warmup(draft, name, warming)
        manifest = complete_version(draft, codebook, owner.keys, hosted=hosted, lock=lock)
        owner.export_store.add_export(
            codebook, manifest, folder=target.name, recipient=marked, kernels=originals, lock=lock
        )

    with instead_of(ArgumentError, raises=lambda error: ExportError(str(error))):
        # The response key is in the folder of an encrypted export that is not locked.
        make_new_folder(target, fill, mode=0o700 if hosted and place is None else 0o777)


def _check_arguments(model: Any, responses: Any, weights: Any, key_file: Any) -> None:
    """What can be said before the model is looked at."""
    if not isinstance(model, ProtectedModel):
        raise ArgumentError(
            "`model` must be a ProtectedModel, from `protect(...)` or, if it was saved, "
            "`keras.models.load_model(path)` and `unlock(authority=...)`. "
            f"Received: {type(model).__name__}"
        )
    if responses not in (CONFUSED, ENCRYPTED):
        raise ArgumentError(
            f"`responses` must be 'confused' or 'encrypted'. Received: responses={responses!r}"
        )
    if weights not in (PLAIN, LOCKED):
        raise ArgumentError(f"`weights` must be 'plain' or 'locked'. Received: weights={weights!r}")
    if weights == PLAIN and key_file is not None:
        raise ArgumentError(
            f"`key_file` is for `weights='locked'` alone. Received: key_file={str(key_file)!r}"
        )


def _check_determinism() -> None:
    """Nonces and keys of the moment need what deterministic operations refuse."""
    with instead_of(
        tf.errors.FailedPreconditionError,
        raises=lambda _: ExportError(
            "Encrypted responses and locked exports cannot be made where "
            "`enable_op_determinism()` was called. Load the model in another process, and export "
            "it there."
        ),
    ):
        tf.timestamp()


def complete_version(
    draft: Path, codebook: Codebook, keys: AuthorityKeys, *, hosted: bool, lock: Lock | None
) -> bytes:
    """Add codebook and manifest to a written SavedModel, check the whole, and make it durable.

    Args:
        hosted: whether the model encrypts its responses. A folder that is not locked then
            holds the response key, and only the owner may enter it.
        lock: of a locked folder.

    Returns:
        The bytes of `manifest.json`.
    """
    assets = draft / ASSETS
    assets.mkdir(parents=True, exist_ok=True)
    write_new_file(assets / CODEBOOK, codebook.to_bytes())
    if lock is not None:
        write_new_file(assets / LOCK, lock.to_bytes())
    warning = RESPONSE_KEY_INSIDE if hosted and lock is None else None
    manifest = make_manifest(draft, codebook, keys.sign, warning)
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
    model: ProtectedModel,
    signature: Any,
    codebook: Codebook,
    key: bytes | None,
    folder: str,
    lock: WeightLock | None = None,
) -> None:
    """The SavedModel. Endpoints close over the model and public bytes, and the response key."""
    words = None if key is None else np.frombuffer(key, "<u4")
    if words is not None and lock is not None:  # a variable is locked as the others are
        words = tf.Variable(words, trainable=False)

    mark = CodebookMark(codebook.codebook_id, codebook.num_labels)

    def confused(inputs: Any) -> dict[str, tf.Tensor]:
        return {"confused": _marked_outputs(model(inputs, training=False), mark)}

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
        return {"encrypted": encrypt(outputs, words, codebook.codebook_id)}

    endpoints: dict[str, Any] = {"serving_default": encrypted}
    if key is None:
        endpoints = {"serving_default": confused, "encrypted_label": encrypted_label}
    archive = keras.export.ExportArchive()
    for table in lookup_tables(model).values():  # and nothing else: a model is stored twice
        archive.track(table)
    traced = []
    for name, endpoint in endpoints.items():
        guarded = endpoint if lock is None else lock.guard(endpoint)
        traced.append(archive.add_endpoint(name, guarded, input_signature=[signature]))
    if lock is not None:
        lock.locks(
            variable for call in traced for variable in call.get_concrete_function().variables
        )
        archive.track(lock)
        archive.add_endpoint(UNLOCK, lock.unlock, input_signature=[KEY_BYTES])
    archive.write_out(folder, verbose=False)


def _marked_outputs(outputs: tf.Tensor, mark: CodebookMark) -> tf.Tensor:
    """`mark.put`, of operations that all runtimes have."""
    if not mark.columns:
        return outputs
    residues, modulus = tf.constant(mark.residues, name=MARK), float(mark.modulus)
    marked = outputs[..., : mark.columns] * (1 / UNIT) - residues
    marked = modulus * tf.maximum(tf.round(marked / modulus), 0.0) + residues
    marked = tf.where(marked > 1 / UNIT, marked - modulus, marked)
    return tf.concat([marked * UNIT, outputs[..., mark.columns :]], -1)


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
