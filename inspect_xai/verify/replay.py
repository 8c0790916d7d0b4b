"""Replay of recorded decisions: the archived picture is judged and explained again, and compared with the record.

HOLDS: prediction, verdict and explanation are as recorded, within the tolerances of `tolerance.py`. DIFFERS: a result,
the picture or the model is not as recorded; the differences are listed with their size. CANNOT: picture or model are
missing, so nothing was recomputed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspect_xai.closing import Closing
from inspect_xai.errors import BundleError, ExplanationError, PictureError, SettingsError
from inspect_xai.explain.budget import overhead_passes
from inspect_xai.explain.explainer import Explainer
from inspect_xai.explain.request import ExplainRequest, explain_together
from inspect_xai.explain.save import versions
from inspect_xai.explain.settings import FEWEST_PASSES, ExplainSettings
from inspect_xai.explain.window_scores import WindowScores
from inspect_xai.intake.archive import locate_archived, read_archived_bytes
from inspect_xai.intake.decode import decode_picture, hash_of_pixels
from inspect_xai.maths import tiles
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.policy import policy_from
from inspect_xai.records import Explanation, InputSpec, ModelCard, PictureLimits, TileExplanation, VerdictSpec
from inspect_xai.storage.results import StoredExplanation, StoredInspection
from inspect_xai.verify.tolerance import (
    MAP_TOLERANCE,
    SCORE_TOLERANCE,
    SUMS_TOLERANCE,
    MapAgreement,
    compare_maps,
    scores_off,
    sums_off,
)

_SUPPORT_TOLERANCE = 0.01  # of the picture, where only the share of pixels with evidence is left to compare


class ReplayOutcome(StrEnum):
    """Outcome of a replay."""

    HOLDS = "holds"
    DIFFERS = "differs"
    CANNOT = "cannot"


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that is not as recorded; `off` and `allowed` only for numbers."""

    what: str
    recorded: str
    now: str
    off: float | None = None
    allowed: float | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A circumstance that changed since: a version, the provider, a field of the card."""

    what: str
    recorded: str
    now: str


@dataclass(frozen=True, slots=True)
class Replay:
    """Result of recomputing one inspection.

    Attributes:
        inspection_id: Its id in the database.
        outcome: The answer.
        differences: Values that are not as recorded; empty where the decision holds.
        changed: Circumstances that changed, whether or not they made a difference.
        missing: Why it could not be recomputed, or not all of it compared.
        score_off: Largest difference of a probability; None: not recomputed.
        agreement: Of the fused maps; None: there was none to compare.
    """

    inspection_id: int
    outcome: ReplayOutcome
    differences: tuple[Difference, ...] = ()
    changed: tuple[Change, ...] = ()
    missing: tuple[str, ...] = ()
    score_off: float | None = None
    agreement: MapAgreement | None = None


def archived_picture(stored: StoredInspection, *, archive: Path | None = None) -> bytes:
    """Read the file of an inspection's picture from the archive; `archive`: where that was moved to.

    Raises:
        PictureError: If it is not there.
    """
    place = locate_archived(stored.capture.archived_to, archive)
    if not place:
        raise PictureError("the record names no place of the picture")
    try:
        return read_archived_bytes(place, limits=limits_of(stored))
    except PictureError as error:
        if stored.picture_deleted_at is None:
            raise
        raise PictureError(f"retention deleted it on {stored.picture_deleted_at:%Y-%m-%d}") from error


def limits_of(stored: StoredInspection) -> PictureLimits:
    """Return the rules by which the line decoded the picture: they decide what its pixels are."""
    return PictureLimits.recorded(stored.run.settings)


def _thresholds_of(stored: StoredInspection, card: ModelCard) -> VerdictSpec:
    """Return the thresholds in effect: the card's, or those of the line's policy in their place."""
    plan = stored.run.settings.get("plan")
    if not isinstance(plan, dict):
        return card.verdict
    return policy_from(plan).verdict_of(card, product=stored.capture.part.product, station=stored.capture.station)


def _drawn_by_older_grad_sise(explanation: StoredExplanation) -> bool:
    return any(note.startswith("region_") for note in explanation.notes)


def not_reproducible(stored: StoredInspection, *missing: str) -> Replay:
    """Return the result where picture or model are missing."""
    return Replay(stored.inspection_id, ReplayOutcome.CANNOT, missing=missing)


class Replayer(Closing):
    """Recomputes inspections with one model, its sessions opened once.

    Args:
        bundle: A bundle folder, or a loaded bundle.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        BundleError: If the folder is no sound bundle.
        DeviceError: If the device does not run.
    """

    def __init__(self, bundle: ModelBundle | Path, *, device: str = "auto") -> None:
        self._explainer = Explainer(bundle, device=device)
        self.fingerprint = self._explainer.engine.bundle.fingerprint

    def close(self) -> None:
        """Free the engine."""
        self._explainer.close()

    def replay(self, stored: StoredInspection, picture: bytes) -> Replay:
        """Recompute an inspection, with its maps (`Store.get(..., maps=True)`), from the bytes of its archived file."""
        engine = self._explainer.engine
        changed = tuple(_changes(stored, engine.provider, asdict(engine.card)))
        differences = list(_of_model(stored, engine.bundle))
        if stored.prediction is None:
            return self._replay_failure(stored, picture, differences, changed)
        sha256 = hashlib.sha256(picture).hexdigest()
        if sha256 != stored.capture.sha256:
            differences.append(Difference("picture file", stored.capture.sha256, sha256))
        try:
            pixels = decode_picture(picture, limits=limits_of(stored))
            look = self._explainer.look(pixels, thresholds=_thresholds_of(stored, engine.card))
        except (PictureError, ExplanationError) as error:
            differences.append(Difference("inspection", "a prediction", f"{type(error).__name__}: {error}"))
            return _answer(stored, differences, changed)
        pixels_sha256 = hash_of_pixels(pixels)
        if stored.capture.pixels_sha256 and pixels_sha256 != stored.capture.pixels_sha256:
            differences.append(Difference("decoded pixels", stored.capture.pixels_sha256, pixels_sha256))
        off = scores_off(stored.prediction.scores, look.prediction.scores)
        differences += _of_verdict(stored, look, off)
        missing: tuple[str, ...] = ()
        agreement = None
        if stored.explanation is not None and _drawn_by_older_grad_sise(stored.explanation):
            missing = ("the map: grad-sise of version 0.1, which chose among regions, is not drawn any more",)
        elif stored.explanation is not None:
            try:
                now = self._explain(stored.explanation, look)
            except (ExplanationError, SettingsError, BundleError) as error:
                differences.append(
                    Difference("explanation", str(stored.explanation.status), f"{type(error).__name__}: {error}")
                )
            else:
                agreement = _agreement(stored.explanation, now)
                differences += _of_explanation(stored.explanation, now, agreement)
                if stored.explanation.fused is None:
                    missing = ("the stored maps: retention deleted them, so their numbers alone were compared",)
        return _answer(stored, differences, changed, missing=missing, score_off=off, agreement=agreement)

    def _replay_failure(
        self, stored: StoredInspection, picture: bytes, differences: list[Difference], changed: tuple[Change, ...]
    ) -> Replay:
        """Recompute an inspection without a prediction: it holds when the same failure occurs again."""
        failure = stored.failure
        kind = failure.kind if failure else ""
        try:
            self._explainer.look(decode_picture(picture, limits=limits_of(stored)))
        except (PictureError, ExplanationError) as error:
            if type(error).__name__ != kind:
                differences.append(Difference("failure", kind, f"{type(error).__name__}: {error}"))
            return _answer(stored, differences, changed)
        # The record has no hash of a file that is no picture, so the file may have been exchanged.
        message = failure.message if failure else "nothing"
        missing = f"what failed then ({message}) does not fail now, and no hash shows whether the file changed"
        return replace(not_reproducible(stored, missing), changed=changed)

    def _explain(self, stored: StoredExplanation, look: WindowScores) -> Explanation:
        """Explain by the recorded settings; the number of passes made replaces a bound in seconds."""
        settings, target, against = _settings_of(stored), stored.settings.target, stored.settings.against or None
        if not stored.settings.budget_s:
            only = frozenset(tile.tile.index for tile in stored.tiles) if "windows_left_out" in stored.notes else None
            request = ExplainRequest(self._explainer.engine, look, settings, target, against, only)
            return explain_together([request])[0]
        parts = [
            self._explainer.explain(
                _window_of(look, tile),
                target=target,
                against=against,
                settings=replace(settings, max_passes=_passes_of(tile, stored)),
            )
            for tile in stored.tiles
        ]
        return parts[0] if len(parts) == 1 else _put_together(parts)


def _settings_of(stored: StoredExplanation) -> ExplainSettings:
    """Return the recorded settings, without a bound in windows or seconds: the explained windows are recorded."""
    recorded = stored.settings
    return ExplainSettings(
        recorded.method,
        recorded.mu,
        recorded.baseline,
        recorded.profile,
        recorded.max_passes or None,
        max_windows=None,
        faithfulness=False,
    )


def _passes_of(tile: TileExplanation, stored: StoredExplanation) -> int:
    """Return the bound in passes that gives one window as many scored masks as recorded."""
    scored = sum(block.kept_channels - block.predicted_scores for block in tile.blocks)
    passes = overhead_passes(stored.settings.method) + scored if scored else stored.forward_passes // len(stored.tiles)
    return max(FEWEST_PASSES, passes)


def _window_of(look: WindowScores, tile: TileExplanation) -> WindowScores:
    """Return the look with one window alone, to be given its own bound."""
    index = tile.tile.index
    if index >= len(look.tiles):
        raise SettingsError(f"the picture has {len(look.tiles)} windows, and number {index} was explained")
    return look.alone(index)


def _put_together(parts: list[Explanation]) -> Explanation:
    """Join the explanations of single windows as if they had been explained together."""
    placed = [part.tiles[0] for part in parts]
    maps = []
    for part, explained in zip(parts, placed, strict=True):
        tile = explained.tile
        window = np.zeros((tile.height_px, tile.width_px), np.float32)
        height, width = part.fused.shape
        top, left = max(0, tile.top_px), max(0, tile.left_px)
        bottom, right = min(height, tile.top_px + tile.height_px), min(width, tile.left_px + tile.width_px)
        shown = part.fused[top:bottom, left:right]
        window[top - tile.top_px :, left - tile.left_px :][: shown.shape[0], : shown.shape[1]] = shown
        maps.append(window)
    size = (parts[0].fused.shape[0], parts[0].fused.shape[1])
    fused = tiles.stitch(maps, [explained.tile for explained in placed], size)
    statuses = [part.status for part in parts]
    best = next((status for status in type(statuses[0]) if status in statuses), statuses[0])
    return replace(
        parts[0],
        status=best,
        fused=fused,
        tiles=tuple(placed),
        forward_passes=sum(part.forward_passes for part in parts),
    )


def _answer(
    stored: StoredInspection, differences: list[Difference], changed: tuple[Change, ...], **others: Any
) -> Replay:
    outcome = ReplayOutcome.DIFFERS if differences else ReplayOutcome.HOLDS
    if others.get("score_off") == float("inf"):  # JSON has no infinity; the scores are among the differences
        others["score_off"] = None
    return Replay(stored.inspection_id, outcome, tuple(differences), changed, **others)


def _of_model(stored: StoredInspection, bundle: ModelBundle) -> Iterator[Difference]:
    known = stored.model
    if known.fingerprint != bundle.fingerprint:
        yield Difference("model", known.fingerprint, bundle.fingerprint)
    elif known.bundle_sha256 not in (None, bundle.sha256):
        yield Difference("files of the bundle", known.bundle_sha256 or "", bundle.sha256)


def _of_verdict(stored: StoredInspection, look: WindowScores, off: float) -> Iterator[Difference]:
    prediction, verdict = stored.prediction, stored.verdict
    if prediction is None:
        return
    if off > SCORE_TOLERANCE:
        before, now = _as_text(prediction.scores), _as_text(look.prediction.scores)
        yield Difference("scores", before, now, None if off == float("inf") else off, SCORE_TOLERANCE)
    pairs: dict[str, tuple[object, object]] = {
        "predicted label": (prediction.label, look.prediction.label),
        "verdict": (verdict.code, look.verdict.code),
        "reason": (verdict.reason, look.verdict.reason),
        "deciding label": (verdict.label, look.verdict.label),
        "threshold": (verdict.threshold, look.verdict.threshold),
    }
    for what, (recorded, current) in pairs.items():
        if recorded != current:
            yield Difference(what, str(recorded), str(current))


def _agreement(stored: StoredExplanation, now: Explanation) -> MapAgreement | None:
    if stored.fused is None or stored.fused.shape != now.fused.shape:
        return None
    return compare_maps(stored.fused, now.fused, blocks=max(1, len(now.tiles[0].blocks)))


def _of_explanation(
    stored: StoredExplanation, now: Explanation, agreement: MapAgreement | None
) -> Iterator[Difference]:
    if stored.status is not now.status:
        yield Difference("explanation status", str(stored.status), str(now.status))
    recorded = {tile.tile.index: tile for tile in stored.tiles}
    recomputed = {tile.tile.index: tile for tile in now.tiles}
    if recorded.keys() != recomputed.keys():
        yield Difference("explained windows", _as_text(sorted(recorded)), _as_text(sorted(recomputed)))
    if stored.fused is None:
        share = float((now.fused > 0).mean())
        off = abs(share - stored.coverage)
        if off > _SUPPORT_TOLERANCE:
            yield Difference("support share", f"{stored.coverage:.4f}", f"{share:.4f}", off, _SUPPORT_TOLERANCE)
        return
    for index in recorded.keys() & recomputed.keys():
        yield from _of_blocks(recorded[index], recomputed[index])
    if agreement is None:
        yield Difference("size of the map", _as_text(stored.fused.shape), _as_text(now.fused.shape))
    elif not agreement.holds:
        yield Difference("explanation map", _peak(stored.fused), _peak(now.fused), agreement.off, MAP_TOLERANCE)


def _of_blocks(recorded: TileExplanation, recomputed: TileExplanation) -> Iterator[Difference]:
    now = {block.tensor: block for block in recomputed.blocks}
    for block in recorded.blocks:
        what = f"block {block.tensor} of window {recorded.tile.index}"
        other = now.get(block.tensor)
        if other is None:
            yield Difference(what, "a map", "no such block")
            continue
        off = sums_off(block.sums, other.sums)
        if off > SUMS_TOLERANCE:
            before, after = (f"{one.kept_channels} masks, {one.note or 'a map'}" for one in (block, other))
            yield Difference(what, before, after, None if off == float("inf") else off, SUMS_TOLERANCE)


def _changes(stored: StoredInspection, provider: str, card: Mapping[str, Any]) -> Iterator[Change]:
    """Yield the circumstances that changed since the inspection."""
    if stored.run.provider != provider:
        yield Change("provider", stored.run.provider, provider)
    pairs = {
        "version of": (stored.run.versions, versions()),
        "card": (_CARD_DEFAULTS | _flat(stored.model.card), _CARD_DEFAULTS | _flat(json.loads(json.dumps(card)))),
    }
    for what, (recorded, now) in pairs.items():
        for name in sorted(recorded.keys() | now.keys()):
            if recorded.get(name) != now.get(name):
                yield Change(f"{what} {name}", str(recorded.get(name, "none")), str(now.get(name, "none")))


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a document's leaves by dotted name.

    >>> _flat({"input": {"height": 32}, "labels": ["a"]})
    {'input.height': 32, 'labels': ['a']}
    """
    leaves: dict[str, Any] = {}
    for name, value in document.items():
        leaves |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves


# Values of keys that a card leaves out; those of cards that are older than the key, too.
_CARD_DEFAULTS = _flat(json.loads(json.dumps(asdict(ModelCard("", "", (), InputSpec(0, 0))))))


def _as_text(values: Any) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _peak(fused: NDArray[np.float32]) -> str:
    row, column = np.unravel_index(int(np.argmax(fused)), fused.shape)
    return f"peak {fused.max():.4f} at row {row}, column {column}"
