"""A small server that speaks TF Serving's REST and gRPC protocol on a SavedModel.

For tests and examples where tensorflow_model_server is not at hand; it takes that program's flags:

    python tests/serving/tf_serving.py --model_name=digits --model_base_path=served/digits \
        --rest_api_port=8501 --port=8500

Like it, it serves the folder with the highest number under the base path, and a newer one as soon
as it appears. TF Serving: tensorflow.org/tfx/serving/api_rest, tensorflow_serving/apis/*.proto.
"""

import argparse
import base64
import json
import math
import re
import signal
import ssl
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

DEFAULT = "serving_default"
CODES = {400: grpc.StatusCode.INVALID_ARGUMENT, 404: grpc.StatusCode.NOT_FOUND}


class Refusal(Exception):
    """A request that cannot be answered: an HTTP status and TF Serving's words."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Servable:
    """The versions of one model; the latest is loaded."""

    def __init__(self, name: str, base_path: Path) -> None:
        self.name = name
        self._base_path = base_path
        self._lock = threading.Lock()
        self._version = self._failed = 0
        self._loaded: Any = None

    def get(self, name: str, version: int | None) -> tuple[int, Any]:
        """Version and loaded model."""
        with self._lock:
            folders = self._base_path.glob("[0-9]*/saved_model.pb")
            latest = max((int(path.parent.name) for path in folders), default=0)
            if latest and latest not in (self._version, self._failed):
                try:
                    self._loaded = tf.saved_model.load(str(self._base_path / str(latest)))
                except (
                    tf.errors.OpError,
                    OSError,
                    ValueError,
                ):  # the version before goes on, and this one waits
                    self._failed = latest
                else:
                    self._version = latest
            if name != self.name or not self._version or version not in (None, self._version):
                wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise Refusal(404, f"Servable not found for request: {wanted}")
            return self._version, self._loaded

    def predict(
        self, name: str, version: int | None, signature: str, inputs: Any
    ) -> tuple[int, dict[str, np.ndarray]]:
        """Outputs for the tensors that `inputs(specs)` gives for the signature's inputs."""
        found, loaded = self.get(name, version)
        if signature not in loaded.signatures:
            raise Refusal(400, f'Serving signature name: "{signature}" not found in signature def')
        function = loaded.signatures[signature]
        specs = function.structured_input_signature[1]
        try:
            outputs = function(**inputs(specs))
        except (ValueError, TypeError, OverflowError, tf.errors.OpError) as error:
            raise Refusal(400, str(error)) from None
        return found, {key: value.numpy() for key, value in outputs.items()}

    def status(self, name: str, version: int | None) -> Any:
        found, _ = self.get(name, version)
        answer = get_model_status_pb2.GetModelStatusResponse()
        answer.model_version_status.add(version=found, state="AVAILABLE")
        answer.model_version_status[0].status.error_message = ""
        return answer

    def metadata(self, name: str, version: int | None) -> Any:
        found, loaded = self.get(name, version)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, function in loaded.signatures.items():
            definition = meta_graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
            for specs, target in (
                (function.structured_input_signature[1], definition.inputs),
                (function.structured_outputs, definition.outputs),
            ):
                for tensor, spec in specs.items():
                    target[tensor].dtype = spec.dtype.as_datatype_enum
                    target[tensor].tensor_shape.CopyFrom(spec.shape.as_proto())
            signatures.signature_def[key].CopyFrom(definition)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.model_spec.name = name
        answer.model_spec.version.value = found
        answer.metadata["signature_def"].Pack(signatures)
        return answer


# --- REST ----------------------------------------------------------------------------------


PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(/metadata|:predict)?")


def answer_rest(servable: Servable, method: str, path: str, body: bytes) -> Any:
    match = PATH.fullmatch(path)
    if match is None or (method == "POST") != (match[3] == ":predict"):
        raise Refusal(404, f"Malformed request: {method} {path}")
    name, version = match[1], None if match[2] is None else int(match[2])
    if match[3] == "/metadata":
        return json_format.MessageToDict(
            servable.metadata(name, version), preserving_proto_field_name=True
        )
    if method == "GET":
        return json_format.MessageToDict(
            servable.status(name, version), preserving_proto_field_name=True
        )
    try:
        request = json.loads(body)
    except ValueError:
        raise Refusal(400, "JSON Parse error: Invalid value. at offset: 0") from None
    if not isinstance(request, dict) or ("instances" in request) == ("inputs" in request):
        raise Refusal(400, "Missing 'inputs' or 'instances' key")
    rows = "instances" in request

    def inputs(specs: dict[str, Any]) -> dict[str, Any]:
        return _from_json(request["instances" if rows else "inputs"], specs, rows)

    signature = request.get("signature_name", DEFAULT)
    _, outputs = servable.predict(name, version, signature, inputs)
    written = {key: _to_json(key, value) for key, value in outputs.items()}
    if not rows:
        return {"outputs": next(iter(written.values())) if len(written) == 1 else written}
    if len(written) == 1:
        return {"predictions": next(iter(written.values()))}
    split = zip(*written.values(), strict=True)
    return {"predictions": [dict(zip(written, row, strict=True)) for row in split]}


def _from_json(values: Any, specs: dict[str, Any], rows: bool) -> dict[str, Any]:
    if rows and isinstance(values[0], dict) and "b64" not in values[0]:
        values = {key: [row[key] for row in values] for key in values[0]}
    if not isinstance(values, dict) or "b64" in values:
        if len(specs) > 1:
            raise Refusal(400, "inputs is a plain value/list, but expecting an object")
        values = {next(iter(specs)): values}
    for key in specs:
        if key not in values:
            raise Refusal(400, f"Missing named input: {key} in 'inputs' object.")
    return {key: _tensor(values[key], spec) for key, spec in specs.items()}


def _tensor(value: Any, spec: Any) -> Any:
    if spec.dtype == tf.string:
        return tf.constant(_with_bytes(value), spec.dtype)
    array = np.array(value)
    if spec.dtype.is_integer and array.dtype.kind == "f":
        raise Refusal(400, f"JSON Value is not of expected type: {spec.dtype.name}")
    return tf.constant(array.tolist(), spec.dtype)


def _with_bytes(value: Any) -> Any:
    """Strings, and what stands in base64 for bytes: {"b64": "…"}."""
    if isinstance(value, list):
        return [_with_bytes(item) for item in value]
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value


def _to_json(name: str, array: np.ndarray) -> Any:
    if name.endswith("_bytes"):
        return [{"b64": base64.b64encode(data).decode()} for data in array.tolist()]
    if array.dtype.kind != "f":
        return array.tolist()
    return _nine_digits(array.tolist())


def _nine_digits(value: Any) -> Any:
    """What float32 needs, and TF Serving prints."""
    if isinstance(value, list):
        return [_nine_digits(item) for item in value]
    return float(f"{value:.9g}") if math.isfinite(value) else value


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    servable: Servable

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        status = 200
        try:
            answer = answer_rest(self.servable, self.command, self.path, body)
        except Refusal as refusal:
            status, answer = refusal.status, {"error": str(refusal)}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


# --- gRPC ----------------------------------------------------------------------------------


class Services(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    def __init__(self, servable: Servable) -> None:
        self._servable = servable

    def Predict(self, request: Any, context: Any) -> Any:
        def inputs(specs: dict[str, Any]) -> dict[str, Any]:
            if set(specs) != set(request.inputs):
                raise Refusal(
                    400,
                    f"input size does not match signature: {len(request.inputs)}!={len(specs)}"
                    f" or names differ. Expected: {{{','.join(sorted(specs))}}}",
                )
            return {key: tf.constant(tf.make_ndarray(request.inputs[key])) for key in specs}

        signature = request.model_spec.signature_name or DEFAULT
        version, outputs = self._try(
            context, self._servable.predict, *_wanted(request), signature, inputs
        )
        answer = predict_pb2.PredictResponse(model_spec=request.model_spec)
        answer.model_spec.version.value = version
        for key, value in outputs.items():
            answer.outputs[key].CopyFrom(_as_proto_field(value))
        return answer

    def GetModelMetadata(self, request: Any, context: Any) -> Any:
        return self._try(context, self._servable.metadata, *_wanted(request))

    def GetModelStatus(self, request: Any, context: Any) -> Any:
        return self._try(context, self._servable.status, *_wanted(request))

    def _try(self, context: Any, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Refusal as refusal:
            context.abort(CODES[refusal.status], str(refusal))


def _wanted(request: Any) -> tuple[str, int | None]:
    spec = request.model_spec
    return spec.name, spec.version.value if spec.HasField("version") else None


def _as_proto_field(array: np.ndarray) -> Any:
    """As TF Serving writes tensors: values in the fields of their type, not as raw bytes."""
    proto = tf.make_tensor_proto(array)
    raw = np.frombuffer(proto.tensor_content, array.dtype) if proto.tensor_content else ()
    if len(raw):
        proto.ClearField("tensor_content")
        field = proto.float_val if array.dtype == np.float32 else proto.int_val
        field.extend(raw.tolist())
    return proto


# --- both ----------------------------------------------------------------------------------


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that hung up, or did not trust
            super().handle_error(request, client_address)


class ModelServer:
    """Both protocols in threads, for a `with` block; a port of 0 is any free one."""

    def __init__(
        self,
        name: str,
        base_path: Path,
        *,
        rest_port: int = 0,
        grpc_port: int = 0,
        rest_tls: ssl.SSLContext | None = None,
        grpc_tls: grpc.ServerCredentials | None = None,
    ) -> None:
        servable = Servable(name, base_path)
        handler = type("BoundHandler", (Handler,), {"servable": servable})
        self._http = QuietServer(("127.0.0.1", rest_port), handler)
        if rest_tls is not None:
            self._http.socket = rest_tls.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._grpc = grpc.server(ThreadPoolExecutor(4))
        services = Services(servable)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(services, self._grpc)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(services, self._grpc)
        address = f"127.0.0.1:{grpc_port}"
        if grpc_tls is None:
            port = self._grpc.add_insecure_port(address)
        else:
            port = self._grpc.add_secure_port(address, grpc_tls)
        rest, rpc = "https" if rest_tls else "http", "grpcs" if grpc_tls else "grpc"
        self.rest_url = f"{rest}://127.0.0.1:{self._http.server_port}"
        self.grpc_url = f"{rpc}://127.0.0.1:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._grpc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self._grpc.stop(None).wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name", required=True)
    parser.add_argument("--model_base_path", type=Path, required=True)
    parser.add_argument("--rest_api_port", type=int, default=0)
    parser.add_argument("--port", type=int, default=8500)
    parser.add_argument("--file_system_poll_wait_seconds")  # here every request looks
    options = parser.parse_args()
    ends = [signal.SIGTERM, signal.SIGINT]
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with ModelServer(
        options.model_name,
        options.model_base_path,
        rest_port=options.rest_api_port,
        grpc_port=options.port,
    ) as server:
        print(f"Serving {options.model_name} at {server.rest_url} and {server.grpc_url}")
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
