"""Calibration of probabilities: reliability, temperature and isotonic fits, and expected errors without labels.

Reviewed parts are not an even sample: weigh each by 1 over its chance to be reviewed, or the passed parts, where the
escapes are, hardly count.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression, minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import poisson

from inspect_xai.errors import StudyError
from inspect_xai.statistics.rates import CONFIDENCE, Rate, rate

_SMALLEST = 1e-12  # with a probability of 0 one wrong answer would outweigh all the others

_TEMPERATURES = (0.05, 20.0)
"""Beyond these a network is not badly calibrated but broken."""


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Parts with a probability in [low, high) (the last bin includes 1), and how often it came true.

    Attributes:
        low: Lower edge.
        high: Upper edge.
        weight: Sum of the weights of its parts.
        mean: Their weighted mean probability.
        observed: Weighted share of defects among them.
        counted: The same unweighted, with a Wilson interval.
    """

    low: float
    high: float
    weight: float
    mean: float
    observed: float
    counted: Rate


@dataclass(frozen=True, slots=True)
class Reliability:
    """A reliability diagram.

    Attributes:
        bins: Bins that hold parts.
        expected_error: ECE: mean gap between probability and outcome over the parts.
        largest_error: MCE: the largest gap of any bin.
        brier: Mean squared gap between probability and outcome, part by part.
    """

    bins: tuple[ReliabilityBin, ...]
    expected_error: float
    largest_error: float
    brier: float


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A rising curve from raw to calibrated probability, straight between its knots and level beyond them."""

    raw: tuple[float, ...]
    calibrated: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ExpectedErrors:
    """Escapes and overkill to be expected from calibrated probabilities, without a single review.

    The intervals say how chance may scatter the counts (Poisson, a little too wide) if the probabilities are right;
    they cannot know whether they are.

    Attributes:
        escapes: Expected defects among the passed parts.
        escapes_low: Lower limit of their count.
        escapes_high: Upper limit.
        escape_of_passed: Expected share of the passed parts; None where none passed.
        escape_of_defects: Expected share of all defects; None where none are expected.
        overkill: Expected good parts among the rejected.
        overkill_low: Lower limit of their count.
        overkill_high: Upper limit.
        overkill_of_good: Expected share of all good parts; None where none are expected.
    """

    escapes: float
    escapes_low: int
    escapes_high: int
    escape_of_passed: float | None
    escape_of_defects: float | None
    overkill: float
    overkill_low: int
    overkill_high: int
    overkill_of_good: float | None


def reliability(
    probabilities: ArrayLike,
    outcomes: ArrayLike,
    *,
    bins: int = 10,
    weights: ArrayLike | None = None,
    confidence: float = CONFIDENCE,
) -> Reliability:
    """Compare probabilities with outcomes.

    Args:
        probabilities: (n,) in [0, 1], of being a defect.
        outcomes: (n,) 1 where the part is a defect, else 0.
        bins: Equally wide bins over [0, 1].
        weights: (n,) 1 over the chance to be reviewed; None: all 1.
        confidence: Of the bins' intervals.

    Raises:
        StudyError: Nothing to compare, or something outside its range.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), equations 2 to 5; Brier (1950).
    """
    score, truth, weight = _observed(probabilities, outcomes, weights)
    place = np.minimum((score * bins).astype(np.intp), bins - 1)
    found = []
    for i in np.unique(place):
        mine = place == i
        found.append(
            ReliabilityBin(
                float(i / bins),
                float((i + 1) / bins),
                float(weight[mine].sum()),
                float(np.average(score[mine], weights=weight[mine])),
                float(np.average(truth[mine], weights=weight[mine])),
                rate(int(truth[mine].sum()), int(mine.sum()), confidence=confidence),
            )
        )
    gaps = np.array([abs(b.mean - b.observed) for b in found])
    expected = float(np.average(gaps, weights=[b.weight for b in found]))
    return Reliability(
        tuple(found), expected, float(gaps.max()), float(np.average((score - truth) ** 2, weights=weight))
    )


def fit_temperature(scores: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Find the temperature that the log-probabilities are best divided by.

    Args:
        scores: (n, K) probabilities. Those of a softmax lose nothing against its logits: log p differs from them by a
            constant per row, which softmax ignores.
        labels: (n,) index of the true class.
        weights: (n,) 1 over the chance to be reviewed; None: all 1.

    Returns:
        From 0.05 to 20. Above 1: the network was too sure of itself.

    Raises:
        StudyError: Nothing to fit, or labels of no class.

    Source: Guo et al. (2017), section 4.2.
    """
    logs = _logs(scores)
    label = np.asarray(labels)
    if len(logs) == 0 or label.shape != (len(logs),) or not np.all((label >= 0) & (label < logs.shape[1])):
        raise StudyError(
            f"{label.shape} labels for scores of shape {logs.shape}",
            expected=f"at least one row, and for each a class from 0 to {logs.shape[1] - 1}",
        )
    weight = np.ones(len(logs)) if weights is None else np.asarray(weights, dtype=np.float64)
    rows = np.arange(len(logs))

    def surprise(log_temperature: float) -> float:
        return -float(weight @ log_softmax(logs / np.exp(log_temperature), axis=1)[rows, label])

    found = minimize_scalar(surprise, bounds=tuple(np.log(_TEMPERATURES)), method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x))


def apply_temperature(scores: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """Soften (above 1) or sharpen (below 1) probabilities (n, K); the order of the classes stays."""
    return np.asarray(softmax(_logs(scores) / temperature, axis=1), dtype=np.float64)


def fit_isotonic(probabilities: ArrayLike, outcomes: ArrayLike, *, weights: ArrayLike | None = None) -> Isotonic:
    """Find the rising step curve that best turns probabilities into observed shares.

    More flexible than a temperature, but needs more data: below some hundred reviews of each kind prefer that.

    Args:
        probabilities: (n,) in [0, 1].
        outcomes: (n,) 1 where the part is a defect, else 0.
        weights: (n,) 1 over the chance to be reviewed; None: all 1.

    Raises:
        StudyError: Only defects or only good parts were reviewed: the curve would be 1 or 0 everywhere.

    Source: Zadrozny and Elkan (2002); pool-adjacent-violators by scipy.
    """
    score, truth, weight = _observed(probabilities, outcomes, weights)
    if truth.min() == truth.max():
        raise StudyError(
            f"all {truth.size} reviews say {'defect' if truth[0] else 'good'}",
            expected="reviews of both kinds",
            remedy="review a random share of the passed parts too",
        )
    raw, place = np.unique(score, return_inverse=True)  # equal scores must get one value
    mass = np.bincount(place, weights=weight)
    share = np.bincount(place, weights=weight * truth) / mass
    level = isotonic_regression(share, weights=mass).x
    ends = np.ones(level.size, dtype=np.bool_)  # knots only where a level begins or ends
    ends[1:-1] = (level[1:-1] != level[:-2]) | (level[1:-1] != level[2:])
    return Isotonic(tuple(raw[ends].tolist()), tuple(level[ends].tolist()))


def apply_isotonic(curve: Isotonic, probabilities: ArrayLike) -> NDArray[np.float64]:
    """Return the calibrated probabilities of raw ones in [0, 1], of any shape."""
    return np.asarray(np.interp(np.asarray(probabilities, dtype=np.float64), curve.raw, curve.calibrated))


def expected_errors(
    probabilities: ArrayLike, *, passed: ArrayLike, rejected: ArrayLike, confidence: float = CONFIDENCE
) -> ExpectedErrors:
    """Estimate escapes and overkill among parts without review from calibrated probabilities.

    Args:
        probabilities: (n,) calibrated probability of being a defect.
        passed: (n,) True where the verdict is OK.
        rejected: (n,) True where the verdict is NG; a part that is neither is UNSURE.
        confidence: Of the intervals of the counts.

    Source: the idea of confidence-based performance estimation (CBPE, NannyML).
    """
    chance = np.asarray(probabilities, dtype=np.float64)
    ok, ng = np.asarray(passed, dtype=np.bool_), np.asarray(rejected, dtype=np.bool_)
    if chance.ndim != 1 or not chance.shape == ok.shape == ng.shape or not np.all((chance >= 0) & (chance <= 1)):
        raise StudyError(
            f"probabilities of shape {chance.shape} for verdicts of {ok.shape}", expected="one each, from 0 to 1"
        )
    escapes, overkill = float(chance[ok].sum()), float((1 - chance)[ng].sum())
    defects, good = float(chance.sum()), float((1 - chance).sum())
    low, high = (1 - confidence) / 2, (1 + confidence) / 2
    return ExpectedErrors(
        escapes,
        int(poisson.ppf(low, escapes)),
        int(poisson.ppf(high, escapes)),
        escapes / int(ok.sum()) if ok.any() else None,
        escapes / defects if defects > 0 else None,
        overkill,
        int(poisson.ppf(low, overkill)),
        int(poisson.ppf(high, overkill)),
        overkill / good if good > 0 else None,
    )


def _logs(scores: ArrayLike) -> NDArray[np.float64]:
    rows = np.asarray(scores, dtype=np.float64)
    if rows.ndim != 2 or not np.all((rows >= 0) & (rows <= 1)):
        raise StudyError(f"scores of shape {rows.shape}", expected="(n, K) probabilities from 0 to 1")
    return np.asarray(np.log(np.maximum(rows, _SMALLEST)))


def _observed(
    probabilities: ArrayLike, outcomes: ArrayLike, weights: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return probabilities, outcomes and weights (n,) each, checked."""
    score, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    weight = np.ones(score.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    fits = score.ndim == 1 and score.size > 0 and score.shape == truth.shape == weight.shape
    if not fits or not np.all((score >= 0) & (score <= 1) & ((truth == 0) | (truth == 1)) & (weight > 0)):
        raise StudyError(
            f"{score.shape} probabilities, {truth.shape} outcomes and {weight.shape} weights",
            expected="at least one of each, probabilities from 0 to 1, outcomes 0 or 1, weights above 0",
        )
    return score, truth, weight
