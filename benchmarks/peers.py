"""The same network and pictures explained by us and by the peers, in turn: seconds, passes, memory, faithfulness.

    python -m benchmarks.peers --store peers --windows 6                # measures what is not measured yet, prints
    python -m benchmarks.peers --store peers --windows 6 --minutes 4    # a piece of it; again to go on
    python -m benchmarks.peers --store peers --windows 6 --print-only --docs docs/measurements

Every method runs in a process of its own (benchmarks/peer_worker.py), so that its peak memory is its own, and all are
asked in turn for one window after the other, so that a busy machine slows all alike. A method that answers within
`--short` seconds is asked three times. Windows are defective ones of the test split that the network judges right,
from both sets in turn. Deletion and insertion AUC, Drop, EBPG and AUPRO are measured by us, for all maps alike.

Peers that pin other versions than ours run under an interpreter of their own: INSPECT_XAI_OPENVINO_PYTHON for
openvino-xai, INSPECT_XAI_DIANNA_PYTHON for dianna, INSPECT_XAI_TORCH_PYTHON for the others where they are not
installed beside us. A peer that does not start is left out, and why is printed. On the ResNet layouts, which have
random weights, time and memory mean something and faithfulness does not: it is not measured there.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from benchmarks.engine import export_resnet
from benchmarks.profiles import FAITHFUL, ask
from benchmarks.real import SETS, defective_parts, real_card, real_model, shared_folder
from inspect_xai.explain.explainer import Explainer
from inspect_xai.intake.sources import read_picture
from inspect_xai.maths import sise, tiles
from inspect_xai.maths.tiles import in_window
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.bundle import load_bundle
from inspect_xai.model.session import open_session
from inspect_xai.records import InputSpec, ModelCard, PictureLimits

OURS = (
    "sise:exact",
    "sise:fast",
    "sise:quick",
    "sise:mu",
    "ada-sise",
    "grad-sise",
    "grad-cam",
    "score-cam",
    "recipro-cam",
)
METHODS = (
    *(f"inspect-xai:{method}" for method in OURS),
    "grad-cam:GradCAM",
    "grad-cam:ScoreCAM",
    "grad-cam:AblationCAM",
    "torchcam:ScoreCAM",
    "captum:Occlusion",
    "openvino_xai:AISE",
    "openvino_xai:RISE",
    "openvino_xai:ReciproCAM",
    "dianna:RISE",
    "inspect-xai:rise",
)
ON_RESNETS = ("inspect-xai:sise:exact", "inspect-xai:sise:fast", "inspect-xai:sise:quick", "grad-cam:ScoreCAM")
INTERPRETERS = {
    "openvino_xai": "INSPECT_XAI_OPENVINO_PYTHON",
    "dianna": "INSPECT_XAI_DIANNA_PYTHON",
    **dict.fromkeys(("grad-cam", "torchcam", "captum"), "INSPECT_XAI_TORCH_PYTHON"),
}
GFLOP = {"magnetic-tile": 0.77, "ball-screw": 0.77, "resnet18": 3.63, "resnet50": 8.18}  # one forward pass, 224 x 224
WORKER = Path(__file__).with_name("peer_worker.py")
REPEATS = 3


@dataclass(frozen=True)
class Case:
    """One window of one network: the model, its bundle, and an .npz with pixels, tensor, target and truth."""

    network: str
    model: Path
    bundle: Path
    window: Path

    @property
    def target(self) -> int:
        """Index of the class to explain."""
        with np.load(self.window) as file:
            return int(file["target"])


class Workers:
    """The processes that explain, by method and model; one that did not start is not tried again."""

    def __init__(self) -> None:
        self.running: dict[tuple[str, Path], subprocess.Popen[str]] = {}
        self.dead: set[tuple[str, Path]] = set()
        self.says: dict[tuple[str, Path], IO[bytes]] = {}

    def said(self, key: tuple[str, Path]) -> IO[bytes]:
        """Open the file for what a process says beside its answers; a pipe that nobody reads would stop it."""
        self.says[key] = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
        return self.says[key]

    def ask(self, method: str, case: Case, map_path: Path) -> dict[str, object] | None:
        """Have a window explained; None where the method does not run."""
        key = (method, case.model)
        if key in self.dead:
            return None
        if key not in self.running:
            python = os.environ.get(INTERPRETERS.get(method.partition(":")[0], ""), sys.executable)
            self.running[key] = subprocess.Popen(
                [python, str(WORKER), method, str(case.model), str(case.bundle)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.said(key),
                text=True,
            )
        worker = self.running[key]
        assert worker.stdin
        assert worker.stdout
        try:
            worker.stdin.write(
                json.dumps({"window": str(case.window), "target": case.target, "map": str(map_path)}) + "\n"
            )
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return dict(json.loads(answer))
        worker.communicate()
        self.says[key].seek(0)
        why = (self.says[key].read().decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        self.says[key].close()
        print(f"LEFT OUT {method} on {case.network}: {why}", flush=True)
        self.dead.add(key)
        del self.running[key]
        return None

    def stop(self) -> None:
        """End all of them."""
        for worker in self.running.values():
            worker.kill()
            worker.communicate()
        for said in self.says.values():
            said.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="a folder to keep windows, maps and times in")
    parser.add_argument("--windows", type=int, default=6, help="of the trained networks, both sets in turn")
    parser.add_argument("--resnets", action="store_true", help="the ResNet-18 and ResNet-50 layouts instead")
    parser.add_argument("--methods", nargs="+", default=None, help="default: all")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing new after so many")
    parser.add_argument("--short", type=float, default=10.0, help="seconds below which a method is asked three times")
    parser.add_argument("--untimed", action="store_true", help="keep the maps but no seconds: the machine is busy")
    parser.add_argument("--print-only", action="store_true", help="measure nothing new")
    parser.add_argument("--docs", type=Path, help="write the table and the plot into this folder")
    options = parser.parse_args()
    cases = resnet_cases(options.store) if options.resnets else real_cases(options.store, options.windows)
    methods = options.methods or (ON_RESNETS if options.resnets else METHODS)
    if not options.print_only:
        if not options.untimed:
            (options.store / "peak.json").write_text(json.dumps(peak_gflops()))
        measure(cases, methods, options)
    if not options.resnets:
        judge(cases, methods, options.store)
    lines = list(table(cases, methods, options.store, judged=not options.resnets))
    lines += ["", *bars(cases, options.store)]
    print("\n".join(lines))
    if options.docs:
        if not options.resnets:
            lines += ["", "![Seconds and passes against deletion AUC and AUPRO](performance.svg)"]
        write(options.docs / "performance.md", lines, mark="resnets" if options.resnets else "peers")
        if not options.resnets:
            plot(cases, methods, options.store, options.docs / "performance.svg")


def write(path: Path, lines: list[str], *, mark: str) -> None:
    """Put the lines between a page's two marks, in the place of what stood there."""
    page = path.read_text(encoding="utf-8")
    before, rest = page.split(f"<!-- {mark} -->\n")
    _, after = rest.split(f"<!-- /{mark} -->\n")
    text = "\n".join([before + f"<!-- {mark} -->", *lines, f"<!-- /{mark} -->\n"])
    path.write_text(text + after, encoding="utf-8")


def real_cases(store: Path, count: int) -> list[Case]:
    """Cut windows of the test split, the sets in turn."""
    shared = shared_folder()
    cases: dict[str, list[Case]] = {}
    for name in SETS:
        folder = store / name
        folder.mkdir(parents=True, exist_ok=True)
        bundle = folder / "model.bundle"
        if not (bundle / "manifest.json").exists():
            build_bundle(real_model(shared, name), real_card(shared, name), bundle)
        wanted = [folder / f"window{number}.npz" for number in range((count + 1) // len(SETS))]
        if not all(path.exists() for path in wanted):
            for path, arrays in zip(wanted, cut_windows(shared, name, bundle), strict=False):
                np.savez(path, **arrays)
        cases[name] = [Case(name, real_model(shared, name), bundle, path) for path in wanted]
    return [case for pair in zip(*cases.values(), strict=True) for case in pair][:count]


def cut_windows(shared: Path, name: str, bundle: Path) -> Iterator[dict[str, NDArray[np.generic]]]:
    parts = list(defective_parts(shared, name, split="test"))
    with Explainer(load_bundle(bundle), device="cpu") as explainer:
        for index in np.random.default_rng(1).permutation(len(parts)):
            part = parts[index]
            look = explainer.look(read_picture(part.path, limits=PictureLimits()).pixels)
            if look.prediction.label != part.label:
                continue
            target = explainer.card.labels.index(part.label)
            tile = look.tiles[int(np.argmax(look.scores[:, target]))]
            spec = explainer.card.input
            pixels = tiles.cut(look.picture, tile, spec).astype(np.uint8)
            truth = in_window(part.mask, tile, spec, outside=0).astype(np.bool_)
            yield window_arrays(pixels, target, truth, spec)


def window_arrays(
    pixels: NDArray[np.uint8], target: int, truth: NDArray[np.bool_], spec: InputSpec
) -> dict[str, NDArray[np.generic]]:
    scaled = (pixels.astype(np.float32) / spec.scale - np.float32(spec.mean)) / np.float32(spec.std)
    tensor = np.ascontiguousarray(np.moveaxis(scaled, -1, 0)[None], np.float32)
    return {"pixels": pixels, "tensor": tensor, "target": np.array(target), "truth": truth}


def resnet_cases(store: Path) -> list[Case]:
    cases = []
    for name in ("resnet18", "resnet50"):
        folder = store / name
        folder.mkdir(parents=True, exist_ok=True)
        card = ModelCard(
            name, "1", tuple(f"class {k}" for k in range(6)), InputSpec(224, 224, mean=(0.45,), std=(0.22,))
        )
        if not (folder / "model.bundle" / "manifest.json").exists():
            export_resnet(folder / "model.onnx", bottleneck=name == "resnet50")
            build_bundle(folder / "model.onnx", card, folder / "model.bundle")
        if not (folder / "window0.npz").exists():
            pixels = np.repeat(np.random.default_rng(7).integers(0, 256, (28, 28, 3)), 8, axis=0).repeat(8, axis=1)
            with Explainer(load_bundle(folder / "model.bundle"), device="cpu") as explainer:
                target = explainer.card.labels.index(explainer.look(pixels.astype(np.uint8)).prediction.label)
            arrays = window_arrays(pixels.astype(np.uint8), target, np.zeros((224, 224), bool), card.input)
            np.savez(folder / "window0.npz", **arrays)  # type: ignore[arg-type]
        cases.append(Case(name, folder / "model.onnx", folder / "model.bundle", folder / "window0.npz"))
    return cases


def measure(cases: list[Case], methods: tuple[str, ...], options: argparse.Namespace) -> None:
    """Ask every method for every window that it has not answered, round by round."""
    stop_at = time.monotonic() + options.minutes * 60
    workers = Workers()
    try:
        for case in cases:
            for turn in range(REPEATS):
                for method in methods:
                    path = kept(options.store, case, method)
                    before = json.loads(path.read_text()) if path.exists() else {"seconds": []}
                    times = before["seconds"]
                    if len(times) > turn or (times and max(times) > options.short):
                        continue
                    if options.untimed and path.exists():
                        continue
                    if time.monotonic() > stop_at:
                        return
                    answer = workers.ask(method, case, path.with_suffix(".npz"))
                    if answer is None:
                        continue
                    now = [] if options.untimed else [answer["seconds"]]
                    path.write_text(json.dumps(answer | {"seconds": times + now}))
                    print(f"{case.network} {case.window.stem} {method}: {answer['seconds']:.2f} s", flush=True)
    finally:
        workers.stop()


def kept(store: Path, case: Case, method: str) -> Path:
    """Where a method's answer for a window stands."""
    return case.window.parent / f"{case.window.stem}-{method.replace(':', '-')}.json"


def judge(cases: list[Case], methods: tuple[str, ...], store: Path) -> None:
    """Measure every map's faithfulness on the network, and keep it."""
    for case in cases:
        with np.load(case.window) as file:
            window, target, truth = file["pixels"].astype(np.float32), int(file["target"]), file["truth"]
        with Explainer(load_bundle(case.bundle), device="cpu") as explainer:
            hidden = sise.baseline_picture(window, explainer.settings.baseline, mean=explainer.engine.mean_px)
            for method in methods:
                path = kept(store, case, method)
                if not path.exists():
                    continue
                answer = json.loads(path.read_text())
                if "faithful" not in answer:
                    with np.load(path.with_suffix(".npz")) as file:
                        fused, rank = file["fused"], file["rank"]
                    answer["faithful"] = ask(
                        explainer.engine, window, target, fused=fused, rank=rank, hidden=hidden, truth=truth
                    )
                    path.write_text(json.dumps(answer))


def peak_gflops(side: int = 2048, rounds: int = 6) -> float:
    """Return the best rate of a float32 matrix product on this machine, numpy's or ONNX Runtime's, in GFLOP/s."""
    one = np.random.default_rng(0).random((side, side), dtype=np.float32)
    square = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [side, side]) for name in "ab"]
    node = onnx.helper.make_node("MatMul", ["a", "a"], ["b"])
    graph = onnx.helper.make_graph([node], "product", square[:1], square[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    session = open_session(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())
    spent = []
    for product in (lambda: one @ one, lambda: session.run(None, {"a": one})):
        for _ in range(rounds):
            began = time.perf_counter()
            product()
            spent.append(time.perf_counter() - began)
    return 2 * side**3 / min(spent) / 1e9


def answers(cases: list[Case], method: str, store: Path) -> list[dict[str, object]]:
    """Return what a method answered, of the windows that it answered."""
    paths = (kept(store, case, method) for case in cases)
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def table(cases: list[Case], methods: tuple[str, ...], store: Path, *, judged: bool) -> Iterator[str]:
    """Return the table in Markdown, with what it was measured on above it."""
    cores = len(os.sched_getaffinity(0))
    yield (
        f"Python {platform.python_version()}, numpy {np.__version__}, onnxruntime {onnxruntime.__version__}, "
        f"{cores} cores, {platform.machine()}; {len(cases)} windows of 224 x 224."
    )
    yield ""
    names = FAITHFUL if judged else ()
    head = ["method", "windows", "s median (spread)", "passes", "ms per pass", "peak MB", *names]
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    groups = [cases] if judged else [[case] for case in cases]
    for group in groups:
        for method in methods:
            found = answers(group, method, store)
            if found:
                label = method if judged else f"{group[0].network} {method}"
                yield row(label, found, judged=judged)
            else:
                yield f"| {method} | left out |" + " |" * (len(head) - 2)
    yield ""
    yield "; ".join(sorted({str(each["made_of"]) for method in methods for each in answers(cases, method, store)}))


def row(label: str, found: list[dict[str, object]], *, judged: bool) -> str:
    seconds = np.array([second for each in found for second in each["seconds"]])  # type: ignore[attr-defined]
    passes = np.median([each["passes"] for each in found])
    peak = max(float(each["peak_mb"]) for each in found)  # type: ignore[arg-type]
    timed = f"{np.median(seconds):.3g} ({seconds.min():.3g} to {seconds.max():.3g})" if len(seconds) else "not timed"
    each_ms = per_pass_ms(found)
    cells = [label, str(len(found)), timed, f"{passes:.0f}", f"{each_ms:.1f}" if each_ms else "", f"{peak:.0f}"]
    if judged:
        cells += [f"{value:.3f}" for value in np.nanmean([each["faithful"] for each in found], axis=0)]  # type: ignore
    return "| " + " | ".join(cells) + " |"


def per_pass_ms(found: list[dict[str, object]]) -> float | None:
    """Median over what was timed of milliseconds per pass."""
    rates = [1e3 * second / each["passes"] for each in found for second in each["seconds"]]  # type: ignore
    return float(np.median(rates)) if rates else None


def bars(cases: list[Case], store: Path) -> Iterator[str]:
    """Return what was promised, window by window, as ratios of what was measured in the same turn."""
    peak = float((store / "peak.json").read_text()) if (store / "peak.json").exists() else None
    for network in dict.fromkeys(case.network for case in cases):
        some = [case for case in cases if case.network == network]
        for what, ours, theirs in (
            ("per explanation", "inspect-xai:sise:exact", "grad-cam:ScoreCAM"),
            ("per pass", "inspect-xai:sise:exact", "grad-cam:ScoreCAM"),
            ("peak memory", "inspect-xai:sise:exact", "grad-cam:ScoreCAM"),
            ("per explanation", "inspect-xai:sise:quick", "openvino_xai:AISE"),
        ):
            pairs = [(answers([case], ours, store), answers([case], theirs, store)) for case in some]
            ratios = [ratio(what, one[0], other[0]) for one, other in pairs if one and other]
            found = [each for each in ratios if each is not None]
            if found:
                yield (
                    f"- {network}: {theirs} / {ours} {what}: median {np.median(found):.2f}"
                    f" ({min(found):.2f} to {max(found):.2f})"
                )
        for method in ("inspect-xai:sise:exact", "grad-cam:ScoreCAM"):
            shares = [share_of_peak(each, network, peak) for each in answers(some, method, store)] if peak else []
            if shares and None not in shares:
                yield f"- {network}: {method} at {100 * np.median(shares):.0f} % of {peak:.0f} GFLOP/s"  # type: ignore


def share_of_peak(answer: dict[str, object], network: str, peak: float) -> float | None:
    """Return what the network's own arithmetic makes of the machine's best rate, best time of the answer."""
    seconds = answer["seconds"]
    return GFLOP[network] * int(answer["passes"]) / min(seconds) / peak if seconds else None  # type: ignore


def ratio(what: str, ours: dict[str, object], theirs: dict[str, object]) -> float | None:
    """How many times ours the other's number is; None where one of them was not timed."""
    if what == "peak memory":
        return float(theirs["peak_mb"]) / float(ours["peak_mb"])  # type: ignore[arg-type]
    if not ours["seconds"] or not theirs["seconds"]:
        return None
    mine, other = (float(np.median(each["seconds"])) for each in (ours, theirs))  # type: ignore[call-overload]
    if what == "per pass":
        mine, other = mine / int(ours["passes"]), other / int(theirs["passes"])  # type: ignore[call-overload]
    return other / mine


def plot(cases: list[Case], methods: tuple[str, ...], store: Path, path: Path) -> None:
    """Seconds and passes against deletion AUC and AUPRO; ours filled, peers hollow."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "peers"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 9), constrained_layout=True)
    colors = {
        "inspect-xai": "#0072B2",
        "grad-cam": "#D55E00",
        "torchcam": "#E69F00",
        "captum": "#CC79A7",
        "openvino_xai": "#009E73",
        "dianna": "#000000",
    }  # Okabe and Ito's, told apart by all eyes
    marks = dict(zip(colors, "os^DvP", strict=True))
    for column, what in enumerate(("seconds", "passes")):
        for line, (index, name, better) in enumerate(((0, "deletion AUC", "lower"), (4, "AUPRO", "higher"))):
            axis = axes[line][column]
            for method in methods:
                found = answers(cases, method, store)
                cost = [value for each in found for value in np.atleast_1d(each[what])]  # type: ignore[call-overload]
                if not cost:
                    continue
                family, short = method.split(":", 1)
                score = np.nanmean([each["faithful"][index] for each in found])  # type: ignore[index]
                filled = colors[family] if family == "inspect-xai" else "none"
                axis.scatter(
                    np.median(cost), score, marker=marks[family], facecolor=filled, edgecolor=colors[family], s=50
                )
                axis.annotate(short, (np.median(cost), score), fontsize=7, xytext=(4, 3), textcoords="offset points")
            axis.set(xscale="log", xlabel=f"{what} per explanation", ylabel=f"{name} ({better} is better)")
            axis.grid(alpha=0.3)
    handles = [
        plt.Line2D(
            [],
            [],
            marker=marks[family],
            linestyle="",
            markeredgecolor=color,
            label=family,
            markerfacecolor=color if family == "inspect-xai" else "none",
        )
        for family, color in colors.items()
    ]
    axes[0][0].legend(handles=handles, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
