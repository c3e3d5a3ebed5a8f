"""Headers, public keys and secret keys as bytes: round trips and everything refused."""

import random
from collections.abc import Callable
from hashlib import sha256

import pytest

from keras_encryip.crypto.encoding import encode_point
from keras_encryip.crypto.kem import MAX_THRESHOLD, Header, MasterKey, PublicKey, UserKey, key_id
from keras_encryip.crypto.polynomial import ORDER, inverse
from keras_encryip.errors import ArgumentError, EncryipError, FormatError, RevokedKeyError

P = 2**256 - 2**224 + 2**192 + 2**96 - 1
SCALAR = 32
Change = Callable[[bytearray], bytes]


def put(start: int, data: bytes) -> Change:
    """Overwrite bytes from `start` on."""

    def change(original: bytearray) -> bytes:
        original[start : start + len(data)] = data
        return bytes(original)

    return change


def scalar(value: int) -> bytes:
    return value.to_bytes(SCALAR, "big")


# Header of t = 2: 1 ‖ x_1 at 1 ‖ x_2 at 33 ‖ R at 65 ‖ H_1 at 98 ‖ H_2 at 131, 164 bytes.
NODES = "Header nodes are not strictly increasing"
POINT = "Header point is not a compressed point on P-256"
NODE = "Header node is not a scalar"
LENGTH = "A header has a wrong length or threshold"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda d: b"", LENGTH, id="empty"),
        pytest.param(lambda d: bytes(d[:1]), LENGTH, id="threshold only"),
        pytest.param(lambda d: bytes(d[:-1]), LENGTH, id="one byte short"),
        pytest.param(lambda d: bytes(d) + b"\0", LENGTH, id="one byte long"),
        pytest.param(put(0, b"\0"), LENGTH, id="threshold 0"),
        pytest.param(put(0, b"\1"), LENGTH, id="threshold 1"),
        pytest.param(put(0, b"\3"), LENGTH, id="threshold 3"),
        pytest.param(lambda d: b"\0" + bytes(33), LENGTH, id="threshold 0, its length"),
        pytest.param(lambda d: b"\x41" + bytes(Header.size(65) - 1), LENGTH, id="threshold 65"),
        pytest.param(put(1, scalar(0)), NODE, id="x1 = 0"),
        pytest.param(put(33, scalar(ORDER)), NODE, id="x2 = q"),
        pytest.param(put(33, b"\xff" * 32), NODE, id="x2 = 2^256 - 1"),
        pytest.param(put(1, scalar(9) + scalar(9)), NODES, id="equal nodes"),
        pytest.param(put(1, scalar(9) + scalar(8)), NODES, id="decreasing nodes"),
        pytest.param(put(65, bytes(33)), POINT, id="R infinity"),
        pytest.param(put(65, b"\4"), POINT, id="R tag 4"),
        pytest.param(put(98, b"\2" + scalar(P)), POINT, id="H1 x = p"),
        pytest.param(put(131, b"\3" + b"\xff" * 32), POINT, id="H2 x above p"),
        pytest.param(put(131, b"\2" + scalar(1)), POINT, id="H2 not on the curve"),
    ],
)
def test_malformed_headers_are_refused(change: Change, message: str) -> None:
    header, _ = MasterKey.generate(2).encapsulate()
    with pytest.raises(FormatError, match=message):
        Header.from_bytes(change(bytearray(header.to_bytes())))


def test_every_truncation_of_a_header_is_refused() -> None:
    data = MasterKey.generate(3).encapsulate()[0].to_bytes()
    for length in range(len(data)):
        with pytest.raises(FormatError, match=LENGTH):
            Header.from_bytes(data[:length])


def test_a_flipped_bit_never_leaves_the_secret_as_it_was() -> None:
    """A header is not authenticated: a flipped bit fails, or opens to something else."""
    master = MasterKey.generate(2)
    user = master.issue()
    header, secret = master.encapsulate()
    data, expected = header.to_bytes(), secret.derive("x")
    draw = random.Random(1)
    refused = 0
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << draw.randrange(8)
        try:
            opened = user.decapsulate(Header.from_bytes(bytes(changed))).derive("x")
        except EncryipError:
            refused += 1
        else:
            assert opened != expected
    assert 30 < refused < 130  # about half of all x are on the curve; nodes mostly stay scalars


def test_the_largest_threshold_is_accepted() -> None:
    """A header's length follows from its first byte: 1 + 64·32 + 65·33."""
    assert MAX_THRESHOLD == 64
    assert Header.size(64) == 4194
    master = MasterKey([1] * 65)
    header, _ = master.encapsulate()
    assert Header.from_bytes(header.to_bytes()) == header
    assert PublicKey.from_bytes(master.public_key().to_bytes()).threshold == 64


def test_a_header_that_opens_to_infinity_is_refused() -> None:
    master = MasterKey([3, 5])
    user = master.user_key(2)  # P(2) = 13
    x1 = 7
    # λ_0·13·ρ_0 + λ_1·ρ_1 = 0 with λ_0 = 7/(7 − 2), λ_1 = 2/(2 − 7), so ρ_1 = 13·7/2·ρ_0.
    rho = 13 * 7 * inverse(2) % ORDER
    points = MasterKey([1, rho]).public_key().encoded_points
    header = Header((x1,), points)
    with pytest.raises(FormatError, match="opens to the point at infinity"):
        user.decapsulate(header)


def test_digests_are_domain_separated() -> None:
    master = MasterKey.generate(1)
    header, public = master.encapsulate()[0], master.public_key()
    assert header.digest == sha256(b"encryip header v1\0" + header.to_bytes()).digest()
    assert public.digest == sha256(b"encryip public key v1\0" + public.to_bytes()).digest()
    assert key_id(5) == sha256(b"encryip key id v1\0" + scalar(5)).hexdigest()[:16]
    assert master.user_key(5).key_id == key_id(5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda d: b"", "wrong length: 0 bytes", id="empty"),
        pytest.param(lambda d: bytes(d[:33]), "wrong length: 33 bytes", id="one point"),
        pytest.param(lambda d: bytes(d[:-1]), "wrong length: 98 bytes", id="one byte short"),
        pytest.param(lambda d: bytes(d) * 22, "wrong length: 2178 bytes", id="66 points"),
        pytest.param(put(33, bytes(33)), "Public key point is not", id="infinity"),
        pytest.param(put(1, scalar(1)), "Public key point is not", id="not on the curve"),
    ],
)
def test_malformed_public_keys_are_refused(change: Change, message: str) -> None:
    data = bytearray(MasterKey.generate(2).public_key().to_bytes())
    with pytest.raises(FormatError, match=message):
        PublicKey.from_bytes(change(data))


def test_public_key_round_trip() -> None:
    public = MasterKey.generate(3).public_key()
    assert PublicKey.from_bytes(public.to_bytes()) == public
    assert public.threshold == 3


def test_secret_bytes_round_trip() -> None:
    master = MasterKey([3, 5, 7])
    assert master.secret_bytes() == scalar(3) + scalar(5) + scalar(7)
    assert MasterKey.from_secret_bytes(master.secret_bytes()).public_key() == master.public_key()
    user = master.user_key(2)
    assert user.secret_bytes() == scalar(2) + scalar(3 + 10 + 28)
    assert UserKey.from_secret_bytes(user.secret_bytes()).secret_bytes() == user.secret_bytes()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "A user key has 64 bytes", id="empty"),
        pytest.param(bytes(63), "A user key has 64 bytes", id="short"),
        pytest.param(scalar(1) * 3, "A user key has 64 bytes", id="long"),
        pytest.param(scalar(0) + scalar(1), "User key z is not a scalar", id="z = 0"),
        pytest.param(scalar(ORDER) + scalar(1), "User key z is not a scalar", id="z = q"),
        pytest.param(scalar(1) + scalar(0), "User key value is not a scalar", id="value 0"),
        pytest.param(scalar(1) + b"\xff" * 32, "User key value is not", id="value above q"),
    ],
)
def test_malformed_user_keys_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        UserKey.from_secret_bytes(data)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        pytest.param(bytes(31), FormatError, "master key has a wrong length", id="short"),
        pytest.param(b"", ArgumentError, "`threshold` must be in 1 … 64", id="empty"),
        pytest.param(scalar(1), ArgumentError, "Received: threshold=0", id="constant"),
        pytest.param(scalar(1) * 66, ArgumentError, "Received: threshold=65", id="66"),
        pytest.param(bytes(64), FormatError, "Master key is not a scalar", id="zeros"),
    ],
)
def test_malformed_master_keys_are_refused(
    data: bytes, error: type[EncryipError], message: str
) -> None:
    with pytest.raises(error, match=message):
        MasterKey.from_secret_bytes(data)


@pytest.mark.parametrize("threshold", [0, 65, -1, 2.0, "4"], ids=repr)
def test_thresholds_out_of_range_are_refused(threshold: int) -> None:
    with pytest.raises(ArgumentError, match=rf"in 1 … 64. Received: threshold={threshold}"):
        MasterKey.generate(threshold)


@pytest.mark.parametrize("z", [0, ORDER, -1], ids=["0", "q", "-1"])
def test_z_out_of_range_is_refused(z: int) -> None:
    with pytest.raises(ArgumentError, match="`z` must be in 1 … q−1"):
        MasterKey([1, 1]).user_key(z)


def test_the_revoked_error_tells_nothing_secret() -> None:
    master = MasterKey.generate(1)
    user = master.issue()
    header, _ = master.encapsulate([user.z])
    with pytest.raises(RevokedKeyError, match="revoked") as caught:
        user.decapsulate(header)
    secret = user.secret_bytes()[32:]
    for form in (secret.hex(), str(int.from_bytes(secret, "big"))):
        assert form not in str(caught.value)


def test_encoded_points_are_those_of_the_polynomial() -> None:
    """A_k = a_k·G, so the public key of 1 + X has the generator twice."""
    first, second = MasterKey([1, 1]).public_key().points
    assert encode_point(first) == encode_point(second)
    assert int(first.x) == 0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296
