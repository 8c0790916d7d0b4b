"""How fast the review desk answers: many browsers at once on a large database.

    python benchmarks/desk.py --inspections 100000 --clients 50 --seconds 20
    python benchmarks/desk.py --postgresql

Every client waits for its answer and then asks again after a pause, as people do. The clients (and PostgreSQL) run on
the same cores as the desk. Prints one line per page with settings, versions, median, 95th percentile and spread in
milliseconds.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
from sqlalchemy import text

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.support import desk_inspections as making
from benchmarks.support import postgres
from inspect_xai.records import VerdictCode
from inspect_xai.storage.database import open_engine
from inspect_xai.storage.schema import upgrade_schema
from inspect_xai.storage.store import open_store
from inspect_xai.storage.tables import Base

_RECORDED = 2000  # by the store; the rest are copies of them
_SHIFT = 10_000
_ENVIRONMENT = {"INSPECT_XAI_SERVE__REQUESTS_PER_MINUTE": "1000000"}


def fill(url: str, folder: Path, count: int) -> None:
    """Record `count` inspections, one in ten flagged; the pictures are the same few, the rows are not."""
    recorded = min(count, _RECORDED)
    rng = np.random.default_rng(1)
    patterns = [making.inspection(folder, n, code) for n, code in enumerate(VerdictCode, 1)]
    by_code = dict(zip(VerdictCode, patterns, strict=True))
    start = datetime.now(UTC) - timedelta(days=20)
    with open_store(url) as store:
        making.prepared(store)
        chunk = []
        for number in range(recorded):
            code = VerdictCode.OK if number % 10 else (VerdictCode.NG, VerdictCode.UNSURE)[number // 10 % 2]
            given = by_code[code]
            moment = start + timedelta(seconds=17 * count / recorded * number)
            part = dataclasses.replace(given.capture.part, serial=f"SN{number // 2:07d}", lot=f"L{number // 500}")
            capture = dataclasses.replace(
                given.capture,
                sha256=f"{number:064x}",
                part=part,
                line=f"L{rng.integers(4)}",
                station=f"S{rng.integers(8)}",
                captured_at=moment,
            )
            chunk.append(dataclasses.replace(given, capture=capture, inspected_at=moment))
        store.record(chunk)
    _multiply(url, count // recorded)


def _multiply(url: str, times: int) -> None:
    """Copy all that was recorded, as other parts on other days: SQL alone is a hundred times faster than recording."""
    changed = {
        "part": {"serial": "serial || :suffix"},
        "capture": {"part_id": "part_id + :shift", "sha256": ":prefix || substr(sha256, 5)"},
        "inspection": {"capture_id": "capture_id + :shift"},
        "explanation": {"inspection_id": "inspection_id + :shift"},
        "explanation_region": {"explanation_id": "explanation_id + :shift"},
        "explanation_tile": {"explanation_id": "explanation_id + :shift"},
        "block_map": {"explanation_id": "explanation_id + :shift"},
    }
    engine = open_engine(url)
    with engine.begin() as database:
        last = database.execute(text("SELECT max(id) FROM inspection")).scalar_one()
        for table, changes in changed.items():
            columns = [column.name for column in Base.metadata.tables[table].columns]
            changes = ({"id": "id + :shift"} if "id" in columns else {}) | changes
            values = ", ".join(changes.get(column, column) for column in columns)
            first = "id" if "id" in columns else "explanation_id"
            names = ", ".join(columns)
            copy = text(f"INSERT INTO {table} ({names}) SELECT {values} FROM {table} WHERE {first} <= :last")  # noqa: S608  names of our own
            for k in range(1, times):
                given = {"suffix": f"-{k}", "prefix": f"{k:04x}", "shift": k * _SHIFT, "last": last}
                used = {name: value for name, value in given.items() if f":{name}" in copy.text}
                database.execute(copy, used)
        database.execute(text("ANALYZE"))
    engine.dispose()


def visit(
    base: str, pages: list[str], stop: threading.Event, *, seed: int, pause_s: float, told: dict[str, list[float]]
) -> None:
    """One browser: sign in, then look at pages until told to stop."""
    rng = np.random.default_rng(seed)
    stop.wait(2 * pause_s * rng.random())
    # The server lets go of connections idle for five seconds; one that ends while it is used is no slow page.
    with httpx.Client(base_url=base, timeout=60, limits=httpx.Limits(keepalive_expiry=3)) as client:
        page = client.get("/signin").text
        csrf = page.partition('name="csrf" value="')[2].partition('"')[0]
        client.post("/signin", data={"csrf": csrf, "name": f"Client {seed}"})
        while not stop.is_set():
            path = pages[rng.integers(len(pages))]
            begin = time.perf_counter()
            answer = client.get(path)
            assert answer.status_code == 200, (path, answer.status_code)
            told[path.split("/")[1].partition("?")[0]].append((time.perf_counter() - begin) * 1e3)
            stop.wait(pause_s * 2 * rng.random())


def _load(base: str, given: argparse.Namespace) -> dict[str, list[float]]:
    flagged = [
        f"/inspections/{1 + _SHIFT * (n % (max(1, given.inspections // _RECORDED))) + 10 * n}" for n in range(40)
    ]
    pages = flagged + ["/queue", "/queue?line=L1&station=S3", "/queue?verdict=NG&label=crack"] * 13
    told: dict[str, list[float]] = {"queue": [], "inspections": []}
    stop = threading.Event()
    visit_ = functools.partial(visit, base, pages, stop, pause_s=given.pause, told=told)
    clients = [threading.Thread(target=visit_, kwargs={"seed": n}) for n in range(given.clients)]
    for client in clients:
        client.start()
    time.sleep(2 * given.pause)  # by then all have signed in and their questions come at different times
    for times in told.values():
        times.clear()
    time.sleep(given.seconds)
    stop.set()
    for client in clients:
        client.join()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inspections", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--pause", type=float, default=5.0, help="mean seconds a person looks at a page")
    parser.add_argument("--folder", type=Path, help="where the database is kept for the next time")
    parser.add_argument("--postgresql", action="store_true", help="on a throw-away server instead of an SQLite file")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{folder}/desk-{given.inspections}.db"
        is_there = (folder / f"desk-{given.inspections}.db").exists() and not given.postgresql
        if given.postgresql:
            url = stack.enter_context(postgres.cluster()).create()
            upgrade_schema(url)
        if not is_there:
            fill(url, folder / "archive", given.inspections)
        command = [sys.executable, "-m", "inspect_xai", "serve", "--db", url, "--port", "0", "--archive", str(folder)]
        # A process of its own: 50 threads of clients must not stand in the server's way.
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | _ENVIRONMENT) as server:
            assert server.stdout is not None
            base = server.stdout.readline().split()[2].rstrip("/")
            told = _load(base, given)
            server.terminate()
    for page, times in told.items():
        median, late = np.percentile(times, [50, 95])
        print(
            f"{page} inspections={given.inspections} clients={given.clients} pause_s={given.pause} n={len(times)} "
            f"median_ms={median:.0f} p95_ms={late:.0f} spread_ms={min(times):.0f}..{max(times):.0f} "
            f"{url.partition(':')[0]} python={platform.python_version()} cores={os.cpu_count()}"
        )


if __name__ == "__main__":
    main()
