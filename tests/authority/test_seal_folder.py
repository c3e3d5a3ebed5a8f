"""`seal_folder`: for whom, and what the ledger says of it."""

from pathlib import Path
from typing import Any

import pytest

from keras_encryip.authority import Authority
from keras_encryip.authority.seal_folder import FOLDER_SEALED, seal_folder
from keras_encryip.errors import ArgumentError, LedgerError, RevokedKeyError
from keras_encryip.formats.sealed_folder import unseal_folder
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import ModelMetadata

CHEAP = {"scrypt_log2_n": 14}


@pytest.fixture
def authority(tmp_path: Path) -> Any:
    with Authority.create(f"sqlite:///{tmp_path}/a.authority", "owner", **CHEAP) as made:
        metadata = ModelMetadata(model="digits", class_names=["zero", "one"])
        made.model_store.add_model(metadata, LabelAssignment.draw(2, 2, 0, 1024))
        for user in ("alice", "bob"):
            made.issue(user, tmp_path / f"{user}.keybundle", passphrase="user", **CHEAP)
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "digits"
    made.mkdir()
    (made / "saved_model.pb").write_bytes(b"graph")
    return made


def test_revoking_counts_from_the_next_sealing(
    authority: Authority, folder: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "1.sealed", tmp_path / "2.sealed"
    seal_folder(authority, folder, first, model="digits")
    authority.revoke("bob")
    seal_folder(authority, folder, second, model="digits")
    for number, (path, user) in enumerate([(first, "alice"), (first, "bob"), (second, "alice")]):
        target = tmp_path / f"opened {number}"
        unseal_folder(path, target, tmp_path / f"{user}.keybundle", "user")
        assert (target / "saved_model.pb").read_bytes() == b"graph"
    with pytest.raises(RevokedKeyError):
        unseal_folder(second, tmp_path / "opened", tmp_path / "bob.keybundle", "user")


def test_users_of_later_open_it_too(authority: Authority, folder: Path, tmp_path: Path) -> None:
    seal_folder(authority, folder, tmp_path / "1.sealed", model="digits")
    authority.issue("carol", tmp_path / "carol.keybundle", passphrase="user", **CHEAP)
    unseal_folder(tmp_path / "1.sealed", tmp_path / "o", tmp_path / "carol.keybundle", "user")


def test_the_log_says_so_and_the_ledger_stays_consistent(
    authority: Authority, folder: Path, tmp_path: Path
) -> None:
    authority.revoke("bob")
    seal_folder(authority, folder, tmp_path / "1.sealed", model="digits")
    event = authority.events()[-1]
    assert event.kind == FOLDER_SEALED
    assert event.details["model"] == "digits"
    assert event.details["revoked"] == 1
    authority.close()
    with Authority.open(f"sqlite:///{tmp_path}/a.authority", "owner") as again:
        assert again.events()[-1] == event


def test_refusals(authority: Authority, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="has no model 'pets'"):
        seal_folder(authority, folder, tmp_path / "1.sealed", model="pets")
    with pytest.raises(ArgumentError, match="`authority` must be an Authority"):
        seal_folder("a.authority", folder, tmp_path / "1.sealed", model="digits")  # type: ignore[arg-type]
    (tmp_path / "1.sealed").write_bytes(b"mine")
    events = len(authority.events())
    with pytest.raises(ArgumentError, match="cannot be sealed: it is not a folder"):
        seal_folder(authority, tmp_path / "none", tmp_path / "2.sealed", model="digits")
    with pytest.raises(ArgumentError, match="exists already, and is never overwritten"):
        seal_folder(authority, folder, tmp_path / "1.sealed", model="digits")
    assert (tmp_path / "1.sealed").read_bytes() == b"mine"
    assert len(authority.events()) == events
