"""Windows in step: what each comes to is what it comes to alone, and the network runs less often."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from inspect_xai.errors import ExplanationError
from inspect_xai.explain.batching import ScoreCoroutine, ScoreRequest, StepTimer, WindowTask, run_together
from inspect_xai.explain.explainer import Explainer
from inspect_xai.explain.request import ExplainRequest, explain, explain_together
from inspect_xai.explain.settings import ExplainSettings
from inspect_xai.explain.window_scores import look
from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.line.line import Line, drain
from inspect_xai.model import engine as engine_module
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.model.engine import Engine
from inspect_xai.records import Explanation, InputSpec, ModelCard, Status, VerdictSpec
from inspect_xai.storage.store import open_store
from tests.support import hostile, spots
from tests.support.line import LONG_AFTER, LONG_AGO
from tests.support.toys import CLASSES, TOYS, toy_model

Runs = list[list[int]]  # of every run with masks: which of the windows it was given each mask is of
LABELS = tuple(f"class {index}" for index in range(CLASSES))
EVERY_WINDOW = VerdictSpec(1e-6, 0.0)


class Alone(Engine):
    """An engine whose windows share nothing."""

    @property
    def windows_at_once(self) -> int:
        """One."""
        return 1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    folder = tmp_path_factory.mktemp("resnet18")
    onnx.save(toy_model("resnet18"), folder / "toy.onnx")
    _, height, width = TOYS["resnet18"].shape
    card = ModelCard("toy", "1", LABELS, InputSpec(height, width, mean=(0.5,), std=(0.25,)))
    return build_bundle(folder / "toy.onnx", card, folder / "bundle")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """What the scoring graph was run with; the runs are ONNX Runtime's own."""
    seen: Runs = []
    run = engine_module.run  # type: ignore[attr-defined]

    def noting(session: Any, outputs: Any, feeds: Any, **more: Any) -> list[NDArray[np.float32]]:
        if "maps" in feeds:
            seen.append(np.broadcast_to(feeds["image"], len(feeds["maps"])).tolist())
        found: list[NDArray[np.float32]] = run(session, outputs, feeds, **more)
        return found

    monkeypatch.setattr(engine_module, "run", noting)
    return seen


def picture_of(bundle: ModelBundle, seed: int, *, windows: int) -> NDArray[np.uint8]:
    spec = bundle.card.input
    coarse = np.random.default_rng(seed).integers(0, 256, (spec.height // 4, windows * spec.width // 4, 3), np.uint8)
    return coarse.repeat(4, axis=0).repeat(4, axis=1)


def assert_same(one: Explanation, other: Explanation) -> None:
    """Equal but for the rounding that the number of masks in a run makes; all that is counted is equal."""
    assert (one.status, one.forward_passes, one.notes) == (other.status, other.forward_passes, other.notes)
    assert one.timings_ms.keys() == other.timings_ms.keys()
    np.testing.assert_allclose(one.fused, other.fused, atol=1e-6)
    for mine, theirs in zip(one.tiles, other.tiles, strict=True):
        assert (mine.tile, mine.status) == (theirs.tile, theirs.status)
        for block, same in zip(mine.blocks, theirs.blocks, strict=True):
            assert (block.kept_channels, block.predicted_scores, block.note) == (
                same.kept_channels,
                same.predicted_scores,
                same.note,
            )
            if block.sums is not None:
                np.testing.assert_allclose(block.sums, same.sums, rtol=1e-5, atol=1e-6)


def test_masks_of_several_windows_score_in_shared_runs_as_alone(bundle: ModelBundle, runs: Runs) -> None:
    rng = np.random.default_rng(3)
    spec = bundle.card.input
    windows, baselines = rng.integers(0, 256, (2, 3, spec.height, spec.width, 3)).astype(np.float32)
    maps, image = rng.random((9, 4, 5)).astype(np.float32), np.array([0, 0, 0, 0, 0, 1, 2, 2, 2])
    with Engine(bundle, device="cpu", bucket=4) as engine:
        together = engine.score_together(windows, maps, baselines=baselines, image=image)
        assert runs == [[0, 0, 0, 0], [0, 1, 2, 2], [2]]
        for number in range(3):
            own = image == number
            alone = engine.score_masks(windows[number], maps[own], baseline=baselines[number])
            np.testing.assert_allclose(together.probabilities[own], alone.probabilities, atol=1e-6)
            np.testing.assert_array_equal(together.minimum[own], alone.minimum)
            np.testing.assert_array_equal(together.span[own], alone.span)


def test_a_gpus_last_run_is_filled_up_with_its_last_mask(
    bundle: ModelBundle, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    spec = bundle.card.input
    windows = rng.integers(0, 256, (2, spec.height, spec.width, 3)).astype(np.float32)
    maps, image = rng.random((6, 4, 5)).astype(np.float32), np.array([0, 0, 0, 0, 0, 1])
    hold = engine_module.hold  # type: ignore[attr-defined]
    with Engine(bundle, device="cpu", bucket=4) as engine:
        expected = engine.score_together(windows, maps, baselines=windows[::-1], image=image)
        runs.clear()
        monkeypatch.setattr(engine_module, "hold", lambda array, device: hold(array, device="cpu"))  # noqa: ARG005
        engine.device = "cuda"
        found = engine.score_together(windows, maps, baselines=windows[::-1], image=image)
    assert runs == [[0, 0, 0, 0], [0, 1, 1, 1]]
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"mu": 0.0},
        {"profile": "fast"},
        {"method": "score-cam"},
        *(
            pytest.param(way, marks=pytest.mark.slow)
            for way in (
                {"mu": 0.3},
                {"profile": "quick"},
                {"mu": 0.0, "max_passes": 100},
                {"method": "grad-sise"},
                {"method": "occlusion", "max_passes": 200},
            )
        ),
    ],
    ids=str,
)
def test_windows_of_a_picture_share_runs_and_keep_their_maps(
    settings: dict[str, Any], bundle: ModelBundle, runs: Runs
) -> None:
    picture = picture_of(bundle, 7, windows=3)
    found = []
    with Alone(bundle, device="cpu", bucket=24) as alone, Engine(bundle, device="cpu", bucket=24) as shared:
        for engine in (alone, shared):
            explainer = Explainer(engine, faithfulness=False, **settings)
            runs.clear()
            found.append((explainer(picture, target=1, thresholds=EVERY_WINDOW), len(runs)))
    (one, runs_alone), (other, runs_shared) = found
    assert len(one.tiles) >= 3
    assert one.status is Status.EXPLAINED
    assert_same(one, other)
    assert runs_shared < runs_alone


def test_pictures_share_runs_and_keep_their_maps(bundle: ModelBundle, runs: Runs) -> None:
    """Pictures of one window and of several, explained by different settings; one of them bounded in seconds."""
    with Engine(bundle, device="cpu", bucket=16) as engine:
        ways: list[dict[str, Any]] = [{"mu": 0.0}, {"profile": "fast"}, {"mu": 0.0, "budget_s": 600.0}, {"mu": 0.5}]
        settings = [ExplainSettings.of_card(engine.card, **way) for way in ways]
        pictures = [picture_of(bundle, seed, windows=windows) for seed, windows in enumerate((1, 2, 2, 1))]
        looks = [look(engine, picture, EVERY_WINDOW) for picture in pictures]
        runs.clear()
        alone = [explain(engine, seen, how, target=LABELS[1]) for seen, how in zip(looks, settings, strict=True)]
        count = len(runs)
        runs.clear()
        together = explain_together(
            [ExplainRequest(engine, seen, how, LABELS[1]) for seen, how in zip(looks, settings, strict=True)]
        )
    assert len(runs) < count
    assert any(len(set(run)) > 1 for run in runs)
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)
        assert one.settings == other.settings
        assert one.faithfulness.keys() == other.faithfulness.keys()
    assert explain_together([]) == []


def test_a_bound_in_seconds_is_kept_window_by_window(bundle: ModelBundle, runs: Runs) -> None:
    with Explainer(bundle, device="cpu", bucket=16, budget_s=1e-9) as explainer:
        hurried = explainer(picture_of(bundle, 7, windows=3), target=1, thresholds=EVERY_WINDOW)
    assert len(hurried.tiles) == 1
    assert "windows_left_out" in hurried.notes
    assert all(set(run) == {0} for run in runs)


# The order of things, by hand


def asking(name: str, sizes: list[int], said: list[str]) -> ScoreCoroutine[str]:
    """Work that asks for one mask of each size."""
    for size in sizes:
        said.append(f"{name}{size}")
        window = np.full((*TOYS["resnet18"].shape[1:], 3), 128, np.float32)
        scores = yield ScoreRequest(window, np.eye(size, dtype=np.float32)[None], np.zeros_like(window))
        assert scores.probabilities.shape == (1, CLASSES)
    return name


def test_who_is_behind_catches_up(bundle: ModelBundle, runs: Runs) -> None:
    """B has no mask in the first block: it waits at the second until A is there, and C is begun when both are done."""
    said: list[str] = []
    ways = {"A": [16, 8, 4], "B": [8, 4], "C": [8]}
    with Engine(bundle, device="cpu", bucket=8) as engine:
        assert engine.windows_at_once == 2
        found = run_together(engine, (WindowTask(asking(name, sizes, said)) for name, sizes in ways.items()))
    assert found == ["A", "B", "C"]
    assert said == ["A16", "B8", "A8", "A4", "B4", "C8"]
    assert runs == [[0], [0, 1], [0, 1], [0]]


def test_a_step_counts_what_its_own_masks_took(bundle: ModelBundle) -> None:
    """The one that has 3 of 4 masks bears three quarters of the run, and none bears the other's own work."""

    def work(clock: StepTimer, masks: int, busy_s: float) -> ScoreCoroutine[None]:
        window = np.full((*TOYS["resnet18"].shape[1:], 3), 128, np.float32)
        with clock.step("masks"):
            time.sleep(busy_s)
            yield ScoreRequest(window, np.ones((masks, 4, 4), np.float32), np.zeros_like(window))

    with Engine(bundle, device="cpu", bucket=8) as engine:
        engine.warm_up()
        score, took = engine.score_together, []

        def slowly(*arguments: Any, **more: Any) -> Any:
            began = time.perf_counter()
            time.sleep(0.2)
            said = score(*arguments, **more)
            took.append(time.perf_counter() - began)
            return said

        engine.score_together = slowly  # type: ignore[method-assign]
        few, many = StepTimer(), StepTimer()
        run_together(engine, [WindowTask(work(many, 3, 0.0), many), WindowTask(work(few, 1, 0.1), few)])
    assert many.spent_ms["masks"] == pytest.approx(750 * took[0], abs=50)
    assert few.spent_ms["masks"] == pytest.approx(100 + 250 * took[0], abs=50)


# On the line


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    """Four NG parts, an OK part between them."""
    for number, spot_px in enumerate([10, 0, 10, 10, 10]):
        path = tmp_path / f"in/L1/S1/SN{number}_LOT7_CAM1_top_early_20261122T0615{number:02d}Z.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(hostile.encoded(spots.part(number, spot_px=spot_px)))
    return tmp_path / "in"


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that fails on a white picture."""
    return spots.spot_bundle(tmp_path_factory.mktemp("fragile"), fails_on_white=True)


def rows(db: str) -> Iterator[tuple[str, str, int]]:
    with open_store(db) as store:
        for row in store.day(LONG_AGO, LONG_AFTER, by="captured_at"):
            yield row.verdict, row.failure_kind, row.inspection_id


def test_pictures_of_a_chunk_share_runs(incoming: Path, fragile: Path, tmp_path: Path, runs: Runs) -> None:
    db = f"sqlite:///{tmp_path / 'line.db'}"
    with Line(fragile, db, device="cpu") as line, FolderSource(incoming, settle_s=0) as source:
        runs.clear()  # less those of warming up
        summary = drain(line, source)
    assert (summary.inspected, summary.ng, summary.explained) == (5, 4, 4)
    assert runs == [[0, 1]] * 4  # two pictures a group, one mask in each of two blocks
    with open_store(db) as store:
        taken = [store.get(number).duration_ms for _, _, number in rows(db)]
    assert all(duration > 0 for duration in taken)


def test_a_picture_that_fails_among_others_fails_alone(
    incoming: Path, fragile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its group is explained one by one: the neighbor has its map."""
    db = f"sqlite:///{tmp_path / 'line.db'}"
    trace, traced = Engine.trace, []

    def failing(self: Engine, window: NDArray[np.generic], **options: Any) -> Any:
        key = window.tobytes()
        traced.append(key)
        if key == traced[0]:
            raise ExplanationError("not finite", expected="finite numbers", remedy="none")
        return trace(self, window, **options)

    with Line(fragile, db, device="cpu") as line, FolderSource(incoming, settle_s=0) as source:
        monkeypatch.setattr(Engine, "trace", failing)
        summary = drain(line, source)
    assert (summary.inspected, summary.failed, summary.explained) == (5, 1, 3)
    assert [kind for _, kind, _ in rows(db)] == ["ExplanationError", "", "", "", ""]
