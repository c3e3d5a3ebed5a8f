"""Objects that hold secrets neither show nor copy them."""

import copy
import pickle
from base64 import b64encode
from collections.abc import Callable

import pytest

from keras_encryip.crypto.kem import MasterKey
from keras_encryip.crypto.secret import Secret
from keras_encryip.crypto.signing import SigningKey


def shared_secret() -> tuple[Secret, bytes]:
    _, secret = MasterKey.generate(1).encapsulate()
    return secret, secret._point


def user_key() -> tuple[Secret, bytes]:
    key = MasterKey.generate(1).issue()
    return key, key.secret_bytes()


def master_key() -> tuple[Secret, bytes]:
    key = MasterKey.generate(2)
    return key, key.secret_bytes()


def signing_key() -> tuple[Secret, bytes]:
    key = SigningKey.generate()
    return key, key.secret_bytes()


MAKERS = [shared_secret, user_key, master_key, signing_key]
every_class = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
Make = Callable[[], tuple[Secret, bytes]]


def forms(secret: bytes) -> list[str]:
    """How each 32-byte part of a secret could show up in a text."""
    parts = [secret[i : i + 32] for i in range(0, len(secret), 32)] + [secret]
    texts = []
    for part in filter(lambda p: len(p) > 8, parts):
        number = int.from_bytes(part, "big")
        texts += [part.hex(), f"{number:x}", str(number), b64encode(part).decode().rstrip("=")]
    return texts


@every_class
@pytest.mark.parametrize(
    "show", [repr, str, "{}".format, lambda x: repr([x])], ids=["repr", "str", "format", "list"]
)
def test_no_text_shows_the_secret(make: Make, show: Callable[[object], str]) -> None:
    holder, secret = make()
    text = show(holder).lower()
    assert type(holder).__name__.lower() in text
    assert len(text) < 80
    for form in forms(secret):
        assert form.lower() not in text


@every_class
@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_copying_is_refused(make: Make, copier: Callable[[object], object]) -> None:
    holder, _ = make()
    with pytest.raises(TypeError, match=r"holds a secret and cannot be pickled or copied"):
        copier(holder)


@every_class
def test_copying_what_contains_it_is_refused(make: Make) -> None:
    holder, _ = make()
    with pytest.raises(TypeError, match=r"holds a secret and cannot be pickled or copied"):
        copy.deepcopy({"inside": [holder]})


@every_class
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_is_refused(make: Make, protocol: int) -> None:
    holder, _ = make()
    with pytest.raises(TypeError, match=rf"{type(holder).__name__} holds a secret and cannot"):
        pickle.dumps(holder, protocol)


@every_class
def test_there_is_no_dictionary_of_attributes(make: Make) -> None:
    holder, _ = make()
    assert not hasattr(holder, "__dict__")
    with pytest.raises(TypeError, match="__dict__"):
        vars(holder)


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        pytest.param(lambda: MasterKey([1, 2, 3]), "<MasterKey threshold=2>", id="master key"),
        pytest.param(
            lambda: MasterKey([1, 2]).user_key(5),
            f"<UserKey {MasterKey([1, 2]).user_key(5).key_id}>",
            id="user key",
        ),
        pytest.param(
            lambda: SigningKey(bytes(32)),
            "<SigningKey public=3b6a27bcceb6a42d>",  # RFC 8032: the key of the zero seed
            id="signing key",
        ),
        pytest.param(
            lambda: MasterKey([1, 2]).encapsulate()[1], "<SharedSecret secret>", id="secret"
        ),
    ],
)
def test_repr_shows_public_facts(make: Callable[[], object], shown: str) -> None:
    assert repr(make()) == shown
