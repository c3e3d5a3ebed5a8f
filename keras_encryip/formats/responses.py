"""Model outputs as they come over the wire or out of files."""

import contextlib
import email.utils
import io
import json
import math
import os
import re
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import numpy as np
from Crypto.Cipher import ChaCha20_Poly1305

from keras_encryip.crypto.encoding import decode_base64
from keras_encryip.crypto.npy import load_npy
from keras_encryip.errors import (
    DAMAGED,
    ArgumentError,
    FormatError,
    SignatureError,
    instead_of,
    printable,
    reason,
)
from keras_encryip.formats.atomic_files import read_bounded
from keras_encryip.formats.text import without_mark

MAX_RESPONSE_BYTES: Final = 1 << 30

OUTPUTS: Final = ("confused", "encrypted", "ciphertext_bytes")
"""The names of a protected model's outputs."""

NONCE_WORDS: Final = 6
TAG_WORDS: Final = 4
_CHUNK_BYTES: Final = 1 << 20
_LEAST_OBJECT_BYTES: Final = 128
_FREE_BYTES: Final = 1 << 20
_MAX_AXES: Final = 32
_NO_NUMBER: Final = re.compile(rb"(?<=[\[,:\s])(NaN|-?Infinity)(?=[\],}\s])")
_NO_STRUCTURE: Final = bytes(sorted({*range(256)} - {*b"[],"}))

EXTRA_WORDS: Final = NONCE_WORDS + TAG_WORDS
"""By how many 32-bit words an encrypted response is longer than the outputs inside."""


def read_outputs(path: str | os.PathLike[str]) -> np.ndarray:
    """Confused labels from a `.npy` file, or a `.csv` file with one prediction a line.

    Returns:
        float `[..., N]`, or from `.npy` integers `[..., N + 10]` of encrypted responses.

    Raises:
        FormatError: unknown ending, missing or malformed file.
    """
    name = os.fspath(path)

    def unreadable(why: str) -> FormatError:
        return FormatError(f"Cannot read model outputs from {name!r}: {why}.")

    if not name.endswith((".npy", ".csv")):
        raise unreadable("its name must end in .npy or .csv")
    data = read_bounded(name, what="model outputs", max_bytes=MAX_RESPONSE_BYTES)
    with instead_of(*DAMAGED, raises=lambda error: unreadable(reason(error))):
        if name.endswith(".npy"):
            return load_npy(io.BytesIO(data), len(data))
        text = io.BytesIO(without_mark(data, what=f"file {name!r}"))
        return np.loadtxt(text, delimiter=",", ndmin=2, dtype=np.float64)


def parse_response(data: bytes | str) -> np.ndarray | list[bytes]:
    """Read the JSON that TF Serving's REST API answers to `:predict`.

    Row format (`predictions`) and column format (`outputs`) are understood, with
    the plain tensor or one of the named outputs `confused`, `encrypted`, `ciphertext_bytes`.

    Args:
        data: the response's body.

    Returns:
        float32 `[..., N]` of confused labels, int32 `[..., N + 10]` of encrypted responses, or
        a list of label ciphertexts. What is no table of numbers is refused before an array is
        made: memory stays within a few times the response.

    Raises:
        FormatError: not such a response; TF Serving's own error is quoted.

    Example:
    >>> parse_response('{"predictions": [[0.5, 0.25, 0.25]]}')
    array([[0.5 , 0.25, 0.25]], dtype=float32)
    """
    if len(data) > MAX_RESPONSE_BYTES:
        raise FormatError(f"The response is too large: more than {MAX_RESPONSE_BYTES} bytes.")
    with instead_of(
        *(msgspec.MsgspecError, UnicodeError, RecursionError),
        raises=lambda _: FormatError("The response is not a JSON object."),
    ):
        if isinstance(data, bytes) and (encoding := json.detect_encoding(data)) != "utf-8":
            data = data.decode(encoding)  # what shells make of a pipe
        response = _parts(data)
    if bytes(response.error):
        raise FormatError(f"The model server reported an error: {_text_of(response.error)[:500]}")
    rows = bytes(response.predictions) or bytes(response.outputs)
    if rows[:1] == b"{":
        rows = _named(_decoded(rows, _Outputs))
    if rows[:1] != b"[" or not rows[1:-1].strip():
        raise FormatError(
            "The response has no `predictions` (row format) or `outputs` (column format)."
        )
    if b"{" not in rows:
        return _table(rows)
    # Small objects would take many times their text.
    if rows.count(b"{") * _LEAST_OBJECT_BYTES > max(len(rows), _FREE_BYTES):
        raise FormatError("The predictions in the response are too short for their number.")
    objects = _decoded(rows, list[_Outputs])
    if not bytes(objects[0].b64):
        whole = bytearray(b"[")
        for row in objects:
            whole += _named(row) + b","
        whole[-1:] = b"]"
        if b"{" not in whole:
            return _table(bytes(whole))
        objects = _decoded(whole, list[_Outputs])
    if not all(bytes(row.b64) for row in objects):
        raise FormatError("The response mixes ciphertexts with something else.")
    return [decode_base64(_decoded(row.b64, str), what="b64") for row in objects]


class _Outputs(msgspec.Struct, gc=False):
    """Named outputs, or a string's bytes, as their text; others are left out."""

    confused: msgspec.Raw = msgspec.Raw()
    encrypted: msgspec.Raw = msgspec.Raw()
    ciphertext_bytes: msgspec.Raw = msgspec.Raw()
    b64: msgspec.Raw = msgspec.Raw()


class _Response(msgspec.Struct):
    """Parts of a response as their text, so that nothing large is built before it was looked at."""

    predictions: msgspec.Raw = msgspec.Raw()
    outputs: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


def _parts(data: bytes | str) -> _Response:
    """Of a response; TF Serving writes NaN and Infinity, which are not JSON, for such numbers."""
    try:
        return msgspec.json.decode(data, type=_Response)
    except msgspec.DecodeError:
        data = data.encode() if isinstance(data, str) else data
        if b"NaN" not in data and b"Infinity" not in data:
            raise
        return msgspec.json.decode(_NO_NUMBER.sub(b"null", data), type=_Response)


def _decoded(text: bytes | bytearray | msgspec.Raw, kind: Any) -> Any:
    with instead_of(
        *(msgspec.MsgspecError, UnicodeError),
        raises=lambda _: FormatError("The response mixes ciphertexts with something else."),
    ):
        return msgspec.json.decode(text, type=kind)


def _text_of(error: msgspec.Raw) -> str:
    """A JSON string's characters, or another value's text."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeError):
        return msgspec.json.decode(error, type=str)
    return bytes(error).decode("utf-8", "replace")


def _named(outputs: _Outputs) -> bytes:
    """The one output of ours among named ones."""
    ours = [text for name in OUTPUTS if (text := bytes(getattr(outputs, name)))]
    if len(ours) != 1:
        raise FormatError(
            "The response must hold the output `confused`, `encrypted` or `ciphertext_bytes` of a "
            "protected model."
        )
    return ours[0]


def _table(text: bytes) -> np.ndarray:
    """An array of JSON numbers, nested in lists of equal lengths."""
    message = "The predictions in the response are not a table of numbers."
    shape = _shape(text.translate(None, _NO_STRUCTURE))
    if shape is None:
        raise FormatError(message)
    whole = not any(sign in text for sign in (b".", b"e", b"E", b"n"))  # integers
    numbers = text.translate(None, b"[]")
    kind: Any = list[int] if whole else list[float | None]  # null becomes NaN
    table = np.empty(math.prod(shape), np.int32 if whole else np.float32)
    filled = start = 0
    with instead_of(msgspec.MsgspecError, OverflowError, raises=lambda _: FormatError(message)):
        while start < len(numbers):
            stop = numbers.find(b",", start + _CHUNK_BYTES)
            stop = len(numbers) if stop < 0 else stop
            part = msgspec.json.decode(b"[" + numbers[start:stop] + b"]", type=kind)
            if whole:
                words = np.array(part, np.int64)
                if words.min(initial=0) < -(2**31) or words.max(initial=0) >= 2**32:
                    raise FormatError(f"{message[:-1]} of 32 bits.")
                part = words.astype(np.uint32).view(np.int32)
            if filled + len(part) > len(table):
                break
            with np.errstate(over="ignore"):  # too large for float32 becomes infinite
                table[filled : filled + len(part)] = part
            filled, start = filled + len(part), stop + 1
    if filled != len(table):  # of empty lists
        raise FormatError(message)
    del numbers  # as long as the response
    if whole and table.min() >= 0 and table.max() <= 1:
        table = table.astype(np.float32)  # probabilities, of a server that writes no point
    return table.reshape(shape)


def _shape(structure: bytes) -> tuple[int, ...] | None:
    """The shape of nested lists, by their brackets and commas; `None` if it is none."""
    depth = len(structure) - len(structure.lstrip(b"["))
    if not 0 < depth <= _MAX_AXES:
        return None
    shape: list[int] = []
    inner = b""
    for level in range(1, depth + 1):
        stop = structure.find(b"]" * level)
        if stop < 0:
            return None
        content = structure[depth - level + 1 : stop + level - 1]
        count, rest = divmod(len(content) + 1, len(inner) + 1)
        if rest or content != ((inner + b",") * count)[:-1]:
            return None
        shape.insert(0, count)
        inner = b"[" + content + b"]"
    return tuple(shape) if inner == structure else None


def error_text(body: bytes, reason: str) -> str:
    """What a server says of an error: TF Serving's JSON, else its text or the reason."""
    text = body.decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
        text = str(json.loads(text)["error"])
    return printable(text.strip() or reason, 200)


def retry_after(header: str) -> float | None:
    """Seconds from now in a header `Retry-After`, a number or a date, or `None`."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        moment = email.utils.parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    return None


def open_responses(
    responses: np.ndarray, key: bytes, associated_data: bytes, num_labels: int
) -> np.ndarray:
    """Decrypt and check every row.

    Args:
        responses: integers `[..., 6 + N + 4]`: 32-bit words of nonce, ciphertext and tag.
        key: 32 bytes.
        associated_data: what the rows are bound to.
        num_labels: N.

    Returns:
        float32 `[..., N]`.

    Raises:
        ArgumentError: not such an array.
        SignatureError: any row does not verify. One message for all causes.
    """
    words = np.asarray(responses)
    width = num_labels + EXTRA_WORDS
    if words.ndim == 0 or words.shape[-1] != width or not np.issubdtype(words.dtype, np.integer):
        raise ArgumentError(
            f"`responses` must be integers with a last axis of {width}, the encrypted outputs of "
            f"{num_labels} confused labels. Received: shape {words.shape}, dtype {words.dtype}"
        )
    if words.size and not (int(words.min()) >= -(2**31) and int(words.max()) < 2**32):
        raise ArgumentError("`responses` must hold 32-bit words.")
    rows = (words.astype(np.int64) & 0xFFFFFFFF).astype("<u4").reshape(-1, width)
    opened = np.empty((len(rows), num_labels), "<f4")
    message = (
        "A response cannot be opened with this key, belongs to another model version, or was "
        "changed."
    )
    for row, target in zip(rows, opened, strict=True):
        data = row.tobytes()
        nonce, sealed, tag = data[: 4 * NONCE_WORDS], data[4 * NONCE_WORDS : -16], data[-16:]
        cipher = ChaCha20_Poly1305.new(key=key, nonce=nonce)
        cipher.update(associated_data)
        with instead_of(ValueError, raises=lambda _: SignatureError(message)):
            target[:] = np.frombuffer(cipher.decrypt_and_verify(sealed, tag), "<f4")
    return opened.astype(np.float32).reshape(*words.shape[:-1], num_labels)
