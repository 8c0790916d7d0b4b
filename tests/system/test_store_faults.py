"""What the store survives: kill -9, two writers on the same pictures, a server that goes away, a full disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import psycopg
import pytest
from sqlalchemy import Connection, event, text

from benchmarks.support import stored
from benchmarks.support.postgres import Cluster
from benchmarks.support.stored import NOON
from inspect_xai.errors import DatabaseAwayError, RefusedError, StoreError
from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.line.line import Line, drain
from inspect_xai.line.stages import Schedule
from inspect_xai.records import Inspection
from inspect_xai.storage import database, schema
from inspect_xai.storage.results import RecordedInspection
from inspect_xai.storage.retention import Retention
from inspect_xai.storage.store import Store, open_store
from inspect_xai.storage.tables import VERSION_TABLE
from tests.conftest import ROOT
from tests.support import hostile, recorder, spots

FAR = NOON + timedelta(days=1)


def start(url: str, blob_store: Path | str, first: int, last: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "tests.support.recorder", url, str(blob_store), str(first), str(last)]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def check_whole(store: Store, pictures: int) -> None:
    """Every picture once, every map readable, every row vouched for."""
    found = store.day(NOON, FAR)
    assert [each.serial for each in found] == [f"SN{number:05d}" for number in range(pictures)]
    for each in found:
        explanation = store.get(each.inspection_id, maps=True).explanation
        assert explanation is not None
        assert explanation.fused is not None
        assert [block.sums is None for block in explanation.tiles[0].blocks] == [False, False, True]
    report = store.ledger.verify()
    assert report.findings == ()


@pytest.mark.slow
def test_kill_9_at_seeded_moments_loses_nothing_and_doubles_nothing(database_url: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    maps, pictures, kills = tmp_path / "maps", 400, 0
    for _ in range(20):
        with start(database_url, maps, 0, pictures) as process:
            assert process.stdout is not None
            # It begins from the first picture each time, as a line does whose files are still claimed.
            process.stdout.readline()
            timer = threading.Timer(float(rng.uniform(0.0, 0.25)), process.kill)
            timer.start()
            process.wait()
            timer.cancel()
            kills += process.returncode == -signal.SIGKILL
    assert kills >= 15
    with open_store(database_url, blob_store=str(maps)) as store:
        before = len(store.day(NOON, FAR))
        assert before % recorder.CHUNK == 0  # whole chunks only
        assert store.ledger.verify().findings == ()
    with start(database_url, maps, 0, pictures) as process:
        process.communicate()
        assert process.returncode == 0
    with open_store(database_url, blob_store=str(maps)) as store:
        check_whole(store, pictures)
        left = Retention(store.database).sweep_blobs(older_than=timedelta(hours=-1))
        assert len(list(maps.rglob("*.ixm"))) == pictures * 3, f"swept {len(left)}"
        check_whole(store, pictures)


def test_a_kill_in_the_middle_of_a_transaction_leaves_no_part_of_it(database_url: str, tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from inspect_xai.storage import ledger\n"
        "def hang(*a, **k):\n"
        "    print('here', flush=True)\n"
        "    time.sleep(60)\n"
        "appended = ledger.append\n"
        "ledger.append = lambda c, kind, *a, **k: (hang if kind == 'verdicts' else appended)(c, kind, *a, **k)\n"
        "from tests.support.recorder import main\n"
        f"main({database_url!r}, {str(tmp_path / 'maps')!r}, 0, 4)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.kill()
    with open_store(database_url, blob_store=str(tmp_path / "maps")) as store:
        assert store.day(NOON, FAR) == []
        assert len(list((tmp_path / "maps").rglob("*.ixm"))) == 12
        assert len(Retention(store.database).sweep_blobs(older_than=timedelta(hours=-1))) == 12
        recorder.main(database_url, str(tmp_path / "maps"), 0, 4)
        check_whole(store, 4)


def test_two_processes_that_record_the_same_pictures(database_url: str) -> None:
    with start(database_url, "", 0, 40) as one, start(database_url, "", 0, 40) as other:
        for process in (one, other):
            process.communicate()
    assert (one.returncode, other.returncode) == (0, 0)
    with open_store(database_url) as store:
        check_whole(store, 40)


def test_threads_share_a_store(database_url: str) -> None:
    with open_store(database_url) as store:
        stored.prepared(store)
        explained = recorder.explanation_of(1)
        chunks = [[stored.inspection(start + n, explained=explained) for n in range(5)] for start in (0, 5, 10, 0)]
        threads = [threading.Thread(target=store.record, args=(chunk,)) for chunk in chunks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check_whole(store, 15)


@pytest.mark.postgres
def test_a_server_that_goes_away_and_comes_back(postgres_server: Cluster, postgres_template: str) -> None:
    url = postgres_server.create(template=postgres_template)
    with open_store(url) as store:
        stored.prepared(store)
        chunk = [stored.inspection(number, explained=recorder.explanation_of(number)) for number in range(4)]
        store.record(chunk[:2])
        postgres_server.stop()
        try:
            with pytest.raises(DatabaseAwayError, match="is away") as caught:
                store.record(chunk)
            assert "nothing was half written" in str(caught.value)
            with pytest.raises(DatabaseAwayError):
                store.day(NOON, FAR)
        finally:
            postgres_server.start()
        assert [each.is_new for each in store.record(chunk)] == [False, False, True, True]
        check_whole(store, 4)


@pytest.mark.postgres
@pytest.mark.parametrize("statement", [1, 12, 30])
def test_a_chunk_whose_connection_is_cut_leaves_nothing_of_it(
    postgres_server: Cluster, postgres_template: str, statement: int
) -> None:
    url = postgres_server.create(template=postgres_template)
    chunk = [stored.inspection(number, explained=recorder.explanation_of(number)) for number in range(4)]
    with open_store(url) as store, closing(psycopg.connect(url, autocommit=True)) as other:
        stored.prepared(store)
        count = 0

        def cut(connection: Connection, *_: object) -> None:
            nonlocal count
            count += 1
            if count == statement:
                pid = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
                other.execute("SELECT pg_terminate_backend(%s)", [pid])

        event.listen(store.database.engine, "before_cursor_execute", cut)
        with pytest.raises(DatabaseAwayError, match="is away"):
            store.record(chunk)
        assert count == statement
        event.remove(store.database.engine, "before_cursor_execute", cut)
        assert store.day(NOON, FAR) == []
        assert [each.is_new for each in store.record(chunk)] == [True] * 4
        check_whole(store, 4)


@pytest.mark.postgres
def test_a_line_goes_on_when_its_server_comes_back(
    postgres_server: Cluster, postgres_template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres_server.create(template=postgres_template)
    for number in range(6):
        picture = tmp_path / f"in/L1/S3/SN{number}_LOT1_CAM1_top_early_20261123T120000Z.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(hostile.encoded(spots.part(number, spot_px=10)))
    back = threading.Timer(1.0, postgres_server.start)
    with (
        Line(spots.spot_bundle(tmp_path), url, device="cpu", schedule=Schedule(retry_after_s=(0.2,) * 100)) as line,
        FolderSource(tmp_path / "in", settle_s=0) as source,
    ):
        record, chunks = Store.record, 0

        def away_before_the_second(store: Store, inspections: list[Inspection]) -> list[RecordedInspection]:
            nonlocal chunks
            chunks += 1
            if chunks == 2:
                postgres_server.stop()
                back.start()
            return record(store, inspections)

        monkeypatch.setattr(Store, "record", away_before_the_second)
        try:
            summary = drain(line, source, chunk=2)
        finally:
            back.join()
    assert (summary.inspected, summary.already_known) == (6, 0)
    assert chunks > 3  # the second was tried again
    with open_store(url) as store:
        assert sorted(row.serial for row in store.find()) == [f"SN{number}" for number in range(6)]
        assert store.ledger.verify().holds
    assert list((tmp_path / "in/_claimed").rglob("*.png")) == []


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own with room for `size`; skips where that may not be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here: that takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, *, but_for: int) -> Path:
    """A file that leaves so many bytes."""
    filler = folder / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(folder).free - but_for))
    return filler


def test_a_file_system_that_runs_full_under_the_database(tmp_path: Path, sqlite_template: Path) -> None:
    many = [stored.inspection(number, explained=recorder.explanation_of(number)) for number in range(60)]
    with small_disk(tmp_path / "disk", "8m") as disk:
        shutil.copy(sqlite_template, disk / "store.db")
        with open_store(f"sqlite:///{disk}/store.db") as store:
            stored.prepared(store).record(many[:1])
            filler = fill(disk, but_for=100_000)
            with pytest.raises(StoreError, match="its disk is full"):
                store.record(many)
            assert len(store.day(NOON, FAR)) == 1  # what is there can be read all the same
            filler.unlink()
            assert sum(each.is_new for each in store.record(many)) == 59
            check_whole(store, 60)


def test_a_file_system_that_runs_full_under_the_maps(database_url: str, tmp_path: Path) -> None:
    many = [stored.inspection(number, explained=recorder.explanation_of(number)) for number in range(20)]
    with small_disk(tmp_path / "disk", "1m") as disk, open_store(database_url, blob_store=f"{disk}/maps") as store:
        stored.prepared(store)
        filler = fill(disk, but_for=40_000)
        with pytest.raises(DatabaseAwayError, match="No space left on device"):
            store.record(many)
        assert store.day(NOON, FAR) == []
        assert list(disk.rglob("*.part")) == []
        filler.unlink()
        store.record(many)
        check_whole(store, 20)
        assert Retention(store.database).sweep_blobs(older_than=timedelta(hours=-1)) == []


@pytest.mark.postgres
def test_a_file_system_that_runs_full_under_the_server(
    postgres_server: Cluster, postgres_template: str, tmp_path: Path
) -> None:
    many = [stored.inspection(number, explained=recorder.explanation_of(number)) for number in range(200)]
    with small_disk(postgres_server.folder / "small", "48m") as disk:
        shutil.chown(disk, "postgres", "postgres")
        url = postgres_server.create(template=postgres_template, tablespace=disk)
        try:
            with open_store(url) as store:
                stored.prepared(store).record(many[:1])
                filler = fill(disk, but_for=30_000)
                with pytest.raises(StoreError, match="its disk is full"):
                    store.record(many)
                assert len(store.day(NOON, FAR)) == 1
                filler.unlink()
                assert sum(each.is_new for each in store.record(many)) == 199
                check_whole(store, 200)
        finally:
            postgres_server.drop(url, tablespace=disk)


def test_another_writer_is_waited_for_and_then_told_of(
    tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.2)
    (tmp_path / "store.db").write_bytes(sqlite_template.read_bytes())
    url = f"sqlite:///{tmp_path}/store.db"
    with open_store(url) as store:
        stored.prepared(store)
        engine = database.open_engine(url)
        with database.Database(engine).write():
            assert store.day(NOON, FAR) == []  # readers never wait
            with pytest.raises(DatabaseAwayError, match="database is locked"):
                store.record([stored.inspection(1)])
        engine.dispose()
        assert store.record([stored.inspection(1)])[0].is_new


def test_a_full_disk_is_told_of_and_leaves_the_file_whole(tmp_path: Path, sqlite_template: Path) -> None:
    (tmp_path / "store.db").write_bytes(sqlite_template.read_bytes())
    url = f"sqlite:///{tmp_path}/store.db"
    with open_store(url) as store:
        stored.prepared(store)
        store.record([stored.inspection(0, explained=recorder.explanation_of(0))])
        with store.database.read() as connection:  # the pool has this one connection
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
        many = [stored.inspection(number, explained=recorder.explanation_of(number)) for number in range(1, 40)]
        with pytest.raises(StoreError, match="its disk is full"):
            store.record(many)
        assert len(store.day(NOON, FAR)) == 1
        with store.database.read() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        store.record(many)
        check_whole(store, 40)


def test_an_older_schema_is_refused_by_readers_and_upgraded_with_its_rows(
    tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store.db").write_bytes(sqlite_template.read_bytes())
    url = f"sqlite:///{tmp_path}/store.db"
    recorder.main(url, "", 0, 4)
    # The build of tomorrow: one more migration, which makes the table of reviews anew as SQLite must.
    tomorrow = tmp_path / "sql"
    shutil.copytree(schema.sql_folder(), tomorrow)
    (tomorrow / "migrations" / "versions" / "9000_tomorrow.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision, down_revision = '9000', '{schema.REVISION}'\n"
        "def upgrade():\n"
        "    with op.batch_alter_table('review', recreate='always') as batch:\n"
        "        batch.add_column(sa.Column('seconds', sa.Integer, nullable=True))\n"
    )
    monkeypatch.setattr(schema, "sql_folder", lambda: tomorrow)
    monkeypatch.setattr(schema, "REVISION", "9000")
    with pytest.raises(StoreError, match="is older: schema revision") as caught:
        open_store(url, create=False)
    assert f"inspect-xai db upgrade --db {url}" in str(caught.value)
    with open_store(url) as store:
        check_whole(store, 4)
        engine = store.database.engine
        with pytest.raises(StoreError, match="append-only"), database.Database(engine).write() as connection:
            connection.execute(text("UPDATE ledger_event SET kind = 'x'"))
        with database.Database(engine).read() as connection:
            names = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
            assert "review_no_delete" in names
            assert connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one() == "9000"


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("08006", DatabaseAwayError),
        ("53300", DatabaseAwayError),
        ("57P03", DatabaseAwayError),
        ("40001", DatabaseAwayError),
        ("55P03", DatabaseAwayError),
        ("58030", DatabaseAwayError),
        ("54000", RefusedError),
        ("22001", RefusedError),
        ("23514", RefusedError),
        ("53100", StoreError),
        ("25006", StoreError),
        ("42P01", StoreError),
    ],
)
def test_what_a_server_says_decides_who_is_at_fault(
    postgres_server: Cluster, postgres_template: str, sqlstate: str, kind: type[StoreError]
) -> None:
    engine = database.open_engine(postgres_server.create(template=postgres_template))
    try:
        with pytest.raises(StoreError) as caught, database.Database(engine).write() as connection:
            connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'so' USING ERRCODE = '{sqlstate}'; END $$"))
    finally:
        engine.dispose()
    assert type(caught.value) is kind


REFUSING = {
    "sqlite": "CREATE TRIGGER refusing BEFORE INSERT ON {table} WHEN NEW.{column} LIKE 'BAD%' "
    "BEGIN SELECT RAISE(ABORT, 'refused here'); END",
    "postgresql": "ALTER TABLE {table} ADD CONSTRAINT refused_here CHECK ({column} NOT LIKE 'BAD%')",
}


def refuse(url: str, *, table: str, column: str) -> None:
    """Let a database refuse rows of a table whose column begins with BAD."""
    engine = database.open_engine(url)
    with engine.begin() as connection:
        connection.execute(text(REFUSING[engine.dialect.name].format(table=table, column=column)))
    engine.dispose()


def plant(folder: Path, sidecars: dict[str, dict[str, str]], *, seed: int = 0) -> None:
    folder.mkdir()
    for number, (name, said) in enumerate(sidecars.items(), start=seed):
        (folder / f"{name}.png").write_bytes(hostile.encoded(spots.part(number, spot_px=10)))
        (folder / f"{name}.json").write_text(json.dumps(said))


def test_no_field_of_a_sidecar_stops_a_line(database_url: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    long = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 9000))  # a database packs what repeats itself
    fields = ("serial", "lot", "product", "line", "station", "camera")
    plant(tmp_path / "in", {"good": {"serial": "SN1"}} | {f"long {each}": {each: long} for each in fields})
    refuse(database_url, table="part", column="serial")
    plant(tmp_path / "more", {"a": {"serial": "SN2"}, "b": {"serial": "BAD 1"}, "c": {"serial": "SN3"}}, seed=50)
    bundle = spots.spot_bundle(tmp_path)
    for folder in ("in", "more"):
        with Line(bundle, database_url, device="cpu") as line, FolderSource(tmp_path / folder, settle_s=0) as source:
            drain(line, source)
            assert source.claim(10) == []
    with open_store(database_url) as store:
        rows = {row.file_name: row for row in store.find()}
        assert store.ledger.verify().holds
    assert len(rows) == 10
    assert {name: row.serial for name, row in rows.items() if row.reason != "BAD_IMAGE"} == {
        "good.png": "SN1",
        "a.png": "SN2",
        "b.png": "b",
        "c.png": "SN3",
    }
    for field in fields:
        row = rows[f"long {field}.png"]
        assert (row.verdict, row.serial) == ("UNSURE", f"long {field}")
        assert f"{field} has 9000 characters" in row.failure_message
    assert (rows["b.png"].verdict, rows["b.png"].reason, rows["b.png"].failure_kind) == (
        "UNSURE",
        "UNFORESEEN",
        "RefusedError",
    )
    assert "refused" in rows["b.png"].failure_message


def test_a_database_that_refuses_every_row_ends_the_line_with_all_files_claimed(
    database_url: str, tmp_path: Path
) -> None:
    plant(tmp_path / "in", {"BAD 1": {}, "BAD 2": {}})
    refuse(database_url, table="capture", column="file_name")
    with (
        Line(spots.spot_bundle(tmp_path), database_url, device="cpu") as line,
        FolderSource(tmp_path / "in", settle_s=0) as source,
        pytest.raises(RefusedError, match="refused"),
    ):
        drain(line, source)
    assert len(list((tmp_path / "in/_claimed").rglob("*.png"))) == 2
