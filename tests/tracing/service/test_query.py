"""Asking an untrusted service: every form of answer, failures, refusals, transcripts."""

import errno
import json
import os
import secrets
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_encryip
from keras_encryip.client.decoder import Decoder
from keras_encryip.errors import ArgumentError, FormatError, ServiceError
from keras_encryip.tracing.service import transcript as transcript_module
from keras_encryip.tracing.service.query import UNANSWERED, ask
from keras_encryip.tracing.service.served import StatusError

NAMES = ["ant", "bee", "cicada", "Dragonfly"]
INPUTS = np.arange(24, dtype=np.float32).reshape(12, 2)
TRUTH = np.arange(12) % 4


def places(batch: np.ndarray) -> list[int]:
    """Which inputs a batch holds."""
    return (batch[:, 0] / 2).astype(int).tolist()


def says(answers: dict[int, Any] | list[Any]) -> Callable[[np.ndarray], list[Any]]:
    """A service that gives these answers to the inputs."""
    return lambda batch: [answers[place] for place in places(batch)]


class Service:
    """Answers truly, but raises what `failures` says for the n-th request; counts requests."""

    def __init__(self, failures: dict[int, BaseException] | None = None, **special: Any) -> None:
        self.failures = failures or {}
        self.asked: list[list[int]] = []
        self.answers: dict[int, Any] = dict(enumerate(TRUTH.tolist()))
        self.answers |= {int(place[1:]): answer for place, answer in special.items()}

    def __call__(self, batch: np.ndarray) -> list[Any]:
        self.asked.append(places(batch))
        if (failure := self.failures.get(len(self.asked) - 1)) is not None:
            raise failure
        return [self.answers[place] for place in self.asked[-1]]

    @property
    def inputs(self) -> list[int]:
        return sorted(place for batch in self.asked for place in batch)


def check_naps(naps: list[float], longest: list[float]) -> None:
    """Each delay is between half and all of these."""
    for nap, most in zip(naps, longest, strict=True):
        assert most / 2 <= nap <= most


def down(*requests: int) -> dict[int, BaseException]:
    return {request: TimeoutError("no answer") for request in requests}


@pytest.fixture
def naps() -> list[float]:
    return []


@pytest.fixture
def put(naps: list[float]) -> Callable[..., np.ndarray]:
    """`put(service, …)`: `ask` with the inputs above, which notes its naps."""

    def put(predict: Any, inputs: np.ndarray = INPUTS, **options: Any) -> np.ndarray:
        settings = {"class_names": NAMES, "batch_size": 4, "sleep": naps.append}
        return ask(predict, inputs, **{**settings, **options})[0]

    return put


# --- forms of answers ----------------------------------------------------------------


def rows_of(labels: np.ndarray) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[labels] * 3 - 1


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(TRUTH.tolist(), id="ints"),
        pytest.param(list(TRUTH.astype(np.uint8)), id="numpy-ints"),
        pytest.param(TRUTH.astype(float).tolist(), id="whole-floats"),
        pytest.param(list(TRUTH.astype(np.float16)), id="numpy-floats"),
        pytest.param([np.array(label) for label in TRUTH], id="0-d-arrays"),
        pytest.param([NAMES[label] for label in TRUTH], id="names"),
        pytest.param([np.str_(NAMES[label]) for label in TRUTH], id="numpy-names"),
        pytest.param([NAMES[label].encode() for label in TRUTH], id="bytes"),
        pytest.param([f"  {NAMES[label].upper()}\n" for label in TRUTH], id="loose-names"),
        pytest.param(list(rows_of(TRUTH)), id="rows"),
        pytest.param(rows_of(TRUTH).astype(int).tolist(), id="lists-of-ints"),
        pytest.param([tuple(row) for row in rows_of(TRUTH)], id="tuples"),
        pytest.param(
            [np.where(row > 0, row, -np.inf) for row in rows_of(TRUTH)], id="minus-infinity"
        ),
    ],
)
def test_forms_of_answers(put: Any, answers: list[Any]) -> None:
    found = put(says(answers))
    assert found.dtype == np.int32
    assert found.tolist() == TRUTH.tolist()


@pytest.mark.parametrize(
    "form",
    [
        lambda labels: labels,
        lambda labels: labels.astype(np.float64),
        lambda labels: np.array(NAMES)[labels],
        lambda labels: np.array(NAMES, object)[labels],
        lambda labels: np.array(NAMES, "S")[labels],
        lambda labels: tuple(labels.tolist()),
        rows_of,
    ],
)
def test_arrays_of_answers(put: Any, form: Any) -> None:
    found = put(lambda batch: form(TRUTH[places(batch)]))
    assert found.tolist() == TRUTH.tolist()


def test_tensors(put: Any) -> None:
    import tensorflow as tf

    assert put(lambda b: tf.constant(TRUTH[places(b)])).tolist() == TRUTH.tolist()
    assert put(lambda b: list(tf.constant(TRUTH[places(b)]))).tolist() == TRUTH.tolist()
    assert put(lambda b: tf.constant(rows_of(TRUTH[places(b)]))).tolist() == TRUTH.tolist()
    names = tf.constant(NAMES)
    assert put(lambda b: tf.gather(names, TRUTH[places(b)])).tolist() == TRUTH.tolist()


@pytest.mark.parametrize(
    "answer",
    [
        *(None, -1, -1.0, np.nan, np.float32("nan"), np.array(np.nan), np.full(4, np.nan)),
        *(4, -2, 10**400, 1.5, np.inf, True, "wasp", "", b"\xff\xfe", "ant bee"),
        *([np.nan, 0, 0, 1], ["ant"], [None] * 4, [[1, 0], [0, 1]], [[1], [2, 3]], {"class": 1}),
        *(object(), 1 + 0j),
    ],
    ids=lambda answer: repr(answer).split(" at ")[0],
)
def test_an_answer_that_is_no_class(put: Any, answer: Any) -> None:
    found = put(Service(_5=answer))
    assert found[5] == UNANSWERED == -1
    assert np.delete(found, 5).tolist() == np.delete(TRUTH, 5).tolist()


def test_ties_go_to_the_first(put: Any) -> None:
    assert put(lambda batch: np.ones((len(batch), 4))).tolist() == [0] * 12
    assert put(lambda batch: [[0, 1, 1, 0]] * len(batch)).tolist() == [1] * 12


def test_ambiguous_names_name_no_class(put: Any) -> None:
    names = ["ant", "Ant", "bee", "bee"]
    answers = ["ant", "Ant", "ANT", "bee", "Bee", *[0] * 7]
    found = put(says(answers), class_names=names)
    assert found[:5].tolist() == [0, 1, -1, -1, -1]


def test_numbers_as_names(put: Any) -> None:
    found = put(lambda batch: ["2", b"3", 1, 0.0], class_names=["0", "1", "2", "3"])
    assert sorted(found.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([1, 2, 3], "FormatError: The service gave 3 answers, expected 4"),
        (np.zeros((5, 4)), "FormatError: The service gave 5 answers, expected 4"),
        ([], "FormatError: The service gave 0 answers, expected 4"),
        (None, "must give a list or array of 4 answers. Received: NoneType"),
        ("beef", "must give a list or array of 4 answers. Received: str"),
        (b"beef", "must give a list or array of 4 answers. Received: bytes"),
        (3, "must give a list or array of 4 answers. Received: int"),
        (np.array(3), "must give a list or array of 4 answers. Received: ndarray"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, "list or array of 4 answers. Received: dict"),
    ],
    ids=repr,
)
def test_a_wrong_number_of_answers_is_a_failure(put: Any, answers: Any, message: str) -> None:
    with pytest.raises(ServiceError, match="The service answered nothing") as caught:
        put(lambda batch: answers)
    assert message in str(caught.value)
    assert isinstance(caught.value.__cause__, FormatError)


def test_a_wrong_number_once_is_asked_again(put: Any, naps: list[float]) -> None:
    service = Service()
    replies = iter([[1], *[None] * 9])
    found = put(lambda batch: next(replies) or service(batch))
    assert found.tolist() == TRUTH.tolist()
    check_naps(naps, [1.0])


def test_names_of_other_classes(put: Any) -> None:
    long = "wasp" + "\x1b[2J" * 40
    with pytest.raises(ServiceError, match="No answer of the service names a class") as caught:
        put(says([long] * 12))
    message = str(caught.value)
    assert "'wasp\\x1b[2J" in message
    assert "\x1b" not in message
    assert "0 … 3, rows of 4 probabilities" in message
    assert "'ant', 'bee', 'cicada', …" in message
    assert len(message) < 300


def test_one_readable_answer_is_enough(put: Any) -> None:
    assert put(says(["wasp"] * 11 + ["bee"])).tolist() == [-1] * 11 + [1]


@pytest.mark.parametrize("width", [3, 5, 1])
def test_rows_of_another_width_need_a_decoder(put: Any, naps: list[float], width: int) -> None:
    message = f"gives {width} numbers for an input, and not the probabilities of 4 classes"
    with pytest.raises(ServiceError, match=rf"{message}.* `decoder` is needed"):
        put(lambda batch: np.zeros((len(batch), width)))
    assert naps == []


def test_a_service_that_has_answered_cannot_end_the_run_by_odd_rows(put: Any) -> None:
    asked = 0

    def service(batch: np.ndarray) -> Any:
        nonlocal asked
        asked += 1
        return np.zeros((len(batch), 9)) if asked == 2 else TRUTH[places(batch)]

    assert put(service).tolist() == TRUTH.tolist()


def test_the_order_tells_nothing(put: Any) -> None:
    inputs = np.arange(256, dtype=np.int64).reshape(128, 2)
    orders = []
    for _ in range(2):
        service = Service(**{f"_{place}": place % 4 for place in range(128)})
        found = put(service, inputs, batch_size=50)
        assert found.tolist() == [place % 4 for place in range(128)]
        assert [len(batch) for batch in service.asked] == [50, 50, 28]
        assert service.inputs == list(range(128))
        orders.append([place for batch in service.asked for place in batch])
    assert orders[0] != orders[1] != sorted(orders[1])


def test_inputs_come_whole_and_cannot_be_changed(put: Any) -> None:
    images = np.random.default_rng(0).integers(0, 255, (5, 3, 3, 1), np.uint8)
    before = images.copy()

    def service(batch: np.ndarray) -> list[int]:
        assert batch.dtype == np.uint8
        assert batch.shape[1:] == (3, 3, 1)
        seen.extend(batch.copy())
        batch[:] = 0
        return [1] * len(batch)

    seen: list[np.ndarray] = []
    assert put(service, images).tolist() == [1] * 5
    np.testing.assert_array_equal(images, before)
    assert {image.tobytes() for image in seen} == {image.tobytes() for image in images}


def test_progress(put: Any) -> None:
    steps: list[int] = []
    put(Service(), batch_size=5, progress=steps.append)
    assert steps == [5, 5, 2]


# --- with a decoder ------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder(shipped: Any) -> Decoder:
    return Decoder.open(shipped.exported, shipped.bundles["alice"], shipped.passphrase)


def test_confused_answers_of_a_function(
    put: Any, shipped: Any, decoder: Decoder, digits: Any
) -> None:
    options = {"class_names": decoder.class_names, "decoder": decoder}
    images = digits.x_test[:20]

    def service(batch: np.ndarray) -> list[Any]:
        found: list[Any] = list(shipped.model.predict(batch, verbose=0))
        if (batch[0] == images[0]).all():
            found[0] = None
        return found

    found = put(service, images, batch_size=1, **options)
    expected = decoder.labels(shipped.model.predict(images, verbose=0))
    assert found.tolist() == [-1, *expected[1:]]
    broken = put(
        lambda batch: np.where(
            np.arange(len(batch))[:, None] % 2, shipped.model.predict(batch, verbose=0), np.nan
        ),
        images,
        **options,
    )
    assert (broken == -1).sum() == 10
    assert ((broken == expected) | (broken == -1)).all()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (3, r"must answer with confused labels or ciphertexts. Received: 3\. .* leave out the"),
        ("zero", r"must answer with confused labels or ciphertexts. Received: 'zero'\."),
        ([0.1] * 10, r"gives 10 numbers for an input, and the decoder's model 'digits' has"),
    ],
)
def test_a_decoder_reads_nothing_else(
    put: Any, decoder: Decoder, answer: Any, message: str
) -> None:
    with pytest.raises(ServiceError, match=message):
        put(lambda batch: [answer] * len(batch), class_names=decoder.class_names, decoder=decoder)


def test_garbled_ciphertexts_are_a_failure(put: Any, decoder: Decoder) -> None:
    with pytest.raises(ServiceError, match=r"The last failure: FormatError: "):
        put(lambda batch: [b"?"] * len(batch), class_names=decoder.class_names, decoder=decoder)


def test_a_decoder_of_other_classes(put: Any, decoder: Decoder) -> None:
    with pytest.raises(ArgumentError, match=r"`class_names` must be the names of the decoder's"):
        put(Service(), decoder=decoder)


# --- failures and refusals -------------------------------------------------------------


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


# --- transcripts -----------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_transcript(put: Any, tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    put(Service(_3="wasp", _7=None), transcript=str(path))
    fields = json.loads(path.read_bytes())
    expected = TRUTH.tolist()
    expected[3], expected[7] = -1, -2
    assert fields.pop("answers") == expected
    assert len(fields.pop("inputs")) == 64
    assert fields.pop("started_at") <= fields.pop("updated_at")
    assert fields == {"format": "encryip-transcript", "version": 1, "num_classes": 4}
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["kept.json"]


def test_only_the_missing_are_asked_again(put: Any, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    first = Service(down(2), _3="wasp", _7=None)
    found = put(first, transcript=path, retries=0)
    lost = {*first.asked[2]} - {7} | {3}
    path.write_bytes(edited(started_at="2020-02-02T02:02:02Z")(path.read_bytes()))
    second = Service(_7=3)
    steps: list[int] = []
    again = put(second, transcript=path, progress=steps.append)
    if 7 in first.asked[2]:  # then it failed, and was never refused
        lost |= {7}
    assert second.inputs == sorted(lost)
    assert sum(steps) == len(lost)
    same = found >= 0
    assert (again[same] == found[same]).all()
    assert json.loads(path.read_bytes())["started_at"] == "2020-02-02T02:02:02Z"


def test_a_finished_transcript_asks_nothing(put: Any, tmp_path: Path) -> None:
    put(Service(), transcript=tmp_path / "kept")
    service = Service()
    assert put(service, transcript=tmp_path / "kept").tolist() == TRUTH.tolist()
    assert service.asked == []


def test_an_interrupted_run_goes_on(put: Any, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    first = Service({2: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        put(first, transcript=path)
    second = Service()
    assert put(second, transcript=path).tolist() == TRUTH.tolist()
    assert second.inputs == sorted(first.asked[2])


def test_interrupted_while_it_waits(put: Any, tmp_path: Path) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "kept"
    first = Service(down(1))
    with pytest.raises(KeyboardInterrupt):
        put(first, transcript=path, sleep=interrupt)
    second = Service()
    assert put(second, transcript=path).tolist() == TRUTH.tolist()
    assert len(second.inputs) == 8


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda x: {"inputs": x + 1}, "other inputs"),
        (lambda x: {"inputs": x.astype(np.float64)}, "other inputs"),
        (lambda x: {"inputs": x.reshape(12, 2, 1)}, "other inputs"),
        (lambda x: {"inputs": x[:6]}, "other inputs"),
        (lambda _: {"class_names": [*NAMES, "earwig"]}, "4 classes"),
    ],
)
def test_a_transcript_of_something_else(put: Any, tmp_path: Path, change: Any, what: str) -> None:
    path = tmp_path / "kept"
    put(Service(), transcript=path)
    before = path.read_bytes()
    service = Service()
    with pytest.raises(ArgumentError, match=rf"transcript '.*kept' is of {what}\. .* another path"):
        put(service, **{"transcript": path, **change(INPUTS)})
    assert path.read_bytes() == before
    assert service.asked == []


def test_the_same_inputs_in_other_memory(put: Any, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    put(Service(), transcript=path)
    assert put(Service(), np.asfortranarray(INPUTS), transcript=path).tolist() == TRUTH.tolist()


def edited(**fields: Any) -> Callable[[bytes], bytes]:
    """Changes fields, or removes those given as `...`."""

    def edit(data: bytes) -> bytes:
        changed = {**json.loads(data), **fields}
        kept = {name: value for name, value in changed.items() if value is not ...}
        return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:-1], id="cut"),
        pytest.param(lambda data: data[: len(data) // 2], id="half"),
        pytest.param(lambda data: data + b"\n", id="newline"),
        pytest.param(lambda data: data.replace(b",", b", "), id="spaces"),
        pytest.param(lambda data: b"\x00" * len(data), id="zeros"),
        pytest.param(lambda data: b"[" * 100_000, id="deep"),
        pytest.param(lambda data: b"[]", id="list"),
        pytest.param(edited(note="hello"), id="unknown-field"),
        pytest.param(edited(updated_at=...), id="missing-field"),
        pytest.param(edited(format="encryip-codebook"), id="format"),
        pytest.param(edited(version=2), id="version"),
        pytest.param(edited(answers=[0] * 11), id="too-few"),
        pytest.param(edited(answers=[0] * 13), id="too-many"),
        pytest.param(edited(answers=[]), id="none"),
        pytest.param(edited(answers=[4] * 12), id="class-too-large"),
        pytest.param(edited(answers=[-3] * 12), id="class-too-small"),
        pytest.param(edited(answers=[0.5] * 12), id="fraction"),
        pytest.param(edited(answers=[None] * 12), id="null"),
        pytest.param(edited(inputs="A" * 64), id="digest"),
        pytest.param(edited(num_classes=0), id="no-classes"),
        pytest.param(edited(rows="AAAAAA=="), id="rows"),
        pytest.param(edited(rows="?"), id="rows-no-base64"),
        pytest.param(edited(started_at="yesterday"), id="time"),
    ],
)
def test_a_damaged_transcript_is_refused_and_kept(put: Any, tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "kept"
    put(Service(), transcript=path)
    path.write_bytes(damage(path.read_bytes()))
    before, service = path.read_bytes(), Service()
    with pytest.raises(FormatError, match=r"The transcript '.*kept' is "):
        put(service, transcript=path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["kept"]
    assert service.asked == []


def test_an_oversized_transcript(put: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept"
    put(Service(), transcript=path)
    monkeypatch.setattr(transcript_module, "MAX_TRANSCRIPT_BYTES", path.stat().st_size - 1)
    with pytest.raises(FormatError, match=r"The transcript '.*kept' is too large: more than"):
        put(Service(), transcript=path)


def test_a_folder_is_no_transcript(put: Any, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"Cannot read the transcript .*: Is a directory"):
        put(Service(), transcript=tmp_path)


def test_a_transcript_that_cannot_be_written_asks_nothing(put: Any, tmp_path: Path) -> None:
    service = Service()
    with pytest.raises(ArgumentError, match=r"Cannot write the transcript '.*': No such file or"):
        put(service, transcript=tmp_path / "nowhere" / "kept")
    assert service.asked == []


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_transcript(
    put: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path, real, calls = tmp_path / "kept", getattr(os, call), []

    def full(*arguments: Any, **keywords: Any) -> Any:
        if len(answered) > 4:
            calls.append(path.read_bytes())
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **keywords)

    answered: list[int] = []

    def service(batch: np.ndarray) -> list[int]:
        answered.extend(places(batch))
        return TRUTH[places(batch)].tolist()

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(ArgumentError, match=r"Cannot write the transcript .*: No space left"):
            put(service, transcript=path)
    assert path.read_bytes() == calls[0]
    assert names(tmp_path) == ["kept"]
    again = Service()
    assert put(again, transcript=path).tolist() == TRUTH.tolist()
    assert again.inputs == sorted(set(range(12)) - set(answered[:4]))


def test_an_interrupted_write_leaves_the_old_transcript(
    put: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "kept"
    put(Service(down(0)), transcript=path, retries=0)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            put(Service(), transcript=path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["kept"]


VICTIM = """
import sys
import numpy as np
from keras_encryip.tracing.service.query import ask

def service(batch):
    places = (batch[:, 0] / 2).astype(int)
    print(*places, flush=True)
    sys.stdin.readline()
    return places % 4

inputs = np.arange(24, dtype=np.float32).reshape(12, 2)
ask(service, inputs, class_names=["ant", "bee", "cicada", "Dragonfly"],
    batch_size=3, transcript=sys.argv[1])
"""


@pytest.mark.parametrize("answered", [0, 2])
def test_a_killed_run_goes_on(put: Any, tmp_path: Path, answered: int) -> None:
    path = tmp_path / "kept"
    package = str(Path(keras_encryip.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(VICTIM), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": package, "OPENBLAS_NUM_THREADS": "1"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        known: list[int] = []
        for _ in range(answered):
            known += [int(place) for place in process.stdout.readline().split()]
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.stdout.readline(), "it is in the middle of a batch"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert len(known) == 3 * answered
    service = Service()
    assert put(service, transcript=path).tolist() == TRUTH.tolist()
    assert service.inputs == sorted(set(range(12)) - set(known))


# --- arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"`batch_size` must be a positive integer. Received: batch_size=0"),
        ({"batch_size": 2.0}, r"`batch_size` must be a positive integer. Received: batch_size=2.0"),
        ({"batch_size": True}, r"`batch_size` must be a positive integer"),
        ({"retries": -1}, r"`retries` must be an integer, not negative. Received: retries=-1"),
        ({"retries": None}, r"`retries` must be an integer, not negative. Received: retries=None"),
        ({"backoff": -0.5}, r"`backoff` must be a number of seconds, not negative. Received: back"),
        ({"backoff": float("nan")}, r"`backoff` must be a number of seconds"),
        ({"backoff": float("inf")}, r"`backoff` must be a number of seconds"),
        ({"backoff": "1"}, r"`backoff` must be a number of seconds.* Received: backoff='1'"),
        ({"class_names": ["ant"]}, r"`class_names` must be a list of at least 2 strings"),
        ({"class_names": "ant"}, r"`class_names` must be a list of at least 2 strings"),
        ({"class_names": [0, 1]}, r"`class_names` must be .* Received: class_names=\[0, 1\]"),
        ({"inputs": np.zeros((0, 2))}, r"`inputs` must be an array of at least one input"),
        ({"inputs": np.float32(1)}, r"`inputs` must be an array .* Received: inputs.shape=\(\)"),
        ({"inputs": np.array(["a"])}, r"`inputs` must hold numbers. Received: inputs.dtype=<U1"),
        ({"inputs": np.array([None])}, r"`inputs` must hold numbers"),
        ({"inputs": np.array([1.0, np.nan])}, r"`inputs` must be finite"),
        ({"predict": None}, r"`predict` must be a function .*, or a URL. Received: predict=None"),
    ],
)
def test_arguments(put: Any, arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    service = Service()
    with pytest.raises(ArgumentError, match=message):
        put(**{"predict": service, "transcript": tmp_path / "kept", **arguments})
    assert service.asked == []
    assert names(tmp_path) == []
