"""Write what a third party needs to check a trace, and no secret beyond it."""

import hashlib
import io
from dataclasses import dataclass, field
from os import PathLike
from os.path import lexists
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa

from keras_encryip.authority.earlier_evidence import EarlierEvidence
from keras_encryip.authority.event_log import append_event, signed_events
from keras_encryip.authority.keys import AuthorityKeys
from keras_encryip.authority.ledger import Ledger
from keras_encryip.authority.model_store import ModelStore
from keras_encryip.authority.schema import events_table
from keras_encryip.authority.user_store import UserStore
from keras_encryip.crypto.encoding import encode_base64
from keras_encryip.errors import ArgumentError
from keras_encryip.formats.atomic_files import make_new_folder, write_new_file
from keras_encryip.labels.codebook import Codebook
from keras_encryip.tracing.events import (
    AUTHORITY_CREATED,
    BUNDLE_WRITTEN,
    CODEBOOK_MADE,
    EVIDENCE_WRITTEN,
    KEY_ISSUED,
    MODEL_EXPORTED,
    accuses,
    commits,
)
from keras_encryip.tracing.fingerprint import kernels_digest
from keras_encryip.tracing.report import Suspect, TraceReport
from keras_encryip.tracing.statement import (
    LEAKED_COUNTS,
    REPORT,
    STATEMENT,
    Accused,
    ShownBit,
    ShownLabel,
    ShownSlot,
    SignedEvent,
    Statement,
    leaked_leaf,
    sign_statement,
    slots_to_show,
    to_npz,
)
from keras_encryip.tracing.statistics import (
    innocent_tail,
    observed_weights,
    proves_guilt,
    scores,
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
    """What `Tracer.evidence` does.

    The log says what the folder shows before the folder gets its name.
    """
    target = _checked_target(report, directory)
    earlier = EarlierEvidence.read(ledger, known=report.exhibits["earlier"])
    case = _Case(report, keys, models, earlier)
    accused = case.accused()
    known = {user.key_id for user in users.with_keys(s.key_id for s in accused)}
    if unknown := {s.key_id for s in accused} - known:
        raise ArgumentError(f"`report` accuses key {min(unknown)}, which is not of this authority.")
    case.collect(accused)
    shown = msgspec.structs.replace(
        report._findings, suspects=accused, scores=[s.score for s in accused]
    )
    files = case.files | {REPORT: TraceReport(shown).to_bytes()}
    statement = Statement(
        accused=case.shown,
        events=_events(ledger, case, {s.key_id for s in accused}),
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        format="encryip-evidence",
        issuer=encode_base64(keys.issuer),
        kind=report.kind,
        tests=report.tests,
        version=2,
        **case.facts,
    )

    def fill(draft: Path) -> None:
        for name, data in files.items():
            write_new_file(draft / name, data)
        write_new_file(draft / STATEMENT, sign_statement(statement, keys.sign))
        verify_evidence(draft, issuer=keys.issuer)
        with ledger.writing() as connection:
            append_event(connection, keys, EVIDENCE_WRITTEN, **case.disclosed())

    make_new_folder(target, fill)


def _checked_target(report: TraceReport, directory: str | PathLike[str]) -> Path:
    """Refuse reports that are no evidence, and folders that exist."""
    if not isinstance(report, TraceReport):
        raise ArgumentError(
            "`report` must be a TraceReport, from a method of `Tracer`. "
            f"Received: {type(report).__name__}"
        )
    if not report.guilty:
        raise ArgumentError("An inconclusive report accuses nobody: there is no evidence to write.")
    if not report.exhibits:
        raise ArgumentError(
            "`report` was read from a file and holds no exhibits. Trace again, and pass the result."
        )
    if report.kind in ("bundle", "key", "combined key") and not report.exhibits["convicted"]:
        raise ArgumentError(
            "A point of the polynomial proves nothing to others: they cannot check it without a z "
            "that must stay secret, and its owner could have computed it. Evidence needs slot "
            "keys: trace the opened bundle, or pass `slot_keys`."
        )
    target = Path(directory)
    if lexists(target):
        raise ArgumentError(f"{str(target)!r} exists already, and is never overwritten.")
    return target


@dataclass(repr=False)
class _Case:
    """What a report of one kind shows.

    Attributes:
        earlier: evidence that the trace knew of.
        shown: the accused users.
        facts: other fields of the statement.
        files: name → bytes.
        commitments: (kind, facts) of events that must have committed to these.
        which: number of the comparison that convicts, where there are several.
    """

    report: TraceReport
    keys: AuthorityKeys
    models: ModelStore
    earlier: EarlierEvidence
    shown: list[Accused] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    commitments: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    which: int = 0

    def accused(self) -> list[Suspect]:
        """The guilty users whom the strongest comparison that others can check convicts."""
        guilty, exhibits = self.report.guilty, self.report.exhibits
        if self.report.kind in ("bundle", "key"):
            return [s for s in guilty if s.key_id in exhibits["convicted"]]
        if self.report.kind == "weights":
            return guilty
        checked = exhibits["sets" if self.report.kind == "service" else "codebooks"]
        alone = [comparisons[: len(checked)] for comparisons in exhibits["alone"]]
        chances = [min(s.p_value for s in suspects) for suspects in zip(*alone, strict=True)]
        self.which = int(np.argmin(chances))
        accused = [comparisons[self.which] for comparisons in alone]
        if not any(s.guilty for s in accused):
            raise ArgumentError(
                "Only the probabilities of natural inputs convict here, and others cannot check "
                "these without the model: there is no evidence to write."
            )
        return sorted((s for s in accused if s.guilty), key=lambda s: s.p_value)

    def disclosed(self) -> dict[str, Any]:
        """What the event log says of this evidence: whom it accuses, and what it opens of them."""
        facts: dict[str, Any] = {
            "accused": sorted(user.key_id for user in self.shown),
            "traced": self.report.kind,
            "slots": sorted(shown.slot for shown in self.facts.get("slots", ())),
        }
        if "codebook" in self.facts:
            facts["codebook"] = self.facts["codebook"]
        if self.report.kind == "weights":
            facts["model_id"] = self.report.exhibits["record"].model_id
        return facts

    def collect(self, accused: list[Suspect]) -> None:
        """Fill the attributes."""
        kind = self.report.kind
        if kind == "weights":
            self._weights(accused)
        elif kind in ("table", "service"):
            codebook = self._table() if kind == "table" else self._service()
            self._answers(accused, codebook)
        else:
            self._slot_keys(accused)

    def _weights(self, accused: list[Suspect]) -> None:
        suspect, reference = (self.report.exhibits[name] for name in ("suspect", "reference"))
        if reference is None:
            raise ArgumentError(
                "Evidence from weights needs the original: trace again with `reference=...`."
            )
        self.files = {"suspect.npz": to_npz(suspect), "reference.npz": to_npz(reference)}
        digest = kernels_digest(reference)
        model_id = self.report.exhibits["record"].model_id
        for s in accused:
            mark = encode_base64(self.keys.fingerprint_key(model_id, s.key_id))
            user = Accused(subject=s.subject, key_id=s.key_id, fingerprint_key=mark)
            self.shown.append(user)
            facts = {"recipient": s.key_id, "kernels_digest": digest}
            self.commitments.append((MODEL_EXPORTED, facts))

    def _table(self) -> Codebook:
        self.files = {"table.npy": _npy(self.report.exhibits["table"])}
        codebook: Codebook = self.report.exhibits["codebooks"][self.which]
        return codebook

    def _service(self) -> Codebook:
        """The trace inputs that convict, as the model numbers labels, and the answers to them."""
        exhibits = self.report.exhibits
        traces, answers = exhibits["sets"][self.which], exhibits["answers"][self.which]
        self.files = {"trace-set.npy": traces.secret_bytes(), "answers.npy": _npy(answers)}
        digest = self.facts["trace_set"] = traces.digest.hex()
        self.commitments.append((MODEL_EXPORTED, {"model_trace_set or trace_set": digest}))
        return self.models.codebooks_of(exhibits["record"].model_id)[0]

    def _answers(self, accused: list[Suspect], codebook: Codebook) -> None:
        """Of a codebook: its trace labels, their slots, and what the accused read there."""
        live = self.models.live_labels(codebook)
        slots = [one.slot for one in live]
        self.files["codebook.json"] = codebook.to_bytes()
        self.facts |= {
            "codebook": codebook.codebook_id.hex(),
            "live": [ShownLabel(o.label, encode_base64(o.key), o.classes) for o in live],
        }
        name = {"codebook": codebook.codebook_id.hex()}
        self.commitments.append((CODEBOOK_MADE, name))
        self._open(accused, slots, with_keys=True)

    def _slot_keys(self, accused: list[Suspect]) -> None:
        """Of leaked slot keys: as few as prove it, chosen by the hash of all."""
        rows, bits = self.report.exhibits["slot_keys"], self.report.exhibits["bits"]
        leaked = [row.tobytes() if row.any() else b"" for row in rows]
        leaves = b"".join(leaked_leaf(s, key) for s, key in enumerate(leaked))
        slots = slots_to_show(leaves, self._enough(accused, bits, leaves))
        self.facts |= {
            "leaked_leaves": encode_base64(leaves),
            "leaked": [encode_base64(leaked[s]) for s in slots],
        }
        self._open(accused, slots, with_keys=False)

    def _enough(self, accused: list[Suspect], bits: np.ndarray, leaves: bytes) -> int:
        secrets = self.keys.slots
        codewords = np.array([secrets.codeword(s.key_id) for s in accused])
        unseens = [self.earlier.unseen(s.key_id, np.arange(secrets.count)) for s in accused]
        counts = sorted({*LEAKED_COUNTS, secrets.count})
        for count in counts:
            slots = slots_to_show(leaves, count)
            biases = secrets.biases[slots]
            weights = observed_weights(bits[slots], np.tile([0, 1], (count, 1)), biases)
            chances = [
                innocent_tail(counted, biases, scores(counted, biases, codeword[None, slots]))[0]
                for codeword, unseen in zip(codewords, unseens, strict=True)
                for counted in [weights * unseen[slots]]
            ]
            if all(proves_guilt(c * len(counts) * self.report.tests) for c in chances):
                return count
        return secrets.count

    def _open(self, accused: list[Suspect], slots: list[int], *, with_keys: bool) -> None:
        """Open the commitments to slots, and to the accused users' codewords there."""
        secrets = self.keys.slots
        self.facts |= {
            "slot_leaves": encode_base64(b"".join(secrets.slot_leaves())),
            "slots": [
                ShownSlot(
                    o.slot, o.threshold, *map(encode_base64, (o.blind, o.digest_0, o.digest_1))
                )
                for o in secrets.slot_openings(slots)
            ],
        }
        for s in accused:
            bits = [
                ShownBit(
                    o.bit,
                    encode_base64(o.blind),
                    encode_base64(secrets.keys[o.slot, o.bit].tobytes()) if with_keys else "",
                )
                for o in secrets.codeword_openings(s.key_id, slots)
            ]
            leaves = encode_base64(b"".join(secrets.codeword_leaves(s.key_id)))
            user = Accused(subject=s.subject, key_id=s.key_id, codeword_leaves=leaves, bits=bits)
            self.shown.append(user)


def _events(ledger: Ledger, case: _Case, key_ids: set[str]) -> list[SignedEvent]:
    """The authority's creation, the accused users' keys, and an event for each commitment.

    Also what earlier evidence, as far as the trace knew it, has shown of the accused.
    Exports tell of their recipient: others' are shown only where there is no other.
    """
    with ledger.reading() as connection:
        events = [
            SignedEvent(event, encode_base64(previous), encode_base64(signature))
            for event, previous, signature in signed_events(connection, _wanted(key_ids))
            if event.at <= case.report.at
        ]
    personal = (KEY_ISSUED, BUNDLE_WRITTEN)
    shown = [e for e in events if e.event.kind in (AUTHORITY_CREATED, *personal)]
    shown = [
        e
        for e in shown
        if e.event.kind == AUTHORITY_CREATED or e.event.details["key_id"] in key_ids
    ]
    shown += [
        e
        for e in events
        if e.event.number in case.earlier.events
        and any(accuses(e.event, key_id) for key_id in key_ids)
    ]
    events.sort(key=lambda e: e.event.details.get("recipient", "") not in {"", *key_ids})
    for kind, facts in case.commitments:
        committed = [e for e in events if e.event.kind == kind and commits(e.event, facts)]
        shown += [e for e in committed[:1] if e not in shown]
    return sorted(shown, key=lambda e: e.event.number)


def _wanted(key_ids: set[str]) -> sa.ColumnElement[bool]:
    """Of a long log, the events that could be shown."""
    e = events_table.c
    personal = [e.details.contains(key_id) for key_id in key_ids]
    return e.kind.in_([AUTHORITY_CREATED, CODEBOOK_MADE, MODEL_EXPORTED]) | (
        e.kind.in_([KEY_ISSUED, BUNDLE_WRITTEN, EVIDENCE_WRITTEN]) & sa.or_(*personal)
    )


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
