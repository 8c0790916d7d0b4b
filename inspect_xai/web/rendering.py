"""Pictures and maps of an inspection as the browser shows them: made on demand, kept by the hash of what they show."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Final
from urllib.parse import unquote

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import NotFoundError, PictureError
from inspect_xai.intake.archive import read_archived_bytes
from inspect_xai.intake.decode import decode_picture
from inspect_xai.maths import color, sise, tiles
from inspect_xai.maths.regions import marked_pixels
from inspect_xai.records import PictureLimits, Region, Status
from inspect_xai.storage import file_locations
from inspect_xai.storage.results import StoredExplanation, StoredInspection

THUMBNAIL_PX: Final = 160
_CACHE_BYTES: Final = 96 << 20
Map = NDArray[np.float32]
_DRAWN_BY: Final = "3"  # change it when the same record is drawn in another way, so that no browser keeps the old one


class MissingPictureError(NotFoundError):
    """The picture of an inspection cannot be shown; `reason` is the key of the text that says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the picture cannot be shown ({reason})")
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way between processes."""
        return MissingPictureError, (self.reason,)


class Archive:
    """Reads pictures from the places the desk was given, and from nowhere else.

    Args:
        places: Folders, or URLs that fsspec knows, where pictures may lie; an inspection's `archived_to` is a URL, or
            a path, absolute or below one of the folders.
    """

    def __init__(self, places: Sequence[Path | str]) -> None:
        self._folders = [Path(place).resolve() for place in places if "://" not in str(place)]
        self._urls = [str(place).rstrip("/") + "/" for place in places if "://" in str(place)]

    def locate(self, archived_to: str) -> str:
        """Return the file of a picture: a path, or a URL, of which only reading shows whether it exists.

        Raises:
            MissingPictureError: There is none that may be shown.
        """
        if not self._folders and not self._urls:
            raise MissingPictureError("no_archive")
        if "\x00" in archived_to:
            raise MissingPictureError("outside")
        if "://" in archived_to:
            # Chained URLs ("zip://x::file://y") and whatever a backend reads as "one up" lead out of the place.
            below = next((archived_to[len(url) :] for url in self._urls if archived_to.startswith(url)), "")
            is_plain = not {"", ".", ".."} & set(unquote(below).replace("\\", "/").split("/")) and "::" not in below
            if not is_plain:
                raise MissingPictureError("outside")
            return archived_to
        # resolve() follows links, so a link out of the archive is found out as well as "..".
        candidates = [Path(archived_to).resolve()]
        candidates += [(folder / archived_to).resolve() for folder in self._folders]
        inside = [path for path in candidates if any(path.is_relative_to(folder) for folder in self._folders)]
        if not inside:
            raise MissingPictureError("outside")
        for path in inside:
            if path.is_file():
                return str(path)
        raise MissingPictureError("missing")

    def check(self, inspection: StoredInspection) -> str:
        """Where the picture lies that retention left: a path, or a URL, of which is not known whether it is there.

        Raises:
            MissingPictureError: There is none that may be shown.
        """
        if inspection.picture_deleted_at is not None:
            raise MissingPictureError("deleted")
        return self.locate(inspection.capture.archived_to)

    def check_there(self, inspection: StoredInspection) -> None:
        """Ask the archive whether the picture is still there.

        Raises:
            MissingPictureError: It is not, or must not be shown.
        """
        place = self.check(inspection)
        try:
            is_there = "://" not in place or file_locations.exists(place)  # a path's file was found just now
        except (OSError, ImportError, ValueError) as error:
            raise MissingPictureError("missing") from error
        if not is_there:
            raise MissingPictureError("missing")

    def fault(self, inspection: StoredInspection) -> str:
        """Return the key of the text why a picture cannot be shown; empty where nothing prevents it before reading."""
        try:
            self.check(inspection)
        except MissingPictureError as error:
            return f"picture.reason_{error.reason}"
        return "" if inspection.capture.height_px else "picture.reason_unreadable"

    def read(self, inspection: StoredInspection) -> NDArray[np.uint8]:
        """Return the pixels of an inspection's picture as the line decoded them, uint8 (H, W) or RGB (H, W, 3).

        Raises:
            MissingPictureError: There is none that may be shown.
        """
        limits = PictureLimits.recorded(inspection.run.settings)
        place = self.check(inspection)
        data = _fetched(place, limits) if "://" in place else _read(Path(place), limits)
        try:
            pixels = decode_picture(data, limits=limits)
        except PictureError as error:
            raise MissingPictureError("unreadable") from error
        if hashlib.sha256(data).hexdigest() != inspection.capture.sha256:
            raise MissingPictureError("changed")
        return pixels


def _read(path: Path, limits: PictureLimits) -> bytes:
    # Not by fsspec: it takes "::" in a file's name for a chain of URLs.
    try:
        if path.stat().st_size > limits.max_bytes:
            raise MissingPictureError("unreadable")
        return path.read_bytes()
    except OSError as error:
        raise MissingPictureError("missing") from error


def _fetched(url: str, limits: PictureLimits) -> bytes:
    try:
        return read_archived_bytes(url, limits=limits)
    except PictureError as error:
        raise MissingPictureError("missing") from error


class Kept:
    """The newest rendered pictures by name, up to a number of bytes."""

    def __init__(self, most_bytes: int = _CACHE_BYTES) -> None:
        self._most = most_bytes
        self._size = 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Return the bytes under a name; render them where they are not cached."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        made = make()
        with self._lock:
            self._size += len(made) - len(self._kept.pop(name, b""))
            self._kept[name] = made
            while self._size > self._most and len(self._kept) > 1:
                self._size -= len(self._kept.popitem(last=False)[1])
        return made


def content_name(sha256: str, fingerprint: str, policy_version: str) -> str:
    """Names all that can be drawn of one inspection: the same name is the same content for ever."""
    return hashlib.sha256(f"{_DRAWN_BY}|{sha256}|{fingerprint}|{policy_version}".encode()).hexdigest()[:20]


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode (H, W), RGB (H, W, 3) or RGBA (H, W, 4)."""
    if pixels.ndim == 3:
        to_file = cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        pixels = np.asarray(cv2.cvtColor(pixels, to_file), np.uint8)
    done, encoded = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise PictureError(f"a picture of shape {pixels.shape} cannot be encoded")
    return encoded.tobytes()


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a small version; small pictures stay as they are."""
    scale = THUMBNAIL_PX / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def layer(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Render a map to be laid over its picture: RGBA, transparent where the map is 0."""
    share = values / (float(values.max()) or 1.0)
    alpha = np.rint(share * 255).astype(np.uint8)
    return np.dstack([color.color_map(values), alpha])


def outlines(fused: NDArray[np.float32], regions: Sequence[Region]) -> bytes:
    """Draw the outlines of regions as SVG: a page that uses `#outlines` keeps them thin at any zoom."""
    height, width = fused.shape
    inside = np.zeros(fused.shape, np.uint8)
    marked = marked_pixels(fused)
    for region in regions:
        box = np.s_[region.top_px : region.top_px + region.height_px, region.left_px : region.left_px + region.width_px]
        inside[box] |= marked[box]
    # Drawn on a doubled grid, so that a line runs between the pixels instead of through their middles.
    doubled = cv2.resize(inside, (2 * width, 2 * height), interpolation=cv2.INTER_NEAREST)
    lines, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corners = [[f"{(x + 0.5) / 2:g} {(y + 0.5) / 2:g}" for x, y in line[:, 0]] for line in lines]
    path = "".join(f"M{'L'.join(line)}Z" for line in corners)
    stroke = 'fill="none" vector-effect="non-scaling-stroke"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<g id="outlines"><path d="{path}" {stroke} stroke="#000" stroke-width="5"/>'
        f'<path d="{path}" {stroke} stroke="#fff" stroke-width="2"/></g></svg>'
    ).encode()


def blocks_shown(explanation: StoredExplanation | None) -> tuple[str, ...]:
    """Names of the blocks that have a map, shallow to deep."""
    if explanation is None or explanation.status is not Status.EXPLAINED or explanation.maps_deleted:
        return ()
    names = [block.tensor for tile in explanation.tiles for block in tile.blocks if not block.note]
    return tuple(dict.fromkeys(names))


def block_map(inspection: StoredInspection, tensor: str) -> NDArray[np.float32]:
    """Rebuild a block's map on the whole picture, (H, W), from what was recorded.

    Raises:
        NotFoundError: No map of that block is stored.
    """
    explanation = inspection.explanation
    if explanation is None or explanation.fused is None:
        raise NotFoundError("no map is stored for this inspection")
    net: dict[str, Any] = inspection.model.card["input"]
    size = (int(net["height"]), int(net["width"]))
    windows = [tile.tile for tile in explanation.tiles]
    maps = []
    for tile in explanation.tiles:
        block = next((block for block in tile.blocks if block.tensor == tensor and not block.note), None)
        whole = None
        if block is not None and block.sums is not None:
            whole = sise.normalized(block.sums, size, grid=block.grid)
        maps.append(np.zeros(size, np.float32) if whole is None else whole)
    return tiles.stitch(maps, windows, explanation.fused.shape)
