"""The archive as a source: recorded pictures are read again where they lie, as the parts they were recorded for."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path, PurePosixPath

from inspect_xai.errors import IntakeError, PictureError, SettingsError
from inspect_xai.intake.decode import PICTURE_SUFFIXES, decode_picture, too_long
from inspect_xai.intake.sources import Claim, PictureFile, bytes_of_name, read_picture
from inspect_xai.records import PictureLimits
from inspect_xai.storage import file_locations
from inspect_xai.storage.results import InspectionSummary
from inspect_xai.storage.store import Store

_log = logging.getLogger(__name__)
_IDENTITY = ("serial", "product", "lot", "line", "station", "camera", "view", "shift")


def lies_below(place: str, folder: str) -> bool:
    """Say whether an archived picture lies below a folder or URL; a link counts where it lies, not where it leads.

    >>> lies_below("s3://plant/in/L1/a.png", "s3://plant/in"), lies_below("s3://plant/in/../b.png", "s3://plant/in")
    (True, False)
    """
    if file_locations.is_url(place) != ("://" in folder) or not folder:
        return False
    if not file_locations.is_url(place):
        path = Path(place)
        return path.name not in {"", ".."} and path.parent.resolve().is_relative_to(Path(folder).resolve())
    return place.startswith(f"{folder.rstrip('/')}/") and ".." not in place.split("/")


def refuse_outside(pictures: Sequence[str], folders: Sequence[str]) -> None:
    """Refuse to delete files that rows name but no archive folder holds: a row is data, and may say anything.

    Raises:
        SettingsError: If a picture that is still there lies outside, or a folder is away: what is not seen there would
            count as gone already.
    """
    for folder in folders if pictures else ():
        if folder and "://" not in folder and not (Path(folder).is_dir() and any(Path(folder).iterdir())):
            raise SettingsError(
                f"the archive folder {folder} is not there, or empty",
                remedy="see that its disk is mounted; if all is gone indeed, name the folder above it with --archive",
            )
    for place in pictures:
        is_gone = not file_locations.is_url(place) and not os.path.lexists(place)
        if not is_gone and not any(lies_below(place, folder) for folder in folders):
            raise SettingsError(
                f"the picture {place} lies in none of the archive folders",
                expected=f"a place below {' or '.join(folders) or 'a folder that is named'}",
                remedy="name its folder, or the beginning of its URL, with --archive",
            )


def holds_one_of(place: str, sha256s: Collection[str]) -> bool:
    """Whether the file at a place has one of these sha256; also where there is no file any more, or a link to one.

    Raises:
        IntakeError: If it cannot be read.
    """
    try:
        if not file_locations.exists(place) or (not file_locations.is_url(place) and Path(place).is_symlink()):
            return True
        return file_locations.sha256_of(place) in sha256s
    except (OSError, ImportError, ValueError) as error:
        raise IntakeError(f"the picture {place} cannot be read: {error}", remedy="see that it may be") from error


def remove_archived(place: str) -> None:
    """Delete a picture and its sidecar, in a folder or at a URL; what is gone already is fine.

    A sidecar that another picture beside it shares stays.

    Raises:
        IntakeError: If it cannot be deleted.
    """
    stem = place.removesuffix(PurePosixPath(place).suffix)
    try:
        if not file_locations.is_url(place) and bytes_of_name(place) is not None:
            raise ValueError("its name is no UTF-8: delete it by hand")
        file_locations.remove_file(place)
        if file_locations.exists(f"{stem}.json") and not _is_shared(stem):
            file_locations.remove_file(f"{stem}.json")
    except (OSError, ImportError, ValueError) as error:
        raise IntakeError(f"the picture {place} cannot be deleted: {error}", remedy="see that it may be") from error


def _is_shared(stem: str) -> bool:
    endings = (spelled for suffix in PICTURE_SUFFIXES for spelled in (suffix, suffix.upper()))
    return any(file_locations.exists(stem + ending) for ending in endings)


class ArchiveSource:
    """Pictures recorded before, read from where their rows say, oldest first; nothing is claimed or moved.

    Args:
        store: Where they are recorded; read day by day.
        since: Inspected at or after.
        limits: Longer files are passed over.
        wanted: Which rows; default: all.
        archive: Folder the archive was moved to.
    """

    keep = True

    def __init__(
        self,
        store: Store,
        *,
        since: datetime,
        limits: PictureLimits,
        wanted: Callable[[InspectionSummary], bool] = lambda _row: True,
        archive: Path | None = None,
    ) -> None:
        self._store, self._since, self._wanted = store, since, wanted
        self._archive, self._limits = archive, limits
        self.missing = 0  # pictures that are gone, or no longer those that were recorded
        self._identities: dict[str, bytes] = {}
        self._walk = self._pictures()

    def claim(self, limit: int) -> list[Claim]:
        """Return up to `limit` pictures not returned before; none when all were."""
        self._identities.clear()
        return list(islice(self._walk, limit))

    def read(self, claim: Claim, *, limits: PictureLimits) -> bytes:
        """Return the whole content of an archived file.

        Raises:
            PictureError: If it cannot be read.
        """
        return read_archived_bytes(claim.location, limits=limits)

    def sidecar(self, claim: Claim) -> bytes:
        """Return the identity the picture was recorded with, which goes before what its path says today."""
        return self._identities[claim.location]

    def destination(self, claim: Claim, *, captured_at: datetime, sha256: str, rejected: bool) -> str:  # noqa: ARG002
        """Return where the file is: it stays."""
        return claim.location

    def move(self, claim: Claim, *, destination: str) -> None:
        """Leave the file where it is."""

    def release(self, claim: Claim) -> None:
        """Nothing is claimed, so nothing is given back."""

    def strays(self) -> list[str]:
        """Return nothing: no folder is looked through."""
        return []

    def _pictures(self) -> Iterator[Claim]:
        start, end = self._since, datetime.now(UTC)  # what this very run records is not read again
        while start < end:
            until = min(start + timedelta(days=1), end)
            seen: set[str] = set()
            for row in self._store.day(start, until):
                if row.sha256 not in seen and row.predicted_label and self._wanted(row):
                    seen.add(row.sha256)
                    claim = self._claim(row)
                    if claim:
                        yield claim
            start = until

    def _claim(self, row: InspectionSummary) -> Claim | None:
        """Return the picture of a row, or None, and say so, where its file is not the one that was recorded."""
        place = locate_archived(row.archived_to, self._archive)
        try:
            found = hashlib.sha256(read_archived_bytes(place, limits=self._limits)).hexdigest()
        except PictureError as error:
            found = str(error)
        if found != row.sha256:
            self.missing += 1
            _log.warning(
                "inspection %d (serial %s, sha256 %s) is passed over: %s holds %s",
                row.inspection_id,
                row.serial,
                row.sha256,
                place,
                found,
            )
            return None
        identity = {name: getattr(row, name) for name in _IDENTITY} | {"captured_at": row.captured_at.isoformat()}
        self._identities[place] = json.dumps(identity).encode()
        return Claim(row.file_name, place, row.captured_at)


def read_archived(location: str, *, limits: PictureLimits) -> PictureFile:
    """Read a picture from where a recorded inspection says it was put: a path or a URL.

    Raises:
        PictureError: If it is not there or no longer a picture.
    """
    if not file_locations.is_url(location):
        return read_picture(Path(bytes_of_name(location) or location), limits=limits)
    data = read_archived_bytes(location, limits=limits)
    return PictureFile(decode_picture(data, limits=limits), hashlib.sha256(data).hexdigest())


def read_archived_bytes(location: str, *, limits: PictureLimits) -> bytes:
    """Read the file of an archived picture, whatever is in it.

    Raises:
        PictureError: If it is not there or longer than any picture.
    """
    try:
        data = file_locations.read_bytes(bytes_of_name(location) or location, limits.max_bytes + 1)
    except (OSError, ImportError, ValueError) as error:
        raise PictureError(f"{location} cannot be read: {error}", remedy="check that it is still there") from error
    if len(data) > limits.max_bytes:
        raise too_long(len(data), limits.max_bytes)
    return data


def locate_archived(archived_to: str, archive: Path | None = None) -> str:
    """Say where a picture lies now: where its row says, or else below the folder its archive was moved to.

    Args:
        archived_to: The row's path or URL.
        archive: A folder that holds the archive, or an end of its path, now.

    Returns:
        A path or URL; the row's own where the file is found nowhere.
    """
    if archive is None or file_locations.is_url(archived_to) or Path(archived_to).is_file():
        return archived_to
    top = archive.resolve()
    parts = PurePosixPath(archived_to).parts
    for start in range(len(parts)):
        candidate = top.joinpath(*parts[start:]).resolve()  # an absolute first part, or "..", leads out of it
        if candidate.is_relative_to(top) and candidate.is_file():
            return str(candidate)
    return archived_to
