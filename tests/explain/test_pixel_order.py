"""The ranks of one window are those of the picture, in the same order."""

import numpy as np
import pytest

from inspect_xai.explain.pixel_order import PixelOrder
from inspect_xai.maths import tiles
from inspect_xai.maths.sise import Fusion, order_of
from inspect_xai.records import Fit, InputSpec

SPEC = {
    Fit.TILE: InputSpec(12, 10, tile_overlap=0.4),
    Fit.STRETCH: InputSpec(12, 10, fit=Fit.STRETCH),
    Fit.LETTERBOX: InputSpec(12, 10, fit=Fit.LETTERBOX),
    Fit.CENTER_CROP: InputSpec(12, 10, fit=Fit.CENTER_CROP),
}


@pytest.mark.parametrize("size", [(31, 40), (7, 25), (12, 10), (5, 4)])
@pytest.mark.parametrize("fit", list(Fit))
def test_a_windows_ranks_are_in_the_order_of_the_pictures(fit: Fit, size: tuple[int, int]) -> None:
    rng, spec = np.random.default_rng(4), SPEC[fit]
    windows = tiles.windows(size, spec)[::2]
    maps = rng.integers(0, 3, (3, len(windows), spec.height, spec.width)).astype(np.float32)  # with many ties
    fusions = [Fusion(*of_window, ()) for of_window in zip(*maps, strict=True)]
    order = PixelOrder(tiles.stitch(list(maps[0]), windows, size), fusions, windows)
    rank = order.on_picture()
    assert sorted(rank.ravel()) == list(range(rank.size))
    for window in windows:
        expected = order_of(tiles.in_window(rank, window, spec, outside=rank.size))
        assert np.array_equal(order.in_window(window, spec), expected)
