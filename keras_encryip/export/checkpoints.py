"""Write the checkpoint and the graph of a version folder, from those of another."""

import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_encryip.crypto.locked_weights import lock_arrays
from keras_encryip.errors import ExportError
from keras_encryip.formats.atomic_files import read_bounded, write_new_file
from keras_encryip.formats.version_folder import GRAPH
from keras_encryip.tracing.checkpoint import PREFIX, Checkpoint

_MAX_GRAPH_BYTES: Final = (1 << 31) - 1

Swaps: TypeAlias = Sequence[tuple[np.ndarray, np.ndarray]]
"""(old, new) values of constants in a graph."""


# --- graphs ------------------------------------------------------------------------------


def read_graph(folder: Path) -> Any:
    """The `SavedModel` message of a folder."""
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString(read_bounded(folder / GRAPH, what="graph", max_bytes=_MAX_GRAPH_BYTES))
    return saved


def write_graph(saved: Any, folder: Path) -> None:
    """What `read_graph` reads."""
    write_new_file(folder / GRAPH, saved.SerializeToString(deterministic=True))


def constants(saved: Any) -> Iterator[tuple[Any, np.ndarray]]:
    """(node, value) of every constant in a graph."""
    for meta in saved.meta_graphs:
        functions = meta.graph_def.library.function
        for nodes in (meta.graph_def.node, *(function.node_def for function in functions)):
            for node in nodes:
                if node.op == "Const":
                    yield node, tf.make_ndarray(node.attr["value"].tensor)


def swap_constants(saved: Any, swaps: Swaps) -> bool:
    """Put new values in the places of old ones, and say whether each was found."""
    swapped = [False] * len(swaps)
    for node, value in constants(saved):
        for i, (old, new) in enumerate(swaps):
            alike = value.dtype == old.dtype and value.size == old.size
            if alike and np.array_equal(value.ravel(), old):
                tensor = node.attr["value"].tensor
                tensor.CopyFrom(tf.make_tensor_proto(new, tensor.dtype, value.shape))
                swapped[i] = True
                break
    return all(swapped)


def text(value: str | bytes) -> np.ndarray:
    """A string as the graph's constants have it."""
    return np.array([value.encode() if isinstance(value, str) else value], object)


@contextmanager
def without_key_file(folder: Path, key_file: str) -> Iterator[Path]:
    """A locked folder that finds no key, whatever this machine has at the path of its key file."""
    with tempfile.TemporaryDirectory() as place:
        for path in folder.iterdir():
            if path.name != GRAPH:
                (Path(place) / path.name).symlink_to(path.resolve(), path.is_dir())
        saved = read_graph(folder)
        if not swap_constants(saved, [(text(key_file), text(f"{place}/no key"))]):
            raise ExportError(f"The graph of {str(folder)!r} does not look for {key_file!r}.")
        write_graph(saved, Path(place))
        yield Path(place)


# --- checkpoints -------------------------------------------------------------------------


@contextmanager
def in_memory() -> Iterator[str]:
    """A folder that is on no disk, for a SavedModel that is not to be there."""
    folder = f"ram://encryip-{secrets.token_hex(16)}"
    try:
        yield folder
    finally:
        if tf.io.gfile.exists(folder):
            tf.io.gfile.rmtree(folder)


def copy_folder(source: str, target: Path, *, without: Sequence[str]) -> None:
    """Copy files on any of TensorFlow's file systems into an existing folder."""
    for name in tf.io.gfile.listdir(source):
        name = name.rstrip("/")
        place = f"{source}/{name}"
        if name in without:
            continue
        if tf.io.gfile.isdir(place):
            (target / name).mkdir()
            copy_folder(place, target / name, without=())
        else:
            tf.io.gfile.copy(place, str(target / name))


def write_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    changed: Mapping[str, np.ndarray] | None = None,
    key: bytes | None = None,
) -> None:
    """Write a checkpoint anew.

    Args:
        checkpoint: where the values come from.
        folder: the new version folder.
        changed: values of variables that get others, by name; of locked ones, what they hold.
        key: locks those that are locked.
    """
    changed = dict(changed or {})
    if key is not None:
        names = checkpoint.locked
        values = [changed[n] if n in changed else checkpoint.read(n) for n in names]
        locked, proof = lock_arrays(key, values)
        changed |= dict(zip(checkpoint.locked, locked, strict=True))
        changed[checkpoint.proof_name] = np.frombuffer(proof, np.uint8)
    names = sorted(checkpoint.dtypes)
    prefix = folder / PREFIX
    prefix.parent.mkdir()
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[
            tf.constant(changed[name] if name in changed else checkpoint.read(name))
            for name in names
        ],
    )


def head_names(checkpoint: Checkpoint, num_labels: int) -> set[str]:
    """Which variables of a checkpoint are the head's."""
    return {
        attribute.checkpoint_key
        for node in checkpoint.objects.nodes
        for attribute in node.attributes
        if f"/{attribute.full_name}".endswith(_HEAD)
        and checkpoint.shapes[attribute.checkpoint_key][-1:] == [num_labels]
    }


_HEAD: Final = ("/confused_labels/kernel", "/confused_labels/bias")
