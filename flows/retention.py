"""What the retention rules say is due, deleted at night; a dry run unless the deployment says otherwise.

python -m flows.retention line.toml
"""

import sys
from pathlib import Path
from typing import Any

from prefect import flow

from flows.common import leave_behind, tried_again
from inspect_xai.app import apply_retention
from inspect_xai.settings import load_settings


@flow(name="retention")
def retention(settings: str | None = None, db: str | None = None, *, carry_out: bool = False) -> dict[str, Any]:
    """Find what is due, and delete it where `carry_out` is set; legal holds are kept either way."""
    counts = delete_due(settings, db, carry_out=carry_out)
    done = "Deleted" if carry_out else "Dry run, nothing was deleted; due are"
    leave_behind("retention", counts, summary=f"{done} {counts['pictures']} pictures, {counts['maps']} maps.")
    return counts


@tried_again("delete-due")
def delete_due(settings: str | None, db: str | None, *, carry_out: bool) -> dict[str, Any]:
    """Plan and delete; the ledger says that this flow did it."""
    chosen = load_settings(Path(settings) if settings else None, db=db)
    plan = apply_retention(chosen, carry_out=carry_out, by="flow retention")
    return {
        "carried_out": carry_out,
        "pictures": len(plan.pictures),
        "maps": len(plan.blob_ids),
        "bytes": plan.blob_bytes,
        "inspections": len(plan.inspection_ids),
        "held": plan.held,
    }


if __name__ == "__main__":
    retention(sys.argv[1] if len(sys.argv) > 1 else None)
