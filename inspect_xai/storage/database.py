"""Connections: one engine per store, set up for several writing processes, with faults translated to our own errors.

SQLite: write-ahead log, and every writing transaction begins with BEGIN IMMEDIATE. With a plain BEGIN two processes
that read first and write later fail with "database is locked" whatever the timeout: neither can be given the lock.
"""

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, OperationalError, StatementError

from inspect_xai.errors import DatabaseAwayError, RefusedError, SettingsError, StoreError
from inspect_xai.storage.blob_store import BlobStore

BUSY_TIMEOUT_S: Final = 10.0  # the longest wait for another writer that was measured is 1.3 s
_READING: Final = {"inspect_xai_reading": True}
# One writer at a time on PostgreSQL too, as on SQLite: the ledger is a chain, and two chunks that hold the same
# pictures in another order would lock each other out. A chunk takes milliseconds. The number only has to be our own.
_WRITER_LOCK: Final = 0x1_5BEC7_0A1
_READ_ONLY: Final = "it is read-only"
# SQLSTATEs of PostgreSQL that neither another try nor another row avoids.
_LASTING: Final = {"53100": "its disk is full", "25006": _READ_ONLY, "57P04": "it was dropped"}
# Beginnings of SQLSTATEs after which the same may work later: no connection, rolled back for another's sake, short of
# memory or connections, a lock or a time limit, shut down or starting, trouble of the system below it.
_AWAY: Final = ("08", "40", "53", "55P03", "57", "58")
# And of those that blame what was to be written: wrong data, a broken rule of a table, beyond a limit.
_REFUSED: Final = ("22", "23", "54")


class DatabaseFile:
    """One SQLite file from its opening on: it is never created again, and no file that replaced it is used.

    Where this account may not write, it is read: beside a write-ahead log that somebody else keeps, else as it lies.

    Args:
        path: The file; it is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.is_read_only = not _may_write(self.path)
        self._identity = self._found()
        self._stamp: tuple[int, int] | None = None

    def connect(self) -> sqlite3.Connection:
        """Open it.

        Raises:
            StoreError: If it is gone, was replaced, or cannot be read without the right to write.
        """
        self._check_identity()  # before it is opened: "unable to open" alone helps nobody
        how = "mode=rw"
        if self.is_read_only:
            has_log = self._has_log()
            self._stamp = None if has_log else self._written()
            how = "mode=ro" if has_log else "mode=ro&immutable=1"
        connection = self._opened(how)
        try:
            self._check_identity()
            if self.is_read_only:
                connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        except sqlite3.OperationalError as error:
            connection.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}:
                raise StoreError(
                    f"{self.path} cannot be read: SQLite's write-ahead log needs write access to the folder",
                    remedy="give this account that right, or use PostgreSQL",
                ) from error
            raise
        except BaseException:
            connection.close()
            raise
        return connection

    def check(self) -> None:
        """Look whether the path still leads to the file that was opened, and to a database.

        Raises:
            StoreError: If not: what was recorded since is not where anybody will look for it.
        """
        self._check_identity()
        # Not by reading the file itself: closing it would let go of the locks that SQLite holds on it in this process.
        with closing(self._opened("mode=ro&immutable=1")) as connection:
            try:
                connection.execute("PRAGMA schema_version").fetchone()
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_NOTADB:
                    raise self._replaced("was overwritten with something that is no database") from error

    def check_unchanged(self) -> None:
        """Look whether a file read as it lies was written to since it was opened.

        Raises:
            DatabaseAwayError: If so: what was read may be of two moments.
        """
        if self._stamp is not None and self._stamp != self._written():
            raise DatabaseAwayError(
                f"the database {self.path} was written to while it was read", remedy="do it again: nothing was changed"
            )

    def _opened(self, how: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"file:{quote(os.fsencode(self.path))}?{how}", uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False
        )

    def _check_identity(self) -> None:
        found = self._found()
        if found is None:
            raise self._replaced("is gone")
        if found != self._identity:
            raise self._replaced("was replaced by another file")

    def _replaced(self, what: str) -> StoreError:
        return StoreError(
            f"the database {self.path} {what} while it was open",
            remedy="put the right file back and start again; pictures not yet moved stay claimed and are not lost",
        )

    def _found(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _written(self) -> tuple[int, int]:
        found = self.path.stat()
        return found.st_size, found.st_mtime_ns

    def _has_log(self) -> bool:
        log, index = (Path(f"{self.path}{ending}") for ending in ("-wal", "-shm"))
        return log.exists() and (log.stat().st_size > 0 or index.exists())


def _may_write(file: Path) -> bool:
    """Return whether this account may write the file and what SQLite keeps beside it."""

    def may(path: Path) -> bool:
        return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)

    return may(file) and (may(file.parent) or all(may(Path(f"{file}{ending}")) for ending in ("-wal", "-shm")))


def open_engine(url: str, *, file: DatabaseFile | None = None) -> Engine:
    """Create an engine for `url`, configured for this package.

    Args:
        url: The database.
        file: Its file as it was opened; None: made where there is none.

    Raises:
        SettingsError: The URL names no database we know, or its driver is not installed.
    """
    address = parsed(url)
    if address.get_backend_name() == "sqlite":
        if file is None:
            engine = create_engine(address, connect_args={"timeout": BUSY_TIMEOUT_S})
        elif file.is_read_only:
            engine = create_engine(address, creator=file.connect, poolclass=NullPool)
            event.listen(engine, "commit", lambda _: file.check_unchanged())
        else:
            engine = create_engine(address, creator=file.connect)
        if file is None or not file.is_read_only:
            event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        return create_engine(
            address,
            pool_pre_ping=True,
            connect_args={"options": "-c timezone=UTC -c random_page_cost=1.1", "connect_timeout": 10},
        )
    except ImportError as error:
        raise SettingsError(
            "PostgreSQL's driver psycopg is not installed", remedy="pip install 'inspect-xai[postgres]'"
        ) from error


def parsed(url: str) -> URL:
    """Parse a URL, sqlite:///path or postgresql://user@host/name, and fill in its driver.

    Raises:
        SettingsError: It is neither. The message never holds a part of a password.
    """
    expected = "sqlite:///inspections.db or postgresql://user:password@host:port/database"
    kind = url.partition(":")[0]
    if kind == "sqlite" and "?" in url:
        raise SettingsError(
            f"the database URL {url!r} holds a ?", expected="a path without one", remedy="rename the file or its folder"
        )
    if kind != "sqlite" and url.count("@") > 1:
        raise SettingsError(
            f"the {_kind_of(url)} URL of the database holds several @",
            expected=expected,
            remedy="write special characters of the password as %40 for @, %3A for :, %2F for /, %23 for #, %3F for ?",
        )
    try:
        address = make_url(url)
    except ArgumentError:
        raise SettingsError(_unreadable(url), expected=expected) from None
    except ValueError:  # not chained as it names what stands in the port's place, maybe a password
        raise SettingsError(
            f"the port in the {_kind_of(url)} URL of the database is no number", expected=expected
        ) from None
    if address.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        if address.port is not None and not 0 < address.port < 1 << 16:
            raise SettingsError("the port in the URL of the database is none", expected="1 to 65535")
        return address.set(drivername="postgresql+psycopg")
    if address.drivername != "sqlite" or address.database in (None, "", ":memory:"):
        raise SettingsError(f"no store can be kept at {_redacted(address)!r}", expected=expected)
    return address


def _kind_of(url: str) -> str:
    kind = url.strip().partition(":")[0]
    return kind if re.fullmatch(r"[a-z0-9+]{1,20}", kind) else "given"


def _unreadable(url: str) -> str:
    """Say that a URL cannot be read, without what may be a password in it."""
    if re.fullmatch(r"[\w./\\ -]*", url):  # a path, a name: nothing that could hold one
        return f"{url!r} is no database URL"
    return f"the {_kind_of(url)} URL of the database cannot be read"


def redact_url(url: str) -> str:
    """Return the URL without its passwords, for printing."""
    return _redacted(make_url(url))


def _redacted(address: URL) -> str:
    secret = [name for name in address.query if "pass" in name.lower()]
    return address.difference_update_query(secret).render_as_string(hide_password=True)


Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, eq=False)
class Database:
    """An open database and what belongs to it: all that `Store` and the modules beside it share. Safe among threads.

    Attributes:
        engine: Its connections.
        clock: Tells the time a row was written at.
        blobs: Where the maps lie when they do not lie in the database.
        file: The SQLite file that was opened; None for a server.
    """

    engine: Engine
    clock: Clock = utc_now
    blobs: BlobStore | None = None
    file: DatabaseFile | None = None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Begin a transaction that sees one state of the database and holds up no writer."""
        with translate_errors(self.engine), self.engine.connect() as connection:
            connection = connection.execution_options(**_READING)
            if self.engine.dialect.name == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Begin a transaction that writes: all of it or nothing, and no other writer beside it."""
        with translate_errors(self.engine), self.engine.begin() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _WRITER_LOCK})
            yield connection

    def read_blob(self, sha256: str) -> bytes:
        """Read an encoded map from the blob store.

        Raises:
            StoreError: There is no blob store, or no such map in it.
            DatabaseAwayError: The blob store cannot be read.
        """
        if self.blobs is None:
            remedy = "name the blob store it was recorded with (setting blob_store)"
            raise StoreError(f"the map {sha256} does not lie in the database", remedy=remedy)
        return self.blobs.get(sha256)

    def check_file(self) -> None:
        """Look whether the database's file is still the one that was opened; a server's database always is.

        Raises:
            StoreError: If it is gone, was replaced or overwritten: whatever rests on its rows has to wait.
        """
        if self.file is not None:
            self.file.check()

    def close(self) -> None:
        """Give the connections back; the database is not to be used afterwards."""
        self.engine.dispose()


@contextmanager
def translate_errors(engine: Engine) -> Iterator[None]:
    """Turn what a driver raises into our errors, with a class of their own for those that another try may avoid."""
    place = _redacted(engine.url)
    try:
        yield
    except DBAPIError as error:
        reason = " ".join(str(error.orig).split())
        lasting = _lasting(error.orig)
        if lasting:
            remedy = "give this account the right to write to it" if lasting == _READ_ONLY else ""
            raise StoreError(f"the database {place} takes nothing: {lasting} ({reason})", remedy=remedy) from error
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
    """Return whether a retry may work. A failure to connect has no SQLSTATE; SQLite's others come before."""
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
            sqlite3.SQLITE_READONLY: _READ_ONLY,
            sqlite3.SQLITE_CORRUPT: "its file is damaged",
            sqlite3.SQLITE_NOTADB: "the file is no SQLite database",
            sqlite3.SQLITE_ERROR: "the statement is wrong for it",
        }.get(code, "")
    return _LASTING.get(getattr(error, "sqlstate", None) or "", "")


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite URL; None for a database server."""
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
