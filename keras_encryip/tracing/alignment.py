"""A suspect's kernels beside the original's: paired, put back in order, correlated with marks."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from keras_encryip.errors import ArgumentError
from keras_encryip.tracing.fingerprint import correlate, whiten
from keras_encryip.tracing.statistics import SIGNIFICANCE
from keras_encryip.tracing.weights import kernels_of, read_kernels

_SAMPLE: Final = 1 << 14
_SAME_PLACE: Final = 0.1
_ALIKE: Final = 0.8
_MOSTLY: Final = 0.5
_GAIN: Final = 0.1
_MAX_ROUNDS: Final = 5


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
    matched: list[np.ndarray | None] = [None] * len(reference)
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
            matched[places[row]] = candidates[column]
    if all(array is None for array in matched):
        raise ArgumentError(
            f"None of the suspect's {len(suspect)} kernels has the shape of one of the model's "
            f"{len(shapes)}: this is another architecture, or its kernels must be transposed first."
        )
    return matched


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
    for kernel, original in zip(suspect, reference, strict=True):
        order = None if kernel is None else _order(kernel, original, known)
        if kernel is None or order is None:
            aligned.append(kernel)
            continue
        rows, columns = order
        known.append(columns)
        aligned.append(kernel[..., rows, :][..., columns])
    return aligned


def read_reference(
    source: Any, shapes: list[tuple[int, ...]], keys: Iterable[bytes] = ()
) -> list[np.ndarray]:
    """The original's kernels in the order in which they were marked; `keys` open locked ones."""
    if hasattr(source, "weights"):
        kernels = [np.asarray(kernel) for kernel in kernels_of(source)]
    else:
        kernels = [k for k in match(read_kernels(source, keys), shapes) if k is not None]
    if [kernel.shape for kernel in kernels] != shapes:
        raise ArgumentError(
            "`reference` must be the model as it was exported: its kernels have other shapes. "
            f"Received: {[kernel.shape for kernel in kernels]}"
        )
    return kernels


@dataclass(frozen=True)
class CopyScores:
    """How a suspect's weights correlate with the marks of several copies.

    Attributes:
        scores: standard deviations, by key of the marks.
        kernels: the suspect's, in the order in which they were scored.
        looks: in how many orders they were scored; p-values are multiplied by it.
    """

    scores: dict[str, float]
    kernels: list[np.ndarray | None]
    looks: int

    @property
    def threshold(self) -> float:
        """The least score whose corrected p-value is at most `SIGNIFICANCE`."""
        return float(np.sqrt(2 * np.log(len(self.scores) * self.looks / SIGNIFICANCE)))


def score_copies(
    suspect: Sequence[np.ndarray | None],
    originals: Sequence[np.ndarray] | None,
    keys: Mapping[str, bytes],
    progress: Callable[[int], None],
) -> CopyScores:
    """Correlate a suspect's kernels with every recipient's mark.

    Args:
        suspect: as `match` gives it.
        originals: the kernels before they were marked, or `None`: tracing is blind then.
        keys: fingerprint keys by recipient.
        progress: is told how many of `len(keys)` were scored.
    """

    def correlations(kernels: Sequence[np.ndarray | None]) -> dict[str, float]:
        blind: list[np.ndarray | None] = [None] * len(kernels)
        residual = whiten(kernels, blind if originals is None else originals)
        scores = {}
        for recipient, key in keys.items():
            scores[recipient] = correlate(residual, key)
            progress(1)
        return scores

    first = CopyScores(correlations(suspect), list(suspect), 1 if originals is None else 2)
    if originals is None:
        return first
    # One kernel left in order can convict one of several; the others need them all.
    aligned = align(suspect, originals)
    if all(a is b for a, b in zip(suspect, aligned, strict=True)):
        return first
    second = CopyScores(correlations(aligned), aligned, 2)

    def strength(result: CopyScores) -> tuple[int, float]:
        least = result.threshold
        return sum(z >= least for z in result.scores.values()), max(result.scores.values())

    return max(first, second, key=strength)


def _order(
    kernel: np.ndarray, original: np.ndarray, known: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Row and column indices that put `kernel` in the original's order; `None`: as it is.

    `known` are orders of the outputs of earlier kernels: perhaps that of these inputs.
    """
    shape = (-1, *kernel.shape[-2:])
    moved, fixed = _balanced(kernel.reshape(shape)), _balanced(original.reshape(shape))
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
