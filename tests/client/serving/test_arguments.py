"""What a client for a model server refuses before it sends anything; and what it never shows."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.client import Decoder
from keras_encryip.client.serving import ServingClient
from keras_encryip.errors import ArgumentError, ServiceError


@pytest.fixture(scope="module")
def decoder(world: Any, alice_file: Path) -> Decoder:
    return Decoder.open(world.model, alice_file, "correct horse")


@pytest.mark.parametrize(
    "url",
    [
        *("", "host:8501", "ftp://host/", "http://", "http://:8501", "http://host:port", None, 7),
        *("http://[::1", "http://a..b", "http://host name", "http://hö.st", "http://host/?key=1"),
        *("http://host/#x", "http://host:99999", "grpc://host", "grpc://host:1/path", b"http://h"),
        *("http://host/a b", "http://host/ä", "unix:/tmp/x"),
    ],
)
def test_addresses_that_are_none(decoder: Decoder, url: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^`url` must be the address of a model server"):
        ServingClient(url, "digits", decoder)


@pytest.mark.parametrize(
    "url", ["http://me:hunter2@host:8501", "grpcs://hunter2@host:1", "http://me:hunter2@[bad"]
)
def test_passwords_are_not_repeated(decoder: Decoder, url: str) -> None:
    with pytest.raises(ArgumentError, match=r"must not hold credentials: give them as") as caught:
        ServingClient(url, "digits", decoder)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("rest", ["?key=hunter2", "/#hunter2", "/a b?key=hunter2"])
def test_queries_are_not_repeated(decoder: Decoder, rest: str) -> None:
    with pytest.raises(
        ArgumentError, match=r"without a query\. Received: url='http://host:1"
    ) as caught:
        ServingClient(f"http://host:1{rest}", "digits", decoder)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["socks", "socks5"])  # unknown to httpx; needs socksio
def test_a_proxy_that_cannot_be_used(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:hunter2@127.0.0.1:9/")
    with pytest.raises(ServiceError, match=r"httpx cannot use a proxy .*ALL_PROXY") as caught:
        ServingClient("http://host:8501", "digits", decoder)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ""}, r"`model` must be the model's name"),
        ({"model": None}, r"`model` must be the model's name"),
        ({"decoder": "alice.keybundle"}, r"`decoder` must be a Decoder.*Received: str"),
        ({"version": -1}, r"`version` must be an integer, not negative"),
        ({"version": "1"}, r"`version` must be an integer"),
        ({"version": 1 << 63}, r"`version` must be at most 9223372036854775807"),
        ({"timeout": 0}, r"`timeout` must be"),
        ({"timeout": None}, r"`timeout` must be a positive number of seconds"),
        ({"retries": -1}, r"`retries` must be"),
        ({"backoff": float("inf")}, r"`backoff` must be a number of seconds"),
        ({"batch_size": 0}, r"`batch_size` must be a positive integer"),
        ({"max_answer_bytes": 0}, r"`max_answer_bytes` must be a positive integer"),
        ({"ca_file": "ca.pem"}, r"`ca_file` and `certificate` need a `url` of https://"),
    ],
)
def test_arguments(decoder: Decoder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ServingClient(**{"url": "http://h", "model": "digits", "decoder": decoder} | options)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "hunter2\r\nX: y"},
        {"a b": "hunter2"},
        {"A": b"hunter2"},
        {"A": "hunter2 "},
        {"key-Bin": "hunter2"},
        ["hunter2"],
    ],
)
def test_wrong_headers_are_not_repeated(decoder: Decoder, headers: Any) -> None:
    with pytest.raises(ArgumentError, match=r"`headers` must ") as caught:
        ServingClient("http://h", "digits", decoder, headers=headers)
    assert "hunter2" not in str(caught.value)


def test_a_client_shows_no_secret(decoder: Decoder) -> None:
    headers = {"Authorization": "Bearer hunter2"}
    with ServingClient("http://host:8501/", "digits", decoder, headers=headers) as asking:
        assert repr(asking) == "<ServingClient url='http://host:8501' model='digits'>"
        with pytest.raises(TypeError, match=r"cannot be pickled"):
            pickle.dumps(asking)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 1)), r"`x` must be an array of at least one input"),
        (3.0, r"`x` must be an array of at least one input"),
        (["a"], r"`x` must hold numbers"),
        ([[np.nan]], r"`x` must be finite"),
        ([[1e300]], r"`x` must be finite"),
        ({"a": [[1.0]], "b": [[1.0], [2.0]]}, r"equal length.*\[1, 2\]"),
        ({}, r"`x` must hold arrays of equal length"),
        ({"a": [None]}, r"`x\['a'\]` must hold numbers"),
    ],
    ids=itertools.count(),
)
def test_inputs_that_are_none(decoder: Decoder, x: Any, message: str) -> None:
    expected = pytest.raises(ArgumentError, match=message)
    with ServingClient("http://host:8501", "digits", decoder) as asking, expected:
        asking.predict(x)
