"""Archived pictures once more: rows beside the old ones, by another model or with an explanation for each."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from inspect_xai.storage.store import open_store
from tests.conftest import Run
from tests.support import spots
from tests.support.line import rows, write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spots.spot_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def settings(cli: Run, bundle: Path, tmp_path: Path) -> Path:
    """A line that inspected two OK parts, an NG one and a file without a picture; the identity came from a sidecar."""
    for number, spot_px in enumerate([0, 0, 10]):
        picture = write(tmp_path / f"in/{number}.png", number, spot_px)
        picture.with_suffix(".json").write_text(json.dumps({"serial": f"SN{number}", "station": "S9", "product": "M"}))
    (tmp_path / "in/broken.png").write_bytes(b"")
    file = tmp_path / "line.toml"
    file.write_text(
        f'bundle = "{bundle}"\ndb = "sqlite:///{tmp_path / "line.db"}"\ndevice = "cpu"\n'
        f'[line]\nsource = "{tmp_path / "in"}"\nsettle_s = 0\nok_share = 0\nclaim_size = 2\n'
    )
    code, _, err = cli("line", "--settings", file)
    assert code == 0, err
    return file


def test_another_model_judges_the_archive_beside_the_old_rows(cli: Run, settings: Path, tmp_path: Path) -> None:
    other = spots.spot_bundle(tmp_path / "other", fails_on_white=True)
    db = f"sqlite:///{tmp_path / 'line.db'}"
    before = rows(db)
    usual = ["reinspect", "--settings", settings, "--bundle", other, "--since", "2026-01-01", "--json"]
    code, out, err = cli(*usual)
    assert code == 0, err
    said = json.loads(out)
    assert (said["summary"]["inspected"], said["missing"]) == (3, 0)
    found = rows(db)
    assert [row for row in found if row in before] == before
    new = [row for row in found if row not in before]
    assert {(row.serial, row.station, row.product) for row in new} == {(f"SN{n}", "S9", "M") for n in range(3)}
    assert {row.fingerprint for row in new}.isdisjoint({row.fingerprint for row in before})
    assert Counter(row.verdict for row in new) == {"OK": 2, "NG": 1}
    assert all(Path(row.archived_to).is_file() for row in new)
    code, out, _ = cli(*usual)
    assert json.loads(out)["summary"]["inspected"] == 0


def test_what_lacks_an_explanation_gets_one(cli: Run, settings: Path, tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path / 'line.db'}"
    usual = ["reinspect", "--explain-missing", "--settings", settings, "--since", "2026-01-01", "--json"]
    code, out, err = cli(*usual)
    assert code == 0, err
    assert json.loads(out)["summary"]["explained"] == 2
    new = [row for row in rows(db) if row.policy_version == "1+all"]
    assert {(row.serial, row.verdict, row.explained_because, row.explanation_status) for row in new} == {
        ("SN0", "OK", "ok", "explained"),
        ("SN1", "OK", "ok", "explained"),
    }
    assert json.loads(cli(*usual)[1])["summary"]["inspected"] == 0


def test_what_was_explained_by_an_older_method_is_explained_by_the_new_one(
    cli: Run, settings: Path, tmp_path: Path
) -> None:
    db, policy = f"sqlite:///{tmp_path / 'line.db'}", tmp_path / "policy.toml"
    policy.write_text('version = "2"\n[explain]\nok_share = 0\nmethod = "grad-cam"\n')
    settings.write_text(settings.read_text().replace("ok_share = 0\n", f'policy = "{policy}"\n'))
    usual = ["reinspect", "--explain-missing", "--settings", settings, "--since", "2026-01-01", "--json"]
    code, out, err = cli(*usual)
    assert code == 0, err
    assert json.loads(out)["summary"]["explained"] == 3  # the NG part has one already, by sise
    with open_store(db) as store:
        new = [store.get(row.inspection_id) for row in rows(db) if row.policy_version == "2+all"]
    assert {each.explanation.settings.method for each in new if each.explanation} == {"grad-cam"}
    assert json.loads(cli(*usual)[1])["summary"]["seen"] == 0


def test_a_picture_that_was_exchanged_or_is_gone_is_passed_over_and_told(
    cli: Run, settings: Path, tmp_path: Path
) -> None:
    db = f"sqlite:///{tmp_path / 'line.db'}"
    first, second = (Path(row.archived_to) for row in rows(db) if row.verdict == "OK")
    first.unlink()
    write(second, 77)
    before = rows(db)
    code, out, _ = cli("reinspect", "--explain-missing", "--settings", settings, "--since", "2026-01-01", "--json")
    assert (code, json.loads(out)["missing"], json.loads(out)["summary"]["seen"]) == (1, 2, 0)
    assert rows(db) == before
    code, out, _ = cli("reinspect", "--explain-missing", "--settings", settings, "--since", "2099-01-01")
    assert code == 0
    assert "no picture is waiting" in out


def test_a_collector_gets_json_with_part_and_hash_in_every_line(settings: Path, tmp_path: Path) -> None:
    write(tmp_path / "in/L1/S3/SN9_LOT7_CAM1_top_early_20261122T061500Z.png", 9)
    (tmp_path / "in/L1/S3/bad\nname.png").write_bytes(b"no picture")
    environment = os.environ | {"INSPECT_XAI_LOG": "json", "INSPECT_XAI_SETTINGS": str(settings)}
    done = subprocess.run(
        [sys.executable, "-m", "inspect_xai", "line"], env=environment, capture_output=True, text=True, check=True
    )
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(each["serial"] and len(each["sha256"]) == 64 and each["station"] is not None for each in said)
    assert {(each["line"], each["serial"], each["verdict"]) for each in said if each["level"] == "info"} == {
        ("L1", "SN9", "OK"),
        ("", r"bad\nname", "UNSURE"),
    }
    assert [each["file_name"] for each in said if each["level"] == "warning"] == ["L1/S3/bad\nname.png"]
