"""Arrays of zeros of which only what is written takes room."""

import sys
from pathlib import Path

import numpy as np
import pytest

from inspect_xai import sparse


@pytest.mark.parametrize("shape", [(3, 5), (2, 1200, 1300), (0, 4)])
def test_zeros_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    zeros = sparse.zeros(shape, np.float32)
    assert zeros.dtype == np.float32
    assert np.array_equal(zeros, np.zeros(shape))
    zeros[..., -1:] = 7
    assert (zeros[..., -1:] == 7).all()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the pages are the system's choice")
def test_only_what_is_written_takes_room() -> None:
    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    before = resident_mb()
    zeros = sparse.zeros((16_384, 4_096), np.float32)  # 256 MB
    zeros[::64, :8] = 1
    assert not zeros[:, 8:].any()
    assert resident_mb() < before + 32
