"""The owner's unsealed secrets."""

import hmac
from collections.abc import Collection
from typing import Final, Self

from Crypto.Random import get_random_bytes

from keras_encryip.crypto.aead import KEY_BYTES, passphrase_key, seal, unseal
from keras_encryip.crypto.kem import MasterKey, PublicKey
from keras_encryip.crypto.secret import Secret
from keras_encryip.crypto.signing import SEED_BYTES, SigningKey
from keras_encryip.crypto.slots import SEED_BYTES as SLOT_SEED_BYTES
from keras_encryip.crypto.slots import SlotSecrets, check_slots
from keras_encryip.formats.bundle_keys import BundleKeys
from keras_encryip.labels.codebook import Codebook

_DOMAIN: Final = b"encryip authority v2\0"
_SLOTS_AT: Final = KEY_BYTES + SEED_BYTES
_COUNT_AT: Final = _SLOTS_AT + SLOT_SEED_BYTES
_POLYNOMIALS_AT: Final = _COUNT_AT + 2


class AuthorityKeys(Secret):
    """What an authority issues, signs and seals with.

    Args:
        secret: data key (32) ‖ signing seed (32) ‖ slot seed (32) ‖ number of slots M (2,
            big-endian) ‖ reading polynomial ‖ running polynomial, 32·(t + 1) each.

    Attributes:
        read_master: `MasterKey`, the polynomial that readers' keys are points of.
        run_master: `MasterKey`, the polynomial that hosts' keys are points of.
        slots: `SlotSecrets`, from which readers' slot keys and codewords follow.
        signing_key: `SigningKey` of bundles, codebooks, manifests, events and evidence.
        public_key: `PublicKey` of `read_master`; its digest names the authority in files.
    """

    __slots__ = (
        "_secret",
        "public_key",
        "read_master",
        "run_master",
        "signing_key",
        "slots",
    )

    def __init__(self, secret: bytes) -> None:
        polynomials = secret[_POLYNOMIALS_AT:]
        half = len(polynomials) // 2
        count = int.from_bytes(secret[_COUNT_AT:_POLYNOMIALS_AT], "big")
        self._secret = secret
        self.signing_key = SigningKey(secret[KEY_BYTES:_SLOTS_AT])
        self.slots = SlotSecrets(secret[_SLOTS_AT:_COUNT_AT], count)
        self.read_master = MasterKey.from_secret_bytes(polynomials[:half])
        self.run_master = MasterKey.from_secret_bytes(polynomials[half:])
        self.public_key: PublicKey = self.read_master.public_key()

    def _describe(self) -> str:
        return f"public={self.public_key.digest.hex()[:16]}"

    @classmethod
    def generate(cls, threshold: int, slots: int) -> Self:
        """Draw new secrets for an authority with M slots that can revoke `threshold` users."""
        check_slots(slots)
        masters = [MasterKey.generate(threshold).secret_bytes() for _ in range(2)]
        seeds = get_random_bytes(KEY_BYTES + SEED_BYTES + SLOT_SEED_BYTES)
        return cls(seeds + slots.to_bytes(2, "big") + b"".join(masters))

    @property
    def threshold(self) -> int:
        """t, of both polynomials."""
        return self.read_master.threshold

    @property
    def issuer(self) -> bytes:
        """The Ed25519 public key, 32 bytes."""
        return self.signing_key.public_bytes()

    # --- as a whole, under the owner's passphrase ----------------------------------

    def to_sealed(self, passphrase: str, salt: bytes, scrypt_log2_n: int) -> bytes:
        """All secrets, sealed under a passphrase and bound to the public keys."""
        context = _DOMAIN + self.public_key.to_bytes() + self.issuer
        return seal(passphrase_key(passphrase, salt, scrypt_log2_n), self._secret, context)

    @classmethod
    def from_sealed(
        cls,
        sealed: bytes,
        passphrase: str,
        salt: bytes,
        scrypt_log2_n: int,
        *,
        public_key: bytes,
        issuer: bytes,
    ) -> Self:
        """Read what `to_sealed` made.

        Raises:
            SignatureError: wrong passphrase, or any byte was changed.
        """
        key = passphrase_key(passphrase, salt, scrypt_log2_n)
        return cls(unseal(key, sealed, _DOMAIN + public_key + issuer))

    # --- use -----------------------------------------------------------------------

    def user_keys(self, z: int, roles: Collection[str]) -> BundleKeys:
        """What the user at z gets to have these roles: points, and slot keys to read with."""
        read = self.read_master.user_key(z) if "read" in roles else None
        run = self.run_master.user_key(z) if "run" in roles else None
        slots = None if read is None else self.slots.of_user(read.key_id)
        return BundleKeys(z, read=read, run=run, slots=slots)

    def sign(self, domain: str, message: bytes) -> bytes:
        """An Ed25519 signature for one domain."""
        return self.signing_key.sign(domain, message)

    def seal(self, secret: bytes, context: str) -> bytes:
        """Encrypt what the ledger keeps, bound to the place where it stands."""
        return seal(self._secret[:KEY_BYTES], secret, context.encode())

    def unseal(self, sealed: bytes, context: str) -> bytes:
        """Decrypt what `seal` made for the same place.

        Raises:
            SignatureError: any byte was changed, or it stood elsewhere.
        """
        return unseal(self._secret[:KEY_BYTES], sealed, context.encode())

    def fingerprint_key(self, model_id: int, recipient: str) -> bytes:
        """The 32 bytes that a recipient's copies of a model are marked with. Secret.

        One per model and user: copies of later versions add no information about it.

        Args:
            recipient: the user's key id.
        """
        message = b"encryip fingerprint v1\0" + model_id.to_bytes(8, "big") + recipient.encode()
        return hmac.digest(self._secret[:KEY_BYTES], message, "sha256")

    def response_key(self, codebook: Codebook) -> bytes:
        """What this codebook's key holders can decrypt: for an encrypted export. Secret."""
        return codebook.response_key(self.read_master)
