"""A folder of evidence convinces whoever holds the authority's public key, and only rightly so.

Honest folders of every kind are checked where neither TensorFlow nor the owner's side is
installed. Forgers are, in turn: who changes files, another authority, and the owner.
"""

import base64
import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import msgspec
import numpy as np
import pytest
import sqlalchemy as sa
import tensorflow as tf

import keras_encryip as ke
from keras_encryip.authority import write_evidence as owner_evidence
from keras_encryip.authority.event_log import signed_events
from keras_encryip.authority.schema import events_table, users_table
from keras_encryip.authority.tracer import Tracer
from keras_encryip.client.decoder import Decoder
from keras_encryip.crypto.combined_key import CombinedKey
from keras_encryip.crypto.encoding import encode_base64, encode_point, encode_scalar
from keras_encryip.crypto.kem import GENERATOR, Header
from keras_encryip.crypto.polynomial import ORDER
from keras_encryip.crypto.tracing_header import TracingHeader, open_header
from keras_encryip.errors import ArgumentError, EncryipError, EvidenceError, SignatureError
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import ModelMetadata
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.models import trace_inputs as hardening
from keras_encryip.tracing import verify_evidence as evidence_module
from keras_encryip.tracing.report import TraceReport
from keras_encryip.tracing.statement import (
    REPORT,
    STATEMENT,
    SignedEvent,
    SignedStatement,
    Statement,
    sign_statement,
    to_npz,
)
from keras_encryip.tracing.statistics import SIGNIFICANCE
from keras_encryip.tracing.verify_evidence import verify_evidence
from keras_encryip.tracing.weights import kernels_of

PACKAGE = Path(ke.__file__).parent
PASSPHRASE = "correct horse"
KINDS = ("bundle", "key", "combined key", "table", "service", "weights")
USERS = ("alice", "bob the second", "carol", "Ünsal")


@dataclass(frozen=True)
class World:
    """A trained model; alice leaks. Ünsal has a copy in a folder of that name."""

    authority: ke.Authority
    model: ke.ProtectedModel
    folder: Path
    reports: dict[str, TraceReport]

    def evidence(self, kind: str) -> Path:
        return self.folder / "evidence" / kind

    def bundle(self, user: str) -> Path:
        return self.folder / f"{user}.keybundle"

    def key(self, user: str) -> Any:
        return KeyBundle.read(self.bundle(user)).unlock(PASSPHRASE)

    def decoder(self, user: str) -> Decoder:
        return Decoder.open(self.folder / "digits" / "1", self.bundle(user), PASSPHRASE)

    def z(self, user: str) -> str:
        return encode_base64(encode_scalar(self.key(user).z))


@pytest.fixture(scope="module")
def world(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(128, "relu"), keras.layers.Dense(10)]
    classifier = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    url = f"sqlite:///{folder}/acme.authority"
    with (
        pytest.MonkeyPatch.context() as patch,
        ke.Authority.create(url, "owner", scrypt_log2_n=14) as authority,
    ):
        patch.setattr(hardening, "STEPS", 20)
        for user in USERS:
            path = folder / f"{user}.keybundle"
            authority.issue(user, path, passphrase=PASSPHRASE, scrypt_log2_n=14)
        authority.enroll(["Dave who never got a key"])
        model = ke.protect(classifier, authority, name="digits", homophones=4, trace_labels=32)
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
        model.fit(digits.x, digits.y, batch_size=32, epochs=9, verbose=0)
        ke.export_saved_model(model, folder / "copies" / "Ünsal", recipient="Ünsal")
        ke.export_saved_model(model, folder / "digits" / "1")
        ke.export_saved_model(model, folder / "copies" / "7", recipient="alice")
        made = World(authority, model, folder, {})
        made.reports.update(trace_all(made))
        (folder / "evidence").mkdir()
        for kind, report in made.reports.items():
            Tracer(authority).evidence(report, made.evidence(kind))
        yield made


def trace_all(world: World) -> dict[str, TraceReport]:
    authority, decoder = world.authority, world.decoder("alice")
    header, _ = authority.keys.master.encapsulate()
    both = [world.key(user) for user in ("alice", "bob the second")]
    combined = CombinedKey.combine(both, [3, -2], header.nodes)

    def service(batch: np.ndarray) -> Any:
        return decoder.labels(np.asarray(world.model(batch, training=False)))

    return {
        "bundle": Tracer(authority).bundle(world.bundle("alice")),
        "key": Tracer(authority).key(world.key("alice")),
        "combined key": Tracer(authority).combined_key(combined._weights, header.nodes),
        "table": Tracer(authority).table(decoder, model="digits"),
        "service": Tracer(authority).service(service, model="digits", batch_size=256),
        "weights": Tracer(authority).weights(world.folder / "copies" / "7", model=world.model),
    }


@pytest.fixture
def copy(world: World, tmp_path: Path) -> Callable[[str], Path]:
    """`copy("table")`: that evidence, to be tampered with."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(world.evidence(kind), tmp_path / kind))

    return copy


# --- honest evidence -------------------------------------------------------------

CHECK = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras", "scipy", "sqlalchemy", "sklearn"):
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
sys.meta_path.insert(0, Forbid())
from keras_encryip.tracing.verify_evidence import verify_evidence
for folder in sys.argv[2:]:
    found = verify_evidence(folder, issuer=bytes.fromhex(sys.argv[1]))
    print(found.kind, sorted(found.p_values), max(found.p_values.values()) <= 1e-6, sep=": ")
import keras_encryip
try:
    import keras_encryip.authority.tracer
except ModuleNotFoundError:
    print("forbidden")
"""


def test_every_kind_is_checked_without_tensorflow(world: World) -> None:
    folders = [str(world.evidence(kind)) for kind in KINDS]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHECK, world.authority.issuer.hex(), *folders],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    accused = {"combined key": ["alice", "bob the second"]}
    assert done.stdout.splitlines() == [
        *(f"{kind}: {accused.get(kind, ['alice'])}: True" for kind in KINDS),
        "forbidden",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_verified(world: World, kind: str) -> None:
    report = world.reports[kind]
    found = verify_evidence(world.evidence(kind))
    assert (found.kind, found.issuer) == (kind, world.authority.issuer.hex())
    assert found.tests == report.tests
    events = world.authority.events()
    issued = [
        e.at
        for e in events
        if e.kind == "bundle written" and e.details["subject"] in {s.subject for s in report.guilty}
    ]
    exported = [e.at for e in events if e.kind == "model exported"]
    rests_on_exports = kind in ("table", "service", "weights")
    assert found.committed == max(issued) if not rests_on_exports else found.committed in exported
    assert events[0].at <= found.committed <= report.at
    for suspect in report.guilty:
        # An outsider counts every choice of tracing blocks as a test, the owner does not.
        assert suspect.p_value * 0.999 <= found.p_values[suspect.subject] <= SIGNIFICANCE


def test_files(world: World) -> None:
    codebook = world.authority.model_store.codebooks_of(1)[0].codebook_id.hex()
    traces = world.model._unlocked().training.traces.digest.hex()[:16]
    more = {
        "bundle": {"leaked.keybundle"},
        "table": {"table.npy", f"codebook-{codebook}.json"},
        "service": {
            f"trace-set-{traces}.npy",
            f"answers-{traces}.npy",
            f"codebook-{codebook}.json",
        },
        "weights": {"suspect.npz", "reference.npz"},
    }
    for kind in KINDS:
        found = {path.name for path in world.evidence(kind).iterdir()}
        assert found == {STATEMENT, REPORT} | more.get(kind, set())


def test_evidence_names_the_guilty_alone(world: World) -> None:
    """Not the innocents who are listed in the report, nor who else was given copies."""
    listed = {s.subject for s in world.reports["table"].suspects}
    assert listed == {*USERS, "Dave who never got a key"}
    ids = {user.subject: user.key_id for user in world.authority.users()}
    for kind in KINDS:
        data = contents(world.evidence(kind))
        innocent = set(listed) - {s.subject for s in world.reports[kind].guilty}
        assert b"alice" in data
        for name in innocent:
            forms = (name.encode(), json.dumps(name)[1:-1].encode(), ids[name].encode())
            assert not any(form in data for form in forms), (kind, name)


def test_exports_for_others_are_shown_where_no_other_binds(world: World, tmp_path: Path) -> None:
    old = world.authority.model_store.codebooks_of(1)[0]
    codebook = world.authority.model_store.current_codebook(old.codebook_id, fresh=True)
    ke.export_saved_model(world.model, tmp_path / "1", recipient="Ünsal")
    table = codebook.decode_table(world.key("carol"))
    report = Tracer(world.authority).table(table, model="digits")
    Tracer(world.authority).evidence(report, tmp_path / "evidence")
    assert set(verify_evidence(tmp_path / "evidence").p_values) == {"carol"}
    exports = [e for e in parsed(tmp_path / "evidence").events if "folder" in e.event.details]
    assert [e.event.details["recipient"] for e in exports] == [world.key("Ünsal").key_id]


# --- secrets ---------------------------------------------------------------------


def contents(folder: Path) -> bytes:
    """All bytes of a folder, and what strings in JSON hold, in base64 or hexadecimal."""
    pieces = [path.read_bytes() for path in sorted(folder.iterdir())]
    texts = b"\n".join(data for data in pieces if not data.startswith((b"PK", b"\x93NUMPY")))
    for text in re.findall(rb'"([^"\\]*)"', texts):
        for decode in (partial(base64.b64decode, validate=True), base64.b16decode):
            with contextlib.suppress(ValueError):
                pieces.append(decode(text.upper() if decode is base64.b16decode else text))
    return b"\n\0\n".join(pieces)


def secrets_of(world: World) -> dict[str, list[bytes]]:
    authority = world.authority
    headers = [
        header
        for codebook in authority.model_store.codebooks_of(1)
        for header in authority.model_store.tracing_headers(codebook)
    ]
    marks = [
        authority.keys.fingerprint_key(1, world.key(u).key_id)
        for u in ("bob the second", "carol", "Ünsal")
    ]
    combined = world.reports["combined key"].exhibits["key"]["weights"][0]
    return {
        "master": [encode_scalar(c) for c in authority.keys.master._coefficients],
        "data key": [authority.keys._data_key],
        "signing seed": [authority.keys.signing_key.secret_bytes()],
        "exponents": [encode_scalar(e) for header in headers for e in header._exponents],
        "user keys": [world.key(user).secret_bytes()[32:] for user in USERS],
        "others' marks": marks,
        "w_0": [encode_scalar(combined)],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_holds_no_secret(world: World, kind: str) -> None:
    data = contents(world.evidence(kind))
    for name, secrets in secrets_of(world).items():
        assert secrets
        for secret in secrets:
            for form in (secret, secret[::-1], secret.hex().encode(), base64.b64encode(secret)):
                assert form not in data, name


def test_the_search_finds_what_is_there(world: World, tmp_path: Path) -> None:
    key = world.key("alice").secret_bytes()[32:]
    assert encode_scalar(world.key("alice").z) in contents(world.evidence("key"))
    (tmp_path / "a.json").write_text(json.dumps({"a": [encode_base64(key)]}))
    assert key in contents(tmp_path)


# --- changed folders ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_of_any_file(copy: Callable[[str], Path], kind: str) -> None:
    folder = copy(kind)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for place in (0, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(EncryipError):
                verify_evidence(folder)
        path.write_bytes(data)
    assert verify_evidence(folder).kind == kind


def test_missing_and_extra_files(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("service")
    for path in sorted(folder.iterdir()):
        moved = path.rename(tmp_path / "aside")
        with pytest.raises(EncryipError, match=f"missing.*: {path.name}|Cannot read the evidence"):
            verify_evidence(folder)
        moved.rename(path)
    (folder / "note.txt").write_text("trust me")
    with pytest.raises(EvidenceError, match=r"missing from the evidence or extra: note\.txt"):
        verify_evidence(folder)
    with pytest.raises(EncryipError, match="Cannot read the evidence statement"):
        verify_evidence(tmp_path / "nowhere")


def test_a_folder_in_place_of_a_file(copy: Callable[[str], Path]) -> None:
    folder = copy("bundle")
    (folder / "leaked.keybundle").unlink()
    (folder / "leaked.keybundle").mkdir()
    with pytest.raises(EvidenceError, match=r"'leaked\.keybundle' of the evidence is not a file"):
        verify_evidence(folder)


def test_a_pinned_issuer(world: World, copy: Callable[[str], Path]) -> None:
    folder = copy("key")
    assert verify_evidence(folder, issuer=world.authority.issuer)
    with pytest.raises(EvidenceError, match="signed by another authority than expected"):
        verify_evidence(folder, issuer=bytes(32))


# --- statements signed by a forger ---------------------------------------------------


def parsed(folder: Path) -> Statement:
    data = (folder / STATEMENT).read_bytes()
    return msgspec.json.decode(data, type=SignedStatement).statement


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def forge(world: World, copy: Callable[[str], Path]) -> Callable[..., Path]:
    """`forge("table", change, files, signer)`: evidence anew, well signed.

    `change(statement)` gives the fields to replace, `files` other contents.
    """

    def forge(
        kind: str,
        change: Callable[[Statement], dict[str, Any]] = lambda statement: {},
        files: dict[str, bytes] | None = None,
        signer: ke.Authority | None = None,
    ) -> Path:
        folder = copy(kind)
        statement = parsed(folder)
        for name, data in (files or {}).items():
            (folder / name).write_bytes(data)
        digests = {p.name: digest(p.read_bytes()) for p in folder.iterdir() if p.name != STATEMENT}
        statement = msgspec.structs.replace(statement, files=digests, **change(statement))
        data = sign_statement(statement, (signer or world.authority).keys.sign)
        (folder / STATEMENT).write_bytes(data)
        return folder

    return forge


Forge = Callable[..., Path]
Change = Callable[[Statement], dict[str, Any]]


def accuse(**fields: Any) -> Change:
    """The first of the accused, with other fields."""

    def change(statement: Statement) -> dict[str, Any]:
        first, *others = statement.accused
        return {"accused": [msgspec.structs.replace(first, **fields), *others]}

    return change


def without(*kinds: str) -> Change:
    return lambda s: {"events": [e for e in s.events if e.event.kind not in kinds]}


def refused(folder: Path, message: str, error: type[Exception] = EvidenceError) -> bool:
    with pytest.raises(error, match=message):
        verify_evidence(folder)
    return True


def npy(array: np.ndarray) -> bytes:
    return owner_evidence._npy(array)


@pytest.mark.parametrize("kind", KINDS)
def test_forging_nothing_is_honest(forge: Forge, kind: str) -> None:
    """The control of all that follows."""
    assert verify_evidence(forge(kind)).kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_events_that_are_left_out(forge: Forge, kind: str) -> None:
    assert refused(forge(kind, without("authority created", "model exported")), "No signed event")


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_was_never_given_out(forge: Forge, kind: str) -> None:
    folder = forge(kind, without("bundle written"))
    assert refused(folder, "No signed event says that 'alice' was given this key")


@pytest.mark.parametrize("kind", ["table", "service", "weights"])
def test_a_model_that_was_never_exported(forge: Forge, kind: str) -> None:
    assert refused(forge(kind, without("model exported")), "No signed event of an export before")


def test_events_are_signed(world: World, forge: Forge) -> None:
    """A date, a subject, or a signature that was changed."""

    def change(statement: Statement) -> dict[str, Any]:
        *events, last = statement.events
        event = msgspec.structs.replace(last.event, at="2020-01-01T00:00:00Z")
        return {"events": [*events, msgspec.structs.replace(last, event=event)]}

    def unsign(statement: Statement) -> dict[str, Any]:
        *events, last = statement.events
        other = msgspec.structs.replace(last, signature=statement.events[0].signature)
        return {"events": [*events, other]}

    def unlink(statement: Statement) -> dict[str, Any]:
        *events, last = statement.events
        other = msgspec.structs.replace(last, previous=encode_base64(bytes(32)))
        return {"events": [*events, other]}

    for number, fault in enumerate((change, unsign, unlink)):
        folder = forge("table", fault).rename(world.folder / f"unsigned {number}")
        assert refused(folder, "event", SignatureError)


@pytest.mark.parametrize("kind", ["table", "service"])
def test_a_trace_before_the_export(forge: Forge, world: World, kind: str) -> None:
    """A codebook and trace inputs that were made when the answers were known."""
    report = json.loads(world.evidence(kind).joinpath(REPORT).read_bytes())
    report["at"] = "2020-01-01T00:00:00Z"
    folder = forge(kind, files={REPORT: json.dumps(report).encode()})
    assert refused(folder, "No signed event of an export before the trace")


def test_accusing_somebody_else(world: World, forge: Forge) -> None:
    assert refused(
        forge("table", accuse(subject="bob the second")), "'bob the second' was given this key"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_and_the_statement_agree(world: World, forge: Forge, kind: str) -> None:
    report = json.loads(world.evidence(kind).joinpath(REPORT).read_bytes())
    report["suspects"][0]["key_id"] = "0" * 16
    folder = forge(kind, files={REPORT: json.dumps(report).encode()})
    assert refused(folder, "report names other users than the statement accuses")


def own_events(authority: ke.Authority) -> list[Any]:
    with authority.ledger.reading() as connection:
        wanted = events_table.c.number > 0
        return [
            SignedEvent(event, encode_base64(previous), encode_base64(signature))
            for event, previous, signature in signed_events(connection, wanted)
        ]


def as_bob(world: World, kind: str) -> tuple[Change, bytes]:
    """Evidence against alice re-written to accuse bob, who was given a key as well."""
    bob = next(u for u in world.authority.users() if u.subject == "bob the second")
    report = json.loads(world.evidence(kind).joinpath(REPORT).read_bytes())
    report["suspects"][0] |= {"subject": "bob the second", "key_id": bob.key_id}
    events = [
        e
        for e in own_events(world.authority)
        if e.event.kind == "bundle written" and e.event.details["subject"] == "bob the second"
    ]

    def change(statement: Statement) -> dict[str, Any]:
        fields = {"subject": "bob the second", "key_id": bob.key_id, "z": world.z("bob the second")}
        return {**accuse(**fields)(statement), "events": statement.events + events}

    return change, json.dumps(report).encode()


@pytest.mark.parametrize(
    ("kind", "message", "error"),
    [
        ("bundle", "The bundle is not that of 'bob the second'", EvidenceError),
        ("key", "The leaked point is not the key of 'bob the second'", EvidenceError),
        ("table", "opening of a tracing header is not proved", SignatureError),
        ("service", "opening of a tracing header is not proved", SignatureError),
        ("weights", "commits to its recipient, fingerprint", EvidenceError),
    ],
)
def test_framing_bob_with_what_alice_leaked(
    world: World, forge: Forge, kind: str, message: str, error: type[Exception]
) -> None:
    change, report = as_bob(world, kind)
    assert refused(forge(kind, change, {REPORT: report}), message, error)


@pytest.mark.parametrize("kind", ["table", "service"])
def test_bobs_own_openings_do_not_fit_the_answers(world: World, forge: Forge, kind: str) -> None:
    change, report = as_bob(world, kind)
    codebook = world.authority.model_store.codebooks_of(1)[0]
    openings = [
        encode_base64(open_header(t, world.authority.public_key, world.key("bob the second").z))
        for t in world.authority.model_store.tracing_headers(codebook)
    ]

    def opened(statement: Statement) -> dict[str, Any]:
        fields = change(statement)
        (accused,) = fields["accused"]
        return {**fields, "accused": [msgspec.structs.replace(accused, openings=openings)]}

    folder = forge(kind, opened, {REPORT: report})
    assert refused(folder, "does not prove that 'bob the second' is guilty: corrected p-value")


@pytest.mark.parametrize("kind", ["table", "service"])
def test_an_opening_that_is_left_out(forge: Forge, kind: str) -> None:
    def change(statement: Statement) -> dict[str, Any]:
        return accuse(openings=statement.accused[0].openings[1:])(statement)

    assert refused(forge(kind, change), "openings of 'alice' are not complete")


def test_answers_that_prove_too_little(world: World, forge: Forge) -> None:
    """Altered after the trace, or by an owner who hopes that nobody counts."""
    answers = world.reports["service"].exhibits["answers"][0]
    name = next(p.name for p in world.evidence("service").glob("answers-*"))
    some = np.where(np.arange(len(answers)) < 4, answers, -1)
    assert refused(forge("service", files={name: npy(some)}), "does not prove that 'alice'")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (np.zeros(3, int), "do not belong to the trace inputs"),
        (np.zeros(64), "do not belong to the trace inputs"),
        (np.full(64, 10), "not classes of this codebook"),
        (np.full(64, 2**62), "not classes of this codebook"),
        (np.full(64, -5), "not classes of this codebook"),
    ],
    ids=["few", "floats", "high", "huge", "low"],
)
def test_answers_of_another_form(
    world: World, forge: Forge, answers: np.ndarray, message: str
) -> None:
    name = next(p.name for p in world.evidence("service").glob("answers-*"))
    assert refused(forge("service", files={name: npy(answers)}), message)


def test_a_table_of_another_form(forge: Forge, world: World) -> None:
    folder = forge("table", files={"table.npy": npy(np.zeros(3, int))})
    assert refused(folder, "The decode table is not one of this codebook")


HUGE = b"\x93NUMPY\1\0v\0" + (
    str({"descr": "<i8", "fortran_order": False, "shape": (1 << 50,)}).ljust(117) + "\n"
).encode("ascii")


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\3\4 no zip", b"\x93NUMPY\1\0", HUGE, HUGE[:10] + b"{" * 118, b"\x80\4N."],
    ids=["empty", "zip", "cut", "huge", "unclosed", "pickle"],
)
@pytest.mark.parametrize(("kind", "name"), [("table", "table.npy"), ("weights", "suspect.npz")])
def test_damaged_arrays(forge: Forge, kind: str, name: str, data: bytes) -> None:
    assert refused(forge(kind, files={name: data}), "evidence (is|are) malformed", EncryipError)


def test_an_array_in_place_of_weights(forge: Forge) -> None:
    folder = forge("weights", files={"suspect.npz": npy(np.zeros(3))})
    assert refused(folder, "weights of the evidence are malformed", EncryipError)


# --- combined keys ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda numbers: numbers[:-1], "wrong number of weights"),
        (lambda numbers: [*numbers[:-1], "00" * 31 + "07"], "not made of the accused"),
        (lambda numbers: [numbers[1], *numbers[1:]], "nodes of the combined key are not distinct"),
        (lambda numbers: ["zz", *numbers[1:]], "combined key"),
        (lambda numbers: ["ff" * 32, *numbers[1:]], "combined key"),
    ],
    ids=["few", "other", "twice", "text", "large"],
)
def test_weights_that_do_not_fit(forge: Forge, change: Any, message: str) -> None:
    folder = forge("combined key", lambda s: {"combined": change(s.combined)})
    assert refused(folder, message, EncryipError)


def test_half_of_the_traitors(world: World, forge: Forge) -> None:
    report = json.loads(world.evidence("combined key").joinpath(REPORT).read_bytes())
    report["suspects"] = report["suspects"][:1]
    folder = forge(
        "combined key",
        lambda s: {
            "accused": [a for a in s.accused if a.key_id == report["suspects"][0]["key_id"]]
        },
        {REPORT: json.dumps(report).encode()},
    )
    assert refused(folder, "not made of the accused users' keys")


# --- other authorities -------------------------------------------------------------


def test_another_authority_signs_what_it_found(
    world: World, forge: Forge, authority: ke.Authority
) -> None:
    """A rival with the victim's codebook: its own events do not sign that."""
    fields = {
        "issuer": encode_base64(authority.issuer),
        "public_key": encode_base64(authority.public_key.to_bytes()),
    }
    folder = forge("table", lambda s: fields, signer=authority)
    assert refused(folder, "event", SignatureError)


def test_another_authority_issues_the_accused_a_key(
    world: World, forge: Forge, authority: ke.Authority, tmp_path: Path
) -> None:
    """All but the codebook is the rival's own, and even that it commits to."""
    authority.issue("alice", tmp_path / "a", passphrase="p", scrypt_log2_n=14)
    metadata = ModelMetadata(model="digits", class_names=list("0123456789"))
    own = authority.model_store.add_model(
        metadata, world.authority.model_store.model_named("digits").assignment
    )
    authority.export_store.add_export(own, b"m", folder="v", recipient=None, kernels=[])
    key = KeyBundle.read(tmp_path / "a").unlock("p")
    report = json.loads(world.evidence("table").joinpath(REPORT).read_bytes())
    report["suspects"][0]["key_id"] = key.key_id

    def change(statement: Statement) -> dict[str, Any]:
        z = encode_base64(encode_scalar(key.z))
        return {
            **accuse(key_id=key.key_id, z=z)(statement),
            "issuer": encode_base64(authority.issuer),
            "public_key": encode_base64(authority.public_key.to_bytes()),
            "events": own_events(authority),
        }

    files = {REPORT: json.dumps(report).encode()}
    folder = forge("table", change, files, authority)
    assert refused(folder, "codebook .* is of another authority")


def test_a_rival_with_everything_of_its_own(
    authority: ke.Authority, world: World, tmp_path: Path
) -> None:
    """Its evidence holds under its own key, and under no key that anybody trusts."""
    authority.issue("alice", tmp_path / "a", passphrase="p", scrypt_log2_n=14)
    Tracer(authority).evidence(Tracer(authority).bundle(tmp_path / "a"), tmp_path / "evidence")
    assert set(verify_evidence(tmp_path / "evidence").p_values) == {"alice"}
    with pytest.raises(EvidenceError, match="signed by another authority than expected"):
        verify_evidence(tmp_path / "evidence", issuer=world.authority.issuer)


# --- the owner as a forger ---------------------------------------------------------


def test_trace_inputs_of_no_export(world: World, forge: Forge) -> None:
    """Chosen when it was known what the service says to what."""
    traces = world.reports["service"].exhibits["sets"][0]
    name = next(p.name for p in world.evidence("service").glob("trace-set-*"))
    invented = TraceSet(traces.inputs[::-1].copy(), traces.labels)
    folder = forge("service", files={name: invented.secret_bytes()})
    assert refused(folder, "commits to its trace_set")


def test_a_codebook_of_no_export(world: World, tmp_path: Path) -> None:
    """Made anew until somebody's answers fit: so it has to be out before the trace."""
    codebook = world.authority.model_store.codebooks_of(1)[0]
    fresh = world.authority.model_store.current_codebook(codebook.codebook_id, fresh=True)
    report = Tracer(world.authority).table(
        fresh.decode_table(world.key("bob the second")), model="digits"
    )
    assert [s.subject for s in report.guilty] == ["bob the second"]
    with pytest.raises(EvidenceError, match="commits to its codebook_digest"):
        Tracer(world.authority).evidence(report, tmp_path / "evidence")
    assert list(tmp_path.iterdir()) == []


def test_real_blocks_presented_as_tracing_ones(world: World, forge: Forge) -> None:
    """Every user reads them alike, so that any user could be framed."""
    tracing = world.authority.model_store.model_named("digits").assignment.tracing_blocks
    real = tracing.index(False)

    def change(statement: Statement) -> dict[str, Any]:
        (listed,) = statement.tracing_blocks
        blocks = sorted([real, *listed.blocks[1:]])
        return {"tracing_blocks": [msgspec.structs.replace(listed, blocks=blocks)]}

    assert refused(forge("table", change), "opening of a tracing header is not", SignatureError)


def test_tracing_blocks_that_are_real_from_the_start(
    authority: ke.Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner who knows r of well-formed headers can open them for anybody, with proof."""
    master = authority.keys.master

    def well_formed(threshold: int, revoked: Any = ()) -> TracingHeader:
        nodes = tuple(range(1, threshold + 1))
        values = [int.from_bytes(master.user_key(x).secret_bytes()[32:], "big") for x in nodes]
        exponents = [7, *(7 * value % ORDER for value in values)]
        points = tuple(encode_point(GENERATOR * e) for e in exponents)
        return TracingHeader(Header(nodes, points), exponents)

    monkeypatch.setattr(TracingHeader, "generate", well_formed)
    for user in ("alice", "bob the second"):
        authority.issue(user, tmp_path / user, passphrase="p", scrypt_log2_n=14)
    assignment = LabelAssignment.draw(10, 4, 32)
    metadata = ModelMetadata(model="digits", class_names=list("0123456789"))
    codebook = authority.model_store.add_model(metadata, assignment)
    authority.export_store.add_export(codebook, b"m", folder="v", recipient=None, kernels=[])
    key = KeyBundle.read(tmp_path / "alice").unlock("p")
    report = Tracer(authority).table(codebook.decode_table(key), model="digits")
    assert {s.subject for s in report.guilty} == {"alice", "bob the second"}, "they are read alike"
    with pytest.raises(SignatureError, match="not a tracing header: it is well-formed"):
        Tracer(authority).evidence(report, tmp_path / "evidence")
    assert not (tmp_path / "evidence").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blocks": [], "proofs": []}, "openings of 'alice' are not complete"),
        ({"proofs": []}, "are not proved"),
        ({"blocks": [1, 0]}, "are not listed"),
        ({"blocks": [-1, 0, 1, 2]}, "are not proved"),
        ({"blocks": [0, 1, 2, 64]}, "are not proved"),
        ({"codebook": "0" * 32}, "are not listed"),
    ],
    ids=["none", "no-proof", "order", "negative", "beyond", "other-codebook"],
)
def test_lists_of_blocks(forge: Forge, fields: dict[str, Any], message: str) -> None:
    def change(statement: Statement) -> dict[str, Any]:
        (listed,) = statement.tracing_blocks
        return {"tracing_blocks": [msgspec.structs.replace(listed, **fields)]}

    assert refused(forge("table", change), message)


def test_every_choice_of_blocks_is_a_test(world: World, forge: Forge) -> None:
    """An owner may leave out tracing blocks that do not fit, and is charged for it."""

    def change(statement: Statement) -> dict[str, Any]:
        (listed,) = statement.tracing_blocks
        fields = {"blocks": listed.blocks[:1], "proofs": listed.proofs[:1]}
        blocks = {"tracing_blocks": [msgspec.structs.replace(listed, **fields)]}
        return blocks | accuse(openings=statement.accused[0].openings[:1])(statement)

    codebook = world.authority.model_store.codebooks_of(1)[0]
    size = codebook.block_sizes[0]
    bound = 10.0**-size * len(codebook.headers) * world.reports["table"].tests
    found = verify_evidence_or_p(forge("table", change))
    assert found == pytest.approx(bound, rel=1e-6)


def verify_evidence_or_p(folder: Path) -> float:
    """The corrected p-value, also where it proves too little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_module, "SIGNIFICANCE", 1.0)
        (found,) = verify_evidence(folder).p_values.values()
    return found


def test_a_mark_that_was_not_committed_to(world: World, forge: Forge) -> None:
    """A key that correlates can be looked for, given the weights."""
    folder = forge("weights", accuse(fingerprint_key=encode_base64(bytes(range(32)))))
    assert refused(folder, "commits to its recipient, fingerprint, kernels_digest")


def test_other_weights_as_the_original(world: World, forge: Forge, tmp_path: Path) -> None:
    """What is subtracted has to be what was marked."""
    other = [kernel.numpy() * np.float32(1.001) for kernel in kernels_of(world.model)]
    folder = forge("weights", files={"reference.npz": to_npz(other)})
    assert refused(folder, "commits to its recipient, fingerprint, kernels_digest")
    suspect = world.folder / "copies" / "7"
    report = Tracer(world.authority).weights(suspect, model="digits", reference=other)
    assert [s.subject for s in report.guilty] == ["alice"]
    with pytest.raises(EvidenceError, match="commits to its recipient"):
        Tracer(world.authority).evidence(report, tmp_path / "evidence")


def test_weights_without_the_mark(world: World, forge: Forge) -> None:
    plain = [kernel.numpy() for kernel in kernels_of(world.model)]
    folder = forge("weights", files={"suspect.npz": to_npz(plain)})
    assert refused(folder, "does not prove that 'alice' is guilty")


# --- what is not written ------------------------------------------------------------


def test_inconclusive_reports(world: World, tmp_path: Path) -> None:
    report = Tracer(world.authority).key(bytes(range(1, 65)))
    with pytest.raises(ArgumentError, match="An inconclusive report accuses nobody"):
        Tracer(world.authority).evidence(report, tmp_path / "evidence")


def test_reports_from_files(world: World, tmp_path: Path) -> None:
    world.reports["key"].save(tmp_path / "report.json")
    report = TraceReport.read(tmp_path / "report.json")
    with pytest.raises(ArgumentError, match="was read from a file and holds no exhibits"):
        Tracer(world.authority).evidence(report, tmp_path / "evidence")
    with pytest.raises(
        ArgumentError, match=r"`report` must be a TraceReport\. Received: PosixPath"
    ):
        Tracer(world.authority).evidence(tmp_path / "report.json", tmp_path / "evidence")


def test_reports_of_another_authority(
    world: World, authority: ke.Authority, tmp_path: Path
) -> None:
    with pytest.raises(
        ArgumentError, match=r"accuses key [0-9a-f]{16}, which is not of this authority"
    ):
        Tracer(authority).evidence(world.reports["key"], tmp_path / "evidence")


def test_users_who_never_got_their_key(world: World, tmp_path: Path) -> None:
    """Only the owner can have leaked it."""
    (z,) = (z for z, name in issued(world) if name.startswith("Dave"))
    report = Tracer(world.authority).key(world.authority.keys.master.user_key(z))
    assert report.verdict == "guilty"
    with pytest.raises(EvidenceError, match=r"No signed event says that 'Dave .* given this key"):
        Tracer(world.authority).evidence(report, tmp_path / "evidence")
    assert list(tmp_path.iterdir()) == []


def issued(world: World) -> list[tuple[int, str]]:
    with world.authority.ledger.reading() as connection:
        rows = connection.execute(sa.select(users_table.c.z, users_table.c.subject)).all()
    return [(int.from_bytes(row.z, "big"), row.subject) for row in rows]


def test_combined_keys_with_a_revoked_user(create: Any, tmp_path: Path) -> None:
    authority = create(threshold=4)
    users = ("alice", "bob the second")
    for user in users:
        authority.issue(user, tmp_path / user, passphrase="p", scrypt_log2_n=14)
    authority.revoke("bob the second")
    keys = [KeyBundle.read(tmp_path / user).unlock("p") for user in users]
    header, _ = authority.keys.master.encapsulate()
    combined = CombinedKey.combine(keys, [3, -2], header.nodes)
    report = Tracer(authority).combined_key(combined._weights, header.nodes)
    assert [s.subject for s in report.guilty] == ["alice"]
    with pytest.raises(ArgumentError, match="also points at revoked users, whose z is public"):
        Tracer(authority).evidence(report, tmp_path / "evidence")


def test_blind_traces(world: World, tmp_path: Path) -> None:
    report = world.reports["weights"]
    blind = TraceReport(report._findings, {**report.exhibits, "reference": None})
    with pytest.raises(ArgumentError, match=r"needs the original: trace again with `reference="):
        Tracer(world.authority).evidence(blind, tmp_path / "evidence")


def test_folders_are_new(world: World, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep me")
    for path in (tmp_path, tmp_path / "mine"):
        with pytest.raises(ArgumentError, match="exists already, and is never overwritten"):
            Tracer(world.authority).evidence(world.reports["key"], path)
    with pytest.raises(ArgumentError, match=r"Cannot write .*: (Not a directory|File exists)"):
        Tracer(world.authority).evidence(world.reports["key"], tmp_path / "mine" / "evidence")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    Tracer(world.authority).evidence(world.reports["key"], tmp_path / "a" / "b" / "evidence")
    assert verify_evidence(tmp_path / "a" / "b" / "evidence").kind == "key"


@pytest.mark.parametrize(
    ("failure", "error"),
    [(OSError(28, "No space left on device"), ArgumentError), (KeyboardInterrupt(), None)],
    ids=["full", "interrupted"],
)
@pytest.mark.parametrize("after", range(4))
def test_nothing_half_written(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
    failure: BaseException,
    error: type[BaseException] | None,
) -> None:
    """Of 4 files, n are written before it fails."""
    write, written = owner_evidence.write_new_file, []

    def fails(path: Path, data: bytes) -> None:
        if len(written) == after:
            raise failure
        written.append(path)
        write(path, data)

    monkeypatch.setattr(owner_evidence, "write_new_file", fails)
    with pytest.raises(error or type(failure)):
        Tracer(world.authority).evidence(world.reports["weights"], tmp_path / "evidence")
    assert len(written) == after
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["table", "service"])
def test_evidence_from_a_reordered_version(world: World, tmp_path: Path, kind: str) -> None:
    """Its trace labels have other numbers: the export of the new version commits to these."""
    shutil.copy(world.folder / "acme.authority", tmp_path / "own.authority")
    with ke.Authority.open(f"sqlite:///{tmp_path}/own.authority", "owner") as authority:
        ke.rotate_codebook(world.folder / "digits" / "1", tmp_path / "2", authority=authority)
        decoder = Decoder.open(tmp_path / "2", world.bundle("alice"), PASSPHRASE)
        loaded = tf.saved_model.load(str(tmp_path / "2"))

        def service(batch: np.ndarray) -> Any:
            answers = loaded.signatures["serving_default"](inputs=tf.constant(batch))
            return decoder.labels(answers["confused"].numpy())

        if kind == "table":
            report = Tracer(authority).table(decoder, model="digits")
        else:
            report = Tracer(authority).service(service, model="digits")
        assert [s.subject for s in report.guilty] == ["alice"]
        Tracer(authority).evidence(report, tmp_path / "case")
        data = (tmp_path / "case" / STATEMENT).read_bytes()
        statement = msgspec.json.decode(data, type=SignedStatement).statement
        used = {blocks.codebook for blocks in statement.tracing_blocks}
        assert used == {authority.model_store.codebooks_of(1)[-1].codebook_id.hex()}
        assert verify_evidence(tmp_path / "case", issuer=authority.issuer).p_values["alice"] < 1e-6
