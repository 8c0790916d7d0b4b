"""Large arrays that are mostly 0: memory pages that are never written are not allocated."""

import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_LARGE_BYTES = 1 << 22  # from this size on numpy uses huge pages, of which one value takes 2 MB


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Make an array of zeros, as `np.zeros`; a large one on small pages, of which only those written are allocated."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < _LARGE_BYTES or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)
