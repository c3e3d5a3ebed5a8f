"""Polynomials and rational functions over Z_q, against numbers worked out by hand."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keras_encryip.crypto.polynomial import (
    ORDER,
    divide,
    evaluate,
    interpolate,
    inverse,
    multiply,
    rational_reconstruction,
)
from keras_encryip.errors import ArgumentError

HALF = inverse(2)

quick = settings(max_examples=50, deadline=None)
scalars = st.integers(0, ORDER - 1)
small_or_any = st.one_of(st.integers(-3, 3), scalars)
polynomials = st.lists(small_or_any, max_size=9)


def is_reduced(polynomial: list[int]) -> bool:
    return all(0 <= c < ORDER for c in polynomial) and (not polynomial or polynomial[-1] != 0)


@pytest.mark.parametrize(
    ("a", "b", "product"),
    [
        pytest.param([], [1, 2], [], id="0"),
        pytest.param([5], [1, 2], [5, 10], id="5 (1 + 2x)"),
        pytest.param([1, 1], [-1, 1], [ORDER - 1, 0, 1], id="(x + 1)(x - 1) = x^2 - 1"),
        pytest.param([1, 2, 3], [4, 5], [4, 13, 22, 15], id="4 + 13x + 22x^2 + 15x^3"),
        pytest.param([HALF], [2], [1], id="1/2 * 2"),
        pytest.param([1, 0, 0], [1, ORDER], [1], id="trailing zeros"),
    ],
)
def test_multiply(a: list[int], b: list[int], product: list[int]) -> None:
    assert multiply(a, b) == multiply(b, a) == product


@pytest.mark.parametrize(
    ("a", "b", "quotient", "remainder"),
    [
        pytest.param([-1, 0, 0, 1], [-1, 1], [1, 1, 1], [], id="x^3 - 1 by x - 1"),
        pytest.param([1, 0, 1], [0, 2], [0, HALF], [1], id="x^2 + 1 by 2x"),
        pytest.param([5, 1], [1, 0, 1], [], [5, 1], id="smaller degree"),
        pytest.param([6, 4], [2], [3, 2], [], id="by a constant"),
        pytest.param([7, 3, 1], [1, 1], [2, 1], [5], id="x^2 + 3x + 7 by x + 1"),
        pytest.param([], [1, 1], [], [], id="0"),
        pytest.param([6, 4, 0], [2, ORDER], [3, 2], [], id="trailing zeros"),
    ],
)
def test_divide(a: list[int], b: list[int], quotient: list[int], remainder: list[int]) -> None:
    assert divide(a, b) == (quotient, remainder)


@pytest.mark.parametrize("zero", [[], [0], [ORDER, 0]], ids=str)
def test_nothing_is_divided_by_zero(zero: list[int]) -> None:
    with pytest.raises(ZeroDivisionError, match="0 has no inverse modulo q"):
        divide([1, 2], zero)


@quick
@given(polynomials, polynomials)
def test_quotient_times_divisor_plus_remainder(a: list[int], b: list[int]) -> None:
    assume(any(c % ORDER for c in b))
    quotient, remainder = divide(a, b)
    assert is_reduced(quotient)
    assert is_reduced(remainder)
    assert len(remainder) < len(multiply(b, [1]))
    product = multiply(quotient, b)
    for x in range(20):  # more points than coefficients
        assert (evaluate(product, x) + evaluate(remainder, x) - evaluate(a, x)) % ORDER == 0


@pytest.mark.parametrize(
    ("nodes", "values", "polynomial"),
    [
        pytest.param([], [], [], id="no node"),
        pytest.param([4], [9], [9], id="constant"),
        pytest.param([0, 1, 2], [7, 16, 33], [7, 5, 4], id="7 + 5x + 4x^2"),
        pytest.param([1, 2, 3], [2, 3, 4], [1, 1], id="1 + x through three points"),
        pytest.param([1, -1], [1, 0], [HALF, HALF], id="(1 + x)/2"),
        pytest.param([5, 6], [0, 0], [], id="0"),
    ],
)
def test_interpolate(nodes: list[int], values: list[int], polynomial: list[int]) -> None:
    assert interpolate(nodes, values) == polynomial


@quick
@given(st.lists(scalars, min_size=1, max_size=12, unique=True), st.data())
def test_interpolation_gives_the_polynomial_back(nodes: list[int], data: st.DataObject) -> None:
    polynomial = multiply(data.draw(st.lists(small_or_any, max_size=len(nodes))), [1])
    assert interpolate(nodes, [evaluate(polynomial, x) for x in nodes]) == polynomial


@pytest.mark.parametrize("nodes", [[3, 5, 3], [1, 2, ORDER + 1]], ids=["equal", "equal modulo q"])
def test_equal_nodes_are_refused(nodes: list[int]) -> None:
    with pytest.raises(ZeroDivisionError, match="0 has no inverse modulo q"):
        interpolate(nodes, [1, 2, 3])
    with pytest.raises(ZeroDivisionError, match="0 has no inverse modulo q"):
        rational_reconstruction(nodes, [1, 2, 3], 1)


@pytest.mark.parametrize(
    ("nodes", "values", "max_degree", "expected"),
    [
        pytest.param([1, 2], [1, HALF], 1, ([1], [0, 1]), id="1/x"),
        pytest.param([0, 2], [1, 3], 1, ([-3], [-3, 1]), id="3/(3 - x)"),
        pytest.param([0, 1, 2], [1, 1, 1], 1, ([1], [1]), id="1, lower degree than allowed"),
        pytest.param([0, 1, 2, 3], [0, 1, 2, 3], 2, ([0, 1], [1]), id="x"),
        pytest.param([0, 1, 2], [0, 0, 0], 1, ([], [1]), id="0"),
        pytest.param([5, 6], [0, 0], 0, ([], [1]), id="0 is the only one of degree 0"),
        pytest.param([5, 6], [0, 1], 0, None, id="not 0"),
        pytest.param([0, 1], [0, 1], 1, None, id="c/(x - z) has no zero"),
        pytest.param([1, 2, 3], [1, HALF, inverse(4)], 1, None, id="reciprocals off a line"),
        pytest.param([1, 2, 3, 4], [1, 0, 0, 0], 2, None, id="too many zeros for degree 1"),
    ],
)
def test_rational_reconstruction(
    nodes: list[int],
    values: list[int],
    max_degree: int,
    expected: tuple[list[int], list[int]] | None,
) -> None:
    if expected is not None:
        expected = multiply(expected[0], [1]), multiply(expected[1], [1])  # into 0 … q−1
    assert rational_reconstruction(nodes, values, max_degree) == expected


@quick
@given(st.integers(1, 8), st.integers(0, 3), st.data())
def test_reconstruction_gives_the_rational_function_back(
    max_degree: int, spare: int, data: st.DataObject
) -> None:
    count = 2 * max_degree + spare
    nodes = data.draw(st.lists(scalars, min_size=count, max_size=count, unique=True))
    numerator = data.draw(st.lists(small_or_any, max_size=max_degree), label="N")
    denominator = data.draw(st.lists(small_or_any, min_size=1, max_size=max_degree + 1), label="D")
    assume(all(evaluate(denominator, x) for x in nodes))
    values = [evaluate(numerator, x) * inverse(evaluate(denominator, x)) for x in nodes]
    found = rational_reconstruction(nodes, values, max_degree)
    assert found is not None
    assert found[1][-1] == 1
    assert len(found[1]) <= len(multiply(denominator, [1]))
    assert multiply(found[0], denominator) == multiply(found[1], numerator)


@quick
@given(st.lists(st.tuples(scalars, scalars), min_size=2, max_size=12, unique_by=lambda p: p[0]))
def test_whatever_is_found_has_the_values(points: list[tuple[int, int]]) -> None:
    nodes, values = [x for x, _ in points], [v for _, v in points]
    max_degree = len(nodes) // 2
    found = rational_reconstruction(nodes, values, max_degree)
    if found is None:
        return
    numerator, denominator = found
    assert is_reduced(numerator)
    assert is_reduced(denominator)
    assert len(numerator) <= max_degree
    assert len(denominator) <= max_degree + 1
    for x, value in points:
        assert evaluate(denominator, x) != 0
        assert evaluate(numerator, x) == value * evaluate(denominator, x) % ORDER


@pytest.mark.parametrize("max_degree", [-1, 2, 64])
def test_a_degree_that_leaves_a_choice_is_refused(max_degree: int) -> None:
    message = rf"`max_degree` must be in 0 … 1 for 3 nodes\. Received: max_degree={max_degree}"
    with pytest.raises(ArgumentError, match=message):
        rational_reconstruction([1, 2, 3], [1, 1, 1], max_degree)


def test_as_many_values_as_nodes() -> None:
    with pytest.raises(ValueError, match="shorter"):
        interpolate([1, 2], [1])
