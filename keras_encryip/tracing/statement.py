"""What a folder of evidence says, apart from its files of exhibits.

docs/guides/tracing.md says what such a folder holds, and what it proves to whom.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np

from keras_encryip.crypto.encoding import canonical_json, encode_base64, parse_canonical_json
from keras_encryip.errors import FormatError
from keras_encryip.tracing.events import Event

STATEMENT: Final = "statement.json"
REPORT: Final = "report.json"
EVIDENCE_DOMAIN: Final = "evidence v2"
MAX_STATEMENT_BYTES: Final = 64 << 20
LEAKED_COUNTS: Final = (64, 256)
"""How many leaked slot keys are shown, or all: the fewest that prove guilt."""


class SignedEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event of the authority's log, which its signature proves alone.

    Attributes:
        event: the event.
        previous, signature: base64, digest of the event before, and Ed25519 signature.
    """

    event: Event
    previous: str
    signature: str


class _Shown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What opens a commitment: it stands in the folder, and in no log or traceback."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


class ShownBit(_Shown, frozen=True, forbid_unknown_fields=True):
    """An accused user's codeword at one of the slots that are shown.

    Attributes:
        bit: 0 or 1.
        blind: base64, 16 bytes, opens the commitment together with the bit.
        key: base64, the user's slot key; `""` where the leaked ones are shown.
    """

    bit: Annotated[int, msgspec.Meta(ge=0, le=1)]
    blind: str
    key: str = ""


class Accused(_Shown, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is shown about one guilty user.

    Attributes:
        subject, key_id: as issued.
        codeword_leaves: base64, M times 32 bytes: the commitment to the user's codeword.
        bits: what opens it at each of the slots that are shown.
        fingerprint_key: base64 of the mark of this user's copies of this model, or `""`.
    """

    subject: str
    key_id: str
    codeword_leaves: str = ""
    bits: list[ShownBit] = []
    fingerprint_key: str = ""


class ShownSlot(_Shown, frozen=True, forbid_unknown_fields=True):
    """`crypto.slots.SlotOpening`, bytes as base64."""

    slot: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    threshold: Annotated[int, msgspec.Meta(gt=0, lt=1 << 32)]
    blind: str
    digest_0: str
    digest_1: str


class ShownLabel(_Shown, frozen=True, forbid_unknown_fields=True):
    """`labels.live_labels.LiveLabel`, its key as base64."""

    label: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    key: str
    classes: tuple[
        Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)],
        Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)],
    ]


class Statement(_Shown, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The signed content of `statement.json`: all that is not a file of its own.

    Attributes:
        accused: the guilty users.
        events: of the authority's log: its creation, the accused users' keys, codebook, exports.
        files: name → SHA-256 in hexadecimal of every other file.
        issuer: base64 Ed25519 key of the authority.
        tests: users times comparisons that could have been named.
        slot_leaves: base64, M times 32 bytes: the commitment to the authority's slots.
        slots: what opens it: at the slot of each live label, or at those of leaked slot keys.
        codebook: for answers, its hexadecimal id.
        live: for answers, all trace labels of that codebook.
        trace_set: for a service, hexadecimal digest of the trace inputs.
        leaked_leaves: for keys, base64, M times 32 bytes: `leaked_leaf` of every slot.
        leaked: for keys, base64 of the leaked slot key at each of `slots`, or `""`.
    """

    accused: Annotated[list[Accused], msgspec.Meta(min_length=1, max_length=10_000)]
    events: Annotated[list[SignedEvent], msgspec.Meta(max_length=100_000)]
    files: dict[str, str]
    format: Literal["encryip-evidence"]
    issuer: str
    kind: Literal["bundle", "key", "table", "service", "weights"]
    tests: Annotated[int, msgspec.Meta(ge=1)]
    version: Literal[2]
    slot_leaves: str = ""
    slots: list[ShownSlot] = []
    codebook: str = ""
    live: list[ShownLabel] = []
    trace_set: str = ""
    leaked_leaves: str = ""
    leaked: list[str] = []


class SignedStatement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`statement.json`."""

    statement: Statement
    signature: str


class _Old(msgspec.Struct):
    class _Numbered(msgspec.Struct):
        version: int

    statement: _Numbered


def parse_statement(data: bytes) -> SignedStatement:
    """Read `statement.json`; the signature is not checked here.

    Raises:
        FormatError: malformed, or of another version.
    """
    try:
        version = msgspec.json.decode(data, type=_Old).statement.version
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        version = 2  # what is wrong is said below
    if version != 2:
        older = " Release 0.3 of keras_encryip reads it." if version == 1 else ""
        raise FormatError(
            f"This evidence has version {version}; this release reads version 2.{older}"
        )
    return parse_canonical_json(
        data, SignedStatement, what="evidence statement", max_bytes=MAX_STATEMENT_BYTES
    )


def leaked_leaf(slot: int, key: bytes) -> bytes:
    """What stands for one leaked slot key, `b""` if it is unknown, until it is shown."""
    content = slot.to_bytes(2, "big") + key
    return hashlib.sha256(b"encryip leaked slot key v1\0" + content).digest()


def slots_to_show(leaves: bytes, count: int) -> list[int]:
    """Which leaked slot keys are shown: the hash of all of them chooses, and not the owner.

    Args:
        leaves: M times 32 bytes, `leaked_leaf` of every slot.
        count: how many.

    Returns:
        `count` of the slots 0 … M−1, in increasing order.
    """
    root = hashlib.sha256(b"encryip leaked slots v1\0" + leaves).digest()
    ranks = {
        slot: hashlib.sha256(root + slot.to_bytes(2, "big")).digest()
        for slot in range(len(leaves) // 32)
    }
    return sorted(sorted(ranks, key=ranks.__getitem__)[:count])


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
