"""The requests that TF Serving answers to itself before others: first answers are slow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_encryip.errors import ArgumentError, instead_of, needing
from keras_encryip.formats.version_folder import WARMUP


def check_warmup(warmup: Any, signature: Any) -> dict[str, np.ndarray]:
    """The inputs by name.

    Args:
        warmup: an array `[n, ...]`, or a dictionary of them by the names of the model's inputs.
        signature: `tf.TensorSpec`s of the model's inputs, one or a dictionary.

    Raises:
        ArgumentError: they are not inputs of this model, or TF Serving's messages are missing.
    """
    _messages()
    specs = signature if isinstance(signature, dict) else {"inputs": signature}
    given = dict(warmup) if isinstance(warmup, Mapping) else {"inputs": warmup}
    if given.keys() != specs.keys():
        raise ArgumentError(
            f"`warmup` must have the model's inputs: {', '.join(map(repr, specs))}. "
            f"Received: {', '.join(map(repr, given))}"
        )
    arrays = {}
    for name, spec in specs.items():
        with instead_of(
            Exception,
            raises=lambda error: ArgumentError(f"`warmup` must hold arrays. Received: {error}"),
        ):
            array = np.asarray(tf.cast(given[name], spec.dtype))
        if not spec.shape.is_compatible_with(array.shape) or not array.size:
            raise ArgumentError(
                f"`warmup` must hold inputs {name!r} of shape {spec.shape}. "
                f"Received: shape {array.shape}"
            )
        arrays[name] = array
    if len({len(array) for array in arrays.values()}) > 1:
        raise ArgumentError("`warmup` must hold arrays of equal length.")
    return arrays


def write_warmup(folder: Path, model: str, inputs: dict[str, np.ndarray]) -> None:
    """Write the file that TF Serving looks for in a version folder."""
    log = _messages().PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = model, "serving_default"
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    (folder / WARMUP).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / WARMUP)) as writer:
        writer.write(log.SerializeToString())


def _messages() -> Any:
    with needing("serving"):
        from tensorflow_serving.apis import prediction_log_pb2
    return prediction_log_pb2
