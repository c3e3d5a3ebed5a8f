"""Every error that this package raises on purpose.

Catch `EncryipError` for all of them. No message ever contains a passphrase, a
key or a decrypted value; each names the file or field, and the fix.
"""


class EncryipError(Exception):
    """Root of every error raised on purpose by `keras_encryip`."""


class ArgumentError(EncryipError, ValueError):
    """An argument has a wrong type, shape or range."""


class FormatError(EncryipError, ValueError):
    """A file or byte string is malformed, truncated, oversized or of an unknown version."""


class SignatureError(EncryipError):
    """A signature, digest or authentication tag does not match: the data was changed."""


class PassphraseError(EncryipError):
    """The passphrase is wrong or missing, or the sealed body was changed.

    The first and the last cannot be told apart.
    """


class KeyRefusedError(EncryipError):
    """A valid key that may not read this model, or open this bundle. Its children say why."""


class RevokedKeyError(KeyRefusedError):
    """The key was revoked before this codebook was made."""


class ForeignKeyError(KeyRefusedError):
    """The key was issued by another authority than the one that made the codebook."""


class ExpiredKeyError(KeyRefusedError):
    """The key bundle is used outside its `not_before` … `not_after` dates."""


class WrongModelError(KeyRefusedError):
    """The key bundle, codebook or ciphertext belongs to another model."""


class LockedModelError(EncryipError):
    """A protected model was asked to train or evaluate before `unlock(...)`."""


class LedgerError(EncryipError):
    """The authority's file is missing, busy, damaged, or refuses the change."""


class EvidenceError(EncryipError):
    """Evidence against a user is incomplete, contradicts its commitments, or proves too little."""


class ExportError(EncryipError):
    """A model cannot be exported safely, or an exported folder fails verification."""


class ServiceError(EncryipError):
    """A model server or suspicious service cannot be asked, or gives nothing that can be read."""
