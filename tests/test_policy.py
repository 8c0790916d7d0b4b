"""One file says what is explained, how and by which thresholds; the line keeps to it and the record holds it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from inspect_xai.errors import SettingsError, StoreError
from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.line.line import Line, drain
from inspect_xai.line.stages import IntakeSpec
from inspect_xai.line.summary import LineSummary
from inspect_xai.policy import DefaultPolicy, ExplainRule, Policy, policy_from, read_policy
from inspect_xai.records import Decision, Method, Profile, Review, VerdictCode
from inspect_xai.storage.reviews import overturned_labels
from inspect_xai.storage.store import open_store
from inspect_xai.verify.replay import ReplayOutcome, archived_picture
from tests.conftest import Run
from tests.support import spots
from tests.support.line import replay, rows, write

PATTERN = "{product}/{station}/{serial}_{captured_at}"
POLICY = """
version = "7"
[explain]
verdicts = ["NG"]
ok_share = 0.0
[product.M12]
method = "grad-cam"
[product.M16]
verdicts = ["NG", "UNSURE", "OK"]
profile = "quick"
max_passes = 16
max_seconds = 30.0
[[threshold]]
station = "S2"
unsure_margin = 0.0
[[threshold]]
product = "M12"
station = "S2"
labels = { spot = 0.9999999 }
[[region]]
station = "S1"
view = "top"
boxes = [[0, 0, 16, 32]]
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spots.spot_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    (tmp_path / "policy.toml").write_text(POLICY)
    return read_policy(tmp_path / "policy.toml")


def run(folder: Path, bundle: Path, db: str, policy: Policy) -> LineSummary:
    with (
        Line(bundle, db, device="cpu", policy=policy, intake=IntakeSpec(PATTERN)) as line,
        FolderSource(folder, settle_s=0) as source,
    ):
        return drain(line, source)


def test_the_default_policy_is_what_the_line_does_without_one() -> None:
    default = policy_from({"version": "1"})
    assert default.explain.verdicts == (VerdictCode.NG, VerdictCode.UNSURE)
    assert (default.version, default.explain) == (DefaultPolicy("1").version, DefaultPolicy("1").explain)
    assert default.verdict_of(spots.CARD, product="any", station="any") == spots.CARD.verdict


def test_products_take_over_what_they_do_not_say_and_thresholds_lie_over_the_cards(policy: Policy) -> None:
    m12, m16 = policy.rule_of("M12"), policy.rule_of("M16")
    assert (m12.verdicts, m12.ok_share, m12.method) == ((VerdictCode.NG,), 0.0, Method.GRAD_CAM)
    assert (m16.profile, m16.max_passes, m16.method) == (Profile.QUICK, 16, None)
    assert policy.rule_of("another") == policy.explain
    at_s1 = policy.verdict_of(spots.CARD, product="M12", station="S1")
    at_s2 = policy.verdict_of(spots.CARD, product="M12", station="S2")
    assert at_s1 == spots.CARD.verdict
    assert (at_s2.thresholds, at_s2.unsure_margin, at_s2.ng_threshold) == ({"spot": 0.9999999}, 0.0, 0.5)
    assert policy_from(policy.content | {"version": "7"}) == policy


def test_the_line_keeps_to_it_and_a_replay_knows_it(policy: Policy, bundle: Path, tmp_path: Path) -> None:
    # 5 px score between 0.1 and 0.5: UNSURE by the card's margin, OK where the station has none.
    for path in ("M12/S1/a", "M12/S2/b", "M16/S1/c"):
        write(tmp_path / f"in/{path}_20261122T061500Z.png", ord(path[-1]), 5)
    write(tmp_path / "in/M12/S1/d_20261122T061500Z.png", 4, 10)
    write(tmp_path / "in/M16/S1/e_20261122T061500Z.png", 5, 0)
    db = f"sqlite:///{tmp_path / 'line.db'}"
    run(tmp_path / "in", bundle, db, policy)
    found = {row.serial: row for row in rows(db)}
    said = {name: (row.verdict, row.explained_because, row.policy_version) for name, row in sorted(found.items())}
    assert said == {
        "a": ("UNSURE", "", "7"),
        "b": ("OK", "", "7"),
        "c": ("UNSURE", "unsure", "7"),
        "d": ("NG", "ng", "7"),
        "e": ("OK", "ok", "7"),
    }
    assert found["b"].threshold == 0.9999999
    with open_store(db) as store:
        stored = {name: store.get(row.inspection_id, maps=True) for name, row in found.items()}
    assert stored["d"].explanation is not None
    assert stored["d"].explanation.settings.method is Method.GRAD_CAM
    assert stored["c"].explanation is not None
    settings = stored["c"].explanation.settings
    assert (settings.profile, settings.max_passes, settings.budget_s) == (Profile.QUICK, 16, 30.0)
    for name in ("b", "d"):
        answer = replay(stored[name], archived_picture(stored[name]), bundle)
        assert answer.outcome is ReplayOutcome.HOLDS, answer


def test_the_energy_inside_the_region_of_a_stations_view_is_kept_with_the_explanation(
    bundle: Path, tmp_path: Path
) -> None:
    # The white square lies in rows 6 to 15 and columns 18 to 27 of the 32 x 32 picture.
    boxes = {"top": [[0, 16, 32, 16]], "side": [[0, 0, 32, 16]], "both": [[0, 0, 32, 16], [0, 16, 32, 16]]}
    policy = policy_from(
        {
            "version": "1",
            "region": [{"station": "S1", "view": view, "boxes": given} for view, given in boxes.items()]
            + [{"station": "S1", "view": "off", "boxes": [[400, 0, 10, 10]]}],
        }
    )
    for number, (station, view) in enumerate(
        [("S1", "top"), ("S1", "side"), ("S1", "both"), ("S1", "off"), ("S2", "top")]
    ):
        write(tmp_path / f"in/{station}/{view}/{number}.png", number, 10)
    db = f"sqlite:///{tmp_path / 'line.db'}"
    intake = IntakeSpec("{station}/{view}/{serial}")
    with (
        Line(bundle, db, device="cpu", policy=policy, intake=intake) as line,
        FolderSource(tmp_path / "in", settle_s=0) as source,
    ):
        drain(line, source)
    with open_store(db) as store:
        stored = {f"{row.station}/{row.view}": store.get(row.inspection_id, maps=True) for row in rows(db)}
    found = {place: each.explanation for place, each in stored.items()}
    energy = {
        place: each.faithfulness["energy_in_roi"]
        for place, each in found.items()
        if each and "energy_in_roi" in each.faithfulness
    }
    # nothing of S1/off lies on the picture, and nothing is said of S2
    assert set(energy) == {"S1/top", "S1/side", "S1/both"}
    top = found["S1/top"]
    assert top is not None
    assert top.fused is not None
    assert energy["S1/top"] == pytest.approx(top.fused[:, 16:].sum() / top.fused.sum(), abs=1e-4)
    assert energy["S1/side"] == pytest.approx(1 - energy["S1/top"], abs=1e-4)
    assert energy["S1/top"] > 0.8
    assert energy["S1/both"] == pytest.approx(1)


def test_labels_that_people_overturned_are_explained_even_when_ok(bundle: Path, tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path / 'line.db'}"
    policy = policy_from({"version": "1", "explain": {"ok_share": 0.0, "overturned_days": 7}})
    named = policy_from({"version": "2", "explain": {"ok_share": 0.0, "labels": ["spot"]}})

    def because(seed: int, given: Policy) -> str:
        write(tmp_path / f"in/M1/S1/{seed}_20261122T061500Z.png", seed)
        run(tmp_path / "in", bundle, db, given)
        (row,) = (row for row in rows(db) if row.serial == str(seed))
        assert row.verdict == "OK"
        return row.explained_because

    assert because(1, policy) == ""
    with open_store(db) as store:
        (number,) = store.inspection_ids()
        answer = Review("inspector 7", Decision.OVERTURN, VerdictCode.NG, true_label="spot")
        given = store.review(number, answer)
        assert overturned_labels(store.database, datetime.now(UTC) - timedelta(days=7)) == {"spot"}
        assert overturned_labels(store.database, datetime.now(UTC) + timedelta(days=1)) == frozenset()
    assert because(2, policy) == "overturned"
    with open_store(db) as store:
        withdrawn = replace(answer, decision=Decision.CONFIRM, verdict=VerdictCode.OK, true_label="")
        store.review(number, withdrawn, supersedes=given.review_id)
    assert because(3, policy) == ""
    assert because(4, named) == "label"


def test_the_sample_goes_before_labels_so_that_it_stays_a_random_one() -> None:
    rule = ExplainRule(labels=("spot",), ok_share=0.5)
    assert rule.why(VerdictCode.OK, "0" * 64, label="spot") == "sample"
    assert rule.why(VerdictCode.OK, "f" * 64, label="spot") == "label"
    assert rule.why(VerdictCode.OK, "f" * 64, label="dent", overturned={"dent"}) == "overturned"
    assert rule.why(VerdictCode.NG, "f" * 64, label="spot") == "ng"
    kept = policy_from({"version": "1"}).content["explain"]
    assert not {"labels", "overturned_days", "faithfulness"} & set(kept)  # as versions were kept before these came


def test_a_policy_changed_under_its_version_is_refused(policy: Policy, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    db = f"sqlite:///{tmp_path / 'line.db'}"
    run(tmp_path / "in", bundle, db, policy)
    run(tmp_path / "in", bundle, db, policy)  # as it was
    changed = policy_from(policy.content | {"version": "7", "region": []})
    with pytest.raises(StoreError, match="'7' is kept with another content"):
        run(tmp_path / "in", bundle, db, changed)


def test_thresholds_of_labels_the_model_lacks_are_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    misspelt = policy_from({"version": "1", "threshold": [{"labels": {"sopt": 0.5}}]})
    with pytest.raises(SettingsError, match="names the labels sopt"):
        run(tmp_path / "in", bundle, f"sqlite:///{tmp_path / 'line.db'}", misspelt)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "version"),
        ('version = ""', "version"),
        ('version = "1"\nlime = 1', "lime"),
        ('version = "1"\nexplain = 3', "explain"),
        ('version = "1"\n[explain]\nok_share = 2', "ok_share: 2.0 is no share"),
        ('version = "1"\n[explain]\nmethod = "magic"', "explain.method"),
        ('version = "1"\n[product.A]\nmax_seconds = 0', "product.A.max_seconds"),
        ('version = "1"\n[product.A]\nmax_passes = 3', "product.A.max_passes"),
        ('version = "1"\n[product]\nA = 3', "product.A"),
        ('version = "1"\n[[threshold]]\nlabels = { a = 1.5 }', "threshold.0.a: 1.5 is no probability"),
        ('version = "1"\n[[region]]\nstation = "S"\nview = "v"\nboxes = [[0, 0, 0, 4]]', "region.0"),
        ("version = ", "no TOML"),
    ],
)
def test_every_mistake_is_named(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=said.replace(".", r"\.")):
        read_policy(file)


def test_a_policy_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_policy(tmp_path / "none.toml")


def test_the_command_takes_it_from_the_settings_and_suffers_no_second_answer(
    cli: Run, policy: Policy, bundle: Path, tmp_path: Path
) -> None:
    write(tmp_path / "in/a.png", 1, 10)
    settings = tmp_path / "line.toml"
    settings.write_text(
        f'bundle = "{bundle}"\ndb = "sqlite:///{tmp_path / "line.db"}"\ndevice = "cpu"\n'
        f'[line]\nsource = "{tmp_path / "in"}"\nsettle_s = 0\npolicy = "{tmp_path / "policy.toml"}"\n'
    )
    code, _, err = cli("line", "--settings", settings, "--ok-share", 0.5)
    assert code == 60
    assert "ok_share beside the policy" in err
    assert cli("line", "--settings", settings)[0] == 0
    assert [row.policy_version for row in rows(f"sqlite:///{tmp_path / 'line.db'}")] == ["7"]
