"""The SavedModels behind `encryip serve`: the versions of one model, loaded when asked for."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_encryip.cli.rest_server import Refusal
from keras_encryip.cli.shared import say
from keras_encryip.errors import DAMAGED
from keras_encryip.formats.version_folder import GRAPH

DEFAULT_SIGNATURE: Final = "serving_default"


_Files: TypeAlias = frozenset[tuple[str, int, int, int]]


def _files(folder: Path) -> _Files:
    """Which files a SavedModel is now: another copy under its name has others."""
    files = set()
    for path in (folder / GRAPH, *folder.glob("variables/*")):
        with contextlib.suppress(OSError):  # gone meanwhile
            status = path.stat()
            files.add((path.name, status.st_ino, status.st_size, status.st_mtime_ns))
    return frozenset(files)


class ServedVersions:
    """The versions of one model.

    A version is loaded when it is first asked for, and then kept: what the signature `unlock` did
    to it stays, until its files are replaced. One that does not load is left out until then.

    Args:
        name: the model's.
        folders: its versions' folders now, by number. Asked at every request.
    """

    def __init__(self, name: str, folders: Callable[[], dict[int, Path]]) -> None:
        self.name = name
        self._folders = folders
        self._lock = threading.Lock()
        self._loaded: dict[int, tuple[_Files, Any]] = {}

    def find(self, name: str, version: int | None) -> tuple[int, Any]:
        """Number and loaded model of a version, by default the newest that loads.

        Raises:
            Refusal: there is none.
        """
        with self._lock:
            folders = self._folders_of(name)
            for number in sorted(folders, reverse=True) if version is None else [version]:
                loaded = self._load(number, folders[number]) if number in folders else None
                if loaded is not None:
                    return number, loaded
        wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        raise Refusal(404, f"Servable not found for request: {wanted}")

    def _folders_of(self, name: str) -> dict[int, Path]:
        """But for those that do not load."""
        folders = self._folders() if name == self.name else {}
        lost = {n for n, path in folders.items() if self._loaded.get(n) == (_files(path), None)}
        return {n: path for n, path in folders.items() if n not in lost}

    def _load(self, number: int, folder: Path) -> Any:
        files = _files(folder)
        if self._loaded.get(number, (None, None))[0] != files:
            loaded = None
            try:
                loaded = tf.saved_model.load(str(folder))
            except DAMAGED as error:
                say(f"Version {number} is left out, and cannot be loaded: {error}", err=True)
            self._loaded[number] = files, loaded
        return self._loaded[number][1]

    def predict(
        self,
        name: str,
        version: int | None,
        signature: str,
        inputs: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> tuple[int, dict[str, np.ndarray]]:
        """The version's number, and outputs by name.

        Args:
            inputs: makes tensors by name of the `TensorSpec`s of the signature's inputs.

        Raises:
            Refusal: there is no such version or signature, or it cannot answer to that.
        """
        number, loaded = self.find(name, version)
        if signature not in loaded.signatures:
            raise Refusal(400, f'Serving signature name: "{signature}" not found in signature def')
        function = loaded.signatures[signature]
        specs = function.structured_input_signature[1]
        tensors = inputs(specs)
        for key, tensor in tensors.items():
            if not specs[key].shape.is_compatible_with(tensor.shape):
                shapes = f"expected {specs[key].shape}, got {tensor.shape}"
                raise Refusal(400, f"Input {key} has another shape: {shapes}")
        try:
            outputs = function(**tensors)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise Refusal(400, str(error)) from None
        return number, {key: value.numpy() for key, value in outputs.items()}

    def numbers(self, name: str, version: int | None) -> list[int]:
        """The versions that there are, newest first; or the one that is asked for.

        Raises:
            Refusal: there is none.
        """
        if version is None:
            if not (folders := self._folders_of(name)):
                raise Refusal(404, f"Could not find any versions of model {name}")
            return sorted(folders, reverse=True)
        try:
            return [self.find(name, version)[0]]
        except Refusal:
            raise Refusal(404, f"Could not find version {version} of model {name}") from None

    def definitions(self, name: str, version: int | None) -> tuple[int, dict[str, Any]]:
        """The version's number, and its `SignatureDef`s by name."""
        number, _ = self.find(name, version)
        graph = (self._folders()[number] / GRAPH).read_bytes()
        metas = saved_model_pb2.SavedModel.FromString(graph).meta_graphs
        (meta,) = (meta for meta in metas if "serve" in meta.meta_info_def.tags)
        return number, dict(meta.signature_def)
