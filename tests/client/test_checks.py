"""Arguments that several rooms check alike."""

from typing import Any

import numpy as np
import pytest

from keras_encryip.client.checks import check_count, check_inputs, check_seconds
from keras_encryip.errors import ArgumentError


class Index:
    """An integer by `__index__` alone."""

    def __index__(self) -> int:
        return 7


@pytest.mark.parametrize("value", [7, np.int64(7), np.uint8(7), np.array(7), Index()])
def test_integers_of_any_kind_become_int(value: Any) -> None:
    count = check_count("k", value, 1)
    assert type(count) is int
    assert count == 7


@pytest.mark.parametrize("value", [True, np.True_, 7.0, np.float32(7), "7", None, [7], -1])
@pytest.mark.parametrize(("least", "wanted"), [(0, "an integer, not negative"), (1, "a positive")])
def test_what_is_no_count(value: Any, least: int, wanted: str) -> None:
    with pytest.raises(ArgumentError, match=rf"^`k` must be {wanted}.* Received: k=") as caught:
        check_count("k", value, least)
    assert caught.value.__context__ is None


def test_the_least_counts() -> None:
    assert check_count("k", 0, 0) == 0
    assert check_count("k", 1, 1) == 1
    with pytest.raises(ArgumentError, match=r"`k` must be a positive integer\. Received: k=0"):
        check_count("k", 0, 1)


@pytest.mark.parametrize("value", [0, 0.5, 3, np.float32(2), np.int64(2)])
def test_seconds(value: Any) -> None:
    check_seconds("timeout", value)
    if value:
        check_seconds("timeout", value, positive=True)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "1", None])
def test_what_are_no_seconds(value: Any) -> None:
    with pytest.raises(ArgumentError, match="`timeout` must be a number of seconds, not negative"):
        check_seconds("timeout", value)
    with pytest.raises(ArgumentError, match="`timeout` must be a positive number of seconds"):
        check_seconds("timeout", 0, positive=True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3.0, "must be an array of at least one input"),
        ([], "must be an array of at least one input"),
        (["a"], "must hold numbers"),
        ([1, np.nan], "must be finite"),
    ],
)
def test_what_are_no_inputs(value: Any, message: str) -> None:
    assert check_inputs("x", [1, 2]).tolist() == [1, 2]
    with pytest.raises(ArgumentError, match=f"`x` {message}"):
        check_inputs("x", value)
