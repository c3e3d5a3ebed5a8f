"""A reproducible source of bytes, so that every example can be drawn again."""

from collections.abc import Callable
from hashlib import sha256

import pytest

RandomBytes = Callable[[int], bytes]


def counter_stream(seed: str) -> RandomBytes:
    """SHA-256(seed ‖ 0) ‖ SHA-256(seed ‖ 1) ‖ …, the counter as 8 bytes big-endian."""
    position = 0

    def take(n: int) -> bytes:
        nonlocal position
        first, last = position // 32, (position + n - 1) // 32
        blocks = b"".join(
            sha256(seed.encode() + i.to_bytes(8, "big")).digest() for i in range(first, last + 1)
        )
        start = position - 32 * first
        position += n
        return blocks[start : start + n]

    return take


@pytest.fixture(scope="session")
def stream() -> Callable[[str], RandomBytes]:
    return counter_stream
