"""Golden set: pictures that travel with a model, and the results it must reproduce wherever it runs.

    BUNDLE/golden/manifest.json        written last: model, versions, and per picture its scores and hashes
    BUNDLE/golden/pictures/001.png     the files as they were
    BUNDLE/golden/maps/001.ixm         the fused map (storage/map_codec.py), on 4,096 steps

It lies inside the bundle or beside it; the bundle's fingerprint does not cover it, so a set can be replaced.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import GoldenSetError, PictureError, StoreError
from inspect_xai.explain.explainer import Explainer
from inspect_xai.explain.save import versions
from inspect_xai.explain.settings import ExplainSettings
from inspect_xai.files import replaced_folder
from inspect_xai.intake.archive import read_archived_bytes
from inspect_xai.intake.decode import decode_picture
from inspect_xai.records import ModelStatus, PictureLimits
from inspect_xai.storage import map_codec
from inspect_xai.storage.store import Store
from inspect_xai.verify.tolerance import SCORE_TOLERANCE, MapAgreement, compare_maps, scores_off

_log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
FOLDER: Final = "golden"
_MANIFEST: Final = "manifest.json"
FILES_NOT_KNOWN: Final = "registered before hashes of the bundle's files were kept, so they are not compared"
LET_FILES_BE_KNOWN: Final = (
    "inspect-xai model verify BUNDLE --db URL; without a golden set: inspect-xai model register BUNDLE --db URL, "
    "and approve it again"
)
_MAKE: Final = "make it with: inspect-xai model golden-create BUNDLE PICTURE..."


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """One golden picture recomputed; `score_off` and `map_off` are the largest differences."""

    picture: str
    verdict: str
    verdict_now: str
    score_off: float
    map_off: float
    overlap: float
    holds: bool


@dataclass(frozen=True, slots=True)
class GoldenReport:
    """Result of a golden set; the checks are sorted by their differences, largest first."""

    fingerprint: str
    bundle_sha256: str  # of all its files
    provider: str
    set_sha256: str  # of the set's manifest
    verified_at: str  # ISO 8601, UTC
    holds: bool
    checks: tuple[GoldenCheck, ...]

    def as_record(self) -> dict[str, Any]:
        """Return the report as the database stores it."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]


def make_golden(explainer: Explainer, pictures: Sequence[Path], *, out: Path, limits: PictureLimits) -> dict[str, Any]:
    """Compute a model's results on some pictures, and store them as its golden set.

    Args:
        explainer: The model; it explains by the settings of its card.
        pictures: Files; best a few of each label, borderline ones among them.
        out: Folder to make; a golden set there is replaced.
        limits: How files become pixels.

    Returns:
        The manifest.

    Raises:
        PictureError: If a file is no picture.
        GoldenSetError: If there is no picture, or something else is at `out`.
    """
    if not pictures:
        raise GoldenSetError("no pictures", expected="one or more", remedy="name some of each label")
    if out.exists() and not (out / _MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise GoldenSetError(f"{out} exists and is no golden set", remedy="give another --out")
    with replaced_folder(out) as work:
        (work / "pictures").mkdir()
        (work / "maps").mkdir()
        width = max(3, len(str(len(pictures))))
        entries = [
            _make_one(explainer, path, name=f"{number:0{width}d}", folder=work, limits=limits)
            for number, path in enumerate(pictures, start=1)
        ]
        bundle = explainer.engine.bundle
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": bundle.fingerprint,
            "name": bundle.card.name,
            "version": bundle.card.version,
            "provider": explainer.engine.provider,
            "versions": versions(),
            "limits": asdict(limits),
            "pictures": entries,
        }
        (work / _MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return manifest


def verify_golden(explainer: Explainer, folder: Path) -> GoldenReport:
    """Recompute a golden set and compare it with the expected results.

    Raises:
        GoldenSetError: If the set is missing, damaged, or another model's.
    """
    manifest = _read_manifest(folder)
    bundle = explainer.engine.bundle
    if manifest["fingerprint"] != bundle.fingerprint:
        raise GoldenSetError(
            f"{folder} is the golden set of model {manifest['fingerprint']}",
            expected=f"that of {bundle.fingerprint}",
            remedy=_MAKE,
        )
    limits = PictureLimits.recorded(manifest)
    if limits != explainer.limits:
        _log.warning(
            "the golden set %s was made with %s, and pictures are read with %s here: its result does not cover them; "
            "make it again with the settings of the line",
            folder,
            limits,
            explainer.limits,
        )
    checks = [_check_one(explainer, entry, folder=folder, limits=limits) for entry in manifest["pictures"]]
    worst_first = sorted(checks, key=lambda check: (check.holds, -max(check.score_off, check.map_off)))
    return GoldenReport(
        fingerprint=bundle.fingerprint,
        bundle_sha256=bundle.sha256,
        provider=explainer.engine.provider,
        set_sha256=_sha256((folder / _MANIFEST).read_bytes()),
        verified_at=datetime.now(UTC).isoformat(timespec="seconds"),
        holds=all(check.holds for check in checks),
        checks=tuple(worst_first),
    )


def keep_result(store: Store, report: GoldenReport, *, by: str, note: str) -> None:
    """Record a verification with the model's status, which does not change.

    Where the model was registered before hashes of its files were recorded, a result that holds adds them.

    Raises:
        BundleError: If other files than the registered ones were verified.
        NotFoundError: If the model is not registered.
    """
    known = store.registry.model(report.fingerprint)
    known.check_files(report.bundle_sha256)
    store.registry.set_model_status(
        report.fingerprint,
        ModelStatus(known.status),
        by=by,
        note=note,
        golden=report.as_record(),
        bundle_sha256=report.bundle_sha256 if report.holds else None,
    )


def verify_at_start(store: Store, explainer: Explainer, folder: Path, *, by: str) -> dict[str, Any]:
    """Verify before a line begins; the result goes into the run's settings, a failure into the model's record too.

    Raises:
        GoldenSetError: If the model does not reproduce its golden set.
    """
    report = verify_golden(explainer, folder)
    if not report.holds:
        keep_result(store, report, by=by, note="refused at the start of a line")
        worst = report.checks[0]
        raise GoldenSetError(
            f"on {report.provider} the model does not reproduce {folder}: {worst.picture} is off by "
            f"{worst.score_off:.2g} in its scores and {worst.map_off:.2g} of its map",
            expected=f"scores within {SCORE_TOLERANCE}",
            remedy="see inspect-xai model verify BUNDLE --golden DIR, and repair driver or device first",
        )
    if store.registry.model(report.fingerprint).bundle_sha256 is None:
        keep_result(store, report, by=by, note="verified at the start of a line")
    return {"set_sha256": report.set_sha256, "pictures": len(report.checks), "verified_at": report.verified_at}


def _make_one(explainer: Explainer, path: Path, *, name: str, folder: Path, limits: PictureLimits) -> dict[str, Any]:
    data = read_archived_bytes(str(path), limits=limits)
    try:
        scores, target, verdict, fused = _compute(explainer, data, target=None, limits=limits)
    except PictureError as error:
        raise PictureError(f"{path}: {error.found}", expected=error.expected, remedy=error.remedy) from error
    blob = map_codec.encode(fused, precision=map_codec.Precision.STEPS12)
    picture = f"pictures/{name}{path.suffix.lower()}"
    (folder / picture).write_bytes(data)
    (folder / f"maps/{name}.ixm").write_bytes(blob.data)
    return {
        "picture": picture,
        "source": path.name,
        "sha256": _sha256(data),
        "target": target,
        "verdict": verdict,
        "scores": [[float(p) for p in row] for row in scores],
        "map": f"maps/{name}.ixm",
        "map_sha256": blob.sha256,
    }


def _check_one(explainer: Explainer, entry: dict[str, Any], *, folder: Path, limits: PictureLimits) -> GoldenCheck:
    data = _read(folder / entry["picture"])
    if _sha256(data) != entry["sha256"]:
        raise GoldenSetError(f"{folder / entry['picture']} was changed", expected=entry["sha256"], remedy=_MAKE)
    try:
        expected = map_codec.decode(_read(folder / entry["map"]), sha256=entry["map_sha256"])
    except StoreError as error:
        raise GoldenSetError(f"{folder / entry['map']}: {error.found}", remedy=_MAKE) from error
    scores, _, verdict, fused = _compute(explainer, data, target=entry["target"], limits=limits)
    off = scores_off(np.ravel(entry["scores"]).tolist(), scores.ravel().tolist())
    blocks = len(explainer.engine.bundle.blocks)
    same_size = fused.shape == expected.shape
    agreement = compare_maps(expected, fused, blocks=blocks) if same_size else MapAgreement(1.0, 1.0, 0.0)
    holds = off <= SCORE_TOLERANCE and verdict == entry["verdict"] and agreement.holds
    return GoldenCheck(
        entry["picture"], entry["verdict"], verdict, min(off, 1.0), agreement.off, agreement.overlap, holds
    )


def _compute(
    explainer: Explainer, data: bytes, *, target: str | None, limits: PictureLimits
) -> tuple[NDArray[np.float32], str, str, NDArray[np.float32]]:
    """Return scores (N, K) of all windows, the label explained, the verdict's code and the fused map (H, W)."""
    look = explainer.look(decode_picture(data, limits=limits))
    label = look.verdict.label if target is None else target
    settings = ExplainSettings.of_card(explainer.card, faithfulness=False)
    return look.scores, label, look.verdict.code.value, explainer.explain(look, target=label, settings=settings).fused


def _read_manifest(folder: Path) -> dict[str, Any]:
    data = _read(folder / _MANIFEST)
    try:
        manifest = json.loads(data)
        version = manifest["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise GoldenSetError(f"{folder / _MANIFEST} cannot be read: {error!r}", remedy=_MAKE) from error
    if version != SCHEMA_VERSION:
        raise GoldenSetError(f"{folder} has schema {version}", expected=str(SCHEMA_VERSION), remedy=_MAKE)
    return dict(manifest)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise GoldenSetError(f"{path} cannot be read: {error.strerror}", remedy=_MAKE) from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
