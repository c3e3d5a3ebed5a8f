"""Tampering does what it says, and the ladder measures every rung once."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_encryip as ke
from benchmarks import removal
from benchmarks import rows as rows_module
from benchmarks.backbones import build
from benchmarks.data import Data, load
from benchmarks.removal import Ladder, World
from benchmarks.rows import Rows, read
from benchmarks.sizes import QUICK
from benchmarks.tampering import (
    accuracy,
    decoded_classifier,
    distil,
    finetune,
    kernels,
    predict,
    prune,
    quantise,
    replace_head,
)
from benchmarks.training import Schedule
from benchmarks.trainings import PASSPHRASE, Trainings
from keras_encryip.models import trace_inputs
from keras_encryip.tracing.fingerprint import strengths

pytestmark = [
    pytest.mark.slow,  # trains attackers and peers, for minutes
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning"),
]

SIZE = replace(QUICK[0], first=Schedule(2, 32), second=Schedule(12, 32, 3e-3))
LADDER = Ladder((Schedule(1, 32, 1e-2),), (0.5,), Schedule(1, 32), Schedule(1, 32))
RUNGS = {
    ("untouched", ""),
    ("fine-tuned", "at 0.01, 1 epoch"),
    ("pruned", "50%"),
    ("int8", ""),
    ("float16", ""),
    ("distilled", ""),
    ("replaced head", ""),
}


@pytest.fixture(scope="module")
def data() -> Data:
    return load("digits", SIZE.samples, SIZE.others)


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    with Trainings(SIZE, 0) as found:
        yield found


@pytest.fixture(scope="module")
def made(trainings: Trainings) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_inputs, "STEPS", 20)
        yield removal.world(trainings, users=40)


@pytest.fixture
def stolen(made: World) -> Iterator[keras.Model]:
    """The traitor's classifier; what was done to it is undone."""
    weights = made.copy.get_weights()
    yield decoded_classifier(made.copy, made.table)
    made.copy.set_weights(weights)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    monkeypatch.setattr(rows_module, "hardware", lambda: "here")
    return Rows(tmp_path / "rows.jsonl", "digits", 0, "small")


def found(rows: Rows, metric: str) -> dict[tuple[str, str], Any]:
    """(attack, setting) → figure."""
    table = read(rows.path)
    table = table[table.metric == metric]
    return dict(zip(zip(table.attack, table.setting, strict=True), table["value"], strict=True))


def dense() -> keras.Model:
    """A classifier of no particular method."""
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Dense(16, "relu")(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.Dense(10, "softmax")(hidden))


def values(model: Any) -> list[np.ndarray]:
    return [kernel.numpy() for kernel in kernels(model)]


# --- the traitor's classifier ------------------------------------------------------------


def test_the_classifier_decodes_as_the_traitors_decoder(made: World, stolen: keras.Model) -> None:
    decoder = ke.Decoder.open(made.folder / "copy", made.bundle, PASSPHRASE)
    x = made.data.x_test
    expected = decoder.probabilities(made.copy.predict(x, verbose=0))
    np.testing.assert_allclose(predict(stolen, x), expected, atol=1e-6)
    assert accuracy(stolen, x, made.data.y_test) > 0.95


def test_the_copy_is_personalised_and_not_the_owners(made: World) -> None:
    pairs = list(zip(values(made.copy), values(made.model), strict=True))
    assert len(pairs) == 4
    expected = strengths([original.size for _, original in pairs])
    for (own, original), strength in zip(pairs, expected, strict=True):
        assert (own - original).std() / original.std() == pytest.approx(strength, rel=0.2)


def test_an_untouched_leaker_is_found_by_all_tracers(made: World, stolen: keras.Model) -> None:
    reports = {"table": removal.by_table(made), **removal.detect(made, stolen)}
    for name, found in reports.items():
        assert (found["traitor guilty"], found["innocents guilty"]) == (True, 0), name
        assert found["p_value"] < 1e-8, name
    assert reports["table"]["coincidences"] == 128
    assert reports["weights"]["z"] > 100 > 6 > reports["weights"]["best innocent"]
    service = reports["service"]
    assert service["coincidences"] > 56
    assert service["score"] > service["threshold"] > service["best innocent"]
    assert reports["service"]["ownership p_value"] < 1e-6


def test_figures_recounted_are_the_reports(made: World, stolen: keras.Model) -> None:
    """Where a report lists the traitor, it says the same."""
    tracer = ke.Tracer(made.authority)
    first = tracer.weights(stolen, model=made.model).suspects[0]
    assert removal.by_weights(made, stolen)["z"] == pytest.approx(first.score, rel=1e-6)
    report = tracer.service(lambda b: predict(stolen, b), model=made.model)
    found = removal.by_service(made, stolen)
    first = report.suspects[0]
    assert (found["score"], found["p_value"]) == pytest.approx((first.score, first.p_value))


# --- in place ----------------------------------------------------------------------------


def test_fine_tuning_at_a_constant_rate(made: World, stolen: keras.Model) -> None:
    before, right = values(made.copy), accuracy(stolen, made.data.x_test, made.data.y_test)
    finetune(stolen, made.data.x_other, made.data.y_other, Schedule(1, 32, 1e-2), False)
    assert float(stolen.optimizer.learning_rate) == pytest.approx(1e-2)
    assert accuracy(stolen, made.data.x_test, made.data.y_test) != right
    for new, old in zip(values(made.copy), before, strict=True):
        assert (new != old).any(), "the protected model holds the same variables"


def test_fine_tuning_with_augmentation_sees_other_inputs(data: Data) -> None:
    model, found = dense(), []
    start = model.get_weights()
    for augment in (False, True):
        keras.utils.set_random_seed(0)
        model.set_weights(start)
        finetune(model, data.x_other, data.y_other, Schedule(1, 397, 1e-3), augment)
        found.append(values(model)[0])
    assert not np.allclose(*found)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_pruning(stolen: keras.Model, share: float) -> None:
    before = values(stolen)
    prune(stolen, share)
    for new, old in zip(values(stolen), before, strict=True):
        gone = new == 0
        assert gone.sum() == round(share * old.size)
        assert np.abs(old[gone]).max() <= np.abs(old[~gone]).min()
        np.testing.assert_array_equal(new[~gone], old[~gone])


def test_int8(stolen: keras.Model, made: World) -> None:
    right, before = accuracy(stolen, made.data.x_test, made.data.y_test), values(stolen)
    quantise(stolen, "int8")
    for new, old in zip(values(stolen), before, strict=True):
        columns, originals = new.reshape(-1, new.shape[-1]), old.reshape(-1, new.shape[-1])
        scales = np.abs(originals).max(0) / 127
        levels = columns / scales
        np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
        assert np.abs(np.rint(levels)).max() == 127
        assert np.all(np.abs(columns - originals) <= 0.501 * scales)
    assert accuracy(stolen, made.data.x_test, made.data.y_test) == pytest.approx(right, abs=0.02)


def test_float16(stolen: keras.Model) -> None:
    before = values(stolen)
    quantise(stolen, "float16")
    for new, old in zip(values(stolen), before, strict=True):
        np.testing.assert_array_equal(new, old.astype(np.float16))
        assert (new != old).any()


# --- other weights -----------------------------------------------------------------------


def test_distillation(stolen: keras.Model, made: World) -> None:
    before = values(stolen)
    x = made.data.x_test
    schedule = Schedule(15, 32)
    student = distil(stolen, made.data.x_other, schedule, lambda: build("digits", (8, 8, 1)), False)
    assert (predict(student, x).argmax(-1) == predict(stolen, x).argmax(-1)).mean() > 0.9
    for new, old in zip(values(stolen), before, strict=True):
        np.testing.assert_array_equal(new, old)
    found = removal.by_weights(made, student)
    assert (found["verdict"], found["kernels found"]) == ("inconclusive", "3 of 4")
    assert abs(found["z"]) < 6


def test_a_student_of_another_architecture(made: World) -> None:
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    found = removal.by_weights(made, keras.Sequential(layers))
    assert found["verdict"] == "refused"
    assert "another architecture" in found["message"]


def test_a_new_head(stolen: keras.Model, made: World) -> None:
    before = values(stolen)
    new = replace_head(stolen, made.data.x_other, Schedule(15, 32, 1e-2))
    assert new.output_shape == (None, 10)
    assert accuracy(new, made.data.x_test, made.data.y_test) > 0.9
    assert [k.shape for k in values(new)] == [k.shape for k in before[:3]] + [(128, 10)]
    for kept, old in zip(values(new)[:3], before[:3], strict=True):
        np.testing.assert_array_equal(kept, old)
    found = removal.detect(made, new)
    assert found["weights"]["traitor guilty"]
    assert found["service"]["traitor guilty"] is False


# --- the ladder --------------------------------------------------------------------------


def test_the_ladder_resumes(
    made: World, trainings: Trainings, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds: list[int] = []
    monkeypatch.setattr(removal, "world", lambda *_: worlds.append(1) or made)
    before = made.copy.get_weights()
    ladder = replace(LADDER, tunings=())
    removal.run(trainings, rows, ladder)
    rungs = RUNGS - {("fine-tuned", "at 0.01, 1 epoch")}
    right = found(rows, "accuracy")
    assert set(right) == rungs | {("decode table", "")}
    for old, new in zip(before, made.copy.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert right["untouched", ""] > 0.95
    assert found(rows, "traitor guilty") == {("decode table", ""): True}
    assert len(set(found(rows, "trained").values())) == 1

    worlds.clear()
    whole = rows.path.read_text()
    again = Rows(rows.path, "digits", 0, "small")
    removal.run(trainings, again, ladder)
    assert (worlds, rows.path.read_text()) == ([], whole)
    kept = [line for line in whole.splitlines(True) if '"attack": "float16"' not in line]
    rows.path.write_text("".join(kept))
    z = found(rows, "weights: z")
    removal.run(trainings, Rows(rows.path, "digits", 0, "small"), ladder)
    assert worlds
    assert found(rows, "accuracy") == right
    assert set(found(rows, "weights: z")) - set(z) == {("float16", "")}


def test_any_classifier_and_any_detection(rows: Rows, data: Data) -> None:
    """Every rung starts from the model as it was given, and the model stays so."""

    model, asked = dense(), []
    before = values(model)

    def detect(found: keras.Model) -> dict[str, Any]:
        return {"zeros": float(np.mean([(k == 0).mean() for k in values(found)]))}

    def measure() -> None:
        given = (lambda: asked.append(1) or model, dense, detect, data, LADDER)
        removal.survival(rows, "peer", *given)

    measure()
    zeros = found(rows, "zeros")
    assert set(zeros) == RUNGS
    assert zeros.pop(("pruned", "50%")) == pytest.approx(0.5, abs=0.01)
    assert max(zeros.values()) < 0.1
    for new, old in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(new, old)
    measure()
    assert asked == [1]
