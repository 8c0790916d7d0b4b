"""Two networks made by hand that judge alike and look at different things."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.records import Channels, InputSpec, ModelCard

LABELS = ("pit", "free")
SIDE = 32


def hand_built(looks_at: str) -> onnx.ModelProto:
    """Three blocks that find bright spots (channel 0) and dark ones (channel 1); the head believes one of them."""
    weights = {
        "w1": np.array([1, -1], np.float32).reshape(2, 1, 1, 1),
        "b1": np.array([-0.35, -0.35], np.float32),
        "w2": np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1),
        "w3": np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1),
        "wh": np.array([[300, -300], [0, 0]] if looks_at == "bright" else [[0, 0], [300, -300]], np.float32),
        "bh": np.array([-2, 2], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"]),
        helper.make_node("Relu", ["c1"], ["block1"]),
        helper.make_node("AveragePool", ["block1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["block2"]),
        helper.make_node("AveragePool", ["block2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p2", "w3"], ["block3"]),
        helper.make_node("GlobalAveragePool", ["block3"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "wh", "bh"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def bundle_of(folder: Path, looks_at: str) -> ModelBundle:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(hand_built(looks_at), folder / "hand.onnx")
    spec = InputSpec(SIDE, SIDE, channels=Channels.GRAY, scale=128.0, mean=(1.0,))
    return build_bundle(folder / "hand.onnx", ModelCard(looks_at, "1", LABELS, spec, ok_labels=("free",)), folder / "b")
