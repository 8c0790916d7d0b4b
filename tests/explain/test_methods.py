"""Every method that `--method` knows, through the engine, against plain torch or numpy on toys."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from inspect_xai.errors import UnsupportedModelError
from inspect_xai.explain import methods
from inspect_xai.explain.explainer import Explainer
from inspect_xai.maths import cams, sise
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.records import Baseline, Explanation, InputSpec, Method, ModelCard, Status
from tests.support.toys import TOYS, toy_model

LABELS = ("pit", "crack", "stain", "dent", "free")
SIZE = (64, 64)
TARGET = 0  # every method finds evidence for it
BLIND = (Method.RANDOM, Method.CENTER)
RIVALS = tuple(method for method in Method if method not in (Method.SISE, Method.ADA_SISE))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    folder = tmp_path_factory.mktemp("methods")
    onnx.save(toy_model("resnet18"), folder / "toy.onnx")
    card = ModelCard("toy", "1", LABELS, InputSpec(*SIZE, scale=50.0, mean=(2.5,) * 3), ok_labels=("free",))
    return build_bundle(folder / "toy.onnx", card, folder / "bundle")


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    rng = np.random.default_rng(8)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    surface = 140 + 50 * np.sin(columns / 6) - 80 * np.exp(-((rows - 40) ** 2 + (columns - 20) ** 2) / 50)
    return np.clip(surface[..., None] + rng.normal(0, 9, (*SIZE, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def explain(bundle: ModelBundle, picture: NDArray[np.uint8]) -> Iterator[Callable[..., Explanation]]:
    """A function that explains the picture by a method, once per method and options."""
    done: dict[str, Explanation] = {}

    def run(method: Method, **options: object) -> Explanation:
        key = f"{method} {options}"
        if key not in done:
            given = {"baseline": "mean", "device": "cpu", "threads": 1} | options
            with Explainer(bundle, method=method, **given) as explainer:  # type: ignore[arg-type]
                done[key] = explainer(picture, target=TARGET)
        return done[key]

    return run


class Torch:
    """The toy in torch: feature maps, gradients of the log-odds margin, and probabilities of any picture."""

    def __init__(self, picture: NDArray[np.uint8]) -> None:
        self.toy = TOYS["resnet18"].make().double()
        taps = self.toy.taps(self.scaled(picture[None].astype(np.float64)).requires_grad_())
        logits = self.toy.head(taps[-1])[0]
        margin = logits[TARGET] - torch.logsumexp(logits[[k for k in range(5) if k != TARGET]], 0)
        self.gradients = [gradient[0].numpy() for gradient in torch.autograd.grad(margin, taps)]
        self.features = [tap.detach()[0].numpy() for tap in taps]

    def scaled(self, pictures: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pictures / 50 - 2.5, -1, 1)))

    def probabilities(self, pictures: NDArray[np.float64]) -> NDArray[np.float64]:
        with torch.no_grad():
            return functional.softmax(self.toy(self.scaled(pictures)), 1)[:, TARGET].numpy()


@pytest.fixture(scope="module")
def plain(picture: NDArray[np.uint8]) -> Torch:
    return Torch(picture)


def enlarged(signed: NDArray[np.floating]) -> NDArray[np.float64]:
    """What argues against the class is cut off before enlarging, as the papers do."""
    maps = torch.from_numpy(np.maximum(np.asarray(signed, np.float64), 0))[None, None]
    return functional.interpolate(maps, size=SIZE, mode="bilinear", align_corners=False)[0, 0].numpy()


def assert_same(mine: NDArray[np.float32], theirs: NDArray[np.floating]) -> None:
    np.testing.assert_allclose(mine, theirs, atol=2e-3 * np.abs(theirs).max())
    assert np.corrcoef(mine.ravel(), theirs.ravel())[0, 1] > 0.9999


class TestAgainstTorch:
    def test_grad_cam(self, explain, plain: Torch):
        features, gradients = plain.features[-1], plain.gradients[-1]
        signed = sum(g.mean() * a for a, g in zip(features, gradients, strict=True))
        assert_same(explain(Method.GRAD_CAM).fused, enlarged(signed))

    def test_hires_cam(self, explain, plain: Torch):
        assert_same(explain(Method.HIRES_CAM).fused, enlarged((plain.features[-1] * plain.gradients[-1]).sum(0)))

    def test_grad_cam_plus_plus(self, explain, plain: Torch):
        features, gradients = plain.features[-1], plain.gradients[-1]
        signed = np.zeros(features.shape[1:])
        for feature, gradient in zip(features, gradients, strict=True):
            alpha = gradient**2 / np.maximum(2 * gradient**2 + gradient**3 * feature.sum(), 1e-30)
            signed += (np.where(gradient > 0, alpha * gradient, 0)).sum() * feature
        assert_same(explain(Method.GRAD_CAM_PLUS_PLUS).fused, enlarged(signed))

    def test_layer_cam_takes_the_largest_of_all_block_ends(self, explain, plain: Torch):
        scaled = []
        for features, gradients in zip(plain.features, plain.gradients, strict=True):
            found = enlarged((features * np.maximum(gradients, 0)).sum(0))
            scaled.append(np.tanh(2 * found / found.max()))
        found = explain(Method.LAYER_CAM)
        assert_same(found.fused, np.max(scaled, axis=0))
        assert "stride_grid" in found.notes
        assert len(found.block_maps) == len(plain.features)

    def test_score_cam_spends_a_pass_on_every_feature_map(self, explain, plain: Torch, picture: NDArray[np.uint8]):
        features = plain.features[-1]
        varying = sise.with_contrast(*sise.extremes(features, SIZE))
        masks, _, _ = sise.attribution_masks(features[varying], SIZE)
        shown = masks[..., None] * picture + (1 - masks[..., None]) * 125.0
        scores = plain.probabilities(shown.astype(np.float64))
        weights = np.exp(scores) / np.exp(scores).sum()
        found = explain(Method.SCORE_CAM)
        assert_same(found.fused, enlarged(np.einsum("k,khw->hw", weights, features[varying])))
        assert found.forward_passes == 1 + varying.sum()

    def test_recipro_cam_asks_the_head_alone(self, explain, plain: Torch):
        features = plain.features[-1]
        side = features.shape[1]
        gaussian = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        scores = np.zeros((side, side))
        for row, column in np.ndindex(side, side):
            mask = np.zeros((side + 2, side + 2))
            mask[row : row + 3, column : column + 3] = gaussian
            masked = torch.from_numpy(features * mask[1:-1, 1:-1])[None]
            with torch.no_grad():
                scores[row, column] = functional.softmax(plain.toy.head(masked), 1)[0, TARGET]
        found = explain(Method.RECIPRO_CAM)
        assert_same(found.fused, enlarged(scores - scores.min()))
        assert found.forward_passes == 1
        assert f"head_passes_{side * side}" in found.notes

    def test_rise_accumulates_what_it_showed(self, explain, plain: Torch, picture: NDArray[np.uint8]):
        found = explain(Method.RISE, max_passes=100, baseline="black")
        (masks,) = cams.rise_masks(SIZE, seed=0, count=98, chunk=98)
        scores = plain.probabilities((masks[..., None] * picture).astype(np.float64))
        mean = np.einsum("k,khw->hw", scores, masks) / 98
        assert_same(found.fused, mean - mean.min())
        assert found.forward_passes == 99
        assert "not_settled" in found.notes

    def test_occlusion_gives_each_pixel_the_mean_drop(self, explain, plain: Torch, picture: NDArray[np.uint8]):
        found = explain(Method.OCCLUSION)
        full = plain.probabilities(picture[None].astype(np.float64))[0]
        drops, times = np.zeros(SIZE), np.zeros(SIZE)
        for top in range(0, 57, 4):
            for left in range(0, 57, 4):
                hidden = picture.astype(np.float64)
                hidden[top : top + 8, left : left + 8] = 125.0
                drops[top : top + 8, left : left + 8] += full - plain.probabilities(hidden[None])[0]
                times[top : top + 8, left : left + 8] += 1
        np.testing.assert_allclose(found.fused, np.maximum(drops / times, 0), atol=1e-5)
        assert found.forward_passes == 1 + 15 * 15


@pytest.mark.parametrize("method", RIVALS)
def test_every_method_keeps_the_promises_of_an_explanation(method: Method, explain, picture: NDArray[np.uint8]):
    found = explain(method, profile="quick")

    assert found.status is Status.EXPLAINED
    assert found.settings.method is method
    assert found.fused.shape == found.rank.shape == picture.shape[:2]
    assert found.fused.dtype == np.float32
    assert found.fused.min() >= 0
    assert sorted(found.rank.ravel()) == list(range(found.rank.size))
    order = np.argsort(found.rank.ravel())
    assert (np.diff(found.fused.ravel()[order]) <= 0).all(), "the ranking follows the map"
    assert found.duration_ms > 0
    assert sum(found.tiles[0].scores) == pytest.approx(1, abs=1e-5)
    assert ("knows_nothing" in found.notes) == (method in BLIND)
    for name, block_map in found.block_maps.items():
        sums = next(block.sums for block in found.tiles[0].blocks if block.tensor == name)
        assert np.array_equal(block_map, sise.normalized(sums, SIZE)), "a block map can be rebuilt from its record"


@pytest.mark.parametrize("method", RIVALS)
def test_the_same_settings_give_the_same_map(method: Method, explain, bundle: ModelBundle, picture: NDArray[np.uint8]):
    with Explainer(bundle, method=method, profile="quick", device="cpu", threads=1, baseline="mean") as again:
        assert np.array_equal(again(picture, target=TARGET).fused, explain(method, profile="quick").fused)


@pytest.mark.parametrize("method", [Method.RISE, Method.OCCLUSION, Method.SCORE_CAM])
def test_bounds_hold_for_methods_that_mask(method: Method, explain):
    assert explain(method, max_passes=20).forward_passes <= 20
    hurried = explain(method, budget_s=1e-6)
    assert hurried.forward_passes <= 1 + 16
    assert hurried.fused.any()


def test_masks_at_picture_resolution_reach_the_network_as_they_are(bundle: ModelBundle, picture: NDArray[np.uint8]):
    """The scoring graph stretches masks to [0, 1]: those of RISE and of occlusion must be fixed points of that."""
    window = picture.astype(np.float32)
    (rise,) = cams.rise_masks(SIZE, seed=5, count=6, chunk=6)
    (patches,) = cams.occlusion_masks(SIZE, patch=32, stride=32, chunk=8)
    hidden = sise.baseline_picture(window, Baseline.BLUR, mean=[0])
    with Explainer(bundle, device="cpu", threads=1) as explainer:
        for masks in (rise, patches):
            by_graph = explainer.engine.score_masks(window, masks, baseline=hidden).probabilities
            composed = masks[..., None] * window + (1 - masks[..., None]) * hidden
            np.testing.assert_allclose(by_graph, explainer.engine.predict(composed), atol=1e-5)


def test_a_contrast_asks_every_method_for_the_evidence_over_the_rival(bundle: ModelBundle, picture: NDArray[np.uint8]):
    for method in (Method.GRAD_CAM, Method.OCCLUSION):
        with Explainer(bundle, method=method, profile="quick", device="cpu", threads=1) as explainer:
            over_all = explainer(picture, target=TARGET)
            over_one = explainer(picture, target=TARGET, against="free")
        assert over_one.settings.against == "free"
        assert not np.array_equal(over_all.fused, over_one.fused)


def test_a_network_that_something_leads_round_is_refused_by_recipro_cam_alone(
    bundle: ModelBundle, picture: NDArray[np.uint8]
):
    pierced = ModelBundle(
        bundle.folder,
        bundle.card,
        bundle.blocks,
        bundle.fingerprint,
        bundle.dynamic_batch,
        bundle.manifest | {"chain": bundle.manifest["chain"][:-1]},
    )
    with (
        Explainer(pierced, method=Method.RECIPRO_CAM, device="cpu") as explainer,
        pytest.raises(UnsupportedModelError, match="choose a method"),
    ):
        explainer(picture, target=TARGET)


def test_sise_is_not_one_of_its_own_rivals(bundle: ModelBundle):
    with pytest.raises(ValueError, match="block by block"):
        next(methods.find_evidence(None, None, method=Method.SISE))  # type: ignore[arg-type]


def test_the_command_line_takes_every_method(bundle: ModelBundle, picture: NDArray[np.uint8], tmp_path: Path):
    import cv2
    from typer.testing import CliRunner

    from inspect_xai.cli import app

    cv2.imwrite(str(tmp_path / "part.png"), picture)
    given = ["explain", str(bundle.folder), str(tmp_path / "part.png"), "--out", str(tmp_path / "maps")]
    outcome = CliRunner().invoke(app, [*given, "--method", "hirescam", "--device", "cpu"])

    assert outcome.exit_code == 0, outcome.output
    assert "hirescam" in outcome.output
    assert (tmp_path / "maps" / "part" / "manifest.json").is_file()
