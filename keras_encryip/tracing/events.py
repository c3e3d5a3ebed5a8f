"""One link of an authority's event log: a signed, dated fact."""

from typing import Any, Final

import msgspec
from Crypto.Hash import SHA256

from keras_encryip.crypto.encoding import canonical_json

EVENT_DOMAIN: Final = "event v1"


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
    return SHA256.new(b"encryip event v1\0" + previous + canonical_json(event)).digest()
