"""Block maps on the pixels of the picture, computed on access: each would take as much memory as the fused map."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from inspect_xai.maths import sise, tiles
from inspect_xai.records import Status, TileExplanation


class BlockMapsOnPicture(Mapping[str, NDArray[np.float32]]):
    """Normalized block maps (H, W) of a picture by tensor name, from the sums kept with its windows.

    Args:
        names: Block ends that have a map in at least one window, shallow to deep.
        windows: The explained windows.
        window_hw: Size of the network's window.
        picture_hw: Size of the picture.
    """

    def __init__(
        self,
        names: Sequence[str],
        windows: Sequence[TileExplanation],
        *,
        window_hw: tuple[int, int],
        picture_hw: tuple[int, int],
    ) -> None:
        self._names, self._windows = tuple(names), tuple(windows)
        self._window_hw, self._picture_hw = window_hw, picture_hw

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """Compute one block's map."""
        if name not in self._names:
            raise KeyError(name)
        maps = [self._of_window(window, name) for window in self._windows]
        return tiles.stitch(maps, [window.tile for window in self._windows], self._picture_hw)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, shallow to deep."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of blocks with a map."""
        return len(self._names)

    def _of_window(self, window: TileExplanation, name: str) -> NDArray[np.float32]:
        block = next((block for block in window.blocks if block.tensor == name and block.sums is not None), None)
        sums, grid = (block.sums, block.grid) if block is not None else (None, None)
        shown = sise.normalized(sums, self._window_hw, grid=grid) if sums is not None else None
        if shown is None or window.status is not Status.EXPLAINED:
            return np.zeros(self._window_hw, np.float32)
        return shown
