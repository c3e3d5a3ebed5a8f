"""How much memory a gRPC answer takes, read off its bytes before protobuf makes objects of them.

The wire format: https://protobuf.dev/programming-guides/encoding. Two bytes on the wire, an empty
string or message in a list, may take a hundred in memory.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

_OBJECT_BYTES: Final = 64  # what the least of fields takes, at most
_FREE_BYTES: Final = 1 << 20
_MULTIPLE: Final = 2

_INSIDE: Final[dict[str, dict[int, str]]] = {
    "PredictResponse": {1: "entry", 2: "spec"},
    "entry": {2: "TensorProto"},
    "spec": {2: "leaf"},  # the version
    "TensorProto": {2: "TensorShapeProto", 14: "refused", 15: "refused"},
    "TensorShapeProto": {2: "leaf"},
    "leaf": {},
}
"""The fields that are messages, of each message in TF Serving's `PredictResponse`."""

_NUMBERS: Final = {7: 4, 10: 8, 11: 1, 13: 4, 16: 4, 17: 8}
"""Of a `TensorProto`, the fields that list varints, and the bytes each takes in memory."""


def takes_too_much(answer: bytes) -> bool:
    """Whether a `PredictResponse` takes over twice its bytes (and 1 MiB) in memory.

    So does whatever is no `PredictResponse`.

    >>> takes_too_much(b"")
    False
    >>> takes_too_much(bytes.fromhex("0aff"))  # the length of a message that is not there
    True
    """
    room = _FREE_BYTES + _MULTIPLE * len(answer)
    try:
        return _room_after("PredictResponse", memoryview(answer), room) < 0
    except (IndexError, KeyError):
        return True


def _room_after(kind: str, message: memoryview, room: int) -> int:
    """What a message leaves of the room; one inside at a time, so that none are collected."""
    for number, content in _fields(message):
        room -= _OBJECT_BYTES
        inside = _INSIDE[kind].get(number)
        if inside is not None:
            room = _room_after(inside, content, room)
        elif kind == "TensorProto" and number in _NUMBERS:
            ends = np.count_nonzero(np.frombuffer(content, np.uint8) < 128)
            room -= int(ends) * _NUMBERS[number]
        else:
            room -= len(content)
        if room < 0:
            break
    return room


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Numbers and contents of a message's fields; content of a number is empty."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        size = 0
        match key & 7:
            case 0:  # varint
                _, at = _varint(message, at)
            case 1:  # fixed64
                size = 8
            case 2:  # bytes
                size, at = _varint(message, at)
            case 5:  # fixed32
                size = 4
            case _:
                raise IndexError
        if at + size > len(message):
            raise IndexError
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    while (byte := message[at]) > 127:
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if shift > 63:
            raise IndexError
    return value | byte << shift, at + 1
