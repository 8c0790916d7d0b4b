"""Verify that the model still computes what it was approved for, on this worker's device: every week, after updates.

python -m flows.golden_check line.toml
"""

import sys
from pathlib import Path
from typing import Any

from prefect import flow

from flows.common import gpu_slot, leave_behind, tried_again
from inspect_xai.app import verify_golden_of
from inspect_xai.errors import GoldenSetError
from inspect_xai.settings import load_settings


@flow(name="golden-check")
def golden_check(settings: str | None = None, bundle: str | None = None, db: str | None = None) -> dict[str, Any]:
    """Compute the golden set, keep the result with the model, and fail where it is beyond tolerance."""
    result = check_golden(settings, bundle, db)
    outcome = "holds" if result["holds"] else "DOES NOT HOLD: this device must not inspect"
    leave_behind("golden-check", result, summary=f"The golden set of {result['bundle']} {outcome}.")
    if not result["holds"]:
        raise GoldenSetError(
            f"{result['beyond']} of {result['pictures']} golden pictures are beyond tolerance",
            remedy="run inspect-xai model verify BUNDLE, and read its table",
        )
    return result


@tried_again("check-golden")
def check_golden(settings: str | None, bundle: str | None, db: str | None) -> dict[str, Any]:
    """Verify on the device of the settings; the result stands beside the model in the database."""
    chosen = load_settings(Path(settings) if settings else None, bundle=bundle, db=db)
    with gpu_slot("CPUExecutionProvider" if chosen.device == "cpu" else chosen.device):
        report = verify_golden_of(chosen, by="flow golden-check")
    return {
        "bundle": str(chosen.bundle),
        "provider": report.provider,
        "holds": report.holds,
        "pictures": len(report.checks),
        "beyond": sum(not check.holds for check in report.checks),
    }


if __name__ == "__main__":
    golden_check(sys.argv[1] if len(sys.argv) > 1 else None)
