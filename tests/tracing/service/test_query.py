"""Asking an untrusted service: every form of answer, and arguments."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.client.decoder import Decoder
from keras_encryip.errors import ArgumentError, FormatError, ServiceError
from keras_encryip.tracing.service.query import UNANSWERED
from tests.tracing.service.asking import NAMES, TRUTH, Service, check_naps, names, places, says

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
