"""Regions of an explanation map, as boxes that can be stored, searched and drawn."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.maths.sise import otsu
from inspect_xai.records import Region

_CHUNK_PIXELS = 1 << 18  # of a large map that are worked on at a time
_GAP_PX = 128  # empty rows or columns at which a large map is split

Box: TypeAlias = tuple[slice, slice]


def marked_pixels(fused: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Mark the pixels of a map (H, W), 0 or more, with the strongest evidence.

    Most of an explanation map is 0 by design, so the threshold is Otsu's over the values above 0, as shares of the
    largest. Where these are all alike, all of them are marked.

    Raises:
        ExplanationError: A value is NaN.
    """
    return _marked([fused])[0]


def find_regions(fused: NDArray[np.float32], *, most: int = 8) -> tuple[Region, ...]:
    """Find the connected places that an explanation map marks.

    Args:
        fused: (H, W) explanation map, 0 or more.
        most: How many to return at the most.

    Returns:
        Regions by their share of the map's sum, largest first. Pixels that touch at a corner belong together. `peak`
        is the map's value, not rescaled. Empty for a map of zeros.

    Raises:
        ExplanationError: A value is NaN.
    """
    boxes = _occupied(fused)
    if not boxes:
        return ()
    images, stats, numbers = _components(_marked([fused[box] for box in boxes]), boxes)
    sums = _sums(fused, boxes, images, numbers)
    total = sums.sum()
    regions = []
    for label in sorted(range(1, len(sums)), key=lambda label: -sums[label])[:most]:  # label 0 is the background
        owner, own_label, left, top, width, height, area = (int(number) for number in stats[label])
        rows, columns = boxes[owner]
        place = np.s_[top : top + height, left : left + width]
        peak = float(fused[rows, columns][place][images[owner][place] == own_label].max())
        mass = float(sums[label] / total)
        regions.append(Region(rows.start + top, columns.start + left, height, width, area, peak, mass))
    return tuple(regions)


def _marked(parts: Sequence[NDArray[np.float32]]) -> list[NDArray[np.bool_]]:
    """Mark the pixels of a map that is 0 outside the given parts."""
    # A map of zeros is divided by 1. NaN and negative values are otsu's to refuse.
    largest = np.max([part.max() for part in parts]) or np.float32(1)
    shares = (band / largest for part in parts for band in _bands(part))
    support = np.concatenate([share[~(share <= 0)] for share in shares])
    if support.size == 0:
        return [np.zeros(part.shape, np.bool_) for part in parts]
    threshold = otsu(support)
    if support.max() <= threshold:
        threshold = 0.0
    return [np.concatenate([band / largest > threshold for band in _bands(part)]) for part in parts]


def _components(
    marked: Sequence[NDArray[np.bool_]], boxes: Sequence[Box]
) -> tuple[list[NDArray[np.int32]], NDArray[np.intp], list[NDArray[np.intp]]]:
    """Find connected components in several boxes of a map, numbered as if they had been found in the whole map.

    Args:
        marked: (h, w) of each box.
        boxes: No component reaches from one into another.

    Returns:
        Images of the labels within each box; by label in the whole map (box, label in it, left, top, width, height,
        area), the first row for the background; labels in the whole map by label in each box.
    """
    images, rows, places = [], [np.zeros((1, 7), np.intp)], [(-1, -1)]
    for owner, (mask, box) in enumerate(zip(marked, boxes, strict=True)):
        count, image, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
        images.append(np.asarray(image, np.int32))
        labels = np.arange(1, count)[:, np.newaxis]
        rows.append(np.concatenate([np.full_like(labels, owner), labels, stats[1:]], axis=1))
        if len(boxes) > 1:
            origin = min(rows.start for rows, _ in boxes), min(columns.start for _, columns in boxes)
            places += [_first_block(images[-1], row, box, origin) for row in rows[-1]]
    stats_of_all = np.concatenate(rows)
    if len(boxes) > 1:
        stats_of_all = stats_of_all[sorted(range(len(places)), key=places.__getitem__)]
    numbers = []
    for owner in range(len(boxes)):
        (own,) = np.nonzero(stats_of_all[1:, 0] == owner)
        of_box = np.zeros(len(own) + 1, np.intp)
        of_box[stats_of_all[1 + own, 1]] = 1 + own
        numbers.append(of_box)
    return images, stats_of_all, numbers


def _first_block(
    image: NDArray[np.int32], component: NDArray[np.intp], box: Box, origin: tuple[int, int]
) -> tuple[int, int]:
    """Return the first block of 2 x 2 pixels that a component has a pixel in: OpenCV numbers components by these."""
    _, label, left, top, width, *_ = component
    row, column = box[0].start + top - origin[0], box[1].start + left - origin[1]
    of_block = image[top : top + 2 - row % 2, left : left + width] == label
    return int(row // 2), int((column + of_block.any(axis=0).argmax()) // 2)


def _sums(
    fused: NDArray[np.float32],
    boxes: Sequence[Box],
    images: Sequence[NDArray[np.int32]],
    numbers: Sequence[NDArray[np.intp]],
) -> NDArray[np.float64]:
    """Add up the values of each component in reading order, and of the background."""
    sums: NDArray[Any] = np.zeros(1 + sum(len(of_box) - 1 for of_box in numbers))
    left = min(columns.start for _, columns in boxes)
    width = max(columns.stop for _, columns in boxes) - left
    step = max(1, _CHUNK_PIXELS // width)
    for top in range(min(rows.start for rows, _ in boxes), max(rows.stop for rows, _ in boxes), step):
        values = fused[top : top + step, left : left + width]
        labels = np.zeros(values.shape, np.intp)
        for (rows, columns), image, of_box in zip(boxes, images, numbers, strict=True):
            first, last = max(rows.start, top), min(rows.stop, top + step)
            if first < last:
                seen = image[first - rows.start : last - rows.start]
                labels[first - top : last - top, columns.start - left : columns.stop - left] = of_box[seen]
        # Sums so far come first, so that the result is that of one pass to the last bit.
        weights = np.concatenate([sums, values.ravel().astype(np.float64)])
        places = np.concatenate([np.arange(len(sums)), labels.ravel()])
        sums = np.bincount(places, weights=weights, minlength=len(sums))
    return sums


def _bands(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield a map's rows in bands, so that temporary arrays are small."""
    step = max(1, _CHUNK_PIXELS // max(1, values.shape[1]))
    for top in range(0, max(1, values.shape[0]), step):
        yield values[top : top + step]


def _occupied(fused: NDArray[np.float32], top: int = 0, left: int = 0) -> list[Box]:
    """Return boxes that hold all values other than 0; a large map is split where wide stripes are empty."""
    gap = _GAP_PX if fused.size > _CHUNK_PIXELS else max(fused.shape)
    boxes: list[Box] = []
    for rows in _runs(np.asarray(fused.any(axis=1)), gap):
        for columns in _runs(np.asarray(fused[rows].any(axis=0)), gap):
            part = fused[rows, columns]
            if _CHUNK_PIXELS < part.size < fused.size:
                boxes += _occupied(part, top + rows.start, left + columns.start)
            else:
                boxes.append((_moved(rows, top), _moved(columns, left)))
    return boxes


def _runs(occupied: NDArray[np.bool_], gap: int) -> list[slice]:
    """Return runs of occupied places that are more than `gap` apart, without the empty ones around them."""
    places = np.flatnonzero(occupied)
    if len(places) == 0:
        return []
    (ends,) = np.nonzero(np.diff(places) > gap)
    return [
        slice(int(places[first]), int(places[last]) + 1)
        for first, last in zip([0, *(ends + 1)], [*ends, len(places) - 1], strict=True)
    ]


def _moved(run: slice, by: int) -> slice:
    return slice(run.start + by, run.stop + by)
