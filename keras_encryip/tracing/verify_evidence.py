"""A trace that somebody else can check, with no secret and no TensorFlow.

docs/guides/tracing.md says what a folder of evidence holds, and what it proves to whom.
"""

import contextlib
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
import numpy as np

from keras_encryip.crypto.encoding import canonical_json, decode_base64
from keras_encryip.crypto.npy import load_npy
from keras_encryip.crypto.signing import verify
from keras_encryip.errors import DAMAGED, EvidenceError, FormatError
from keras_encryip.formats.atomic_files import open_file, read_bounded
from keras_encryip.labels.codebook import MAX_CODEBOOK_BYTES, Codebook
from keras_encryip.labels.live_labels import LiveLabel, live_commitment
from keras_encryip.labels.trace_set import MAX_TRACE_SET_BYTES, TraceSet, plurality
from keras_encryip.tracing.events import (
    AUTHORITY_CREATED,
    BUNDLE_WRITTEN,
    CODEBOOK_MADE,
    EVENT_DOMAIN,
    KEY_ISSUED,
    MODEL_EXPORTED,
    Event,
    accuses,
    commits,
    event_digest,
)
from keras_encryip.tracing.fingerprint import (
    correlate,
    fingerprint_commitment,
    kernels_digest,
    p_value,
    whiten,
)
from keras_encryip.tracing.report import MAX_REPORT_BYTES, TraceReport
from keras_encryip.tracing.shown_slots import ShownSlots
from keras_encryip.tracing.statement import (
    EVIDENCE_DOMAIN,
    MAX_STATEMENT_BYTES,
    REPORT,
    STATEMENT,
    Accused,
    SignedEvent,
    parse_statement,
)
from keras_encryip.tracing.statistics import (
    SIGNIFICANCE,
    corrected,
    innocent_tail,
    observed_weights,
    proves_guilt,
    scores,
)

_Chance: TypeAlias = Callable[[Accused], float]
_MAX_WEIGHTS_BYTES: Final = 16 << 30


class Verified(msgspec.Struct, frozen=True):
    """What a folder of evidence proves.

    Attributes:
        kind: what was traced.
        issuer: the authority's Ed25519 key, in hexadecimal.
        p_values: subject → p-value, corrected for `tests`.
        tests: how many could have been named, as the owner states.
        committed: date of the last event that this evidence rests on: since then, none of it could
            be chosen to suit the accused.
    """

    kind: str
    issuer: str
    p_values: dict[str, float]
    tests: int
    committed: str


def verify_evidence(directory: str | os.PathLike[str], *, issuer: bytes | None = None) -> Verified:
    """Check a folder that `Tracer.evidence` wrote, and compute its p-values again.

    Args:
        directory: the folder.
        issuer: the Ed25519 key (32 bytes) that must have signed it, e.g. of a key bundle.
            Without it, the evidence is only shown to be consistent under the key that it
            names itself.

    Returns:
        `Verified`: what was traced, by whom, and each accused user's p-value.

    Raises:
        EvidenceError: a commitment does not fit, or the evidence does not prove guilt.
        SignatureError, FormatError: forged or malformed.

    Example:
    >>> proved = verify_evidence(folder / "evidence", issuer=authority.issuer)
    >>> proved.kind, list(proved.p_values), max(proved.p_values.values()) <= 1e-6
    ('bundle', ['alice'], True)
    """
    return _Case(Path(directory), issuer).verify()


class _Case:
    """A folder of evidence, its statement's signature and its files' digests checked."""

    def __init__(self, folder: Path, issuer: bytes | None) -> None:
        data = read_bounded(
            folder / STATEMENT, what="evidence statement", max_bytes=MAX_STATEMENT_BYTES
        )
        signed = parse_statement(data)
        self.folder, self.statement = folder, signed.statement
        self.issuer = decode_base64(self.statement.issuer, what="issuer", length=32)
        if issuer is not None and issuer != self.issuer:
            raise EvidenceError("The evidence was signed by another authority than expected.")
        signature = decode_base64(signed.signature, what="evidence signature", length=64)
        statement = canonical_json(self.statement)
        verify(self.issuer, EVIDENCE_DOMAIN, statement, signature, what="evidence")
        self._check_files()
        self.report = TraceReport.from_bytes(self.file(REPORT, MAX_REPORT_BYTES))
        events = [self._checked(signed_event) for signed_event in self.statement.events]
        self.events = [event for event in events if event.at <= self.report.at]
        self.bound: list[str] = []
        self.created = self._event(AUTHORITY_CREATED)

    def verify(self) -> Verified:
        statement, p_values = self.statement, {}
        if self.report.kind != statement.kind:
            raise EvidenceError("The report and the statement are about different things.")
        if {s.key_id for s in self.report.guilty} != {a.key_id for a in statement.accused}:
            raise EvidenceError("The report names other users than the statement accuses.")
        chance_of = {
            "bundle": self._slot_keys,
            "key": self._slot_keys,
            "table": self._table,
            "service": self._service,
            "weights": self._weights,
        }[statement.kind]()
        for accused in statement.accused:
            chance = corrected(chance_of(accused), statement.tests)
            p_values[accused.subject] = chance
            if not proves_guilt(chance):
                raise EvidenceError(
                    f"The evidence does not prove that {accused.subject!r} is guilty: corrected "
                    f"p-value {chance:.1e}, at most {SIGNIFICANCE:g} is."
                )
        issuer = self.issuer.hex()
        return Verified(statement.kind, issuer, p_values, statement.tests, max(self.bound))

    # --- kinds: each gives the chance that an innocent looks as guilty as an accused -----------

    def _slot_keys(self) -> _Chance:
        slots = ShownSlots(self.statement, self.created)
        said, choices = slots.leaked_bits(self.statement)
        both = np.tile([0, 1], (len(said), 1))
        weights = observed_weights(said, both, slots.biases)

        def chance_of(accused: Accused) -> float:
            bits = slots.bits_of(accused, self._issued(accused))
            counted = weights * self._unseen(accused, slots.numbers)
            return choices * _chance(counted, slots.biases, bits)

        return chance_of

    def _table(self) -> _Chance:
        table = _array(self.file("table.npy", MAX_TRACE_SET_BYTES))
        codebook = self._codebook()
        if table.shape != (codebook.num_labels,) or table.dtype.kind not in "iu":
            raise EvidenceError("The decode table is not one of this codebook.")
        return self._answers(codebook, lambda labels: table[labels].astype(np.int64))

    def _service(self) -> _Chance:
        data = self.file("trace-set.npy", MAX_TRACE_SET_BYTES)
        traces = TraceSet.from_secret_bytes(data)
        answers = _array(self.file("answers.npy", MAX_TRACE_SET_BYTES))
        codebook = self._codebook()
        digest = traces.digest.hex()
        self._event(MODEL_EXPORTED, **{"model_trace_set or trace_set": digest})
        if answers.shape != traces.labels.shape or answers.dtype.kind not in "iu":
            raise EvidenceError("The answers do not belong to the trace inputs.")
        if answers.size and not -1 <= answers.min() <= answers.max() < codebook.num_classes:
            raise EvidenceError("The answers are not classes of this codebook.")
        return self._answers(
            codebook, lambda labels: plurality(traces, answers.astype(np.int64), labels)
        )

    def _weights(self) -> _Chance:
        suspect, reference = (
            _arrays(self.file(name, _MAX_WEIGHTS_BYTES))
            for name in ("suspect.npz", "reference.npz")
        )
        digest = kernels_digest([k for k in reference if k is not None])
        marks = whiten(suspect, reference)

        def chance_of(accused: Accused) -> float:
            self._issued(accused)
            key = decode_base64(accused.fingerprint_key, what="fingerprint_key", length=32)
            mark = {"recipient": accused.key_id, "fingerprint": fingerprint_commitment(key)}
            exported = self._event(MODEL_EXPORTED, **mark, kernels_digest=digest)
            model_id = exported.details.get("model_id")
            if any(e.details.get("model_id") == model_id for e in self._earlier(accused)):
                raise EvidenceError(f"Earlier evidence has shown the mark of {accused.subject!r}.")
            return p_value(correlate(marks, key))

        return chance_of

    # --- parts -------------------------------------------------------------------

    def _answers(self, codebook: Codebook, read: Callable[[np.ndarray], np.ndarray]) -> _Chance:
        """From what was said to live labels; `read` maps their numbers `[T]` to classes."""
        slots = ShownSlots(self.statement, self.created)
        live = self._live_labels(codebook, slots.numbers)
        labels = np.array([one.label for one in live], np.int64)
        pairs = np.array([one.classes for one in live], np.int64).reshape(-1, 2)
        weights = observed_weights(read(labels), pairs, slots.biases)

        def chance_of(accused: Accused) -> float:
            bits = slots.bits_of(accused, self._issued(accused))
            slots.check_reading(accused, codebook, live)
            counted = weights * self._unseen(accused, slots.numbers)
            return _chance(counted, slots.biases, bits)

        return chance_of

    def _live_labels(self, codebook: Codebook, slots: list[int]) -> list[LiveLabel]:
        """All trace labels of the codebook: the log committed to them when it was made."""
        name, digest = codebook.codebook_id.hex(), sha256(codebook.to_bytes()).hexdigest()
        event = self._event(CODEBOOK_MADE, codebook=name, codebook_digest=digest)
        if len(slots) != len(self.statement.live):
            raise EvidenceError("The slots that are shown are not those of the trace labels.")
        live = [
            LiveLabel(
                one.label, slot, decode_base64(one.key, what="label key", length=16), one.classes
            )
            for one, slot in zip(self.statement.live, slots, strict=True)
        ]
        if live_commitment(live) != event.details.get("live"):
            raise EvidenceError("The trace labels are not those that the log committed to.")
        if any(one.label >= codebook.num_labels for one in live):
            raise EvidenceError("A trace label is none of this codebook.")
        return live

    def _codebook(self) -> Codebook:
        codebook = Codebook.from_bytes(self.file("codebook.json", MAX_CODEBOOK_BYTES))
        authorities = (codebook.issuer, codebook.authority.hex(), codebook.codebook_id.hex())
        expected = (self.issuer, self.created.details.get("public_key"), self.statement.codebook)
        if authorities != expected:
            raise EvidenceError("The codebook is of another authority, or is another one.")
        codebook.verify(self.issuer)
        return codebook

    def _issued(self, accused: Accused) -> Event:
        """The event that committed to the accused user's codeword, before their bundle was out."""
        user = {"key_id": accused.key_id, "subject": accused.subject}
        self._event(BUNDLE_WRITTEN, **user)
        return self._event(KEY_ISSUED, **user)

    def _earlier(self, accused: Accused) -> list[Event]:
        """Earlier evidence about this user: who has it can imitate them."""
        return [event for event in self.events if accuses(event, accused.key_id)]

    def _unseen(self, accused: Accused, slots: list[int]) -> np.ndarray:
        """float64 `[n]`: 0 at the slots of this user that earlier evidence has opened, else 1."""
        events = self._earlier(accused)
        shown = {slot for event in events for slot in event.details.get("slots", ())}
        return np.array([slot not in shown for slot in slots], np.float64)

    def _event(self, kind: str, **facts: str) -> Event:
        """The first event of a kind that `commits` to these facts; none is after the trace."""
        for event in self.events:
            first = event.number == 1 or kind != AUTHORITY_CREATED
            if event.kind == kind and first and commits(event, facts):
                self.bound.append(event.at)
                return event
        named = f" to its {', '.join(facts)}" if facts else ""
        raise EvidenceError(f"No signed event {kind!r} from before the trace commits{named}.")

    def _checked(self, signed: SignedEvent) -> Event:
        digest = event_digest(
            signed.event, decode_base64(signed.previous, what="previous", length=32)
        )
        signature = decode_base64(signed.signature, what="event signature", length=64)
        verify(self.issuer, EVENT_DOMAIN, digest, signature, what="event")
        return signed.event

    def _check_files(self) -> None:
        present = {path.name for path in self.folder.iterdir()} - {STATEMENT}
        if present != set(self.statement.files):
            odd = sorted(present ^ set(self.statement.files))
            raise EvidenceError(f"Files are missing from the evidence or extra: {', '.join(odd)}.")
        for name, wanted in self.statement.files.items():
            if not (self.folder / name).is_file():
                raise EvidenceError(f"{name!r} of the evidence is not a file.")
            digest = sha256()
            for part in _parts(self.folder / name):
                digest.update(part)
            if digest.hexdigest() != wanted:
                raise EvidenceError(f"The file {name!r} of the evidence was changed.")

    def file(self, name: str, max_bytes: int) -> bytes:
        """The bytes of one listed file."""
        if name not in self.statement.files:
            raise EvidenceError(f"The evidence lacks the file {name!r}.")
        return read_bounded(self.folder / name, what="evidence", max_bytes=max_bytes)


def _chance(weights: np.ndarray, biases: np.ndarray, bits: np.ndarray) -> float:
    """How likely an innocent scores as high as a user with these bits, before any correction."""
    return float(innocent_tail(weights, biases, scores(weights, biases, bits[None]))[0])


def _parts(path: Path) -> Iterator[bytes]:
    with open(open_file(path), "rb") as file:
        while part := file.read(1 << 20):
            yield part


def _array(data: bytes) -> np.ndarray:
    with contextlib.suppress(*DAMAGED):
        return load_npy(io.BytesIO(data), len(data))
    raise FormatError("An array of the evidence is malformed.")


def _arrays(data: bytes) -> list[np.ndarray | None]:
    """Arrays `0`, `1`, …; one of size 0 stands for a kernel that was not found."""
    with contextlib.suppress(*DAMAGED), zipfile.ZipFile(io.BytesIO(data)) as file:
        entries = file.infolist()
        if sum(entry.file_size for entry in entries) <= len(data):  # they are stored as they are
            parts = [file.read(f"{i}.npy") for i in range(len(entries))]
            arrays = [load_npy(io.BytesIO(part), len(part)) for part in parts]
            return [array if array.size else None for array in arrays]
    raise FormatError("The weights of the evidence are malformed.")
