"""`doctor` finds what is wrong with a machine, fault by fault; `bench` counts and reckons as the explainer does."""

import json
import os
import shutil
import sqlite3
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from inspect_xai.explain.benchmark import Night, bench, compare_processes
from inspect_xai.explain.explainer import Explainer
from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.line.doctor import Finding, Premises, examine
from inspect_xai.line.line import Line, drain
from inspect_xai.model.bundle import load_bundle
from inspect_xai.records import ModelStatus, Profile
from inspect_xai.storage.store import open_store
from tests.conftest import Run
from tests.support import spots
from tests.support.line import write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spots.spot_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def premises(bundle: Path, tmp_path: Path) -> Premises:
    """A machine with nothing wrong with it."""
    (tmp_path / "in").mkdir()
    db = f"sqlite:///{tmp_path / 'line.db'}"
    with open_store(db) as store:
        model = load_bundle(bundle)
        store.registry.register_model(model.fingerprint, model.card, bundle_sha256=model.sha256)
        store.registry.set_model_status(model.fingerprint, ModelStatus.APPROVED, by="quality")
    return Premises(bundle, "cpu", db, str(tmp_path / "in"), keep=False, lease_s=600, reports=tmp_path / "reports")


def altered(premises: Premises, **changes: object) -> Premises:
    return replace(premises, **changes)  # type: ignore[arg-type]


def wrong(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.found for finding in findings if not finding.ok}


def test_a_sound_machine_passes_and_is_left_as_it_was(premises: Premises, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    findings = examine(premises)
    assert wrong(findings) == {}
    assert [finding.check for finding in findings] == [
        "versions",
        "bundle",
        "device",
        "database",
        "model",
        "ledger",
        "source",
        "claims",
        "sidecars",
        "folder of reports",
        "folder of database",
        "folder of source",
        "clock",
    ]
    assert "CPUExecutionProvider ran prediction, trace and masks" in findings[2].found
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sidecar_of_no_picture_is_found(premises: Premises, tmp_path: Path) -> None:
    (tmp_path / "in/P1.JSON").touch()
    assert wrong(examine(premises)) == {"sidecars": "1 JSON or CSV files belong to no picture: P1.JSON"}
    assert wrong(examine(altered(premises, ignore=("P1.*",)))) == {}


def test_each_fault_is_found_and_nothing_else(premises: Premises, bundle: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled.bundle"
    shutil.copytree(bundle, spoiled)
    with (spoiled / "graphs/predict.onnx").open("ab") as file:
        file.write(b"x")
    new = f"sqlite:///{tmp_path / 'new.db'}"
    open_store(new).close()
    assert list(wrong(examine(altered(premises, bundle=spoiled)))) == ["bundle"]
    assert list(wrong(examine(altered(premises, bundle=None)))) == ["bundle"]
    assert list(wrong(examine(altered(premises, db=new)))) == ["model"]
    assert list(wrong(examine(altered(premises, db=f"sqlite:///{tmp_path / 'none.db'}")))) == ["database"]
    assert not (tmp_path / "none.db").exists()
    assert list(wrong(examine(altered(premises, source="")))) == ["source"]


def test_files_that_nobody_approved_are_found(premises: Premises, bundle: Path, tmp_path: Path) -> None:
    swapped = shutil.copytree(bundle, tmp_path / "swapped.bundle")
    approved, found = load_bundle(bundle), spots.swap_labels(swapped)
    assert wrong(examine(altered(premises, bundle=swapped))) == {
        "model": "the files of the bundle of spots 1 are not those that were registered: together they hash to "
        f"{found.sha256[:16]} (expected {approved.sha256[:16]}, which is approved)"
    }


def test_an_approval_from_before_files_were_hashed_is_told(premises: Premises, bundle: Path, tmp_path: Path) -> None:
    db, model = f"sqlite:///{tmp_path / 'old.db'}", load_bundle(bundle)
    with open_store(db) as store:
        store.registry.register_model(model.fingerprint, model.card)
        store.registry.set_model_status(model.fingerprint, ModelStatus.APPROVED, by="quality")
    said = f"{model.fingerprint[:12]} is approved, but registered before hashes of the bundle's files were kept"
    assert wrong(examine(altered(premises, db=db)))["model"].startswith(said)


def test_a_policy_for_another_model_is_found(premises: Premises, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('version = "3"\n[[threshold]]\nlabels = { spot = 0.4 }\n')
    assert wrong(examine(altered(premises, policy=policy))) == {}
    policy.write_text('version = "3"\n[[threshold]]\nlabels = { crack = 0.4 }\n')
    assert "crack" in wrong(examine(altered(premises, policy=policy)))["policy"]


def test_a_device_that_does_not_run_is_found(premises: Premises) -> None:
    found = wrong(examine(altered(premises, device="cuda")))
    if not found:
        pytest.skip("a CUDA device runs here")
    assert list(found) == ["device"]


def test_a_folder_that_cannot_be_written_is_found(premises: Premises) -> None:
    assert list(wrong(examine(altered(premises, reports=Path("/proc/reports"))))) == ["folder of reports"]


def test_claims_of_a_dead_line_are_found_and_stay(premises: Premises) -> None:
    left = Path(premises.source) / "_claimed/elsewhere-1-abc/L1"
    left.mkdir(parents=True)
    owner = left.parent / ".owner"
    owner.touch()
    (left / "SN1.png").touch()
    assert wrong(examine(premises)) == {}  # the other machine gave a sign of life just now
    os.utime(owner, (time.time() - 3600,) * 2)
    found = wrong(examine(premises))
    assert list(found) == ["claims"]
    assert str(left.parent) in found["claims"]
    assert (left / "SN1.png").exists()


def test_an_inspection_of_tomorrow_betrays_a_clock(premises: Premises, bundle: Path) -> None:
    write(Path(premises.source) / "a.png", 1)
    with Line(bundle, premises.db, device="cpu") as line, FolderSource(Path(premises.source), settle_s=0) as source:
        drain(line, source)
    assert wrong(examine(premises)) == {}
    with sqlite3.connect(premises.db.removeprefix("sqlite:///")) as connection:
        for (trigger,) in connection.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            connection.execute(f"drop trigger {trigger}")
        tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%d %H:%M:%S.%f")
        connection.execute("update inspection set inspected_at = ?", (tomorrow,))
    assert list(wrong(examine(premises))) == ["clock"]


def test_the_doctors_command_ends_with_one_code(cli: Run, premises: Premises, tmp_path: Path) -> None:
    usual = ["doctor", "--bundle", premises.bundle, "--source", premises.source, "--device", "cpu"]
    code, out, _ = cli(*usual, "--db", premises.db)
    assert code == 0, out
    assert out.startswith("ok    settings")
    code, out, _ = cli(*usual, "--db", "sqlite:///none.db", "--json")
    said = json.loads(out)
    assert (code, said["ok"]) == (1, False)
    assert [each["check"] for each in said["findings"] if not each["ok"]] == ["database"]
    (tmp_path / "line.toml").write_text("lime = 1")
    code, out, _ = cli("doctor", "--settings", tmp_path / "line.toml")
    assert code == 1
    assert "FIX   settings" in out
    assert "lime is no setting" in out


@pytest.mark.parametrize("profile", Profile)
def test_bench_counts_the_passes_the_explainer_makes(bundle: Path, profile: Profile) -> None:
    picture = spots.part(3, spot_px=10)
    report = bench(load_bundle(bundle), picture, device="cpu", threads=(1,), buckets=(2,), rounds=1)
    with Explainer(bundle, device="cpu", profile=profile) as explainer:
        passes = explainer(picture).forward_passes
    assert {each.profile: each.passes for each in report.expected}[profile] == passes


def test_bench_measures_every_setting_and_chooses_the_fastest(bundle: Path) -> None:
    night = Night(pictures=1000, hours=1, explained=0.5)
    report = bench(
        load_bundle(bundle), np.zeros((40, 70), np.uint8), device="cpu", threads=(1, 2), rounds=2, night=night
    )
    assert [(rate.threads, rate.bucket) for rate in report.rates] == [(t, b) for t in (1, 2) for b in (1, 2, 4, 8, 16)]
    assert all(rate.slowest_per_s <= rate.per_s <= rate.fastest_per_s for rate in report.rates)
    assert report.best.per_s == max(rate.per_s for rate in report.rates)
    assert report.windows > 1
    for each in report.expected:
        assert each.hours == pytest.approx(1000 * (report.look_s + 0.5 * each.seconds) / 3600)
        assert each.fits is (each.hours <= 1)


def test_one_process_with_all_cores_is_measured_against_several(bundle: Path) -> None:
    one, several = compare_processes(bundle, 2, bucket=2, rounds=1)

    assert (one.processes, one.threads, several.processes, several.threads) == (1, 2, 2, 1)
    assert min(one.per_s, several.per_s) > 0


def test_the_bench_command_says_whether_the_night_suffices(cli: Run, bundle: Path) -> None:
    usual = ["bench", bundle, "--device", "cpu", "--threads", 1, "--rounds", 1]
    code, out, _ = cli(*usual, "--pictures", 10, "--window", 1)
    assert code == 0
    assert "<- fastest" in out
    assert "fits in the window: yes" in out
    code, out, _ = cli(*usual, "--pictures", 1_000_000_000, "--window", 1, "--json")
    assert code == 1
    assert {each["fits"] for each in json.loads(out)["expected"]} == {False}
    assert cli(*usual, "--pictures", 10)[0] == 2
