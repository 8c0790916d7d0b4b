"""The day's Parquet files as other people's readers see them: DuckDB, pyarrow, and pandas through both engines."""

import dataclasses
import gc
import re
import shutil
import warnings
from datetime import date, timedelta
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.support import stored
from benchmarks.support.stored import NOON
from inspect_xai.records import VerdictCode
from inspect_xai.reports.parquet import write_parquet
from inspect_xai.storage.results import InspectionSummary
from inspect_xai.storage.store import open_store
from tests.conftest import ROOT

LINES = ("L1", "L1", "L 2/\N{LATIN SMALL LETTER U WITH DIAERESIS}=%", "", "007", "../" * 60)
Days = dict[date, list[InspectionSummary]]
DAYS = (NOON.date(), NOON.date() + timedelta(days=1))


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Days:
    """Two days of six pictures at five lines."""
    made = []
    for number, line in enumerate(LINES * 2):
        code = VerdictCode.OK if number % 2 else VerdictCode.NG
        facts = {"line": line, "captured_at": NOON + timedelta(days=number // len(LINES))}
        made.append(stored.of_part(stored.inspection(number, code=code), f"{number:064x}", **facts))
    file = tmp_path_factory.mktemp("parquet") / "store.db"
    file.write_bytes(sqlite_template.read_bytes())
    with open_store(f"sqlite:///{file}") as store:
        stored.prepared(store).record(made)
        starts = {day: NOON + (day - DAYS[0]) for day in DAYS}
        return {day: store.day(start, start + timedelta(hours=1), by="captured_at") for day, start in starts.items()}


@pytest.fixture(scope="module")
def written(days: Days, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    for day, rows in days.items():
        assert len(rows) == len(LINES)
        write_parquet(rows, day=day, out=out)
    return out / "inspections"


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "out" / "inspections"))


def test_folders_are_days_and_lines(folder: Path) -> None:
    assert [each.name for each in sorted(folder.iterdir())] == [f"day={day}" for day in DAYS]
    names = [each.name for each in sorted((folder / f"day={DAYS[0]}").iterdir())]
    assert names[0].startswith("on_line=%2E.%2F..%2F")
    assert len(names[0]) == 120
    assert names[1:] == ["on_line=%3007", "on_line=L 2%2F%C3%BC%3D%25", "on_line=L1", "on_line=unknown"]


def test_duckdb_reads_them(folder: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="the extra `test` is not installed")
    source = f"read_parquet('{folder}/**/*.parquet', hive_partitioning = true)"
    with duckdb.connect() as connection:
        found = connection.sql(
            f"SELECT day, line, verdict, captured_at, score FROM {source} ORDER BY sha256"
        ).fetchall()
        per_line = connection.sql(
            f"SELECT count(*) FROM {source} WHERE on_line = 'L1' AND day = '{DAYS[1]}'"
        ).fetchall()
    assert [row[1] for row in found] == list(LINES) * 2
    assert found[0] == (DAYS[0], "L1", "NG", NOON.replace(tzinfo=None), 0.75)
    assert per_line == [(2,)]


def test_pyarrow_reads_them(folder: Path) -> None:
    dataset = pytest.importorskip("pyarrow.dataset", reason="the extra `test` is not installed")
    table = dataset.dataset(folder, partitioning="hive").to_table()
    assert sorted(table["line"].to_pylist()) == sorted(LINES * 2)
    assert str(table.schema.field("captured_at").type) == "timestamp[us]"
    assert str(table.schema.field("inspection_id").type) == "int64"
    assert sorted(table["inspection_id"].to_pylist()) == list(range(1, 13))


@pytest.mark.parametrize("engine", ["pyarrow", "fastparquet"])
def test_pandas_reads_them(folder: Path, engine: str) -> None:
    pytest.importorskip(engine, reason="the extra `test` is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fastparquet's retirement, and the handle it leaks
        frame = pd.read_parquet(folder, engine=engine)  # type: ignore[call-overload]
        gc.collect()
    assert sorted(frame["line"]) == sorted(LINES * 2)
    assert frame.groupby("verdict", observed=True)["inspection_id"].count().to_dict() == {"NG": 6, "OK": 6}
    assert frame["captured_at"].min() == pd.Timestamp(NOON.replace(tzinfo=None))


def test_a_day_written_again_stands_in_the_place_of_the_first(folder: Path, days: Days) -> None:
    write_parquet([row for row in days[DAYS[0]] if row.line == "007"], day=DAYS[0], out=folder.parent)
    assert [each.name for each in (folder / f"day={DAYS[0]}").iterdir()] == ["on_line=%3007"]
    assert len(list(folder.iterdir())) == 2  # and nothing beside


def test_a_write_that_fails_leaves_the_day_as_it_was(folder: Path, days: Days, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.parquet")}
    written = 0

    def full(*given: object, **_: object) -> None:
        nonlocal written
        written += 1
        if written == 3:
            raise OSError(28, "No space left on device")
        Path(str(given[0])).write_bytes(b"half")

    monkeypatch.setattr("inspect_xai.reports.parquet.write_frame", full)
    with pytest.raises(OSError, match="No space left"):
        write_parquet(days[DAYS[0]], day=DAYS[0], out=folder.parent)
    assert {path: path.read_bytes() for path in folder.rglob("*.parquet")} == before
    assert len(list(folder.iterdir())) == 2


def test_every_column_is_documented() -> None:
    table = (ROOT / "docs" / "reference" / "record.md").read_text(encoding="utf-8").partition("## Parquet")[2]
    named = set(re.findall(r"\w+", table))
    absent = {each.name for each in dataclasses.fields(InspectionSummary)} - named
    assert {each.removesuffix("_random") for each in absent} <= named, absent
