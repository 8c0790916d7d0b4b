"""Peak memory of one explanation against a bare forward pass of the same bucket, each in a process of its own.

    python -m benchmarks.memory --networks lite0 resnet18 resnet50

Whatever the number of masks (mu) and the size of the picture, the bar is the bare forward pass plus 150 MB. The picture
itself and what is handed back (the map and the ranks of all its pixels, 8 bytes each) are part of the peak; the column
`beyond` is the peak without them.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

BUCKET = 8
MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["lite0", "resnet18", "resnet50"])
    parser.add_argument("--mu", nargs="+", type=float, default=[0.9, 0.3, 0.0])
    parser.add_argument("--sides", nargs="+", type=int, default=[224, 1000, 2000, 4000], help="of the picture, pixels")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(*options.child)
        return
    from benchmarks.engine import make_bundle  # the process of a bare forward pass loads nothing of this project

    print(f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}, bucket {BUCKET}, peak resident set")
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.networks:
            folder = make_bundle(name, Path(scratch)).folder
            _, bare = child("bare", folder)
            print(f"{name:9} bare forward of {BUCKET}: {bare:.0f} MB; bar {bare + 150:.0f} MB", flush=True)
            cases = [(options.sides[0], mu) for mu in options.mu]
            cases += [(side, options.mu[-1]) for side in options.sides[1:]]
            for side, mu in cases:
                masks, peak = child("explain", folder, side, mu)
                held = side * side * (3 + 8) / MB
                print(
                    f"{name:9} picture {side:4d} px, mu {mu:.1f}, {masks:4.0f} passes: peak {peak:5.0f} MB, "
                    f"bare + {peak - bare:4.0f}, beyond picture, map and ranks {peak - bare - held:4.0f}",
                    flush=True,
                )


def child(*arguments: object) -> tuple[float, float]:
    """Run one measurement in a fresh process; return its passes and its peak in MB."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--child", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    passes, peak = ran.stdout.split()
    return float(passes), float(peak)


def run_child(what: str, folder: str, side: str = "0", mu: str = "0") -> None:
    passes = BUCKET
    if what == "bare":
        session = onnxruntime.InferenceSession(
            str(Path(folder) / "graphs" / "predict.onnx"), providers=["CPUExecutionProvider"]
        )
        shape = [BUCKET, *session.get_inputs()[0].shape[1:]]
        for _ in range(3):
            session.run(["probabilities"], {"picture": np.ones(shape, np.float32)})
    else:
        from inspect_xai.explain.explainer import Explainer

        size = int(side)
        rng = np.random.default_rng(7)
        coarse = rng.integers(0, 256, (-(-size // 16), -(-size // 16), 3), dtype=np.uint8)
        picture = np.ascontiguousarray(coarse.repeat(16, axis=0).repeat(16, axis=1)[:size, :size])
        with Explainer(folder, device="cpu", mu=float(mu), bucket=BUCKET) as explainer:
            look = explainer.look(picture)
            label = explainer.card.labels[int(look.scores[look.prediction.tile].argmax())]
            ok = explainer.card.ok_labels
            # An OK label is explained in one window; a defect would be in every window that it reaches.
            passes = explainer.explain(look, target=ok[0] if ok else label).forward_passes
    print(passes, peak_mb())


def peak_mb() -> float:
    """Return the peak resident set of this process; getrusage's would be the parent's where that was larger."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / MB  # type: ignore[index]


if __name__ == "__main__":
    main()
