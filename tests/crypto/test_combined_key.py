"""Combined keys: they open headers, and name who made them or nobody."""

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_encryip.crypto.combined_key import CombinedKey, find_traitors
from keras_encryip.crypto.kem import MAX_THRESHOLD, MasterKey, UserKey
from keras_encryip.crypto.polynomial import ORDER, RandomBytes, inverse, random_scalar
from keras_encryip.errors import ArgumentError, FormatError, RevokedKeyError

Stream = Callable[[str], RandomBytes]

HALF = inverse(2)

quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
seeds = st.integers(0, 2**32)
thresholds = st.integers(1, 32)


@dataclass
class Case:
    """An authority with hundreds of users, and the nodes of one header."""

    master: MasterKey
    users: list[int]
    nodes: tuple[int, ...]
    source: RandomBytes

    @classmethod
    def draw(cls, source: RandomBytes, threshold: int, users: int = 300) -> "Case":
        master = MasterKey.generate(threshold, random_bytes=source)
        z = [random_scalar(source) for _ in range(users)]
        nodes = tuple(sorted(random_scalar(source) for _ in range(threshold)))
        return cls(master, z, nodes, source)

    def shares(self, count: int) -> list[int]:
        """Random, summing to 1."""
        free = [random_scalar(self.source) for _ in range(count - 1)]
        return [(1 - sum(free)) % ORDER, *free]

    def combine(self, coalition: Sequence[int], shares: Sequence[int]) -> CombinedKey:
        keys = [self.master.user_key(z) for z in coalition]
        return CombinedKey.combine(keys, shares, self.nodes)

    def find(self, combined_key: CombinedKey) -> tuple[int, ...]:
        return find_traitors(combined_key, self.users, self.master.user_key)


def vector(combined_key: CombinedKey) -> list[int]:
    return list(combined_key._weights)


# --- combined keys ----------------------------------------------------------------

MASTER = MasterKey([7, 5, 4])  # P = 7 + 5x + 4x², so P(1) = 16, P(2) = 33, P(3) = 58, P(4) = 91


@pytest.mark.parametrize(
    ("coalition", "shares", "weights"),
    [
        # λ_0 = 1·2/((1−3)(2−3)) = 1, λ_1 = 3·2/((3−1)(2−1)) = 3, λ_2 = 3·1/((3−2)(1−2)) = −3
        pytest.param([3], [1], [(58, 1), (3, 1), (-3, 1)], id="3 alone"),
        # λ = 1/3, 8/3, −2
        pytest.param([4], [1], [(91, 3), (8, 3), (-2, 1)], id="4 alone"),
        pytest.param([3, 4], [HALF, HALF], [(265, 6), (17, 6), (-5, 2)], id="one half each"),
        pytest.param([3, 4], [-2, 3], [(-25, 1), (2, 1), (0, 1)], id="-2 and 3"),
        pytest.param([3, 3], [4, -3], [(58, 1), (3, 1), (-3, 1)], id="3 twice"),
    ],
)
def test_weights_at_nodes_1_and_2(
    coalition: list[int], shares: list[int], weights: list[tuple[int, int]]
) -> None:
    combined = CombinedKey.combine([MASTER.user_key(z) for z in coalition], shares, [1, 2])
    expected = [a * inverse(b) % ORDER for a, b in weights]
    assert vector(combined) == expected
    w_0, w_1, w_2 = expected
    assert (w_0 + w_1 * 16 + w_2 * 33) % ORDER == 7


@pytest.mark.parametrize(
    ("threshold", "size"), [(1, 1), (1, 2), (4, 1), (4, 2), (4, 4), (9, 5), (32, 16)]
)
def test_a_combined_key_opens_the_header(stream: Stream, threshold: int, size: int) -> None:
    source = stream(f"opens {threshold} {size}")
    master = MasterKey.generate(threshold, random_bytes=source)
    users = [master.issue(random_bytes=source) for _ in range(size + 200)]
    revoked = [user.z for user in users[size : size + threshold // 2]]
    header, secret = master.encapsulate(revoked, random_bytes=source)
    coalition = users[:size]
    shares = Case(master, [], header.nodes, source).shares(size)
    combined = CombinedKey.combine(coalition, shares, header.nodes)
    opened = combined.decapsulate(header).derive("x")
    assert opened == users[0].decapsulate(header).derive("x") == secret.derive("x")
    found = find_traitors(combined, (user.z for user in users), master.user_key)
    within = size <= max(1, threshold // 2)
    assert found == (tuple(sorted(user.z for user in coalition)) if within else ())


def test_a_changed_weight_does_not_open_the_header() -> None:
    master = MasterKey.generate(3)
    header, secret = master.encapsulate()
    weights = vector(CombinedKey.combine([master.issue()], [1], header.nodes))
    for i in range(4):
        changed = [w + (j == i) for j, w in enumerate(weights)]
        opened = CombinedKey(header.nodes, changed).decapsulate(header)
        assert opened.derive("x") != secret.derive("x")


def test_zero_weights_open_to_nothing() -> None:
    header, _ = MasterKey.generate(2).encapsulate()
    with pytest.raises(FormatError, match="point at infinity"):
        CombinedKey(header.nodes, [0, 0, 0]).decapsulate(header)


def test_a_header_with_other_nodes_is_refused() -> None:
    master = MasterKey.generate(2)
    (first, _), (second, _) = master.encapsulate(), master.encapsulate()
    combined = CombinedKey.combine([master.issue()], [1], first.nodes)
    with pytest.raises(ArgumentError, match="made for a header with other nodes"):
        combined.decapsulate(second)


@pytest.mark.parametrize(
    ("nodes", "weights", "message"),
    [
        ([1, 2], [1, 1], "one integer more than `nodes`. Received: 2 weights for 2 nodes"),
        ([1, 2], [1, 1, 1, 1], "Received: 4 weights for 2 nodes"),
        ([1, 2], [1, 1, -1], "`weights` must be integers in 0 … q−1"),
        ([1, 2], [1, 1, ORDER], "`weights` must be integers in 0 … q−1"),
        ([1, 2], [1, 1, 1.0], "`weights` must be integers in 0 … q−1"),
        ([1, 1], [1, 1, 1], "`nodes` must hold 1 … 64 distinct integers"),
        ([], [1], "`nodes` must hold 1 … 64 distinct integers"),
        (range(1, MAX_THRESHOLD + 2), [1] * (MAX_THRESHOLD + 2), "`nodes` must hold 1 … 64"),
        ([0, 1], [1, 1, 1], "`nodes` must be integers in 1 … q−1"),
        ([1, ORDER], [1, 1, 1], "`nodes` must be integers in 1 … q−1"),
        ([1, "2"], [1, 1, 1], "`nodes` must be integers in 1 … q−1"),
    ],
)
def test_what_is_no_combined_key(
    nodes: Sequence[int], weights: Sequence[int], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        CombinedKey(nodes, weights)


@pytest.mark.parametrize(
    ("shares", "nodes", "message"),
    [
        ([1], [1, 2], "one integer per key. Received: 1 shares for 2 keys"),
        ([1, 1], [1, 2], "sum to 1 modulo q"),
        ([0.5, 0.5], [1, 2], "must be integers that sum to 1"),
        ([0, 1], [1, 1], "`nodes` must hold 1 … 64 distinct integers"),
        ([0, 1], [1, ORDER], "`nodes` must be integers in 1 … q−1"),
    ],
)
def test_what_cannot_be_combined(shares: list[int], nodes: list[int], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        CombinedKey.combine([MASTER.user_key(3), MASTER.user_key(4)], shares, nodes)


def test_nobody_combines_nothing() -> None:
    with pytest.raises(ArgumentError, match="sum to 1 modulo q"):
        CombinedKey.combine([], [], [1, 2])


def test_a_revoked_user_has_nothing_to_combine() -> None:
    with pytest.raises(RevokedKeyError, match="revoked when the header was made"):
        CombinedKey.combine([MASTER.user_key(3), MASTER.user_key(4)], [HALF, HALF], [1, 4])


@pytest.mark.parametrize("copier", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_combined_key_neither_shows_nor_copies_its_weights(
    copier: Callable[[object], object],
) -> None:
    combined = CombinedKey.combine([MasterKey.generate(2).issue()], [1], [1, 2])
    assert repr(combined) == str(combined) == "<CombinedKey threshold=2>"
    assert not hasattr(combined, "__dict__")
    with pytest.raises(TypeError, match="CombinedKey holds a secret and cannot be pickled"):
        copier(combined)


# --- traitors are found -------------------------------------------------------------


@quick
@given(threshold=thresholds, seed=seeds, data=st.data())
def test_up_to_half_the_threshold_are_found_exactly(
    stream: Stream, threshold: int, seed: int, data: st.DataObject
) -> None:
    case = Case.draw(stream(f"found {seed}"), threshold)
    coalition = case.users[: data.draw(st.integers(1, max(1, threshold // 2)), label="size")]
    asked: list[int] = []

    def user_key(z: int) -> UserKey:
        asked.append(z)
        return case.master.user_key(z)

    combined = case.combine(coalition, case.shares(len(coalition)))
    assert find_traitors(combined, iter(case.users), user_key) == tuple(sorted(coalition))
    assert asked == sorted(coalition)


@pytest.mark.parametrize(
    "shares",
    [
        pytest.param([HALF, HALF], id="one half each"),
        pytest.param([2, -1], id="2 and -1"),
        pytest.param([1 + 5 * ORDER**3, -ORDER - 2, 2], id="unreduced"),
        pytest.param([inverse(4)] * 4, id="one quarter each"),
        pytest.param([1, 1, 1, -1, -1], id="+1 and -1"),
    ],
)
def test_chosen_shares_hide_nobody(stream: Stream, shares: list[int]) -> None:
    case = Case.draw(stream("chosen"), 10)
    coalition = case.users[: len(shares)]
    assert case.find(case.combine(coalition, shares)) == tuple(sorted(coalition))


def test_a_member_with_share_0_took_no_part(stream: Stream) -> None:
    case = Case.draw(stream("share 0"), 4)
    a, b, c = case.users[:3]
    assert case.find(case.combine([a, b, c], [3, 0, -2])) == tuple(sorted([a, c]))
    assert case.find(case.combine([a, b], [0, 1])) == (b,)


@pytest.mark.parametrize("threshold", [1, 2, 3, 64])
def test_a_single_key_is_found_at_any_threshold(stream: Stream, threshold: int) -> None:
    case = Case.draw(stream(f"single {threshold}"), threshold)
    assert case.find(case.combine(case.users[7:8], [1])) == (case.users[7],)


def test_a_user_issued_twice_is_named_once(stream: Stream) -> None:
    case = Case.draw(stream("twice"), 4)
    combined = case.combine(case.users[:2], case.shares(2))
    found = find_traitors(combined, case.users + case.users, case.master.user_key)
    assert found == tuple(sorted(case.users[:2]))


# --- nobody is named -----------------------------------------------------------------


@quick
@given(threshold=st.integers(2, 32), seed=seeds, data=st.data())
def test_more_than_half_the_threshold_with_random_shares_name_nobody(
    stream: Stream, threshold: int, seed: int, data: st.DataObject
) -> None:
    case = Case.draw(stream(f"too many {seed}"), threshold)
    size = data.draw(st.integers(threshold // 2 + 1, threshold), label="size")
    assert case.find(case.combine(case.users[:size], case.shares(size))) == ()


@pytest.mark.parametrize("threshold", [1, 4, 5])
@pytest.mark.parametrize("offset", [1, ORDER - 1, 2**128])
def test_one_changed_weight_names_nobody(stream: Stream, threshold: int, offset: int) -> None:
    case = Case.draw(stream(f"changed {threshold}"), threshold)
    size = max(1, threshold // 2)
    weights = vector(case.combine(case.users[:size], case.shares(size)))
    for i in range(threshold + 1):
        changed = [(w + offset * (j == i)) % ORDER for j, w in enumerate(weights)]
        assert case.find(CombinedKey(case.nodes, changed)) == ()


@pytest.mark.parametrize("threshold", [1, 4, 7])
def test_what_is_computed_from_z_alone_names_nobody(stream: Stream, threshold: int) -> None:
    """w_1 … w_t need no key: here those of users at 300 z, with P of somebody else."""
    case = Case.draw(stream(f"public {threshold}"), threshold)
    other = Case(MasterKey.generate(threshold), case.users, case.nodes, case.source)
    size = max(1, threshold // 2)
    forged = other.combine(case.users[:size], case.shares(size))
    assert case.find(forged) == ()
    assert other.find(forged) == tuple(sorted(case.users[:size]))


@pytest.mark.parametrize("known", [0, 1])
def test_users_that_were_not_issued_are_not_named_nor_those_beside_them(
    stream: Stream, known: int
) -> None:
    case = Case.draw(stream(f"unknown {known}"), 4)
    coalition = [*case.users[:known], *(random_scalar(case.source) for _ in range(2 - known))]
    assert case.find(case.combine(coalition, case.shares(2))) == ()


def test_an_issued_user_is_not_named_for_two_unknown_whose_shares_cancel(stream: Stream) -> None:
    case = Case.draw(stream("cancel"), 6)
    unknown = [random_scalar(case.source) for _ in range(2)]
    assert case.find(case.combine([case.users[0], *unknown], [1, 5, -5])) == ()


@pytest.mark.parametrize("threshold", [1, 2, 5])
def test_zero_weights_name_nobody(stream: Stream, threshold: int) -> None:
    case = Case.draw(stream(f"zero {threshold}"), threshold)
    assert case.find(CombinedKey(case.nodes, [0] * (threshold + 1))) == ()


@pytest.mark.parametrize("share", [1, 3], ids=["infinity alone", "infinity and a user"])
def test_the_point_at_infinity_is_no_user(stream: Stream, share: int) -> None:
    """As z → ∞ a user's vector tends to (a_t·Π(−x_l); c_1 … c_t): f is 1, without a pole."""
    case = Case.draw(stream("infinity"), 4)
    leading = int.from_bytes(case.master.secret_bytes()[-32:], "big")
    product = 1
    for x in case.nodes:
        product = product * x % ORDER
    at_infinity = [leading * product]  # Π(−x_l) = Π x_l for an even t
    for x in case.nodes:
        c = 1
        for y in case.nodes:
            if y != x:
                c = c * y * inverse(y - x) % ORDER
        at_infinity.append(c)
    user = vector(case.combine(case.users[:1], [1]))
    mixed = [(share * i + (1 - share) * u) % ORDER for i, u in zip(at_infinity, user, strict=True)]
    values = [int.from_bytes(case.master.secret_bytes()[:32], "big")]
    values += [case.master.user_key(x)._value for x in case.nodes]
    opened = mixed[0] + sum(w * v for w, v in zip(mixed[1:], values[1:], strict=True))
    assert opened % ORDER == values[0]  # it does open headers
    assert case.find(CombinedKey(case.nodes, mixed)) == ()


def test_nobody_issued() -> None:
    combined = CombinedKey.combine([MASTER.user_key(3)], [1], [1, 2])
    assert find_traitors(combined, [], MASTER.user_key) == ()
    assert find_traitors(combined, [1, 2, 4], MASTER.user_key) == ()
    assert find_traitors(combined, [1, 2, 3, 4], MASTER.user_key) == (3,)


# --- the limits ----------------------------------------------------------------------


def rank(rows: list[list[int]]) -> int:
    """Of a matrix over Z_q, by elimination."""
    found, rows = 0, [row[:] for row in rows]
    for column in range(len(rows[0])):
        pivot = next((row for row in rows if row[column]), None)
        if pivot is None:
            continue
        rows.remove(pivot)
        found += 1
        scale = inverse(pivot[column])
        for row in rows:
            factor = row[column] * scale % ORDER
            row[:] = [(r - factor * p) % ORDER for r, p in zip(row, pivot, strict=True)]
    return found


def framing_shares(
    traitors: Sequence[int], innocents: Sequence[int], nodes: Sequence[int]
) -> list[int]:
    """The traitors' shares in the one relation among t + 2 users' vectors, in closed form.

    Σ β_i·z_i/(z_i − x) vanishes at 0, x_1 … x_t when its numerator is x·Π(x − x_j), so
    β_i is Π_j (z_i − x_j) / Π_{k≠i} (z_i − z_k) up to a common factor.
    """
    everybody = [*traitors, *innocents]
    shares = []
    for z in traitors:
        above = below = 1
        for x in nodes:
            above = above * (z - x) % ORDER
        for other in everybody:
            if other != z:
                below = below * (z - other) % ORDER
        shares.append(above * inverse(below) % ORDER)
    total = inverse(sum(shares))
    return [share * total % ORDER for share in shares]


@pytest.mark.parametrize("threshold", [1, 2, 3, 4, 5, 9, 16])
def test_any_t_plus_1_users_are_independent_and_t_plus_2_are_not(
    stream: Stream, threshold: int
) -> None:
    """So two combinations are equal only if t + 2 users take part in them."""
    case = Case.draw(stream(f"rank {threshold}"), threshold, users=threshold + 2)
    rows = [vector(case.combine([z], [1])) for z in case.users]
    for left_out in range(threshold + 2):
        some = rows[:left_out] + rows[left_out + 1 :]
        assert rank(some) == rank([[1, *row[1:]] for row in some]) == threshold + 1
    assert rank(rows) == rank([[1, *row] for row in rows]) == threshold + 1


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside traitors"])
@pytest.mark.parametrize("threshold", [4, 5, 6, 8, 9, 16, 32])
def test_limit_enough_traitors_who_know_z_of_innocents_can_frame_them(
    stream: Stream, threshold: int, beside: bool
) -> None:
    """Documented, not wanted. t traitors need two innocents, t + 2 − ⌊t/2⌋ need ⌊t/2⌋."""
    case = Case.draw(stream(f"framing {threshold}"), threshold)
    most = threshold // 2
    for size in {threshold + 2 - most, (threshold + 2 - most + threshold) // 2, threshold}:
        traitors, innocents = case.users[:size], case.users[size : threshold + 2]
        shares = framing_shares(traitors, innocents, case.nodes)
        named = list(innocents)
        if beside and len(innocents) < most:
            shares = [-2 * share for share in shares]
            shares[0] += 3  # and the vector of traitor 0 itself: 3·v_0 − 2·framed
            named.append(traitors[0])
        combined = case.combine(traitors, shares)
        assert case.find(combined) == tuple(sorted(named))
        unpublished = [z for z in case.users if z not in innocents]
        assert find_traitors(combined, unpublished, case.master.user_key) == ()


@pytest.mark.parametrize("threshold", [2, 3, 4, 5, 8, 9, 16])
def test_one_traitor_less_frames_nobody(stream: Stream, threshold: int) -> None:
    """t + 1 − ⌊t/2⌋ traitors with the best shares: ⌊t/2⌋ + 1 innocents would fit, too many."""
    case = Case.draw(stream(f"one less {threshold}"), threshold)
    size = threshold + 1 - threshold // 2
    traitors, innocents = case.users[:size], case.users[size : threshold + 2]
    combined = case.combine(traitors, framing_shares(traitors, innocents, case.nodes))
    back = framing_shares(innocents, traitors, case.nodes)
    assert vector(combined) == vector(case.combine(innocents, back))  # the same vector, and yet
    assert case.find(combined) == ()


def test_two_users_frame_anybody_at_threshold_1() -> None:
    """By hand: z/(z − 2) is 3, 2 and 5/3 at z = 3, 4 and 5, and 2 = 1/4·3 + 3/4·5/3.

    Two users are more than t = 1: they know P itself.
    """
    master = MasterKey([7, 5])
    quarter = inverse(4)
    combined = CombinedKey.combine(
        [master.user_key(3), master.user_key(5)], [quarter, 3 * quarter], [2]
    )
    assert vector(combined) == vector(CombinedKey.combine([master.user_key(4)], [1], [2]))
    assert find_traitors(combined, [3, 4, 5], master.user_key) == (4,)
