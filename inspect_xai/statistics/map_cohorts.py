"""Cohorts of explanation maps: their mean and spread, their change, and maps unlike their cohort.

A cohort is the explanation maps of one product, station and label over a period, registered to one view and size.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """Running sums over maps that are first brought to a total of 1, so that each part has one vote.

    Attributes:
        maps: Maps that count.
        empty: Maps without evidence (all zero), left out.
        mean: (H, W), sums to 1.
        scatter: (H, W) sum of squared deviations from the mean; see `spread`.
    """

    maps: int
    empty: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @property
    def spread(self) -> NDArray[np.float64]:
        """(H, W) standard deviation between the parts; zero for fewer than two."""
        return np.asarray(np.sqrt(self.scatter / max(self.maps - 1, 1)))


@dataclass(frozen=True, slots=True, eq=False)
class MapChange:
    """How one cohort differs from another.

    Attributes:
        difference: (H, W) mean now less mean before; sums to 0.
        moved: Share of the evidence that lies elsewhere, 0 to 1 (total variation).
        down_px: Way of the center of evidence downwards, negative upwards.
        right_px: To the right, negative to the left.
    """

    difference: NDArray[np.float64]
    moved: float
    down_px: float
    right_px: float


def gather(maps: Iterable[NDArray[np.floating]], size: tuple[int, int]) -> Cohort:
    """Average maps of one size (H, W), not negative, one by one; memory does not grow with their number.

    Source: Welford, Technometrics 4 (1962) 419.
    """
    count, empty = 0, 0
    mean, scatter = np.zeros(size), np.zeros(size)
    for one in maps:
        _require_map(one, size)
        total = float(one.sum(dtype=np.float64))
        if total == 0:
            empty += 1
            continue
        count += 1
        step = one / total - mean
        mean += step / count
        scatter += step * (one / total - mean)
    return Cohort(count, empty, mean, scatter)


def compare_cohorts(now: Cohort, before: Cohort) -> MapChange | None:
    """Compare where the evidence of two cohorts lies; None where one of them has no map with evidence."""
    if not now.maps or not before.maps:
        return None
    difference = now.mean - before.mean
    rows, columns = np.indices(difference.shape)
    return MapChange(
        difference,
        float(np.abs(difference).sum() / 2),
        float((difference * rows).sum()),
        float((difference * columns).sum()),
    )


def deviation(explanation_map: NDArray[np.floating], cohort: Cohort) -> float | None:
    """Return 1 less the cosine between a map (H, W) and its cohort's mean: 0 the same, 1 no evidence in common.

    It does not depend on the map's scale. `outliers` tells which values are large in a cohort. None where the map or
    the cohort has no evidence.
    """
    _require_map(explanation_map, (cohort.mean.shape[0], cohort.mean.shape[1]))
    values = explanation_map.astype(np.float64)
    lengths = float(np.linalg.norm(values) * np.linalg.norm(cohort.mean))
    if lengths == 0:
        return None
    return min(1.0, max(0.0, 1 - float(np.vdot(values, cohort.mean)) / lengths))


def outliers(deviations: NDArray[np.floating], *, limit: float = 3.5) -> NDArray[np.bool_]:
    """Mark the parts that are less like their cohort than the others are.

    Args:
        deviations: (n,) from `deviation`; NaN is no outlier.
        limit: In robust standard deviations (1.4826 MAD) of the deviations' roots, above their median.

    Source: Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993), which has the 3.5.
    """
    known = np.isfinite(deviations)
    if not known.any():
        return np.zeros(deviations.shape, dtype=np.bool_)
    # A cosine falls with the square of a displacement: only its root is spread evenly enough for a median and a MAD.
    roots = np.sqrt(np.where(known, deviations, 0))
    median = np.median(roots[known])
    scale = 1.4826 * np.median(np.abs(roots[known] - median))
    return np.asarray(known & (roots - median > limit * max(scale, 1e-9)))


def _require_map(values: NDArray[np.floating], size: tuple[int, int]) -> None:
    if values.shape != size or not np.all(np.isfinite(values)) or values.min() < 0:
        raise ValueError(f"found a map of shape {values.shape}; expected {size} with finite values from 0 up")
