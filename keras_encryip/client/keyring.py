"""Passphrases in the operating system's keyring: an option, used only where it is asked for.

Needs the package `keyring` (extra `keyring`), which finds the keyring: macOS Keychain, Windows
Credential Locker, Secret Service, KWallet. An entry has the service `encryip` and the name of
what its passphrase opens: a bundle's key id, or the fingerprint of the public key that a bundle
was made to; then it is the passphrase of the private key.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Final, TypeVar

from keras_encryip.client.bundle import KeyBundle
from keras_encryip.errors import PassphraseError

SERVICE: Final = "encryip"

_INSTEAD: Final = "Give the passphrase by a prompt, a file or the environment instead"
_T = TypeVar("_T")


def remember(bundle: KeyBundle, passphrase: str) -> None:
    """Store the passphrase that opens a bundle, or the private key it was made for.

    It is not tried: open the bundle with it first.

    Raises:
        PassphraseError: there is no keyring, or it is locked or keeps nothing.
    """

    def store(keyring: ModuleType) -> bool:
        keyring.set_password(SERVICE, _name(bundle), passphrase)
        return bool(keyring.get_password(SERVICE, _name(bundle)) == passphrase)

    if not _ask(store):
        raise PassphraseError(f"The keyring did not keep the passphrase. {_INSTEAD}.")


def passphrase_of(bundle: KeyBundle) -> str:
    """The passphrase that `remember` stored for this bundle or its private key.

    Raises:
        PassphraseError: the keyring holds none, is locked, or there is no keyring.
    """
    found: str | None = _ask(lambda keyring: keyring.get_password(SERVICE, _name(bundle)))
    if found is None:
        raise PassphraseError(
            f"The keyring holds no passphrase for {_name(bundle)!r} (subject "
            f"{bundle.header.subject!r}). `encryip key remember` stores one."
        )
    return found


def forget(bundle: KeyBundle) -> None:
    """Remove what `remember` stored.

    Raises:
        PassphraseError: the keyring holds nothing, is locked, or there is no keyring.
    """
    passphrase_of(bundle)
    _ask(lambda keyring: keyring.delete_password(SERVICE, _name(bundle)))


def _name(bundle: KeyBundle) -> str:
    return bundle.header.key_id if bundle.recipient is None else bundle.recipient.fingerprint


def _ask(action: Callable[[ModuleType], _T]) -> _T:
    problem = ""
    try:
        import keyring

        return action(keyring)
    except Exception as error:  # a backend is foreign code: its words may hold the passphrase
        missing = isinstance(error, ModuleNotFoundError) and error.name == "keyring"
        problem = "pip install 'keras_encryip[keyring]'" if missing else type(error).__name__
    raise PassphraseError(f"The keyring cannot be used ({problem}). {_INSTEAD}.")
