"""Metrics of an explanation: does it lie on the defect, and does the score depend on the pixels it marks?

Three kinds of functions, none of which knows a network. Localization compares a map with the true defect mask.
Perturbation is in two halves, with the network between them: generators that make the pictures to be scored, and
functions that turn the scores back into a number. Statistics averages numbers over pictures.

"The top pixels" are always taken from a rank map (`sise.rank_map`), exactly k of them: an explanation map is mostly 0,
and a threshold would mark either fewer pixels or the whole picture. A map without companions is ranked by
`rank_map(m, m, m)`. `truth` is (H, W), True on the defect. Pictures are float32 (H, W, C) in pixel units; `fill` is the
picture shown where pixels are hidden (`sise.baseline_picture`). Source: method notes, section 6, with the papers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from inspect_xai.errors import ExplanationError
from inspect_xai.maths.sise import top_k

KEPT_SHARE = 0.15
"""Share of the pixels that Drop and Increase leave standing."""

FOUND_SHARE = 0.2
"""Share of the pixels that mIoU compares with the truth."""

FALSE_POSITIVE_LIMIT = 0.3
"""AUPRO uses the curve up to this false-positive rate."""

ROAD_SHARES = (0.2, 0.4, 0.6, 0.8)
"""Shares of the pixels that ROAD removes."""

ROAD_NOISE_PX = 2.55
"""Standard deviation of the noise on imputed pixels, 0.01 of the range 0 to 255, without which they are too smooth."""


def ebpg(fused: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Return the share of a map's (H, W) energy on the defect (energy-based pointing game); 0 for a map of zeros.

    Raises:
        ExplanationError: The map has negative values or NaN.
    """
    _require_alike(fused, truth)
    if not fused.min() >= 0:
        raise ExplanationError(f"the map's smallest value is {fused.min()}", expected="0 or more everywhere")
    total = fused.sum(dtype=np.float64)
    return float(fused.sum(dtype=np.float64, where=truth) / total) if total > 0 else 0.0


def iou(rank: NDArray[np.integer], truth: NDArray[np.bool_], *, share: float = FOUND_SHARE) -> float:
    """Return the intersection over union of the map's top pixels and the defect; its average over pictures is mIoU.

    `share` of all pixels are the top; a defect much smaller than this cannot reach 1.
    """
    _require_alike(rank, truth)
    found = top_k(rank, share_of(rank.size, share))
    return float(np.count_nonzero(found & truth) / np.count_nonzero(found | truth))


def bbox(rank: NDArray[np.integer], truth: NDArray[np.bool_]) -> float:
    """Take as many top pixels as the defect has, and return the share of them on it.

    Unlike by the metric's authors, pictures with a large defect count too.
    """
    _require_alike(rank, truth)
    area = int(np.count_nonzero(truth))
    return float(np.count_nonzero(top_k(rank, area) & truth) / area)


def pointing_game(rank: NDArray[np.integer], truth: NDArray[np.bool_]) -> bool:
    """Return whether the first pixel of the map is on the defect."""
    _require_alike(rank, truth)
    return bool(truth[rank == 0].all())


def aupro(rank: NDArray[np.integer], truth: NDArray[np.bool_], *, limit: float = FALSE_POSITIVE_LIMIT) -> float:
    """Measure how early the map finds each defect, small and large ones with the same weight.

    Per connected part of the truth, the curve of its found share against the false-positive rate in the background;
    the area under it up to `limit`, divided by `limit`; averaged over the parts. Ranks have no ties, so the curve is a
    staircase and the area a sum: a pixel found after a background share f has been taken adds max(0, 1 - f / limit).

    Returns:
        0 to 1; a map without information gets limit / 2.
    """
    _require_alike(rank, truth)
    order = np.argsort(rank.ravel())
    background_ahead = np.empty(rank.size)
    background_ahead[order] = np.cumsum(~truth.ravel()[order])  # exclusive on the truth's own pixels
    false_positives = background_ahead / max(1, int(np.count_nonzero(~truth)))
    worth = np.maximum(0, 1 - false_positives / limit)
    count, parts = cv2.connectedComponents(truth.astype(np.uint8), connectivity=8)
    sums = np.bincount(parts.ravel(), weights=worth, minlength=count)[1:]
    return float((sums / np.bincount(parts.ravel(), minlength=count)[1:]).mean())


def share_of(pixels: int, share: float) -> int:
    """Count the pixels of a share, rounded down: `share_of(40, 0.15)` is 6."""
    return int(pixels * share + 1e-9)  # 0.29 * 100 is 28.999999999999996


def _require_alike(answer: NDArray[np.generic], truth: NDArray[np.bool_]) -> None:
    if answer.shape != truth.shape or not truth.any():
        raise ValueError(
            f"a map of shape {answer.shape} came with a truth of shape {truth.shape} and {np.count_nonzero(truth)} "
            "pixels; expected the same shape and a defect: leave out pictures without one"
        )


def keep_top(
    picture: NDArray[np.float32], rank: NDArray[np.integer], *, fill: NDArray[np.float32], share: float = KEPT_SHARE
) -> NDArray[np.float32]:
    """Hide all but the top `share` of the pixels, for Drop and Increase."""
    return np.where(top_k(rank, share_of(rank.size, share))[..., np.newaxis], picture, fill)


def exchanged(
    before: NDArray[np.float32], after: NDArray[np.float32], rank: NDArray[np.integer], *, steps: int = 50
) -> Iterator[NDArray[np.float32]]:
    """Yield steps + 1 pictures, from `before` to `after`, with more and more of the top pixels exchanged.

    From the picture to the fill this is deletion, from the fill to the picture it is insertion.

    Source: Petsiuk et al., "RISE" (BMVC 2018), section 4.1.
    """
    for step in range(steps + 1):
        yield np.where(top_k(rank, step * rank.size // steps)[..., np.newaxis], after, before)


def road(
    picture: NDArray[np.float32], rank: NDArray[np.integer], *, seed: int, shares: Sequence[float] = ROAD_SHARES
) -> Iterator[NDArray[np.float32]]:
    """Yield pictures with pixels removed and closed by imputation (ROAD), `seed` being that of the noise.

    First with the most relevant pixels removed (MoRF) for each share, then with the least relevant (LeRF).
    """
    rng = np.random.default_rng(seed)
    counts = [share_of(rank.size, share) for share in shares]
    for count in counts:
        yield imputed(picture, rank < count, rng)
    for count in counts:
        yield imputed(picture, rank >= rank.size - count, rng)


_DRAWS_AT_ONCE = 1 << 21  # of a bootstrap, 16 MB of indices

_NEIGHBOURS = tuple(
    (row, column, 1 / 6 if 0 in (row, column) else 1 / 12)
    for row in (-1, 0, 1)
    for column in (-1, 0, 1)
    if (row, column) != (0, 0)
)


def imputed(picture: NDArray[np.float32], removed: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Fill removed pixels (H, W) in from their surroundings, so that the outline of the hole carries no information.

    Each removed pixel is the weighted mean of its neighbors inside the picture, 1/6 across an edge and 1/12 across a
    corner, which is one sparse linear system; a little noise is added to it.

    Source: Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods" (ICML 2022).
    """
    from scipy.sparse import csc_array  # scipy takes 30 MB, and of all metrics only this one needs it
    from scipy.sparse.linalg import splu

    if removed.all():
        raise ValueError(f"all {removed.size} pixels were removed; expected at least one to impute the others from")
    rows, columns = np.nonzero(removed)
    unknowns = rows.size
    number = np.full(removed.shape, -1)
    number[rows, columns] = np.arange(unknowns)
    total, known = np.zeros(unknowns), np.zeros((unknowns, picture.shape[2]))
    entries: list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]] = []
    for down, right, weight in _NEIGHBOURS:
        row, column = rows + down, columns + right
        inside = (row >= 0) & (row < removed.shape[0]) & (column >= 0) & (column < removed.shape[1])
        equation, row, column = np.flatnonzero(inside), row[inside], column[inside]
        total[equation] += weight
        is_unknown = removed[row, column]
        known[equation[~is_unknown]] += weight * picture[row[~is_unknown], column[~is_unknown]]
        unknown = equation[is_unknown], number[row[is_unknown], column[is_unknown]]
        entries.append((*unknown, np.full(unknown[0].size, -weight)))
    entries.append((np.arange(unknowns), np.arange(unknowns), total))
    equations, variables, weights = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    system = csc_array((weights, (equations, variables)), shape=(unknowns, unknowns))
    closed = picture.copy()
    if unknowns:
        # Symmetric and positive definite: it needs no pivoting, and with pivoting it takes minutes where 80 % are gone.
        factors = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        closed[rows, columns] = factors.solve(known) + rng.normal(0, ROAD_NOISE_PX, known.shape)
    return closed


def shown_through(
    picture: NDArray[np.float32], fused: NDArray[np.floating], *, fill: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Blend the picture and the fill by the map, stretched to [0, 1]: the masked picture of ADCC."""
    share = stretched(fused)[..., np.newaxis]
    return np.asarray(share * picture + (1 - share) * fill, dtype=np.float32)


def drop_percent(full: ArrayLike, kept: ArrayLike) -> NDArray[np.float64]:
    """Return how much of the score is lost when only the top pixels are shown, 0 to 100; lower is better.

    Args:
        full: (...,) probability of the class on the whole picture.
        kept: (...,) the same on `keep_top`.
    """
    before, after = np.asarray(full, dtype=np.float64), np.asarray(kept, dtype=np.float64)
    lost = np.maximum(0, before - after)
    return np.asarray(np.divide(100 * lost, before, out=np.zeros_like(lost), where=before > 0))


def increase_percent(full: ArrayLike, kept: ArrayLike) -> NDArray[np.float64]:
    """Return 100 where showing only the top pixels raises the score (as `drop_percent`), else 0; higher is better."""
    return np.where(np.asarray(kept) > np.asarray(full), 100.0, 0.0)


def area_under(scores: ArrayLike) -> float:
    """Return the area under an insertion or deletion curve of scores at even steps from 0 to 1.

    >>> area_under([1, 0.3, 0])
    0.4
    """
    return float(np.trapezoid(np.asarray(scores, dtype=np.float64), dx=1 / (np.size(scores) - 1)))


def road_combined(scores: ArrayLike) -> float:
    """Return the mean over shares of (LeRF - MoRF) / 2, of the scores of `road`'s pictures; 0 is chance."""
    morf, lerf = np.split(np.asarray(scores, dtype=np.float64), 2)
    return float(np.mean(lerf - morf) / 2)


def coherency(fused: NDArray[np.floating], again: NDArray[np.floating]) -> float:
    """Correlate a map with that of the picture seen through it (`shown_through`), moved to [0, 1]; 0 if constant."""
    if np.ptp(fused) == 0 or np.ptp(again) == 0:
        return 0.0
    return float((np.corrcoef(fused.ravel(), again.ravel())[0, 1] + 1) / 2)


def complexity(fused: NDArray[np.floating]) -> float:
    """Return the mean of a map stretched to [0, 1]; lower is better."""
    return float(stretched(fused).mean())


def adcc(*, coherency: float, complexity: float, drop: float) -> float:
    """Return ADCC, the harmonic mean of coherency, 1 - complexity and 1 - drop (a share); higher is better."""
    parts = (coherency, 1 - complexity, 1 - drop)
    return 3 / sum(1 / part for part in parts) if min(parts) > 0 else 0.0


def stretched(fused: NDArray[np.floating]) -> NDArray[np.float64]:
    """Move and scale a map (H, W) to [0, 1]; a constant one becomes 0."""
    above = fused.astype(np.float64) - fused.min()
    return np.asarray(above / (above.max() or 1.0))


@dataclass(frozen=True, slots=True)
class Average:
    """A mean over `count` pictures with the interval that resampling the pictures gives."""

    mean: float
    low: float
    high: float
    count: int


def average(values: ArrayLike, *, seed: int, confidence: float = 0.95, resamples: int = 2000) -> Average:
    """Average a metric over pictures, with a percentile bootstrap interval.

    To compare two methods on the same pictures, average their differences: they differ where the interval leaves out 0.

    Args:
        values: (N,) one number per picture, at least one and none of them NaN.
        seed: Of the resampling.
        confidence: Of the interval, above 0 and below 1.
        resamples: How often N pictures are drawn from the N, with replacement.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0 or np.isnan(numbers).any():
        raise ValueError(f"found {numbers.size} values to average, {np.isnan(numbers).sum()} of them NaN")
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // numbers.size)
    rounds = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    means = np.concatenate([numbers[rng.integers(0, numbers.size, (n, numbers.size))].mean(axis=1) for n in rounds])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Average(float(numbers.mean()), float(low), float(high), numbers.size)


def random_map(size: tuple[int, int], seed: int) -> NDArray[np.float32]:
    """Draw a map (H, W) of independent uniform values in [0, 1), as a baseline of each metric."""
    return np.random.default_rng(seed).random(size, dtype=np.float32)


def center_map(size: tuple[int, int]) -> NDArray[np.float32]:
    """Draw a Gaussian in the center, its sigmas a quarter of (H, W): a baseline, as cameras are aimed at parts."""
    rows, columns = (np.exp(-8 * ((np.arange(side) + 0.5) / side - 0.5) ** 2) for side in size)
    return np.outer(rows, columns).astype(np.float32)
