"""Text that people wrote: files of any editor, names, file names; and how a terminal shows it."""

import codecs
import re
import unicodedata
from typing import TYPE_CHECKING, Any, Final

from keras_encryip.errors import ArgumentError, FormatError, instead_of, printable

if TYPE_CHECKING:  # not at the import of the light client
    from rich.text import Text

MAX_NAME: Final = 256

_OTHER_MARKS: Final = {  # in this order: UTF-32's first mark begins with one of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

_ODD: Final = frozenset('/\\:*?"<>|')
"""Characters that mean something in a path on some system."""

_HIDDEN: Final = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Categories of characters that nobody sees, or that make others look like something else."""

_DEVICE: Final = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d¹²³]) *(\..*)?", re.IGNORECASE
)
"""Names that are no files on Windows."""


def without_mark(data: bytes, *, what: str) -> bytes:
    """The bytes of a text file without the byte order mark that some editors put before UTF-8.

    Args:
        data: the file, or its beginning.
        what: what it is, for the error.

    Raises:
        FormatError: it has the mark of another encoding.
    """
    for mark, encoding in _OTHER_MARKS.items():
        if data.startswith(mark):
            raise FormatError(f"The {what} is {encoding} text: save it as UTF-8.")
    return data.removeprefix(codecs.BOM_UTF8)


def read_lines(data: bytes, *, what: str) -> list[str]:
    """The lines of a text file, as any system ends them.

    Raises:
        FormatError: it is not UTF-8.
    """
    with instead_of(
        UnicodeDecodeError, raises=lambda _: FormatError(f"The {what} is not UTF-8 text.")
    ):
        text = without_mark(data, what=what).decode("utf-8")
    return re.split(r"\r\n|\n|\r", text)


def check_name(name: Any, argument: str) -> str:
    """A name of a user, model or authority as it is kept, shown and looked up: in NFC.

    Two names that look alike must not be two users: revoking one would leave its twin.

    Raises:
        ArgumentError: empty, too long, or with characters or outer spaces that nobody sees.
    """
    kept = unicodedata.normalize("NFC", name) if isinstance(name, str) else ""
    if not 0 < len(kept) <= MAX_NAME or not kept.isprintable() or kept != kept.strip():
        raise ArgumentError(
            f"`{argument}` must be a string of 1 … {MAX_NAME} visible characters, with plain "
            f"spaces between them alone. Received: {argument}={name!r}"
        )
    return kept


def has_hidden(path: str) -> bool:
    """Whether a path holds what nobody sees, or what makes it look like another."""
    return any(unicodedata.category(character) in _HIDDEN for character in path)


def is_file_name(name: str) -> bool:
    """Whether this names a file on any system: no separator, device or hidden character."""
    odd = not _ODD.isdisjoint(name) or has_hidden(name) or _DEVICE.fullmatch(name)
    return bool(name) and name[-1] not in ". " and not odd


def as_shown(value: object) -> "Text":
    """For `rich`: a text as it is, which is no markup, and printable."""
    from rich.text import Text

    return Text(printable(str(value)))
