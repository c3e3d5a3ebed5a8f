"""Polynomials over Z_q, against numbers worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_encryip.crypto.polynomial import (
    ORDER,
    evaluate,
    inverse,
    lagrange_at_zero,
    random_scalar,
)

scalars = st.integers(1, ORDER - 1)


@pytest.mark.parametrize(
    ("coefficients", "x", "value"),
    [
        pytest.param([5], 9, 5, id="constant"),
        pytest.param([7, 5, 4], 0, 7, id="at zero"),
        pytest.param([7, 5, 4], 3, 58, id="7 + 15 + 36"),
        pytest.param([1, 1], ORDER - 1, 0, id="1 + X at -1"),
        pytest.param([0, 0, 1], ORDER - 2, 4, id="X squared at -2"),
        pytest.param([], 3, 0, id="empty"),
    ],
)
def test_evaluate(coefficients: list[int], x: int, value: int) -> None:
    assert evaluate(coefficients, x) == value


@pytest.mark.parametrize(
    ("nodes", "lambdas"),
    [
        pytest.param([4], [1], id="one node"),
        pytest.param([1, 2], [2, ORDER - 1], id="1, 2: 2 and -1"),
        pytest.param([1, 2, 3], [3, ORDER - 3, 1], id="1, 2, 3: 3, -3 and 1"),
        pytest.param([1, ORDER - 1], [inverse(2), inverse(2)], id="1, -1: one half each"),
    ],
)
def test_lagrange_coefficients(nodes: list[int], lambdas: list[int]) -> None:
    assert lagrange_at_zero(nodes) == lambdas


@given(st.lists(scalars, min_size=1, max_size=12, unique=True), st.data())
def test_interpolation_gives_the_constant_term(nodes: list[int], data: st.DataObject) -> None:
    degree_below = st.lists(scalars, min_size=1, max_size=len(nodes))
    polynomial = data.draw(degree_below, label="polynomial")
    values = [evaluate(polynomial, x) for x in nodes]
    lambdas = lagrange_at_zero(nodes)
    assert sum(c * v for c, v in zip(lambdas, values, strict=True)) % ORDER == polynomial[0]


def test_one_node_too_few_does_not_give_the_constant_term() -> None:
    polynomial, nodes = [7, 5, 4], [1, 2]
    lambdas = lagrange_at_zero(nodes)
    value = sum(c * evaluate(polynomial, x) for c, x in zip(lambdas, nodes, strict=True)) % ORDER
    assert value == ORDER - 1  # 2·P(1) − P(2) = 2·16 − 33, where P(0) = 7


def test_equal_nodes_are_refused() -> None:
    with pytest.raises(ZeroDivisionError, match="0 has no inverse modulo q"):
        lagrange_at_zero([3, 5, 3])


@given(scalars)
def test_inverse(value: int) -> None:
    assert value * inverse(value) % ORDER == 1


@pytest.mark.parametrize("zero", [0, ORDER, -ORDER], ids=["0", "q", "-q"])
def test_zero_has_no_inverse(zero: int) -> None:
    with pytest.raises(ZeroDivisionError, match="0 has no inverse modulo q"):
        inverse(zero)


def test_random_scalar_rejects_zero_and_what_is_not_below_the_order() -> None:
    draws = iter([0, ORDER, 2**256 - 1, ORDER + 1, ORDER - 1, 1])
    requested = []

    def source(n: int) -> bytes:
        requested.append(n)
        return next(draws).to_bytes(n, "big")

    assert random_scalar(source) == ORDER - 1
    assert random_scalar(source) == 1
    assert requested == [32] * 6


def test_order_is_that_of_p256() -> None:
    # SEC 2, section 2.4.2: n, in decimal as FIPS 186-4 prints it.
    assert ORDER == 115792089210356248762697446949407573529996955224135760342422259061068512044369
