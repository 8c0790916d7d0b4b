"""The line killed, its database killed, its disk full: every picture has one inspection per model and policy after all.

    python -m pytest -n0 -m slow -s tests/system/test_line_killed.py

prints what the guide to the line says of it.
"""

import multiprocessing
import multiprocessing.context
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psycopg
import pytest

from benchmarks.support import postgres
from inspect_xai.errors import StoreError
from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.line.line import Line, drain
from inspect_xai.line.stages import Schedule
from inspect_xai.storage.store import open_store
from tests.support import spots
from tests.support.line import rows, write

KILLS = 20
PICTURES_A_LIFE = 60
CHUNK = 7

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spots.spot_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def forks() -> multiprocessing.context.ForkServerContext:
    """Processes that begin with everything imported, so that a kill meets the work and not the start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.system.test_line_killed"])
    return context


def tell(counts: str) -> None:
    """Say what `-s` shows and the guide quotes."""
    sys.stdout.write(f"\n{counts}\n")


def fill(folder: Path, first: int, count: int) -> None:
    """Every third picture is NG and explained; renamed into place, as a line may be watching that waits for nothing."""
    for number in range(first, first + count):
        draft = write(folder / f"L1/S{number % 2}/SN{number:05d}.png.part", number, 10 * (number % 3 == 0))
        draft.rename(draft.with_suffix(""))


def _work(folder: Path, bundle: Path, db: str, opened: Connection, overlap: bool) -> None:
    """With `overlap`, as on a GPU, a chunk is recorded in three pieces, beside the network."""
    schedule = Schedule(overlap=True, record_at_once=3) if overlap else None
    with Line(bundle, db, device="cpu", schedule=schedule) as line, FolderSource(folder, settle_s=0) as source:
        opened.send(None)
        drain(line, source, chunk=CHUNK, on_progress=lambda: opened.send(None))


def wait_for(listening: Connection, *, messages: int) -> None:
    """Wait until a worker has opened its line and inspected so many pictures less one, or has none left."""
    for _ in range(messages):
        assert listening.poll(120)
        try:
            listening.recv()
        except EOFError:
            return


def prove_each_once(folder: Path, db: str, total: int) -> None:
    recorded = rows(db)
    keys = Counter((row.sha256, row.fingerprint, row.policy_version) for row in recorded)
    assert set(keys.values()) == {1}
    assert Counter(row.serial for row in recorded) == {f"SN{number:05d}": 1 for number in range(total)}
    assert {row.failure_message for row in recorded} == {""}
    assert {row.explanation_status for row in recorded if row.verdict != "OK"} == {"explained"}
    assert {Path(row.archived_to) for row in recorded} == set((folder / "_archive").rglob("*.png"))
    assert list(folder.glob("L1/*/*.png")) == list((folder / "_claimed").iterdir()) == []
    with open_store(db) as store:
        assert store.ledger.verify().holds


@pytest.mark.parametrize(("lines", "overlap"), [(1, False), (2, False), (1, True)])
def test_killed_at_seeded_moments(
    lines: int,
    overlap: bool,
    database_url: str,
    bundle: Path,
    tmp_path: Path,
    forks: multiprocessing.context.ForkServerContext,
) -> None:
    """Lines are killed 20 times; of two, the other goes on beside and takes over what the dead one had claimed."""
    folder = tmp_path / "in"
    rng = np.random.default_rng(20261124)
    mid_chunk, total, beside = 0, 0, None
    if lines == 2:
        (folder / "L1").mkdir(parents=True)
        stop = threading.Event()
        beside = threading.Thread(target=_watch, args=(folder, bundle, database_url, stop))
        beside.start()
    for _ in range(KILLS):
        fill(folder, total, PICTURES_A_LIFE)
        total += PICTURES_A_LIFE
        listening, opened = forks.Pipe(duplex=False)
        worker = forks.Process(target=_work, args=(folder, bundle, database_url, opened, overlap))
        worker.start()
        opened.close()
        wait_for(listening, messages=1 + int(rng.integers(0, 5 * CHUNK)))
        time.sleep(float(rng.uniform(0.0, 0.02)))  # into the next picture, or into recording and moving the chunk
        worker.kill()  # -9; of two lines the other may have left it nothing, and it ended by itself
        worker.join()
        held = [path for path in (folder / "_claimed").glob(f"*-{worker.pid}-*") if any(path.rglob("*.png"))]
        mid_chunk += worker.exitcode == -signal.SIGKILL and bool(held)
    if beside is not None:
        stop.set()
        beside.join(120)
    before = len(rows(database_url))
    with Line(bundle, database_url, device="cpu") as line, FolderSource(folder, settle_s=0) as source:
        drain(line, source, chunk=CHUNK)
    prove_each_once(folder, database_url, total)
    name = database_url.partition(":")[0] + " recorded as on a GPU" * overlap
    tell(
        f"{name}, {lines} line(s): {KILLS} times kill -9, {mid_chunk} of them in the middle of a chunk; "
        f"of {total} pictures {before} recorded before the last start, {len(rows(database_url))} after it, each once"
    )
    assert before > KILLS * CHUNK or lines == 2  # some kills came after chunks were recorded
    assert mid_chunk > KILLS // 2 or lines == 2


def _watch(folder: Path, bundle: Path, db: str, stop: threading.Event) -> None:
    with Line(bundle, db, device="cpu") as line, FolderSource(folder, settle_s=0) as source:
        drain(line, source, chunk=CHUNK, watch_every_s=0.05, stop=stop)


@pytest.mark.postgres
def test_postgresql_killed_in_the_middle_of_a_chunk(bundle: Path, tmp_path: Path) -> None:
    if postgres.programs() is None:
        pytest.skip("no PostgreSQL server programs: install the package `postgresql`")
    from inspect_xai.storage.schema import upgrade_schema

    folder = tmp_path / "in"
    fill(folder, 0, 60)
    with postgres.cluster() as server:
        db = server.create()
        upgrade_schema(db)
        seen: list[float] = []

        def kill_in_the_middle() -> None:
            seen.append(time.monotonic())
            if len(seen) in (10, 31):  # the third picture of the second and of the fifth chunk
                server.kill()
                threading.Timer(1.0, server.start).start()

        with Line(bundle, db, device="cpu") as line, FolderSource(folder, settle_s=0) as source:
            summary = drain(line, source, chunk=CHUNK, on_progress=kill_in_the_middle)
        with psycopg.connect(db) as connection:
            assert connection.execute("SELECT count(*) FROM inspection").fetchone() == (60,)
        prove_each_once(folder, db, 60)
    tell(f"PostgreSQL killed twice in the middle of a chunk: {summary.inspected} of 60 pictures recorded once")
    assert (summary.seen, summary.inspected, summary.already_known) == (60, 60, 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a disk of 3 MB")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_fills_ends_the_line_and_loses_nothing(bundle: Path, tmp_path: Path, small_disk: Path) -> None:
    folder, db = tmp_path / "in", f"sqlite:///{small_disk / 'line.db'}"
    fill(folder, 0, 40)
    open_store(db).close()
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - 300_000)))
    with Line(bundle, db, device="cpu") as line, FolderSource(folder, settle_s=0) as source:  # noqa: SIM117
        with pytest.raises(StoreError, match=r"disk is full|disk I/O error|is away"):
            drain(line, source, chunk=CHUNK)
    ballast.unlink()
    before = len(rows(db))
    with Line(bundle, db, device="cpu") as line, FolderSource(folder, settle_s=0) as source:
        drain(line, source, chunk=CHUNK)
    prove_each_once(folder, db, 40)
    tell(f"a disk that filled after {before} of 40 pictures: with room again all 40 recorded once")


def test_sigterm_gives_the_rest_of_the_chunk_back(bundle: Path, tmp_path: Path) -> None:
    folder, db = tmp_path / "in", f"sqlite:///{tmp_path / 'line.db'}"
    fill(folder, 0, 400)
    command = [sys.executable, "-m", "inspect_xai", "line", "--json", "--settle", "0", "--device", "cpu"]
    command += ["--source", str(folder), "--bundle", str(bundle), "--db", db, "--claim-size", "150"]
    line = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(list(folder.rglob("_claimed/*/L1/*/*.png"))) < 100 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        line.send_signal(signal.SIGTERM)
        line.communicate(timeout=60)
    finally:
        line.kill()
        line.communicate()
    recorded, left = rows(db), list(folder.glob("L1/*/*.png"))
    tell(f"SIGTERM in a chunk of 150: {len(recorded)} recorded, {len(left)} given back")
    assert line.returncode == 0
    assert len(recorded) + len(left) == 400
    assert 0 < len(recorded) < 400
    assert len(list((folder / "_archive").rglob("*.png"))) == len(recorded)
    assert list((folder / "_claimed").iterdir()) == []
