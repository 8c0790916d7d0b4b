"""Attribute agreement (AIAG, Measurement Systems Analysis) of appraisers with themselves, each other and the truth.

The model is one more appraiser: its column of answers is treated like a person's.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student
from statsmodels.stats.inter_rater import cohens_kappa, fleiss_kappa

from inspect_xai.errors import StudyError
from inspect_xai.records import StudyRating, VerdictCode
from inspect_xai.statistics.rates import CONFIDENCE, Interval, Rate, rate


class Grade(StrEnum):
    """Grade of a number by the AIAG manual."""

    ACCEPTABLE = "acceptable"
    MARGINAL = "marginal"
    UNACCEPTABLE = "unacceptable"


EFFECTIVENESS_LIMITS = (0.90, 0.80)
"""At or above the first acceptable, at or above the second marginal (AIAG MSA, attribute studies)."""

MISS_LIMITS = (0.02, 0.05)
"""At or below the first acceptable, at or below the second marginal."""

FALSE_ALARM_LIMITS = (0.05, 0.10)
"""The same."""

KAPPA_LIMITS = (0.90, 0.70)
"""The stricter limits of SigmaXL and Minitab; the AIAG text accepts 0.75."""

_CERTAIN = 1 - 1e-12  # agreement by chance at which kappa is 0 / 0


@dataclass(frozen=True, slots=True)
class Kappa:
    """Agreement beyond chance: 1 is perfect, 0 that of chance.

    Attributes:
        value: None where all answers are one category: chance then always agrees, and kappa is 0 / 0.
        low: Lower limit; -1 where there is no value.
        high: Upper limit; 1 where there is no value.
        parts: Parts it rests on.
    """

    value: float | None
    low: float
    high: float
    parts: int


@dataclass(frozen=True, slots=True)
class Appraisal:
    """One appraiser's line of the study.

    Attributes:
        appraiser: Who.
        within: Parts judged alike in every trial; for a single trial its denominator is 0.
        within_kappa: Fleiss's kappa of the trials; None for a single trial.
        effectiveness: Parts judged as the reference in every trial.
        miss: Answers "good" among answers to defective parts.
        false_alarm: Answers "defect" among answers to good parts.
        kappa: Cohen's kappa against the reference, all trials.
        grades: AIAG's classes for "effectiveness", "miss", "false_alarm" and "kappa"; absent where nothing was counted.
    """

    appraiser: str
    within: Rate
    within_kappa: Kappa | None
    effectiveness: Rate
    miss: Rate
    false_alarm: Rate
    kappa: Kappa
    grades: dict[str, Grade]


@dataclass(frozen=True, slots=True)
class Agreement:
    """An attribute agreement study, analyzed.

    Attributes:
        appraisals: One per appraiser, in the order given.
        between: Parts that all appraisers judged alike in every trial.
        between_kappa: Fleiss's kappa over every answer of every appraiser; None for a single answer per part.
        all_right: Parts that all appraisers judged as the reference in every trial (AIAG: system effectiveness).
        pairs: Cohen's kappa of each two appraisers, trial by trial.
    """

    appraisals: tuple[Appraisal, ...]
    between: Rate
    between_kappa: Kappa | None
    all_right: Rate
    pairs: dict[tuple[str, str], Kappa]


def attribute_agreement(
    answers: Mapping[str, ArrayLike], reference: ArrayLike, *, defect: str, good: str, confidence: float = CONFIDENCE
) -> Agreement:
    """Analyze a study of parts x appraisers x trials.

    An answer that is neither `defect` nor `good` (UNSURE, another defect kind) counts against effectiveness, but is no
    miss and no false alarm: such a part is neither passed nor rejected.

    Rates have exact (Clopper-Pearson) intervals. Kappas have jackknife intervals that leave out whole parts, because
    the trials of one part are not independent. Where agreement is perfect the jackknife has no spread; the exact lower
    limit of the share of agreeing parts is then put in kappa's formula.

    Args:
        answers: Per appraiser (parts, trials) or (parts,) category names. The model is an appraiser like any other;
            appraisers may have different numbers of trials.
        reference: (parts,) the true category.
        defect: Name of the defective category.
        good: Name of the good category.
        confidence: Of all intervals.

    Raises:
        StudyError: Nobody answered, an answer is missing, or the reference is neither `defect` nor `good`.

    Source: AIAG, Measurement Systems Analysis, 4th edition, chapter III section C; Efron and Stein (1981).
    """
    truth = np.asarray(reference).astype(str)
    columns = {who: _column(column, who=who, parts=len(truth)) for who, column in answers.items()}
    if not columns or not len(truth):
        raise StudyError(
            f"the study has {len(columns)} appraisers and {len(truth)} parts", expected="at least one of each"
        )
    if not set(truth) <= {defect, good}:
        raise StudyError(
            f"the reference says {sorted(set(truth) - {defect, good})}",
            expected=f"{defect!r} or {good!r} for each part",
            remedy="merge defect kinds before the study is analyzed, or name the category in `defect` or `good`",
        )
    together = np.concatenate(list(columns.values()), axis=1)
    return Agreement(
        tuple(
            _appraise(who, column, truth=truth, defect=defect, good=good, confidence=confidence)
            for who, column in columns.items()
        ),
        _alike(together, confidence=confidence),
        _fleiss(together, confidence=confidence),
        _exact(np.all(together == truth[:, None], axis=1), confidence=confidence),
        {(a, b): cohen(columns[a], columns[b], confidence=confidence) for a, b in itertools.combinations(columns, 2)},
    )


def analyze(answers: Sequence[StudyRating], *, defect: str = VerdictCode.NG, good: str = VerdictCode.OK) -> Agreement:
    """Analyze a study of rows in any order, with the category names `defect` and `good`.

    Raises:
        StudyError: A reference or an answer is missing, or two rows contradict each other.
    """
    references: dict[str, str] = {}
    for row in answers:
        if references.setdefault(row.part, row.reference) != row.reference:
            raise StudyError(f"part {row.part} has the references {references[row.part]!r} and {row.reference!r}")
    unknown = [part for part, reference in references.items() if not reference]
    if unknown:
        raise StudyError(
            f"{len(unknown)} of {len(references)} parts have no reference, the first is {unknown[0]}",
            remedy="let experts say what each part is, without looking at the answers",
        )
    cells: dict[tuple[str, str, str], str] = {}
    for row in answers:
        key = (row.appraiser, row.part, row.trial)
        if key in cells:
            raise StudyError(f"{row.appraiser} answered twice for part {row.part} in trial {row.trial}")
        cells[key] = row.answer
    tables = {}
    for who in dict.fromkeys(row.appraiser for row in answers):
        trials = sorted({trial for one, _, trial in cells if one == who})
        tables[who] = np.array([[cells.get((who, part, trial), "") for trial in trials] for part in references], object)
    return attribute_agreement(tables, np.array(list(references.values()), object), defect=defect, good=good)


def _column(answers: ArrayLike, *, who: str, parts: int) -> NDArray[np.str_]:
    """Return the answers (parts, trials) of one appraiser; refuse missing ones."""
    array = np.asarray(answers, dtype=object)
    column = array[:, None] if array.ndim == 1 else array
    if column.ndim != 2 or len(column) != parts or column.shape[1] == 0:
        raise StudyError(f"{who}'s answers have shape {array.shape}", expected=f"{parts} parts by one or more trials")
    missing = np.argwhere(
        np.vectorize(lambda answer: answer is None or answer != answer or answer == "", otypes=[bool])(column)
    )
    if len(missing):
        part, trial = missing[0]
        raise StudyError(
            f"{who} has {len(missing)} of {column.size} answers missing, the first for part {part} in trial {trial}",
            remedy="finish the study, or leave that part out for everyone",
        )
    return column.astype(str)


def _appraise(
    who: str, column: NDArray[np.str_], *, truth: NDArray[np.str_], defect: str, good: str, confidence: float
) -> Appraisal:
    effectiveness = _exact(np.all(column == truth[:, None], axis=1), confidence=confidence)
    miss = _exact((column == good)[truth == defect], confidence=confidence)
    false_alarm = _exact((column == defect)[truth == good], confidence=confidence)
    kappa = cohen(column, truth[:, None], confidence=confidence)
    numbers = {
        "effectiveness": (effectiveness.value, EFFECTIVENESS_LIMITS),
        "miss": (miss.value, MISS_LIMITS),
        "false_alarm": (false_alarm.value, FALSE_ALARM_LIMITS),
        "kappa": (kappa.value, KAPPA_LIMITS),
    }
    return Appraisal(
        who,
        _alike(column, confidence=confidence),
        _fleiss(column, confidence=confidence),
        effectiveness,
        miss,
        false_alarm,
        kappa,
        {name: _grade(value, limits) for name, (value, limits) in numbers.items() if value is not None},
    )


def _grade(value: float, limits: tuple[float, float]) -> Grade:
    """Grade a value: falling limits are floors, rising limits are ceilings."""
    sign = 1 if limits[0] > limits[1] else -1
    for limit, grade in zip(limits, (Grade.ACCEPTABLE, Grade.MARGINAL), strict=True):
        if sign * value >= sign * limit - 1e-12:  # 18 of 20 is 90 %, whatever division makes of it
            return grade
    return Grade.UNACCEPTABLE


def _alike(column: NDArray[np.str_], *, confidence: float) -> Rate:
    same = np.all(column == column[:, :1], axis=1) if column.shape[1] > 1 else np.empty(0, dtype=np.bool_)
    return _exact(same, confidence=confidence)


def _exact(holds: NDArray[np.bool_], *, confidence: float) -> Rate:
    return rate(int(np.count_nonzero(holds)), holds.size, interval=Interval.EXACT, confidence=confidence)


def cohen(first: NDArray[np.str_], second: NDArray[np.str_], *, confidence: float = CONFIDENCE) -> Kappa:
    """Compute Cohen's kappa of two columns of answers, with an interval.

    Args:
        first: (parts, trials) category names.
        second: (parts, trials). Equal numbers of trials are paired trial by trial, others each with each.
        confidence: Of the interval.

    Source: Cohen, Educational and Psychological Measurement 20 (1960) 37.
    """
    if first.shape == second.shape:
        pairs = first, second
    else:
        pairs = np.repeat(first, second.shape[1], axis=1), np.tile(second, first.shape[1])
    categories, codes = np.unique(np.stack(pairs), return_inverse=True)
    k = len(categories)
    rows, columns = codes.reshape(2, *pairs[0].shape)
    tables = np.zeros((len(rows), k * k))
    np.add.at(tables, (np.arange(len(rows))[:, None], rows * k + columns), 1)

    def kappa(kept: NDArray[np.float64]) -> tuple[float, float]:
        table = kept.sum(axis=0).reshape(k, k)
        by_chance = float(table.sum(0) @ table.sum(1) / table.sum() ** 2)
        return (float(cohens_kappa(table, return_results=False)) if by_chance < _CERTAIN else math.nan), by_chance

    return _jackknifed(tables, kappa, alike=np.all(pairs[0] == pairs[1], axis=1), confidence=confidence)


def _fleiss(column: NDArray[np.str_], *, confidence: float) -> Kappa | None:
    """Compute Fleiss's kappa of all answers to each part. Source: Fleiss, Psychological Bulletin 76 (1971) 378."""
    if column.shape[1] < 2:
        return None
    counts = np.stack([np.count_nonzero(column == name, axis=1) for name in np.unique(column)], axis=1)

    def kappa(kept: NDArray[np.float64]) -> tuple[float, float]:
        shares = kept.sum(axis=0) / kept.sum()
        by_chance = float(shares @ shares)
        return (float(fleiss_kappa(kept)) if by_chance < _CERTAIN else math.nan), by_chance

    alike = counts.max(axis=1) == column.shape[1]
    return _jackknifed(counts.astype(np.float64), kappa, alike=alike, confidence=confidence)


def _jackknifed(
    tables: NDArray[np.float64],
    kappa: Callable[[NDArray[np.float64]], tuple[float, float]],
    *,
    alike: NDArray[np.bool_],
    confidence: float,
) -> Kappa:
    """Put an interval around a kappa.

    Args:
        tables: (parts, cells), what each part contributes.
        kappa: From the kept rows to kappa (NaN where it is 0 / 0) and the agreement by chance.
        alike: (parts,) True where all answers to the part agree.
        confidence: Of the interval.
    """
    parts, (value, by_chance) = len(tables), kappa(tables)
    if math.isnan(value):
        return Kappa(None, -1.0, 1.0, parts)
    # Parts with equal rows share one computation: a study has few kinds of rows.
    _, first, kind = np.unique(tables, axis=0, return_index=True, return_inverse=True)
    without = np.array([kappa(np.delete(tables, part, axis=0))[0] if parts > 1 else math.nan for part in first])
    left_out = without[kind.ravel()]
    error = math.sqrt((parts - 1) / parts * float(np.square(left_out - left_out.mean()).sum()))
    if math.isnan(error):  # a single part has the second category
        return Kappa(value, -1.0, 1.0, parts)
    reach = error * float(student.ppf((1 + confidence) / 2, parts - 1))
    low, high = value - reach, value + reach
    if error < 1e-9:
        agreed = _exact(alike, confidence=confidence)
        low, high = ((share - by_chance) / (1 - by_chance) for share in (agreed.low, agreed.high))
    return Kappa(value, max(-1.0, min(low, value)), min(1.0, max(high, value)), parts)
