"""Arguments and answers that several commands have."""

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer

from keras_encryip.client.files import read_bounded
from keras_encryip.errors import ArgumentError

AuthorityArgument = Annotated[
    str, typer.Argument(help="The authority's file, or a database URL.", metavar="AUTHORITY")
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
        help="File whose first line is the key bundle's passphrase.",
        envvar="ENCRYIP_BUNDLE_PASSPHRASE_FILE",
    ),
]


def read_text(path: Path, what: str, *, max_bytes: int = 4096) -> str:
    data = read_bounded(path, what=what, max_bytes=max_bytes)
    with contextlib.suppress(UnicodeDecodeError):
        return data.decode("utf-8")
    raise ArgumentError(f"The {what} {str(path)!r} is not UTF-8 text.")


def hexadecimal(text: str, length: int, what: str) -> bytes:
    data = b""
    with contextlib.suppress(ValueError):
        data = bytes.fromhex(text)
    if len(data) != length:
        raise ArgumentError(f"{what} must be {2 * length} hexadecimal digits.")
    return data


def database_url(authority: str) -> str:
    return authority if "://" in authority else f"sqlite:///{authority}"


def ask_passphrase(file: Path | None, what: str, variable: str, *, new: bool = False) -> str:
    """From a file's first line, else `ENCRYIP_…_PASSPHRASE`, else a prompt."""
    if file is not None:
        return read_text(file, "passphrase file").split("\n")[0].rstrip("\r")
    given = os.environ.get(f"ENCRYIP_{variable}_PASSPHRASE")
    if given is not None:
        return given
    answer: str = typer.prompt(
        f"Passphrase of the {what}", hide_input=True, confirmation_prompt=new, err=True
    )
    return answer


def print_facts(facts: dict[str, object]) -> None:
    for name, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        typer.echo(f"{name:16} {shown}")
