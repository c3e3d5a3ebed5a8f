"""The authority's file: connections and transactions.

One SQLite file by default, through SQLAlchemy. Every change is one transaction
together with its event, so that a process killed at any moment leaves either
all of a change or nothing.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from keras_encryip.authority.schema import (
    LEDGER_VERSION,
    authority_table,
    ledger_version,
    metadata,
    mistyped_column,
)
from keras_encryip.errors import ArgumentError, LedgerError, instead_of
from keras_encryip.formats.atomic_files import make_new_file, unexpanded

_BUSY_SECONDS: Final = 10
_URL: Final = re.compile(r"[A-Za-z][\w+.-]+://")
"""How a URL begins; a single letter is a drive."""


class Ledger:
    """Connections to the authority's file, with errors in plain words.

    Args:
        url: an SQLAlchemy URL such as `"sqlite:///acme.authority"`, or a file's path.
    """

    def __init__(self, url: str | os.PathLike[str] | sa.URL) -> None:
        self.url = _parse_url(url)
        with instead_of(
            ModuleNotFoundError,
            raises=lambda error: ArgumentError(
                f"{self.name!r} needs the Python package {error.name!r}: install it."
            ),
        ):
            self._engine = sa.create_engine(self.url, hide_parameters=True)
        if self.url.get_backend_name() == "sqlite":
            _configure_sqlite(self._engine)

    @classmethod
    def create(cls, url: str | os.PathLike[str], fill: Callable[[sa.Connection], None]) -> "Ledger":
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

        with instead_of(ArgumentError, raises=lambda error: LedgerError(str(error))):
            make_new_file(path, build, mode=0o600)
        return ledger

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> "Ledger":
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
            if (version := ledger_version(connection)) != LEDGER_VERSION:
                reader = " Release 0.3 of keras_encryip reads it." if version == 3 else ""
                raise LedgerError(
                    f"{ledger.name!r} has ledger version {version or 'none'}; this release reads "
                    f"{LEDGER_VERSION}.{reader} Open it with the release that made it, or create "
                    "a new authority and issue keys and protect models anew."
                )
            missing = set(metadata.tables) - set(sa.inspect(connection).get_table_names())
            if missing:
                raise LedgerError(
                    f"{ledger.name!r} is not a whole authority: table(s) "
                    f"{', '.join(sorted(missing))} are missing. Restore a full copy."
                )
            if path is not None and (column := mistyped_column(connection)):
                raise LedgerError(f"The authority {str(path)!r} is damaged: column {column}.")
        return ledger

    @property
    def path(self) -> Path | None:
        """The SQLite file, or `None` for other databases and `sqlite://`."""
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

    def _create_tables(self, fill: Callable[[sa.Connection], None]) -> None:
        with self.writing() as connection:
            if sa.inspect(connection).has_table(authority_table.name):
                raise LedgerError(f"{self.name!r} holds an authority already.")
            metadata.create_all(connection)
            fill(connection)

    def _plain_errors(self) -> instead_of:
        return instead_of(
            sa.exc.DBAPIError,
            UnicodeDecodeError,  # text that SQLite hands over as it is in the file
            raises=lambda error: LedgerError(f"The authority {self.name!r} {_in_words(error)}."),
        )


def raw_rows(
    connection: sa.Connection, query: sa.Select[Any], size: int
) -> Iterator[list[tuple[Any, ...]]]:
    """A query's rows as the database's driver gives them, in parts: a million cost a second.

    SQLAlchemy's own rows cost several times as much.
    """
    text = query.compile(connection, compile_kwargs={"literal_binds": True})
    message = "The authority's file is damaged or only partly copied. Restore a full copy."
    driver: Any = connection.dialect.dbapi
    cursor = connection.connection.cursor()
    with (
        contextlib.closing(cursor),
        instead_of(driver.Error, raises=lambda _: LedgerError(message)),
    ):
        cursor.execute(str(text))
        while part := cursor.fetchmany(size):
            yield list(part)


def _in_words(error: Exception) -> str:
    """What a database's error means, and what to do."""
    text = str(error.orig) if isinstance(error, sa.exc.DBAPIError) else "malformed"
    if "locked" in text:
        return "is busy: another process is changing it. Try again when it has finished"
    if "malformed" in text or "not a database" in text or "disk I/O" in text:
        return "is damaged or only partly copied. Restore a full copy"
    if "readonly" in text or "unable to open" in text:
        return "cannot be written: check the permissions of the file and its folder"
    if isinstance(error, sa.exc.IntegrityError):
        return f"refused the change: {text}"
    return f"cannot be used: {text}"


def _file_size(connection: sa.Connection) -> int:
    pages, size = (
        int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
        for name in ("page_count", "page_size")
    )
    return pages * size


def _parse_url(url: str | os.PathLike[str] | sa.URL) -> sa.URL:
    """What is no URL is a path, with whatever characters a URL would give a meaning."""
    if isinstance(url, os.PathLike) or (isinstance(url, str) and url and not _URL.match(url)):
        return sa.URL.create("sqlite", database=_absolute(os.fsdecode(url)))
    with instead_of(
        sa.exc.ArgumentError,
        sa.exc.NoSuchModuleError,
        raises=lambda _: ArgumentError(
            "`url` must be a file's path or a database URL such as 'sqlite:///acme.authority'. "
            f"Received: url={url!r}"
        ),
    ):
        parsed = sa.make_url(url)
        parsed.get_dialect()
    if _is_file(parsed) and "uri" not in parsed.query:
        return parsed.set(database=_absolute(str(parsed.database)))
    return parsed


def _is_file(url: sa.URL) -> bool:
    return url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")


def _absolute(path: str) -> str:
    """The same file from any folder; a link is followed before `..` goes up, and never `~`."""
    folder, name = os.path.split(unexpanded(path))
    return os.path.join(os.path.realpath(folder), name)


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
