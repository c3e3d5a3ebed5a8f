"""Arguments and answers that several commands have."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

import keras_encryip as ke
from keras_encryip.client.decoder import Decoder
from keras_encryip.errors import ArgumentError, PassphraseError, instead_of, printable, reason
from keras_encryip.formats.atomic_files import read_bounded
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey, is_encrypted, read_private_pem
from keras_encryip.formats.text import read_lines

_MAX_SHOWN = 1 << 16

AuthorityArgument = Annotated[
    str, typer.Argument(help="The authority's file, or a sqlite URL.", metavar="AUTHORITY")
]
AuthorityPassphraseFile = Annotated[
    Path | None,
    typer.Option(
        help="File whose first line is the authority's passphrase.",
        envvar="ENCRYIP_AUTHORITY_PASSPHRASE_FILE",
    ),
]
BundlePassphraseFile = Annotated[
    Path | None,
    typer.Option(
        help="File whose first line is the passphrase of the key bundle or private key.",
        envvar="ENCRYIP_BUNDLE_PASSPHRASE_FILE",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on one line, for programs.")
]
PrivateKeyFile = Annotated[
    Path | None,
    typer.Option(help="Your private key, for a bundle that was made to its public key."),
]


def lines_of(path: Path, what: str, *, max_bytes: int = 4096) -> list[str]:
    """The lines of a text file, as any editor wrote it."""
    data = read_bounded(path, what=what, max_bytes=max_bytes)
    return read_lines(data, what=f"{what} {str(path)!r}")


def hexadecimal(text: str, length: int, what: str) -> bytes:
    data = b""
    with contextlib.suppress(ValueError):
        data = bytes.fromhex(text)
    if len(data) != length:
        raise ArgumentError(f"{what} must be {2 * length} hexadecimal digits.")
    return data


@contextlib.contextmanager
def opened_authority(
    authority: str, passphrase_file: Path | None, expect_log: str | None = None
) -> Iterator["ke.Authority"]:
    """The authority that a command works for, closed at its end."""
    passphrase = ask_passphrase(passphrase_file, "authority", "AUTHORITY")
    with ke.Authority.open(authority, passphrase, expect_log=expect_log) as owner:
        yield owner


def ask_passphrase(file: Path | None, what: str, variable: str, *, new: bool = False) -> str:
    """From a file's first line, else `ENCRYIP_…_PASSPHRASE`, else a prompt."""
    if file is not None:
        return lines_of(file, "passphrase file")[0]
    given = os.environ.get(f"ENCRYIP_{variable}_PASSPHRASE")
    if given is not None:
        return given
    if not _has_terminal():
        raise PassphraseError(
            f"The passphrase of the {what} is missing, and there is no terminal to ask at. Set "
            f"ENCRYIP_{variable}_PASSPHRASE or ENCRYIP_{variable}_PASSPHRASE_FILE, or pass "
            f"--{variable.lower()}-passphrase-file."
        )
    answer: str = typer.prompt(
        f"Passphrase of the {what}", hide_input=True, confirmation_prompt=new, err=True
    )
    return answer


def _has_terminal() -> bool:
    """Whether a prompt reaches somebody; standard input may be a pipe from a model server."""
    if sys.stdin is not None and sys.stdin.isatty():
        return True
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | getattr(os, "O_NOCTTY", 0)))  # as getpass does
    except OSError:
        return False
    return True


def ask_opening(
    bundle: KeyBundle, private_key: Path | None, passphrase_file: Path | None
) -> tuple[str | None, X25519PrivateKey | None]:
    """What `KeyBundle.unlock` takes: the bundle's passphrase, or the opened private key."""
    check_suits(bundle, private_key)
    if private_key is None:
        return ask_passphrase(passphrase_file, "key bundle", "BUNDLE"), None
    pem, passphrase = read_private_pem(private_key), None
    if is_encrypted(pem):
        passphrase = ask_passphrase(passphrase_file, "private key", "BUNDLE")
    return None, X25519PrivateKey.from_pem(pem, passphrase)


def open_decoder(
    model: Path, bundle: Path, private_key: Path | None, passphrase_file: Path | None
) -> Decoder:
    """A model's outputs, opened with a key bundle whose passphrase is asked for."""
    key_bundle = KeyBundle.read(bundle)
    return Decoder.open(model, key_bundle, *ask_opening(key_bundle, private_key, passphrase_file))


def check_suits(bundle: KeyBundle, private_key: Path | None) -> None:
    """Refuse to ask for the passphrase of what does not open the bundle."""
    if private_key is None and bundle.recipient is not None:
        raise ArgumentError(
            f"Key bundle {bundle.header.key_id} was made to the public key "
            f"{bundle.recipient.fingerprint!r}. Pass its private key with --private-key."
        )
    if private_key is not None and bundle.recipient is None:
        raise ArgumentError(
            f"A passphrase opens key bundle {bundle.header.key_id}. Leave out --private-key."
        )


def say(line: str, *, err: bool = False) -> None:
    """Print one line; text out of files cannot look like another one."""
    typer.echo(printable(line), err=err)


def check_new(*paths: Path | None) -> None:
    """Refuse at once what would be refused at the end."""
    for path in paths:
        if path is not None and os.path.lexists(path):
            raise ArgumentError(f"{str(path)!r} exists already, and is never overwritten.")


def check_present(path: Path | None, what: str) -> None:
    """Before a passphrase is asked for, and TensorFlow imported, which takes seconds."""
    with instead_of(
        OSError,
        raises=lambda error: ArgumentError(
            f"Cannot read the {what} {str(path)!r}: {reason(error)}."
        ),
    ):
        if path is not None:
            path.stat()


def answer(
    facts: dict[str, Any], *, as_json: bool, show: Callable[[], object] | None = None
) -> None:
    """Print what a command is asked for: to people by `show` or a line each, or all as JSON.

    JSON has snake_case keys, and ASCII alone: no terminal and no encoding changes it.
    """
    if as_json:
        typer.echo(json.dumps(_snake_case(facts)))
    elif show is not None:
        show()
    else:
        print_facts(facts)


def _snake_case(value: Any) -> Any:
    if isinstance(value, dict):
        return {re.sub(r"\W+", "_", key).strip("_"): _snake_case(v) for key, v in value.items()}
    return [_snake_case(item) for item in value] if isinstance(value, list) else value


def print_facts(facts: dict[str, Any]) -> None:
    """A line each, of those that there are."""
    for name, value in facts.items():
        if value is not None:
            say(f"{name:16} {printable(_in_words(value), _MAX_SHOWN)}")


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)
