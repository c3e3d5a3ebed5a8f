"""Whether an authority's tables say what its signed event log says."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Final

import sqlalchemy as sa

from keras_encryip.authority.event_log import check_log, read_events
from keras_encryip.authority.ledger import Ledger, raw_rows
from keras_encryip.authority.schema import (
    ACTIVE,
    PENDING,
    REVOKED,
    authority_table,
    codebooks_table,
    exports_table,
    models_table,
    users_table,
)
from keras_encryip.crypto.encoding import canonical_json
from keras_encryip.crypto.kem import encoded_key_id
from keras_encryip.errors import LedgerError, instead_of
from keras_encryip.tracing.events import (
    AUTHORITY_CREATED,
    BUNDLE_WRITTEN,
    CODEBOOK_MADE,
    KEY_ISSUED,
    KEY_REVOKED,
    KEYS_ENROLLED,
    MODEL_EXPORTED,
    MODEL_PROTECTED,
    Event,
)

_COLUMNS: Final = (
    "subject",
    "key_id",
    "z",
    "status",
    "scope",
    "roles",
    "issued_at",
    "not_after",
    "revoked_at",
)
_STATE: Final = _COLUMNS[3:]
_CHECKED: Final = (authority_table, users_table, models_table, codebooks_table, exports_table)
_PART: Final = 10_000
NO_ROLES: Final = "[]"
"""The roles of a user whose bundle was never asked for."""


def check_ledger(ledger: Ledger, issuer: bytes, expect_log: str | None) -> None:
    """Refuse a ledger whose log is not signed, or not what its tables say.

    Args:
        ledger: open.
        issuer: the Ed25519 key (32 bytes) that signs the log.
        expect_log: an earlier `log_head`, or `None`.

    Raises:
        LedgerError: they differ, or the log is not the one of `expect_log`.
        ArgumentError: `expect_log` is no log head.
    """
    with (
        instead_of(
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            raises=lambda _: LedgerError(
                f"The event log of {ledger.name!r} holds what this release cannot read."
            ),
        ),
        ledger.reading() as connection,
        contextlib.closing(read_events(connection, issuer)) as events,
    ):
        table = inconsistency(connection, events)
        if expect_log is not None:
            check_log(connection, expect_log)
    if table:
        raise LedgerError(
            f"The {table} of {ledger.name!r} do not agree with its event log: "
            "the file was changed by other means, or is damaged."
        )


def inconsistency(connection: sa.Connection, events: Iterable[Event]) -> str | None:
    """Replay the log and compare: the name of a table that differs from it, or `None`.

    A row that was added, removed or edited by other means is found, and so is
    damage that the database itself cannot notice. A log and tables that were
    both set back to an earlier moment, as by restoring a backup, are not: `check_log`
    of an event that was noted elsewhere finds that.

    Log and users are read side by side: users who are as they were enrolled take no memory.
    """
    columns = [users_table.c[name] for name in _COLUMNS]
    in_order = sa.select(*columns).order_by(users_table.c.user_id)
    others = _Others()
    with contextlib.closing(raw_rows(connection, in_order, _PART)) as parts:
        users = _Users(chain.from_iterable(parts))
        for event in events:
            users.follow(event)
            others.follow(event)
        agree = users.agree()
    wrong = {name for name, rows in _stored(connection) if rows != others.rows[name]}
    if not agree:
        wrong.add(users_table.name)
    return next((table.name for table in _CHECKED if table.name in wrong), None)


def enrolled_digest(users: Sequence[tuple[str, str]]) -> str:
    """SHA-256, in hexadecimal, of (subject, key id) pairs: one event stands for many users."""
    return hashlib.sha256(canonical_json(users)).hexdigest()


class _Users:
    """The users' rows against the events that made and changed them.

    Args:
        rows: of `_COLUMNS`, in the order of issue.
    """

    def __init__(self, rows: Iterator[tuple[Any, ...]]) -> None:
        self._rows = rows
        self._changed: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._intact = True

    def follow(self, event: Event) -> None:
        facts = event.details
        if event.kind == KEYS_ENROLLED:
            new = {"status": PENDING, "roles": NO_ROLES, "revoked_at": None, **facts}
            self._add(list(islice(self._rows, facts["count"])), new, facts["digest"])
        elif event.kind == KEY_ISSUED and facts["key_id"] not in self._changed:
            new = {"status": PENDING, "revoked_at": None, **facts}
            row = next(self._rows, None)
            self._intact &= row is not None and tuple(row[:2]) == (
                facts["subject"],
                facts["key_id"],
            )
            if row is not None:
                self._add([row], new, None)
        elif event.kind in (KEY_ISSUED, BUNDLE_WRITTEN, KEY_REVOKED):
            status = {KEY_ISSUED: PENDING, BUNDLE_WRITTEN: ACTIVE, KEY_REVOKED: REVOKED}
            _, state = self._changed.get(facts["key_id"], (None, None))
            self._intact &= state is not None
            if state is not None and (event.kind == KEY_REVOKED or state["status"] == PENDING):
                state.update(facts, status=status[event.kind])

    def _add(self, rows: list[Any], new: dict[str, Any], digest: str | None) -> None:
        """Rows that an event made, all alike; those that later events changed are set aside."""
        if digest is not None:
            pairs = [(row[0], row[1]) for row in rows]
            self._intact &= len(rows) == new["count"] and enrolled_digest(pairs) == digest
        untouched = tuple(new[name] for name in _STATE)
        for row in rows:
            key_id, state = row[1], row[3:]
            self._intact &= encoded_key_id(row[2]) == key_id
            if digest is None or state != untouched:
                self._changed[key_id] = state, dict(new)

    def agree(self) -> bool:
        """Whether all rows are as the log says."""
        return (
            self._intact
            and next(self._rows, None) is None
            and all(
                state == tuple(expected[name] for name in _STATE)
                for state, expected in self._changed.values()
            )
        )


class _Others:
    """The rows that the log says the other tables have, in order: table → rows."""

    def __init__(self) -> None:
        tables = (authority_table, models_table, codebooks_table, exports_table)
        self.rows: dict[str, list[Any]] = {table.name: [] for table in tables}
        self._revoked: list[str] = []

    def follow(self, event: Event) -> None:
        facts = event.details
        if event.kind == AUTHORITY_CREATED:
            self.rows[authority_table.name].append((facts["name"],))
        elif event.kind == KEY_REVOKED:
            self._revoked.append(facts["key_id"])
        elif event.kind == MODEL_PROTECTED:
            self.rows[models_table.name].append((facts["model_id"], facts["model"]))
        elif event.kind == CODEBOOK_MADE:
            rows = self.rows[codebooks_table.name]
            revoked = canonical_json(sorted(self._revoked)).decode("ascii")
            numbered = len(rows) + 1, facts["codebook"], facts["model_id"]
            rows.append((*numbered, revoked, facts.get("assignment")))
        elif event.kind == MODEL_EXPORTED:
            rows = self.rows[exports_table.name]
            traces = facts.get("model_trace_set", facts["trace_set"])
            rows.append((len(rows) + 1, facts["codebook"], traces, facts.get("recipient")))


def _stored(connection: sa.Connection) -> Iterator[tuple[str, list[Any]]]:
    """The same of the rows that there are."""
    a, m, c, e = authority_table.c, models_table.c, codebooks_table.c, exports_table.c
    yield authority_table.name, [tuple(row) for row in connection.execute(sa.select(a.name))]
    models = connection.execute(sa.select(m.model_id, m.name).order_by(m.model_id))
    yield models_table.name, [tuple(row) for row in models]
    books = connection.execute(
        sa.select(c.number, c.codebook_id, c.model_id, c.revoked, c.sealed_assignment).order_by(
            c.number
        )
    )
    yield (
        codebooks_table.name,
        [
            (row[0], row[1].hex(), *row[2:4], row[4] and hashlib.sha256(row[4]).hexdigest())
            for row in books
        ],
    )
    exports = connection.execute(
        sa.select(e.export_id, e.codebook_id, e.trace_set, e.recipient).order_by(e.export_id)
    )
    yield (
        exports_table.name,
        [
            (row[0], row[1].hex(), row.trace_set.hex() if row.trace_set else "", row.recipient)
            for row in exports
        ],
    )
