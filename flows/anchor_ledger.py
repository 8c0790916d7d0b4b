"""The head of the ledger, kept where the database's owner cannot write: after it nothing changes unseen.

python -m flows.anchor_ledger line.toml
"""

import sys
from pathlib import Path
from typing import Any

from prefect import flow

from flows.common import leave_behind, tried_again
from inspect_xai.app import anchor_head
from inspect_xai.settings import load_settings


@flow(name="anchor-ledger")
def anchor_ledger(settings: str | None = None, db: str | None = None, place: str | None = None) -> dict[str, Any]:
    """Append the chain's head to the anchors; the flow fails where the last anchor is none of this ledger."""
    anchored = anchor_now(settings, db, place)
    leave_behind("anchor-ledger", anchored, summary=f"Anchored {anchored['events']} events: head {anchored['head']}.")
    return anchored


@tried_again("anchor-now")
def anchor_now(settings: str | None, db: str | None, place: str | None) -> dict[str, Any]:
    """Read the head and write it to the place of the settings."""
    chosen = load_settings(Path(settings) if settings else None, db=db)
    made = anchor_head(chosen, place)
    return {
        "place": place or chosen.ledger.anchors,
        "events": made.events,
        "head": made.head,
        "anchored_at": made.anchored_at.isoformat(),
        "signed_by": made.signed_by,
    }


if __name__ == "__main__":
    anchor_ledger(sys.argv[1] if len(sys.argv) > 1 else None)
