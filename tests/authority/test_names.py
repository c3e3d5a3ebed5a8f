"""Names have one spelling and nothing that nobody sees: a revoked user leaves no twin."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keras_encryip.authority.authority import Authority
from keras_encryip.authority.seal_folder import seal_folder
from keras_encryip.authority.tracer import Tracer
from keras_encryip.errors import ArgumentError, LedgerError
from keras_encryip.formats.key_bundle import KeyBundle

NFC = unicodedata.normalize("NFC", "José")
NFD = unicodedata.normalize("NFD", "José")
HIDDEN = ["José\u200b", "a\u202eb", "a\nb", "a\u2028", "a ", "\u00a0a", "a\ue000", "a\ud800", ""]


@pytest.mark.parametrize(("first", "second"), [(NFC, NFD), (NFD, NFC)])
def test_both_spellings_are_one_user(
    authority: Authority, issue: Callable[..., Any], tmp_path: Path, first: str, second: str
) -> None:
    assert issue(authority, first, path=tmp_path / "1").subject == NFC
    assert KeyBundle.read(tmp_path / "1").header.subject == NFC
    with pytest.raises(LedgerError, match="has a key already"):
        issue(authority, second, path=tmp_path / "2")
    with pytest.raises(LedgerError, match="has a key already"):
        authority.enroll([second])
    assert authority.user_store.recipient(second) == authority.users()[0].key_id
    assert authority.revoke(second).subject == NFC
    assert [user.status for user in authority.users()] == ["revoked"]
    assert authority.events()[-1].details["subject"] == NFC


def test_both_spellings_in_one_list(authority: Authority) -> None:
    with pytest.raises(LedgerError, match="is named twice"):
        authority.enroll([NFC, NFD])
    assert authority.users() == []


def test_a_pending_user_is_issued_under_either(
    authority: Authority, issue: Callable[..., Any], tmp_path: Path
) -> None:
    (pending,) = authority.enroll([NFD])
    assert pending.subject == NFC
    assert issue(authority, NFD, path=tmp_path / "1").key_id == pending.key_id


def test_names_of_authorities_and_scopes(
    create: Callable[..., Authority], issue: Callable[..., Any], tmp_path: Path
) -> None:
    authority = create(name=NFD)
    assert authority.name == NFC
    issue(authority, "ann", models=[NFD, NFC, "b"], path=tmp_path / "1")
    header = KeyBundle.read(tmp_path / "1").header
    assert (header.issuer_name, header.scope) == (NFC, [*sorted([NFC, "b"])])


def test_the_default_name_is_the_file_s(create: Callable[..., Authority], tmp_path: Path) -> None:
    assert create(str(tmp_path / f"{NFD}.authority")).name == NFC
    with pytest.raises(ArgumentError, match=r"^`name` must be a string of 1 … 256 visible"):
        create(str(tmp_path / "a\u200b.authority"))
    assert create(str(tmp_path / "a\u200b.authority"), name="a").name == "a"


def test_models_are_looked_up_in_their_one_spelling(
    authority: Authority, protect: Callable[..., Any], tmp_path: Path
) -> None:
    protect(authority, NFC)
    assert authority.model_store.model_named(NFD).metadata.model == NFC


@pytest.mark.parametrize("name", HIDDEN)
def test_names_with_a_twin_are_refused_wherever_they_are_given(
    authority: Authority, protect: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    protect(authority)
    (tmp_path / "folder").mkdir()
    before = authority.log_head
    new, path = tmp_path / "new", tmp_path / "x"
    for argument, use in {
        "subject": [
            lambda: authority.issue(name, path, passphrase="user", scrypt_log2_n=14),
            lambda: authority.revoke(name),
        ],
        "subjects": [lambda: authority.enroll(["ann", name])],
        "models": [
            lambda: authority.issue("a", path, passphrase="u", models=[name], scrypt_log2_n=14)
        ],
        "recipient": [lambda: authority.user_store.recipient(name)],
        "name": [lambda: Authority.create(new, "p", name=name, scrypt_log2_n=14)],
        "model": [
            lambda: authority.model_store.model_named(name),
            lambda: seal_folder(authority, tmp_path / "folder", path, model=name),
            lambda: Tracer(authority).table([0], model=name),
        ],
    }.items():
        for attempt in use:
            with pytest.raises(ArgumentError, match=rf"^`{argument}` must be .* visible char"):
                attempt()
    assert authority.log_head == before
    assert not new.exists()
    assert not path.exists()
