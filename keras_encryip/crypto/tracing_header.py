"""Tracing headers: every user opens them to a secret of their own, which the owner can predict.

The owner can also prove what a user's key makes of one, without showing any key. A user
opens a header with S = λ_0·P(z)·R + Σ λ_j·H_j. All of it but V = P(z)·R is public. The
owner, who knows R = ρ_0·G, publishes V = ρ_0·Q with Q = P(z)·G, which follows from the
public key, and proves in zero knowledge that V has the same discrete logarithm to Q as R
has to G.

Source of the proof: Chaum and Pedersen, *Wallet databases with observers*, CRYPTO 1992, made
non-interactive by the heuristic of Fiat and Shamir, CRYPTO 1986.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from Crypto.Hash import SHA512
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
from keras_encryip.crypto.kem import (
    GENERATOR,
    Header,
    PublicKey,
    SharedSecret,
    UserKey,
    choose_nodes,
    header_from_exponents,
    split_bytes,
    user_lambdas,
    weighted_sum,
)
from keras_encryip.crypto.polynomial import (
    ORDER,
    RandomBytes,
    inverses,
    lagrange_at_zero,
    random_scalar,
)
from keras_encryip.crypto.secret import Secret
from keras_encryip.errors import FormatError, RevokedKeyError, SignatureError

OPENING_BYTES: Final = POINT_BYTES + 2 * SCALAR_BYTES
"""V (33) ‖ challenge (32) ‖ response (32)."""


class TracingHeader(Secret):
    """A header that is ill-formed on purpose, and the exponents that made it.

    R = ρ_0·G and H_j = ρ_j·G with independent ρ (*Fake* in Mu et al.). A single user
    cannot tell it from a real one (DDH), yet every user opens it to a secret of their
    own, which the owner can predict.
    """

    __slots__ = ("_exponents", "header")

    def __init__(self, header: Header, exponents: Sequence[int]) -> None:
        self.header = header
        self._exponents = tuple(exponents)

    def _describe(self) -> str:
        return self.header.digest.hex()[:16]

    @classmethod
    def generate(
        cls,
        threshold: int,
        revoked: Iterable[int] = (),
        *,
        random_bytes: RandomBytes = get_random_bytes,
    ) -> "TracingHeader":
        """As `PublicKey.encapsulate`, with independent exponents."""
        nodes = choose_nodes(threshold, revoked, random_bytes)
        exponents = [random_scalar(random_bytes) for _ in range(threshold + 1)]
        return cls(header_from_exponents(nodes, exponents), exponents)

    def secret_bytes(self) -> bytes:
        """ρ_0 ‖ … ‖ ρ_t, 32 bytes each. Secret."""
        return b"".join(encode_scalar(rho) for rho in self._exponents)

    @classmethod
    def from_secret_bytes(cls, header: Header, data: bytes) -> "TracingHeader":
        """Read what `secret_bytes` wrote, and check that it belongs to the header."""
        exponents = [decode_scalar(d, what="Exponent") for d in split_bytes(data, SCALAR_BYTES)]
        if header != header_from_exponents(header.nodes, exponents):
            raise FormatError("The exponents do not belong to this tracing header.")
        return cls(header, exponents)

    def predict(self, key: UserKey) -> SharedSecret:
        """The secret that this user gets, by one fixed-base multiplication.

        Raises:
            RevokedKeyError: z is one of the header's nodes.
        """
        (secret,) = self.predict_many([key])
        if secret is None:
            raise RevokedKeyError("This key was revoked when the header was made.")
        return secret

    def predict_many(self, keys: Sequence[UserKey]) -> list[SharedSecret | None]:
        """The secrets that these users get, `None` for those whom the header shuts out.

        (λ_0·P(z)·ρ_0 + Σ λ_j·ρ_j)·G with λ_0 = Π x_k/(x_k − z) and λ_j = c_j·z/(z − x_j),
        c_j = Π_{l≠j} x_l/(x_l − x_j) the same for all users.
        """
        nodes, (rho_0, *others) = self.header.nodes, self._exponents
        weights = [c * rho for c, rho in zip(lagrange_at_zero(nodes), others, strict=True)]
        inverted = inverses([(x - key.z) % ORDER or 1 for key in keys for x in nodes])
        secrets: list[SharedSecret | None] = []
        for i, key in enumerate(keys):
            if key.z in nodes:
                secrets.append(None)
                continue
            reciprocals = inverted[i * len(nodes) : (i + 1) * len(nodes)]  # 1/(x_j − z)
            lambda_0 = 1
            for x, reciprocal in zip(nodes, reciprocals, strict=True):
                lambda_0 = lambda_0 * x % ORDER * reciprocal % ORDER
            rest = sum(w * r for w, r in zip(weights, reciprocals, strict=True))
            exponent = (lambda_0 * key._value * rho_0 - key.z * rest) % ORDER
            secrets.append(SharedSecret(GENERATOR * exponent, self.header))
        return secrets


def open_header(
    tracing: TracingHeader,
    public_key: PublicKey,
    x: int,
    *,
    random_bytes: RandomBytes = get_random_bytes,
) -> bytes:
    """The owner's opening of one tracing header at x: for a user, or for its first node.

    Returns:
        `OPENING_BYTES` bytes. Those for a user let anybody compute the secret that this
        one user gets from this one header.
    """
    rho = tracing._exponents[0]
    base = public_key.evaluate_point(x)
    nonce = random_scalar(random_bytes)
    opened = base * rho
    challenge = _challenge(tracing.header, x, [base, opened, GENERATOR * nonce, base * nonce])
    response = (nonce + challenge * rho) % ORDER
    return encode_point(opened) + encode_scalar(challenge) + encode_scalar(response)


def verify_opening(header: Header, public_key: PublicKey, z: int, opening: bytes) -> SharedSecret:
    """The secret that the user at z gets from a header, as proved by its owner.

    Raises:
        SignatureError: the proof is wrong.
        FormatError: malformed.
        RevokedKeyError: the header shuts that user out.
    """
    lambdas = user_lambdas(z, header.nodes)
    opened = _verified(header, public_key, z, opening)
    return SharedSecret(weighted_sum(lambdas, (opened, *header.points[1:])), header)


def verify_tracing(header: Header, public_key: PublicKey, opening: bytes) -> None:
    """Check that a header is ill-formed, so that it opens differently for every user.

    Args:
        opening: of the header's first node: V = ρ_0·P(x_1)·G, which equals H_1 in a
            well-formed header.

    Raises:
        SignatureError: the proof is wrong, or the header is well-formed.
    """
    opened = _verified(header, public_key, header.nodes[0], opening)
    if opened == header.points[1]:
        raise SignatureError("The header is not a tracing header: it is well-formed.")


def _verified(header: Header, public_key: PublicKey, x: int, opening: bytes) -> Point:
    """V = ρ_0·P(x)·G, its proof checked."""
    if len(opening) != OPENING_BYTES:
        raise FormatError(f"An opening has {OPENING_BYTES} bytes.")
    opened = decode_point(opening[:POINT_BYTES], what="Opening")
    challenge = decode_scalar(opening[POINT_BYTES:-SCALAR_BYTES], what="Opening")
    response = decode_scalar(opening[-SCALAR_BYTES:], what="Opening")
    base = public_key.evaluate_point(x)
    minus = ORDER - challenge
    commitments = [
        GENERATOR * response + header.points[0] * minus,
        base * response + opened * minus,
    ]
    if any(point.is_point_at_infinity() for point in commitments) or challenge != _challenge(
        header, x, [base, opened, *commitments]
    ):
        raise SignatureError("The opening of a tracing header is not proved.")
    return opened


def _challenge(header: Header, x: int, points: list[Point]) -> int:
    """A nonzero scalar from everything that the proof is about."""
    message = header.digest + encode_scalar(x) + b"".join(encode_point(p) for p in points)
    digest = SHA512.new(b"encryip opening v1\0" + message).digest()
    return int.from_bytes(digest, "big") % (ORDER - 1) + 1
