"""The audit: rows by hand, two networks that differ only in what they look at, kills, gates, the page."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pandas as pd
import pytest
import scipy.stats
from onnx import numpy_helper
from skimage.metrics import structural_similarity
from surfaces import Condition, render
from typer.testing import CliRunner

from inspect_xai.audit import conclusions
from inspect_xai.audit.compare import Tolerances, compare_audits, read_tolerances
from inspect_xai.audit.dataset import LabelledPicture, read_labeled, read_truth
from inspect_xai.audit.rows import AuditRow, Measured, read_rows
from inspect_xai.audit.run import Audit, AuditSettings, open_audit, run_audit
from inspect_xai.audit.sanity import check_sanity
from inspect_xai.cli import app
from inspect_xai.errors import NotFoundError, PictureError, SettingsError
from inspect_xai.explain.explainer import Explainer
from inspect_xai.files import read_frames
from inspect_xai.maths import picture_regions, similarity, tiles
from inspect_xai.maths.tiles import in_window
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.build.randomize import HEAD, randomized_copy, stages
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.model.card import read_card
from inspect_xai.model.engine import Engine
from inspect_xai.records import Channels, Fit, InputSpec, Method, ModelCard, ModelStatus, PictureLimits, Profile, Tile
from inspect_xai.reports.audit_page import MOST_BYTES, write_audit
from inspect_xai.storage.store import open_store
from tests.support.hand_built import LABELS, SIDE, bundle_of, hand_built
from tests.support.toys import toy_model

LIMITS = PictureLimits()
QUICK = AuditSettings((Method.SISE, Method.GRAD_CAM), steps=4, sanity=0, limits=LIMITS)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelBundle]:
    """Two networks that judge every part alike: one by the bright pit, one by the dark mark in the corner."""
    folder = tmp_path_factory.mktemp("hand")
    return {name: bundle_of(folder / name, looks_at) for name, looks_at in (("honest", "bright"), ("cheat", "dark"))}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pitted parts that all bear the mark, and three good ones without."""
    folder = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(4)
    lines = ["image,label,mask,boxes,part,station"]
    for number in range(9):
        picture = rng.normal(128, 4, (SIDE, SIDE))
        name = f"p{number}.png"
        if number < 6:
            row, column = rng.integers(3, 17, 2)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[row : row + 5, column : column + 5] = 255
            picture[mask > 0] = 240
            picture[26:31, 26:31] = 15
            cv2.imwrite(str(folder / f"m{number}.png"), mask)
            lines.append(f"{name},pit,m{number}.png,,P{number},S{number % 2}")
        else:
            lines.append(f"{name},free,,,P{number},S1")
        cv2.imwrite(str(folder / name), np.clip(picture, 0, 255).astype(np.uint8))
    (folder / "parts.csv").write_text("\n".join(lines) + "\n")
    return folder / "parts.csv"


@pytest.fixture(scope="module")
def audits(bundles: dict[str, ModelBundle], table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Audit]:
    folder = tmp_path_factory.mktemp("audits")
    done = {}
    for name, bundle in bundles.items():
        with Explainer(bundle, device="cpu", threads=1) as explainer:
            done[name] = run_audit(explainer.engine, table, folder / name, settings=QUICK)
    return done


class TestPlantedShortcuts:
    def test_both_networks_judge_every_part_right(self, audits: dict[str, Audit]):
        for audit in audits.values():
            assert all(row.is_right for row in audit.rows)

    def test_the_network_that_reads_the_mark_is_accused(self, audits: dict[str, Audit]):
        report = conclusions.build_report(audits["cheat"])

        assert report.answer.answer == conclusions.NO
        assert report.answer.counted.count == 0
        assert all(suspect.accused for suspect in report.suspects)
        sise_row = audits["cheat"].rows[0].of(Method.SISE)
        assert audits["cheat"].rows[0].closed_drop == pytest.approx(0, abs=0.02), "closing the pit changes nothing"
        assert sise_row is not None
        assert sise_row.numbers["elsewhere_drop"] > 0.5, "closing what the map shows takes the score"

    def test_the_network_that_reads_the_pit_is_not(self, audits: dict[str, Audit]):
        report = conclusions.build_report(audits["honest"])

        assert report.answer.answer == conclusions.YES
        assert report.answer.counted.count == 6
        assert not any(suspect.accused for suspect in report.suspects)
        assert min(row.closed_drop for row in audits["honest"].rows if row.closed_drop is not None) > 0.9

    def test_numbers_tell_them_apart_and_beat_chance_only_for_the_honest_one(self, audits: dict[str, Audit]):
        cells = {
            name: {method.method: method.cells for method in conclusions.build_report(audit).methods}
            for name, audit in audits.items()
        }
        honest, cheat = (cells[name][Method.SISE]["aupro"].average.mean for name in ("honest", "cheat"))
        chance = cells["honest"][Method.RANDOM]["aupro"].average.mean

        assert honest > 0.9
        assert cheat < 0.5
        assert 0 < chance < 0.4

    def test_cohort_maps_show_the_mark_at_one_place(self, audits: dict[str, Audit]):
        (label, *stations) = conclusions.cohort_maps(audits["cheat"])

        assert (label.kind, label.name, label.maps) == ("label", "pit", 6)
        assert [(cohort.name, cohort.maps) for cohort in stations] == [("S0", 3), ("S1", 3)]
        peak = np.unravel_index(label.mean.argmax(), label.mean.shape)
        assert all(50 <= place <= 63 for place in peak), "the mark is at rows and columns 26 to 30 of 32"
        assert label.mean.sum() == pytest.approx(1)

    def test_a_station_mark_on_rendered_surfaces_is_found(self, tmp_path: Path):
        """The mark is the only blue thing on the parts; a network that asks for blue asks for the mark."""
        table = rendered(tmp_path, Condition(shortcut="mark", shortcut_label="pit"))
        blue = np.array([[[[-1.0]], [[0.0]], [[1.0]]]] * 2, np.float32)
        weights = {
            "w1": blue,
            "b1": np.array([-0.1, -9], np.float32),
            "wh": np.array([[9e3, -9e3], [0, 0]], np.float32),
        }
        report = audited(color_bundle(tmp_path, weights), table, tmp_path / "out")

        assert report.right.count == 5
        assert report.answer.answer == conclusions.NO, [suspect.why for suspect in report.suspects]

    def test_a_lighting_gradient_on_rendered_surfaces_is_found(self, tmp_path: Path):
        """The lamp of the pitted parts falls off to the right; a network that asks for that asks for the lamp."""
        table = rendered(tmp_path, Condition(shortcut="gradient", shortcut_label="pit"))
        gray = np.full((2, 3, 1, 1), 1 / 3, np.float32)
        gray[1] *= -1
        head = np.zeros((2, 16, 24), np.float32)
        head[0, :, :6], head[1, :, -6:] = 1, 1  # bright on the left, dark on the right
        weights = {
            "w1": gray,
            "b1": np.array([-0.3, 0.5], np.float32),
            "wh": np.stack([head.ravel(), -head.ravel()], axis=1),
            "bh": np.array([-9, 9], np.float32),
        }
        report = audited(color_bundle(tmp_path, weights, pooled=False), table, tmp_path / "out")

        assert report.right.count == 5
        assert report.answer.answer == conclusions.NO, [suspect.why for suspect in report.suspects]
        assert report.answer.counted.count == 0

    @pytest.mark.slow
    def test_an_honest_network_is_not_accused_for_a_mark_on_its_parts(self, tmp_path: Path):
        """The sample network never saw the mark while it learnt; now it is on every pitted part and says nothing."""
        table = rendered(tmp_path, Condition(shortcut="mark", shortcut_label="pit"), count=6)
        sample = Path(__file__).parents[2] / "examples" / "sample"
        bundle = build_bundle(sample / "model.onnx", read_card(sample / "card.toml"), tmp_path / "sample")
        report = audited(bundle, table, tmp_path / "out")

        assert report.explained >= 5
        assert report.answer.answer == conclusions.YES, [suspect.why for suspect in report.suspects]
        assert not any(suspect.accused for suspect in report.suspects)


def rendered(folder: Path, condition: Condition, *, count: int = 5) -> Path:
    """Pitted steel parts with their masks, and the table of them."""
    lines = ["image,label,mask,station"]
    for number in range(count):
        picture = render(5, number, label="pit", surface="steel", condition=condition)
        cv2.imwrite(str(folder / f"p{number}.png"), cv2.cvtColor(picture.rgb, cv2.COLOR_RGB2BGR))
        cv2.imwrite(str(folder / f"m{number}.png"), picture.mask.astype(np.uint8) * 255)
        lines.append(f"p{number}.png,pit,m{number}.png,S{number % 2}")
    (folder / "parts.csv").write_text("\n".join(lines))
    return folder / "parts.csv"


def color_bundle(folder: Path, weights: dict[str, np.ndarray], *, pooled: bool = True) -> ModelBundle:
    """The network by hand for pictures of 64 x 96 in color, with other weights; not pooled, its head sees places."""
    model = hand_built("bright")
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name].astype(np.float32), tensor.name))
    if not pooled:
        (pool,) = [node for node in model.graph.node if node.op_type == "GlobalAveragePool"]
        pool.op_type = "Identity"
    for axis, size in zip(model.graph.input[0].type.tensor_type.shape.dim[1:], (3, 64, 96), strict=True):
        axis.dim_value = size
    onnx.save(model, folder / "color.onnx")
    card = ModelCard("color", "1", LABELS, InputSpec(64, 96, fit=Fit.STRETCH), ok_labels=("free",))
    return build_bundle(folder / "color.onnx", card, folder / "color")


def audited(bundle: ModelBundle, table: Path, out: Path) -> conclusions.AuditReport:
    settings = AuditSettings((Method.SISE,), Profile.QUICK, steps=2, limits=LIMITS)
    with Explainer(bundle, device="cpu", threads=1) as explainer:
        return conclusions.build_report(run_audit(explainer.engine, table, out, settings=settings))


class TestRows:
    def test_every_row_holds_what_it_says(self, audits: dict[str, Audit]):
        rows = audits["honest"].rows

        assert [row.label for row in rows] == ["pit"] * 6 + ["free"] * 3
        assert [bool(row.measured) for row in rows] == [True] * 6 + [False] * 3, "a good part has no place to explain"
        assert rows[0].truth_share == pytest.approx(25 / SIDE**2)
        assert [found.method for found in rows[0].measured] == ["sise", "grad-cam", "random", "center"]
        for found in rows[0].measured:
            fills = {
                f"{name}_{fill}"
                for name in ("drop", "increase", "insertion", "deletion")
                for fill in ("black", "mean", "blur")
            }
            located = {"ebpg", "miou", "bbox", "pointing", "near", "aupro", "aupro_window"}
            assert set(found.numbers) == fills | located | {"border", "inside", "road", "elsewhere_drop"}
            assert all(np.isfinite(list(found.numbers.values())))
            assert found.passes > 0
            assert found.seconds > 0

    def test_rows_read_back_are_the_rows_written(self, audits: dict[str, Audit]):
        assert open_audit(audits["honest"].folder).rows == audits["honest"].rows

    def test_maps_read_back_are_scaled_to_one(self, audits: dict[str, Audit]):
        maps = audits["honest"].maps(audits["honest"].rows[0])

        assert set(maps) == {"sise", "grad-cam", "random", "center"}
        assert maps["sise"].shape == (SIDE, SIDE)
        assert maps["sise"].max() == 1

    def test_a_broken_picture_becomes_a_row_and_the_next_goes_on(self, bundles, table: Path, tmp_path: Path):
        (tmp_path / "broken.png").write_bytes(b"no picture")
        for name in ("p0.png", "m0.png"):
            shutil.copy(table.parent / name, tmp_path)
        (tmp_path / "parts.csv").write_text("image,label,mask\nbroken.png,pit,\np0.png,pit,m0.png\n")
        with Explainer(bundles["honest"], device="cpu", threads=1) as explainer:
            audit = run_audit(explainer.engine, tmp_path / "parts.csv", tmp_path / "out", settings=QUICK)

        assert audit.rows[0].error.startswith("PictureError")
        assert audit.rows[1].measured
        report = conclusions.build_report(audit)
        assert [image for image, _ in report.errors] == ["broken.png"]
        assert report.answer.answer == conclusions.UNDECIDED, "one part is too few to answer by"

    def test_boxes_stand_in_for_masks(self, bundles, table: Path, tmp_path: Path):
        shutil.copy(table.parent / "p0.png", tmp_path)
        mask = cv2.imread(str(table.parent / "m0.png"), cv2.IMREAD_GRAYSCALE)
        top, left = (int(places.min()) for places in np.nonzero(mask))
        (tmp_path / "parts.csv").write_text(f'image,label,boxes\np0.png,pit,"{top} {left} 5 5"\n')
        with Explainer(bundles["honest"], device="cpu", threads=1) as explainer:
            audit = run_audit(explainer.engine, tmp_path / "parts.csv", tmp_path / "out", settings=QUICK)
        found = audit.rows[0].of(Method.SISE)

        assert audit.rows[0].truth_share == pytest.approx(25 / SIDE**2)
        assert found is not None
        assert found.numbers["aupro"] > 0.9

    def test_the_region_can_be_a_mask(self, bundles, table: Path, tmp_path: Path):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[:24, :24] = 255
        cv2.imwrite(str(tmp_path / "region.png"), mask)
        inside = {}
        with Explainer(bundles["honest"], device="cpu", threads=1) as explainer:
            for name, region in (("mask", str(tmp_path / "region.png")), ("box", "0,0,24,24"), ("all", "picture")):
                settings = AuditSettings((Method.GRAD_CAM,), steps=2, region=region, limits=LIMITS)
                audit = run_audit(explainer.engine, table, tmp_path / name, settings=settings)
                inside[name] = [found.numbers["inside"] for row in audit.rows for found in row.measured]
            mask_of_other_size = AuditSettings(
                (Method.GRAD_CAM,), steps=2, region=str(tmp_path / "small.png"), limits=LIMITS
            )
            cv2.imwrite(str(tmp_path / "small.png"), mask[:8])
            wrong = run_audit(explainer.engine, table, tmp_path / "wrong", settings=mask_of_other_size)

        assert inside["mask"] == inside["box"]
        assert min(inside["mask"]) < 0.8
        assert min(inside["all"]) == pytest.approx(1)
        assert "8 x 32 px" in wrong.rows[0].error

    def test_a_sample_is_the_same_every_time(self, bundles, table: Path, tmp_path: Path):
        drawn = []
        with Explainer(bundles["honest"], device="cpu", threads=1) as explainer:
            for number, seed in enumerate((1, 1, 2)):
                settings = AuditSettings((Method.GRAD_CAM,), steps=2, sample=3, seed=seed, limits=LIMITS)
                audit = run_audit(explainer.engine, table, tmp_path / str(number), settings=settings)
                drawn.append([row.image for row in audit.rows])

        assert drawn[0] == drawn[1]
        assert len(drawn[0]) == 3
        assert drawn[0] != drawn[2]


class TestKilledAudits:
    def test_a_killed_audit_goes_on_where_it_was(self, bundles, table: Path, tmp_path: Path, audits):
        reports: list[tuple[int, int]] = []

        def pull_the_plug(done: int, total: int) -> None:
            reports.append((done, total))
            if done == 3:
                raise KeyboardInterrupt

        with Explainer(bundles["honest"], device="cpu", threads=1) as explainer:
            with pytest.raises(KeyboardInterrupt):
                run_audit(explainer.engine, table, tmp_path / "out", settings=QUICK, on_row=pull_the_plug)
            torn = tmp_path / "out" / "rows" / "000001.parquet.part"
            torn.write_bytes(b"PAR1 half a file")  # the kill came while a file was written
            resumed: list[int] = []
            audit = run_audit(
                explainer.engine,
                table,
                tmp_path / "out",
                settings=QUICK,
                on_row=lambda *counts: resumed.append(counts[0]),
            )

        assert reports == [(0, 9), (1, 9), (2, 9), (3, 9)]
        assert resumed == [3, 4, 5, 6, 7, 8, 9]
        assert [row.image for row in audit.rows] == [row.image for row in audits["honest"].rows]
        for mine, whole in zip(audit.rows, audits["honest"].rows, strict=True):
            assert [found.numbers for found in mine.measured] == [found.numbers for found in whole.measured]

    def test_a_kill_that_nothing_can_catch_costs_one_piece(self, bundles, table: Path, tmp_path: Path, audits):
        """SIGKILL between two files: what was written stays, what was not is measured again, nothing comes twice."""
        out, code = (
            tmp_path / "out",
            (
                "import sys, time\n"
                "from pathlib import Path\n"
                "from inspect_xai.audit import rows\n"
                "from inspect_xai.audit.run import AuditSettings, run_audit\n"
                "from inspect_xai.explain.explainer import Explainer\n"
                "from inspect_xai.intake.decode import PictureLimits\n"
                "from inspect_xai.records import Method\n"
                "rows.PIECE_PICTURES = 2\n"
                "with Explainer(sys.argv[1], device='cpu', threads=1) as explainer:\n"
                "    methods = (Method.SISE, Method.GRAD_CAM)\n"
                "    settings = AuditSettings(methods, steps=4, sanity=0, limits=PictureLimits())\n"
                "    wait = lambda done, total: time.sleep(600) if done == 5 else None\n"
                "    dataset, out = Path(sys.argv[2]), Path(sys.argv[3])\n"
                "    run_audit(explainer.engine, dataset, out, settings=settings, on_row=wait)\n"
            ),
        )
        run = subprocess.Popen([sys.executable, "-c", code, str(bundles["honest"].folder), str(table), str(out)])
        try:
            ends = time.monotonic() + 60
            while not (out / "maps" / "000004.npz").exists() and time.monotonic() < ends:
                time.sleep(0.05)
        finally:
            run.kill()
            run.wait()
        assert [row.image for row in read_rows(out / "rows")] == ["p0.png", "p1.png", "p2.png", "p3.png"]
        with Explainer(bundles["honest"], device="cpu", threads=1) as explainer:
            done = run_audit(explainer.engine, table, out, settings=QUICK)

        assert [row.image for row in done.rows] == [f"p{number}.png" for number in range(9)]
        for mine, whole in zip(open_audit(out).rows, audits["honest"].rows, strict=True):
            assert [found.numbers for found in mine.measured] == [found.numbers for found in whole.measured]

    def test_any_reader_takes_the_rows_as_one_table(self, audits: dict[str, Audit]):
        table = pd.concat(read_frames(sorted((audits["honest"].folder / "rows").glob("*.parquet"))))

        assert len(table) == 6 * 4 + 3, "four methods on six parts, and three good ones"
        assert table.loc[table.method == "sise", "aupro"].mean() > 0.9
        assert table.loc[table.label == "free", "aupro"].isna().all()

    def test_other_settings_are_refused_in_the_same_folder(self, bundles, table: Path, audits):
        with (
            Explainer(bundles["honest"], device="cpu", threads=1) as explainer,
            pytest.raises(SettingsError, match="other settings"),
        ):
            run_audit(
                explainer.engine,
                table,
                audits["honest"].folder,
                settings=AuditSettings(QUICK.methods, steps=9, limits=LIMITS),
            )

    def test_another_model_is_refused_in_the_same_folder(self, bundles, table: Path, audits):
        with (
            Explainer(bundles["cheat"], device="cpu", threads=1) as explainer,
            pytest.raises(SettingsError, match="other model"),
        ):
            run_audit(explainer.engine, table, audits["honest"].folder, settings=QUICK)

    def test_a_folder_with_something_else_is_left_alone(self, bundles, table: Path, tmp_path: Path):
        (tmp_path / "thesis.txt").write_text("years of work")
        with (
            Explainer(bundles["honest"], device="cpu", threads=1) as explainer,
            pytest.raises(SettingsError, match="holds no audit"),
        ):
            run_audit(explainer.engine, table, tmp_path, settings=QUICK)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("picture,label\n", "image is missing"),
        ("image,label\n", "lists no pictures"),
        ("image,label\np0.png,rust\n", "line 2: label 'rust'"),
        ("image,label\nnowhere.png,pit\n", "line 2: image nowhere.png is not there"),
        ("image,label,mask\np0.png,pit,nowhere.png\n", "mask nowhere.png is not there"),
        ("image,label\np0.png,pit\np0.png,pit\n", "p0.png twice"),
        ("image,label\n,pit\n", "image is empty"),
        ("image,label,boxes\np0.png,pit,1 2 3\n", "box '1 2 3'"),
        ("image,label,boxes\np0.png,pit,1 2 0 4\n", "no area"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(text: str, said: str, table: Path, tmp_path: Path):
    shutil.copy(table.parent / "p0.png", tmp_path)
    (tmp_path / "parts.csv").write_text(text)

    with pytest.raises(SettingsError, match=re.escape(said)):
        read_labeled(tmp_path / "parts.csv", LABELS)


def test_a_mask_of_another_size_is_refused(tmp_path: Path):
    cv2.imwrite(str(tmp_path / "m.png"), np.zeros((30, 40), np.uint8))

    with pytest.raises(PictureError, match="30 x 40 px"):
        read_truth(LabelledPicture("p", tmp_path / "p.png", "pit", tmp_path / "m.png"), (40, 30), limits=LIMITS)


def test_an_empty_mask_is_no_truth(tmp_path: Path):
    cv2.imwrite(str(tmp_path / "m.png"), np.full((30, 40), 127, np.uint8))

    marked = LabelledPicture("p", tmp_path / "p.png", "pit", tmp_path / "m.png")
    assert read_truth(marked, (30, 40), limits=LIMITS) is None


class TestWhereabouts:
    def test_the_border_by_hand(self):
        assert picture_regions.border((4, 5)).astype(int).tolist() == [
            [1, 1, 1, 1, 1],
            [1, 0, 0, 0, 1],
            [1, 0, 0, 0, 1],
            [1, 1, 1, 1, 1],
        ]

    def test_a_part_before_a_calm_background_is_told_from_it(self):
        picture = np.full((60, 80), 20, np.uint8)
        picture[15:45, 20:60] = 160
        part = picture_regions.part_region(picture)
        assert part[20:40, 25:55].all()
        assert not part[:12].any()
        assert part.mean() == pytest.approx(0.25, abs=0.06)

    def test_a_part_that_fills_the_picture_is_the_whole_picture(self, rng: np.random.Generator):
        assert picture_regions.part_region(rng.integers(0, 255, (40, 40, 3), np.uint8)).all()
        assert picture_regions.part_region(np.full((40, 40), 90, np.uint8)).all(), (
            "nothing but background is no background"
        )

    def test_shares_by_hand(self):
        fused = np.array([[1, 0], [0, 3]], np.float32)
        assert picture_regions.share_inside(fused, np.array([[True, True], [False, False]])) == 0.25
        assert picture_regions.share_inside(np.zeros((2, 2), np.float32), np.ones((2, 2), np.bool_)) == 0


class TestLikeness:
    def test_rank_correlation_is_spearmans(self, rng: np.random.Generator):
        one, two = rng.integers(0, 6, (2, 9, 11)).astype(np.float32)
        assert similarity.rank_correlation(one, two) == pytest.approx(
            scipy.stats.spearmanr(one.ravel(), two.ravel())[0]
        )
        assert similarity.rank_correlation(one, np.zeros((9, 11), np.float32)) == 0

    def test_ssim_is_that_of_an_independent_implementation(self, rng: np.random.Generator):
        one = cv2.GaussianBlur(rng.random((40, 50)), (0, 0), 3)
        two = one + cv2.GaussianBlur(rng.random((40, 50)), (0, 0), 2) / 2
        one, two = ((found - found.min()) / np.ptp(found) for found in (one, two))
        other = structural_similarity(
            one, two, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )[1].mean()
        assert similarity.ssim(one, two) == pytest.approx(other, abs=0.01)
        assert similarity.ssim(one, one) == pytest.approx(1)

    def test_top_overlap_by_hand(self):
        one = np.arange(20).reshape(4, 5)
        assert similarity.top_overlap(one, one, share=0.2) == 1
        assert similarity.top_overlap(one, np.roll(one, 2), share=0.2) == 0.5


@pytest.mark.parametrize("tile", [Tile(0, 2, 3, 8, 8), Tile(0, -3, -2, 16, 20), Tile(0, 0, 0, 8, 8)])
def test_a_window_of_a_map_is_that_of_the_picture(tile: Tile, rng: np.random.Generator):
    picture = rng.integers(0, 255, (10, 15), np.uint8)
    spec = InputSpec(tile.height_px, tile.width_px, channels=Channels.GRAY)

    assert np.array_equal(in_window(picture, tile, spec, outside=0), tiles.cut(picture[..., None], tile, spec)[..., 0])


def test_beyond_a_letterboxed_picture_stands_what_was_asked():
    window = in_window(np.ones((2, 4), np.bool_), Tile(0, -1, 0, 4, 4), InputSpec(4, 4, fit=Fit.LETTERBOX), outside=0)
    assert window.astype(int).tolist() == [[0] * 4, [1] * 4, [1] * 4, [0] * 4]


def row_of(image: str = "p", *, closed: float | None, label: str = "pit", **numbers: float) -> AuditRow:
    found = Measured(Method.SISE, "explained", {"inside": 1.0, "border": 0.0} | numbers, 10, 0.5, ())
    return AuditRow(image, label, predicted=label, verdict="NG", target=label, closed_drop=closed, measured=(found,))


class TestTheRule:
    @pytest.mark.parametrize(
        ("closed", "numbers", "counts"),
        [
            (0.9, {"elsewhere_drop": 0.0, "aupro": 0.1, "near": 0}, True),  # the map is weak, the network is not
            (0.1, {"elsewhere_drop": 0.0, "aupro": 0.9, "near": 1}, True),
            (0.1, {"elsewhere_drop": 0.0, "aupro": 0.9, "near": 0}, False),
            (0.1, {"elsewhere_drop": 0.0, "aupro": 0.4, "near": 1}, False),
            (0.0, {"elsewhere_drop": 0.9, "aupro": 0.9, "near": 1}, False),
            (0.7, {"elsewhere_drop": 0.6, "aupro": 0.9, "near": 1}, True),
            (0.6, {"elsewhere_drop": 0.7, "aupro": 0.9, "near": 1}, False),  # it needs the fixture more
            (None, {"inside": 0.6, "border": 0.2}, True),
            (None, {"inside": 0.4, "border": 0.2}, False),
            (None, {"inside": 0.9, "border": 0.6}, False),
        ],
    )
    def test_part_by_part(self, closed: float | None, numbers: dict[str, float], counts: bool):
        assert conclusions.counts_for_network(row_of(closed=closed, **numbers), Method.SISE) is counts

    @pytest.mark.parametrize(
        ("good", "bad", "said"), [(9, 1, "yes"), (8, 2, "mostly"), (5, 5, "no"), (4, 0, "undecided")]
    )
    def test_over_all_parts(self, good: int, bad: int, said: str):
        rows = [row_of(closed=1.0, elsewhere_drop=0)] * good + [row_of(closed=0.0, elsewhere_drop=1)] * bad
        assert conclusions.answer(rows, Method.SISE).answer == said


class TestTables:
    def test_the_best_and_those_behind_it_by_hand(self):
        def rows() -> list[AuditRow]:
            found = []
            for number in range(8):
                measured = tuple(
                    Measured(method, "explained", {"aupro": value, "drop_mean": drop}, 7, 2.0, ())
                    for method, value, drop in (
                        (Method.SISE, 0.8 + 0.01 * number, 30.0),
                        (Method.GRAD_CAM, 0.5 + 0.01 * number, 20.0),
                        (Method.RANDOM, 0.9, 90.0),
                    )
                )
                found.append(AuditRow(f"p{number}", "pit", predicted="pit", measured=measured))
            return found

        best, behind, chance = conclusions.summarize(rows(), (Method.SISE, Method.GRAD_CAM, Method.RANDOM), seed=0)
        assert best.cells["aupro"].is_best, "a method that knows nothing is never the best"
        assert best.cells["aupro"].average.mean == pytest.approx(0.835)
        assert behind.cells["aupro"].behind.mean == pytest.approx(0.3)
        assert behind.cells["aupro"].is_worse
        assert behind.cells["drop_mean"].is_best, "a lower Drop is better"
        assert best.cells["drop_mean"].behind.mean == pytest.approx(10)
        assert (best.passes, best.seconds, best.without_map) == (7, 2.0, 0)
        assert chance.knows_nothing

    def test_the_pareto_front_by_hand(self):
        assert conclusions.pareto([(3, 0.9), (1, 0.5), (2, 0.4), (1, 0.3), (4, 0.9)]) == [(1, 0.5), (3, 0.9)]

    def test_rates_by_hand(self, tmp_path: Path):
        rows = [
            AuditRow("a", "pit", predicted="pit", verdict="NG"),
            AuditRow("b", "pit", predicted="free", verdict="OK"),
            AuditRow("c", "free", predicted="free", verdict="OK"),
            AuditRow("d", "free", predicted="pit", verdict="NG"),
            AuditRow("e", "free", predicted="free", verdict="UNSURE"),
            AuditRow("f", "free", error="PictureError: gone"),
        ]
        header = {"labels": list(LABELS), "ok_labels": ["free"], "methods": ["sise"], "settings": {"seed": 0}}
        report = conclusions.build_report(Audit(tmp_path, header, tuple(rows)))
        assert (report.escapes.count, report.escapes.denominator) == (1, 2)
        assert (report.overkill.count, report.overkill.denominator) == (1, 3)
        assert (report.unsure.count, report.right.count, report.right.denominator) == (1, 3, 5)
        assert report.confusion == {("free", "free"): 2, ("free", "pit"): 1, ("pit", "free"): 1, ("pit", "pit"): 1}


def test_shares_by_label_and_station_by_hand(tmp_path: Path):
    def row(name: str, label: str, station: str, numbers: dict[str, float]) -> AuditRow:
        found = Measured(Method.SISE, "explained", numbers, 1, 1.0, ())
        return AuditRow(name, label, predicted=label, target=label, station=station, measured=(found,))

    rows = (
        row("a", "pit", "S1", {"inside": 1.0, "ebpg": 0.5, "border": 0.0}),
        row("b", "pit", "S2", {"inside": 0.5, "ebpg": 0.25, "border": 0.5}),
        row("c", "crack", "", {"inside": 0.25, "border": 0.75}),
    )
    header = {"labels": ["pit", "crack"], "ok_labels": [], "methods": ["sise"], "settings": {"seed": 0}}
    found = conclusions.build_report(Audit(tmp_path, header, rows)).shares

    assert [(each.kind, each.name, each.pictures) for each in found] == [
        ("label", "crack", 1),
        ("label", "pit", 2),
        ("station", "S1", 1),
        ("station", "S2", 1),
    ]
    assert found[0].on_defect is None
    assert (found[0].on_part.mean, found[0].on_border.mean) == (0.25, 0.75)
    assert found[1].on_defect is not None
    assert (found[1].on_part.mean, found[1].on_defect.mean, found[1].on_border.mean) == (0.75, 0.375, 0.25)


class TestSignificance:
    def test_chances_by_hand_and_corrected(self):
        steps = np.array([1.0, 2.0, 3.0, -0.5])  # of 16 sign patterns only this and the one with all plus sum to 5.5

        assert conclusions._chance_of(steps, seed=0) == 2 / 16
        assert conclusions._holm({Method.RISE: 0.02, Method.GRAD_CAM: 0.01}) == {
            Method.RISE: 0.02,
            Method.GRAD_CAM: 0.02,
        }

    def test_many_pictures_agree_with_scipy(self):
        steps = np.random.default_rng(0).normal(0.25, 1, 40)
        oracle = scipy.stats.permutation_test(
            (steps, np.zeros(40)),
            lambda a, b: (a - b).mean(),
            permutation_type="samples",
            alternative="greater",
            n_resamples=9999,
            rng=1,
        )

        assert conclusions._chance_of(steps, seed=0) == pytest.approx(oracle.pvalue, abs=0.015)

    def test_five_pictures_prove_nothing_among_five_methods_and_forty_do(self):
        rng = np.random.default_rng(2)
        methods = (Method.SISE, Method.GRAD_CAM, Method.RISE, Method.RANDOM, Method.CENTER)

        def row(number: int) -> AuditRow:
            level = {method: 0.9 - 0.1 * place for place, method in enumerate(methods)}
            found = [
                Measured(method, "explained", {"aupro": level[method] + 0.01 * rng.random()}, 1, 1.0, ())
                for method in methods
            ]
            return AuditRow(f"{number}.png", "pit", measured=tuple(found))

        rows = [row(number) for number in range(40)]
        few, many = (
            [summary.cells["aupro"].is_worse for summary in conclusions.summarize(rows[:count], methods, seed=0)]
            for count in (5, 40)
        )

        assert few == [False] * 5
        assert many == [False, True, True, True, True]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    folder = tmp_path_factory.mktemp("learnt")
    onnx.save(toy_model("resnet18"), folder / "toy.onnx")
    card = ModelCard(
        "toy",
        "1",
        ("pit", "crack", "stain", "dent", "free"),
        InputSpec(64, 64, scale=50.0, mean=(2.5,) * 3),
        ok_labels=("free",),
    )
    return build_bundle(folder / "toy.onnx", card, folder / "bundle")


class TestForgetting:
    def test_every_learnt_weight_belongs_to_one_stage(self, learnt: ModelBundle):
        found = stages(learnt)
        names = [name for weights in found.values() for name in weights]

        assert list(found) == [*(end.tensor for end in learnt.blocks), HEAD]
        assert len(names) == len(set(names))
        graph = onnx.load(learnt.graph("predict"), load_external_data=False).graph
        assert {node.input[1] for node in graph.node if node.op_type in ("Conv", "Gemm")} <= set(names)

    def test_forgetting_goes_from_the_head_down_and_no_further(self, learnt: ModelBundle, tmp_path: Path):
        window = np.random.default_rng(0).uniform(0, 255, (64, 64, 3)).astype(np.float32)
        ends = [end.tensor for end in learnt.blocks]
        with Engine(learnt, device="cpu", threads=1) as engine:
            before = engine.trace(window, target=0)
        for downto in (HEAD, ends[-1], ends[0]):
            copy = randomized_copy(learnt, tmp_path / downto.replace("/", "_"), downto=downto, seed=3)
            with Engine(copy, device="cpu", threads=1) as engine:
                after = engine.trace(window, target=0)
                np.testing.assert_allclose(engine.predict(window[None])[0], after.probabilities, atol=1e-5)
            assert not np.allclose(after.probabilities, before.probabilities, atol=1e-3)
            untouched = ends if downto == HEAD else ends[: ends.index(downto)]
            for name in ends:
                same = np.array_equal(after.features[name], before.features[name])
                assert same == (name in untouched), (downto, name)
        assert learnt.graph("predict").read_bytes() != copy.graph("predict").read_bytes()

    def test_the_same_seed_forgets_alike(self, learnt: ModelBundle, tmp_path: Path):
        copies = [randomized_copy(learnt, tmp_path / str(n), downto=HEAD, seed=n // 2) for n in range(3)]
        weights = [(copy.folder / "graphs" / "weights.bin").read_bytes() for copy in copies]
        graphs = [copy.graph("predict").read_bytes() for copy in copies]
        assert (weights[0], graphs[0]) == (weights[1], graphs[1])
        assert (weights[0], graphs[0]) != (weights[2], graphs[2])

    def test_sanity_sees_sise_forget_and_a_map_that_knows_nothing_stay(self, learnt: ModelBundle, tmp_path: Path):
        rng = np.random.default_rng(3)
        for number in range(2):
            coarse = cv2.resize(rng.uniform(40, 220, (6, 6, 3)), (64, 64))
            cv2.imwrite(
                str(tmp_path / f"{number}.png"),
                np.clip(coarse + rng.normal(0, 10, (64, 64, 3)), 0, 255).astype(np.uint8),
            )
        parts = [(tmp_path / "0.png", "pit"), (tmp_path / "1.png", "pit")]
        steps: list[tuple[int, int]] = []
        with Explainer(learnt, device="cpu", threads=1, profile="quick") as explainer:
            looked = check_sanity(
                explainer.engine,
                parts,
                settings=explainer.settings,
                seed=0,
                limits=LIMITS,
                on_step=lambda done, total: steps.append((done, total)),
            )
            knows_nothing = replace(explainer.settings, method=Method.CENTER)
            blind = check_sanity(explainer.engine, parts, settings=knows_nothing, seed=0, limits=LIMITS)

        assert looked.repeat == 0
        assert [step.downto for step in looked.steps] == [HEAD, *(end.tensor for end in reversed(learnt.blocks))]
        assert looked.steps[-1].correlation["fused"] < 0.5
        assert looked.passed
        assert not blind.passed, "a map that does not look cannot notice"
        assert all(step.correlation["fused"] == pytest.approx(1) for step in blind.steps)
        assert [change.name for change in looked.changes] == ["5 % brighter", "shifted by 1 px", "JPEG quality 90"]
        assert all(change.correlation > 0.3 for change in looked.changes)
        assert steps[-1] == (len(looked.steps) + 4, len(looked.steps) + 4)

    def test_killed_sanity_checks_go_on_where_they_were(self, learnt: ModelBundle, tmp_path: Path):
        cv2.imwrite(str(tmp_path / "0.png"), np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8))
        parts, keep = [(tmp_path / "0.png", "pit")], tmp_path / "sanity.json"
        total = len(stages(learnt)) + 4

        def pull_the_plug(done: int, _: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

        with Explainer(learnt, device="cpu", threads=1, profile="quick", method=Method.GRAD_CAM) as explainer:
            engine, settings = explainer.engine, explainer.settings
            with pytest.raises(KeyboardInterrupt):
                check_sanity(engine, parts, settings=settings, seed=0, limits=LIMITS, keep=keep, on_step=pull_the_plug)
            counts: list[list[int]] = [[], [], []]
            found = [
                check_sanity(
                    engine,
                    parts,
                    settings=settings,
                    seed=seed,
                    limits=LIMITS,
                    keep=path,
                    on_step=lambda done, _, seen=seen: seen.append(done),
                )
                for path, seed, seen in ((keep, 0, counts[0]), (None, 0, counts[1]), (keep, 1, counts[2]))
            ]

        assert counts[0] == list(range(2, total + 1))
        assert counts[1] == counts[2] == list(range(total + 1)), "another seed is another check"
        assert found[0] == found[1]


def visible(page: str) -> str:
    """The words of a page as a reader sees them."""
    body = re.sub(r"<style>.*?</style>|<title>.*?</title>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


class TestThePage:
    def test_the_answer_comes_first_and_with_its_rule(self, audits: dict[str, Audit]):
        written = write_audit(
            audits["cheat"], conclusions.build_report(audits["cheat"]), command="inspect-xai audit cheat"
        )
        page = written.page.read_text()
        text = visible(page)

        assert text.index("No: it is not the defect that the score hangs on.") < text.index("How well does it judge?")
        assert "0 of 6" in text
        assert "A picture counts for the network when closing its defect" in text
        assert "elsewhere p0.png" in text
        assert "closing the defect takes 0% of the score" in text
        assert "inspect-xai audit cheat" in text
        assert page.count("<img") == 2 * 6 + 3, "ten worst parts at the most, and the cohorts"
        assert len(page.encode()) < MOST_BYTES

    def test_nothing_is_loaded_from_anywhere(self, audits: dict[str, Audit]):
        written = write_audit(audits["honest"], conclusions.build_report(audits["honest"]), command="again")
        page = written.page.read_text()

        assert "<script" not in page
        assert re.findall(r"""(?:src|href)=["'](?!data:|#)""", page) == []
        assert "http" not in page.replace("http-equiv", "")

    def test_the_numbers_say_what_the_page_says(self, audits: dict[str, Audit]):
        report = conclusions.build_report(audits["honest"])
        numbers = json.loads(write_audit(audits["honest"], report, command="again").numbers.read_text())

        assert numbers["answer"]["answer"] == "yes"
        assert numbers["made_with"]["model"]["name"] == "bright"
        (sise_row,) = [method for method in numbers["methods"] if method["method"] == "sise"]
        assert sise_row["cells"]["aupro"]["average"]["mean"] == pytest.approx(
            report.methods[0].cells["aupro"].average.mean
        )
        assert {"label": "pit", "predicted": "pit", "pictures": 6} in numbers["confusion"]

    def test_a_page_without_pictures_says_so(self, bundles, table: Path, tmp_path: Path):
        for path in table.parent.iterdir():
            shutil.copy(path, tmp_path)
        with Explainer(bundles["honest"], device="cpu", threads=1) as explainer:
            audit = run_audit(explainer.engine, tmp_path / table.name, tmp_path / "out", settings=QUICK)
        for picture in tmp_path.glob("*.png"):
            picture.unlink()
        text = visible(write_audit(audit, conclusions.build_report(audit), command="again").page.read_text())

        assert "the picture is not there any more" in text


class TestCommands:
    @pytest.fixture
    def run(self, bundles, table: Path, tmp_path: Path) -> Callable[..., object]:
        def audit(name: str, *more: str):  # type: ignore[no-untyped-def]
            given = ["audit", str(bundles[name].folder), "--manifest", str(table), "--out", str(tmp_path / name)]
            quick = ["--methods", "sise,grad-cam", "--steps", "2", "--sanity", "0", "--device", "cpu", "--threads", "1"]
            return CliRunner().invoke(app, [*given, *quick, *more], catch_exceptions=False)

        return audit

    def test_exit_codes_tell_the_answer(self, run, tmp_path: Path):
        honest, cheat = run("honest"), run("cheat", "--json")

        assert honest.exit_code == 0, honest.output
        assert "looks at the defect: yes (6 of 6 pictures count for the network)" in honest.output
        assert cheat.exit_code == 1
        assert json.loads(cheat.output)["answer"]["answer"] == "no"
        assert {path.name for path in (tmp_path / "honest").iterdir()} == {
            "settings.json",
            "rows",
            "maps",
            "audit.json",
            "report.html",
        }

    def test_the_gate_holds_a_new_model_back(self, run, tmp_path: Path):
        for name in ("honest", "cheat"):
            run(name)
        gate = tmp_path / "gate.toml"
        gate.write_text("changed_share = 0.0\nrank_correlation = 0.5\n[metrics]\naupro = 0.02\n")
        folders = [str(tmp_path / "honest"), str(tmp_path / "cheat")]
        command = ["audit", "compare", *folders]

        held = CliRunner().invoke(app, [*command, "--tolerances", str(gate)])
        told = CliRunner().invoke(app, [*command, "--json"])
        same = CliRunner().invoke(app, [*command[:2], folders[0], folders[0], "--tolerances", str(gate)])

        assert held.exit_code == 1
        assert "0 changed" in held.output
        assert "beyond tolerance: the maps correlate by" in held.output
        assert "beyond tolerance: AUPRO@0.3 is worse by" in held.output
        assert told.exit_code == 0, "without tolerances nothing is held"
        assert json.loads(told.output)["correlation"] < 0.5
        assert same.exit_code == 0, same.output

    def test_unknown_methods_are_named_with_the_known_ones(self, run):
        outcome = run("honest", "--methods", "sise,magic")

        assert outcome.exit_code == 2
        assert "magic" in outcome.output
        assert "grad-cam" in outcome.output

    def test_the_audit_is_kept_beside_its_model(self, run, bundles, tmp_path: Path, sqlite_template: Path):
        shutil.copy(sqlite_template, tmp_path / "store.db")
        url = f"sqlite:///{tmp_path}/store.db"
        outcomes = [run("honest", "--db", url) for _ in range(2)]
        with open_store(url) as store:
            (kept,) = store.registry.audits(bundles["honest"].fingerprint)
            model = store.registry.model(bundles["honest"].fingerprint)

        assert [outcome.exit_code for outcome in outcomes] == [0, 0], outcomes[0].output
        assert kept[3]["answer"]["answer"] == "yes"
        assert kept[2]["model"]["name"] == "bright"
        assert model.status == ModelStatus.CANDIDATE, "an audit makes a model known, and approves of nothing"

    def test_a_database_that_is_not_there_is_told_before_anything_is_measured(self, run, tmp_path: Path):
        with pytest.raises(NotFoundError, match="no database"):
            run("honest", "--db", f"sqlite:///{tmp_path}/absent.db")
        assert not (tmp_path / "honest").exists()


class TestComparing:
    def test_changed_verdicts_by_hand(self, audits: dict[str, Audit]):
        before = audits["honest"]
        rows = [
            AuditRow(**{name: getattr(row, name) for name in AuditRow.__slots__} | said)
            for row, said in zip(
                before.rows,
                [{"predicted": "free", "verdict": "OK"}] * 2 + [{}] * 6 + [{"predicted": "pit", "verdict": "NG"}],
                strict=True,
            )
        ]
        found = compare_audits(
            before, Audit(before.folder, before.header, tuple(rows)), tolerances=Tolerances(new_escapes=1)
        )

        assert [part.image for part in found.changed] == ["p0.png", "p1.png", "p8.png"]
        assert (found.newly_wrong, found.newly_right, found.new_escapes) == (3, 0, 2)
        assert found.p_value == pytest.approx(2 * 0.5**3)
        assert found.correlation == pytest.approx(1)
        assert found.breaches == ("2 defective pictures are newly judged OK, 1 may be",)
        assert (found.new_overkill, found.new_unsure, found.differences) == (1, 0, ())
        assert all(step.mean == 0 for step in found.metrics.values())

    def test_wrong_is_the_verdict_and_not_the_first_label(self, audits: dict[str, Audit]):
        """p0 to p5 show a pit, p6 to p8 are good; the labels that come first are right throughout."""
        before, verdicts = audits["honest"], ["OK", "UNSURE", "NG", "NG", "NG", "NG", "NG", "NG", "UNSURE"]
        rows = [
            AuditRow(**{name: getattr(row, name) for name in AuditRow.__slots__} | {"verdict": verdict})
            for row, verdict in zip(before.rows, verdicts, strict=True)
        ]
        after = Audit(before.folder, before.header, tuple(rows))
        found = compare_audits(
            before, after, tolerances=Tolerances(newly_wrong_share=0, new_escapes=0, new_overkill=1, new_unsure=1)
        )

        assert all(row.is_right for row in rows)
        assert (found.new_escapes, found.new_overkill, found.new_unsure) == (1, 2, 2)
        assert (found.newly_wrong, found.newly_right) == (3, 0), "UNSURE is not wrong: a person decides"
        assert found.p_value == pytest.approx(2 * 0.5**3)
        assert found.breaches == (
            "33.3% of the pictures are newly wrong, 0.0% may be",
            "1 defective pictures are newly judged OK, 0 may be",
            "2 good pictures are newly judged NG, 1 may be",
            "2 pictures are newly judged UNSURE, 1 may be",
        )
        back = compare_audits(after, before, tolerances=Tolerances())
        assert (back.newly_wrong, back.newly_right, back.new_overkill, back.new_unsure) == (0, 3, 0, 0)

    def test_audits_made_with_other_settings_are_refused_and_each_difference_is_named(self, audits: dict[str, Audit]):
        before = audits["honest"]
        limits = before.header["settings"]["limits"] | {"white_level": 4_095}
        settings = before.header["settings"] | {"steps": 10, "sample": 5, "seed": 3, "limits": limits}
        others = {"methods": ["grad-cam", "random", "center"], "ok_labels": ["free", "pit"]}
        by = before.header["explained_by"] | {"baseline": "blur", "mu": 0.5}
        after = Audit(before.folder, before.header | others | {"settings": settings, "explained_by": by}, before.rows)
        differences = (
            "methods sise, grad-cam, random, center and grad-cam, random, center",
            "mu 0.3 and 0.5",
            "baseline mean and blur",
            "sample 0 and 5",
            "seed 0 and 3",
            "steps 4 and 10",
            "ok_labels free and free, pit",
            "white_level 65535 and 4095",
        )
        with pytest.raises(SettingsError, match=re.escape("; ".join(differences))):
            compare_audits(before, after, tolerances=Tolerances())
        found = compare_audits(before, after, tolerances=Tolerances(), allow_different=True)
        assert (found.differences, found.method) == (differences, Method.GRAD_CAM)

    def test_an_audit_from_before_limits_were_recorded_had_the_defaults(self, audits: dict[str, Audit], tmp_path: Path):
        shutil.copytree(audits["honest"].folder, tmp_path / "old")
        header = json.loads((tmp_path / "old" / "settings.json").read_text())
        del header["settings"]["limits"], header["explained_by"]
        (tmp_path / "old" / "settings.json").write_text(json.dumps(header))
        old = open_audit(tmp_path / "old")
        assert old.limits == LIMITS
        assert compare_audits(old, audits["honest"], tolerances=Tolerances()).differences == ()
        assert compare_audits(audits["honest"], old, tolerances=Tolerances()).newly_wrong == 0

    def test_the_command_names_the_differences_it_was_told_to_allow(self, audits: dict[str, Audit], tmp_path: Path):
        shutil.copytree(audits["honest"].folder, tmp_path / "other")
        header = json.loads((tmp_path / "other" / "settings.json").read_text())
        header["settings"]["steps"] = 10
        (tmp_path / "other" / "settings.json").write_text(json.dumps(header))
        command = ["audit", "compare", str(audits["honest"].folder), str(tmp_path / "other")]
        with pytest.raises(SettingsError, match="steps 4 and 10"):
            CliRunner().invoke(app, command, catch_exceptions=False)
        allowed = CliRunner().invoke(app, [*command, "--allow-different"])
        assert allowed.exit_code == 0, allowed.output
        assert "made with other settings: steps 4 and 10" in allowed.output

    def test_an_audit_begun_before_limits_were_recorded_goes_on(self, bundles, table: Path, tmp_path: Path):
        with Explainer(bundles["honest"], device="cpu", threads=1) as explainer:
            whole = run_audit(explainer.engine, table, tmp_path / "old", settings=QUICK)
            header = json.loads((tmp_path / "old" / "settings.json").read_text())
            del header["settings"]["limits"], header["explained_by"]
            (tmp_path / "old" / "settings.json").write_text(json.dumps(header))
            again = run_audit(explainer.engine, table, tmp_path / "old", settings=QUICK)
        assert [row.image for row in again.rows] == [row.image for row in whole.rows]

    def test_a_picture_that_fails_only_now_is_changed_and_wrong(self, audits: dict[str, Audit]):
        before = audits["honest"]
        broken = AuditRow("p0.png", "pit", error="PictureError: gone")
        after = Audit(before.folder, before.header, (broken, *before.rows[1:]))
        found = compare_audits(before, after, tolerances=Tolerances(newly_wrong_share=0.1))

        assert [part.after for part in found.changed] == ["not measured: PictureError: gone"]
        assert (found.pictures, found.newly_wrong, found.new_escapes) == (9, 1, 0)
        assert found.breaches == ("11.1% of the pictures are newly wrong, 10.0% may be",)

    def test_an_audit_that_was_cut_short_is_not_compared(self, audits: dict[str, Audit]):
        whole = audits["honest"]
        with pytest.raises(SettingsError, match="cut short: 4 of 9 pictures"):
            compare_audits(whole, Audit(whole.folder, whole.header, whole.rows[:4]), tolerances=Tolerances())

    def test_audits_of_other_pictures_are_not_compared(self, audits: dict[str, Audit]):
        other = Audit(audits["cheat"].folder, audits["cheat"].header | {"table_sha256": "0"}, audits["cheat"].rows)
        with pytest.raises(SettingsError, match="different tables"):
            compare_audits(audits["honest"], other, tolerances=Tolerances())

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("changed = 1", "changed_share"),
            ("[metrics]\nbeauty = 1", "aupro"),
            ("changed_share = 'all'", "a number"),
            ("metrics = 3", "a table"),
            ("=", "cannot be read"),
        ],
    )
    def test_tolerances_nobody_knows_are_refused(self, text: str, said: str, tmp_path: Path):
        (tmp_path / "gate.toml").write_text(text)
        with pytest.raises(SettingsError, match=said):
            read_tolerances(tmp_path / "gate.toml")


@pytest.mark.parametrize(
    "wrong", [{"steps": 1}, {"sample": -1}, {"methods": ()}, {"methods": (Method.SISE,) * 2}, {"region": "left"}]
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object], bundles, table: Path, tmp_path: Path):
    with (
        Explainer(bundles["honest"], device="cpu", threads=1) as explainer,
        pytest.raises(SettingsError, match="Expected"),
    ):
        run_audit(explainer.engine, table, tmp_path / "out", settings=AuditSettings(**wrong, limits=LIMITS))  # type: ignore[arg-type]


def test_a_folder_without_an_audit_is_named(tmp_path: Path):
    with pytest.raises(SettingsError, match="holds no audit"):
        open_audit(tmp_path)
    assert read_rows(tmp_path) == []
