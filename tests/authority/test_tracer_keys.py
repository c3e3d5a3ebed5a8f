"""Leaked bundles, keys and combined keys name who leaked them, and nobody else."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from keras_encryip.authority.authority import Authority
from keras_encryip.authority.schema import users_table
from keras_encryip.authority.tracer import Tracer
from keras_encryip.crypto.combined_key import CombinedKey
from keras_encryip.crypto.kem import UserKey
from keras_encryip.crypto.polynomial import ORDER, evaluate, interpolate
from keras_encryip.errors import (
    ArgumentError,
    ForeignKeyError,
    FormatError,
    PassphraseError,
    SignatureError,
)
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.tracing.report import TraceReport
from keras_encryip.tracing.verify_evidence import verify_evidence

PASSPHRASE = "correct horse"
CROWD = 40
FORGERY = 2.0**-128


def names(report: TraceReport) -> list[str]:
    return sorted(suspect.subject for suspect in report.guilty)


def value_of(key: UserKey) -> int:
    return int.from_bytes(key.secret_bytes()[32:], "big")


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    """t = 4; alice and bob have bundles, 40 users are enrolled."""
    folder = tmp_path_factory.mktemp("acme")
    arguments = {"passphrase": "owner", "scrypt_log2_n": 14}
    with Authority.create(f"sqlite:///{folder}/acme.authority", **arguments) as made:
        for user in ("alice", "bob"):
            path = folder / f"{user}.keybundle"
            made.issue(user, path, passphrase=PASSPHRASE, scrypt_log2_n=14)
        made.enroll(f"user {i}" for i in range(CROWD))
        yield made


@pytest.fixture
def alice_file(acme: Authority) -> Path:
    return Path(str(acme.ledger.url.database)).with_name("alice.keybundle")


@pytest.fixture
def alice(alice_file: Path) -> UserKey:
    return KeyBundle.read(alice_file).unlock(PASSPHRASE).reader.point


def keys_of(authority: Authority) -> dict[str, UserKey]:
    """Subject → key, recomputed from z as the owner can."""
    with authority.ledger.reading() as connection:
        rows = connection.execute(sa.select(users_table.c.subject, users_table.c.z)).all()
    return {
        row.subject: authority.keys.read_master.user_key(int.from_bytes(row.z, "big"))
        for row in rows
    }


# --- bundles -----------------------------------------------------------------


@pytest.mark.parametrize("form", [Path, str, KeyBundle.read])
def test_a_sealed_bundle_identifies_its_user(acme: Authority, alice_file: Path, form: Any) -> None:
    """0.3 called them guilty; but it was in the mail, where others could take it."""
    report = Tracer(acme).bundle(form(alice_file))
    (suspect,) = report.suspects
    user = acme.users()[0]
    assert (report.kind, report.verdict, report.model) == ("bundle", "identified", "")
    assert (suspect.subject, suspect.key_id, suspect.status) == ("alice", user.key_id, "active")
    assert (report.guilty, report.identified, suspect.identified) == ([], [suspect], True)
    assert report.p_value == suspect.p_value == 1
    assert report.tested == report.tests == CROWD + 2
    assert report.scores == [1.0] + [0.0] * (CROWD + 1)
    assert report.threshold is None
    assert report.evidence["signed by"] == "acme"
    assert report.evidence["subject in the bundle"] == "alice"
    assert report.evidence["opened"].startswith("no:")


def test_an_opened_bundle_names_its_user(acme: Authority, alice_file: Path) -> None:
    report = Tracer(acme).bundle(alice_file, PASSPHRASE)
    assert (report.verdict, names(report)) == ("guilty", ["alice"])
    assert report.p_value < 1e-100
    assert report.evidence["opened"] == "yes, to this user's keys"
    assert report.evidence["slot keys that work"] == "1024 of 1024"
    assert report.score_name == "score"
    first, *others = report.suspects
    assert first.score > report.threshold > max(s.score for s in others)
    assert len(others) == 9


def test_a_wrong_passphrase(acme: Authority, alice_file: Path) -> None:
    with pytest.raises(PassphraseError, match="does not open key bundle"):
        Tracer(acme).bundle(alice_file, "wrong")


def test_a_revoked_users_bundle(authority: Authority, issue: Any, tmp_path: Any) -> None:
    issue(authority, "alice")
    authority.revoke("alice")
    path = tmp_path / "alice.keybundle"
    (suspect,) = Tracer(authority).bundle(path).identified
    assert (suspect.subject, suspect.status) == ("alice", "revoked")
    (suspect,) = Tracer(authority).bundle(path, PASSPHRASE).guilty
    assert (suspect.subject, suspect.status) == ("alice", "revoked")


def test_a_bundle_without_slot_keys(authority: Authority, issue: Any, tmp_path: Path) -> None:
    """It only runs models: its point convicts, and others cannot check that."""
    issue(authority, "alice", roles=("run",))
    report = Tracer(authority).bundle(tmp_path / "alice.keybundle", PASSPHRASE)
    assert (names(report), report.p_value) == (["alice"], FORGERY)
    with pytest.raises(ArgumentError, match=r"proves nothing to others.*Evidence needs slot keys"):
        Tracer(authority).evidence(report, tmp_path / "case")


def test_a_bundle_to_a_public_key(authority: Authority, issue: Any, tmp_path: Path) -> None:
    """Opened with the private key; and what is written as evidence can be verified."""
    private = X25519PrivateKey.generate()
    issue(authority, "alice", passphrase=None, public_key=private.public_key)
    issue(authority, "bob")
    path = tmp_path / "alice.keybundle"
    assert Tracer(authority).bundle(path).verdict == "identified"
    report = Tracer(authority).bundle(path, private_key=private)
    assert names(report) == ["alice"]
    Tracer(authority).evidence(report, tmp_path / "case")
    assert [*verify_evidence(tmp_path / "case", issuer=authority.issuer).p_values] == ["alice"]


def test_another_authoritys_bundle(
    authority: Authority, create: Callable[..., Authority], issue: Any, tmp_path: Path
) -> None:
    other = create(f"sqlite:///{tmp_path}/other.authority", name="Other Inc.")
    issue(other, "eve")
    issue(authority, "alice")
    with pytest.raises(ForeignKeyError, match="issued by another authority: 'Other Inc"):
        Tracer(authority).bundle(tmp_path / "eve.keybundle")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data.replace(b'"alice"', b'"mabel"'), SignatureError),
        (lambda data: data[: len(data) // 2], FormatError),
        (lambda data: b"", FormatError),
    ],
    ids=["renamed", "cut", "empty"],
)
def test_a_changed_bundle(
    acme: Authority, alice_file: Path, tmp_path: Path, change: Any, error: type[Exception]
) -> None:
    data = alice_file.read_bytes()
    assert change(data) != data
    (tmp_path / "changed").write_bytes(change(data))
    with pytest.raises(error, match="key bundle"):
        Tracer(acme).bundle(tmp_path / "changed")


def test_a_bundle_that_an_old_backup_does_not_know(
    authority: Authority, issue: Any, file: Path, tmp_path: Path, reopen: Any
) -> None:
    """The ledger was restored from before the key was issued: signed, and nobody to name."""
    issue(authority, "alice")
    authority.close()
    shutil.copy(file, tmp_path / "backup")
    issue(reopen(), "bob")
    with Authority.open(f"sqlite:///{tmp_path}/backup", "owner's passphrase") as restored:
        report = Tracer(restored).bundle(tmp_path / "bob.keybundle")
        assert (report.verdict, report.p_value, report.suspects) == ("inconclusive", 1.0, [])
        assert report.evidence["subject in the bundle"] == "bob"
        again = Tracer(restored).bundle(tmp_path / "alice.keybundle")
        assert [s.subject for s in again.identified] == ["alice"]


# --- keys --------------------------------------------------------------------


@pytest.mark.parametrize("form", [lambda key: key, UserKey.secret_bytes], ids=["key", "bytes"])
def test_a_key_names_its_user(acme: Authority, alice: UserKey, form: Any) -> None:
    report = Tracer(acme).key(form(alice))
    assert (report.kind, report.verdict, names(report)) == ("key", "guilty", ["alice"])
    assert report.p_value == FORGERY * (CROWD + 2)
    assert report.evidence == {"on the owner's polynomial": "reading"}


def test_a_pending_users_key_names_them(acme: Authority) -> None:
    key = keys_of(acme)["user 7"]
    (suspect,) = Tracer(acme).key(key).guilty
    assert (suspect.subject, suspect.status) == ("user 7", "pending")


@pytest.mark.parametrize("off", [1, ORDER - 1, 2**128])
def test_a_wrong_value_at_an_issued_z_accuses_nobody(
    acme: Authority, alice: UserKey, off: int
) -> None:
    report = Tracer(acme).key(UserKey(alice.z, (value_of(alice) + off) % ORDER))
    assert (report.verdict, report.p_value, report.suspects) == ("inconclusive", 1.0, [])
    assert report.evidence == {"on the owner's polynomial": "no: not a key"}


def test_another_users_value_accuses_nobody(acme: Authority, alice: UserKey) -> None:
    report = Tracer(acme).key(UserKey(alice.z, value_of(keys_of(acme)["bob"])))
    assert (report.verdict, report.suspects) == ("inconclusive", [])


def test_a_random_point_accuses_nobody(acme: Authority) -> None:
    report = Tracer(acme).key(bytes(range(1, 65)))
    assert (report.verdict, report.suspects) == ("inconclusive", [])
    assert "never issued" not in report.evidence


def test_a_fresh_point_takes_more_than_threshold_colluders(acme: Authority) -> None:
    """t + 1 keys interpolate P, and a key that names nobody; t keys do not."""
    keys = list(keys_of(acme).values())[: acme.threshold + 1]
    for count, stated in ((acme.threshold + 1, "reading"), (acme.threshold, "no: not a key")):
        pooled = keys[:count]
        polynomial = interpolate([k.z for k in pooled], [value_of(k) for k in pooled])
        report = Tracer(acme).key(UserKey(12345, evaluate(polynomial, 12345)))
        assert (report.verdict, report.suspects) == ("inconclusive", [])
        assert report.evidence["on the owner's polynomial"] == stated
        note = "a fresh point: at least 5 users pooled their keys"
        assert report.evidence.get("never issued") == (note if stated == "reading" else None)


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("alice", ArgumentError, "`key` must be a UserKey or its 64 bytes.* Received: str"),
        (None, ArgumentError, "`key` must be .* Received: NoneType"),
        (b"\1" * 63, FormatError, "A user key has 64 bytes"),
        (bytes(64), FormatError, "User key z"),
        (b"\xff" * 64, FormatError, "User key z"),
    ],
    ids=["name", "none", "short", "zero", "large"],
)
def test_what_is_no_key(acme: Authority, key: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Tracer(acme).key(key)


# --- slot keys -------------------------------------------------------------------


@pytest.fixture
def both(acme: Authority, alice_file: Path) -> dict[str, np.ndarray]:
    """User → slot keys `[M, 16]`."""
    bundles = {user: alice_file.with_name(f"{user}.keybundle") for user in ("alice", "bob")}
    return {
        user: KeyBundle.read(path).unlock(PASSPHRASE).reader.slots.keys
        for user, path in bundles.items()
    }


@pytest.mark.parametrize("form", ["bytes", "none", "minus one", "zeros"])
def test_some_slot_keys_are_enough(acme: Authority, both: Any, form: str) -> None:
    keys = both["alice"].astype(np.int64)
    keys[100:] = -1 if form == "minus one" else 0
    rows: Any = keys
    if form in ("bytes", "none"):
        rows = [bytes(row) if row.any() else None for row in keys.astype(np.uint8)]
    report = Tracer(acme).key(None, rows)
    assert names(report) == ["alice"]
    assert report.evidence["slot keys that work"] == "100 of 1024"


def test_pooled_slot_keys_name_both(acme: Authority, both: Any, alice: UserKey) -> None:
    first = np.arange(1024)[:, None] % 2
    pooled = np.where(first, both["alice"], both["bob"])
    for key in (None, alice):
        report = Tracer(acme).key(key, pooled)
        assert names(report) == ["alice", "bob"]
        assert report.tested == CROWD + 2


def test_a_point_of_one_and_slot_keys_of_another(
    acme: Authority, both: Any, alice: UserKey, tmp_path: Path
) -> None:
    report = Tracer(acme).key(alice, both["bob"])
    assert names(report) == ["alice", "bob"]
    Tracer(acme).evidence(report, tmp_path / "case")
    shown = verify_evidence(tmp_path / "case")
    assert [*shown.p_values] == ["bob"], "others cannot check the point"


def test_slot_keys_that_are_none(acme: Authority) -> None:
    report = Tracer(acme).key(None, np.full((1024, 16), 7))
    assert (report.verdict, report.evidence["slot keys that work"]) == (
        "inconclusive",
        "0 of 1024",
    )
    assert report.threshold is None


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((1023, 16), int),
        np.zeros((1024, 15), int),
        np.full((1024, 16), 256),
        [None] * 3,
        5,
        [bytes(16), None, 3],
        [[1], [1, 2]],
        [b"x", b"xy", None],
    ],
    ids=["few", "short", "large", "list", "number", "mixed", "ragged", "ragged bytes"],
)
def test_what_are_no_slot_keys(acme: Authority, rows: Any) -> None:
    with pytest.raises(ArgumentError, match="`slot_keys` must hold 1024 slot keys of 16 bytes"):
        Tracer(acme).key(None, rows)


# --- combined keys -------------------------------------------------------------


def coalition_of(
    threshold: int, create: Callable[..., Authority]
) -> tuple[Authority, list[str], Callable[[list[str]], TraceReport]]:
    """An authority with 60 users, and a tracer of what some of them combine."""
    authority = create(threshold=threshold)
    authority.enroll(f"user {i:02}" for i in range(60))
    keys = keys_of(authority)
    header, _ = authority.keys.read_master.encapsulate()

    def trace(members: list[str]) -> TraceReport:
        shares = [i + 2 for i in range(len(members) - 1)]
        shares.append((1 - sum(shares)) % ORDER)
        combined = CombinedKey.combine([keys[m] for m in members], shares, header.nodes)
        return Tracer(authority).combined_key(combined._weights, header.nodes)

    return authority, list(keys), trace


@pytest.mark.parametrize("threshold", [1, 2, 4, 9])
def test_all_traitors_are_named_up_to_half_the_threshold(create: Any, threshold: int) -> None:
    _, users, trace = coalition_of(threshold, create)
    most = max(1, threshold // 2)
    for count in range(1, most + 1):
        report = trace(users[5 : 5 + count])
        assert (report.kind, names(report)) == ("combined key", users[5 : 5 + count])
        assert report.p_value == FORGERY * 60
        assert report.evidence["keys combined"] == count
        assert report.evidence["at most this many are found"] == most
    for count in range(most + 1, threshold + 1):
        report = trace(users[5 : 5 + count])
        assert (report.verdict, report.p_value, report.suspects) == ("inconclusive", 1.0, [])
        assert "unknown" in report.evidence["keys combined"]


def test_weights_of_nobodys_keys(create: Any) -> None:
    authority, users, _ = coalition_of(2, create)
    header, _ = authority.keys.read_master.encapsulate()
    assert Tracer(authority).combined_key([1, 2, 3], header.nodes).suspects == []
    own = CombinedKey.combine([keys_of(authority)[users[0]]], [1], header.nodes)._weights
    assert names(Tracer(authority).combined_key(own, header.nodes)) == users[:1]
    forged = Tracer(authority).combined_key([own[0] + 1, *own[1:]], header.nodes)
    assert forged.suspects == [], "all but w_0 can be made from z, without any key"


def test_a_revoked_user_is_named_as_no_evidence(create: Any) -> None:
    """Their z is public, so that they can be framed."""
    authority, users, trace = coalition_of(4, create)
    authority.revoke(users[3])
    alone, together = trace([users[3]]), trace(users[3:5])
    assert [(s.subject, s.p_value, s.guilty) for s in alone.suspects] == [(users[3], 1.0, False)]
    assert (alone.verdict, alone.p_value) == ("identified", 1.0)
    assert [(s.subject, s.guilty) for s in together.suspects] == [
        (users[4], True),
        (users[3], False),
    ]


@pytest.mark.parametrize(
    ("weights", "nodes", "message"),
    [
        ([1] * 6, [1, 2, 3, 4, 5], "`nodes` must hold threshold=4 integers. Received: 5"),
        ([1] * 4, [1, 2, 3], "`nodes` must hold threshold=4 integers. Received: 3"),
        ([1] * 4, [1, 2, 3, 4], "`weights` must hold one integer more"),
        ([1] * 5, [1, 2, 3, 3], "distinct"),
        ([-1] * 5, [1, 2, 3, 4], "`weights` must be integers in 0"),
        ([0.5] * 5, [1, 2, 3, 4], "`weights` must be integers"),
        ([1] * 5, [0, 2, 3, 4], "`nodes` must be integers in 1"),
    ],
    ids=["many-nodes", "few-nodes", "few-weights", "twice", "negative", "float", "zero"],
)
def test_wrong_combined_keys(acme: Authority, weights: Any, nodes: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Tracer(acme).combined_key(weights, nodes)


# --- reports -------------------------------------------------------------------


def test_reports_are_files_without_the_key(acme: Authority, alice: UserKey, tmp_path: Path) -> None:
    report = Tracer(acme).key(alice)
    report.save(tmp_path / "report.json")
    again = TraceReport.read(tmp_path / "report.json")
    assert again.to_bytes() == report.to_bytes()
    assert (names(again), again.exhibits) == (["alice"], {})
    secret = alice.secret_bytes()
    shown = report.to_bytes() + repr(report).encode() + str(report).encode()
    for part in (secret[:32], secret[32:]):
        assert part not in shown
        assert part.hex().encode() not in shown


def test_who_is_shown(acme: Authority, alice_file: Path) -> None:
    report = Tracer(acme).bundle(alice_file)
    text = str(report)
    assert "identified: alice" in text
    assert "42 users tested; no match would prove guilt" in " ".join(text.split())
    assert "bob" not in text
    assert repr(report) == "<TraceReport bundle: identified alice>"


def test_an_authority_without_users(authority: Authority) -> None:
    report = Tracer(authority).key(bytes(range(1, 65)))
    assert (report.tested, report.tests, report.verdict) == (0, 1, "inconclusive")
