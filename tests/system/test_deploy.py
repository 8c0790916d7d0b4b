"""What stands in deploy/ is held to linters, to the code it starts, and to a real Prefect server on loopback."""

import importlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from benchmarks.support.prefect_server import PROGRAMS, Prefect, wait_for
from inspect_xai.cli import app
from tests.conftest import ROOT
from tests.support import spots
from tests.support.line import rows, write

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("inspect-xai-*.*"))
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "prefect.yaml").read_text())["deployments"]


def linter(name: str) -> str:
    found = shutil.which(name, path=f"{PROGRAMS}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} IS NOT INSTALLED: files in deploy/ go unchecked (pip install inspect-xai[lint])")
    return found


def check(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False, timeout=60)


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return found


def test_the_dockerfile_lints() -> None:
    said = check(linter("hadolint"), DEPLOY / "Dockerfile")
    assert said.returncode == 0, said.stdout


def test_the_dockerfile_linter_bites(tmp_path: Path) -> None:
    spoiled = tmp_path / "Dockerfile"
    spoiled.write_text((DEPLOY / "Dockerfile").read_text().replace("WORKDIR /opt", "WORKDIR opt"))
    assert "DL3000" in check(linter("hadolint"), spoiled).stdout


def test_compose_fits_its_schema_and_a_misspelt_key_does_not(tmp_path: Path) -> None:
    command = [linter("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    said = check(*command, DEPLOY / "compose.yaml")
    assert said.returncode == 0, said.stdout
    spoiled = tmp_path / "compose.yaml"
    spoiled.write_text((DEPLOY / "compose.yaml").read_text().replace("depends_on:", "depnds_on:"))
    assert check(*command, spoiled).returncode != 0


def test_systemd_takes_the_units_and_the_programs_they_start_exist(tmp_path: Path) -> None:
    systemd = linter("systemd-analyze")
    for unit in UNITS:  # with this environment's programs in the place of the installed ones
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/inspect-xai/.venv/bin", str(PROGRAMS)))
    said = check(systemd, "verify", "--man=no", *(tmp_path / unit.name for unit in UNITS))
    assert said.returncode == 0, said.stderr
    assert not [line for line in said.stderr.splitlines() if "inspect-xai" in line]
    spoiled = tmp_path / "inspect-xai-line.service"
    spoiled.write_text(spoiled.read_text().replace("KillSignal=SIGTERM", "KillSignal=SIGNONE"))
    assert "SIGNONE" in check(systemd, "verify", "--man=no", spoiled).stderr


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit.suffix == ".service"], ids=lambda unit: unit.stem)
def test_every_unit_stops_gently_and_starts_a_command_there_is(unit: Path) -> None:
    text = unit.read_text()
    assert "KillSignal=SIGTERM\n" in text
    assert re.search(r"TimeoutStopSec=\d+\n", text)
    started = re.search(r"ExecStart=\S*/(\S+) (.*)\n", text)
    assert started is not None
    assert_known_command([started[1], *started[2].split()])


def test_compose_starts_commands_there_are_and_keeps_to_one_network_address() -> None:
    for name, service in services().items():
        command = service.get("command")
        if command and command[0] != "sh":
            assert_known_command(command)
        for port in service.get("ports", []):
            assert "127.0.0.1:" in port, f"{name} is open to the network"
    assert services()["worker-gpu"]["environment"]["INSPECT_XAI_DEVICE"] == "cuda"
    assert "healthcheck" in services()["database"]


def assert_known_command(command: list[str]) -> None:
    program, *arguments = command
    if program == "prefect":
        assert arguments[:2] in (["server", "start"], ["worker", "start"])
        return
    assert program == "inspect-xai"
    words = [word for word in arguments if not word.startswith("-")][: 2 if arguments[0] == "db" else 1]
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for option in (word for word in arguments if word.startswith("--")):
        assert option in shown.output


def test_the_image_has_no_torch_and_no_root() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^USER (\S+)$", dockerfile, re.MULTILINE) == ["10001"]
    extras = re.search(r"--extras (\S+)", dockerfile)
    assert extras is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = project["dependencies"] + [
        each for extra in extras[1].split(",") for each in project["optional-dependencies"][extra]
    ]
    assert not [each for each in installed if each.startswith(("torch", "inspect-xai"))]
    copied = {name for line in re.findall(r"^COPY (?!--)(.*) \S+$", dockerfile, re.MULTILINE) for name in line.split()}
    assert all((ROOT / name).exists() for name in copied)
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_in


def test_the_dashboard_asks_for_metrics_there_are_by_labels_they_have() -> None:
    from collections import Counter
    from datetime import UTC, datetime

    from prometheus_client.parser import text_string_to_metric_families

    from inspect_xai.storage.metrics_totals import Group, Totals
    from inspect_xai.storage.review_queue_sql import Overview
    from inspect_xai.web.prometheus import exposition

    now, group = datetime.now(UTC), Group("L1", "S1", "NG", "explained")
    ones = Counter([group])
    said = exposition(
        Totals(ones, ones, ones, {group: 1.0}, {group: 1.0}, now), Overview(1, now, {"reason": {"ng": 1}})
    ).decode()
    labels = {
        sample.name: set(sample.labels) for family in text_string_to_metric_families(said) for sample in family.samples
    }
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(asked) >= 10
    for expression in asked:
        for name, selected in re.findall(r"(inspect_xai_\w+)(?:\{([^}]*)\})?", expression):
            assert name in labels
            assert set(re.findall(r"(\w+)=", selected)) <= labels[name]
        if grouped := re.search(r"by \((\w+)\)", expression):
            assert any(grouped[1] in labels[name] for name in re.findall(r"inspect_xai_\w+", expression))
    assert {name for name in labels if name.startswith("inspect_xai_")} == {
        name for expression in asked for name in re.findall(r"inspect_xai_\w+", expression)
    }


def test_the_example_environment_sets_what_exists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from inspect_xai.settings import load_settings

    line_toml = tmp_path / "line.toml"
    line_toml.write_text("")
    for line in (DEPLOY / "env.example").read_text().splitlines():
        if line.startswith("INSPECT_XAI_"):
            monkeypatch.setenv(*line.split("=", 1))
    monkeypatch.setenv("INSPECT_XAI_SETTINGS", str(line_toml))
    assert load_settings().db.endswith("@database/inspect")


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda each: each["name"])
def test_every_entry_point_is_a_flow(deployment: dict[str, Any]) -> None:
    from prefect import Flow

    file, name = deployment["entrypoint"].split(":")
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    flow = getattr(module, name)
    assert isinstance(flow, Flow)
    assert set(deployment.get("parameters", {})) <= set(flow.parameters.properties)


def test_the_nightly_run_has_a_time_zone_and_never_runs_twice() -> None:
    from zoneinfo import ZoneInfo

    (nightly,) = [each for each in DEPLOYMENTS if each["name"] == "nightly"]
    assert nightly["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    (schedule,) = nightly["schedules"]
    assert schedule["cron"]
    ZoneInfo(schedule["timezone"])


@pytest.fixture
def prefect(tmp_path: Path) -> Iterator[Prefect]:
    (tmp_path / "home").mkdir()
    environment = {"INSPECT_XAI_HOME": str(ROOT), "INSPECT_XAI_SETTINGS": str(tmp_path / "line.toml")}
    server = Prefect(tmp_path / "home", environment)
    try:
        server.start("server", "start", "--host", "127.0.0.1", "--port", str(server.port))
        wait_for(lambda: server.ask("health"), within_s=120, log=tmp_path / "home/server.log")
        yield server
    finally:
        server.close()


@pytest.mark.slow
def test_a_worker_runs_what_is_deployed_and_the_night_is_scheduled(prefect: Prefect, tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path / 'line.db'}"
    bundle = spots.spot_bundle(tmp_path / "bundle")
    for number in range(3):
        write(tmp_path / f"in/L1/S3/SN{number}_LOT7_CAM1_top_early_20261122T06150{number}Z.png", number, 10)
    (tmp_path / "line.toml").write_text(
        f'db = "{db}"\nbundle = "{bundle}"\ndevice = "cpu"\n[line]\nsource = "{tmp_path / "in"}"\nsettle_s = 0\n'
    )
    prefect.say("work-pool", "create", "inspection", "--type", "process", "--overwrite")
    prefect.say("--no-prompt", "deploy", "--all", "--prefect-file", "deploy/prefect.yaml")
    prefect.start("worker", "start", "--pool", "inspection", "--type", "process", "--limit", "1", "--name", "one")
    prefect.say("deployment", "run", "inspect-line/line")

    log = tmp_path / "home/worker.log"
    wait_for(lambda: prefect.runs("line", "COMPLETED"), within_s=120, log=log)
    recorded = rows(db)
    assert [(row.serial, row.verdict) for row in recorded] == [("SN0", "NG"), ("SN1", "NG"), ("SN2", "NG")]
    # A server whose scheduler died deploys and runs all the same; only this tells (SQLAlchemy 2.1 under prefect 3.8).
    (scheduled, *_) = wait_for(lambda: prefect.runs("nightly", "SCHEDULED"), within_s=60, log=log)
    assert scheduled["auto_scheduled"]
