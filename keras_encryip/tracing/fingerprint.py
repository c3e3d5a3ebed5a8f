"""Weights personalised for a recipient, and the evidence that found weights are theirs.

Every weight W of a kernel becomes W + s · std(W) · n, where s is the kernel's `strengths`: the
n of one recipient come from a stream cipher under their key, have variance 1, and are
independent of everybody else's. Correlating a suspect's deviation from the original with a
recipient's noise sums a little evidence from every weight (Cox et al., IEEE Trans. Image
Process. 6(12), 1997).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from Crypto.Cipher import AES
from Crypto.Hash import SHA256

from keras_encryip.errors import ArgumentError

KEY_BYTES: Final = 32

FINGERPRINT_STRENGTH: Final = 0.01
"""Standard deviation of a recipient's noise, as a fraction of the kernel's own, in large kernels.

0.03 before release 0.4. Copies of that time are traced as before: `whiten` only weights by it."""

MAX_STRENGTH: Final = 1.0

_LARGE: Final = 1 << 15
_CHUNK: Final = 1 << 15
_CLIP: Final = 3.0
_MAX_ZEROS: Final = 0.01
_JUNK: Final = 1e6
_MIN_GAIN: Final = 0.05
_SWEEPS: Final = 4


def _normal_table() -> np.ndarray:
    """float32 `[256]`: normal quantiles, symmetric, of variance 1 (a hair below, never above)."""
    upper = [NormalDist().inv_cdf((byte + 0.5) / 256) for byte in range(128, 256)]
    scale = np.sqrt(np.mean(np.square(upper)))
    half = np.nextafter((np.array(upper) / scale).astype(np.float32), np.float32(0))
    return np.concatenate([-half[::-1], half])


NOISE_TABLE: Final = _normal_table()
"""The noise of each keystream byte. Every even moment is at most the normal's, so that
E exp(λn) ≤ exp(λ²/2) for all λ; `p_value` rests on it."""


@dataclass(frozen=True, slots=True)
class Residual:
    """What of a suspect's weights can be correlated with noise; made by `whiten`.

    Attributes:
        parts: for each kernel float32 `[size]`, 0 where a weight tells nothing;
            `None` where the whole kernel tells nothing.
        norm: square root of the sum of squares of all parts.
        size: number of weights that count.
    """

    parts: tuple[np.ndarray | None, ...]
    norm: float
    size: int


def noise(key: bytes, kernel: int, size: int) -> np.ndarray:
    """The noise of one kernel, float32 `[size]`: AES-256-CTR bytes through `NOISE_TABLE`.

    It depends on nothing else, whatever the versions of Python and numpy. A shorter one
    is the beginning of a longer one.

    Args:
        key: 32 bytes, one per model and recipient.
        kernel: number of the kernel in its model; the cipher's nonce.
        size: number of weights.
    """
    _check_key(key)
    values = np.empty(size, np.float32)
    for part, drawn in _chunks(key, kernel, size):
        values[part] = drawn
    return values


def strengths(sizes: Sequence[int], strength: float = FINGERPRINT_STRENGTH) -> list[float]:
    """Of each kernel's mark: strength · √(size / size of a large kernel), at most strength.

    A kernel's mark disturbs the outputs about as much whatever the kernel's size, but its
    evidence grows with the number of its weights. So small kernels, and above all the first
    convolution, get less of it. Large is the largest kernel, or 32,768 weights if that is less.

    Args:
        sizes: numbers of weights, by kernel.
        strength: of large kernels; above 0, at most 1.

    Example:
    >>> strengths([1 << 16, 1 << 15, 1 << 13], 0.01)
    [0.01, 0.01, 0.005]
    """
    _check_strength(strength)
    large = max(1, min(_LARGE, max(sizes, default=1)))
    return [strength * min(1.0, (size / large) ** 0.5) for size in sizes]


def embed(
    kernels: Sequence[np.ndarray], key: bytes, strength: float = FINGERPRINT_STRENGTH
) -> list[np.ndarray]:
    """Personalise kernels: W + s · std(W) · n, with the `strengths` s.

    Args:
        kernels: float arrays, in the model's order. They are not changed.
        key: 32 bytes, one per model and recipient.
        strength: of large kernels; above 0, at most 1.

    Returns:
        New arrays of the same shapes and dtypes. Constant kernels stay as they are.

    Raises:
        ArgumentError: a wrong key or strength, or weights that are not finite.
    """
    _check_key(key)
    marked = []
    fractions = strengths([kernel.size for kernel in kernels], strength)
    for index, (kernel, fraction) in enumerate(zip(kernels, fractions, strict=True)):
        deviation = float(kernel.std(dtype=np.float64))
        if not np.isfinite(deviation):
            raise ArgumentError(f"Kernel {index} holds values that are not finite: train it again.")
        drawn = noise(key, index, kernel.size).reshape(kernel.shape)
        moved = kernel.astype(np.float32) + np.float32(fraction * deviation) * drawn
        marked.append(moved.astype(kernel.dtype))
    return marked


def whiten(
    suspect: Sequence[np.ndarray | None],
    reference: Sequence[np.ndarray | None],
    strength: float = FINGERPRINT_STRENGTH,
) -> Residual:
    """Prepare a suspect once, to be scored against many keys.

    From every kernel the original is subtracted, after undoing a change of scale: output by
    output (last axis) the simplest of none, a gain, a gain and an offset, and a gain by output
    and input (last two axes) that explains it; so raw integers of a quantised model will
    do. What is left of an output is divided by a robust scale, clipped to ±3, and weighted
    by min(1, strength · std(W) / scale): what was altered heavily counts less. It need not be
    the strength of the mark: another one moves z a little, and its distribution not at all. Zeros
    count nothing in a pruned kernel (more than 1 % of it), nor do values that are not finite.

    Args:
        suspect: for each kernel of the model an array, or `None` if it was not found.
        reference: the original's, of the same shapes; `None` where it is not at hand:
            then the suspect's own mean is subtracted (*blind*), which costs most of the
            evidence.
        strength: of the marks that are looked for, roughly.

    Raises:
        ArgumentError: the lists or shapes differ, or an array has fewer than 2 axes.
    """
    _check_strength(strength)
    if len(suspect) != len(reference):
        raise ArgumentError(
            f"`suspect` and `reference` must list the same kernels. Received: {len(suspect)} "
            f"and {len(reference)}; pair them with `keras_encryip.tracing.alignment.match`."
        )
    parts: list[np.ndarray | None] = []
    for index, (kernel, original) in enumerate(zip(suspect, reference, strict=True)):
        if kernel is None:
            parts.append(None)
            continue
        if kernel.ndim < 2 or (original is not None and original.shape != kernel.shape):
            wanted = "at least 2 axes" if original is None else f"the shape {original.shape}"
            raise ArgumentError(
                f"Kernel {index} of `suspect` must have {wanted}. Received: {kernel.shape}; pair "
                "kernels with `keras_encryip.tracing.alignment.match`."
            )
        parts.append(_whiten_kernel(kernel, original, strength))
    kept = [part for part in parts if part is not None]
    return Residual(
        tuple(parts),
        float(np.sqrt(sum(_sum_of_squares(part) for part in kept))),
        sum(int(np.count_nonzero(part)) for part in kept),
    )


def correlate(residual: Residual, key: bytes) -> float:
    """How well the residual correlates with a key's noise.

    Returns:
        z: mean 0 and standard deviation 1 for everybody whose noise is not in it. 0.0 if
        the residual holds nothing.
    """
    _check_key(key)
    if not residual.norm:
        return 0.0
    total = 0.0
    for index, part in enumerate(residual.parts):
        if part is not None:
            for where, values in _chunks(key, index, part.size):
                total += float(np.dot(part[where], values))
    return total / residual.norm


def p_value(z: float) -> float:
    """A bound on the chance that a given innocent recipient scores z or more: exp(−z²/2).

    It holds whatever was done to the weights: given the residual, which is made without
    any key, an innocent's noise is independent of it, and `NOISE_TABLE` gives
    E exp(λz) ≤ exp(λ²/2); Chernoff's bound is the rest. Multiply by the number of
    recipients scored. 1.0 for z ≤ 0; 0.0 above 38.6, where it is smaller than any float.
    """
    return float(np.exp(-0.5 * z * z)) if z > 0 else 1.0


def _chunks(key: bytes, kernel: int, size: int) -> Iterator[tuple[slice, np.ndarray]]:
    cipher = AES.new(key, AES.MODE_CTR, nonce=kernel.to_bytes(8, "big"), initial_value=0)
    zeros = bytes(_CHUNK)
    for start in range(0, size, _CHUNK):
        count = min(_CHUNK, size - start)
        stream = np.frombuffer(cipher.encrypt(zeros[:count]), np.uint8)
        yield slice(start, start + count), NOISE_TABLE[stream]


def _whiten_kernel(
    suspect: np.ndarray, reference: np.ndarray | None, strength: float
) -> np.ndarray | None:
    """float32 `[size]`, or `None` if it tells nothing."""
    shape = (-1, *suspect.shape[-2:])
    with np.errstate(over="ignore"):
        values = suspect.astype(np.float32, copy=False).reshape(shape)
    original = None
    if reference is not None:
        original = reference.astype(np.float32, copy=False).reshape(shape)
    counts = _counted(values, original)
    typical = _typical(values, counts)
    if typical < np.finfo(np.float32).tiny:
        return None
    counts &= np.abs(values) <= _JUNK * typical
    unit = np.float32(2.0 ** np.floor(np.log2(typical)))
    values = np.where(counts, values, np.float32(0)) / unit
    if original is None:
        inside = values[counts].astype(np.float64)
        left = np.where(counts, values - np.float32(inside.mean()), np.float32(0))
        deviation = float(inside.std())
    else:
        left = _subtract(values, original, counts, 1 / unit)
        deviation = float(original.std(dtype=np.float64))
    scale = _scales(left, counts)
    usable = scale > 0
    if not usable.any():
        return None
    scale = np.where(usable, scale, 1)
    weight = np.where(usable, np.minimum(1, strength * deviation / scale), 0)
    np.divide(left, scale.astype(np.float32), out=left)
    np.clip(left, -_CLIP, _CLIP, out=left)
    left *= weight.astype(np.float32)
    return left.reshape(-1)


def _counted(values: np.ndarray, original: np.ndarray | None) -> np.ndarray:
    """Which weights tell something: finite, and not pruned."""
    zeros = values == 0
    if original is not None:
        zeros &= original != 0
    if np.count_nonzero(zeros) <= _MAX_ZEROS * values.size:
        zeros[...] = False
    return np.asarray(np.isfinite(values) & ~zeros)


def _typical(values: np.ndarray, counts: np.ndarray) -> float:
    """The median absolute value, zeros apart; 0.0 if there are only zeros."""
    sizes = np.abs(values[counts & (values != 0)])
    return float(np.median(sizes, overwrite_input=True)) if sizes.size else 0.0


def _subtract(
    values: np.ndarray, original: np.ndarray, counts: np.ndarray, equal: np.float32
) -> np.ndarray:
    """(S − offset) / gain − W, float32 `[k, inputs, outputs]`; 0 where nothing counts.

    Each output has the least Bayesian information criterion of four: the gain `equal` of
    an unchanged kernel, another gain, a gain and an offset, or a gain by output and input.
    So nothing is regressed away without need, and the units that fine-tuning never moved
    keep their mark whole.
    """
    weights = np.where(counts, original, np.float32(0))
    size = _sum(counts)
    mean, mean_values = (_sum(part) / np.maximum(size, 1) for part in (weights, values))
    products = _sum(values * weights)
    energy = _sum(weights * weights)
    slope = _ratio(products, energy)
    tilted = _ratio(products - size * mean * mean_values, energy - size * mean * mean)
    columns, rows = slope, np.ones((1, values.shape[1], 1))
    for _ in range(_SWEEPS):
        balanced = weights * columns.astype(np.float32)
        rows = _ratio(_sum(values * balanced, (0, 2)), _sum(balanced * balanced, (0, 2)))
        balanced = weights * rows.astype(np.float32)
        columns = _ratio(_sum(values * balanced), _sum(balanced * balanced))
    none = np.zeros_like(slope)
    left = np.zeros_like(values)
    least = np.full(slope.shape, np.inf)
    for gain, offset, parameters in (
        (np.full_like(slope, equal), none, 0.0),
        (slope, none, 1.0),
        (tilted, mean_values - tilted * mean, 2.0),
        (rows * columns, none, 1 + rows.size / columns.size),
    ):
        factor = gain.astype(np.float32)
        usable = np.abs(gain) > _MIN_GAIN * np.median(np.abs(gain))
        inverse = np.divide(1, factor, out=np.zeros_like(factor), where=usable)
        with np.errstate(over="ignore", invalid="ignore"):  # `equal`, where scales were changed
            error = np.where(counts, values - offset.astype(np.float32) - factor * weights, 0)
            criterion = _criterion(_sum(error * error), size, parameters)
            error *= inverse
        np.copyto(left, error, where=criterion < least)
        least = np.minimum(least, criterion)
    return left


def _scales(left: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The spread of each output, `[1, 1, outputs]`: 1.4826 times the median absolute value,
    or the root mean square where that is 0."""
    outputs = left.shape[2]
    sizes = np.where(counts, np.abs(left), np.float32(np.inf)).reshape(-1, outputs).T.copy()
    sizes.sort(axis=1)
    number = _sum(counts)
    middle = np.maximum(number.astype(np.int64) - 1, 0).reshape(outputs, 1) // 2
    median = np.take_along_axis(sizes, middle, 1).reshape(1, 1, outputs)
    median = np.where(number > 0, median, 0).astype(np.float64)
    mean_square = _sum(left * left) / np.maximum(number, 1)
    return np.asarray(np.where(median > 0, 1.4826 * median, np.sqrt(mean_square)))


def _criterion(energy: np.ndarray, size: np.ndarray, parameters: float) -> np.ndarray:
    """Bayesian information criterion; infinite with as many parameters as values."""
    number = np.maximum(size, 1)
    fit = np.full_like(energy, -np.inf)
    np.log(energy / number, out=fit, where=energy > 0)
    criterion = number * fit + parameters * np.log(number)
    return np.asarray(np.where(size > parameters, criterion, np.inf))


def _ratio(products: np.ndarray, energy: np.ndarray) -> np.ndarray:
    quotient = np.ones_like(products)
    np.divide(products, energy, out=quotient, where=energy > 0)
    return quotient


def _sum(values: np.ndarray, axes: tuple[int, int] = (0, 1)) -> np.ndarray:
    return np.asarray(np.sum(values, axes, dtype=np.float64, keepdims=True))


def _sum_of_squares(values: np.ndarray) -> float:
    return float(np.sum(values * values, dtype=np.float64))


def _check_key(key: bytes) -> None:
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise ArgumentError(f"A fingerprint key is {KEY_BYTES} bytes.")


def _check_strength(strength: float) -> None:
    if not 0 < strength <= MAX_STRENGTH:
        raise ArgumentError(
            f"`strength` must be above 0 and at most {MAX_STRENGTH:g}. Received: "
            f"strength={strength}"
        )


# --- commitments, made before anything leaked ----------------------------------------


def fingerprint_commitment(key: bytes) -> str:
    """SHA-256, in hexadecimal, of a domain tag and a recipient's fingerprint key."""
    return SHA256.new(b"encryip fingerprint key v1\0" + key).hexdigest()


def kernels_digest(kernels: Sequence[np.ndarray]) -> str:
    """SHA-256, in hexadecimal, of a model's kernels in order: shapes, and values as float32."""
    digest = SHA256.new(b"encryip kernels v1\0")
    for kernel in kernels:
        digest.update(repr(kernel.shape).encode() + b"\0")
        digest.update(np.ascontiguousarray(kernel, "<f4").tobytes())
    return digest.hexdigest()
