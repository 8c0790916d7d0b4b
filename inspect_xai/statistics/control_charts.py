"""Control charts of shares, and Pareto tables of defect kinds with tests against the period before."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, false_discovery_control, fisher_exact, norm
from statsmodels.stats.proportion import confint_proportions_2indep

from inspect_xai.statistics.rates import CONFIDENCE

SIGMAS = 3.0

RUN = 8
"""Points in a row on one side of the center that make a signal (Western Electric rule 4)."""

_MOVING_RANGE = 2 / np.sqrt(np.pi)  # d2 for two: the mean range of two normal values, in sigmas


class Limits(StrEnum):
    """How the control limits are computed."""

    SIGMA = "sigma"  # p +- 3 sqrt(p (1 - p) / n): the textbook chart; wants about five defects a point
    EXACT = "exact"  # binomial quantiles with the same tails: for few defects a point
    LANEY = "laney"  # p': widened by the scatter that the points show: for thousands of parts a point


class Signal(StrEnum):
    """Why a point of a control chart is marked."""

    BEYOND = "beyond"  # outside the limits
    RUN = "run"  # the eighth or later in a row on the same side of the center


@dataclass(frozen=True, slots=True, eq=False)
class PChart:
    """A control chart of shares; k points.

    Attributes:
        center: The share that the limits are drawn around.
        shares: (k,) count over total; NaN where the total is 0.
        low: (k,) lower limit, at least 0.
        high: (k,) upper limit, at most 1.
        spread: Scatter of the points over that of chance alone; 1 unless the limits are LANEY's.
        signals: Per point its signals, mostly none.
    """

    center: float
    shares: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    spread: float
    signals: tuple[tuple[Signal, ...], ...]


@dataclass(frozen=True, slots=True)
class ParetoRow:
    """One defect kind of a Pareto table.

    Attributes:
        label: The defect kind.
        count: Parts with it in this period.
        share: Its share of all defects of this period.
        cumulative: Share of this kind and all above it.
        rate: Count over parts inspected; None where none were.
        rate_before: The same in the period before.
        change: `rate - rate_before`; None where either is.
        low: Lower limit of the change (Newcombe); None likewise.
        high: Upper limit.
        p: Fisher's exact test of the two periods; 1 where one of them is empty.
        q: The same after Benjamini-Hochberg over all rows.
    """

    label: str
    count: int
    share: float
    cumulative: float
    rate: float | None
    rate_before: float | None
    change: float | None
    low: float | None
    high: float | None
    p: float
    q: float


def p_chart(
    counts: ArrayLike, totals: ArrayLike, *, limits: Limits = Limits.SIGMA, center: float | None = None
) -> PChart:
    """Draw a control chart of a share, with limits that follow each point's total.

    With 100,000 parts a point the textbook limits are so tight that the ordinary difference between two days breaks
    them: use LANEY. With less than about five defects a point they are crossed by chance: use EXACT.

    Args:
        counts: (k,) parts that have it.
        totals: (k,) parts inspected; a point with 0 has no share, no limits and no signal, and ends no run.
        limits: SIGMA, EXACT or LANEY.
        center: A known share as the center; None: the mean over all points.

    Source: Shewhart (1931); Western Electric (1956); Laney, Quality Engineering 14 (2002) 531.
    """
    count, total = np.asarray(counts, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    if count.ndim != 1 or count.shape != total.shape or not np.all((count >= 0) & (count <= total)):
        raise ValueError(
            f"found counts of shape {count.shape} for totals of {total.shape}; expected 0 <= count <= total"
        )
    seen = total > 0
    if center is None:
        center = float(count.sum() / total.sum()) if seen.any() else 0.0
    shares = np.divide(count, total, out=np.full(count.shape, np.nan), where=seen)
    error = np.sqrt(np.divide(center * (1 - center), total, out=np.full(count.shape, np.nan), where=seen))
    spread = _spread((shares[seen] - center) / error[seen]) if limits is Limits.LANEY and 0 < center < 1 else 1.0
    if limits is Limits.EXACT:
        tail = norm.sf(SIGMAS)
        low, high = (_quantile(q, total, center) for q in (tail, 1 - tail))
    else:
        low, high = (np.clip(center + side * SIGMAS * spread * error, 0, 1) for side in (-1, 1))
    return PChart(center, shares, low, high, spread, _signals(shares, low, high, center=center))


def _quantile(level: float, total: NDArray[np.float64], center: float) -> NDArray[np.float64]:
    counts = binom.ppf(level, total, center)
    return np.asarray(np.divide(counts, total, out=np.full(total.shape, np.nan), where=total > 0))


def _spread(standardized: NDArray[np.float64]) -> float:
    """Return sigma of the standardized points from their moving range, which a slow drift hardly widens."""
    if standardized.size < 2:
        return 1.0
    # Never below 1: less scatter than chance is luck, or counts that were tampered with; neither narrows the limits.
    return max(1.0, float(np.abs(np.diff(standardized)).mean() / _MOVING_RANGE))


def _signals(
    shares: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], *, center: float
) -> tuple[tuple[Signal, ...], ...]:
    found, side, length = [], 0.0, 0
    for share, least, most in zip(shares, low, high, strict=True):
        signals: list[Signal] = []
        if not np.isnan(share):
            rounding = 1e-12  # a share on its limit, or on the center, must not be moved off it by division
            if share < least - rounding or share > most + rounding:
                signals.append(Signal.BEYOND)
            now = float(np.sign(share - center)) if abs(share - center) > rounding else 0.0
            length = length + 1 if now == side and now != 0 else int(now != 0)
            side = now
            if length >= RUN:
                signals.append(Signal.RUN)
        found.append(tuple(signals))
    return tuple(found)


def pareto(
    counts: Mapping[str, int],
    inspected: int,
    *,
    counts_before: Mapping[str, int],
    inspected_before: int,
    confidence: float = CONFIDENCE,
) -> tuple[ParetoRow, ...]:
    """Sort defect kinds by count and test each against the period before.

    Args:
        counts: Parts per defect kind.
        inspected: Parts inspected, good ones too.
        counts_before: The same of the period before; a kind that only stands here gets a row with count 0.
        inspected_before: The same.
        confidence: Of the interval of the change.

    Returns:
        Most frequent first; ties by the count before, then by name.
    """
    for period, whole in ((counts, inspected), (counts_before, inspected_before)):
        wrong = {label: count for label, count in period.items() if not 0 <= count <= whole}
        if wrong:
            raise ValueError(f"found counts {wrong} for {whole} parts inspected; expected 0 to {whole}")
    labels = sorted(
        set(counts) | set(counts_before), key=lambda label: (-counts.get(label, 0), -counts_before.get(label, 0), label)
    )
    if not labels:
        return ()
    pairs = [(counts.get(label, 0), counts_before.get(label, 0)) for label in labels]
    tested = [
        _change(now, inspected, before=before, inspected_before=inspected_before, confidence=confidence)
        for now, before in pairs
    ]
    adjusted = false_discovery_control([p for *_, p in tested])  # of Benjamini and Hochberg
    defects = sum(now for now, _ in pairs)
    rows, running = [], 0
    for label, (now, before), (change, low, high, p), q in zip(labels, pairs, tested, adjusted, strict=True):
        running += now
        rows.append(
            ParetoRow(
                label,
                now,
                now / defects if defects else 0.0,
                running / defects if defects else 0.0,
                now / inspected if inspected else None,
                before / inspected_before if inspected_before else None,
                change,
                low,
                high,
                p,
                float(q),
            )
        )
    return tuple(rows)


def _change(
    now: int, inspected: int, *, before: int, inspected_before: int, confidence: float
) -> tuple[float | None, float | None, float | None, float]:
    """Return the difference of two shares, its limits and the p of Fisher's test."""
    if not inspected or not inspected_before:
        return None, None, None, 1.0
    low, high = confint_proportions_2indep(
        now, inspected, before, inspected_before, method="newcomb", alpha=1 - confidence
    )
    p = fisher_exact([[now, inspected - now], [before, inspected_before - before]])[1]
    return now / inspected - before / inspected_before, float(low), float(high), min(1.0, float(p))
