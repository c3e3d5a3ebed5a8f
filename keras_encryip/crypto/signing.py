"""Ed25519 signatures (RFC 8032) over domain-separated digests."""

from Crypto.Hash import SHA512
from Crypto.PublicKey import ECC
from Crypto.Random import get_random_bytes
from Crypto.Signature import eddsa

from keras_encryip.crypto.polynomial import RandomBytes
from keras_encryip.crypto.secret import Secret
from keras_encryip.errors import FormatError, SignatureError, instead_of

SEED_BYTES = 32
PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64


class SigningKey(Secret):
    """The authority's signing key."""

    __slots__ = ("_key", "_seed")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise FormatError(f"A signing seed has {SEED_BYTES} bytes.")
        self._seed = seed
        self._key = ECC.construct(curve="Ed25519", seed=seed)

    @classmethod
    def generate(cls, *, random_bytes: RandomBytes = get_random_bytes) -> "SigningKey":
        return cls(random_bytes(SEED_BYTES))

    def _describe(self) -> str:
        return f"public={self.public_bytes().hex()[:16]}"

    def secret_bytes(self) -> bytes:
        """The 32-byte seed. Secret."""
        return self._seed

    def public_bytes(self) -> bytes:
        """The 32-byte public key."""
        raw = self._key.public_key().export_key(format="raw")
        assert isinstance(raw, bytes)
        return raw

    def sign(self, domain: str, message: bytes) -> bytes:
        """Sign `message` for one use only; returns 64 bytes."""
        return eddsa.new(self._key, "rfc8032").sign(_digest(domain, message))


def verify(public: bytes, domain: str, message: bytes, signature: bytes, *, what: str) -> None:
    """Check a signature made by `SigningKey.sign` for the same domain.

    Raises:
        SignatureError: the signature does not match; `what` names the object.
    """
    problem = f"The signature of the {what} is wrong: it was changed, or is forged."
    with instead_of(ValueError, raises=lambda _: SignatureError(problem)):
        key = eddsa.import_public_key(public)
        eddsa.new(key, "rfc8032").verify(_digest(domain, message), signature)


def _digest(domain: str, message: bytes) -> bytes:
    return b"encryip " + domain.encode("ascii") + b"\0" + SHA512.new(message).digest()
