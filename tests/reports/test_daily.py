"""The day's report: what a reader sees on the page, and what a program reads from the Parquet file."""

import dataclasses
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.support import stored
from inspect_xai.errors import SettingsError
from inspect_xai.files import replaced_folder
from inspect_xai.records import Failure, Inspection, Reason, Status, Verdict, VerdictCode
from inspect_xai.reports import labels
from inspect_xai.reports.daily import write_report
from inspect_xai.reports.parquet import write_parquet
from inspect_xai.storage.store import Store, open_store
from tests.support import hostile
from tests.support.html_page import Page

DAY = stored.NOON.date()


@pytest.fixture
def store(tmp_path: Path, sqlite_template: Path) -> Iterator[Store]:
    shutil.copy(sqlite_template, tmp_path / "line.db")
    with open_store(f"sqlite:///{tmp_path / 'line.db'}") as opened:
        yield stored.prepared(opened)


def archived(inspection: Inspection, path: Path, *, seed: int = 0) -> Inspection:
    """The inspection with a picture of the right size in the archive."""
    content = hostile.encoded(hostile.surface(seed, size=(16, 16)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return stored.of_part(inspection, hashlib.sha256(content).hexdigest(), archived_to=str(path))


def test_the_page_shows_counts_parts_pictures_and_what_they_mean(
    store: Store, tmp_path: Path, rng: np.random.Generator
) -> None:
    flagged = archived(stored.inspection(1, explained=stored.explanation(rng)), tmp_path / "archive/1.png")
    fine = [stored.inspection(number, code=VerdictCode.OK) for number in range(2, 6)]
    store.record([flagged, *fine])

    report = write_report(store, first=DAY, last=DAY, out=tmp_path / "out", time_zone="Europe/Berlin")

    assert (report.inspections, report.ok, report.ng, report.unsure, report.flagged, report.shown) == (5, 4, 1, 0, 1, 1)
    page = Page(report.page)
    assert "inspected 5 before 0 OK 4 80.0 % before: none NG 1 20.0 % before: none UNSURE 0" in page.text
    assert "Alarms 5 parts judged by a model that was not approved at that time." in page.text
    assert "Inspections of 2026-11-23" in page.text
    assert (
        "NG SN00001 model not approved product housing · lot LOT0 · line L1 · station S1 · captured 2026-11-23 13:00:01"
    ) in page.text
    assert "crack scores 0.750 , NG from 0.500" in page.text
    assert "DEFECT_OVER_THRESHOLD a defect label reached its threshold." in page.text
    assert (
        "explained masking shows where the label's score depends on the picture. Note: the masks score nearly"
        in page.text
    )
    assert "1 1, 2 3 × 4 px 75 %" in page.text
    assert "policy 1 · run run-1 on CPUExecutionProvider · sise, 14 passes" in page.text
    assert labels.NO_CAUSE in page.text
    assert [image["alt"] for image in page.images] == [
        "The picture of part SN00001",
        "The same picture with the explanation map for crack",
    ]


def test_the_page_loads_and_runs_nothing(store: Store, tmp_path: Path, rng: np.random.Generator) -> None:
    store.record([archived(stored.inspection(1, explained=stored.explanation(rng)), tmp_path / "a.png")])
    page = Page(write_report(store, first=DAY, last=DAY, out=tmp_path / "out").page)
    assert page.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert "url(" not in page.rawdata


def test_names_from_outside_are_shown_and_never_run(store: Store, tmp_path: Path) -> None:
    hostile_name = "<script>alert(1)</script>{{ 7 * 7 }}"
    inspection = stored.inspection(1)
    part = dataclasses.replace(inspection.capture.part, serial=hostile_name)
    store.record([stored.of_part(inspection, "1" * 64, part=part, line="<b>L1</b>")])
    page = Page(write_report(store, first=DAY, last=DAY, out=tmp_path / "out").page)
    assert hostile_name in page.text
    assert "<b>L1</b>" in page.text
    assert not {"script", "b"} & set(page.tags)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No picture: the picture is missing from the archive"),
        (b"not a picture", "No picture: the picture is missing from the archive"),
        (hostile.PNG, "is another picture than the one inspected"),
    ],
)
def test_a_picture_that_is_not_there_is_said_to_be_missing(
    store: Store, tmp_path: Path, rng: np.random.Generator, content: bytes | None, says: str
) -> None:
    path = tmp_path / "a.png"
    store.record([archived(stored.inspection(1, explained=stored.explanation(rng)), path)])
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    page = Page(write_report(store, first=DAY, last=DAY, out=tmp_path / "out").page)
    assert says in page.text
    assert page.images == []


def test_a_failed_picture_and_a_map_without_evidence_are_told_in_words(
    store: Store, tmp_path: Path, rng: np.random.Generator
) -> None:
    broken = dataclasses.replace(
        stored.of_part(stored.inspection(1), "1" * 64, height_px=0, width_px=0),
        verdict=Verdict(VerdictCode.UNSURE, Reason.BAD_IMAGE, "", 0.0, 0.0),
        prediction=None,
        failure=Failure("PictureError", "the file is empty"),
    )
    nothing = dataclasses.replace(stored.explanation(rng), status=Status.NO_EVIDENCE, regions=())
    unexplained = archived(stored.inspection(2, explained=nothing), tmp_path / "2.png")
    store.record([broken, unexplained])
    page = Page(write_report(store, first=DAY, last=DAY, out=tmp_path / "out").page)
    assert "BAD_IMAGE the file holds no picture that could be judged. PictureError the file is empty" in page.text
    assert "No picture: the file holds no picture" in page.text
    assert "no_evidence no channel of the network argues for the label" in page.text
    assert len(page.images) == 1  # the picture of the second; there is no map to show
    assert page.text.index("SN00002") < page.text.index("SN00001")  # NG before UNSURE


def test_the_page_is_capped_and_says_how_many_more(store: Store, tmp_path: Path) -> None:
    over = [Verdict(VerdictCode.NG, Reason.DEFECT_OVER_THRESHOLD, "crack", 0.5 + n / 100, 0.5) for n in range(7)]
    store.record([dataclasses.replace(stored.inspection(n), verdict=verdict) for n, verdict in enumerate(over)])
    report = write_report(store, first=DAY, last=DAY, out=tmp_path / "out", thumbnails=3)
    page = Page(report.page)
    assert (report.flagged, report.shown) == (7, 3)
    assert "The 3 most urgent are shown; 4 more are in the database" in page.text
    assert re.findall(r"NG (SN\d+)", page.text) == ["SN00006", "SN00005", "SN00004"]


def test_a_day_begins_and_ends_in_the_plants_zone(store: Store, tmp_path: Path) -> None:
    moments = [datetime(2026, 11, 21, 22, 59, 59, tzinfo=UTC), datetime(2026, 11, 21, 23, tzinfo=UTC)]
    moments += [datetime(2026, 11, 22, 22, 59, 59, tzinfo=UTC), datetime(2026, 11, 22, 23, tzinfo=UTC)]
    store.record(
        [stored.of_part(stored.inspection(n), f"{n:064x}", captured_at=moment) for n, moment in enumerate(moments)]
    )
    day = date(2026, 11, 22)
    assert write_report(store, first=day, last=day, out=tmp_path / "a", time_zone="Europe/Berlin").inspections == 2
    assert write_report(store, first=day, last=day, out=tmp_path / "b").inspections == 2
    week = write_report(store, first=day - timedelta(days=3), last=day + timedelta(days=3), out=tmp_path / "c")
    assert week.inspections == 4
    assert len(week.parquet) == 7
    assert week.page.parent.name == "2026-11-19_2026-11-25"
    with pytest.raises(SettingsError, match="at most a year apart"):
        write_report(store, first=day, last=day - timedelta(days=1), out=tmp_path / "d")


def test_a_day_without_pictures_says_so(store: Store, tmp_path: Path) -> None:
    report = write_report(store, first=DAY, last=DAY, out=tmp_path / "out")
    assert "No picture captured on this day was inspected." in Page(report.page).text
    assert len(read(report.parquet[0])) == 0


def test_writing_again_replaces_the_day_and_leaves_nothing_beside(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_report(store, first=DAY, last=DAY, out=out)
    store.record([stored.inspection(1)])
    report = write_report(store, first=DAY, last=DAY, out=out)
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == [
        "2026-11-23/manifest.json",
        "2026-11-23/report.html",
        "2026-11-23/report.json",
        "2026-11-23/summary.txt",
        "inspections/day=2026-11-23/on_line=L1/inspections.parquet",
    ]
    manifest = json.loads((report.page.parent / "manifest.json").read_text())
    assert manifest["inspections"] == 1
    assert manifest["files"]["report.html"] == hashlib.sha256(report.page.read_bytes()).hexdigest()


def test_the_same_record_gives_the_same_bytes_but_for_the_time_of_writing(
    store: Store, tmp_path: Path, rng: np.random.Generator
) -> None:
    store.record([archived(stored.inspection(1, explained=stored.explanation(rng)), tmp_path / "a.png")])
    first, second = (write_report(store, first=DAY, last=DAY, out=tmp_path / name).page.parent for name in "ab")
    for name in ("report.json", "summary.txt"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    pages = [re.sub(rb"<time>.*?</time>", b"", (folder / "report.html").read_bytes()) for folder in (first, second)]
    assert pages[0] == pages[1]


def test_a_shift_has_its_own_page_and_leaves_the_days_parquet_alone(store: Store, tmp_path: Path) -> None:
    for number, shift in enumerate(("EARLY", "../LATE", "../LATE")):
        store.record([stored.of_part(stored.inspection(number), f"{number:064x}", shift=shift)])
    report = write_report(store, first=DAY, last=DAY, out=tmp_path / "out", shift="../LATE")
    assert (report.inspections, report.parquet) == (2, ())
    assert report.page.parent == tmp_path / "out" / "2026-11-23_-LATE-6fbb381a"
    assert "Inspections of 2026-11-23, shift ../LATE" in Page(report.page).text


def test_a_shift_that_nobody_ever_worked_is_refused_by_name(store: Store, tmp_path: Path) -> None:
    store.record([stored.of_part(stored.inspection(0), f"{0:064x}", shift="EARLY")])
    with pytest.raises(SettingsError, match=r"in the shift 'MORNING'. Expected one of EARLY") as refused:
        write_report(store, first=DAY, last=DAY, out=tmp_path / "out", shift="MORNING")
    assert refused.value.remedy == "spell it as the pictures do"
    assert not (tmp_path / "out").exists()
    other_day = DAY - timedelta(days=30)
    assert write_report(store, first=other_day, last=other_day, out=tmp_path / "out", shift="EARLY").inspections == 0


def test_the_page_stays_light_however_many_pictures_there_are(store: Store, tmp_path: Path) -> None:
    noise = np.random.default_rng(1)
    for number in range(80):
        content = hostile.encoded(noise.integers(0, 256, (300, 420, 3), dtype=np.uint8))
        (tmp_path / f"{number}.png").write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        where = {"archived_to": str(tmp_path / f"{number}.png"), "height_px": 300, "width_px": 420}
        store.record([stored.of_part(stored.inspection(number), sha256, **where)])
    report = write_report(store, first=DAY, last=DAY, out=tmp_path / "out", thumbnails=80)
    assert 10 < report.shown < 80
    assert report.page.stat().st_size < 3_000_000


def test_a_failure_while_writing_leaves_what_stood_there(tmp_path: Path) -> None:
    with replaced_folder(tmp_path / "day") as work:
        (work / "a").write_text("first")
    with pytest.raises(FileNotFoundError), replaced_folder(tmp_path / "day") as work:
        (work / "absent" / "a").write_text("half")
    assert [path.name for path in tmp_path.iterdir()] == ["day"]
    assert (tmp_path / "day/a").read_text() == "first"


def read(path: Path) -> pd.DataFrame:
    """The file as pandas reads it with fastparquet, whose retirement pandas warns of; it also leaks its handle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = pd.read_parquet(path, engine="fastparquet")
        import gc

        gc.collect()
    return frame


def test_pandas_reads_what_was_recorded(store: Store, tmp_path: Path, rng: np.random.Generator) -> None:
    store.record(
        [
            stored.inspection(1, explained=stored.explanation(rng)),
            stored.of_part(stored.inspection(2, code=VerdictCode.OK), "2" * 64, file_name="emoji \N{HAMMER}\n.png"),
        ]
    )
    rows = store.day(stored.NOON, stored.NOON + timedelta(days=1), by="captured_at")
    frame = read(write_parquet(rows, day=DAY, out=tmp_path) / "on_line=L1" / "inspections.parquet")
    assert list(frame.columns) == [field.name for field in dataclasses.fields(rows[0])]
    assert frame["verdict"].tolist() == ["NG", "OK"]
    assert frame["file_name"].tolist() == ["L1/S3/SN00001.png", "emoji \N{HAMMER}\n.png"]
    assert frame["captured_at"].iloc[0] == pd.Timestamp("2026-11-23 12:00:01.123456")
    assert frame["passes"].tolist() == [14, 0]
    assert str(frame["score"].dtype) == "float64"
    assert len(read(tmp_path / "inspections")) == 2  # the folder of all days


def test_every_code_has_its_words() -> None:
    assert set(labels.REASONS) == set(Reason)
    assert set(labels.STATUSES) == set(Status)
    assert labels.note_in_words("bucket_halved_to_4") == "the device ran short of memory: 4 masks at a time"
    assert labels.note_in_words("something_new") == "something_new"
