"""The real pictures and trained networks that tests and benchmarks use where they are present; none of it is shipped.

They lie in the folder INSPECT_XAI_SHARED names, else in `shared` beside the checkout: `data/<set>/{train,val,test}.csv`
with pictures and pixel masks, `models/<set>-efficientnet-lite0.{onnx,json}`.
"""

import csv
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.records import ExplainSpec, InputSpec, ModelCard, VerdictSpec

SETS = {"magnetic-tile": "MT_Free", "ball-screw": "clean"}
TRAINED = {"ball-screw-residual": "clean", "sample-plain": "free"}
"""Networks that `benchmarks.networks` trains, where INSPECT_XAI_NETWORKS names their folder, with their OK labels."""

_RENDERED = {"train": 4, "val": 2, "test": 3}  # series of the renderer; the network learned from series 1
_RENDERED_PICTURES = 120  # of a split, about a third of them defective
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class RealPart:
    """One picture with its class, its mask, bool (H, W), and the name of the physical part it shows."""

    path: Path
    label: str
    mask: NDArray[np.bool_]
    part: str


def shared_folder() -> Path:
    """Return the folder with `data/` and `models/`; a benchmark without it says so and stops."""
    folder = Path(os.environ.get("INSPECT_XAI_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir() or not (folder / "models").is_dir():
        sys.exit(f"no real pictures at {folder}: set INSPECT_XAI_SHARED to a folder with data/ and models/")
    return folder


def networks(chosen: str = "") -> tuple[str, ...]:
    """Return the networks of a list with commas; without one all there are, those trained for benchmarks included."""
    if chosen:
        return tuple(chosen.split(","))
    return (*SETS, *(TRAINED if "INSPECT_XAI_NETWORKS" in os.environ else ()))


def real_model(shared: Path, name: str) -> Path:
    """Return the trained network of a set, as it was exported."""
    if name in TRAINED:
        return Path(os.environ["INSPECT_XAI_NETWORKS"]) / f"{name}.onnx"
    return shared / "models" / f"{name}-efficientnet-lite0.onnx"


def real_card(shared: Path, name: str) -> ModelCard:
    """Write the network's JSON description as a model card."""
    said = json.loads(real_model(shared, name).with_suffix(".json").read_text(encoding="utf-8"))
    _, _, height, width = said["input"]["shape"]
    feed = said["preprocessing"]
    return ModelCard(
        name=name,
        version="2026.11",
        labels=tuple(said["labels"]),
        ok_labels=((SETS | TRAINED)[name],),
        input=InputSpec(height, width, scale=1.0, mean=tuple(feed["mean_255"]), std=tuple(feed["std_255"])),
        verdict=VerdictSpec(0.5, 0.15),
        explain=ExplainSpec(mu=0.3),
    )


def defective_parts(shared: Path, name: str, *, split: str) -> Iterator[RealPart]:
    """Yield the parts of a split whose mask marks a defect, in the order of its table."""
    if name == "sample-plain":
        yield from _rendered_parts(split)
        return
    folder = shared / "data" / name.removesuffix("-residual")
    with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["mask"] and row.get("mask_ok", "1") == "1":
                mask = cv2.imread(str(folder / row["mask"]), cv2.IMREAD_GRAYSCALE)
                yield RealPart(folder / row["image"], row["class"], np.asarray(mask) > 127, row["part"])


def _rendered_parts(split: str) -> Iterator[RealPart]:
    sys.path.insert(0, str(ROOT / "examples"))
    from surfaces import OK_LABEL, render

    series = _RENDERED[split]
    folder = Path(os.environ["INSPECT_XAI_NETWORKS"]) / f"rendered-{series}"
    folder.mkdir(exist_ok=True)
    for index in range(_RENDERED_PICTURES):
        picture = render(series, index)
        if picture.label != OK_LABEL and picture.mask.any():
            path = folder / f"{index}.png"
            cv2.imwrite(str(path), picture.rgb[..., ::-1])
            yield RealPart(path, picture.label, picture.mask.astype(np.bool_), path.stem)
