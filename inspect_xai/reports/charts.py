"""Charts as inline SVG: sharp in print, nothing to load, a unit on every axis, readable without color.

matplotlib draws them, which takes a second and 60 MB to load: it is imported when the first chart is drawn. Colors
leave here as the variables of the page's style sheet (`var(--ink)`), so that a chart follows the page from light to
dark and onto paper. The same numbers give the same bytes, whatever matplotlib is set up to do on the machine.
"""

import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup

from inspect_xai.reports.day_numbers import LEAST_DAYS, Chart, Point
from inspect_xai.statistics.control_charts import ParetoRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS: Final = {
    "ink": "#1b1f24",
    "quiet": "#59636e",
    "line": "#d5dae0",
    "paper": "#ffffff",
    "blue": "#0072b2",
    "good": "#009e73",
    "doubt": "#e69f00",
    "bad": "#d55e00",
}
"""What each variable of templates/day.css stands for in light; the last four are Okabe and Ito's colors."""

_MOST_NAME = 22  # characters of a label beside its bar
_LINE_APART = 0.055  # of the height of a chart: names of two points nearer than that would touch
_NAME_WIDE = 0.28  # of the width of a chart, of a method's name
_ONE_AT_A_TIME = threading.Lock()  # matplotlib's settings belong to the whole process


@dataclass(frozen=True, slots=True)
class Bar:
    """Verdicts of one hour, day or month."""

    name: str
    ok: int
    ng: int
    unsure: int


@dataclass(frozen=True, slots=True)
class Priced:
    """What a method costs a picture and what its maps are worth; `knows_nothing`: it is there to be beaten."""

    name: str
    seconds: float
    quality: float
    knows_nothing: bool


def control_chart(chart: Chart, *, small: bool = False) -> Markup:
    """Draw the share of flagged parts day by day, with limits as steps; a signal is a filled diamond with its share."""
    known = [n for n, point in enumerate(chart.points) if point.share is not None]
    shown = chart.points[max(0, min([*known, len(chart.points) - LEAST_DAYS])) :]  # before the first there is nothing
    parts = [point.total for point in shown if point.share is not None]

    def draw(axes: "Axes") -> None:
        points = [(at, point, point.share) for at, point in enumerate(shown) if point.share is not None]
        if chart.center is not None:
            axes.axhline(chart.center, color=COLORS["ink"], linewidth=0.8)
            edges = [n - 0.5 for n in range(len(shown) + 1)]
            for side in ("low", "high"):
                limits = [_or_nan(getattr(point, side)) for point in shown]
                axes.stairs(limits, edges, baseline=None, color=COLORS["ink"], linewidth=0.9, linestyle=(0, (4, 3)))
        axes.plot([at for at, _, _ in points], [share for _, _, share in points], color=COLORS["blue"], linewidth=1.5)
        for at, point, share in points:
            _dot(axes, at, share, said=_said(point, share), signal=bool(point.signals))
        highest = max([0.01, *(max(share, point.high or 0) for _, point, share in points)])
        axes.set(xlim=(-0.5, len(shown) - 0.5), ylim=(0, highest * 1.1))
        step = max(1, round(len(shown) / (5 if small else 6)))
        _ticks(axes, {at: f"{shown[at].day:%d %b}" for at in range((len(shown) - 1) % step, len(shown), step)})
        axes.set(xlabel=f"day of capture ({_each(parts, 'day')})", ylabel="flagged parts (%)")
        _in_percent(axes)

    label = f"Share of flagged parts per day, {' '.join(chart.names) or 'all stations'}"
    return _svg(label, draw, size=(360, 190) if small else (400, 215))


def pareto_chart(rows: Sequence[ParetoRow], *, most: int = 10) -> Markup:
    """Draw the counts of the most frequent labels as bars, with the running share, and the period before as a tick.

    The tick stands where the bar would end if the label were as frequent as it was then.
    """
    shown = rows[:most]
    inspected = next((row.count / row.rate for row in shown if row.rate), None)

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        axes.barh(range(len(shown)), [row.count for row in shown], height=0.62, color=COLORS["blue"])
        for at, row in enumerate(shown):
            before = None if row.rate_before is None or inspected is None else row.rate_before * inspected
            if before is not None:
                axes.vlines(before, at - 0.42, at + 0.42, color=COLORS["ink"], linewidth=2)
            _name(axes, max(row.count, before or 0), at, f"{row.count} ({100 * row.cumulative:.0f} % so far)")
        names = [row.label if len(row.label) <= _MOST_NAME else row.label[: _MOST_NAME - 1] + "…" for row in shown]
        axes.set_yticks(range(len(shown)), names)
        axes.set(ylim=(len(shown) - 0.4, -0.6), xlabel="parts judged NG (count), and the running share of all NG")
        axes.set_xlim(0, 1.03 * max(1, axes.get_xlim()[1]))
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))

    return _svg("Pareto of defect labels", draw, size=(400, max(120, 22 * len(shown) + 56)))


def verdict_chart(bars: Sequence[Bar], *, unit: str) -> Markup:
    """Draw how many parts were inspected in each hour, day or month, stacked by verdict, each with a pattern."""

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        at, foot = range(len(bars)), [0] * len(bars)
        for name, color, hatch in (("ok", "good", ""), ("unsure", "doubt", "///"), ("ng", "bad", "xxx")):
            counts = [getattr(bar, name) for bar in bars]
            label = f"{name.upper()} {sum(counts)}"
            axes.bar(
                at,
                counts,
                0.72,
                foot,
                color=COLORS[color],
                hatch=hatch,
                edgecolor=COLORS["paper"],
                linewidth=0.5,
                label=label,
            )
            foot = [below + count for below, count in zip(foot, counts, strict=True)]
        step = max(1, -(-len(bars) // 31))
        _ticks(axes, {n: bars[n].name for n in range(0, len(bars), step)})
        axes.set(xlim=(-0.6, len(bars) - 0.4), xlabel=f"{unit} of capture", ylabel="parts inspected (count)")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.figure.legend(loc="outside upper left", ncols=3, frameon=False, handlelength=1.4, columnspacing=1.2)

    return _svg(f"Inspections by {unit}", draw, size=(min(720, 190 + 22 * len(bars)), 210))


def reliability_chart(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw how often a probability came true: on the diagonal it means what it says."""

    def draw(axes: "Axes") -> None:
        axes.plot((0, 1), (0, 1), color=COLORS["ink"], linewidth=0.8)
        for each in bins:
            at, share = each["mean"], each["observed"]
            axes.vlines(at, each["observed_low"], each["observed_high"], color=COLORS["ink"], linewidth=0.9)
            said = f"{each['parts']} parts: said {100 * at:.0f} %, were {100 * share:.0f} %"
            _dot(axes, at, share, said=said)
            _name(axes, at, share, str(each["parts"]))
        axes.set(xlim=(-0.03, 1.1), ylim=(-0.03, 1.05))
        axes.set(xlabel="calibrated probability of a defect (%)", ylabel="reviewed as defects (%)")
        _in_percent(axes)
        axes.xaxis.set_major_formatter(axes.yaxis.get_major_formatter())

    return _svg("Reliability of calibrated scores", draw, size=(340, 290))


def cost_chart(methods: Sequence[Priced], *, quality: str, front: Sequence[tuple[float, float]]) -> Markup:
    """Draw what each method's maps are worth against its seconds, and a line along those that none beats in both.

    Args:
        methods: All of them; those that know nothing are hollow.
        quality: What is measured, and over how many pictures.
        front: (seconds, quality) of the unbeaten ones, from the fastest.
    """

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import LogLocator, NullLocator

        axes.set_xscale("log")
        axes.plot([each[0] for each in front], [each[1] for each in front], color=COLORS["blue"], linewidth=1.2)
        for each in methods:
            face = COLORS["paper"] if each.knows_nothing else COLORS["ink"]
            axes.plot(each.seconds, each.quality, "o", color=COLORS["ink"], markerfacecolor=face, markersize=5)
        low, high = (pick(each.seconds for each in methods) for pick in (min, max))
        best, worst = (pick(each.quality for each in methods) for pick in (max, min))
        axes.set(xlim=(low / 1.3, high * 1.3), ylim=(min(0.0, worst), best * 1.06 or 1.0))
        across = axes.transScale.transform([(each.seconds, each.quality) for each in methods])
        places = axes.transLimits.transform(across)
        for each, (_, height), line in zip(methods, places, _apart(places.tolist()), strict=True):
            leader = {"arrowstyle": "-", "color": COLORS["quiet"], "linewidth": 0.6} if line < height else None
            axes.annotate(
                each.name,
                (each.seconds, each.quality),
                (each.seconds * (1.69 * high / low) ** 0.016, line),
                textcoords=("data", "axes fraction"),
                va="center",
                color=COLORS["ink"],
                arrowprops=leader,
            )
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
        axes.grid(axis="x")
        axes.set(xlabel="seconds for a picture (median)", ylabel=quality)

    return _svg(f"{quality} against seconds for each method", draw, size=(640, 400))


def _apart(places: Sequence[Sequence[float]]) -> list[float]:
    """Heights for the names of points at (across, height), both from 0 to 1, so that no two stand on each other."""
    found: dict[int, float] = {}
    for n in sorted(range(len(places)), key=lambda n: -places[n][1]):
        beside = [line for other, line in found.items() if abs(places[other][0] - places[n][0]) < _NAME_WIDE]
        found[n] = min([places[n][1], *(line - _LINE_APART for line in beside)])
    return [found[n] for n in range(len(places))]


def _said(point: Point, share: float) -> str:
    said = f"{point.day}: {point.count} of {point.total} flagged, {100 * share:.1f} %"
    if point.low is not None and point.high is not None:
        said += f", limits {100 * point.low:.1f} to {100 * point.high:.1f} %"
    return said


def _each(parts: Sequence[int], unit: str) -> str:
    if not parts:
        return "no parts"
    low, high = min(parts), max(parts)
    return f"{low if low == high else f'{low} to {high}'} parts a {unit}"


def _dot(axes: "Axes", across: float, height: float, *, said: str, signal: bool = False) -> None:
    """Draw a point that shows its numbers when a pointer rests on it."""
    marker, size, face = ("D", 8, COLORS["bad"]) if signal else ("o", 5.5, COLORS["paper"])
    edge = COLORS["ink" if signal else "blue"]
    [dot] = axes.plot(across, height, marker, markersize=size, markerfacecolor=face, color=edge, clip_on=False)
    dot.set_gid(f"said {said}")
    if signal:
        axes.annotate(
            f"{100 * height:.1f}",
            (across, height),
            (0, 7),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=COLORS["ink"],
        )


def _name(axes: "Axes", across: float, height: float, words: str) -> None:
    axes.annotate(words, (across, height), (6, 0), textcoords="offset points", va="center")


def _ticks(axes: "Axes", names: Mapping[int, str]) -> None:
    axes.set_xticks(list(names), list(names.values()))


def _in_percent(axes: "Axes") -> None:
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}")


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


_SETTINGS: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",  # words stay words: to be found, read out and set in the page's own type
    "text.parse_math": False,  # a label may hold a dollar
    "text.color": COLORS["quiet"],
    "font.size": 11,
    "axes.edgecolor": COLORS["quiet"],
    "axes.labelcolor": COLORS["quiet"],
    "axes.labelsize": 11,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLORS["line"],
    "grid.linewidth": 0.8,
    "hatch.linewidth": 1.0,
    "legend.fontsize": 11,
    "lines.markeredgewidth": 1.4,
    "xtick.color": COLORS["quiet"],
    "xtick.labelsize": 10.5,
    "xtick.major.size": 3,
    "ytick.color": COLORS["quiet"],
    "ytick.labelsize": 10.5,
    "ytick.major.size": 0,
}


def _svg(label: str, draw: Callable[["Axes"], None], *, size: tuple[int, int]) -> Markup:
    """Make an SVG of what `draw` puts onto axes; `size` is (width, height) in units of the page's small type / 11."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    written = StringIO()
    with _ONE_AT_A_TIME, mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # the page's type has it; here it is only measured
        mpl.rcdefaults()  # not what a matplotlibrc of the machine says
        mpl.rcParams.update(_SETTINGS | {"svg.hashsalt": label})  # names inside differ from chart to chart
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        axes = figure.add_subplot()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        draw(axes)
        nobody = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=nobody)
    return Markup(_for_a_page(written.getvalue(), label, size))  # noqa: S704  matplotlib escapes words


def _for_a_page(text: str, label: str, size: tuple[int, int]) -> str:
    """Take from a file of its own what a page does not need, its fixed colors and its type."""
    width, height = size
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)  # it would style the whole page
    body = re.sub(r'<g id="said ([^"]*)">', r"<g><title>\1</title>", body)
    body = re.sub(
        r' id="(?![a-z][0-9a-f]{10}")[^"]*"', "", body
    )  # but of what is drawn by its name: m, h or p and a hash
    body = re.sub(r"font-family: [^;\"]*; | transform=\"rotate\(-0 [^\"]*\"", "", body)
    for name, color in COLORS.items():
        body = body.replace(color, f"var(--{name})")
    body = re.sub(r"(\d\.\d\d)\d+", r"\1", re.sub(r"\s*\n\s*", "\n", body))
    opening = (
        f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}" '
        f'style="max-width: {1.25 * width:.0f}px">'
    )
    return opening + body.strip()
