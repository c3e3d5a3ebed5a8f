"""Personalised weights: the noise, what attacks leave of it, and the bound on chance."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from keras_encryip.errors import ArgumentError
from keras_encryip.tracing.fingerprint import (
    FINGERPRINT_STRENGTH,
    NOISE_TABLE,
    Residual,
    correlate,
    embed,
    noise,
    p_value,
    strengths,
    whiten,
)
from keras_encryip.tracing.weights import kernels_of

Kernels = Sequence[np.ndarray]
SHAPES = [(3, 3, 1, 16), (3, 3, 16, 32), (288, 64), (64, 64), (64, 10)]
SIZE = sum(math.prod(shape) for shape in SHAPES)  # 27,920
INNOCENTS = 1000
# By the bound itself, one of 1,000 innocents passes this in one of 1,000,000 runs.
HIGHEST = math.sqrt(2 * math.log(INNOCENTS * 1e6))


def key_of(user: int) -> bytes:
    return user.to_bytes(32, "big")


TRAITOR = key_of(0)


def make_kernels(seed: int = 0) -> list[np.ndarray]:
    """Unlike normal ones: heavy tails, and outputs of different sizes."""
    random = np.random.default_rng(seed)
    return [
        (random.standard_t(6, shape) * random.uniform(0.5, 1.5, shape[-1]) * 0.1).astype("float32")
        for shape in SHAPES
    ]


@pytest.fixture(scope="module")
def original() -> list[np.ndarray]:
    return make_kernels()


def scores(residual: Residual, count: int = INNOCENTS) -> np.ndarray:
    return np.array([correlate(residual, key_of(user)) for user in range(1, count + 1)])


# --- the noise ---------------------------------------------------------------


def test_noise_has_normal_moments() -> None:
    drawn = noise(TRAITOR, 0, 1_000_000).astype(np.float64)
    assert abs(drawn.mean()) < 5e-3
    assert abs(drawn.var() - 1) < 8e-3
    assert abs(np.mean(drawn**3)) < 0.02
    assert abs(np.mean(drawn**4) - 2.9) < 0.1


def test_noise_never_changes() -> None:
    """Models in the field carry it: a change would lose their fingerprints."""
    drawn = noise(bytes(range(32)), 3, 16)
    assert drawn.dtype == np.float32
    assert drawn.astype("<f4").tobytes().hex() == (
        "393745beef4b253fc5dd31bf7b42bf3da1f748bff5ec8bbe46d4b03e3c33a6be"
        "0c9526befbb401bf1132103fe7a4a7bfd0ad783eb2bfcbbeebf574bff5ec8b3e"
    )


def test_noise_is_a_stream_cut_anywhere() -> None:
    whole = noise(TRAITOR, 1, 100_001)
    np.testing.assert_array_equal(noise(TRAITOR, 1, 32_769), whole[:32_769])
    np.testing.assert_array_equal(noise(TRAITOR, 1, 5), whole[:5])
    assert noise(TRAITOR, 1, 0).shape == (0,)


def test_noise_of_other_keys_and_kernels_is_uncorrelated() -> None:
    size = 100_000
    streams = [noise(key_of(u), k, size) for u in range(4) for k in range(4)]
    correlations = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlations).max() < 6 / math.sqrt(size)


def test_table_is_symmetric_with_variance_just_below_1() -> None:
    table = NOISE_TABLE.astype(np.float64)
    np.testing.assert_array_equal(table, -table[::-1])
    assert 1 - 1e-6 < np.mean(table**2) <= 1


def test_table_is_sub_gaussian() -> None:
    """E n^2k ≤ (2k−1)!! for all k, hence E exp(λn) ≤ exp(λ²/2), term by term of the series.

    Above k = 10 the largest entry alone proves it: each further step multiplies the
    moment by at most max² = 8.4, and (2k−1)!! by at least 19.
    """
    table = NOISE_TABLE.astype(np.float64)
    for k in range(1, 12):
        assert np.mean(table ** (2 * k)) <= math.prod(range(1, 2 * k, 2))
    assert table.max() ** 2 < 19
    for rate in np.linspace(-20, 20, 40_001):
        assert np.log(np.mean(np.exp(rate * table - rate * rate / 2))) <= 1e-15


# --- marking -----------------------------------------------------------------


def test_mark_adds_noise_in_proportion(original: list[np.ndarray]) -> None:
    before = [kernel.copy() for kernel in original]
    marked = embed(original, TRAITOR, 0.05)
    fractions = strengths([kernel.size for kernel in original], 0.05)
    for index, (kernel, old, new) in enumerate(zip(original, before, marked, strict=True)):
        np.testing.assert_array_equal(kernel, old)
        assert new.dtype == kernel.dtype
        added = (new - old).reshape(-1) / (fractions[index] * old.std())
        np.testing.assert_allclose(added, noise(TRAITOR, index, old.size), atol=1e-2)


def test_small_kernels_are_marked_less() -> None:
    assert strengths([400, 100, 0], 0.1) == pytest.approx([0.1, 0.05, 0])
    large = 1 << 15
    assert strengths([100 * large, large, large // 4], 0.1) == pytest.approx([0.1, 0.1, 0.05])
    assert strengths([]) == []


def test_mark_keeps_half_precision_and_constants() -> None:
    half, constant = np.linspace(-1, 1, 64).reshape(8, 8).astype("float16"), np.ones((4, 4))
    marked = embed([half, constant], TRAITOR)
    assert marked[0].dtype == np.float16
    assert np.abs(marked[0] - half).max() > 0
    np.testing.assert_array_equal(marked[1], constant)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), "0" * 32, None])
def test_wrong_keys_are_refused(key: Any, original: list[np.ndarray]) -> None:
    residual = whiten(original, original)
    for call in (
        lambda: embed(original, key),
        lambda: noise(key, 0, 3),
        lambda: correlate(residual, key),
    ):
        with pytest.raises(ArgumentError, match="32 bytes"):
            call()


@pytest.mark.parametrize("strength", [0, -0.1, 1.5, math.nan, math.inf])
def test_wrong_strengths_are_refused(strength: float, original: list[np.ndarray]) -> None:
    for call in (
        lambda: embed(original, TRAITOR, strength),
        lambda: whiten(original, original, strength),
    ):
        with pytest.raises(ArgumentError, match="strength"):
            call()


def test_weights_that_are_not_finite_cannot_be_marked() -> None:
    with pytest.raises(ArgumentError, match="Kernel 1"):
        embed([np.eye(3), np.array([[1.0, np.nan]])], TRAITOR)


def test_lists_that_do_not_fit_are_refused(original: list[np.ndarray]) -> None:
    with pytest.raises(ArgumentError, match="same kernels"):
        whiten(original[:2], original)
    with pytest.raises(ArgumentError, match=r"Kernel 2 .*\(288, 64\)"):
        whiten([*original[:2], original[2].T, *original[3:]], original)
    with pytest.raises(ArgumentError, match="at least 2 axes"):
        whiten([np.ones(3)], [None])


# --- attacks -----------------------------------------------------------------


def attack(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Kernels], list[np.ndarray]]:
    return lambda kernels: [np.asarray(change(kernel), np.float32) for kernel in kernels]


def pruned(share: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda w: np.where(np.abs(w) < np.quantile(np.abs(w), share), 0, w)


def int8_per_tensor(w: np.ndarray) -> np.ndarray:
    return np.round(w / np.abs(w).max() * 127)


def int8_per_channel(w: np.ndarray) -> np.ndarray:
    return np.round(w / np.abs(w).max(tuple(range(w.ndim - 1))) * 127)


def uint8_with_zero_point(w: np.ndarray) -> np.ndarray:
    return np.round((w - w.min()) / (w.max() - w.min()) * 255)


def noisy(amount: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda w: w + amount * w.std() * np.random.default_rng(7).standard_normal(w.shape)


def folded(w: np.ndarray) -> np.ndarray:
    """As BatchNormalization scales outputs, signs included."""
    gains = np.random.default_rng(7).uniform(0.2, 3, w.shape[-1])
    return w * gains * np.where(np.arange(w.shape[-1]) % 3 == 0, -1, 1)


def rescaled(w: np.ndarray) -> np.ndarray:
    random = np.random.default_rng(7)
    rows = random.lognormal(0, 0.7, (w.shape[-2], 1))
    return w * rows * random.lognormal(0, 0.7, w.shape[-1])


def averaged(copies: int) -> Callable[[Kernels], list[np.ndarray]]:
    """The traitor's copy with others'; the others' keys are not among the innocents."""

    def change(kernels: Kernels) -> list[np.ndarray]:
        others = [embed(make_kernels(), key_of(10**6 + i)) for i in range(1, copies)]
        return [np.mean(same, axis=0) for same in zip(kernels, *others, strict=True)]

    return change


def overwritten(w: np.ndarray) -> np.ndarray:
    """A twentieth of the weights replaced by huge, infinite or undefined values."""
    random = np.random.default_rng(7)
    junk = random.choice([1e9, -1e30, np.inf, np.nan], w.shape).astype(np.float32)
    return np.where(random.random(w.shape) < 0.05, junk, w)


# What is left of z = √SIZE = 167, about a tenth below what was measured.
ATTACKS = {
    "nothing": (attack(lambda w: w), 150),
    "float16": (attack(lambda w: w.astype(np.float16)), 150),
    "int8 per tensor": (attack(int8_per_tensor), 51),
    "int8 per channel": (attack(int8_per_channel), 99),
    "uint8 with zero point": (attack(uint8_with_zero_point), 55),
    "pruned 50 %": (attack(pruned(0.5)), 105),
    "pruned 70 %": (attack(pruned(0.7)), 80),
    "pruned 90 %": (attack(pruned(0.9)), 44),
    "pruned, then int8": (attack(lambda w: int8_per_channel(pruned(0.5)(w))), 66),
    "noise as strong as the mark": (attack(noisy(FINGERPRINT_STRENGTH)), 87),
    "noise ten times as strong": (attack(noisy(10 * FINGERPRINT_STRENGTH)), 11),
    "averaged 2": (averaged(2), 106),
    "averaged 5": (averaged(5), 67),
    "averaged 10": (averaged(10), 46),
    "outputs scaled": (attack(folded), 149),
    "inputs and outputs scaled": (attack(rescaled), 144),
    "junk": (attack(overwritten), 145),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_traitor_stands_out(name: str, original: list[np.ndarray]) -> None:
    change, least = ATTACKS[name]
    residual = whiten(change(embed(original, TRAITOR)), original)
    innocent = scores(residual)
    z = correlate(residual, TRAITOR)
    assert z > least
    assert innocent.max() < HIGHEST
    assert p_value(z) < 1e-30


@pytest.mark.parametrize("name", ["nothing", "int8 per tensor", "pruned 90 %", "junk"])
@pytest.mark.parametrize("strength", [0.003, 0.03, 0.1])
def test_copies_of_another_strength_are_traced(
    strength: float, name: str, original: list[np.ndarray]
) -> None:
    """Releases before 0.4 marked at 0.03; tracing never asks how strong a mark was."""
    change = ATTACKS[name][0]
    residual = whiten(change(embed(original, TRAITOR, strength)), original)
    assert correlate(residual, TRAITOR) > 14
    assert scores(residual, 300).max() < HIGHEST


def test_every_one_of_the_averaged_copies_is_found(original: list[np.ndarray]) -> None:
    copies = [embed(original, key_of(user)) for user in range(5)]
    residual = whiten([np.mean(same, 0) for same in zip(*copies, strict=True)], original)
    assert min(correlate(residual, key_of(user)) for user in range(5)) > 60
    assert max(correlate(residual, key_of(user)) for user in range(5, 500)) < HIGHEST


def test_without_the_original(original: list[np.ndarray]) -> None:
    """Blind, the weights themselves are the noise: z is about strength · √weights."""
    marked = embed(original, TRAITOR, 0.1)
    blind = whiten(marked, [None] * len(marked), 0.1)
    assert correlate(blind, TRAITOR) > 10
    assert scores(blind).max() < HIGHEST
    assert correlate(whiten(marked, original, 0.1), TRAITOR) > 150


def test_half_of_the_kernels_suffice(original: list[np.ndarray]) -> None:
    marked: list[np.ndarray | None] = list(embed(original, TRAITOR))
    marked[2] = None
    residual = whiten(marked, original)
    assert residual.parts[2] is None
    assert correlate(residual, TRAITOR) > 0.85 * math.sqrt(SIZE - original[2].size)


def test_untouched_outputs_keep_their_mark(original: list[np.ndarray]) -> None:
    """Fine-tuning that moves nine outputs in ten without measure."""

    def tune(w: np.ndarray) -> np.ndarray:
        moved = w + 3 * w.std() * np.random.default_rng(7).standard_normal(w.shape)
        return np.where(np.arange(w.shape[-1]) % 10 == 0, w, moved)

    residual = whiten(attack(tune)(embed(original, TRAITOR)), original)
    assert correlate(residual, TRAITOR) > 40


def test_the_original_itself_accuses_nobody(original: list[np.ndarray]) -> None:
    residual = whiten(original, original)
    assert (residual.norm, residual.size) == (0.0, 0)
    assert correlate(residual, TRAITOR) == 0.0
    assert p_value(0.0) == 1.0


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan, np.inf])
def test_constant_suspects_accuse_nobody(value: float, original: list[np.ndarray]) -> None:
    suspect = [np.full_like(kernel, value) for kernel in original]
    for reference in (original, [None] * len(original)):
        assert abs(correlate(whiten(suspect, reference), TRAITOR)) < 5


def test_numbers_beyond_single_precision(original: list[np.ndarray]) -> None:
    suspect = [kernel.astype(np.float64) for kernel in embed(original, TRAITOR)]
    for kernel in suspect:
        kernel[..., 0] *= 1e300
    assert correlate(whiten(suspect, original), TRAITOR) > 140


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e6, 1e30])
def test_any_size_of_numbers(size: float, original: list[np.ndarray]) -> None:
    suspect = [np.float32(size) * kernel for kernel in embed(original, TRAITOR)]
    assert correlate(whiten(suspect, original), TRAITOR) > 140
    assert np.isfinite(correlate(whiten(suspect, [None] * len(original)), TRAITOR))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 3, 5, 1)])
def test_tiny_kernels(shape: tuple[int, ...]) -> None:
    kernel = np.random.default_rng(0).normal(size=shape).astype("float32")
    for suspect in (embed([kernel], TRAITOR), [3 * kernel], [kernel * 0], [-kernel]):
        for reference in ([kernel], [None], [kernel * 0]):
            z = correlate(whiten(suspect, reference), TRAITOR)
            assert abs(z) <= NOISE_TABLE.max() * math.sqrt(kernel.size)


@pytest.mark.long
def test_fine_tuning(digits: Any) -> None:
    """The classifier of a traitor, trained further: as a user would, and much too hard."""
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(n, activation="relu") for n in (128, 64)]
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            *layers,
            keras.layers.Dense(10, activation="softmax"),
        ]
    )

    def train(rate: float, epochs: int) -> None:
        optimizer = keras.optimizers.Adam(rate)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(digits.x, digits.y, batch_size=64, epochs=epochs, verbose=0)

    def accuracy() -> float:
        return float(model.evaluate(digits.x_test, digits.y_test, verbose=0)[1])

    train(2e-3, 15)
    variables = kernels_of(model)
    original = [v.numpy() for v in variables]
    before = accuracy()
    for variable, marked in zip(variables, embed(original, TRAITOR), strict=True):
        variable.assign(marked)
    assert before > 0.93
    assert accuracy() > before - 0.01
    for rate, epochs, least in ((1e-3, 10, 25), (1e-2, 10, 7)):
        train(rate, epochs)
        residual = whiten([v.numpy() for v in variables], original)
        assert correlate(residual, TRAITOR) > least
        assert scores(residual, 300).max() < HIGHEST


# --- innocents ---------------------------------------------------------------

NULL_KEYS = 2000


@pytest.mark.parametrize(
    "name", ["nothing", "int8 per channel", "pruned 90 %", "averaged 10", "junk", "blind"]
)
def test_innocents_score_as_the_normal_law_says(name: str, original: list[np.ndarray]) -> None:
    marked = embed(original, TRAITOR)
    if name == "blind":
        residual = whiten(marked, [None] * len(marked))
    else:
        residual = whiten(ATTACKS[name][0](marked), original)
    z = scores(residual, NULL_KEYS)
    assert abs(z.mean()) < 4.5 / math.sqrt(NULL_KEYS)
    assert abs(z.std() - 1) < 4.5 / math.sqrt(2 * NULL_KEYS)
    assert stats.kstest(z, "norm").pvalue > 1e-4
    bounds = np.array([p_value(value) for value in z])
    for level in (0.5, 0.2, 0.1, 0.05, 0.01):
        # At most `level` of the innocents, and 4.5 standard deviations of chance.
        spread = 4.5 * math.sqrt(level * (1 - level) / NULL_KEYS)
        assert np.mean(bounds <= level) <= level + spread


def test_p_value_bounds_the_normal_tail() -> None:
    for z in np.linspace(0, 38, 381):
        assert stats.norm.sf(z) <= p_value(float(z)) <= 1
    assert p_value(-3.0) == 1.0
    assert p_value(10.0) == pytest.approx(math.exp(-50))
    assert p_value(200.0) == 0.0


def test_default_strength_is_what_the_measurements_are_for() -> None:
    assert FINGERPRINT_STRENGTH == 0.01
