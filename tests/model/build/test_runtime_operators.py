"""Files that ONNX Runtime's own quantizer and optimizer wrote are run as they are, and explained by differences."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from inspect_xai.errors import UnsupportedModelError
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.model.engine import Engine
from inspect_xai.records import Explanation
from tests.support.odd_bundles import built, card, explained
from tests.support.toy_runtime import dynamic, in_operators, operators, optimized, residual_network, unpadded_network

EXTENDED, ALL = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, ort.GraphOptimizationLevel.ORT_ENABLE_ALL
SIZES = [(8, 32, 32), (8, 16, 16), (12, 8, 8)]  # of the block ends: Relu r1, Relu r2, Concat

WRITTEN: dict[str, tuple[Callable[[], onnx.ModelProto], set[str]]] = {
    "quantize_dynamic": (dynamic, {"ConvInteger", "MatMulInteger"}),
    "quantize_dynamic, optimized": (lambda: optimized(dynamic(), EXTENDED), {"ConvInteger", "DynamicQuantizeMatMul"}),
    "quantize_static": (
        in_operators,
        {"QLinearConv", "QLinearAdd", "QLinearConcat", "QLinearGlobalAveragePool", "QGemm"},
    ),
    "quantize_static, optimized": (lambda: optimized(in_operators(), ALL), {"QLinearAdd", "QLinearConcat"}),
    "optimized": (lambda: optimized(residual_network(), EXTENDED), {"FusedConv"}),
}


def alphas(bundle: ModelBundle) -> np.ndarray:
    """All channels' alphas of the class "good" for one picture, shallow to deep."""
    coarse = np.random.default_rng(5).integers(0, 256, (8, 8, 3), np.uint8)
    with Engine(bundle, device="cpu", threads=1) as engine:
        trace = engine.trace(coarse.repeat(4, axis=0).repeat(4, axis=1).astype(np.float32), target=1)
    return np.concatenate(list(trace.alphas.values()))


@functools.cache
def exported() -> tuple[np.ndarray, Explanation]:
    """The same network as it was exported, in float and with gradients."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = built(residual_network(), card(), Path(folder))
        assert bundle.manifest["gradient"] == "reverse_mode"
        assert [(end.channels, end.height, end.width) for end in bundle.blocks] == SIZES
        return alphas(bundle), explained(bundle, target="good")


@pytest.mark.parametrize("how", WRITTEN)
def test_what_the_runtime_wrote_explains_as_the_network_it_was_made_from(how: str, tmp_path: Path) -> None:
    make, expected_operators = WRITTEN[how]
    given = make()
    assert operators(given) >= expected_operators

    bundle = built(given, card(), tmp_path)

    assert bundle.manifest["gradient"] == "finite_difference"
    assert [(end.channels, end.height, end.width) for end in bundle.blocks] == SIZES
    found, expected = explained(bundle, target="good"), exported()[1]
    agreement = np.corrcoef(found.fused.ravel(), expected.fused.ravel())[0, 1]
    by_differences, by_gradients = alphas(bundle), exported()[0]
    if how == "optimized":
        np.testing.assert_allclose(found.prediction.scores, expected.prediction.scores, atol=1e-6)
        np.testing.assert_allclose(found.fused, expected.fused, atol=1e-5)
        np.testing.assert_allclose(by_differences, by_gradients, atol=0.05)
    else:  # 8 bits: numbers move by a 255th of their range
        np.testing.assert_allclose(found.prediction.scores, expected.prediction.scores, atol=0.01)
        assert agreement > 0.95
        assert np.corrcoef(by_differences, by_gradients)[0, 1] > 0.99
        sure = np.abs(by_gradients) > 0.5
        np.testing.assert_array_equal(np.sign(by_differences[sure]), np.sign(by_gradients[sure]))


def test_a_file_for_one_kind_of_processor_is_refused_with_the_level_to_take(tmp_path: Path) -> None:
    given = optimized(residual_network(), ALL)
    if not any(node.domain == "com.microsoft.nchwc" for node in given.graph.node):
        pytest.skip("this processor has no layout of its own")

    with pytest.raises(UnsupportedModelError, match=r"one kind of processor.* optimize it with ORT_ENABLE_EXTENDED"):
        built(given, card(), tmp_path)


@pytest.mark.parametrize("how", ["quantize_dynamic", "quantize_static", "quantize_static, optimized", "optimized"])
def test_cells_of_unpadded_layers_lie_where_they_do_in_float(how: str, tmp_path: Path) -> None:
    """Without padding, 3x3: cells of r1 begin at 1; pooled by 2 and again 3x3: 1.5 + 2 = 3.5; by 2 more: 5.5."""
    make = {
        "quantize_dynamic": dynamic,
        "quantize_static": in_operators,
        "quantize_static, optimized": lambda given: optimized(in_operators(given), ALL),
        "optimized": lambda given: optimized(given, EXTENDED),
    }[how]

    bundle = built(make(unpadded_network()), card(), tmp_path)

    grids = [end.grid for end in bundle.blocks]
    assert [(grid.rows.first_px, grid.rows.step_px) for grid in grids if grid] == [(1, 1), (3.5, 2), (5.5, 4)]
    assert [grid.columns for grid in grids if grid] == [grid.rows for grid in grids if grid]
