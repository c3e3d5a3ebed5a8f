"""Bytes on the outside: canonical JSON, canonical base64, times, points and scalars.

Files are hostile until proven otherwise, so every reader here bounds the
length first, refuses unknown fields and unknown types, and accepts exactly one
spelling of each value: what was read is written again and must be equal.
"""

import base64
import contextlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, TypeVar

import msgspec
from Crypto.PublicKey import ECC

from keras_encryip.crypto.polynomial import ORDER
from keras_encryip.errors import FormatError, instead_of, reason

if TYPE_CHECKING:  # pycryptodome's `ECC` has it, but does not mark it as exported
    from Crypto.PublicKey._point import EccPoint
else:
    from Crypto.PublicKey.ECC import EccPoint

Point: TypeAlias = EccPoint
"""A point on P-256."""

Time: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z\Z")
]
"""UTC to the second, `YYYY-MM-DDThh:mm:ssZ`."""

_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"

SCALAR_BYTES: Final = 32
POINT_BYTES: Final = 33

_T = TypeVar("_T", bound=msgspec.Struct)


def canonical_json(value: Any) -> bytes:
    """Serialise to the one accepted spelling: sorted keys, no spaces, ASCII.

    Args:
        value: a `msgspec.Struct`, or builtins without floats.

    Returns:
        `bytes`, without a trailing newline.
    """
    builtins = msgspec.to_builtins(value)
    text = json.dumps(
        builtins, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return text.encode("ascii")


def parse_canonical_json(data: bytes, kind: type[_T], *, what: str, max_bytes: int) -> _T:
    """Read canonical JSON strictly into a `msgspec.Struct`.

    Args:
        data: the bytes of one JSON object.
        kind: the struct class; its constraints are enforced, unknown fields refused.
        what: name of the object for error messages, e.g. `"codebook"`.
        max_bytes: the largest length that is even looked at.

    Raises:
        FormatError: oversized, not JSON, wrong field, or not the canonical spelling.
    """
    if len(data) > max_bytes:
        raise FormatError(f"The {what} is too large: {len(data)} bytes, at most {max_bytes}.")
    with instead_of(
        *(msgspec.DecodeError, RecursionError, ValueError),
        raises=lambda error: FormatError(f"The {what} is malformed: {reason(error)}"),
    ):
        value = msgspec.json.decode(data, type=kind)
    if canonical_json(value) != data:
        raise FormatError(f"The {what} is not in canonical form (sorted keys, no spaces, ASCII).")
    return value


def encode_base64(data: bytes) -> str:
    """Standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


def decode_base64(text: str, *, what: str, length: int | None = None) -> bytes:
    """Decode canonical base64 of an exact length.

    Args:
        text: standard alphabet, padded.
        what: name of the field for error messages.
        length: exact number of decoded bytes, or `None` for any.

    Raises:
        FormatError: wrong alphabet, padding or length, or unused bits that are not zero.
    """
    data = None
    with contextlib.suppress(ValueError):  # of base64 or of characters that are not ASCII
        data = base64.b64decode(text.encode("ascii"), validate=True)
    if data is None or encode_base64(data) != text:
        raise FormatError(f"Field {what} is not canonical base64.")
    if length is not None and len(data) != length:
        raise FormatError(f"Field {what} has {len(data)} bytes, expected {length}.")
    return data


def format_time(moment: datetime) -> str:
    """UTC to the second, `YYYY-MM-DDThh:mm:ssZ`."""
    return moment.astimezone(UTC).strftime(_TIME_FORMAT)


def parse_time(text: str, *, what: str) -> datetime:
    """Read what `format_time` wrote."""
    message = f"Field {what} is not a date of the form YYYY-MM-DDThh:mm:ssZ."
    with instead_of(ValueError, raises=lambda _: FormatError(message)):
        return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC)


def encode_scalar(value: int) -> bytes:
    """A scalar as 32 bytes, big-endian."""
    return value.to_bytes(SCALAR_BYTES, "big")


def decode_scalar(data: bytes, *, what: str) -> int:
    """Read a scalar in 1 … q−1 from exactly 32 big-endian bytes."""
    value = int.from_bytes(data, "big")
    if len(data) != SCALAR_BYTES or not 0 < value < ORDER:
        raise FormatError(f"{what} is not a scalar in 1 … q−1 of {SCALAR_BYTES} bytes.")
    return value


def encode_point(point: Point) -> bytes:
    """A P-256 point, not infinity, in SEC 1 compressed form (33 bytes)."""
    if point.is_point_at_infinity():
        raise FormatError("The point at infinity has no encoding here.")
    return bytes([2 + (int(point.y) & 1)]) + int(point.x).to_bytes(POINT_BYTES - 1, "big")


def decode_point(data: bytes, *, what: str) -> Point:
    """Read a SEC 1 compressed P-256 point: on the curve, not infinity, canonical."""
    point = None
    if len(data) == POINT_BYTES and data[0] in (2, 3):
        with contextlib.suppress(ValueError):
            point = ECC.import_key(data, curve_name="P-256").pointQ
    if point is None or point.is_point_at_infinity() or encode_point(point) != data:
        raise FormatError(f"{what} is not a compressed point on P-256.")
    return point
