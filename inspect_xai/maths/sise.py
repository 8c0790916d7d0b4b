"""SISE and Ada-SISE on arrays, in the papers' order: select channels, mask, weigh, normalize, fuse, rank.

Shapes: one block end has C feature maps of (h, w); n of them are kept; the network's window is (H, W).
Sources: Sattarzadeh et al., "Explaining Convolutional Neural Networks through Attribution-Based Input Sampling and
Block-Wise Feature Aggregation" (AAAI 2021), equations 6 to 12 and figure 5; Sudhakar et al., "Ada-SISE" (ICASSP 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from inspect_xai.errors import ExplanationError, SettingsError
from inspect_xai.records import Baseline, CellAxis, CellGrid, SelectionRule

OTSU_BINS = 256
"""Fixed bins keep the threshold from moving with the range of the values."""

NO_CONTRAST = 1e-6
"""A map whose range is at or below this share of max(1, its largest magnitude) is constant."""

FLAT = 1e-6
"""The same for a weighted sum, whose size depends on the picture's: relative to its largest magnitude only."""

FEWEST_FOR_OTSU = 8
"""Below this many positive alphas Ada-SISE keeps them all: they are too few for a histogram."""

BLUR_SHARE = 1 / 16
"""Sigma of the blur baseline, as a share of the shorter side: 14 px at 224, which blurs a whole cell of the deepest
block (32 px). With a smaller one stains remain visible, and then seem unimportant."""

_CHUNK_VALUES = 1 << 22  # corners of maps at a time, at half the window's size about as many as its pixels: 32 MB
_BLOCK_PX = 1024  # rows and columns of a large resized map that are in float64 at a time: 8 MB
_CHUNK_PIXELS = 1 << 20  # of a large picture that are numbered at a time: 8 MB


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The channels of one block end that become masks.

    Attributes:
        kept: (n,) channel numbers, ascending.
        beta: The largest alpha.
        threshold: A channel with alpha at or below this was not kept.
        positive: How many channels have a positive alpha.
    """

    kept: NDArray[np.intp]
    beta: float
    threshold: float
    positive: int


@dataclass(frozen=True, slots=True, eq=False)
class Fusion:
    """The explanation map of a window, and the maps that break its ties.

    Attributes:
        fused: (H, W) the map S, in [0, number of block maps].
        before_last: (H, W) the running sum before the deepest map's mask cut it.
        deepest: (H, W) the deepest block map.
        otsu: The threshold of each block map's mask; None for the first and for constant maps, which have none.
    """

    fused: NDArray[np.float32]
    before_last: NDArray[np.float32]
    deepest: NDArray[np.float32]
    otsu: tuple[float | None, ...]


def otsu(values: ArrayLike) -> float:
    """Find the threshold that best separates high from low values.

    Bins are closed on the right, so that `values > otsu(values)` is exactly the upper class of the split.

    Args:
        values: Any shape, in [0, 1], at least one.

    Returns:
        Upper edge of the lower class, a multiple of 1/256: the first split with the largest between-class variance.
        Values that all share a bin get that bin's upper edge, so that none lies above.

    Raises:
        ExplanationError: There are no values, or some are not in [0, 1].

    Source: Otsu, "A Threshold Selection Method from Gray-Level Histograms" (1979), equation 18.
    """
    levels = np.ravel(values)
    if levels.dtype != np.float32:  # times a power of two it is as exact
        levels = levels.astype(np.float64)
    if levels.size == 0 or not (levels.min() >= 0 and levels.max() <= 1):
        spread = f"from {levels.min()} to {levels.max()}" if levels.size else "none"
        raise ExplanationError(f"Otsu's threshold of values {spread}", expected="numbers from 0 to 1")
    counts = np.zeros(OTSU_BINS, np.int64)
    for start in range(0, levels.size, _CHUNK_PIXELS):
        bins = np.maximum(np.ceil(levels[start : start + _CHUNK_PIXELS] * OTSU_BINS).astype(np.int64) - 1, 0)
        counts += np.bincount(bins, minlength=OTSU_BINS)
    # Whole numbers until the last step: splits inside a gap of the histogram must tie exactly, so that the first wins.
    below = np.cumsum(counts)[:-1]
    moment_below = np.cumsum(counts * np.arange(OTSU_BINS))
    moment, moment_below = moment_below[-1], moment_below[:-1]
    lever = (levels.size * moment_below - below * moment).astype(np.float64)
    pairs = (below * (levels.size - below)).astype(np.float64)
    variance = np.divide(lever**2, pairs, out=np.zeros_like(lever), where=pairs > 0)
    split = int(variance.argmax()) if variance.max() > 0 else int(counts.argmax())
    return (split + 1) / OTSU_BINS


def select(alphas: ArrayLike, *, rule: SelectionRule, mu: float) -> Selection:
    """Choose the channels with evidence for the class.

    MU keeps alpha > mu * beta with beta the largest alpha. ADA puts Otsu's threshold of the positive alphas in mu's
    place, and keeps every positive one where they are too few or too equal for a threshold.

    Args:
        alphas: (C,) gradient of the margin summed over space, one per channel.
        rule: MU or ADA.
        mu: In [0, 1); ADA does not use it.

    Raises:
        SettingsError: mu is outside [0, 1).
        ExplanationError: There are no alphas, some are not finite, or all are exactly 0.

    Source: SISE equations 6 to 8; Ada-SISE abstract and method notes 2.5.
    """
    if not 0 <= mu < 1:
        raise SettingsError(f"mu is {mu}", expected="a number from 0 up to, but not, 1", remedy="use 0.3")
    alpha = np.asarray(alphas, dtype=np.float64)
    if alpha.ndim != 1 or alpha.size == 0:
        raise ExplanationError(f"alphas have shape {alpha.shape}", expected="one number per channel")
    _require_finite(alpha, what="the gradient")
    if not alpha.any():
        raise ExplanationError(
            f"the gradient is exactly 0 in all {alpha.size} channels, so the margin does not depend on this block",
            remedy="name other block ends in the card, or check that the network is not dead on this picture",
        )
    beta = float(alpha.max())
    positive = alpha[alpha > 0]
    if beta <= 0:
        return Selection(np.empty(0, dtype=np.intp), beta, 0.0, 0)
    threshold = (mu if rule is SelectionRule.MU else _ada_mu(positive / beta)) * beta
    kept = np.flatnonzero((alpha > 0) & (alpha > threshold))
    return Selection(kept, beta, threshold, positive.size)


def _ada_mu(shares: NDArray[np.float64]) -> float:
    """Return Otsu's threshold of the positive alphas' shares of beta, in (0, 1]; 0 keeps them all."""
    if shares.size < FEWEST_FOR_OTSU or np.ptp(shares) < NO_CONTRAST:
        return 0.0
    tau = otsu(shares)
    return tau if bool((shares > tau).any()) else 0.0


def interpolation(size_out: int, size_in: int, axis: CellAxis | None = None) -> NDArray[np.float64]:
    """Write bilinear resizing along one axis as a matrix: U = Uh @ A @ Uw.T.

    The cells reach from edge to edge, or lie where `axis` says; beyond the outer ones their value continues. No
    antialiasing, as in the scoring graph.

    Args:
        size_out: Pixels.
        size_in: Cells.
        axis: Where the cells lie.

    Returns:
        (size_out, size_in), each row sums to 1.

    >>> interpolation(4, 2).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    >>> interpolation(5, 2, CellAxis(first_px=1, step_px=2)).tolist()
    [[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.0, 1.0]]
    """
    return _between_cells(_in_cells(size_out, size_in, axis), size_in)


def _between_cells(center: NDArray[np.float64], size_in: int) -> NDArray[np.float64]:
    """Return each cell's share (n, size_in) of the values at positions (n,)."""
    left = np.floor(center).astype(np.intp)
    right = np.minimum(left + 1, size_in - 1)
    share = center - left
    matrix = np.zeros((len(center), size_in))
    row = np.arange(len(center))
    matrix[row, left] = 1 - share
    matrix[row, right] += share  # left and right are the same cell at the far edge
    return matrix


def _in_cells(size_out: int, size_in: int, axis: CellAxis | None) -> NDArray[np.float64]:
    """Return the positions (size_out,) of the pixels, counted in cells."""
    pixels = np.arange(size_out)
    if axis is None:
        return np.clip((pixels + 0.5) * size_in / size_out - 0.5, 0, size_in - 1)
    return np.clip((pixels - axis.first_px) / axis.step_px, 0, size_in - 1)


def upsample(maps: NDArray[np.floating], size: tuple[int, int], *, grid: CellGrid | None = None) -> NDArray[np.float32]:
    """Resize maps bilinearly.

    Args:
        maps: (..., h, w).
        size: (H, W) wanted.
        grid: Where the cells lie; None: from edge to edge.

    Returns:
        (..., H, W).
    """
    return _upsample(maps, size, grid).astype(np.float32)


def _upsample(maps: NDArray[np.floating], size: tuple[int, int], grid: CellGrid | None) -> NDArray[np.float64]:
    rows, columns = (interpolation(*along) for along in _along(size, maps.shape[-2:], grid))
    upsampled: NDArray[np.float64] = rows @ maps.astype(np.float64) @ columns.T
    return upsampled


def upsample_into(
    part: NDArray[np.float32], maps: NDArray[np.float32], size: tuple[int, int], *, first: tuple[int, int]
) -> None:
    """Fill in a rectangle of a resized map, `upsample(maps, size)`, block by block: the whole may be far too large.

    Args:
        part: (rows, columns), filled in.
        maps: (h, w); its cells reach from edge to edge.
        size: (H, W) of the whole.
        first: Row and column of the whole at which the rectangle begins.
    """
    (rows, columns), cells = part.shape, maps.astype(np.float64)
    down, across = (_in_cells(out, given, None) for out, given in zip(size, maps.shape, strict=True))
    for top in range(0, rows, _BLOCK_PX):
        bottom = min(top + _BLOCK_PX, rows)
        between_rows = _between_cells(down[first[0] + top : first[0] + bottom], maps.shape[0]) @ cells
        for left in range(0, columns, _BLOCK_PX):
            right = min(left + _BLOCK_PX, columns)
            between_columns = _between_cells(across[first[1] + left : first[1] + right], maps.shape[1])
            part[top:bottom, left:right] = between_rows @ between_columns.T


def _along(
    size: tuple[int, int], cells: Sequence[int], grid: CellGrid | None
) -> tuple[tuple[int, int, CellAxis | None], tuple[int, int, CellAxis | None]]:
    """Return the arguments of `interpolation` for the rows and for the columns."""
    rows, columns = (grid.rows, grid.columns) if grid else (None, None)
    return (size[0], cells[0], rows), (size[1], cells[1], columns)


def extremes(
    features: NDArray[np.floating], size: tuple[int, int], *, grid: CellGrid | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find the smallest and the largest value of each upsampled map without upsampling it.

    Between four neighboring cells an upsampled map is bilinear, so it is largest and smallest at a corner of the
    samples that fall there: the first and the last sample between two cells, along each axis, are enough.

    Args:
        features: (n, h, w).
        size: (H, W) of the network's window.
        grid: Where the cells lie; None: from edge to edge.

    Returns:
        (n,) and (n,).

    Raises:
        ExplanationError: A feature map is not finite.
    """
    _require_finite(features, what="a feature map")
    rows, columns = (_corner_samples(*along) for along in _along(size, features.shape[-2:], grid))
    low, high = np.empty(len(features)), np.empty(len(features))
    step = max(1, _CHUNK_VALUES // (len(rows) * len(columns)))
    for start in range(0, len(features), step):
        corners = rows @ features[start : start + step].astype(np.float64) @ columns.T
        low[start : start + step], high[start : start + step] = corners.min(axis=(1, 2)), corners.max(axis=(1, 2))
    return low, high


@lru_cache(maxsize=64)
def _corner_samples(size_out: int, size_in: int, axis: CellAxis | None) -> NDArray[np.float64]:
    """Return the rows of `interpolation` that are first or last between two input cells."""
    ends = np.flatnonzero(np.diff(np.floor(_in_cells(size_out, size_in, axis))))
    return np.asarray(interpolation(size_out, size_in, axis)[np.unique([0, *ends, *(ends + 1), size_out - 1])])


@lru_cache(maxsize=64)
def _shares(size_out: int, size_in: int, axis: CellAxis | None) -> NDArray[np.float64]:
    """Return each input cell's share of the upsampled map's sum."""
    return np.asarray(interpolation(size_out, size_in, axis).sum(axis=0))


def with_contrast(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which feature maps (n,) make a mask, by their `extremes`: those that are not constant.

    Source: method notes, section 3.
    """
    return np.asarray(high - low > NO_CONTRAST * np.maximum(1, np.maximum(np.abs(low), np.abs(high))), dtype=np.bool_)


def attribution_masks(
    features: NDArray[np.floating], size: tuple[int, int], *, grid: CellGrid | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Turn feature maps into masks: first upsample, then stretch each to [0, 1].

    A reference for the scoring graph; it holds every mask at once, so it is for tests, not for a line.

    Args:
        features: (n, h, w).
        size: (H, W) of the network's window.
        grid: Where the cells lie; None: from edge to edge.

    Returns:
        Masks (n, H, W); smallest value (n,) and range (n,) of the upsampled maps. A constant map's mask is all zero.

    Source: SISE, attribution masks; method notes, section 3.
    """
    _require_finite(features, what="a feature map")
    upsampled = _upsample(features, size, grid)
    minimum = upsampled.min(axis=(1, 2), keepdims=True)
    span = upsampled.max(axis=(1, 2), keepdims=True) - minimum
    masks = np.divide(upsampled - minimum, span, out=np.zeros_like(upsampled), where=span > 0)
    return masks.astype(np.float32), minimum[:, 0, 0].astype(np.float32), span[:, 0, 0].astype(np.float32)


def weighted_sums(
    features: NDArray[np.floating],
    scores: ArrayLike,
    *,
    size: tuple[int, int],
    low: NDArray[np.float64] | None = None,
    grid: CellGrid | None = None,
) -> NDArray[np.float32]:
    """Weigh each kept feature map by its mask's score over its mask's mass, and average.

    Upsampling is linear, so the paper's V (its masks at picture size) is `upsample(weighted_sums(...), size)`:

        V = mean_k s_k m_k / sum(m_k)    with  m_k = (U_k - min U_k) / range U_k
          = mean_k s_k (U_k - min U_k) / (sum(U_k) - HW min U_k)

    The range cancels; the minimum is taken off at block resolution, which keeps V free of a large constant.

    Args:
        features: (n, h, w) kept feature maps with contrast.
        scores: (n,) probability of the class for each masked picture.
        size: (H, W) of the network's window.
        low: (n,) smallest value of each upsampled map, where known from `extremes`.
        grid: Where the cells lie; None: from edge to edge.

    Returns:
        (h, w); all zero where no mask was scored.

    Raises:
        ExplanationError: Something is not finite.

    Source: SISE equations 9 to 12; method notes, section 4.1.
    """
    score = np.asarray(scores, dtype=np.float64)
    n, h, w = features.shape
    if score.shape != (n,):
        raise ValueError(f"{n} feature maps came with {score.shape} scores; expected ({n},)")
    _require_finite(score, what="a mask's score")
    if n == 0:
        return np.zeros((h, w), dtype=np.float32)
    least = extremes(features, size, grid=grid)[0] if low is None else low
    rows, columns = (_shares(*along) for along in _along(size, (h, w), grid))
    mass = np.einsum("i,kij,j->k", rows, features, columns) - size[0] * size[1] * least
    weights = np.divide(score, n * mass, out=np.zeros(n), where=mass > 0)
    return np.asarray(np.einsum("k,kij->ij", weights, features) - weights @ least, dtype=np.float32)


def normalized(
    sums: NDArray[np.floating], size: tuple[int, int], *, grid: CellGrid | None = None
) -> NDArray[np.float32] | None:
    """Turn a block's weighted sum into its block map: upsample, then stretch to [0, 1].

    Args:
        sums: (h, w), from `weighted_sums`.
        size: (H, W) of the network's window.
        grid: Where the cells lie; None: from edge to edge.

    Returns:
        (H, W), or None where the sum is flat (one constant mask, or nothing scored).

    Raises:
        ExplanationError: The sum is not finite.

    Source: SISE figure 5; method notes, section 4.1.
    """
    _require_finite(sums, what="the weighted sum of the masks")
    upsampled = _upsample(sums, size, grid)
    low, high = upsampled.min(), upsampled.max()
    if high - low <= FLAT * max(abs(low), abs(high)):
        return None
    upsampled -= low
    upsampled /= high - low
    return upsampled.astype(np.float32)


def fuse(block_maps: Sequence[NDArray[np.float32]]) -> Fusion:
    """Add block maps from shallow to deep, each deeper one setting to 0 the pixels outside its Otsu mask.

    Args:
        block_maps: (H, W) each in [0, 1], shallow to deep. A constant one is passed over.

    Raises:
        ExplanationError: There is no map, or one has values outside [0, 1].

    Source: SISE figure 5; method notes, section 5.1.
    """
    if not block_maps:
        raise ExplanationError("there is no block map to fuse", remedy="report NO_EVIDENCE with a map of zeros instead")
    thresholds: list[float | None] = []
    fused = before_last = deepest = np.zeros(block_maps[0].shape, dtype=np.float32)
    started = False
    for block_map in block_maps:
        threshold = otsu(block_map)
        contributes = bool(np.ptp(block_map) > 0)
        thresholds.append(threshold if contributes and started else None)
        if not contributes:
            continue
        deepest = block_map.astype(np.float32)
        before_last = fused + deepest
        fused = before_last * (block_map > threshold) if started else before_last
        started = True
    return Fusion(fused, before_last, deepest, tuple(thresholds))


def rank_map(
    fused: NDArray[np.floating], before_last: NDArray[np.floating], deepest: NDArray[np.floating]
) -> NDArray[np.int32]:
    """Order all pixels, so that "the top k" is exactly k pixels even where most of the map is 0.

    Args:
        fused: (H, W) explanation map: the first key, largest first.
        before_last: (H, W) second key.
        deepest: (H, W) third key; then the pixel's place in reading order.

    Returns:
        (H, W), a permutation of 0 .. HW - 1; 0 is the first pixel to take.

    Raises:
        ExplanationError: A map is not finite.

    Source: method notes, section 5.3.
    """
    for key in (fused, before_last, deepest):
        _require_finite(key, what="an explanation map")
    blank = np.ravel(fused == 0)
    for key in (before_last, deepest):
        blank &= np.ravel(key == 0)
    # Outside the explained windows all is 0: these pixels keep their order without being sorted.
    places = np.flatnonzero(~blank)
    keys = [-key.ravel()[places] for key in (fused, before_last, deepest)]
    order = places[lexsort(*keys)]
    ahead = int(_before_zero(keys).sum())
    rank = np.empty(fused.size, dtype=np.int32)
    rank[order[:ahead]] = np.arange(ahead, dtype=np.int32)
    number = ahead
    for start in range(0, fused.size, _CHUNK_PIXELS):
        nothing = np.flatnonzero(blank[start : start + _CHUNK_PIXELS])
        rank[start + nothing] = np.arange(number, number + len(nothing), dtype=np.int32)
        number += len(nothing)
    rank[order[ahead:]] = np.arange(number, fused.size, dtype=np.int32)
    return rank.reshape(fused.shape)


def lexsort(*keys: NDArray[Any]) -> NDArray[np.intp]:
    """Sort by several keys, the first before the second; ties stay in their order.

    numpy's lexsort sorts by every key in turn, stably, which takes ten times as long as sorting once.

    Args:
        keys: (n,) each: whole numbers of 32 bits, or floats without NaN, which are compared as float32.

    Returns:
        (n,) indices, smallest first.

    >>> lexsort(np.array([2, 0, 2, 0]), np.array([1, 7, 0, 7])).tolist()
    [1, 3, 2, 0]
    """
    first = _ordinal(keys[0]) << np.uint64(32)
    if len(keys) > 1:
        first |= _ordinal(keys[1])
    order = np.argsort(first)
    ordered = first[order]
    same = ordered[1:] == ordered[:-1]
    tied = np.flatnonzero(np.r_[False, same] | np.r_[same, False])
    among = order[tied]
    order[tied] = among[np.lexsort([among, *(key[among] for key in reversed(keys[2:])), first[among]])]
    return order


def _ordinal(key: NDArray[Any]) -> NDArray[np.uint64]:
    """Return whole numbers below 2^32 in the order of a key's values."""
    if key.dtype.kind in "iu":
        return (key.astype(np.int64) + (1 << 31)).astype(np.uint64)
    bits = (key.astype(np.float32) + 0).view(np.uint32)  # -0 + 0 is 0
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)


def _before_zero(keys: Sequence[NDArray[np.floating]]) -> NDArray[np.bool_]:
    """Tell which tuples of keys come before one of zeros: those whose first key that is not 0 is below it."""
    before = np.zeros(len(keys[0]), dtype=np.bool_)
    for key in reversed(keys):
        before = np.where(key == 0, before, key < 0)
    return before


def top_k(rank: NDArray[np.integer], k: int) -> NDArray[np.bool_]:
    """Mark exactly the k first pixels, 0 to HW, of a rank map (H, W)."""
    if not 0 <= k <= rank.size:
        raise ValueError(f"{k} pixels of a map with {rank.size}; expected 0 to {rank.size}")
    return np.asarray(rank < k)


def k_smallest(values: NDArray[np.generic], count: int) -> NDArray[np.bool_]:
    """Mark the `count` smallest (h, w), ties in reading order: the first by `order_of`, without sorting the rest."""
    if count == 0:
        return np.zeros(values.shape, np.bool_)
    last = np.partition(values, count - 1, axis=None)[count - 1]
    first = np.asarray(values < last, np.bool_)
    missing = count - np.count_nonzero(first)
    first.ravel()[np.flatnonzero(values == last)[:missing]] = True
    return first


def order_of(values: NDArray[np.generic]) -> NDArray[np.int32]:
    """Make a rank map (h, w) of anything that sorts, smallest first; of a cut-out rank map, which has gaps and ties."""
    order = lexsort(values.ravel())
    rank = np.empty(values.size, dtype=np.int32)
    rank[order] = np.arange(values.size, dtype=np.int32)
    return rank.reshape(values.shape)


def baseline_picture(picture: NDArray[np.float32], kind: Baseline, *, mean: ArrayLike) -> NDArray[np.float32]:
    """Make the picture that is shown where a mask hides the real one.

    Args:
        picture: (H, W, C) in pixel units, channels in the network's order.
        kind: BLACK is 0; MEAN is the card's mean color; BLUR is the picture under a Gaussian whose sigma is 1/16 of
            its shorter side, reflected at the borders.
        mean: (C,) or (1,), the card's mean in pixel units: what the network's input tensor calls 0.

    Returns:
        (H, W, C) in pixel units.

    Source: method notes, sections 4.2, 9.7 to 9.9.
    """
    match kind:
        case Baseline.BLACK:
            return np.zeros_like(picture)
        case Baseline.MEAN:
            return np.full_like(picture, np.asarray(mean, dtype=np.float32))
        case Baseline.BLUR:
            sigma = BLUR_SHARE * min(picture.shape[:2])
            blurred = cv2.GaussianBlur(picture, (0, 0), sigmaX=sigma, borderType=cv2.BORDER_REFLECT_101)
            return np.asarray(blurred, dtype=np.float32).reshape(picture.shape)  # cv2 drops a single channel's axis


def _require_finite(numbers: NDArray[np.floating], *, what: str) -> None:
    """Refuse NaN and infinity: a map made of them could pass for an explanation."""
    finite = np.isfinite(numbers)
    if not finite.all():
        raise ExplanationError(
            f"{what} holds {numbers.size - np.count_nonzero(finite)} of {numbers.size} values that are NaN or infinite",
            remedy="run the picture through the network outside this tool; its weights or the picture are at fault",
        )
