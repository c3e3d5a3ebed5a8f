"""What a folder of evidence says, apart from its files of exhibits.

docs/tracing.md says what such a folder holds, and what it proves to whom.
"""

import io
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np

from keras_encryip.crypto.encoding import canonical_json, encode_base64
from keras_encryip.tracing.events import Event

STATEMENT: Final = "statement.json"
REPORT: Final = "report.json"
EVIDENCE_DOMAIN: Final = "evidence v1"
MAX_STATEMENT_BYTES: Final = 64 << 20


class SignedEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event of the authority's log, which its signature proves alone.

    Attributes:
        event: the event.
        previous, signature: base64, digest of the event before, and Ed25519 signature.
    """

    event: Event
    previous: str
    signature: str


class Accused(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is shown about one guilty user.

    Attributes:
        subject, key_id: as issued.
        z: base64 of 32 bytes, the public half of the key point.
        codebook: hexadecimal id of the codebook whose answers coincide, or `""`.
        trace_set: hexadecimal digest of the trace inputs, or `""`.
        openings: base64, one for each tracing block of that codebook.
        fingerprint_key: base64 of the mark of this user's copies of this model, or `""`.
        point: base64 of P(z)·G as computed from a leaked key, or `""`.
    """

    subject: str
    key_id: str
    z: str
    codebook: str = ""
    trace_set: str = ""
    openings: list[str] = []
    fingerprint_key: str = ""
    point: str = ""


class TracingBlocks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which blocks of a codebook trace, with the proof of each.

    Attributes:
        codebook: hexadecimal id.
        blocks: block numbers, increasing.
        proofs: base64 openings of these blocks' headers at their first node.
    """

    codebook: str
    blocks: list[int]
    proofs: list[str]


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The signed content of `statement.json`: all that is not a file of its own.

    Attributes:
        accused: the guilty users.
        events: of the authority's log: its creation, the accused users' keys, exports.
        files: name → SHA-256 in hexadecimal of every other file.
        issuer: base64 Ed25519 key of the authority.
        public_key: base64 of the authority's public key.
        tests: users times codebooks times trace sets that could have been named.
        tracing_blocks: for each codebook.
        combined: for a combined key, hexadecimal: the nodes, then the weights without w_0.
    """

    accused: Annotated[list[Accused], msgspec.Meta(min_length=1, max_length=10_000)]
    events: Annotated[list[SignedEvent], msgspec.Meta(max_length=100_000)]
    files: dict[str, str]
    format: Literal["encryip-evidence"]
    issuer: str
    kind: Literal["bundle", "key", "combined key", "table", "service", "weights"]
    public_key: str
    tests: Annotated[int, msgspec.Meta(ge=1)]
    version: Literal[1]
    tracing_blocks: list[TracingBlocks] = []
    combined: list[str] = []


class SignedStatement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`statement.json`."""

    statement: Statement
    signature: str


def to_npz(arrays: Sequence[np.ndarray | None]) -> bytes:
    """What `verify_evidence` reads as a list of kernels."""
    buffer = io.BytesIO()
    named: dict[str, Any] = {
        str(i): np.zeros(0, np.float32) if a is None else a for i, a in enumerate(arrays)
    }
    np.savez(buffer, **named)
    return buffer.getvalue()


def sign_statement(statement: Statement, sign: Callable[[str, bytes], bytes]) -> bytes:
    """The bytes of `statement.json`; `sign` maps (domain, message) to a signature."""
    signature = sign(EVIDENCE_DOMAIN, canonical_json(statement))
    return canonical_json(SignedStatement(statement, encode_base64(signature)))
