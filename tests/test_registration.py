"""Saved models load in fresh processes that import the package, in whatever order."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import keras_encryip

pytestmark = pytest.mark.long

CLASSES = (
    "ConfusedLabelCrossentropy",
    "ConfusedLabels",
    "Distillation",
    "Headless",
    "ProtectedModel",
    "RoundTo8Bits",
    "Shared",
)


def run(code: str, *, folder: Path | None = None) -> str:
    """What a fresh process prints; it warns of nothing."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder or Path(keras_encryip.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


ORDERS = {
    "package first": "import keras_encryip as ke, keras",
    "keras first": "import keras, keras_encryip as ke",
    "a part of keras": "import keras_encryip\nfrom keras.saving import load_model\nimport keras",
    "the light client": "from keras_encryip.client import Decoder\nimport keras",
    "tensorflow's keras": "import keras_encryip, tensorflow as tf\nkeras = tf.keras",
    "tensorflow first": "import tensorflow as tf\nimport keras_encryip\nimport keras",
    "a name of the package": "from keras_encryip import KeyBundle\nimport keras",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a protected model, saved alone and within another."""
    folder = tmp_path_factory.mktemp("saved")
    classifier = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    options = {"scrypt_log2_n": 14}
    with keras_encryip.Authority.create(folder / "a.authority", "owner", **options) as authority:
        protected = keras_encryip.protect(classifier, authority, name="digits", trace_labels=8)
        protected.save(folder / "alone.keras")
        inputs = keras.Input((64,))
        outputs = keras.layers.Rescaling(2.0)(protected(inputs))
        keras.Model(inputs, outputs).save(folder / "larger.keras")
    return folder


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_saved_models_load(order: str, saved: Path) -> None:
    code = f"""{order}
alone = keras.models.load_model({str(saved / "alone.keras")!r})
from keras.saving import load_model
inside = load_model({str(saved / "larger.keras")!r}).layers[1]
print(alone.num_labels == inside.num_labels, inside.is_locked())"""
    assert run(code) == "True True"


@pytest.mark.parametrize("order", ["package first", "keras first"])
def test_every_class_is_registered(order: str) -> None:
    names = [f"keras_encryip>{name}" for name in CLASSES]
    code = f"""{ORDERS[order]}
for name in {names!r}:
    assert keras.saving.get_registered_object(name) is not None, name
import importlib, pkgutil
import keras_encryip.models as room
modules = [importlib.import_module(f"{{room.__name__}}.{{m.name}}")
           for m in pkgutil.iter_modules(room.__path__)]
objects = [c for m in modules for c in vars(m).values()]
registered = map(keras.saving.get_registered_name, filter(callable, objects))
print(*sorted({{n for n in registered if n.startswith("keras_encryip>")}}))"""
    assert run(code).split() == names


def test_keras_is_found_as_ever() -> None:
    """Its loader and its resources are those of before; the finder goes, once it was loaded."""
    code = """import sys, importlib.util
import keras_encryip
def finders(): return sum("keras_encryip" in type(f).__module__ for f in sys.meta_path)
assert importlib.util.find_spec("keras") is not None and finders() == 1
import keras, importlib.resources
assert finders() == 0
assert keras.__spec__.loader is keras.__loader__
file = importlib.resources.files("keras") / "__init__.py"
print(type(keras.__loader__).__name__, file.is_file())"""
    assert run(code) == "SourceFileLoader True"


def test_the_light_client_waits_without_keras() -> None:
    code = """import sys, keras_encryip
from keras_encryip.client import Decoder
print([name for name in ("keras", "tensorflow", "keras_encryip.models") if name in sys.modules])"""
    assert run(code) == "[]"


FORBID = """import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(name + " is not installed here", name=name)
sys.meta_path.insert(0, Forbid())
"""


@pytest.mark.parametrize("order", ["package first", "keras first"])
def test_keras_is_imported_where_the_owners_packages_are_missing(order: str) -> None:
    code = FORBID.format(names=["sklearn", "sqlalchemy", "scipy", "msgspec"]) + ORDERS[order]
    assert run(code + "\nprint(keras.__name__)") == "keras"


def test_without_keras_its_absence_is_said_as_ever() -> None:
    code = FORBID.format(names=["keras"]) + "import keras_encryip\nimport keras"
    with pytest.raises(AssertionError, match=r"ModuleNotFoundError: keras is not installed here"):
        run(code)


def test_a_fault_of_ours_is_not_hidden(tmp_path: Path) -> None:
    """A module of the package that is missing is an error, and not a missing extra."""
    code = """import sys, keras_encryip
sys.modules["keras_encryip.models"] = None
import keras"""
    with pytest.raises(AssertionError, match=r"import of keras_encryip\.models halted"):
        run(code)
