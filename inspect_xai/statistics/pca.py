"""Numbers that go together: where parts lie in all of them at once, and along which directions they hardly differ.

A lamp or an alloy moves brightness and contrast of a part together, so each by itself scatters widely; what a moved
fixture changes is how they go together, and in that direction good parts hardly differ. Tested one by one along such
directions, a shift of many numbers is seen at least as well as by a test of all at once.

Source: Kuncheva and Faithfull, "PCA feature extraction for change detection in multidimensional unlabeled data"
(2014); Rabanser, Guennemann and Lipton, "Failing loudly" (2019).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LEAST_VARIANCE = 1e-6
"""Of the largest one: a direction in which parts differ less is rounding, and would turn it into alarms."""


@dataclass(frozen=True, slots=True, eq=False)
class PcaModel:
    """Where parts usually lie.

    Attributes:
        center: (d,) mean.
        axes: (d, k) directions in which they differ, widest first, as long as one over their spread in them.
    """

    center: NDArray[np.float64]
    axes: NDArray[np.float64]

    def components(self, parts: NDArray[np.floating]) -> NDArray[np.float64]:
        """Tell parts (n, d) by k numbers that do not go together, each of mean 0 and variance 1 in the cloud."""
        return np.asarray((parts - self.center) @ self.axes, dtype=np.float64)

    def distances(self, parts: NDArray[np.floating]) -> NDArray[np.float64]:
        """Say how far parts (n, d) lie out (n,): root mean square of the components, about 1 for a usual part.

        Source: Mahalanobis (1936), over the root of the number of directions.
        """
        return np.asarray(np.sqrt((self.components(parts) ** 2).mean(axis=1)))


def fit_pca(parts: NDArray[np.floating]) -> PcaModel | None:
    """Learn where parts lie.

    Args:
        parts: (n, d); rows that are not all finite are left out.

    Returns:
        None where fewer than two parts are known, or all are the same.
    """
    known = parts[np.isfinite(parts).all(axis=1)].astype(np.float64)
    if len(known) < 2:
        return None
    variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(known, rowvar=False)))
    kept = np.flatnonzero(variances > _LEAST_VARIANCE * variances[-1])[::-1]
    if not len(kept):
        return None
    axes = directions[:, kept] / np.sqrt(variances[kept])
    # The sign of a direction is the library's whim: the largest entry is made positive.
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(len(kept))])
    return PcaModel(known.mean(axis=0), axes * signs)
