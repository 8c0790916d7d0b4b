"""The archive as a source: recorded pictures are read again where they lie, as the parts they were recorded for."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path, PurePosixPath

import fsspec

from inspect_xai.errors import IntakeError, PictureError
from inspect_xai.pipeline.intake import Claim
from inspect_xai.pipeline.pictures import DEFAULT_LIMITS, PictureLimits
from inspect_xai.pipeline.remote import locate_archived, read_archived_bytes
from inspect_xai.storage.store import Store
from inspect_xai.storage.stored import InspectionSummary

_log = logging.getLogger(__name__)
_IDENTITY = ("serial", "product", "lot", "line", "station", "camera", "view", "shift")


def lies_below(place: str, folder: str) -> bool:
    """Say whether an archived picture lies below a folder or URL.

    >>> lies_below("s3://plant/in/L1/a.png", "s3://plant/in"), lies_below("s3://plant/in/../b.png", "s3://plant/in")
    (True, False)
    """
    if ("://" in place) != ("://" in folder) or not folder:
        return False
    if "://" not in place:
        return Path(place).resolve().is_relative_to(Path(folder).resolve())
    return place.startswith(f"{folder.rstrip('/')}/") and ".." not in place.split("/")


def remove_archived(place: str) -> None:
    """Delete a picture and its sidecar, in a folder or at a URL; what is gone already is fine.

    Raises:
        IntakeError: If it cannot be deleted.
    """
    picture = PurePosixPath(place)
    try:
        files, path = fsspec.core.url_to_fs(place)
        for each in (path, path.removesuffix(picture.suffix) + ".json"):
            with contextlib.suppress(FileNotFoundError):
                files.rm_file(each)
    except (OSError, ImportError, ValueError) as error:
        raise IntakeError(f"the picture {place} cannot be deleted: {error}", remedy="see that it may be") from error


class ArchiveSource:
    """Pictures recorded before, read from where their rows say, oldest first; nothing is claimed or moved.

    Args:
        store: Where they are recorded; read day by day.
        since: Inspected at or after.
        wanted: Which rows; default: all.
        archive: Folder the archive was moved to.
        limits: Longer files are passed over.
    """

    keep = True

    def __init__(
        self,
        store: Store,
        *,
        since: datetime,
        wanted: Callable[[InspectionSummary], bool] = lambda _row: True,
        archive: Path | None = None,
        limits: PictureLimits = DEFAULT_LIMITS,
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
            _log.warning("inspection %d (serial %s, sha256 %s) is passed over: %s holds %s",
                         row.inspection_id, row.serial, row.sha256, place, found)  # fmt: skip
            return None
        identity = {name: getattr(row, name) for name in _IDENTITY} | {"captured_at": row.captured_at.isoformat()}
        self._identities[place] = json.dumps(identity).encode()
        return Claim(row.file_name, place, row.captured_at)
