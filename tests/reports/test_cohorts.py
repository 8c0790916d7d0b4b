"""Where on the part: cohorts of planted maps, whose center, move and stranger are known."""

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.support import stored
from inspect_xai.errors import SettingsError
from inspect_xai.records import Explanation
from inspect_xai.reports.cohorts import cohorts_of
from inspect_xai.reports.daily import write_report
from inspect_xai.reports.pdf import PROGRAMS, print_pdf
from inspect_xai.reports.period import Period
from inspect_xai.storage.report_queries import CohortKey, ReportQueries
from inspect_xai.storage.store import Store, open_store

DAY = date(2026, 11, 23)
TODAY = Period(DAY, DAY, ZoneInfo("UTC"))
SIZE = (320, 240)


@pytest.fixture
def store(tmp_path: Path, sqlite_template: Path) -> Iterator[Store]:
    shutil.copy(sqlite_template, tmp_path / "line.db")
    with open_store(f"sqlite:///{tmp_path / 'line.db'}") as opened:
        yield stored.prepared(opened)


def spot(row: float, column: float) -> NDArray[np.float32]:
    rows, columns = np.indices(SIZE)
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 200).astype(np.float32)


def record(store: Store, places: Sequence[tuple[float, float]], *, day: int = 0, **changes: object) -> None:
    rng = np.random.default_rng(1)
    made = stored.explanation(rng)
    for n, (row, column) in enumerate(places):
        explained = dataclasses.replace(made, fused=spot(row, column), regions=(), **changes)  # type: ignore[arg-type]
        moment = stored.NOON + timedelta(days=day, seconds=n)
        given = stored.inspection(n, explained=explained)
        where = {"station": "S1", "height_px": SIZE[0], "width_px": SIZE[1], "captured_at": moment}
        store.record([stored.of_part(given, f"{(day % 100) * 1000 + n:064x}", **where)])


def no_photograph(inspection_id: int) -> None:
    assert inspection_id >= 1


def test_a_cohort_has_its_center_and_the_way_it_went(store: Store) -> None:
    record(store, [(100, 120), (100, 100), (100, 140)], day=-1)
    record(store, [(110, 126), (110, 106), (110, 146)])
    [only], odd = cohorts_of(ReportQueries(store.database), TODAY, photograph_of=no_photograph)
    found = only.numbers
    assert found.key == CohortKey("housing", "L1", "S1", "", "crack", SIZE)
    assert (found.maps, found.maps_before, found.empty) == (3, 3, 0)
    assert (found.row_px, found.column_px) == pytest.approx((110, 126), abs=2)
    assert found.spread_px == pytest.approx(np.sqrt(2 / 3) * 20, abs=0.5)
    assert (found.down_px, found.right_px) == pytest.approx((10, 6), abs=0.5)
    assert found.moved is not None
    assert 0.3 < found.moved < 0.8
    assert only.mean.shape == only.spread.shape == (160, 120, 3)  # small enough for a page
    assert (only.photographed, odd) == ("", ())


def test_the_part_unlike_its_cohort_and_the_ones_whose_masks_say_little_are_named(store: Store) -> None:
    rng = np.random.default_rng(2)
    record(store, [*(rng.normal((150, 120), 2) for _ in range(12)), (40, 40)])
    [only], odd = cohorts_of(ReportQueries(store.database), TODAY, photograph_of=lambda _: np.full(SIZE, 90, np.uint8))
    assert only.photographed == "SN00000"
    assert odd[0].serial == "SN00012"  # the strangest first
    assert len(odd) <= 2
    assert odd[0].why.startswith("evidence unlike the 13 maps of its cohort (0.9")


def test_low_spread_and_evidence_beside_the_region_of_interest(store: Store) -> None:
    def flat(given: Explanation) -> dict[str, object]:
        return {"tiles": (dataclasses.replace(given.tiles[0], score_spread=0.01),)}

    record(store, [(150, 120)], **flat(stored.explanation(np.random.default_rng(1))))
    record(store, [(150, 120)], day=-1, faithfulness={"energy_in_roi": 0.25})
    both = Period(DAY - timedelta(days=1), DAY, ZoneInfo("UTC"))
    pictures, odd = cohorts_of(ReportQueries(store.database), both, photograph_of=no_photograph)
    assert pictures == ()  # two parts make no cohort
    assert [each.why for each in odd] == [
        "the masks score nearly alike (spread 0.010)",
        "only 25 % of the evidence lies in the region of interest",
    ]


def test_a_pdf_is_printed_or_the_way_to_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "report.html"
    page.write_text("<!doctype html><title>t</title><p>words")
    if any(map(shutil.which, PROGRAMS)):
        assert print_pdf(page).read_bytes().startswith(b"%PDF-")
        assert {file.name for file in tmp_path.iterdir()} == {"report.html", "report.pdf"}
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="no Chromium on this machine"):
        print_pdf(page)
    (tmp_path / "chromium").write_text("#!/bin/sh\necho it broke >&2\n")
    (tmp_path / "chromium").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SettingsError, match=r"printed nothing: .*it broke"):
        print_pdf(page)


def test_the_page_shows_them_and_says_when_chance_could_do_it(store: Store, tmp_path: Path) -> None:
    record(store, [(100, 120)] * 3, day=-1)
    record(store, [(110, 126)] * 3)
    page = write_report(store, first=DAY, last=DAY, out=tmp_path / "out").page.read_text()
    assert 'alt="Where evidence for crack gathers"' in page
    assert "Against 3 maps in the period before:" in page
    assert "the center 10 px lower and 6 px further right." in page
    assert "Few maps: chance alone moves this much." in page


def test_a_cohort_is_held_against_the_baseline_s_days(store: Store) -> None:
    record(store, [(100, 120)] * 3, day=-20)
    record(store, [(200, 60)] * 3, day=-1)
    record(store, [(110, 120)] * 3)
    long_ago = Period(DAY - timedelta(days=25), DAY - timedelta(days=15), ZoneInfo("UTC"))
    [only], _ = cohorts_of(ReportQueries(store.database), TODAY, photograph_of=no_photograph, against=long_ago)
    assert only.numbers.maps_before == 3
    assert only.numbers.down_px == pytest.approx(10, abs=0.5)
    assert only.numbers.right_px == pytest.approx(0, abs=0.5)


def test_a_large_cohort_is_drawn_from_a_sample(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inspect_xai.reports.cohorts.MOST_MAPS", 4)
    record(store, [(100, 120)] * 8)  # their hashes begin with zeros: each of them is in any sample
    explained = dataclasses.replace(stored.explanation(np.random.default_rng(1)), fused=spot(0, 0), regions=())
    where = {"station": "S1", "height_px": SIZE[0], "width_px": SIZE[1]}
    for n in (20, 21):  # and these in none
        store.record([stored.of_part(stored.inspection(n, explained=explained), f"f{n:063x}", **where)])
    [only], _ = cohorts_of(ReportQueries(store.database), TODAY, photograph_of=no_photograph)
    assert (only.numbers.maps, only.numbers.parts) == (8, 10)
    assert only.numbers.row_px == pytest.approx(100, abs=0.1)
