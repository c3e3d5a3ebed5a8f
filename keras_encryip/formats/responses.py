"""Model outputs as they come over the wire or out of files."""

import contextlib
import email.utils
import io
import json
import os
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from Crypto.Cipher import ChaCha20_Poly1305

from keras_encryip.crypto.encoding import decode_base64
from keras_encryip.errors import (
    DAMAGED,
    ArgumentError,
    FormatError,
    SignatureError,
    instead_of,
    reason,
)
from keras_encryip.errors import (
    printable as printable,  # the name by which others import it from here
)
from keras_encryip.formats.text import without_mark

MAX_RESPONSE_BYTES: Final = 1 << 30

OUTPUTS: Final = ("confused", "encrypted", "ciphertext_bytes")
"""The names of a protected model's outputs."""

NONCE_WORDS: Final = 6
TAG_WORDS: Final = 4
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
    with (
        instead_of(*DAMAGED, raises=lambda error: unreadable(reason(error))),
        open(name, "rb") as file,
    ):
        if name.endswith(".npy"):
            return np.asarray(np.load(file, allow_pickle=False))
        without_mark(file.peek(4), what=f"file {name!r}")
        text = io.TextIOWrapper(file, "utf-8-sig")
        return np.loadtxt(text, delimiter=",", ndmin=2, dtype=np.float64)


def parse_response(data: bytes | str) -> np.ndarray | list[bytes]:
    """Read the JSON that TF Serving's REST API answers to `:predict`.

    Row format (`predictions`) and column format (`outputs`) are understood, with
    the plain tensor or one of the named outputs `confused`, `encrypted`, `ciphertext_bytes`.

    Args:
        data: the response's body.

    Returns:
        float32 `[..., N]` of confused labels, int64 `[..., N + 10]` of encrypted responses, or
        a list of label ciphertexts.

    Raises:
        FormatError: not such a response; TF Serving's own error is quoted.

    Example:
    >>> parse_response('{"predictions": [[0.5, 0.25, 0.25]]}')
    array([[0.5 , 0.25, 0.25]], dtype=float32)
    """
    if len(data) > MAX_RESPONSE_BYTES:
        raise FormatError(f"The response is too large: more than {MAX_RESPONSE_BYTES} bytes.")
    try:
        response = json.loads(data)
    except (ValueError, RecursionError):
        response = None
    if not isinstance(response, dict):
        raise FormatError("The response is not a JSON object.")
    if "error" in response:
        raise FormatError(f"The model server reported an error: {str(response['error'])[:500]}")
    rows = response.get("predictions", response.get("outputs"))
    if isinstance(rows, list) and rows and isinstance(rows[0], dict) and "b64" not in rows[0]:
        rows = [_named(row) for row in rows]
    elif isinstance(rows, dict):
        rows = _named(rows)
    if not isinstance(rows, list) or not rows:
        raise FormatError(
            "The response has no `predictions` (row format) or `outputs` (column format)."
        )
    if isinstance(rows[0], dict):
        if not all(isinstance(r, dict) and isinstance(r.get("b64"), str) for r in rows):
            raise FormatError("The response mixes ciphertexts with something else.")
        return [decode_base64(row["b64"], what="b64") for row in rows]
    message = "The predictions in the response are not a table of numbers."
    with instead_of(ValueError, TypeError, OverflowError, raises=lambda _: FormatError(message)):
        table = np.array(rows)
        if table.dtype == np.int64 and table.size and np.abs(table).max() > 1:
            return table  # no probabilities
        with np.errstate(all="ignore"):  # numbers too large for float32 become infinite
            return table.astype(np.float32)


def _named(outputs: Any) -> Any:
    """The one output of ours among named ones."""
    ours = [v for k, v in outputs.items() if k in OUTPUTS] if isinstance(outputs, dict) else []
    if len(ours) != 1:
        raise FormatError(
            "The response must hold the output `confused`, `encrypted` or `ciphertext_bytes` of a "
            "protected model."
        )
    return ours[0]


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
