"""Where the cells of a block end lie: by hand, against what the network itself says, and the maps laid on them."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper
from scipy.ndimage import map_coordinates

from inspect_xai.audit.quantize import quantize_bundle
from inspect_xai.errors import BundleError
from inspect_xai.explain.explainer import Explainer
from inspect_xai.maths import cams as rivals
from inspect_xai.maths import grad_sise, sise
from inspect_xai.maths.surrogate import describe_masks
from inspect_xai.model.build.build import build_bundle, check_bundle
from inspect_xai.model.build.feature_grid import is_edge_to_edge, place_cells
from inspect_xai.model.bundle import ModelBundle, load_bundle
from inspect_xai.model.card import canonical
from inspect_xai.model.engine import Engine
from inspect_xai.records import (
    BlockEnd,
    CellAxis,
    CellGrid,
    Channels,
    ExplainSpec,
    Explanation,
    InputSpec,
    Layout,
    Method,
    ModelCard,
    SelectionRule,
)
from inspect_xai.storage.store import open_store
from inspect_xai.verify.replay import ReplayOutcome, archived_picture
from inspect_xai.web.rendering import block_map
from tests.support.line import replay, rows
from tests.support.line import run as run_line
from tests.support.toy_graphs import make_model, nhwc_model, run

SIDE = 64
HEIGHT, WIDTH = 40, 48  # of the picture that single operators are tried on
Nodes = list[onnx.NodeProto]
node = helper.make_node
ONE = np.ones((1, 1, 1, 1), np.float32)
MEAN_OF_4 = np.full((1, 4, 1, 1), 0.25, np.float32)
BILINEAR_4 = np.outer([0.25, 0.75, 0.75, 0.25], [0.25, 0.75, 0.75, 0.25])[None, None].astype(np.float32)
BILINEAR_3 = np.outer([0.5, 1, 0.5], [0.5, 1, 0.5])[None, None].astype(np.float32)


def mean(*kernel: int) -> NDArray[np.float32]:
    return np.full((1, 1, *kernel), 1 / np.prod(kernel), np.float32)


def ints(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def conv(kernel: int, **attributes: Any) -> tuple[Nodes, dict[str, Any]]:
    return [node("Conv", ["a", "w"], ["y"], kernel_shape=[kernel, kernel], **attributes)], {"w": mean(kernel, kernel)}


def pool(kernel: int, **attributes: Any) -> tuple[Nodes, dict[str, Any]]:
    return [node("AveragePool", ["a"], ["y"], kernel_shape=[kernel, kernel], **attributes)], {}


def resize(mode: str, how: str) -> tuple[Nodes, dict[str, Any]]:
    attributes = {"mode": mode, "coordinate_transformation_mode": how}
    return [node("Resize", ["a", "", "", "sizes"], ["y"], **attributes)], {"sizes": ints(1, 1, 72, 66)}


def transposed(weight: NDArray[np.float32], **attributes: Any) -> tuple[Nodes, dict[str, Any]]:
    return [node("ConvTranspose", ["a", "w"], ["y"], strides=[2, 2], **attributes)], {"w": weight}


FOCUS = [
    *(node("Slice", ["a", f"from_{i}{j}", "end", "axes", "two"], [f"part_{i}{j}"]) for i in (0, 1) for j in (0, 1)),
    node("Concat", ["part_00", "part_10", "part_01", "part_11"], ["parts"], axis=1),
    node("Conv", ["parts", "w"], ["y"]),
]
RESHAPED = [
    node("Reshape", ["a", "split"], ["b"]),
    node("Transpose", ["b"], ["c"], perm=[0, 1, 3, 5, 2, 4]),
    node("Reshape", ["c", "merged"], ["d"]),
    node("Conv", ["d", "w"], ["y"]),
]
CHANNELS_LAST = [
    node("Transpose", ["a"], ["b"], perm=[0, 2, 3, 1]),
    node("Pad", ["b", "pads"], ["c"]),
    node("Transpose", ["c"], ["d"], perm=[0, 3, 1, 2]),
    node("Conv", ["d", "w"], ["y"], strides=[2, 2]),
]
RESIDUAL = [
    node("Conv", ["a", "w"], ["b"]),
    node("Slice", ["a", "starts", "ends", "axes"], ["c"]),
    node("GlobalAveragePool", ["a"], ["gate"]),
    node("Mul", ["b", "half"], ["d"]),
    node("Mul", ["c", "half"], ["e"]),
    node("Mul", ["gate", "zero"], ["f"]),
    node("Sum", ["d", "e", "f"], ["y"]),
]
# What follows a 5x5 convolution without padding: it reads "a" (1, 1, 36, 44) and makes "y".
OPERATORS: dict[str, tuple[Nodes, dict[str, Any]]] = {
    "strided, padded behind": conv(3, strides=[2, 2], pads=[0, 0, 1, 1]),
    "dilated": conv(3, dilations=[3, 2]),
    "asymmetric pads": conv(4, strides=[3, 2], pads=[2, 1, 0, 3]),
    "same upper": conv(4, auto_pad="SAME_UPPER"),
    "same lower": conv(4, auto_pad="SAME_LOWER", strides=[2, 3]),
    "valid": conv(4, auto_pad="VALID", strides=[2, 2]),
    "pool": pool(2, strides=[2, 2]),
    "pool, ceil": pool(3, strides=[2, 2], ceil_mode=1),
    "pool, padded": pool(3, strides=[2, 2], pads=[1, 0, 0, 1]),
    "pool, same lower": pool(2, auto_pad="SAME_LOWER"),
    "pad": ([node("Pad", ["a", "pads"], ["y"], mode="reflect")], {"pads": ints(0, 0, 3, 1, 0, 0, 0, 2)}),
    "negative pad": ([node("Pad", ["a", "pads"], ["y"])], {"pads": ints(0, 0, -3, -1, 0, 0, 0, -2)}),
    "crop": (
        [node("Slice", ["a", "starts", "ends", "axes"], ["y"])],
        {"starts": ints(3, -40), "ends": ints(-2, 2**62), "axes": ints(2, 3)},
    ),
    "every second": (
        [node("Slice", ["a", "starts", "ends", "axes", "steps"], ["y"])],
        {"starts": ints(1, 2), "ends": ints(99, 99), "axes": ints(2, 3), "steps": ints(2, 3)},
    ),
    "gather": ([node("Gather", ["a", "rows"], ["y"], axis=2)], {"rows": ints(*range(2, 34, 3))}),
    "transposed": transposed(BILINEAR_4, pads=[1, 1, 1, 1]),
    "transposed, same upper": transposed(BILINEAR_3, auto_pad="SAME_UPPER"),
    "transposed, same lower": transposed(BILINEAR_3, auto_pad="SAME_LOWER"),
    "transposed, output shape": transposed(BILINEAR_3, output_shape=[72, 88]),
    "resize": resize("linear", "half_pixel"),
    "resize, asymmetric": resize("linear", "asymmetric"),
    "resize, aligned corners": resize("linear", "align_corners"),
    "space to depth": (
        [node("SpaceToDepth", ["a"], ["b"], blocksize=2), node("Conv", ["b", "w"], ["y"])],
        {"w": MEAN_OF_4},
    ),
    "focus": (
        FOCUS,
        {f"from_{i}{j}": ints(i, j) for i in (0, 1) for j in (0, 1)}
        | {"end": ints(99, 99), "axes": ints(2, 3), "two": ints(2, 2), "w": MEAN_OF_4},
    ),
    "reshaped": (RESHAPED, {"split": ints(1, 1, 18, 2, 22, 2), "merged": ints(1, 4, 18, 22), "w": MEAN_OF_4}),
    "channels last": (CHANNELS_LAST, {"pads": ints(0, 2, 0, 0, 0, 0, 3, 0), "w": mean(3, 3)}),
    "residual with a crop": (
        RESIDUAL,
        {"w": mean(3, 3), "starts": ints(1, 1), "ends": ints(-1, -1), "axes": ints(2, 3), "half": np.float32(0.5)}
        | {"zero": np.float32(0)},
    ),
}


def placed(nodes: Nodes, constants: dict[str, Any]) -> tuple[BlockEnd, tuple[str, ...], onnx.ModelProto]:
    """The end "y" with its grid, notes, and the network with "y" as its output."""
    first = node("Conv", ["x", "first"], ["a"], kernel_shape=[5, 5])
    model = make_model(
        [first, *nodes],
        inputs={"x": [1, 1, HEIGHT, WIDTH]},
        outputs={"y": None},
        constants={"first": mean(5, 5)} | constants,
    )
    inner = [name for each in model.graph.node for name in each.output if name != "y"]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    arrays = run(watched, {"x": np.zeros((1, 1, HEIGHT, WIDTH), np.float32)})
    shapes = {"x": (1, 1, HEIGHT, WIDTH)} | {name: array.shape for name, array in arrays.items()}
    end = BlockEnd("y", "", *shapes["y"][1:], rule="given")
    (found,), notes = place_cells(model, image="x", layout=Layout.NCHW, shapes=shapes, ends=[end])
    return found, notes, model


@pytest.mark.parametrize("name", OPERATORS)
def test_cells_lie_where_the_network_itself_says(name: str) -> None:
    """All kernels average, so a picture of row numbers (or of column numbers) comes out as each cell's own."""
    end, notes, model = placed(*OPERATORS[name])
    assert end.grid is not None
    assert notes == ()
    for axis, cells, ramp in (
        (end.grid.rows, end.height, np.mgrid[:HEIGHT, :WIDTH][0]),
        (end.grid.columns, end.width, np.mgrid[:HEIGHT, :WIDTH][1]),
    ):
        said = run(model, {"x": ramp[None, None].astype(np.float32)})["y"][0, 0]
        along = said[:, end.width // 2] if axis is end.grid.rows else said[end.height // 2]
        inner = np.arange(cells // 3, cells - cells // 3)  # where no padding is met
        np.testing.assert_allclose(axis.first_px + axis.step_px * inner, along[inner], atol=2e-4)


def test_cells_put_between_cells_are_spread_evenly() -> None:
    deeper = {"deeper": np.ones((4, 1, 1, 1), np.float32)}
    for mode in ("DCR", "CRD"):
        nodes = [node("Conv", ["a", "deeper"], ["b"]), node("DepthToSpace", ["b"], ["y"], blocksize=2, mode=mode)]
        end, _, _ = placed(nodes, deeper)
        assert end.grid == CellGrid(CellAxis(1.75, 0.5), CellAxis(1.75, 0.5))  # 2 + i is now at 1.75 + i and 2.25 + i


def test_the_nearest_cell_is_on_the_average_the_one_in_the_middle() -> None:
    for how in ("half_pixel", "asymmetric"):
        end, _, _ = placed(*resize("nearest", how))
        assert end.grid == CellGrid(CellAxis(1.75, 0.5), CellAxis(2 + (44 / 66 - 1) / 2, 44 / 66))


@pytest.mark.parametrize(("shift", "notes"), [(0, ()), (2, ("cells_of_paths_differ",))])
def test_paths_that_disagree_meet_halfway(shift: int, notes: tuple[str, ...]) -> None:
    """A 3x3 convolution without padding moves its cells by 1; a crop beside it that leaves out 1 + shift rows, more."""
    nodes = [
        node("Conv", ["a", "w"], ["b"]),
        node("Slice", ["a", "starts", "ends", "axes"], ["c"]),
        node("Pad", ["c", "pads"], ["d"]),
        node("Add", ["b", "d"], ["y"]),
    ]
    cut = {"starts": ints(1 + shift, 1), "ends": ints(35, 43), "axes": ints(2, 3)}
    end, told, _ = placed(nodes, cut | {"pads": ints(0, 0, 0, 0, 0, 0, shift, 0), "w": mean(3, 3)})
    assert told == notes
    assert end.grid == CellGrid(CellAxis(3 + shift / 2, 1), CellAxis(3, 1))


def test_what_cannot_be_followed_is_noted() -> None:
    nodes = [
        node("Reshape", ["a", "flat"], ["b"]),
        node("MatMul", ["b", "w"], ["c"]),
        node("Reshape", ["c", "s"], ["y"]),
    ]
    constants = {"flat": ints(1, 36 * 44), "w": np.ones((36 * 44, 72), np.float32), "s": ints(1, 2, 6, 6)}
    end, notes, _ = placed(nodes, constants)
    assert (end.grid, notes) == (None, ("cells_unknown",))


@pytest.mark.parametrize(
    ("first", "step", "cells", "side", "expected"),
    [
        (0.0, 32.0, 7, 224, True),  # ResNet: 3x3 convolutions of stride 2 padded by 1
        (31.0, 32.0, 7, 224, True),  # the same padded behind, as TensorFlow does
        (15.5, 32.0, 7, 224, True),  # pools of 2x2
        (7.5, 16.0, 6, 100, True),  # pools of 2x2 that leave the last 4 pixels out
        (3.0, 4.0, 55, 224, False),  # SqueezeNet: 7x7 without padding, then 3x3 pools that round up
        (37.0, 32.0, 8, 299, False),  # Inception
        (2.0, 1.0, 60, 64, False),  # 5x5 without padding
        (7.5, 16.0, 2, 47, False),  # pools of 2x2 that leave the last 15 pixels out
        (16.0, 4.0, 16, 64, False),  # as many cells as steps, and all moved
    ],
)
def test_padded_layers_are_told_from_others(first: float, step: float, cells: int, side: int, expected: bool) -> None:
    assert is_edge_to_edge(CellAxis(first, step), cells, side) == expected


@pytest.mark.parametrize("side", range(33, 400, 7))
def test_layers_padded_on_both_sides_reach_from_edge_to_edge_at_every_size(side: int) -> None:
    cells, step = side, 1
    for _ in range(5):  # 3x3, stride 2, padded by 1
        cells, step = (cells - 1) // 2 + 1, 2 * step
        assert is_edge_to_edge(CellAxis(0.0, step), cells, side)


@pytest.mark.parametrize(("cell", "expected"), [(0, 15.5), (4, 31.5), (8, 47.5)])
def test_a_cells_gradient_lies_around_its_place(cell: int, expected: float) -> None:
    """Three 5x5 convolutions with random weights, two pools: the center of mass of the gradient's square, by torch."""
    torch.manual_seed(1)
    seen = torch.zeros(SIDE, SIDE)
    for _ in range(8):
        layers = [torch.nn.Conv2d(1, 8, 5), torch.nn.AvgPool2d(2), torch.nn.Conv2d(8, 8, 5), torch.nn.AvgPool2d(2)]
        network = torch.nn.Sequential(*layers, torch.nn.Conv2d(8, 8, 5))
        picture = torch.zeros(1, 1, SIDE, SIDE, requires_grad=True)
        for channel in network(picture)[0, :, cell, cell]:
            (gradient,) = torch.autograd.grad(channel, picture, retain_graph=True)
            seen += gradient[0, 0].square()
    pixels = torch.arange(float(SIDE))
    center = [float((seen.sum(other) * pixels).sum() / seen.sum()) for other in (0, 1)]
    assert center == pytest.approx([expected] * 2, abs=0.5)


def spot_finder(pads: Sequence[int]) -> onnx.ModelProto:
    """A bright spot anywhere makes class 0: three 5x5 convolutions, 2x2 pools between them, padded by `pads`."""
    count, kernel = 4, 5
    first = np.zeros((count, 1, kernel, kernel), np.float32)
    first[:, 0, 1:4, 1:4] = np.array([1, 1.2, 0.8, 1.1])[:, None, None] / 9
    same = np.zeros((count, count, kernel, kernel), np.float32)
    same[range(count), range(count), 2, 2] = 1
    weights = {"w1": first, "b1": np.full(count, -0.5, np.float32), "w2": same, "w3": same}
    weights |= {"w4": np.stack([np.full(count, 400), np.zeros(count)], 1).astype(np.float32)}
    weights |= {"b4": np.array([-1, 1], np.float32)}
    nodes, x = [], "x"
    for number, pad in enumerate(pads, 1):
        inputs = [x, f"w{number}", *(["b1"] if number == 1 else [])]
        nodes += [node("Conv", inputs, [f"c{number}"], pads=[pad] * 4), node("Relu", [f"c{number}"], [f"r{number}"])]
        x = f"r{number}"
        if number < len(pads):
            nodes.append(node("MaxPool", [x], [f"p{number}"], kernel_shape=[2, 2], strides=[2, 2]))
            x = f"p{number}"
    nodes += [node("GlobalAveragePool", [x], ["g"]), node("Flatten", ["g"], ["f"])]
    nodes.append(node("Gemm", ["f", "w4", "b4"], ["logits"]))
    return make_model(
        nodes, inputs={"x": ["N", 1, SIDE, SIDE]}, outputs={"logits": ["N", 2]}, constants=weights, opset=13
    )


CARD = ModelCard(
    "spots", "1", ("spot", "free"), InputSpec(SIDE, SIDE, channels=Channels.GRAY, scale=255.0), ok_labels=("free",)
)
PADS = {"same": (2, 2, 2), "valid": (0, 0, 0), "mixed": (2, 0, 2)}
GRIDS = {
    "same": [None] * 3,
    "valid": [(2, 1), (6.5, 2), (15.5, 4)],  # see cells.py
    "mixed": [(0, 1), (4.5, 2), (5.5, 4)],  # 64 cells; 32 at 0.5 + 2i, 28; 14 at 5.5 + 4i
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelBundle]:
    folder = tmp_path_factory.mktemp("cells")
    made = {}
    for name, pads in PADS.items():
        onnx.save(spot_finder(pads), folder / f"{name}.onnx")
        made[name] = build_bundle(folder / f"{name}.onnx", CARD, folder / name)
    return made


@pytest.fixture(scope="module", params=list(PADS))
def engine(request: pytest.FixtureRequest, bundles: dict[str, ModelBundle]) -> Iterator[Engine]:
    with Engine(bundles[request.param], device="cpu", threads=1) as found:
        yield found


def spot(row: int, column: int) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.where((rows - row) ** 2 + (columns - column) ** 2 <= 10, 255, 0).astype(np.uint8)


def explained(engine: Engine, method: str, picture: NDArray[np.uint8], **settings: Any) -> Explanation:
    explainer = Explainer(engine, method=method, faithfulness=False, **settings)
    return explainer.explain(explainer.look(picture), target="spot")


@pytest.mark.parametrize("name", PADS)
def test_offsets_and_steps_by_hand(name: str, bundles: dict[str, ModelBundle]) -> None:
    found = [end.grid and (end.grid.rows.first_px, end.grid.rows.step_px) for end in bundles[name].blocks]
    assert found == GRIDS[name]
    assert [end.grid is None or end.grid.rows == end.grid.columns for end in bundles[name].blocks] == [True] * 3
    assert load_bundle(bundles[name].folder).blocks == bundles[name].blocks
    assert check_bundle(bundles[name].folder).manifest["proofs"]["masking"] < 1e-4


def enlarged(maps: NDArray[np.floating], grid: CellGrid | None) -> NDArray[np.float64]:
    """Bilinear sampling of one map (h, w) at the window's pixels, by scipy; edges continued."""
    place = []
    for cells, axis in zip(maps.shape, (grid.rows, grid.columns) if grid else (None, None), strict=True):
        pixels = np.arange(SIDE)
        place.append((pixels - axis.first_px) / axis.step_px if axis else (pixels + 0.5) * cells / SIDE - 0.5)
    return np.asarray(
        map_coordinates(maps.astype(np.float64), np.meshgrid(*place, indexing="ij"), order=1, mode="nearest")
    )


def stretched(found: NDArray[np.float64]) -> NDArray[np.float64]:
    return (found - found.min()) / np.ptp(found)


def by_hand(engine: Engine, window: NDArray[np.float32], method: Method) -> NDArray[np.floating]:
    """The map of a method from the network's own numbers, with every resizing done by scipy."""
    grids = [end.grid for end in engine.bundle.blocks]
    has_gradients = method not in (Method.SISE, Method.ADA_SISE)
    trace = engine.trace(window, target=0, gradients=has_gradients)
    features, alphas = list(trace.features.values()), list(trace.alphas.values())
    if method in (Method.SISE, Method.ADA_SISE):
        rule = SelectionRule.ADA if method is Method.ADA_SISE else SelectionRule.MU
        block_maps = []
        for maps, alpha, grid in zip(features, alphas, grids, strict=True):
            kept = sise.select(alpha, rule=rule, mu=engine.card.explain.mu).kept
            masks = np.stack([stretched(enlarged(found, grid)) for found in maps[kept]])
            said = engine.predict((window[None] * masks[..., None]).astype(np.float32))[:, 0].astype(np.float64)
            block_maps.append(stretched(np.mean([s * m / m.sum() for s, m in zip(said, masks, strict=True)], axis=0)))
        return sise.fuse([found.astype(np.float32) for found in block_maps]).fused
    gradients, deep = list(trace.gradients.values()), grids[-1]
    if method is Method.LAYER_CAM:
        cams = [
            enlarged(np.maximum(rivals.layer_cam(f, g), 0), at)
            for f, g, at in zip(features, gradients, grids, strict=True)
        ]
        return np.max([np.tanh(2 * cam / (cam.max() or 1)) for cam in cams], axis=0)
    combine = {
        Method.GRAD_CAM: rivals.grad_cam,
        Method.GRAD_CAM_PLUS_PLUS: rivals.grad_cam_plus_plus,
        Method.HIRES_CAM: rivals.hires_cam,
    }
    if method in combine:
        return enlarged(np.maximum(combine[method](features[-1], gradients[-1]), 0), deep)
    assert method is Method.SCORE_CAM
    masks = np.stack([stretched(enlarged(found, deep)) for found in features[-1]])
    said = engine.predict((window[None] * masks[..., None]).astype(np.float32))[:, 0]
    return enlarged(np.maximum(rivals.score_cam(features[-1], said), 0), deep)


@pytest.mark.parametrize("method", ["sise", "ada-sise", "grad-cam", "grad-cam++", "hirescam", "layer-cam", "score-cam"])
def test_maps_equal_those_made_by_hand(engine: Engine, method: str) -> None:
    picture = spot(22, 37)
    found = explained(engine, method, picture, baseline="black", profile="exact")
    expected = by_hand(engine, picture[..., None].astype(np.float32), Method(method))
    np.testing.assert_allclose(found.fused, expected, atol=2e-5 * float(np.abs(expected).max()))


def test_grad_sises_factors_lie_on_the_grids(engine: Engine) -> None:
    window = spot(22, 37)[..., None].astype(np.float32)
    trace = engine.trace(window, target=0, gradients=True)
    for end in engine.bundle.blocks:
        features, gradients = trace.features[end.tensor], trace.gradients[end.tensor]
        local = np.maximum(rivals.layer_cam(features, gradients), 0)
        found = grad_sise.gradient_map(local, (SIDE, SIDE), feeds_stride=False, grid=end.grid)
        expected = stretched(enlarged(local, end.grid))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def distance(found: NDArray[np.floating], row: int, column: int) -> float:
    """From the center of mass of a map's square to a place, in pixels."""
    weight = found.astype(np.float64) ** 2
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return float(np.hypot((rows * weight).sum() / weight.sum() - row, (columns * weight).sum() / weight.sum() - column))


@pytest.mark.parametrize(
    "method",
    [
        "sise",
        "ada-sise",
        "grad-sise",
        "product-cam",
        "grad-cam",
        "grad-cam++",
        "hirescam",
        "layer-cam",
        "score-cam",
        "recipro-cam",
    ],
)
def test_maps_point_to_the_spot(engine: Engine, method: str) -> None:
    """Among the cells of every block end: beyond the outer ones their values are continued to the window's edge."""
    for row, column in ((24, 24), (32, 32), (26, 38), (40, 24)):
        found = explained(engine, method, spot(row, column)).fused
        assert distance(found, row, column) < 2, (row, column)


@pytest.mark.parametrize("method", ["sise", "ada-sise", "grad-sise"])
def test_near_the_outer_cells_the_peak_is_at_the_spot(engine: Engine, method: str) -> None:
    for row, column in ((18, 18), (46, 46), (18, 32)):
        found = explained(engine, method, spot(row, column)).fused
        rows, columns = np.nonzero(found == found.max())
        assert np.hypot(rows.mean() - row, columns.mean() - column) < 2.5


@pytest.mark.parametrize("method", ["grad-cam", "grad-cam++", "hirescam", "score-cam", "recipro-cam"])
def test_near_the_outer_cells_the_first_pixel_is_at_the_spot(engine: Engine, method: str) -> None:
    """Beyond the outer cells a map of the deepest block is flat; the first of equal pixels is one beside the cells."""
    for row, column in ((18, 18), (46, 46), (18, 32)):
        rank = explained(engine, method, spot(row, column)).rank
        first = np.unravel_index(rank.argmin(), rank.shape)
        assert np.hypot(first[0] - row, first[1] - column) < 4


def test_extremes_and_sums_on_a_grid_equal_those_of_the_enlarged_maps() -> None:
    rng = np.random.default_rng(2)
    for shape in ((9, 9), (3, 17), (2, 2)):
        features = rng.normal(size=(4, *shape))
        grid = CellGrid(CellAxis(15.5, 4), CellAxis(-1.25, 3.7))
        masks = np.stack([enlarged(found, grid) for found in features])
        low, high = sise.extremes(features, (SIDE, SIDE), grid=grid)
        np.testing.assert_allclose(low, masks.min(axis=(1, 2)), atol=1e-9)
        np.testing.assert_allclose(high, masks.max(axis=(1, 2)), atol=1e-9)
        made, minimum, span = sise.attribution_masks(features, (SIDE, SIDE), grid=grid)
        np.testing.assert_allclose(made[0], stretched(masks[0]), atol=1e-6)
        np.testing.assert_allclose([minimum[1], span[1]], [masks[1].min(), np.ptp(masks[1])], rtol=1e-5)
        scores = [0.1, 0.9, 0.4, 0.2]
        sums = sise.weighted_sums(features, scores, size=(SIDE, SIDE), grid=grid)
        expected = np.mean(
            [s * (m - m.min()) / (m - m.min()).sum() for s, m in zip(scores, masks, strict=True)], axis=0
        )
        np.testing.assert_allclose(sise.upsample(sums, (SIDE, SIDE), grid=grid), expected, rtol=1e-4, atol=1e-9)


def test_the_engine_shows_masks_on_their_grid(bundles: dict[str, ModelBundle]) -> None:
    rng = np.random.default_rng(4)
    window, hidden = (rng.uniform(0, 255, (SIDE, SIDE, 1)).astype(np.float32) for _ in range(2))
    maps = rng.normal(size=(5, 9, 7)).astype(np.float32)
    with Engine(bundles["valid"], device="cpu", threads=1, bucket=2) as engine:
        for grid in (bundles["valid"].blocks[-1].grid, CellGrid(CellAxis(3, 5), CellAxis(0, 9)), None):
            found = engine.score_masks(window, maps, baseline=hidden, grid=grid)
            masks = np.stack([enlarged(each, grid) for each in maps])
            seen = np.stack([stretched(each) for each in masks])[..., None]
            expected = engine.predict((seen * window + (1 - seen) * hidden).astype(np.float32))
            np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
            np.testing.assert_allclose(found.minimum, masks.min(axis=(1, 2)), atol=1e-5)
    with Engine(bundles["same"], device="cpu", threads=1) as engine, pytest.raises(ValueError, match="edge to edge"):
        engine.score_masks(window, maps, baseline=hidden, grid=CellGrid(CellAxis(3, 5), CellAxis(0, 9)))


def test_a_padded_networks_bundle_is_what_it_was_before_grids(tmp_path: Path) -> None:
    onnx.save(nhwc_model(), tmp_path / "nhwc.onnx")
    spec = InputSpec(64, 64, scale=50.0, mean=(2.5,) * 3, layout=Layout.NHWC)
    card = ModelCard("toy", "1", tuple(f"c{number}" for number in range(5)), spec)
    bundle = build_bundle(tmp_path / "nhwc.onnx", card, tmp_path / "bundle")
    # Recorded with the version that knew no grids.
    assert bundle.fingerprint == "85cca6b2f46cfdb00c18e68013503eb6c71c94b7fe8fb00c82125d4f389b110a"
    assert all("grid" not in end for end in bundle.manifest["blocks"])
    graph = onnx.load(bundle.graph("score"), load_external_data=False).graph
    assert [info.name for info in graph.input] == ["picture", "baseline", "image", "maps"]
    assert [each.op_type for each in graph.node].count("Resize") == 1


def test_without_a_grid_maps_are_bit_by_bit_what_they_were() -> None:
    def before(size_out: int, size_in: int) -> NDArray[np.float64]:
        center = np.clip((np.arange(size_out) + 0.5) * size_in / size_out - 0.5, 0, size_in - 1)
        left = np.floor(center).astype(np.intp)
        matrix, row = np.zeros((size_out, size_in)), np.arange(size_out)
        matrix[row, left] = 1 - (center - left)
        matrix[row, np.minimum(left + 1, size_in - 1)] += center - left
        return matrix

    for size_out, size_in in ((224, 7), (64, 64), (100, 13), (33, 2), (5, 9)):
        assert np.array_equal(sise.interpolation(size_out, size_in), before(size_out, size_in))


def as_before_grids(bundle: ModelBundle, folder: Path) -> Path:
    """A copy with the manifest of a version that knew no grids."""
    shutil.copytree(bundle.folder, folder)
    manifest = dict(bundle.manifest)
    del manifest["cells"]
    manifest["blocks"] = [{k: v for k, v in end.items() if k != "grid"} for end in manifest["blocks"]]
    parts = [
        canonical(bundle.card),
        manifest["files"]["model.onnx"]["sha256"],
        json.dumps(manifest["blocks"], sort_keys=True),
        manifest["versions"]["recipe"],
    ]
    manifest["fingerprint"] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_bundle_from_before_grids_is_refused_where_its_maps_were_wrong(
    bundles: dict[str, ModelBundle], tmp_path: Path
) -> None:
    old = load_bundle(as_before_grids(bundles["same"], tmp_path / "same"))
    assert old.fingerprint == bundles["same"].fingerprint
    with pytest.raises(BundleError, match=r"point to the wrong place.*rebuild it"):
        load_bundle(as_before_grids(bundles["valid"], tmp_path / "valid"))


def test_a_grid_is_part_of_the_fingerprint(bundles: dict[str, ModelBundle], tmp_path: Path) -> None:
    folder = as_before_grids(bundles["valid"], tmp_path / "valid")
    assert json.loads((folder / "manifest.json").read_text())["fingerprint"] != bundles["valid"].fingerprint
    ends = [dataclasses.asdict(end) for end in bundles["valid"].blocks]
    assert bundles["valid"].manifest["blocks"] == ends


def test_recorded_block_maps_are_shown_on_their_grid(bundles: dict[str, ModelBundle], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in/P1.png"), spot(18, 32))
    db = f"sqlite:///{tmp_path / 'line.db'}"
    run_line(tmp_path / "in", bundles["valid"].folder, db)
    with open_store(db) as store:
        found = store.get(rows(db)[0].inspection_id, maps=True)
        assert store.ledger.verify().holds
    assert found.explanation is not None
    blocks = found.explanation.tiles[0].blocks
    assert [block.grid for block in blocks] == [end.grid for end in bundles["valid"].blocks]
    for block in blocks:
        assert block.sums is not None
        expected = stretched(enlarged(block.sums, block.grid))
        np.testing.assert_allclose(block_map(found, block.tensor), expected, atol=1e-5)
    assert replay(found, archived_picture(found), bundles["valid"].folder).outcome is ReplayOutcome.HOLDS


def test_windows_in_step_share_runs_only_on_one_grid(bundles: dict[str, ModelBundle]) -> None:
    """Two windows of one picture, and the same two one after the other."""
    picture = np.hstack([spot(18, 20), spot(30, 40)])
    found = []
    for bucket in (8, 1):
        with Engine(bundles["valid"], device="cpu", threads=1, bucket=bucket) as engine:
            found.append(explained(engine, "sise", picture, profile="exact"))
    assert len(found[0].tiles) > 1
    np.testing.assert_allclose(found[0].fused, found[1].fused, atol=1e-5)


def test_predicted_scores_compare_masks_where_they_lie() -> None:
    """A cell of the deepest block of "valid" covers 4 px around 15.5; on a coarse grid of 8 px that is cell 1."""
    features = np.zeros((1, 9, 9))
    features[0, 0, 0] = 1
    grid = CellGrid(CellAxis(15.5, 4), CellAxis(15.5, 4))
    masks = describe_masks(features, cells=(8, 8), size=(SIDE, SIDE), grid=grid).reshape(8, 8)
    pixels = enlarged(features[0], grid).reshape(8, 8, 8, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(masks, pixels, atol=1e-12)


def test_scoring_in_8_bits_lays_masks_on_the_grids(tmp_path: Path) -> None:
    onnx.save(spot_finder(PADS["valid"]), tmp_path / "valid.onnx")
    card = dataclasses.replace(CARD, explain=ExplainSpec(int8_fidelity=0.5))
    bundle = build_bundle(tmp_path / "valid.onnx", card, tmp_path / "bundle")
    places = [(row, column) for row in (22, 30, 38, 42) for column in (24, 40)]
    quantized = quantize_bundle(bundle, [spot(*place) for place in places], threads=1).bundle
    assert quantized.blocks == bundle.blocks
    with Engine(quantized, device="cpu", threads=1) as engine:
        found = explained(engine, "sise", spot(26, 38))
        assert engine.int8_masks > 0
    assert distance(found.fused, 26, 38) < 2
