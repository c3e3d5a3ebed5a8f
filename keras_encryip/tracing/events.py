"""What an authority's event log holds: signed, dated facts of these kinds."""

import hashlib
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from keras_encryip.crypto.encoding import canonical_json, format_time

EVENT_DOMAIN: Final = "event v1"

AUTHORITY_CREATED: Final = "authority created"
KEY_ISSUED: Final = "key issued"
KEYS_ENROLLED: Final = "keys enrolled"
BUNDLE_WRITTEN: Final = "bundle written"
KEY_REVOKED: Final = "key revoked"
MODEL_PROTECTED: Final = "model protected"
CODEBOOK_MADE: Final = "codebook made"
MODEL_EXPORTED: Final = "model exported"
FOLDER_SEALED: Final = "folder sealed"
EVIDENCE_WRITTEN: Final = "evidence written"


class Event(msgspec.Struct, frozen=True):
    """One line of the event log.

    Attributes:
        number: 1, 2, 3 …
        at: UTC, `YYYY-MM-DDThh:mm:ssZ`.
        kind: e.g. `"key issued"`.
        details: public facts as a flat dictionary.
    """

    number: int
    at: str
    kind: str
    details: dict[str, Any]


def event_digest(event: Event, previous: bytes) -> bytes:
    """SHA-256 over a domain tag, the digest of the event before, and the event."""
    return hashlib.sha256(b"encryip event v1\0" + previous + canonical_json(event)).digest()


def commits(event: Event, facts: dict[str, str]) -> bool:
    """Whether an event has these facts. A name can be `"a or b"`: a, or b where there is no a."""

    def fact(names: str) -> Any:
        return next((event.details[n] for n in names.split(" or ") if n in event.details), None)

    return all(fact(names) == value for names, value in facts.items())


def accuses(event: Event, key_id: str) -> bool:
    """Whether evidence about this user was written."""
    accused = event.details.get("accused")
    return event.kind == EVIDENCE_WRITTEN and isinstance(accused, list) and key_id in accused


def now_text() -> str:
    """The moment, as events and reports say it: UTC, `YYYY-MM-DDThh:mm:ssZ`."""
    return format_time(datetime.now(UTC))
