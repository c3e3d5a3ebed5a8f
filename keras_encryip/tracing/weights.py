"""Weights of a model or of a suspect, read from anywhere."""

import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from os import PathLike
from os.path import isdir
from pathlib import Path
from shutil import copyfileobj
from typing import Any, BinaryIO, Final, cast

import numpy as np

from keras_encryip.crypto.npy import load_npy
from keras_encryip.errors import DAMAGED, ArgumentError, FormatError, instead_of
from keras_encryip.formats.atomic_files import open_file
from keras_encryip.tracing.checkpoint import Checkpoint

_FREE_BYTES: Final = 256 << 20
_MOST_PACKED: Final = 4

MAX_BYTES: Final = 1 << 34
"""Of all arrays of a file together."""

_IN_KERAS_FILE: Final = "model.weights.h5"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_NPY: Final = b"\x93NUMPY"
_ZIP: Final = b"PK\x03\x04"
_NOT_THE_MODEL: Final = ("optimizer/_variables/", "optimizer/vars/", "optimizer_weights/")
_SLOT: Final = ".OPTIMIZER_SLOT"


def kernels_of(model: Any) -> list[Any]:
    """The variables of a Keras model that are personalised, in the order of `model.weights`.

    All of a floating dtype with at least 2 axes: kernels, embeddings, and the few biases and
    statistics of that shape.
    """
    return [v for v in model.weights if len(v.shape) >= 2 and "float" in str(v.dtype)]


def read_kernels(source: Any, keys: Iterable[bytes] = ()) -> list[np.ndarray]:
    """All arrays with at least 2 axes, wherever weights may have been found.

    Args:
        source: a SavedModel folder, a `.keras`, `.h5`, `.npz` or `.npy` file (known by its
            contents, not its name), an object with `get_weights()`, an array, or a list,
            tuple or dict of arrays. Floats, bfloat16, and integers of 8 or 16 bits.
        keys: of which one opens the folder, should its weights be locked.

    Returns:
        float32 arrays. Integers are not rescaled. Their order is the source's, not that of
        `model.weights`: read the original with `kernels_of`, a suspect with this and `match`.

    Raises:
        FormatError: a file is missing, malformed, too large, or holds no such array.
        ArgumentError: an object that cannot hold weights, or holds no such array.

    Example:
    >>> [kernel.shape for kernel in read_kernels([np.ones((3, 4)), np.ones(4)])]
    [(3, 4)]
    """
    if isinstance(source, (str, PathLike)):
        path = Path(source)
        with instead_of(*DAMAGED, raises=partial(_unreadable, path)):
            kernels = _kernels(_read_folder(path, keys) if isdir(path) else _read_file(path))
        if not kernels:
            raise FormatError(f"{str(path)!r} holds no array of numbers with at least 2 axes.")
        return kernels
    if hasattr(source, "get_weights"):
        arrays = source.get_weights()
    elif isinstance(source, Mapping):
        arrays = source.values()
    else:
        arrays = [source] if isinstance(source, np.ndarray) else source
    if not isinstance(arrays, Iterable) or isinstance(arrays, (bytes, bytearray)):
        raise ArgumentError(
            "Weights must be a path, a model, or a list or dict of arrays. Received: "
            f"{type(source).__name__}"
        )
    kernels = _kernels(np.asarray(array) for array in arrays)
    if not kernels:
        raise ArgumentError("The weights hold no array of numbers with at least 2 axes.")
    return kernels


def _kernels(arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
    return [_as_float(array) for array in arrays if array.ndim >= 2 and _is_weights(array)]


def _is_weights(array: np.ndarray) -> bool:
    kind, size = array.dtype.kind, array.dtype.itemsize
    numbers = kind == "f" or (kind in "iu" and size <= 2) or _is_bfloat16(array.dtype)
    return numbers and array.size > 0


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """numpy files keep bfloat16 as two bytes of no type."""
    return dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None


def _as_float(array: np.ndarray) -> np.ndarray:
    if _is_bfloat16(array.dtype):
        upper = np.ascontiguousarray(array).view(np.uint16).astype(np.uint32)
        return (upper << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, np.float32)


def _check_size(size: int, path: Path) -> None:
    """Refuse a file that unpacks to many times its size."""
    if size > max(_FREE_BYTES, _MOST_PACKED * path.stat().st_size):
        raise FormatError(
            f"{str(path)!r} unpacks to {size} bytes, more than {_MOST_PACKED} times its size. "
            "Unpack it yourself, and pass its arrays."
        )
    if size > MAX_BYTES:
        raise FormatError(f"{str(path)!r} is too large: more than {MAX_BYTES} bytes of weights.")


def _in_order(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """Sorts numbers by value, and names of private attributes after all others."""
    return name.startswith("_"), [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _of_the_model(name: str) -> bool:
    return not name.startswith(_NOT_THE_MODEL) and _SLOT not in name


def _read_folder(folder: Path, keys: Iterable[bytes]) -> Iterator[np.ndarray]:
    prefix = folder / "variables" / "variables"
    if not prefix.with_suffix(".index").is_file():
        raise FormatError(
            f"{str(folder)!r} is not a SavedModel: it has no variables/variables.index. Pass the "
            "folder that holds saved_model.pb."
        )
    import tensorflow as tf

    with instead_of(tf.errors.OpError, raises=partial(_unreadable, folder)):
        checkpoint = Checkpoint(folder)
        shapes, dtypes = checkpoint.shapes, checkpoint.dtypes
        names = [n for n, shape in shapes.items() if len(shape) >= 2 and _of_the_model(n)]
        _check_size(sum(int(np.prod(shapes[n])) * dtypes[n].size for n in names), folder)
        unlocked = checkpoint.unlocked(keys) if checkpoint.locked else {}
        seen = set()
        for name in sorted(names, key=_in_order):
            array = unlocked[name] if name in unlocked else checkpoint.read(name)
            data = array.tobytes()
            if data not in seen:  # Keras keeps some variables under two names
                seen.add(data)
                yield array


def _unreadable(path: Path, error: Exception) -> FormatError:
    problem = getattr(error, "strerror", None) or "it is damaged"
    return FormatError(f"Cannot read weights from {str(path)!r}: {problem}.")


def _read_file(path: Path) -> Iterator[np.ndarray]:
    with open(open_file(path), "rb") as file:
        magic = file.read(8)
        file.seek(0)
        if magic.startswith(_HDF5):
            yield from _read_hdf5(file, path)
        elif magic.startswith(_NPY):
            size = path.stat().st_size
            _check_size(size, path)
            yield load_npy(file, size)
        elif magic.startswith(_ZIP):
            yield from _read_zip(file, path)
        else:
            raise FormatError(
                f"{str(path)!r} is none of .keras, .h5, .npz and .npy. Convert it to one of them, "
                "or pass its arrays."
            )


def _read_zip(file: BinaryIO, path: Path) -> Iterator[np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        _check_size(sum(sizes.values()), path)
        if _IN_KERAS_FILE in sizes:
            with archive.open(_IN_KERAS_FILE) as packed, tempfile.TemporaryFile() as unpacked:
                copyfileobj(packed, unpacked)
                yield from _read_hdf5(unpacked, path)
            return
        for name in sizes:
            if name.endswith(".npy"):
                with archive.open(name) as packed:
                    yield load_npy(cast(BinaryIO, packed), sizes[name])


def _read_hdf5(file: Any, path: Path) -> Iterator[np.ndarray]:
    """Arrays inside the file only: links and data kept in other files are not followed."""
    import h5py  # type: ignore[import-untyped]

    with h5py.File(file, "r") as root:
        names: list[str] = []
        root.visititems(
            lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
        )
        wanted = [root[n] for n in sorted(names, key=_in_order) if _of_the_model(n)]
        wanted = [d for d in wanted if d.ndim >= 2 and not d.external and not d.is_virtual]
        _check_size(sum(d.size * d.dtype.itemsize for d in wanted), path)
        for dataset in wanted:
            yield np.asarray(dataset[()])
