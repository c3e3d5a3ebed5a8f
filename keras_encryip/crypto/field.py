"""Polynomials over Z_q, q the order of NIST P-256 (SEC 2, section 2.4.2).

A polynomial is a sequence of coefficients, lowest degree first.
"""

from collections.abc import Callable, Sequence
from typing import Final

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


def inverses(values: Sequence[int]) -> list[int]:
    """The inverses of many nonzero elements for one inversion and 3 products each (Montgomery).

    Example:
    >>> [v * i % ORDER for v, i in zip([2, 3, 5], inverses([2, 3, 5]))]
    [1, 1, 1]
    """
    products = [1]
    for value in values:
        products.append(products[-1] * value % ORDER)
    rest = inverse(products[-1])
    found = [0] * len(values)
    for i in range(len(values) - 1, -1, -1):
        found[i] = rest * products[i] % ORDER
        rest = rest * values[i] % ORDER
    return found


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
