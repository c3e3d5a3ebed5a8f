"""Whether an authority's tables say what its signed event log says."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import sqlalchemy as sa
from Crypto.Hash import SHA256

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
from keras_encryip.crypto.encoding import canonical_json, decode_scalar
from keras_encryip.crypto.kem import key_id
from keras_encryip.errors import FormatError
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

_USER_COLUMNS: Final = (
    "subject",
    "key_id",
    "status",
    "scope",
    "issued_at",
    "not_after",
    "revoked_at",
)


def inconsistency(connection: sa.Connection, events: Iterable[Event]) -> str | None:
    """Replay the log and compare: the name of a table that differs from it, or `None`.

    A row that was added, removed or edited by other means is found, and so is
    damage that the database itself cannot notice. A log and tables that were
    both set back to an earlier moment, as by restoring a backup, are not.
    """
    stored = dict(_stored(connection))
    expected = _replay(events, stored[users_table.name])
    return next((table for table, rows in stored.items() if rows != expected[table]), None)


def enrolled_digest(users: Iterable[tuple[str, str]]) -> str:
    """SHA-256, in hexadecimal, of (subject, key id) pairs: one event stands for many users."""
    return SHA256.new(canonical_json([list(user) for user in users])).hexdigest()


def _replay(events: Iterable[Event], stored_users: list[Any]) -> dict[str, list[Any] | None]:
    """The tables' rows, as far as the log knows them, in order.

    Users who were enrolled together are in the log as a digest only: they are taken
    from the table if it matches, and the table is `None` if it does not.
    """
    authorities: list[Any] = []
    users: dict[str, dict[str, Any]] = {}
    enrolled = True
    models: list[Any] = []
    codebooks: list[Any] = []
    exports: list[Any] = []
    for event in events:
        facts = event.details
        user = users.get(facts.get("key_id", ""), {})
        if event.kind == AUTHORITY_CREATED:
            authorities.append(facts["name"])
        elif event.kind == KEY_ISSUED:
            users[facts["key_id"]] = {**facts, "status": PENDING, "revoked_at": None}
        elif event.kind == KEYS_ENROLLED:
            rows = stored_users[len(users) : len(users) + facts["count"]]
            pairs = [(row[0], row[1]) for row in rows if row is not None]
            enrolled = enrolled and enrolled_digest(pairs) == facts["digest"]
            new = {"status": PENDING, "revoked_at": None, **facts}
            users |= {key: {**new, "subject": name, "key_id": key} for name, key in pairs}
        elif event.kind == BUNDLE_WRITTEN and user.get("status") == PENDING:
            user.update(facts, status=ACTIVE)
        elif event.kind == KEY_REVOKED:
            user.update(facts, status=REVOKED)
        elif event.kind == MODEL_PROTECTED:
            models.append((facts["model_id"], facts["model"]))
        elif event.kind == CODEBOOK_MADE:
            revoked = sorted(i for i, user in users.items() if user["status"] == REVOKED)
            text = canonical_json(revoked).decode("ascii")
            order = facts.get("assignment")
            codebooks.append(
                (len(codebooks) + 1, facts["codebook"], facts["model_id"], text, order)
            )
        elif event.kind == MODEL_EXPORTED:
            recipient = facts.get("recipient")
            traces = facts.get("model_trace_set", facts["trace_set"])
            exports.append((len(exports) + 1, facts["codebook"], traces, recipient))
    return {
        authority_table.name: authorities,
        users_table.name: [tuple(user[c] for c in _USER_COLUMNS) for user in users.values()]
        if enrolled
        else None,
        models_table.name: models,
        codebooks_table.name: codebooks,
        exports_table.name: exports,
    }


def _stored(connection: sa.Connection) -> Iterator[tuple[str, list[Any]]]:
    a, m, c, e = authority_table.c, models_table.c, codebooks_table.c, exports_table.c
    yield authority_table.name, list(connection.execute(sa.select(a.name)).scalars())
    u = users_table.c
    columns = sa.select(u.z, *(u[name] for name in _USER_COLUMNS)).order_by(u.user_id)
    rows = connection.execute(columns)
    yield (
        users_table.name,
        [tuple(row[1:]) if _key_id(row.z) == row.key_id else None for row in rows],
    )
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
            (row[0], row[1].hex(), *row[2:4], row[4] and SHA256.new(row[4]).hexdigest())
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


def _key_id(z: bytes) -> str | None:
    try:
        return key_id(decode_scalar(z, what="z"))
    except FormatError:
        return None
