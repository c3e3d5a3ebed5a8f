"""The append-only event log: a hash chain whose every link is signed."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from keras_encryip.authority.keys import AuthorityKeys
from keras_encryip.authority.schema import events_table
from keras_encryip.crypto.encoding import canonical_json
from keras_encryip.crypto.signing import verify
from keras_encryip.errors import LedgerError, SignatureError, instead_of
from keras_encryip.tracing.events import EVENT_DOMAIN, Event, event_digest, now_text

_FIRST: Final = b"\0" * 32


def append_event(connection: sa.Connection, keys: AuthorityKeys, kind: str, **details: Any) -> None:
    """Add a signed link to the log, in the caller's transaction."""
    last = connection.execute(
        sa.select(events_table.c.number, events_table.c.digest)
        .order_by(events_table.c.number.desc())
        .limit(1)
    ).first()
    number, previous = (last.number + 1, last.digest) if last else (1, _FIRST)
    event = Event(number, now_text(), kind, details)
    digest = event_digest(event, previous)
    connection.execute(
        events_table.insert().values(
            number=number,
            at=event.at,
            kind=kind,
            details=canonical_json(details).decode("ascii"),
            previous=previous,
            digest=digest,
            signature=keys.sign(EVENT_DOMAIN, digest),
        )
    )


def read_events(connection: sa.Connection, issuer: bytes) -> list[Event]:
    """The whole log, its chain and the newest signature checked.

    Raises:
        LedgerError: an event was changed, removed or added by somebody else.
    """
    events: list[Event] = []
    digest, signature = _FIRST, b""
    for row in connection.execute(sa.select(events_table).order_by(events_table.c.number)):
        intact = row.number == len(events) + 1 and row.previous == digest
        try:
            event = Event(row.number, row.at, row.kind, msgspec.json.decode(row.details))
            digest, signature = event_digest(event, digest), row.signature
        except (msgspec.DecodeError, ValueError, RecursionError):
            intact = False
        if not intact or digest != row.digest:
            raise LedgerError(f"The event log was changed at event {row.number}.")
        events.append(event)
    if events:
        with instead_of(
            SignatureError,
            raises=lambda _: LedgerError(
                f"The event log was changed: event {len(events)} is not signed."
            ),
        ):
            verify(issuer, EVENT_DOMAIN, digest, signature, what="event log")
    return events


def signed_events(
    connection: sa.Connection, wanted: sa.ColumnElement[bool]
) -> Iterator[tuple[Event, bytes, bytes]]:
    """(event, digest of the one before, signature) of some events, in order."""
    for row in connection.execute(
        sa.select(events_table).where(wanted).order_by(events_table.c.number)
    ):
        event = Event(row.number, row.at, row.kind, msgspec.json.decode(row.details))
        yield event, row.previous, row.signature
