"""The variables of a SavedModel's checkpoint, decrypted if they are locked."""

from collections.abc import Iterable
from os import PathLike
from typing import Any, Final

import numpy as np

from keras_encryip.crypto.locked_weights import is_key_of, unlock_arrays
from keras_encryip.errors import FormatError

PREFIX: Final = "variables/variables"
OBJECTS: Final = "_CHECKPOINTABLE_OBJECT_GRAPH"

PROOF: Final = "proof"
LOCKED: Final = "locked_"
"""Attributes of a lock: what shows a key right and the rest unchanged; each locked variable."""


class Checkpoint:
    """A checkpoint, open to be read.

    Args:
        folder: a SavedModel's, on any file system that TensorFlow reads.

    Attributes:
        shapes, dtypes: of everything in it, by name.
        objects: the graph of the objects that its variables belong to.
        locked: names of the locked variables, in order; empty if they are not.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        import tensorflow as tf
        from tensorflow.core.protobuf import trackable_object_graph_pb2

        self._reader = tf.compat.v1.train.NewCheckpointReader(f"{folder}/{PREFIX}")
        self.shapes: dict[str, list[int]] = self._reader.get_variable_to_shape_map()
        self.dtypes: dict[str, Any] = self._reader.get_variable_to_dtype_map()
        self.objects = trackable_object_graph_pb2.TrackableObjectGraph()
        if OBJECTS in self.shapes:
            self.objects.ParseFromString(self._reader.get_tensor(OBJECTS))
        self._proof, self.locked = self._lock()

    def read(self, name: str) -> Any:
        """What stands in the file: a numpy array, or bytes."""
        return self._reader.get_tensor(name)

    def unlocked(self, keys: Iterable[bytes]) -> dict[str, np.ndarray]:
        """The locked variables, in order.

        Args:
            keys: of which one should open them.

        Raises:
            FormatError: none does.
            SignatureError: they were changed.
        """
        proof = self.proof
        key = next((key for key in keys if is_key_of(key, proof)), None)
        if key is None:
            raise FormatError("Its weights are locked, and not by an export of this authority.")
        arrays = unlock_arrays(key, [self.read(name) for name in self.locked], proof)
        return dict(zip(self.locked, arrays, strict=True))

    @property
    def proof(self) -> bytes:
        """What shows a key right, and the variables unchanged; of a locked checkpoint."""
        return bytes(self.read(self._proof).tobytes())

    @property
    def proof_name(self) -> str:
        """The name of `proof`; empty if nothing is locked."""
        return self._proof

    def _lock(self) -> tuple[str, list[str]]:
        for node in self.objects.nodes:
            below = {child.local_name: child.node_id for child in node.children}
            if PROOF in below and f"{LOCKED}0" in below:
                count = sum(name.startswith(LOCKED) for name in below)
                numbers = [below[f"{LOCKED}{i}"] for i in range(count)]
                return self._name(below[PROOF]), [self._name(number) for number in numbers]
        return "", []

    def _name(self, number: int) -> str:
        return str(self.objects.nodes[number].attributes[0].checkpoint_key)
