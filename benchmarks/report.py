"""How long a report takes and what it holds in memory: over 100,000 inspections, and over a year of 3 million.

    python -m benchmarks.report fill day.db --days 40 --per-day 10000     rendered rows, written past the store
    python -m benchmarks.report write day.db --last 10                    the report of the last 10 days
    python -m benchmarks.report fill year.db --days 365 --per-day 8220    3 million, about 4 GB
    python -m benchmarks.report write year.db --last 365

4 stations, 3 shifts; 3 % NG of six labels, 1 % UNSURE; all of them and 5 % of the OK parts are explained, 60 % of the
flagged and 80 % of the sample reviewed. The maps (128 x 128) are drawn from 64 kinds, so that the file stays small;
each is fetched and decoded all the same. `write` runs in a process of its own: its peak is the report's alone.
"""

import argparse
import json
import platform
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np

from benchmarks.support import stored
from inspect_xai.reports.daily import write_report
from inspect_xai.storage.map_codec import Precision, encode
from inspect_xai.storage.store import open_store

LAST = date(2026, 11, 22)
LABELS = ("scratch", "dent", "crack", "hole", "stain", "burr")
SIZE = 128
_KINDS = 64
_ZONE = "UTC"


def fill(file: Path, *, days: int, per_day: int, seed: int = 8) -> None:
    """Write a database of rendered rows; a file that stands there is kept as it is."""
    if file.exists():
        print(f"{file} stands already: {file.stat().st_size / 1e9:.2f} GB")
        return
    began = time.perf_counter()
    with open_store(f"sqlite:///{file}", clock=lambda: stored.NOON) as store:
        stored.prepared(store)
        store.registry.register_policy("1", {"ok_share": 0.05})
    connection = sqlite3.connect(file, isolation_level=None)
    for statement in ("PRAGMA synchronous = OFF", "PRAGMA cache_size = -800000", "PRAGMA foreign_keys = OFF", "BEGIN"):
        connection.execute(statement)
    connection.execute("UPDATE run SET settings = ?", (json.dumps({"ok_share": 0.05}),))
    rng = np.random.default_rng(seed)
    connection.executemany("INSERT INTO product (id, name) VALUES (?, ?)", [(n + 1, f"housing {n}") for n in range(4)])
    maps = [encode(stored.smooth(rng, SIZE), precision=Precision.STEPS12) for _ in range(_KINDS)]
    connection.executemany(
        "INSERT INTO map_blob (id, sha256, codec, dtype, precision, shape, size_bytes, data) VALUES (?,?,?,?,?,?,?,?)",
        [
            (n + 1, m.sha256, m.codec, m.dtype, m.precision.value, json.dumps(m.shape), len(m.data), m.data)
            for n, m in enumerate(maps)
        ],
    )
    for day in range(days):
        moment = datetime.combine(LAST, datetime.min.time(), UTC) - timedelta(days=days - 1 - day)
        _fill_day(connection, rng, moment, first=day * per_day + 1, parts=per_day)
        connection.execute("COMMIT")
        connection.execute("BEGIN")
    connection.execute("COMMIT")
    connection.close()
    print(
        f"{file}: {days * per_day} inspections on {days} days, {file.stat().st_size / 1e9:.2f} GB, "
        f"written in {time.perf_counter() - began:.0f} s"
    )


def _fill_day(
    connection: sqlite3.Connection, rng: np.random.Generator, moment: datetime, *, first: int, parts: int
) -> None:
    numbers = range(first, first + parts)
    draw = rng.random(parts)
    verdicts = np.where(draw < 0.03, "NG", np.where(draw < 0.04, "UNSURE", "OK")).tolist()
    labels = rng.choice(LABELS, parts, p=(0.4, 0.25, 0.15, 0.1, 0.07, 0.03)).tolist()
    sampled = (rng.random(parts) < 0.05).tolist()
    answered = rng.random(parts).tolist()
    scores = np.where(draw < 0.03, rng.uniform(0.5, 1, parts), rng.beta(1, 12, parts) * 0.5).tolist()
    places = rng.normal((50, 60), 6, (parts, 2)).astype(int).tolist()
    times = [moment + timedelta(seconds=86400 * (n + 0.5) / parts) for n in range(parts)]
    stamps = [each.isoformat(timespec="microseconds") for each in times]
    later = [(each + timedelta(seconds=1)).isoformat(timespec="microseconds") for each in times]
    shifts = [("NIGHT", "EARLY", "LATE", "NIGHT")[(each.hour + 2) // 8] for each in times]
    rows = list(zip(numbers, verdicts, labels, sampled, answered, scores, places, stamps, later, shifts, strict=True))
    lots = sorted({n // 500 for n in numbers})
    connection.executemany(
        "INSERT OR IGNORE INTO lot (id, product_id, code) VALUES (?,?,?)", [(n + 1, n % 4 + 1, f"LOT{n}") for n in lots]
    )
    connection.executemany(
        "INSERT INTO part (id, lot_id, serial) VALUES (?,?,?)", [(n, n // 500 + 1, f"SN{n:07d}") for n in numbers]
    )
    connection.executemany(
        "INSERT INTO capture (id, sha256, pixels_sha256, file_name, part_id, captured_at, line, station, camera, view,"
        " shift, height_px, width_px, archived_to) VALUES (?,?,'',?,?,?,'L1',?,'CAM','TOP',?,?,?,?)",
        [
            (
                n,
                f"{n * 2654435761 % 2**32:08x}{n:056x}",
                f"L1/SN{n:07d}.png",
                n,
                stamp,
                f"S{n % 4 + 1}",
                shift,
                SIZE,
                SIZE,
                f"archive/SN{n:07d}.png",
            )
            for n, *_, stamp, _, shift in rows
        ],
    )
    connection.executemany(
        "INSERT INTO inspection (id, capture_id, model_id, policy_id, run_id, inspected_at, recorded_at, model_status,"
        " verdict, reason, label, score, threshold, predicted_label, predicted_score, margin, worst_tile, scores,"
        " explain_reason, failure_kind, failure_message, duration_ms)"
        " VALUES (?,?,1,1,1,?,?,'approved',?,?,?,?,0.5,?,?,?,0,?,?,'','',?)",
        [
            (
                n,
                n,
                at,
                at,
                verdict,
                "CLEAR" if verdict == "OK" else "DEFECT_OVER_THRESHOLD",
                label,
                score,
                "free" if verdict == "OK" else label,
                max(score, 1 - score),
                abs(2 * score - 1),
                f"[{score:.6f},{1 - score:.6f}]",
                _because(verdict, is_sample),
                40 + 100 * score,
            )
            for n, verdict, label, is_sample, _, score, _, _, at, _ in rows
        ],
    )
    explained = [row for row in rows if row[1] != "OK" or row[3]]
    connection.executemany(
        "INSERT INTO explanation (id, inspection_id, status, method, target, contrast_label, mu, baseline, settings,"
        " forward_passes, provider, duration_ms, timings_ms, notes, faithfulness, coverage, fused_blob_id)"
        " VALUES (?,?,'explained','sise',?,'',0.3,'mean',?,40,'CPUExecutionProvider',900,'{}','[]','{}',?,?)",
        [
            (n, n, label, '{"method":"sise","target":"x","baseline":"mean"}', 0.2 + 0.2 * score, n % _KINDS + 1)
            for n, _, label, _, _, score, *_ in explained
        ],
    )
    connection.executemany(
        "INSERT INTO explanation_region VALUES (?,0,?,?,20,20,300,1.0,0.8)",
        [(n, top, left) for n, *_, (top, left), _, _, _ in explained],
    )
    connection.executemany(
        "INSERT INTO explanation_tile VALUES (?,0,0,0,0,?,?,'explained','[]',0.1,0.5)",
        [(n, SIZE, SIZE) for n, *_ in explained],
    )
    connection.executemany(
        "INSERT INTO review (inspection_id, reviewer, reviewed_at, decision, verdict, true_label, map_rating, blind,"
        " note) VALUES (?,'ada',?,?,?,'','',0,'')",
        [
            (n, at, "overturn" if share < 0.05 else "confirm", _said(verdict, wrong=share < 0.05))
            for n, verdict, _, _, share, *_, at, _ in explained
            if share < (0.6 if verdict != "OK" else 0.8)
        ],
    )


def _because(verdict: str, is_sample: bool) -> str:  # noqa: FBT001
    return verdict.lower() if verdict != "OK" else "sample" if is_sample else ""


def _said(verdict: str, *, wrong: bool) -> str:
    return ("OK" if verdict != "OK" else "NG") if wrong else ("OK" if verdict == "OK" else "NG")


def write(file: Path, *, last: int) -> None:
    """Write the report of the last days and print what it took."""
    with tempfile.TemporaryDirectory() as folder, open_store(f"sqlite:///{file}", create=False) as store:
        began, worked = time.perf_counter(), time.process_time()
        report = write_report(
            store, first=LAST - timedelta(days=last - 1), last=LAST, out=Path(folder), time_zone=_ZONE
        )
        seconds, busy = time.perf_counter() - began, time.process_time() - worked
        sizes = {path.name: path.stat().st_size for path in _files(report.page.parent)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(
        f"report over {report.inspections} inspections on {last} days: {seconds:.1f} s ({busy:.1f} s of work), "
        f"peak {peak / 1e6:.0f} MB, page {sizes['report.html'] / 1e6:.2f} MB  | python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, {file.stat().st_size / 1e9:.2f} GB"
    )


def _files(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.iterdir() if path.is_file())


def main() -> None:
    """Run one of the two steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    filling = steps.add_parser("fill")
    filling.add_argument("file", type=Path)
    filling.add_argument("--days", type=int, default=40)
    filling.add_argument("--per-day", type=int, default=10_000)
    writing = steps.add_parser("write")
    writing.add_argument("file", type=Path)
    writing.add_argument("--last", type=int, default=10)
    options = parser.parse_args()
    if options.step == "fill":
        fill(options.file, days=options.days, per_day=options.per_day)
    else:
        write(options.file, last=options.last)


if __name__ == "__main__":
    main()
