"""Keys that several users combined, and who they are.

Users with keys (z_i, P(z_i)) open a header with nodes x_1 … x_t by the weights
w_0 = λ_0·P(z_i) of R and w_j = λ_j of H_j (`UserKey.decapsulate`). Any combination
of such vectors with shares α_i, Σ α_i = 1, opens the same header: a combined key.

With c_j = Π_{l≠j} x_l/(x_l − x_j), w_j/c_j = f(x_j) and f(0) = 1 for

    f(x) = Σ α_i·z_i/(z_i − x),

so a combined key is t + 1 values of a rational function whose poles are the
traitors' z.
"""

from collections.abc import Callable, Iterable, Sequence

from keras_encryip.crypto.kem import MAX_THRESHOLD, Header, SharedSecret, UserKey, weighted_sum
from keras_encryip.crypto.polynomial import (
    ORDER,
    divide,
    evaluate,
    inverse,
    lagrange_at_zero,
    rational_reconstruction,
)
from keras_encryip.crypto.secret import Secret
from keras_encryip.errors import ArgumentError


class CombinedKey(Secret):
    """Weights (w_0; w_1 … w_t) that open the headers with nodes (x_1 … x_t).

    Args:
        nodes: t distinct integers in 1 … q−1.
        weights: t + 1 integers in 0 … q−1. Secret.

    Raises:
        ArgumentError: another number, type or range.
    """

    __slots__ = ("_weights", "nodes")

    def __init__(self, nodes: Sequence[int], weights: Sequence[int]) -> None:
        self.nodes = _checked_nodes(nodes)
        self._weights = tuple(weights)
        if len(self._weights) != len(self.nodes) + 1:
            raise ArgumentError(
                "`weights` must hold one integer more than `nodes`. "
                f"Received: {len(self._weights)} weights for {len(self.nodes)} nodes"
            )
        if not all(isinstance(w, int) and 0 <= w < ORDER for w in self._weights):
            raise ArgumentError("`weights` must be integers in 0 … q−1.")

    def _describe(self) -> str:
        return f"threshold={len(self.nodes)}"

    @classmethod
    def combine(
        cls, keys: Sequence[UserKey], shares: Sequence[int], nodes: Sequence[int]
    ) -> "CombinedKey":
        """What a coalition can publish in place of its members' keys.

        Args:
            keys: the members' keys.
            shares: one integer α per key; they sum to 1 modulo q.
            nodes: those of the header to open.

        Raises:
            ArgumentError: the shares do not fit, or wrong nodes.
            RevokedKeyError: a member's z is one of the nodes.
        """
        if len(keys) != len(shares):
            raise ArgumentError(
                "`shares` must hold one integer per key. "
                f"Received: {len(shares)} shares for {len(keys)} keys"
            )
        if not all(isinstance(a, int) for a in shares) or sum(shares) % ORDER != 1:
            raise ArgumentError("`shares` must be integers that sum to 1 modulo q.")
        nodes = _checked_nodes(nodes)
        weights = [0] * (len(nodes) + 1)
        for key, share in zip(keys, shares, strict=True):
            vector = key.secret_weights(nodes)
            weights = [(w + share * v) % ORDER for w, v in zip(weights, vector, strict=True)]
        return cls(nodes, weights)

    def decapsulate(self, header: Header) -> SharedSecret:
        """S = w_0·R + Σ w_j·H_j.

        Raises:
            ArgumentError: the header has other nodes.
        """
        if header.nodes != self.nodes:
            raise ArgumentError("This combined key was made for a header with other nodes.")
        return SharedSecret(weighted_sum(self._weights, header.points), header)


def find_traitors(
    combined_key: CombinedKey, issued: Iterable[int], user_key: Callable[[int], UserKey]
) -> tuple[int, ...]:
    """The z of the users whose keys made a combined key.

    Finds all of 1 … ⌊t/2⌋ traitors (one for t = 1), whatever their nonzero shares: the
    poles of f by rational reconstruction, the shares from its residues. The users are
    named only if their own keys with these shares give every weight again; w_0 shows
    that keys were used, since the other weights can be computed from z alone.

    Limits, with d = max(1, ⌊t/2⌋) and keys of at most t users (t + 1 have P itself).
    Any t + 1 users' vectors are linearly independent and any t + 2 are not, so one
    vector is two combinations only if t + 2 users take part in the two together.

    - d + 1 … t + 1 − d traitors: `()`, whatever their shares.
    - t + 2 − d or more traitors (at most t of them only if t ≥ 4) with random shares: `()`
      but with negligible probability. *Traitors who know the z of t + 2 − m innocent
      users, m being their own number, can choose shares with which those users are
      named in their place*, alone or beside traitors. z is secret, but later headers
      show that of a revoked user: leave such users out of `issued`, or count their
      being named as no evidence.

    Args:
        combined_key: for any nodes.
        issued: the z of all users that may be named, integers in 1 … q−1; O(t) each.
        user_key: z → the key issued at z; called for suspects only.

    Returns:
        z in increasing order; `()` is inconclusive.

    Example:
    >>> from keras_encryip.crypto.kem import MasterKey
    >>> master = MasterKey.generate(4)
    >>> issued = [master.issue().z for _ in range(100)]
    >>> header, _ = master.encapsulate()
    >>> coalition = [master.user_key(z) for z in issued[:2]]
    >>> combined_key = CombinedKey.combine(coalition, [3, -2], header.nodes)
    >>> find_traitors(combined_key, issued, master.user_key) == tuple(sorted(issued[:2]))
    True
    """
    nodes, weights = combined_key.nodes, combined_key._weights
    suspects, shares = find_shares(nodes, weights[1:], issued)
    if not suspects:
        return ()
    remade = CombinedKey.combine([user_key(z) for z in suspects], shares, nodes)
    return suspects if remade._weights == weights else ()


def find_shares(
    nodes: Sequence[int], weights: Sequence[int], candidates: Iterable[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The candidates whose poles make up a combined key, and their shares, without any key.

    This alone does not show that keys were used: see `find_traitors`.

    Args:
        nodes: x_1 … x_t.
        weights: w_1 … w_t, without w_0.
        candidates: integers z in 1 … q−1.

    Returns:
        z in increasing order with their shares; two empty tuples if there are none.
    """
    values = [w * inverse(c) for w, c in zip(weights, lagrange_at_zero(nodes), strict=True)]
    function = rational_reconstruction((0, *nodes), (1, *values), max(1, len(nodes) // 2))
    if function is None:
        return (), ()
    numerator, denominator = function
    suspects = _roots(denominator, candidates)
    if len(suspects) < len(denominator) - 1:
        return (), ()
    shares = tuple(_share(numerator, denominator, z) for z in suspects)
    return (suspects, shares) if sum(shares) % ORDER == 1 else ((), ())


def _roots(polynomial: Sequence[int], candidates: Iterable[int]) -> tuple[int, ...]:
    """The distinct candidates at which a nonzero polynomial vanishes, in increasing order."""
    return tuple(sorted({z for z in candidates if evaluate(polynomial, z) == 0}))


def _share(numerator: Sequence[int], denominator: Sequence[int], z: int) -> int:
    """α when N/D = α·z/(z − x) + terms without a pole at the simple root z: −N(z)/(z·D′(z)).

    Not 0, since N/D is in lowest terms.
    """
    others, _ = divide(denominator, [-z, 1])
    return -evaluate(numerator, z) * inverse(z * evaluate(others, z)) % ORDER


def _checked_nodes(nodes: Sequence[int]) -> tuple[int, ...]:
    nodes = tuple(nodes)
    if not 1 <= len(nodes) <= MAX_THRESHOLD or len(set(nodes)) != len(nodes):
        raise ArgumentError(f"`nodes` must hold 1 … {MAX_THRESHOLD} distinct integers.")
    if not all(isinstance(x, int) and 0 < x < ORDER for x in nodes):
        raise ArgumentError("`nodes` must be integers in 1 … q−1.")
    return nodes
