"""The tables of the authority's file, and its version."""

from typing import Any, Final

import sqlalchemy as sa

from keras_encryip.crypto.encoding import decode_scalar

LEDGER_VERSION: Final = 4

_STORED: Final = {sa.Integer: "integer", sa.String: "text", sa.LargeBinary: "blob"}

metadata = sa.MetaData()

PENDING: Final = "pending"
ACTIVE: Final = "active"
REVOKED: Final = "revoked"
"""The status of a user."""

authority_table = sa.Table(
    "authority",
    metadata,
    sa.Column("ledger_version", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("created_at", sa.String, nullable=False),
    sa.Column("public_key", sa.LargeBinary, nullable=False),
    sa.Column("issuer", sa.LargeBinary, nullable=False),
    sa.Column("salt", sa.LargeBinary, nullable=False),
    sa.Column("scrypt_log2_n", sa.Integer, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
)
users_table = sa.Table(
    "users",
    metadata,
    sa.Column("user_id", sa.Integer, primary_key=True),
    sa.Column("subject", sa.String, nullable=False, unique=True),
    sa.Column("z", sa.LargeBinary, nullable=False),
    sa.Column("key_id", sa.String, nullable=False, unique=True),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("scope", sa.String, nullable=False),
    sa.Column("roles", sa.String, nullable=False),
    sa.Column("issued_at", sa.String, nullable=False),
    sa.Column("not_after", sa.String, nullable=False),
    sa.Column("revoked_at", sa.String),
)
models_table = sa.Table(
    "models",
    metadata,
    sa.Column("model_id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("created_at", sa.String, nullable=False),
    sa.Column("sealed_metadata", sa.LargeBinary, nullable=False),
    sa.Column("sealed_assignment", sa.LargeBinary, nullable=False),
    sa.Column("sealed_training", sa.LargeBinary),
    sa.Column("trace_set", sa.LargeBinary),
)
codebooks_table = sa.Table(
    "codebooks",
    metadata,
    sa.Column("codebook_id", sa.LargeBinary, primary_key=True),
    sa.Column("model_id", sa.ForeignKey("models.model_id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False, unique=True),
    sa.Column("created_at", sa.String, nullable=False),
    sa.Column("revoked", sa.String, nullable=False),
    sa.Column("public", sa.LargeBinary, nullable=False),
    sa.Column("sealed_assignment", sa.LargeBinary),  # NULL: the model's own
)
trace_sets_table = sa.Table(
    "trace_sets",
    metadata,
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
)
exports_table = sa.Table(
    "exports",
    metadata,
    sa.Column("export_id", sa.Integer, primary_key=True),
    sa.Column("codebook_id", sa.ForeignKey("codebooks.codebook_id"), nullable=False),
    sa.Column("trace_set", sa.ForeignKey("trace_sets.digest")),
    sa.Column("recipient", sa.ForeignKey("users.key_id")),
    sa.Column("kernels", sa.String, nullable=False),
    sa.Column("kernels_digest", sa.String, nullable=False),
    sa.Column("lock", sa.LargeBinary),  # NULL: not a locked export
)
events_table = sa.Table(
    "events",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("details", sa.String, nullable=False),
    sa.Column("previous", sa.LargeBinary, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
)


def ledger_version(connection: sa.Connection) -> int | None:
    """`None` if there is no authority in it; the newest if the table is missing altogether."""
    if not sa.inspect(connection).has_table(authority_table.name):
        return LEDGER_VERSION
    version = connection.execute(sa.select(authority_table.c.ledger_version)).scalar()
    return None if version is None else int(version)


def mistyped_column(connection: sa.Connection) -> str | None:
    """SQLite keeps a value of any type in any column; damage can turn bytes into text."""
    for table in metadata.sorted_tables:
        wrong = {str(column): _is_mistyped(column) for column in table.columns}
        anywhere = sa.select(sa.literal(1)).select_from(table).where(sa.or_(*wrong.values()))
        if connection.execute(anywhere.limit(1)).scalar():  # one pass over each table
            for name, condition in wrong.items():
                if connection.execute(sa.select(sa.exists().where(condition))).scalar():
                    return name
    return None


def _is_mistyped(column: sa.Column[Any]) -> sa.ColumnElement[bool]:
    kind = next(name for cls, name in _STORED.items() if isinstance(column.type, cls))
    kinds = [kind, "null"] if column.nullable else [kind]
    return sa.func.typeof(column).not_in(kinds)


def revoked_users(connection: sa.Connection) -> dict[str, int]:
    """key_id → z of every revoked user."""
    rows = connection.execute(
        sa.select(users_table.c.key_id, users_table.c.z).where(users_table.c.status == REVOKED)
    )
    return {row.key_id: decode_scalar(row.z, what="z") for row in rows}
