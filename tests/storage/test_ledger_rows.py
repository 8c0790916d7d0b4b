"""Every kind of row that somebody tampers with by raw SQL is a finding, one for each, on both databases."""

import gzip
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic import command
from sqlalchemy import Connection, MetaData, event, text
from sqlalchemy.dialects.postgresql import BYTEA, JSONB, TIMESTAMP

from benchmarks.support import stored
from benchmarks.support.postgres import Cluster
from benchmarks.support.stored import NOON
from inspect_xai.records import Decision, Review, VerdictCode
from inspect_xai.storage import database, ledger, schema
from inspect_xai.storage.claims import Claims
from inspect_xai.storage.ledger_documents import RowKey
from inspect_xai.storage.quality_records import QualityRecords
from inspect_xai.storage.retention import DataKind, Retention, Rule
from inspect_xai.storage.review_queue import Answer, AnswerAccepted, Desk
from inspect_xai.storage.review_queue_sql import QueueFilter
from inspect_xai.storage.review_reasons import ReviewReason
from inspect_xai.storage.store import Store, open_store
from inspect_xai.storage.studies import Studies
from inspect_xai.storage.tables import VERSION_TABLE, Base
from tests.support.tampering import kinds, tamper, without_triggers

EARLIER = Path(__file__).parents[1] / "reference"
"""Databases of earlier revisions, as `sqlite3.iterdump` writes them.

0010: six parts inspected by the `spots` line, three of them NG; the desk, an answer, two reasons, a study with two
answers, a baseline, an alert, an audit, a hold, and retention that took five pictures and nine maps.
0014: four parts made in code, three of them NG with image statistics, block grids and predicted scores; an approved
model, a row of each other kind, and retention that took one picture and three maps.
"""

ANSWER_OF_0014 = Review("Ada", Decision.OVERTURN, VerdictCode.OK, "free", reason_code="dust", map_rating="partly")


class Calendar:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def store(database_url: str, rng: np.random.Generator) -> Iterator[Store]:
    """A store that holds a row of every kind; pictures and maps of inspection 1 went, 2 to 4 are under a hold.

    Events: 1 model, 2 verdicts, 3 reason, 4 review, 5 study, 6 study_answer, 7 drift_baseline, 8 alerts, 9 hold,
    10 and 11 rules, 12 and 13 retention.
    """
    clock = Calendar()
    with open_store(database_url, clock=clock) as opened:
        stored.prepared(opened)
        inspections = [stored.inspection(n, explained=stored.explanation(rng)) for n in (1, 11, 12)]
        opened.record([*inspections, stored.inspection(13, code=VerdictCode.OK)])
        opened.set_reason("dust", "Dust on the part")
        desk = Desk(opened.database)
        assert desk.enqueue_new() == 3
        said = Review("Ada", Decision.OVERTURN, VerdictCode.OK, "free", reason_code="dust")
        desk.answer(Answer(2, said, "key-1", None))
        studies = Studies(opened.database)
        study = studies.create("first", appraisers=["Ada"], trials=1, by="Eve", inspection_ids=[2, 3])
        task = studies.next_task(study.study_id, "Ada")
        assert task is not None
        studies.answer(task, VerdictCode.NG, by="Ada")
        book = QualityRecords(opened.database)
        book.set_baseline(date(2026, 11, 1), date(2026, 11, 20), content={"cells": [1]}, by="Eve")
        book.note_alerts("folder", {"a/1": "5 parts"})
        retention = Retention(opened.database)
        retention.place_hold(reason="complaint", by="Bob", lot="LOT1")
        retention.set_rule(Rule("", DataKind.PICTURE, 30), by="Ada")
        retention.set_rule(Rule("", DataKind.MAP, 30), by="Ada")
        clock.now += timedelta(days=31)
        retention.execute(retention.plan(), by="Ada", remove_picture=lambda _place: None)
        yield opened


LATER = "'2027-01-01T00:00:00.000000+00:00'"
TAMPERING: list[tuple[str, list[tuple[int, str]]]] = [
    # maps: bytes, what is said of them, and marks
    ("UPDATE map_blob SET data = decoded('00') WHERE id = 4", [(0, "changed")]),
    ("UPDATE map_blob SET codec = 'x' WHERE id = 4", [(0, "changed")]),
    ("UPDATE map_blob SET dtype = 'float16' WHERE id = 4", [(0, "changed")]),
    ("UPDATE map_blob SET precision = 'exact' WHERE id = 4", [(0, "changed")]),
    ("UPDATE map_blob SET shape = '[1]' WHERE id = 4", [(0, "changed")]),
    ("UPDATE map_blob SET size_bytes = 1 WHERE id = 4", [(0, "changed")]),
    (f"UPDATE map_blob SET data = NULL, deleted_at = {LATER} WHERE id > 3", [(0, "changed")] * 6),
    (f"UPDATE map_blob SET deleted_at = {LATER} WHERE id = 1", [(0, "changed")]),
    ("UPDATE map_blob SET deleted_at = NULL WHERE id = 1", [(0, "changed")]),
    # pictures: marks
    (f"UPDATE capture SET picture_deleted_at = {LATER}", [(0, "changed")] * 4),
    ("UPDATE capture SET picture_deleted_at = NULL", [(0, "changed")]),
    # reasons
    ("UPDATE reason_code SET code = 'THEFT'", [(3, "changed")]),
    ("UPDATE reason_code SET meaning = 'Bob did it'", [(3, "changed")]),
    ("INSERT INTO reason_code VALUES (9, 'new', 'x')", [(0, "unvouched")]),
    # studies
    ("UPDATE study SET seed = 7", [(5, "changed")]),
    ("UPDATE study_part SET inspection_id = 4 WHERE position = 1", [(5, "changed")]),
    ("UPDATE study_task SET appraiser = 'Bob' WHERE appraiser = 'Ada' AND run_order = 1", [(5, "changed")]),
    ("UPDATE study_rating SET verdict = 'OK'", [(6, "changed")]),
    ("UPDATE study_rating SET answered_by = 'Bob'", [(6, "changed")]),
    ("DELETE FROM study_rating", [(6, "missing")]),
    # what is watched
    ("UPDATE drift_baseline SET content = decoded('00')", [(7, "changed")]),
    ("UPDATE drift_baseline SET last_day = '2026-11-21'", [(7, "changed")]),
    ("DELETE FROM drift_baseline", [(7, "missing")]),
    ("UPDATE alert_sent SET text = 'all is well'", [(8, "changed")]),
    ("UPDATE alert_sent SET channel = 'mail'", [(8, "missing"), (0, "unvouched")]),
    ("DELETE FROM alert_sent", [(8, "missing")]),
    # rules and holds
    ("UPDATE legal_hold SET lot = 'LOT2'", [(9, "changed")]),
    ("UPDATE retention_rule SET keep_days = 1 WHERE data_kind = 'map'", [(11, "changed")]),
    # the desk
    ("DELETE FROM review_queue_item", [(0, "missing")] * 3),
    ("UPDATE review_cursor SET last_enqueued_id = 999999", [(0, "changed")]),
    ("UPDATE review_queue_item SET state = 'done' WHERE inspection_id = 3", [(0, "changed")]),
    ("UPDATE review_queue_item SET first_reviewer = 'Bob' WHERE inspection_id = 3", [(0, "changed")]),
    ("UPDATE review_queue_item SET second_reviewer = 'Bob' WHERE inspection_id = 2", [(0, "changed")]),
    ("UPDATE review_queue_item SET priority = 99 WHERE inspection_id = 3", [(0, "changed")]),
    ("UPDATE review_queue_item SET reason = 'x' WHERE inspection_id = 3", [(0, "changed")]),
    ("UPDATE review_queue_item SET verdict = 'OK' WHERE inspection_id = 3", [(0, "changed")]),
    ("UPDATE review_queue_item SET station = 'S9' WHERE inspection_id = 3", [(0, "changed")]),
    # what a row refers to: one finding for each row, and the rest is read
    ("DELETE FROM capture WHERE id = 4", [(2, "changed")]),
    ("UPDATE capture SET id = 99 WHERE id = 4", [(2, "changed")]),
    ("DELETE FROM model", [(1, "missing"), *[(2, "changed")] * 4]),
    ("UPDATE policy SET id = 99", [(2, "missing"), *[(2, "changed")] * 4, (0, "unvouched")]),
    ("DELETE FROM run", [(2, "changed")] * 4),
    ("DELETE FROM part WHERE serial = 'SN00013'", [(2, "changed")]),
    ("DELETE FROM map_blob WHERE id = 4", [(2, "changed")]),
    ("UPDATE explanation_tile SET top_px = 1 WHERE explanation_id = 2", [(2, "changed")]),
    ("UPDATE inspection SET id = 77 WHERE id = 4", [(2, "missing"), (0, "unvouched")]),
]
BROKEN = [  # values that no column takes on PostgreSQL
    ("UPDATE run SET settings = '{ '", [(2, "changed")] * 4),
    ("UPDATE explanation SET notes = '[' WHERE id = 2", [(2, "changed")]),
    ("UPDATE inspection SET inspected_at = 'soon' WHERE id = 4", [(2, "changed")]),
    ("UPDATE model SET card = ''", [(1, "changed")]),
    ("UPDATE capture SET picture_deleted_at = 'never' WHERE id = 4", [(2, "changed"), (0, "changed")]),
    ("UPDATE map_blob SET shape = '[' WHERE id = 4", [(0, "changed")]),
    ("UPDATE capture SET line = CAST(x'ff' AS TEXT) WHERE id = 4", [(2, "changed")]),
    ("UPDATE ledger_event SET occurred_at = 'then' WHERE id = 6", [(6, "changed")]),
]


def test_every_kind_of_row_is_covered(store: Store, database_url: str) -> None:
    assert store.ledger.verify().findings == ()
    engine = database.open_engine(database_url)
    is_sqlite = engine.dialect.name == "sqlite"
    if is_sqlite:
        event.listen(engine, "connect", lambda raw, _record: raw.execute("PRAGMA foreign_keys = OFF"))
    with engine.connect() as connection:
        for statement, expected in TAMPERING + (BROKEN if is_sqlite else []):
            with connection.begin() as transaction:
                _let_all_through(connection)
                connection.execute(text(statement.replace("decoded('00')", "x'00'" if is_sqlite else "'\\\\x00'")))
                found = ledger.verify(connection).findings
                assert sorted((each.sequence, each.kind) for each in found) == sorted(expected), (statement, found)
                transaction.rollback()
    engine.dispose()
    assert store.ledger.verify().holds


def _let_all_through(connection: Any) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # neither triggers nor foreign keys
    else:
        for each in without_triggers(connection):
            connection.execute(text(each))


def revouched(connection: Connection, event_kind: str, kind: str, number: RowKey, statement: str) -> None:
    """Do as somebody who owns the database: change a row, and append an event that says so."""
    _let_all_through(connection)
    connection.execute(text(statement))
    ledger.append(connection, event_kind, "", facts={}, now=NOON, made={kind: [number]})


REVOUCHED = [
    ("inspection", 3, "UPDATE inspection SET score = 0.1 WHERE id = 3", 2),
    ("review", 1, "UPDATE review SET decision = 'confirm', reviewer = 'Ada'", 4),
    ("policy", 1, "UPDATE policy SET content = '{}'", 2),
    ("reason_code", 1, "UPDATE reason_code SET code = 'THEFT'", 3),
    ("study", 1, "UPDATE study SET seed = 7", 5),
    ("study_answer", 1, "UPDATE study_rating SET verdict = 'OK'", 6),
    ("drift_baseline", 1, "UPDATE drift_baseline SET last_day = '2026-11-21'", 7),
    ("alert_sent", "folder/a/1", "UPDATE alert_sent SET text = 'x'", 8),
    ("model", 1, "UPDATE model SET status = 'approved'", 1),
    ("legal_hold", 1, "UPDATE legal_hold SET lot = 'LOT2'", 9),
    ("retention_rule", 1, "UPDATE retention_rule SET keep_days = 1 WHERE id = 1", 10),
]


def test_what_an_event_must_not_say_anew_is_found(store: Store, database_url: str) -> None:
    head = store.ledger.head()
    engine = database.open_engine(database_url)
    with engine.connect() as connection:
        for kind, key, statement, first in REVOUCHED:
            with connection.begin() as transaction:
                revouched(connection, "same_bytes", kind, key, statement)
                found = ledger.verify(connection, heads=[head]).findings
                assert [(each.sequence, each.kind) for each in found] == [(14, "changed"), (first, "changed")], kind
                what = f"event 14 (same_bytes) says what {kind} {key} is, otherwise than event {first} did"
                assert found[0].what == what
                transaction.rollback()
    engine.dispose()


def test_an_audit_cannot_be_vouched_for_again_by_another_audit(store: Store) -> None:
    facts: dict[str, Any] = {"audited_at": NOON, "settings": {}, "numbers": {"ebpg": 0.5}}
    store.registry.record_audit("a1", stored.FINGERPRINT, **facts)
    with store.database.write() as connection:
        revouched(connection, "audit", "audit", 1, "UPDATE audit SET audit_id = 'a2'")
    assert kinds(store) == [(15, "changed"), (14, "changed")]


def test_a_policy_gets_its_content_once(store: Store, database_url: str) -> None:
    """A verdict may name a policy version that nobody registered yet."""
    store.registry.register_policy("1", {"ok_share": 0.05}, by="Ada")
    assert store.ledger.verify().holds
    tamper(database_url, "UPDATE policy SET content = NULL")
    assert kinds(store) == [(14, "changed")]
    with store.database.write() as connection:
        revouched(connection, "policy", "policy", 1, "UPDATE policy SET content = '{}'")
    assert kinds(store) == [(15, "changed"), (14, "changed")]


def test_only_retention_deletes(store: Store, database_url: str) -> None:
    tamper(database_url, "DELETE FROM study_rating")
    engine = database.open_engine(database_url)
    with database.Database(engine).write() as connection:
        gone = {"study_answer": [1]}
        ledger.append(connection, "same_bytes", "", facts={}, now=NOON, made={}, deleted=gone)
    engine.dispose()
    assert kinds(store) == [(14, "changed"), (6, "missing")]


def test_rows_that_retention_took_are_not_missed(store: Store) -> None:
    retention = Retention(store.database)
    retention.set_rule(Rule("", DataKind.ROW, 30), by="Ada")
    retention.release_hold(1, by="Bob")
    retention.execute(retention.plan(), by="Ada", remove_picture=lambda _place: None)
    assert store.inspection_ids() == []
    assert store.ledger.verify().findings == ()
    assert store.ledger.events(kind="retention")[-1].rows["study_answer/1"] is None


def test_a_map_that_came_back_needs_no_mark(store: Store, rng: np.random.Generator) -> None:
    same = stored.explanation(np.random.default_rng(20261123))  # as the fixture's first
    store.record([stored.inspection(40, explained=same)])
    assert store.ledger.verify().findings == ()
    assert store.get(5, maps=True).explanation is not None


def test_a_check_goes_on_after_broken_and_renumbered_events(store: Store, database_url: str) -> None:
    tamper(
        database_url,
        "UPDATE ledger_event SET body = '[' WHERE id = 2",
        "UPDATE ledger_event SET id = -5 WHERE id = 3",
        "UPDATE reason_code SET code = 'THEFT'",
    )
    found = kinds(store)
    assert {(-5, "reordered"), (-5, "changed"), (2, "changed"), (4, "missing")} <= set(found)
    assert found.count((0, "unvouched")) == 4 + 1  # the inspections and the policy of event 2
    assert (-5, "changed") in found[-6:]  # the row of the renumbered event is looked at all the same


def test_the_guide_says_of_every_table_whether_the_ledger_covers_it() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "reference" / "record.md").read_text(encoding="utf-8")
    section = guide.partition("### What the ledger covers")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    named = {name.partition(".")[0] for row in rows[2:] for name in re.findall(r"`([a-z_.]+)`", row[0])}
    assert named == set(Base.metadata.tables)
    for table, covered, by in rows[2:]:
        assert len(by) > 50 or covered != "not seen", table  # with its reason


# --- databases of earlier revisions ------------------------------------------------------------------------------


def restored(revision: str, file: Path) -> str:
    with closing(sqlite3.connect(file)) as made:
        made.executescript(gzip.decompress((EARLIER / f"record_{revision}.sql.gz").read_bytes()).decode())
    return f"sqlite:///{file}"


def restored_on_postgres(revision: str, server: Cluster, file: Path) -> str:
    restored(revision, file)
    url = str(server.create())
    engine = database.open_engine(url)
    settings = schema.config()
    with engine.begin() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, revision)
        _copy(file, connection)
    engine.dispose()
    return url


def test_a_database_of_0010_holds_after_the_migration(tmp_path: Path) -> None:
    _holds_after_0010(restored("0010", tmp_path / "earlier.db"))


@pytest.mark.postgres
def test_a_database_of_0010_holds_after_the_migration_on_postgresql(postgres_server: Cluster, tmp_path: Path) -> None:
    _holds_after_0010(restored_on_postgres("0010", postgres_server, tmp_path / "earlier.db"))


def test_a_database_of_0014_holds_after_the_migration(tmp_path: Path) -> None:
    _holds_after_0014(restored("0014", tmp_path / "earlier.db"))


@pytest.mark.postgres
def test_a_database_of_0014_holds_after_the_migration_on_postgresql(postgres_server: Cluster, tmp_path: Path) -> None:
    _holds_after_0014(restored_on_postgres("0014", postgres_server, tmp_path / "earlier.db"))


def _copy(file: Path, connection: Any) -> None:
    """Put the rows of an SQLite file into the same tables of PostgreSQL."""
    told = MetaData()
    told.reflect(connection)
    with closing(sqlite3.connect(file)) as opened:
        opened.row_factory = sqlite3.Row
        for table in told.sorted_tables:
            if table.name == VERSION_TABLE:
                continue
            for row in opened.execute(f"SELECT * FROM {table.name}"):
                values = {name: _as_column(table.c[name].type, row[name]) for name in row.keys()}  # noqa: SIM118
                connection.execute(table.insert().values(**values))
            if "id" in table.c and table.c["id"].autoincrement is True:
                newest = f"(SELECT coalesce(max(id), 0) + 1 FROM {table.name})"
                connection.execute(
                    text(f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), {newest}, false)")
                )


def _as_column(kind: object, value: Any) -> Any:
    if value is None or isinstance(kind, BYTEA):
        return value
    if isinstance(kind, JSONB):
        return json.loads(value)
    return datetime.fromisoformat(value) if isinstance(kind, TIMESTAMP) else value


def _holds_after_0010(url: str) -> None:
    assert schema.upgrade_schema(url) == "0010"
    with open_store(url, create=False) as store:
        report = store.ledger.verify()
        assert (report.findings, report.events) == ((), 17)
        adopted = store.ledger.events()[-1]
        assert (adopted.kind, adopted.facts) == ("adopted", {"rows": 2 + 1 + 2 + 1 + 1})
        head = store.ledger.events()[15].hash
        assert store.ledger.verify(heads=[head]).holds
        assert [note for note in report.notes if "taken as they were" in note]
        store.set_reason("glare", "A reflection on the part")
        assert store.ledger.verify().holds
    tamper(url, "UPDATE study_rating SET verdict = 'UNSURE' WHERE id = 1")
    with open_store(url, create=False) as store:
        assert kinds(store) == [(17, "changed")]


def _holds_after_0014(url: str) -> None:
    """Every renamed column has its value, and digests taken under the names before still fit."""
    assert schema.upgrade_schema(url) == "0014"
    head = "6fa99cfcba4467d689f890633d5d6a48776de83bbe86eaf40c731336d4f8128f"
    with open_store(url, create=False) as store:
        report = store.ledger.verify(heads=[head])
        assert (report.findings, report.events, report.rows, report.head) == ((), 17, 16, head)
        found = store.get(2)
        assert found.explanation is not None
        block = found.explanation.tiles[0].blocks[0]
        assert (block.positive_channels, block.kept_channels, block.constant_channels) == (12, 6, 1)
        assert (block.predicted_scores, found.explanation.tiles[0].blocks[1].otsu_threshold) == (3, 0.4)
        assert (found.capture.identity_source, found.explain_reason) == ("sidecar", "ng")
        assert (found.explanation.forward_passes, found.explanation.settings.against) == (14, "free")
        assert 0 < found.explanation.coverage < 1
        assert found.reviews[0].map_rating == "partly"
        assert found.model.golden_result == {"pictures": 4, "reproduced": True}
        desk = Desk(store.database)
        [entry] = desk.queue(QueueFilter(reason=ReviewReason.SECOND_LOOK))
        assert (entry.inspection_id, entry.first_reviewer, entry.claimed_by) == (2, "Ada", "")
        assert desk.enqueue_new() == 0
        assert isinstance(desk.answer(Answer(2, ANSWER_OF_0014, "key-1", None)), AnswerAccepted)  # sent again
        claims = Claims(
            store.database, "memory://plant", fingerprint=stored.FINGERPRINT, policy_version="1", owner="two"
        )
        assert claims.take({"a.png": "12-34", "b.png": "5-6"}, most=2) == {"b.png"}  # a is recorded, the lease is over
        studies = Studies(store.database)
        task = studies.next_task(studies.get("first").study_id, "Ada")
        assert task is not None
        assert (task.place, studies.answer(task, VerdictCode.OK, by="Ada")) == (2, True)
        store.set_reason("glare", "A reflection on the part")
        assert store.ledger.verify().holds
    tamper(url, "UPDATE image_statistics SET clipped_share = 0 WHERE inspection_id = 1")
    with open_store(url, create=False) as store:
        assert [each.what for each in store.ledger.verify().findings] == ["inspection 1 is not what event 4 recorded"]


def test_a_state_that_hides_a_part_from_the_desk_is_a_finding(store: Store, database_url: str) -> None:
    unchecked = (
        "ALTER TABLE review_queue_item DROP CONSTRAINT ck_review_queue_item_state"
        if database_url.startswith("postgresql")
        else "PRAGMA ignore_check_constraints = ON"
    )
    tamper(database_url, unchecked, "UPDATE review_queue_item SET state = 'x' WHERE inspection_id = 3")
    assert kinds(store) == [(0, "changed")]
