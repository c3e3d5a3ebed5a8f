"""The system's randomness, drawn again: what a test sees does not hang on the run.

Keys, permutations and trace inputs come from `os.urandom`. A bound on what a training reaches
holds for nearly all draws and fails for some, so each fixture and each test has draws of its own,
which depend on its name and on the variable TESTS_SEED alone. `TESTS_SEED=7 pytest` draws others.
Processes that tests start draw from the system.
"""

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SEED = os.environ.get("TESTS_SEED", "0")


class Urandom:
    """In place of `os.urandom`, from before pycryptodome takes it over."""

    def __init__(self) -> None:
        self.source: Callable[[int], bytes] = os.urandom

    def __call__(self, size: int, /) -> bytes:
        return self.source(size)


if "Crypto.Random" in sys.modules:
    raise RuntimeError("pycryptodome was imported before its randomness was replaced")
URANDOM = Urandom()
os.urandom = random._urandom = URANDOM  # type: ignore[attr-defined]


@contextmanager
def drawn_again(name: str) -> Iterator[None]:
    """Inside, all draws depend on the name alone."""
    before, own = URANDOM.source, random.Random(f"{SEED} {name}")
    URANDOM.source = own.randbytes
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(own.getrandbits(32))
    try:
        yield
    finally:
        URANDOM.source = before
