"""What the record costs: milliseconds per inspection, bytes per explanation, and the queries people wait for.

    python -m benchmarks.storage                             100,000 inspections on both databases (5 minutes)
    python -m benchmarks.storage --inspections 5000          a quick look
    python -m benchmarks.storage --bundle DIR --pictures DIR bytes and share of the time on real explanations, too

"cpu" is this process's own time, all of it on SQLite: what to go by where other work shares the machine. A day has
1000 inspections; one in ten is flagged, explained (one window, five blocks) and in half of the cases reviewed.
PostgreSQL is a throw-away cluster on loopback. To fill the database quickly its maps are small; cost and size of full
ones (224 x 224, blocks of 112 to 7) are measured first, in a database of their own.
"""

import argparse
import dataclasses
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psycopg
import sqlalchemy
from numpy.typing import NDArray

from benchmarks.support import postgres, stored
from inspect_xai.records import Decision, Explanation, Inspection, Profile, Review, VerdictCode
from inspect_xai.storage import schema
from inspect_xai.storage.report_queries import ReportQueries
from inspect_xai.storage.review_queue import Desk
from inspect_xai.storage.review_queue_sql import QueueFilter
from inspect_xai.storage.store import Store, open_store

PER_DAY = 1000
FLAGGED = 10  # every so many
CHUNK = 50
LIMIT_MS = 50.0


def cascade(sums: list[NDArray[np.float32]], size: int) -> NDArray[np.float32]:
    """Return a fused map as the method makes it, but with a quantile in the place of Otsu's threshold."""
    maps = [cv2.resize(each, (size, size), interpolation=cv2.INTER_LINEAR) for each in sums]
    maps = [(each - each.min()) / max(float(np.ptp(each)), 1e-9) for each in maps]
    fused = maps[0]
    for each in maps[1:]:
        fused = (fused + each) * (each > np.quantile(each, 0.6))
    return fused.astype(np.float32)


def explanation(rng: np.random.Generator, *, size: int, sizes: tuple[int, ...]) -> Explanation:
    """Return an explanation whose maps pack as a network's do."""
    made = stored.explanation(rng, size=8, sizes=sizes)
    sums = [block.sums for block in made.tiles[0].blocks if block.sums is not None]
    return dataclasses.replace(made, fused=cascade(sums, size))


def inspection(number: int, explained: Explanation | None) -> Inspection:
    """Inspection `number` of a year of days with `PER_DAY` each; two pictures per part."""
    code = VerdictCode.NG if explained else VerdictCode.OK
    made = stored.inspection(number, explained=explained, code=code)
    moment = stored.NOON + timedelta(days=number // PER_DAY, seconds=number % PER_DAY)
    part = dataclasses.replace(made.capture.part, serial=f"SN{number // 2:06d}", lot=f"LOT{number // 500}")
    capture = dataclasses.replace(made.capture, captured_at=moment, part=part)
    return dataclasses.replace(made, capture=capture, inspected_at=moment)


def timed(run: Callable[[], object], *, parts: int = 1) -> tuple[float, float]:
    """Milliseconds per part: by the clock, and of this process's own work."""
    begun, worked = time.perf_counter(), time.process_time()
    run()
    return (time.perf_counter() - begun) * 1000 / parts, (time.process_time() - worked) * 1000 / parts


def record_timed(store: Store, inspections: list[Inspection]) -> list[tuple[float, float]]:
    """Milliseconds per inspection of each chunk."""
    chunks = [inspections[start : start + CHUNK] for start in range(0, len(inspections), CHUNK)]
    return [timed(lambda chunk=chunk: store.record(chunk), parts=len(chunk)) for chunk in chunks]


def row_ms(name: str, spent: list[tuple[float, float]]) -> None:
    """One line of times."""
    row(f"{name}", [wall for wall, _ in spent], "ms")
    row("      of that cpu", [cpu for _, cpu in spent], "ms")


def row(name: str, values: list[float], unit: str) -> None:
    """One line: median and spread."""
    low, high = (min(values), max(values)) if len(values) < 10 else np.quantile(values, [0.05, 0.95])
    print(
        f"{name:<58} median {statistics.median(values):9.2f} {unit}   5..95 % {low:.2f} .. {high:.2f}   n {len(values)}"
    )


def measure_recording(store: Store, real: Mapping[str, Sequence[tuple[Explanation, float]]]) -> None:
    """Cost and size of full explanations, in the database of their own."""
    rng = np.random.default_rng(1)
    plain = [inspection(number, None) for number in range(400)]
    row_ms("recording one that is not explained", record_timed(store, plain))
    full = [explanation(rng, size=224, sizes=(112, 56, 28, 14, 7)) for _ in range(40)]
    number = 1000
    kinds = {"rendered": full} | {profile: [each for each, _ in made] for profile, made in real.items()}
    for name, explanations in kinds.items():
        chunk = [inspection(number + i, each) for i, each in enumerate(explanations)]
        number += 1000
        spent = record_timed(store, chunk)
        row_ms(f"recording one that is explained, 224 x 224, {name}", spent)
        found = store.find(limit=len(chunk))
        sizes = [each.map_bytes / 1000 for one in found if (each := store.get(one.inspection_id).explanation)]
        row(f"maps of one explanation, {name} (at most 40)", sizes, "kB")
        if name in real:
            took_ms = statistics.median(wall for _, wall in real[name])
            share = statistics.median(wall for wall, _ in spent) / took_ms * 100
            print(f"      judging and explaining one took {took_ms:.0f} ms; recording adds {share:.2f} % (at most 5)")


def fill(store: Store, number: int) -> None:
    """Write the inspections, their explanations and reviews."""
    rng = np.random.default_rng(2)
    few = [explanation(rng, size=14, sizes=(14, 14, 14, 7, 7)) for _ in range(50)]
    begun = time.perf_counter()
    for start in range(0, number, 500):
        chunk = [
            inspection(n, few[n // FLAGGED % len(few)] if n % FLAGGED == 0 else None)
            for n in range(start, min(start + 500, number))
        ]
        for each, given in zip(store.record(chunk), chunk, strict=True):
            if given.explanation and each.inspection_id // FLAGGED % 2:
                store.review(each.inspection_id, Review("Ada", Decision.CONFIRM, VerdictCode.NG))
    print(f"filled with {number} inspections in {time.perf_counter() - begun:.0f} s")


@contextmanager
def statements(store: Store) -> Iterator[list[tuple[str, Any]]]:
    """Return the statements that run inside of the block."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        seen.append((statement, parameters))

    sqlalchemy.event.listen(store.database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sqlalchemy.event.remove(store.database.engine, "before_cursor_execute", note)


def print_plan(store: Store, run: Callable[[], object]) -> None:
    """Return the database's plan of the longest statement of a query."""
    with statements(store) as seen:
        run()
    statement, parameters = max((each for each in seen if "SELECT" in each[0]), key=lambda each: len(each[0]))
    is_sqlite = store.database.engine.dialect.name == "sqlite"
    prefix = "EXPLAIN QUERY PLAN " if is_sqlite else "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) "
    with store.database.read() as connection:
        for line in connection.exec_driver_sql(prefix + statement, parameters):
            print(f"      {line[-1]}")


def measure_queries(store: Store, number: int) -> None:
    """Return the queries people wait for, with their plans."""
    desk, figures = Desk(store.database), ReportQueries(store.database)
    begun = time.perf_counter()
    taken = desk.enqueue_new()
    print(f"desk took in {taken} of {number} in {time.perf_counter() - begun:.1f} s")
    middle = stored.NOON + timedelta(days=number // PER_DAY // 2)
    day = (middle, middle + timedelta(days=1))
    everything = (stored.NOON, stored.NOON + timedelta(days=100_000))
    queries: dict[str, tuple[Callable[[], object], bool]] = {
        "queue, first page": (lambda: desk.queue(QueueFilter()), True),
        "queue, one station": (lambda: desk.queue(QueueFilter(station="S1")), True),
        "trace of a part": (lambda: store.trace(f"SN{number // 4:06d}"), True),
        "day's report: counts by station and verdict": (
            lambda: figures.tally(*day, by=("line", "station", "verdict", "reviewed_verdict")),
            True,
        ),
        "day's report: all its inspections": (lambda: figures.rows(*day), True),
        "statistics of the day by station": (lambda: store.stats(*day), False),
        "flagged parts that wait, by age": (lambda: figures.waiting(day[1]), False),
        "one inspection with its maps": (lambda: store.get(number // 2 // FLAGGED * FLAGGED + 1, maps=True), False),
        "find by label": (lambda: store.find(label="crack", verdict="NG"), False),
        "find by region": (lambda: store.find(near_px=(2.5, 4, 1)), False),
        "known, 500 pictures": (lambda: store.known([f"{n:064x}" for n in range(500)], stored.FINGERPRINT, "1"), False),
        "statistics of everything": (lambda: store.stats(*everything), False),
        "ledger verified": (store.ledger.verify, False),
    }
    for name, (run, is_bound) in queries.items():
        spent = [timed(run) for _ in range(3 if "everything" in name or "ledger" in name else 15)]
        best = min(wall for wall, _ in spent)
        mark = (
            ""
            if not is_bound
            else f" (at most {LIMIT_MS:.0f}: {'met' if best < LIMIT_MS else 'NOT MET'}, best {best:.1f})"
        )
        row_ms(f"{name}{mark}", spent)
        if is_bound:
            print_plan(store, run)


def real_explanations(bundle: Path, pictures: Path, *, number: int) -> dict[str, list[tuple[Explanation, float]]]:
    """Explanations of real pictures by profile, brought to 224 x 224, with the milliseconds each took."""
    from inspect_xai.explain.explainer import Explainer
    from inspect_xai.intake.sources import read_picture
    from inspect_xai.records import PictureLimits

    suffixes = {".png", ".jpg", ".bmp"}
    found = sorted(path for path in pictures.rglob("*") if path.suffix.lower() in suffixes)
    chosen = np.random.default_rng(3).permutation(len(found))[:number]
    made: dict[str, list[tuple[Explanation, float]]] = {}
    for profile in (Profile.EXACT, Profile.QUICK):
        explained: list[tuple[Explanation, float]] = []
        with Explainer(bundle, device="cpu", profile=profile) as explainer:
            for index in chosen:
                picture = cv2.resize(
                    read_picture(found[index], limits=PictureLimits()).pixels, (224, 224), interpolation=cv2.INTER_AREA
                )
                begun = time.perf_counter()
                explained.append((explainer(picture), (time.perf_counter() - begun) * 1000))
        made[f"real, {profile}"] = explained
    return made


def main() -> None:
    """Measure on both databases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inspections", type=int, default=100_000)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--real", type=int, default=20, help="so many real pictures")
    chosen = parser.parse_args()
    versions = {"sqlite": sqlite3.sqlite_version, "psycopg": psycopg.__version__, "sqlalchemy": sqlalchemy.__version__}
    print(f"inspections {chosen.inspections}, chunk {CHUNK}, python {platform.python_version()}, {versions}")
    real = real_explanations(chosen.bundle, chosen.pictures, number=chosen.real) if chosen.bundle else {}
    with tempfile.TemporaryDirectory() as folder, postgres.cluster() as server:
        pairs = {
            "SQLite": (f"sqlite:///{folder}/small.db", f"sqlite:///{folder}/large.db"),
            "PostgreSQL (fsync off)": (server.create(), server.create()),
        }
        for name, (small, large) in pairs.items():
            print(f"\n{name}")
            for url in (small, large):
                schema.upgrade_schema(url)
            with open_store(small) as store:
                measure_recording(stored.prepared(store), real)
            with open_store(large) as store:
                fill(stored.prepared(store), chosen.inspections)
                if name != "SQLite":
                    with store.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                        connection.exec_driver_sql("ANALYZE")  # as autovacuum does within a minute
                measure_queries(store, chosen.inspections)


if __name__ == "__main__":
    main()
