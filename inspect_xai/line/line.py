"""The line: pictures claimed, judged, explained, recorded and put away; no single picture stops it."""

import hashlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import (
    BundleError,
    DatabaseAwayError,
    DeviceError,
    ExplanationError,
    InspectXaiError,
    IntakeError,
    PictureError,
    RefusedError,
    SettingsError,
    StoreError,
)
from inspect_xai.explain.explainer import MOST_SECONDS, Explainer, Look, Prepared, Question, explain_together
from inspect_xai.explain.save import versions
from inspect_xai.intake.archive import ArchiveSource
from inspect_xai.intake.decode import decode_picture, hash_of_pixels, memory_for, quiet_codecs
from inspect_xai.intake.identity import Identity, PathPattern, by_file, composed
from inspect_xai.intake.sources import Claim
from inspect_xai.intake.url_source import Source, UrlSource
from inspect_xai.line.summary import LineSummary, Outcome
from inspect_xai.maths.metrics import ebpg
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.policy import LineRules, explainer_for
from inspect_xai.records import (
    Capture,
    Explanation,
    Failure,
    Inspection,
    Method,
    Part,
    PictureSignal,
    Reason,
    Run,
    Verdict,
    VerdictCode,
)
from inspect_xai.statistics.image_statistics import LEAST_SIDE, picture_statistics
from inspect_xai.storage.claims import Claims
from inspect_xai.storage.overturned import overturned_labels
from inspect_xai.storage.results import RecordedInspection
from inspect_xai.storage.store import open_store
from inspect_xai.verify.golden import FILES_NOT_KNOWN, LET_FILES_BE_KNOWN, verify_at_start

_log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


class _Stopped(Exception):  # noqa: N818  no error
    """The line was asked to stop, and the picture at work takes longer than one waits for."""


# What another picture would meet as well: these end the line. All else is the picture's own trouble.
_NOT_THE_PICTURES_FAULT = (StoreError, DeviceError, BundleError, SettingsError, IntakeError, _Stopped)
_STOPS_WITHIN_S = 2.0  # of being asked: a picture that is not done by then is given back
_MOST_WAITING_BYTES = 1 << 26
_READ_AT_ONCE, _MOST_READ_BYTES = 8, 1 << 25
_DECODERS = 4
_RECORDED_AT_ONCE = 64
_RECORDED_AFTER_S = 5.0
_MOST_FAILURE_CHARS = 2000
_PART = ("serial", "product", "lot")
_STRAYS_EVERY_S, _STRAYS_TOLD = 60.0, 20
_TRY_AGAIN_AFTER_S = (0.5, 2.0, 8.0)


@dataclass(slots=True, eq=False)
class _Draft:
    """What is known of one picture so far; whatever fails next, this much is recorded."""

    claim: Claim
    started_at: datetime
    identity: Identity
    sha256: str = ""
    known_id: int | None = None
    size_px: tuple[int, int] = (0, 0)
    pixels_sha256: str = ""
    data: bytes | None = None
    pixels: NDArray[np.uint8] | None = None
    prepared: Prepared | None = None
    scores: NDArray[np.float32] | None = None
    look: Look | None = None
    because: str = ""
    question: Question | None = None
    windows: int = 0
    explanation: Explanation | None = None
    error: Exception | None = None
    duration_ms: float = 0.0
    signal: PictureSignal | None = None


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A claimed file whose picture is recorded, and where it is to go."""

    claim: Claim
    destination: str
    outcome: Outcome


class Line:
    """One bundle, one database, opened once; inspects chunk after chunk.

    Args:
        bundle: A bundle folder, or a loaded bundle.
        db: URL of the database.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: Of the network; default: all cores.
        bucket: Masks per run; default: what is kept of a measurement on this machine, else the device's.
        memory_mb: Most memory that a CUDA session takes; default: all there is.
        rules: By what rules it works.
        blob_store: Where the maps lie; empty: in the database.
        golden: Folder of the golden set that the model must reproduce on this device before it may begin.
        ledger_key: File of the key that signs the ledger's events; None: they are not signed.
        opened_by: Who opens it, for the ledger: a model or policy seen for the first time is registered in this name.

    Raises:
        BundleError: If the folder is no sound bundle, or its files are not those that were registered.
        GoldenSetError: If the model does not reproduce its golden set; the record then says so.
        DeviceError: If the device asked for does not run.
        SettingsError: If the path pattern cannot be read.
        StoreError: If the database cannot be used, or the policy version is kept with other rules.
    """

    def __init__(
        self,
        bundle: ModelBundle | Path | str,
        db: str,
        *,
        device: str = "auto",
        threads: int | None = None,
        bucket: int | None = None,
        memory_mb: int | None = None,
        rules: LineRules | None = None,
        blob_store: str = "",
        golden: Path | None = None,
        ledger_key: Path | None = None,
        opened_by: str = "line",
    ) -> None:
        self.rules = rules or LineRules()
        self._pattern = PathPattern(
            self.rules.path_pattern, zone=ZoneInfo(self.rules.time_zone) if self.rules.time_zone else None
        )
        self._overturned: dict[int, frozenset[str]] = {}  # by days, asked once a chunk
        self._explainer_for = lru_cache(maxsize=256)(self._make_explainer)
        self._store = open_store(db, blob_store=blob_store, ledger_key=ledger_key)
        try:
            self._explainer = Explainer(bundle, device=device, threads=threads, bucket=bucket, memory_mb=memory_mb)
            engine = self._explainer.engine
            loaded = engine.bundle
            self.fingerprint = loaded.fingerprint
            if self.rules.plan:
                self.rules.plan.check_against(loaded.card)
            self._store.register_model(
                self.fingerprint, loaded.card, bundle_sha256=loaded.sha256, registered_by=opened_by
            )
            self._store.register_policy(self.rules.version, self.rules.policy, by=opened_by)
            if self.rules.explains:
                engine.warm_up()
            verified = verify_at_start(self._store, self._explainer, golden, by=opened_by) if golden else None
            if self._store.model(self.fingerprint).bundle_sha256 is None:
                _log.warning("model %s was %s: %s", self.fingerprint[:12], FILES_NOT_KNOWN, LET_FILES_BE_KNOWN)
        except BaseException:
            self._store.close()
            raise
        self.run = Run(
            run_id=uuid.uuid4().hex,
            started_at=datetime.now(UTC),
            provider=engine.provider,
            versions=versions(),
            settings=asdict(self.rules)
            | {
                "device": device,
                "threads": threads,
                "bucket": engine.bucket,
                "bucket_from": self._explainer.bucket_from,
                "memory_mb": memory_mb,
                "max_windows": self._explainer.max_windows,
                "max_seconds": MOST_SECONDS,
                "bundle": str(loaded.folder),
                "bundle_sha256": loaded.sha256,
                "model_sha256": loaded.manifest["files"]["model.onnx"]["sha256"],
                "golden": verified,
                "opened_by": opened_by,
            },
        )
        self._store.begin_run(self.run)

    def inspect(
        self,
        source: Source | ArchiveSource,
        claims: Sequence[Claim],
        *,
        after_each: Callable[[], bool] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> list[Outcome]:
        """Inspect a chunk of claimed files and record them, several in a transaction; then put the files away.

        What is judged is recorded within seconds, on a GPU while the network is at work on the next. A crash at any
        moment is harmless: before the transaction nothing is recorded, after it the picture is known.

        Args:
            source: Where the files were claimed.
            claims: The files.
            after_each: Called after every picture; when it returns True the rest of the chunk is given back.
            stopped: Asked before every run of the network; a picture that is not done two seconds after it returned
                True is given back with the rest.

        Returns:
            One outcome per inspected file, in order.

        Raises:
            DatabaseAwayError: If the database stays away; all the files stay claimed and nothing is lost: those
                recorded before it went are known when the chunk is inspected again.
            DeviceError: If the device fails; the same.
            IntakeError: If files cannot be moved; they are recorded, and moved the next time.
            StoreError: If the database's file is gone or was replaced; all the files stay claimed.
        """
        self._overturned.clear()
        done: list[_Recorded] = []
        with (
            ThreadPoolExecutor(1, thread_name_prefix="record") as recorder,
            closing(self._judged(source, claims)) as judged,
            self._stopped_by(stopped),
        ):
            record, batches = partial(self._record, source), self._batches(judged, after_each)
            # On a CPU the network needs all cores: what another thread does meanwhile holds it up for just as long.
            recorded = map(record, batches) if self._on_cpu else _while_the_next_is_made(recorder, record, batches)
            for some in recorded:
                done += some
        for rest in claims[len(done) :]:
            source.release(rest)
        self._store.check_file()  # what is recorded in a file that nobody finds again is not recorded
        for each in done:  # not before: a chunk that is tried again finds all its files
            source.move(each.claim, destination=each.destination)
        return [each.outcome for each in done]

    def method_of(self, product: str) -> Method:
        """By which method the rules of this line explain a product's pictures."""
        return Method(self.rules.rule_of(product).method or self._explainer.method)

    def sharing(self, source: Source | ArchiveSource) -> AbstractContextManager[None]:
        """Share a URL with other workers inside the block; a folder is shared by renaming, and an archive is not."""
        if not isinstance(source, UrlSource):
            return nullcontext()
        return source.shared(
            Claims(
                self._store,
                source.url,
                fingerprint=self.fingerprint,
                policy_version=self.rules.version,
                owner=self.run.run_id,
                lease_s=source.lease_s,
            )
        )

    def close(self) -> None:
        """Free the engine and the database."""
        self._explainer.close()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _on_cpu(self) -> bool:
        return self._explainer.engine.device == "cpu"

    def _judged(self, source: Source | ArchiveSource, claims: Sequence[Claim]) -> Generator[_Draft, None, None]:
        """Yield the pictures, judged, in order; while some are with the network the files of the next are read.

        On a GPU they are decoded meanwhile, too. On a CPU that would hold the network up: it needs all cores and drives
        all else out of their caches. So several pictures take each step together, between its runs or in them.

        Pictures to be explained wait for each other until their windows fill the network's runs. Where the line is
        stopped, those that are not done are not yielded.
        """
        with suppress(_Stopped):
            yield from self._judged_to_the_end(source, claims)

    def _judged_to_the_end(
        self, source: Source | ArchiveSource, claims: Sequence[Claim]
    ) -> Generator[_Draft, None, None]:
        waiting: list[_Draft] = []
        threads = min(self._explainer.engine.threads, _DECODERS)
        with (
            quiet_codecs(),
            ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader,
            ThreadPoolExecutor(threads, thread_name_prefix="decode") as decoders,
        ):
            read = partial(self._read_some, source, iter(claims), None if self._on_cpu else decoders)
            ahead = reader.submit(read)
            while drafts := ahead.result():
                if self._on_cpu:
                    self._prepare(drafts, decoders)
                ahead = reader.submit(read)
                for draft in drafts:
                    with self._guarding(draft):
                        self._score(draft)
                for draft in drafts:
                    with self._guarding(draft):
                        self._judge(draft)
                    waiting.append(draft)
                    if not self._goes_on_waiting(waiting):
                        self._explain(waiting)
                        yield from waiting
                        waiting = []
        self._explain(waiting)
        yield from waiting

    @contextmanager
    def _stopped_by(self, stopped: Callable[[], bool] | None) -> Iterator[None]:
        """Stop the network inside the block, between two runs, a moment after `stopped` said so."""
        engine, noticed_at = self._explainer.engine, 0.0

        def look() -> None:
            nonlocal noticed_at
            if stopped is not None and stopped():
                noticed_at = noticed_at or time.monotonic()
                if time.monotonic() > noticed_at + _STOPS_WITHIN_S:
                    raise _Stopped

        before, engine.before_run = engine.before_run, look
        try:
            yield
        finally:
            engine.before_run = before

    def _batches(self, judged: Iterable[_Draft], after_each: Callable[[], bool] | None) -> Iterator[list[_Draft]]:
        """Yield judged pictures, as many as are recorded at once: statements cost more than rows, but nobody waits."""
        batch: list[_Draft] = []
        held_bytes, began = 0, time.monotonic()
        for draft in judged:
            batch.append(draft)
            held_bytes += draft.explanation.fused.nbytes if draft.explanation else 0
            stopped = after_each is not None and after_each()
            is_late = time.monotonic() > began + _RECORDED_AFTER_S
            if stopped or is_late or len(batch) >= _RECORDED_AT_ONCE or held_bytes > _MOST_WAITING_BYTES:
                yield batch
                batch, held_bytes, began = [], 0, time.monotonic()
            if stopped:
                return
        if batch:
            yield batch

    def _record(self, source: Source | ArchiveSource, drafts: Sequence[_Draft]) -> list[_Recorded]:
        """Record judged pictures in one transaction, but those whose bytes are known.

        What the database refuses is recorded picture by picture, the one that it refuses with its reason alone.
        """
        destinations = [self._destination(source, draft) for draft in drafts]
        inspections = [
            self._inspection(draft, archived_to=destination) if draft.known_id is None else None
            for draft, destination in zip(drafts, destinations, strict=True)
        ]
        new = [inspection for inspection in inspections if inspection]
        try:
            rows = iter(self._patiently(lambda: self._store.record(new)) if new else [])
        except RefusedError as error:
            if len(drafts) > 1:  # whose fault it was is not known: one by one
                return [recorded for draft in drafts for recorded in self._record(source, [draft])]
            return self._record_refused(source, drafts[0], error)
        parts = self._patiently(lambda: self._store.parts_of([draft.sha256 for draft in drafts]))
        recorded = []
        for draft, inspection, destination in zip(drafts, inspections, destinations, strict=True):
            row = next(rows) if inspection else RecordedInspection(draft.known_id or 0, is_new=False)
            other = _other_part(draft, parts)
            if other:
                self._note_same_bytes(draft, row)
            recorded.append(_Recorded(draft.claim, destination, _outcome(draft, row, inspection, stands_under=other)))
            verdict = inspection.verdict.code.value if inspection else "known already"
            facts = _facts(draft) | {"verdict": verdict, "inspection_id": row.inspection_id}
            _log.info("%s is inspection %d: %s", draft.claim.file_name, row.inspection_id, verdict, extra=facts)
        return recorded

    def _record_refused(self, source: Source | ArchiveSource, draft: _Draft, error: RefusedError) -> list[_Recorded]:
        """Record that a picture was refused, under its file's name; where even that is, the picture is not at fault."""
        if isinstance(draft.error, RefusedError):
            raise error
        _log.error("%s (sha256 %s): %s", draft.claim.file_name, draft.sha256, error, extra=_facts(draft))
        refused = _Draft(
            draft.claim, draft.started_at, by_file(draft.claim.file_name, modified_at=draft.claim.modified_at),
            sha256=draft.sha256, size_px=draft.size_px, duration_ms=draft.duration_ms, error=error,
        )  # fmt: skip
        return self._record(source, [refused])

    def _goes_on_waiting(self, drafts: Sequence[_Draft]) -> bool:
        """Whether pictures are to be explained that another would share runs with, and are few and small enough."""
        asked = [draft.question for draft in drafts if draft.question]
        windows = sum(draft.windows for draft in drafts)
        return (
            0 < windows < self._explainer.engine.windows_at_once
            and len(drafts) < self._explainer.engine.bucket
            and sum(question.look.picture.nbytes for question in asked) < _MOST_WAITING_BYTES
            and all(question.explainer.budget_s is None for question in asked)
        )

    def _explain(self, drafts: Sequence[_Draft]) -> None:
        """Explain pictures together; where that fails, each for itself, so that each bears its own failure."""
        asked = [draft for draft in drafts if draft.question]
        if len(asked) > 1:
            with self._guarding(*asked):
                self._answer(asked)
        for draft in asked:
            if draft.explanation is None:
                with self._guarding(draft):
                    self._answer([draft])
            draft.question = None  # with its pixels

    def _answer(self, drafts: Sequence[_Draft]) -> None:
        found = explain_together([draft.question for draft in drafts if draft.question])
        for draft, explanation in zip(drafts, found, strict=True):
            within = self._within_region(explanation, draft)
            draft.explanation = replace(within, rank=np.empty((0, 0), np.int32), block_maps={})

    @contextmanager
    def _guarding(self, *drafts: _Draft) -> Iterator[None]:
        """Write down what goes wrong with a picture; what another would meet as well goes on up.

        Of several it is not known whose fault it was: nothing is written down, and they are to be tried one by one.
        """
        start = time.perf_counter()
        try:
            yield
        except _NOT_THE_PICTURES_FAULT:
            raise
        except Exception as error:  # noqa: BLE001  the guard: no picture stops the line
            log = _log.warning if isinstance(error, InspectXaiError) else _log.exception
            for draft in drafts if len(drafts) == 1 else ():
                draft.error = error
                log(
                    "%s (serial %s, sha256 %s): %s: %s",
                    draft.claim.file_name, draft.identity.part.serial, draft.sha256 or "unknown", type(error).__name__,
                    error, extra=_facts(draft),
                )  # fmt: skip
        took_ms = (time.perf_counter() - start) * 1e3
        windows = sum(draft.windows or 1 for draft in drafts)
        for draft in drafts:
            draft.duration_ms += took_ms * (draft.windows or 1) / windows

    def _read_some(
        self, source: Source | ArchiveSource, rest: Iterator[Claim], decoders: ThreadPoolExecutor | None
    ) -> list[_Draft]:
        """Read several files in one go, as many as a little memory holds with their pixels; none when all are read."""
        drafts: list[_Draft] = []
        held_bytes = 0
        for claim in islice(rest, _READ_AT_ONCE):
            drafts.append(self._read(source, claim))
            held_bytes += memory_for(drafts[-1].data or b"")
            if held_bytes > _MOST_READ_BYTES:
                break
        known = self._known([draft.sha256 for draft in drafts if draft.data is not None])
        for draft in drafts:
            draft.known_id = known.get(draft.sha256)
        if decoders is not None:
            self._prepare(drafts, decoders)
        return drafts

    def _read(self, source: Source | ArchiveSource, claim: Claim) -> _Draft:
        """Read a file, and which part it shows."""
        draft = _Draft(claim, datetime.now(UTC), self._pattern.stand_in(claim.file_name, modified_at=claim.modified_at))
        data = b""
        with self._guarding(draft):
            try:
                data = source.read(claim, limits=self.rules.limits)
                draft.sha256 = hashlib.sha256(data).hexdigest()
                draft.identity = self._pattern.identify(
                    claim.file_name,
                    modified_at=claim.modified_at,
                    sidecar=source.sidecar(claim),
                    recorded=isinstance(source, ArchiveSource),
                )
            except PictureError:
                draft.sha256 = _hash_of_no_picture(claim, data)
                raise
            draft.data = data
        return draft

    def _prepare(self, drafts: Sequence[_Draft], decoders: ThreadPoolExecutor) -> None:
        """Take pictures from their files' bytes as far as the network.

        First all are decoded, then all are cut: the windows of one would drive the decoder out of the caches.
        """
        for step in (self._decode, self._cut):
            list(decoders.map(step, drafts))

    def _decode(self, draft: _Draft) -> None:
        """Decode a picture, unless what it shows is known."""
        data, draft.data = draft.data, None
        if data is None or draft.known_id is not None:
            return
        with self._guarding(draft):
            try:
                pixels = decode_picture(data, limits=self.rules.limits)
            except PictureError:
                draft.sha256 = _hash_of_no_picture(draft.claim, data)
                raise
            draft.size_px = (pixels.shape[0], pixels.shape[1])
            draft.pixels_sha256 = hash_of_pixels(pixels)
            draft.signal = picture_statistics(pixels) if min(draft.size_px) >= LEAST_SIDE else None
            draft.pixels = pixels

    def _cut(self, draft: _Draft) -> None:
        pixels, draft.pixels = draft.pixels, None
        if pixels is not None:
            with self._guarding(draft):
                draft.prepared = self._explainer.prepare(pixels)

    def _score(self, draft: _Draft) -> None:
        if draft.prepared is not None:
            draft.scores = self._explainer.scores(draft.prepared)

    def _judge(self, draft: _Draft) -> None:
        """Judge a picture, and say how it is to be explained where the policy asks for that, writing down each step."""
        prepared, draft.prepared = draft.prepared, None
        if prepared is None or draft.scores is None:
            return
        product = draft.identity.part.product
        explainer = self._explainer_for(product, draft.identity.station)
        look = explainer.judge(prepared, draft.scores)
        # Kept is what is recorded or rebuilt from it: a chunk of large pictures would not fit into memory otherwise.
        draft.look = replace(look, picture=np.empty((0, 0, 0), np.uint8))
        rule = self.rules.rule_of(product)
        overturned = self._overturned_in(rule.overturned_days)
        draft.because = rule.why(look.verdict.code, draft.sha256, label=look.verdict.label, overturned=overturned)
        if draft.because:
            draft.question = Question(explainer, look, look.verdict.label)
            draft.windows = draft.question.windows

    def _make_explainer(self, product: str, station: str) -> Explainer:
        if self.rules.plan is None:
            return self._explainer
        return explainer_for(self._explainer, self.rules.plan, product=product, station=station)

    def _within_region(self, explanation: Explanation, draft: _Draft) -> Explanation:
        """Measure which share of the map's energy lies where the policy says that parts are inspected."""
        plan, identity = self.rules.plan, draft.identity
        where = plan.inside(station=identity.station, view=identity.view, size_px=draft.size_px) if plan else None
        if where is None or not explanation.fused.any():  # a map of zeros lies neither inside nor outside
            return explanation
        energy = {"energy_in_roi": ebpg(explanation.fused, where)}
        return replace(explanation, faithfulness=explanation.faithfulness | energy)

    def _overturned_in(self, days: int) -> frozenset[str]:
        if days and days not in self._overturned:
            since = datetime.now(UTC) - timedelta(days=days)
            self._overturned[days] = self._patiently(lambda: overturned_labels(self._store, since))
        return self._overturned.get(days, frozenset())

    def _note_same_bytes(self, draft: _Draft, row: RecordedInspection) -> None:
        name, part = draft.claim.file_name, draft.identity.part
        self._patiently(lambda: self._store.note_same_bytes(row.inspection_id, file_name=name, part=part))

    def _known(self, sha256s: Sequence[str]) -> dict[str, int]:
        return self._patiently(lambda: self._store.known(sha256s, self.fingerprint, self.rules.version))

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call the store, and again a few times while the database is away."""
        for wait_s in _TRY_AGAIN_AFTER_S:
            try:
                return call()
            except DatabaseAwayError as error:
                _log.warning("%s Next try in %g s.", error, wait_s)
                time.sleep(wait_s)
        return call()

    def _destination(self, source: Source | ArchiveSource, draft: _Draft) -> str:
        return source.destination(
            draft.claim,
            captured_at=draft.identity.captured_at,
            sha256=draft.sha256,
            rejected=isinstance(draft.error, PictureError),
        )

    def _inspection(self, draft: _Draft, *, archived_to: str) -> Inspection:
        identity, error = draft.identity, draft.error
        capture = Capture(
            sha256=draft.sha256,
            file_name=draft.claim.file_name,
            part=identity.part,
            captured_at=identity.captured_at,
            line=identity.line,
            station=identity.station,
            camera=identity.camera,
            view=identity.view,
            shift=identity.shift,
            height_px=draft.size_px[0],
            width_px=draft.size_px[1],
            archived_to=archived_to,
            pixels_sha256=draft.pixels_sha256,
            known_from=identity.known_from,
        )
        return Inspection(
            capture=capture,
            fingerprint=self.fingerprint,
            policy_version=self.rules.version,
            run_id=self.run.run_id,
            inspected_at=draft.started_at,
            verdict=draft.look.verdict if draft.look else Verdict(VerdictCode.UNSURE, _reason(error), "", 0.0, 0.0),
            prediction=draft.look.prediction if draft.look else None,
            explanation=draft.explanation,
            explained_because=draft.because,
            failure=Failure(type(error).__name__, str(error)[:_MOST_FAILURE_CHARS]) if error else None,
            duration_ms=draft.duration_ms,
            signal=draft.signal,
        )


def drain(
    line: Line,
    source: Source | ArchiveSource,
    *,
    chunk: int = 128,
    watch_every_s: float | None = None,
    stop: threading.Event | None = None,
    on_progress: Callable[[], object] | None = None,
    inspect: Callable[[list[Claim]], list[Outcome]] | None = None,
) -> LineSummary:
    """Inspect everything a source holds, chunk by chunk.

    Args:
        line: An open line.
        source: An open source.
        chunk: Pictures claimed at a time.
        watch_every_s: Look again so often for new pictures; None: end when there are none.
        stop: When set, the picture at work is finished and recorded if that takes no more than two seconds, and the
            rest of its chunk given back.
        on_progress: Called after every picture.
        inspect: Called with every chunk in place of `line.inspect`, for an orchestrator that wraps it.

    Raises:
        DatabaseAwayError: As `Line.inspect`, like the others.
    """
    stop = stop or threading.Event()
    summary = LineSummary(line.run.run_id, line.run.provider)
    start = time.perf_counter()
    strays: list[str] = []
    looked_at = 0.0

    def after_each() -> bool:
        if on_progress:
            on_progress()
        return stop.is_set()

    def inspect_here(claims: list[Claim]) -> list[Outcome]:
        return line.inspect(source, claims, after_each=after_each, stopped=stop.is_set)

    inspect_chunk = inspect or inspect_here
    with line.sharing(source):
        while not stop.is_set():
            claims = source.claim(chunk)
            if claims:
                summary = summary.plus(inspect_chunk(claims))
            elif watch_every_s is None:
                strays = _told_strays(source)
                break
            else:
                if time.monotonic() > looked_at + _STRAYS_EVERY_S:
                    strays, looked_at = _told_strays(source), time.monotonic()
                stop.wait(watch_every_s)
    return replace(summary, unmatched=len(strays), seconds=time.perf_counter() - start)


def _told_strays(source: Source | ArchiveSource) -> list[str]:
    """Return the sidecars and tables that belong to no picture; the log names each of the first ones once."""
    strays = source.strays()
    for name in strays[:_STRAYS_TOLD]:
        _tell_once(f"{name} belongs to no picture: nobody read it")
    return strays


@lru_cache(maxsize=4096)
def _tell_once(message: str) -> None:
    _log.warning(message)


def _while_the_next_is_made(worker: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield what work makes of each item, one after the other, which it does while the next item is being made."""
    at_work: Future[R] | None = None
    for item in items:
        if at_work:
            yield at_work.result()
        at_work = worker.submit(work, item)
    if at_work:
        yield at_work.result()


def _reason(error: Exception | None) -> Reason:
    if isinstance(error, PictureError):
        return Reason.BAD_IMAGE
    return Reason.MODEL_FAILED if isinstance(error, ExplanationError) else Reason.UNFORESEEN


def _hash_of_no_picture(claim: Claim, data: bytes) -> str:
    """Return what stands for a file without a picture: cameras produce the same empty file for many parts."""
    known = f"no picture\0{claim.file_name}\0{claim.modified_at.isoformat()}\0".encode()
    return hashlib.sha256(known + data).hexdigest()


def _other_part(draft: _Draft, parts: Mapping[str, Part]) -> str:
    """Return the part the same bytes were recorded for before, where it is not the one the file names."""
    recorded, named = parts.get(draft.sha256), draft.identity.part
    if recorded is None or all(composed(getattr(recorded, each)) == getattr(named, each) for each in _PART):
        return ""
    _log.warning(
        "%s (serial %s, sha256 %s): the very same bytes were recorded for serial %s, product %r, lot %r before",
        draft.claim.file_name, named.serial, draft.sha256, recorded.serial, recorded.product, recorded.lot,
    )  # fmt: skip
    return recorded.serial


def _facts(draft: _Draft) -> dict[str, object]:
    """Return what every log record about a picture carries, for logs that are searched by machines."""
    identity = draft.identity
    return {
        "serial": identity.part.serial, "sha256": draft.sha256, "line": identity.line, "station": identity.station,
        "file_name": draft.claim.file_name,
    }  # fmt: skip


def _outcome(
    draft: _Draft, row: RecordedInspection, inspection: Inspection | None, *, stands_under: str = ""
) -> Outcome:
    return Outcome(
        file_name=draft.claim.file_name,
        inspection_id=row.inspection_id,
        is_new=row.is_new,
        verdict=inspection.verdict.code if inspection else None,
        explained=draft.explanation is not None,
        failed=draft.error is not None,
        passes=draft.explanation.passes if draft.explanation else 0,
        stands_under=stands_under,
    )
