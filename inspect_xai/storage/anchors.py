"""Anchors: heads of the ledger's chain, kept where the database's owner cannot write.

A place is a local file with the suffix ".jsonl" (an anchor is a line that is appended), a folder, or a URL that
fsspec knows (an anchor is an object of its own: let the bucket's retention or object lock keep it). An anchor:

    {"anchored_at":"2026-11-23T02:15:00.000000+00:00","events":120,"head":"9f..","signature":"..","signed_by":".."}

`signature` is that of the same JSON without itself and `signed_by`; both are absent where no key is set.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from inspect_xai.errors import DatabaseAwayError
from inspect_xai.storage import file_locations, signing_keys
from inspect_xai.storage.types import canonical

_LINES: Final = ".jsonl"
_SUFFIX: Final = ".json"
_REMEDY: Final = "see that the place of the anchors is there and can be reached, then do it again"


@dataclass(frozen=True, slots=True)
class Anchor:
    """The chain's head at a moment and the number of events up to it. Without a key the last two fields are empty."""

    anchored_at: datetime
    events: int
    head: str
    signed_by: str = ""
    signature: str = ""

    @property
    def words(self) -> str:
        """The text that is signed."""
        moment = self.anchored_at.astimezone(UTC).isoformat(timespec="microseconds")
        return canonical({"anchored_at": moment, "events": self.events, "head": self.head})

    @property
    def has_own_signature(self) -> bool:
        """Whether the signature was made with the key it names."""
        return signing_keys.fits(self.signed_by, self.words, self.signature)


@dataclass(frozen=True, slots=True)
class Anchors:
    """The anchors at a place, oldest first; `broken` names the entries that are no anchors."""

    place: str
    found: tuple[Anchor, ...]
    broken: tuple[str, ...]


def write(place: str, anchor: Anchor) -> None:
    """Append an anchor to a place.

    Raises:
        DatabaseAwayError: It cannot be written there.
    """
    document: dict[str, Any] = json.loads(anchor.words)
    if anchor.signed_by:
        document |= {"signed_by": anchor.signed_by, "signature": anchor.signature}
    data = f"{canonical(document)}\n".encode()
    name = f"{anchor.anchored_at.astimezone(UTC):%Y%m%dT%H%M%S%f}Z-{anchor.events}{_SUFFIX}"
    try:
        if _is_file(place):
            _append(Path(place), data)
        else:
            files, root = file_locations.opened_root(place)
            files.makedirs(root, exist_ok=True)
            files.pipe_file(f"{root}/{name}", data)
    except (OSError, ImportError, ValueError) as error:
        raise DatabaseAwayError(f"no anchor can be written to {place}: {error}", remedy=_REMEDY) from error


def read(place: str) -> Anchors:
    """Read all anchors of a place; one that does not exist has none.

    Raises:
        DatabaseAwayError: It cannot be read.
    """
    found: list[Anchor] = []
    broken: list[str] = []
    try:
        for name, line in _lines(place):
            try:
                found.append(_parsed(line))
            except (ValueError, TypeError, LookupError, AttributeError):
                broken.append(name)
    except (OSError, ImportError, ValueError) as error:
        raise DatabaseAwayError(f"the anchors at {place} cannot be read: {error}", remedy=_REMEDY) from error
    return Anchors(place, tuple(sorted(found, key=lambda each: each.anchored_at)), tuple(broken))


def _is_file(place: str) -> bool:
    return place.endswith(_LINES) and not file_locations.is_url(place)


def _append(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)  # all that `chattr +a` allows
    try:
        os.write(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)


def _lines(place: str) -> Iterator[tuple[str, str]]:
    """Yield each entry that should be an anchor, with its name."""
    if _is_file(place):
        if Path(place).exists():
            lines = Path(place).read_text(encoding="utf-8", errors="replace").splitlines()
            yield from ((f"line {number}", line) for number, line in enumerate(lines, start=1))
        return
    files, root = file_locations.opened_root(place)
    files.invalidate_cache()
    for path in sorted(files.find(root)) if files.exists(root) else ():
        if path.endswith(_SUFFIX):
            yield path.rpartition("/")[2], files.cat_file(path).decode("utf-8", "replace")


def _parsed(line: str) -> Anchor:
    document = json.loads(line)
    moment = datetime.fromisoformat(document["anchored_at"])
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    signed = (document.get("signed_by", ""), document.get("signature", ""))
    return Anchor(moment, int(document["events"]), str(document["head"]), *map(str, signed))
