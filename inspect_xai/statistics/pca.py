"""PCA of features: correlated numbers of parts as uncorrelated components, also those of small variance.

A lamp or an alloy changes brightness and contrast of a part together, so each by itself scatters widely. A moved
fixture changes their correlation, a direction in which good parts hardly differ. Tests of single components detect a
shift of many numbers at least as well as one test of all at once.

Source: Kuncheva and Faithfull, "PCA feature extraction for change detection in multidimensional unlabeled data"
(2014); Rabanser, Guennemann and Lipton, "Failing loudly" (2019).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LEAST_VARIANCE = 1e-6
"""As a share of the largest: a direction of smaller variance is rounding, and would raise false alarms."""


@dataclass(frozen=True, slots=True, eq=False)
class PcaModel:
    """Mean and principal axes of parts.

    Attributes:
        center: (d,) mean.
        axes: (d, k) directions, largest variance first, of length one over the standard deviation along them.
    """

    center: NDArray[np.float64]
    axes: NDArray[np.float64]

    def components(self, parts: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return uncorrelated components (n, k) of parts (n, d), of mean 0 and variance 1 over the fitted parts."""
        return np.asarray((parts - self.center) @ self.axes, dtype=np.float64)

    def distances(self, parts: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the distances (n,) of parts (n, d): root mean square of the components, about 1 for a usual part.

        Source: Mahalanobis (1936), over the root of the number of directions.
        """
        return np.asarray(np.sqrt((self.components(parts) ** 2).mean(axis=1)))


def fit_pca(parts: NDArray[np.floating]) -> PcaModel | None:
    """Fit parts (n, d), without rows that are not finite; None where fewer than two are left or all are the same."""
    known = parts[np.isfinite(parts).all(axis=1)].astype(np.float64)
    if len(known) < 2:
        return None
    variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(known, rowvar=False)))
    kept = np.flatnonzero(variances > _LEAST_VARIANCE * variances[-1])[::-1]
    if not len(kept):
        return None
    axes = directions[:, kept] / np.sqrt(variances[kept])
    # The sign of a direction depends on the library: the largest entry is made positive.
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(len(kept))])
    return PcaModel(known.mean(axis=0), axes * signs)
