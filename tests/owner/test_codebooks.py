"""The models and codebooks that an authority keeps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.client.bundle import KeyBundle
from keras_encryip.crypto.kem import UserKey
from keras_encryip.errors import LedgerError, RevokedKeyError, SignatureError
from keras_encryip.owner.authority import Authority

CREATED = ["authority created"]


def kinds(authority: Authority) -> list[str]:
    return [event.kind for event in authority.events()]


@pytest.fixture
def key_of(tmp_path: Path) -> Callable[[str], UserKey]:
    """The key in a subject's bundle."""
    return lambda subject: KeyBundle.read(tmp_path / f"{subject}.keybundle").unlock("correct horse")


def test_a_model_is_kept_with_its_assignment_and_metadata(
    authority: Authority, protect: Any, issue: Any, key_of: Any, reopen: Any
) -> None:
    codebook, assignment = protect(authority)
    record = reopen().model_of(codebook.codebook_id)
    assert authority.models() == ["digits"]
    np.testing.assert_array_equal(record.assignment.classes, assignment.classes)
    assert record.metadata.class_names == ["ant", "bee", "cicada"]
    assert record.training is None
    assert kinds(authority) == [*CREATED, "model protected", "codebook made"]
    issue(authority, "alice")
    codebook.verify(authority.issuer)
    assert codebook.open_metadata(key_of("alice")) == record.metadata
    table, real = codebook.decode_table(key_of("alice")), assignment.classes >= 0
    np.testing.assert_array_equal(table[real], assignment.classes[real])


def test_two_models_of_one_name_stay_two_models(authority: Authority, protect: Any) -> None:
    (first, one), (second, two) = protect(authority), protect(authority)
    assert authority.models() == ["digits", "digits"]
    for codebook, assignment in ((first, one), (second, two)):
        record = authority.model_of(codebook.codebook_id)
        assert record.assignment.secret_bytes() == assignment.secret_bytes()
    assert authority.current_codebook(first.codebook_id).to_bytes() == first.to_bytes()


def test_training_state_is_kept(authority: Authority, protect: Any, reopen: Any) -> None:
    (first, _), (second, _) = protect(authority), protect(authority, "cats")
    authority.save_training(authority.model_of(first.codebook_id).model_id, b"centroids")
    assert reopen().model_of(first.codebook_id).training == b"centroids"
    assert authority.model_of(second.codebook_id).training is None


def test_a_new_codebook_is_made_only_when_revocations_changed(
    authority: Authority, protect: Any, issue: Any, reopen: Any
) -> None:
    issue(authority, "alice")
    first, _ = protect(authority)
    assert authority.current_codebook(first.codebook_id).to_bytes() == first.to_bytes()
    authority.revoke("alice")
    second = authority.current_codebook(first.codebook_id)
    assert second.codebook_id != first.codebook_id
    for known in (first, second):  # asked by any of its codebooks, a model has one newest
        again = reopen().current_codebook(known.codebook_id)
        assert again.to_bytes() == second.to_bytes()
    third = authority.current_codebook(first.codebook_id, fresh=True)
    assert third.codebook_id not in (first.codebook_id, second.codebook_id)
    assert kinds(authority).count("codebook made") == 3


def test_a_revoked_user_is_shut_out_of_new_codebooks_only(
    authority: Authority, protect: Any, issue: Any, key_of: Any
) -> None:
    issue(authority, "alice")
    issue(authority, "bob")
    old, assignment = protect(authority)
    authority.revoke("bob")
    new = authority.current_codebook(old.codebook_id)
    assert old.open_metadata(key_of("bob")).model == "digits"
    with pytest.raises(RevokedKeyError, match="was revoked before this model version"):
        new.open_metadata(key_of("bob"))
    with pytest.raises(RevokedKeyError, match="revoked when the header was made"):
        new.decode_table(key_of("bob"))
    table, real = new.decode_table(key_of("alice")), assignment.classes >= 0
    np.testing.assert_array_equal(table[real], assignment.classes[real])


@pytest.mark.parametrize("threshold", [1, 2, 5])
def test_tracing_headers_predict_every_users_answers(
    create: Any, protect: Any, issue: Any, key_of: Any, threshold: int
) -> None:
    authority = create(threshold=threshold)
    for name in ("alice", "bob", "carol"):
        issue(authority, name)
    first, assignment = protect(authority)
    authority.revoke("bob")
    second = authority.current_codebook(first.codebook_id)
    for codebook, users in ((first, ("alice", "bob", "carol")), (second, ("alice", "carol"))):
        tracing = authority.tracing_headers(codebook)
        assert len(tracing) == sum(assignment.tracing_blocks) > 0
        for user in users:
            np.testing.assert_array_equal(
                codebook.predicted_answers([key_of(user)], assignment, tracing)[0],
                codebook.decode_table(key_of(user))[assignment.trace],
            )


def test_a_changed_codebook_gets_no_tracing_headers(authority: Authority, protect: Any) -> None:
    codebook, _ = protect(authority)
    forged = replace(codebook, values=(codebook.values + 1) % 3)
    with pytest.raises(SignatureError, match="signature of the codebook is wrong"):
        authority.tracing_headers(forged)


def test_a_codebook_of_another_authority_is_unknown(
    authority: Authority, create: Any, protect: Any, tmp_path: Path
) -> None:
    other = create(f"sqlite:///{tmp_path}/other.authority")
    codebook, _ = protect(other)
    for use in (
        lambda: authority.model_of(codebook.codebook_id),
        lambda: authority.current_codebook(codebook.codebook_id),
        lambda: authority.tracing_headers(codebook),
    ):
        with pytest.raises(LedgerError, match=rf"did not protect.*{codebook.codebook_id.hex()}"):
            use()


def test_a_damaged_current_codebook_is_refused(
    authority: Authority, protect: Any, reopen: Any, file: Path
) -> None:
    codebook, _ = protect(authority)
    data = file.read_bytes()
    place = data.index(b'"num_classes":3')
    file.write_bytes(data[:place] + b'"num_classes":4' + data[place + 15 :])
    with pytest.raises(SignatureError, match="signature of the codebook is wrong"):
        reopen().current_codebook(codebook.codebook_id)
