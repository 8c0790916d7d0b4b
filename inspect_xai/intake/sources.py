"""What sources of pictures share: claims, and reading a file that may be anything."""

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import PictureError
from inspect_xai.intake.decode import decode_picture, too_long
from inspect_xai.records import PictureLimits
from inspect_xai.storage import file_locations

MAX_SIDECAR_BYTES = 1 << 16


_LAST_SECOND = datetime(2099, 12, 31, tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True)
class Claim:
    """One file this process may inspect.

    Attributes:
        file_name: Path below the source, with forward slashes; bytes that are no UTF-8 are written out as hex.
        location: Where it lies now: a path or a URL.
        modified_at: Its last change, UTC.
    """

    file_name: str
    location: str
    modified_at: datetime


@dataclass(frozen=True, slots=True, eq=False)
class PictureFile:
    """A picture with the hash of the file it came from: uint8 (H, W) or RGB (H, W, 3)."""

    pixels: NDArray[np.uint8]
    sha256: str


def read_picture(path: Path, *, limits: PictureLimits) -> PictureFile:
    """Read one picture file.

    Args:
        path: A PNG, JPEG, BMP or TIFF file.
        limits: What is accepted.

    Raises:
        PictureError: If the file cannot be read or is no picture within the limits.
    """
    try:
        with path.open("rb") as file:
            data = _read_whole(file, limits.max_bytes)
        return PictureFile(decode_picture(data, limits=limits), hashlib.sha256(data).hexdigest())
    except OSError as error:
        raise PictureError(f"{path} cannot be read: {error.strerror}", remedy="check path and permissions") from error
    except PictureError as error:
        raise PictureError(f"{path}: {error.found}", expected=error.expected, remedy=error.remedy) from error


def _read_whole(file: IO[bytes], max_bytes: int) -> bytes:
    before = os.fstat(file.fileno())
    if not stat.S_ISREG(before.st_mode):
        raise PictureError("it is no ordinary file", expected="a file")
    if before.st_size > max_bytes:
        raise too_long(before.st_size, max_bytes)
    data = file.read(max_bytes + 1)
    after = os.fstat(file.fileno())
    if len(data) != before.st_size or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise PictureError(
            f"the file changed from {before.st_size} bytes while it was read",
            expected="a finished file",
            remedy="raise settle_s, or let the camera write *.part and rename it",
        )
    return data


def utc(timestamp: float) -> datetime:
    """Return a file's time; one before 1970 or after 2099, which a broken clock writes, moves to the nearer end."""
    return datetime.fromtimestamp(min(max(timestamp, 0.0), _LAST_SECOND), UTC)


def as_text(name: str) -> str:
    """Return a file name as text that any database takes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def bytes_of_name(place: str) -> str | None:
    """Return the path of a file whose name is no UTF-8, recorded with its odd bytes as hex; None: it is as recorded."""
    if file_locations.is_url(place) or "\\x" not in place or os.path.lexists(place):
        return None
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), place.encode())
    return os.fsdecode(raw) if os.path.lexists(raw) else None
