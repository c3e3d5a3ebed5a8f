"""TF Serving's REST protocol, over the versions of one model.

Paths, bodies and the words of errors are those of tensorflow.org/tfx/serving/api_rest and of
TF Serving's `http_rest_api_handler.cc` and `json_tensor.cc`.
"""

import base64
import json
import math
import re
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from keras_encryip.cli.rest_server import Refusal
from keras_encryip.cli.served_versions import DEFAULT_SIGNATURE, ServedVersions
from keras_encryip.errors import printable
from keras_encryip.formats.version_folder import MAX_VERSION

_PATH: Final = re.compile(r"/v1/models/([^/:]+)(?:/versions/([0-9]+))?(/metadata|:predict)?")
_SHOWN: Final = 100


def answer_rest(versions: ServedVersions, method: str, path: str, body: bytes) -> dict[str, Any]:
    """What the JSON of a response holds.

    Raises:
        Refusal: it is an error.
    """
    match = _PATH.fullmatch(path.partition("?")[0])
    if match is None or (method == "POST") != (match[3] == ":predict"):
        raise Refusal(400, f"Malformed request: {method} {printable(path, _SHOWN)}")
    name, version = unquote(match[1]), None
    if match[2] is not None:
        if len(match[2]) > len(str(MAX_VERSION)) or int(match[2]) > MAX_VERSION:
            raise Refusal(400, f"Failed to convert version: {match[2][:_SHOWN]} to numeric.")
        version = int(match[2])
    if match[3] == ":predict":
        return _predict(versions, name, version, _parse(body))
    if match[3] == "/metadata":
        return _metadata(versions, name, version)
    healthy = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    numbers = versions.numbers(name, version)
    return {"model_version_status": [{"version": str(n), **healthy} for n in numbers]}


def _metadata(versions: ServedVersions, name: str, version: int | None) -> dict[str, Any]:
    number, definitions = versions.definitions(name, version)
    shown = {
        key: {
            "inputs": {name: _tensor_info(info) for name, info in definition.inputs.items()},
            "outputs": {name: _tensor_info(info) for name, info in definition.outputs.items()},
            "method_name": definition.method_name,
        }
        for key, definition in definitions.items()
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": str(number)},
        "metadata": {"signature_def": {"signature_def": shown}},
    }


def _tensor_info(info: Any) -> dict[str, Any]:
    shape = info.tensor_shape
    return {
        "dtype": types_pb2.DataType.Name(info.dtype),
        "tensor_shape": {
            "dim": [{"size": str(dim.size), "name": dim.name} for dim in shape.dim],
            "unknown_rank": shape.unknown_rank,
        },
        "name": info.name,
    }


# --- requests ------------------------------------------------------------------------------


def _parse(body: bytes) -> dict[str, Any]:
    if not body:
        raise Refusal(400, "JSON Parse error: The document is empty")
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        offset = getattr(error, "pos", 0)
        raise Refusal(400, f"JSON Parse error: Invalid value. at offset: {offset}") from None
    if not isinstance(request, dict):
        raise Refusal(400, "JSON Value: Is not object")
    if not isinstance(request.get("signature_name", ""), str):
        raise Refusal(
            400,
            "JSON Value: not formatted correctly. 'signature_name' key must be a string value.",
        )
    if "instances" in request and "inputs" in request:
        raise Refusal(
            400,
            "JSON Value: Not formatted correctly expecting only one of 'inputs' or 'instances' "
            "keys to exist",
        )
    if "instances" not in request and "inputs" not in request:
        raise Refusal(400, "Missing 'inputs' or 'instances' key")
    return request


def _predict(
    versions: ServedVersions, name: str, version: int | None, request: dict[str, Any]
) -> dict[str, Any]:
    def inputs(specs: dict[str, Any]) -> dict[str, Any]:
        if "instances" in request:
            columns = _columns(request["instances"], specs)
        else:
            columns = _named(request["inputs"], specs)
        return {key: _tensor(key, columns[key], spec) for key, spec in specs.items()}

    signature = request.get("signature_name") or DEFAULT_SIGNATURE
    _, outputs = versions.predict(name, version, signature, inputs)
    written = {key: _to_json(key, value) for key, value in outputs.items()}
    only = next(iter(written.values())) if len(written) == 1 else None
    if "inputs" in request:
        return {"outputs": written if only is None else only}
    if only is not None:
        return {"predictions": only}
    rows = zip(*written.values(), strict=True)
    return {"predictions": [dict(zip(written, row, strict=True)) for row in rows]}


def _columns(rows: Any, specs: dict[str, Any]) -> dict[str, Any]:
    """The inputs by name, of the row format."""
    if not isinstance(rows, list):
        raise Refusal(400, "JSON Value: Excepting 'instances' to be an list/array")
    if not rows:
        raise Refusal(400, "JSON Value: No values in 'instances' array")
    named = _is_object(rows[0])
    if not named and len(specs) != 1:
        raise Refusal(
            400,
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map",
        )
    for number, row in enumerate(rows):
        if _is_object(row) != named:
            expected = "object but got list" if named else "value/list but got object"
            raise Refusal(400, f"Expecting {expected} at item {number} of input list")
        if named and row.keys() != specs.keys():
            raise Refusal(
                400,
                f"Failed to process element: {number} of 'instances' list. JSON object: keys must "
                f"be equal to: {','.join(sorted(specs))}",
            )
    if not named:
        return {next(iter(specs)): rows}
    return {key: [row[key] for row in rows] for key in specs}


def _named(values: Any, specs: dict[str, Any]) -> dict[str, Any]:
    """The inputs by name, of the column format."""
    if not _is_object(values):
        if len(specs) != 1:
            raise Refusal(
                400,
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map",
            )
        return {next(iter(specs)): values}
    for key in specs:
        if key not in values:
            raise Refusal(400, f"Missing named input: {key} in 'inputs' object.")
    return dict(values)


def _is_object(value: Any) -> bool:
    """Whether it names inputs, and is not what stands for bytes: {"b64": "…"}."""
    return isinstance(value, dict) and not (value.keys() == {"b64"} and type(value["b64"]) is str)


def _tensor(name: str, value: Any, spec: Any) -> Any:
    """Refuses by the input's name alone: its value may be a key."""
    strings = spec.dtype == tf.string
    try:
        converted = _with_bytes(value) if strings else _numbers(name, value, spec.dtype)
        return tf.constant(converted, spec.dtype)
    except (ValueError, TypeError):
        raise _of_another_type(name, spec.dtype) from None


def _numbers(name: str, value: Any, dtype: Any) -> np.ndarray:
    try:
        array = np.array(value)
    except ValueError:
        raise Refusal(400, f"Input {name}: Encountered list at unexpected size") from None
    kinds = "iuf" if dtype.is_floating else "iu" if dtype.is_integer else "b"
    if array.size and array.dtype.kind not in kinds:
        raise _of_another_type(name, dtype)
    with np.errstate(over="ignore"):
        numbers: np.ndarray = array.astype(dtype.as_numpy_dtype)
    same = np.isfinite(numbers) == np.isfinite(array) if dtype.is_floating else numbers == array
    if not same.all():
        raise _of_another_type(name, dtype)
    return numbers


def _of_another_type(name: str, dtype: Any) -> Refusal:
    return Refusal(400, f"Input {name}: JSON Value is not of expected type: {dtype.name}")


def _with_bytes(value: Any) -> Any:
    """Strings, and bytes for what stands for them."""
    if isinstance(value, list):
        return [_with_bytes(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _is_object(value):
        raise Refusal(400, "JSON Value not formatted correctly for base64 data")
    try:
        return base64.b64decode(value["b64"], validate=True)
    except ValueError:
        raise Refusal(400, "Unable to base64 decode") from None


# --- answers -------------------------------------------------------------------------------


def _to_json(name: str, array: np.ndarray) -> Any:
    if array.dtype == object:
        return _strings(array.tolist(), in_base64=name.endswith("_bytes"))
    if array.dtype != np.float32:
        return array.tolist()
    return _nine_digits(array.tolist())


def _strings(value: Any, *, in_base64: bool) -> Any:
    if isinstance(value, list):
        return [_strings(item, in_base64=in_base64) for item in value]
    if in_base64:
        return {"b64": base64.b64encode(value).decode()}
    return value.decode(errors="replace")


def _nine_digits(value: Any) -> Any:
    """What float32 needs, and TF Serving prints."""
    if isinstance(value, list):
        return [_nine_digits(item) for item in value]
    return float(f"{value:.9g}") if math.isfinite(value) else value
