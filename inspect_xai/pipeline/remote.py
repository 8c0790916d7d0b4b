"""Pictures from a place that fsspec can list, read in place; and what opens a source or an archive of either kind."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

import fsspec

from inspect_xai.errors import IntakeError, PictureError
from inspect_xai.pipeline.intake import (
    MAX_SIDECAR_BYTES,
    Claim,
    FolderSource,
    PictureFile,
    as_text,
    is_passed_over,
    is_picture,
    read_picture,
    utc,
)
from inspect_xai.pipeline.pictures import PictureLimits, decode_picture, too_long


class UrlSource:
    """A place that fsspec can list, read in place: memory://, file://, s3://bucket/folder.

    Nothing is moved or claimed; the database's uniqueness is the guard.

    Args:
        url: The place.

    Raises:
        IntakeError: If fsspec does not know the protocol or its package is not installed.
    """

    keep = True

    def __init__(self, url: str) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise IntakeError(
                f"{url} cannot be opened: {error}", expected="a URL that fsspec knows, with its package installed"
            ) from error
        self._walk = self._pictures()

    def claim(self, limit: int) -> list[Claim]:
        """Return up to `limit` files not returned before; none when all were.

        Raises:
            IntakeError: If the place cannot be listed.
        """
        try:
            return list(islice(self._walk, limit))
        except OSError as error:
            raise IntakeError(f"{self._root} cannot be listed: {error}", remedy="check the URL") from error

    def read(self, claim: Claim, *, limits: PictureLimits) -> bytes:
        """Return the whole content of a file.

        Raises:
            PictureError: If it is too long, may not be read, or is gone.
            IntakeError: If the place cannot be reached; the picture is as good as before.
        """
        try:
            with self._files.open(claim.location, "rb") as file:
                data: bytes = file.read(limits.max_bytes + 1)
        except (FileNotFoundError, PermissionError) as error:
            raise PictureError(f"the file cannot be read: {error}", remedy="check that it is still there") from error
        except OSError as error:
            raise IntakeError(f"{claim.location} cannot be reached: {error}", remedy="run it again later") from error
        if len(data) > limits.max_bytes:
            raise too_long(len(data), limits.max_bytes)
        return data

    def sidecar(self, claim: Claim) -> bytes | None:
        """Return the content of the JSON file beside a picture, if there is one."""
        beside = str(PurePosixPath(claim.location).with_suffix(".json"))
        try:
            with self._files.open(beside, "rb") as file:
                content: bytes = file.read(MAX_SIDECAR_BYTES)
        except FileNotFoundError:
            return None
        return content

    def destination(self, claim: Claim, *, captured_at: datetime, sha256: str, rejected: bool) -> str:  # noqa: ARG002
        """Return the file's URL: it stays where it is."""
        return str(self._files.unstrip_protocol(claim.location))

    def move(self, claim: Claim, *, destination: str) -> None:
        """Leave the file where it is."""

    def release(self, claim: Claim) -> None:
        """Nothing is claimed, so nothing is given back."""

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pictures(self) -> Iterator[Claim]:
        for _, folders, files in self._files.walk(self._root, detail=True, on_error="raise"):
            for name in [name for name in folders if is_passed_over(name)]:
                del folders[name]
            for name, found in sorted(files.items()):
                if is_picture(name):
                    path = found["name"]
                    below = path.removeprefix(self._root).lstrip("/")
                    yield Claim(as_text(below), path, _changed_at(found))


Source = FolderSource | UrlSource


def open_source(location: str, *, settle_s: float = 1.0, lease_s: float = 600.0, keep: bool = False) -> Source:
    """Open a folder or a URL as a source of pictures; the arguments are those of `FolderSource`.

    Raises:
        IntakeError: If it cannot be opened.
    """
    if "://" in location:
        return UrlSource(location)
    return FolderSource(Path(location), settle_s=settle_s, lease_s=lease_s, keep=keep)


def read_archived(location: str, *, limits: PictureLimits) -> PictureFile:
    """Read a picture from where a recorded inspection says it was put: a path or a URL.

    Raises:
        PictureError: If it is not there or no longer a picture.
    """
    if "://" not in location:
        return read_picture(Path(location), limits=limits)
    data = read_archived_bytes(location, limits=limits)
    return PictureFile(decode_picture(data, limits=limits), hashlib.sha256(data).hexdigest())


def read_archived_bytes(location: str, *, limits: PictureLimits) -> bytes:
    """Read the file of an archived picture, whatever is in it.

    Raises:
        PictureError: If it is not there or longer than any picture.
    """
    try:
        with fsspec.open(location, "rb") as file:
            data: bytes = file.read(limits.max_bytes + 1)
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
    if archive is None or "://" in archived_to or Path(archived_to).is_file():
        return archived_to
    top = archive.resolve()
    parts = PurePosixPath(archived_to).parts
    for start in range(len(parts)):
        candidate = top.joinpath(*parts[start:]).resolve()  # an absolute first part, or "..", leads out of it
        if candidate.is_relative_to(top) and candidate.is_file():
            return str(candidate)
    return archived_to


def _changed_at(found: dict[str, Any]) -> datetime:
    """Return the last change of a file as an fsspec listing gives it; the backends do not agree on a name."""
    for key in ("mtime", "LastModified", "last_modified", "created"):
        value = found.get(key)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if isinstance(value, int | float):
            return utc(value)
    return datetime.now(UTC)
