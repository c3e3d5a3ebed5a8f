"""Makes the package's Keras classes loadable as soon as Keras is imported, and not before.

`keras.models.load_model` finds a class only if its module was imported. Importing the package must
not import Keras, because applications with a key bundle have none. So the classes are registered
at once where Keras is loaded already, and else right after somebody imports it.
"""

import contextlib
import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

_MODELS: Final = "keras_encryip.models"


def register_keras_classes() -> None:
    """Register now if Keras is loaded, else when it will be."""
    if "keras" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _KerasFinder())


def _register() -> None:
    """Importing the room registers its classes. Keras goes on without what is not installed."""
    try:
        importlib.import_module(_MODELS)
    except ImportError as error:  # another backend of Keras, too: said to whoever asks for the room
        if isinstance(error, ModuleNotFoundError) and str(error.name).startswith(__package__):
            raise


class _KerasFinder(importlib.abc.MetaPathFinder):
    """Notices the import of Keras, and leaves the finding to the others."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "keras":
            return None
        specs = (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)
        spec = next(filter(None, specs), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _KerasLoader(spec.loader, self)
        return spec


class _KerasLoader(importlib.abc.Loader):
    """Loads Keras by its own loader, and registers then. A spec may be asked for, and not used."""

    def __init__(self, loader: importlib.abc.Loader, finder: _KerasFinder) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader  # so that resources are found as ever
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(self._finder)
        _register()
