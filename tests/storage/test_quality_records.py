"""What the quality department sets: a quiet baseline by shift, a calibration, an answer to an alarm; read back."""

import dataclasses
import json
import shutil
from datetime import date, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from benchmarks.support import stored
from benchmarks.support.stored import NOON
from inspect_xai.errors import NotFoundError, StudyError
from inspect_xai.maths.embedding import SIZE, embed
from inspect_xai.records import Decision, ImageStatistics, Prediction, Review, Run, VerdictCode
from inspect_xai.reports.calibration import calibrate, calibration_from
from inspect_xai.reports.drift import drift_of, from_plain, learn_from, to_plain
from inspect_xai.reports.period import Period
from inspect_xai.settings import ServeSettings
from inspect_xai.statistics.drift import Cell
from inspect_xai.statistics.image_statistics import picture_statistics
from inspect_xai.statistics.pca import fit_pca
from inspect_xai.storage.quality_records import QualityRecords
from inspect_xai.storage.report_queries import ReportQueries
from inspect_xai.storage.store import open_store
from tests.conftest import Run as Cli
from tests.support.desk import serving

DAY = date(2026, 11, 23)
UTC = ZoneInfo("UTC")
FIRST = DAY - timedelta(days=14)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """15 days of 40 EARLY and 40 LATE parts at S1, LATE always darker; EARLY dims on the last two days.

    The network is too sure: of what it calls a defect by 0.9 seven in ten are, of the others three. Four days have
    reviews.
    """
    file = tmp_path_factory.mktemp("book") / "line.db"
    shutil.copy(sqlite_template, file)
    rng = np.random.default_rng(6)
    with open_store(f"sqlite:///{file}", clock=lambda: NOON) as opened:
        stored.prepared(opened)
        opened.begin_run(Run("run-2", NOON, "CPUExecutionProvider", {}, {"ok_share": 1.0}))
        for day in range(-14, 1):
            given = []
            for n in range(80):
                shift = ("EARLY", "LATE")[n % 2]
                usual = 140 if shift == "EARLY" else 90
                dimmed = 20 if shift == "EARLY" and day > -2 else 0
                code = VerdictCode.NG if n % 3 == 0 else VerdictCode.OK
                chance = 0.9 if n % 3 == 0 else 0.1
                each = stored.inspection(n, code=code)
                each = dataclasses.replace(
                    each,
                    run_id="run-2",
                    explain_reason="sample" if code is VerdictCode.OK else "ng",
                    image_statistics=ImageStatistics(
                        rng.normal(usual - dimmed, 4), 30.0, 0.0, rng.normal(7, 1), rng.normal(2, 0.1)
                    ),
                    prediction=Prediction((chance, 1 - chance), "crack", chance, 0.8),
                )
                moment = NOON + timedelta(days=day, seconds=n)
                sha256 = f"{rng.integers(2**60):015x}{day % 100:02d}{n:047d}"
                given.append(stored.of_part(each, sha256, captured_at=moment, station="S1", shift=shift))
            for row, each in zip(opened.record(given), given, strict=True):
                is_defect = rng.random() < (0.7 if each.verdict.code is VerdictCode.NG else 0.3)
                said = VerdictCode.NG if is_defect else VerdictCode.OK
                decision = Decision.CONFIRM if said is each.verdict.code else Decision.OVERTURN
                if day < -10:
                    opened.review(row.inspection_id, Review("Ada", decision, said))
    return file


@pytest.fixture
def db(filled: Path, tmp_path: Path) -> str:
    shutil.copy(filled, tmp_path / "line.db")
    return f"sqlite:///{tmp_path / 'line.db'}"


@pytest.fixture
def cli(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """The command line in the folder where the tests look for reports."""
    monkeypatch.chdir(tmp_path)
    return cli


def test_a_shift_is_held_against_itself(db: str) -> None:
    """Early and late light differ; that is no drift, and a dimming of one of them is seen as its own."""
    with open_store(db) as store:
        figures, days = ReportQueries(store.database), Period(FIRST, DAY, UTC)
        learnt, most = learn_from(figures, days, first=FIRST, last=DAY - timedelta(days=3))
        assert most == 12
        strata = {cell.stratum for cell in learnt.quiet if cell.feature == "brightness"}
        assert strata == {("L1", "S1", "EARLY"), ("L1", "S1", "LATE")}
        again = from_plain(json.loads(json.dumps(to_plain(learnt))))
        for cell, quiet in learnt.quiet.items():
            np.testing.assert_allclose(again.quiet[cell].values, quiet.values, rtol=1e-5)
            assert again.quiet[cell].days == quiet.days
        assert again.usual == learnt.usual

        QualityRecords(store.database).set_baseline(FIRST, DAY - timedelta(days=3), content=to_plain(learnt), by="Ada")
        kept = QualityRecords(store.database).baseline()
        assert kept is not None
        assert (kept.first, kept.set_by) == (FIRST, "Ada")
        found = drift_of(figures, Period(DAY, DAY, UTC), baseline=kept)
        assert {alarm.cell for alarm in found.alarms} == {Cell(("L1", "S1", "EARLY"), "brightness")}
        assert (found.first, found.set_by) == (FIRST, "Ada")
        [evidence] = found.evidence
        darkest = store.get(evidence.changed[0])
        assert (darkest.capture.shift, darkest.capture.captured_at.date()) == ("EARLY", DAY)
        assert store.get(evidence.usual).capture.captured_at.date() < DAY - timedelta(days=2)
        [event] = store.ledger.events(kind="drift_baseline")
        assert event.facts["by"] == "Ada"


def test_baseline_report_and_answer_from_the_command_line(cli: Cli, db: str, tmp_path: Path) -> None:
    code, said, _ = cli(
        "drift", "baseline", "--since", FIRST, "--until", DAY - timedelta(days=3), "--by", "Ada", "--db", db
    )
    assert (code, "L1 S1 EARLY: score, margin, brightness, contrast, sharpness, noise, picture 1" in said) == (0, True)
    settings = tmp_path / "line.toml"
    policy = tmp_path / "policy.toml"
    policy.write_text('version = "1"\n[[alert]]\nowner = "optics"\ntopics = ["drift"]\nsend = ["file"]\n')
    settings.write_text(f'db = "{db}"\n[line]\npolicy = "{policy}"\n[alert]\nfolder = "drop"\n')
    code, said, _ = cli("report", "--date", DAY, "--settings", settings, "--alerts")
    assert code == 0
    assert "alerts   1 by file" in said
    page = (tmp_path / "reports" / str(DAY) / "report.html").read_text()
    assert "against the baseline of 2026-11-09 to 2026-11-20" in page
    assert "the pictures&#39; brightness drifted since 2026-11-22" in page
    [alarm] = [
        a for a in json.loads(cli("alarm", "list", "--settings", settings, "--json")[1]) if a["topic"] == "drift"
    ]
    assert (alarm["owner"], alarm["place"], alarm["seen"]) == ("optics", ["L1", "S1", "EARLY"], None)
    assert (tmp_path / "drop" / f"alert-{alarm['alarm_id']}.json").is_file()

    name = alarm["alarm_id"]
    assert cli("alarm", "acknowledge", name, "--note", "lamp ordered", "--by", "Bob", "--settings", settings)[0] == 0
    assert f"{name}  optics  seen by Bob: lamp ordered" in cli("alarm", "list", "--settings", settings)[1]
    assert cli("alarm", "acknowledge", "nothing", "--settings", settings)[0] == NotFoundError.exit_code
    again = cli("report", "--date", DAY, "--settings", settings, "--alerts")[1]
    assert "alerts" not in again
    assert "seen by Bob: lamp ordered" in (tmp_path / "reports" / str(DAY) / "report.html").read_text()


def test_a_baseline_of_too_few_days_is_refused(cli: Cli, db: str) -> None:
    code, _, said = cli("drift", "baseline", "--since", DAY, "--until", DAY, "--db", db)
    assert code == StudyError.exit_code
    assert "no station has more than 1 days with 8 parts" in said


def test_a_calibration_is_fitted_kept_and_expects_escapes(cli: Cli, db: str, tmp_path: Path) -> None:
    code, said, _ = cli("model", "calibrate", "ffff", "--since", FIRST, "--until", DAY, "--by", "Ada", "--db", db)
    assert code == 0
    assert "temperature on 320 reviews" in said
    with open_store(db) as store:
        kept = store.registry.model("ffff").calibration
    assert kept is not None
    assert kept["expected_error"] < kept["expected_error_before"]
    assert cli("report", "--date", DAY, "--db", db)[0] == 0
    page = (tmp_path / "reports" / str(DAY) / "report.html").read_text()
    assert "Expected without labels" in page
    numbers = json.loads((tmp_path / "reports" / str(DAY) / "report.json").read_text())
    [expected] = numbers["expected"]
    chance = calibration_from(kept).apply(np.array([0.1]))[0]
    passed = sum(n % 3 != 0 for n in range(80))
    assert expected["errors"]["escapes"] == pytest.approx(passed * chance, rel=1e-9)
    assert (
        cli("model", "calibrate", "ffff", "--since", DAY, "--db", db)[0] == StudyError.exit_code
    )  # nothing reviewed that day


def test_a_curve_needs_two_hundred_of_each_kind_and_each_half_judges_the_other() -> None:
    rng = np.random.default_rng(3)
    scores = rng.random(4000)
    truth = rng.random(4000) < scores**3  # a network much too sure of defects
    found = calibrate(scores, truth, weights=np.ones(4000))
    assert (found["kind"], found["reviews"]) == ("isotonic", 4000)
    assert found["expected_error_before"] > 0.2
    assert found["expected_error"] < 0.03
    few = calibrate(scores[:200], truth[:200], weights=np.ones(200))
    assert few["kind"] == "temperature"
    with pytest.raises(StudyError, match="20 of each"):
        calibrate(scores[:30], truth[:30], weights=np.ones(30))


def test_an_embedding_is_the_same_everywhere_and_keeps_distances() -> None:
    """Signs come from a hash: these are fixed for all time, or stored embeddings would mean something else."""
    one = embed(np.eye(3)[:, :1, None])  # the first of 3 channels, alone
    assert (np.abs(one) == 0.25).all()
    assert np.sign(one).astype(int).tolist() == [-1, 1, -1, 1, 1, 1, 1, 1, 1, 1, 1, -1, 1, 1, -1, -1]
    rng = np.random.default_rng(1)
    near, far = rng.normal(0, 1, (200, 64, 1, 1)), rng.normal(1, 1, (50, 64, 1, 1))
    quiet, moved = (np.array([embed(each) for each in given]) for given in (near, far))
    cloud = fit_pca(quiet)
    assert cloud is not None
    assert np.median(cloud.distances(quiet)) == pytest.approx(1, abs=0.1)
    assert (cloud.distances(moved) > 1).mean() > 0.9
    assert np.isnan(cloud.distances(np.full((1, SIZE), np.nan))).all()


def test_bands_of_a_large_picture_tell_what_the_whole_does(rng: np.random.Generator) -> None:
    small = rng.normal(120, 9, (700, 900)).clip(0, 255).astype(np.uint8)
    whole = picture_statistics(small[:280])
    bands = picture_statistics(small)
    assert bands.brightness == pytest.approx(whole.brightness, abs=0.1)
    assert bands.noise == pytest.approx(9, rel=0.02)
    assert bands.sharpness == pytest.approx(20 * 81, rel=0.03)  # the mask's squares add up to 20


def test_the_last_reports_in_the_web_app(cli: Cli, db: str, tmp_path: Path) -> None:
    assert cli("report", "--date", DAY, "--db", db)[0] == 0
    people = ServeSettings(reports=tmp_path / "reports")
    with serving(db, people) as desk:
        ada = desk.client("Ada")
        assert f"/reports/{DAY}" in ada.get("/reports").text
        shown = ada.get(f"/reports/{DAY}")
        assert "judged by a model that was not approved" in shown.text
        inside = ada.get(f"/reports/{DAY}/page")
        assert "sandbox" in inside.headers["content-security-policy"]
        assert "Inspections of 2026-11-23" in inside.text
        ada.get(f"/reports/{DAY}")
        name = ada.hidden("alarm")
        answer = ada.follow(ada.post(f"/reports/{DAY}/alarms", {"alarm": name, "note": "approved <b>tomorrow</b>"}))
        assert "approved &lt;b&gt;tomorrow&lt;/b&gt;" in answer.text
        assert ada.post(f"/reports/{DAY}/alarms", {"alarm": "none"}).status_code == 404
        assert ada.get("/reports/..%2f..%2fetc").status_code in (404, 422)
        assert ada.get("/reports/2020-01-01").status_code == 404
    with serving(db, ServeSettings(reports=tmp_path / "reports", open_role="viewer")) as desk:
        guest = desk.client("Gus")
        assert guest.get(f"/reports/{DAY}").status_code == 200
        assert '<form method="post" action="/reports' not in guest.page
        assert guest.post(f"/reports/{DAY}/alarms", {"alarm": name}).status_code == 403
    with serving(db, ServeSettings(reports=tmp_path / "reports", open_role="operator", blind_share=0.1)) as desk:
        judge = desk.client("Joe")  # the page would tell verdicts of parts that he is to judge blind
        assert [judge.get(f"/reports/{DAY}{end}").status_code for end in ("", "/page")] == [200, 403]
    with open_store(db) as store:
        assert QualityRecords(store.database).acknowledged()[name].by == "Ada"
