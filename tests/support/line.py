"""Pictures written into a folder, a line that works on them, and the rows that it leaves."""

from datetime import UTC, datetime
from pathlib import Path

from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.line.line import Line, drain
from inspect_xai.line.stages import IntakeSpec
from inspect_xai.line.summary import LineSummary
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.policy import DefaultPolicy, ExplainRule, Policy
from inspect_xai.records import PictureLimits
from inspect_xai.storage.results import InspectionSummary, StoredInspection
from inspect_xai.storage.store import open_store
from inspect_xai.verify.replay import Replay, Replayer
from tests.support import hostile, spots

LONG_AGO, LONG_AFTER = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


def write(path: Path, seed: int, spot_px: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(hostile.encoded(spots.part(seed, spot_px=spot_px)))
    return path


def explaining(ok_share: float, version: str = "1") -> Policy:
    """Return the policy of a line without a policy file."""
    return DefaultPolicy(version, ExplainRule(ok_share=ok_share))


def run(
    folder: Path, bundle: Path, db: str, *, policy: Policy | None = None, limits: PictureLimits | None = None
) -> LineSummary:
    intake = IntakeSpec(limits=limits or PictureLimits())
    with (
        Line(bundle, db, device="cpu", policy=policy, intake=intake) as line,
        FolderSource(folder, settle_s=0) as source,
    ):
        return drain(line, source, chunk=3)


def rows(db: str) -> list[InspectionSummary]:
    with open_store(db) as store:
        return store.day(LONG_AGO, LONG_AFTER, by="captured_at")


def replay(stored: StoredInspection, picture: bytes, bundle: ModelBundle | Path) -> Replay:
    with Replayer(bundle, device="cpu") as replayer:
        return replayer.replay(stored, picture)
