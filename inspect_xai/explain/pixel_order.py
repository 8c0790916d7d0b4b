"""Ranks of a picture's pixels by their evidence, computed on demand: a line needs those of one window only."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspect_xai.maths import sise, tiles
from inspect_xai.records import InputSpec, Tile


class PixelOrder:
    """Orders pixels by the explanation map, and ties by the two maps that `sise.rank_map` takes beside it.

    Args:
        fused: (H, W), the explanation map of the picture.
        fusions: Those of the explained windows.
        windows: Where these lie, in the same order.
    """

    __slots__ = ("_fused", "_fusions", "_windows")

    def __init__(self, fused: NDArray[np.float32], fusions: Sequence[sise.Fusion], windows: Sequence[Tile]) -> None:
        self._fused, self._fusions, self._windows = fused, tuple(fusions), tuple(windows)

    def on_picture(self) -> NDArray[np.int32]:
        """Rank all pixels (H, W) of the picture; 0 is the first one to take."""
        size = self._fused.shape[0], self._fused.shape[1]
        before_last = tiles.stitch([fusion.before_last for fusion in self._fusions], self._windows, size)
        deepest = tiles.stitch([fusion.deepest for fusion in self._fusions], self._windows, size)
        return sise.rank_map(self._fused, before_last, deepest)

    def in_window(self, tile: Tile, spec: InputSpec) -> NDArray[np.int32]:
        """Rank the pixels (h, w) of a window as the network takes it; those outside the picture come last."""
        top, left = max(0, tile.top_px), max(0, tile.left_px)
        fused = self._fused[top : tile.top_px + tile.height_px, left : tile.left_px + tile.width_px]
        size = fused.shape[0], fused.shape[1]

        def moved(window: Tile) -> Tile:
            return replace(window, top_px=window.top_px - top, left_px=window.left_px - left)

        def sampled(values: NDArray[Any], outside: float = 0.0) -> NDArray[Any]:
            return tiles.in_window(values, moved(tile), spec, outside=outside).ravel()

        fusions, placed = [], []
        for fusion, window in zip(self._fusions, map(moved, self._windows), strict=True):
            if tiles.overlaps(window, size):
                fusions.append(fusion)
                placed.append(window)
        # One map after the other: of a window that is a whole picture each takes four bytes a pixel.
        before_last = sampled(tiles.stitch([fusion.before_last for fusion in fusions], placed, size))
        deepest = sampled(tiles.stitch([fusion.deepest for fusion in fusions], placed, size))
        rows, columns = (sampled(np.broadcast_to(places, size)) for places in np.ogrid[: size[0], : size[1]])
        order = sise.lexsort(-sampled(fused, -np.inf), -before_last, -deepest, rows, columns)
        rank = np.empty(order.size, np.int32)
        rank[order] = np.arange(order.size, dtype=np.int32)
        return rank.reshape(spec.height, spec.width)
