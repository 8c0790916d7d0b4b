"""Grad-SISE: its three steps by hand, and on a network that only it and its cost differ from SISE's."""

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from inspect_xai.errors import ExplanationError
from inspect_xai.explain import grad_sise_region
from inspect_xai.explain.budget import FEWEST_PASSES, PassBudget
from inspect_xai.explain.explainer import Explainer
from inspect_xai.maths import cams, grad_sise, metrics, sise
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.model.engine import ALL_OTHERS, Engine
from inspect_xai.records import Baseline, InputSpec, Method, ModelCard, Status
from tests.support.toys import toy_model

LABELS = ("pit", "crack", "stain", "dent", "free")
SIZE = (64, 64)


class TestGradientMap:
    def test_by_hand(self):
        features = np.array([[[1, 2], [3, 4]], [[1, 1], [1, 1]]], dtype=np.float32)
        gradients = np.array([[[1, 0], [-5, 0.5]], [[0, 0], [0, 1]]], dtype=np.float32)
        found = grad_sise.gradient_map(features, gradients, (2, 2), feeds_stride=False)  # sums to 1, 0, 0, 3
        np.testing.assert_allclose(found, [[1 / 3, 0], [0, 1]], rtol=1e-6)

    def test_nothing_that_argues_for_the_class_is_no_map(self):
        features = np.ones((2, 3, 3), dtype=np.float32)
        assert grad_sise.gradient_map(features, -features, (6, 6), feeds_stride=True) is None

    def test_the_grid_of_a_stride_is_wiped_out(self):
        gradients = np.zeros((1, 16, 16), dtype=np.float32)
        gradients[:, ::2, ::2] = 1  # what a convolution with stride 2 and a 1 x 1 kernel hands back
        gradients[:, 8:, :] *= 3
        features = np.ones_like(gradients)
        with_grid = grad_sise.gradient_map(features, gradients, (16, 16), feeds_stride=False)
        without = grad_sise.gradient_map(features, gradients, (16, 16), feeds_stride=True)
        assert np.ptp(with_grid[10:15, 4:12]) == 1
        assert np.ptp(without[11:14, 4:12]) < 0.1


class TestMultiply:
    def test_by_hand(self):
        one, two = np.array([[0, 1], [0.5, 1]], np.float32), np.array([[0.2, 0.2], [0.5, 1]], np.float32)
        raw = (one.astype(float) + 0.05) * (two + 0.05)
        expected = (raw - raw.min()) / (raw.max() - raw.min())
        np.testing.assert_allclose(grad_sise.multiply([one, two]), expected, rtol=1e-5, atol=1e-7)

    def test_a_block_that_misses_a_place_does_not_delete_it(self):
        sees, misses = np.array([[0, 1, 0.1]], np.float32), np.array([[1, 0, 0]], np.float32)
        found = grad_sise.multiply([sees, sees, misses])
        assert found.argmax() == 1

    def test_constant_maps_say_nothing_and_no_map_is_refused(self):
        assert not grad_sise.multiply([np.full((3, 3), 0.4, np.float32)]).any()
        with pytest.raises(ExplanationError, match="no map to multiply"):
            grad_sise.multiply([])


class TestRegions:
    def test_all_hold_the_peak_and_have_the_same_area(self):
        product = np.full((20, 20), 0.01, np.float32)
        product[3:5, 3:5] = 1
        coarse = np.zeros((20, 20), np.float32)
        coarse[12:, 12:] = 1
        own, other = grad_sise.regions(product, [coarse])
        for region in (own, other):
            assert region.sum() == 60 == metrics.share_of(400, metrics.KEPT_SHARE)
            assert region[3:5, 3:5].all()
        assert other[12:, 12:].sum() == 56, "filled up by the coarse map"

    def test_the_map_ends_at_the_region_and_the_product_breaks_the_ties(self):
        product = np.array([[0.9, 0.2, 0.6, 0.0]], np.float32)
        fusion = grad_sise.fuse_within(product, np.array([[True, True, False, False]]))
        assert fusion.fused.tolist() == [[pytest.approx(0.9), pytest.approx(0.2), 0, 0]]
        rank = sise.rank_map(fusion.fused, fusion.before_last, fusion.deepest)
        assert rank.tolist() == [[0, 1, 2, 3]]


class TestReserve:
    def test_asking_is_paid_out_of_the_bound(self):
        assert grad_sise_region.reserve(PassBudget(1.0, None, None), 500) == (PassBudget(1.0, None, None), True)
        assert grad_sise_region.reserve(PassBudget(1.0, 100, 9.0), 500) == (
            PassBudget(1.0, 100 - grad_sise_region.PASSES, 9.0),
            True,
        )
        limit, asks = grad_sise_region.reserve(PassBudget(0.1, None, None), 498)
        assert asks
        assert limit.masks(498) + 2 + grad_sise_region.PASSES == 50
        assert grad_sise_region.reserve(PassBudget(0.1, None, None), 98)[1] is False


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    folder = tmp_path_factory.mktemp("grad_sise")
    onnx.save(toy_model("resnet18"), folder / "toy.onnx")
    card = ModelCard("toy", "1", LABELS, InputSpec(*SIZE, scale=50.0, mean=(2.5,) * 3), ok_labels=("free",))
    return build_bundle(folder / "toy.onnx", card, folder / "bundle")


@pytest.fixture(scope="module")
def engine(bundle: ModelBundle) -> Iterator[Engine]:
    with Engine(bundle, device="cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    rng = np.random.default_rng(8)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    surface = 140 + 50 * np.sin(columns / 6) - 80 * np.exp(-((rows - 40) ** 2 + (columns - 20) ** 2) / 50)
    return np.clip(surface[..., None] + rng.normal(0, 9, (*SIZE, 3)), 0, 255).astype(np.uint8)


def test_the_map_is_the_product_of_blocks_and_gradients_in_the_region_that_leaves_most(engine: Engine, picture):
    """Step by step from SISE's own block maps, with plain arrays."""
    plain = Explainer(engine, method=Method.SISE, mu=0.3)(picture, target=0)
    found = Explainer(engine, method=Method.GRAD_SISE, mu=0.3)(picture, target=0)
    window = picture.astype(np.float32)
    trace = engine.trace(window, target=0, against=ALL_OTHERS, gradients=True)
    names = list(trace.features)
    factors = list(plain.block_maps.values())
    for name in names:
        one = grad_sise.gradient_map(trace.features[name], trace.gradients[name], SIZE, feeds_stride=name != names[-1])
        factors += [] if one is None else [one]
    product = np.prod([factor.astype(float) + 0.05 for factor in factors], axis=0)
    product = ((product - product.min()) / np.ptp(product)).astype(np.float32)
    region = found.fused > 0
    assert region.sum() in (614, 613), "15 % of 64 x 64, less the product's own zero"
    np.testing.assert_allclose(found.fused[region], product[region], rtol=1e-4, atol=1e-6)

    fills = [sise.baseline_picture(window, kind, mean=engine.mean_px) for kind in Baseline]

    def left_by(shown: NDArray[np.bool_]) -> float:
        return float(
            engine.predict(np.stack([np.where(shown[..., None], window, fill) for fill in fills]))[:, 0].mean()
        )

    deep = names[-1]
    hires = sise.upsample(cams.hires_cam(trace.features[deep], trace.gradients[deep]), SIZE)
    candidates = grad_sise.regions(product, [hires, plain.block_maps[deep]])
    assert max(left_by(other) for other in candidates) <= left_by(sise.top_k(found.rank, 614)) + 1e-5
    assert found.forward_passes == plain.forward_passes + grad_sise_region.PASSES
    assert any(note.startswith("region_") for note in found.notes)
    assert all(np.array_equal(found.block_maps[name], plain.block_maps[name]) for name in plain.block_maps)


def test_bounds_hold(engine: Engine, picture):
    for bound in (FEWEST_PASSES, 30, 60):
        found = Explainer(engine, method=Method.GRAD_SISE, mu=0.0, max_passes=bound)(picture, target=0)
        assert found.status is Status.EXPLAINED
        assert found.forward_passes <= bound
    costs = [
        Explainer(engine, method=m, profile="fast")(picture, target=0).forward_passes
        for m in (Method.SISE, Method.GRAD_SISE)
    ]
    assert costs[0] == costs[1]
    unasked = Explainer(engine, method=Method.GRAD_SISE, mu=0.0, max_passes=FEWEST_PASSES)(picture, target=0)
    assert "region_hirescam" in unasked.notes


def test_the_network_is_asked_for_the_contrast(engine: Engine, picture):
    explainer = Explainer(engine, method=Method.GRAD_SISE, profile="quick")
    assert not np.array_equal(explainer(picture, target=0).fused, explainer(picture, target=0, against="free").fused)
