"""An explanation as a folder: manifest.json (written last), map.npy, rank.npy, blocks.npz and overlay.png."""

import hashlib
import json
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai import __version__
from inspect_xai.errors import PictureError
from inspect_xai.files import replaced_folder
from inspect_xai.maths import color
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.records import BlockMap, Explanation, PictureLimits, TileExplanation, Verdict, document_key

SCHEMA_VERSION = 1
_DISTRIBUTIONS = ("onnxruntime-gpu", "onnx", "numpy", "opencv-python", "scipy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that the numbers depend on."""
    own = {"inspect-xai": __version__, "python": platform.python_version()}  # a checkout need not be installed
    return own | {name: version(name) for name in _DISTRIBUTIONS}


def save_explanation(
    folder: Path,
    explanation: Explanation,
    *,
    picture: NDArray[np.uint8],
    bundle: ModelBundle,
    verdict: Verdict,
    source: str = "",
    sha256: str = "",
    limits: PictureLimits | None = None,
) -> None:
    """Write an explanation and its maps into a folder; an explanation that is there is replaced as a whole.

    Args:
        folder: To make; its parents, too.
        explanation: To write.
        picture: uint8 (H, W) or RGB (H, W, 3), the picture explained.
        bundle: The model that was explained.
        verdict: On the picture.
        source: Path or name of the picture, for the record.
        sha256: Of the picture file's bytes.
        limits: By which the file became pixels; None: there was no file.

    Raises:
        PictureError: If `folder` exists and is no explanation, so that nothing else is ever overwritten.
    """
    if folder.exists() and not (folder / "manifest.json").is_file():
        raise PictureError(
            f"{folder} exists and holds no explanation",
            expected="a new folder, or an explanation to replace",
            remedy="give another --out",
        )
    with replaced_folder(folder) as work:
        np.save(work / "map.npy", explanation.fused)
        np.save(work / "rank.npy", explanation.rank)
        _save_blocks(work / "blocks.npz", explanation.block_maps)
        shown = color.overlay(picture, explanation.fused, regions=explanation.regions)
        cv2.imwrite(str(work / "overlay.png"), cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))
        manifest = describe(explanation, bundle=bundle, verdict=verdict)
        manifest["picture"] = {
            "source": source,
            "sha256": sha256,
            "height_px": picture.shape[0],
            "width_px": picture.shape[1],
            "limits": asdict(limits) if limits else None,
        }
        manifest["files"] = {path.name: _sha256(path) for path in sorted(work.iterdir())}
        (work / "manifest.json").write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def describe(explanation: Explanation, *, bundle: ModelBundle, verdict: Verdict) -> dict[str, Any]:
    """Return the manifest of an explanation as plain values: all that a rerun or an audit needs except the maps."""
    card, settings = bundle.card, explanation.settings
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {"name": card.name, "version": card.version, "fingerprint": bundle.fingerprint},
        "provider": explanation.provider,
        "versions": versions(),
        "method": str(settings.method),
        "target": settings.target,
        "against": settings.against or None,
        "settings": {
            "mu": settings.mu,
            "baseline": str(settings.baseline),
            "profile": str(settings.profile),
            "max_passes": settings.max_passes or None,
            "budget_s": settings.budget_s or None,
            "blocks": [end.tensor for end in bundle.blocks],
        },
        "status": str(explanation.status),
        "notes": list(explanation.notes),
        "probabilities": dict(zip(card.labels, explanation.prediction.scores, strict=True)),
        "prediction": {
            "label": explanation.prediction.label,
            "score": explanation.prediction.score,
            "margin": explanation.prediction.margin,
            "tile": explanation.prediction.tile,
        },
        "verdict": {
            "code": str(verdict.code),
            "reason": str(verdict.reason),
            "label": verdict.label,
            "score": verdict.score,
            "threshold": verdict.threshold,
        },
        "passes": explanation.forward_passes,
        "duration_ms": explanation.duration_ms,
        "timings_ms": explanation.timings_ms,
        "faithfulness": explanation.faithfulness,
        "regions": [{name: getattr(region, name) for name in region.__slots__} for region in explanation.regions],
        "tiles": [_describe_tile(tile, card.labels) for tile in explanation.tiles],
    }


def _describe_tile(explained: TileExplanation, labels: tuple[str, ...]) -> dict[str, Any]:
    tile = explained.tile
    return {
        "index": tile.index,
        "top_px": tile.top_px,
        "left_px": tile.left_px,
        "height_px": tile.height_px,
        "width_px": tile.width_px,
        "status": str(explained.status),
        "probabilities": dict(zip(labels, explained.scores, strict=True)),
        "baseline_score": explained.baseline_score,
        "score_spread": explained.score_spread,
        "blocks": [_describe_block(block) for block in explained.blocks],
    }


def _describe_block(block: BlockMap) -> dict[str, Any]:
    return {document_key(name): getattr(block, name) for name in block.__slots__ if name not in ("sums", "grid")} | {
        "grid": None if block.grid is None else asdict(block.grid),
        "height": None if block.sums is None else block.sums.shape[0],
        "width": None if block.sums is None else block.sums.shape[1],
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save_blocks(path: Path, block_maps: Mapping[str, NDArray[np.float32]]) -> None:
    """Write one array per tensor name, compressed fast: large maps are mostly 0, and other numbers hardly compress.

    Not by `np.savez`, whose own parameters are possible tensor names.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in block_maps.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
