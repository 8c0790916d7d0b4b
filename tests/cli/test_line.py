"""The commands around the line: run them, then look at the rows, the page and the exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inspect_xai.storage.store import open_store
from tests.conftest import Run
from tests.support import hostile, spots
from tests.support.html_page import Page
from tests.support.line import rows, write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spots.spot_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    folder = tmp_path / "incoming"
    for number, spot_px in enumerate([0, 5, 10]):
        write(folder / f"L1/S3/SN{number}_LOT7_CAM1_top_early_20261122T0615{number:02d}Z.png", number, spot_px)
    (folder / "L1/S3/broken.png").write_bytes(b"")
    return folder


def test_from_folder_to_report(cli: Run, incoming: Path, bundle: Path, tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path / 'line.db'}"
    code, out, err = cli(
        "line", "--source", incoming, "--bundle", bundle, "--db", db, "--device", "cpu", "--ok-share", 0
    )
    assert code == 0, err
    assert "4 pictures inspected" in out
    assert "1 OK, 1 NG, 2 UNSURE" in out
    assert "2 explained with" in out
    assert "1 could not be judged or explained" in out
    recorded = {row.serial: row for row in rows(db)}
    assert {serial: row.verdict for serial, row in recorded.items()} == {
        "SN0": "OK",
        "SN1": "UNSURE",
        "SN2": "NG",
        "broken": "UNSURE",
    }

    again = ["line", "--source", incoming, "--bundle", bundle, "--db", db, "--device", "cpu", "--json"]
    code, _, err = cli(*again)  # other rules under the same version of them
    assert code == 50
    assert "policy '1' is kept with another content" in err
    code, out, _ = cli(*again, "--ok-share", 0)
    assert code == 0
    assert json.loads(out)["seen"] == 0

    code, out, _ = cli("report", "--db", db, "--date", "2026-11-22", "--out", tmp_path / "reports", "--json")
    assert code == 0
    said = json.loads(out)
    assert (said["inspections"], said["ok"], said["ng"], said["unsure"]) == (3, 1, 1, 1)  # the broken file has no date
    page = Page(Path(said["page"]))
    assert "NG SN2" in page.text
    assert "UNSURE SN1" in page.text
    alternatives = [image["alt"] for image in page.images]
    assert sum(text.startswith("The picture of part") for text in alternatives) == 2
    assert sum(text.startswith("The same picture with") for text in alternatives) == 2
    assert sum(text.startswith("Overlay of part") for text in alternatives) == 2  # those that deserve a look
    assert len(alternatives) == 6
    assert [each.name for each in Path(said["parquet"][0]).rglob("*.parquet")] == ["inspections.parquet"]

    number = recorded["SN2"].inspection_id
    code, out, _ = cli("show", number, "--db", db)
    assert code == 0
    assert f"inspection {number}: NG (DEFECT_OVER_THRESHOLD" in out
    assert "SN2  product -  lot LOT7" in out
    assert "sise for spot (ng): explained" in out
    assert "region 1" in out
    code, out, _ = cli("show", number, "--db", db, "--json")
    assert json.loads(out)["verdict"]["code"] == "NG"
    assert json.loads(out)["explanation"]["status"] == "explained"
    code, out, _ = cli("show", recorded["broken"].inspection_id, "--db", db)
    assert "PictureError: the file is empty" in out


def test_settings_stand_in_for_options(
    cli: Run, incoming: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = f"sqlite:///{tmp_path / 'line.db'}"
    settings = tmp_path / "line.toml"
    settings.write_text(
        f'bundle = "{bundle}"\ndevice = "cpu"\n[line]\nsource = "{incoming}"\nsettle_s = 0\npolicy_version = "7"\n'
        f'path_pattern = "{{line}}/{{station}}/{{serial}}_{{_}}_{{_}}_{{_}}_{{_}}_{{_}}"\n'
        f'[report]\nout = "{tmp_path / "reports"}"\ntime_zone = "Europe/Berlin"\n'
    )
    monkeypatch.setenv("INSPECT_XAI_DB", db)
    code, _, err = cli("line", "--settings", settings, "--in-place", "--json")
    assert code == 0, err
    assert {row.policy_version for row in rows(db)} == {"7"}
    assert {row.lot for row in rows(db)} == {""}
    assert len(list(incoming.rglob("*.png"))) == 4
    monkeypatch.setenv("INSPECT_XAI_SETTINGS", str(settings))
    code, out, _ = cli("report", "--since", "2026-11-20", "--until", "2026-11-23")
    assert code == 0
    assert (tmp_path / "reports/2026-11-20_2026-11-23/report.html").is_file()
    assert out.count("parquet") >= 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["line"], 60, "no source is named"),
        (["line", "--source", "."], 60, "no bundle is named"),
        (["line", "--source", "absent", "--bundle", "b"], 70, "is no folder"),
        (["line", "--source", ".", "--bundle", "absent"], 10, "absent"),
        (["line", "--source", ".", "--ok-share", "2"], 60, "line.ok_share is 2.0"),
        (["line", "--source", ".", "--in-place", "--watch"], 60, "--watch"),
        (["line", "--claim-size", "many"], 2, "valid integer"),
        (["line", "--settings", "absent.toml"], 60, "no settings file"),
        (["report", "--db", "sqlite:///absent.db"], 53, "inspect-xai db upgrade"),
        (["report", "--date", "yesterday"], 2, "yesterday"),
        (["report", "--date", "2026-11-22", "--since", "2026-11-22"], 2, "either"),
        (["show", "1", "--db", "sqlite:///absent.db"], 53, "no database"),
        (["show", "one"], 2, "valid integer"),
        (["db", "status", "--db", "sqlite:///absent.db"], 53, "no database"),
        (["db", "upgrade", "--db", "oracle://host/db"], 60, "sqlite:///"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(cli: Run, arguments: list[str], code: int, words: str) -> None:
    found, out, err = cli(*arguments)
    assert (found, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


def test_the_database_is_made_and_checked(cli: Run, tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path / 'new' / 'line.db'}"
    code, out, _ = cli("db", "upgrade", "--db", db)
    assert (code, "brought from schema none to" in out) == (0, True)
    code, out, _ = cli("db", "upgrade", "--db", db)
    assert (code, "already" in out) == (0, True)
    code, out, _ = cli("db", "status", "--db", db, "--json")
    assert json.loads(out)["fits"] is True
    with open_store(db, create=False):
        pass
    code, _, err = cli("show", 99, "--db", db)
    assert (code, "no inspection 99" in err) == (53, True)


def test_the_progress_bar_stays_off_a_pipe(cli: Run, incoming: Path, bundle: Path, tmp_path: Path) -> None:
    _, out, err = cli(
        "line", "--source", incoming, "--bundle", bundle, "--db", f"sqlite:///{tmp_path / 'a.db'}", "--device", "cpu"
    )
    assert "inspecting" not in out + err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_watching_line_stops_when_asked(number: signal.Signals, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "a.png", 1)
    db = f"sqlite:///{tmp_path / 'line.db'}"
    command = [sys.executable, "-m", "inspect_xai", "line", "--watch", "--json", "--settle", "0", "--device", "cpu"]
    command += ["--source", str(folder), "--bundle", str(bundle), "--db", db]
    line = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        deadline = time.monotonic() + 60
        while not (folder / "_archive").exists() and line.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        line.send_signal(number)
        out, err = line.communicate(timeout=30)
    finally:
        line.kill()
        line.wait()
    assert line.returncode == 0, err
    assert json.loads(out)["inspected"] == 1
    assert len(rows(db)) == 1
    assert list((folder / "_claimed").iterdir()) == []


def test_a_url_is_drained(cli: Run, bundle: Path, tmp_path: Path) -> None:
    write(tmp_path / "in/a.png", 1)
    (tmp_path / "in/b.png").write_bytes(hostile.BROKEN["half.png"][0])
    db = f"sqlite:///{tmp_path / 'line.db'}"
    code, _, err = cli(
        "line", "--source", f"file://{tmp_path / 'in'}", "--bundle", bundle, "--db", db, "--device", "cpu"
    )
    assert code == 0, err
    assert {row.file_name: row.reason for row in rows(db)}["b.png"] == "BAD_IMAGE"
    assert (tmp_path / "in/a.png").is_file()
