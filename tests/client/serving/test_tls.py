"""TLS over real sockets: who is trusted, and how a failure reads."""

import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme

from keras_encryip.client import Decoder
from keras_encryip.client.serving import ServingClient, client
from keras_encryip.errors import ArgumentError, ServiceError
from tests.serving.tf_serving import ModelServer

SCHEMES = ["https", "grpcs"]


class Pki:
    """An authority, and certificates of it, in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca_file)

    def issue(self, *names: str) -> tuple[Path, Path]:
        issued = self.authority.issue_cert(*names)
        chain, key = self.folder / f"{names[0]}.pem", self.folder / f"{names[0]}.key"
        issued.private_key_pem.write_to_path(key)
        chain.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        return chain, key


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def decoder(shipped: Any) -> Decoder:
    return Decoder.open(shipped.exported, shipped.bundles["alice"], shipped.passphrase)


@contextmanager
def serve(shipped: Any, pki: Pki, name: str, *, ask_clients: bool = False) -> Iterator[ModelServer]:
    chain, key = pki.issue(name)
    rest = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    rest.load_cert_chain(chain, key)
    if ask_clients:
        rest.load_verify_locations(pki.ca_file)
        rest.verify_mode = ssl.CERT_REQUIRED
    pairs, roots = [(key.read_bytes(), chain.read_bytes())], pki.ca_file.read_bytes()
    rpc = grpc.ssl_server_credentials(pairs, roots if ask_clients else None, ask_clients)
    base_path = shipped.exported.parent
    with ModelServer("digits", base_path, rest_tls=rest, grpc_tls=rpc) as server:
        yield server


@pytest.fixture(scope="module")
def server(shipped: Any, pki: Pki) -> Iterator[ModelServer]:
    with serve(shipped, pki, "127.0.0.1") as made:
        yield made


@pytest.fixture(scope="module")
def strict_server(shipped: Any, pki: Pki) -> Iterator[ModelServer]:
    with serve(shipped, pki, "127.0.0.1", ask_clients=True) as made:
        yield made


@pytest.fixture(scope="module")
def misnamed_server(shipped: Any, pki: Pki) -> Iterator[ModelServer]:
    with serve(shipped, pki, "elsewhere.example") as made:
        yield made


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr(client, "sleep", taken.append)
    return taken


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def url_of(server: ModelServer, scheme: str) -> str:
    return server.rest_url if scheme == "https" else server.grpc_url


def test_a_trusted_server(
    server: ModelServer, pki: Pki, shipped: Any, decoder: Decoder, digits: Any, scheme: str
) -> None:
    images = digits.x_test[:3]
    expected = decoder.probabilities(shipped.model.predict(images, verbose=0))
    url = url_of(server, scheme)
    assert url.startswith(f"{scheme}://")
    with ServingClient(url, "digits", decoder, ca_file=pki.ca_file) as asking:
        np.testing.assert_allclose(asking.predict(images), expected, atol=1e-5)


def test_a_server_of_an_unknown_authority(
    server: ModelServer, decoder: Decoder, digits: Any, tmp_path: Path, scheme: str, naps: Any
) -> None:
    other = Pki(tmp_path)
    for ca_file in (None, other.ca_file):
        expected = pytest.raises(
            ServiceError, match=r"(?i)no trusted connection.*verify.failed.*`ca_file` must hold"
        )
        asking = ServingClient(url_of(server, scheme), "digits", decoder, ca_file=ca_file)
        with asking, expected:
            asking.predict(digits.x_test[:1])
    assert naps == []


def test_a_server_of_another_name(
    misnamed_server: ModelServer, pki: Pki, decoder: Decoder, digits: Any, scheme: str, naps: Any
) -> None:
    url = url_of(misnamed_server, scheme)
    expected = pytest.raises(ServiceError, match=r"(?i)no trusted connection.*(mismatch|hostname)")
    with ServingClient(url, "digits", decoder, ca_file=pki.ca_file) as asking, expected:
        asking.predict(digits.x_test[:1])
    assert naps == []


def test_mutual_tls(
    strict_server: ModelServer, pki: Pki, decoder: Decoder, digits: Any, scheme: str
) -> None:
    url, options = url_of(strict_server, scheme), {"ca_file": pki.ca_file, "retries": 1}
    expected = pytest.raises(ServiceError, match=r"(?i)model server")
    with ServingClient(url, "digits", decoder, **options) as asking, expected:
        asking.predict(digits.x_test[:1])
    options["certificate"] = pki.issue("alice.example")
    with ServingClient(url, "digits", decoder, **options) as asking:
        assert asking.predict(digits.x_test[:1]).shape == (1, 10)


def test_tls_to_a_server_without(shipped: Any, decoder: Decoder, digits: Any, scheme: str) -> None:
    with ModelServer("digits", shipped.exported.parent) as plain, ExitStack() as stack:
        address = plain.rest_url if scheme == "https" else plain.grpc_url
        url = scheme + address[address.index(":") :]
        asking = stack.enter_context(ServingClient(url, "digits", decoder))
        with pytest.raises(ServiceError, match=r"(?i)no trusted connection.*wrong.version"):
            asking.predict(digits.x_test[:1])


def test_no_tls_to_a_server_with(
    server: ModelServer, decoder: Decoder, digits: Any, scheme: str
) -> None:
    url = url_of(server, scheme).replace("s://", "://")
    expected = pytest.raises(ServiceError, match=r"(cannot be reached|UNAVAILABLE)")
    with ServingClient(url, "digits", decoder, retries=0) as asking, expected:
        asking.predict(digits.x_test[:1])


@pytest.mark.parametrize("content", [None, b"", b"hello", b"-----BEGIN CERTIFICATE-----\nYQ==\n"])
def test_a_wrong_ca_file(
    decoder: Decoder, tmp_path: Path, scheme: str, content: bytes | None
) -> None:
    path = tmp_path / "wrong.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArgumentError, match=r"`ca_file` must be a PEM file.*wrong\.pem"):
        ServingClient(f"{scheme}://host:1", "digits", decoder, ca_file=path)


def test_a_wrong_certificate(decoder: Decoder, pki: Pki, tmp_path: Path, scheme: str) -> None:
    chain, key = pki.issue("carol.example")
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nYWJj\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    other = pki.issue("dave.example")[1]
    wrong = [(chain, tmp_path / "no.key"), (chain, encrypted), (key, chain), (chain, other), chain]
    for certificate in wrong:
        with pytest.raises(ArgumentError, match=r"^`certificate` must be the PEM files"):
            ServingClient(f"{scheme}://host:1", "digits", decoder, certificate=certificate)
