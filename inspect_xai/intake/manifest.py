"""manifest.csv: which parts the pictures of a folder show, for cameras that write neither sidecars nor such names."""

import json
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from pathlib import PurePosixPath

from inspect_xai.errors import PictureError
from inspect_xai.files import read_table
from inspect_xai.intake.identity import FIELDS

MANIFEST = "manifest.csv"
MAX_MANIFEST_BYTES = 1 << 24  # some 150,000 rows
_FILE = "file"
_KEPT = 16  # manifests held at a time; lines walk folder by folder


class Manifests:
    """The manifests of a source, each read once while it stays as it is.

    Args:
        find: Folder below the source -> path of its manifest, and what changes when it does; None: there is none.
        read: The same path -> its content.
    """

    def __init__(self, *, find: Callable[[str], tuple[str, object] | None], read: Callable[[str], bytes]) -> None:
        self._find = find
        self._rows = lru_cache(maxsize=_KEPT)(lambda path, _stamp: read_manifest(read(path), name=path))

    def sidecar_of(self, file_name: str) -> bytes | None:
        """Return what the nearest manifest that lists a picture says of it, as a sidecar would.

        Args:
            file_name: Path below the source; manifests lie in its folder or any above, the nearest goes first.

        Raises:
            PictureError: If a manifest on the way cannot be read: nobody knows which part the picture shows.
        """
        folder = file_name
        while folder:
            folder = folder.rpartition("/")[0]
            found = self._find(folder)
            if found is not None:
                row = self._rows(*found).get(_key(file_name.removeprefix(f"{folder}/")))
                if row is not None:
                    return json.dumps(row).encode()
        return None


def read_manifest(content: bytes, *, name: str = MANIFEST) -> dict[str, dict[str, str]]:
    """Read a manifest: fields by picture, its path (NFC) below the manifest's folder; empty cells say nothing.

    Args:
        content: UTF-8, a head line, cells divided by commas, or by semicolons where the head line has no comma.
        name: For errors.

    Raises:
        PictureError: If it is no such table, or names a picture twice.
    """
    remedy = "correct the manifest, and put the pictures back"
    try:
        columns, rows = read_table(content)
    except ValueError as error:
        raise PictureError(f"{name} is no table: {error}", expected="CSV in UTF-8", remedy=remedy) from error
    if _FILE not in columns:
        raise PictureError(
            f"{name} has the columns {', '.join(columns) or 'none'}",
            expected=f"{_FILE}, and of {', '.join(FIELDS)} those that are known",
            remedy=remedy,
        )
    found: dict[str, dict[str, str]] = {}
    for _, row in rows:
        picture = _key(str(PurePosixPath(row[_FILE].replace("\\", "/"))))
        if picture in found:
            raise PictureError(f"{name} names {picture} twice", expected="a row a picture", remedy=remedy)
        found[picture] = {field: row[field] for field in FIELDS if row.get(field)}
    return found


def _key(picture: str) -> str:
    """Return a path as it is compared: composed, whichever way a machine writes its letters."""
    return unicodedata.normalize("NFC", picture)
