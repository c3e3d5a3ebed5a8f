"""What is kept of asking a service, and how a run goes on."""

import errno
import json
import os
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
from keras_encryip.errors import ArgumentError, FormatError
from keras_encryip.tracing.service import transcript as transcript_module
from tests.tracing.service.asking import (
    INPUTS,
    NAMES,
    TRUTH,
    Service,
    down,
    names,
    places,
)


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
