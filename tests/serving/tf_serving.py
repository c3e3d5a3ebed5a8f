"""A small server that speaks TF Serving's REST and gRPC protocol on a SavedModel.

For tests and examples where tensorflow_model_server is not at hand; it takes that program's flags:

    python tests/serving/tf_serving.py --model_name=digits --model_base_path=served/digits \
        --rest_api_port=8501 --port=8500

Like it, it serves the folder with the highest number under the base path, and a newer one as soon
as it appears. REST is that of `encryip serve`; gRPC, by tensorflow_serving/apis/*.proto, is here.
"""

import argparse
import signal
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_encryip.cli.rest_api import answer_rest
from keras_encryip.cli.rest_server import Refusal, RestServer
from keras_encryip.cli.served_versions import DEFAULT_SIGNATURE, ServedVersions
from keras_encryip.formats.version_folder import versions_in

CODES = {400: grpc.StatusCode.INVALID_ARGUMENT, 404: grpc.StatusCode.NOT_FOUND}


class NewestVersion(ServedVersions):
    """As TF Serving does by default: only the newest version that loads is served."""

    def find(self, name: str, version: int | None) -> tuple[int, Any]:
        if version is not None and version != super().find(self.name, None)[0]:
            raise Refusal(404, f"Servable not found for request: Specific({name}, {version})")
        return super().find(name, version)


# --- gRPC ----------------------------------------------------------------------------------


class Services(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    def __init__(self, versions: ServedVersions) -> None:
        self._versions = versions

    def Predict(self, request: Any, context: Any) -> Any:
        def inputs(specs: dict[str, Any]) -> dict[str, Any]:
            if set(specs) != set(request.inputs):
                raise Refusal(
                    400,
                    f"input size does not match signature: {len(request.inputs)}!={len(specs)}"
                    f" or names differ. Expected: {{{','.join(sorted(specs))}}}",
                )
            return {key: tf.constant(tf.make_ndarray(request.inputs[key])) for key in specs}

        signature = request.model_spec.signature_name or DEFAULT_SIGNATURE
        version, outputs = self._try(
            context, self._versions.predict, *_wanted(request), signature, inputs
        )
        answer = predict_pb2.PredictResponse(model_spec=request.model_spec)
        answer.model_spec.version.value = version
        for key, value in outputs.items():
            answer.outputs[key].CopyFrom(_as_proto_field(value))
        return answer

    def GetModelMetadata(self, request: Any, context: Any) -> Any:
        number, definitions = self._try(context, self._versions.definitions, *_wanted(request))
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, definition in definitions.items():
            signatures.signature_def[key].CopyFrom(definition)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.model_spec.name = request.model_spec.name
        answer.model_spec.version.value = number
        answer.metadata["signature_def"].Pack(signatures)
        return answer

    def GetModelStatus(self, request: Any, context: Any) -> Any:
        answer = get_model_status_pb2.GetModelStatusResponse()
        for number in self._try(context, self._versions.numbers, *_wanted(request)):
            answer.model_version_status.add(version=number, state="AVAILABLE")
        return answer

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
        versions = NewestVersion(name, partial(versions_in, base_path))
        self._http = RestServer("127.0.0.1", rest_port)
        if rest_tls is not None:
            self._http.socket = rest_tls.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(
            target=self._http.serve, args=(partial(answer_rest, versions), 0.01)
        )
        self._grpc = grpc.server(ThreadPoolExecutor(4))
        services = Services(versions)
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
