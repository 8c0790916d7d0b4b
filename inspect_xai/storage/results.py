"""Results of the store: frozen values without a connection to the database."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import BundleError
from inspect_xai.records import (
    DOCUMENT_CONFIG,
    Capture,
    Failure,
    Prediction,
    RecordedSettings,
    Region,
    Run,
    Status,
    TileExplanation,
    Verdict,
)

FAITHFULNESS: Final = tuple(
    f"{name}_percent{beside}" for name in ("drop", "increase", "deletion") for beside in ("", "_random")
)
"""Numbers of an explanation's faithfulness that have columns of their own (see explain/faithfulness.py)."""


def is_no_better_than_chance(faithfulness: Mapping[str, Any]) -> bool:
    """Say whether what a map marks matters no more than blobs of the same area: neither shown alone nor taken away.

    >>> shown_alone = {"drop_percent": 40.0, "drop_percent_random": 40.0}
    >>> is_no_better_than_chance(shown_alone | {"deletion_percent": 9.0, "deletion_percent_random": 8.0})
    True
    >>> is_no_better_than_chance(shown_alone | {"deletion_percent": 8.0, "deletion_percent_random": 9.0})
    False
    >>> is_no_better_than_chance({})  # not measured
    False
    """
    names = [name for name in FAITHFULNESS if not name.startswith("increase")]
    if any(faithfulness.get(name) is None for name in names):
        return False
    drop, drop_random, deletion, deletion_random = (float(faithfulness[name]) for name in names)
    return drop >= drop_random and deletion >= deletion_random


@dataclass(frozen=True, slots=True)
class ArchivedPicture:
    """A file that must lie in the archive. `sha256` is that of its bytes only where it is a picture."""

    capture_id: int
    sha256: str
    archived_to: str
    is_picture: bool


@dataclass(frozen=True, slots=True)
class RecordedInspection:
    """The id of a recorded inspection, and whether it was written now or existed already."""

    inspection_id: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A registered model bundle. `card` is the card as it was registered, as JSON."""

    fingerprint: str
    name: str
    version: str
    status: str  # candidate, approved or retired
    status_at: datetime
    status_by: str
    registered_at: datetime
    registered_by: str
    card: dict[str, Any] = field(hash=False)
    golden_result: dict[str, Any] | None = field(hash=False, default=None)
    calibration: dict[str, Any] | None = field(hash=False, default=None)
    bundle_sha256: str | None = None  # of all files of the registered bundle; None: registered before that was kept

    def check_files(self, bundle_sha256: str) -> None:
        """See that a bundle's files are the registered ones; of a model from before that was kept nothing is known.

        Raises:
            BundleError: They are others, although the fingerprint is the same.
        """
        if self.bundle_sha256 in (None, bundle_sha256):
            return
        raise BundleError(
            f"the files of the bundle of {self.name} {self.version} are not those that were registered: "
            f"together they hash to {bundle_sha256[:16]}",
            expected=f"{self.bundle_sha256[:16]}, which is {self.status}" if self.bundle_sha256 else "",
            remedy="copy the registered bundle here again; if it was built again on purpose, register and approve it "
            "again: inspect-xai model register BUNDLE --db URL, inspect-xai model approve BUNDLE --db URL",
        )


@dataclass(frozen=True, slots=True, eq=False)
class StoredExplanation:
    """An explanation as it was recorded.

    Attributes:
        fused: The explanation map, float32 (H, W) of the source picture, off by at most 1/8,190 of its range; None
            where maps were not asked for or were deleted by retention.
        tiles: Windows with their blocks; `BlockMap.sums` is None where `fused` is, and for dropped blocks.
        coverage: Share of the picture's pixels where the map exceeds a thousandth of its largest value.
        fused_sha256: Of the stored fused map; `sums_sha256` of the stored sums, window by window.
        map_bytes: Bytes the maps take in the store.
        maps_deleted: Retention took the maps; the numbers stay.
    """

    status: Status
    settings: RecordedSettings
    forward_passes: int
    provider: str
    timings_ms: dict[str, float]
    notes: tuple[str, ...]
    faithfulness: dict[str, float]
    coverage: float
    regions: tuple[Region, ...]
    tiles: tuple[TileExplanation, ...]
    fused: NDArray[np.float32] | None
    fused_sha256: str
    sums_sha256: tuple[str, ...]
    map_bytes: int
    maps_deleted: bool
    duration_ms: float


@dataclass(frozen=True, slots=True)
class StoredReview:
    """One answer of a person; `superseded`: a later one corrects it."""

    __pydantic_config__: ClassVar = DOCUMENT_CONFIG

    review_id: int
    inspection_id: int
    reviewer: str
    reviewed_at: datetime
    decision: str
    verdict: str
    true_label: str
    reason_code: str
    map_rating: str
    blind: bool
    box: tuple[int, int, int, int] | None
    note: str
    supersedes_id: int | None
    superseded: bool


@dataclass(frozen=True, slots=True, eq=False)
class StoredInspection:
    """Everything known about one inspection, from the picture to the reviews."""

    inspection_id: int
    capture: Capture
    picture_deleted_at: datetime | None  # by retention; None: it was not
    model: StoredModel
    model_status: str  # when the verdict was recorded
    policy_version: str
    run: Run
    inspected_at: datetime
    recorded_at: datetime
    verdict: Verdict
    prediction: Prediction | None
    explanation: StoredExplanation | None
    explain_reason: str
    failure: Failure | None
    duration_ms: float
    reviews: tuple[StoredReview, ...]


@dataclass(frozen=True, slots=True)
class InspectionSummary:
    """One line about one inspection: for lists, queues and reports."""

    inspection_id: int
    sha256: str
    file_name: str
    archived_to: str
    serial: str
    product: str
    lot: str
    line: str
    station: str
    camera: str
    view: str
    shift: str
    captured_at: datetime
    inspected_at: datetime
    verdict: str
    reason: str
    label: str
    score: float
    threshold: float
    predicted_label: str  # empty, with a score of 0: the picture did not reach the network
    predicted_score: float
    fingerprint: str
    model_name: str
    model_version: str
    model_status: str  # when the verdict was recorded
    policy_version: str
    run_id: str
    provider: str
    explained_because: str
    explanation_status: str  # empty: none was made
    passes: int
    support_share: float
    drop_percent: float | None  # as the next five None: not measured
    drop_percent_random: float | None
    increase_percent: float | None
    increase_percent_random: float | None
    deletion_percent: float | None
    deletion_percent_random: float | None
    failure_kind: str
    failure_message: str
    duration_ms: float
    review_decision: str  # of the newest answer; empty: nobody answered yet
    reviewed_verdict: str


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of one group of inspections. `escapes` and `overkill` count what people answered, no estimate."""

    group: tuple[str, ...]
    inspections: int
    ok: int
    ng: int
    unsure: int
    failed: int
    explained: int
    reviewed: int
    overkill: int  # judged NG, and a person said OK
    escapes: int  # judged OK, and a person said NG
    passes: int
    duration_ms: float  # in all
