"""The SavedModels behind `encryip serve`: the versions of one model, loaded when asked for."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_encryip.cli.rest_server import Refusal
from keras_encryip.cli.shared import say
from keras_encryip.errors import DAMAGED
from keras_encryip.formats.version_folder import GRAPH

DEFAULT_SIGNATURE: Final = "serving_default"


class ServedVersions:
    """The versions of one model.

    A version is loaded when it is first asked for, and then kept: what the signature `unlock` did
    to it stays. One that does not load is left out until the server starts anew.

    Args:
        name: the model's.
        folders: its versions' folders now, by number. Asked at every request.
    """

    def __init__(self, name: str, folders: Callable[[], dict[int, Path]]) -> None:
        self.name = name
        self._folders = folders
        self._lock = threading.Lock()
        self._loaded: dict[int, Any] = {}

    def find(self, name: str, version: int | None) -> tuple[int, Any]:
        """Number and loaded model of a version, by default the newest that loads.

        Raises:
            Refusal: there is none.
        """
        with self._lock:
            folders = self._folders_of(name)
            for number in sorted(folders, reverse=True) if version is None else [version]:
                if number in folders and self._load(number, folders[number]) is not None:
                    return number, self._loaded[number]
        wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        raise Refusal(404, f"Servable not found for request: {wanted}")

    def _folders_of(self, name: str) -> dict[int, Path]:
        """But for those that do not load."""
        folders = self._folders() if name == self.name else {}
        return {n: path for n, path in folders.items() if self._loaded.get(n, path) is not None}

    def _load(self, number: int, folder: Path) -> Any:
        if number not in self._loaded:
            try:
                self._loaded[number] = tf.saved_model.load(str(folder))
            except DAMAGED as error:
                self._loaded[number] = None
                say(f"Version {number} is left out, and cannot be loaded: {error}", err=True)
        return self._loaded[number]

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
