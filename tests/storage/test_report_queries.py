"""What a report adds up in the database, on both databases."""

import dataclasses
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event

from benchmarks.support import stored
from benchmarks.support.stored import NOON
from inspect_xai.records import Decision, Failure, ImageStatistics, Review, VerdictCode
from inspect_xai.storage.report_queries import DRIFT_FEATURES, CohortKey, ReportQueries, Tally
from inspect_xai.storage.store import Store, open_store
from tests.support import recorder

DAY = timedelta(days=1)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """Nine inspections at three stations: even ones are OK, 1 and 3 are explained, 5 failed, 1 was taken back."""
    with open_store(database_url, clock=lambda: NOON) as opened:
        stored.prepared(opened)
        for number in range(9):
            explained = recorder.explanation_of(number) if number in (1, 3) else None
            code = VerdictCode.NG if number % 2 else VerdictCode.OK
            given = stored.inspection(number, explained=explained, code=code)
            shift = "EARLY" if number < 4 else "LATE"
            given = stored.of_part(given, given.capture.sha256, shift=shift)
            failure = Failure("PictureError", "truncated") if number == 5 else None
            if number == 1 and explained:
                explained = dataclasses.replace(explained, embedding=tuple(map(float, range(16))))
                signal = ImageStatistics(120.0, 30.0, 0.0, 7.0, 2.0)
                given = dataclasses.replace(given, explanation=explained, image_statistics=signal)
            opened.record([dataclasses.replace(given, failure=failure, duration_ms=float(number))])
        opened.review(2, Review("Ada", Decision.OVERTURN, VerdictCode.OK))
        yield opened


def test_counts_by_any_fields(store: Store) -> None:
    figures = ReportQueries(store.database)
    assert figures.tally(NOON, NOON + DAY, by=("verdict",)) == [
        Tally(("NG",), 4, 16.0, 7.0),
        Tally(("OK",), 5, 20.0, 8.0),
    ]
    by = ("verdict", "reviewed_verdict", "is_failed")
    assert [(each.group, each.parts) for each in figures.tally(NOON, NOON + DAY, by=by)] == [
        (("NG", "", ""), 2),
        (("NG", "", "yes"), 1),
        (("NG", "OK", ""), 1),
        (("OK", "", ""), 5),
    ]
    assert figures.tally(NOON + DAY, NOON + 2 * DAY, by=("verdict",)) == []
    early = ReportQueries(store.database, shift="EARLY")
    assert [each.parts for each in early.tally(NOON, NOON + DAY, by=("verdict",))] == [2, 2]
    assert [row.serial for row in early.rows(NOON, NOON + DAY)] == [f"SN0000{n}" for n in range(4)]
    assert figures.run_settings(["run-1", "absent"]) == {"run-1": {"device": "cpu", "threads": 2}}


def test_features_of_a_day_by_station(store: Store) -> None:
    found = ReportQueries(store.database).features(NOON, NOON + DAY, most=100)
    assert list(found) == [("L1", f"S{n}", shift) for n in range(3) for shift in ("EARLY", "LATE")]
    # 1, 4 and 7, of which 1 is explained and photographed by a camera whose signal was measured
    middle = np.concatenate([found["L1", "S1", shift].values for shift in ("EARLY", "LATE")])
    row = dict(zip(DRIFT_FEATURES, middle[0].tolist(), strict=True))
    assert (row["score"], row["margin"]) == (0.75, 0.5)
    assert (row["brightness"], row["sharpness"], row["noise"]) == (120.0, 7.0, 2.0)
    assert (row["region_row_px"], row["region_column_px"], row["region_area_px"]) == (2.5, 4.0, 10.0)  # 3 x 4 at (1, 2)
    assert (row["region_mass"], row["energy_in_roi"]) == (0.75, 0.875)
    assert 0 < row["support_share"] < 1
    assert np.isnan(row["faithfulness_percent"]), "its faithfulness was not measured"
    assert np.isnan(middle[1:, 2:]).all()
    early = found["L1", "S1", "EARLY"]
    assert early.embeddings[0].tolist() == [float(n) for n in range(16)]
    assert early.ids[0] == 2
    assert len(found["L1", "S2", "EARLY"].ids) + len(found["L1", "S2", "LATE"].ids) == 2  # 5 failed
    assert ReportQueries(store.database).features(NOON + DAY, NOON + 2 * DAY, most=100) == {}
    few = ReportQueries(store.database).features(NOON, NOON + DAY, most=1)  # hashes below 1/9: all of these
    assert sum(len(each.ids) for each in few.values()) == 8


def test_what_waits_by_age(store: Store) -> None:
    figures = ReportQueries(store.database)
    soon = figures.waiting(NOON + timedelta(hours=1))
    assert (soon.total, soon.by_age, soon.oldest_at) == (3, (3, 0, 0, 0), NOON + timedelta(seconds=3))
    assert figures.waiting(NOON + timedelta(days=2)).by_age == (0, 3, 0, 0)
    assert figures.waiting(NOON + timedelta(days=30)).by_age == (0, 0, 0, 3)
    assert figures.waiting(NOON).total == 0
    assert figures.waiting(NOON).oldest_at is None


def test_maps_come_by_cohort_as_they_were_recorded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inspect_xai.storage.report_queries._AT_A_TIME", 1)
    figures = ReportQueries(store.database)
    keys = [CohortKey("housing", "L1", station, "", "crack", (16, 16)) for station in ("S0", "S1")]
    assert figures.cohorts(NOON, NOON + DAY) == [(keys[0], 1), (keys[1], 1)]
    assert figures.cohorts(NOON + DAY, NOON + 2 * DAY) == []
    [found] = figures.maps(keys[0], NOON, NOON + DAY)
    assert (found.inspection_id, found.serial, found.score_spread) == (4, "SN00003", 0.8)
    assert found.faithfulness == {"drop": 0.25, "energy_in_roi": 0.875}
    fused = recorder.explanation_of(3).fused
    assert np.abs(found.fused - fused).max() <= np.ptp(fused) / 8190
    assert list(ReportQueries(store.database, shift="LATE").maps(keys[0], NOON, NOON + DAY)) == []


def test_a_day_is_looked_up_and_no_table_walked(tmp_path: Path, sqlite_template: Path) -> None:
    """SQLite has no statistics unless somebody asks for them: the statement itself must lead to the index."""
    (tmp_path / "store.db").write_bytes(sqlite_template.read_bytes())
    seen: list[tuple[str, tuple[object, ...]]] = []
    with open_store(f"sqlite:///{tmp_path}/store.db") as store:
        event.listen(store.database.engine, "before_cursor_execute", lambda *given: seen.append((given[2], given[3])))
        ReportQueries(store.database).tally(NOON, NOON + DAY, by=("line", "station", "verdict", "reviewed_verdict"))
        [(statement, parameters)] = [each for each in seen if "count(*)" in each[0]]
        with store.database.read() as connection:
            plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert any("ix_capture_captured_at" in step for step in plan)
    assert not any(step.startswith("SCAN") for step in plan), plan
