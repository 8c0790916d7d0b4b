"""Pictures from a place that fsspec can list, read in place; and `open_source` for either kind of source."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from inspect_xai.closing import Closing
from inspect_xai.errors import IntakeError, PictureError, StoreError
from inspect_xai.intake.decode import too_long
from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.intake.manifest import MAX_MANIFEST_BYTES, Manifests
from inspect_xai.intake.sidecars import Listing, is_passed_over
from inspect_xai.intake.sources import MAX_SIDECAR_BYTES, Claim, as_text, utc
from inspect_xai.records import PictureLimits
from inspect_xai.storage import file_locations
from inspect_xai.storage.claims import Claims

_LOOK_AHEAD = 1000  # names whose claims are looked up at once


class UrlSource(Closing):
    """A place that fsspec can list, read in place: memory://, file://, s3://bucket/folder.

    Nothing is moved. Several workers share it through claims in the database (`shared`), which also say what is
    recorded, so that a file is not fetched again; without them the database's uniqueness is the guard.

    Args:
        url: The place.
        lease_s: Claims of a worker that gave no sign of life for this long are taken over.
        ignore: Patterns of names of files and folders that are passed over, beside those of `is_passed_over`.

    Raises:
        IntakeError: If fsspec does not know the protocol or its package is not installed.
    """

    keep = True

    def __init__(self, url: str, *, lease_s: float = 600.0, ignore: Sequence[str] = ()) -> None:
        try:
            self._files, self._root = file_locations.opened_root(url)
        except (ImportError, ValueError, OSError) as error:
            raise IntakeError(
                f"{url} cannot be opened: {error}", expected="a URL that fsspec knows, with its package installed"
            ) from error
        self.url = str(self._files.unstrip_protocol(self._root))
        self.lease_s = lease_s
        self.ignore = tuple(ignore)
        self._claims: Claims | None = None
        self._renewed_at = 0.0
        self._recorded: list[str] = []
        self._beside: dict[str, str] = {}  # of what is claimed: sidecars that the listing showed
        self._problems: dict[str, PictureError] = {}  # of what is claimed: why its sidecar is not known
        self._strays: list[str] = []
        self._manifests_at: dict[str, tuple[str, str]] = {}  # by folder: path and stamp
        self._manifests = Manifests(find=self._manifests_at.get, read=self._read_manifest)
        self._ahead: list[_Listed] = []
        self._walk = self._pictures()

    @contextmanager
    def shared(self, claims: Claims) -> Iterator[None]:
        """Share the place with other workers inside the block; what is still claimed at its end is given back."""
        self._claims, self._renewed_at = claims, time.monotonic()
        try:
            yield
        finally:
            self._claims = None
            with suppress(StoreError):  # leases end by themselves
                claims.recorded(self._recorded)
                claims.release()
            self._recorded.clear()

    def claim(self, limit: int) -> list[Claim]:
        """Return up to `limit` files that nobody else has, and that were not returned before; none when all were.

        Raises:
            IntakeError: If the place cannot be listed.
        """
        try:
            if self._claims is None:
                return [self._entry(listed) for listed in islice(self._walk, limit)]
            self._claims.recorded(self._recorded)
            self._recorded.clear()
            claims = self._claim_along_walk(self._claims, limit)
            if not claims:
                self._files.invalidate_cache()
                self._walk = self._pictures()  # what came since the last walk began, and what dead workers left
                claims = self._claim_along_walk(self._claims, limit)
        except OSError as error:
            raise IntakeError(f"{self._root} cannot be listed: {error}", remedy="check the URL") from error
        return claims

    def strays(self) -> list[str]:
        """Return the JSON and CSV files that belong to no picture, as the last listing showed them."""
        return sorted(self._strays)

    def read(self, claim: Claim, *, limits: PictureLimits) -> bytes:
        """Return the whole content of a file.

        Raises:
            PictureError: If it is too long, may not be read, or is gone.
            IntakeError: If the place cannot be reached; the picture is as good as before.
        """
        if self._claims is not None and time.monotonic() - self._renewed_at > self.lease_s / 3:
            self._claims.renew()
            self._renewed_at = time.monotonic()
        return self._fetch(claim.location, limits.max_bytes)

    def sidecar(self, claim: Claim) -> bytes | None:
        """Return the sidecar of a picture, else its row in a manifest as one; None: there is neither.

        Raises:
            PictureError: If there is one and it cannot be read, or may mean another picture.
            IntakeError: If the place cannot be reached.
        """
        if claim.location in self._problems:
            raise self._problems[claim.location]
        beside = self._beside.get(claim.location)
        if beside is not None:
            return self._fetch(beside, MAX_SIDECAR_BYTES)
        return self._manifests.sidecar_of(claim.file_name)

    def destination(self, claim: Claim, *, captured_at: datetime, sha256: str, rejected: bool) -> str:  # noqa: ARG002
        """Return the file's URL: it stays where it is."""
        return str(self._files.unstrip_protocol(claim.location))

    def move(self, claim: Claim, *, destination: str) -> None:  # noqa: ARG002
        """Leave the file where it is; it is recorded, which is written down with the next claim."""
        self._forget(claim)
        self._recorded.append(claim.file_name)

    def release(self, claim: Claim) -> None:
        """Leave the file to any worker; that is written down when the place is no longer shared."""
        self._forget(claim)

    def _forget(self, claim: Claim) -> None:
        self._beside.pop(claim.location, None)
        self._problems.pop(claim.location, None)

    def close(self) -> None:
        """Nothing is held open."""

    def _claim_along_walk(self, shared: Claims, limit: int) -> list[Claim]:
        claims: list[Claim] = []
        while len(claims) < limit:
            self._ahead += islice(self._walk, _LOOK_AHEAD - len(self._ahead))
            if not self._ahead:
                break
            stamps = {listed.file_name: listed.stamp for listed in self._ahead}
            taken = shared.take(stamps, most=limit - len(claims))
            claims += [self._entry(listed) for listed in self._ahead if listed.file_name in taken]
            full = len(claims) == limit
            last = max((n for n, listed in enumerate(self._ahead) if listed.file_name in taken), default=0)
            self._ahead = self._ahead[last + 1 :] if full else []
        return claims

    def _entry(self, listed: "_Listed") -> Claim:
        if listed.sidecar:
            self._beside[listed.location] = listed.sidecar
        if listed.problem:
            self._problems[listed.location] = listed.problem
        return Claim(listed.file_name, listed.location, listed.changed_at)

    def _pictures(self) -> Iterator["_Listed"]:
        self._strays = []
        for folder, folders, files in self._files.walk(self._root, detail=True, on_error="raise"):
            for name in [name for name in folders if is_passed_over(name, self.ignore)]:
                del folders[name]
            listing = Listing([name for name in files if not is_passed_over(name, self.ignore)])
            below = self._below({"name": folder})
            self._manifests_at.pop(below, None)
            if listing.manifest is not None:
                found = files[listing.manifest]
                self._manifests_at[below] = self._below(found), _stamp_of(found)
            self._strays += [self._below(files[name]) for name in listing.strays()]
            for name in listing.pictures:
                found, (beside, problem) = files[name], listing.sidecar_of(name)
                yield _Listed(
                    self._below(found),
                    found["name"],
                    _changed_at(found),
                    _stamp_of(found),
                    files[beside]["name"] if beside else "",
                    problem,
                )

    def _below(self, found: dict[str, Any]) -> str:
        return as_text(str(found["name"]).removeprefix(self._root).lstrip("/"))

    def _read_manifest(self, path: str) -> bytes:
        return self._fetch(f"{self._root.rstrip('/')}/{path}", MAX_MANIFEST_BYTES)

    def _fetch(self, location: str, max_bytes: int) -> bytes:
        try:
            with self._files.open(location, "rb") as file:
                data: bytes = file.read(max_bytes + 1)
        except (FileNotFoundError, PermissionError) as error:
            raise PictureError(f"the file cannot be read: {error}", remedy="check that it is still there") from error
        except OSError as error:
            raise IntakeError(f"{location} cannot be reached: {error}", remedy="run it again later") from error
        if len(data) > max_bytes:
            raise too_long(len(data), max_bytes)
        return data


@dataclass(frozen=True, slots=True)
class _Listed:
    """A picture as a listing shows it: path below the source, where it lies, and where its sidecar does."""

    file_name: str
    location: str
    changed_at: datetime
    stamp: str
    sidecar: str
    problem: PictureError | None


Source = FolderSource | UrlSource


def open_source(
    location: str, *, settle_s: float = 1.0, lease_s: float = 600.0, keep: bool = False, ignore: Sequence[str] = ()
) -> Source:
    """Open a folder or a URL as a source of pictures; the arguments are those of `FolderSource`.

    Raises:
        IntakeError: If it cannot be opened.
    """
    if "://" in location:
        return UrlSource(location, lease_s=lease_s, ignore=ignore)
    return FolderSource(Path(location), settle_s=settle_s, lease_s=lease_s, keep=keep, ignore=ignore)


def _stamp_of(found: dict[str, Any]) -> str:
    """Return what changes when a listed file does, as far as its backend says."""
    known = (found.get(key) for key in ("ETag", "mtime", "LastModified", "last_modified", "created"))
    return f"{found.get('size')} {next((each for each in known if each), '')}"


def _changed_at(found: dict[str, Any]) -> datetime:
    """Return the last change of a file as an fsspec listing gives it; the backends do not agree on a name."""
    for key in ("mtime", "LastModified", "last_modified", "created"):
        value = found.get(key)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if isinstance(value, int | float):
            return utc(value)
    return datetime.now(UTC)
