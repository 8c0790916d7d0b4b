"""The line: pictures claimed, read, judged, explained, recorded and put away; no single picture stops it."""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

from inspect_xai.closing import Closing, closed
from inspect_xai.explain.explainer import Explainer
from inspect_xai.explain.save import versions
from inspect_xai.explain.settings import MOST_SECONDS
from inspect_xai.intake.archive import ArchiveSource
from inspect_xai.intake.decode import quiet_codecs
from inspect_xai.intake.sources import Claim
from inspect_xai.intake.url_source import Source, UrlSource
from inspect_xai.line.record import RecordedPicture, Recorder, in_batches, pipelined
from inspect_xai.line.stages import (
    Examiner,
    IntakeSpec,
    PictureState,
    Schedule,
    decode_and_cut,
    explain,
    judge,
    read_ahead,
    read_several,
    stopped_between_runs,
    until_stopped,
)
from inspect_xai.line.summary import LineSummary, Outcome
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.policy import DefaultPolicy, Policy
from inspect_xai.records import Method, Run, VerdictCode
from inspect_xai.storage.claims import Claims
from inspect_xai.storage.store import open_store
from inspect_xai.verify.golden import FILES_NOT_KNOWN, LET_FILES_BE_KNOWN, verify_at_start

_log = logging.getLogger(__name__)
_DECODERS = 4
_STRAYS_EVERY_S, _STRAYS_LOGGED = 60.0, 20


class Line(Closing):
    """One bundle, one database, opened once; inspects chunk after chunk.

    Args:
        bundle: A bundle folder, or a loaded bundle.
        db: URL of the database.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: Of the network; default: all cores.
        bucket: Masks per run; default: what is kept of a measurement on this machine, else the device's.
        memory_mb: Most memory that a CUDA session takes; default: all there is.
        policy: What is explained, how, and by which thresholds pictures are judged; default: `DefaultPolicy("1")`.
        intake: How files become parts and pixels.
        schedule: When it does its work, and how much it holds meanwhile.
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
        policy: Policy | None = None,
        intake: IntakeSpec | None = None,
        schedule: Schedule | None = None,
        blob_store: str = "",
        golden: Path | None = None,
        ledger_key: Path | None = None,
        opened_by: str = "line",
    ) -> None:
        self._closed = False
        self.policy, self.intake = policy or DefaultPolicy("1"), intake or IntakeSpec()
        self._schedule, self._pattern = schedule or Schedule(), self.intake.pattern()
        self._store = open_store(db, blob_store=blob_store, ledger_key=ledger_key)
        try:
            self._explainer = Explainer(
                bundle, device=device, threads=threads, bucket=bucket, memory_mb=memory_mb, limits=self.intake.limits
            )
            self.fingerprint = self._explainer.engine.bundle.fingerprint
            verified = self._register(golden, by=opened_by)
        except BaseException:
            self._store.close()
            raise
        own = {"device": device, "threads": threads, "memory_mb": memory_mb, "golden": verified, "opened_by": opened_by}
        self.run = Run(
            run_id=uuid.uuid4().hex,
            started_at=datetime.now(UTC),
            provider=self._explainer.engine.provider,
            versions=versions(),
            settings=self._settings() | own,
        )
        self._store.begin_run(self.run)
        self._examiner = Examiner(self._explainer.engine, self.policy, waiting_bytes=self._schedule.waiting_bytes)
        self._recorder = Recorder(
            self._store,
            fingerprint=self.fingerprint,
            policy_version=self.policy.version,
            run_id=self.run.run_id,
            retry_after_s=self._schedule.retry_after_s,
        )

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
        if self._closed:
            raise closed(f"the line of model {self._explainer.card.name}")
        engine, overlap = self._explainer.engine, self._overlap
        recorded: list[RecordedPicture] = []
        with (
            ThreadPoolExecutor(1, thread_name_prefix="record") as recorder,
            quiet_codecs(),
            ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader,
            ThreadPoolExecutor(min(engine.threads, _DECODERS), thread_name_prefix="decode") as decoders,
            stopped_between_runs(engine, stopped),
        ):
            read, decode = self._read(source, claims), self._decode(decoders)
            groups = read_ahead(read, decode, reader=reader, overlap=overlap)
            judged = judge(groups, self._examiner, overturned=cache(self._recorder.overturned_labels))
            explained = until_stopped(explain(judged, self._examiner))
            batches = in_batches(explained, after_each, self._schedule)
            record = partial(self._recorder.record, source)
            for batch in pipelined(record, batches, worker=recorder, overlap=overlap):
                recorded += batch
        self._put_away(source, claims, recorded)
        return [picture.outcome for picture in recorded]

    def method_of(self, product: str, verdict: VerdictCode) -> Method:
        """Return the method by which this line explains a product's pictures of a verdict."""
        return self.policy.explain_settings(self._explainer.engine.card, product, verdict).method

    def sharing(self, source: Source | ArchiveSource) -> AbstractContextManager[None]:
        """Share a URL with other workers inside the block; a folder is shared by renaming, and an archive is not."""
        if not isinstance(source, UrlSource):
            return nullcontext()
        return source.shared(
            Claims(
                self._store.database,
                source.url,
                fingerprint=self.fingerprint,
                policy_version=self.policy.version,
                owner=self.run.run_id,
                lease_s=source.lease_s,
            )
        )

    def close(self) -> None:
        """Free the engine and the database."""
        self._closed = True
        self._explainer.close()
        self._store.close()

    def _register(self, golden: Path | None, *, by: str) -> dict[str, Any] | None:
        """Register model and policy, and run the network once; returns what the golden set said, if there is one."""
        engine, store = self._explainer.engine, self._store
        loaded = engine.bundle
        self.policy.check_against(loaded.card)
        store.registry.register_model(self.fingerprint, loaded.card, bundle_sha256=loaded.sha256, registered_by=by)
        limits = {"limits": asdict(self.intake.limits)}
        store.registry.register_policy(self.policy.version, self.policy.content | limits, by=by)
        if self.policy.explains:
            engine.warm_up()
        verified = verify_at_start(store, self._explainer, golden, by=by) if golden else None
        if store.registry.model(self.fingerprint).bundle_sha256 is None:
            _log.warning("model %s was %s: %s", self.fingerprint[:12], FILES_NOT_KNOWN, LET_FILES_BE_KNOWN)
        return verified

    def _settings(self) -> dict[str, Any]:
        """Return by which settings the run works, as they are recorded with it; replays and reports read them."""
        explainer, loaded = self._explainer, self._explainer.engine.bundle
        return asdict(self.intake) | {
            "policy_version": self.policy.version,
            "ok_share": self.policy.explain.ok_share,
            "plan": self.policy.document,
            "bucket": explainer.engine.bucket,
            "bucket_from": explainer.bucket_from,
            "max_windows": explainer.settings.max_windows,
            "max_seconds": MOST_SECONDS,
            "bundle": str(loaded.folder),
            "bundle_sha256": loaded.sha256,
            "model_sha256": loaded.manifest["files"]["model.onnx"]["sha256"],
        }

    @property
    def _overlap(self) -> bool:
        overlap = self._schedule.overlap
        return self._explainer.engine.device != "cpu" if overlap is None else overlap

    def _read(self, source: Source | ArchiveSource, claims: Sequence[Claim]) -> Callable[[], list[PictureState]]:
        return partial(
            read_several,
            source,
            iter(claims),
            pattern=self._pattern,
            limits=self.intake.limits,
            known=self._recorder.known,
            schedule=self._schedule,
        )

    def _decode(self, decoders: Executor) -> Callable[[Sequence[PictureState]], None]:
        return partial(decode_and_cut, limits=self.intake.limits, cut=self._examiner.cut, decoders=decoders)

    def _put_away(
        self, source: Source | ArchiveSource, claims: Sequence[Claim], recorded: Sequence[RecordedPicture]
    ) -> None:
        """Give back what was not inspected, and move what is recorded out of the way."""
        for claim in claims[len(recorded) :]:
            source.release(claim)
        self._store.database.check_file()  # what is recorded in a file that nobody finds again is not recorded
        for picture in recorded:  # not before: a chunk that is tried again finds all its files
            source.move(picture.claim, destination=picture.destination)


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
    logged_at = 0.0

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
                break
            else:
                if time.monotonic() > logged_at + _STRAYS_EVERY_S:
                    _log_strays(source)
                    logged_at = time.monotonic()
                stop.wait(watch_every_s)
        strays = _log_strays(source)
    return replace(summary, unmatched=len(strays), seconds=time.perf_counter() - start)


def _log_strays(source: Source | ArchiveSource) -> list[str]:
    """Return the sidecars and tables that belong to no picture; the log names each of the first ones once."""
    strays = source.strays()
    for name in strays[:_STRAYS_LOGGED]:
        _warn_once(f"{name} belongs to no picture: nobody read it")
    return strays


@lru_cache(maxsize=4096)
def _warn_once(message: str) -> None:
    _log.warning(message)
