"""Write what a third party needs to check a trace, and no secret beyond it."""

import io
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import sqlalchemy as sa
from Crypto.Hash import SHA256

from keras_encryip.formats.atomic_files import make_new_folder, write_new_file
from keras_encryip.crypto.encoding import decode_scalar, encode_base64, encode_point, encode_scalar
from keras_encryip.crypto.kem import GENERATOR, UserKey
from keras_encryip.crypto.tracing_header import open_header
from keras_encryip.errors import ArgumentError
from keras_encryip.labels.codebook import Codebook
from keras_encryip.tracing.events import AUTHORITY_CREATED, BUNDLE_WRITTEN, MODEL_EXPORTED
from keras_encryip.authority.schema import events_table, users_table
from keras_encryip.authority.event_log import signed_events
from keras_encryip.tracing.fingerprint import kernels_digest
from keras_encryip.tracing.statement import REPORT, STATEMENT, Accused, SignedEvent, Statement, TracingBlocks, sign_statement, to_npz
from keras_encryip.tracing.verify_evidence import verify_evidence
from keras_encryip.tracing.report import TraceReport

if TYPE_CHECKING:
    from keras_encryip.authority.tracer import Tracing


def write_evidence(
    authority: "Tracing", report: TraceReport, directory: str | PathLike[str]
) -> None:
    """What `Authority.evidence` does."""
    if not isinstance(report, TraceReport):
        raise ArgumentError(f"`report` must be a TraceReport. Received: {type(report).__name__}")
    if not report.guilty:
        raise ArgumentError("An inconclusive report accuses nobody: there is no evidence to write.")
    if not report.exhibits:
        raise ArgumentError(
            "`report` was read from a file and holds no exhibits. Trace again, and pass the result."
        )
    if report.kind == "combined key" and len(report.guilty) < len(report.suspects):
        raise ArgumentError(
            "The combined key also points at revoked users, whose z is public: this is no proof."
        )
    target = Path(directory)
    if target.exists():
        raise ArgumentError(f"{str(target)!r} exists already, and is never overwritten.")
    files, facts, commitments = _exhibits(authority, report)
    own = msgspec.structs.replace(report._findings, suspects=report.guilty)
    files[REPORT] = TraceReport(own).to_bytes()
    statement = Statement(
        files={name: SHA256.new(data).hexdigest() for name, data in files.items()},
        format="encryip-evidence",
        issuer=encode_base64(authority.issuer),
        kind=report.kind,
        public_key=encode_base64(authority.public_key.to_bytes()),
        tests=report.tests,
        version=1,
        events=_events(authority, [s.key_id for s in report.guilty], commitments, report.at),
        **facts,
    )

    def fill(draft: Path) -> None:
        for name, data in files.items():
            write_new_file(draft / name, data)
        write_new_file(draft / STATEMENT, sign_statement(statement, authority.sign))
        verify_evidence(draft, issuer=authority.issuer)

    make_new_folder(target, fill)


def _exhibits(
    authority: "Tracing", report: TraceReport
) -> tuple[dict[str, bytes], dict[str, Any], list[dict[str, str]]]:
    """Of one kind of trace the files, the statement's fields, and what exports committed to."""
    exhibits = report.exhibits
    accused: dict[str, dict[str, Any]] = {
        s.key_id: {
            "subject": s.subject,
            "key_id": s.key_id,
            "z": encode_base64(encode_scalar(z)),
        }
        for s, z in zip(report.guilty, _zs(authority, report), strict=True)
    }
    files: dict[str, bytes] = {}
    facts: dict[str, Any] = {}
    commitments: list[dict[str, str]] = []
    if report.kind == "bundle":
        files["leaked.keybundle"] = exhibits["key"].to_bytes()
    elif report.kind == "key":
        key: UserKey = exhibits["key"]
        point = encode_point(GENERATOR * decode_scalar(key.secret_bytes()[32:], what="key"))
        for facts_of in accused.values():
            facts_of["point"] = encode_base64(point)
    elif report.kind == "combined key":
        numbers = [*exhibits["key"]["nodes"], *exhibits["key"]["weights"][1:]]
        facts["combined"] = [encode_scalar(n).hex() for n in numbers]
    elif report.kind == "weights":
        if exhibits["reference"] is None:
            raise ArgumentError(
                "Evidence from weights needs the original: trace again with `reference=...`."
            )
        files["suspect.npz"] = to_npz(exhibits["suspect"])
        files["reference.npz"] = to_npz(exhibits["reference"])
        for key_id, facts_of in accused.items():
            mark = authority.fingerprint_key(exhibits["record"].model_id, key_id)
            facts_of["fingerprint_key"] = encode_base64(mark)
            digest = kernels_digest(exhibits["reference"])
            commitments.append({"recipient": key_id, "kernels_digest": digest})
    else:
        files, facts, commitments = _answers(authority, report, accused)
    facts["accused"] = [Accused(**facts_of) for facts_of in accused.values()]
    return files, facts, commitments


def _answers(
    authority: "Tracing", report: TraceReport, accused: dict[str, dict[str, Any]]
) -> tuple[dict[str, bytes], dict[str, Any], list[dict[str, str]]]:
    """For services and tables: codebooks, proofs of their tracing blocks, openings."""
    exhibits = report.exhibits
    files: dict[str, bytes] = {}
    blocks: dict[str, TracingBlocks] = {}
    commitments: list[dict[str, str]] = []
    if report.kind == "table":
        files["table.npy"] = _npy(exhibits["table"])
    for key_id, facts in accused.items():
        number, which = exhibits["best"][key_id]
        codebook: Codebook = exhibits["codebooks"][number]
        name = codebook.codebook_id.hex()
        tracing = authority.tracing_headers(codebook)
        if name not in blocks:
            numbers = np.flatnonzero(authority.assignment_of(codebook).tracing_blocks)
            proofs = [open_header(t, authority.public_key, t.header.nodes[0]) for t in tracing]
            blocks[name] = TracingBlocks(
                name, [int(n) for n in numbers], [encode_base64(p) for p in proofs]
            )
            data = files[f"codebook-{name}.json"] = codebook.to_bytes()
            commitments.append({"codebook_digest": SHA256.new(data).hexdigest()})
        z = decode_scalar(_z(authority, key_id), what="z")
        openings = [open_header(t, authority.public_key, z) for t in tracing]
        facts |= {"codebook": name, "openings": [encode_base64(o) for o in openings]}
        if report.kind == "service":
            own, order = exhibits["record"].assignment, authority.assignment_of(codebook)
            traces = exhibits["sets"][which].renumbered(own.moved_to(order))
            answers = exhibits["answers"][which]
            digest = traces.digest.hex()
            files[f"trace-set-{digest[:16]}.npy"] = traces.secret_bytes()
            files[f"answers-{digest[:16]}.npy"] = _npy(answers)
            facts["trace_set"] = digest
            commitments.append({"trace_set": digest})
    return files, {"tracing_blocks": list(blocks.values())}, commitments


def _events(
    authority: "Tracing", key_ids: list[str], commitments: list[dict[str, str]], before: str
) -> list[SignedEvent]:
    """The authority's creation, the accused users' bundles, and an export for each commitment.

    Exports tell of their recipient: others' are shown only where there is no other.
    """
    wanted = (
        (events_table.c.kind == AUTHORITY_CREATED)
        | (events_table.c.kind == MODEL_EXPORTED)
        | (events_table.c.kind == BUNDLE_WRITTEN)
    )
    with authority._ledger.reading() as connection:
        events = [
            SignedEvent(event, encode_base64(previous), encode_base64(signature))
            for event, previous, signature in signed_events(connection, wanted)
            if event.kind != BUNDLE_WRITTEN or event.details.get("key_id") in key_ids
        ]
    shown = [e for e in events if e.event.kind != MODEL_EXPORTED]
    exports = [e for e in events if e.event.kind == MODEL_EXPORTED and e.event.at <= before]
    exports.sort(key=lambda e: e.event.details.get("recipient", key_ids[0]) not in key_ids)
    for facts in commitments:
        found = [e for e in exports if facts.items() <= e.event.details.items()]
        shown += [e for e in found[:1] if e not in shown]
    return sorted(shown, key=lambda e: e.event.number)


def _zs(authority: "Tracing", report: TraceReport) -> list[int]:
    return [decode_scalar(_z(authority, s.key_id), what="z") for s in report.guilty]


def _z(authority: "Tracing", key_id: str) -> bytes:
    with authority._ledger.reading() as connection:
        query = sa.select(users_table.c.z).where(users_table.c.key_id == key_id)
        z = connection.execute(query).scalar_one_or_none()
    if z is None:
        raise ArgumentError(f"`report` accuses key {key_id}, which is not of {authority.name!r}.")
    return bytes(z)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
