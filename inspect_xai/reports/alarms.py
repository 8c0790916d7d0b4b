"""What the morning meeting must hear of, and the whole report in one paragraph."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from inspect_xai.maths.control import Signal
from inspect_xai.maths.drift import Rule
from inspect_xai.maths.quality import Estimate
from inspect_xai.reports.numbers import Numbers
from inspect_xai.reports.period import Period
from inspect_xai.reports.watch import Drift

FALSE_DISCOVERY_RATE: Final = 0.05
_SIGNALS: Final = {Signal.BEYOND: "beyond its control limits", Signal.RUN: "8 days or more on one side of its centre"}


DRIFT_WORDS: Final = {
    "score": "the defect score",
    "margin": "the network's margin",
    "support_share": "the share of the picture that maps cover",
    "region_row_px": "the evidence's row",
    "region_column_px": "the evidence's column",
    "region_area_px": "the evidence's area",
    "faithfulness_percent": "how much more of the score hangs on what maps mark than on any other place",
}


class Topic(StrEnum):
    """What an alarm is about."""

    NOTHING = "nothing_inspected"
    MODEL = "model_not_approved"
    FAILED = "failed_pictures"
    ESCAPES = "escapes_found"
    CONTROL = "out_of_control"
    PARETO = "defect_more_often"
    QUEUE = "queue_too_old"
    DRIFT = "drift"


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing to talk about."""

    topic: Topic
    text: str


def alarms_of(numbers: Numbers, period: Period, drift: Drift | None = None) -> tuple[Alarm, ...]:
    """Find what deserves a word, most serious first."""
    return tuple(Alarm(topic, text) for topic, text in (*_found(numbers, period), *_drifted(drift, period)))


def _found(numbers: Numbers, period: Period) -> Iterable[tuple[Topic, str]]:
    counts = {each.name: each.count for each in numbers.headline}
    if not counts["inspected"]:
        yield Topic.NOTHING, "Nothing was inspected."
    if counts["escapes found"]:
        yield Topic.ESCAPES, f"{parts(counts['escapes found'])} passed as OK that a person called a defect."
    unapproved = sum(use.parts for use in numbers.models if use.status != "approved")
    if unapproved:
        yield Topic.MODEL, f"{parts(unapproved)} judged by a model that was not approved at that time."
    if counts["failed"]:
        yield Topic.FAILED, f"{parts(counts['failed'])} could not be judged: the picture or the model failed."
    yield from _changes(numbers, period)
    late = sum(numbers.waiting.by_age[2:])
    if late:
        yield Topic.QUEUE, f"{parts(late)} flagged more than 3 days ago still wait for a person."


def _changes(numbers: Numbers, period: Period) -> Iterable[tuple[Topic, str]]:
    """What the charts and the comparison with the period before show."""
    for chart in numbers.charts:
        place = " ".join(chart.names) or "All stations"
        for point in chart.points:
            if point.day >= period.first:
                for signal in point.signals:
                    share = f"{100 * (point.share or 0):.1f} % flagged on {point.day}"
                    yield Topic.CONTROL, f"{place}: {share} ({point.count} of {point.total}), {_SIGNALS[signal]}."
    for row in numbers.pareto:
        if row.q < FALSE_DISCOVERY_RATE and row.change is not None and row.change > 0:
            shares = f"{100 * (row.rate or 0):.2f} % of the parts after {100 * (row.rate_before or 0):.2f} %"
            yield Topic.PARETO, f"More {row.label}: {shares} (q = {row.q:.2g})."


def _drifted(drift: Drift | None, period: Period) -> Iterable[tuple[Topic, str]]:
    """Alarms of the period's own days: one is raised once, not every night."""
    if drift is None:
        return
    known = {each.cell for each in drift.alarms if each.rule is Rule.DAYS}
    for each in drift.alarms:
        if drift.days[each.day] < period.first or (each.rule is Rule.EWMA and each.cell in known):
            continue  # what moved at once is no creeping, though it drags the average along
        way = "higher" if each.shift > 0 else "lower"
        what = {
            Rule.DAYS: f"{100 * each.size:.0f} % of the parts lie elsewhere, mostly {way}",
            Rule.EWMA: f"creeping {way} a little every day",
        }[each.rule]
        since = drift.days[each.since]
        yield (
            Topic.DRIFT,
            f"{' '.join(each.cell.stratum)}: {DRIFT_WORDS[each.cell.feature]} drifted since {since}: {what}.",
        )


def summary_of(numbers: Numbers, alarms: Sequence[Alarm], period: Period) -> str:
    """Say the whole report in one paragraph of plain text."""
    counts = {each.name: each for each in numbers.headline}
    whole = counts["inspected"]
    if not whole.count:
        return f"{period.title}: nothing was inspected."
    said = [
        f"{period.title}: {whole.count} inspected ({whole.count_before} in the period before).",
        ", ".join(_told(counts[name].name, counts[name].count, counts[name].share, counts[name].share_before)
                  for name in ("NG", "UNSURE")) + ".",
    ]  # fmt: skip
    if numbers.pareto and numbers.pareto[0].count:
        said.append(f"Most frequent defect: {numbers.pareto[0].label} ({numbers.pareto[0].count}).")
    said.append(f"{counts['reviewed'].count} reviewed, {counts['overturned'].count} overturned.")
    if numbers.rates is not None:
        said.append(f"Escapes among passed parts: {estimate_in_words(numbers.rates.escape_of_passed)}.")
    said.append(f"{numbers.waiting.total} flagged parts wait for a person.")
    said.append("Alarms: " + " ".join(alarm.text for alarm in alarms) if alarms else "No alarms.")
    return " ".join(said)


def _told(name: str, count: int, share: float | None, share_before: float | None) -> str:
    before = "nothing to compare with" if share_before is None else f"before {100 * share_before:.1f} %"
    return f"{count} {name} ({100 * (share or 0):.1f} %, {before})"


def parts(count: int) -> str:
    """A count of parts with the right ending."""
    return f"{count} part{'' if count == 1 else 's'}"


def estimate_in_words(estimate: Estimate) -> str:
    """A corrected rate with its interval, or how many reviews it would take to tell one."""
    between = f"{100 * estimate.low:.2f} to {100 * estimate.high:.2f} %"
    if estimate.value is not None:
        return f"{100 * estimate.value:.2f} % ({between})"
    if estimate.needed:
        return f"too few reviews to say, {estimate.needed} more needed (somewhere in {between})"
    return "nothing to count"
