"""The commands around the record: run them, then look at the rows, the files and the exit codes."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest

from benchmarks.support import stored
from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.line.line import Line, drain
from inspect_xai.model.bundle import load_bundle
from inspect_xai.policy import ExplainRule
from inspect_xai.records import Decision, Review, VerdictCode
from inspect_xai.storage.ledger import chained
from inspect_xai.storage.retention import Retention
from inspect_xai.storage.store import Store, open_store
from tests.conftest import Run
from tests.support import spots
from tests.support.line import write
from tests.support.tampering import tamper

NAME = "L1/S3/SN{0}_LOT{1}_CAM1_top_early_20261122T0615{0:02d}Z.png"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spots.spot_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def recorded(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a line's database and archive: SN0 is OK, SN1 is UNSURE, SN2 is NG and was reviewed."""
    folder = tmp_path_factory.mktemp("recorded")
    for number, spot_px in enumerate([0, 5, 10]):
        write(folder / "in" / NAME.format(number, 7 + number // 2), number, spot_px)
    url = f"sqlite:///{folder / 'line.db'}"
    with Line(bundle, url, device="cpu", opened_by="Ada") as line, FolderSource(folder / "in", settle_s=0) as source:
        drain(line, source)
    with open_store(url) as store:
        [bad] = store.find(serial="SN2")
        store.review(bad.inspection_id, Review("Bob", Decision.CONFIRM, VerdictCode.NG, "spot"))
    return folder


@pytest.fixture
def db(recorded: Path, tmp_path: Path) -> str:
    """The URL of a copy of that database; the archive is the one copy."""
    shutil.copy(recorded / "line.db", tmp_path / "line.db")
    return f"sqlite:///{tmp_path / 'line.db'}"


def number_of(db: str, serial: str) -> int:
    with open_store(db) as store:
        [row] = store.find(serial=serial)
        return row.inspection_id


# Replay


def test_replay_of_one_and_of_all(cli: Run, db: str, bundle: Path) -> None:
    code, out, err = cli("replay", number_of(db, "SN2"), "--db", db, "--bundle", bundle, "--device", "cpu")
    assert code == 0, err
    assert f"inspection {number_of(db, 'SN2')}: holds  (scores off by 0.0e+00, map by" in out
    day = ["replay", "--date", "2026-11-22", "--db", db, "--bundle", bundle, "--device", "cpu", "--json"]
    code, out, _ = cli(*day)
    assert (code, json.loads(out)["counts"]) == (0, {"holds": 3, "differs": 0, "cannot": 0})
    drawn = [
        [each["inspection_id"] for each in json.loads(cli(*day, "--sample", 2, "--seed", seed)[1])["replays"]]
        for seed in (1, 1, 3)
    ]
    assert drawn[0] == drawn[1]
    assert [len(ids) for ids in drawn] == [2, 2, 2]


def test_replay_says_what_is_missing(cli: Run, db: str, bundle: Path, recorded: Path, tmp_path: Path) -> None:
    number = number_of(db, "SN2")
    shutil.copytree(recorded / "in/_archive", tmp_path / "moved/_archive")
    tamper(db, "UPDATE capture SET archived_to = replace(archived_to, '/in/', '/gone/')")
    code, out, _ = cli("replay", number, "--db", db, "--bundle", bundle, "--device", "cpu")
    assert code == 1
    assert f"inspection {number}: cannot" in out
    assert "missing: the picture" in out
    code, _, err = cli(
        "replay", number, "--db", db, "--bundle", bundle, "--device", "cpu", "--archive", tmp_path / "moved"
    )
    assert code == 0, err
    code, out, _ = cli("replay", number, "--db", db, "--bundle", tmp_path / "no.bundle", "--json")
    assert code == 1
    [replay] = json.loads(out)["replays"]
    assert replay["outcome"] == "cannot"
    assert "no.bundle" in replay["missing"][0]


def test_replay_finds_a_row_changed_by_hand(cli: Run, db: str, bundle: Path) -> None:
    tamper(db, "UPDATE inspection SET scores = '[0.5,0.5]', verdict = 'OK' WHERE label = 'spot' AND verdict = 'NG'")
    code, out, _ = cli("replay", number_of(db, "SN2"), "--db", db, "--bundle", bundle, "--device", "cpu")
    assert code == 1
    assert "differs" in out
    assert "verdict: recorded OK, now NG" in out
    assert "scores: recorded 0.5, 0.5, now " in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["replay"], 2, "give an ID"),
        (["replay", "1", "--sample", "2"], 2, "give an ID"),
        (["replay", "1"], 60, "no bundle is named"),
        (["replay", "99", "--bundle", "b"], 53, "no inspection 99"),
        (["ledger", "export", "--out", "e.zip"], 2, "--part"),
        (["ledger", "export", "--out", "e.zip", "--part", "SN99"], 53, "no inspection fits"),
        (["retention", "set", "--kind", "map"], 2, "--days"),
        (["retention", "set", "--kind", "air", "--days", "3"], 2, "picture, map or row"),
        (["retention", "hold", "--reason", "why"], 2, "--part"),
        (["retention", "release", "7"], 1, "no hold 7"),
        (["stats", "--by", "weather"], 2, "no field is called weather; there are archived_to, camera, captured_at"),
        (["report", "--date", "22.11.2026"], 2, "'22.11.2026' is no day written as in 2026-11-22 (year-month-day)"),
        (["find", "--since", "2026-02-30"], 2, "written as in 2026-11-22 or 2026-11-22T06:30:00"),
        (["report", "--date", "9999-12-31"], 60, "the day 9999-12-31. Expected a day from 1970-01-01 to 2999-12-31"),
        (["report", "--date", "0001-01-01"], 60, "the day 0001-01-01"),
        (["report", "--date", "1970-01-01"], 60, "the day 1969-12-31"),  # the days before, that it is held against
        (["find", "--until", "9999-12-31T23:59:59"], 60, "the day 9999-12-31"),
        (["find", "--since", "0001-01-01"], 60, "the day 0001-01-01"),
        (["stats", "--since", "0001-01-01"], 60, "the day 0001-01-01"),
        (["replay", "--date", "9999-12-31", "--bundle", "b"], 60, "the day 9999-12-31"),
        (["reinspect", "--since", "0001-01-01", "--bundle", "b"], 60, "the day 0001-01-01"),
        (["reinspect", "--explain-missing", "--since", "0001-01-01", "--bundle", "b"], 60, "the day 0001-01-01"),
        (["model", "calibrate", "ffff", "--since", "0001-01-01"], 60, "the day 0001-01-01"),
        (["drift", "baseline", "--since", "2026-11-01", "--until", "9999-12-31"], 60, "the day 9999-12-31"),
        (["ledger", "export", "--out", "e.zip", "--since", "9999-12-31"], 60, "the day 9999-12-31"),
        (["trace", "SN99"], 1, "no part has the serial 'SN99'"),
        (["model", "approve", "ffff"], 53, "no such model"),
        (["model", "verify", "absent"], 14, "no golden set"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(
    cli: Run, db: str, arguments: list[str], code: int, words: str
) -> None:
    place = [] if arguments[:2] == ["model", "verify"] else ["--db", db]
    found, _, err = cli(*arguments, *place)
    assert found == code, err
    assert words in err
    assert "Traceback" not in err


# Models


@pytest.fixture
def shop(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle with a golden set of three pictures inside."""
    copied = tmp_path / "spots.bundle"
    shutil.copytree(bundle, copied)
    return copied


def golden_set(cli: Run, shop: Path, tmp_path: Path) -> Path:
    pictures = [write(tmp_path / f"golden{spot_px}.png", 40 + spot_px, spot_px) for spot_px in (0, 5, 10)]
    code, out, err = cli("model", "golden-create", shop, *pictures, "--device", "cpu")
    assert code == 0, err
    assert "golden10.png  NG, spot" in out
    return shop / "golden"


def test_a_model_from_its_golden_set_to_retirement(cli: Run, shop: Path, tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path / 'new.db'}"
    golden_set(cli, shop, tmp_path)
    code, out, err = cli("model", "register", shop, "--db", db, "--device", "cpu", "--by", "Ada", "--json")
    assert code == 0, err
    model = json.loads(out)
    assert (model["status"], model["registered_by"], model["golden"]["holds"]) == ("candidate", "Ada", True)
    assert len(model["golden"]["checks"]) == 3
    code, out, _ = cli("model", "verify", shop, "--db", db, "--device", "cpu", "--by", "Eve")
    assert code == 0
    assert out.startswith("holds on CPUExecutionProvider: 3 pictures")
    code, _, err = cli("model", "approve", model["fingerprint"][:12], "--db", db, "--by", "Bob", "--note", "audit 7")
    assert code == 0, err
    code, out, _ = cli("model", "list", "--db", db)
    assert "spots 1  approved  by Bob" in out

    write(tmp_path / "in/a.png", 2, 10)
    start = ["line", "--source", tmp_path / "in", "--bundle", shop, "--db", db, "--device", "cpu", "--settle", 0]
    code, _, err = cli(*start, "--golden", shop / "golden")
    assert code == 0, err
    with open_store(db) as store:
        stored = store.get(1)
        assert stored.model_status == "approved"
        assert stored.run.settings["golden"]["pictures"] == 3
        model_file = hashlib.sha256((shop / "model.onnx").read_bytes()).hexdigest()
        assert stored.run.settings["model_sha256"] == model_file
        assert [(each.facts["change"], each.facts["by"]) for each in store.ledger.events(kind="model")] == [
            ("registered", "Ada"),
            ("candidate", "Ada"),
            ("candidate", "Eve"),
            ("approved", "Bob"),
        ]
        [policy] = store.ledger.events(kind="policy")
        assert "@" in policy.facts["by"]
    assert "NOT APPROVED" not in cli("show", 1, "--db", db)[1]

    assert cli("model", "retire", shop, "--db", db, "--note", "replaced")[0] == 0
    write(tmp_path / "in/b.png", 3, 10)
    assert cli(*start)[0] == 0
    assert "NOT APPROVED: this model was not approved when it judged this part" in cli("show", 2, "--db", db)[1]


def test_a_line_refuses_a_model_that_does_not_reproduce_its_golden_set(cli: Run, shop: Path, tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path / 'new.db'}"
    manifest = golden_set(cli, shop, tmp_path) / "manifest.json"
    expected = json.loads(manifest.read_text())
    expected["pictures"][1]["scores"][0][0] -= 2e-4
    manifest.write_text(json.dumps(expected))
    code, out, _ = cli("model", "verify", shop, "--device", "cpu")
    assert code == 1
    assert "DOES NOT HOLD" in out
    assert "pictures/002.png     UNSURE              2.0e-04" in out  # the worst one first
    assert out.splitlines()[2].endswith("differs")
    assert cli("model", "register", shop, "--db", db, "--device", "cpu")[0] == 1
    code, _, err = cli(
        "line", "--source", tmp_path, "--bundle", shop, "--db", db, "--device", "cpu", "--golden", shop / "golden"
    )
    assert code == 14
    assert "does not reproduce" in err
    with open_store(db) as store:
        [model] = store.registry.models()
        assert (model.status, model.golden_result is not None and model.golden_result["holds"]) == ("candidate", False)
        assert store.ledger.events(kind="model")[-1].facts["note"] == "refused at the start of a line"
    code, _, err = cli("model", "approve", shop, "--db", db)
    assert (code, "no golden result that holds" in err) == (14, True)
    assert cli("model", "approve", shop, "--db", db, "--without-golden")[0] == 14
    assert cli("model", "approve", shop, "--db", db, "--without-golden", "--note", "pilot")[0] == 0


def test_files_that_nobody_registered_are_refused_everywhere(cli: Run, shop: Path, tmp_path: Path) -> None:
    db, was = f"sqlite:///{tmp_path / 'new.db'}", load_bundle(shop)
    said = ["--without-golden", "--note", "pilot", "--by", "Bob"]
    assert cli("model", "register", shop, "--db", db, "--by", "Ada")[0] == 0
    assert cli("model", "approve", shop, "--db", db, *said)[0] == 0
    write(tmp_path / "in/a.png", 2, 10)
    start = ["line", "--source", tmp_path / "in", "--bundle", shop, "--db", db, "--device", "cpu", "--settle", 0]
    assert cli(*start)[0] == 0
    golden = golden_set(cli, shop, tmp_path)
    now = spots.swap_labels(shop)
    assert (now.fingerprint, now.sha256 == was.sha256) == (was.fingerprint, False)

    write(tmp_path / "in/b.png", 3, 10)
    for command in (
        start,
        ["reinspect", "--since", "2020-01-01", "--bundle", shop, "--db", db, "--device", "cpu"],
        ["model", "approve", shop, "--db", db, *said],
        ["model", "verify", shop, "--db", db, "--device", "cpu"],
    ):
        code, _, err = cli(*command)
        assert code == 10, command
        assert f"are not those that were registered: together they hash to {now.sha256[:16]}" in err
        assert f"{was.sha256[:16]}, which is approved" in err
        assert "inspect-xai model register BUNDLE --db URL" in err
    assert (tmp_path / "in/b.png").is_file()  # nothing was claimed
    code, out, _ = cli("replay", 1, "--db", db, "--bundle", shop, "--device", "cpu")
    assert (code, f"files of the bundle: recorded {was.sha256}, now {now.sha256}" in out) == (1, True)

    assert cli("model", "register", shop, "--db", db, "--device", "cpu")[0] == 1  # its golden set does not hold
    shutil.rmtree(golden)
    code, out, _ = cli("model", "register", shop, "--db", db, "--by", "Eve", "--json")
    model = json.loads(out)
    assert (code, model["status"], model["status_by"], model["bundle_sha256"]) == (0, "candidate", "Eve", now.sha256)
    assert cli("model", "approve", shop, "--db", db, *said)[0] == 0
    assert cli(*start)[0] == 0
    with open_store(db) as store:
        told = [(each.facts["change"], each.facts["bundle_sha256"]) for each in store.ledger.events(kind="model")]
        assert store.ledger.verify().holds
    assert told == [
        ("registered", was.sha256),
        ("approved", was.sha256),
        ("registered again", now.sha256),
        ("approved", now.sha256),
    ]


def test_a_model_from_before_files_were_hashed_gets_its_hash_when_verified(
    cli: Run, shop: Path, tmp_path: Path
) -> None:
    db, loaded = f"sqlite:///{tmp_path / 'old.db'}", load_bundle(shop)
    with open_store(db) as store:
        store.registry.register_model(loaded.fingerprint, loaded.card, registered_by="Ada")
    code, _, err = cli("model", "approve", shop, "--db", db, "--without-golden", "--note", "pilot")
    assert (code, "inspect-xai model verify BUNDLE --db URL" in err) == (10, True)
    write(tmp_path / "in/a.png", 2, 10)
    start = ["line", "--source", tmp_path / "in", "--bundle", shop, "--db", db, "--device", "cpu", "--settle", 0]
    assert cli(*start)[0] == 0  # as before
    with open_store(db) as store:
        assert store.registry.models()[0].bundle_sha256 is None
    golden_set(cli, shop, tmp_path)
    assert cli("model", "verify", shop, "--db", db, "--device", "cpu", "--by", "Eve")[0] == 0
    with open_store(db) as store:
        [model] = store.registry.models()
    assert (model.fingerprint, model.bundle_sha256, model.status) == (loaded.fingerprint, loaded.sha256, "candidate")
    spots.swap_labels(shop)
    assert cli(*start)[0] == 10


def test_a_golden_set_at_the_start_lets_the_files_be_known(cli: Run, shop: Path, tmp_path: Path) -> None:
    db, loaded = f"sqlite:///{tmp_path / 'old.db'}", load_bundle(shop)
    with open_store(db) as store:
        store.registry.register_model(loaded.fingerprint, loaded.card, registered_by="Ada")
    golden = golden_set(cli, shop, tmp_path)
    start = ["line", "--source", tmp_path, "--bundle", shop, "--db", db, "--device", "cpu", "--in-place", "--settle", 0]
    assert cli(*start, "--golden", golden)[0] == 0
    with open_store(db) as store:
        assert store.registry.models()[0].bundle_sha256 == loaded.sha256


def test_a_damaged_or_foreign_golden_set_is_refused(cli: Run, shop: Path, bundle: Path, tmp_path: Path) -> None:
    golden = golden_set(cli, shop, tmp_path)
    (golden / "pictures/001.png").write_bytes((golden / "pictures/002.png").read_bytes())
    code, _, err = cli("model", "verify", shop, "--device", "cpu")
    assert (code, "pictures/001.png was changed" in err) == (14, True)
    golden_set(cli, shop, tmp_path)  # made anew in its place
    (golden / "maps/001.ixm").write_bytes((golden / "maps/002.ixm").read_bytes())
    code, _, err = cli("model", "verify", shop, "--device", "cpu")
    assert (code, "maps/001.ixm" in err) == (14, True)
    manifest = json.loads((golden / "manifest.json").read_text())
    (golden / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "0" * 64}))
    code, _, err = cli("model", "verify", bundle, "--golden", golden, "--device", "cpu")
    assert (code, "is the golden set of model 000" in err) == (14, True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/precious.png").write_bytes(b"x")
    code, _, err = cli("model", "golden-create", shop, tmp_path / "golden0.png", "--out", tmp_path / "photos")
    assert (code, "is no golden set" in err) == (14, True)
    assert (tmp_path / "photos/precious.png").is_file()


# Ledger and evidence


def test_evidence_checks_without_us(cli: Run, db: str, recorded: Path, tmp_path: Path) -> None:
    out_file = tmp_path / "evidence.zip"
    code, out, err = cli("ledger", "export", "--part", "SN2", "--out", out_file, "--db", db, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert (said["inspections"], said["missing"]) == (1, [])
    number = number_of(db, "SN2")
    with zipfile.ZipFile(out_file) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    listed = dict(reversed(line.split("  ")) for line in files["SHA256SUMS"].decode().splitlines())
    assert listed.keys() == files.keys() - {"SHA256SUMS"}
    assert all(hashlib.sha256(files[name]).hexdigest() == sha256 for name, sha256 in listed.items())

    chain = [json.loads(line) for line in files["chain.jsonl"].splitlines()]
    for before, event in zip([None, *chain], chain, strict=False):
        assert chained(event["previous_hash"], event["body"]) == event["hash"]
        assert before is None or event["previous_hash"] == before["hash"]
    assert chain[-1]["hash"] == said["head"] == cli("ledger", "head", "--db", db)[1].strip()
    vouched: dict[str, str] = {}
    for event in chain:
        vouched |= json.loads(event["body"])["rows"]
    documents = {name for name in files if name.startswith("documents/")}
    assert documents == {
        f"documents/{kind}-{n}.json" for kind, n in (("inspection", number), ("review", 1), ("model", 1))
    }
    for name in documents:
        key = name.removeprefix("documents/").removesuffix(".json").replace("-", "/")
        assert hashlib.sha256(files[name]).hexdigest() == vouched[key]

    result = json.loads(files[f"results/{number}.json"])
    assert (result["ResultId"], result["PartId"], result["ResultState"]) == (str(number), "SN2", 1)
    assert result["ResultContent"]["verdict"]["code"] == "NG"
    assert result["ResultContent"]["reviews"][0]["reviewer"] == "Bob"
    assert set(result["ResultUri"]) <= files.keys()
    with open_store(db) as store:
        stored = store.get(number, maps=True)
    assert result["InternalRecipeId"] == stored.model.fingerprint
    assert hashlib.sha256(files[f"pictures/{number}.png"]).hexdigest() == stored.capture.sha256 == result["MeasId"]
    (tmp_path / "map.npy").write_bytes(files[f"maps/{number}/fused.npy"])
    assert stored.explanation is not None
    assert np.array_equal(np.load(tmp_path / "map.npy"), stored.explanation.fused)
    assert files[f"overlays/{number}.png"].startswith(b"\x89PNG")
    assert json.loads(files["documents/model-1.json"])["card"]["labels"] == ["spot", "free"]

    again = tmp_path / "again.zip"
    cli("ledger", "export", "--part", "SN2", "--out", again, "--db", db)
    assert again.read_bytes() == out_file.read_bytes()


def test_evidence_says_what_is_no_longer_there(cli: Run, db: str, tmp_path: Path) -> None:
    tamper(db, "UPDATE capture SET archived_to = '/gone.png'")
    out_file = tmp_path / "lot.zip"
    code, out, _ = cli("ledger", "export", "--lot", "LOT7", "--since", "2026-01-01", "--out", out_file, "--db", db)
    assert code == 0
    assert out.startswith("2 inspections in ")
    assert out.count("missing the picture of inspection") == 2
    with zipfile.ZipFile(out_file) as archive:
        assert "Not here: the picture of inspection" in archive.read("README.txt").decode()
        assert not any(name.startswith("pictures/") for name in archive.namelist())


def test_the_ledger_is_verified_from_outside(cli: Run, db: str) -> None:
    head = cli("ledger", "head", "--db", db)[1].strip()
    code, out, _ = cli("ledger", "verify", "--db", db, "--head", head)
    assert (code, out.startswith("holds: ")) == (0, True)
    code, out, _ = cli("ledger", "verify", "--db", db, "--head", "0" * 63 + "1")
    assert (code, "forgotten_head" in out) == (1, True)
    tamper(db, "UPDATE inspection SET verdict = 'OK'")
    code, out, _ = cli("ledger", "verify", "--db", db, "--json")
    assert code == 1
    assert {finding["kind"] for finding in json.loads(out)["findings"]} == {"changed"}


# Retention


def test_retention_from_rule_to_deletion(cli: Run, db: str, recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded / "in/_archive", tmp_path / "archive/_archive")
    tamper(
        db,
        f"UPDATE capture SET archived_to = replace(archived_to, '{recorded / 'in'}', '{tmp_path / 'archive'}')",
        "UPDATE capture SET captured_at = '2020-01-01T00:00:00.000000+00:00'",
        "UPDATE inspection SET inspected_at = '2020-01-01T00:00:00.000000+00:00'",
        "UPDATE inspection SET recorded_at = '2020-01-01T00:00:00.000000+00:00'",
    )
    assert "nothing is ever deleted" in cli("retention", "set", "--db", db)[1]
    for kind in ("picture", "map"):
        code, out, err = cli("retention", "set", "--kind", kind, "--days", 30, "--db", db, "--by", "Ada")
        assert code == 0, err
    assert out.count("for 30 days") == 2
    code, out, _ = cli("retention", "hold", "--lot", "LOT8", "--reason", "complaint 4711", "--db", db)
    assert "hold 1 stands" in out
    code, out, _ = cli("retention", "plan", "--db", db, "--json")
    plan = json.loads(out)
    assert (len(plan["pictures"]), len(plan["inspection_ids"]), plan["held"]) == (2, 0, 1)

    code, out, _ = cli("retention", "apply", "--db", db)
    assert "dry run: nothing was deleted" in out
    pictures = sorted((tmp_path / "archive").rglob("*.png"))
    assert len(pictures) == 3
    code, _, err = cli("retention", "apply", "--db", db, "--yes")
    assert (code, "lies in none of the archive folders" in err) == (60, True)
    assert sorted((tmp_path / "archive").rglob("*.png")) == pictures
    code, out, err = cli("retention", "apply", "--db", db, "--yes", "--archive", tmp_path / "archive")
    assert code == 0, err
    assert [path.name.split("_")[0] for path in (tmp_path / "archive").rglob("*.png")] == ["SN2"]
    with open_store(db) as store:
        stored = store.get(number_of(db, "SN1"), maps=True)
        assert stored.explanation is not None
        assert (stored.explanation.maps_deleted, stored.explanation.fused) == (True, None)
        assert stored.verdict.code is VerdictCode.UNSURE  # the numbers stay
        held = store.get(number_of(db, "SN2"), maps=True)
        assert held.explanation is not None
        assert held.explanation.fused is not None
        assert [each.kind for each in store.ledger.events()][-2:] == ["retention", "retention"]
    number = number_of(db, "SN1")
    assert "nowhere: retention deleted it on 20" in cli("show", number, "--db", db)[1]
    code, out, _ = cli("ledger", "export", "--part", "SN1", "--out", tmp_path / "gone.zip", "--db", db)
    assert (code, f"missing the picture of inspection {number}: retention deleted it on" in out) == (0, True)
    assert "complaint 4711" in cli("retention", "release", "--db", db)[1]
    code, out, _ = cli("retention", "release", 1, "--db", db)
    assert (code, out) == (0, "no holds stand\n")
    with open_store(db) as store:
        assert Retention(store.database).holds() == []


def test_pictures_at_a_url_are_deleted_below_the_url_that_is_named(cli: Run, tmp_path: Path) -> None:
    files, db = fsspec.filesystem("memory"), f"sqlite:///{tmp_path / 'line.db'}"
    with open_store(db) as store:
        stored.prepared(store)
        for number, place in enumerate(("/plant/in/a.png", "/plant/in/b.png", "/plant/inner/c.png")):
            picture = b"picture %d" % number
            files.pipe_file(place, picture)
            files.pipe_file(place.replace(".png", ".json"), b"sidecar")
            sha256 = hashlib.sha256(picture).hexdigest()
            store.record([stored.of_part(stored.inspection(number), sha256, archived_to=f"memory:/{place}")])
    assert cli("retention", "set", "--kind", "picture", "--days", "0", "--db", db)[0] == 0
    apply = ["retention", "apply", "--yes", "--db", db]
    code, _, err = cli(*apply, "--archive", "memory://plant/in")
    assert code != 0
    assert "memory://plant/inner/c.png lies in none of the archive folders" in err
    assert len(files.find("/plant")) == 6
    code, _, err = cli(*apply, "--archive", "memory://plant/in/", "--archive", "memory://plant/inner")
    assert (code, files.find("/plant")) == (0, []), err


# Questions


def test_find_trace_and_stats(cli: Run, db: str, bundle: Path) -> None:
    code, out, _ = cli("find", "--lot", "LOT7", "--db", db, "--json")
    assert (code, [row["serial"] for row in json.loads(out)]) == (0, ["SN1", "SN0"])
    near = ["find", "--region-near", 11, 23, 6, "--verdict", "NG", "--db", db]
    assert "SN2  lot LOT8  L1/S3  spots 1 (not approved)  reviewed: NG" in cli(*near)[1]
    assert cli("find", "--region-near", 31, 0, 1, "--db", db)[1] == "0 found\n"
    assert cli("find", "--since", "2126-01-01", "--db", db)[1] == "0 found\n"
    [captured] = {row["captured_at"][:10] for row in json.loads(out)}
    day = ["--since", captured, "--until", f"{captured}T23:59:59", "--db", db]
    assert cli("find", *day)[1].endswith("3 found\n"), "by when the pictures were taken"
    assert f"captured {captured} " in cli("find", *day)[1]
    assert cli("find", *day, "--by-inspection-time")[1] == "0 found\n"
    assert cli("stats", "--by", "line", *day)[1].split()[-9:-6] == ["3", "1", "1"]
    assert len(cli("stats", "--by", "line", *day, "--by-inspection-time")[1].splitlines()) == 1

    code, out, _ = cli("trace", "SN2", "--db", db, "--json")
    [step] = json.loads(out)
    assert (step["verdict"], step["lot"], step["model_status"]) == ("NG", "LOT8", "candidate")
    assert step["model_file_sha256"] == hashlib.sha256((bundle / "model.onnx").read_bytes()).hexdigest()
    assert step["reviews"][0].startswith("Bob, ")
    for option, key in (("--map", "map_sha256"), ("--picture", "picture_sha256")):
        back = json.loads(cli("find", option, step[key], "--db", db, "--json")[1])
        assert [row["serial"] for row in back] == ["SN2"]
    assert len(json.loads(cli("find", "--model", step["fingerprint"][:10], "--db", db, "--json")[1])) == 3
    for file in (step["model_file_sha256"], step["model_file_sha256"][:12]):
        back = json.loads(cli("find", "--model-file", file, "--db", db, "--json")[1])
        assert {row["serial"] for row in back} == {"SN0", "SN1", "SN2"}
    assert cli("find", "--model-file", "0" * 64, "--db", db)[1] == "0 found\n"
    assert step["known_from"] == "path"
    assert f"  map_sha256         {step['map_sha256']}" in cli("trace", "SN2", "--db", db)[1]

    code, out, _ = cli("stats", "--by", "lot,verdict", "--db", db, "--json")
    assert [(row["lot"], row["verdict"], row["inspections"], row["reviewed"]) for row in json.loads(out)] == [
        ("LOT7", "OK", 1, 0),
        ("LOT7", "UNSURE", 1, 0),
        ("LOT8", "NG", 1, 1),
    ]
    assert "LOT8  1            0   1" in cli("stats", "--by", "lot", "--db", db)[1]
    for zone in ("Pacific/Kiritimati", "America/Adak"):  # the ends of the calendar's zones
        ends = ("--since", "1970-01-01", "--until", "2999-12-31", "--settings", shifted(db, zone))
        assert cli("stats", "--by", "lot", *ends)[0] == 0


def shifted(db: str, zone: str) -> Path:
    """Settings with another zone."""
    path = Path("zone.toml")
    path.write_text(f'db = "{db}"\n[report]\ntime_zone = "{zone}"\n')
    return path


# The line's part of it


def test_the_same_bytes_under_another_part_are_told(
    cli: Run, bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    db = f"sqlite:///{tmp_path / 'new.db'}"
    write(tmp_path / "in" / NAME.format(0, 7), 0)
    start = ["line", "--source", tmp_path / "in", "--bundle", bundle, "--db", db, "--device", "cpu", "--settle", 0]
    assert cli(*start)[0] == 0
    write(tmp_path / "in" / NAME.format(1, 7), 0)  # the camera froze
    code, out, err = cli(*start)
    assert code == 0, err
    assert "1 have the very bytes of a picture recorded for another part" in out
    assert "were recorded for serial SN0" in caplog.text
    write(tmp_path / "in" / NAME.format(2, 7), 5)
    write(tmp_path / "in" / NAME.format(3, 7), 5)  # both in one chunk
    assert json.loads(cli(*start, "--json")[1])["under_another_part"] == 1
    code, out, err = cli("trace", "SN1", "--db", db)
    assert (code, out) == (1, "")
    told = f"not inspected again: '{NAME.format(1, 7)}' holds the very picture of inspection 1 (event 4 of"
    assert told in err
    assert "no inspection of its own" not in cli("trace", "SN0", "--db", db)[2]
    assert "no inspection of its own" not in cli("trace", "SN1", "--lot", "LOT8", "--db", db)[2]
    write(tmp_path / "in" / NAME.format(1, 7), 0)  # as after a crash between the ledger and the move
    assert json.loads(cli(*start, "--json")[1])["under_another_part"] == 1
    with open_store(db) as store:
        assert store.find(serial="SN1") == []
        [event] = store.ledger.events(kind="same_bytes", subject="SN1")
        assert event.facts == {
            "inspection": 1,
            "file_name": NAME.format(1, 7),
            "serial": "SN1",
            "product": "",
            "lot": "LOT7",
        }
        assert store.ledger.verify().holds


def test_maps_lie_where_the_settings_say(cli: Run, bundle: Path, tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path / 'new.db'}"
    (tmp_path / "s.toml").write_text(f'db = "{db}"\nblob_store = "{tmp_path / "maps"}"\nbundle = "{bundle}"\n')
    write(tmp_path / "in/bad.png", 0, 10)
    common = ["--settings", tmp_path / "s.toml"]
    assert cli("line", "--source", tmp_path / "in", "--device", "cpu", "--settle", 0, *common)[0] == 0
    assert len(list((tmp_path / "maps").rglob("*.ixm"))) == 3  # the fused map and two blocks
    code, out, err = cli("replay", 1, "--device", "cpu", *common)
    assert (code, "holds" in out) == (0, True), err
    code, _, err = cli("replay", 1, "--device", "cpu", "--db", db, "--bundle", bundle)
    assert (code, "blob_store" in err) == (50, True)


def test_a_policy_is_registered_by_whoever_opens_the_line(recorded: Path, bundle: Path, db: str) -> None:
    with open_store(db) as store:
        [registered] = store.ledger.events(kind="model")
        [policy] = store.ledger.events(kind="policy")
        assert (registered.facts["by"], policy.facts["by"], policy.subject) == ("Ada", "Ada", "1")
        assert _policy_of(store)["ok_share"] == ExplainRule().ok_share
        assert store.ledger.verify().holds


def _policy_of(store: Store) -> dict[str, object]:
    from inspect_xai.storage.ledger_documents import documents

    with store.database.read() as connection:
        return dict(documents(connection, "policy", [1])[1]["content"])
