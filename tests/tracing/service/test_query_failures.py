"""Asking an untrusted service that fails, or refuses."""

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.errors import ServiceError
from keras_encryip.tracing.service.query import UNANSWERED
from keras_encryip.tracing.service.served import StatusError
from tests.tracing.service.asking import TRUTH, Service, check_naps, down


def test_failures_are_asked_again_with_patience(put: Any, naps: list[float]) -> None:
    service = Service(down(0, 1, 2, 5))
    assert put(service, backoff=0.5).tolist() == TRUTH.tolist()
    check_naps(naps, [0.5, 1.0, 2.0, 0.5])
    assert service.asked[0] == service.asked[3]


def test_patience_is_bounded(put: Any, naps: list[float]) -> None:
    put(Service(down(*range(1100))), backoff=7.0, retries=1100, batch_size=12)
    check_naps(naps, [7.0, 14.0, 28.0] + [30.0] * 1097)


@pytest.mark.parametrize(
    ("wanted", "nap"),
    [
        *((7, 7.0), (0.5, None), (0, None), (-3, None), (1e9, 300.0), (float("inf"), 300.0)),
        *((float("nan"), None), ("9", None), (None, None)),
    ],
)
def test_rate_limits_are_kept(put: Any, naps: list[float], wanted: Any, nap: float | None) -> None:
    failure = RuntimeError("slow down")
    failure.retry_after = wanted  # type: ignore[attr-defined]
    assert put(Service({0: failure})).tolist() == TRUTH.tolist()
    if nap is None:
        check_naps(naps, [1.0])
    else:
        assert naps == [nap]


def test_a_batch_that_fails_is_unanswered(put: Any, naps: list[float]) -> None:
    service = Service(down(1, 2, 3))
    found = put(service, retries=2)
    lost = service.asked[1]
    assert sorted(np.flatnonzero(found == UNANSWERED)) == sorted(lost)
    check_naps(naps, [1.0, 2.0])


def test_a_batch_is_sent_again_as_it_was(put: Any) -> None:
    service = Service(down(0))

    def careless(batch: np.ndarray) -> list[Any]:
        try:
            return service(batch)
        finally:
            batch[:] = 0

    assert put(careless).tolist() == TRUTH.tolist()


def test_no_retries(put: Any, naps: list[float]) -> None:
    assert (put(Service(down(0)), retries=0) == UNANSWERED).sum() == 4
    assert naps == []


def test_consecutive_failures_end_the_run(put: Any) -> None:
    service = Service(down(*range(2, 99)))
    steps: list[int] = []
    found = put(service, batch_size=1, retries=1, progress=steps.append)
    assert len(service.asked) == 2 + 3 * 2
    assert (found >= 0).sum() == 2
    assert steps == [1] * 5


def test_failures_with_answers_between_do_not(put: Any) -> None:
    service = Service(down(0, 1, 3, 4, 6, 7, 9, 10))
    found = put(service, batch_size=1, retries=0)
    assert len(service.asked) == 12
    assert (found >= 0).sum() == 4


def test_nothing_answered(put: Any, tmp_path: Path) -> None:
    service = Service({request: OSError("no route " + "x" * 999) for request in range(9)})
    with pytest.raises(ServiceError, match=r"The last failure: OSError: no route x+…\.$") as caught:
        put(service, retries=0)
    assert len(str(caught.value)) < 400
    assert caught.value.__cause__ is service.failures[2]
    with pytest.raises(ServiceError, match="Run again with the same `transcript` to go on"):
        put(Service(down(*range(9))), retries=0, transcript=tmp_path / "kept")
    assert put(Service(), transcript=tmp_path / "kept").tolist() == TRUTH.tolist()


def test_everything_refused(put: Any, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    with pytest.raises(ServiceError, match="The service refused every input"):
        put(lambda batch: [None] * len(batch), transcript=path)
    # That service, or `predict`, may be broken: nothing says that these inputs are refused.
    assert put(Service(), transcript=path).tolist() == TRUTH.tolist()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_interruptions_are_not_asked_again(put: Any, interruption: Any, naps: list[float]) -> None:
    service = Service({1: interruption()})
    with pytest.raises(interruption):
        put(service)
    assert len(service.asked) == 2
    assert naps == []


class Picky(Service):
    """Refuses a batch that holds one of some inputs, with an HTTP status."""

    def __init__(self, *refused: int, status: int = 400) -> None:
        super().__init__()
        self.refused, self.status = set(refused), status

    def __call__(self, batch: np.ndarray) -> list[Any]:
        answers = super().__call__(batch)
        if self.refused & set(self.asked[-1]):
            raise StatusError(self.status, "no", None)
        return answers


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422, 451])
def test_a_refused_input_takes_no_others_with_it(
    put: Any, naps: list[float], status: int, tmp_path: Path
) -> None:
    service = Picky(5, status=status)
    steps: list[int] = []
    options = {"transcript": tmp_path / "kept"}
    found = put(service, progress=steps.append, **options)
    assert found.tolist() == [-1 if place == 5 else TRUTH[place] for place in range(12)]
    assert naps == []
    assert sum(5 in batch for batch in service.asked) == 2
    assert len(service.asked) == 3 + 4
    assert sum(steps) == 12
    assert len(steps) == 2 + 4
    again = Picky()
    assert put(again, **options).tolist() == found.tolist()
    assert again.asked == [], "it was refused, and is not asked again"


@pytest.mark.parametrize("status", [301, 408, 429, 500, 503])
def test_other_statuses_are_failures(put: Any, naps: list[float], status: int) -> None:
    assert put(Service({0: StatusError(status, "no", None)})).tolist() == TRUTH.tolist()
    check_naps(naps, [1.0])


def test_a_ban_is_no_refusal_of_inputs(put: Any, tmp_path: Path) -> None:
    """From some moment on a service refuses everything: these inputs are asked again later."""
    path = tmp_path / "kept"
    banned = {request: StatusError(403, "go away", None) for request in range(1, 99)}
    service = Service(banned)
    found = put(service, transcript=path, batch_size=2)
    assert (found >= 0).sum() == 2
    assert len(service.asked) == 1 + 5 + 10
    assert put(Service(), transcript=path).tolist() == TRUTH.tolist()


@pytest.mark.parametrize(("batch_size", "asked"), [(4, []), (1, [10, 11])])
def test_refusals_at_the_end(
    put: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, asked: list[int]
) -> None:
    """A batch of them is believed; more could be a ban."""
    monkeypatch.setattr(secrets.SystemRandom, "shuffle", lambda *_: None)
    options = {"transcript": tmp_path / "kept", "batch_size": batch_size}
    put(Picky(4, 10, 11), **options)
    again = Picky()
    put(again, **options)
    assert again.inputs == asked


def test_a_wrong_address_refuses_nothing(put: Any, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    lost = {request: StatusError(404, "no such model", None) for request in range(99)}
    with pytest.raises(ServiceError, match=r"StatusError: HTTP 404: no such model\. Run again"):
        put(Service(lost), transcript=path)
    assert put(Service(), transcript=path).tolist() == TRUTH.tolist()
