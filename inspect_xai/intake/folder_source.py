"""A folder that cameras write into, as a source of pictures (`url_source.py` reads URLs in place).

    DIR/L1/S3/SN0042_....png          written by a camera; _*, .*, *.part, *.tmp and @eaDir are skipped
    DIR/_claimed/HOST-PID-ID/L1/...   renamed here by the one line that owns it now
    DIR/_archive/2026-11-22/L1/...    renamed here once it is recorded, its hash added to its name
    DIR/_rejected/2026-11-22/L1/...   the same for files without a picture in them

A claim is a rename, so one line wins and the others find nothing. Nothing here has to be right for a picture to be
recorded once: the database's uniqueness sees to that. What is here keeps lines from doing each other's work.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

from inspect_xai.closing import Closing, closed
from inspect_xai.errors import IntakeError, PictureError
from inspect_xai.intake.identity import AMBIGUOUS, HASH_DIGITS, SHARED_BY, ambiguous, shared
from inspect_xai.intake.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifests
from inspect_xai.intake.sidecars import (
    UnmatchedFiles,
    find_sidecar,
    has_picture,
    is_passed_over,
    is_picture,
    is_sidecar,
    list_unmatched,
    normalized,
    sharing,
    stem_of,
)
from inspect_xai.intake.sources import MAX_SIDECAR_BYTES, Claim, _read_whole, as_text, utc
from inspect_xai.records import PictureLimits

_log = logging.getLogger(__name__)

_OWNER_FILE = ".owner"  # locked by a living line; its time is the line's last sign of life
_SIGN_EVERY_S = 1.0
_HALF_OPENED_S = 60.0  # a place for claims without its name after so long: its line died while it opened
_MAX_DEPTH = 32  # each level of folders holds one file handle open
_MAX_NAME_BYTES = 255
_LISTINGS = 16  # kept at a time; lines walk folder by folder


class FolderSource(Closing):
    """A folder that cameras write into.

    Args:
        folder: The folder; pictures lie anywhere below it.
        settle_s: A file is ready when it has not changed for this long; 0 for folders nobody writes into.
        lease_s: Claims of a line on another machine that gave no sign of life for this long are taken over. On this
            machine a dead line is known by its lock, at once.
        keep: Leave all files where they are, for read-only folders. Nothing is claimed then: two lines on one such
            folder do the work twice, and still record it once.
        ignore: Patterns of names of files and folders that are passed over, beside those of `is_passed_over`.

    Raises:
        IntakeError: If the folder cannot be read, or not written although `keep` is off.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settle_s: float = 1.0,
        lease_s: float = 600.0,
        keep: bool = False,
        ignore: Sequence[str] = (),
    ) -> None:
        self.folder = folder.absolute()
        self.ignore = tuple(ignore)
        self.settle_s = settle_s
        self.lease_s = lease_s
        self.keep = keep
        if not self.folder.is_dir():
            raise IntakeError(f"{folder} is no folder", expected="the folder that the cameras write into")
        self._manifests = Manifests(
            find=self._manifest_of, read=lambda path: _read_own(f"{self.folder}/{path}", MAX_MANIFEST_BYTES)
        )
        self._beside: dict[str, str | None] = {}  # sidecars of what is claimed, by the picture's place
        self._listings: dict[str, UnmatchedFiles] = {}  # by folder; one serves while no younger picture was claimed
        self._listings_from = 0.0
        self._claims: Path | None = None
        self._closed = False
        self._sign_at = 0.0
        self._lock: IO[str] | None = None
        if not keep:
            self._claims, self._lock = self._open_claims()
        self._walk = self._files() if keep else iter(())

    def claim(self, limit: int) -> list[Claim]:
        """Claim up to `limit` files that are ready; none are returned when the folder holds none."""
        if self._closed:
            raise closed(f"the source {self.folder}")
        claims = self._claim_along_walk(limit)
        if not claims and not self.keep:
            self._walk = self._files()  # what came, or came to rest, since the last walk began
            claims = self._claim_along_walk(limit)
        return claims

    def count(self) -> int:
        """Count what a line would find now, for a progress bar; nothing is claimed."""
        return sum(1 for _ in self._files())

    def strays(self) -> list[str]:
        """Return the JSON and CSV files that belong to no picture now, by their paths below the source.

        A sidecar that came later than its picture is among them, and one whose picture is still to come.
        """
        self._listings_from = self._now()
        unmatched = [
            (name, path)
            for name, path in _files_below(self.folder, self.ignore)
            if name.lower().endswith((".json", ".csv")) and self._belongs_to_nothing(path)
        ]
        oldest = time.time() - self.settle_s
        return sorted(as_text(name) for name, path in unmatched if (stamp := _stamp(path)) and stamp[2] / 1e9 <= oldest)

    def read(self, claim: Claim, *, limits: PictureLimits) -> bytes:
        """Return the whole content of a claimed file.

        Raises:
            PictureError: If it is a link, no file, too long, unreadable, gone, or changes while it is read.
        """
        if time.monotonic() - self._sign_at > _SIGN_EVERY_S:
            self._now()
        return _read_own(claim.location, limits.max_bytes)

    def sidecar(self, claim: Claim) -> bytes | None:
        """Return the sidecar of a claimed picture, else its row in a manifest as one; None: there is neither.

        Raises:
            PictureError: If there is one and it cannot be read, or may mean another picture.
        """
        if self.keep:
            sidecars, pictures = self._candidates(claim.location)
            if len(sidecars) > 1:
                raise ambiguous([as_text(name) for name in sidecars])
            if len(pictures) > 1:
                raise shared([as_text(name) for name in pictures])
            beside = f"{os.path.dirname(claim.location)}/{sidecars[0]}" if sidecars else None  # noqa: PTH120
        else:
            beside = self._sidecar_of(claim)
        if beside is not None:
            return _read_own(beside, MAX_SIDECAR_BYTES)
        return self._manifests.sidecar_of(claim.file_name)

    def destination(self, claim: Claim, *, captured_at: datetime, sha256: str, rejected: bool) -> str:
        """Return where a file will lie once it is recorded; the same file always gets the same place.

        The hash in the name makes moving a file repeatable, and two parts under one name two files.
        """
        if self.keep:
            return as_text(claim.location)
        path = PurePosixPath(claim.file_name)
        name = f"{path.stem}~{sha256[:HASH_DIGITS]}{path.suffix}"
        if len(name.encode()) > _MAX_NAME_BYTES:
            name = sha256[:HASH_DIGITS] + path.suffix
        state = "_rejected" if rejected else "_archive"
        return str(self.folder / state / f"{captured_at:%Y-%m-%d}" / path.parent / name)

    def move(self, claim: Claim, *, destination: str) -> None:
        """Move a recorded file to its `destination`, its sidecar with it; to another disk they are copied.

        Raises:
            IntakeError: If the folder cannot be written; the claim stays and the move is repeated later.
        """
        if self.keep:
            return
        source, target = Path(claim.location), Path(destination)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = self._sidecar_of(claim)
            with suppress(FileNotFoundError):  # another line, which took this one for dead, has moved it already
                _put(source, target)
            if beside is not None:
                with suppress(FileNotFoundError):
                    _put(Path(beside), target.with_suffix(".json"))
        except OSError as error:
            raise _not_written(target, error) from error
        self._beside.pop(claim.location, None)

    def release(self, claim: Claim) -> None:
        """Put a claimed file back for any line to take; if that fails it stays claimed, which is as good."""
        if self.keep:
            return
        claimed = Path(claim.location)
        original = self.folder / claimed.relative_to(self._claims or self.folder)
        beside = self._sidecar_of(claim)
        if not os.path.lexists(original):
            if beside is not None:
                with suppress(OSError):  # the sidecar first: who takes the picture looks for it
                    Path(beside).rename(original.with_name(Path(beside).name))
            with suppress(OSError):
                claimed.rename(original)
                self._beside.pop(claim.location, None)

    def close(self) -> None:
        """Give up the place for claims; files still claimed stay there for the next line."""
        self._closed, self._walk = True, iter(())
        if self._claims is not None and self._lock is not None:
            _prune(self._claims)
            self._lock.close()
            self._claims = self._lock = None

    def _open_claims(self) -> tuple[Path, IO[str]]:
        """Make this line's folder for claims and lock its owner file, which the kernel unlocks when the line dies."""
        token = secrets.token_hex(4)
        claims = self.folder / "_claimed" / f"{socket.gethostname()}-{os.getpid()}-{token}"
        new = claims.with_name(f".new-{token}")  # under its name only once it is locked: no moment to be taken for dead
        try:
            new.mkdir(parents=True)
            lock = (new / _OWNER_FILE).open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
            new.rename(claims)
        except OSError as error:
            raise _not_written(self.folder, error) from error
        return claims, lock

    def _claim_along_walk(self, limit: int) -> list[Claim]:
        claims: list[Claim] = []
        while len(claims) < limit:
            found = list(islice(self._walk, limit - len(claims)))
            if not found:
                break
            claims.extend(claim for name, path in self._at_rest(found) if (claim := self._take(name, path)))
        return claims

    def _files(self) -> Iterator[tuple[str, str]]:
        """Yield (path below the source, path now): first what dead lines left claimed, then what lies in the folder."""
        self._listings.clear()
        if not self.keep:
            for claims in self._dead_lines():
                yield from _pictures_below(claims)
        yield from _pictures_below(self.folder, self.ignore)

    def _dead_lines(self) -> Iterator[Path]:
        for claims in (self.folder / "_claimed").iterdir():
            if claims.name.startswith(".new-") and self._now() - claims.lstat().st_mtime > _HALF_OPENED_S:
                _prune(claims)
            if claims != self._claims and not claims.name.startswith(".") and self._is_dead(claims):
                self._sweep(claims)
                _prune(claims)
                if claims.exists():
                    _log.warning("taking over what a dead line left in %s", claims)
                    yield claims

    def _sweep(self, claims: Path) -> None:
        """Put away the sidecars of pictures that a line had moved already when it died."""
        for folder, _, files in os.walk(claims):
            unmatched = list_unmatched(folder)
            for name in filter(is_sidecar, files):
                left = Path(folder) / name
                if not has_picture(str(left)) and unmatched.is_stray(name):
                    with suppress(OSError):
                        _put(left, self._archived_beside(left.relative_to(claims)))

    def _archived_beside(self, sidecar: Path) -> Path:
        """Return where a sidecar belongs: beside the last archived of its pictures that has none, else aside."""
        stem = stem_of(sidecar.stem) if is_picture(sidecar.stem) else sidecar.stem
        named, archived = normalized(f"{stem}~"), []
        for state in ("_archive", "_rejected"):
            for folder in self.folder.glob(f"{state}/*"):
                with suppress(OSError):
                    archived += [
                        path
                        for path in (folder / sidecar.parent).iterdir()
                        if normalized(path.name).startswith(named)
                        and is_picture(path.name)
                        and find_sidecar(str(path)) is None
                    ]
        if archived:
            return max(archived, key=lambda path: path.lstat().st_ctime_ns).with_suffix(".json")
        aside = self.folder / f"_rejected/{utc(self._now()):%Y-%m-%d}" / sidecar
        aside.parent.mkdir(parents=True, exist_ok=True)
        return aside

    def _is_dead(self, claims: Path) -> bool:
        return is_dead(claims, now=self._now(), lease_s=self.lease_s)

    def _now(self) -> float:
        """Give a sign of life, and return the time by the clock that stamps the files: it may be another machine's."""
        if self._claims is None:
            return time.time()
        self._sign_at = time.monotonic()
        owner = self._claims / _OWNER_FILE
        owner.parent.mkdir(
            parents=True, exist_ok=True
        )  # gone if this line was paused for so long that it counted as dead
        owner.touch()
        return owner.stat().st_mtime

    def _at_rest(self, found: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the files that did not change for `settle_s`; waits at most that long."""
        if self.settle_s <= 0:
            return found
        now = self._now()
        before = {path: _stamp(path) for _, path in found}
        # A change time cannot be set by a program, unlike a modification time that a copy brings along.
        young = {path for path, stamp in before.items() if stamp and not now - max(stamp[1:]) / 1e9 >= self.settle_s}
        if young:
            time.sleep(self.settle_s)
        return [(name, path) for name, path in found if path not in young or before[path] == _stamp(path)]

    def _take(self, name: str, path: str) -> Claim | None:
        """Claim a file by renaming it, or return None where another line was faster."""
        try:
            stat = os.lstat(path)
            self._listings_from = max(self._listings_from, stat.st_ctime + self.settle_s)
            target = path
            if self._claims is not None:
                target = str(self._claims / name)
                if os.path.lexists(target):  # its namesake is still being inspected; a later walk finds this one
                    return None
                beside = self._settled_sidecar(path)
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                # The picture first: its line takes the sidecar too. A Path would keep its parts among the interned.
                os.rename(path, target)  # noqa: PTH104
                self._beside[target] = self._take_sidecar(name, path, target, beside)
        except FileNotFoundError:
            return None
        except OSError as error:
            elsewhere = ": make a folder on another disk another source" if error.errno == errno.EXDEV else ""
            _warn_once(f"{path} cannot be claimed: {error}{elsewhere}")
            return None
        return Claim(as_text(name), target, utc(stat.st_mtime))

    def _take_sidecar(self, name: str, path: str, target: str, beside: str | None) -> str | None:
        """Rename a claimed picture's sidecar, which a line that died may have left where both had lain."""
        original = f"{self.folder}/{name}"
        if beside is None and path != original and not os.path.lexists(original):
            beside = self._settled_sidecar(original)
        if beside is None:
            return None
        with_it = f"{os.path.dirname(target)}/{os.path.basename(beside)}"  # noqa: PTH119, PTH120  as above
        with suppress(FileNotFoundError):
            os.rename(beside, with_it)  # noqa: PTH104
        return with_it

    def _sidecar_of(self, claim: Claim) -> str | None:
        if claim.location in self._beside:
            return self._beside[claim.location]
        return self._settled_sidecar(claim.location)

    def _settled_sidecar(self, path: str) -> str | None:
        """Return the path of a picture's sidecar; where that is not known, it gets one that says so."""
        folder = os.path.dirname(path)  # noqa: PTH120  paths are text here
        sidecars, pictures = self._candidates(path)
        if len(sidecars) > 1:
            return _give_ambiguous(path, sidecars)
        if len(pictures) > 1:
            return _given_to_each(f"{folder}/{sidecars[0]}", pictures, of=path)
        return f"{folder}/{sidecars[0]}" if sidecars else None

    def _candidates(self, path: str) -> tuple[Sequence[str], Sequence[str]]:
        """Return the names of the sidecars that may be a picture's, and of the pictures that may be theirs."""
        beside = find_sidecar(path)
        if beside is not None:
            return [os.path.basename(beside)], sharing(path, beside)  # noqa: PTH119
        folder, name = os.path.split(path)
        return self._unmatched(folder).candidates(name)

    def _unmatched(self, folder: str) -> UnmatchedFiles:
        """Return a folder's unmatched files, as they were when the youngest picture claimed so far was ready."""
        listing = self._listings.get(folder)
        if listing is None or listing.listed_at < self._listings_from:
            try:
                listing = list_unmatched(folder, listed_at=max(self._now(), self._listings_from))
            except OSError:  # the walk has logged why
                listing = UnmatchedFiles({}, {}, listed_at=self._listings_from)
            self._listings.pop(folder, None)
            self._listings[folder] = listing
            if len(self._listings) > _LISTINGS:
                del self._listings[next(iter(self._listings))]
        return listing

    def _belongs_to_nothing(self, path: str) -> bool:
        """Return whether a file is a sidecar without its picture, or a table that is no manifest."""
        folder, name = os.path.split(path)
        if is_sidecar(name):
            return not has_picture(path) and self._unmatched(folder).is_stray(name)
        return path != self._find_manifest(folder)

    def _find_manifest(self, folder: str) -> str | None:
        usual = f"{folder}/{MANIFEST}"
        if os.path.lexists(usual):
            return usual
        name = self._unmatched(folder).manifest
        return None if name is None else f"{folder}/{name}"

    def _manifest_of(self, folder: str) -> tuple[str, object] | None:
        """Return the path below the source of a folder's manifest, and what changes when it does."""
        path = self._find_manifest(f"{self.folder}/{folder}" if folder else str(self.folder))
        stamp = None if path is None else _stamp(path)
        return None if path is None or stamp is None else (os.path.relpath(path, self.folder), stamp)


def is_dead(claims: Path, *, now: float, lease_s: float) -> bool:
    """Return whether the line that claimed into this folder is gone: known by its lock, elsewhere by its lease."""
    owner = claims / _OWNER_FILE
    try:
        if claims.name.rsplit("-", 2)[0] != socket.gethostname():
            return now - owner.stat().st_mtime > lease_s
        with owner.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:  # closed with files still claimed
        return claims.is_dir()
    except OSError:
        return False
    return True


def left_by_the_dead(folder: Path, *, lease_s: float) -> list[Path]:
    """Return the places for claims below a source in which lines that are gone left files; nothing is changed."""
    claimed = folder / "_claimed"
    places = sorted(claimed.iterdir()) if claimed.is_dir() else []
    return [
        place
        for place in places
        if not place.name.startswith(".")
        and is_dead(place, now=time.time(), lease_s=lease_s)
        and any(path.is_file() and path.name != _OWNER_FILE for path in place.rglob("*"))
    ]


def _pictures_below(top: Path, ignore: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield (path below top, path) of everything named like a picture; see `_files_below`."""
    return ((name, path) for name, path in _files_below(top, ignore) if is_picture(path))


def _files_below(top: Path, ignore: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield (path below top, path) of all files and links but those passed over, holding no list of names.

    No link is followed. As text: a million names made into Paths would grow the interpreter's table of interned text,
    which never shrinks.
    """
    folders: list[Any] = []
    _enter(str(top), folders)
    try:
        while folders:
            entry = _next_entry(folders)
            if entry is None or is_passed_over(entry.name, ignore):
                continue
            if entry.is_dir(follow_symlinks=False):
                _enter(entry.path, folders)
            elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
                yield os.path.relpath(entry.path, top), entry.path
    finally:
        for folder in folders:
            folder.close()


def _next_entry(folders: list[Any]) -> os.DirEntry[str] | None:
    """Return the next entry of the innermost folder, or leave that folder and return None."""
    try:
        entry: os.DirEntry[str] | None = next(folders[-1], None)
    except OSError as error:
        _warn_once(f"a folder cannot be listed to its end: {error}")
        entry = None
    if entry is None:
        folders.pop().close()
    return entry


def _enter(path: str, folders: list[Any]) -> None:
    if len(folders) >= _MAX_DEPTH:
        _warn_once(f"{path} lies more than {_MAX_DEPTH} folders deep and is not looked at")
        return
    try:
        folders.append(os.scandir(path))
    except OSError as error:
        _warn_once(f"{path} cannot be listed: {error}")


@lru_cache(maxsize=1024)
def _warn_once(message: str) -> None:
    """Log what every walk finds again, once."""
    _log.warning(message)


def _given_to_each(sidecar: str, pictures: Sequence[str], *, of: str) -> str:
    """Write a sidecar for each picture that shares one, which says so; return the path of one of them.

    Each keeps it wherever it goes: when the first picture is archived, the others must not seem to be the only ones.
    """
    folder = os.path.dirname(sidecar)  # noqa: PTH120  paths are text here
    _warn_once(f"{sidecar} lies beside {len(pictures)} pictures: nobody knows which of them it means")
    content = {SHARED_BY: [as_text(name) for name in pictures]}
    with suppress(PictureError):
        content["sidecar"] = [_read_own(sidecar, MAX_SIDECAR_BYTES).decode("utf-8", "backslashreplace")]
    for name in pictures:
        _write_sidecar(f"{folder}/{name}.json", content)
    with suppress(FileNotFoundError, IsADirectoryError, PermissionError):
        Path(sidecar).unlink()
    return f"{folder}/{os.path.basename(of)}.json"  # noqa: PTH119


def _give_ambiguous(picture: str, sidecars: Sequence[str]) -> str:
    """Give a picture a sidecar that names those which may be its own, and return its path; they stay where they are."""
    _warn_once(f"{len(sidecars)} sidecars may be those of {picture}: {', '.join(map(as_text, sidecars))}")
    _write_sidecar(f"{picture}.json", {AMBIGUOUS: [as_text(name) for name in sidecars]})
    return f"{picture}.json"


def _write_sidecar(path: str, content: dict[str, list[str]]) -> None:
    own = Path(path)
    own.with_suffix(".json.part").write_text(json.dumps(content))
    own.with_suffix(".json.part").rename(own)


def _put(source: Path, target: Path) -> None:
    """Rename a file; onto another file system it is copied, and goes when the copy is on the disk.

    Raises:
        FileNotFoundError: If there is none.
        OSError: If it cannot be written there.
    """
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, target)
    else:
        if os.path.lexists(source):  # two names of one file: such a rename does nothing
            source.unlink()
        return
    source.unlink()


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a link so that its name never stands for half of it, its times with it."""
    aside = target.with_name(f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}.part")
    aside.unlink(missing_ok=True)  # of a line that died here
    if source.is_symlink():
        aside.symlink_to(source.readlink())
    else:
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file, aside.open("xb") as copy:
            shutil.copyfileobj(file, copy)
            copy.flush()
            os.fsync(copy.fileno())
        shutil.copystat(source, aside)
    aside.rename(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _stamp(path: Path | str) -> tuple[int, int, int] | None:
    """Return (size, modification time, change time), the times in nanoseconds; None where the file is gone."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read_own(path: str, max_bytes: int) -> bytes:
    """Read a file that may be anything: no link is followed and no pipe waited for."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            return _read_whole(file, max_bytes)
    except OSError as error:
        if Path(path).is_symlink():
            raise PictureError("the file is a symbolic link", expected="a file", remedy="copy the picture") from error
        raise PictureError(
            f"the file cannot be read: {error.strerror}", remedy="check who moves or locks it"
        ) from error


def _prune(claims: Path) -> None:
    """Remove a place for claims, unless a file still lies in it."""
    with suppress(OSError):
        for folder, _, _ in os.walk(claims, topdown=False):
            if Path(folder) == claims:
                (claims / _OWNER_FILE).unlink(missing_ok=True)
            Path(folder).rmdir()


def _not_written(path: Path, error: OSError) -> IntakeError:
    return IntakeError(
        f"{path} cannot be written: {error.strerror}",
        remedy="give the line the right to rename files there, or leave them in place with --in-place",
    )
