"""The authority's file: tables, transactions, and an append-only event log.

One SQLite file by default, through SQLAlchemy. Every change is one transaction
together with its event, so that a process killed at any moment leaves either
all of a change or nothing. Events form a hash chain whose every link is signed.
"""

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from keras_encryip.formats.key_bundle import format_time
from keras_encryip.formats.atomic_files import make_new_file
from keras_encryip.crypto.encoding import canonical_json
from keras_encryip.crypto.signing import SigningKey, verify
from keras_encryip.errors import ArgumentError, LedgerError, SignatureError
from keras_encryip.tracing.events import EVENT_DOMAIN, Event, event_digest

LEDGER_VERSION: Final = 3
_UPGRADED: Final = 2
"""The version that is brought up to date when it is opened: it lacks a column."""
_FIRST: Final = b"\0" * 32
_BUSY_SECONDS: Final = 10

_STORED: Final = {sa.Integer: "integer", sa.String: "text", sa.LargeBinary: "blob"}

_metadata = sa.MetaData()

authority_table = sa.Table(
    "authority",
    _metadata,
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
    _metadata,
    sa.Column("user_id", sa.Integer, primary_key=True),
    sa.Column("subject", sa.String, nullable=False, unique=True),
    sa.Column("z", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("key_id", sa.String, nullable=False, unique=True),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("scope", sa.String, nullable=False),
    sa.Column("issued_at", sa.String, nullable=False),
    sa.Column("not_after", sa.String, nullable=False),
    sa.Column("revoked_at", sa.String),
)
models_table = sa.Table(
    "models",
    _metadata,
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
    _metadata,
    sa.Column("codebook_id", sa.LargeBinary, primary_key=True),
    sa.Column("model_id", sa.ForeignKey("models.model_id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False, unique=True),
    sa.Column("created_at", sa.String, nullable=False),
    sa.Column("revoked", sa.String, nullable=False),
    sa.Column("public", sa.LargeBinary, nullable=False),
    sa.Column("sealed_exponents", sa.LargeBinary, nullable=False),
    sa.Column("sealed_assignment", sa.LargeBinary),  # NULL: the model's own
)
trace_sets_table = sa.Table(
    "trace_sets",
    _metadata,
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
)
exports_table = sa.Table(
    "exports",
    _metadata,
    sa.Column("export_id", sa.Integer, primary_key=True),
    sa.Column("codebook_id", sa.ForeignKey("codebooks.codebook_id"), nullable=False),
    sa.Column("trace_set", sa.ForeignKey("trace_sets.digest")),
    sa.Column("recipient", sa.ForeignKey("users.key_id")),
    sa.Column("kernels", sa.String, nullable=False),
    sa.Column("kernels_digest", sa.String, nullable=False),
)
trace_answers_table = sa.Table(
    "trace_answers",
    _metadata,
    sa.Column("codebook_id", sa.ForeignKey("codebooks.codebook_id"), primary_key=True),
    sa.Column("chunk", sa.Integer, primary_key=True),
    sa.Column("users", sa.Integer, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
)
events_table = sa.Table(
    "events",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("details", sa.String, nullable=False),
    sa.Column("previous", sa.LargeBinary, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
)


class Ledger:
    """Connections to the authority's file, with errors in plain words.

    Args:
        url: an SQLAlchemy URL such as `"sqlite:///acme.authority"`.
    """

    def __init__(self, url: str | sa.URL) -> None:
        self.url = _parse_url(url)
        driver = None
        try:
            self._engine = sa.create_engine(self.url, hide_parameters=True)
        except ModuleNotFoundError as error:
            driver = error.name
        if driver:
            raise ArgumentError(f"{self.name!r} needs the Python package {driver!r}: install it.")
        if self.url.get_backend_name() == "sqlite":
            _configure_sqlite(self._engine)

    @classmethod
    def create(cls, url: str, fill: Callable[[sa.Connection], None]) -> "Ledger":
        """Make a new ledger; `fill` writes the first rows in its first transaction.

        A SQLite file appears whole, under its name, with mode 0600, or not at all.
        """
        ledger = cls(url)
        path = ledger.path
        if path is None:
            ledger._create_tables(fill)
            return ledger

        def build(temporary: Path) -> None:
            draft = cls(ledger.url.set(database=str(temporary)))
            try:
                draft._create_tables(fill)
            finally:
                draft.close()

        problem = ""
        try:
            make_new_file(path, build, mode=0o600)
        except ArgumentError as error:
            problem = str(error)
        if problem:
            raise LedgerError(problem)
        return ledger

    @classmethod
    def open(cls, url: str) -> "Ledger":
        """Open an existing ledger and check that its file is whole."""
        ledger = cls(url)
        path = ledger.path
        if path is not None and not path.is_file():
            raise LedgerError(
                f"There is no authority at {str(path)!r}. Make one with `Authority.create` "
                "or `encryip authority create`."
            )
        with ledger.reading() as connection:
            if path is not None:
                result = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
                if result != "ok":
                    raise LedgerError(f"The authority {str(path)!r} is damaged: {result}.")
                if path.stat().st_size != _file_size(connection):  # the check reads zeros instead
                    raise LedgerError(
                        f"The authority {str(path)!r} is damaged: only partly copied."
                    )
            if (version := _version(connection)) == _UPGRADED:
                _upgrade(connection)
            elif version != LEDGER_VERSION:
                raise LedgerError(
                    f"{ledger.name!r} has ledger version {version or 'none'}; this release reads "
                    f"{LEDGER_VERSION}. Open it with the release that made it."
                )
            missing = set(_metadata.tables) - set(sa.inspect(connection).get_table_names())
            if missing:
                raise LedgerError(
                    f"{ledger.name!r} is not a whole authority: table(s) "
                    f"{', '.join(sorted(missing))} are missing. Restore a full copy."
                )
            if path is not None and (column := _mistyped_column(connection)):
                raise LedgerError(f"The authority {str(path)!r} is damaged: column {column}.")
        return ledger

    @property
    def path(self) -> Path | None:
        """The SQLite file, or `None` for other databases and `sqlite://`."""
        database = self.url.database
        if self.url.get_backend_name() != "sqlite" or database in (None, "", ":memory:"):
            return None
        return Path(str(database))

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        self._engine.dispose()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction: all of it, or nothing if the block raises."""
        with self._plain_errors(), self._engine.begin() as connection:
            yield connection

    reading = writing
    """Reads take the same lock: a consistent view, and one code path."""

    def _create_tables(self, fill: Callable[[sa.Connection], None]) -> None:
        with self.writing() as connection:
            if sa.inspect(connection).has_table(authority_table.name):
                raise LedgerError(f"{self.name!r} holds an authority already.")
            _metadata.create_all(connection)
            fill(connection)

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        problem = ""
        try:
            yield
        except sa.exc.IntegrityError as error:
            problem = f"refused the change: {error.orig}"
        except sa.exc.DBAPIError as error:
            problem = f"cannot be used: {error.orig}"
        except UnicodeDecodeError:  # text that SQLite hands over as it is in the file
            problem = "is malformed"
        if not problem:
            return
        if "locked" in problem:
            problem = "is busy: another process is changing it. Try again when it has finished"
        elif "malformed" in problem or "not a database" in problem or "disk I/O" in problem:
            problem = "is damaged or only partly copied. Restore a full copy"
        elif "readonly" in problem or "unable to open" in problem:
            problem = "cannot be written: check the permissions of the file and its folder"
        raise LedgerError(f"The authority {self.name!r} {problem}.")


def append_event(
    connection: sa.Connection, signing_key: SigningKey, kind: str, details: dict[str, Any]
) -> None:
    """Add a signed link to the log, in the caller's transaction."""
    last = connection.execute(
        sa.select(events_table.c.number, events_table.c.digest)
        .order_by(events_table.c.number.desc())
        .limit(1)
    ).first()
    number, previous = (last.number + 1, last.digest) if last else (1, _FIRST)
    event = Event(number, format_time(datetime.now(UTC)), kind, details)
    digest = event_digest(event, previous)
    connection.execute(
        events_table.insert().values(
            number=number,
            at=event.at,
            kind=kind,
            details=canonical_json(details).decode("ascii"),
            previous=previous,
            digest=digest,
            signature=signing_key.sign(EVENT_DOMAIN, digest),
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
        broken = False
        try:
            verify(issuer, EVENT_DOMAIN, digest, signature, what="event log")
        except SignatureError:
            broken = True
        if broken:
            raise LedgerError(f"The event log was changed: event {len(events)} is not signed.")
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


def _file_size(connection: sa.Connection) -> int:
    pages, size = (
        int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
        for name in ("page_count", "page_size")
    )
    return pages * size


def _version(connection: sa.Connection) -> int | None:
    """`None` if there is no authority in it; the newest if the table is missing altogether."""
    if not sa.inspect(connection).has_table(authority_table.name):
        return LEDGER_VERSION
    version = connection.execute(sa.select(authority_table.c.ledger_version)).scalar()
    return None if version is None else int(version)


def _upgrade(connection: sa.Connection) -> None:
    """From version 2, which knew one assignment for each model, in the caller's transaction."""
    column = codebooks_table.c.sealed_assignment
    kind = column.type.compile(connection.dialect)
    connection.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {column.name} {kind}")
    connection.execute(authority_table.update().values(ledger_version=LEDGER_VERSION))


def _mistyped_column(connection: sa.Connection) -> str | None:
    """SQLite keeps a value of any type in any column; damage can turn bytes into text."""
    for table in _metadata.sorted_tables:
        for column in table.columns:
            kind = next(name for cls, name in _STORED.items() if isinstance(column.type, cls))
            kinds = [kind, "null"] if column.nullable else [kind]
            wrong = sa.select(column).where(sa.func.typeof(column).not_in(kinds)).exists()
            if connection.execute(sa.select(wrong)).scalar():
                return str(column)
    return None


def _parse_url(url: str | sa.URL) -> sa.URL:
    try:
        parsed = sa.make_url(url)
        parsed.get_dialect()
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError):
        parsed = None
    if parsed is None:
        raise ArgumentError(
            "`url` must be a database URL such as 'sqlite:///acme.authority' "
            f"(a plain file path needs the 'sqlite:///' before it). Received: url={url!r}"
        )
    return parsed


def _configure_sqlite(engine: sa.Engine) -> None:
    """Explicit transactions that take the write lock at once, and full durability."""

    @sa.event.listens_for(engine, "connect")
    def on_connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # no implicit BEGIN: `on_begin` does it
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")

    @sa.event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
