"""Locked version folders: where their key file is, how they are written, what stays readable."""

import os
import re
import warnings
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final

import numpy as np

from keras_encryip.errors import ArgumentError, printable
from keras_encryip.export.checkpoints import (
    constants,
    copy_folder,
    read_graph,
    write_checkpoint,
)
from keras_encryip.export.poly1305 import FOLDED
from keras_encryip.export.weight_lock import LETTERS, OURS
from keras_encryip.formats.version_folder import GRAPH
from keras_encryip.labels.codebook import Codebook
from keras_encryip.labels.codebook_mark import NAME as CODEBOOK_MARK
from keras_encryip.tracing.checkpoint import Checkpoint

DEFAULT_FOLDER: Final = "/run/secrets/encryip"

_PATTERN: Final = re.compile(r"[*?\[\]{}\\]|[^\x20-\x7e]")
"""What TensorFlow would look for as a pattern, or a terminal shows as something else."""

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
_READABLE: Final = 64
"""Numbers or characters in a constant of the graph that are worth a warning."""


def check_key_file(key_file: str | PathLike[str] | None, name: str) -> str:
    """Where a host will have the key.

    Args:
        key_file: what the owner says.
        name: the model's, for the default.

    Raises:
        ArgumentError: not an absolute path, or one that TensorFlow reads as a pattern.
    """
    if key_file is None:
        if not _PLAIN_NAME.fullmatch(name) or not name.strip("."):
            raise ArgumentError(
                f"`key_file` is needed: the model's name {name!r} makes no plain file name."
            )
        return f"{DEFAULT_FOLDER}/{name}.key"
    path = os.fspath(key_file) if isinstance(key_file, str | PathLike) else key_file
    if not isinstance(path, str) or not 1 < len(path) <= 4096:
        raise ArgumentError(f"`key_file` must be a path. Received: key_file={key_file!r}")
    absolute = PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()
    if not absolute or path.endswith("/") or _PATTERN.search(path.replace("\\", "/")):
        raise ArgumentError(
            "`key_file` must be the absolute path of a file, in ASCII and without any of * ? [ ] "
            f"{{ }}. Received: key_file={path!r}"
        )
    return path


def lock_folder(source: str, draft: Path, key: bytes) -> None:
    """Write a SavedModel into a folder, its variables locked.

    Args:
        source: the SavedModel, its variables in the clear.
        draft: an empty folder.
        key: 32 bytes, of a new lock.
    """
    copy_folder(source, draft, without=["variables", "fingerprint.pb"])
    write_checkpoint(Checkpoint(source), draft, key=key)


def warn_of_readable(draft: Path, name: str, codebook: Codebook) -> None:
    """Name what a locked folder shows to whoever has no key: assets, and large constants."""
    assets = draft / "assets"
    readable = [p.relative_to(draft).as_posix() for p in assets.rglob("*") if p.is_file()]
    public = {codebook.ciphertext_prefix, *codebook.ciphertext_suffixes, *LETTERS}
    for node, value in constants(read_graph(draft)):
        flat = value.ravel()
        if value.size < _READABLE or (flat == flat[0]).all() or _is_ours(node, flat, public):
            continue
        readable.append(f"the constant {node.name!r} of {GRAPH}, {value.dtype} {list(value.shape)}")
    if readable:
        named = printable(", ".join(sorted({*readable})))
        warnings.warn(
            f"Whoever has the locked export of model {name!r} reads without a key: {named}. "
            "Variables and vocabularies are locked, and nothing else: keep what must not be read "
            "in variables.",
            stacklevel=5,
        )


def _is_ours(node: Any, flat: np.ndarray, public: set[bytes]) -> bool:
    """Whether a constant is one that every export has."""
    if flat.dtype.kind == "O":  # or names the checkpoint's variables
        return node.name.endswith("/tensor_names") or public.issuperset(flat)
    if OURS in node.name or CODEBOOK_MARK in node.name:
        return True
    return np.array_equal(flat, FOLDED.ravel())
