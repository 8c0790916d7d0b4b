"""Does the same part get the same map? Maps before and after changes that no inspector would see.

    python -m benchmarks.stability --split test --methods grad-sise:quick,product-cam,sise,grad-cam,recipro-cam

Windows of defective pictures that the network judges right, as in `benchmarks.localization --level window`. Changed are
the picture (every pixel by -1, 0 or +1 gray level; moved by one pixel, the map moved back; JPEG of quality 90) or the
network (its weights rounded to half precision). Printed are the overlap of the top 15 % of the pixels and the
correlation of the ranks, means over windows.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from benchmarks.localization import chosen_parts, settings_of
from benchmarks.real import networks, real_card, real_model, shared_folder
from inspect_xai.explain.explainer import Explainer
from inspect_xai.intake.sources import read_picture
from inspect_xai.maths import tiles
from inspect_xai.maths.metrics import KEPT_SHARE, share_of
from inspect_xai.model.build.build import build_bundle
from inspect_xai.records import PictureLimits

Picture = NDArray[np.uint8]
Ranks = NDArray[np.int32]


def noise(picture: Picture) -> Picture:
    steps = np.random.default_rng(7).integers(-1, 2, picture.shape)
    return np.clip(picture.astype(np.int64) + steps, 0, 255).astype(np.uint8)


def jpeg(picture: Picture) -> Picture:
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1], np.uint8)


def moved(picture: Picture) -> Picture:
    return np.concatenate([picture[:, :1], picture[:, :-1]], axis=1)


CHANGES: dict[str, Callable[[Picture], Picture]] = {"noise 1": noise, "JPEG 90": jpeg, "shift 1 px": moved}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="grad-sise:quick,product-cam,grad-cam,recipro-cam")
    parser.add_argument("--split", default="test", help="train, val or test, or several with commas")
    parser.add_argument("--networks", default="", help="comma-separated; default: all there are (benchmarks.real)")
    parser.add_argument("--pictures", type=int, default=0, help="at most so many of each set, drawn by --seed; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    shared = shared_folder()
    with tempfile.TemporaryDirectory() as scratch:
        for name in networks(options.networks):
            model, card = real_model(shared, name), real_card(shared, name)
            rounded = Path(scratch) / f"{name}-half.onnx"
            write_half(model, rounded)
            bundles = [build_bundle(file, card, Path(scratch) / file.stem) for file in (model, rounded)]
            with (
                Explainer(bundles[0], device="cpu", threads=options.threads) as explainer,
                Explainer(bundles[1], device="cpu", threads=options.threads) as half,
            ):
                measure(explainer, half, chosen_parts(shared, name, options), name, options)


def measure(explainer: Explainer, half: Explainer, parts: list, name: str, options: argparse.Namespace) -> None:
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    windows = 0
    for part in parts:
        window = window_of(explainer, part.path, part.label)
        if window is None:
            continue
        windows += 1
        for method in options.methods.split(","):
            before = ranks(explainer, window, method, part.label)
            for change, make in CHANGES.items():
                after = ranks(explainer, make(window), method, part.label)
                pair = (before[:, :-1], after[:, 1:]) if make is moved else (before, after)
                found[method, change].append(alike(*pair))
            found[method, "half weights"].append(alike(before, ranks(half, window, method, part.label)))
        print(f"\r{windows} windows", end="", file=sys.stderr, flush=True)
        if windows == options.pictures:
            break
    print(f"\n{name}, {windows} windows: overlap of the top 15 %, rank correlation")
    changes = [*CHANGES, "half weights"]
    print(f"{'':16}" + "".join(f"{change:>16}" for change in changes))
    for method in options.methods.split(","):
        cells = [np.mean(found[method, change], axis=0) for change in changes]
        print(f"{method:16}" + "".join(f"{top:>8.3f} {ranked:>7.3f}" for top, ranked in cells), flush=True)


def window_of(explainer: Explainer, path: Path, label: str) -> Picture | None:
    """Cut out the window in which the class scores highest; None where it or the picture is judged otherwise."""
    look = explainer.look(read_picture(path, limits=PictureLimits()).pixels)
    if look.prediction.label != label:
        return None
    tile = look.tiles[int(np.argmax(look.scores[:, explainer.card.labels.index(label)]))]
    window = tiles.cut(look.picture, tile, explainer.card.input).astype(np.uint8)
    return window if explainer.look(window).prediction.label == label else None


def ranks(explainer: Explainer, window: Picture, named: str, label: str) -> Ranks:
    return explainer(window, target=label, settings=settings_of(explainer.card, named)).rank


def alike(one: Ranks, two: Ranks) -> tuple[float, float]:
    top = share_of(one.size, KEPT_SHARE)
    first, second = (np.argsort(ranked, axis=None)[:top] for ranked in (one, two))
    overlap = len(np.intersect1d(first, second)) / top
    return overlap, float(np.corrcoef(one.ravel(), two.ravel())[0, 1])


def write_half(model: Path, out: Path) -> None:
    """Copy a network with its weights rounded to half precision; it computes in single precision as before."""
    network = onnx.load(model)
    for weight in network.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            rounded = numpy_helper.to_array(weight).astype(np.float16).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(rounded, weight.name))
    onnx.save(network, out)


if __name__ == "__main__":
    main()
