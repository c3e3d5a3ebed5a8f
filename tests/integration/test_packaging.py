"""The wheel and the sdist build, install beside nothing else, and serve an application."""

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import keras_encryip as ke

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
LIGHT = {"numpy", "pycryptodome", "msgspec", "typer", "rich"}
MAX_PACKAGES = 15
MAX_MB = 130

SIZES = """
import importlib.metadata as m, json
found = {
    each.metadata["Name"].lower(): sum(
        file.locate().stat().st_size for file in each.files or [] if file.locate().is_file()
    )
    for each in m.distributions()
}
print(json.dumps(found))
"""


def run(*command: object, cwd: Path) -> str:
    alone = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ran = subprocess.run(
        list(map(str, command)), cwd=cwd, env=alone, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    return ran.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this checkout, and the wheel of that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


def test_what_is_inside(built: Path) -> None:
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    assert f"-{ke.__version__}-" in wheel.name
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    assert "keras_encryip/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"keras_encryip", f"keras_encryip-{ke.__version__}.dist-info"}
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "keras_encryip").rglob("*.py")}
    assert there <= set(names)
    with tarfile.open(sdist) as packed:
        inside = {name.split("/", 1)[-1] for name in packed.getnames()}
    assert there | {"README.md", "LICENSE", "pyproject.toml"} <= inside


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_the_light_install(built: Path, tmp_path: Path, kind: str) -> None:
    """15 packages, about 120 MB; it imports no TensorFlow, and `encryip` runs."""
    [file] = built.glob(kind)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", file, cwd=tmp_path)
    sizes = json.loads(run(python, "-c", SIZES, cwd=tmp_path))
    ours = sizes.keys() - {"pip", "setuptools", "wheel", "keras_encryip", "keras-encryip"}
    assert ours >= LIGHT
    assert len(ours) <= MAX_PACKAGES
    assert sum(sizes[name] for name in ours) < MAX_MB * 10**6
    command = tmp_path / "venv" / "bin" / "encryip"
    assert run(command, "--version", cwd=tmp_path).split()[-1] == ke.__version__
    code = (
        "import sys, keras_encryip as ke\n"
        "from keras_encryip.client import Decoder, read_sealed, unlock_key\n"
        "assert not {'tensorflow', 'keras', 'sqlalchemy'} & set(sys.modules)\n"
        "try: ke.protect\n"
        "except ImportError as error: print(error)\n"
    )
    assert "keras_encryip[owner]" in run(python, "-c", code, cwd=tmp_path)
