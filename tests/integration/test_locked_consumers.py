"""Locked exports through the C API, and sealed files opened in memory by other runtimes."""

import ast
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_encryip as ke
from keras_encryip.client import unlock_key
from tests.integration.test_consumers import PASSPHRASE, SIZES, Served, ask, predict, program, run
from tests.integration.test_consumers import served as served

__all__ = ["ask", "predict"]

pytestmark = pytest.mark.integration

WATCHED = """
import atexit, os, resource, sys
sys.dont_write_bytecode = True
written = []
least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        # From here to the answers, no file takes a byte, from native code neither.
        if arguments[0].endswith("digits.sealed"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
        elif arguments[0].endswith("confused.npy"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
        if (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(arguments[0])
    elif event in ("os.rename", "os.link", "os.mkdir", "os.symlink"):
        written.append(str(arguments[0]))
def say():
    print("written:", sorted({os.path.basename(path) for path in written}))
sys.addaudithook(watch)
atexit.register(say)
"""


# --- C -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(served: Served) -> Any:
    """The served model again, locked, with its key file's path and its key."""
    folder, key_file = served.folder / "locked", served.folder / "keys" / "digits.key"
    with ke.Authority.open(served.folder / "acme.authority", PASSPHRASE) as authority:
        model = served.model.unlock(authority=authority)
        ke.export_saved_model(model, folder, weights="locked", key_file=key_file)
        ke.export_saved_model(model, folder.with_name("plain"))  # under the same codebook
    return folder, key_file, unlock_key(folder, served.folder / "alice.keybundle", PASSPHRASE)


@pytest.mark.parametrize("rows", SIZES)
def test_c(ask: Any, served: Served, locked: Any, tmp_path: Path, rows: int) -> None:
    folder, key_file, key = locked
    before = ask(folder, "serving_default", rows, "before")
    assert before.returncode != 0
    assert f"This model is locked. Put its key at {key_file}" in before.stderr
    key_file.parent.mkdir()
    try:
        key_file.write_bytes(key[::-1])
        wrong = ask(folder, "serving_default", rows, "wrong")
        assert wrong.returncode != 0
        assert "not the key of this version" in wrong.stderr
        key_file.write_bytes(key)
        for name, model in (("plain", folder.with_name("plain")), ("open", folder)):
            asked = ask(model, "serving_default", rows, name)
            assert asked.returncode == 0, asked.stderr
    finally:
        shutil.rmtree(key_file.parent)
    plain, opened = ((tmp_path / n / "outputs.bin").read_bytes() for n in ("plain", "open"))
    assert plain == opened


# --- other runtimes ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model for LiteRT and ONNX Runtime."""
    place = served.place(tmp_path_factory.mktemp("converted") / "1", 1, served.ordinary)
    for name in ("convert_litert.py", "convert_onnx.sh"):
        asked = run(name, place)
        assert asked.returncode == 0, asked.stderr
    return place


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("sealed_onnx.py", "digits.onnx"),
        ("sealed_openvino.py", "digits.onnx"),
        ("sealed_litert.py", "digits.tflite"),
        ("sealed_tensorflow.py", ""),
    ],
)
def test_sealed(served: Served, converted: Path, tmp_path: Path, name: str, source: str) -> None:
    inside = served.ordinary
    if source:
        inside = tmp_path / "inside"
        inside.mkdir()
        shutil.copy(converted / source, inside)
    place = served.place(tmp_path / "place", len(served.x), served.ordinary)
    with ke.Authority.open(served.folder / "acme.authority", PASSPHRASE) as authority:
        ke.seal_folder(authority, inside, place / "digits.sealed", model="digits")
    (tmp_path / "home").mkdir()
    home = tmp_path / "home"
    before = {*tmp_path.rglob("*")}
    surroundings = {key: str(home) for key in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    text = WATCHED + program(name)
    asked = run(name, place, text, PASSPHRASE=PASSPHRASE, **surroundings)
    assert asked.returncode == 0, asked.stderr
    new = {path for path in {*tmp_path.rglob("*")} - before if path.is_file()}
    assert {path for path in new if home not in path.parents} == {
        place / "confused.npy",
        place / name,
    }
    largest = max((p for p in inside.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    sample = largest.read_bytes()[-4000:-3900]
    assert not [path for path in new if sample in path.read_bytes()]  # settings of libraries are
    (told,) = [line for line in asked.stdout.splitlines() if line.startswith("written:")]
    inner = {path.name for path in inside.rglob("*")}
    assert not inner & set(ast.literal_eval(told.removeprefix("written: ")))
    served.check(np.load(place / "confused.npy"), served.decoder(), name)
