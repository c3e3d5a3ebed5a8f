"""Weights of a model or of a suspect: read from anywhere, paired, and put back in order."""

import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from shutil import copyfileobj
from typing import Any, BinaryIO, Final

import numpy as np
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from keras_encryip.errors import ArgumentError, FormatError

MAX_BYTES: Final = 1 << 34
"""Of all arrays of a file together."""

_IN_KERAS_FILE: Final = "model.weights.h5"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_NPY: Final = b"\x93NUMPY"
_ZIP: Final = b"PK\x03\x04"
_NOT_THE_MODEL: Final = ("optimizer/_variables/", "optimizer/vars/", "optimizer_weights/")
_SLOT: Final = ".OPTIMIZER_SLOT"

_SAMPLE: Final = 1 << 14
_SAME_PLACE: Final = 0.1
_ALIKE: Final = 0.8
_MOSTLY: Final = 0.5
_GAIN: Final = 0.1
_MAX_ROUNDS: Final = 5

_Damaged = (
    ValueError,
    OSError,
    EOFError,
    LookupError,
    RuntimeError,
    MemoryError,
    NotImplementedError,
)


def kernels_of(model: Any) -> list[Any]:
    """The variables of a Keras model that are personalised, in the order of `model.weights`.

    All of a floating dtype with at least 2 axes: kernels, embeddings, and the few biases and
    statistics of that shape.
    """
    return [v for v in model.weights if len(v.shape) >= 2 and "float" in str(v.dtype)]


def read_kernels(source: Any) -> list[np.ndarray]:
    """All arrays with at least 2 axes, wherever weights may have been found.

    Args:
        source: a SavedModel folder, a `.keras`, `.h5`, `.npz` or `.npy` file (known by its
            contents, not its name), an object with `get_weights()`, an array, or a list,
            tuple or dict of arrays. Floats, bfloat16, and integers of 8 or 16 bits.

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
        try:
            kernels = _kernels(_read_folder(path) if path.is_dir() else _read_file(path))
        except FormatError:
            raise
        except _Damaged as error:
            reason = getattr(error, "strerror", None) or "it is damaged"
            raise FormatError(f"Cannot read weights from {str(path)!r}: {reason}.") from None
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


def match(
    suspect: Sequence[np.ndarray], reference: Sequence[np.ndarray | tuple[int, ...]]
) -> list[np.ndarray | None]:
    """Find each kernel of the original among a suspect's.

    Among kernels of equal shape, those are paired whose absolute correlations have the
    largest sum; the same place in the order decides between kernels that resemble nothing.

    Args:
        suspect: arrays, in any order.
        reference: the original's arrays; or only their shapes, then those of equal
            shape are paired in order.

    Returns:
        For each of `reference` an array of `suspect`, or `None`.

    Raises:
        ArgumentError: no shape fits.
    """
    found: list[np.ndarray | None] = [None] * len(reference)
    shapes = [r if isinstance(r, tuple) else r.shape for r in reference]
    for shape in dict.fromkeys(shapes):
        places = [i for i, other in enumerate(shapes) if other == shape]
        candidates = [array for array in suspect if array.shape == shape]
        likeness = np.zeros((len(places), len(candidates)))
        np.fill_diagonal(likeness, _SAME_PLACE)
        originals = [r for i in places if not isinstance(r := reference[i], tuple)]
        if len(originals) == len(places) and candidates:
            likeness += np.abs(_sampled(originals) @ _sampled(candidates).T)
        for row, column in zip(*linear_sum_assignment(-likeness), strict=True):
            found[places[row]] = candidates[column]
    if all(array is None for array in found):
        raise ArgumentError(
            f"None of the suspect's {len(suspect)} kernels has the shape of one of the model's "
            f"{len(shapes)}: this is another architecture, or its kernels must be transposed first."
        )
    return found


def align(
    suspect: Sequence[np.ndarray | None], reference: Sequence[np.ndarray]
) -> list[np.ndarray | None]:
    """Undo a permutation of hidden units, which changes no output of a model.

    A kernel that hardly correlates with the original, and whose inputs or outputs resemble
    others of the original more than their own, has them reordered (last axis and the one
    before): to start with, by leaving one axis as it is, as in the kernel before, or by
    sorted values, which no permutation changes; then each axis in turn by its correlation
    with the original. Scales of inputs and outputs do not matter. After heavy changes this
    may take units for permuted that are not: score the suspect both ways, and multiply
    the p-value by 2.

    Args:
        suspect: as `match` gives it.
        reference: the original's arrays, of the same shapes.

    Returns:
        The same arrays, some of them reordered.
    """
    aligned: list[np.ndarray | None] = []
    known: list[np.ndarray] = []
    for found, original in zip(suspect, reference, strict=True):
        if found is None:
            aligned.append(None)
            continue
        order = _order(found, original, known)
        if order is None:
            aligned.append(found)
            continue
        rows, columns = order
        known.append(columns)
        aligned.append(found[..., rows, :][..., columns])
    return aligned


def _order(
    found: np.ndarray, original: np.ndarray, known: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Row and column indices that put `found` in the original's order; `None`: as it is.

    `known` are orders of the outputs of earlier kernels: perhaps that of these inputs.
    """
    shape = (-1, *found.shape[-2:])
    moved, fixed = _balanced(found.reshape(shape)), _balanced(original.reshape(shape))
    plain = float(np.mean(moved * fixed))
    if plain >= _ALIKE:
        return None
    by_rows = _pair(_by_row(moved), _by_row(fixed))
    by_columns = _pair(_by_column(moved), _by_column(fixed))
    if min(_in_place(by_rows), _in_place(by_columns)) > _MOSTLY:
        return None
    best, order = plain + _GAIN, None
    for start in _starts(moved, fixed, by_rows, known):
        rows, columns = start, np.arange(shape[2])
        for _ in range(_MAX_ROUNDS):
            before = columns
            columns = _pair(_by_column(moved[:, rows]), _by_column(fixed))
            rows = _pair(_by_row(moved[:, :, columns]), _by_row(fixed))
            if np.array_equal(before, columns):
                break
        likeness = float(np.mean(moved[:, rows][:, :, columns] * fixed))
        if likeness > best:
            best, order = likeness, (rows, columns)
        if best >= _ALIKE:
            break
    return order


def _starts(
    moved: np.ndarray, fixed: np.ndarray, by_rows: np.ndarray, known: Sequence[np.ndarray]
) -> Iterator[np.ndarray]:
    """Orders of the inputs to try, the likeliest and cheapest first."""
    inputs = moved.shape[1]
    yield from (order for order in reversed(known) if len(order) == inputs)
    yield np.arange(inputs)
    yield by_rows
    columns = _pair(_by_column(np.sort(moved, 1)), _by_column(np.sort(fixed, 1)))
    yield _pair(_by_row(moved[:, :, columns]), _by_row(fixed))
    yield _pair(_by_row(np.sort(moved, 2)), _by_row(np.sort(fixed, 2)))


def _in_place(order: np.ndarray) -> float:
    return float(np.mean(order == np.arange(len(order))))


def _balanced(kernel: np.ndarray) -> np.ndarray:
    """float32 `[k, inputs, outputs]` with all inputs and outputs scaled to mean square 1."""
    values = np.nan_to_num(kernel.astype(np.float32), posinf=0, neginf=0)
    for axes in ((0, 1), (0, 2)) * 3:
        size = np.sqrt(np.mean(values * values, axes, keepdims=True))
        values = np.divide(values, size, out=np.zeros_like(values), where=size > 0)
    return values


def _by_row(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(1, 0, 2).reshape(kernel.shape[1], -1)


def _by_column(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(2, 0, 1).reshape(kernel.shape[2], -1)


def _pair(moved: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Indices into the rows of `moved` that bring each beside its like in `fixed`."""
    distances = (moved * moved).sum(1) - 2 * fixed @ moved.T
    return np.asarray(linear_sum_assignment(distances)[1])


def _sampled(kernels: Sequence[np.ndarray]) -> np.ndarray:
    """The same entries of each kernel, standardised: products are correlations."""
    size = kernels[0].size
    chosen = np.random.default_rng(0).choice(size, _SAMPLE) if size > _SAMPLE else np.arange(size)
    values = np.stack([kernel.reshape(-1)[chosen] for kernel in kernels]).astype(np.float64)
    values = np.nan_to_num(values, posinf=0, neginf=0)
    values -= values.mean(1, keepdims=True)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-30))


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
    if size > MAX_BYTES:
        raise FormatError(f"{str(path)!r} is too large: more than {MAX_BYTES} bytes of weights.")


def _in_order(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """Sorts numbers by value, and names of private attributes after all others."""
    return name.startswith("_"), [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _of_the_model(name: str) -> bool:
    return not name.startswith(_NOT_THE_MODEL) and _SLOT not in name


def _read_folder(folder: Path) -> Iterator[np.ndarray]:
    prefix = folder / "variables" / "variables"
    if not prefix.with_suffix(".index").is_file():
        raise FormatError(
            f"{str(folder)!r} is not a SavedModel: it has no variables/variables.index. Pass the "
            "folder that holds saved_model.pb."
        )
    import tensorflow as tf

    try:
        checkpoint = tf.train.load_checkpoint(str(prefix))
        shapes = checkpoint.get_variable_to_shape_map()
        dtypes = checkpoint.get_variable_to_dtype_map()
        names = [n for n, shape in shapes.items() if len(shape) >= 2 and _of_the_model(n)]
        _check_size(sum(int(np.prod(shapes[n])) * dtypes[n].size for n in names), folder)
        seen = set()
        for name in sorted(names, key=_in_order):
            array = checkpoint.get_tensor(name)
            data = array.tobytes()
            if data not in seen:  # Keras keeps some variables under two names
                seen.add(data)
                yield array
    except tf.errors.OpError:
        raise FormatError(f"The variables of {str(folder)!r} are damaged.") from None


def _read_file(path: Path) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        magic = file.read(8)
        file.seek(0)
        if magic.startswith(_HDF5):
            yield from _read_hdf5(file, path)
        elif magic.startswith(_NPY):
            _check_size(path.stat().st_size, path)
            yield np.load(file, allow_pickle=False)
        elif magic.startswith(_ZIP):
            yield from _read_zip(file, path)
        else:
            raise FormatError(
                f"{str(path)!r} is none of .keras, .h5, .npz and .npy. Convert it to one of them, "
                "or pass its arrays."
            )


def _read_zip(file: BinaryIO, path: Path) -> Iterator[np.ndarray]:
    try:
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
                        yield np.lib.format.read_array(packed, allow_pickle=False)
    except zipfile.BadZipFile:
        raise FormatError(f"{str(path)!r} is a damaged zip file.") from None


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
