"""The schema: migrations make what the tables say, on both databases; every misfit is refused by name."""

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from benchmarks.support import stored
from benchmarks.support.postgres import Cluster
from inspect_xai.errors import SchemaError
from inspect_xai.records import document_key
from inspect_xai.storage import database, schema
from inspect_xai.storage.review_queue import Desk
from inspect_xai.storage.review_queue_sql import QueueFilter
from inspect_xai.storage.review_reasons import PRIORITIES, ReviewReason
from inspect_xai.storage.store import open_store
from inspect_xai.storage.tables import REVISION, VERSION_TABLE, Base


def test_migrations_make_exactly_the_tables(database_url: str) -> None:
    engine = database.open_engine(database_url)
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True, "version_table": VERSION_TABLE}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
        found = inspect(connection)
        for table in Base.metadata.sorted_tables:
            # compare_metadata looks at neither of these
            named = {check["name"] for check in found.get_check_constraints(table.name)}
            assert named == {str(each.name) for each in table.constraints if type(each).__name__ == "CheckConstraint"}
            keys = {(key["name"], key["options"].get("ondelete")) for key in found.get_foreign_keys(table.name)}
            assert keys == {(str(key.name), key.ondelete) for key in table.foreign_key_constraints}
    engine.dispose()


def test_every_sqlite_table_is_strict(sqlite_template: Path) -> None:
    engine = database.open_engine(f"sqlite:///{sqlite_template}")
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT name, strict FROM pragma_table_list WHERE type = 'table'").all()
    engine.dispose()
    ours = {name: strict for name, strict in rows if not name.startswith("sqlite_") and name != VERSION_TABLE}
    assert ours == dict.fromkeys(Base.metadata.tables, 1)


@pytest.mark.parametrize("name", ["sqlite", "postgresql"])
def test_the_ddl_people_read_is_fresh(name: str) -> None:
    kept = (schema.sql_folder() / "schema" / f"{name}.sql").read_text(encoding="utf-8")
    assert kept == schema.ddl(name), "run: python -m inspect_xai.storage.schema"


def test_the_revision_of_this_build_is_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(schema.config()).get_heads() == [REVISION]


def test_rows_of_an_older_revision_keep_their_digests(tmp_path: Path, rng: np.random.Generator) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    with open_store(url) as store:
        stored.prepared(store).record([stored.inspection(1, explained=stored.explanation(rng))])
        head = store.ledger.head()
    older = tmp_path / "older.db"
    copied_to(older, "0004", tmp_path / "store.db")
    url = f"sqlite:///{older}"
    assert schema.upgrade_schema(url) == "0004"
    with open_store(url) as store:
        assert store.ledger.verify(heads=[head]).holds


NEW_TABLES = {
    "picture_signal": "image_statistics",
    "desk_item": "review_queue_item",
    "desk_mark": "review_cursor",
    "desk_answer": "review_request_key",
    "desk_session": "web_session",
    "study_answer": "study_rating",
}
NEW_COLUMNS = {
    "why": "reason",
    "tier": "priority",
    "judged_by": "first_reviewer",
    "second_by": "second_reviewer",
    "seen_id": "last_enqueued_id",
    "stamp": "file_version",
    "held_until": "lease_expires_at",
} | {document_key(name): name for table in Base.metadata.sorted_tables for name in table.columns.keys()}  # noqa: SIM118


def copied_to(older: Path, revision: str, store: Path) -> None:
    """A database of an older revision, with the rows that a store of today holds."""
    engine = database.open_engine(f"sqlite:///{older}")
    settings = schema.config()
    with engine.begin() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, revision)
    engine.dispose()
    with closing(sqlite3.connect(older)) as database_, database_:
        database_.execute("ATTACH ? AS today", (str(store),))
        names = database_.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in names:
            if name != VERSION_TABLE and not name.startswith("sqlite_"):
                columns = [row[1] for row in database_.execute(f"PRAGMA main.table_info({name})")]
                today = ", ".join(NEW_COLUMNS.get(column, column) for column in columns)
                source = f"SELECT {today} FROM today.{NEW_TABLES.get(name, name)}"
                database_.execute(f"INSERT INTO main.{name} ({', '.join(columns)}) {source}")


def test_the_queue_keeps_its_order_through_the_migration(tmp_path: Path, rng: np.random.Generator) -> None:
    with open_store(f"sqlite:///{tmp_path}/store.db") as store:
        stored.prepared(store).record([stored.inspection(1, explained=stored.explanation(rng))])
        assert Desk(store.database).enqueue_new() == 1
    older = tmp_path / "older.db"
    copied_to(older, "0005", tmp_path / "store.db")
    with closing(sqlite3.connect(older)) as rows, rows:
        rows.execute("UPDATE desk_item SET tier = 7, why = 'ng'")  # where revision 0005 put a rejected part
    assert schema.upgrade_schema(f"sqlite:///{older}") == "0005"
    with open_store(f"sqlite:///{older}") as store:
        (entry,) = Desk(store.database).queue(QueueFilter())
    assert (entry.priority, entry.reason) == (PRIORITIES[ReviewReason.NG], ReviewReason.NG)


def stamp(url: str, revision: str) -> None:
    engine = database.open_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{revision}'"))
    engine.dispose()


def test_a_newer_schema_is_refused_and_left_alone(database_url: str) -> None:
    stamp(database_url, "9999")
    for attempt in (lambda: open_store(database_url), lambda: schema.upgrade_schema(database_url)):
        with pytest.raises(SchemaError, match="is newer: schema revision 9999") as caught:
            attempt()
        assert f"inspect-xai db upgrade --db {database_url}" in str(caught.value)


@pytest.mark.postgres
def test_a_server_is_never_changed_without_being_asked(postgres_server: Cluster) -> None:
    url = postgres_server.create()
    with pytest.raises(SchemaError, match="has no tables of inspect-xai yet") as caught:
        open_store(url)
    assert f"inspect-xai db upgrade --db {url}" in str(caught.value)
    assert schema.upgrade_schema(url) == ""
    assert schema.upgrade_schema(url) == REVISION
    open_store(url).close()


def test_upgrading_leaves_logging_alone(tmp_path: Path) -> None:
    before = (logging.root.level, list(logging.root.handlers), logging.getLogger("alembic").level)
    disabled = logging.getLogger("a.logger.that.was.there")
    schema.upgrade_schema(f"sqlite:///{tmp_path}/new/folder/store.db")
    assert (logging.root.level, list(logging.root.handlers), logging.getLogger("alembic").level) == before
    assert not disabled.disabled


def test_several_processes_may_make_one_file_at_once(tmp_path: Path) -> None:
    program = f"from inspect_xai.storage.store import open_store; open_store('sqlite:///{tmp_path}/store.db').close()"
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_a_migration_that_is_killed_leaves_nothing_half_done(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_server").create()
    # The statement that fills the version table never returns: everything before it has been run, nothing committed.
    program = (
        "import time\n"
        "from sqlalchemy import event\n"
        "from inspect_xai.storage import database, schema\n"
        "made = database.open_engine\n"
        "def slow(url):\n"
        "    engine = made(url)\n"
        "    @event.listens_for(engine, 'before_cursor_execute')\n"
        "    def wait(connection, cursor, statement, *rest):\n"
        "        if 'INSERT INTO inspect_xai_version' in statement:\n"
        "            print('here', flush=True)\n"
        "            time.sleep(60)\n"
        "    return engine\n"
        "database.open_engine = slow\n"
        f"schema.upgrade_schema({url!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    begun = time.monotonic()
    engine = database.open_engine(url)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == []
    engine.dispose()
    assert schema.upgrade_schema(url) == ""
    open_store(url).close()
    assert time.monotonic() - begun < 20
