"""Show what a user's key makes of a tracing header, without showing any key.

A user opens a header with S = λ_0·P(z)·R + Σ λ_j·H_j. All of it but V = P(z)·R
is public. The owner, who knows R = ρ_0·G, publishes V = ρ_0·Q with Q = P(z)·G,
which follows from the public key, and proves in zero knowledge that V has the
same discrete logarithm to Q as R has to G.

Source: Chaum and Pedersen, *Wallet databases with observers*, CRYPTO 1992, made
non-interactive by the heuristic of Fiat and Shamir, CRYPTO 1986.
"""

from typing import Final

from Crypto.Hash import SHA512
from Crypto.Random import get_random_bytes

from keras_encryip.crypto.encoding import POINT_BYTES, SCALAR_BYTES, Point, decode_point, decode_scalar, encode_point, encode_scalar
from keras_encryip.crypto.polynomial import ORDER, RandomBytes, lagrange_at_zero, random_scalar
from keras_encryip.crypto.kem import GENERATOR, Header, PublicKey, SharedSecret
from keras_encryip.crypto.tracing_header import TracingHeader
from keras_encryip.errors import FormatError, RevokedKeyError, SignatureError

OPENING_BYTES: Final = POINT_BYTES + 2 * SCALAR_BYTES
"""V (33) ‖ challenge (32) ‖ response (32)."""


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
    if z in header.nodes:
        raise RevokedKeyError("This key was revoked when the header was made.")
    opened = _verified(header, public_key, z, opening)
    lambdas = lagrange_at_zero((z, *header.nodes))
    secret = opened * lambdas[0]
    for coefficient, point in zip(lambdas[1:], header.points[1:], strict=True):
        secret += point * coefficient
    return SharedSecret(secret, header)


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
