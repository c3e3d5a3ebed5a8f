"""Errors of ours in place of foreign ones, of which nothing stays."""

import traceback

import pytest

from keras_encryip.errors import (
    ArgumentError,
    EncryipError,
    FormatError,
    KeyRefusedError,
    LedgerError,
    SignatureError,
    instead_of,
    printable,
    reason,
)

SECRET = "hunter2"


def open_with(error: BaseException, *caught: type[BaseException]) -> None:
    with instead_of(*caught, raises=lambda e: FormatError(f"Not readable: {type(e).__name__}.")):
        raise error


def others_shown(error: BaseException) -> list[object]:
    """The other exceptions among the local variables that the traceback of an error shows."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    values = [value for frame in frames for value in frame.f_locals.values()]
    assert len(values) > 3, "there are some"
    return [v for v in values if isinstance(v, BaseException) and v is not error]


def test_nothing_of_the_foreign_error_stays() -> None:
    def parse() -> None:
        with instead_of(ValueError, raises=lambda _: FormatError("Not a number.")):
            int(SECRET)

    with pytest.raises(FormatError, match=r"^Not a number\.$") as caught:
        parse()
    error = caught.value
    assert error.__context__ is None
    assert error.__cause__ is None
    assert others_shown(error) == []
    assert SECRET not in "".join(traceback.format_exception(error))


def test_nothing_stays_inside_another_except_block() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError:
        with pytest.raises(FormatError) as caught:
            open_with(ValueError(SECRET), ValueError)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("error", [ValueError("v"), KeyError("k"), UnicodeError("u")])
def test_several_kinds_and_their_children(error: Exception) -> None:
    with pytest.raises(FormatError, match=rf"^Not readable: {type(error).__name__}\.$"):
        open_with(error, ValueError, KeyError)


def test_a_tuple_of_kinds() -> None:
    with (
        pytest.raises(ArgumentError, match=r"^odd$"),
        instead_of(*(OSError, EOFError), raises=lambda error: ArgumentError(str(error))),
    ):
        raise EOFError("odd")


@pytest.mark.parametrize("error", [KeyError("k"), KeyboardInterrupt("stop"), SignatureError("s")])
def test_other_errors_pass_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        open_with(error, ValueError, OSError)
    assert caught.value is error


def test_one_of_ours_in_place_of_another() -> None:
    with pytest.raises(FormatError, match=r"^Not readable: SignatureError\.$") as caught:
        open_with(SignatureError("s"), SignatureError)
    assert caught.value.__context__ is None


def test_without_an_error_nothing_happens() -> None:
    with instead_of(ValueError, raises=lambda _: FormatError("never")):
        value = 3
    assert value == 3


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(2, "No such file or directory", "a"), "No such file or directory"),
        (OSError("plain words"), "plain words"),
        (OSError(), "OSError"),
        (ValueError("bad value"), "bad value"),
        (ValueError(), "ValueError"),
        (EOFError(), "EOFError"),
    ],
    ids=repr,
)
def test_reason(error: Exception, words: str) -> None:
    assert reason(error) == words


def test_errors_of_ours_pass_unless_named() -> None:
    """`FormatError` is a `ValueError`, and says more than its replacement would."""

    def plain(_: object) -> LedgerError:
        return LedgerError("plain")

    for caught in (ValueError, Exception):
        with pytest.raises(FormatError, match="exact"), instead_of(caught, raises=plain):
            raise FormatError("exact")
    for caught in (FormatError, EncryipError):
        with pytest.raises(LedgerError, match="plain"), instead_of(caught, raises=plain):
            raise FormatError("exact")


# --- what a terminal shows ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [x] José 山 \\n", "plain [x] José 山 \\n"),
        ("a\nb\r\n\tc", r"a\nb\r\n\tc"),
        ("\x1b[2J\x07\x7f\x9b", r"\x1b[2J\x07\x7f\x9b"),
        ("a\u202eb\u200b\u2028\ufeff", r"a\u202eb\u200b\u2028\ufeff"),
        ("\udcff\U000e0041", r"\udcff\U000e0041"),
        ("a\u00a0b\u3000c", "a b c"),
    ],
)
def test_what_could_play_tricks_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    assert printable(text, 3) == (shown if len(shown) <= 3 else f"{shown[:2]}…")


@pytest.mark.parametrize(
    "kind", [EncryipError, *EncryipError.__subclasses__(), *KeyRefusedError.__subclasses__()]
)
def test_every_message_is_one_printable_line(kind: type[EncryipError]) -> None:
    error = kind("field 'a\nError: b\x1b[2J\u202e'")
    assert str(error) == r"field 'a\nError: b\x1b[2J\u202e'"
    assert r"b\x1b[2J" in "".join(traceback.format_exception_only(error))
    assert str(kind("")) == ""


def test_a_message_is_never_endless() -> None:
    assert len(str(FormatError("a" * 100_000))) == 8192
    assert str(FormatError("a" * 8192)) == "a" * 8192
