"""Model servers for tests: the one of tf_serving.py, and the real one where a variable names it."""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from keras_encryip.client import Decoder
from keras_encryip.client.serving import ServingClient
from tests.serving.tf_serving import ModelServer

SERVERS = ["protocol", *(["binary"] if "TF_SERVING_BINARY" in os.environ else [])]
START_SECONDS = 120


@dataclass(frozen=True)
class Running:
    """A model server and the folder that it serves from."""

    base_path: Path
    urls: dict[str, str]

    def client(self, scheme: str, decoder: Decoder, **options: Any) -> ServingClient:
        return ServingClient(self.urls[scheme], **{"model": "digits", "decoder": decoder} | options)

    def wait_for(self, version: int) -> None:
        """Until the server says that it serves this version."""
        address = f"{self.urls['http']}/v1/models/digits/versions/{version}"
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(address, timeout=10) as answer:
                    states = json.load(answer)["model_version_status"]
                if states[0]["state"] == "AVAILABLE":
                    return
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.05)
        pytest.fail(f"version {version} is not served")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def run_server(kind: str, base_path: Path) -> Iterator[Running]:
    with ExitStack() as stack:
        if kind == "protocol":
            server = stack.enter_context(ModelServer("digits", base_path))
            yield Running(base_path, {"http": server.rest_url, "grpc": server.grpc_url})
            return
        rest, grpc = free_port(), free_port()
        flags = {"rest_api_port": rest, "port": grpc, "model_name": "digits"}
        flags |= {"model_base_path": base_path, "file_system_poll_wait_seconds": 1}
        command = [os.environ["TF_SERVING_BINARY"], *(f"--{k}={v}" for k, v in flags.items())]
        process = stack.enter_context(subprocess.Popen(command))
        stack.callback(process.terminate)
        running = Running(
            base_path, {"http": f"http://127.0.0.1:{rest}", "grpc": f"grpc://127.0.0.1:{grpc}"}
        )
        running.wait_for(1)
        yield running
