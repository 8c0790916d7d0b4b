"""The flows do what the commands do: on a real, temporary Prefect server, with rows and pages to show for it."""

import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inspect_xai.errors import DatabaseAwayError
from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.intake.sources import Claim
from inspect_xai.line import doctor
from inspect_xai.line import line as line_module
from inspect_xai.line.stages import Schedule
from inspect_xai.records import PictureLimits
from inspect_xai.storage.store import Store, open_store
from tests.support import spots
from tests.support.line import rows, write


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One Prefect server on an in-memory database for all tests of this file; starting it takes some ten seconds."""
    from prefect.testing.utilities import prefect_test_harness

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL", "0.2")  # in seconds; 5 by default
        with prefect_test_harness(server_startup_timeout=120):
            yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spots.spot_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def settings(tmp_path: Path, bundle: Path) -> Path:
    """Settings of a line with five parts, two of them NG, in chunks of two."""
    for number in range(5):
        write(tmp_path / f"in/SN{number}_20261122T06150{number}Z.png", number, spot_px=10 * (number % 2))
    file = tmp_path / "line.toml"
    file.write_text(
        f'db = "sqlite:///{tmp_path / "line.db"}"\nbundle = "{bundle}"\ndevice = "cpu"\n'
        f'[line]\nsource = "{tmp_path / "in"}"\nsettle_s = 0\nclaim_size = 2\n'
        'path_pattern = "{serial}_{captured_at}"\n'
        f'[report]\nout = "{tmp_path / "reports"}"\ndesk_url = "https://desk.plant.example/inspect/"\n'
    )
    return file


@pytest.mark.usefixtures("prefect_server")
def test_the_flows_inspect_and_report(settings: Path, tmp_path: Path) -> None:
    from flows.inspect_line import inspect_line
    from flows.nightly_report import nightly_report

    summary = inspect_line(str(settings))
    assert (summary["seen"], summary["inspected"], summary["ng"]) == (5, 5, 2)
    assert len(rows(f"sqlite:///{tmp_path / 'line.db'}")) == 5
    assert inspect_line(str(settings))["seen"] == 0

    said = nightly_report(str(settings), day=date(2026, 11, 22))
    assert (said["inspections"], said["ng"]) == (5, 2)
    assert (said["alarms"], said["sent"]) == (1, {})  # the model is not approved; no channel is set up
    assert Path(said["page"]).is_file()

    left = {artifact.key: artifact for artifact in artifacts()}
    assert left["inspect-line-progress"].data == 100.0
    assert {"what": "ng", "value": "2"} in json.loads(left["inspect-line-numbers"].data)
    assert "5 pictures inspected" in left["inspect-line-summary"].data
    assert "(https://desk.plant.example/inspect/reports/2026-11-22)" in left["nightly-report-page"].data
    assert {"what": "page", "value": said["page"]} in json.loads(left["nightly-report-numbers"].data)

    nightly_report(str(settings), day=date(2026, 11, 22))  # the same alarm again is the same event
    [event] = events("inspect-xai.alert", least=1)
    assert event["payload"]["topic"] == event["resource"]["prefect.resource.name"] == "model_not_approved"
    assert event["payload"]["text"] == "5 parts judged by a model that was not approved at that time."
    assert event["resource"]["prefect.resource.id"] == f"inspect-xai.alert.{event['payload']['alert_id']}"


def events(name: str, *, least: int) -> list[dict[str, Any]]:
    """The events of this name that the server keeps, once it has as many."""
    from prefect.client.orchestration import get_client
    from prefect.events.worker import EventsWorker

    EventsWorker.instance().wait_until_empty()  # all are sent
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 30
    with get_client(sync_client=True) as client:
        while len(found) < least and time.monotonic() < deadline:
            time.sleep(0.3)
            answer = client._client.post("/events/filter", json={"filter": {"event": {"name": [name]}}})
            found = answer.raise_for_status().json()["events"]
    return found


def artifacts() -> list[Any]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return sorted(client.read_artifacts(), key=lambda artifact: artifact.created)


@pytest.mark.usefixtures("prefect_server")
def test_a_flow_anchors_the_ledgers_head(settings: Path, tmp_path: Path) -> None:
    from flows.anchor_ledger import anchor_ledger

    with open_store(f"sqlite:///{tmp_path / 'line.db'}") as store:
        store.set_reason("dust", "Dust on the part")
        head = store.ledger.head()
    said = anchor_ledger(str(settings), place=str(tmp_path / "anchors.jsonl"))
    assert (said["events"], said["head"], said["signed_by"]) == (1, head, "")
    assert json.loads((tmp_path / "anchors.jsonl").read_text())["head"] == head


@pytest.mark.usefixtures("prefect_server")
def test_a_gpu_has_one_turn_at_a_time_and_a_cpu_needs_none() -> None:
    from prefect.client.orchestration import get_client

    from flows.common import gpu_slot

    name = f"gpu-{socket.gethostname().lower()}"
    with get_client(sync_client=True) as client:
        client._client.post("/v2/concurrency_limits/", json={"name": name, "limit": 1}).raise_for_status()

        def taken() -> int:
            slots: int = client._client.get(f"/v2/concurrency_limits/{name}").json()["active_slots"]
            return slots

        with gpu_slot("CPUExecutionProvider"):
            assert taken() == 0
        with gpu_slot("CUDAExecutionProvider"):
            assert taken() == 1
            idle, slots = doctor.ask_prefect(str(client.api_url))
        assert taken() == 0
    assert (idle.ok, "0 scheduled" in idle.found) == (False, True)
    assert (slots.ok, slots.found) == (False, f"{name} taken while no run is at work")
    assert not next(doctor.ask_prefect("http://127.0.0.1:9/api")).ok


@pytest.mark.usefixtures("prefect_server")
def test_told_to_stop_a_flow_gives_the_rest_of_its_chunk_back(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.inspect_line import inspect_line

    read = FolderSource.read

    def terminated_meanwhile(source: FolderSource, claim: Claim, *, limits: PictureLimits) -> bytes:
        os.kill(os.getpid(), signal.SIGTERM)
        return read(source, claim, limits=limits)

    monkeypatch.setattr(FolderSource, "read", terminated_meanwhile)
    assert inspect_line(str(settings))["inspected"] == 1
    monkeypatch.undo()
    assert not list((tmp_path / "in/_claimed").rglob("*.png"))
    assert inspect_line(str(settings))["inspected"] == 4


@pytest.mark.usefixtures("prefect_server")
def test_a_database_that_is_away_is_tried_again_and_nothing_is_lost(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.common
    from flows.inspect_line import inspect_line

    monkeypatch.setattr(line_module, "Schedule", partial(Schedule, retry_after_s=()))
    monkeypatch.setattr(flows.common, "BACK_OFF_S", [0.0, 0.0])
    record, away = Store.record, iter([True, False, True])

    def sometimes(store: Store, inspections: list) -> list:  # type: ignore[type-arg]
        if next(away, False):
            raise DatabaseAwayError("away")
        return record(store, inspections)

    monkeypatch.setattr(Store, "record", sometimes)
    logging.getLogger("prefect").setLevel(logging.CRITICAL)
    assert inspect_line(str(settings))["inspected"] == 5
    assert len(rows(f"sqlite:///{tmp_path / 'line.db'}")) == 5


def test_prefects_reports_to_its_makers_are_off_before_it_is_imported() -> None:
    import flows.nightly_report  # noqa: F401

    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert os.environ["DO_NOT_TRACK"] == "1"


@pytest.mark.usefixtures("prefect_server")
def test_upkeep_checks_the_golden_set_and_deletes_only_when_told(settings: Path, tmp_path: Path, bundle: Path) -> None:
    from flows.golden_check import golden_check
    from flows.inspect_line import inspect_line
    from flows.retention import retention
    from inspect_xai.errors import GoldenSetError
    from inspect_xai.explain.explainer import Explainer
    from inspect_xai.records import PictureLimits
    from inspect_xai.storage.retention import DataKind, Retention, Rule
    from inspect_xai.verify.golden import make_golden

    db = f"sqlite:///{tmp_path / 'line.db'}"
    inspect_line(str(settings))
    pictures = [write(tmp_path / f"golden{number}.png", number, spot_px=10 * number) for number in range(2)]
    with Explainer(bundle, device="cpu") as explainer:
        make_golden(explainer, pictures, out=tmp_path / "golden", limits=PictureLimits())
    settings.write_text(settings.read_text().replace("[line]\n", f'[line]\ngolden = "{tmp_path / "golden"}"\n'))
    assert golden_check(str(settings))["holds"]
    manifest = tmp_path / "golden/manifest.json"
    expected = json.loads(manifest.read_text())
    expected["pictures"][0]["scores"] = [[1 - p for p in row] for row in expected["pictures"][0]["scores"]]
    manifest.write_text(json.dumps(expected))
    with pytest.raises(GoldenSetError, match="1 of 2"):
        golden_check(str(settings))

    with open_store(db) as store:
        Retention(store.database).set_rule(Rule("", DataKind.PICTURE, 0), by="quality")
    archived = sorted((tmp_path / "in/_archive").rglob("*.png"))
    assert len(archived) == 5
    assert retention(str(settings))["pictures"] == 5
    assert all(path.exists() for path in archived)
    assert retention(str(settings), carry_out=True)["carried_out"]
    assert not any(path.exists() for path in archived)


@pytest.mark.usefixtures("prefect_server")
def test_an_audit_runs_as_a_flow_and_leaves_its_answer(tmp_path: Path, bundle: Path) -> None:
    from flows.audit_model import audit_model

    lines = ["image,label"]
    for number in range(4):
        write(tmp_path / f"part{number}.png", number, spot_px=10 * (number % 2))
        lines.append(f"part{number}.png,{'spot' if number % 2 else 'free'}")
    (tmp_path / "parts.csv").write_text("\n".join(lines) + "\n")
    options = {"methods": "grad-cam", "sanity": 0, "steps": 2}
    answer = audit_model(str(bundle), str(tmp_path / "parts.csv"), str(tmp_path / "audit"), options=options)
    left = {artifact.key: artifact.data for artifact in artifacts()}
    assert answer["answer"] in left["audit-model-summary"]
    page = {"what": "page", "value": str(tmp_path / "audit/report.html")}
    assert page in json.loads(left["audit-model-numbers"])
    assert "audit-model-page" not in left
