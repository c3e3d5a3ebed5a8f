"""`encryip demo` in folders with odd names: nothing fails at the end, all lines can be pasted."""

import shlex
from pathlib import Path

import pytest

from keras_encryip.cli.demo import _hints, _key_file

ODD = [
    "/home/josé/encryip-demo",
    "/tmp/run[1]/demo",
    "/tmp/my demo's",
    "/tmp/half\udcff",
    "/tmp/a\nb",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_folders(name: str) -> None:
    hints = _hints(Path(name))
    assert len(hints) == 6
    "\n".join(hints).encode("utf-8")  # as the page holds them
    if name.isprintable():
        assert shlex.split(hints[1])[3] == f"{name}/evidence"
    key_file = _key_file(Path(name))
    assert key_file in (None, f"{name}/digits.key")
    assert key_file is None or name == "/tmp/my demo's" or name == "/tmp/a\nb"


def test_the_key_goes_where_the_model_looks() -> None:
    unlock = shlex.split(_hints(Path("/demo"))[3])
    assert unlock[unlock.index("--out") + 1] == _key_file(Path("/demo"))
