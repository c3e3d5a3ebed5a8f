"""A user's own X25519 key pair, in files that OpenSSL reads and writes (RFC 8410, RFC 5958).

Who sends an owner the public key gets a bundle that only the private key opens
(HPKE, RFC 9180), and shares no passphrase with anybody.
"""

import contextlib
import os
from codecs import BOM_UTF8
from dataclasses import dataclass
from typing import Final

from Crypto.Hash import SHA256
from Crypto.IO import PKCS8
from Crypto.Protocol import HPKE
from Crypto.Protocol.DH import import_x25519_private_key, import_x25519_public_key
from Crypto.PublicKey import ECC
from Crypto.PublicKey.ECC import EccKey

from keras_encryip.crypto.aead import passphrase_bytes
from keras_encryip.crypto.encoding import decode_base64, encode_base64
from keras_encryip.crypto.secret import Secret
from keras_encryip.errors import (
    ArgumentError,
    EncryipError,
    FormatError,
    PassphraseError,
    SignatureError,
    instead_of,
)
from keras_encryip.formats.atomic_files import read_bounded, write_new_file
from keras_encryip.formats.text import without_mark

KEY_BYTES: Final = 32
MAX_PEM_BYTES: Final = 8 << 10

_PUBLIC: Final = "PUBLIC KEY"
_PLAIN: Final = "PRIVATE KEY"
_ENCRYPTED: Final = "ENCRYPTED PRIVATE KEY"
# SubjectPublicKeyInfo (RFC 8410) has one spelling: these bytes, then those of the key.
_PUBLIC_PREFIX: Final = bytes.fromhex("302a300506032b656e032100")
_OID: Final = "1.3.101.110"
_PRIVATE_PREFIX: Final = bytes.fromhex("0420")


@dataclass(frozen=True)
class X25519PublicKey:
    """What a user sends to the owner; no secret.

    Attributes:
        raw: its 32 bytes (RFC 7748).

    Raises:
        FormatError: another length, a second spelling of a key, or a point of small order,
            to which anybody could read what is sealed.

    Example:
    >>> private_key = X25519PrivateKey.generate()
    >>> X25519PublicKey.from_pem(private_key.public_key.to_pem()) == private_key.public_key
    True
    """

    raw: bytes

    def __post_init__(self) -> None:
        good = False
        with contextlib.suppress(ValueError):
            good = import_x25519_public_key(self.raw).export_key(format="raw") == self.raw
        if not good:
            raise FormatError("These bytes are not an X25519 public key that can be used.")

    @property
    def digest(self) -> bytes:
        """SHA-256 of the key's DER form (SubjectPublicKeyInfo), 32 bytes.

        Example:
        >>> len(X25519PrivateKey.generate().public_key.digest)
        32
        """
        return SHA256.new(_PUBLIC_PREFIX + self.raw).digest()

    @property
    def fingerprint(self) -> str:
        """The first half of `digest` in hexadecimal, to be compared by voice: 8 groups of 4.

        Example:
        >>> X25519PublicKey(bytes(range(1, 33))).fingerprint
        'd356 6a54 d29d f004 b7ca a4dd 33c0 4fbe'
        """
        text = self.digest.hex()
        return " ".join(text[at : at + 4] for at in range(0, 32, 4))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "X25519PublicKey":
        """Read a PEM file, e.g. `alice.public.pem`.

        Raises:
            FormatError: as `from_pem`, or the file cannot be read.

        Example:
        >>> public_key = write_key_pair(folder / "a.private.pem", folder / "a.public.pem", "…")
        >>> X25519PublicKey.read(folder / "a.public.pem").fingerprint == public_key.fingerprint
        True
        """
        return cls.from_pem(_read_pem(path, "public key"))

    @classmethod
    def from_pem(cls, data: bytes) -> "X25519PublicKey":
        """Parse one PEM block `PUBLIC KEY`, of at most one key.

        Raises:
            FormatError: no such block, more than one, or a key of another kind.

        Example:
        >>> public_key = X25519PrivateKey.generate().public_key
        >>> X25519PublicKey.from_pem(public_key.to_pem()) == public_key
        True
        """
        der = _block(data, _PUBLIC)
        if der is None:
            raise FormatError(
                f"The public key is not one whole PEM block {_PUBLIC!r}. "
                "Ask its owner for the file that `encryip key new` wrote to be sent."
            )
        if not der.startswith(_PUBLIC_PREFIX):
            raise FormatError("The public key is not for X25519.")
        return cls(der[len(_PUBLIC_PREFIX) :])

    def to_pem(self) -> bytes:
        """One PEM block, ASCII, as OpenSSL writes it.

        Example:
        >>> X25519PrivateKey.generate().public_key.to_pem().splitlines()[0]
        b'-----BEGIN PUBLIC KEY-----'
        """
        text = encode_base64(_PUBLIC_PREFIX + self.raw)
        return f"-----BEGIN {_PUBLIC}-----\n{text}\n-----END {_PUBLIC}-----\n".encode("ascii")

    def seal(self, plaintext: bytes, *, info: bytes, associated_data: bytes) -> tuple[bytes, bytes]:
        """Encrypt to the holder of the private key (HPKE, base mode): nobody is named as sender.

        Args:
            plaintext: any bytes.
            info: what the sealing is for; the receiver must name the same.
            associated_data: authenticated, and not encrypted; the receiver must have the same.

        Returns:
            The encapsulated key (32 bytes), and ciphertext ‖ tag (16 bytes longer).

        Example:
        >>> public_key = X25519PrivateKey.generate().public_key
        >>> encapsulated, sealed = public_key.seal(b"hello", info=b"mail", associated_data=b"")
        >>> len(encapsulated), len(sealed)
        (32, 21)
        """
        key = import_x25519_public_key(self.raw)
        cipher = HPKE.new(receiver_key=key, aead_id=HPKE.AEAD.AES256_GCM, info=info)
        return cipher.enc, cipher.seal(plaintext, associated_data)


class X25519PrivateKey(Secret):
    """A user's own private key. It never leaves the user.

    Attributes:
        public_key: `X25519PublicKey`, to be sent to the owner.

    Example:
    >>> public_key = write_key_pair(folder / "a.private.pem", folder / "a.public.pem", "my own")
    >>> X25519PrivateKey.read(folder / "a.private.pem", "my own").public_key == public_key
    True
    """

    __slots__ = ("_key", "public_key")

    def __init__(self, key: EccKey) -> None:
        self._key = key
        raw = key.public_key().export_key(format="raw")
        assert isinstance(raw, bytes)
        self.public_key = X25519PublicKey(raw)

    def _describe(self) -> str:
        return f"public={self.public_key.fingerprint!r}"

    @classmethod
    def generate(cls) -> "X25519PrivateKey":
        """Draw a new one.

        Example:
        >>> len(X25519PrivateKey.generate().public_key.raw)
        32
        """
        return cls(ECC.generate(curve="Curve25519"))

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], passphrase: str | None = None
    ) -> "X25519PrivateKey":
        """Read a PEM file, e.g. `alice.private.pem`.

        Raises:
            PassphraseError, FormatError, ArgumentError: as `from_pem`.
            FormatError: or the file cannot be read.

        Example:
        >>> public_key = write_key_pair(folder / "a.private.pem", folder / "a.public.pem", "…")
        >>> X25519PrivateKey.read(folder / "a.private.pem", "…").public_key == public_key
        True
        """
        return cls.from_pem(read_private_pem(path), passphrase)

    @classmethod
    def from_pem(cls, data: bytes, passphrase: str | None = None) -> "X25519PrivateKey":
        """Parse one PEM block `ENCRYPTED PRIVATE KEY` or `PRIVATE KEY` (PKCS #8).

        Args:
            data: the file. It is the user's own: the cost of its passphrase is not bounded.
            passphrase: opens an encrypted one; `None` for one that is not.

        Raises:
            PassphraseError: wrong, missing, or not asked for.
            ArgumentError: the passphrase is empty.
            FormatError: no such block, more than one, or a key of another kind.

        Example:
        >>> private_key = X25519PrivateKey.generate()
        >>> same = X25519PrivateKey.from_pem(private_key.to_pem("my own"), "my own")
        >>> same.public_key == private_key.public_key
        True
        """
        encrypted = is_encrypted(data)
        if encrypted is not (passphrase is not None):
            raise PassphraseError(
                "The private key is encrypted: pass its passphrase."
                if encrypted
                else "The private key is not encrypted: pass no passphrase."
            )
        der = _block(data, _ENCRYPTED if encrypted else _PLAIN)
        if der is None:
            raise FormatError(
                f"The private key is not one whole PEM block {_ENCRYPTED!r} or {_PLAIN!r}."
            )
        secret = None if passphrase is None else passphrase_bytes(passphrase)
        refused: EncryipError = FormatError("The private key is not in the form PKCS #8.")
        if encrypted:
            message = "The passphrase does not open the private key, or it was changed."
            refused = PassphraseError(message)
        with instead_of(
            *(ValueError, TypeError, LookupError, ArithmeticError), raises=lambda _: refused
        ):
            kind, inner = PKCS8.unwrap(der, secret)[:2]
        size = len(_PRIVATE_PREFIX) + KEY_BYTES
        if kind != _OID or len(inner) != size or not inner.startswith(_PRIVATE_PREFIX):
            raise FormatError("The private key is not for X25519.")
        return cls(import_x25519_private_key(inner[len(_PRIVATE_PREFIX) :]))

    def to_pem(self, passphrase: str) -> bytes:
        """One PEM block, encrypted (scrypt and AES-256-CBC, PKCS #8). A fifth of a second.

        Raises:
            ArgumentError: the passphrase is empty.

        Example:
        >>> X25519PrivateKey.generate().to_pem("my own").splitlines()[0]
        b'-----BEGIN ENCRYPTED PRIVATE KEY-----'
        """
        # OpenSSL reads neither AES-GCM here nor scrypt above 32 MiB, so p adds the cost.
        text = self._key.export_key(
            format="PEM",
            use_pkcs8=True,
            passphrase=passphrase_bytes(passphrase),
            protection="scryptAndAES256-CBC",
            prot_params={"iteration_count": 1 << 14, "block_size": 8, "parallelization": 5},
        )
        return text.encode("ascii") + b"\n"

    def unseal(
        self, encapsulated: bytes, sealed: bytes, *, info: bytes, associated_data: bytes
    ) -> bytes:
        """Decrypt what `X25519PublicKey.seal` made.

        Args:
            encapsulated: the encapsulated key, 32 bytes.
            sealed: ciphertext ‖ tag.
            info: as it was for `seal`.
            associated_data: as it was for `seal`.

        Returns:
            The plaintext, 16 bytes shorter than `sealed`.

        Raises:
            SignatureError: sealed to another key, or any byte was changed. One message for all.

        Example:
        >>> private_key = X25519PrivateKey.generate()
        >>> made = private_key.public_key.seal(b"hello", info=b"mail", associated_data=b"")
        >>> private_key.unseal(*made, info=b"mail", associated_data=b"")
        b'hello'
        """
        message = "The sealed data cannot be opened with this key, or was changed."
        with instead_of(ValueError, raises=lambda _: SignatureError(message)):
            cipher = HPKE.new(
                receiver_key=self._key, aead_id=HPKE.AEAD.AES256_GCM, enc=encapsulated, info=info
            )
            return cipher.unseal(sealed, associated_data)


def write_key_pair(
    private: str | os.PathLike[str], public: str | os.PathLike[str], passphrase: str
) -> X25519PublicKey:
    """Draw a key pair and write it, never over an existing file.

    Args:
        private: new file, mode 0600: keep it.
        public: new file: send it to the owner.
        passphrase: encrypts the private key; nobody else needs it.

    Returns:
        The public key. Tell the owner its `fingerprint` by another way, e.g. by telephone.

    Raises:
        ArgumentError: a file exists or cannot be written, or the passphrase is empty.
    """
    if os.path.lexists(public):
        raise ArgumentError(f"{os.fspath(public)!r} exists already, and is never overwritten.")
    key = X25519PrivateKey.generate()
    write_new_file(private, key.to_pem(passphrase), mode=0o600)
    try:
        write_new_file(public, key.public_key.to_pem())
    except BaseException:
        os.unlink(private)  # nobody has seen its other half
        raise
    return key.public_key


def read_private_pem(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a private key's file, at most 8 KiB."""
    return _read_pem(path, "private key")


def _read_pem(path: str | os.PathLike[str], what: str) -> bytes:
    """A file that went through mail and editors: the byte order mark of one goes."""
    data = read_bounded(path, what=what, max_bytes=MAX_PEM_BYTES)
    return without_mark(data, what=f"{what} {os.fspath(path)!r}")


def is_encrypted(data: bytes) -> bool:
    """Whether a private key's PEM file needs a passphrase."""
    start = data.removeprefix(BOM_UTF8).lstrip()
    return start.startswith(f"-----BEGIN {_ENCRYPTED}-----".encode())


def _block(data: bytes, label: str) -> bytes | None:
    """The DER inside of one PEM block with nothing but white space around it.

    A byte order mark before it is an editor's, and passed over.
    """
    text = " ".join(data.removeprefix(BOM_UTF8).decode("ascii", "replace").split())
    begin, end = f"-----BEGIN {label}----- ", f" -----END {label}-----"
    if not (text.startswith(begin) and text.endswith(end)):
        return None
    with contextlib.suppress(FormatError):
        return decode_base64(text[len(begin) : -len(end)].replace(" ", ""), what=label)
    return None
