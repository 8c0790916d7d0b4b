"""Reporting views and queries: plain SQL that says the same as the store, on both databases."""

import dataclasses
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Connection, inspect, text

from benchmarks.support import stored
from benchmarks.support.stored import FINGERPRINT, NOON
from inspect_xai.records import Decision, Failure, ModelStatus, Review, VerdictCode
from inspect_xai.storage import schema
from inspect_xai.storage.store import Store, open_store
from tests.support import recorder

FAR = NOON + timedelta(days=1)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """Twelve inspections: NG unless the number is even; 1 was overkill, 2 escaped, 3 was confirmed, 11 failed."""
    with open_store(database_url) as opened:
        stored.prepared(opened)
        opened.record([_inspection(number) for number in range(6)])
        opened.registry.set_model_status(FINGERPRINT, ModelStatus.APPROVED, by="Bob")
        opened.record([_inspection(number) for number in range(6, 12)])
        opened.review(2, Review("Ada", Decision.CONFIRM, VerdictCode.NG))
        opened.review(2, Review("Ada", Decision.OVERTURN, VerdictCode.OK), supersedes=1)
        opened.review(3, Review("Ada", Decision.OVERTURN, VerdictCode.NG, "crack"))
        opened.review(4, Review("Ada", Decision.CONFIRM, VerdictCode.NG))
        yield opened


def _inspection(number: int) -> object:
    code = VerdictCode.NG if number % 2 else VerdictCode.OK
    given = stored.inspection(number, code=code, explained=recorder.explanation_of(number) if number == 3 else None)
    failure = Failure("PictureError", "truncated") if number == 11 else None
    return dataclasses.replace(given, failure=failure)


@pytest.fixture
def connection(store: Store) -> Iterator[Connection]:
    with store.database.read() as opened:
        yield opened


def rows(connection: Connection, query: str) -> list[dict[str, object]]:
    return [dict(row._mapping) for row in connection.execute(text(query))]


def test_every_view_is_there_and_says_who_reads_it(connection: Connection) -> None:
    assert set(inspect(connection).get_view_names()) == set(schema.views())
    for statement in schema.views().values():
        assert statement.startswith("-- Read by ")


def test_the_overview_says_what_the_summaries_say(store: Store, connection: Connection) -> None:
    found = rows(connection, "SELECT * FROM inspection_overview ORDER BY inspection_id")
    for row, summary in zip(found, store.day(NOON, FAR), strict=True):
        told = dataclasses.asdict(summary)
        for name in told.keys() & row.keys() - {"inspected_at", "captured_at"}:
            assert (row[name] or "") == (told[name] or ""), name
    assert {row["inspected_on"] for row in found} == {"2026-11-23"}


def test_the_stations_of_a_day_are_the_statistics(store: Store, connection: Connection) -> None:
    found = rows(connection, "SELECT * FROM station_day ORDER BY station")
    stats = store.stats(NOON, FAR, by=("line", "station"))
    assert [(each.group, each.inspections) for each in stats] == [(("L1", f"S{n}"), 4) for n in range(3)]
    for row, each in zip(found, stats, strict=True):
        names = ("inspections", "ok", "ng", "unsure", "failed", "reviewed", "overkill", "escapes")
        assert [row[name] for name in names] == [getattr(each, name) for name in names]
    # numbers 1 and 2 stand at stations 1 and 2; the newest answer counts
    assert [(each.overkill, each.escapes, each.reviewed) for each in stats] == [(0, 0, 1), (1, 0, 1), (0, 1, 1)]
    assert sum(each.failed for each in stats) == 1
    assert [(each.explained, each.passes) for each in stats] == [(1, 14), (0, 0), (0, 0)]


def test_a_lot_a_defect_and_a_model(connection: Connection) -> None:
    [first, second] = rows(connection, "SELECT * FROM lot_quality ORDER BY lot")
    assert (first["parts"], first["ok"], first["ng"], first["by_unapproved_model"]) == (10, 5, 5, 6)
    assert (first["flagged_without_review"], second["flagged_without_review"]) == (3, 1)
    pareto = rows(connection, "SELECT station, found, taken_back FROM defect_pareto ORDER BY station")
    assert [(row["found"], row["taken_back"]) for row in pareto] == [(2, 0), (2, 1), (2, 0)]
    [model] = rows(connection, "SELECT * FROM model_use")
    assert (model["inspections"], model["inspections_unapproved"], model["status"]) == (12, 6, "approved")
    [explained] = rows(connection, "SELECT * FROM explanation_quality")
    assert (explained["method"], explained["explanations"], explained["mean_passes"]) == ("sise", 1, 14)
    assert explained["mean_energy_in_roi"] == 0.875


@pytest.mark.parametrize(
    ("name", "number"), [("model_on_a_day", 6), ("flagged_without_review", 4), ("parts_of_a_model", 12)]
)
def test_queries_for_people_run_as_they_are(connection: Connection, name: str, number: int) -> None:
    query = (schema.sql_folder() / "queries" / f"{name}.sql").read_text(encoding="utf-8")
    assert query.startswith("-- ")
    assert len(rows(connection, query)) == number


def test_every_query_file_is_tried_above() -> None:
    tried = {"model_on_a_day", "flagged_without_review", "parts_of_a_model"}
    assert {file.stem for file in (schema.sql_folder() / "queries").glob("*.sql")} == tried
