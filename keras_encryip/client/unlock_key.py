"""A host's key for a locked export, without TensorFlow."""

import os
import stat
from pathlib import Path

from keras_encryip.crypto.locked_weights import KEY_BYTES
from keras_encryip.errors import ArgumentError, ForeignKeyError, WrongModelError
from keras_encryip.formats.atomic_files import replace_file
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.formats.lock import read_lock


def unlock_key(
    directory: str | os.PathLike[str],
    bundle: str | os.PathLike[str] | KeyBundle,
    passphrase: str | None = None,
    private_key: X25519PrivateKey | None = None,
) -> bytes:
    """The key of a locked export: what its key file holds, and its signature `unlock` takes.

    Keep it in memory, or on a file system that is in memory. It opens this export alone.

    Args:
        directory: the version folder. Only its `lock.json` is read.
        bundle: path of a key bundle with the role `run`, or one already read.
        passphrase: opens the bundle.
        private_key: the host's own, opens a bundle that was made to its public key.

    Returns:
        32 bytes. Secret.

    Raises:
        ForeignKeyError: the bundle is of another authority than the model.
        RevokedKeyError: the key was revoked before this version was exported.
        ExpiredKeyError, WrongModelError: the bundle is outside its dates or its scope.
        KeyRefusedError: the bundle lacks the role `run`, or was made to another public key.
        FormatError: the folder is no locked export, or a file is malformed.
        PassphraseError, SignatureError: as they say.

    Example:
    >>> key = unlock_key(folder / "locked" / "1", folder / "alice.keybundle", "correct horse")
    >>> len(key)
    32
    """
    if not isinstance(bundle, KeyBundle):
        bundle = KeyBundle.read(bundle)
    lock = read_lock(directory)
    if lock.authority != bundle.authority:
        raise ForeignKeyError(
            f"Key bundle {bundle.header.key_id} was issued by another authority "
            f"({bundle.header.issuer_name!r}) than the one that made this model."
        )
    lock.verify(bundle.issuer)
    bundle.check_dates()
    model, key = lock.open(bundle.unlock(passphrase, private_key).runner)
    if not bundle.allows(model):
        raise WrongModelError(
            f"Key bundle {bundle.header.key_id} is for model(s) "
            f"{', '.join(bundle.header.scope)}, not for {model!r}."
        )
    return key


def write_key_file(
    path: str | os.PathLike[str], key: bytes, *, outside: str | os.PathLike[str]
) -> None:
    """Write a key file that its owner alone may read; it is whole, or as it was before.

    Args:
        path: the file, new or that of an earlier version.
        key: from `unlock_key`.
        outside: the version folder, which is handed on and must never hold its key.

    Raises:
        ArgumentError: the path is inside of the folder, is another file, or cannot be written.
    """
    if not os.fspath(path):
        raise ArgumentError("The key file needs a name. Received: an empty path")
    # Not `abspath`: the system follows a link before it goes up from there by `..`.
    folder, place = os.path.realpath(outside), os.fspath(path)
    ends = [Path(os.path.realpath(place)), Path(os.path.realpath(os.path.dirname(place)))]
    if any(end.is_relative_to(folder) for end in ends):
        raise ArgumentError(
            f"The key file {os.fspath(path)!r} would be inside of the locked folder "
            f"{os.fspath(outside)!r}, which is no secret. Write it elsewhere."
        )
    if os.path.lexists(path) and not _is_key_file(Path(path)):
        raise ArgumentError(
            f"{os.fspath(path)!r} is no key file, and is not overwritten. Write the key elsewhere."
        )
    replace_file(path, key, what="key file", mode=0o600)


def _is_key_file(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_size == KEY_BYTES
