"""Write what a third party needs to check a trace, and no secret beyond it."""

import io
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from Crypto.Hash import SHA256

from keras_encryip.authority.event_log import signed_events
from keras_encryip.authority.keys import AuthorityKeys
from keras_encryip.authority.ledger import Ledger
from keras_encryip.authority.model_store import ModelStore
from keras_encryip.authority.schema import events_table
from keras_encryip.authority.user_store import UserStore
from keras_encryip.crypto.encoding import (
    SCALAR_BYTES,
    decode_scalar,
    encode_base64,
    encode_point,
    encode_scalar,
)
from keras_encryip.crypto.kem import GENERATOR, UserKey
from keras_encryip.crypto.tracing_header import open_header
from keras_encryip.errors import ArgumentError
from keras_encryip.formats.atomic_files import make_new_folder, write_new_file
from keras_encryip.labels.codebook import Codebook
from keras_encryip.tracing.events import AUTHORITY_CREATED, BUNDLE_WRITTEN, MODEL_EXPORTED
from keras_encryip.tracing.fingerprint import kernels_digest
from keras_encryip.tracing.report import TraceReport
from keras_encryip.tracing.statement import (
    REPORT,
    STATEMENT,
    Accused,
    SignedEvent,
    Statement,
    TracingBlocks,
    sign_statement,
    to_npz,
)
from keras_encryip.tracing.verify_evidence import verify_evidence


def write_evidence(
    report: TraceReport,
    directory: str | PathLike[str],
    *,
    keys: AuthorityKeys,
    ledger: Ledger,
    users: UserStore,
    models: ModelStore,
) -> None:
    """What `Tracer.evidence` does."""
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
    accused = [s.key_id for s in report.guilty]
    zs = users.zs(accused)
    if unknown := set(accused) - set(zs):
        raise ArgumentError(f"`report` accuses key {min(unknown)}, which is not of this authority.")
    exhibits = _Exhibits(report, keys, models, zs)
    exhibits.collect()
    shown = msgspec.structs.replace(report._findings, suspects=report.guilty)
    files = exhibits.files | {REPORT: TraceReport(shown).to_bytes()}
    statement = Statement(
        accused=[Accused(**facts) for facts in exhibits.accused.values()],
        combined=exhibits.combined,
        events=_events(ledger, accused, exhibits.commitments, report.at),
        files={name: SHA256.new(data).hexdigest() for name, data in files.items()},
        format="encryip-evidence",
        issuer=encode_base64(keys.issuer),
        kind=report.kind,
        public_key=encode_base64(keys.public_key.to_bytes()),
        tests=report.tests,
        tracing_blocks=list(exhibits.blocks.values()),
        version=1,
    )

    def fill(draft: Path) -> None:
        for name, data in files.items():
            write_new_file(draft / name, data)
        write_new_file(draft / STATEMENT, sign_statement(statement, keys.sign))
        verify_evidence(draft, issuer=keys.issuer)

    make_new_folder(target, fill)


@dataclass
class _Exhibits:
    """What a report of one kind shows.

    Attributes:
        zs: key id → z, of the accused users.
        accused: key id → fields of `Accused`.
        blocks: codebook → its tracing blocks.
        combined: a combined key's numbers.
        files: name → bytes.
        commitments: facts that an export must have committed to.
    """

    report: TraceReport
    keys: AuthorityKeys
    models: ModelStore
    zs: dict[str, int]
    accused: dict[str, dict[str, Any]] = field(default_factory=dict)
    blocks: dict[str, TracingBlocks] = field(default_factory=dict)
    combined: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    commitments: list[dict[str, str]] = field(default_factory=list)

    def collect(self) -> None:
        for suspect in self.report.guilty:
            z = encode_base64(encode_scalar(self.zs[suspect.key_id]))
            self.accused[suspect.key_id] = {
                "subject": suspect.subject,
                "key_id": suspect.key_id,
                "z": z,
            }
        {
            "bundle": self._bundle,
            "key": self._key,
            "combined key": self._combined_key,
            "table": self._table,
            "service": self._answers,
            "weights": self._weights,
        }[self.report.kind]()

    def _bundle(self) -> None:
        self.files["leaked.keybundle"] = self.report.exhibits["key"].to_bytes()

    def _key(self) -> None:
        key: UserKey = self.report.exhibits["key"]
        value = decode_scalar(key.secret_bytes()[SCALAR_BYTES:], what="key")
        for facts in self.accused.values():
            facts["point"] = encode_base64(encode_point(GENERATOR * value))

    def _combined_key(self) -> None:
        combined = self.report.exhibits["key"]
        numbers = [*combined["nodes"], *combined["weights"][1:]]
        self.combined = [encode_scalar(n).hex() for n in numbers]

    def _weights(self) -> None:
        suspect, reference = (self.report.exhibits[name] for name in ("suspect", "reference"))
        if reference is None:
            raise ArgumentError(
                "Evidence from weights needs the original: trace again with `reference=...`."
            )
        self.files |= {"suspect.npz": to_npz(suspect), "reference.npz": to_npz(reference)}
        digest = kernels_digest(reference)
        model_id = self.report.exhibits["record"].model_id
        for key_id, facts in self.accused.items():
            mark = self.keys.fingerprint_key(model_id, key_id)
            facts["fingerprint_key"] = encode_base64(mark)
            self.commitments.append({"recipient": key_id, "kernels_digest": digest})

    def _table(self) -> None:
        self.files["table.npy"] = _npy(self.report.exhibits["table"])
        self._answers()

    def _answers(self) -> None:
        """For services and tables: codebooks, proofs of their tracing blocks, openings."""
        exhibits = self.report.exhibits
        for key_id, facts in self.accused.items():
            number, which = exhibits["best"][key_id]
            codebook: Codebook = exhibits["codebooks"][number]
            name = codebook.codebook_id.hex()
            tracing = self.models.tracing_headers(codebook)
            if name not in self.blocks:
                self._tracing_blocks(codebook)
            openings = [open_header(t, self.keys.public_key, self.zs[key_id]) for t in tracing]
            facts |= {"codebook": name, "openings": [encode_base64(o) for o in openings]}
            if self.report.kind == "service":
                facts["trace_set"] = self._trace_set(codebook, which)

    def _tracing_blocks(self, codebook: Codebook) -> None:
        name = codebook.codebook_id.hex()
        numbers = np.flatnonzero(self.models.assignment_of(codebook).tracing_blocks)
        proofs = [
            encode_base64(open_header(t, self.keys.public_key, t.header.nodes[0]))
            for t in self.models.tracing_headers(codebook)
        ]
        self.blocks[name] = TracingBlocks(name, [int(n) for n in numbers], proofs)
        data = self.files[f"codebook-{name}.json"] = codebook.to_bytes()
        self.commitments.append({"codebook_digest": SHA256.new(data).hexdigest()})

    def _trace_set(self, codebook: Codebook, which: int) -> str:
        """Show the trace inputs that convict and the answers to them; returns their digest."""
        exhibits = self.report.exhibits
        order = exhibits["record"].assignment.moved_to(self.models.assignment_of(codebook))
        traces = exhibits["sets"][which].renumbered(order)
        digest: str = traces.digest.hex()
        self.files[f"trace-set-{digest[:16]}.npy"] = traces.secret_bytes()
        self.files[f"answers-{digest[:16]}.npy"] = _npy(exhibits["answers"][which])
        self.commitments.append({"trace_set": digest})
        return digest


def _events(
    ledger: Ledger, key_ids: list[str], commitments: list[dict[str, str]], before: str
) -> list[SignedEvent]:
    """The authority's creation, the accused users' bundles, and an export for each commitment.

    Exports tell of their recipient: others' are shown only where there is no other.
    """
    wanted = events_table.c.kind.in_([AUTHORITY_CREATED, MODEL_EXPORTED, BUNDLE_WRITTEN])
    with ledger.reading() as connection:
        events = [
            SignedEvent(event, encode_base64(previous), encode_base64(signature))
            for event, previous, signature in signed_events(connection, wanted)
            if event.kind != BUNDLE_WRITTEN or event.details.get("key_id") in key_ids
        ]
    shown = [e for e in events if e.event.kind != MODEL_EXPORTED]
    exports = [e for e in events if e.event.kind == MODEL_EXPORTED and e.event.at <= before]
    exports.sort(key=lambda e: e.event.details.get("recipient", key_ids[0]) not in key_ids)
    for facts in commitments:
        committed = [e for e in exports if facts.items() <= e.event.details.items()]
        shown += [e for e in committed[:1] if e not in shown]
    return sorted(shown, key=lambda e: e.event.number)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
