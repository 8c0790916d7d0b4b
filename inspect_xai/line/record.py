"""Recording judged pictures: in batches, again while the database is away, one by one where it refuses a batch."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from inspect_xai.errors import DatabaseAwayError, ExplanationError, PictureError, RefusedError
from inspect_xai.intake.archive import ArchiveSource
from inspect_xai.intake.identity import by_file, composed
from inspect_xai.intake.sources import Claim
from inspect_xai.intake.url_source import Source
from inspect_xai.line.stages import PictureState, Schedule
from inspect_xai.line.summary import Outcome
from inspect_xai.records import Capture, Failure, Inspection, Part, Reason, Verdict, VerdictCode
from inspect_xai.storage.results import RecordedInspection
from inspect_xai.storage.reviews import overturned_labels
from inspect_xai.storage.store import Store

_log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
_MAX_FAILURE_CHARS = 2000
_PART_FIELDS = ("serial", "product", "lot")


@dataclass(frozen=True, slots=True)
class RecordedPicture:
    """A claimed file, its picture recorded, and where it is to go."""

    claim: Claim
    destination: str
    outcome: Outcome


class Recorder:
    """Records the pictures of one run.

    Args:
        store: An open store, in which model, policy and run are registered.
        fingerprint: Of the model.
        policy_version: Of the policy.
        run_id: Of the run.
        retry_after_s: Pauses before the store is called again while the database is away.
    """

    def __init__(
        self, store: Store, *, fingerprint: str, policy_version: str, run_id: str, retry_after_s: Sequence[float]
    ) -> None:
        self._store, self._retry_after_s = store, retry_after_s
        self._fingerprint, self._policy_version, self._run_id = fingerprint, policy_version, run_id

    def known(self, sha256s: Sequence[str]) -> dict[str, int]:
        """Return the inspection ids, by sha256, of those pictures that are recorded with this model and policy."""
        return self._with_retries(lambda: self._store.known(sha256s, self._fingerprint, self._policy_version))

    def overturned_labels(self, days: int) -> frozenset[str]:
        """Return the labels that people overturned in the last days."""
        since = datetime.now(UTC) - timedelta(days=days)
        return self._with_retries(lambda: overturned_labels(self._store.database, since))

    def record(self, source: Source | ArchiveSource, pictures: Sequence[PictureState]) -> list[RecordedPicture]:
        """Record judged pictures in one transaction; known bytes are not recorded again.

        What the database refuses is recorded picture by picture, the one that it refuses with its reason alone.

        Raises:
            DatabaseAwayError: If the database stays away.
            RefusedError: If the database refuses even a row without the picture's own values.
            StoreError: If the database cannot be written.
        """
        destinations = [_destination(source, picture) for picture in pictures]
        inspections = [
            self._inspection(picture, archived_to=destination) if picture.known_id is None else None
            for picture, destination in zip(pictures, destinations, strict=True)
        ]
        new = [inspection for inspection in inspections if inspection]
        try:
            rows = iter(self._with_retries(lambda: self._store.record(new)) if new else [])
        except RefusedError as error:
            if len(pictures) > 1:  # which was at fault is not known: one by one
                return [recorded for picture in pictures for recorded in self.record(source, [picture])]
            return self._record_refused(source, pictures[0], error)
        parts = self._with_retries(lambda: self._store.parts_of([picture.sha256 for picture in pictures]))
        return [
            RecordedPicture(
                picture.claim,
                destination,
                self._conclude(
                    picture,
                    inspection,
                    next(rows) if inspection else RecordedInspection(picture.known_id or 0, is_new=False),
                    parts.get(picture.sha256),
                ),
            )
            for picture, inspection, destination in zip(pictures, inspections, destinations, strict=True)
        ]

    def _conclude(
        self, picture: PictureState, inspection: Inspection | None, row: RecordedInspection, part: Part | None
    ) -> Outcome:
        """Say what became of a picture; where its bytes were recorded for another part, the ledger gets a note."""
        file_name, named = picture.claim.file_name, picture.identity.part
        recorded_for = _other_part(picture, part)
        if recorded_for:
            self._with_retries(lambda: self._store.note_same_bytes(row.inspection_id, file_name=file_name, part=named))
        verdict = inspection.verdict.code.value if inspection else "known already"
        fields = picture.log_fields() | {"verdict": verdict, "inspection_id": row.inspection_id}
        _log.info("%s is inspection %d: %s", file_name, row.inspection_id, verdict, extra=fields)
        return Outcome(
            file_name=file_name,
            inspection_id=row.inspection_id,
            is_new=row.is_new,
            verdict=inspection.verdict.code if inspection else None,
            explained=picture.explanation is not None,
            failed=picture.error is not None,
            passes=picture.explanation.forward_passes if picture.explanation else 0,
            recorded_for=recorded_for,
        )

    def _record_refused(
        self, source: Source | ArchiveSource, picture: PictureState, error: RefusedError
    ) -> list[RecordedPicture]:
        """Record that a picture was refused, under its file's name; where even that is, the picture is not at fault."""
        if isinstance(picture.error, RefusedError):
            raise error
        _log.error("%s (sha256 %s): %s", picture.claim.file_name, picture.sha256, error, extra=picture.log_fields())
        identity = by_file(picture.claim.file_name, modified_at=picture.claim.modified_at)
        refused = PictureState(
            picture.claim,
            picture.started_at,
            identity,
            sha256=picture.sha256,
            size_px=picture.size_px,
            duration_ms=picture.duration_ms,
            error=error,
        )
        return self.record(source, [refused])

    def _inspection(self, picture: PictureState, *, archived_to: str) -> Inspection:
        identity, judgment, error = picture.identity, picture.judgment, picture.error
        capture = Capture(
            sha256=picture.sha256,
            file_name=picture.claim.file_name,
            part=identity.part,
            captured_at=identity.captured_at,
            line=identity.line,
            station=identity.station,
            camera=identity.camera,
            view=identity.view,
            shift=identity.shift,
            height_px=picture.size_px[0],
            width_px=picture.size_px[1],
            archived_to=archived_to,
            pixels_sha256=picture.pixels_sha256,
            identity_source=identity.known_from,
        )
        return Inspection(
            capture=capture,
            fingerprint=self._fingerprint,
            policy_version=self._policy_version,
            run_id=self._run_id,
            inspected_at=picture.started_at,
            verdict=judgment.verdict if judgment else Verdict(VerdictCode.UNSURE, _reason(error), "", 0.0, 0.0),
            prediction=judgment.prediction if judgment else None,
            explanation=picture.explanation,
            explain_reason=picture.explain_reason,
            failure=Failure(type(error).__name__, str(error)[:_MAX_FAILURE_CHARS]) if error else None,
            duration_ms=picture.duration_ms,
            image_statistics=picture.statistics,
        )

    def _with_retries(self, call: Callable[[], T]) -> T:
        """Call the store, and again a few times while the database is away."""
        for pause_s in self._retry_after_s:
            try:
                return call()
            except DatabaseAwayError as error:
                _log.warning("%s Next try in %g s.", error, pause_s)
                time.sleep(pause_s)
        return call()


def in_batches(
    pictures: Iterable[PictureState], after_each: Callable[[], bool] | None, schedule: Schedule
) -> Iterator[list[PictureState]]:
    """Yield judged pictures, as many as are recorded at once: statements cost more than rows, but nobody waits.

    Args:
        pictures: Judged, and explained where that was asked for.
        after_each: Called after every picture; True: it is the last one.
        schedule: Its `record_at_once`, `record_after_s` and `waiting_bytes`.
    """
    batch: list[PictureState] = []
    held_bytes, started_at = 0, time.monotonic()
    for picture in pictures:
        batch.append(picture)
        held_bytes += picture.explanation.fused.nbytes if picture.explanation else 0
        stopped = after_each is not None and after_each()
        is_late = time.monotonic() > started_at + schedule.record_after_s
        if stopped or is_late or len(batch) >= schedule.record_at_once or held_bytes > schedule.waiting_bytes:
            yield batch
            batch, held_bytes, started_at = [], 0, time.monotonic()
        if stopped:
            return
    if batch:
        yield batch


def pipelined(work: Callable[[T], R], items: Iterable[T], *, worker: Executor, overlap: bool) -> Iterator[R]:
    """Yield what work makes of each item, in order; with `overlap` the worker does it while the next item is made."""
    if not overlap:
        yield from map(work, items)
        return
    pending: Future[R] | None = None
    for item in items:
        if pending:
            yield pending.result()
        pending = worker.submit(work, item)
    if pending:
        yield pending.result()


def _destination(source: Source | ArchiveSource, picture: PictureState) -> str:
    return source.destination(
        picture.claim,
        captured_at=picture.identity.captured_at,
        sha256=picture.sha256,
        rejected=isinstance(picture.error, PictureError),
    )


def _reason(error: Exception | None) -> Reason:
    if isinstance(error, PictureError):
        return Reason.BAD_IMAGE
    return Reason.MODEL_FAILED if isinstance(error, ExplanationError) else Reason.UNFORESEEN


def _other_part(picture: PictureState, recorded: Part | None) -> str:
    """Return the part the same bytes were recorded for before, where it is not the one the file names."""
    named = picture.identity.part
    if recorded is None or all(composed(getattr(recorded, name)) == getattr(named, name) for name in _PART_FIELDS):
        return ""
    _log.warning(
        "%s (serial %s, sha256 %s): the very same bytes were recorded for serial %s, product %r, lot %r before",
        picture.claim.file_name,
        named.serial,
        picture.sha256,
        recorded.serial,
        recorded.product,
        recorded.lot,
    )
    return recorded.serial
