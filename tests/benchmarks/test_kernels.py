"""What thieves do to a kernel, by hand; and that no attack starts from another's weights."""

import keras
import numpy as np
import pytest

from benchmarks import tracing_robust
from benchmarks.tampering import integers, kernels, noisy, pruned


def test_the_smallest_weights_are_pruned() -> None:
    kernel = np.array([[0.3, -0.1], [0.0, -0.4], [0.2, 0.5]], np.float32)
    np.testing.assert_array_equal(
        pruned(kernel, 0.5), np.array([[0.3, 0], [0, -0.4], [0, 0.5]], np.float32)
    )
    assert kernel[0, 1] == np.float32(-0.1), "the kernel itself is left alone"


def test_of_equal_weights_as_many_are_pruned_as_asked_for() -> None:
    assert (pruned(np.ones((4, 5), np.float32), 0.3) == 0).sum() == 6


def test_integers_have_one_scale() -> None:
    found = integers(np.array([[0.5, -0.25], [0.1, 0.0]]))
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, [[127, -64], [25, 0]])


@pytest.mark.parametrize("size", [0.3, 1.0])
def test_noise_is_measured_by_the_kernels_own_deviation(size: float) -> None:
    kernel = 5 + np.random.default_rng(0).standard_normal((300, 300), np.float32) * 7
    found = noisy(kernel, size, np.random.default_rng(1))
    assert (found - kernel).std() == pytest.approx(7 * size, rel=0.02)
    assert (found - kernel).mean() == pytest.approx(0, abs=0.1)
    np.testing.assert_array_equal(found, noisy(kernel, size, np.random.default_rng(1)))


@pytest.mark.filterwarnings("ignore:.shuffle=True. was passed")
def test_attacks_on_a_service_start_from_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing_robust, "RATES", (1e-2,))
    monkeypatch.setattr(tracing_robust, "SHARES", (0.5, 0.9))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(inputs))
    random = np.random.default_rng(0)
    x, y = random.random((32, 4), np.float32), random.integers(0, 3, 32)
    start = kernels(model)[0].numpy()
    zeros, moved = {}, {}
    for attack in tracing_robust.attacks(model, x, y):
        found = kernels(model)[0].numpy()
        zeros[attack] = int((found == 0).sum())
        kept = found != 0
        moved[attack] = bool((found[kept] != start[kept]).any())
    np.testing.assert_array_equal(kernels(model)[0].numpy(), start)
    assert zeros == {
        "untouched": 0,
        "fine-tuned at 0.01": 0,
        "pruned 50%": 6,
        "pruned 90%": 11,
        "pruned 70%, fine-tuned at 0.001": 0,
    }
    tuned = {"fine-tuned at 0.01", "pruned 70%, fine-tuned at 0.001"}
    assert {attack for attack, any_moved in moved.items() if any_moved} == tuned
