"""The authority's file: connections and transactions.

One SQLite file, through SQLAlchemy. Every change is one transaction
together with its event, so that a process killed at any moment leaves either
all of a change or nothing.
"""

import contextlib
import os
import re
import sqlite3
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from keras_encryip.authority.schema import (
    LEDGER_VERSION,
    ledger_version,
    metadata,
    mistyped_column,
)
from keras_encryip.errors import ArgumentError, LedgerError, instead_of, reason
from keras_encryip.formats.atomic_files import make_new_file, unexpanded

_BUSY_SECONDS: Final = 10
_URL: Final = re.compile(r"[A-Za-z][\w+.-]+://")
"""How a URL begins; a single letter is a drive."""
_NO_URL: Final = (sa.exc.ArgumentError, ValueError)
_RESTORE: Final = (
    "Restore a full copy, with the file of the same name and '-wal' or '-journal', if there is one"
)


class Ledger:
    """The connection to the authority's file, with errors in plain words.

    Threads take turns: there is one connection, and each transaction has it for itself.

    Args:
        url: a file's path, or a sqlite URL such as `"sqlite:///acme.authority"`.
    """

    def __init__(self, url: str | os.PathLike[str] | sa.URL) -> None:
        self.url = _parse_url(url)
        with instead_of(*_NO_URL, raises=lambda _: _refused(url)):
            self._engine = sa.create_engine(
                self.url,
                hide_parameters=True,
                poolclass=sa.QueuePool,
                pool_size=1,
                max_overflow=0,
                pool_timeout=_BUSY_SECONDS,
                connect_args={"check_same_thread": False},
            )
        _configure(self._engine, self.path)

    @classmethod
    def create(cls, url: str | os.PathLike[str], fill: Callable[[sa.Connection], None]) -> "Ledger":
        """Make a new ledger; `fill` writes the first rows in its first transaction.

        A file appears whole, under its name, with mode 0600, or not at all.
        """
        ledger = cls(url)
        path = ledger.path
        if path is None:
            with ledger.closed_on_failure():
                ledger._fill(ledger, fill)
            return ledger

        def build(temporary: Path) -> None:
            _refuse_leftovers(path)
            draft = cls(ledger.url.set(database=str(temporary)))
            with contextlib.closing(draft):
                ledger._fill(draft, fill)

        with instead_of(ArgumentError, raises=lambda error: LedgerError(str(error))):
            make_new_file(path, build, mode=0o600)
        return ledger

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> "Ledger":
        """Open an existing ledger and check that its file is whole."""
        ledger = cls(url)
        with ledger.closed_on_failure(), ledger.reading() as connection:
            ledger._check(connection)
        return ledger

    @property
    def path(self) -> Path | None:
        """The SQLite file, or `None` for `sqlite://`, which is in memory."""
        return Path(str(self.url.database)) if _is_file(self.url) else None

    @property
    def name(self) -> str:
        """The file's path, or the URL without its password."""
        return str(self.path or self.url.render_as_string(hide_password=True))

    def close(self) -> None:
        self._engine.dispose()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction: all of it, or nothing if the block raises."""
        with self._plain_errors(), self._engine.begin() as connection:
            yield connection

    reading = writing
    """Reads take the same lock: a consistent view, and one code path."""

    @contextlib.contextmanager
    def closed_on_failure(self) -> Iterator[None]:
        """Release the file if the block raises."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _fill(self, draft: "Ledger", fill: Callable[[sa.Connection], None]) -> None:
        """Make the tables and first rows in a draft; errors name this ledger, not the draft."""
        with self._plain_errors(), draft._engine.begin() as connection:
            metadata.create_all(connection)
            fill(connection)

    def _check(self, connection: sa.Connection) -> None:
        """Refuse a file that is damaged, not whole, or of another version."""
        result = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
        if result != "ok":
            raise LedgerError(f"The authority {self.name!r} is damaged: {result}. {_RESTORE}.")
        if self.path is not None and _is_cut(connection, self.path):
            raise LedgerError(
                f"The authority {self.name!r} is damaged: only partly copied. {_RESTORE}."
            )
        if (version := ledger_version(connection)) != LEDGER_VERSION:
            reader = " Release 0.3 of keras_encryip reads it." if version == 3 else ""
            raise LedgerError(
                f"{self.name!r} has ledger version {version or 'none'}; this release reads "
                f"{LEDGER_VERSION}.{reader} Open it with the release that made it, or create "
                "a new authority and issue keys and protect models anew."
            )
        missing = set(metadata.tables) - set(sa.inspect(connection).get_table_names())
        if missing:
            raise LedgerError(
                f"{self.name!r} is not a whole authority: table(s) "
                f"{', '.join(sorted(missing))} are missing. {_RESTORE}."
            )
        if column := mistyped_column(connection):
            raise LedgerError(f"The authority {self.name!r} is damaged: column {column}.")

    def _plain_errors(self) -> instead_of:
        return instead_of(
            sa.exc.DBAPIError,
            sa.exc.TimeoutError,  # another thread has the connection
            sqlite3.Error,
            UnicodeDecodeError,  # text that SQLite hands over as it is in the file
            raises=lambda error: LedgerError(f"The authority {self.name!r} {_in_words(error)}."),
        )


def raw_rows(
    connection: sa.Connection, query: sa.Select[Any], size: int
) -> Generator[list[tuple[Any, ...]], None, None]:
    """A query's rows as `sqlite3` gives them, in parts: a million cost a second.

    SQLAlchemy's own rows cost several times as much.
    """
    text = query.compile(connection, compile_kwargs={"literal_binds": True})
    cursor = connection.connection.cursor()
    with contextlib.closing(cursor):
        cursor.execute(str(text))
        while part := cursor.fetchmany(size):
            yield list(part)


_BUSY: Final = "is busy: another process or thread is changing it. Try again when it has finished"
_DAMAGED: Final = f"is damaged or only partly copied. {_RESTORE}"
_FORBIDDEN: Final = "cannot be opened for writing: check the permissions of the file and its folder"
_IN_WORDS: Final = {
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_CANTOPEN: _FORBIDDEN,
    sqlite3.SQLITE_PERM: _FORBIDDEN,
    sqlite3.SQLITE_READONLY: _FORBIDDEN,
    sqlite3.SQLITE_READONLY_DBMOVED: (
        "was moved, replaced or removed while it was open. Open it again"
    ),
    sqlite3.SQLITE_FULL: (
        "could not be written: the disk is full. Nothing was changed: free some space and try again"
    ),
    sqlite3.SQLITE_IOERR: (
        "could not be read or written: disk I/O error. What was in it before is kept: check the "
        "disk's free space, your quota and the disk's connection, and try again"
    ),
}
"""SQLite's codes, extended or not, and what to do."""


def _in_words(error: Exception) -> str:
    """What a database's error means, and what to do."""
    if isinstance(error, sa.exc.TimeoutError):
        return _BUSY
    if isinstance(error, UnicodeDecodeError):
        return _DAMAGED
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_OK)
    words = _IN_WORDS.get(code) or _IN_WORDS.get(code & 0xFF)
    if isinstance(cause, sqlite3.IntegrityError):
        return f"refused the change: {cause}"
    return words or f"cannot be used: {cause}"


def _is_cut(connection: sa.Connection, path: Path) -> bool:
    """Whether pages are missing at the file's end: the integrity check reads zeros instead.

    Pages that are in a write-ahead log may be missing in the file itself.
    """
    log = Path(f"{path.resolve()}-wal")
    if log.exists() and log.stat().st_size:
        return False
    pages, size = (
        int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
        for name in ("page_count", "page_size")
    )
    return path.stat().st_size != pages * size


def _require_file(path: Path) -> None:
    """SQLite would make an empty file of what is not there."""
    with instead_of(
        OSError,
        raises=lambda error: LedgerError(f"Cannot read {str(path)!r}: {reason(error)}."),
    ):
        there = path.is_file()
    if not there:
        raise LedgerError(
            f"There is no authority at {str(path)!r}. Make one with `Authority.create` "
            "or `encryip authority create`."
        )


def _refuse_leftovers(path: Path) -> None:
    """SQLite would take what a killed process left of an earlier file for the new one's."""
    for left in (Path(f"{path}-journal"), Path(f"{path}-wal")):
        if os.path.lexists(left):
            raise LedgerError(
                f"{str(left)!r} was left there by an authority that had the same name, and would "
                "damage a new one. Restore that authority, or move the file away."
            )


def _parse_url(url: str | os.PathLike[str] | sa.URL) -> sa.URL:
    """What is no URL is a path, with whatever characters a URL would give a meaning."""
    if isinstance(url, os.PathLike) or (isinstance(url, str) and url and not _URL.match(url)):
        return sa.URL.create("sqlite", database=_absolute(os.fsdecode(url)))
    with instead_of(*_NO_URL, raises=lambda _: _refused(url)):
        parsed = sa.make_url(url)
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise _refused(url)
    if _is_file(parsed) and "uri" not in parsed.query:
        return parsed.set(database=_absolute(str(parsed.database)))
    return parsed


def _refused(url: Any) -> ArgumentError:
    shown = re.sub("//.*@", "//…@", url) if isinstance(url, str) else url  # it may hold a password
    return ArgumentError(
        "`url` must be a path or a sqlite URL such as 'sqlite:///acme.authority': an authority is "
        f"one SQLite file. Received: url={shown!r}"
    )


def _is_file(url: sa.URL) -> bool:
    return url.database not in (None, "", ":memory:")


def _absolute(path: str) -> str:
    """The same file from any folder; a link is followed before `..` goes up, and never `~`."""
    folder, name = os.path.split(unexpanded(path))
    return os.path.join(os.path.realpath(folder), name)


def _configure(engine: sa.Engine, path: Path | None) -> None:
    """Explicit transactions that take the write lock at once, and full durability."""

    @sa.event.listens_for(engine, "do_connect")
    def on_do_connect(*_: Any) -> None:
        if path is not None:
            _require_file(path)

    @sa.event.listens_for(engine, "connect")
    def on_connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # no implicit BEGIN: `on_begin` does it
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")

    @sa.event.listens_for(engine, "handle_error")
    def on_error(context: sa.ExceptionContext) -> None:
        context.is_disconnect = False  # nor is Ctrl-C: with its connection, memory would be lost

    @sa.event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
