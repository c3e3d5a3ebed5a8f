"""Trace-and-revoke KEM: who opens which header, and to what."""

import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_encryip.crypto.kem import Header, MasterKey, PublicKey, UserKey
from keras_encryip.crypto.polynomial import ORDER, RandomBytes, inverse
from keras_encryip.errors import ArgumentError, RevokedKeyError

Stream = Callable[[str], RandomBytes]

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "kem.json").read_text(encoding="ascii")
)
PURPOSE = "label mask v1"
quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
seeds = st.integers(0, 2**32)
encapsulators = st.sampled_from(["owner", "anyone"])


def encapsulate(
    master: MasterKey, by: str, revoked: list[int], random_bytes: RandomBytes
) -> tuple[Header, bytes]:
    """A header and its secret, made by the owner or from the public key's bytes alone."""
    sender = master if by == "owner" else PublicKey.from_bytes(master.public_key().to_bytes())
    header, secret = sender.encapsulate(revoked, random_bytes=random_bytes)
    return Header.from_bytes(header.to_bytes()), secret.derive(PURPOSE)


# --- real headers ------------------------------------------------------------


@quick
@given(threshold=st.integers(1, 6), by=encapsulators, seed=seeds, data=st.data())
def test_unrevoked_users_open_a_header_and_revoked_ones_do_not(
    stream: Stream, threshold: int, by: str, seed: int, data: st.DataObject
) -> None:
    source = stream(f"real {seed}")
    master = MasterKey.generate(threshold, random_bytes=source)
    users = [master.issue(random_bytes=source) for _ in range(threshold + 2)]
    count = data.draw(st.integers(0, threshold), label="revoked")
    header, secret = encapsulate(master, by, [user.z for user in users[:count]], source)
    for user in users[:count]:
        with pytest.raises(RevokedKeyError, match="revoked when the header was made"):
            user.decapsulate(header)
    for user in users[count:]:
        assert user.decapsulate(header).derive(PURPOSE) == secret


@pytest.mark.parametrize("by", ["owner", "anyone"])
@pytest.mark.parametrize("threshold", [16, 32])
def test_large_thresholds(stream: Stream, threshold: int, by: str) -> None:
    source = stream(f"large {threshold}")
    master = MasterKey.generate(threshold, random_bytes=source)
    users = [master.issue(random_bytes=source) for _ in range(threshold + 1)]
    header, secret = encapsulate(master, by, [user.z for user in users[1:]], source)
    assert users[0].decapsulate(header).derive(PURPOSE) == secret
    for user in users[1:]:
        with pytest.raises(RevokedKeyError, match="revoked when the header was made"):
            user.decapsulate(header)


@quick
@given(threshold=st.integers(1, 4), seed=seeds)
def test_owner_and_anyone_make_the_same_header_from_the_same_bytes(
    stream: Stream, threshold: int, seed: int
) -> None:
    master = MasterKey.generate(threshold, random_bytes=stream(f"same {seed}"))
    owner = encapsulate(master, "owner", [5], stream(f"header {seed}"))
    anyone = encapsulate(master, "anyone", [5], stream(f"header {seed}"))
    assert owner == anyone


@quick
@given(threshold=st.integers(1, 4), by=encapsulators, seed=seeds)
def test_the_owner_opens_a_header_again(stream: Stream, threshold: int, by: str, seed: int) -> None:
    """Without a point of its own, and whoever is revoked."""
    source = stream(f"again {seed}")
    master = MasterKey.generate(threshold, random_bytes=source)
    header, secret = encapsulate(master, by, [5], source)
    assert master.decapsulate(header).derive(PURPOSE) == secret


def test_two_headers_share_neither_nodes_nor_secret() -> None:
    master = MasterKey.generate(2)
    (first, one), (second, two) = master.encapsulate(), master.encapsulate()
    assert not set(first.nodes) & set(second.nodes)
    assert one.derive(PURPOSE) != two.derive(PURPOSE)


@pytest.mark.parametrize("by", ["owner", "anyone"])
@pytest.mark.parametrize("threshold", [1, 4])
def test_more_than_t_users_cannot_be_revoked(threshold: int, by: str) -> None:
    master = MasterKey.generate(threshold)
    sender = master if by == "owner" else master.public_key()
    message = rf"At most threshold={threshold} users .* Received: {threshold + 1} revoked users"
    with pytest.raises(ArgumentError, match=message):
        sender.encapsulate(range(1, threshold + 2))


def test_a_user_revoked_twice_counts_once() -> None:
    header, _ = MasterKey.generate(2).encapsulate([7, 7, 7])
    assert 7 in header.nodes
    assert len(set(header.nodes)) == 2


@pytest.mark.parametrize("z", [0, ORDER, -1, "7"], ids=["0", "q", "-1", "text"])
def test_what_is_no_z_cannot_be_revoked(z: Any) -> None:
    with pytest.raises(ArgumentError, match="`revoked` must hold the `z` of user keys"):
        MasterKey.generate(1).encapsulate([z])


def test_a_foreign_key_opens_to_another_secret() -> None:
    header, secret = MasterKey.generate(3).encapsulate()
    foreign = MasterKey.generate(3).issue().decapsulate(header)
    assert foreign.derive(PURPOSE) != secret.derive(PURPOSE)


def test_purposes_give_separate_keys() -> None:
    _, secret = MasterKey.generate(1).encapsulate()
    assert secret.derive("label mask v1") != secret.derive("access metadata v1")


@pytest.mark.parametrize("purpose", ["label mask v1", "x", ""])
def test_derived_keys_are_hkdf(stream: Stream, purpose: str) -> None:
    header, secret = MasterKey.generate(1, random_bytes=stream("hkdf")).encapsulate(
        random_bytes=stream("header")
    )
    salt = hashlib.sha256(b"encryip header v1\0" + header.to_bytes()).digest()
    assert secret.derive(purpose) == HKDF(secret._point, 32, salt, SHA256, context=purpose.encode())


# --- t = 1 is CS-lite ----------------------------------------------------------

P = 2**256 - 2**224 + 2**192 + 2**96 - 1
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
Affine = tuple[int, int] | None


def add(a: Affine, b: Affine) -> Affine:
    if a is None or b is None:
        return a or b
    if a[0] == b[0] and (a[1] + b[1]) % P == 0:
        return None
    if a == b:
        slope = (3 * a[0] * a[0] - 3) * pow(2 * a[1], -1, P) % P
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, P) % P
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def times(scalar: int, point: Affine) -> Affine:
    total: Affine = None
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point = add(point, point)
        scalar >>= 1
    return total


def decompress(data: bytes) -> Affine:
    x = int.from_bytes(data[1:], "big")
    y = pow((x**3 - 3 * x + B) % P, (P + 1) // 4, P)
    return x, y if y % 2 == data[0] % 2 else P - y


def compress(point: Affine) -> bytes:
    assert point is not None
    return bytes([2 + point[1] % 2]) + point[0].to_bytes(32, "big")


def hkdf_sha256(material: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 for 32 bytes of output."""
    extracted = hmac.digest(salt, material, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def test_threshold_1_is_cs_lite(stream: Stream) -> None:
    """Cramer and Shoup's lite scheme, written anew: g1 = G, g2 = P(x1)·G, h = a0·G."""
    source = stream("cs-lite")
    master = MasterKey.generate(1, random_bytes=source)
    a0, a1 = (int.from_bytes(master.secret_bytes()[i : i + 32], "big") for i in (0, 32))
    z, value = 11, (a0 + 11 * a1) % ORDER
    header, secret = master.public_key().encapsulate(random_bytes=source)
    (x1,) = header.nodes
    g1, g2, h = G, times((a0 + x1 * a1) % ORDER, G), times(a0, G)
    # P(0) = value·x1/(x1 − z) + P(x1)·z/(z − x1), so (s1, s2) represents h to the bases g1, g2.
    s1 = value * x1 * inverse(x1 - z) % ORDER
    s2 = z * inverse(z - x1) % ORDER
    assert add(times(s1, g1), times(s2, g2)) == h
    u1, u2 = (decompress(point) for point in header.encoded_points)
    shared = add(times(s1, u1), times(s2, u2))
    digest = hashlib.sha256(b"encryip header v1\0" + header.to_bytes()).digest()
    key = hkdf_sha256(compress(shared), digest, PURPOSE.encode())
    assert key == secret.derive(PURPOSE)
    assert key == UserKey(z, value).decapsulate(header).derive(PURPOSE)
    # The other half of the scheme: both members of the ciphertext have one exponent r.
    r = int.from_bytes(stream("cs-lite")(128)[96:], "big")  # drawn after a0, a1 and x1
    assert (times(r, g1), times(r, g2), times(r, h)) == (u1, u2, shared)


def test_affine_arithmetic_of_this_test() -> None:
    """k = 112233445566778899 of the NIST point multiplication vectors for P-256."""
    assert times(112233445566778899, G) == (
        0x339150844EC15234807FE862A86BE77977DBFB3AE3D96F4C22795513AEAAB82F,
        0xB1C14DDFDC8EC1B2583F51E85A5EB3A155840F2034730E9B5ADA38B674336A21,
    )
    assert times(ORDER, G) is None


# --- vectors ---------------------------------------------------------------------


@pytest.mark.parametrize("name", VECTORS)
def test_vector_is_recomputed_byte_for_byte(stream: Stream, name: str) -> None:
    case, seed = VECTORS[name], f"encryip kem vector {name}"
    master = MasterKey.generate(case["threshold"], random_bytes=stream(f"{seed} master"))
    assert master.secret_bytes().hex() == case["master_key"]
    assert master.public_key().to_bytes().hex() == case["public_key"]
    assert master.public_key().digest.hex() == case["authority"]
    users = [
        master.issue(random_bytes=stream(f"{seed} user {i}")) for i in range(len(case["users"]))
    ]
    for user, expected in zip(users, case["users"], strict=True):
        assert user.secret_bytes().hex() == expected["user_key"]
        assert user.key_id == expected["key_id"]
    out = [users[i].z for i in case["revoked_users"]]
    for sender in (master, master.public_key()):
        header, secret = sender.encapsulate(out, random_bytes=stream(f"{seed} header"))
        assert header.to_bytes().hex() == case["header"]["bytes"]
        assert header.digest.hex() == case["header"]["digest"]
        assert {p: secret.derive(p).hex() for p in case["keys"]} == case["keys"]


@pytest.mark.parametrize("name", VECTORS)
def test_vector_is_opened_from_its_bytes(name: str) -> None:
    case = VECTORS[name]
    header = Header.from_bytes(bytes.fromhex(case["header"]["bytes"]))
    for i, entry in enumerate(case["users"]):
        user = UserKey.from_secret_bytes(bytes.fromhex(entry["user_key"]))
        if i in case["revoked_users"]:
            with pytest.raises(RevokedKeyError, match="revoked when the header was made"):
                user.decapsulate(header)
            continue
        keys = case["keys"]
        assert len(keys) == 2
        assert {p: user.decapsulate(header).derive(p).hex() for p in keys} == keys
