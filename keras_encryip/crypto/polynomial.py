"""Polynomials over Z_q, q the order of NIST P-256 (SEC 2, section 2.4.2).

A polynomial is a sequence of coefficients in 0 … q−1, lowest degree first. Results have no
trailing zeros: the zero polynomial is `[]`. Arguments may be unreduced.

Source of `rational_reconstruction`: von zur Gathen and Gerhard, *Modern Computer Algebra*.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Final

from keras_encryip.errors import ArgumentError

ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

RandomBytes = Callable[[int], bytes]
"""A source of `n` uniformly random bytes; the CSPRNG everywhere but in test vectors."""


def random_scalar(random_bytes: RandomBytes) -> int:
    """A uniform scalar in 1 … q−1, by rejection."""
    while True:
        value = int.from_bytes(random_bytes(32), "big")
        if 0 < value < ORDER:
            return value


def evaluate(coefficients: Sequence[int], x: int) -> int:
    """P(x) mod q by Horner's rule."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % ORDER
    return value


def inverse(value: int) -> int:
    """Multiplicative inverse mod q. Raises `ZeroDivisionError` for 0."""
    if value % ORDER == 0:
        raise ZeroDivisionError("0 has no inverse modulo q.")
    return pow(value, -1, ORDER)


def lagrange_at_zero(nodes: Sequence[int]) -> list[int]:
    """Coefficients λ with P(0) = Σ λ_i·P(x_i) for every P of degree below `len(nodes)`.

    λ_i = Π_{k≠i} x_k / (x_k − x_i).

    Args:
        nodes: distinct, nonzero elements of Z_q.

    Example:
    >>> nodes = [1, 2, 3]
    >>> lambdas = lagrange_at_zero(nodes)
    >>> p = [7, 5, 4]                                    # 7 + 5x + 4x²
    >>> sum(c * evaluate(p, x) for c, x in zip(lambdas, nodes)) % ORDER
    7
    """
    coefficients = []
    for i, x_i in enumerate(nodes):
        numerator = denominator = 1
        for k, x_k in enumerate(nodes):
            if k != i:
                numerator = numerator * x_k % ORDER
                denominator = denominator * (x_k - x_i) % ORDER
        coefficients.append(numerator * inverse(denominator) % ORDER)
    return coefficients


def multiply(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """a·b.

    Example:
    >>> multiply([1, 2], [3, 1])                         # (1 + 2x)·(3 + x)
    [3, 7, 2]
    """
    product = [0] * (len(a) + len(b))
    for i, a_i in enumerate(a):
        for k, b_k in enumerate(b, start=i):
            product[k] += a_i * b_k
    return _reduced(product)


def divide(a: Sequence[int], b: Sequence[int]) -> tuple[list[int], list[int]]:
    """Quotient and remainder: a = quotient·b + remainder, deg remainder < deg b.

    Raises:
        ZeroDivisionError: b is zero.

    Example:
    >>> divide([3, 7, 2], [3, 1])
    ([1, 2], [])
    """
    remainder, divisor = _reduced(a), _reduced(b)
    leading = inverse(divisor[-1] if divisor else 0)
    quotient = [0] * max(len(remainder) - len(divisor) + 1, 0)
    for shift in reversed(range(len(quotient))):
        factor = remainder.pop() * leading % ORDER
        quotient[shift] = factor
        for k, b_k in enumerate(divisor[:-1], start=shift):
            remainder[k] = (remainder[k] - factor * b_k) % ORDER
    return quotient, _reduced(remainder)


def interpolate(nodes: Sequence[int], values: Sequence[int]) -> list[int]:
    """The polynomial of degree below `len(nodes)` with `values` at `nodes` (Lagrange).

    Raises:
        ZeroDivisionError: two nodes are equal.

    Example:
    >>> interpolate([0, 1, 2], [7, 16, 33])
    [7, 5, 4]
    """
    vanishing = _vanishing(nodes)
    total = [0] * len(nodes)
    for x, value in zip(nodes, values, strict=True):
        others, _ = divide(vanishing, [-x, 1])
        factor = value * inverse(evaluate(others, x)) % ORDER
        total = [c + factor * o for c, o in zip(total, others, strict=True)]
    return _reduced(total)


def rational_reconstruction(
    nodes: Sequence[int], values: Sequence[int], max_degree: int
) -> tuple[list[int], list[int]] | None:
    """The rational function N/D that has `values` at `nodes`, by the extended Euclidean algorithm.

    Args:
        nodes: n distinct elements of Z_q.
        values: n elements of Z_q.
        max_degree: deg D ≤ `max_degree`, deg N < `max_degree`; n ≥ 2·`max_degree` makes
            N/D unique.

    Returns:
        (N, D) in lowest terms, D monic and nonzero at every node; `None` if there is none.

    Raises:
        ArgumentError: `max_degree` is negative or above n/2.
        ZeroDivisionError: two nodes are equal.

    Example: x/(1 + x²) at 1, 2, 3 and −2
    >>> values = [inverse(2), 2 * inverse(5), 3 * inverse(10), -2 * inverse(5)]
    >>> rational_reconstruction([1, 2, 3, -2], values, max_degree=2)
    ([0, 1], [1, 0, 1])
    """
    if not 0 <= 2 * max_degree <= len(nodes):
        raise ArgumentError(
            f"`max_degree` must be in 0 … {len(nodes) // 2} for {len(nodes)} nodes. "
            f"Received: max_degree={max_degree}"
        )
    # Throughout, numerator ≡ denominator·interpolant modulo the vanishing polynomial.
    previous, numerator = _vanishing(nodes), interpolate(nodes, values)
    before: list[int] = []
    denominator = [1]
    while len(numerator) > max_degree:
        quotient, remainder = divide(previous, numerator)
        previous, numerator = numerator, remainder
        before, denominator = denominator, _subtract(before, multiply(quotient, denominator))
    if len(denominator) > max_degree + 1 or any(evaluate(denominator, x) == 0 for x in nodes):
        return None
    leading = inverse(denominator[-1])
    return multiply(numerator, [leading]), multiply(denominator, [leading])


def _vanishing(nodes: Sequence[int]) -> list[int]:
    """Π (X − x_i)."""
    product = [1]
    for x in nodes:
        product = multiply(product, [-x, 1])
    return product


def _subtract(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return _reduced([a_k - b_k for a_k, b_k in zip_longest(a, b, fillvalue=0)])


def _reduced(coefficients: Sequence[int]) -> list[int]:
    """Coefficients in 0 … q−1, without trailing zeros."""
    reduced = [c % ORDER for c in coefficients]
    while reduced and reduced[-1] == 0:
        reduced.pop()
    return reduced
