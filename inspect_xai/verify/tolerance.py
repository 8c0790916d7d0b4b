"""Tolerances within which two runs of one model on one picture count as the same, each with its reason.

No tolerance is tighter than what is stored (`storage/map_codec.py`: block sums and fused maps on 4,096 steps).
Above that they leave room for convolutions that add up in another order. They leave none for a device that rounds to
10 bits in between (TF32): such rounding of the weights alone, on three magnetic tiles and an EfficientNet-Lite0, moved
scores by 4e-4 to 1.4e-2 and 3 to 8 % of a map's pixels; that is another map, and reported as a difference. On one CPU
other numbers of threads (1, 2) and masks per run (1, 3, 8) changed no bit of the same maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

SCORE_TOLERANCE: Final = 1e-4
"""Of a probability. Stored scores are exact, so this allows for the device alone."""

SUMS_TOLERANCE: Final = 0.01
"""Of a block's sums, stretched to [0, 1]: 80 times the 1.2e-4 that a stored sum may be off."""

MAP_TOLERANCE: Final = 0.01
"""Of the fused map's whole range, the number of blocks: 80 times the 1.2e-4 that a stored map may be off."""

STRAY_SHARE: Final = 0.005
"""Share of pixels that may be further off: on the edge of an Otsu mask rounding sends a pixel to either side. Weights
changed by one millionth, about what another order of adding up does, did so to 0.9 in 1,000 pixels at the worst."""

OVERLAP_TOLERANCE: Final = 0.95
"""Of the pixels with the most evidence, the share that must be the same ones."""

_TOP_SHARE: Final = 0.05  # of the picture: about what a defect and its surroundings take


@dataclass(frozen=True, slots=True)
class MapAgreement:
    """Agreement of two fused maps.

    Attributes:
        off: Largest difference at a pixel, as a share of the map's range (the number of blocks).
        stray_share: Share of the pixels off by more than `MAP_TOLERANCE`.
        overlap: Share of the pixels with the most evidence in one map that are among those of the other.
    """

    off: float
    stray_share: float
    overlap: float

    @property
    def holds(self) -> bool:
        """Whether the maps count as the same."""
        return self.stray_share <= STRAY_SHARE and self.overlap >= OVERLAP_TOLERANCE


def compare_maps(expected: NDArray[np.float32], found: NDArray[np.float32], *, blocks: int) -> MapAgreement:
    """Compare two fused maps (H, W) made of `blocks` block maps.

    >>> compare_maps(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32), blocks=5)
    MapAgreement(off=0.0, stray_share=0.0, overlap=1.0)
    """
    off = np.abs(expected.astype(np.float64) - found) / max(1, blocks)
    return MapAgreement(
        float(off.max()), float((off > MAP_TOLERANCE).mean()), _overlap(expected, found, MAP_TOLERANCE * blocks)
    )


def _overlap(expected: NDArray[np.float32], found: NDArray[np.float32], step: float) -> float:
    """Return the share of the found map's top pixels among those of the expected map, ties within `step` included."""
    evidence = min(int(np.count_nonzero(expected > 0)), int(np.count_nonzero(found > 0)))
    count = min(evidence, max(1, int(_TOP_SHARE * expected.size)))
    if count == 0:
        return float(not expected.any() and not found.any())
    top = np.argsort(-found.ravel(), kind="stable")[:count]
    least = np.partition(expected.ravel(), -count)[-count]
    return float((expected.ravel()[top] >= least - step).mean())


def scores_off(expected: Sequence[float], found: Sequence[float]) -> float:
    """Return the largest difference of two sets of probabilities; infinite where they cannot be compared.

    >>> scores_off((0.25, 0.75), (0.5, 0.5)), scores_off((1.0,), (0.5, 0.5))
    (0.25, inf)
    """
    if len(expected) != len(found):
        return float("inf")
    off = np.abs(np.asarray(expected, np.float64) - np.asarray(found, np.float64))
    return float(off.max()) if np.isfinite(off).all() else float("inf")


def sums_off(expected: NDArray[np.float32] | None, found: NDArray[np.float32] | None) -> float:
    """Return the largest difference of two block sums (h, w), each stretched to [0, 1] like block maps; None: dropped.

    Infinite where one was dropped and the other not, or their shapes differ.
    """
    if expected is None or found is None:
        return 0.0 if expected is found else float("inf")
    if expected.shape != found.shape:
        return float("inf")
    return float(np.abs(_stretched(expected) - _stretched(found)).max())


def _stretched(sums: NDArray[np.float32]) -> NDArray[np.float64]:
    """Stretch the sums to [0, 1]: a constant added to all of them, which one faint mask can change much, cancels."""
    values = sums.astype(np.float64) - float(sums.min())
    return values / (float(values.max()) or 1.0)
