"""A folder of evidence convinces whoever holds the authority's public key, and only rightly so.

Forgers are, in turn: who changes files, another authority, and the owner.
"""

import base64
import contextlib
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import keras_encryip as ke
from keras_encryip.crypto.encoding import encode_base64
from keras_encryip.crypto.signing import SigningKey
from keras_encryip.crypto.slots import SlotSecrets
from keras_encryip.errors import ArgumentError, EncryipError, EvidenceError, FormatError
from keras_encryip.tracing.fingerprint import embed
from keras_encryip.tracing.report import TraceReport
from keras_encryip.tracing.statement import (
    REPORT,
    STATEMENT,
    SignedStatement,
    Statement,
    sign_statement,
)
from keras_encryip.tracing.statistics import SIGNIFICANCE
from keras_encryip.tracing.verify_evidence import verify_evidence
from tests.authority.worlds import MODEL, PASSPHRASE, World, make_world

PACKAGE = Path(ke.__file__).parent
KINDS = ("bundle", "key", "table", "service", "weights")
ANSWERS = ("table", "service")
SLOTTED = ("bundle", "key", "table", "service")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Alice leaks; evidence of each kind is in a folder of that name, and so for bob."""
    world = make_world(tmp_path_factory.mktemp("world"))
    bobs = {
        "bob answers": world.tracer.table(world.decoder("bob"), model=MODEL),
        "bob keys": world.tracer.bundle(world.bundle("bob"), PASSPHRASE),
    }
    for kind, report in trace_all(world).items():
        world.evidence(report, kind)
    for name, report in bobs.items():
        world.evidence(report, name)
    yield world
    world.authority.close()


def trace_all(world: World) -> dict[str, TraceReport]:
    tracer, alice = world.tracer, world.keys("alice")
    kernels = [np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)]
    recipient = world.authority.user_store.recipient("alice")
    world.authority.export_store.add_export(
        world.codebook, b"copy", folder="copies/7", recipient=recipient, kernels=kernels
    )
    mark = world.authority.keys.fingerprint_key(1, recipient)
    marked = embed(kernels, mark)
    return {
        "bundle": tracer.bundle(world.bundle("alice"), PASSPHRASE),
        "key": tracer.key(alice.reader.point, alice.reader.slots.keys),
        "table": tracer.table(world.decoder("alice"), model=MODEL),
        "service": world.trace(world.table("alice")),
        "weights": tracer.weights(marked, model=MODEL, reference=kernels),
    }


@pytest.fixture
def copy(world: World, tmp_path: Path) -> Callable[[str], Path]:
    """`copy("table")`: that evidence, to be tampered with."""
    number = itertools.count()
    return lambda kind: Path(
        shutil.copytree(world.folder / kind, tmp_path / f"{kind} {next(number)}")
    )


Change = Callable[[dict[str, Any], dict[str, bytes]], None]
Forge = Callable[..., Path]


@pytest.fixture
def forge(world: World, copy: Callable[[str], Path]) -> Forge:
    """The owner, or who has the signing key, changes statement and files and signs again."""

    def forge(kind: str, change: Change, signing_key: SigningKey | None = None) -> Path:
        folder = copy(kind)
        statement = json.loads((folder / STATEMENT).read_bytes())["statement"]
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        del files[STATEMENT]
        change(statement, files)
        statement["files"] = {name: sha256(data).hexdigest() for name, data in files.items()}
        for name, data in files.items():
            (folder / name).write_bytes(data)
        key = signing_key or world.authority.keys.signing_key
        read = msgspec.convert(statement, Statement)
        (folder / STATEMENT).write_bytes(sign_statement(read, key.sign))
        return folder

    return forge


def refused(folder: Path, message: str, **options: Any) -> None:
    with pytest.raises(EncryipError, match=message):
        verify_evidence(folder, **options)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def changed_bit(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[5] ^= 1
    return encode_base64(bytes(data))


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
"""


def test_every_kind_is_checked_without_tensorflow(world: World) -> None:
    folders = [str(world.folder / kind) for kind in KINDS]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHECK, world.authority.issuer.hex(), *folders],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{kind}: ['alice']: True" for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_verified(world: World, kind: str) -> None:
    verified = verify_evidence(world.folder / kind)
    report = TraceReport.read(world.folder / kind / REPORT)
    assert (verified.kind, verified.issuer) == (kind, world.authority.issuer.hex())
    assert verified.tests == report.tests
    assert verified.p_values["alice"] <= SIGNIFICANCE
    if kind in ANSWERS:
        assert verified.p_values["alice"] == pytest.approx(report.p_value)
    assert [s.subject for s in report.suspects] == ["alice"], "nobody else's score is shown"
    assert len(report.scores) == 1


def test_files(world: World) -> None:
    more = {
        "table": {"table.npy", "codebook.json"},
        "service": {"trace-set.npy", "answers.npy", "codebook.json"},
        "weights": {"suspect.npz", "reference.npz"},
    }
    for kind in KINDS:
        names = {path.name for path in (world.folder / kind).iterdir()}
        assert names == {STATEMENT, REPORT} | more.get(kind, set())


def test_as_few_leaked_slot_keys_as_prove_it(world: World) -> None:
    statement = json.loads((world.folder / "bundle" / STATEMENT).read_bytes())["statement"]
    assert len(statement["leaked"]) == len(statement["slots"]) == 64
    keys = [world.keys(user).reader.slots.keys for user in ("alice", "bob")]
    mixed = np.where(np.arange(1024)[:, None] % 2, *keys)
    folder = world.evidence(world.tracer.key(None, mixed), "pooled")
    assert sorted(verify_evidence(folder).p_values) == ["alice", "bob"]
    statement = json.loads((folder / STATEMENT).read_bytes())["statement"]
    assert len(statement["leaked"]) in (256, 1024)


# --- changed by others -------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_of_any_file(copy: Callable[[str], Path], kind: str) -> None:
    folder = copy(kind)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        place = len(data) // 2
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(EncryipError):
            verify_evidence(folder)
        path.write_bytes(data)
    verify_evidence(folder)


def test_missing_and_extra_files(copy: Callable[[str], Path]) -> None:
    folder = copy("table")
    (folder / "more").write_bytes(b"")
    refused(folder, "missing from the evidence or extra: more")
    (folder / "more").unlink()
    (folder / "table.npy").unlink()
    refused(folder, r"missing from the evidence or extra: table\.npy")


def test_a_pinned_issuer(world: World) -> None:
    verify_evidence(world.folder / "table", issuer=world.authority.issuer)
    refused(world.folder / "table", "another authority than expected", issuer=bytes(32))


def test_evidence_of_release_0_3(copy: Callable[[str], Path]) -> None:
    folder = copy("table")
    data = (folder / STATEMENT).read_bytes()
    assert data.count(b'"version":2') == 1
    (folder / STATEMENT).write_bytes(data.replace(b'"version":2', b'"version":1'))
    with pytest.raises(FormatError, match=r"has version 1; .* Release 0\.3 of keras_encryip reads"):
        verify_evidence(folder)


# --- changed by who can sign ---------------------------------------------------------


def test_forging_nothing_is_honest(forge: Forge) -> None:
    for kind in KINDS:
        verify_evidence(forge(kind, lambda statement, files: None))


def edits() -> Iterator[Any]:
    """(kinds, change, message)."""

    def drop_label(s: Any, _: Any) -> None:
        del s["live"][3], s["slots"][3], s["accused"][0]["bits"][3]

    def swap_classes(s: Any, _: Any) -> None:
        s["live"][0]["classes"].reverse()

    def other_slot(s: Any, _: Any) -> None:
        s["slots"][0], s["slots"][1] = s["slots"][1], s["slots"][0]

    def bit(s: Any, _: Any) -> None:
        s["accused"][0]["bits"][0]["bit"] ^= 1

    def all_bits(s: Any, _: Any) -> None:
        for one in s["accused"][0]["bits"]:
            one["bit"] = 1

    def threshold(s: Any, _: Any) -> None:
        s["slots"][0]["threshold"] ^= 1

    def digests(s: Any, _: Any) -> None:
        one = s["slots"][0]
        one["digest_0"], one["digest_1"] = one["digest_1"], one["digest_0"]

    def slot_key(s: Any, _: Any) -> None:
        s["accused"][0]["bits"][0]["key"] = encode_base64(bytes(16))

    def label_key(s: Any, _: Any) -> None:
        s["live"][0]["key"] = encode_base64(bytes(16))

    def slot_leaves(s: Any, _: Any) -> None:
        s["slot_leaves"] = changed_bit(s["slot_leaves"])

    def codeword_leaves(s: Any, _: Any) -> None:
        s["accused"][0]["codeword_leaves"] = changed_bit(s["accused"][0]["codeword_leaves"])

    def no_events(s: Any, _: Any) -> None:
        s["events"] = []

    def leave_out(kind: str) -> Change:
        def change(s: Any, _: Any) -> None:
            s["events"] = [e for e in s["events"] if e["event"]["kind"] != kind]

        return change

    def fewer_leaked(s: Any, _: Any) -> None:
        for numbers in (s["slots"], s["leaked"], s["accused"][0]["bits"]):
            numbers.pop()

    def leaked_key(s: Any, _: Any) -> None:
        s["leaked"][0] = encode_base64(bytes(16))

    def leaked_leaves(s: Any, _: Any) -> None:
        s["leaked_leaves"] = changed_bit(s["leaked_leaves"])

    def earlier(s: Any, files: Any) -> None:
        report = json.loads(files[REPORT])
        files[REPORT] = json.dumps(report | {"at": "2020-01-01T00:00:00Z"}).encode()

    def tests(s: Any, _: Any) -> None:
        s["tests"] = 10**12

    yield "drop a live label", ANSWERS, drop_label, "not those that the log committed to"
    yield "swap classes", ANSWERS, swap_classes, "not those that the log committed to"
    yield "label key", ANSWERS, label_key, "not those that the log committed to"
    yield "slots in another order", ANSWERS, other_slot, "not those that the log committed to"
    yield "slot key", ANSWERS, slot_key, "slot key of 'alice' at slot .* is wrong"
    yield "a bit", SLOTTED, bit, "bit of 'alice' at slot .* is wrong"
    yield "all bits", SLOTTED, all_bits, "bit of 'alice' at slot .* is wrong"
    yield "a threshold", SLOTTED, threshold, "opening of slot .* is wrong"
    yield "digests", SLOTTED, digests, "opening of slot .* is wrong"
    yield "slot leaves", SLOTTED, slot_leaves, "slots are not those that the log committed to"
    yield "codeword leaves", SLOTTED, codeword_leaves, "codeword of 'alice' is not what the log"
    yield "no events", KINDS, no_events, "No signed event 'authority created'"
    yield "never issued", KINDS, leave_out("key issued"), "No signed event 'key issued'"
    yield "never written", KINDS, leave_out("bundle written"), "No signed event 'bundle written'"
    yield "no codebook", ANSWERS, leave_out("codebook made"), "No signed event 'codebook made'"
    exports = ("service", "weights")
    yield "no export", exports, leave_out("model exported"), "No signed event 'model exported'"
    yield "a trace before", KINDS, earlier, "No signed event .* from before the trace"
    yield "few leaked", ("bundle", "key"), fewer_leaked, "shown are not those to be shown"
    yield "a leaked key", ("bundle", "key"), leaked_key, "leaked slot key of slot .* is another"
    yield "leaked leaves", ("bundle", "key"), leaked_leaves, "not those to be shown|is another one"
    yield "many tests", ANSWERS, tests, "does not prove that 'alice' is guilty"


EDITS = [
    pytest.param(kind, change, message, id=f"{name}-{kind}")
    for name, kinds, change, message in edits()
    for kind in kinds
]


@pytest.mark.parametrize(("kind", "change", "message"), EDITS)
def test_edited_evidence_is_refused(forge: Forge, kind: str, change: Change, message: str) -> None:
    refused(forge(kind, change), message)


@pytest.mark.parametrize("kind", SLOTTED)
def test_accusing_bob_of_what_alice_leaked(world: World, forge: Forge, kind: str) -> None:
    """With all that is true of him."""
    bob = world.folder / ("bob keys" if kind in ("bundle", "key") else "bob answers")
    true = json.loads((bob / STATEMENT).read_bytes())["statement"]

    def change(statement: Any, files: dict[str, bytes]) -> None:
        report = json.loads(files[REPORT])
        report["suspects"] = json.loads((bob / REPORT).read_bytes())["suspects"]
        files[REPORT] = json.dumps(report).encode()
        accused, opened = true["accused"][0], {s["slot"]: i for i, s in enumerate(true["slots"])}
        secrets = world.authority.keys.slots
        slots = [s["slot"] for s in statement["slots"]]
        shown = secrets.codeword_openings(accused["key_id"], slots)
        with_keys = bool(accused["bits"][0]["key"])
        accused["bits"] = [
            {
                "bit": o.bit,
                "blind": encode_base64(o.blind),
                "key": encode_base64(secrets.keys[o.slot, o.bit].tobytes()) if with_keys else "",
            }
            for o in shown
        ]
        assert opened
        statement["accused"] = [accused]
        statement["events"] = true["events"] + [
            e for e in statement["events"] if e not in true["events"]
        ]

    refused(forge(kind, change), "does not prove that 'bob' is guilty")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (lambda a: a[:-1], "do not belong to the trace inputs"),
        (lambda a: a.astype(float), "do not belong to the trace inputs"),
        (lambda a: a + 10, "not classes of this codebook"),
        (lambda a: np.full_like(a, -1), "does not prove"),
    ],
    ids=["few", "floats", "large", "none"],
)
def test_answers_of_another_form(forge: Forge, answers: Any, message: str) -> None:
    def change(_: Any, files: dict[str, bytes]) -> None:
        files["answers.npy"] = npy(answers(np.load(io.BytesIO(files["answers.npy"]))))

    refused(forge("service", change), message)


def test_trace_inputs_of_no_export(forge: Forge) -> None:
    def change(_: Any, files: dict[str, bytes]) -> None:
        files["trace-set.npy"] = files["trace-set.npy"].replace(b"\0\0\x80\x3f", b"\0\0\x80\x3e")

    refused(forge("service", change), "'model exported' .* to its model_trace_set or trace_set")


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"[]"])
def test_damaged_arrays(forge: Forge, data: bytes) -> None:
    def table(_: Any, files: dict[str, bytes]) -> None:
        files["table.npy"] = data

    def weights(_: Any, files: dict[str, bytes]) -> None:
        files["suspect.npz"] = data

    refused(forge("table", table), "malformed")
    refused(forge("weights", weights), "malformed")


def test_another_authority_signs_what_it_found(forge: Forge) -> None:
    rival = SigningKey.generate()

    def change(statement: Any, _: Any) -> None:
        statement["issuer"] = encode_base64(rival.public_bytes())

    refused(forge("table", change, rival), "signature of the event is wrong")


def test_another_authoritys_events_and_secrets(world: World, forge: Forge, tmp_path: Path) -> None:
    other = make_world(tmp_path)
    report = other.tracer.table(other.decoder("alice"), model=MODEL)
    theirs = json.loads((other.evidence(report, "case") / STATEMENT).read_bytes())["statement"]

    def change(statement: Any, _: Any) -> None:
        for name in ("slot_leaves", "slots"):
            statement[name] = theirs[name]

    refused(forge("table", change), "slots are not those that the log committed to")

    def events(statement: Any, _: Any) -> None:
        statement["events"] = theirs["events"]

    refused(forge("table", events), "signature of the event is wrong")
    other.authority.close()


def test_slots_that_were_drawn_to_suit(world: World, forge: Forge) -> None:
    """An owner who tries seeds until a user fits: the log has the first ones' commitment."""
    rival = SlotSecrets(bytes(32), 1024)

    def change(statement: Any, _: Any) -> None:
        slots = [s["slot"] for s in statement["slots"]]
        statement["slot_leaves"] = encode_base64(b"".join(rival.slot_leaves()))
        statement["slots"] = [
            {
                "slot": o.slot,
                "threshold": o.threshold,
                "blind": encode_base64(o.blind),
                "digest_0": encode_base64(o.digest_0),
                "digest_1": encode_base64(o.digest_1),
            }
            for o in rival.slot_openings(slots)
        ]

    refused(forge("table", change), "slots are not those that the log committed to")


# --- reports that cannot become evidence -----------------------------------------------


def test_what_is_no_evidence(world: World, tmp_path: Path) -> None:
    tracer, alice = world.tracer, world.keys("alice")
    nothing = tracer.table(np.full(world.assignment.num_labels, -1), model=MODEL)
    sealed = tracer.bundle(world.bundle("alice"))
    table = tracer.table(world.decoder("carol"), model=MODEL)
    read = TraceReport.from_bytes(table.to_bytes())
    for report, message in (
        (nothing, "accuses nobody"),
        (sealed, "accuses nobody"),
        (read, "was read from a file and holds no exhibits"),
        (tracer.key(alice.reader.point), "point of the polynomial proves nothing to others"),
        ("report", "`report` must be a TraceReport"),
    ):
        with pytest.raises(ArgumentError, match=message):
            tracer.evidence(report, tmp_path / "case")
    (tmp_path / "case").mkdir()
    with pytest.raises(ArgumentError, match="exists already"):
        tracer.evidence(table, tmp_path / "case")


def test_users_who_never_got_their_key(world: World, tmp_path: Path) -> None:
    secrets = world.authority.keys.slots
    pending = world.authority.users()[-1]
    report = world.tracer.key(None, secrets.of_user(pending.key_id).keys)
    assert [s.subject for s in report.guilty] == [pending.subject]
    with pytest.raises(EvidenceError, match="No signed event 'bundle written'"):
        world.tracer.evidence(report, tmp_path / "case")
    assert list(tmp_path.iterdir()) == []


def test_reports_of_another_authority(world: World, tmp_path: Path) -> None:
    other = make_world(tmp_path)
    report = other.tracer.table(other.decoder("alice"), model=MODEL)
    with contextlib.closing(other.authority), pytest.raises(ArgumentError, match="not of this"):
        world.tracer.evidence(report, tmp_path / "case")


def test_evidence_from_a_reordered_version(world: World, tmp_path: Path) -> None:
    """Its order is another one; a table of it, and a service that runs it, are traced as ever."""
    codebook, moved = world.authority.model_store.reorder(world.codebook)
    table = world.decoder("carol", codebook).secret_table()
    np.testing.assert_array_equal(table[moved], world.table("carol"))
    report = world.tracer.table(table, model=MODEL)
    assert [s.subject for s in report.guilty] == ["carol"]
    assert report.tests == 2 * report.tested
    world.tracer.evidence(report, tmp_path / "case")
    assert [*verify_evidence(tmp_path / "case").p_values] == ["carol"]
    statement = json.loads((tmp_path / "case" / STATEMENT).read_bytes())["statement"]
    assert statement["codebook"] == codebook.codebook_id.hex()


def test_statements_are_signed_structs(world: World) -> None:
    """No field but those that are documented."""
    data = (world.folder / "table" / STATEMENT).read_bytes()
    msgspec.json.decode(data, type=SignedStatement)
    assert not re.search(rb'"(z|point|openings|combined|proofs)":', data)
