"""Labeled pictures: the table that an audit reads.

A CSV file with a head line. `image` and `label` are required, the other columns optional:

    image,label,mask,boxes,part,station
    shots/p17.png,crack,masks/p17.png,,P17,S3
    shots/p18.png,pit,,"40 12 16 16; 90 30 8 8",P18,S3
    shots/p19.png,free,,,P19,S4

Paths are relative to the table. `mask` is a picture of the same size, bright where the defect is. `boxes` are top,
left, height and width in pixels, one box after the other, separated by semicolons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import PictureError, SettingsError
from inspect_xai.files import read_table
from inspect_xai.intake.sources import read_picture
from inspect_xai.maths.picture_regions import boxes_mask
from inspect_xai.records import PictureLimits

Box = tuple[int, int, int, int]
_COLUMNS = ("image", "label", "mask", "boxes", "part", "station")
MASK_LEVEL = 127
"""A mask's pixels brighter than this are marked."""


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """One line of the table; `image` is the path as written there."""

    image: str
    path: Path
    label: str
    mask: Path | None = None
    boxes: tuple[Box, ...] = ()
    part: str = ""
    station: str = ""


def read_labeled(path: Path, labels: Sequence[str]) -> tuple[LabelledPicture, ...]:
    """Read the table and check that its files exist and its labels are among the model's.

    Raises:
        SettingsError: With the line that is wrong.
    """
    try:
        columns, lines = read_table(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", expected="a CSV file in UTF-8") from error
    missing = [name for name in ("image", "label") if name not in columns]
    if missing:
        raise SettingsError(
            f"{path} has the columns {', '.join(filter(None, columns)) or 'none'}; {' and '.join(missing)} is missing",
            expected=f"a head line with {','.join(_COLUMNS)}, of which image and label are required",
        )
    rows = [_row(path, number, cells, labels) for number, cells in lines]
    if not rows:
        raise SettingsError(f"{path} lists no pictures", expected="one line for each picture")
    seen: set[str] = set()
    for row in rows:
        if row.image in seen:
            raise SettingsError(f"{path} lists {row.image} twice", expected="every picture once")
        seen.add(row.image)
    return tuple(rows)


def _row(path: Path, line: int, row: Mapping[str, str], labels: Sequence[str]) -> LabelledPicture:
    cells = {name: row.get(name, "") for name in _COLUMNS}
    where = f"{path}, line {line}"
    if cells["label"] not in labels:
        raise SettingsError(f"{where}: label {cells['label']!r}", expected=f"a label of the model: {', '.join(labels)}")
    files = {}
    for name in ("image", "mask"):
        if cells[name]:
            files[name] = path.parent / cells[name]
            if not files[name].is_file():
                raise SettingsError(
                    f"{where}: {name} {cells[name]} is not there", expected="a path relative to the table"
                )
    if "image" not in files:
        raise SettingsError(f"{where}: image is empty", expected="a path relative to the table")
    boxes = _boxes(where, cells["boxes"])
    return LabelledPicture(
        cells["image"], files["image"], cells["label"], files.get("mask"), boxes, cells["part"], cells["station"]
    )


def _boxes(where: str, text: str) -> tuple[Box, ...]:
    boxes: list[Box] = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        try:
            top, left, height, width = (int(number) for number in part.replace(",", " ").split())
        except ValueError as error:
            raise SettingsError(f"{where}: box {part!r}", expected="top left height width, in pixels") from error
        if height < 1 or width < 1:
            raise SettingsError(f"{where}: box {part!r} has no area", expected="height and width of at least 1")
        boxes.append((top, left, height, width))
    return tuple(boxes)


def read_truth(labeled: LabelledPicture, size: tuple[int, int], *, limits: PictureLimits) -> NDArray[np.bool_] | None:
    """Read where the defect is in a picture of (H, W).

    Returns:
        (H, W), True on the defect; None where that is not known, or the mask marks nothing.

    Raises:
        PictureError: If the mask is no picture, or not of that size.
    """
    if labeled.mask is not None:
        truth = read_mask(labeled.mask, size, limits=limits)
    elif labeled.boxes:
        truth = boxes_mask(labeled.boxes, size)
    else:
        return None
    return truth if truth.any() else None


def read_mask(path: Path, size: tuple[int, int], *, limits: PictureLimits) -> NDArray[np.bool_]:
    """Read a mask (H, W), True where the file is brighter than `MASK_LEVEL`.

    `limits` are those of the picture it belongs to, so that it is turned as that was; its white level is the file's.

    Raises:
        PictureError: If the file cannot be read, is no picture, or has another size.
    """
    pixels = read_picture(path, limits=replace(limits, white_level=PictureLimits().white_level)).pixels
    if pixels.shape[:2] != size:
        found = f"mask {path} is {pixels.shape[0]} x {pixels.shape[1]} px"
        raise PictureError(found, expected=f"{size[0]} x {size[1]} px, as its picture")
    gray = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return np.asarray(gray) > MASK_LEVEL
