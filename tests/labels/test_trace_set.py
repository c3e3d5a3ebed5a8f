"""Trace inputs as bytes, their commitment, and one answer for each label."""

import copy
import io
import pickle
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
import pytest

from keras_encryip.errors import FormatError
from keras_encryip.labels.trace_set import TraceSet, plurality

KINDS = ["uint8", "int32", "int64", "float16", "float32", "float64", "bool", ">f4"]


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def make(kind: str = "float32", shape: tuple[int, ...] = (3, 4, 2)) -> TraceSet:
    values = np.random.default_rng(0).integers(0, 2, shape).astype(kind)
    return TraceSet(values, np.arange(5, 5 + shape[0]))


# --- bytes -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 4, 2), (1,), (0, 7), (2, 1)], ids=str)
def test_what_is_written_is_read(kind: str, shape: tuple[int, ...]) -> None:
    traces = make(kind, shape)
    again = TraceSet.from_secret_bytes(traces.secret_bytes())
    np.testing.assert_array_equal(again.inputs, traces.inputs)
    assert (again.inputs.dtype, again.inputs.shape) == (np.dtype(kind), shape)
    np.testing.assert_array_equal(again.labels, traces.labels)
    assert again.labels.dtype == np.int32
    assert again.digest == traces.digest


def test_labels_of_any_integer_type_are_the_same_set() -> None:
    sets = [TraceSet(np.ones((2, 1)), np.array([7, 9], kind)) for kind in ("u1", "i8", ">i4")]
    assert len({traces.digest for traces in sets}) == 1


GOOD = make().secret_bytes()
INPUTS, LABELS = npy(np.zeros((2, 3), "f4")), npy(np.array([1, 2], "<i4"))
MALFORMED = {
    "empty": b"",
    "text": b"precious",
    "inputs only": INPUTS,
    "one byte short": GOOD[:-1],
    "one byte more": GOOD + b"x",
    "three arrays": INPUTS + LABELS + LABELS,
    "pickle": pickle.dumps([1, 2]),
    "pickled array": np.zeros(3).dumps(),
    "objects": npy(np.array([{}, 1], object), allow_pickle=True) + LABELS,
    "labels as objects": INPUTS + npy(np.array([{}, 1], object), allow_pickle=True),
    "labels int64": INPUTS + npy(np.array([1, 2], "<i8")),
    "labels uint32": INPUTS + npy(np.array([1, 2], "<u4")),
    "labels float": INPUTS + npy(np.array([1, 2], "<f4")),
    "labels [2, 1]": INPUTS + npy(np.array([[1], [2]], "<i4")),
    "label alone": INPUTS + npy(np.int32(1)),
    "negative shape": INPUTS.replace(b"(2, 3), ", b"(-2, 3),") + LABELS,
    "no dtype": INPUTS.replace(b"'<f4'", b"'<?4'") + LABELS,
    "no length": INPUTS[:8],
    "zip": b"PK\x03\x04" + LABELS,
    "input alone": npy(np.float64(1)) + npy(np.array([1], "<i4")),
    "bracket missing": INPUTS.replace(b"(2, 3), }", b"(2, 3, (}") + LABELS,
    "no Python": INPUTS.replace(b"'<f4'", b"'<f4 ") + LABELS,
    "more than memory": INPUTS.replace(b"(2, 3), }            ", b"(2, 999999999999999)}") + LABELS,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="The trace inputs are malformed"):
        TraceSet.from_secret_bytes(data)


def test_the_bytes_that_the_malformed_ones_come_from_are_read() -> None:
    assert TraceSet.from_secret_bytes(INPUTS + LABELS).labels.tolist() == [1, 2]


@pytest.mark.parametrize("length", range(0, len(GOOD), 7))
def test_truncated_bytes_are_refused(length: int) -> None:
    with pytest.raises(FormatError, match="The trace inputs are malformed"):
        TraceSet.from_secret_bytes(GOOD[:length])


def test_every_input_has_a_label() -> None:
    with pytest.raises(FormatError, match="needs one label per input"):
        TraceSet(np.zeros((3, 2)), np.zeros(2, int))
    with pytest.raises(FormatError, match="needs one label per input"):
        TraceSet.from_secret_bytes(INPUTS + npy(np.zeros(3, "<i4")))


# --- digest ----------------------------------------------------------------------


def test_the_digest_is_of_the_tag_and_the_bytes() -> None:
    traces = TraceSet(np.zeros((2, 3), "f4"), np.array([1, 2]))
    assert traces.digest == sha256(b"encryip trace set v1\0" + INPUTS + LABELS).digest()


def test_any_change_changes_the_digest() -> None:
    base, labels = np.arange(6, dtype="float32").reshape(2, 3), np.array([1, 2])
    nudged = base.copy()
    nudged[1, 2] = np.nextafter(nudged[1, 2], np.float32(9))
    sets = [
        TraceSet(base, labels),
        TraceSet(nudged, labels),
        TraceSet(base[::-1], labels),
        TraceSet(base[::-1], labels[::-1]),
        TraceSet(base, labels[::-1]),
        TraceSet(base, np.array([1, 3])),
        TraceSet(base.reshape(2, 1, 3), labels),
        TraceSet(base.astype("float64"), labels),
        TraceSet(base.astype("int32"), labels),
        TraceSet(base[:1], labels[:1]),
    ]
    assert len({traces.digest for traces in sets}) == len(sets)
    assert TraceSet(base.copy(), labels.copy()).digest == sets[0].digest


# --- answers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "answers", "trace", "expected"),
    [
        pytest.param([7, 9], [4, 0], [7, 9], [4, 0], id="one input each"),
        pytest.param([7, 9], [4, 0], [9, 7], [0, 4], id="in the order asked for"),
        pytest.param([7, 7, 9, 7], [2, 5, 3, 5], [7, 9], [5, 3], id="most frequent"),
        pytest.param([7, 7], [5, 2], [7], [2], id="a tie: the lower class"),
        pytest.param([7, 7, 7], [-1, -1, 3], [7], [3], id="silence does not vote"),
        pytest.param([7, 7], [-1, -1], [7], [-1], id="no answer"),
        pytest.param([7], [2], [7, 8], [2, -1], id="no input"),
        pytest.param([7, 1, 1], [2, 0, 0], [7], [2], id="others are left out"),
        pytest.param([7], [0], [7], [0], id="class 0 is an answer"),
        pytest.param([7], [2], [], [], id="no trace labels"),
        pytest.param([], [], [3], [-1], id="no inputs"),
    ],
)
def test_plurality(
    labels: list[int], answers: list[int], trace: list[int], expected: list[int]
) -> None:
    traces = TraceSet(np.zeros((len(labels), 1)), np.array(labels, int))
    said = plurality(traces, np.array(answers, int), np.array(trace, int))
    assert said.tolist() == expected
    assert said.dtype == np.int64


# --- secrecy ---------------------------------------------------------------------


def test_a_trace_set_shows_its_size_only() -> None:
    assert repr(make()) == "<TraceSet inputs=3>"


@pytest.mark.parametrize("copier", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_trace_set_cannot_be_copied(copier: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="TraceSet holds a secret and cannot be pickled"):
        copier(make())
