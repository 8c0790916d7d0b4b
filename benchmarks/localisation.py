"""Do the maps lie on the defects? EBPG over pixel masks, for pictures the network judges right.

    python -m benchmarks.localisation --pictures 100 --split test

EBPG is the share of the map's energy on the defect; beside it stands the share of the picture that the defect covers,
which is what a map that knows nothing would reach.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.real import SETS, defective_parts, real_card, real_model, shared_folder
from inspect_xai.maths import metrics
from inspect_xai.model.bundle import build_bundle
from inspect_xai.pipeline.explain import Explainer
from inspect_xai.pipeline.intake import read_picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100, help="pictures judged right, both sets together")
    parser.add_argument("--split", default="test", choices=["train", "val", "test"])
    parser.add_argument("--profile", default="exact", choices=["exact", "fast", "quick"])
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    shared = shared_folder()
    print(f"onnxruntime {onnxruntime.__version__}, method sise, profile {options.profile}, split {options.split}")
    print(
        f"{'set':14} {'class':12} {'n':>4} {'EBPG':>6} {'median':>6} {'area':>6} {'pointing':>8} {'passes':>6} {'s':>6}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name in SETS:
            rows = explain_set(shared, Path(scratch), name, options)
            for label in [*dict.fromkeys(row[0] for row in rows), "all"]:
                some = np.array([row[1:] for row in rows if label in (row[0], "all")])
                energy, area, hit, passes, seconds = some.T
                print(
                    f"{name:14} {label:12} {len(some):4d} {energy.mean():6.3f} {np.median(energy):6.3f} "
                    f"{area.mean():6.4f} {hit.mean():8.2f} {passes.mean():6.0f} {seconds.mean():6.2f}",
                    flush=True,
                )


def explain_set(
    shared: Path, scratch: Path, name: str, options: argparse.Namespace
) -> list[tuple[str, float, float, float, float, float]]:
    bundle = build_bundle(real_model(shared, name), real_card(shared, name), scratch / name)
    rows = []
    with Explainer(bundle, device="cpu", profile=options.profile, threads=options.threads) as explainer:
        for part in defective_parts(shared, name, split=options.split):
            if len(rows) == options.pictures // len(SETS):
                break
            look = explainer.look(read_picture(part.path).pixels)
            if look.prediction.label != part.label:
                continue
            began = time.perf_counter()
            found = explainer.explain(look, target=part.label)
            took = time.perf_counter() - began
            if found.fused.max() == 0:
                print(f"{part.path.name}: {found.status}")
                continue
            energy = metrics.ebpg(found.fused, part.mask)
            hit = float(metrics.pointing_game(found.rank, part.mask))
            rows.append((part.label, energy, float(part.mask.mean()), hit, float(found.passes), took))
    return rows


if __name__ == "__main__":
    main()
