"""Product-CAM and Grad-SISE: their steps by hand, and on a network against plain arrays."""

from collections.abc import Iterator

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from inspect_xai.explain.budget import FEWEST_PASSES
from inspect_xai.explain.explainer import Explainer
from inspect_xai.maths import grad_sise, metrics, sise
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.model.engine import ALL_OTHERS, Engine
from inspect_xai.records import InputSpec, Method, ModelCard, Status
from tests.support.toys import toy_model

LABELS = ("pit", "crack", "stain", "dent", "free")
SIZE = (64, 64)


class TestGradientMap:
    def test_by_hand(self):
        local = np.array([[1, 0], [0, 3]], dtype=np.float32)
        found = grad_sise.gradient_map(local, (2, 2), feeds_stride=False)
        np.testing.assert_allclose(found, [[1 / 3, 0], [0, 1]], rtol=1e-6)

    def test_nothing_that_argues_for_the_class_is_no_map(self):
        assert grad_sise.gradient_map(np.zeros((3, 3), np.float32), (6, 6), feeds_stride=True) is None

    def test_the_grid_of_a_stride_is_wiped_out(self):
        local = np.zeros((16, 16), dtype=np.float32)
        local[::2, ::2] = 1  # what a convolution with stride 2 and a 1 x 1 kernel hands back
        local[8:, :] *= 3
        with_grid = grad_sise.gradient_map(local, (16, 16), feeds_stride=False)
        without = grad_sise.gradient_map(local, (16, 16), feeds_stride=True)
        assert np.ptp(with_grid[10:15, 4:12]) == 1
        assert np.ptp(without[11:14, 4:12]) < 0.1


def ranked(fusion: sise.Fusion) -> NDArray[np.int32]:
    return sise.rank_map(fusion.fused, fusion.before_last, fusion.deepest)


class TestFuse:
    def test_by_hand(self):
        """Of 50 pixels 2 are the peak, by the product; the others come in the order of Grad-CAM."""
        factor = np.full((5, 10), 0.5, np.float32)
        factor[4, 8:] = 0.9, 1.0
        coarse = np.arange(50, dtype=np.float32).reshape(5, 10)[:, ::-1] + 1  # largest at the left of the last row
        product = (factor + 0.05) * ((coarse - 1) / 49 + 0.05) ** 6
        fusion = grad_sise.fuse([factor], coarse, (5, 10))
        peak = np.argsort(-product, axis=None)[:2]
        order = [*peak, *(place for place in np.argsort(-coarse, axis=None) if place not in peak)]
        assert np.argsort(ranked(fusion), axis=None).tolist() == order
        values = np.sort(product, axis=None)[::-1]
        expected = (values - values[-1]) / (values[0] - values[-1])
        np.testing.assert_allclose(fusion.fused.ravel()[order], expected, rtol=1e-5, atol=1e-9)

    def test_map_and_ranking_say_the_same(self):
        rng = np.random.default_rng(3)
        factors = [rng.random((20, 20), dtype=np.float32) for _ in range(3)]
        fusion = grad_sise.fuse(factors, rng.normal(size=(5, 5)).astype(np.float32), (20, 20))
        assert (np.diff(fusion.fused.ravel()[np.argsort(ranked(fusion), axis=None)]) <= 0).all()
        assert (fusion.fused.min(), fusion.fused.max()) == (0, 1)

    def test_a_block_that_misses_a_place_does_not_delete_it(self):
        sees, misses = np.array([[0, 1, 0.1]], np.float32), np.array([[1, 0, 0]], np.float32)
        fusion = grad_sise.fuse([sees, sees, misses], np.ones((1, 3), np.float32), (1, 3))
        assert fusion.deepest.argmax() == 1

    def test_constant_maps_say_nothing(self):
        assert not grad_sise.fuse([np.full((3, 3), 0.4, np.float32)], np.ones((3, 3)), (3, 3)).fused[1:].any()


def test_noise_is_that_of_a_camera_and_the_same_in_every_run():
    window = np.full((64, 64, 3), 128, np.float32)
    copies = grad_sise.noisy_copies(window)
    assert copies.shape == (5, 64, 64, 3)
    assert copies.dtype == np.float32
    assert np.array_equal(copies[0], window)
    assert np.std(copies[1:] - window) == pytest.approx(grad_sise.NOISE_SIGMA, rel=0.02)
    assert np.array_equal(copies, grad_sise.noisy_copies(window))


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


def by_hand(engine: Engine, picture: NDArray[np.uint8], block_maps: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """The product (H, W) step by step from single traces."""
    local: dict[str, NDArray[np.float64]] = {}
    coarse = 0
    copies = grad_sise.noisy_copies(picture.astype(np.float32))
    for copy in copies:
        trace = engine.trace(copy, target=0, against=ALL_OTHERS, gradients=True)
        for name, features in trace.features.items():
            one = (features * np.maximum(trace.gradients[name], 0)).sum(axis=0, dtype=np.float64)
            local[name] = local.get(name, 0) + np.maximum(one, 0) / len(copies)
        weights = trace.gradients[name].mean(axis=(1, 2), dtype=np.float64)
        coarse = coarse + np.tensordot(weights, features.astype(np.float64), 1) / len(copies)
    product = np.ones(SIZE)
    for number, one in enumerate(local.values(), start=1):
        smooth = one if number == len(local) else cv2.GaussianBlur(one, (0, 0), 1.0, borderType=cv2.BORDER_REFLECT_101)
        product *= stretched(smooth) + 0.05
    for one in block_maps:
        product *= one + 0.05
    return product * (stretched(np.maximum(coarse, 0)) + 0.05) ** 6


def stretched(values: NDArray[np.floating]) -> NDArray[np.float64]:
    large = sise.upsample(values, SIZE).astype(np.float64)
    return (large - large.min()) / np.ptp(large)


@pytest.mark.parametrize("method", [Method.PRODUCT_CAM, Method.GRAD_SISE])
def test_the_peak_is_that_of_the_product(engine: Engine, picture: NDArray[np.uint8], method: Method):
    plain = Explainer(engine, method=Method.SISE, mu=0.3)(picture, target=0)
    found = Explainer(engine, method=method, mu=0.3)(picture, target=0)
    with_masks = method is Method.GRAD_SISE
    product = by_hand(engine, picture, list(plain.block_maps.values()) if with_masks else [])
    peak = metrics.share_of(64 * 64, grad_sise.PEAK_SHARE)
    ours, theirs = np.argsort(found.rank, axis=None)[:peak], np.argsort(-product, axis=None)[:peak]
    assert len(np.intersect1d(ours, theirs)) >= peak - 1
    values = np.sort(product, axis=None)[::-1]
    np.testing.assert_allclose(
        np.sort(found.fused, axis=None)[::-1], (values - values[-1]) / (values[0] - values[-1]), atol=1e-4
    )
    assert found.forward_passes == (plain.forward_passes + grad_sise.NOISY_COPIES if with_masks else 5)
    if with_masks:
        assert all(np.array_equal(found.block_maps[name], plain.block_maps[name]) for name in plain.block_maps)


def test_bounds_hold(engine: Engine, picture):
    for bound in (FEWEST_PASSES, 30, 60):
        found = Explainer(engine, method=Method.GRAD_SISE, mu=0.0, max_passes=bound)(picture, target=0)
        assert found.status is Status.EXPLAINED
        assert found.forward_passes <= bound


@pytest.mark.parametrize("method", [Method.PRODUCT_CAM, Method.GRAD_SISE])
def test_a_contrast_is_another_map(engine: Engine, picture, method: Method):
    explainer = Explainer(engine, method=method, profile="quick")
    assert not np.array_equal(explainer(picture, target=0).fused, explainer(picture, target=0, against="free").fused)


def test_windows_traced_together_are_those_traced_alone(engine: Engine, picture):
    copies = grad_sise.noisy_copies(picture.astype(np.float32))
    together = list(engine.trace_together(copies, target=0, gradients=True))
    assert len(together) == len(copies)
    for copy, trace in zip(copies, together, strict=True):
        alone = engine.trace(copy, target=0, gradients=True)
        np.testing.assert_allclose(trace.probabilities, alone.probabilities, atol=1e-6)
        for name in alone.gradients:
            scale = np.abs(alone.gradients[name]).max()
            np.testing.assert_allclose(trace.gradients[name], alone.gradients[name], atol=1e-4 * scale)
