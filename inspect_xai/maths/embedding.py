"""Random projection of the deepest block's pooled features to 16 numbers, stored for every explained part."""

import hashlib
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

SIZE: Final = 16


def embed(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Project the mean of a block's features (C, h, w) onto 16 fixed directions.

    Random signs preserve distances well enough to detect a shift of the parts (Johnson and Lindenstrauss), and signs
    made from a hash are the same on every machine and in every version.

    Source: Achlioptas, "Database-friendly random projections" (2003), theorem 1.1.
    """
    mean = features.mean(axis=(1, 2), dtype=np.float64)
    return np.asarray(mean @ _signs(mean.size) / np.sqrt(SIZE), dtype=np.float32)


@lru_cache(maxsize=8)
def _signs(channels: int) -> NDArray[np.float64]:
    """Return (C, 16) of 1 and -1."""
    digests = [hashlib.sha256(str(channel).encode()).digest()[: SIZE // 8] for channel in range(channels)]
    bits = np.unpackbits(np.frombuffer(b"".join(digests), np.uint8)).reshape(channels, SIZE)
    return 2.0 * bits.astype(np.float64) - 1.0
