"""One place decides what a picture's pixels are: every command, the desk and the reports see what the line saw."""

import inspect
import json
import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.support import desk_inspections as making
from inspect_xai.audit import dataset, sanity
from inspect_xai.audit.dataset import LabelledPicture, read_mask, read_truth
from inspect_xai.audit.rows import read_rows
from inspect_xai.audit.run import AuditSettings, open_audit
from inspect_xai.errors import PictureError, SettingsError
from inspect_xai.explain.explainer import Explainer
from inspect_xai.intake import archive, decode, sources
from inspect_xai.intake.decode import decode_picture
from inspect_xai.maths import tiles
from inspect_xai.model.card import read_card
from inspect_xai.policy import DefaultPolicy
from inspect_xai.records import PictureLimits
from inspect_xai.reports.thumbnails import archived, pictures_of
from inspect_xai.settings import ServeSettings
from inspect_xai.storage.store import open_store
from inspect_xai.verify import golden
from inspect_xai.verify.evidence_export import export_evidence
from inspect_xai.verify.replay import ReplayOutcome
from inspect_xai.web.rendering import Archive, MissingPictureError
from tests.conftest import Run
from tests.support import hostile, spots
from tests.support.desk import serving
from tests.support.line import replay, run

PACKAGE = Path(decode.__file__).parent.parent
TWELVE_BIT = PictureLimits(white_level=4_095)
TURNED = PictureLimits(honour_exif=True)
EIGHT_BIT = spots.part(3, spot_px=10)  # NG, as tests.support.spots says


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spots.spot_bundle(tmp_path_factory.mktemp("bundle"))


def twelve_bit(path: Path) -> Path:
    """Write `EIGHT_BIT` as a 12-bit camera does: 16-bit values up to 4,095, black to whoever takes 65,535 for white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(hostile.encoded(np.rint(EIGHT_BIT * (4_095 / 255)).astype(np.uint16)))
    return path


def turned(path: Path, *, background: int = 128) -> Path:
    """Write a JPEG of 40 rows and 60 columns that its EXIF orientation shows upright as 60 rows and 40 columns."""
    exif = Image.Exif()
    exif[0x112] = 6
    pixels = np.full((40, 60, 3), background, np.uint8)
    pixels[8:20, 30:42] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=97, exif=exif)
    return path


@pytest.fixture(params=["file", "variable"])
def told(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say once, in the settings, that white is 4,095."""
    if request.param == "variable":
        monkeypatch.setenv("INSPECT_XAI_LINE__WHITE_LEVEL", "4095")
        return
    (tmp_path / "line.toml").write_text("[line]\nwhite_level = 4095\n")
    monkeypatch.setenv("INSPECT_XAI_SETTINGS", str(tmp_path / "line.toml"))


@pytest.mark.parametrize(
    "function",
    [
        decode.decode_picture,
        sources.read_picture,
        archive.read_archived,
        archive.read_archived_bytes,
        dataset.read_truth,
        dataset.read_mask,
        golden.make_golden,
        sanity.check_sanity,
        archive.ArchiveSource,
        AuditSettings,
    ],
)
def test_nothing_is_decoded_without_limits(function: object) -> None:
    assert inspect.signature(function).parameters["limits"].default is inspect.Parameter.empty  # type: ignore[arg-type]


def test_only_settings_and_records_make_limits_and_only_the_decoders_decode() -> None:
    """A new command that makes up its own limits, or its own decoder, is found here."""
    texts = {module.relative_to(PACKAGE).as_posix(): module.read_text("utf-8") for module in PACKAGE.rglob("*.py")}
    makers = {place for place, text in texts.items() if re.search(r"\bPictureLimits\(", text)}
    decoders = {place for place, text in texts.items() if re.search(r"\bcv2\.im(decode|read)", text)}
    assert makers <= {
        "settings.py",
        "audit/run.py",  # of audits before the limits were recorded
        "explain/explainer.py",  # in Python, where none are given
        "audit/dataset.py",  # full white of a mask
        "verify/file_check.py",  # reads bytes to hash them, and decodes none
    }
    # Sanity reads back the JPEG that it has just made of pixels.
    assert decoders <= {"intake/decode.py", "intake/png.py", "audit/sanity.py"}


def test_limits_are_read_from_a_record_and_are_the_defaults_where_none_were_recorded() -> None:
    assert PictureLimits.recorded({"limits": {"max_pixels": 9, "white_level": 4_095, "honour_exif": True}}) == (
        PictureLimits(max_pixels=9, white_level=4_095, honour_exif=True)
    )
    assert PictureLimits.recorded({"device": "cpu"}) == PictureLimits(100_000_000, 65_535, honour_exif=False)


@pytest.mark.usefixtures("told")
def test_explain_sees_what_the_line_sees(cli: Run, bundle: Path, tmp_path: Path) -> None:
    twelve_bit(tmp_path / "twelve.png")
    (tmp_path / "eight.png").write_bytes(hostile.encoded(EIGHT_BIT))
    given = ["explain", bundle, tmp_path / "twelve.png", tmp_path / "eight.png", "--device", "cpu"]
    code, out, err = cli(*given, "--out", tmp_path / "maps", "--json")
    assert code == 0, err
    twelve, eight = json.loads(out)
    assert (twelve["verdict"]["code"], twelve["verdict"]["score"]) == ("NG", eight["verdict"]["score"])
    overlays = [cv2.imread(str(tmp_path / "maps" / name / "overlay.png")) for name in ("twelve", "eight")]
    assert np.array_equal(*overlays)
    manifest = json.loads((tmp_path / "maps" / "twelve" / "manifest.json").read_text())
    assert manifest["picture"]["limits"] == {"max_pixels": 100_000_000, "white_level": 4_095, "honour_exif": False}


@pytest.mark.parametrize("told", ["variable"], indirect=True)
@pytest.mark.usefixtures("told")
def test_an_audit_sees_what_the_line_sees_and_writes_down_how(cli: Run, bundle: Path, tmp_path: Path) -> None:
    twelve_bit(tmp_path / "parts" / "p.png")
    (tmp_path / "parts" / "parts.csv").write_text("image,label,boxes\np.png,spot,6 18 10 10\n")
    given = ["audit", bundle, "--manifest", tmp_path / "parts" / "parts.csv", "--methods", "grad-cam", "--steps", 2]
    code, _, err = cli(*given, "--sanity", 1, "--threads", 1, "--device", "cpu", "--out", tmp_path / "audit")
    assert code in (0, 1), err  # one picture is undecided; the answer is not asked here
    [row] = read_rows(tmp_path / "audit" / "rows")
    assert (row.error, row.verdict, row.predicted) == ("", "NG", "spot")
    assert open_audit(tmp_path / "audit").limits == TWELVE_BIT
    assert json.loads((tmp_path / "audit" / "sanity.json").read_text())["of"][-2]["white_level"] == 4_095
    assert "white_level 4095" in (tmp_path / "audit" / "report.html").read_text()


@pytest.mark.usefixtures("told")
def test_a_golden_set_sees_what_the_line_sees(
    cli: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    golden_set = tmp_path / "golden"
    code, _, err = cli(
        "model", "golden-create", bundle, twelve_bit(tmp_path / "p.png"), "--out", golden_set, "--device", "cpu"
    )
    assert code == 0, err
    made = json.loads((golden_set / "manifest.json").read_text())
    assert (made["pictures"][0]["verdict"], made["limits"]["white_level"]) == ("NG", 4_095)
    verify = ["model", "verify", bundle, "--golden", golden_set, "--device", "cpu"]
    caplog.clear()
    assert (cli(*verify)[0], "pictures are read with" in caplog.text) == (0, False)
    monkeypatch.setenv("INSPECT_XAI_LINE__WHITE_LEVEL", "1023")
    assert (cli(*verify)[0], "pictures are read with" in caplog.text) == (0, True)


class Seen:
    """Stands in the place of a long job and keeps the pictures it was given."""

    def __init__(self) -> None:
        self.pictures: list[NDArray[np.uint8]] = []

    def of_many(self, _: object, given: list[NDArray[np.uint8]], **__: object) -> None:
        self.pictures = given
        raise SettingsError("that is enough")

    def of_one(self, _: object, given: NDArray[np.uint8], **__: object) -> None:
        self.of_many(None, [given])

    def of_windows(self, *_: object, windows: NDArray[np.float32], **__: object) -> None:
        self.of_many(None, [windows[0].astype(np.uint8)])


@pytest.mark.usefixtures("told")
def test_quantize_and_bench_see_what_the_line_sees(
    cli: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    monkeypatch.setattr("inspect_xai.audit.quantize.quantize_bundle", seen.of_many)
    monkeypatch.setattr("inspect_xai.explain.benchmark.bench", seen.of_one)
    picture = twelve_bit(tmp_path / "pictures" / "p.png")
    for command in (
        ["bundle", "quantize", bundle, "--calibration", picture.parent],
        ["bench", bundle, "--picture", picture],
    ):
        seen.pictures = []
        _, _, err = cli(*command)
        assert "that is enough" in err
        assert np.array_equal(seen.pictures[0], EIGHT_BIT)


@pytest.mark.usefixtures("told")
def test_export_sees_what_the_line_sees(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen()
    monkeypatch.setattr("inspect_xai.model.build.export.load_module", lambda *_, **__: None)
    monkeypatch.setattr("inspect_xai.model.build.export.export_bundle", seen.of_windows)
    (tmp_path / "card.toml").write_text(
        'name = "spots"\nversion = "1"\nlabels = ["spot", "free"]\nok_labels = ["free"]\n'
        '[input]\nheight = 32\nwidth = 32\nfit = "stretch"\n'
    )
    picture = twelve_bit(tmp_path / "p.png")
    given = ["--card", tmp_path / "card.toml", "--picture", picture, "--out", tmp_path / "out"]
    _, _, err = cli("export", "nowhere:make", *given)
    assert "that is enough" in err
    spec = read_card(tmp_path / "card.toml").input
    [tile] = tiles.windows((32, 32), spec)
    assert np.array_equal(seen.pictures[0], tiles.cut(EIGHT_BIT, tile, spec).astype(np.uint8))


def test_in_python_the_limits_are_an_argument(bundle: Path, tmp_path: Path) -> None:
    picture = twelve_bit(tmp_path / "p.png")
    with Explainer(bundle, device="cpu", limits=TWELVE_BIT) as explainer:
        as_the_line, as_eight_bit = explainer(picture), explainer(EIGHT_BIT)
    assert as_the_line.prediction == as_eight_bit.prediction
    with Explainer(bundle, device="cpu") as explainer:
        assert explainer(picture).prediction.label == "free"  # black: nobody said what white is


def test_a_wrong_setting_is_told_by_every_command_that_reads_pictures(
    cli: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSPECT_XAI_LINE__WHITE_LEVEL", "0")
    code, _, err = cli("explain", bundle, tmp_path / "p.png")
    assert (code, "white_level" in err) == (SettingsError.exit_code, True)


def test_a_mask_is_turned_as_its_picture_and_has_full_white_of_its_own(tmp_path: Path) -> None:
    mask = turned(tmp_path / "m.jpg", background=0)
    upright = read_mask(mask, (60, 40), limits=TURNED)
    as_stored = read_mask(mask, (40, 60), limits=PictureLimits())
    assert upright.sum() == as_stored.sum() == 12 * 12
    assert upright[30:42, 20:32].all()  # a quarter clockwise: row = column before, column = 39 - row before
    assert as_stored[8:20, 30:42].all()
    with pytest.raises(PictureError, match="40 x 60 px"):
        read_truth(LabelledPicture("p", tmp_path / "p.png", "pit", mask), (60, 40), limits=PictureLimits())
    deep = np.full((40, 60), 20_000, np.uint16)  # less than half of full white: not marked, whatever the camera's is
    deep[:8, :8] = 65_535
    (tmp_path / "deep.png").write_bytes(hostile.encoded(deep))
    assert read_mask(tmp_path / "deep.png", (40, 60), limits=TWELVE_BIT).sum() == 64


@pytest.fixture
def db(bundle: Path, tmp_path: Path) -> str:
    """Two inspections by a line: 1 of a 12-bit camera's file, 2 of a JPEG that is turned."""
    url = f"sqlite:///{tmp_path}/line.db"
    twelve_bit(tmp_path / "in" / "twelve.png")
    run(tmp_path / "in", bundle, url, limits=TWELVE_BIT)
    turned(tmp_path / "in" / "turned.jpg")
    run(tmp_path / "in", bundle, url, limits=TURNED, policy=DefaultPolicy("2"))
    return url


def test_the_desk_shows_each_picture_as_the_line_decoded_it(db: str, tmp_path: Path) -> None:
    with serving(db, ServeSettings(archive=(tmp_path / "in",))) as desk:
        ada = desk.client("Ada")
        for number, limits, size in ((1, TWELVE_BIT, (32, 32)), (2, TURNED, (60, 40))):
            stored = desk.store.get(number)
            assert (stored.verdict.code, stored.capture.height_px, stored.capture.width_px) == ("NG", *size)
            shown = {}
            for kind in ("picture", "map", "overlay"):
                answer = ada.get(f"/inspections/{number}/{kind}.png")
                assert answer.status_code == 200
                shown[kind] = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
                assert shown[kind].shape[:2] == size
            pixels = decode_picture(Path(stored.capture.archived_to).read_bytes(), limits=limits)
            assert np.array_equal(shown["picture"][..., ::-1], pixels)
            assert ada.get(f"/inspections/{number}/thumbnail.png").status_code == 200


def test_the_desk_takes_the_largest_picture_from_the_record(tmp_path: Path) -> None:
    """A picture beyond the default max_pixels would take minutes here; a smaller limit tells as well whose it is."""
    given = making.inspection(tmp_path, 1)
    with open_store(f"sqlite:///{tmp_path}/desk.db", create=True) as store:
        making.prepared(store).record([given])
        stored = store.get(1)
    assert Archive([tmp_path]).read(stored).shape == (making.SIZE, making.SIZE)
    stored.run.settings["limits"] = {"max_pixels": 1_000}
    with pytest.raises(MissingPictureError, match="unreadable"):
        Archive([tmp_path]).read(stored)


def test_reports_replay_and_evidence_see_what_the_line_saw(db: str, bundle: Path, tmp_path: Path) -> None:
    with open_store(db) as store:
        for number, limits in ((1, TWELVE_BIT), (2, TURNED)):
            stored = store.get(number, maps=True)
            data = Path(stored.capture.archived_to).read_bytes()
            pixels, missing = archived(stored)
            assert pixels is not None, missing
            assert np.array_equal(pixels, decode_picture(data, limits=limits))
            assert all(pictures_of(stored)[:2])  # the picture, and the map on it: they have one size
            assert replay(stored, data, bundle).outcome is ReplayOutcome.HOLDS
        export_evidence(store, [1, 2], out=tmp_path / "evidence.zip")
    with zipfile.ZipFile(tmp_path / "evidence.zip") as found:
        assert {"overlays/1.png", "overlays/2.png"} <= set(found.namelist())
        result = json.loads(found.read("results/2.json"))
    assert result["ResultContent"]["run"]["settings"]["limits"]["honour_exif"] is True
