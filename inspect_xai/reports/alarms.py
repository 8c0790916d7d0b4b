"""What the morning meeting must hear of, and the whole report in one paragraph."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from inspect_xai.policy import AlertRule, rule_for
from inspect_xai.reports.alerts import Alert
from inspect_xai.reports.day_numbers import Numbers
from inspect_xai.reports.drift import EMBEDDING, PICTURE, TOGETHER, Drift
from inspect_xai.reports.period import Period
from inspect_xai.statistics.control_charts import Signal
from inspect_xai.statistics.drift import Rule
from inspect_xai.statistics.rates import Estimate
from inspect_xai.storage.quality_records import Acknowledgment

FALSE_DISCOVERY_RATE: Final = 0.05
_SIGNALS: Final = {Signal.BEYOND: "beyond its control limits", Signal.RUN: "8 days or more on one side of its center"}

DRIFT_WORDS: Final = {
    "score": "the defect score",
    "margin": "the network's margin",
    "brightness": "the pictures' brightness",
    "contrast": "the pictures' contrast",
    "sharpness": "the pictures' sharpness",
    "noise": "the pictures' noise",
    PICTURE: "how brightness, contrast, sharpness and noise of a picture go together",
    EMBEDDING: "what the network's deepest features show",
    "region_mass": "the share of the evidence in its heaviest region",
    "energy_in_roi": "the share of the evidence in the region of interest",
    "support_share": "the share of the picture that maps cover",
    "region_row_px": "the evidence's row",
    "region_column_px": "the evidence's column",
    "region_area_px": "the evidence's area",
    "faithfulness_percent": "how much more of the score hangs on what maps mark than on any other place",
}

_LAMP: Final = "Check the lamp, the exposure and what else shines in."
_FIXTURE: Final = "Check whether the fixture holds the parts where it did."
_MAPS: Final = "Look at the maps: the network decides by something else, or the defects are others."
DRIFT_CHECKS: Final = {
    "score": "Look at the parts shown: other parts, another kind of defect, or other pictures?",
    "margin": "Look at the parts shown: other parts, another kind of defect, or other pictures?",
    "brightness": _LAMP,
    "contrast": _LAMP,
    "sharpness": "Check focus, lens and vibration.",
    "noise": "Check the lamp and the camera's gain.",
    PICTURE: "Check the lamp, the lens, and whether the fixture holds the parts where it did.",
    EMBEDDING: "Look at the parts shown: a kind of part or defect that the network was never shown?",
    "region_row_px": _FIXTURE,
    "region_column_px": _FIXTURE,
}
"""What to do first about a drift; of other features `_MAPS`."""


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
    """One thing to talk about.

    Attributes:
        alarm_id: The same in every report of this alarm, whatever else was reviewed meanwhile.
        topic: What it is about.
        text: The sentence.
        place: Line, station and shift, as far as it has them.
        owner: Who has to look at it.
        seen: Who said that they do, and what comes of it; None: nobody yet.
    """

    alarm_id: str
    topic: Topic
    text: str
    place: tuple[str, ...]
    owner: str
    seen: Acknowledgment | None


@dataclass(frozen=True, slots=True)
class _Finding:
    """An alarm before it has a name: `about` and the time `when` distinguish it from others of its topic."""

    topic: Topic
    text: str
    place: tuple[str, ...] = ()
    about: str = ""
    when: str = ""


def alarms_of(
    numbers: Numbers,
    period: Period,
    drift: Drift | None = None,
    *,
    rules: Sequence[AlertRule] = (),
    seen: Mapping[str, Acknowledgment] | None = None,
) -> tuple[Alarm, ...]:
    """Find what deserves a word, most serious first.

    Args:
        numbers: Of the period.
        period: The report's.
        drift: Up to its last day.
        rules: Of the policy: who owns each alarm.
        seen: Acknowledgments by alarm.
    """
    known = seen or {}
    alarms = []
    for each in (*_found(numbers, period), *_drifted(drift, period)):
        name = "|".join((each.topic, *each.place, each.about, each.when or period.name))
        number = hashlib.sha256(name.encode()).hexdigest()[:12]
        owner = rule_for(rules, topic=each.topic, station=_station(each.place)).owner
        alarms.append(Alarm(number, each.topic, each.text, each.place, owner, known.get(number)))
    return tuple(alarms)


def alerts_of(alarms: Sequence[Alarm], period: Period) -> list[Alert]:
    """Write the alarms as they are sent."""
    return [
        Alert(each.alarm_id, each.topic, each.owner, each.text, period.title, *(*each.place, "", "")[:2])
        for each in alarms
    ]


def _station(place: tuple[str, ...]) -> str:
    return place[1] if len(place) > 1 else ""


def _found(numbers: Numbers, period: Period) -> Iterable[_Finding]:
    counts = {each.name: each.count for each in numbers.headline}
    if not counts["inspected"]:
        yield _Finding(Topic.NOTHING, "Nothing was inspected.")
    if counts["escapes found"]:
        text = f"{parts(counts['escapes found'])} passed as OK that a person called a defect."
        yield _Finding(Topic.ESCAPES, text)
    unapproved = sum(use.parts for use in numbers.models if use.status != "approved")
    if unapproved:
        yield _Finding(Topic.MODEL, f"{parts(unapproved)} judged by a model that was not approved at that time.")
    if counts["failed"]:
        text = f"{parts(counts['failed'])} could not be judged: the picture or the model failed."
        yield _Finding(Topic.FAILED, text)
    yield from _changes(numbers, period)
    late = sum(numbers.waiting.by_age[2:])
    if late:
        yield _Finding(Topic.QUEUE, f"{parts(late)} flagged more than 3 days ago still wait for a person.")


def _changes(numbers: Numbers, period: Period) -> Iterable[_Finding]:
    """Yield the alarms of the charts and of the comparison with the period before."""
    for chart in numbers.charts:
        place = " ".join(chart.names) or "All stations"
        for point in chart.points:
            if point.day >= period.first:
                for signal in point.signals:
                    share = f"{100 * (point.share or 0):.1f} % flagged on {point.day}"
                    text = f"{place}: {share} ({point.count} of {point.total}), {_SIGNALS[signal]}."
                    yield _Finding(Topic.CONTROL, text, chart.names, signal, str(point.day))
    for row in numbers.pareto:
        if row.q < FALSE_DISCOVERY_RATE and row.change is not None and row.change > 0:
            shares = f"{100 * (row.rate or 0):.2f} % of the parts after {100 * (row.rate_before or 0):.2f} %"
            yield _Finding(Topic.PARETO, f"More {row.label}: {shares} (q = {row.q:.2g}).", about=row.label)


def _drifted(drift: Drift | None, period: Period) -> Iterable[_Finding]:
    """Alarms of the period's own days: one is raised once, not every night."""
    if drift is None:
        return
    for each in (drift.alarms[at] for at in reported(drift, period)):
        feature, way = each.cell.feature, "higher" if each.shift > 0 else "lower"
        lie, creep = f"elsewhere, mostly {way}", f"creeping {way}"
        if feature in TOGETHER:  # of many numbers together there is no higher
            lie, creep = "elsewhere", "moving on"
        what = {Rule.DAYS: f"{100 * each.size:.0f} % of the parts lie {lie}", Rule.EWMA: f"{creep} a little every day"}[
            each.rule
        ]
        place, check = " ".join(each.cell.stratum), DRIFT_CHECKS.get(feature, _MAPS)
        text = f"{place}: {DRIFT_WORDS[feature]} drifted since {drift.days[each.since]}: {what}. {check}"
        about = f"{feature}|{each.rule}"
        yield _Finding(Topic.DRIFT, text, each.cell.stratum, about, str(drift.days[each.day]))


def reported(drift: Drift, period: Period) -> list[int]:
    """Return the indices of the drift alarms that a report shows: those raised on its own days."""
    return [at for at, each in enumerate(drift.alarms) if drift.days[each.day] >= period.first]


def summary_of(numbers: Numbers, alarms: Sequence[Alarm], period: Period) -> str:
    """Say the whole report in one paragraph of plain text."""
    counts = {each.name: each for each in numbers.headline}
    whole = counts["inspected"]
    if not whole.count:
        return f"{period.title}: nothing was inspected."
    said = [
        f"{period.title}: {whole.count} inspected ({whole.count_before} in the period before).",
        ", ".join(
            _told(counts[name].name, counts[name].count, counts[name].share, counts[name].share_before)
            for name in ("NG", "UNSURE")
        )
        + ".",
    ]
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
    """Return a count of parts with the right ending."""
    return f"{count} part{'' if count == 1 else 's'}"


def estimate_in_words(estimate: Estimate) -> str:
    """Write a corrected rate with its interval, or how many reviews are needed for one."""
    between = f"{100 * estimate.low:.2f} to {100 * estimate.high:.2f} %"
    if estimate.value is not None:
        return f"{100 * estimate.value:.2f} % ({between})"
    if estimate.needed:
        return f"too few reviews to say, {estimate.needed} more needed (somewhere in {between})"
    return "nothing to count"
