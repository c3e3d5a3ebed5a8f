"""Sealing a folder for all users but the revoked ones."""

import os

from keras_encryip.authority.authority import Authority, check_authority
from keras_encryip.authority.event_log import append_event
from keras_encryip.authority.schema import revoked_users
from keras_encryip.errors import ArgumentError
from keras_encryip.formats.folder_index import list_folder
from keras_encryip.formats.sealed_folder import write_sealed_folder
from keras_encryip.tracing.events import FOLDER_SEALED


def seal_folder(
    authority: Authority,
    directory: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    model: str,
) -> None:
    """Seal a folder into one file that every user but the revoked ones can open.

    Whoever is revoked later opens what was sealed before. The event log has the sealing before
    the file gets its name; the file appears whole or not at all.

    Args:
        authority: whose users may open it.
        directory: any folder of files, such as an exported version folder; without links.
        path: the new file; never overwritten.
        model: name of a protected model of the authority. Bundles that are limited to other
            models are refused (advisory).

    Raises:
        LedgerError: the authority has no such model.
        ArgumentError: the folder is missing, holds a link or an odd name, or a file
            changes its size meanwhile; or the file exists or cannot be written.

    Example:
    >>> seal_folder(authority, folder / "digits" / "1", folder / "digits.sealed", model="digits")
    >>> (folder / "digits.sealed").stat().st_size > 10_000
    True
    """
    check_authority(authority)
    authority.model_store.model_named(model)
    index = list_folder(directory, model)
    if os.path.lexists(path):
        raise ArgumentError(f"{os.fspath(path)!r} exists already, and is never overwritten.")
    with authority.ledger.writing() as connection:
        revoked = revoked_users(connection)
        header, secret = authority.keys.read_master.encapsulate(revoked.values())
        append_event(
            connection,
            authority.keys,
            FOLDER_SEALED,
            model=model,
            header=header.digest.hex(),
            revoked=len(revoked),
        )
    write_sealed_folder(
        directory,
        path,
        index=index,
        authority=authority.public_key.digest,
        issuer=authority.issuer,
        header=header,
        secret=secret,
        sign=authority.keys.sign,
    )
