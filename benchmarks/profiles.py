"""How near do `fast` and `quick` come to the map of mu = 0, at what cost, and how near does that map come to itself?

    python -m benchmarks.profiles --pictures 40

Every picture is explained in full, by both profiles, and in full again with one grey level of noise on it: the noise
floor, below which no approximation can be told from the method's own restlessness. Correlation and SSIM are those of
the windows' fused maps, each divided by its largest value.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from benchmarks.real import SETS, defective_parts, real_card, real_model, shared_folder
from inspect_xai.model.bundle import build_bundle
from inspect_xai.pipeline.explain import Explainer
from inspect_xai.pipeline.intake import read_picture

VARIANTS = ("fast", "quick", "noise floor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40, help="pictures judged right, both sets together")
    parser.add_argument("--split", default="val", choices=["train", "val", "test"])
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    shared = shared_folder()
    print(f"onnxruntime {onnxruntime.__version__}, split {options.split}; mean (lowest) over pictures")
    every: list[NDArray[np.float64]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in SETS:
            rows = compare_set(shared, Path(scratch), name, options)
            show(name, rows)
            every += rows
    show("both", every)


def show(name: str, rows: list[NDArray[np.float64]]) -> None:
    table = np.array(rows)  # pictures, variants, (passes / full passes, correlation, ssim, seconds / full seconds)
    for index, variant in enumerate(VARIANTS):
        share, corr, ssim, time = (table[:, index, column] for column in range(4))
        print(
            f"{name:14} {variant:12} n {len(table):3d}  passes {share.mean():5.3f}"
            f"  corr {corr.mean():5.3f} ({corr.min():5.3f})"
            f"  ssim {ssim.mean():5.3f} ({ssim.min():5.3f})  time {np.median(time):5.3f}",
            flush=True,
        )


def compare_set(shared: Path, scratch: Path, name: str, options: argparse.Namespace) -> list[NDArray[np.float64]]:
    bundle = build_bundle(real_model(shared, name), real_card(shared, name), scratch / name)
    rng = np.random.default_rng(20261123)
    rows: list[NDArray[np.float64]] = []
    with Explainer(bundle, device="cpu", mu=0.0, threads=options.threads) as full:
        cheaper = {variant: Explainer(bundle, device="cpu", profile=variant) for variant in VARIANTS[:2]}
        for part in defective_parts(shared, name, split=options.split):
            if len(rows) == options.pictures // len(SETS):
                break
            pixels = read_picture(part.path).pixels
            look = full.look(pixels)
            if look.prediction.label != part.label:
                continue
            truth = full.explain(look, target=part.label)
            noise = rng.normal(0, 1, pixels.shape[:2])[..., None][..., : 1 if pixels.ndim == 3 else None]
            noisy = np.clip(np.rint(pixels + (noise if pixels.ndim == 3 else noise[..., 0])), 0, 255).astype(np.uint8)
            others = [cheaper[variant].explain(look, target=part.label) for variant in VARIANTS[:2]]
            others.append(full.explain(full.look(noisy), target=part.label))
            rows.append(np.array([against(truth, other) for other in others]))
    return rows


def against(truth, other) -> tuple[float, float, float, float]:  # type: ignore[no-untyped-def]
    """Passes, correlation, SSIM and time of an explanation, relative to the full one."""
    one, two = (found.fused / (found.fused.max() or 1.0) for found in (truth, other))
    corr = float(np.corrcoef(one.ravel(), two.ravel())[0, 1]) if two.any() else 0.0
    ssim = float(structural_similarity(one, two, data_range=1.0))
    return other.passes / truth.passes, corr, ssim, other.duration_ms / truth.duration_ms


if __name__ == "__main__":
    main()
