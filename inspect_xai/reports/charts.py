"""Charts as inline SVG: sharp in print, nothing to load, a unit on every axis, readable without colour."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from markupsafe import Markup

from inspect_xai.maths.control import ParetoRow
from inspect_xai.reports.numbers import LEAST_DAYS, Chart, Point

_WIDTH, _HEIGHT = 640, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 40


def control_chart(chart: Chart) -> Markup:
    """Draw the share of flagged parts day by day, with limits as steps; a signal is a filled diamond with its share."""
    known = [n for n, point in enumerate(chart.points) if point.share is not None]
    shown = chart.points[max(0, min([*known, len(chart.points) - LEAST_DAYS])) :]  # before the first there is nothing
    points = [point for point in shown if point.share is not None]
    highest = max([0.01, *(max(point.share or 0, point.high or 0) for point in points)]) * 1.08
    wide = (_WIDTH - _LEFT - _RIGHT) / max(len(shown), 1)

    def x(index: int) -> float:
        return _LEFT + (index + 0.5) * wide

    def y(share: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share / highest)

    places = {point.day: x(index) for index, point in enumerate(shown)}
    body = [_share_axis(highest, y)]
    if chart.centre is not None:
        body.append(_line(_LEFT, y(chart.centre), _WIDTH - _RIGHT, y(chart.centre), "centre"))
        for side in ("low", "high"):
            body += [
                _line(places[p.day] - wide / 2, y(limit), places[p.day] + wide / 2, y(limit), "limit")
                for p in points if (limit := getattr(p, side)) is not None
            ]  # fmt: skip
    path = " ".join(f"{places[p.day]:.1f},{y(p.share or 0):.1f}" for p in points)
    body.append(f'<polyline class="trend" points="{path}"/>')
    body += [_dot(point, places[point.day], y(point.share or 0)) for point in points]
    step = max(1, round(len(shown) / 8))
    body += [
        _text(x(n), _HEIGHT - _BOTTOM + 14, f"{shown[n].day:%d %b}")
        for n in range((len(shown) - 1) % step, len(shown), step)
    ]
    parts = [point.total for point in points]
    counted = f"{min(parts)} to {max(parts)} parts a day" if parts else "no parts"
    body.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 6, f"day of capture ({counted})"))
    body.append(_upright("flagged parts (%)"))
    return _svg(f"Share of flagged parts per day, {' '.join(chart.names) or 'all stations'}", body)


def _dot(point: Point, x: float, y: float) -> str:
    said = f"{point.day}: {point.count} of {point.total} flagged, {100 * (point.share or 0):.1f} %"
    if point.low is not None and point.high is not None:
        said += f", limits {100 * point.low:.1f} to {100 * point.high:.1f} %"
    title = f"<title>{escape(said)}</title>"
    if not point.signals:
        return f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="3">{title}</circle>'
    shape = f'<path class="signal" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6-6z">{title}</path>'
    return shape + _text(x, y - 9, f"{100 * (point.share or 0):.1f}")


def pareto_chart(rows: Sequence[ParetoRow], *, most: int = 10) -> Markup:
    """Draw the counts of the most frequent labels as bars, the period before as a tick, the running share beside."""
    shown = rows[:most]
    high = 24 * len(shown) + 34
    longest = max([1, *(row.count for row in shown)])
    scale = (_WIDTH - 300) / longest
    body = []
    for n, row in enumerate(shown):
        top = 8 + 24 * n
        name = row.label if len(row.label) <= 22 else row.label[:21] + "…"
        body.append(_text(140, top + 12, name, "end"))
        body.append(f'<rect class="bar" x="148" y="{top}" width="{row.count * scale:.1f}" height="16"/>')
        end = 148 + row.count * scale
        body.append(_text(end + 6, top + 12, f"{row.count} ({100 * row.cumulative:.0f} % so far)", "start"))
    body.append(_line(148, 4, 148, 24 * len(shown) + 8, "axis"))
    body.append(_text(148, 24 * len(shown) + 24, "parts judged NG (count), and the running share of all NG", "start"))
    return _svg("Pareto of defect labels", body, height=high)


def reliability_chart(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw how often a probability came true: on the diagonal it means what it says."""
    side = _HEIGHT - _TOP - _BOTTOM

    def x(share: float) -> float:
        return _LEFT + side * share

    def y(share: float) -> float:
        return _TOP + side * (1 - share)

    body = [_line(x(0), y(0), x(1), y(1), "centre")]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        body += [_line(x(0), y(tick), x(1), y(tick), "grid"), _text(x(0) - 6, y(tick) + 4, f"{100 * tick:g}", "end")]
        body.append(_text(x(tick), _HEIGHT - _BOTTOM + 14, f"{100 * tick:g}"))
    for each in bins:
        at = x(each["mean"])
        body.append(_line(at, y(each["observed_low"]), at, y(each["observed_high"]), "limit"))
        said = f"{each['parts']} parts: said {100 * each['mean']:.0f} %, were {100 * each['observed']:.0f} %"
        body.append(
            f'<circle class="point" cx="{at:.1f}" cy="{y(each["observed"]):.1f}" r="3"><title>{said}</title></circle>'
        )
        body.append(_text(at + 6, y(each["observed"]) + 4, str(each["parts"]), "start"))
    body += [_text(x(0.5), _HEIGHT - 6, "calibrated probability of a defect (%)"), _upright("reviewed as defects (%)")]
    return _svg("Reliability of calibrated scores", body, width=_LEFT + side + 60)


def _share_axis(highest: float, y: object) -> str:
    step = next(s for s in (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5) if highest / s <= 6 or s == 0.5)
    lines, share = [], 0.0
    while share <= highest:
        at = y(share)  # type: ignore[operator]
        lines.append(_line(_LEFT, at, _WIDTH - _RIGHT, at, "grid"))
        lines.append(_text(_LEFT - 6, at + 4, f"{100 * share:g}", "end"))
        share = round(share + step, 6)
    return "".join(lines)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _upright(words: str) -> str:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return f'<text transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(words)}</text>'


def _svg(label: str, body: Sequence[str], *, height: int = _HEIGHT, width: int = _WIDTH) -> Markup:
    opening = f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}">'
    return Markup(opening + "".join(body) + "</svg>")  # noqa: S704  every name in it went through escape
