"""A trace that somebody else can check, with no secret and no TensorFlow.

docs/tracing.md says what a folder of evidence holds, and what it proves to whom.
"""

import contextlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from Crypto.Hash import SHA256

from keras_encryip.crypto.combined_key import find_shares
from keras_encryip.crypto.encoding import (
    canonical_json,
    decode_base64,
    decode_point,
    decode_scalar,
    parse_canonical_json,
)
from keras_encryip.crypto.kem import PublicKey, key_id
from keras_encryip.crypto.signing import verify
from keras_encryip.crypto.tracing_header import verify_opening, verify_tracing
from keras_encryip.errors import DAMAGED, EvidenceError, FormatError
from keras_encryip.formats.atomic_files import read_bounded
from keras_encryip.formats.key_bundle import MAX_BUNDLE_BYTES, KeyBundle
from keras_encryip.labels.assignment import TRACE
from keras_encryip.labels.codebook import MAX_CODEBOOK_BYTES, Codebook
from keras_encryip.labels.trace_set import MAX_TRACE_SET_BYTES, TraceSet, plurality
from keras_encryip.tracing.events import (
    BUNDLE_WRITTEN,
    EVENT_DOMAIN,
    MODEL_EXPORTED,
    Event,
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
from keras_encryip.tracing.statement import (
    EVIDENCE_DOMAIN,
    MAX_STATEMENT_BYTES,
    REPORT,
    STATEMENT,
    Accused,
    SignedEvent,
    SignedStatement,
)
from keras_encryip.tracing.statistics import (
    FORGERY,
    SIGNIFICANCE,
    coincidences,
    corrected,
    proves_guilt,
)

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

    Raises:
        EvidenceError: a commitment does not fit, or the evidence does not prove guilt.
        SignatureError, FormatError: forged or malformed.
    """
    return _Case(Path(directory), issuer).verify()


class _Case:
    """A folder of evidence, its statement's signature and its files' digests checked."""

    def __init__(self, folder: Path, issuer: bytes | None) -> None:
        data = read_bounded(
            folder / STATEMENT, what="evidence statement", max_bytes=MAX_STATEMENT_BYTES
        )
        signed = parse_canonical_json(
            data, SignedStatement, what="evidence statement", max_bytes=MAX_STATEMENT_BYTES
        )
        self.folder, self.statement = folder, signed.statement
        self.issuer = decode_base64(self.statement.issuer, what="issuer", length=32)
        if issuer is not None and issuer != self.issuer:
            raise EvidenceError("The evidence was signed by another authority than expected.")
        signature = decode_base64(signed.signature, what="evidence signature", length=64)
        verify(
            self.issuer,
            EVIDENCE_DOMAIN,
            canonical_json(self.statement),
            signature,
            what="evidence",
        )
        self.public_key = PublicKey.from_bytes(
            decode_base64(self.statement.public_key, what="public_key")
        )
        self._check_files()
        self.events = [self._checked(signed_event) for signed_event in self.statement.events]
        self.report = TraceReport.from_bytes(self.file(REPORT, MAX_REPORT_BYTES))
        self.bound: list[str] = []

    def verify(self) -> Verified:
        statement = self.statement
        created = [e for e in self.events if e.details.get("public_key") == self._key_digest()]
        if not created:
            raise EvidenceError("No signed event commits to the public key.")
        if self.report.kind != statement.kind:
            raise EvidenceError("The report and the statement are about different things.")
        if {s.key_id for s in self.report.guilty} != {a.key_id for a in statement.accused}:
            raise EvidenceError("The report names other users than the statement accuses.")
        p_values = {}
        self.bound.append(min(event.at for event in created))
        for accused in statement.accused:
            self.bound.append(self._issue_of(accused).at)
            chance = {
                "bundle": self._bundle,
                "key": self._key,
                "combined key": self._combined,
                "table": self._table,
                "service": self._service,
                "weights": self._weights,
            }[statement.kind](accused)
            p_values[accused.subject] = corrected(chance, statement.tests)
            if not proves_guilt(p_values[accused.subject]):
                raise EvidenceError(
                    f"The evidence does not prove that {accused.subject!r} is guilty: corrected "
                    f"p-value {p_values[accused.subject]:.1e}, at most {SIGNIFICANCE:g} is."
                )
        issuer = self.issuer.hex()
        return Verified(statement.kind, issuer, p_values, statement.tests, max(self.bound))

    # --- kinds -------------------------------------------------------------------

    def _bundle(self, accused: Accused) -> float:
        bundle = KeyBundle.from_bytes(self.file("leaked.keybundle", MAX_BUNDLE_BYTES))
        if bundle.issuer != self.issuer or bundle.header.key_id != accused.key_id:
            raise EvidenceError(f"The bundle is not that of {accused.subject!r}.")
        return FORGERY

    def _key(self, accused: Accused) -> float:
        point = decode_point(decode_base64(accused.point, what="point"), what="Point")
        if point != self.public_key.evaluate_point(self._z(accused)):
            raise EvidenceError(f"The leaked point is not the key of {accused.subject!r}.")
        return FORGERY

    def _combined(self, accused: Accused) -> float:
        t = self.public_key.threshold
        if len(self.statement.combined) != 2 * t:
            raise EvidenceError("The combined key has a wrong number of weights.")
        numbers = [_number(text) for text in self.statement.combined]
        if len(set(numbers[:t])) != t:
            raise EvidenceError("The nodes of the combined key are not distinct.")
        zs = [self._z(other) for other in self.statement.accused]
        named, _ = find_shares(numbers[:t], numbers[t:], zs)
        if set(named) != set(zs):
            raise EvidenceError("The combined key is not made of the accused users' keys.")
        return FORGERY

    def _table(self, accused: Accused) -> float:
        table = _array(self.file("table.npy", MAX_TRACE_SET_BYTES))
        codebook = self._codebook(accused.codebook)
        labels = self._traced(codebook)
        if table.shape != (codebook.num_labels,) or table.dtype.kind not in "iu":
            raise EvidenceError("The decode table is not one of this codebook.")
        return self._coincidences(accused, codebook, labels, table[labels])

    def _service(self, accused: Accused) -> float:
        data = self.file(f"trace-set-{accused.trace_set[:16]}.npy", MAX_TRACE_SET_BYTES)
        traces = TraceSet.from_secret_bytes(data)
        answers = _array(self.file(f"answers-{accused.trace_set[:16]}.npy", MAX_TRACE_SET_BYTES))
        codebook = self._codebook(accused.codebook)
        self._export(trace_set=traces.digest.hex())
        if answers.shape != traces.labels.shape or answers.dtype.kind not in "iu":
            raise EvidenceError("The answers do not belong to the trace inputs.")
        if answers.size and not -1 <= answers.min() <= answers.max() < codebook.num_classes:
            raise EvidenceError("The answers are not classes of this codebook.")
        labels = np.intersect1d(self._traced(codebook), traces.labels)
        said = plurality(traces, answers.astype(np.int64), labels)
        return self._coincidences(accused, codebook, labels, said)

    def _weights(self, accused: Accused) -> float:
        suspect, reference = (
            _arrays(self.file(name, _MAX_WEIGHTS_BYTES))
            for name in ("suspect.npz", "reference.npz")
        )
        key = decode_base64(accused.fingerprint_key, what="fingerprint_key", length=32)
        self._export(
            recipient=accused.key_id,
            fingerprint=fingerprint_commitment(key),
            kernels_digest=kernels_digest([k for k in reference if k is not None]),
        )
        return p_value(correlate(whiten(suspect, reference), key))

    # --- parts -------------------------------------------------------------------

    def _coincidences(
        self, accused: Accused, codebook: Codebook, labels: np.ndarray, said: np.ndarray
    ) -> float:
        """The chance of as many agreements between what was said and the accused's answers."""
        z = self._z(accused)
        blocks = self._blocks(codebook)
        if len(accused.openings) != len(blocks):
            raise EvidenceError(f"The openings of {accused.subject!r} are not complete.")
        answers = np.full(codebook.num_labels, TRACE)
        for block, text in zip(blocks, accused.openings, strict=True):
            opening = decode_base64(text, what="opening")
            secret = verify_opening(codebook.headers[block], self.public_key, z, opening)
            in_block = np.flatnonzero(codebook.block_of == block)
            answers[in_block] = codebook.read_block(secret, in_block)
        _, chances = coincidences(said, answers[None, labels], codebook.num_classes)
        # An owner could leave out blocks that do not fit: every choice counts as a test.
        return float(chances[0]) * math.comb(len(codebook.headers), len(blocks))

    def _traced(self, codebook: Codebook) -> np.ndarray:
        """The labels of the blocks that are proved to trace."""
        return np.flatnonzero(np.isin(codebook.block_of, self._blocks(codebook)))

    def _blocks(self, codebook: Codebook) -> list[int]:
        name = codebook.codebook_id.hex()
        listed = [t for t in self.statement.tracing_blocks if t.codebook == name]
        if len(listed) != 1 or sorted(set(listed[0].blocks)) != listed[0].blocks:
            raise EvidenceError(f"The tracing blocks of codebook {name} are not listed.")
        blocks, proofs = listed[0].blocks, listed[0].proofs
        if len(proofs) != len(blocks) or not all(0 <= b < len(codebook.headers) for b in blocks):
            raise EvidenceError(f"The tracing blocks of codebook {name} are not proved.")
        for block, proof in zip(blocks, proofs, strict=True):
            verify_tracing(
                codebook.headers[block], self.public_key, decode_base64(proof, what="proof")
            )
        return blocks

    def _codebook(self, name: str) -> Codebook:
        data = self.file(f"codebook-{name}.json", MAX_CODEBOOK_BYTES)
        codebook = Codebook.from_bytes(data)
        authorities = (codebook.issuer, codebook.authority)
        if (
            authorities != (self.issuer, self.public_key.digest)
            or codebook.codebook_id.hex() != name
        ):
            raise EvidenceError(f"The codebook {name} is of another authority.")
        codebook.verify(self.issuer)
        digest = SHA256.new(data).hexdigest()
        self._export(codebook_digest=digest)
        return codebook

    def _export(self, **facts: str) -> None:
        """Check that an export with these facts came before the trace."""
        dates = [
            event.at
            for event in self.events
            if event.kind == MODEL_EXPORTED
            and event.at <= self.report.at
            and all(event.details.get(name) == value for name, value in facts.items())
        ]
        if not dates:
            raise EvidenceError(
                f"No signed event of an export before the trace commits to its {', '.join(facts)}."
            )
        self.bound.append(min(dates))

    def _issue_of(self, accused: Accused) -> Event:
        if key_id(self._z(accused)) != accused.key_id:
            raise EvidenceError(f"The key of {accused.subject!r} has another id.")
        for event in self.events:
            named = (event.details.get("key_id"), event.details.get("subject"))
            if event.kind == BUNDLE_WRITTEN and named == (accused.key_id, accused.subject):
                return event
        raise EvidenceError(f"No signed event says that {accused.subject!r} was given this key.")

    def _z(self, accused: Accused) -> int:
        return decode_scalar(decode_base64(accused.z, what="z", length=32), what="z")

    def _key_digest(self) -> str:
        return self.public_key.digest.hex()

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
            digest = SHA256.new()
            for part in _parts(self.folder / name):
                digest.update(part)
            if digest.hexdigest() != wanted:
                raise EvidenceError(f"The file {name!r} of the evidence was changed.")

    def file(self, name: str, max_bytes: int) -> bytes:
        """The bytes of one listed file."""
        if name not in self.statement.files:
            raise EvidenceError(f"The evidence lacks the file {name!r}.")
        return read_bounded(self.folder / name, what="evidence", max_bytes=max_bytes)


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            yield part


def _array(data: bytes) -> np.ndarray:
    with contextlib.suppress(*DAMAGED):
        array = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(array, np.ndarray):
            return array
    raise FormatError("An array of the evidence is malformed.")


def _number(text: str) -> int:
    data = b""
    with contextlib.suppress(ValueError):
        data = bytes.fromhex(text)
    return decode_scalar(data, what="combined key")


def _arrays(data: bytes) -> list[np.ndarray | None]:
    """Arrays `0`, `1`, …; one of size 0 stands for a kernel that was not found."""
    with contextlib.suppress(*DAMAGED), np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = [file[str(i)] for i in range(len(file.files))]
        return [array if array.size else None for array in arrays]
    raise FormatError("The weights of the evidence are malformed.")
