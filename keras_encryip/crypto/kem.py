"""Trace-and-revoke key encapsulation over NIST P-256.

A user's key is one point (z, P(z)) on the owner's secret polynomial P of degree
t. Whoever encapsulates publishes t further points of r·P in the exponent; a
user's own point is the missing one, and interpolation at 0 gives the secret.

Sources: Naor and Pinkas, *Efficient trace and revoke schemes*, FC 2000; Tzeng
and Tzeng, *A public-key traitor tracing scheme with revocation*, PKC 2001;
Dodis and Fazio, PKC 2003. With t = 1 this is CS-lite (Cramer and
Shoup), the scheme of EncryIP (Mu et al., AAAI 2024).

Security: secrets of unrevoked users are hidden from outsiders and from up to t
revoked users together under DDH on P-256. Not constant-time, not post-quantum.
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from Crypto.Hash import SHA256
from Crypto.Random import get_random_bytes

from keras_encryip.crypto.encoding import (
    POINT_BYTES,
    SCALAR_BYTES,
    Point,
    decode_point,
    decode_scalar,
    encode_point,
    encode_scalar,
)
from keras_encryip.crypto.polynomial import (
    ORDER,
    RandomBytes,
    evaluate,
    lagrange_at_zero,
    random_scalar,
)
from keras_encryip.crypto.secret import Secret
from keras_encryip.errors import ArgumentError, FormatError, RevokedKeyError

MAX_THRESHOLD: Final = 64

GENERATOR: Final = Point(
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
    "p256",
)


class SharedSecret(Secret):
    """The secret S that a header carries, as keys for named purposes."""

    __slots__ = ("_point", "_salt")

    def __init__(self, point: Point, header: "Header") -> None:
        if point.is_point_at_infinity():
            raise FormatError("The header carries no secret: it opens to the point at infinity.")
        self._point = encode_point(point)
        self._salt = header.digest

    def derive(self, purpose: str) -> bytes:
        """32 bytes of HKDF-SHA256 (RFC 5869), which are one round of HMAC.

        Input is the compressed S, salt the header digest, info `purpose`.
        """
        extracted = hmac.digest(self._salt, self._point, "sha256")
        return hmac.digest(extracted, purpose.encode("ascii") + b"\1", "sha256")


@dataclass(frozen=True)
class Header:
    """A KEM ciphertext: nodes x_1 < … < x_t, R, and H_1 … H_t. Public.

    Bytes: t (1) ‖ x_1 … x_t (32 each, big-endian) ‖ R (33) ‖ H_1 … H_t (33 each).
    """

    nodes: tuple[int, ...]
    encoded_points: tuple[bytes, ...]

    @property
    def threshold(self) -> int:
        return len(self.nodes)

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """(R, H_1, …, H_t), decoded and checked."""
        return tuple(decode_point(p, what="Header point") for p in self.encoded_points)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over a domain tag and the bytes: the salt of every derived key."""
        return SHA256.new(b"encryip header v1\0" + self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        nodes = b"".join(encode_scalar(x) for x in self.nodes)
        return bytes([self.threshold]) + nodes + b"".join(self.encoded_points)

    @classmethod
    def size(cls, threshold: int) -> int:
        """Length of the encoding in bytes."""
        return 1 + threshold * SCALAR_BYTES + (threshold + 1) * POINT_BYTES

    @classmethod
    def from_bytes(cls, data: bytes) -> "Header":
        """Read and check a header; every point is decoded, so a bad one fails here."""
        if not data or not 1 <= data[0] <= MAX_THRESHOLD or len(data) != cls.size(data[0]):
            raise FormatError("A header has a wrong length or threshold.")
        threshold = data[0]
        nodes, points = data[1 : 1 + threshold * SCALAR_BYTES], data[1 + threshold * SCALAR_BYTES :]
        header = cls(
            tuple(decode_scalar(n, what="Header node") for n in split_bytes(nodes, SCALAR_BYTES)),
            tuple(split_bytes(points, POINT_BYTES)),
        )
        if any(a >= b for a, b in zip(header.nodes, header.nodes[1:], strict=False)):
            raise FormatError("Header nodes are not strictly increasing.")
        header.points  # noqa: B018  decodes and checks
        return header


@dataclass(frozen=True)
class PublicKey:
    """A_k = a_k·G for k = 0 … t. Anyone can encapsulate with it."""

    encoded_points: tuple[bytes, ...]

    @property
    def threshold(self) -> int:
        return len(self.encoded_points) - 1

    @cached_property
    def points(self) -> tuple[Point, ...]:
        return tuple(decode_point(p, what="Public key point") for p in self.encoded_points)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over a domain tag and the bytes: names the authority in files."""
        return SHA256.new(b"encryip public key v1\0" + self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        return b"".join(self.encoded_points)

    @classmethod
    def from_bytes(cls, data: bytes) -> "PublicKey":
        if len(data) % POINT_BYTES or not 2 <= len(data) // POINT_BYTES <= MAX_THRESHOLD + 1:
            raise FormatError(f"A public key has a wrong length: {len(data)} bytes.")
        key = cls(tuple(split_bytes(data, POINT_BYTES)))
        key.points  # noqa: B018  decodes and checks
        return key

    def encapsulate(
        self, revoked: Iterable[int] = (), *, random_bytes: RandomBytes = get_random_bytes
    ) -> tuple[Header, SharedSecret]:
        """A fresh header and its secret, from public values alone: O(t²) multiplications.

        Args:
            revoked: the z of at most t users who must not open the header.
            random_bytes: for test vectors only.
        """
        nodes = choose_nodes(self.threshold, revoked, random_bytes)
        r = random_scalar(random_bytes)
        points = [GENERATOR * r] + [self.evaluate_point(x) * r for x in nodes]
        header = Header(nodes, tuple(encode_point(p) for p in points))
        return header, SharedSecret(self.points[0] * r, header)

    def evaluate_point(self, x: int) -> Point:
        """P(x)·G = Σ x^k·A_k by Horner's rule in the exponent."""
        value = self.points[-1].copy()
        for point in reversed(self.points[:-1]):
            value = value * x + point
        return value


class UserKey(Secret):
    """One point (z, P(z)) of the owner's polynomial."""

    __slots__ = ("_value", "z")

    def __init__(self, z: int, value: int) -> None:
        self.z = z
        self._value = value

    def _describe(self) -> str:
        return self.key_id

    @property
    def key_id(self) -> str:
        """16 hexadecimal digits that name the key and tell nothing about P(z)."""
        return key_id(self.z)

    def secret_bytes(self) -> bytes:
        """z ‖ P(z), 64 bytes. Secret."""
        return encode_scalar(self.z) + encode_scalar(self._value)

    @classmethod
    def from_secret_bytes(cls, data: bytes) -> "UserKey":
        if len(data) != 2 * SCALAR_BYTES:
            raise FormatError(f"A user key has {2 * SCALAR_BYTES} bytes.")
        return cls(
            decode_scalar(data[:SCALAR_BYTES], what="User key z"),
            decode_scalar(data[SCALAR_BYTES:], what="User key value"),
        )

    def secret_weights(self, nodes: tuple[int, ...]) -> list[int]:
        """(λ_0·P(z), λ_1 … λ_t): what this key weighs a header's points by. Secret.

        Raises:
            RevokedKeyError: z is one of the nodes.
        """
        if self.z in nodes:
            raise RevokedKeyError("This key was revoked when the header was made.")
        lambda_0, *others = lagrange_at_zero((self.z, *nodes))
        return [lambda_0 * self._value % ORDER, *others]

    def decapsulate(self, header: Header) -> SharedSecret:
        """S = (λ_0·P(z))·R + Σ λ_j·H_j, Lagrange coefficients at 0 for {z, x_1 … x_t}.

        Raises:
            RevokedKeyError: z is one of the header's nodes.
        """
        weights = self.secret_weights(header.nodes)
        return SharedSecret(weighted_sum(weights, header.points), header)


class MasterKey(Secret):
    """The owner's polynomial P(X) = a_0 + … + a_t·X^t over Z_q."""

    __slots__ = ("_coefficients",)

    def __init__(self, coefficients: Sequence[int]) -> None:
        if not 1 <= len(coefficients) - 1 <= MAX_THRESHOLD:
            raise ArgumentError(
                f"`threshold` must be in 1 … {MAX_THRESHOLD}. "
                f"Received: threshold={len(coefficients) - 1}"
            )
        self._coefficients = tuple(coefficients)

    @classmethod
    def generate(
        cls, threshold: int, *, random_bytes: RandomBytes = get_random_bytes
    ) -> "MasterKey":
        """All t + 1 coefficients from the CSPRNG."""
        if not isinstance(threshold, int) or not 1 <= threshold <= MAX_THRESHOLD:
            raise ArgumentError(
                f"`threshold` must be an integer in 1 … {MAX_THRESHOLD}. "
                f"Received: threshold={threshold}"
            )
        return cls([random_scalar(random_bytes) for _ in range(threshold + 1)])

    def _describe(self) -> str:
        return f"threshold={self.threshold}"

    @property
    def threshold(self) -> int:
        return len(self._coefficients) - 1

    def secret_bytes(self) -> bytes:
        """a_0 ‖ … ‖ a_t, 32 bytes each. Secret."""
        return b"".join(encode_scalar(a) for a in self._coefficients)

    @classmethod
    def from_secret_bytes(cls, data: bytes) -> "MasterKey":
        if len(data) % SCALAR_BYTES:
            raise FormatError("A master key has a wrong length.")
        return cls([decode_scalar(a, what="Master key") for a in split_bytes(data, SCALAR_BYTES)])

    def public_key(self) -> PublicKey:
        return PublicKey(tuple(encode_point(GENERATOR * a) for a in self._coefficients))

    def user_key(self, z: int) -> UserKey:
        """The key at z: one polynomial evaluation."""
        if not 0 < z < ORDER:
            raise ArgumentError("`z` must be in 1 … q−1.")
        return UserKey(z, evaluate(self._coefficients, z))

    def issue(self, *, random_bytes: RandomBytes = get_random_bytes) -> UserKey:
        """A key at a fresh random z."""
        return self.user_key(random_scalar(random_bytes))

    def encapsulate(
        self, revoked: Iterable[int] = (), *, random_bytes: RandomBytes = get_random_bytes
    ) -> tuple[Header, SharedSecret]:
        """As `PublicKey.encapsulate`, in t + 2 fixed-base multiplications."""
        nodes = choose_nodes(self.threshold, revoked, random_bytes)
        r = random_scalar(random_bytes)
        exponents = [r] + [r * evaluate(self._coefficients, x) % ORDER for x in nodes]
        header = Header(nodes, tuple(encode_point(GENERATOR * e) for e in exponents))
        return header, SharedSecret(GENERATOR * (r * self._coefficients[0] % ORDER), header)

    def decapsulate(self, header: Header) -> SharedSecret:
        """The secret of a header that `encapsulate` made: S = a_0·R."""
        return SharedSecret(header.points[0] * self._coefficients[0], header)


def key_id(z: int) -> str:
    """The public name of the key at z."""
    return encoded_key_id(encode_scalar(z))


def encoded_key_id(z: bytes) -> str:
    """`key_id` of 32 bytes."""
    return hashlib.sha256(b"encryip key id v1\0" + z).hexdigest()[:16]


def weighted_sum(weights: Sequence[int], points: Sequence[Point]) -> Point:
    """Σ w_j·P_j."""
    total = points[0] * weights[0]
    for weight, point in zip(weights[1:], points[1:], strict=True):
        total += point * weight
    return total


def choose_nodes(
    threshold: int, revoked: Iterable[int], random_bytes: RandomBytes
) -> tuple[int, ...]:
    """The revoked users' z, filled up to t with fresh random values, in increasing order."""
    nodes = set(revoked)
    if not all(isinstance(z, int) and 0 < z < ORDER for z in nodes):
        raise ArgumentError("`revoked` must hold the `z` of user keys, integers in 1 … q−1.")
    if len(nodes) > threshold:
        raise ArgumentError(
            f"At most threshold={threshold} users can be revoked at a time. "
            f"Received: {len(nodes)} revoked users"
        )
    while len(nodes) < threshold:
        nodes.add(random_scalar(random_bytes))
    return tuple(sorted(nodes))


def split_bytes(data: bytes, size: int) -> list[bytes]:
    """The parts of `size` bytes that follow each other."""
    return [data[i : i + size] for i in range(0, len(data), size)]
