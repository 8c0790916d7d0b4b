"""Attribute agreement studies from and to CSV, held to the AIAG example, and through the command line."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.support import stored
from inspect_xai.cli import app
from inspect_xai.errors import StudyError
from inspect_xai.records import StudyRating, VerdictCode
from inspect_xai.reports import msa_csv
from inspect_xai.statistics.agreement import analyze
from inspect_xai.storage import studies
from inspect_xai.storage.store import Store, open_store
from tests.support.aiag import aiag


@pytest.fixture
def store(tmp_path: Path, sqlite_template: Path) -> Iterator[Store]:
    """Ten parts judged OK (even numbers) and NG (odd ones)."""
    shutil.copy(sqlite_template, tmp_path / "line.db")
    with open_store(f"sqlite:///{tmp_path / 'line.db'}") as opened:
        stored.prepared(opened)
        codes = [VerdictCode.NG if n % 2 else VerdictCode.OK for n in range(10)]
        opened.record([stored.inspection(n, code=code) for n, code in enumerate(codes)])
        yield opened


def wide(file: Path) -> Path:
    """The AIAG example as a spreadsheet would hold it."""
    answers, reference = aiag()
    with file.open("w", newline="", encoding="utf-8-sig") as opened:
        writer = csv.writer(opened)
        writer.writerow(["part", "reference", *(f"{who} {trial}" for who in "ABC" for trial in (1, 2, 3))])
        for part, truth in enumerate(reference):
            writer.writerow([part, truth, *(answers[who][part, trial] for who in "ABC" for trial in range(3))])
    return file


def test_the_aiag_example_from_a_spreadsheet_through_the_command_line(tmp_path: Path) -> None:
    table, study = wide(tmp_path / "table.csv"), tmp_path / "study.csv"
    run = CliRunner().invoke(app, ["msa", "import", str(table), "--out", str(study)])
    assert (run.exit_code, run.stdout) == (0, f"450 rows in {study}\n")
    told = CliRunner().invoke(app, ["msa", "analyze", str(study), "--defect", "0", "--good", "1"])
    assert told.exit_code == 1  # miss rates are unacceptable
    assert "effectiveness    42 of 50, 84.0 % (70.9 to 92.8 %)  marginal" in told.stdout
    assert "kappa A - B: 0.86" in told.stdout
    machine = CliRunner().invoke(app, ["msa", "analyze", str(study), "--defect", "0", "--good", "1", "--json"])
    found = json.loads(machine.stdout)
    rates = [
        [round(100 * each[name]["value"], 1) for name in ("effectiveness", "miss", "false_alarm")]
        for each in found["appraisals"]
    ]
    assert rates == [[84.0, 6.2, 4.9], [90.0, 6.2, 2.0], [80.0, 12.5, 8.8]]
    assert [round(each["kappa"]["value"], 2) for each in found["pairs"]] == [0.86, 0.78, 0.79]


def test_a_sheet_is_drawn_half_flagged_without_the_verdict_on_it(store: Store, tmp_path: Path) -> None:
    rows = msa_csv.create(store, parts=6, appraisers=["Ada", "Bob"], trials=2, seed=3)
    assert len(rows) == 24
    assert {(each.reference, each.answer) for each in rows} == {("", "")}
    parts = {each.part for each in rows}
    assert sum(int(part[2:]) % 2 for part in parts) == 3
    orders = [
        [each.part for each in rows if (each.appraiser, each.trial) == (w, t)] for w in ("Ada", "Bob") for t in "12"
    ]
    assert all(set(order) == parts for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert rows == msa_csv.create(store, parts=6, appraisers=["Ada", "Bob"], trials=2, seed=3)
    with pytest.raises(StudyError, match="5 parts judged NG or UNSURE"):
        msa_csv.create(store, parts=20, appraisers=["Ada"], trials=1, seed=1)
    with pytest.raises(StudyError, match="appraisers with different names"):
        msa_csv.create(store, parts=4, appraisers=["Ada", "Ada"], trials=1, seed=1)
    file = tmp_path / "study.csv"
    msa_csv.write(file, rows)
    assert msa_csv.read(file) == rows
    with pytest.raises(StudyError, match="cannot be written: File exists"):
        msa_csv.write(file, [])


def test_the_model_is_an_appraiser_by_its_verdicts(store: Store, tmp_path: Path) -> None:
    rows = [
        StudyRating(f"SN{n:05d}", "", "NG" if n in (1, 2, 3) else "OK", "Ada", "1", "NG" if n in (1, 2, 3) else "OK")
        for n in range(4)
    ]
    found = analyze(msa_csv.with_model(rows, store))
    ada, model = found.appraisals
    assert (ada.effectiveness.count, model.appraiser) == (4, studies.MODEL)
    assert (model.miss.count, model.miss.denominator, model.false_alarm.count) == (1, 3, 0)  # 2 was passed
    file = tmp_path / "study.csv"
    msa_csv.write(file, rows)
    run = CliRunner().invoke(app, ["msa", "analyze", str(file), "--model", "--db", f"sqlite:///{tmp_path / 'line.db'}"])
    assert run.exit_code == 1
    assert "model\n  effectiveness    3 of 4" in run.stdout
    with pytest.raises(StudyError, match="part SN99999 was never inspected"):
        msa_csv.with_model([StudyRating("SN99999", "", "OK", "Ada", "1", "OK")], store)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no column part, reference, appraiser, trial, answer"),
        ("part,reference,appraiser,trial,answer\n", "has no rows"),
        ("part,reference,appraiser,trial,answer\n1,OK,Ada,1,OK,more\n", "line 2 has more cells than the head line"),
        ("part,reference,appraiser,trial,answer\n1,OK,Ada,1,OK\n1,OK,Ada,1,NG\n", "answered twice for part 1"),
        ("part,reference,appraiser,trial,answer\n1,OK,Ada,1,OK\n1,NG,Ada,2,NG\n", "has the references 'OK' and 'NG'"),
        ("part,reference,appraiser,trial,answer\n1,OK,Ada,1,OK\n2,NG,Ada,1,\n", "1 of 2 answers missing"),
        ("part,reference,appraiser,trial,answer\n1,,Ada,1,OK\n", "1 of 1 parts have no reference, the first is 1"),
        (b"part,reference\xff", "save it as CSV, UTF-8"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused_in_a_sentence(tmp_path: Path, text: str | bytes, says: str) -> None:
    file = tmp_path / "study.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(StudyError, match=says):
        analyze(msa_csv.read(file))


def test_a_column_without_a_trial_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("part,reference,Ada\n1,OK,OK\n")
    with pytest.raises(StudyError, match="a column 'Ada'"):
        msa_csv.read_wide(file)
