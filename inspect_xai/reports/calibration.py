"""What calibrated scores say of parts nobody looked at; the calibration is fitted on reviews, kept with the model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import StudyError
from inspect_xai.records import VerdictCode
from inspect_xai.reports.period import Period
from inspect_xai.statistics.calibration import (
    ExpectedErrors,
    Isotonic,
    Reliability,
    apply_isotonic,
    apply_temperature,
    expected_errors,
    fit_isotonic,
    fit_temperature,
    reliability,
)
from inspect_xai.storage.report_queries import ReportQueries
from inspect_xai.storage.results import StoredModel

ENOUGH_FOR_A_CURVE: Final = 200
"""Reviews of each kind from which a curve is fitted; with fewer, one number (a temperature) must do."""

_FEWEST: Final = 20  # reviews of each kind; with fewer, any calibration is made of a handful of parts


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """From a network's scores to the probability of a defect; `curve` empty: a temperature."""

    temperature: float
    curve: Isotonic | None

    def apply(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) of being a defect as the network puts it, to calibrated ones."""
        if self.curve is not None:
            return apply_isotonic(self.curve, probabilities)
        return apply_temperature(_pairs(probabilities), self.temperature)[:, 1]


@dataclass(frozen=True, slots=True)
class Expected:
    """Errors to be expected of one model in a period, without a label, and what the calibration rests on."""

    model: str
    parts: int
    reviews: int
    kind: str
    error_before: float
    error_after: float
    errors: ExpectedErrors
    bins: tuple[Mapping[str, Any], ...]


def calibrate(
    scores: NDArray[np.float64], defect: NDArray[np.bool_], *, weights: NDArray[np.float64]
) -> dict[str, Any]:
    """Fit a calibration on reviewed parts, and measure it on reviews it was not fitted on.

    Args:
        scores: (n,) probability of a defect as the network puts it.
        defect: (n,) what a person said.
        weights: (n,) 1 over the chance to be reviewed.

    Returns:
        The calibration as plain values, to be kept with the model.

    Raises:
        StudyError: Too few reviews of a kind.
    """
    good, bad = int((~defect).sum()), int(defect.sum())
    if min(good, bad) < _FEWEST:
        raise StudyError(
            f"{bad} reviewed defects and {good} reviewed good parts",
            expected=f"{_FEWEST} of each",
            remedy="review more; the random share of passed parts (ok_share) gives the good ones",
        )
    kind = "isotonic" if min(good, bad) >= ENOUGH_FOR_A_CURVE else "temperature"
    calibrated = np.empty_like(scores)
    for half in (0, 1):  # each half is judged by the curve of the other
        mine = np.arange(scores.size) % 2 == half
        calibrated[mine] = _fit(kind, scores[~mine], defect[~mine], weights[~mine]).apply(scores[mine])
    before, after = (reliability(p, defect, weights=weights) for p in (scores, np.clip(calibrated, 0, 1)))
    if after.brier > before.brier:  # it made things worse for parts it had not seen
        kind, after = "none", before
    fitted = _fit(kind, scores, defect, weights)
    return {
        "kind": kind,
        "temperature": fitted.temperature,
        "curve": None if fitted.curve is None else asdict(fitted.curve),
        "reviews": int(scores.size),
        "defects": bad,
        "expected_error_before": before.expected_error,
        "expected_error": after.expected_error,
        "brier_before": before.brier,
        "brier": after.brier,
        "bins": _bins(after),
    }


def calibration_from(content: Mapping[str, Any]) -> Calibration:
    """Return a stored calibration as an object."""
    curve = content["curve"]
    knots = None if curve is None else Isotonic(tuple(curve["raw"]), tuple(curve["calibrated"]))
    return Calibration(float(content["temperature"]), knots)


def expected_of(figures: ReportQueries, period: Period, models: Sequence[StoredModel]) -> tuple[Expected, ...]:
    """Expect escapes and overkill of every model that is calibrated, read day by day: a part leaves ten bytes."""
    found = []
    for model in models:
        if model.calibration is None:
            continue
        calibration = calibration_from(model.calibration)
        chances, passed, rejected = [], [], []
        for day in period.days:
            scores, codes = figures.defect_scores(*period.span_of(day), model=model)
            chances.append(calibration.apply(scores))
            passed.append(codes == VerdictCode.OK)
            rejected.append(codes == VerdictCode.NG)
        chance = np.clip(np.concatenate(chances), 0, 1)
        if not chance.size:
            continue
        errors = expected_errors(chance, passed=np.concatenate(passed), rejected=np.concatenate(rejected))
        kept = model.calibration
        found.append(
            Expected(
                f"{model.name} {model.version}",
                int(chance.size),
                int(kept["reviews"]),
                str(kept["kind"]),
                float(kept["expected_error_before"]),
                float(kept["expected_error"]),
                errors,
                tuple(kept["bins"]),
            )
        )
    return tuple(found)


def _fit(
    kind: str, scores: NDArray[np.float64], defect: NDArray[np.bool_], weights: NDArray[np.float64]
) -> Calibration:
    if kind == "none":
        return Calibration(1.0, None)
    if kind == "isotonic":
        return Calibration(1.0, fit_isotonic(scores, defect, weights=weights))
    return Calibration(fit_temperature(_pairs(scores), defect.astype(int), weights=weights), None)


def _pairs(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(probabilities, 0, 1)
    return np.stack([1 - clipped, clipped], axis=1)


def _bins(found: Reliability) -> list[dict[str, Any]]:
    return [
        {
            "low": b.low,
            "high": b.high,
            "mean": b.mean,
            "observed": b.observed,
            "parts": b.counted.denominator,
            "observed_low": b.counted.low,
            "observed_high": b.counted.high,
        }
        for b in found.bins
    ]
