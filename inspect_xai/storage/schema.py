"""Check and upgrade of the database schema.

`python -m inspect_xai.storage.schema` writes the DDL of the tables for both databases into sql/schema/.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from sqlalchemy import Connection, column, inspect, select, table, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from inspect_xai.errors import SchemaError, SettingsError, StoreError
from inspect_xai.storage import database, ledger
from inspect_xai.storage.tables import REVISION, VERSION_TABLE, Base

if TYPE_CHECKING:  # Alembic is loaded where a schema is changed: every other start does without
    from alembic.config import Config

_ADOPTED_SINCE: Final = "0014"  # the revision from which on events vouch for all that is in `ledger.COVERED_LATE`


def sql_folder() -> Path:
    """Return the folder with migrations/, views/, queries/ and schema/, of the checkout or of the wheel.

    Raises:
        StoreError: Neither is there: the installation is incomplete.
    """
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "sql" / "migrations").is_dir():
        return checkout / "sql"
    if (package / "_sql" / "migrations").is_dir():
        return package / "_sql"
    raise StoreError(f"no SQL files in {package / '_sql'}", remedy="install the package again: it is incomplete")


def upgrade_schema(url: str) -> str:
    """Bring the schema to the revision this build needs: all of it in one transaction, or nothing.

    Safe to call from several processes at once and again after an interruption.

    Returns:
        The revision it had before; empty: there was none.

    Raises:
        SchemaError: It is newer than this build.
        SettingsError: The URL names no database, or its path is spelled with %20 and the like.
        DatabaseAwayError: The database cannot be reached.
    """
    file = database.sqlite_file(url)
    if file is not None:
        if not file.parent.exists() and unquote(str(file.parent)) != str(file.parent):
            raise SettingsError(
                f"no folder {file.parent}", expected="a path in which spaces and signs stand as they are, not as %20"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
    opened = database.Database(database.open_engine(url))
    try:
        with _alone(file), opened.write() as connection:
            return _upgrade(connection, url)
    finally:
        opened.close()


def check_schema(opened: database.Database, url: str) -> None:
    """Raise unless the schema is exactly the one this build reads and writes.

    Raises:
        SchemaError: It is absent, older or newer; the message names the command to run.
    """
    with opened.read() as connection:
        found = _revision(connection)
    if found != REVISION:
        raise _misfit(found, url)


def _upgrade(connection: Connection, url: str) -> str:
    found = _revision(connection)
    if found == REVISION:
        return found
    settings = config()
    if found and found not in _known(settings):
        raise _misfit(found, url)
    from alembic import command

    settings.attributes["connection"] = connection
    for name in views():
        connection.execute(text(f"DROP VIEW IF EXISTS {name}"))  # so that a migration may change what they look at
    command.upgrade(settings, "head")
    # Created each time: SQLite drops a table's triggers when a migration rebuilds that table.
    plain = connection.execution_options(no_parameters=True)  # a % in a statement is no placeholder
    for statement in (*triggers(connection.dialect.name), *views().values()):
        plain.exec_driver_sql(statement)
    if found and found < _ADOPTED_SINCE:
        ledger.adopt(connection, now=datetime.now(UTC))
    return found


def config() -> "Config":
    """Return Alembic's settings without an alembic.ini, which would reconfigure logging."""
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(sql_folder() / "migrations").replace("%", "%%"))
    settings.set_main_option("path_separator", "os")
    return settings


def _known(settings: "Config") -> set[str]:
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory.from_config(settings).walk_revisions()}


def has_table(connection: Connection, name: str) -> bool:
    """Return whether the database has a table of this name."""
    return inspect(connection).has_table(name)


def _revision(connection: Connection) -> str:
    if not has_table(connection, VERSION_TABLE):
        return ""
    version = table(VERSION_TABLE, column("version_num"))
    return connection.execute(select(version.c.version_num)).scalar() or ""


def _misfit(found: str, url: str) -> SchemaError:
    place = database.redact_url(url)
    expected = f"schema revision {REVISION}"
    upgrade = f"run: inspect-xai db upgrade --db {place}"
    if not found:
        return SchemaError(f"the database {place} has no tables of inspect-xai yet", expected=expected, remedy=upgrade)
    if found not in _known(config()):
        remedy = f"install the version of inspect-xai that wrote it, or a newer one; then {upgrade}"
        return SchemaError(f"the database {place} is newer: schema revision {found}", expected=expected, remedy=remedy)
    return SchemaError(f"the database {place} is older: schema revision {found}", expected=expected, remedy=upgrade)


def views() -> dict[str, str]:
    """Statements that make the reporting views, by name, in the order of their files."""
    files = sorted((sql_folder() / "views").glob("*.sql"))
    return {file.stem.partition("_")[2]: file.read_text(encoding="utf-8").strip().rstrip(";") for file in files}


def triggers(dialect_name: str) -> list[str]:
    """Statements that make ledger and reviews append-only; one statement per paragraph of the file."""
    words = (sql_folder() / "triggers" / f"{dialect_name}.sql").read_text(encoding="utf-8")
    return [part.strip() for part in words.split("\n\n") if part.strip()]


@contextlib.contextmanager
def _alone(file: Path | None) -> Iterator[None]:
    """Hold a lock on an SQLite file's folder: two that switch a new file to WAL at once get in each other's way."""
    if file is None:
        yield
        return
    handle = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def ddl(dialect_name: str) -> str:
    """Return the DDL of all tables and triggers for "sqlite" or "postgresql", as in sql/schema/."""
    dialect = {"sqlite": sqlite.dialect, "postgresql": postgresql.dialect}[dialect_name]()
    lines = [
        f"-- Tables and triggers on {dialect_name}, revision {REVISION}. Made by: python -m inspect_xai.storage.schema"
    ]
    for each in Base.metadata.sorted_tables:
        lines.append(str(CreateTable(each).compile(dialect=dialect)).strip().replace("\t", "    ") + ";")
        indexes = sorted(each.indexes, key=lambda index: str(index.name))
        lines += [str(CreateIndex(index).compile(dialect=dialect)).strip() + ";" for index in indexes]
    lines += triggers(dialect_name)
    return "\n\n".join("\n".join(line.rstrip() for line in part.splitlines()) for part in lines) + "\n"


def write_ddl() -> None:
    """Write sql/schema/{sqlite,postgresql}.sql."""
    folder = sql_folder() / "schema"
    folder.mkdir(exist_ok=True)
    for name in ("sqlite", "postgresql"):
        (folder / f"{name}.sql").write_text(ddl(name), encoding="utf-8")


if __name__ == "__main__":
    write_ddl()
