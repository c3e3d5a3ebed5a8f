"""Trace inputs fitted to weights: they outlast pruning, and nothing else changes."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_encryip as ke
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.models import trace_inputs
from keras_encryip.models.trace_inputs import LEAST_STEPS, SECONDS, STEPS, harden
from keras_encryip.tracing.weights import kernels_of

OUTPUTS, FEATURES, TRACES = 20, 40, 10


@dataclass
class Case:
    """A random network of two layers, and random trace inputs; the last two are not chosen."""

    kernels: list[Any]
    traces: TraceSet
    chosen: np.ndarray
    advanced: int = 0

    @classmethod
    def draw(cls, dtype: str = "float32") -> "Case":
        random = np.random.default_rng(0)
        shapes = [(FEATURES, 32), (32, OUTPUTS)]
        kernels = [keras.Variable(random.standard_normal(s).astype("float32")) for s in shapes]
        inputs = random.uniform(0, 9, (TRACES, FEATURES)).astype(dtype)
        traces = TraceSet(inputs, random.permutation(OUTPUTS)[:TRACES])
        return cls(kernels, traces, np.arange(TRACES) < TRACES - 2)

    def logits(self, inputs: Any) -> Any:
        first, second = self.kernels
        return keras.ops.relu(keras.ops.cast(inputs, "float32") @ first) @ second

    def advance(self, steps: int) -> None:
        self.advanced += steps

    def harden(self, **options: Any) -> TraceSet:
        arguments = {
            "logits": self.logits,
            "kernels": self.kernels,
            "traces": self.traces,
            "chosen": self.chosen,
            "advance": self.advance,
            "seed": 1,
        }
        return harden(**{**arguments, **options})

    def weights(self) -> list[np.ndarray]:
        return [keras.ops.convert_to_numpy(kernel) for kernel in self.kernels]


def test_labels_fit_and_ownership_inputs_stay() -> None:
    case = Case.draw()
    before = case.logits(case.traces.inputs).numpy().argmax(-1)
    hardened = case.harden()
    after = case.logits(hardened.inputs).numpy().argmax(-1)
    labels, chosen = case.traces.labels, case.chosen
    assert (before == labels).sum() < 3
    assert (after == labels)[chosen].sum() >= 7, "of 8"
    np.testing.assert_array_equal(hardened.labels, labels)
    np.testing.assert_array_equal(hardened.inputs[~chosen], case.traces.inputs[~chosen])
    assert hardened.digest != case.traces.digest
    assert case.advanced == STEPS


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype_and_range_are_kept(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_inputs, "STEPS", 30)
    case = Case.draw(dtype)
    old, new = case.traces.inputs, case.harden().inputs
    assert (new.dtype, new.shape) == (dtype, old.shape)
    assert (new != old).any()
    assert old.min() <= new.min() <= new.max() <= old.max()
    assert np.isfinite(new).all()


def test_weights_come_back_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_inputs, "STEPS", 6)
    case = Case.draw()
    before, seen = case.weights(), []
    case.harden(advance=lambda steps: seen.append(case.weights()))
    for original, now, *meanwhile in zip(before, case.weights(), *seen, strict=True):
        np.testing.assert_array_equal(now, original)
        assert all((w != original).any() for w in meanwhile), "noise at every step"
        zeros = [np.isclose(w, 0, atol=1e-9).mean() for w in meanwhile]
        assert max(zeros) < 0.01, "pruned weights are noisy as well"


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [1, 5])
def test_weights_come_back_when_it_is_stopped(error: BaseException, after: int) -> None:
    case = Case.draw()
    before = case.weights()

    def stops(steps: int) -> None:
        case.advance(steps)
        if case.advanced >= after:
            raise error

    with pytest.raises(type(error)):
        case.harden(advance=stops)
    assert after <= case.advanced < STEPS
    for original, now in zip(before, case.weights(), strict=True):
        np.testing.assert_array_equal(now, original)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "bool"])
def test_inputs_that_are_not_floats_stay(dtype: str) -> None:
    case = Case.draw(dtype)
    assert case.harden() is case.traces
    assert case.advanced == 0


def test_nothing_chosen_stays() -> None:
    case = Case.draw()
    assert case.harden(chosen=np.zeros(TRACES, bool)) is case.traces


def test_inputs_without_a_gradient_stay() -> None:
    """Floats that are token ids, or are rounded on the way."""
    case = Case.draw()
    before = case.weights()

    def looked_up(inputs: Any) -> Any:
        return case.logits(keras.ops.cast(keras.ops.cast(inputs, "int32"), "float32"))

    assert case.harden(logits=looked_up) is case.traces
    for original, now in zip(before, case.weights(), strict=True):
        np.testing.assert_array_equal(now, original)


def test_constant_inputs() -> None:
    """No range to move in."""
    case = Case.draw()
    constant = TraceSet(np.full((TRACES, FEATURES), 3, "float32"), case.traces.labels)
    np.testing.assert_array_equal(case.harden(traces=constant).inputs, constant.inputs)


# --- pace --------------------------------------------------------------------------


def run(seconds: float, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[float]]:
    """What is advanced and the rates, when every step takes so long."""
    now = [0.0]
    monkeypatch.setattr(trace_inputs.time, "monotonic", lambda: now[0])
    pace, advanced, rates = trace_inputs._Pace(), [], []
    while pace.remaining:
        rates.append(pace.rate)
        now[0] += seconds
        advanced.append(pace.tick())
    return advanced, rates


@pytest.mark.parametrize(
    ("seconds", "steps", "highest"),
    [
        pytest.param(0.001, STEPS, 0.02, id="fast"),
        pytest.param(SECONDS / 40, 40, 0.1, id="slow"),
        pytest.param(SECONDS / 100, 100, 0.04, id="between"),
        pytest.param(100.0, LEAST_STEPS, 0.1, id="very-slow"),
    ],
)
def test_slow_steps_are_fewer_and_larger(
    seconds: float, steps: int, highest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    advanced, rates = run(seconds, monkeypatch)
    assert len(advanced) in (steps, steps + 1), "to rounding"
    assert sum(advanced) == STEPS, "the bar is full at the end, however long it takes"
    assert min(advanced) >= 0
    assert rates[0] == pytest.approx(0.02), "the first step's time is not known yet"
    assert max(rates) == pytest.approx(highest, rel=0.15)
    assert max(np.diff(rates[1:])) < 0.005, "it falls, but for rounding"
    assert 0 < rates[-1] <= highest / 7


def test_ends_once_all_labels_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under many perturbations in a row; the bar is full all the same."""
    monkeypatch.setattr(trace_inputs, "_perturbed", lambda kernel, *_: kernel)
    case, calls = Case.draw(), []
    easy = np.arange(TRACES) < 3
    hardened = case.harden(chosen=easy, advance=calls.append)
    assert trace_inputs._PATIENCE < len(calls) < STEPS / 2
    assert sum(calls) == STEPS
    probabilities = keras.ops.softmax(case.logits(hardened.inputs)).numpy()[easy]
    own = np.take_along_axis(probabilities, case.traces.labels[easy][:, None], 1)
    assert (own > 0.9).all(), "each outweighs all other labels together"


@pytest.mark.parametrize("chunk", [1, 3 * FEATURES, 1 << 19])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs are taken one by one, by three, or all at once."""
    case = Case.draw()
    inputs, labels = case.traces.inputs, case.traces.labels
    monkeypatch.setattr(trace_inputs, "_CHUNK", chunk)
    slope, margin = trace_inputs._gradient(case.logits, inputs, labels)(keras.Variable(inputs))
    logits = case.logits(inputs).numpy().astype(np.float64)
    own = np.take_along_axis(logits, labels[:, None], 1)[:, 0]
    np.put_along_axis(logits, labels[:, None], -np.inf, 1)
    margins = own - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) - logits.max(1)
    assert margin == pytest.approx(margins.min(), rel=1e-4)
    monkeypatch.undo()
    whole, _ = trace_inputs._gradient(case.logits, inputs, labels)(keras.Variable(inputs))
    np.testing.assert_allclose(slope, whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_smallest_weights_go_and_the_others_are_blurred(dtype: str) -> None:
    random = np.random.default_rng(0)
    kernel = keras.Variable(random.standard_normal((200, 100)).astype(dtype), dtype=dtype)
    original = keras.ops.convert_to_numpy(kernel)
    shares, noises = [], []
    with trace_inputs._perturbing([kernel], random) as perturb:
        for step in range(12):
            perturb(step)
            now = keras.ops.convert_to_numpy(kernel).astype("float64")
            size = np.abs(original.astype("float64"))
            noises.append((now - original)[size > np.quantile(size, 0.85)].std())
            kept = [np.corrcoef(now[c], original[c].astype(float))[0, 1] for c in bands(size)]
            shares.append(sum(corner < 0.2 for corner in kept) / 10)
    expected = [0.2 if step % 2 else 0.05 for step in range(12)]
    np.testing.assert_allclose(noises, expected, rtol=0.1)
    assert [s for step, s in enumerate(shares) if step % 4 == 0] == [0.0] * 3
    assert all(0.4 <= s <= 0.8 for step, s in enumerate(shares) if step % 4)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(kernel), original)


def bands(size: np.ndarray) -> list[np.ndarray]:
    """The weights by size, in tenths."""
    edges = np.quantile(size, np.linspace(0, 1, 11))
    return [(size >= low) & (size <= high) for low, high in pairwise(edges)]


# --- on a model ------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of 64 trace labels, trained for a short time, and not exported yet."""
    folder = tmp_path_factory.mktemp("hardening")
    url = f"sqlite:///{folder}/acme.authority"
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)]
    classifier = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    with ke.Authority.create(url, "owner", scrypt_log2_n=14) as authority:
        authority.issue("alice", folder / "alice", passphrase="p", scrypt_log2_n=14)
        model = ke.protect(classifier, authority, name="digits", homophones=4, trace_labels=64)
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
        model.fit(digits.x, digits.y, batch_size=32, epochs=5, verbose=0)
        yield model


def known(model: Any, traces: TraceSet, pruned: float = 0.0) -> float:
    """The share of trace labels that the model gives, after magnitude pruning of its kernels."""
    kernels = kernels_of(model)
    originals = [keras.ops.convert_to_numpy(kernel) for kernel in kernels]
    try:
        for kernel, original in zip(kernels, originals, strict=True):
            sizes = np.abs(original)
            kernel.assign(np.where(sizes < np.quantile(sizes, pruned), 0, original))
        answers = np.asarray(model(traces.inputs, training=False)).argmax(-1)
    finally:
        for kernel, original in zip(kernels, originals, strict=True):
            kernel.assign(original)
    trace = model._unlocked().assignment().trace
    return float((answers == traces.labels)[np.isin(traces.labels, trace)].mean())


def traces_of(model: Any) -> TraceSet:
    return model._unlocked().training.traces


def sets_of(model: Any) -> list[bytes]:
    """Digests of all trace sets that the authority asks a service for, newest first."""
    secrets = model._unlocked()
    models = secrets.owner.model_store
    record = models.model_named(secrets.record.metadata.model)
    return [traces.digest for traces in models.trace_sets_of(record)]


@pytest.mark.long
def test_export_hardens_once_for_each_weights(trained: Any, digits: Any, tmp_path: Path) -> None:
    plain = traces_of(trained)
    weights = trained.get_weights()
    ke.export_saved_model(trained, tmp_path / "1")
    hardened = traces_of(trained)
    assert hardened.digest != plain.digest
    for before, after in zip(weights, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)
    assert sets_of(trained) == [hardened.digest], "the plain ones are in no export"

    # Pruned by 75 %, 26 trainings knew 0.03 … 0.56 of the plain labels and 0.81 … 1.0 of the
    # hardened, at least 0.4 more in each.
    before, after = ([known(trained, t, p) for p in (0, 0.75)] for t in (plain, hardened))
    assert after[0] >= before[0]
    assert after[1] > before[1] + 0.1
    ordinary = ~np.isin(plain.labels, trained._unlocked().assignment().trace)
    assert ordinary.sum() == 32
    np.testing.assert_array_equal(hardened.inputs[ordinary], plain.inputs[ordinary])

    ke.export_saved_model(trained, tmp_path / "2", recipient="alice")
    assert traces_of(trained) is hardened, "the same weights"
    trained.fit(digits.x[:256], digits.y[:256], batch_size=32, verbose=0)
    assert traces_of(trained) is hardened, "what it goes on learning"
    ke.export_saved_model(trained, tmp_path / "3")
    newest = traces_of(trained)
    assert sets_of(trained) == [newest.digest, hardened.digest]
    assert newest.digest != hardened.digest
    exports = [e for e in trained._unlocked().owner.events() if e.kind == "model exported"]
    digests = [hardened.digest, hardened.digest, newest.digest]
    assert [e.details["trace_set"] for e in exports] == [d.hex() for d in digests]


def test_an_export_that_is_interrupted_leaves_the_model(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.fit(traces_of(trained).inputs[:32], np.zeros(32, int), verbose=0)  # other weights
    weights, before = trained.get_weights(), traces_of(trained)

    def stops(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(trace_inputs, "_perturbed", stops)
    with pytest.raises(KeyboardInterrupt):
        ke.export_saved_model(trained, tmp_path / "1")
    assert traces_of(trained) is before
    for old, new in zip(weights, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    assert list(tmp_path.iterdir()) == []


def tokens() -> tuple[list[Any], np.ndarray, dict[str, Any]]:
    data = np.random.default_rng(0).integers(0, 50, (64, 6)).astype("float32")
    layers = [keras.Input((6,)), keras.layers.Embedding(50, 4), keras.layers.Flatten()]
    return layers, data, {"strategy": "random"}


def pixels() -> tuple[list[Any], np.ndarray, dict[str, Any]]:
    data = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1)).astype("uint8")
    layers = [keras.Input((8, 8, 1), dtype="uint8"), keras.layers.Rescaling(1 / 255)]
    return [*layers, keras.layers.Flatten()], data, {}


@pytest.mark.filterwarnings("ignore:Model 'plain' (has learned|puts)")  # it saw little
@pytest.mark.parametrize("make", [tokens, pixels])
def test_inputs_that_cannot_be_hardened_are_exported_as_they_are(
    make: Callable[[], Any], authority: ke.Authority, tmp_path: Path
) -> None:
    layers, data, options = make()
    classifier = keras.Sequential([*layers, keras.layers.Dense(3, activation="softmax")])
    options |= {"name": "plain", "homophones": 4, "trace_labels": 8}
    model = ke.protect(classifier, authority, **options)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(data, np.arange(64) % 3, epochs=10, verbose=0)  # its homophones come apart
    before = traces_of(model)
    ke.export_saved_model(model, tmp_path / "1")
    assert traces_of(model) is before
    assert traces_of(model).inputs.dtype == data.dtype
    (event,) = (e for e in authority.events() if e.kind == "model exported")
    assert event.details["trace_set"] == before.digest.hex()
