"""Connections: one engine per store, set up so that several processes can write, and faults told in our own errors.

SQLite: write-ahead log, and every writing transaction begins with BEGIN IMMEDIATE. With a plain BEGIN two processes
that read first and write later fail with "database is locked" whatever the timeout: neither can be given the lock.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
    StatementError,
)

from inspect_xai.errors import DatabaseAwayError, RefusedError, SettingsError, StoreError

BUSY_TIMEOUT_S: Final = 10.0  # the longest wait for another writer that was measured is 1.3 s
_READING: Final = {"inspect_xai_reading": True}
# One writer at a time on PostgreSQL too, as on SQLite: the ledger is a chain, and two chunks that hold the same
# pictures in another order would lock each other out. A chunk takes milliseconds. The number only has to be our own.
_WRITER_LOCK: Final = 0x1_5BEC7_0A1
# SQLSTATEs of PostgreSQL that no other try mends and no other row fares better with.
_LASTING: Final = {"53100": "its disk is full", "25006": "it is read-only", "57P04": "it was dropped"}
# Beginnings of SQLSTATEs after which the same may work later: no connection, rolled back for another's sake, short of
# memory or connections, a lock or a time limit, shut down or starting, trouble of the system below it.
_AWAY: Final = ("08", "40", "53", "55P03", "57", "58")
# And of those that blame what was to be written: wrong data, a broken rule of a table, beyond a limit.
_REFUSED: Final = ("22", "23", "54")


def open_engine(url: str) -> Engine:
    """An engine for `url`, set up for this package.

    Raises:
        SettingsError: The URL names no database we know.
    """
    address = parsed(url)
    if address.get_backend_name() == "sqlite":
        engine = create_engine(address, connect_args={"timeout": BUSY_TIMEOUT_S})
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(
        address,
        pool_pre_ping=True,
        connect_args={"options": "-c timezone=UTC -c random_page_cost=1.1", "connect_timeout": 10},
    )


def parsed(url: str) -> URL:
    """The URL with its driver filled in: sqlite:///path or postgresql://user@host/name.

    Raises:
        SettingsError: It is neither.
    """
    expected = "sqlite:///inspections.db or postgresql://user@host/database"
    try:
        address = make_url(url)
    except ArgumentError as error:
        raise SettingsError(f"{url!r} is no database URL", expected=expected) from error
    if address.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return address.set(drivername="postgresql+psycopg")
    if address.drivername != "sqlite" or address.database in (None, "", ":memory:"):
        found = address.render_as_string(hide_password=True)
        raise SettingsError(f"no store can be kept at {found!r}", expected=expected)
    return address


def shown(url: str) -> str:
    """The URL as it may be printed: without the password."""
    return make_url(url).render_as_string(hide_password=True)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one state of the database and holds up no writer."""
    with told(engine), engine.connect() as connection:
        connection = connection.execution_options(**_READING)
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes: all of it or nothing, and no other writer beside it."""
    with told(engine), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _WRITER_LOCK})
        yield connection


@contextmanager
def told(engine: Engine) -> Iterator[None]:
    """Turn what a driver raises into our errors, saying which of them another try can mend."""
    place = engine.url.render_as_string(hide_password=True)
    try:
        yield
    except NoSuchModuleError as error:  # pragma: no cover - psycopg is absent
        raise SettingsError(f"no driver for {place}: {error}", remedy="pip install 'inspect-xai[postgres]'") from error
    except DBAPIError as error:
        reason = str(error.orig).strip()
        lasting = _lasting(error.orig)
        if lasting:
            raise StoreError(f"the database {place} takes nothing: {lasting} ({reason})") from error
        if error.connection_invalidated or _is_away(error):
            remedy = "see that it runs and can be reached, then do it again: nothing was half written"
            raise DatabaseAwayError(f"the database {place} is away: {reason}", remedy=remedy) from error
        kind = RefusedError if _blames_the_rows(error) else StoreError
        raise kind(f"the database {place} refuses: {reason}") from error
    except StatementError as error:  # a value that no column takes
        raise RefusedError(f"nothing to put into a database: {error.orig}") from error
    except OverflowError as error:  # from SQLite's driver, past SQLAlchemy
        raise RefusedError(f"the database {place} refuses: {error}") from error


def _is_away(error: DBAPIError) -> bool:
    """Whether the same may work later. A failure to connect has no SQLSTATE; SQLite's other faults are told before."""
    sqlstate = getattr(error.orig, "sqlstate", None)
    return sqlstate.startswith(_AWAY) if sqlstate else isinstance(error, OperationalError)


def _blames_the_rows(error: DBAPIError) -> bool:
    sqlstate = getattr(error.orig, "sqlstate", None)
    return sqlstate.startswith(_REFUSED) if sqlstate else isinstance(error, DataError | IntegrityError)


def _lasting(error: BaseException | None) -> str:
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the kind, the rest its detail
        return {
            sqlite3.SQLITE_FULL: "its disk is full",
            sqlite3.SQLITE_READONLY: "it is read-only",
            sqlite3.SQLITE_CORRUPT: "its file is damaged",
            sqlite3.SQLITE_NOTADB: "the file is no SQLite database",
            sqlite3.SQLITE_ERROR: "the statement is wrong for it",
        }.get(code, "")
    return _LASTING.get(getattr(error, "sqlstate", None) or "", "")


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite URL; None for a database server."""
    address = parsed(url)
    return Path(address.database or "") if address.get_backend_name() == "sqlite" else None


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself: we say when and how
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    # NORMAL could lose the last chunk in a power cut, after its pictures had been moved; FULL is one flush per chunk.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    only_reads = connection.get_execution_options().get("inspect_xai_reading", False)
    connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")
