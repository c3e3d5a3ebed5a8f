"""Keys that the owner never gave out: random ones, and what users make of theirs together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from Crypto.Random import get_random_bytes
from scipy.stats import binomtest

import keras_encryip as ke
from keras_encryip.crypto.combined_key import CombinedKey
from keras_encryip.crypto.kem import Header, SharedSecret, UserKey
from keras_encryip.crypto.polynomial import ORDER, evaluate, interpolate, inverse, random_scalar
from keras_encryip.crypto.slots import ReaderKey, SlotKeys
from keras_encryip.errors import ForeignKeyError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook

from .ground import USERS, authority, issued, release

ON, NOT = "on the owner's polynomial", "no: not a key"
"""A fact of the reports of `Tracer.key`, and what it says of other points."""


def value_of(key: UserKey) -> int:
    return int.from_bytes(key.secret_bytes()[32:], "big")


def opens(codebook: Codebook, key: Any) -> bool:
    """Whether a point, or what is made of points, passes the codebook's own test of access."""
    try:
        codebook.open_metadata(key)
    except ForeignKeyError:
        return False
    return True


def reads(codebook: Codebook, assignment: LabelAssignment, key: Any, slots: SlotKeys) -> float:
    """Share of the ordinary labels whose class is read: 1 / K by chance.

    Args:
        key: as for `opens`.
        slots: a user's.
    """
    ordinary = assignment.labels.ravel()
    table = codebook.decode_table(ReaderKey(key, slots))
    return float((table[ordinary] == assignment.classes[ordinary]).mean())


def random_keys(n: int) -> dict[str, Any]:
    """`"opened at most"` is the exact upper bound at 95 %, about 3 / n for none."""
    with authority() as (owner, folder):
        real = issued(owner, "user", folder)
        codebook, assignment = release(owner, "digits")
        tracer = ke.Tracer(owner)
        traced = opened = 0
        read = []
        for i in range(n):
            z = real.point.z if i % 2 else random_scalar(get_random_bytes)
            key = UserKey(z, random_scalar(get_random_bytes))
            report = tracer.key(key)
            traced += bool(report.guilty) or report.evidence[ON] != NOT
            opened += opens(codebook, key)
            if i % 10 == 0:
                read.append(reads(codebook, assignment, key, real.slots))
    bound = binomtest(opened, n, alternative="less").proportion_ci(0.95).high
    return {
        "tried": n,
        "on the polynomial": traced,
        "opened": opened,
        "opened at most": float(bound),
        "ordinary labels read": float(np.mean(read)),
    }


@dataclass(frozen=True)
class Pooled:
    """A decoder made of several users' keys: a combined key for every header."""

    keys: Sequence[UserKey]
    shares: Sequence[int]
    key_id = "pooled"

    def combined(self, header: Header) -> CombinedKey:
        return CombinedKey.combine(self.keys, self.shares, header.nodes)

    def decapsulate(self, header: Header) -> SharedSecret:
        return self.combined(header).decapsulate(header)


def random_shares(members: int) -> list[int]:
    """Integers that sum to 1 modulo q."""
    free = [random_scalar(get_random_bytes) for _ in range(members - 1)]
    return [*free, (1 - sum(free)) % ORDER]


def framing_shares(own: Sequence[int], others: Sequence[int], nodes: Sequence[int]) -> list[int]:
    """The members' shares in the one relation among the vectors of t + 2 users.

    Σ β_i·z_i/(z_i − x) vanishes at 0 and the nodes for β_i = Π_j (z_i − x_j) / Π_{k≠i} (z_i − z_k):
    the members' part is, up to a factor, a combination of the others' keys.
    """
    shares = []
    for z in own:
        above = below = 1
        for x in nodes:
            above = above * (z - x) % ORDER
        for other in (*own, *others):
            below = below * (z - other) % ORDER if other != z else below
        shares.append(above * inverse(below) % ORDER)
    total = inverse(sum(shares))
    return [share * total % ORDER for share in shares]


OUTCOMES = (
    "opened",
    "read all",
    "all",
    "some",
    "nobody",
    "innocents",
    "framed",
    "minted",
    "on the polynomial",
)


def pooled_keys(threshold: int, coalitions: int, seed: int) -> dict[str, dict[str, Any]]:
    """For each number of members, in how many coalitions which attack came out how.

    Returns:
        `"m users"` → counts: a combined key was `"opened"`, and `"read all"` ordinary labels;
        it named `"all"` its owners and nobody else, `"some"` of them, `"nobody"`, or
        `"innocents"`; `"framed"`: shares that fit t + 2 − m known z named one of these; a
        `"minted"` key opened the codebook, and `"on the polynomial"` it lay.
    """
    random = np.random.default_rng(seed)
    found = {}
    with authority(threshold) as (owner, folder):
        names = [f"user {i}" for i in range(threshold + 2)]
        users = {name: issued(owner, name, folder) for name in names}
        owner.enroll(f"bystander {i}" for i in range(USERS - len(users)))
        codebook, assignment = release(owner, "digits")
        nodes = codebook.header.nodes
        tracer = ke.Tracer(owner)

        def named(pooled: Pooled) -> set[str]:
            weights = pooled.combined(codebook.header)._weights
            return {s.subject for s in tracer.combined_key(weights, nodes).guilty}

        for m in range(1, threshold + 3):
            row = dict.fromkeys(OUTCOMES, 0)
            for _ in range(coalitions):
                members = set(random.choice(names, m, replace=False).tolist())
                keys = [users[name].point for name in members]
                slots = users[min(members)].slots
                pooled = Pooled(keys, random_shares(m))
                row["opened"] += opens(codebook, pooled)
                row["read all"] += reads(codebook, assignment, pooled, slots) == 1
                accused = named(pooled)
                row["all"] += accused == members
                row["some"] += bool(accused) and accused < members
                row["nobody"] += not accused
                row["innocents"] += bool(accused - members)
                others = [users[name].point.z for name in names if name not in members]
                if others:
                    shares = framing_shares([key.z for key in keys], others, nodes)
                    row["framed"] += bool(named(Pooled(keys, shares)) - members)
                polynomial = interpolate([k.z for k in keys], [value_of(k) for k in keys])
                z = random_scalar(get_random_bytes)
                minted = UserKey(z, evaluate(polynomial, z))
                row["minted"] += opens(codebook, minted)
                row["on the polynomial"] += tracer.key(minted).evidence[ON] != NOT
            found[f"{m} users"] = {"coalitions": coalitions, **row}
    return found
