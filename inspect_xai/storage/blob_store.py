"""Maps outside of the database: files named by their content's sha256, in a folder or any fsspec URL.

The rule for a crash between the two writes: blob first, row second. What can be left over is a file that no row names;
`Retention.sweep_blobs` removes such files once they are old enough that no chunk can still be on its way to its rows.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from inspect_xai.errors import DatabaseAwayError, StoreError
from inspect_xai.storage import file_locations

_SUFFIX = ".ixm"
_UNFINISHED = ".part"
_REMEDY = "see that the blob store is there, writable and has room; then do it again: nothing was half written"


class BlobStore:
    """Storage of encoded maps outside of the database.

    Args:
        url: A folder, or a URL that fsspec knows ("s3://bucket/maps").
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._files, self._root = file_locations.opened_root(url)
        self._is_local = "file" in (self._files.protocol if isinstance(self._files.protocol, tuple) else ())

    def put(self, sha256: str, data: bytes) -> None:
        """Write a blob; one that is there already is written again, which costs less than asking.

        Raises:
            DatabaseAwayError: It cannot be written.
        """
        place = self._place(sha256)
        try:
            if self._is_local:
                _replace(Path(place), data)
            else:
                self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
                self._files.pipe_file(place, data)
        except OSError as error:
            raise DatabaseAwayError(f"the blob store {self.url} takes nothing: {error}", remedy=_REMEDY) from error

    def ensure(self, sha256: str, data: bytes) -> None:
        """Write a blob again if it was removed since it was put.

        Raises:
            DatabaseAwayError: It cannot be written, or not be asked whether it is there.
        """
        place = self._place(sha256)
        try:
            if self._is_local:
                is_there = Path(place).is_file()
            else:
                self._files.invalidate_cache()
                is_there = self._files.exists(place)
        except OSError as error:
            raise DatabaseAwayError(f"the blob store {self.url} cannot be read: {error}", remedy=_REMEDY) from error
        if not is_there:
            self.put(sha256, data)

    def get(self, sha256: str) -> bytes:
        """Return the bytes of a blob.

        Raises:
            StoreError: There is none under that name.
            DatabaseAwayError: The blob store cannot be read.
        """
        try:
            return bytes(self._files.cat_file(self._place(sha256)))
        except FileNotFoundError as error:
            raise StoreError(f"the map {sha256} is not in the blob store {self.url}") from error
        except OSError as error:
            raise DatabaseAwayError(f"the blob store {self.url} cannot be read: {error}", remedy=_REMEDY) from error

    def remove(self, sha256: str) -> None:
        """Delete a blob; one that is gone already is fine."""
        try:
            self._files.rm_file(self._place(sha256))
        except FileNotFoundError:
            return
        except OSError as error:
            raise DatabaseAwayError(f"the blob store {self.url} deletes nothing: {error}", remedy=_REMEDY) from error

    def names(self) -> Iterator[tuple[str, datetime]]:
        """List all blobs with the time each was last written."""
        for place in self._files.find(self._root):
            name = place.rpartition("/")[2]
            if name.endswith(_SUFFIX):
                yield name.removesuffix(_SUFFIX), self._files.modified(place).astimezone(UTC)

    def sweep_unfinished(self, *, older_than: datetime) -> list[str]:
        """Remove what a killed process left of files it was writing; the names of what was removed come back."""
        removed = []
        for path in Path(self._root).glob(f"*/*{_SUFFIX}.*{_UNFINISHED}") if self._is_local else ():
            with suppress(FileNotFoundError):  # its writer lives, and has just given it its name
                if datetime.fromtimestamp(path.stat().st_mtime, UTC) < older_than:
                    path.unlink()
                    removed.append(path.name)
        return removed

    def _place(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}{_SUFFIX}"


def _replace(path: Path, data: bytes) -> None:
    """Write beside, flush to the disk, rename: the name never stands for half of the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
