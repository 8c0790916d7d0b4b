"""Several workers on one URL: claims with a lease in the database, and what becomes of them when a worker dies."""

import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import fsspec
import pytest

from benchmarks.support import stored
from inspect_xai.intake.url_source import UrlSource, open_source
from inspect_xai.line import line as line_module
from inspect_xai.line.line import Line, drain
from inspect_xai.storage.claims import Claims
from inspect_xai.storage.store import open_store
from tests.support import hostile, spots
from tests.support.line import rows, write

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
FILES = {"a.png": "1", "b.png": "1", "c.png": "1"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spots.spot_bundle(tmp_path_factory.mktemp("bundle"))


class Clock:
    """A clock that is set."""

    now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def workers(database_url: str, clock: Clock) -> Iterator[Callable[[str], Claims]]:
    with open_store(database_url, clock=clock) as store:
        stored.prepared(store)
        store.registry.register_policy("1", {})

        def worker(name: str) -> Claims:
            return Claims(
                store.database,
                "memory://shop",
                fingerprint=stored.FINGERPRINT,
                policy_version="1",
                owner=name,
                lease_s=60,
            )

        yield worker


def test_what_one_has_claimed_no_other_gets_until_its_lease_ends(
    workers: Callable[[str], Claims], clock: Clock
) -> None:
    one, two = workers("one"), workers("two")
    assert one.take(FILES, most=2) == {"a.png", "b.png"}
    assert two.take(FILES, most=9) == {"c.png"}
    assert two.take(FILES, most=9) == set()
    clock.now += timedelta(seconds=40)
    one.renew()
    clock.now += timedelta(seconds=40)  # one lives; two gave no sign for 80 s
    assert workers("three").take(FILES, most=9) == {"c.png"}
    clock.now += timedelta(seconds=40)
    assert workers("four").take(FILES, most=9) == {"a.png", "b.png"}


def test_what_is_recorded_is_not_given_out_again_until_it_changes(workers: Callable[[str], Claims]) -> None:
    one, two = workers("one"), workers("two")
    one.take(FILES, most=9)
    one.recorded(["a.png", "b.png"])
    one.release()
    assert two.take(FILES, most=9) == {"c.png"}
    assert two.take({"a.png": "2", "b.png": "1"}, most=9) == {"a.png"}


def test_a_worker_gives_back_only_what_is_its_own(workers: Callable[[str], Claims], clock: Clock) -> None:
    one, two = workers("one"), workers("two")
    one.take(FILES, most=9)
    clock.now += timedelta(seconds=61)
    assert two.take(FILES, most=9) == set(FILES)
    one.recorded(["a.png"])  # woke up late: two has it now
    one.release()
    assert workers("three").take(FILES, most=9) == set()


# --- the line on a URL


@pytest.fixture
def shop(tmp_path: Path) -> str:
    for number in range(40):
        write(tmp_path / f"shop/L1/{number:02d}.png", number, 10 * (number % 2))
    return f"file://{tmp_path / 'shop'}"


@pytest.fixture
def db(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'line.db'}"


def count_reads(source: UrlSource, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note what is fetched."""
    fetched: list[str] = []
    fetch = source._fetch

    def noting(location: str, most: int) -> bytes:
        fetched.append(location)
        return fetch(location, most)

    monkeypatch.setattr(source, "_fetch", noting)
    return fetched


def test_two_lines_on_one_url_fetch_every_picture_once(
    shop: str, bundle: Path, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[list[str]] = []
    threads = []

    def work() -> None:
        with Line(bundle, db, device="cpu") as line, UrlSource(shop) as source:
            fetched.append(count_reads(source, monkeypatch))
            drain(line, source, chunk=3)

    open_store(db).close()
    for _ in range(2):
        threads.append(threading.Thread(target=work))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert Counter(row.file_name for row in rows(db)) == {f"L1/{number:02d}.png": 1 for number in range(40)}
    assert sorted(Counter(path for each in fetched for path in each).values()) == [1] * 40


def test_a_second_run_fetches_only_what_is_new(
    shop: str, bundle: Path, db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for expected in (40, 0, 1):
        with Line(bundle, db, device="cpu") as line, UrlSource(shop) as source:
            fetched = count_reads(source, monkeypatch)
            assert drain(line, source, chunk=16).inspected == expected
            assert len(fetched) == expected
        if not expected:
            write(tmp_path / "shop/L1/07.png", 99)  # another picture under the old name


def test_a_stop_gives_claims_back(shop: str, bundle: Path, db: str) -> None:
    stop = threading.Event()
    with Line(bundle, db, device="cpu") as line, UrlSource(shop) as source:
        assert drain(line, source, stop=stop, on_progress=stop.set).inspected == 1
    with Line(bundle, db, device="cpu") as line, UrlSource(shop) as source:
        assert drain(line, source).inspected == 39


def _claim_and_die(shop: str, bundle: Path, db: str) -> None:
    with Line(bundle, db, device="cpu") as line, UrlSource(shop) as source, line.sharing(source):
        line.inspect(source, source.claim(10)[:5])
        os._exit(9)


def test_a_dead_workers_files_are_taken_over_when_its_lease_ends(
    shop: str, bundle: Path, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=_claim_and_die, args=(shop, bundle, db))
    worker.start()
    worker.join(120)
    assert worker.exitcode == 9
    with Line(bundle, db, device="cpu") as line, UrlSource(shop) as source:
        assert drain(line, source).seen == 30
    later = partial(open_store, clock=lambda: datetime.now(UTC) + timedelta(seconds=601))
    monkeypatch.setattr(line_module, "open_store", later)
    with Line(bundle, db, device="cpu") as line, UrlSource(shop) as source:
        again = drain(line, source)
    assert (again.seen, again.inspected, again.already_known) == (10, 5, 5)
    assert len(rows(db)) == 40


def test_a_manifest_is_read_where_the_listing_shows_one(bundle: Path, db: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe(
        {
            "/mill/L1/a.png": hostile.encoded(spots.part(1)),
            "/mill/L1/b.png": hostile.encoded(spots.part(2)),
            "/mill/manifest.csv": b"file,serial,lot\nL1/a.png,SN1,LOT9\n",
            "/mill/L1/b.json": b'{"serial": "SN2"}',
        }
    )
    try:
        with Line(bundle, db, device="cpu") as line, open_source("memory://mill") as source:
            drain(line, source)
    finally:
        memory.rm("/mill", recursive=True)
    assert {(row.serial, row.lot) for row in rows(db)} == {("SN1", "LOT9"), ("SN2", "")}


@pytest.mark.slow
def test_an_s3_store_is_drained_by_two_workers(bundle: Path, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moto_server = pytest.importorskip("moto.server", reason="pip install 'inspect-xai[stores]'")
    pytest.importorskip("s3fs")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        address, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{address}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        store = fsspec.filesystem("s3")
        store.mkdir("plant")
        for number in range(12):
            store.pipe(f"plant/L1/{number}.png", hostile.encoded(spots.part(number)))
        store.pipe("plant/L1/manifest.csv", b"file,serial\n3.png,SN3\n")
        store.pipe("plant/L1/12.png", b"rubbish")
        totals = []
        with (
            Line(bundle, db, device="cpu") as line,
            Line(bundle, db, device="cpu") as other,
            UrlSource("s3://plant") as source,
            UrlSource("s3://plant") as theirs,
            line.sharing(source),
            other.sharing(theirs),
        ):
            while mine := source.claim(3):
                totals += line.inspect(source, mine)
                totals += other.inspect(theirs, theirs.claim(2))
        assert len(totals) == 13
    finally:
        server.stop()
    found = {row.file_name: row for row in rows(db)}
    assert set(found) == {f"L1/{number}.png" for number in range(13)}
    assert (found["L1/3.png"].serial, found["L1/12.png"].reason) == ("SN3", "BAD_IMAGE")
    assert found["L1/0.png"].archived_to == "s3://plant/L1/0.png"
