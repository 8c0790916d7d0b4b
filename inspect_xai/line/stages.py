"""The stages between a claimed file and its record: read, decode, judge, explain; no single picture stops them."""

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import (
    BundleError,
    DeviceError,
    InspectXaiError,
    IntakeError,
    PictureError,
    SettingsError,
    StoreError,
)
from inspect_xai.explain.request import ExplainRequest, explain_together
from inspect_xai.explain.window_scores import (
    PreparedPicture,
    WindowScores,
    judge_windows,
    prepare_picture,
    score_windows,
)
from inspect_xai.intake.archive import ArchiveSource
from inspect_xai.intake.decode import decode_picture, hash_of_pixels, memory_for
from inspect_xai.intake.identity import Identity, PathPattern
from inspect_xai.intake.sources import Claim
from inspect_xai.intake.url_source import Source
from inspect_xai.maths.metrics import ebpg
from inspect_xai.model.engine import Engine
from inspect_xai.policy import Policy
from inspect_xai.records import Explanation, ImageStatistics, PictureLimits, no_ranks
from inspect_xai.settings import DEFAULT_PATTERN
from inspect_xai.statistics.image_statistics import LEAST_SIDE, picture_statistics

_log = logging.getLogger(__name__)
_STOP_WITHIN_S = 2.0  # of the request: a picture that is not done by then is given back


class StopRequested(Exception):  # noqa: N818  no error
    """The line was asked to stop, and the picture at work takes longer than one waits for."""


# What another picture would meet as well: these end the line. All else is the picture's own trouble.
_NOT_THE_PICTURES_FAULT = (StoreError, DeviceError, BundleError, SettingsError, IntakeError, StopRequested)


@dataclass(frozen=True, slots=True)
class IntakeSpec:
    """How files become parts and pixels.

    Attributes:
        path_pattern: Which part a picture shows (see `PathPattern`).
        limits: What pictures may be.
        time_zone: The plant's, in which a sidecar's time without zone is read; empty: such a time is refused.
    """

    path_pattern: str = DEFAULT_PATTERN
    limits: PictureLimits = field(default_factory=PictureLimits)
    time_zone: str = ""

    def pattern(self) -> PathPattern:
        """Return what reads the part from a path.

        Raises:
            SettingsError: If the path pattern cannot be read.
        """
        return PathPattern(self.path_pattern, zone=ZoneInfo(self.time_zone) if self.time_zone else None)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a line does its work, and how much it holds meanwhile.

    Attributes:
        overlap: Decode and record while the network is at work; False: between its runs. None: as the device asks. On a
            GPU the cores are free meanwhile; on a CPU the network needs all of them, so that other threads hold it up
            for just as long and drive its numbers out of the caches.
        read_at_once: Most files read in one go.
        read_bytes: No further file is read once these, decoded, take so much memory.
        waiting_bytes: Most bytes of pictures that wait to be explained together, and of maps that wait to be recorded.
        record_at_once: Most pictures recorded in one transaction.
        record_after_s: A judged picture waits no longer for others to be recorded with.
        retry_after_s: Pauses before the database is called again while it is away.
    """

    overlap: bool | None = None
    read_at_once: int = 8
    read_bytes: int = 1 << 25
    waiting_bytes: int = 1 << 26
    record_at_once: int = 64
    record_after_s: float = 5.0
    retry_after_s: tuple[float, ...] = (0.5, 2.0, 8.0)


@dataclass(slots=True, eq=False)
class PictureState:
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
    prepared: PreparedPicture | None = None
    scores: NDArray[np.float32] | None = None
    judgment: WindowScores | None = None
    explain_reason: str = ""
    request: ExplainRequest | None = None
    windows: int = 0
    explanation: Explanation | None = None
    error: Exception | None = None
    duration_ms: float = 0.0
    statistics: ImageStatistics | None = None

    def log_fields(self) -> dict[str, object]:
        """Return what every log record about the picture carries, for logs that are searched by machines."""
        return {
            "serial": self.identity.part.serial,
            "sha256": self.sha256,
            "line": self.identity.line,
            "station": self.identity.station,
            "file_name": self.claim.file_name,
        }


# --- read


def read_ahead(
    read: Callable[[], list[PictureState]],
    decode: Callable[[Sequence[PictureState]], None],
    *,
    reader: Executor,
    overlap: bool,
) -> Iterator[list[PictureState]]:
    """Yield pictures, several at a time, read and decoded; the files of the next ones are read meanwhile.

    Args:
        read: Returns the next pictures, none when all are read.
        decode: Takes them as far as the network.
        reader: Its thread reads.
        overlap: The next ones are decoded meanwhile, too; else when they are asked for.
    """

    def read_and_decode() -> list[PictureState]:
        pictures = read()
        decode(pictures)
        return pictures

    work = read_and_decode if overlap else read
    ahead = reader.submit(work)
    while pictures := ahead.result():
        if not overlap:
            decode(pictures)
        ahead = reader.submit(work)
        yield pictures


def read_several(
    source: Source | ArchiveSource,
    claims: Iterator[Claim],
    *,
    pattern: PathPattern,
    limits: PictureLimits,
    known: Callable[[Sequence[str]], Mapping[str, int]],
    schedule: Schedule,
) -> list[PictureState]:
    """Read several files in one go, as many as a little memory holds with their pixels; none when all are read.

    Args:
        source: Where the files were claimed.
        claims: The files not read so far.
        pattern: Reads the part from a path.
        limits: What pictures may be.
        known: Returns the inspection ids, by sha256, of those that are recorded.
        schedule: Its `read_at_once` and `read_bytes`.
    """
    pictures: list[PictureState] = []
    held_bytes = 0
    for claim in islice(claims, schedule.read_at_once):
        pictures.append(_read(source, claim, pattern, limits))
        held_bytes += memory_for(pictures[-1].data or b"")
        if held_bytes > schedule.read_bytes:
            break
    known_ids = known([picture.sha256 for picture in pictures if picture.data is not None])
    for picture in pictures:
        picture.known_id = known_ids.get(picture.sha256)
    return pictures


def _read(source: Source | ArchiveSource, claim: Claim, pattern: PathPattern, limits: PictureLimits) -> PictureState:
    """Read a file, and which part it shows."""
    picture = PictureState(claim, datetime.now(UTC), pattern.stand_in(claim.file_name, modified_at=claim.modified_at))
    data, sidecar = b"", None
    with _record_failures(picture):
        try:
            data = source.read(claim, limits=limits)
            picture.sha256 = hashlib.sha256(data).hexdigest()
            sidecar = source.sidecar(claim)
            picture.identity = pattern.identify(
                claim.file_name,
                modified_at=claim.modified_at,
                sidecar=sidecar,
                recorded=isinstance(source, ArchiveSource),
            )
        except PictureError:
            picture.identity = pattern.stand_in(claim.file_name, modified_at=claim.modified_at, sidecar=sidecar)
            picture.sha256 = _hash_of_no_picture(claim, data)
            raise
        picture.data = data
    return picture


def _hash_of_no_picture(claim: Claim, data: bytes) -> str:
    """Return what stands for a file without a picture: cameras produce the same empty file for many parts."""
    name = f"no picture\0{claim.file_name}\0{claim.modified_at.isoformat()}\0".encode()
    return hashlib.sha256(name + data).hexdigest()


# --- decode


def decode_and_cut(
    pictures: Sequence[PictureState],
    *,
    limits: PictureLimits,
    cut: Callable[[NDArray[np.uint8]], PreparedPicture],
    decoders: Executor,
) -> None:
    """Take pictures from their files' bytes as far as the network.

    First all are decoded, then all are cut: the windows of one would drive the decoder out of the caches.
    """
    for step in (partial(_decode, limits=limits), partial(_cut, cut=cut)):
        list(decoders.map(step, pictures))


def _decode(picture: PictureState, *, limits: PictureLimits) -> None:
    """Decode a picture, unless what it shows is known."""
    data, picture.data = picture.data, None
    if data is None or picture.known_id is not None:
        return
    with _record_failures(picture):
        try:
            pixels = decode_picture(data, limits=limits)
        except PictureError:
            picture.sha256 = _hash_of_no_picture(picture.claim, data)
            raise
        picture.size_px = (pixels.shape[0], pixels.shape[1])
        picture.pixels_sha256 = hash_of_pixels(pixels)
        picture.statistics = picture_statistics(pixels) if min(picture.size_px) >= LEAST_SIDE else None
        picture.pixels = pixels


def _cut(picture: PictureState, *, cut: Callable[[NDArray[np.uint8]], PreparedPicture]) -> None:
    pixels, picture.pixels = picture.pixels, None
    if pixels is not None:
        with _record_failures(picture):
            picture.prepared = cut(pixels)


# --- judge and explain


class Examiner:
    """The line's way to the network: judges by the policy's thresholds and explains what the policy asks for.

    Args:
        engine: Of the model.
        policy: What is explained, how, and by which thresholds pictures are judged.
        waiting_bytes: Most bytes of pictures that wait to be explained together.
    """

    def __init__(self, engine: Engine, policy: Policy, *, waiting_bytes: int) -> None:
        self._engine, self._policy, self._waiting_bytes = engine, policy, waiting_bytes

    def cut(self, pixels: NDArray[np.uint8]) -> PreparedPicture:
        """Cut a picture, uint8 (H, W) or RGB (H, W, 3), into the network's windows."""
        return prepare_picture(self._engine, pixels)

    def score(self, picture: PictureState) -> None:
        """Run the network over a picture's windows."""
        if picture.prepared is not None:
            picture.scores = score_windows(self._engine, picture.prepared)

    def judge(self, picture: PictureState, overturned: Callable[[int], Collection[str]]) -> None:
        """Judge a picture, and say how it is to be explained where the policy asks for that.

        Args:
            picture: Scored; one that is not stays as it is.
            overturned: Returns the labels that people overturned in a number of days.
        """
        prepared, picture.prepared = picture.prepared, None
        if prepared is None or picture.scores is None:
            return
        product, card = picture.identity.part.product, self._engine.card
        thresholds = self._policy.verdict_of(card, product=product, station=picture.identity.station)
        look = judge_windows(card, prepared, picture.scores, thresholds)
        # Kept is what is recorded or rebuilt from it: a chunk of large pictures would not fit into memory otherwise.
        picture.judgment = replace(look, picture=np.empty((0, 0, 0), np.uint8))
        rule, label = self._policy.rule_of(product), look.verdict.label
        labels = overturned(rule.overturned_days) if rule.overturned_days else frozenset()
        picture.explain_reason = rule.why(look.verdict.code, picture.sha256, label=label, overturned=labels)
        if picture.explain_reason:
            settings = self._policy.explain_settings(card, product, look.verdict.code)
            picture.request = ExplainRequest(self._engine, look, settings, label)
            picture.windows = picture.request.windows

    def should_batch_more(self, pictures: Sequence[PictureState]) -> bool:
        """Whether pictures are to be explained that another would share runs with, and are few and small enough."""
        requests = [picture.request for picture in pictures if picture.request]
        windows = sum(picture.windows for picture in pictures)
        return (
            0 < windows < self._engine.windows_at_once
            and len(pictures) < self._engine.bucket
            and sum(request.look.picture.nbytes for request in requests) < self._waiting_bytes
            and all(request.settings.budget_s is None for request in requests)
        )

    def explain(self, pictures: Sequence[PictureState]) -> None:
        """Explain pictures together; where that fails, each for itself, so that each bears its own failure."""
        requested = [picture for picture in pictures if picture.request]
        if len(requested) > 1:
            with _record_failures(*requested):
                self._explain_together(requested)
        for picture in requested:
            if picture.explanation is None:
                with _record_failures(picture):
                    self._explain_together([picture])
            picture.request = None  # with its pixels

    def _explain_together(self, pictures: Sequence[PictureState]) -> None:
        explanations = explain_together([picture.request for picture in pictures if picture.request])
        for picture, explanation in zip(pictures, explanations, strict=True):
            measured = self._with_region_energy(explanation, picture)
            picture.explanation = replace(measured, rank_pixels=no_ranks, block_maps={})

    def _with_region_energy(self, explanation: Explanation, picture: PictureState) -> Explanation:
        """Measure which share of the map's energy lies where the policy says that parts are inspected."""
        identity = picture.identity
        region = self._policy.inside(station=identity.station, view=identity.view, size_px=picture.size_px)
        if region is None or not explanation.fused.any():  # a map of zeros lies neither inside nor outside
            return explanation
        energy = {"energy_in_roi": ebpg(explanation.fused, region)}
        return replace(explanation, faithfulness=explanation.faithfulness | energy)


def judge(
    groups: Iterable[Sequence[PictureState]], examiner: Examiner, *, overturned: Callable[[int], Collection[str]]
) -> Iterator[PictureState]:
    """Yield pictures, judged, in order; those read together go through the network one after the other."""
    for pictures in groups:
        for picture in pictures:
            with _record_failures(picture):
                examiner.score(picture)
        for picture in pictures:
            with _record_failures(picture):
                examiner.judge(picture, overturned)
            yield picture


def explain(pictures: Iterable[PictureState], examiner: Examiner) -> Iterator[PictureState]:
    """Yield judged pictures, explained, in order; they wait for each other until their windows fill a run."""
    batch: list[PictureState] = []
    for picture in pictures:
        batch.append(picture)
        if not examiner.should_batch_more(batch):
            examiner.explain(batch)
            yield from batch
            batch = []
    examiner.explain(batch)
    yield from batch


# --- stop, and failures


@contextmanager
def stopped_between_runs(engine: Engine, stopped: Callable[[], bool] | None) -> Iterator[None]:
    """Raise `StopRequested` inside the block, before a run of the network, a moment after `stopped` returned True."""
    noticed_at = 0.0

    def check() -> None:
        nonlocal noticed_at
        if stopped is not None and stopped():
            noticed_at = noticed_at or time.monotonic()
            if time.monotonic() > noticed_at + _STOP_WITHIN_S:
                raise StopRequested

    before, engine.before_run = engine.before_run, check
    try:
        yield
    finally:
        engine.before_run = before


def until_stopped(pictures: Iterable[PictureState]) -> Iterator[PictureState]:
    """Yield pictures up to `StopRequested`: those that are not done are left out."""
    with suppress(StopRequested):
        yield from pictures


@contextmanager
def _record_failures(*pictures: PictureState) -> Iterator[None]:
    """Record what goes wrong with a picture; an error that another picture would meet as well is raised.

    Of several it is not known which was at fault: nothing is recorded, and they are to be tried one by one.
    """
    start = time.perf_counter()
    try:
        yield
    except _NOT_THE_PICTURES_FAULT:
        raise
    except Exception as error:  # noqa: BLE001  the guard: no picture stops the line
        log = _log.warning if isinstance(error, InspectXaiError) else _log.exception
        for picture in pictures if len(pictures) == 1 else ():
            picture.error = error
            log(
                "%s (serial %s, sha256 %s): %s: %s",
                picture.claim.file_name,
                picture.identity.part.serial,
                picture.sha256 or "unknown",
                type(error).__name__,
                error,
                extra=picture.log_fields(),
            )
    elapsed_ms = (time.perf_counter() - start) * 1e3
    windows = sum(picture.windows or 1 for picture in pictures)
    for picture in pictures:
        picture.duration_ms += elapsed_ms * (picture.windows or 1) / windows
