"""A network made by hand that finds bright spots, its bundle, and pictures it judges in a way known beforehand."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.bundle import ModelBundle, load_bundle
from inspect_xai.records import InputSpec, ModelCard, VerdictSpec
from tests.support import hostile

CARD = ModelCard(
    "spots",
    "1",
    ("spot", "free"),
    InputSpec(32, 32, mean=(0.49,)),
    ok_labels=("free",),
    verdict=VerdictSpec(unsure_margin=0.4),
)
_SHARPNESS = 200.0
_LEVEL = 0.25  # added to brightness less the mean, so that no unit is dead


def spot_model(*, fails_on_white: bool = False) -> onnx.ModelProto:
    """Channel 0 of both convolutions is the mean over 3 x 3; its mean over the window decides, the others do not.

    With `fails_on_white` the root of a negative number makes every output NaN where a window is white all over.
    """
    first = np.zeros((4, 3, 3, 3), np.float32)
    first[:] = 1 / 27
    second = np.zeros((4, 4, 3, 3), np.float32)
    second[range(4), range(4), 1, 1] = 1
    weights = {
        "first": first,
        "first_bias": np.array([_LEVEL, 0.1, 0.2, 0.3], np.float32),
        "second": second,
        "second_bias": np.zeros(4, np.float32),
        "last": np.array([[_SHARPNESS, 0, 0, 0], [0, 0, 0, 0]], np.float32),
        "last_bias": np.array([-_SHARPNESS * (_LEVEL + 0.012), 0], np.float32),
        "room": np.array([[9, 0.58, 9, 9]], np.float32),
        "nothing": np.zeros((4, 2), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "first", "first_bias"], ["conv_1"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Relu", ["conv_1"], ["block_1"]),
        helper.make_node(
            "Conv", ["block_1", "second", "second_bias"], ["conv_2"], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]
        ),
        helper.make_node("Relu", ["conv_2"], ["block_2"]),
        helper.make_node("GlobalAveragePool", ["block_2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "last", "last_bias"], ["sum"], transB=1),
    ]
    if fails_on_white:
        nodes += [
            helper.make_node("Sub", ["room", "features"], ["left"]),
            helper.make_node("Sqrt", ["left"], ["root"]),
            helper.make_node("MatMul", ["root", "nothing"], ["zeros"]),
            helper.make_node("Add", ["sum", "zeros"], ["logits"]),
        ]
    else:
        nodes[-1].output[0] = "logits"
        del weights["room"], weights["nothing"]
    graph = helper.make_graph(
        nodes,
        "spots",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def spot_bundle(folder: Path, *, fails_on_white: bool = False) -> Path:
    """Build the network's bundle below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "spots.onnx"
    onnx.save(spot_model(fails_on_white=fails_on_white), model)
    out = folder / "spots.bundle"
    build_bundle(model, CARD, out)
    return out


def part(seed: int, *, spot_px: int = 0) -> NDArray[np.uint8]:
    """Return a gray surface (32, 32, 3) with a white square: none is OK, 5 px UNSURE, 10 px NG."""
    picture = hostile.surface(seed, size=(32, 32))
    picture[6 : 6 + spot_px, 18 : 18 + spot_px] = 255
    return picture


def swap_labels(bundle: Path) -> ModelBundle:
    """Let the graph that judges say the other label of a bundle's pictures, and mend the manifest accordingly."""
    graph, manifest = bundle / "graphs/predict.onnx", bundle / "manifest.json"
    model = onnx.load(graph, load_external_data=False)
    for weight in model.graph.initializer:
        if sorted(weight.dims) == [2, 4]:
            swapped = np.flip(numpy_helper.to_array(weight), list(weight.dims).index(2))
            weight.CopyFrom(numpy_helper.from_array(swapped.copy(), weight.name))
    graph.write_bytes(model.SerializeToString(deterministic=True))
    told = json.loads(manifest.read_text())
    told["files"]["graphs/predict.onnx"] = {
        "sha256": hashlib.sha256(graph.read_bytes()).hexdigest(),
        "bytes": graph.stat().st_size,
    }
    manifest.write_text(json.dumps(told))
    return load_bundle(bundle)
