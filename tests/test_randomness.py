"""A test's draws depend on its name alone, and differ from another's."""

import os
import secrets

from Crypto.Random import get_random_bytes

from tests.randomness import drawn_again


def draws() -> list[bytes]:
    return [
        os.urandom(8),
        get_random_bytes(8),
        secrets.token_bytes(8),
        bytes([secrets.choice(range(99))]),
    ]


def test_draws_depend_on_the_name_alone() -> None:
    with drawn_again("a"):
        first = draws()
        with drawn_again("b"):
            other = draws()
        more = draws()
    with drawn_again("a"):
        assert draws() == first
        assert draws() == more
    with drawn_again("b"):
        assert draws() == other
    assert len({*map(tuple, (first, other, more))}) == 3


def test_keys_of_a_test_are_its_own() -> None:
    """The same call gives the same key in each run, and only there."""
    mine = secrets.token_hex(16)
    with drawn_again("tests/test_randomness.py::test_keys_of_a_test_are_its_own"):
        assert secrets.token_hex(16) == mine
