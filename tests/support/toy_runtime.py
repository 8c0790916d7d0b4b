"""Networks as ONNX Runtime's own quantizer and optimizer write them, from one small network with a sum and a branch."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper
from onnxruntime import quantization

from inspect_xai.model.build.topology import put_nodes
from tests.support.toy_graphs import make_model

SIDE = 32


def residual_network() -> onnx.ModelProto:
    """Conv, Relu "r1" 8@32, pool, Conv, Add, Relu "r2" 8@16, two Convs, Concat "both" 12@8, Gemm "z" (N, 2)."""
    rng = np.random.default_rng(2)

    def weight(*shape: int) -> np.ndarray:
        return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)

    def conv(source: str, name: str, **more: object) -> onnx.NodeProto:
        return helper.make_node("Conv", [source, f"w{name}", f"b{name}"], [f"c{name}"], pads=[1] * 4, **more)

    def relu(source: str, name: str) -> onnx.NodeProto:
        return helper.make_node("Relu", [source], [name])

    nodes = [
        conv("x", "1"),
        relu("c1", "r1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        conv("p1", "2"),
        helper.make_node("Add", ["c2", "p1"], ["s2"]),
        relu("s2", "r2"),
        conv("r2", "3", strides=[2, 2]),
        relu("c3", "r3"),
        conv("r2", "4", strides=[2, 2]),
        relu("c4", "r4"),
        helper.make_node("Concat", ["r3", "r4"], ["both"], axis=1),
        helper.make_node("GlobalAveragePool", ["both"], ["g"]),
        helper.make_node("Flatten", ["g"], ["flat"]),
        helper.make_node("Gemm", ["flat", "wz", "bz"], ["z"]),
    ]
    constants = {
        "w1": weight(8, 3, 3, 3),
        "w2": weight(8, 8, 3, 3),
        "w3": weight(8, 8, 3, 3),
        "w4": weight(4, 8, 3, 3),
        "wz": rng.normal(0, 1, (12, 2)).astype(np.float32),
    }
    constants |= {f"b{name}": np.full(size, 0.1, np.float32) for name, size in {"1": 8, "2": 8, "3": 8, "4": 4}.items()}
    constants["bz"] = np.zeros(2, np.float32)
    return make_model(nodes, inputs={"x": ["N", 3, SIDE, SIDE]}, outputs={"z": ["N", 2]}, constants=constants, opset=13)


class _Pictures(quantization.CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        coarse = rng.uniform(0, 1, (8, 1, 3, 8, 8)).repeat(4, axis=3).repeat(4, axis=4)
        self.feeds = iter([{"x": picture.astype(np.float32)} for picture in coarse])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def _through_files(make: Callable[[Path, Path], None], given: onnx.ModelProto) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "given.onnx", Path(folder) / "written.onnx"
        onnx.save(given, before)
        logging.disable(logging.WARNING)  # advice to prepare the network first
        try:
            make(before, after)
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(after)


def unpadded_network() -> onnx.ModelProto:
    """Return the same without padding, and so without the sum: Relu "r1" 8@30, "r2" 8@13, Concat "both" 12@6."""
    model = residual_network()
    nodes = [node for node in model.graph.node if node.op_type != "Add"]
    for node in nodes:
        node.input[:] = ["c2" if name == "s2" else name for name in node.input]
        if node.op_type == "Conv":
            kept = [attribute for attribute in node.attribute if attribute.name != "pads"]
            del node.attribute[:]
            node.attribute.extend(kept)
    put_nodes(model.graph, nodes)
    return model


def dynamic(given: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """quantize_dynamic: ConvInteger, MatMulInteger, ranges of activations taken at every run."""
    kinds = ["Conv", "MatMul", "Gemm"]

    def make(before: Path, after: Path) -> None:
        quantization.quantize_dynamic(
            before, after, weight_type=quantization.QuantType.QUInt8, op_types_to_quantize=kinds
        )

    return _through_files(make, given or residual_network())


def in_operators(given: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """quantize_static in the operators' format: QLinearConv, QLinearAdd, QLinearConcat, QLinearGlobalAveragePool."""

    def make(before: Path, after: Path) -> None:
        quantization.quantize_static(before, after, _Pictures(), quant_format=quantization.QuantFormat.QOperator)

    return _through_files(make, given or residual_network())


def optimized(given: onnx.ModelProto, level: ort.GraphOptimizationLevel) -> onnx.ModelProto:
    """Return what an optimizing session writes down: FusedConv and the like."""

    def make(before: Path, after: Path) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(after)
        options.log_severity_level = 4
        ort.InferenceSession(before, options, providers=["CPUExecutionProvider"])

    return _through_files(make, given)


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}
