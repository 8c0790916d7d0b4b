"""Check of the archived files against the record: every one is read and hashed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inspect_xai.errors import PictureError
from inspect_xai.intake.archive import locate_archived, read_archived_bytes
from inspect_xai.records import PictureLimits
from inspect_xai.storage.ledger_rows import Finding
from inspect_xai.storage.store import Store

_ANY_SIZE: Final = PictureLimits(max_pixels=2**31)


@dataclass(frozen=True, slots=True)
class FileCheck:
    """Result of the check. `unhashed` files hold no picture: only read, as their hash covers the time of change."""

    read: int
    unhashed: int
    findings: tuple[Finding, ...]


def check_pictures(
    store: Store, *, archive: Path | None = None, on_progress: Callable[[int, int], None] = lambda _done, _of: None
) -> FileCheck:
    """Read every archived picture that retention has not deleted, and compare its sha256 with the recorded one.

    Args:
        store: The record.
        archive: Where the archive lies now, if it was moved.
        on_progress: Called with the number of files read and their total.
    """
    findings: list[Finding] = []
    wanted = store.archived()
    unhashed = 0
    for done, row in enumerate(wanted, start=1):
        named = f"the picture of capture {row.capture_id} at {row.archived_to}"
        try:
            data = read_archived_bytes(locate_archived(row.archived_to, archive), limits=_ANY_SIZE)
        except PictureError as error:
            findings.append(Finding(0, "missing", f"{named}: {error.found}"))
        else:
            unhashed += not row.is_picture
            if row.is_picture and hashlib.sha256(data).hexdigest() != row.sha256:
                findings.append(Finding(0, "changed", f"{named} is another file than was recorded"))
        on_progress(done, len(wanted))
    return FileCheck(len(wanted), unhashed, tuple(findings))
