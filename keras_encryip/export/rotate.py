"""A new version of an exported folder, its outputs in another order: revocation in the field."""

import shutil
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2, trackable_object_graph_pb2

from keras_encryip.authority.authority import Authority
from keras_encryip.errors import ArgumentError, ExportError
from keras_encryip.export.checks import EXACT, Answers, difference, probes
from keras_encryip.export.saved_model import complete_version
from keras_encryip.formats.atomic_files import make_new_folder, read_bounded, write_new_file
from keras_encryip.formats.manifest import FILE_NAME, MAX_MANIFEST_BYTES, verify_export
from keras_encryip.formats.version_folder import ASSETS, read_codebook
from keras_encryip.labels.codebook import Codebook

_Swaps: TypeAlias = list[tuple[np.ndarray, np.ndarray]]
"""(old, new) values of constants in a graph."""

_GRAPH: Final = "saved_model.pb"
_VARIABLES: Final = Path("variables") / "variables"
_OBJECTS: Final = "_CHECKPOINTABLE_OBJECT_GRAPH"
_HEAD: Final = ("confused_labels/kernel", "confused_labels/bias")
_WRITTEN_ANEW: Final = (_GRAPH, "variables", ASSETS.parts[0], "fingerprint.pb")
"""Of a version folder; the last, which is optional, has digests of the old graph."""
_MAX_GRAPH_BYTES: Final = (1 << 31) - 1


def rotate_codebook(
    source: str | PathLike[str], directory: str | PathLike[str], *, authority: Authority
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
            `"served/digits/1"`.
        directory: the new version folder, such as `"served/digits/2"`. Must not exist; it
            appears whole or not at all, so that a running server may watch for it.
        authority: the one that exported `source`.

    Raises:
        ExportError: `source` fails verification, or the new version does not give its outputs.
        ForeignKeyError: another authority signed `source`.
        LedgerError: `authority` did not export `source`.

    Example:
    >>> rotate_codebook(folder / "digits" / "1", folder / "digits" / "5", authority=authority)
    >>> decoder = Decoder.open(folder / "digits" / "5", folder / "alice.keybundle", "correct horse")
    """
    for name, path in (("source", source), ("directory", directory)):
        if not isinstance(path, str | PathLike):
            raise ArgumentError(
                f"`{name}` must be the path of a version folder. Received: {type(path).__name__}"
            )
    if not isinstance(authority, Authority):
        raise ArgumentError(
            "`authority` must be the Authority that exported `source`. "
            f"Received: {type(authority).__name__}"
        )
    old, target = Path(source), Path(directory)
    if target.resolve().is_relative_to(old.resolve()):
        raise ArgumentError(
            f"`directory` must not be inside of what is rotated. Received: directory={directory!r}"
        )
    keys, exports = authority.keys, authority.export_store
    hosted = verify_export(old, issuer=keys.issuer).warning is not msgspec.UNSET
    signed = read_bounded(old / ASSETS / FILE_NAME, what="manifest", max_bytes=MAX_MANIFEST_BYTES)
    before = read_codebook(old)
    exports.exported(signed)  # refused before anything is drawn

    def fill(draft: Path) -> None:
        after, moved = authority.model_store.reorder(before)
        response_keys = [keys.response_key(c) if hosted else None for c in (before, after)]
        _copy_rest(old, draft)
        _write_graph(old, draft, _swaps(before, after, response_keys))
        _write_variables(old, draft, moved)
        answers = Answers(old, before, response_keys[0]), Answers(draft, after, response_keys[1])
        _check_rotated(*answers, moved)
        verify_export(old, issuer=keys.issuer)  # what was copied is still what was verified
        manifest = complete_version(draft, after, keys, hosted=hosted)
        exports.add_reordered_export(after, manifest, folder=target.name, source=signed)

    make_new_folder(target, fill)


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
        (np.array([before.ciphertext_prefix], object), np.array([after.ciphertext_prefix], object)),
        (np.array(before.ciphertext_suffixes, object), np.array(after.ciphertext_suffixes, object)),
    ]


def _write_graph(old: Path, draft: Path, swaps: _Swaps) -> None:
    """The graph with other values of the constants that a codebook or a key is made of."""
    saved = saved_model_pb2.SavedModel()
    data = read_bounded(old / _GRAPH, what="graph", max_bytes=_MAX_GRAPH_BYTES)
    saved.ParseFromString(data)
    swapped = [0] * len(swaps)
    for node in _nodes(saved):
        if node.op != "Const":
            continue
        tensor = node.attr["value"].tensor
        value = tf.make_ndarray(tensor)
        for i, (old_value, new_value) in enumerate(swaps):
            alike = value.dtype == old_value.dtype and value.size == old_value.size
            if alike and np.array_equal(value.ravel(), old_value):
                tensor.CopyFrom(tf.make_tensor_proto(new_value, tensor.dtype, value.shape))
                swapped[i] += 1
                break
    if not all(swapped):
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


def _check_rotated(old: Answers, new: Answers, moved: np.ndarray) -> None:
    """Ask both versions the same."""
    for feed in probes(old):
        before, after = old.confused(feed), new.confused(feed)
        if not difference(after[..., moved], before) <= EXACT:
            raise ExportError(
                "The new version does not give the outputs of the old one; nothing was kept."
            )
        if not new.ciphertexts_fit(feed):
            raise ExportError("The new version gives other ciphertexts than its codebook's.")
