"""A new version of an exported folder, its outputs in another order: revocation in the field."""

import shutil
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeAlias, overload

import msgspec
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2, trackable_object_graph_pb2

from keras_encryip.formats.version_folder import ASSETS, read_codebook
from keras_encryip.formats.atomic_files import make_new_folder, read_bounded, sync_tree, write_new_file
from keras_encryip.formats.responses import open_responses
from keras_encryip.formats.manifest import FILE_NAME, MAX_MANIFEST_BYTES, RESPONSE_KEY_INSIDE, make_manifest, verify_export
from keras_encryip.errors import ArgumentError, ExportError, LockedModelError
from keras_encryip.export.checks import EXACT, difference
from keras_encryip.labels.codebook import FILE_NAME as CODEBOOK
from keras_encryip.labels.codebook import Codebook
from keras_encryip.models.protected_model import ProtectedModel
from keras_encryip.authority.authority import Authority

_Swaps: TypeAlias = list[tuple[np.ndarray, np.ndarray]]
"""(old, new) values of constants in a graph."""

_GRAPH: Final = "saved_model.pb"
_VARIABLES: Final = Path("variables") / "variables"
_OBJECTS: Final = "_CHECKPOINTABLE_OBJECT_GRAPH"
_HEAD: Final = ("confused_labels/kernel", "confused_labels/bias")
_WRITTEN_ANEW: Final = (_GRAPH, "variables", ASSETS.parts[0], "fingerprint.pb")
"""Of a version folder; the last, which is optional, has digests of the old graph."""
_MAX_GRAPH_BYTES: Final = (1 << 31) - 1


@overload
def rotate_codebook(source: ProtectedModel) -> None: ...
@overload
def rotate_codebook(
    source: str | PathLike[str], directory: str | PathLike[str], *, authority: Authority
) -> None: ...
def rotate_codebook(
    source: Any, directory: str | PathLike[str] | None = None, *, authority: Authority | None = None
) -> None:
    """Shut out who was revoked: give an exported folder a new version, without training.

    The new version has the outputs of the old one in another order, random and secret: the
    columns of its head are permuted. It has a codebook of its own under the
    revocations of now, and a response key of its own if there was one. So neither a revoked
    user's key nor a decode table kept from before reads it. Nobody else's key changes; they
    need the new version's codebook. The mark of a recipient and the trace inputs stay.

    What this cannot do: whoever holds the old weights and the old decode table goes on using
    them, and can match the columns of two versions (docs/serving.md).

    Args:
        source: a version folder that `export_saved_model` or this function made, such as
            `"served/digits/1"`. Or a `ProtectedModel` that is unlocked with its authority: it
            gets a new codebook, and keeps its order; its next export ships it.
        directory: the new version folder, such as `"served/digits/2"`. Must not exist; it
            appears whole or not at all, so that a running server may watch for it.
        authority: the one that exported `source`.

    Raises:
        ExportError: `source` fails verification, or the new version does not give its outputs.
        ForeignKeyError: another authority signed `source`.
        LedgerError: `authority` did not export `source`.
        LockedModelError: the model is not unlocked with its authority.

    Example:
    >>> rotate_codebook(folder / "digits" / "1", folder / "digits" / "5", authority=authority)
    >>> decoder = Decoder.open(folder / "digits" / "5", folder / "alice.keybundle", "correct horse")
    """
    if isinstance(source, ProtectedModel):
        if directory is not None or authority is not None:
            raise ArgumentError("`directory` and `authority` belong to a folder, not to a model.")
        return _renew(source)
    if directory is None or not isinstance(authority, Authority):
        raise ArgumentError(
            "A folder needs a new `directory` and the `authority` that exported it. Received: "
            f"directory={directory!r}, authority={type(authority).__name__}"
        )
    old, owner = Path(source), authority
    if Path(directory).resolve().is_relative_to(old.resolve()):
        raise ArgumentError(
            f"`directory` must not be inside of what is rotated. Received: directory={directory!r}"
        )
    manifest = verify_export(old, issuer=owner.issuer)
    hosted = manifest.warning is not msgspec.UNSET
    signed = read_bounded(old / ASSETS / FILE_NAME, what="manifest", max_bytes=MAX_MANIFEST_BYTES)
    before = read_codebook(old)
    owner.exported(signed)  # refused before anything is drawn

    def fill(draft: Path) -> None:
        if hosted:
            draft.chmod(0o700)
        after, moved = owner.reorder(before)
        keys = [owner.response_key(codebook) if hosted else None for codebook in (before, after)]
        _copy_rest(old, draft)
        _write_graph(old, draft, _swaps(before, after, keys))
        _write_variables(old, draft, moved)
        _compare(_Outputs(old, before, keys[0]), _Outputs(draft, after, keys[1]), moved)
        verify_export(old, issuer=owner.issuer)  # what was copied is still what was verified
        assets = draft / ASSETS
        assets.mkdir(parents=True)
        write_new_file(assets / CODEBOOK, after.to_bytes())
        made = make_manifest(draft, after, owner.sign, RESPONSE_KEY_INSIDE if hosted else None)
        write_new_file(assets / FILE_NAME, made)
        verify_export(draft, issuer=owner.issuer)
        sync_tree(draft)
        owner.add_reordered_export(after, made, folder=Path(directory).name, source=signed)

    make_new_folder(directory, fill)


def _renew(model: ProtectedModel) -> None:
    protection = model._unlocked()
    if protection.authority is None:
        raise LockedModelError("Rotating a codebook needs `model.unlock(authority=...)`.")
    own = Codebook.from_bytes(model.codebook.encode("ascii"))
    new = protection.authority.current_codebook(own.codebook_id, fresh=True)
    model.codebook = new.to_bytes().decode("ascii")


# --- writing -----------------------------------------------------------------------------


def _copy_rest(old: Path, draft: Path) -> None:
    for path in old.iterdir():
        if path.is_dir() and path.name not in _WRITTEN_ANEW:
            shutil.copytree(path, draft / path.name)
        elif path.name not in _WRITTEN_ANEW:
            shutil.copyfile(path, draft / path.name)


def _swaps(before: Codebook, after: Codebook, keys: list[bytes | None]) -> _Swaps:
    """What the graphs of `export_saved_model` hold of a codebook and of its response key."""

    def words(old: bytes, new: bytes) -> tuple[np.ndarray, np.ndarray]:
        return np.frombuffer(old, "<u4"), np.frombuffer(new, "<u4")

    if keys[0] is not None and keys[1] is not None:
        halves = [words(keys[0][i : i + 16], keys[1][i : i + 16]) for i in (0, 16)]
        return [*halves, words(before.codebook_id, after.codebook_id)]
    return [
        (np.array(before.ciphertext_prefixes, object), np.array(after.ciphertext_prefixes, object)),
        (np.array(before.ciphertext_suffixes, object), np.array(after.ciphertext_suffixes, object)),
        (before.block_of, after.block_of),
    ]


def _write_graph(old: Path, draft: Path, swaps: _Swaps) -> None:
    """The graph with other values of the constants that a codebook or a key is made of."""
    saved = saved_model_pb2.SavedModel()
    data = read_bounded(old / _GRAPH, what="graph", max_bytes=_MAX_GRAPH_BYTES)
    saved.ParseFromString(data)
    found = [0] * len(swaps)
    for node in _nodes(saved):
        if node.op != "Const":
            continue
        tensor = node.attr["value"].tensor
        value = tf.make_ndarray(tensor)
        for i, (own, new) in enumerate(swaps):
            alike = value.dtype == own.dtype and value.size == own.size
            if alike and np.array_equal(value.ravel(), own):
                tensor.CopyFrom(tf.make_tensor_proto(new, tensor.dtype, value.shape))
                found[i] += 1
                break
    if not all(found):
        raise ExportError(f"The graph of {str(old)!r} is not one that `export_saved_model` wrote.")
    write_new_file(draft / _GRAPH, saved.SerializeToString(deterministic=True))


def _nodes(saved: Any) -> Iterator[Any]:
    for meta in saved.meta_graphs:
        yield from meta.graph_def.node
        for function in meta.graph_def.library.function:
            yield from function.node_def


def _write_variables(old: Path, draft: Path, moved: np.ndarray) -> None:
    """The checkpoint with the head's columns at their new numbers."""
    checkpoint = tf.train.load_checkpoint(str(old / _VARIABLES))
    head = _head_keys(checkpoint, len(moved))
    if not head:
        raise ExportError(f"{str(old)!r} has no head `confused_labels` of {len(moved)} outputs.")
    names = sorted(checkpoint.get_variable_to_dtype_map())
    values = []
    for name in names:
        value = checkpoint.get_tensor(name)
        if name in head:
            value = value[..., np.argsort(moved)]
        values.append(tf.constant(value))
    (draft / _VARIABLES).parent.mkdir()
    everything = [""] * len(names)
    tf.raw_ops.SaveV2(
        prefix=str(draft / _VARIABLES),
        tensor_names=names,
        shape_and_slices=everything,
        tensors=values,
    )


def _head_keys(checkpoint: Any, num_labels: int) -> set[str]:
    objects = trackable_object_graph_pb2.TrackableObjectGraph()
    objects.ParseFromString(checkpoint.get_tensor(_OBJECTS))
    shapes = checkpoint.get_variable_to_shape_map()
    return {
        attribute.checkpoint_key
        for node in objects.nodes
        for attribute in node.attributes
        if f"/{attribute.full_name}".endswith(tuple(f"/{name}" for name in _HEAD))
        and shapes[attribute.checkpoint_key][-1:] == [num_labels]
    }


# --- checking ------------------------------------------------------------------------------


class _Outputs:
    """What a version folder answers."""

    def __init__(self, folder: Path, codebook: Codebook, key: bytes | None) -> None:
        self.codebook, self.key = codebook, key
        self.loaded = tf.saved_model.load(str(folder))  # signatures do not keep it alive
        self.signatures = self.loaded.signatures
        self.inputs = self.signatures["serving_default"].structured_input_signature[1]

    def confused(self, feed: dict[str, Any]) -> np.ndarray:
        found = self.signatures["serving_default"](**feed)
        if self.key is None:
            return np.asarray(found["confused"])
        book = self.codebook
        return open_responses(
            np.asarray(found["encrypted"]), self.key, book.codebook_id, book.num_labels
        )

    def ciphertexts_fit(self, feed: dict[str, Any]) -> Iterator[bool]:
        """For each label that is drawn, whether its ciphertext is the codebook's."""
        if self.key is None:
            found = self.signatures["encrypted_label"](**feed)["ciphertext_bytes"]
            for data in np.asarray(found).ravel():
                yield data == self.codebook.ciphertext(int.from_bytes(data[-8:-4], "big"))


def _compare(old: _Outputs, new: _Outputs, moved: np.ndarray) -> None:
    """Ask both versions the same, at two batch sizes."""
    random = np.random.default_rng(0)
    for batch in (1, 3):
        feed = {
            name: tf.cast(
                random.random([batch, *(d or 4 for d in spec.shape[1:])], "float32"), spec.dtype
            )
            for name, spec in old.inputs.items()
        }
        before, after = old.confused(feed), new.confused(feed)
        if not difference(after[..., moved], before) <= EXACT:
            raise ExportError(
                "The new version does not give the outputs of the old one; nothing was kept."
            )
        if not all(new.ciphertexts_fit(feed)):
            raise ExportError("The new version gives other ciphertexts than its codebook's.")
