"""Recorded places of files: local paths or URLs, taken literally whatever a camera named a file.

fsspec's own parser reads more into a name than stands there: it takes "a.png::b.png" for a chain of URLs and opens or
deletes a.png. So a local path never gets there, and of a URL the parser sees scheme and host alone.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any, Final

import fsspec

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)")
_LITERAL: Final = frozenset({"file", "local", "memory"})  # backends to which "?" and "#" are letters like any other


def is_url(place: str) -> bool:
    """Tell a URL from a local path.

    >>> is_url("s3://plant/a.png"), is_url("/in/a.png"), is_url("a::s3://b.png"), is_url("C:/a.png")
    (True, False, False, False)
    """
    return _URL.match(place) is not None


def filesystem_of(url: str) -> Any:
    """Return the fsspec filesystem of a recorded URL; its methods take the URL itself, letter by letter.

    Raises:
        ValueError: If it is no URL, or fsspec does not know its scheme.
        ImportError: If the scheme's package is not installed.
        OSError: If it cannot be reached.
    """
    found = _URL.match(url)
    if found is None or "::" in found[2]:
        raise ValueError(f"{url} is no URL of one file")
    return _opened(found[0])[0]


def opened_root(location: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a configured folder or URL, and the folder in it; a folder is taken as it is.

    Raises:
        ValueError: If fsspec does not know the scheme.
        ImportError: If the scheme's package is not installed.
        OSError: If it cannot be reached.
    """
    if "://" not in location:
        return fsspec.filesystem("file"), str(Path(location).absolute())
    return _opened(location)


def _opened(url: str) -> tuple[Any, str]:
    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        if url.lower().startswith(("s3://", "s3a://")):
            raise ImportError("s3fs is not installed: pip install 'inspect-xai[s3]'") from error
        raise
    return files, str(root)


def read_bytes(place: str, most_bytes: int) -> bytes:
    """Return the first `most_bytes` bytes of a file.

    Raises:
        ValueError: As `filesystem_of`.
        ImportError: As `filesystem_of`.
        OSError: If the file cannot be read.
    """
    with _open_file(place) as file:
        return bytes(file.read(most_bytes) or b"")


def sha256_of(place: str) -> str:
    """Return the sha256 of a whole file, in hex.

    Raises:
        ValueError: As `filesystem_of`.
        ImportError: As `filesystem_of`.
        OSError: If the file cannot be read.
    """
    with _open_file(place) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_file(place: str) -> Any:
    if is_url(place):
        return filesystem_of(place).open(place, "rb")
    return os.fdopen(os.open(place, os.O_RDONLY | os.O_NONBLOCK), "rb")  # a pipe is not waited for


def remove_file(place: str) -> None:
    """Delete one file and prove that it is gone; what is gone already is fine.

    Raises:
        ValueError: As `filesystem_of`; or a backend could read a part of the name as a version of another file.
        ImportError: As `filesystem_of`.
        OSError: If it cannot be deleted, or is there still.
    """
    if not is_url(place):
        Path(place).unlink(missing_ok=True)
        if os.path.lexists(place):
            raise OSError("it is there still")
        return
    scheme = place.partition(":")[0].lower()
    if scheme not in _LITERAL and {"?", "#"} & set(place):
        raise ValueError("a name with ? or # could mean another file there: delete it by hand")
    files = filesystem_of(place)
    try:
        files.rm_file(place)
    except FileNotFoundError:
        return
    files.invalidate_cache()
    if files.exists(place):
        raise OSError("it is there still")


def exists(place: str) -> bool:
    """Tell whether something lies at a place, a broken link included.

    Raises:
        ValueError: As `filesystem_of`.
        ImportError: As `filesystem_of`.
        OSError: If it cannot be reached.
    """
    return bool(filesystem_of(place).exists(place)) if is_url(place) else os.path.lexists(place)
