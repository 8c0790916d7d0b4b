"""Prefect workers that share a source, and what happens when they, or the server, are killed: all on loopback."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.support.prefect_server import Prefect, wait_for
from inspect_xai.storage.store import open_store
from tests.conftest import ROOT
from tests.support import spots
from tests.support.line import rows, write

pytestmark = pytest.mark.slow

DEPLOY = ROOT / "deploy"
PICTURES = 400
PLACE_KEPT_S = 300
"""How long Prefect keeps the place of a run that died: a run renews its lease by so much, whatever the server says."""
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["prefect"]["environment"]


class Plant:
    """A Prefect server as deploy/ sets it, the line deployed, and a source full of pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "home").mkdir()
        leases = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
        self.prefect = Prefect(
            folder / "home",
            {"INSPECT_XAI_HOME": str(ROOT), "INSPECT_XAI_SETTINGS": str(folder / "line.toml"), leases: COMPOSE[leases]},
        )
        for number in range(PICTURES):
            stamp = f"20261122T06{number // 60:02d}{number % 60:02d}Z"
            write(folder / f"in/L1/S3/SN{number:04d}_LOT7_CAM1_top_early_{stamp}.png", number, 10 * (number % 2))
        self.log = folder / "home/worker.log"

    def open(self, db: str, *, at_once: int = 1) -> None:
        self.db = db
        bundle = spots.spot_bundle(self.folder / "bundle")
        (self.folder / "line.toml").write_text(
            f'db = "{db}"\nbundle = "{bundle}"\ndevice = "cpu"\n'
            f'[line]\nsource = "{self.folder / "in"}"\nsettle_s = 0\nclaim_size = 8\n'
        )
        deployments = yaml.safe_load((DEPLOY / "prefect.yaml").read_text())
        (line,) = [each for each in deployments["deployments"] if each["name"] == "line"]
        line["concurrency_limit"]["limit"] = at_once
        (self.folder / "prefect.yaml").write_text(yaml.safe_dump(deployments | {"deployments": [line]}))
        self.start_server()
        self.prefect.say("work-pool", "create", "inspection", "--type", "process", "--overwrite")
        self.prefect.say("--no-prompt", "deploy", "--all", "--prefect-file", str(self.folder / "prefect.yaml"))

    def start_server(self) -> "subprocess.Popen[bytes]":
        self.prefect.start("server", "start", "--host", "127.0.0.1", "--port", str(self.prefect.port))
        wait_for(lambda: self.prefect.ask("health"), within_s=120, log=self.folder / "home/server.log")
        return self.prefect.started[-1]

    def start_worker(self, name: str) -> "subprocess.Popen[bytes]":
        pool = ["--pool", "inspection", "--type", "process", "--limit", "1", "--name", name]
        self.prefect.start("worker", "start", *pool)
        return self.prefect.started[-1]

    def run_line(self) -> None:
        self.prefect.say("deployment", "run", "inspect-line/line")

    def wait(self, until: Callable[[], object], within_s: float = 180) -> None:
        wait_for(until, within_s=within_s, log=self.log)

    def recorded(self) -> int:
        return len(rows(self.db))

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        """Kill a program and all it has started, as a machine that loses its power does."""
        for pid in [*descendants(process.pid), process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        self.prefect.started.remove(process)

    def assert_each_picture_once(self) -> None:
        recorded = rows(self.db)
        assert len(recorded) == len({row.serial for row in recorded}) == PICTURES
        assert not [path for path in (self.folder / "in").rglob("*.png") if "_archive" not in path.parts]
        with open_store(self.db) as store:
            assert store.ledger.verify().findings == ()


def descendants(pid: int) -> list[int]:
    """Process ids below one, deepest first."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    found: list[int] = []
    for child in map(int, listed.stdout.split()):
        found += [*descendants(child), child]
    return found


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    made = Plant(tmp_path)
    try:
        yield made
    finally:
        made.prefect.close()


@pytest.mark.postgres
def test_two_workers_drain_one_source_together(plant: Plant, request: pytest.FixtureRequest) -> None:
    db = request.getfixturevalue("postgres_server").create(template=request.getfixturevalue("postgres_template"))
    plant.open(db, at_once=2)
    for name in ("one", "two"):
        plant.start_worker(name)
        plant.run_line()
    plant.wait(lambda: len(plant.prefect.runs("line", "COMPLETED")) >= 2)
    plant.assert_each_picture_once()
    with open_store(db) as store:
        assert len({store.get(row.inspection_id).run.run_id for row in rows(db)}) == 2


def test_a_worker_that_loses_its_power_is_followed_by_another(plant: Plant, tmp_path: Path) -> None:
    plant.open(f"sqlite:///{tmp_path / 'line.db'}")
    worker = plant.start_worker("one")
    plant.run_line()
    plant.wait(lambda: (tmp_path / "line.db").exists() and plant.recorded() >= 16)
    plant.kill(worker)
    assert plant.recorded() < PICTURES
    plant.start_worker("two")

    def runs_again() -> bool:
        time.sleep(20)
        plant.run_line()  # dropped until the dead run's place is free again
        return bool(plant.prefect.runs("line", "COMPLETED"))

    plant.wait(runs_again, within_s=PLACE_KEPT_S + 180)
    plant.assert_each_picture_once()


def test_a_worker_that_is_stopped_as_systemd_does_gives_its_chunk_back(plant: Plant, tmp_path: Path) -> None:
    plant.open(f"sqlite:///{tmp_path / 'line.db'}")
    worker = plant.start_worker("one")
    plant.run_line()
    plant.wait(lambda: (tmp_path / "line.db").exists() and plant.recorded() >= 16)
    unit = (DEPLOY / "systemd/inspect-xai-worker.service").read_text()
    (stop,) = (line.removeprefix("ExecStop=") for line in unit.splitlines() if line.startswith("ExecStop="))
    subprocess.run(shlex.split(stop), env=os.environ | {"MAINPID": str(worker.pid)}, check=True, timeout=120)
    for pid in [*descendants(worker.pid), worker.pid]:  # KillMode=control-group
        os.kill(pid, signal.SIGTERM)
    worker.wait(60)
    plant.prefect.started.remove(worker)
    assert plant.recorded() < PICTURES
    assert not list((tmp_path / "in/_claimed").rglob("*.png"))
    plant.start_worker("two")

    def runs_again() -> bool:
        plant.run_line()
        return not list((tmp_path / "in/L1").rglob("*.png")) and plant.recorded() == PICTURES

    plant.wait(runs_again)
    plant.assert_each_picture_once()


def test_a_prefect_server_that_loses_its_power_comes_back_to_the_same_line(plant: Plant, tmp_path: Path) -> None:
    plant.open(f"sqlite:///{tmp_path / 'line.db'}")
    (server,) = plant.prefect.started
    plant.start_worker("one")
    plant.run_line()
    plant.wait(lambda: (tmp_path / "line.db").exists() and plant.recorded() >= 16)
    plant.kill(server)
    plant.start_server()

    def runs_again() -> bool:
        plant.run_line()
        return bool(plant.prefect.runs("line", "COMPLETED"))

    plant.wait(runs_again, within_s=300)
    plant.assert_each_picture_once()
