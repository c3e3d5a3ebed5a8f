"""A small authority on disk; scrypt at its lowest cost."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keras_encryip.authority import keys as keys_module
from keras_encryip.authority.authority import Authority
from keras_encryip.authority.user_store import User
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata

PASSPHRASE = "owner's passphrase"
BUNDLE_PASSPHRASE = "correct horse"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "acme.authority"


@pytest.fixture
def create(file: Path) -> Iterator[Callable[..., Authority]]:
    """`create(threshold=2, …)`: an authority at `file`, closed after the test."""
    made: list[Authority] = []

    def create(url: str | None = None, **arguments: Any) -> Authority:
        fields = {"passphrase": PASSPHRASE, "threshold": 2, "scrypt_log2_n": 14}
        made.append(Authority.create(url or f"sqlite:///{file}", **{**fields, **arguments}))
        return made[-1]

    yield create
    for authority in made:
        authority.close()


@pytest.fixture
def authority(create: Callable[..., Authority]) -> Authority:
    return create()


@pytest.fixture
def reopen(file: Path) -> Iterator[Callable[[], Authority]]:
    opened: list[Authority] = []

    def reopen() -> Authority:
        opened.append(Authority.open(f"sqlite:///{file}", PASSPHRASE))
        return opened[-1]

    yield reopen
    for authority in opened:
        authority.close()


@pytest.fixture
def issue(tmp_path: Path) -> Callable[..., User]:
    """`issue(authority, "alice", …)` writes `alice.keybundle` into `tmp_path`."""

    def issue(authority: Authority, subject: str, **arguments: Any) -> User:
        fields = {"passphrase": BUNDLE_PASSPHRASE, "scrypt_log2_n": 14}
        path = arguments.pop("path", tmp_path / f"{subject}.keybundle")
        return authority.issue(subject, path, **{**fields, **arguments})

    return issue


@pytest.fixture
def protect() -> Callable[..., tuple[Codebook, LabelAssignment]]:
    """`protect(authority)`: a model with K = 3, h = 4, T = 12 in the ledger."""

    def protect(authority: Authority, name: str = "digits") -> tuple[Codebook, LabelAssignment]:
        assignment = LabelAssignment.draw(3, 4, 12, authority.model_store.num_slots)
        metadata = ModelMetadata(
            model=name, class_names=["ant", "bee", "cicada"], notes="Not for the public."
        )
        return authority.model_store.add_model(metadata, assignment), assignment

    return protect


@pytest.fixture(scope="module")
def cheap_scrypt() -> Iterator[None]:
    """Derive each passphrase key once: many opens of one file become quick."""
    known: dict[Any, bytes] = {}
    derive = keys_module.passphrase_key

    def cached(*arguments: Any) -> bytes:
        if arguments not in known:
            known[arguments] = derive(*arguments)
        return known[arguments]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys_module, "passphrase_key", cached)
        yield
