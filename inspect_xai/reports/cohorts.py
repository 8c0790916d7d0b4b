"""Where on the part: what the maps of one label at one place share, how that moved, and which part is unlike them."""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.maths import color
from inspect_xai.reports.period import Period
from inspect_xai.statistics import map_cohorts as maths
from inspect_xai.storage.report_queries import CohortKey, ReportQueries, StoredMap
from inspect_xai.storage.results import is_no_better_than_chance
from inspect_xai.storage.review_reasons import OUTSIDE

MOST_COHORTS: Final = 8
FEWEST_DRAWN: Final = 3
"""Maps from which a picture is called a cohort's; one or two parts are shown as parts."""

FEWEST_MAPS: Final = 8
"""Maps from which a cohort says what is usual: with fewer, no part is called unlike it."""

MOST_MAPS: Final = 500
"""Maps that a cohort is made of at the most, drawn by the pictures' hashes: more change nothing one could see."""

LOW_SPREAD: Final = 0.05
"""Below this spread of the masks' scores a map hardly distinguishes places (the explanation's own note)."""

_NOTHING: Final = np.empty((0, 0), dtype=np.float32)
_LONGEST_PX: Final = 160  # of the pictures on the page, and of the maps that are added up


@dataclass(frozen=True, slots=True)
class CohortNumbers:
    """What a cohort says in numbers; the three of the change are None where the period before has no maps.

    Attributes:
        maps: Maps with evidence that were added up.
        parts: Parts they stand for: more than the maps where the cohort is large.
        empty: Maps without evidence.
        row_px: Center of the evidence in the picture.
        column_px: The same.
        spread_px: Root of the mean squared distance between a part's center of evidence and the cohort's.
        maps_before: Maps with evidence in what it is compared with.
        moved: Share of the evidence that lies elsewhere than before, 0 to 1.
        down_px: Way of the center downwards, negative upwards.
        right_px: To the right, negative to the left.
    """

    key: CohortKey
    maps: int
    parts: int
    empty: int
    row_px: float
    column_px: float
    spread_px: float
    maps_before: int
    moved: float | None
    down_px: float | None
    right_px: float | None


@dataclass(frozen=True, slots=True)
class Odd:
    """A part that deserves a look, and why; `weight` sorts them within a reason, the strangest first."""

    inspection_id: int
    serial: str
    why: str
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class CohortPicture:
    """A cohort's numbers and what is drawn of it: RGB, small."""

    numbers: CohortNumbers
    mean: NDArray[np.uint8]
    spread: NDArray[np.uint8]
    photographed: str  # serial of the part whose photograph lies below; empty: none could be read


PhotographOf = Callable[[int], NDArray[np.uint8] | None]
"""Reads the picture of an inspection by its id; None where it is not there."""


def cohorts_of(
    figures: ReportQueries,
    period: Period,
    *,
    photograph_of: PhotographOf,
    against: Period | None = None,
    most_odd: int = 8,
) -> tuple[tuple[CohortPicture, ...], tuple[Odd, ...]]:
    """Add up the maps of the largest cohorts, one map in memory at a time.

    Args:
        figures: Restricted to the period's shift.
        period: What the report speaks of.
        photograph_of: Gives the picture that a cohort's evidence is drawn on.
        against: What cohorts are compared with, the baseline's days for instance; None: the period before.
        most_odd: Parts named at the most.

    Returns:
        The cohorts, the largest first, and the parts unlike theirs.
    """
    pictures, odd = [], list[Odd]()
    earlier = against or period.before
    before = dict(figures.cohorts(*earlier.span))
    for key, parts in figures.cohorts(*period.span)[:MOST_COHORTS]:
        compared = _gathered(figures, key, earlier, parts=before.get(key, 0))
        picture, strange = _cohort(figures, period, key, photograph_of, parts=parts, before=compared)
        if picture is not None and picture.numbers.maps >= FEWEST_DRAWN:
            pictures.append(picture)
        odd += strange
    worst: dict[int, Odd] = {}
    for each in odd:  # a part may be odd for two reasons: it is shown once, for the stranger one
        if each.inspection_id not in worst or worst[each.inspection_id].weight < each.weight:
            worst[each.inspection_id] = each
    return tuple(pictures), tuple(heapq.nsmallest(most_odd, worst.values(), key=lambda o: (-o.weight, o.inspection_id)))


def _gathered(figures: ReportQueries, key: CohortKey, period: Period, *, parts: int) -> maths.Cohort:
    """Return what a cohort looked like in another period."""
    size = _small(key.size)
    maps = figures.maps(key, *period.span, share=min(1.0, MOST_MAPS / parts)) if parts else ()
    return maths.gather((small for _, small in _pairs(maps, size)), size)


def _cohort(
    figures: ReportQueries,
    period: Period,
    key: CohortKey,
    photograph_of: PhotographOf,
    *,
    parts: int,
    before: maths.Cohort,
) -> tuple[CohortPicture | None, list[Odd]]:
    size = _small(key.size)
    share = min(1.0, MOST_MAPS / parts)
    given = list(_pairs(figures.maps(key, *period.span, share=share), size))
    now = maths.gather((small for _, small in given), size)
    if not now.maps:
        return None, []
    center = _center(now.mean)
    facts: list[_Fact] = []
    squares = 0.0
    for each, shrunk in given:
        unlike = maths.deviation(shrunk, now)
        inside = each.faithfulness.get("energy_in_roi")
        facts.append(
            _Fact(
                each.inspection_id,
                each.serial,
                math.nan if unlike is None else unlike,
                each.score_spread,
                inside,
                each.faithfulness,
            )
        )
        if unlike is not None:
            squares += math.dist(_center(shrunk), center) ** 2
    scale = key.size[0] / size[0]
    change = maths.compare_cohorts(now, before)
    numbers = CohortNumbers(
        key,
        now.maps,
        parts,
        now.empty,
        (center[0] + 0.5) * scale - 0.5,  # a small pixel stands for the middle of several
        (center[1] + 0.5) * scale - 0.5,
        math.sqrt(squares / now.maps) * scale,
        before.maps,
        None if change is None else change.moved,
        None if change is None else change.down_px * scale,
        None if change is None else change.right_px * scale,
    )
    photograph = photograph_of(given[0][0].inspection_id)
    below = None if photograph is None or photograph.shape[:2] != key.size else _resized(photograph, size)
    mean, spread = (_drawn(values, below) for values in (now.mean, now.spread))
    name = given[0][0].serial if below is not None else ""
    return CohortPicture(numbers, mean, spread, name), list(_odd(facts, now))


class _Fact(NamedTuple):
    """What is kept of each map."""

    inspection_id: int
    serial: str
    unlike: float
    score_spread: float | None
    energy_in_roi: float | None
    faithfulness: dict[str, float]


def _odd(facts: list[_Fact], now: maths.Cohort) -> Iterator[Odd]:
    unlike = np.array([each.unlike for each in facts])
    strange = maths.outliers(unlike) if now.maps >= FEWEST_MAPS else np.zeros(len(facts), dtype=np.bool_)
    for (number, serial, value, spread, inside, measured), is_strange in zip(facts, strange, strict=True):
        if is_strange:
            yield Odd(
                number, serial, f"evidence unlike the {now.maps} maps of its cohort ({value:.2f} of 1)", 1 + value
            )
        if spread is not None and spread < LOW_SPREAD:
            yield Odd(number, serial, f"the masks score nearly alike (spread {spread:.3f})", 1 - spread)
        if inside is not None and inside < OUTSIDE:
            why = f"only {100 * inside:.0f} % of the evidence lies in the region of interest"
            yield Odd(number, serial, why, 1 - inside)
        if is_no_better_than_chance(measured):
            left, left_anywhere = measured["deletion_percent"], measured["deletion_percent_random"]
            why = f"without what the map marks {left:.0f} % of the score is left, without blobs {left_anywhere:.0f} %"
            yield Odd(number, serial, why, 1 + (left - left_anywhere) / 100)


def _pairs(maps: Iterable[StoredMap], size: tuple[int, int]) -> Iterator[tuple[StoredMap, NDArray[np.float32]]]:
    """Each map with its small form; what is yielded holds the large one no longer."""
    for each in maps:
        small = cv2.resize(each.fused, (size[1], size[0]), interpolation=cv2.INTER_AREA)
        yield replace(each, fused=_NOTHING), np.asarray(small, dtype=np.float32)


def _small(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, _LONGEST_PX / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resized(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _center(values: NDArray[np.floating]) -> tuple[float, float]:
    """Center of mass (row, column)."""
    rows, columns = (values.sum(axis=axis, dtype=np.float64) for axis in (1, 0))
    return float(rows @ np.arange(rows.size) / rows.sum()), float(columns @ np.arange(columns.size) / columns.sum())


def _drawn(values: NDArray[np.float64], below: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    return color.color_map(values) if below is None else color.overlay(below, values, opacity=0.8)
