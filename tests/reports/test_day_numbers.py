"""Numbers, charts and alarms of a report, against counts made by hand."""

import dataclasses
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from importlib.resources import files
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from scipy.stats import fisher_exact

from benchmarks.support import stored
from inspect_xai.errors import SettingsError
from inspect_xai.records import Decision, Failure, ModelStatus, Review, Run, Verdict, VerdictCode
from inspect_xai.reports.alarms import Topic, alarms_of, estimate_in_words, summary_of
from inspect_xai.reports.charts import Bar, Priced, control_chart, cost_chart, pareto_chart, verdict_chart
from inspect_xai.reports.daily import write_report
from inspect_xai.reports.day_numbers import Numbers, chart_of, numbers_of
from inspect_xai.reports.period import Period
from inspect_xai.statistics.control_charts import Limits, ParetoRow, Signal
from inspect_xai.statistics.rates import Estimate
from inspect_xai.storage.report_queries import ReportQueries
from inspect_xai.storage.results import StoredModel
from inspect_xai.storage.store import Store, open_store

DAY = date(2026, 11, 23)
UTC = ZoneInfo("UTC")
TODAY = Period(DAY, DAY, UTC)
MODEL = StoredModel(
    stored.FINGERPRINT, "tile", "1", "approved", stored.NOON, "Bob", stored.NOON, "Ada", {}, {"holds": True}
)
MODELS = {stored.FINGERPRINT: MODEL}


@pytest.fixture
def store(tmp_path: Path, sqlite_template: Path) -> Iterator[Store]:
    shutil.copy(sqlite_template, tmp_path / "line.db")
    with open_store(f"sqlite:///{tmp_path / 'line.db'}", clock=lambda: stored.NOON) as opened:
        yield stored.prepared(opened)


def record(store: Store, *, day: int, ok: int, ng: int, label: str = "crack", sampled: int = 0) -> list[int]:
    """Parts of one day before (negative) or after DAY; ids of OK parts first, of which `sampled` are in the sample."""
    given = []
    for n in range(ok + ng):
        code = VerdictCode.OK if n < ok else VerdictCode.NG
        each = stored.inspection(n, code=code)
        moment = stored.NOON + timedelta(days=day, seconds=n)
        verdict = Verdict(code, each.verdict.reason, label, 0.75, 0.5)
        each = stored.of_part(each, f"{(day % 1000) * 1000 + n:064x}", captured_at=moment, station="S1", shift="EARLY")
        because = "sample" if n < sampled else ""
        given.append(dataclasses.replace(each, verdict=verdict, inspected_at=moment, explain_reason=because))
    return [each.inspection_id for each in store.record(given)]


def made(store: Store, period: Period = TODAY) -> Numbers:
    return numbers_of(ReportQueries(store.database), period, models=MODELS)


def test_each_number_stands_beside_that_of_the_period_before(store: Store) -> None:
    record(store, day=-1, ok=90, ng=10)
    record(store, day=0, ok=30, ng=20)
    numbers = made(store)
    counts = {each.name: each for each in numbers.headline}
    assert (counts["inspected"].count, counts["inspected"].count_before) == (50, 100)
    ng = counts["NG"]
    assert (ng.count, ng.share, ng.count_before, ng.share_before) == (20, 0.4, 10, 0.1)
    assert ng.p == pytest.approx(fisher_exact([[20, 30], [10, 90]])[1], rel=1e-9)
    [row] = numbers.pareto
    assert (row.label, row.count, row.change) == ("crack", 20, pytest.approx(0.3))
    [station] = numbers.stations
    assert (station.names, station.ok, station.ng, station.total_before) == (("L1", "S1"), 30, 20, 100)
    assert (station.flagged_share, station.flagged_share_before) == (0.4, pytest.approx(0.1))
    assert [(mix.names, mix.total) for mix in numbers.shifts] == [(("EARLY",), 50)]
    alarms = alarms_of(numbers, TODAY)
    assert [alarm.topic for alarm in alarms] == [Topic.MODEL, Topic.PARETO]
    assert alarms[1].text.startswith("More crack: 40.00 % of the parts after 10.00 % (q = ")


def test_every_group_says_what_became_of_its_parts(store: Store) -> None:
    record(store, day=-1, ok=6, ng=2, label="hole")
    ids = record(store, day=0, ok=5, ng=3)
    store.review(ids[0], Review("Ada", Decision.CONFIRM, VerdictCode.OK))
    store.review(ids[6], Review("Ada", Decision.OVERTURN, VerdictCode.OK))
    failed = dataclasses.replace(
        stored.inspection(0, code=VerdictCode.UNSURE), failure=Failure("PictureError", "does not decode")
    )
    store.record([stored.of_part(failed, f"{77:064x}", captured_at=stored.NOON, station="S1", shift="EARLY")])
    numbers = made(store)
    for [group] in (numbers.products, numbers.stations, numbers.shifts, numbers.lots):
        assert (group.ok, group.ng, group.unsure, group.failed, group.reviewed, group.overturned) == (5, 3, 1, 1, 2, 1)
    assert {mix.total_before for [mix] in (numbers.products, numbers.stations, numbers.shifts)} == {8}
    assert numbers.lots[0].total_before == 0  # a lot is made once
    of_label = {mix.names: mix for mix in numbers.labels}
    assert (of_label["crack",].reviewed, of_label["crack",].overturned, of_label["crack",].total_before) == (2, 1, 0)
    assert (of_label["hole",].total, of_label["hole",].total_before) == (0, 8)


def test_nothing_before_and_nothing_at_all(store: Store) -> None:
    nothing = made(store)
    assert nothing.rates is None
    assert [alarm.topic for alarm in alarms_of(nothing, TODAY)] == [Topic.NOTHING]
    assert summary_of(nothing, (), TODAY) == "2026-11-23: nothing was inspected."
    record(store, day=0, ok=3, ng=1)
    numbers = made(store)
    assert {each.share_before for each in numbers.headline} == {None}
    assert {each.p for each in numbers.headline} == {1.0}


def test_rates_rest_on_the_flagged_parts_and_the_random_share(store: Store) -> None:
    store.begin_run(Run("run-2", stored.NOON, "CPUExecutionProvider", {}, {"ok_share": 0.5}))
    ids = record(store, day=0, ok=40, ng=4, sampled=20)
    numbers = made(store)
    assert numbers.rates is not None  # the run of these parts drew no share
    assert numbers.rates.escape_of_passed.value is None
    assert numbers.rates.escape_of_passed.needed > 0
    for number in ids[40:]:
        store.review(number, Review("Ada", Decision.CONFIRM, VerdictCode.NG))
    store.review(ids[0], Review("Ada", Decision.UNDECIDED, VerdictCode.UNSURE))
    store.review(ids[30], Review("Ada", Decision.OVERTURN, VerdictCode.NG))  # found by chance, not drawn
    rates = made(store).rates
    assert rates is not None
    assert [(s.verdict, s.parts, s.reviewed, s.defects, s.found_otherwise) for s in rates.strata] == [
        (VerdictCode.NG, 4, 4, 4, 0),
        (VerdictCode.OK, 40, 0, 0, 1),
    ]
    assert rates.overkill_of_rejected == Estimate(0.0, 0.0, 0.0, 0)
    alarms = alarms_of(made(store), TODAY)
    assert alarms[0].text == "1 part passed as OK that a person called a defect."


def test_the_share_drawn_is_that_of_the_run(store: Store) -> None:
    store.begin_run(Run("run-2", stored.NOON, "CPUExecutionProvider", {}, {"ok_share": 0.25}))
    for n in range(8):
        given = dataclasses.replace(stored.inspection(n, code=VerdictCode.OK), run_id="run-2")
        [row] = store.record([dataclasses.replace(given, explain_reason="sample" if n < 2 else "")])
        if n < 2:
            store.review(row.inspection_id, Review("Ada", Decision.CONFIRM, VerdictCode.OK))
    rates = made(store).rates
    assert rates is not None
    assert [(s.inclusion, s.parts, s.reviewed, s.defects) for s in rates.strata] == [(0.25, 8, 2, 0)]


def test_limits_stand_only_where_enough_days_do() -> None:
    days = [DAY - timedelta(days=n) for n in range(11, -1, -1)]

    def chart(total: int, flagged: list[int]) -> object:
        return chart_of((), days, [Counter({("total",): total, ("flagged",): count}) for count in flagged])

    steady = chart(100, [10] * 11 + [40])
    assert (steady.limits, steady.days) == (Limits.SIGMA, 12)
    assert steady.points[-1].signals == (Signal.BEYOND,)
    assert steady.center == pytest.approx(150 / 1200)
    assert chart(100, [1] * 12).limits is Limits.EXACT
    assert chart(5000, [50, 60] * 6).limits is Limits.LANEY
    few = chart_of((), days, [Counter()] * 5 + [Counter({("total",): 100, ("flagged",): 9})] * 7)
    assert (few.limits, few.center, few.days) == (None, None, 7)
    assert few.points[0].share is None
    drawn = control_chart(steady)
    assert "<title>2026-11-23: 40 of 100 flagged, 40.0 %, limits " in drawn
    assert drawn.count("<title>") == 12
    assert {"flagged parts (%)", "day of capture (100 parts a day)", "40.0"} <= words_in(drawn)
    assert dashed(drawn) > dashed(control_chart(few)) == 0  # no limits, none drawn


def words_in(chart: str) -> set[str]:
    return set(re.findall(r"<text[^>]*>([^<]*)</text>", chart))


def dashed(chart: str) -> int:
    return chart.count("stroke-dasharray")


def test_a_chart_is_the_same_bytes_in_the_page_s_colors_whatever_the_machine_has_set() -> None:
    """And holds nothing that reaches into the page around it, nor a name that another chart on the page has."""
    import matplotlib as mpl

    bars = [Bar("06", 8, 1, 1), Bar("07", 12, 0, 3)]
    drawn = verdict_chart(bars, unit="hour")
    with mpl.rc_context({"svg.fonttype": "path", "font.size": 30, "text.color": "red"}):
        assert verdict_chart(bars, unit="hour") == drawn
        assert mpl.rcParams["font.size"] == 30
    assert {"OK 20", "UNSURE 4", "NG 1", "hour of capture", "parts inspected (count)", "07"} <= words_in(drawn)
    style = files("inspect_xai.reports").joinpath("templates/day.css").read_text(encoding="utf-8")
    assert set(re.findall(r"var\((--\w+)\)", drawn)) <= set(re.findall(r"(--\w+):", style))
    assert not re.search(r"#[0-9a-f]{6}\b(?!\))|<style|<metadata|font-family|url\((?!#)", drawn)
    other = verdict_chart(bars, unit="day")
    names = [re.findall(r' id="([^"]+)"', chart) for chart in (drawn, other)]
    assert len(set(names[0]) | set(names[1])) == len(names[0]) + len(names[1]) > 0


def test_a_label_is_words_whatever_is_in_it() -> None:
    row = ParetoRow("</svg><script>$x_1$ 裂纹", 3, 1.0, 1.0, 0.03, 0.06, -0.03, -0.1, 0.02, 0.5, 0.5)
    drawn = pareto_chart([row])
    assert "&lt;/svg&gt;&lt;script&gt;$x_1$ 裂纹" in words_in(drawn)  # no mathematics, no tags
    assert "3 (100 % so far)" in words_in(drawn)


def test_the_cost_of_a_method_stands_in_seconds_and_no_two_names_on_each_other() -> None:
    given = [Priced("a", 0.1, 0.5, False), Priced("b", 0.12, 0.5, False), Priced("random", 9.0, 0.1, True)]
    drawn = cost_chart(given, quality="AUPRO, mean over 4 pictures", front=[(0.1, 0.5)])
    assert {"a", "b", "random", "0.1", "1", "seconds for a picture (median)"} <= words_in(drawn)
    heights = [float(y) for y in re.findall(r' y="([\d.]+)"[^>]*>[ab]</text>', drawn)]
    assert len(heights) == 2
    assert abs(heights[0] - heights[1]) > 11


def test_a_period_knows_the_one_before_and_days_of_23_hours() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    week = Period(date(2026, 3, 23), date(2026, 3, 29), berlin, "early shift")
    assert (week.before.first, week.before.last, week.before.shift) == (
        date(2026, 3, 16),
        date(2026, 3, 22),
        "early shift",
    )
    start, end = week.span_of(date(2026, 3, 29))  # clocks go forward
    assert end - start == timedelta(hours=23)
    assert week.name == "2026-03-23_2026-03-29_early-shift-86524a56"
    with pytest.raises(SettingsError, match="at most a year apart"):
        Period(DAY, DAY - timedelta(days=1), berlin)


def test_no_two_shifts_share_a_folder() -> None:
    shifts = [
        "EARLY",
        "early",
        "早班",
        "晚班",
        "A+",
        "A-",
        "A--aee8736c",
        "a b",
        "a_b",
        "../x",
        "x" * 300,
        "x" * 301,
        "é",
        "e\u0301",
    ]
    names = [Period(DAY, DAY, ZoneInfo("UTC"), shift).name for shift in shifts]
    assert len(set(names)) == len(shifts)
    assert names[:3] == ["2026-11-23_EARLY", "2026-11-23_early", "2026-11-23_早班"]
    assert all(len(name.encode()) < 200 and "/" not in name for name in names)


def test_what_people_read_is_written_in_words(store: Store, tmp_path: Path) -> None:
    assert estimate_in_words(Estimate(0.0125, 0.01, 0.02, 0)) == "1.25 % (1.00 to 2.00 %)"
    assert estimate_in_words(Estimate(None, 0.0, 0.5, 40)).startswith("too few reviews to say, 40 more needed")
    assert estimate_in_words(Estimate(None, 0.0, 1.0, 0)) == "nothing to count"
    store.registry.set_model_status(stored.FINGERPRINT, ModelStatus.APPROVED, by="Bob")
    record(store, day=0, ok=9, ng=1, label="<i>")
    folder = write_report(store, first=DAY, last=DAY, out=tmp_path).page.parent
    said = (folder / "summary.txt").read_text()
    assert said.startswith("2026-11-23: 10 inspected (0 in the period before). 1 NG (10.0 %, nothing to compare with)")
    assert said.endswith("No alarms.\n")
    facts = json.loads((folder / "report.json").read_text())
    assert facts["numbers"]["headline"][2]["count"] == 1
    assert facts["period"] == {"first": "2026-11-23", "last": "2026-11-23", "shift": "", "time_zone": "UTC"}
    assert "<i>" not in pareto_chart(made(store).pareto)
