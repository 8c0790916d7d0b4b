"""Drift on the page: quiet days raise nothing, a planted change is seen, and missing days are counted."""

import dataclasses
import shutil
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from benchmarks.support import stored
from benchmarks.support.stored import NOON
from inspect_xai.records import Verdict, VerdictCode
from inspect_xai.reports.alarms import Topic
from inspect_xai.reports.daily import write_report
from inspect_xai.reports.drift import drift_of
from inspect_xai.reports.period import Period
from inspect_xai.statistics.drift import Cell
from inspect_xai.storage.report_queries import DRIFT_FEATURES, ReportQueries
from inspect_xai.storage.store import Store, open_store

DAY = date(2026, 11, 23)
UTC = ZoneInfo("UTC")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> str:
    """Twenty days of 40 parts at one station, whose scores lie 0.4 higher on the last three."""
    file = tmp_path_factory.mktemp("watch") / "line.db"
    shutil.copy(sqlite_template, file)
    rng = np.random.default_rng(4)
    with open_store(f"sqlite:///{file}") as opened:
        stored.prepared(opened)
        for day in range(-19, 1):
            given = []
            for n in range(40):
                each = stored.inspection(n, code=VerdictCode.OK)
                score = float(rng.normal(0.3 if day < -2 else 0.7, 0.05))
                each = dataclasses.replace(
                    each, verdict=Verdict(VerdictCode.OK, each.verdict.reason, "crack", score, 0.9)
                )
                moment = NOON + timedelta(days=day, seconds=n)
                sha256 = f"{rng.integers(2**60):015x}{n:049x}"
                given.append(stored.of_part(each, sha256, captured_at=moment, station="S1"))
            opened.record(given)
    return f"sqlite:///{file}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with open_store(url) as opened:
        yield opened


def test_a_change_is_raised_once_and_told_on_the_page(store: Store, tmp_path: Path) -> None:
    on = {
        day: drift_of(ReportQueries(store.database), Period(DAY + timedelta(days=day), DAY + timedelta(days=day), UTC))
        for day in (-3, -1)
    }
    assert (on[-3].alarms, on[-3].missing_days) == ((), 0)  # all quiet
    raised = {(alarm.cell, on[-1].days[alarm.since]) for alarm in on[-1].alarms}
    assert raised == {(Cell(("L1", "S1"), "score"), DAY - timedelta(days=2))}
    yesterday = DAY - timedelta(days=1)
    page = write_report(store, first=yesterday, last=yesterday, out=tmp_path).page.read_text()
    assert "L1 S1: the defect score drifted since 2026-11-21: 100 % of the parts lie elsewhere, mostly higher." in page
    again = write_report(store, first=DAY, last=DAY, out=tmp_path).page.parent / "report.json"
    assert Topic.DRIFT not in again.read_text().partition('"numbers"')[0]


def test_missing_days_are_counted(store: Store) -> None:
    early = drift_of(ReportQueries(store.database), Period(DAY - timedelta(days=9), DAY - timedelta(days=9), UTC))
    assert (early.alarms, early.cells) == ((), 0)
    assert early.missing_days == 6  # 20 days, of which 4 end before the week that is watched


def test_features_of_a_large_day_are_a_sample(store: Store) -> None:
    start = NOON.replace(hour=0)
    [(place, everything)] = ReportQueries(store.database).features(start, start + timedelta(days=1), most=100).items()
    assert (place, everything.values.shape) == (("L1", "S1", ""), (40, len(DRIFT_FEATURES)))
    assert np.isnan(everything.values[:, 2:]).all()  # nothing was measured or explained
    assert np.isnan(everything.embeddings).all()
    few = ReportQueries(store.database).features(start, start + timedelta(days=1), most=20)[place]
    assert 8 < len(few.ids) < 32
