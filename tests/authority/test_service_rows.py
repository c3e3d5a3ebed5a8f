"""Services that give probabilities are asked natural inputs, and traced by these alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.errors import ArgumentError
from keras_encryip.tracing.report import TraceReport
from keras_encryip.tracing.verify_evidence import verify_evidence
from tests.authority.worlds import MODEL, World, make_world

QUESTIONS = 300


class NaturalModel:
    """Stands for the protected model: a little of every answer is on each live label."""

    def __init__(self, world: World) -> None:
        self.codebook = world.codebook.to_bytes().decode("ascii")
        random = np.random.default_rng(0)
        outputs = random.dirichlet(np.full(world.assignment.num_labels, 0.1), QUESTIONS)
        live = world.assignment.trace
        outputs[:, live] = random.dirichlet(np.full(len(live), 0.5), QUESTIONS) * 1e-3
        self.outputs = (outputs / outputs.sum(1, keepdims=True)).astype(np.float32)
        self.inputs = np.stack([np.full(QUESTIONS, -1.0), np.arange(QUESTIONS)], 1).astype("f4")

    def predict(self, inputs: np.ndarray, verbose: int) -> np.ndarray:
        return self.outputs[inputs[:, 1].astype(int)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = make_world(tmp_path_factory.mktemp("world"))
    yield world
    world.authority.close()


@pytest.fixture(scope="module")
def model(world: World) -> NaturalModel:
    return NaturalModel(world)


def rows_of(world: World, model: NaturalModel, user: str, asked: list[int], digits: int) -> Any:
    """A service that refuses trace inputs but one, and gives rounded probabilities."""
    decoder, ordinary = world.decoder(user), int(world.assignment.labels[0, 0])

    def serve(batch: np.ndarray) -> list[Any]:
        asked.append(len(batch))
        rows = []
        for label, number in batch.tolist():
            if label >= 0:
                rows.append(np.eye(10)[0] if label == ordinary else None)
            else:
                row = decoder.probabilities(model.outputs[int(number)])
                rows.append(np.round(row.astype(np.float64), digits))
        return rows

    return serve


def trace(world: World, service: Any, **options: Any) -> TraceReport:
    return world.tracer.service(service, **{"batch_size": 64, **options})


def test_natural_inputs_convict_where_trace_inputs_are_refused(
    world: World, model: NaturalModel
) -> None:
    service = rows_of(world, model, "bob", [], 9)
    report = trace(world, service, model=model, inputs=model.inputs)
    assert [s.subject for s in report.guilty] == ["bob"]
    assert report.tests == 2 * report.tested
    assert report.evidence["natural inputs answered"] == f"{QUESTIONS} of {QUESTIONS}"
    assert report.evidence["comparisons"] == 2
    with pytest.raises(ArgumentError, match="Only the probabilities of natural inputs convict"):
        world.evidence(report, "natural")


def test_trace_inputs_that_convict_less_strongly_are_evidence(
    tmp_path: Path,
) -> None:
    """Natural inputs tell more than two thirds of the trace inputs; others check the latter."""
    world = make_world(tmp_path, trace_labels=128)
    model = NaturalModel(world)
    table, natural = world.table("carol"), rows_of(world, model, "carol", [], 9)
    table[world.assignment.trace[84:]] = -1

    def serve(batch: np.ndarray) -> list[Any]:
        told = natural(batch)
        for i, label in enumerate(batch[:, 0].astype(int)):
            if label >= 0:
                told[i] = np.eye(10)[table[label]] if table[label] >= 0 else None
        return told

    report = trace(world, serve, model=model, inputs=model.inputs)
    assert [s.subject for s in report.guilty] == ["carol"]
    found = verify_evidence(world.evidence(report, "trace inputs"))
    world.authority.close()
    assert report.p_value < found.p_values["carol"] <= 1e-6


def test_a_service_that_gives_classes_is_asked_one_batch_of_them(
    world: World, model: NaturalModel
) -> None:
    asked: list[int] = []
    table = world.table("bob")

    def classes(batch: np.ndarray) -> list[int]:
        asked.append(len(batch))
        return table[batch[:, 0].astype(int)].tolist()  # type: ignore[no-any-return]

    report = trace(world, classes, model=model, inputs=model.inputs)
    assert sum(asked) == len(world.traces.labels) + 64
    assert report.tests == report.tested


def test_a_transcript_keeps_the_rows(world: World, model: NaturalModel, tmp_path: Path) -> None:
    path, asked = tmp_path / "kept.json", list[int]()
    service = rows_of(world, model, "bob", asked, 9)
    options = {"model": model, "inputs": model.inputs, "transcript": path}

    def breaks(batch: np.ndarray) -> Any:
        if len(asked) == 4:
            raise KeyboardInterrupt
        return service(batch)

    with pytest.raises(KeyboardInterrupt):
        trace(world, breaks, **options)
    first, before = trace(world, service, **options), sum(asked)
    assert before <= len(world.traces.labels) + QUESTIONS
    again = trace(world, lambda batch: pytest.fail("asked again"), **options)
    assert [s.p_value for s in again.suspects] == [s.p_value for s in first.suspects]
    assert [s.subject for s in first.guilty] == ["bob"]


def test_inputs_need_the_model(world: World, model: NaturalModel) -> None:
    with pytest.raises(ArgumentError, match="`inputs` need the protected model itself"):
        trace(world, lambda batch: None, model=MODEL, inputs=model.inputs)
    with pytest.raises(ArgumentError, match=r"`natural` must hold inputs of shape \(2,\)"):
        trace(world, lambda batch: None, model=model, inputs=np.zeros((3, 5)))


def test_answers_made_up_accuse_nobody(world: World, model: NaturalModel) -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        rows = random.dirichlet(np.ones(10), 4 * QUESTIONS)
        service = lambda batch, rows=rows: rows[batch[:, 1].astype(int)]  # noqa: E731
        assert not trace(world, service, model=model, inputs=model.inputs).guilty
