"""Settings: which place wins, and what is refused."""

import tomllib
from pathlib import Path

import pytest

from inspect_xai.errors import SettingsError
from inspect_xai.logs import warn_renamed
from inspect_xai.settings import RENAMED, LineSettings, ReportSettings, Settings, load_settings

TOML = """
db = "sqlite:///file.db"
device = "cpu"
[line]
claim_size = 5
ok_share = 0.5
[report]
time_zone = "Europe/Berlin"
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "line.toml"
    path.write_text(TOML)
    return path


def test_defaults_stand_without_anything() -> None:
    settings = load_settings()
    assert (settings.db, settings.device, settings.bundle) == ("sqlite:///inspections.db", "auto", None)
    assert (settings.line.ok_share, settings.line.settle_s, settings.line.in_place) == (0.05, 1.0, False)


def test_file_then_variable_then_flag(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_XAI_DB", "sqlite:///variable.db")
    monkeypatch.setenv("INSPECT_XAI_LINE__CLAIM_SIZE", "6")
    settings = load_settings(toml, device=None, line={"claim_size": 7, "ok_share": None}, report={"out": None})
    assert settings.device == "cpu"  # the file; the flag was not given
    assert settings.db == "sqlite:///variable.db"
    assert settings.line.claim_size == 7
    assert settings.line.ok_share == 0.5  # the rest of a section survives a flag for one of its keys
    assert settings.report.time_zone == "Europe/Berlin"


def test_the_file_can_be_named_by_a_variable(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_XAI_SETTINGS", str(toml))
    assert load_settings().line.claim_size == 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("color = 1", "color is no setting"),
        ("[line]\nchunks = 3", "line.chunks is no setting"),
        ("[line]\nclaim_size = 0", "line.claim_size is 0"),
        ("[line]\nok_share = 1.5", "line.ok_share is 1.5"),
        ("[report]\ntime_zone = 'Mars'", "no time zone is called 'Mars'"),
        ("[report]\ntime_zone = '../etc'", "no time zone"),
        ("[line", "is no TOML"),
        ("line = 3", "line is 3"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "line.toml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=words):
        load_settings(path)


def test_unknown_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_XAI_DATABASE", "x")
    with pytest.raises(SettingsError, match="INSPECT_XAI_DATABASE is set"):
        load_settings()
    monkeypatch.delenv("INSPECT_XAI_DATABASE")
    monkeypatch.setenv("INSPECT_XAI_LINE__CLAIM_SIZES", "3")
    with pytest.raises(SettingsError, match=r"line\.claim_sizes is no setting"):
        load_settings()
    monkeypatch.delenv("INSPECT_XAI_LINE__CLAIM_SIZES")
    monkeypatch.setenv("INSPECT_XAI_LINE", "claim_size=3")
    with pytest.raises(SettingsError):
        load_settings()


OLD_DOCUMENT = "bucket = 4\n[line]\nchunk = 5\nkeep = true\nhonour_exif = true\n[report]\nwindow_ms = 800\n"


def test_settings_answer_to_their_old_names_and_warn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    warn_renamed.cache_clear()
    path = tmp_path / "line.toml"
    path.write_text(OLD_DOCUMENT)
    for settings in (load_settings(path), load_settings(path)):
        assert (settings.batch_size, settings.line.claim_size, settings.report.takt_ms) == (4, 5, 800)
        assert settings.line.in_place
        assert settings.line.limits.honour_exif
    assert len(caplog.records) == len(RENAMED)
    assert "line.keep is now called line.in_place; the old name goes in 0.3" in caplog.text

    for name, value in {"BUCKET": "6", "LINE__KEEP": "0", "LINE__CHUNK": "7", "REPORT": '{"window_ms": 9}'}.items():
        monkeypatch.setenv(f"INSPECT_XAI_{name}", value)
    settings = load_settings(path, line={"claim_size": 8})
    assert (settings.batch_size, settings.line.claim_size, settings.report.takt_ms) == (6, 8, 9)
    assert (settings.line.in_place, settings.line.honor_exif) == (False, True)
    assert "INSPECT_XAI_LINE__KEEP is now called INSPECT_XAI_LINE__IN_PLACE" in caplog.text


@pytest.mark.parametrize(
    ("content", "variables", "words"),
    [
        ("[line]\nkeep = true\nin_place = true", {}, "line.keep and line.in_place are one setting"),
        ("", {"LINE__KEEP": "1", "LINE__IN_PLACE": "1"}, "INSPECT_XAI_LINE__KEEP and INSPECT_XAI_LINE__IN_PLACE are"),
        ("", {"LINE__CHUNK": "0"}, r"line\.claim_size is '0'.*set by the variable INSPECT_XAI_LINE__CHUNK"),
    ],
)
def test_a_setting_under_both_names_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, variables: dict[str, str], words: str
) -> None:
    (tmp_path / "line.toml").write_text(content)
    for name, value in variables.items():
        monkeypatch.setenv(f"INSPECT_XAI_{name}", value)
    with pytest.raises(SettingsError, match=words):
        load_settings(tmp_path / "line.toml")


def test_a_missing_file_and_binary_rubbish_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no settings file"):
        load_settings(tmp_path / "absent.toml")
    (tmp_path / "rubbish.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError):
        load_settings(tmp_path / "rubbish.toml")


def test_the_example_in_the_guide_names_every_setting(tmp_path: Path) -> None:
    guide = (Path(__file__).parent.parent / "docs" / "guides" / "line.md").read_text(encoding="utf-8")
    example = guide.split("```toml\n")[1].split("```")[0]
    (tmp_path / "line.toml").write_text(example)
    settings = load_settings(tmp_path / "line.toml")
    assert settings.line.lease_s == 600
    named = tomllib.loads(example)
    assert set(named) == set(Settings.model_fields) - {"serve"}  # the review desk is not part of the line
    # the policy file goes in the place of two of the others: it has a section of its own
    assert set(named["line"]) == set(LineSettings.model_fields) - {"policy"}
    assert set(named["report"]) == set(ReportSettings.model_fields)


@pytest.mark.parametrize(
    "section", ["webhook_secret = ['WhSec']", "smtp_password = 7", "webhook = ['https://u:WhSec@h']"]
)
def test_a_secret_of_the_wrong_kind_is_not_told(tmp_path: Path, section: str) -> None:
    (tmp_path / "line.toml").write_text(f"[alert]\n{section}\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(tmp_path / "line.toml")
    assert "WhSec" not in str(caught.value)
    assert section.split()[0] in str(caught.value)


@pytest.mark.parametrize(
    ("content", "variable", "flags", "words"),
    [
        (
            "[report]\noutt = 'x'",
            "",
            {},
            r"report\.outt is no setting; did you mean report\.out\? \(set in .*line\.toml\)",
        ),
        ("", "REPORT__OUTT=x", {}, r"did you mean report\.out\? \(set by the variable INSPECT_XAI_REPORT__OUTT\)"),
        ("", 'REPORT={"outt": "x"}', {}, r"report\.outt .*\(set by the variable INSPECT_XAI_REPORT\)"),
        (
            "",
            "LINE__CLAIM_SIZE=0",
            {},
            r"line\.claim_size is '0': .*\(set by the variable INSPECT_XAI_LINE__CLAIM_SIZE\)",
        ),
        (
            "[line]\nclaim_size = 3",
            "",
            {"line": {"claim_size": 0}},
            r"line\.claim_size is 0: .*\(set by an option of the command\)",
        ),
        ("[line]\nclaim_size = 0", "LINE__IN_PLACE=1", {}, r"line\.claim_size is 0: .*\(set in .*line\.toml\)"),
        ("devise = 'cpu'", "", {}, r"devise is no setting; did you mean device\?"),
        ("weather = 1", "", {}, r"weather is no setting \(set in"),
        ("", "DEVISE=cpu", {}, r"INSPECT_XAI_DEVISE is set, and there is no setting devise; did you mean device\?"),
        ("[report]\ndesk_url = 'https://ada:s3cret@desk'", "", {}, r"desk_url: .*no http\(s\) address without user"),
        ("[report]\ndesk_url = 'desk.plant.example'", "", {}, r"no http\(s\) address"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_was_meant(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    variable: str,
    flags: dict[str, dict[str, int]],
    words: str,
) -> None:
    (tmp_path / "line.toml").write_text(content)
    if variable:
        name, _, value = variable.partition("=")
        monkeypatch.setenv(f"INSPECT_XAI_{name}", value)
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings(tmp_path / "line.toml", **flags)
    assert "s3cret" not in str(caught.value)


def test_the_desks_address_keeps_its_path_and_no_slash_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "line.toml").write_text("[report]\ndesk_url = 'https://desk.plant.example/inspect/'")
    assert load_settings(tmp_path / "line.toml").report.desk_url == "https://desk.plant.example/inspect"
