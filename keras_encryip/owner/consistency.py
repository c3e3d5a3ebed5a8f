"""Whether an authority's tables say what its signed event log says."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import sqlalchemy as sa

from keras_encryip.crypto.encoding import canonical_json, decode_scalar
from keras_encryip.crypto.kem import key_id
from keras_encryip.errors import FormatError
from keras_encryip.owner.ledger import (
    Event,
    authority_table,
    codebooks_table,
    models_table,
    users_table,
)

PENDING: Final = "pending"
ACTIVE: Final = "active"
REVOKED: Final = "revoked"

AUTHORITY_CREATED: Final = "authority created"
KEY_ISSUED: Final = "key issued"
BUNDLE_WRITTEN: Final = "bundle written"
KEY_REVOKED: Final = "key revoked"
MODEL_PROTECTED: Final = "model protected"
CODEBOOK_MADE: Final = "codebook made"

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
    expected = _replay(events)
    for table, rows in _stored(connection):
        if rows != expected[table]:
            return table
    return None


def _replay(events: Iterable[Event]) -> dict[str, list[Any]]:
    """The tables' rows, as far as the log knows them, in order."""
    authorities: list[Any] = []
    users: dict[str, dict[str, Any]] = {}
    models: list[Any] = []
    codebooks: list[Any] = []
    for event in events:
        facts = event.details
        if event.kind == AUTHORITY_CREATED:
            authorities.append(facts["name"])
        elif event.kind == KEY_ISSUED:
            users[facts["key_id"]] = {**facts, "status": PENDING, "revoked_at": None}
        elif event.kind == BUNDLE_WRITTEN and users[facts["key_id"]]["status"] == PENDING:
            users[facts["key_id"]].update(facts, status=ACTIVE)
        elif event.kind == KEY_REVOKED:
            users[facts["key_id"]].update(facts, status=REVOKED)
        elif event.kind == MODEL_PROTECTED:
            models.append((facts["model_id"], facts["model"]))
        elif event.kind == CODEBOOK_MADE:
            revoked = sorted(i for i, user in users.items() if user["status"] == REVOKED)
            text = canonical_json(revoked).decode("ascii")
            codebooks.append((len(codebooks) + 1, facts["codebook"], facts["model_id"], text))
    return {
        authority_table.name: authorities,
        users_table.name: [tuple(user[c] for c in _USER_COLUMNS) for user in users.values()],
        models_table.name: models,
        codebooks_table.name: codebooks,
    }


def _stored(connection: sa.Connection) -> Iterator[tuple[str, list[Any]]]:
    a, u, m, c = authority_table.c, users_table.c, models_table.c, codebooks_table.c
    yield authority_table.name, list(connection.execute(sa.select(a.name)).scalars())
    rows = connection.execute(sa.select(users_table).order_by(u.user_id)).all()
    named = [_key_id(row.z) == row.key_id for row in rows]
    yield (
        users_table.name,
        [
            tuple(getattr(row, column) for column in _USER_COLUMNS) if good else None
            for row, good in zip(rows, named, strict=True)
        ],
    )
    models = connection.execute(sa.select(m.model_id, m.name).order_by(m.model_id))
    yield models_table.name, [tuple(row) for row in models]
    books = connection.execute(
        sa.select(c.number, c.codebook_id, c.model_id, c.revoked).order_by(c.number)
    )
    yield (
        codebooks_table.name,
        [(row.number, row.codebook_id.hex(), row.model_id, row.revoked) for row in books],
    )


def _key_id(z: bytes) -> str | None:
    try:
        return key_id(decode_scalar(z, what="z"))
    except FormatError:
        return None
