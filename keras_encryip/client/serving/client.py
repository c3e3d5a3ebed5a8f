"""Predictions of a model server, decoded with a user's key."""

import os
import re
import ssl
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from time import sleep
from typing import Any, Final, Literal, Protocol, Self

import numpy as np

from keras_encryip.client.checks import check_count, check_inputs, check_seconds
from keras_encryip.client.decoder import Decoder
from keras_encryip.client.serving.failures import PassingError, retry_delay
from keras_encryip.client.serving.grpc import GrpcTransport
from keras_encryip.client.serving.rest import RestTransport
from keras_encryip.crypto.secret import Secret
from keras_encryip.errors import ArgumentError, FormatError, ServiceError, instead_of
from keras_encryip.formats.responses import EXTRA_WORDS
from keras_encryip.formats.version_folder import MAX_VERSION

MAX_RETRY_AFTER_S: Final = 60.0

_TRANSPORTS: Final = {
    "http": RestTransport,
    "https": RestTransport,
    "grpc": GrpcTransport,
    "grpcs": GrpcTransport,
}
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_HEADER_VALUE: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
_HOST: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?|[0-9a-f.]*:[0-9a-f:.]*")


class Transport(Protocol):
    """One request to one model, by one protocol."""

    def ask(self, inputs: dict[str, np.ndarray], signature: str) -> np.ndarray | list[bytes]:
        """The one output of ours: float32 or integers `[b, ...]`, or b label ciphertexts.

        Raises:
            PassingError: asking again may help.
            ServiceError: it will not.
        """

    def close(self) -> None: ...


class ServingClient(Secret):
    """Asks a model at TF Serving, and decodes what it answers.

    Exports of both kinds are read: confused labels, and encrypted responses. A request that
    finds the server unreachable or overloaded is sent again: after connections refused or lost,
    HTTP 429, 502, 503 and 504, gRPC UNAVAILABLE and RESOURCE_EXHAUSTED. A timeout, a refusal or
    an answer that cannot be read is not. Redirects are not followed. Threads may share a client.

    Args:
        url: `http://host:8501` or `https://…` for the REST API, without `/v1/models`, which
            follows whatever path it has; `grpc://host:8500`, or `grpcs://…` for gRPC with TLS.
        model: the name that the server has for the model.
        decoder: for the version that is served.
        version: a number; `"latest"` for the version that the server thinks best; by default the
            decoder's, `decoder.version`, or the latest if the decoder was not opened from a
            version folder.
        timeout: seconds for a request, from looking up the host to the end of the answer.
        retries: how often a request is sent again.
        backoff: seconds. Before the i-th retry the client waits between half and all of
            `backoff`·2^(i−1), at most 30 s; or as long as the server's `Retry-After` says,
            at most 60 s.
        batch_size: inputs per request.
        headers: sent with every request, such as `{"Authorization": "Bearer …"}`; gRPC calls
            them metadata.
        ca_file: PEM file of the root certificates to trust, instead of the system's (REST) or
            those that come with gRPC.
        certificate: PEM files of the client's certificate and of its private key, for servers
            that ask for them (mutual TLS).
        max_answer_bytes: a longer answer to a request is refused.

    Raises:
        ArgumentError: an argument is wrong.
        MissingExtraError: httpx (REST) or tensorflow-serving-api (gRPC) is not installed.

    Example:
    >>> with ServingClient(url, model="digits", decoder=decoder) as client:
    ...     client.predict(images).shape, client.names(images)
    ((3, 10), ['seven', 'two', 'one'])
    """

    __slots__ = (
        "_backoff",
        "_batch_size",
        "_closed",
        "_decoder",
        "_model",
        "_retries",
        "_transport",
        "_url",
    )

    def __init__(
        self,
        url: str,
        model: str,
        decoder: Decoder,
        *,
        version: int | Literal["latest"] | None = None,
        timeout: float = 30.0,
        retries: int = 4,
        backoff: float = 0.5,
        batch_size: int = 64,
        headers: Mapping[str, str] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        certificate: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
        max_answer_bytes: int = 64 << 20,
    ) -> None:
        parts = _address(url)
        if not isinstance(model, str) or not model:
            raise ArgumentError(f"`model` must be the model's name. Received: model={model!r}")
        if not isinstance(decoder, Decoder):
            raise ArgumentError(
                "`decoder` must be a Decoder, from `Decoder.open`. "
                f"Received: {type(decoder).__name__}"
            )
        if version is None:
            version = decoder.version
        elif version == "latest":
            version = None
        elif check_count("version", version, 0) > MAX_VERSION:
            raise ArgumentError(f"`version` must be at most {MAX_VERSION}.")
        check_seconds("timeout", timeout, positive=True)
        check_seconds("backoff", backoff)
        encrypted = parts.scheme in ("https", "grpcs")
        if (ca_file is not None or certificate is not None) and not encrypted:
            raise ArgumentError("`ca_file` and `certificate` need a `url` of https:// or grpcs://.")
        self._url = parts.geturl()
        self._model = model
        self._decoder = decoder
        self._retries = check_count("retries", retries, 0)
        self._backoff = float(backoff)
        self._batch_size = check_count("batch_size", batch_size, 1)
        self._closed = False
        self._transport: Transport = _TRANSPORTS[parts.scheme](
            parts,
            model,
            version,
            timeout=float(timeout),
            headers=_checked_headers(headers),
            tls=_tls(ca_file, certificate) if encrypted else None,
            ca_file=ca_file,
            certificate=certificate,
            max_answer_bytes=check_count("max_answer_bytes", max_answer_bytes, 1),
        )

    def _describe(self) -> str:
        return f"url={self._url!r} model={self._model!r}"

    def predict(self, x: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        """Class probabilities.

        Args:
            x: finite numbers `[n, ...]`, or a dictionary of them by the names of the model's
                inputs. Floats are sent as float32.

        Returns:
            float32 `[n, ..., K]`, in the order of x.

        Raises:
            ServiceError: the server cannot be reached, refuses, or answers with something else
                than this model's outputs. The message quotes it.
            SignatureError: an encrypted response was changed, or is of another version.
            WrongModelError: the server's version is another than the decoder's.
            ArgumentError: x is no such array.

        Example:
        >>> with ServingClient(url, model="digits", decoder=decoder) as client:
        ...     decoded = client.predict(images)
        >>> decoded.shape, decoded.dtype, decoded.argmax(1).tolist()
        ((3, 10), dtype('float32'), [7, 2, 1])
        """
        decoded = [self._decode(batch) for batch in self._batches(x)]
        if len({rows.shape[1:] for rows in decoded}) > 1:
            raise ServiceError("The model server's answers to several batches differ in shape.")
        return np.concatenate(decoded)

    def labels(self, x: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        """The most probable class: int64 `[n, ...]`, 0 … K−1. Otherwise like `predict`.

        Example:
        >>> with ServingClient(url, model="digits", decoder=decoder) as client:
        ...     client.labels(images)
        array([7, 2, 1])
        """
        labels: np.ndarray = self.predict(x).argmax(-1)
        return labels

    def names(self, x: np.ndarray | Mapping[str, np.ndarray]) -> list[Any]:
        """The names of `labels(x)`, as a list nested like its axes. Otherwise like `predict`.

        Example:
        >>> with ServingClient(url, model="digits", decoder=decoder) as client:
        ...     client.names(images)
        ['seven', 'two', 'one']
        """
        names: list[Any] = np.array(self._decoder.class_names, object)[self.labels(x)].tolist()
        return names

    def decrypt(self, x: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        """Classes int64 `[n]` by the signature `encrypted_label`: one label drawn for each input.

        Raises:
            ServiceError: as in `predict`; an export with encrypted responses has no such signature.
            WrongModelError: the server's version is another than the decoder's.
            ArgumentError: as in `predict`.

        Example:
        >>> with ServingClient(url, model="digits", decoder=decoder) as client:
        ...     classes = client.decrypt(images)
        >>> classes.shape, classes.dtype
        ((3,), dtype('int64'))
        """
        classes = []
        for batch, size in self._batches(x):
            answers = self._ask(batch, size, "encrypted_label")
            if not isinstance(answers, list):
                raise ServiceError("The model server answered with numbers, not with ciphertexts.")
            classes.append(_read(self._decoder.decrypt, answers))
        return np.concatenate(classes)

    def close(self) -> None:
        """Close the connections. The client cannot be used any more.

        Example:
        >>> client = ServingClient(url, model="digits", decoder=decoder)
        >>> client.close()
        >>> client.predict(images)
        Traceback (most recent call last):
        keras_encryip.errors.ServiceError: This client is closed.
        """
        self._closed = True
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batches(self, x: Any) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """The inputs by name, at most `batch_size` at a time, and how many."""
        if isinstance(x, Mapping):
            arrays = {str(name): _checked(f"x[{name!r}]", value) for name, value in x.items()}
        else:
            arrays = {"inputs": _checked("x", x)}  # what `export_saved_model` calls a single one
        lengths = {len(array) for array in arrays.values()}
        if len(lengths) != 1:
            raise ArgumentError(
                f"`x` must hold arrays of equal length. Received: x with lengths {sorted(lengths)}"
            )
        total = lengths.pop()
        for start in range(0, total, self._batch_size):
            stop = min(start + self._batch_size, total)
            yield {name: array[start:stop] for name, array in arrays.items()}, stop - start

    def _decode(self, batch: tuple[dict[str, np.ndarray], int]) -> np.ndarray:
        answers = self._ask(*batch, "serving_default")
        if not isinstance(answers, np.ndarray):
            raise ServiceError("The model server answered with ciphertexts, not with numbers.")
        labels = self._decoder.num_labels
        encrypted = np.issubdtype(answers.dtype, np.integer)
        width = labels + EXTRA_WORDS if encrypted else labels
        if answers.ndim < 2 or answers.shape[-1] != width:
            raise ServiceError(
                f"The model server answers with shape {answers.shape}, and the decoder's model "
                f"{self._decoder.model!r} has {labels} outputs. Open a decoder for the version "
                "that is served, or ask for the decoder's with `version`."
            )
        return _read(self._decoder.probabilities, answers)

    def _ask(
        self, inputs: dict[str, np.ndarray], size: int, signature: str
    ) -> np.ndarray | list[bytes]:
        """The answers to one batch, patiently."""
        for attempt in count():
            if self._closed:
                raise ServiceError("This client is closed.")
            try:
                answers = self._transport.ask(inputs, signature)
                break
            except PassingError as error:
                failure, wanted = str(error), error.retry_after
            if attempt >= self._retries:
                raise ServiceError(f"{failure} Requests sent: {attempt + 1}.")
            sleep(retry_delay(attempt, self._backoff, wanted, most_wanted=MAX_RETRY_AFTER_S))
        if len(answers) != size:
            raise ServiceError(f"The model server gave {len(answers)} answers to {size} inputs.")
        return answers


def _read(decode: Callable[[Any], np.ndarray], answers: Any) -> np.ndarray:
    """What cannot be decoded is the server's fault, and not the caller's."""
    with instead_of(
        *(ArgumentError, FormatError),
        raises=lambda error: ServiceError(f"The model server's answer cannot be read: {error}"),
    ):
        return decode(answers)


def _address(url: str) -> urllib.parse.SplitResult:
    if isinstance(url, str) and "@" in url:
        raise ArgumentError("`url` must not hold credentials: give them as `headers`.")
    try:
        parts = urllib.parse.urlsplit(url)
        well_formed = (
            parts.scheme in _TRANSPORTS
            and _HOST.fullmatch(parts.hostname or "") is not None
            and (parts.port is not None or parts.scheme.startswith("http"))
            and re.fullmatch(r"[!-~]*", parts.path) is not None
            and (not parts.path.strip("/") or parts.scheme.startswith("http"))
            and not parts.query
            and not parts.fragment
        )
    except (ValueError, TypeError, AttributeError):
        well_formed = False
    if not well_formed:
        shown = re.split("[?#]", url)[0] if isinstance(url, str) else url  # the rest may be secret
        raise ArgumentError(
            "`url` must be the address of a model server, as http://host:8501, https://host, "
            "grpc://host:8500 or grpcs://host:8500, without a query. "
            f"Received: url={shown!r}"
        )
    return parts._replace(path=parts.path.rstrip("/"))


def _checked(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            array = array.astype(np.float32, copy=False)
    return check_inputs(name, array)


def _checked_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Refused here because HTTP libraries repeat a wrong value, which may be a secret."""
    if headers is not None and not isinstance(headers, Mapping):
        raise ArgumentError("`headers` must be a dictionary.")
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or _HEADER_NAME.fullmatch(name) is None:
            raise ArgumentError("`headers` must have names of letters, digits, `-`, `_` and `.`.")
        if name.lower().endswith("-bin"):  # gRPC takes the values of these for bytes
            raise ArgumentError(f"`headers` must not have names that end in -bin. Wrong: {name}.")
        if not isinstance(value, str) or _HEADER_VALUE.fullmatch(value) is None:
            raise ArgumentError(f"`headers` must hold printable ASCII. Wrong: the value of {name}.")
    return dict(headers or {})


def _tls(ca_file: Any, certificate: Any) -> ssl.SSLContext:
    """A context for clients that trusts `ca_file` or the system's roots."""

    def wrong_roots(error: Exception) -> ArgumentError:
        return ArgumentError(
            f"`ca_file` must be a PEM file of certificates. Received: ca_file={ca_file!r} "
            f"({_cause(error)})"
        )

    def wrong_pair(error: Exception) -> ArgumentError:
        return ArgumentError(
            "`certificate` must be the PEM files of a certificate and its unencrypted private "
            f"key. Received: certificate={certificate!r} ({_cause(error)})"
        )

    with instead_of(OSError, TypeError, raises=wrong_roots):  # of which ssl.SSLError is one
        context = ssl.create_default_context(cafile=ca_file)
    if certificate is not None:
        with instead_of(OSError, TypeError, ValueError, raises=wrong_pair):
            chain, key = certificate
            context.load_cert_chain(chain, key, password="")  # an encrypted key fails, unasked
    return context


def _cause(error: Exception) -> str:
    """No other words of the error: they may hold the content of a file."""
    return getattr(error, "strerror", None) or type(error).__name__
