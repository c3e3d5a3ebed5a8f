"""Every error that this package raises on purpose.

Catch `EncryipError` for all of them. No message ever contains a passphrase, a
key or a decrypted value; each names the file or field, and the fix.
"""

import unicodedata
from collections.abc import Callable
from typing import Any, Final

MAX_MESSAGE: Final = 8192


class EncryipError(Exception):
    """Root of every error raised on purpose by `keras_encryip`.

    Its text is one line that a terminal or log shows as it is, whatever a file had in its names.

    Example:
    >>> from keras_encryip.client import Decoder
    >>> try:
    ...     decoder = Decoder.open(folder / "digits" / "1", folder / "alice.keybundle", "…")
    ... except EncryipError as error:
    ...     print(error)
    The passphrase does not open key bundle ... (subject 'alice'), or its body was changed.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), MAX_MESSAGE)


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


class BackendError(EncryipError, ImportError):
    """Keras runs on another backend than TensorFlow, on which no model can be protected."""


class MissingExtraError(EncryipError, ModuleNotFoundError):
    """A package is not installed that an extra of this one brings, such as `[owner]`."""


class LedgerError(EncryipError):
    """The authority's file is missing, busy, damaged, or refuses the change."""


class EvidenceError(EncryipError):
    """Evidence against a user is incomplete, contradicts its commitments, or proves too little."""


class ExportError(EncryipError):
    """A model cannot be exported safely, or an exported folder fails verification."""


class ServiceError(EncryipError):
    """A model server or suspicious service cannot be asked, or gives nothing that can be read."""


DAMAGED: Final = (Exception,)
"""What readers of arrays and archives raise on damaged files: no list of it was ever whole."""


class instead_of:
    """Raise an error of ours instead of foreign ones, which leave no trace on it.

    The words and locals of a foreign exception may hold a secret or a file's content, and
    `raise … from None` would keep it as `__context__`. Errors of ours pass, unless one of theirs is
    named itself: many are a `ValueError`, too.

    Args:
        caught: the exceptions to replace.
        raises: makes the error from the exception; `reason` gives its words.

    Example:
    >>> with instead_of(KeyError, raises=lambda error: FormatError(f"No field {reason(error)}.")):
    ...     {}["name"]
    Traceback (most recent call last):
    keras_encryip.errors.FormatError: No field 'name'.
    """

    def __init__(self, *caught: type[BaseException], raises: Callable[[Any], EncryipError]) -> None:
        self._caught = caught
        self._raises = raises

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        kinds = self._caught
        if isinstance(error, EncryipError):
            kinds = tuple(kind for kind in kinds if issubclass(kind, EncryipError))
        if not isinstance(error, kinds):
            return
        replacement = self._raises(error)
        del kind, error, traceback  # a traceback shows locals to some tools
        try:
            raise replacement
        except EncryipError:
            replacement.__context__ = None  # only now: raising has set it
            raise
        finally:
            del replacement  # or its traceback would hold itself until garbage collection


class needing(instead_of):
    """Name the extra that brings what cannot be imported. A module of ours is a fault of ours.

    Args:
        extra: one or several of pyproject.toml's, such as `"owner,plots"`.

    Example:
    >>> with needing("plots"):
    ...     import no_such_package
    Traceback (most recent call last):
    keras_encryip.errors.MissingExtraError: The package 'no_such_package' is not installed. \
Install it with: pip install "keras_encryip[plots]"
    """

    def __init__(self, extra: str) -> None:
        super().__init__(ModuleNotFoundError, raises=self._missing)
        self._extra = extra

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if _package(error) != __package__:
            super().__exit__(kind, error, traceback)

    def _missing(self, error: ModuleNotFoundError) -> MissingExtraError:
        return MissingExtraError(
            f"The package {_package(error)!r} is not installed. "
            f'Install it with: pip install "keras_encryip[{self._extra}]"'
        )


def _package(error: BaseException | None) -> str:
    return str(getattr(error, "name", "")).partition(".")[0]


def reason(error: BaseException) -> str:
    """The operating system's words for a failure, else the exception's own, else its name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def printable(text: str, length: int | None = None) -> str:
    """One line of at most `length` characters, none of which can play tricks on a terminal.

    Line breaks, control and format characters are escaped as in Python; any space is a plain one.

    >>> print(printable("cat\\n\\x1b[2J"))
    cat\\n\\x1b[2J
    """
    shown = "".join(map(_shown, text if length is None else text[: length + 1]))
    return shown if length is None or len(shown) <= length else shown[: length - 1] + "…"


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    return character.encode("unicode_escape").decode("ascii")
