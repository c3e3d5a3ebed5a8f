"""The append-only event log: a hash chain whose every link is signed."""

import re
from collections.abc import Generator, Iterator
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from keras_encryip.authority.keys import AuthorityKeys
from keras_encryip.authority.schema import events_table
from keras_encryip.crypto.encoding import canonical_json
from keras_encryip.crypto.signing import verify
from keras_encryip.errors import ArgumentError, LedgerError, SignatureError, instead_of
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


def read_events(connection: sa.Connection, issuer: bytes) -> Generator[Event, None, None]:
    """The whole log in order: the newest event's signature is checked first, then the chain.

    Raises:
        LedgerError: an event was changed, removed or added by somebody else.
    """
    digest, e = _FIRST, events_table.c
    newest = connection.execute(
        sa.select(e.number, e.digest, e.signature).order_by(e.number.desc()).limit(1)
    ).first()
    if newest is not None:
        with instead_of(
            SignatureError,
            raises=lambda _: LedgerError(
                f"The event log was changed: event {newest.number} is not signed."
            ),
        ):
            verify(issuer, EVENT_DOMAIN, newest.digest, newest.signature, what="event log")
    with connection.execute(sa.select(events_table).order_by(e.number)) as rows:
        for number, row in enumerate(rows, 1):
            intact = row.number == number and row.previous == digest
            try:
                event = Event(row.number, row.at, row.kind, msgspec.json.decode(row.details))
                digest = event_digest(event, digest)
            except (msgspec.DecodeError, ValueError, RecursionError):
                intact = False
            if not intact or digest != row.digest:
                raise LedgerError(f"The event log was changed at event {row.number}.")
            yield event


def log_head(connection: sa.Connection) -> str:
    """`"N:DIGEST"` of the newest event, the digest in hexadecimal."""
    e = events_table.c
    row = connection.execute(sa.select(e.number, e.digest).order_by(e.number.desc()).limit(1)).one()
    return f"{row.number}:{row.digest.hex()}"


def check_log(connection: sa.Connection, expected: str) -> None:
    """Check that the log still holds the event that an earlier `log_head` named.

    One file cannot show that its newest events were cut off; a number and digest that were
    kept elsewhere can.

    Raises:
        ArgumentError: not of the form `"N:DIGEST"`.
        LedgerError: the log is shorter, or has another event there.
    """
    parts = re.fullmatch(r"([1-9][0-9]{0,17}):([0-9a-f]{64})", expected)
    if parts is None:
        raise ArgumentError(
            "`expect_log` must be the number of an event and its digest, as in "
            f"'12:{'0' * 6}…', 64 hexadecimal digits. Received: expect_log={expected!r}"
        )
    number, digest = int(parts[1]), bytes.fromhex(parts[2])
    e = events_table.c
    kept = connection.execute(sa.select(e.digest).where(e.number == number)).scalar()
    if kept is None:
        raise LedgerError(
            f"The event log ends before event {number}: it was cut, or the file is an old copy."
        )
    if kept != digest:
        raise LedgerError(f"The event log has another event {number} than was expected.")


def signed_events(
    connection: sa.Connection, wanted: sa.ColumnElement[bool]
) -> Iterator[tuple[Event, bytes, bytes]]:
    """(event, digest of the one before, signature) of some events, in order."""
    for row in connection.execute(
        sa.select(events_table).where(wanted).order_by(events_table.c.number)
    ):
        event = Event(row.number, row.at, row.kind, msgspec.json.decode(row.details))
        yield event, row.previous, row.signature
