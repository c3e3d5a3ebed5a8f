"""Openings: what one user gets from a tracing header, proved without any key."""

import pytest

from keras_encryip.crypto.encoding import encode_point
from keras_encryip.crypto.kem import GENERATOR, Header, MasterKey
from keras_encryip.crypto.polynomial import ORDER
from keras_encryip.crypto.tracing_header import (
    OPENING_BYTES,
    TracingHeader,
    open_header,
    verify_opening,
    verify_tracing,
)
from keras_encryip.errors import EncryipError, FormatError, RevokedKeyError, SignatureError


@pytest.mark.parametrize("threshold", [1, 4, 9])
def test_an_opening_gives_the_users_own_secret(threshold: int) -> None:
    master = MasterKey.generate(threshold)
    key, tracing = master.issue(), TracingHeader.generate(threshold)
    opening = open_header(tracing, master.public_key(), key.z)
    assert len(opening) == OPENING_BYTES
    secret = verify_opening(tracing.header, master.public_key(), key.z, opening)
    assert secret.derive("x") == key.decapsulate(tracing.header).derive("x")


@pytest.fixture(scope="module")
def proved() -> tuple[MasterKey, int, TracingHeader, bytes]:
    master = MasterKey.generate(2)
    z, tracing = master.issue().z, TracingHeader.generate(2)
    return master, z, tracing, open_header(tracing, master.public_key(), z)


@pytest.mark.parametrize("byte", range(0, OPENING_BYTES, 3))
def test_a_changed_opening_is_refused(
    proved: tuple[MasterKey, int, TracingHeader, bytes], byte: int
) -> None:
    master, z, tracing, opening = proved
    changed = bytearray(opening)
    changed[byte] ^= 1
    with pytest.raises((SignatureError, FormatError), match=r"not proved|Opening"):
        verify_opening(tracing.header, master.public_key(), z, bytes(changed))


def test_an_opening_holds_for_one_user_one_header_and_one_public_key(
    proved: tuple[MasterKey, int, TracingHeader, bytes],
) -> None:
    master, z, tracing, opening = proved
    public = master.public_key()
    for header, key, user in (
        (tracing.header, public, master.issue().z),
        (TracingHeader.generate(2).header, public, z),
        (tracing.header, MasterKey.generate(2).public_key(), z),
    ):
        with pytest.raises(SignatureError, match="not proved"):
            verify_opening(header, key, user, opening)


def test_an_owner_cannot_open_a_header_to_another_secret(
    proved: tuple[MasterKey, int, TracingHeader, bytes],
) -> None:
    """The strongest forger knows all secrets; V = P(z)·R is the only point that passes."""
    master, z, tracing, opening = proved
    for scalar in (1, 2, ORDER - 1):
        forged = encode_point(GENERATOR * scalar) + opening[33:]
        with pytest.raises(EncryipError):
            verify_opening(tracing.header, master.public_key(), z, forged)
    lying = TracingHeader(tracing.header, [7, *tracing._exponents[1:]])
    with pytest.raises(SignatureError, match="not proved"):
        verify_opening(
            tracing.header, master.public_key(), z, open_header(lying, master.public_key(), z)
        )


def test_a_revoked_user_has_no_opening() -> None:
    master = MasterKey.generate(2)
    key = master.issue()
    tracing = TracingHeader.generate(2, [key.z])
    opening = open_header(tracing, master.public_key(), key.z)
    with pytest.raises(RevokedKeyError, match="revoked"):
        verify_opening(tracing.header, master.public_key(), key.z, opening)


@pytest.mark.parametrize("length", [0, 32, OPENING_BYTES - 1, OPENING_BYTES + 1])
def test_an_opening_of_another_length_is_refused(
    proved: tuple[MasterKey, int, TracingHeader, bytes], length: int
) -> None:
    master, z, tracing, opening = proved
    with pytest.raises(FormatError, match="97 bytes"):
        verify_opening(tracing.header, master.public_key(), z, (opening * 2)[:length])


def test_a_tracing_header_is_shown_to_be_one() -> None:
    master = MasterKey.generate(3)
    public = master.public_key()
    tracing = TracingHeader.generate(3)
    node = tracing.header.nodes[0]
    verify_tracing(tracing.header, public, open_header(tracing, public, node))
    with pytest.raises(SignatureError, match="not proved"):
        verify_tracing(tracing.header, public, open_header(tracing, public, master.issue().z))


def test_a_real_header_cannot_pass_for_a_tracing_header() -> None:
    """An owner who could show a real block as a tracing block would frame everybody."""
    master = MasterKey.generate(3)
    public = master.public_key()
    nodes = tuple(sorted(master.issue().z for _ in range(3)))
    r = 12345
    exponents = [r, *(r * master.user_key(x)._value % ORDER for x in nodes)]
    header = Header(nodes, tuple(encode_point(GENERATOR * e) for e in exponents))
    real = TracingHeader.from_secret_bytes(
        header, b"".join(e.to_bytes(32, "big") for e in exponents)
    )
    with pytest.raises(SignatureError, match="well-formed"):
        verify_tracing(header, public, open_header(real, public, nodes[0]))
