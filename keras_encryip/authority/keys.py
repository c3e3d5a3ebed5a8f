"""The owner's unsealed secrets."""

import hmac
from typing import Final, Self

from Crypto.Random import get_random_bytes

from keras_encryip.crypto.aead import KEY_BYTES, passphrase_key, seal, unseal
from keras_encryip.crypto.kem import MasterKey, PublicKey
from keras_encryip.crypto.secret import Secret
from keras_encryip.crypto.signing import SEED_BYTES, SigningKey
from keras_encryip.labels.codebook import Codebook

_DOMAIN: Final = b"encryip authority v1\0"


class AuthorityKeys(Secret):
    """What an authority issues, signs and seals with.

    Args:
        secret: data key (32) ‖ signing seed (32) ‖ master key.

    Attributes:
        master: `MasterKey`, the polynomial that users' keys are points of.
        signing_key: `SigningKey` of bundles, codebooks, manifests, events and evidence.
        public_key: `PublicKey` of `master`.
    """

    __slots__ = ("_data_key", "master", "public_key", "signing_key")

    def __init__(self, secret: bytes) -> None:
        self._data_key = secret[:KEY_BYTES]
        self.signing_key = SigningKey(secret[KEY_BYTES : KEY_BYTES + SEED_BYTES])
        self.master = MasterKey.from_secret_bytes(secret[KEY_BYTES + SEED_BYTES :])
        self.public_key: PublicKey = self.master.public_key()

    def _describe(self) -> str:
        return f"public={self.public_key.digest.hex()[:16]}"

    @classmethod
    def generate(cls, threshold: int) -> Self:
        """Draw new secrets for an authority that can revoke `threshold` users."""
        master, signing_key = MasterKey.generate(threshold), SigningKey.generate()
        data_key = get_random_bytes(KEY_BYTES)
        return cls(data_key + signing_key.secret_bytes() + master.secret_bytes())

    @property
    def issuer(self) -> bytes:
        """The Ed25519 public key, 32 bytes."""
        return self.signing_key.public_bytes()

    # --- as a whole, under the owner's passphrase ----------------------------------

    def to_sealed(self, passphrase: str, salt: bytes, scrypt_log2_n: int) -> bytes:
        """All secrets, sealed under a passphrase and bound to the public keys."""
        secret = self._data_key + self.signing_key.secret_bytes() + self.master.secret_bytes()
        context = _DOMAIN + self.public_key.to_bytes() + self.issuer
        return seal(passphrase_key(passphrase, salt, scrypt_log2_n), secret, context)

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

    def sign(self, domain: str, message: bytes) -> bytes:
        """An Ed25519 signature for one domain."""
        return self.signing_key.sign(domain, message)

    def seal(self, secret: bytes, context: str) -> bytes:
        """Encrypt what the ledger keeps, bound to the place where it stands."""
        return seal(self._data_key, secret, context.encode())

    def unseal(self, sealed: bytes, context: str) -> bytes:
        """Decrypt what `seal` made for the same place.

        Raises:
            SignatureError: any byte was changed, or it stood elsewhere.
        """
        return unseal(self._data_key, sealed, context.encode())

    def fingerprint_key(self, model_id: int, recipient: str) -> bytes:
        """The 32 bytes that a recipient's copies of a model are marked with. Secret.

        One per model and user: copies of later versions add no information about it.

        Args:
            recipient: the user's key id.
        """
        message = b"encryip fingerprint v1\0" + model_id.to_bytes(8, "big") + recipient.encode()
        return hmac.digest(self._data_key, message, "sha256")

    def response_key(self, codebook: Codebook) -> bytes:
        """What this codebook's key holders can decrypt: for an encrypted export. Secret."""
        return codebook.response_key(self.master.issue())
