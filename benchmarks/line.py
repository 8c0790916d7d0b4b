"""The line against bare ONNX Runtime, its memory over thousands of pictures, and a source of a million file names.

    python -m benchmarks.line overhead      a chunk of 200 real pictures, judged only and with explanations, in turn
                                            with the same number of bare forward passes in the same batch sizes
    python -m benchmarks.line memory        resident memory over 5,000 pictures
    python -m benchmarks.line sizes         peak memory over one picture of 1 to 64 million pixels, flagged all over
    python -m benchmarks.line names         1,000,000 file names: the first picture, and memory as all are claimed
    python -m benchmarks.line workers       one process and two, of a thread each, and one of two threads, that drain
                                            one source in turn: a folder shared by renaming, a URL by claims with a
                                            lease; SQLite and PostgreSQL
    python -m benchmarks.line prefect       the same as runs of the flow on a real Prefect server: one worker, and two

All but `memory`, `sizes` and `names` take the trained network and the pictures beside the checkout (see
`benchmarks/real.py`).
Those three render their pictures and use a network of two convolutions, so that what is not the network shows.
"""

import argparse
import csv
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import yaml
from numpy.typing import NDArray

from benchmarks.real import SETS, real_card, real_model, shared_folder
from benchmarks.support import postgres
from benchmarks.support.prefect_server import ROOT as PROJECT
from benchmarks.support.prefect_server import Prefect, wait_for
from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.intake.url_source import open_source
from inspect_xai.line.line import Line, drain
from inspect_xai.line.summary import LineSummary
from inspect_xai.model import engine, session
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.session import open_session
from inspect_xai.policy import Policy, policy_from
from inspect_xai.records import InputSpec, ModelCard, VerdictSpec
from inspect_xai.storage.schema import upgrade_schema
from inspect_xai.storage.store import open_store

NETWORK = "magnetic-tile"
Clock = Callable[[], float]
JUDGED_ONLY = policy_from({"version": "bench", "explain": {"verdicts": [], "ok_share": 0.0}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pieces = {
        "overhead": overhead,
        "memory": memory,
        "sizes": sizes,
        "names": names,
        "workers": workers,
        "prefect": prefect,
    }
    parser.add_argument("piece", choices=list(pieces))
    parser.add_argument("--pictures", type=int, help="default: 5000 for memory, 400 for prefect, else 200")
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="overhead in the processor's seconds, for a busy machine: taskset -c 0 python -m ... --cpu",
    )
    parser.add_argument("--chunk", type=int, default=32, help="pictures of one task of Prefect's")
    parser.add_argument("--max-passes", type=int, default=64, help="for one explanation")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"onnxruntime {ort.__version__}, numpy {np.__version__}, {cores} cores, Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as scratch:
        pieces[options.piece](Path(scratch), options)


# --- what the line costs over its network


def overhead(scratch: Path, options: argparse.Namespace) -> None:
    count, clock = options.pictures or 200, time.process_time if options.cpu else time.perf_counter
    shared = shared_folder()
    model = real_model(shared, NETWORK)
    bundle = scratch / "bundle"
    build_bundle(model, real_card(shared, NETWORK), bundle)
    free, defective = real_pictures(shared)
    kinds = {
        "judged only": (free[:count], {"verdicts": [], "ok_share": 0.0}),
        "all, product-cam": (
            free[:count],
            {"verdicts": ["OK", "NG", "UNSURE"], "method": "product-cam", "faithfulness": False},
        ),
        "10 % NG, explained": (
            free[: count - count // 10] + defective[: count // 10],
            {"verdicts": ["NG", "UNSURE"], "ok_share": 0.0, "max_passes": options.max_passes},
        ),
    }
    bare = open_session(model)
    for kind, (pictures, rule) in kinds.items():
        policy = policy_from({"version": "bench", "explain": rule})
        ratios: defaultdict[str, list[float]] = defaultdict(list)
        for number in range(options.rounds):
            folder = scratch / f"{kind}-{number}"
            fill(folder, pictures)
            with forwards_noted(clock) as noted:
                summary, seconds = one_chunk(folder, bundle, f"sqlite:///{folder}.db", policy, chunk=count, clock=clock)
            forwards_s = bare_forwards(bare, noted.windows, clock=clock)
            traces_s, traced = sum(noted.traces_s), len(noted.traces_s)
            ratios["bare forwards, a trace for one"].append(seconds / forwards_s)
            masked_s = forwards_s * (1 - traced / sum(noted.windows))
            ratios["bare forwards and its own traces"].append(seconds / (masked_s + traces_s))
            ratios["its own network runs"].append(seconds / noted.seconds)
            print(
                f"overhead, {kind}: {summary.inspected} pictures, {summary.explained} explained, "
                f"{sum(noted.windows)} forwards in {len(noted.windows)} runs, {traced} of them traces of "
                f"{traces_s:.2f} s: line {seconds:.2f} s, in the network {noted.seconds:.2f} s, bare forwards "
                f"{forwards_s:.2f} s, outside the network "
                f"{1e3 * (seconds - noted.seconds) / summary.inspected:.2f} ms a picture",
                flush=True,
            )
        for what, found in ratios.items():
            print(
                f"overhead, {kind}: line / {what}: median {statistics.median(found):.3f}, "
                f"{min(found):.3f} to {max(found):.3f}"
            )


@dataclass
class Noted:
    """The network's runs: windows of each, and seconds of all, and of each trace, a forward and a backward pass."""

    windows: list[int] = field(default_factory=list)
    traces_s: list[float] = field(default_factory=list)
    seconds: float = 0.0


@contextmanager
def forwards_noted(clock: Clock) -> Iterator[Noted]:
    """Note every run of the network inside the block, whatever asks for it."""
    noted, run = Noted(), session.run

    def noting(opened: Any, outputs: Any, feeds: Any, **held: Any) -> Any:
        start = clock()
        arrays = run(opened, outputs, feeds, **held)
        took_s = clock() - start
        noted.seconds += took_s
        noted.traces_s += [took_s] if "target" in feeds else []
        noted.windows.append(len(feeds["maps"] if "maps" in feeds else next(iter(feeds.values()))))
        return arrays

    engine.run = noting  # type: ignore[assignment, attr-defined]
    try:
        yield noted
    finally:
        engine.run = run  # type: ignore[attr-defined]


def real_pictures(shared: Path) -> tuple[list[Path], list[Path]]:
    """Paths of pictures without a defect and with one."""
    folder = shared / "data" / NETWORK
    found: dict[bool, list[Path]] = {True: [], False: []}
    for split in ("train", "test"):
        with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found[row["class"] == SETS[NETWORK]].append(folder / row["image"])
    return found[True], found[False]


def fill(folder: Path, pictures: list[Path]) -> None:
    for index, path in enumerate(pictures):
        target = folder / f"L1/S3/SN{index:06d}_LOT7_CAM1_top_early_20261122T061500Z{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())


def one_chunk(
    folder: Path, bundle: Path, db: str, policy: Policy, *, chunk: int, clock: Clock
) -> tuple[LineSummary, float]:
    """Drain a folder; the seconds are without opening the line, which a plant does once."""
    with Line(bundle, db, device="cpu", policy=policy) as line, FolderSource(folder, settle_s=0) as source:
        start = clock()
        return drain(line, source, chunk=chunk), clock() - start


def bare_forwards(opened: ort.InferenceSession, windows: list[int], *, clock: Clock) -> float:
    """Seconds for as many plain forward passes in batches of the same sizes, with the network as it came."""
    name, shape = opened.get_inputs()[0].name, opened.get_inputs()[0].shape[1:]
    rng = np.random.default_rng(7)
    batch = np.repeat(rng.standard_normal((1, *shape)).astype(np.float32), max(windows), axis=0)
    for size in set(windows):
        opened.run(None, {name: batch[:size]})
    start = clock()
    for size in windows:
        opened.run(None, {name: batch[:size]})
    return clock() - start


# --- memory


def memory(scratch: Path, options: argparse.Namespace) -> None:
    count = options.pictures or 5_000
    bundle = small_bundle(scratch)
    folder = scratch / "in"
    rng = np.random.default_rng(7)
    for index in range(count):
        write_png(folder / f"L1/S{index % 3}/SN{index:06d}_LOT7_CAM1_top_early_20261122T061500Z.png", part(rng, index))
    curve: list[tuple[int, float]] = []
    seen = 0
    every = max(1, count // 20)

    def look() -> None:
        nonlocal seen
        seen += 1
        if seen % every == 0:
            curve.append((seen, resident_mb()))

    with (
        Line(bundle, f"sqlite:///{scratch / 'line.db'}", device="cpu") as line,
        FolderSource(folder, settle_s=0) as source,
    ):
        summary = drain(line, source, on_progress=look)
    for pictures, megabytes in curve:
        print(f"memory: {pictures:6d} pictures {megabytes:8.1f} MB")
    warm, last = curve[len(curve) // 5][1], curve[-1][1]
    print(
        f"memory: {summary.inspected} pictures, {summary.explained} explained, {summary.seconds:.0f} s; "
        f"from picture {curve[len(curve) // 5][0]} to the last {100 * (last / warm - 1):+.2f} %"
    )


# --- the size of a picture


def sizes(scratch: Path, _options: argparse.Namespace) -> None:
    """Let a process of its own inspect one white picture, whose every window is flagged, and tell its peak memory."""
    bundle = small_bundle(scratch)
    peaks: list[tuple[int, float]] = []
    for side in (250, 1_000, 2_000, 4_000, 8_000):
        folder = scratch / f"white-{side}"
        write_png(folder / "in/white.png", np.full((side, side), 255, np.uint8))
        child = multiprocessing.get_context("spawn").Process(target=inspect_one, args=(folder, bundle))
        child.start()
        _, _, used = os.wait4(child.pid or 0, 0)
        peaks.append((side * side, used.ru_maxrss / 1024))
        (pixels, least), (most, last) = peaks[0], peaks[-1]
        print(
            f"sizes: {side:5d} px a side, peak {last:7.1f} MB, {last / least:.2f} of the smallest's, "
            f"{(last - least) * 2**20 / max(1, most - pixels):.1f} bytes a pixel more, "
            f"{used.ru_utime + used.ru_stime:.1f} s of the processor",
            flush=True,
        )


def inspect_one(folder: Path, bundle: Path) -> None:
    with (
        Line(bundle, f"sqlite:///{folder / 'line.db'}", device="cpu") as line,
        FolderSource(folder / "in", settle_s=0) as source,
    ):
        drain(line, source)


# --- a million names


def names(scratch: Path, options: argparse.Namespace) -> None:
    bundle = small_bundle(scratch)
    with folder_of_names(options.names) as folder:
        before = resident_mb()
        start = time.perf_counter()
        first: list[float] = []

        def look() -> bool:
            if not first:
                first.append(time.perf_counter() - start)
            return True

        with (
            Line(bundle, f"sqlite:///{scratch / 'line.db'}", device="cpu") as line,
            FolderSource(folder, settle_s=1.0) as source,
        ):
            claims = source.claim(32)
            line.inspect(source, claims, after_each=look)
            print(f"names: first of {options.names} pictures judged {first[0]:.2f} s after the line was started")
            claimed, peak = len(claims), resident_mb()
            while claims:
                for claim in claims:
                    source.move(claim, destination=f"{folder}/_archive/done.png")
                claims = source.claim(1000)
                claimed += len(claims)
                peak = max(peak, resident_mb())
            seconds = time.perf_counter() - start
        print(
            f"names: {claimed} claimed in {seconds:.0f} s, {1e6 * seconds / max(1, claimed):.0f} us a name; "
            f"memory {before:.0f} MB before the line, {peak:.0f} MB at most"
        )


@contextmanager
def folder_of_names(count: int) -> Iterator[Path]:
    """Make a folder in memory with a number of files of the smallest picture.

    No links to one file: moving one name would change the time of all others, and none would be at rest.
    """
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else None  # noqa: S108  below it a folder of our own
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name) / "in"
        folder.mkdir()
        data = cv2.imencode(".png", part(np.random.default_rng(7), 1)[:8, :8])[1].tobytes()
        for index in range(count):
            (folder / f"{index:07d}.png").write_bytes(data)
        yield folder


# --- several workers on one source


def workers(scratch: Path, options: argparse.Namespace) -> None:
    count, shared = options.pictures or 200, shared_folder()
    bundle = scratch / "bundle"
    build_bundle(real_model(shared, NETWORK), real_card(shared, NETWORK), bundle)
    pictures = real_pictures(shared)[0][:count]
    with ExitStack() as stack:
        servers = {"SQLite": lambda place: f"sqlite:///{place}.db"}
        if postgres.programs() is not None:
            server = stack.enter_context(postgres.cluster())
            servers["PostgreSQL"] = lambda _place: server.create()
        for database, new in servers.items():
            for shape in ("folder", "URL"):
                took: dict[tuple[int, int], list[float]] = {(1, 1): [], (2, 1): [], (1, 2): []}
                for number in range(options.rounds):
                    for (crew, threads), seconds in took.items():
                        place = scratch / f"{database}-{shape}-{number}-{crew}-{threads}"
                        fill(place, pictures)
                        db = new(place)
                        upgrade_schema(db)
                        source = str(place) if shape == "folder" else f"file://{place}"
                        seconds.append(side_by_side(source, bundle, db, crew=crew, threads=threads, count=count))
                one, two, wide = took.values()
                speed_ups = [alone / together for alone, together in zip(one, two, strict=True)]
                against_wide = [together / alone for alone, together in zip(wide, two, strict=True)]
                alone_s, together_s = statistics.median(one), statistics.median(two)
                print(
                    f"workers, {shape}, {database}: {count} pictures, each recorded once; 1 process {alone_s:.2f} s, "
                    f"2 processes {together_s:.2f} s: speed-up median {statistics.median(speed_ups):.2f}, "
                    f"{min(speed_ups):.2f} to {max(speed_ups):.2f}; "
                    f"{1e3 * (2 * together_s - alone_s) / count:+.2f} ms of a core a picture more; against 1 process "
                    f"of 2 threads {statistics.median(against_wide):.2f} of the time, "
                    f"{min(against_wide):.2f} to {max(against_wide):.2f}",
                    flush=True,
                )


def side_by_side(source: str, bundle: Path, db: str, *, crew: int, threads: int, count: int) -> float:
    """Drain a source with so many processes; the seconds are from when all are open to when the last one is done."""
    spawn = multiprocessing.get_context("spawn")  # a forked child would inherit the runtime's threads half dead
    ready, done = spawn.Barrier(crew + 1), spawn.Queue()
    processes = [spawn.Process(target=drain_one, args=(source, bundle, db, threads, ready, done)) for _ in range(crew)]
    for process in processes:
        process.start()
    ready.wait(120)
    start = time.perf_counter()
    inspected = [done.get(timeout=600) for _ in processes]
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
    with open_store(db) as store:
        rows = store.find(limit=2 * count)
    assert sum(inspected) == len(rows) == len({row.sha256 for row in rows}) == count, (inspected, len(rows))
    assert min(inspected) > 0
    return seconds


def drain_one(source: str, bundle: Path, db: str, threads: int, ready: Any, done: Any) -> None:
    with (
        Line(bundle, db, device="cpu", threads=threads, policy=JUDGED_ONLY) as line,
        open_source(source, settle_s=0) as pictures,
    ):
        ready.wait(120)
        done.put(drain(line, pictures, chunk=16).inspected)


# --- the same through Prefect


def prefect(scratch: Path, options: argparse.Namespace) -> None:
    count, shared = options.pictures or 400, shared_folder()
    bundle, settings = scratch / "bundle", scratch / "line.toml"
    build_bundle(real_model(shared, NETWORK), real_card(shared, NETWORK), bundle)
    pictures = real_pictures(shared)[0][:count]
    policy = scratch / "policy.toml"
    policy.write_text('version = "bench"\n[explain]\nverdicts = []\nok_share = 0\n')
    (scratch / "home").mkdir()
    environment = {
        "INSPECT_XAI_HOME": str(PROJECT),
        "INSPECT_XAI_SETTINGS": str(settings),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    server = Prefect(scratch / "home", environment)
    with postgres.cluster() as database:
        try:
            server.start("server", "start", "--host", "127.0.0.1", "--port", str(server.port))
            wait_for(lambda: server.ask("health"), within_s=120, log=scratch / "home/server.log")
            deploy_line(server, scratch, at_once=2)
            for crew in (1, 2):
                server.start("worker", "start", "--pool", "inspection", "--limit", "1", "--name", f"worker-{crew}")
                for number in range(options.rounds):
                    place, db = scratch / f"in-{crew}-{number}", database.create()
                    fill(place, pictures)
                    upgrade_schema(db)
                    settings.write_text(
                        f'db = "{db}"\nbundle = "{bundle}"\ndevice = "cpu"\nthreads = 1\n'
                        f'[line]\nsource = "{place}"\nsettle_s = 0\npolicy = "{policy}"\nclaim_size = {options.chunk}\n'
                    )
                    tell_runs(run_line(server, crew, log=scratch / "home/worker.log"), crew, count)
                    place, db = scratch / f"plain-{crew}-{number}", database.create()
                    fill(place, pictures)
                    upgrade_schema(db)
                    with (
                        Line(bundle, db, device="cpu", threads=1, policy=JUDGED_ONLY) as line,
                        FolderSource(place, settle_s=0) as source,
                    ):
                        seconds = drain(line, source, chunk=options.chunk).seconds
                    print(f"prefect: without it, one process: {1e3 * seconds / count:.2f} ms a picture", flush=True)
        finally:
            server.close()


def deploy_line(server: Prefect, scratch: Path, *, at_once: int) -> None:
    """Deploy the line alone, without its schedule, for so many runs at once."""
    said = yaml.safe_load((PROJECT / "deploy/prefect.yaml").read_text())
    (line,) = (each for each in said["deployments"] if each["name"] == "line")
    line["concurrency_limit"]["limit"], line["schedules"] = at_once, []
    (scratch / "prefect.yaml").write_text(yaml.safe_dump(said | {"deployments": [line]}))
    server.say("work-pool", "create", "inspection", "--type", "process")
    server.say("--no-prompt", "deploy", "--all", "--prefect-file", str(scratch / "prefect.yaml"))


def run_line(server: Prefect, crew: int, *, log: Path) -> list[dict[str, float]]:
    """Start as many runs as there are workers; of each its seconds, and what its table says."""
    before = {run["id"] for run in server.runs("line", "COMPLETED")}
    for _ in range(crew):
        server.say("deployment", "run", "inspect-line/line")

    def done() -> list[dict[str, Any]]:
        found = [run for run in server.runs("line", "COMPLETED") if run["id"] not in before]
        return found if len(found) == crew else []

    told = []
    for run in wait_for(done, within_s=600, log=log):
        tables = {"flow_run_id": {"any_": [run["id"]]}, "key": {"any_": ["inspect-line-numbers"]}}
        (table,) = server.ask("artifacts/filter", {"artifacts": tables})
        numbers = {row["what"]: row["value"] for row in json.loads(table["data"])}
        seen, line_s = float(numbers["inspected"]), float(numbers["seconds"])
        told.append({"run_s": float(run["total_run_time"]), "line_s": line_s, "seen": seen})
    return told


def tell_runs(told: list[dict[str, float]], crew: int, count: int) -> None:
    assert sum(run["seen"] for run in told) == count, told
    each = ", ".join(f"{run['seen']:.0f} in {run['line_s']:.2f} s" for run in told)
    rate = sum(run["seen"] / run["line_s"] for run in told)
    around = statistics.mean(run["run_s"] - run["line_s"] for run in told)
    print(
        f"prefect: {crew} worker(s), {each}: together {rate:.1f} pictures a second, {1e3 * crew / rate:.2f} ms a "
        f"picture in a worker; opening the line and ending the run {around:.1f} s",
        flush=True,
    )


# --- a small network and its pictures


def small_bundle(scratch: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(5)
    weights: dict[str, NDArray[np.float32]] = {
        "w1": (rng.standard_normal((8, 3, 3, 3)) / 5).astype(np.float32),
        "w2": (rng.standard_normal((16, 8, 3, 3)) / 8).astype(np.float32),
        "w3": rng.standard_normal((2, 16)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c1"], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["block_1"]),
        helper.make_node("Conv", ["block_1", "w2"], ["c2"], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["block_2"]),
        helper.make_node("GlobalAveragePool", ["block_2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 64, 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    file = scratch / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    card = ModelCard(
        "small",
        "1",
        ("spot", "free"),
        InputSpec(64, 64, mean=(0.5,)),
        ok_labels=("free",),
        verdict=VerdictSpec(unsure_margin=0.1),
    )
    build_bundle(file, card, scratch / "small.bundle")
    return scratch / "small.bundle"


def part(rng: np.random.Generator, index: int) -> NDArray[np.uint8]:
    """Return a gray surface (64, 64), every tenth with a bright square."""
    picture = rng.integers(90, 160, (64, 64), np.uint8)
    if index % 10 == 0:
        picture[20:34, 30:44] = 255
    return picture


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def resident_mb() -> float:
    """Memory this process holds now; where the system does not say, the most it ever held."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
