"""TF Serving's gRPC API, over tensorflow-serving-api."""

import math
import os
import urllib.parse
from typing import Any, Final

import numpy as np

from keras_encryip.client.serving.failures import (
    PassingError,
    too_large,
    too_late,
    untrusted,
)
from keras_encryip.client.serving.wire import takes_too_much
from keras_encryip.errors import (
    DAMAGED,
    EncryipError,
    ServiceError,
    instead_of,
    needing,
    printable,
)
from keras_encryip.formats.atomic_files import read_bounded
from keras_encryip.formats.responses import OUTPUTS

_MAX_PEM_BYTES: Final = 1 << 20
_MAX_AXES: Final = 32
_PREDICT: Final = "/tensorflow.serving.PredictionService/Predict"
_UNTRUSTED: Final = ("SSL_ERROR_SSL", "Verification Check failed")
_HINTS: Final = {
    "INVALID_ARGUMENT": " Check names, shapes and types of the inputs.",
    "NOT_FOUND": " Check `model` and `version`.",
    "PERMISSION_DENIED": " Give credentials as `headers`.",
    "UNAUTHENTICATED": " Give credentials as `headers`.",
    "UNIMPLEMENTED": " Check that `url` is that of TF Serving's gRPC API.",
}


class GrpcTransport:
    """Asks `tensorflow.serving.PredictionService/Predict`."""

    def __init__(
        self,
        address: urllib.parse.SplitResult,
        model: str,
        version: int | None,
        *,
        timeout: float,
        headers: dict[str, str],
        ca_file: str | os.PathLike[str] | None,
        certificate: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None,
        max_answer_bytes: int,
        **_: Any,
    ) -> None:
        with needing("serving"):
            import grpc
            from tensorflow_serving.apis import predict_pb2
        self._grpc, self._messages = grpc, predict_pb2
        self._url = address.geturl()
        self._model, self._version = model, version
        self._timeout = timeout
        self._limit = max_answer_bytes
        self._metadata = [(name.lower(), value) for name, value in headers.items()]
        options = [
            ("grpc.max_receive_message_length", min(max_answer_bytes, (1 << 31) - 1)),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_retries", 0),  # the client's own are the only ones
            ("grpc.initial_reconnect_backoff_ms", 100),  # and not held up by the channel's
        ]
        if address.scheme == "grpcs":
            chain, key = (None, None) if certificate is None else map(_read_pem, certificate)
            roots = None if ca_file is None else _read_pem(ca_file)
            credentials = grpc.ssl_channel_credentials(roots, key, chain)
            self._channel = grpc.secure_channel(address.netloc, credentials, options)
        else:
            self._channel = grpc.insecure_channel(address.netloc, options)
        self._predict = self._channel.unary_unary(
            _PREDICT, request_serializer=predict_pb2.PredictRequest.SerializeToString
        )

    def ask(self, inputs: dict[str, np.ndarray], signature: str) -> np.ndarray | list[bytes]:
        request = self._messages.PredictRequest()
        request.model_spec.name = self._model
        request.model_spec.signature_name = signature
        if self._version is not None:
            request.model_spec.version.value = self._version
        for name, array in inputs.items():
            _fill(request.inputs[name], array)
        with instead_of(self._grpc.RpcError, raises=self._problem):
            answer = self._predict(request, timeout=self._timeout, metadata=self._metadata)
        # Its bytes first: what the server lists in two bytes may take a hundred as an object.
        if takes_too_much(answer):
            raise _no_answer()
        with instead_of(*DAMAGED, raises=lambda _: _no_answer()):
            # Parsed inside, too: NumPy refuses shapes that a server may name.
            return self._parse(self._messages.PredictResponse.FromString(answer))

    def close(self) -> None:
        self._channel.close()

    def _problem(self, error: Any) -> EncryipError:
        code = error.code().name
        details = printable(error.details() or "", 300).rstrip(".")
        if code == "DEADLINE_EXCEEDED":
            return too_late(self._timeout)
        if "CLIENT: Received message larger than max" in details:
            return too_large(self._limit)
        if code == "UNAVAILABLE" and any(words in details for words in _UNTRUSTED):
            return untrusted(details)
        text = f"The model server at {self._url} answered {code}: {details}."
        if "larger than max" in details:  # the server's own limit for questions or answers
            return ServiceError(f"{text} Ask with a smaller `batch_size`.")
        if code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
            return PassingError(text)
        return ServiceError(text + _HINTS.get(code, ""))

    def _parse(self, response: Any) -> np.ndarray | list[bytes]:
        ours = [name for name in response.outputs if name in OUTPUTS]
        if len(ours) != 1:
            raise ServiceError(
                "The model server's answer must hold the output `confused`, `encrypted` or "
                "`ciphertext_bytes` of a protected model."
            )
        name, tensor = ours[0], response.outputs[ours[0]]
        if name == "ciphertext_bytes":
            return list(tensor.string_val)
        floats = name == "confused"
        array = _read(tensor, np.dtype("<f4" if floats else "<i4"), self._limit)
        if array is None:
            raise ServiceError(
                f"The model server's output `{name}` is no {'float32' if floats else 'int32'} "
                f"tensor of the size it says, of at most {self._limit} bytes."
            )
        return array


def _no_answer() -> ServiceError:
    return ServiceError(
        "The model server's answer is no PredictResponse of numbers or ciphertexts."
    )


def _type(tensor: Any, dtype: np.dtype[Any]) -> int:
    """The number that TensorFlow has for a dtype."""
    name = "DT_FLOAT" if dtype == np.float32 else f"DT_{dtype.name.upper()}"
    numbers = tensor.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_name
    return int(numbers[name].number)


def _fill(tensor: Any, array: np.ndarray) -> None:
    """Write an array into a `TensorProto`."""
    tensor.dtype = _type(tensor, array.dtype)
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = array.astype(array.dtype.newbyteorder("<")).tobytes()


def _read(tensor: Any, dtype: np.dtype[Any], limit: int) -> np.ndarray | None:
    """The array in a `TensorProto`; `None` if it is of another type or size."""
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    # A tensor may leave out equal values: its size on the wire does not bound it.
    # One of very many axes has a product that takes minutes.
    small = len(shape) <= _MAX_AXES and min(shape, default=-1) >= 0
    small = small and dtype.itemsize * math.prod(shape) <= limit
    if tensor.dtype != _type(tensor, dtype) or not small:
        return None
    count = math.prod(shape)
    if tensor.tensor_content:
        whole = len(tensor.tensor_content) == count * dtype.itemsize
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape) if whole else None
    listed = tensor.float_val if dtype.kind == "f" else tensor.int_val
    values = np.fromiter(listed, dtype, len(listed)) if listed else np.zeros(1, dtype)
    if len(values) > max(count, 1):
        return None
    return np.pad(values, (0, max(0, count - len(values))), "edge")[:count].reshape(shape)


def _read_pem(path: str | os.PathLike[str]) -> bytes:
    return read_bounded(path, what="PEM file", max_bytes=_MAX_PEM_BYTES)
