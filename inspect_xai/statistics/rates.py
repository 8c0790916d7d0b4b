"""Rates with denominators and intervals, corrected for parts without review (verification bias).

Only flagged parts are normally reviewed, so a plain confusion matrix of the reviews contains no escapes. A random share
of the passed parts is reviewed too; each of its parts represents those that it was drawn from.

*Escape*: a defect passed as OK. *Overkill*: a good part rejected as NG. UNSURE is neither: a person decides.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln
from scipy.stats import qmc
from statsmodels.stats.proportion import proportion_confint

from inspect_xai.records import VerdictCode

CONFIDENCE = 0.95

_DRAWS = 1 << 11
"""Points of the low-discrepancy sequence that combines several uncertain strata; moves a limit by less than 1 %."""


class Interval(StrEnum):
    """How a rate's interval is made; the values are statsmodels' names."""

    WILSON = "wilson"  # right on average: for tables and charts
    EXACT = "beta"  # Clopper-Pearson, never covers less than stated: for limits that are guaranteed


@dataclass(frozen=True, slots=True)
class Rate:
    """A counted share. `value` is None where nothing was counted; the interval is then everything from 0 to 1."""

    count: int
    denominator: int
    value: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Stratum:
    """Parts that share a verdict and a chance to be reviewed.

    Attributes:
        verdict: Of the line.
        inclusion: Chance of each part to be chosen for review: 1 for flagged parts, the random share for OK.
        parts: How many there are, reviewed or not.
        reviewed: How many of those chosen have a review that says defect or good.
        defects: How many of these the review calls a defect.
        found_otherwise: Defects known though their part was not chosen (a complaint, a chance find). They are no sample
            of the others, but no estimate may fall below them.
    """

    verdict: VerdictCode
    inclusion: float
    parts: int
    reviewed: int
    defects: int
    found_otherwise: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share of this period's parts, corrected for verification bias.

    Attributes:
        value: None where the sample is too small to say.
        low: Lower limit of the interval; it holds even where `value` is None.
        high: Upper limit.
        needed: How many more reviews would allow a number; 0 where there is one, and where there is nothing to review.
    """

    value: float | None
    low: float
    high: float
    needed: int


@dataclass(frozen=True, slots=True)
class CorrectedRates:
    """Overkill and escape of one period's parts.

    Attributes:
        escape_of_passed: Share of the OK parts that are defects: what the customer receives.
        escape_of_defects: Share of all defects that passed as OK: what the line misses.
        overkill_of_good: Share of all good parts that were rejected as NG.
        overkill_of_rejected: Share of the NG parts that are good.
        pending: Flagged parts still without a review.
        strata: What it was computed from.
    """

    escape_of_passed: Estimate
    escape_of_defects: Estimate
    overkill_of_good: Estimate
    overkill_of_rejected: Estimate
    pending: int
    strata: tuple[Stratum, ...]


def rate(count: int, denominator: int, *, interval: Interval = Interval.WILSON, confidence: float = CONFIDENCE) -> Rate:
    """Put an interval around a counted share.

    Example:
        >>> rate(0, 10, interval=Interval.EXACT)
        Rate(count=0, denominator=10, value=0.0, low=0.0, high=0.3084971078187...)

    Source: Wilson (1927); Clopper and Pearson (1934); compared by Newcombe, Statistics in Medicine 17 (1998) 857.
    """
    _require(0 <= count <= denominator, f"a count of {count} out of {denominator}", "0 <= count <= denominator")
    if denominator == 0:
        return Rate(0, 0, None, 0.0, 1.0)
    low, high = proportion_confint(count, denominator, alpha=1 - confidence, method=interval.value)
    return Rate(int(count), int(denominator), count / denominator, float(low), float(high))


def strata(verdicts: ArrayLike, *, chosen: ArrayLike, inclusion: ArrayLike, defect: ArrayLike) -> tuple[Stratum, ...]:
    """Count parts by verdict and by their chance to be reviewed.

    Args:
        verdicts: (n,) "OK", "NG" or "UNSURE".
        chosen: (n,) True where the part was to be reviewed: flagged, or drawn into the random share.
        inclusion: (n,) chance of being chosen, in (0, 1].
        defect: (n,) the review: 1 defect, 0 good, NaN none or undecided.

    Returns:
        Strata sorted by verdict, then by chance.
    """
    codes, drawn = np.asarray(verdicts).astype(str), np.asarray(chosen, dtype=np.bool_)
    chance, truth = np.asarray(inclusion, dtype=np.float64), np.asarray(defect, dtype=np.float64)
    for what, numbers in (("chosen", drawn), ("inclusion", chance), ("defect", truth)):
        _require(numbers.shape == codes.shape, f"{what} of shape {numbers.shape}", f"shape {codes.shape} of verdicts")
    _require(bool(np.all((truth == 0) | (truth == 1) | np.isnan(truth))), "a review that is neither", "0, 1 or NaN")
    known, bad = ~np.isnan(truth), truth == 1
    found = []
    for verdict in VerdictCode:
        for share in np.unique(chance[codes == verdict.value]):
            mine = (codes == verdict.value) & (chance == share)
            counts = (mine, mine & drawn & known, mine & drawn & bad, mine & ~drawn & bad)
            parts, reviewed, defects, otherwise = (int(np.count_nonzero(which)) for which in counts)
            found.append(Stratum(verdict, float(share), parts, reviewed, defects, otherwise))
    counted = sum(stratum.parts for stratum in found)
    _require(counted == codes.size, f"{codes.size - counted} parts with an unknown verdict or chance", "OK, NG, UNSURE")
    return tuple(found)


def corrected_rates(
    counts: Sequence[Stratum],
    *,
    escape_resolution: float = 0.01,
    miss_resolution: float = 0.2,
    overkill_resolution: float = 0.05,
    confidence: float = CONFIDENCE,
) -> CorrectedRates:
    """Estimate overkill and escape as if every part had been reviewed.

    In each stratum the reviewed parts represent all: weight parts / reviewed, the Horvitz-Thompson weight 1 / inclusion
    adjusted so that the weights add up to the parts that are there (Hajek; post-stratification). Flagged parts are all
    to be reviewed; those still pending are no random remainder (the queue puts the risky ones first), so the
    interval lets them be anything. Within the random share, whatever is not reviewed yet counts as missing at random.

    The interval is exact for one random share: the hypergeometric counterpart of Clopper-Pearson, so that zero
    escapes still have an upper limit and reviewing every part leaves no doubt. Several shares are combined by melding.
    It holds for the parts of this period, not for the process behind them.

    A sample is too small to say when, even had it found no escape, the upper limit would lie above the resolution.
    That depends on its size only: a rule that used the outcome would bias the numbers that are shown.

    Args:
        counts: One entry per verdict and inclusion chance, from `strata` or a GROUP BY.
        escape_resolution: Largest share of escapes among OK parts that may go unseen before a number is withheld.
        miss_resolution: The same among all defects.
        overkill_resolution: Widest interval of an overkill rate before it is withheld.
        confidence: Of the two-sided intervals.

    Source: Horvitz and Thompson (1952); Hajek (1971); Fay, Proschan and Brittain, "Combining one-sample confidence
    procedures for inference in the two-sample case", Biometrics 71 (2015) 146.
    """
    table = tuple(stratum for stratum in counts if stratum.parts > 0)
    for stratum in table:
        _require(
            0 <= stratum.defects <= stratum.reviewed
            and 0 <= stratum.found_otherwise <= stratum.parts - stratum.reviewed
            and 0 < stratum.inclusion <= 1,
            f"{stratum}",
            "defects <= reviewed <= parts and a chance in (0, 1]",
        )
    parts, passed, rejected = np.array([s.parts for s in table]), _which(table, "OK"), _which(table, "NG")
    bounds = _Bounds(_estimated_defects(table), *_limits(table, confidence=confidence), (1 - confidence) / 2)
    escape = bounds.of(lambda d: _share(d[..., passed].sum(-1), parts[passed].sum()), rises=passed)
    missed = bounds.of(lambda d: _share(d[..., passed].sum(-1), d.sum(-1)), rises=passed)
    good = bounds.of(lambda d: _share((parts - d)[..., rejected].sum(-1), (parts - d).sum(-1)), rises=~rejected)
    wrong = bounds.of(lambda d: _share((parts - d)[..., rejected].sum(-1), parts[rejected].sum()), rises=~rejected)

    lot, caught = int(parts[passed].sum()), float(bounds.estimated[~passed].sum())
    tolerated = miss_resolution / (1 - miss_resolution) * caught / lot if lot and caught > 0 else 0.0
    sampled = _effective_sample(table)
    unseen, untold = (
        max(0, reviews_needed(lot, s, confidence=confidence) - sampled) for s in (escape_resolution, tolerated)
    )
    rejects = sum(s.parts - s.reviewed for s in table if s.verdict is VerdictCode.NG)
    return CorrectedRates(
        _withheld(escape, unseen),
        _withheld(missed, untold),
        _withheld(good, (rejects or unseen) if _vague(good, overkill_resolution) else 0),
        _withheld(wrong, rejects if _vague(wrong, overkill_resolution) else 0),
        sum(s.parts - s.reviewed for s in table if s.verdict is not VerdictCode.OK),
        table,
    )


def reviews_needed(parts: int, share: float, *, confidence: float = CONFIDENCE) -> int:
    """Return how many of `parts` must be drawn and found good to rule out more than `share` defects among them.

    Example:
        >>> reviews_needed(100_000, 0.01), reviews_needed(200, 0.01)
        (366, 141)
    """
    ruled_out = math.floor(share * parts + 1e-9) + 1
    if ruled_out > parts:
        return 0
    low, high = 0, parts
    while low < high:
        middle = (low + high) // 2
        enough = _chance_of_so_few(parts, middle, 0, bad=np.array([ruled_out])).item() <= (1 - confidence) / 2
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


@dataclass(frozen=True, slots=True, eq=False)
class _Bounds:
    """Defects per stratum: estimated (strata,), and the least and most (draws, strata) that the reviews allow."""

    estimated: NDArray[np.float64]
    least: NDArray[np.float64]
    most: NDArray[np.float64]
    tail: float

    def of(self, share: Callable[[NDArray[np.float64]], NDArray[np.float64]], *, rises: NDArray[np.bool_]) -> Estimate:
        """Bound a share of the defects (..., strata): it rises with those of the strata in `rises`, else falls."""
        low = np.nan_to_num(share(np.where(rises, self.least, self.most)), nan=0.0)
        high = np.nan_to_num(share(np.where(rises, self.most, self.least)), nan=1.0)
        value = float(share(self.estimated))
        return Estimate(
            None if math.isnan(value) else value,
            float(np.quantile(low, self.tail, method="lower")),
            float(np.quantile(high, 1 - self.tail, method="higher")),
            0,
        )


def _estimated_defects(table: Sequence[Stratum]) -> NDArray[np.float64]:
    """Return the expected defects (strata,), without reviews by the share of the verdict; NaN where there is none."""
    estimates = []
    for stratum in table:
        alike = [stratum] if stratum.reviewed else [s for s in table if s.verdict is stratum.verdict and s.reviewed]
        weight = sum(s.parts for s in alike)
        share = sum(s.parts * s.defects / s.reviewed for s in alike) / weight if weight else math.nan
        estimates.append(max(stratum.parts * share, _known(stratum)))
    return np.array(estimates, dtype=np.float64)


def _limits(table: Sequence[Stratum], *, confidence: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the fewest and most defects (draws, strata) that the reviews allow, a row per point of a uniform sequence.

    One uncertain stratum needs no sequence: its own limits are the interval's.
    """
    random = [i for i, stratum in enumerate(table) if stratum.inclusion < 1 and stratum.reviewed < stratum.parts]
    if len(random) <= 1:
        levels = np.array([(1 - confidence) / 2])
        tails = np.full((1, len(random)), levels[0])
    else:
        # Limits are found on few levels, close together at the ends, and read off in between.
        levels = np.sin(np.linspace(0, math.pi / 2, 202)[1:-1]) ** 2
        sequence = qmc.Halton(d=len(random), scramble=False)
        sequence.fast_forward(1)  # the first point is 0
        tails = sequence.random(_DRAWS)
    shape = (len(tails), len(table))
    least = np.broadcast_to([float(_known(s)) for s in table], shape).copy()
    most = np.broadcast_to([float(s.parts - (s.reviewed - s.defects)) for s in table], shape).copy()
    for tail, i in zip(tails.T, random, strict=True):
        s = table[i]
        upper = _most_defects(s.parts, s.reviewed, s.defects, tails=levels)
        lower = s.parts - _most_defects(s.parts, s.reviewed, s.reviewed - s.defects, tails=levels)
        most[:, i] = np.maximum(_known(s), np.interp(tail, levels, upper))
        least[:, i] = np.maximum(_known(s), np.interp(tail, levels, lower))
    return least, most


def _most_defects(parts: int, reviewed: int, defects: int, *, tails: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the most defects (draws,) among `parts` with a chance above each tail of so few in the sample."""
    low = np.full(tails.shape, defects, dtype=np.int64)
    high = np.full(tails.shape, parts - (reviewed - defects), dtype=np.int64)
    while np.any(low < high):
        middle = (low + high + 1) // 2
        possible = _chance_of_so_few(parts, reviewed, defects, bad=middle) > tails
        low, high = np.where(possible, middle, low), np.where(possible, high, middle - 1)
    return low.astype(np.float64)


def _chance_of_so_few(parts: int, reviewed: int, defects: int, *, bad: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the chance (draws,) of at most `defects` in the sample: `hypergeom.cdf`, but a thousand times faster."""
    few = defects < reviewed - defects  # the shorter of two sums
    seen = np.arange(defects + 1) if few else np.arange(defects + 1, reviewed + 1)
    bad, unseen = bad[:, None], reviewed - seen
    possible = (seen <= bad) & (unseen <= parts - bad)
    ways = _log_choose(bad, np.minimum(seen, bad)) + _log_choose(parts - bad, np.minimum(unseen, parts - bad))
    chance = np.where(possible, np.exp(ways - _log_choose(parts, reviewed)), 0.0).sum(-1)
    return np.asarray(chance if few else 1 - chance, dtype=np.float64)


def _log_choose(whole: ArrayLike, taken: ArrayLike) -> NDArray[np.float64]:
    n, k = np.asarray(whole), np.asarray(taken)
    return np.asarray(-betaln(n - k + 1, k + 1) - np.log(n + 1), dtype=np.float64)


def _effective_sample(table: Sequence[Stratum]) -> int:
    """Return the reviews of OK parts, discounted for unequal weights (Kish: squared sum over sum of squares)."""
    sampled = [s for s in table if s.verdict is VerdictCode.OK and s.reviewed]
    total = sum(s.parts for s in sampled)
    return round(total**2 / sum(s.parts**2 / s.reviewed for s in sampled)) if sampled else 0


def _known(stratum: Stratum) -> int:
    return stratum.defects + stratum.found_otherwise


def _which(table: Sequence[Stratum], code: str) -> NDArray[np.bool_]:
    return np.array([stratum.verdict.value == code for stratum in table], dtype=np.bool_)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Divide a part by the whole; NaN where the whole is 0."""
    total = np.broadcast_to(np.asarray(whole, dtype=np.float64), np.shape(part))
    return np.asarray(np.divide(part, total, out=np.full(np.shape(part), math.nan), where=total > 0))


def _vague(estimate: Estimate, resolution: float) -> bool:
    return estimate.value is None or estimate.high - estimate.low > resolution


def _withheld(estimate: Estimate, needed: int) -> Estimate:
    return Estimate(None if needed else estimate.value, estimate.low, estimate.high, needed)


def _require(holds: bool, found: str, expected: str) -> None:  # noqa: FBT001  the condition is the point
    if not holds:
        raise ValueError(f"found {found}; expected {expected}")
