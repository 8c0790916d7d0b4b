"""ONNX graphs without torch: made node by node, channels last in the manner of tf2onnx, and quantized ones."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

CLASSES = 5


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs by name, from ONNX Runtime with every optimization it has."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def make_model(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: dict[str, Sequence[int | str]],
    outputs: dict[str, Sequence[int | str] | None],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    """Return a float32 model; an output of shape None has one that is left to inference."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def with_outputs(model: onnx.ModelProto, shapes: dict[str, Sequence[int | str]]) -> onnx.ModelProto:
    """Return the model with inner tensors as further outputs, checked."""
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def noise(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


class _Builder:
    """Nodes and weights in the order in which they are asked for."""

    def __init__(self, *, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op: str, *inputs: str, name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def weight(self, array: np.ndarray, name: str) -> str:
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def normal(self, shape: tuple[int, ...], name: str, *, std: float) -> str:
        return self.weight(self.rng.normal(0, std, shape).astype(np.float32), name)

    def conv(self, x: str, before: int, after: int, *, name: str, stride: int = 1) -> str:
        """3x3 convolution, padded as TensorFlow's SAME (at the far side first), between two Transpose nodes."""
        weight = self.normal((after, before, 3, 3), f"{name}/kernel", std=np.sqrt(2 / (9 * before)))
        bias = self.normal((after,), f"{name}/bias", std=0.1)
        rows_second = self.node("Transpose", x, name=f"{name}/to_nchw", perm=[0, 3, 1, 2])
        pads = [0, 0, 1, 1] if stride == 2 else [1, 1, 1, 1]
        y = self.node("Conv", rows_second, weight, bias, name=f"{name}/Conv2D", strides=[stride] * 2, pads=pads)
        return self.node("Transpose", y, name=f"{name}/to_nhwc", perm=[0, 2, 3, 1])

    def max_pool(self, x: str, *, name: str) -> str:
        rows_second = self.node("Transpose", x, name=f"{name}/to_nchw", perm=[0, 3, 1, 2])
        y = self.node("MaxPool", rows_second, name=name, kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER")
        return self.node("Transpose", y, name=f"{name}/to_nhwc", perm=[0, 2, 3, 1])


NHWC_ENDS = ("block1/relu2:0", "block2/relu2:0", "block3/relu:0")


def nhwc_model(*, softmax: bool = False, seed: int = 3) -> onnx.ModelProto:
    """Make a channels-last network as tf2onnx does: every Conv and MaxPool between Transpose nodes, rest in NHWC.

    Input "input:0" (N, 64, 64, 3); block ends `NHWC_ENDS`: Relu 6@32, 8@16 (behind an Add), 12@8; the head is
    ReduceMean over axes 1 and 2, MatMul, Add and, if asked for, Softmax; output "logits:0" or "softmax:0" (N, 5).
    """
    b = _Builder(seed=seed)
    x = b.node("Relu", b.conv("input:0", 3, 6, stride=2, name="block1/conv1"), name="block1/relu1")
    x = b.node("Relu", b.conv(x, 6, 6, name="block1/conv2"), name="block1/relu2")
    x = b.node("Relu", b.conv(x, 6, 8, stride=2, name="block2/conv1"), name="block2/relu1")
    x = b.node("Add", b.conv(x, 8, 8, name="block2/conv2"), x, name="block2/add")
    x = b.max_pool(b.node("Relu", x, name="block2/relu2"), name="block3/pool")
    x = b.node("Relu", b.conv(x, 8, 12, name="block3/conv"), name="block3/relu")
    x = b.node("ReduceMean", x, b.weight(np.array([1, 2]), "head/axes"), name="head/mean", keepdims=0)
    x = b.node("MatMul", x, b.normal((12, CLASSES), "head/kernel", std=0.6), name="head/MatMul")
    x = b.node("Add", x, b.normal((CLASSES,), "head/bias", std=0.2), name="logits")
    if softmax:
        x = b.node("Softmax", x, name="softmax", axis=-1)
    graph = helper.make_graph(
        b.nodes,
        "tf2onnx",
        [helper.make_tensor_value_info("input:0", TensorProto.FLOAT, ["unk__1", 64, 64, 3])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["unk__2", CLASSES])],
        b.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Pictures(quantization.CalibrationDataReader):
    def __init__(self, name: str, pictures: Iterable[np.ndarray]) -> None:
        self.feeds: Iterator[dict[str, np.ndarray]] = iter([{name: picture[None]} for picture in pictures])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def quantized(model: onnx.ModelProto, pictures: np.ndarray) -> onnx.ModelProto:
    """Quantize the model to int8 with ONNX Runtime's static quantizer: QuantizeLinear and DequantizeLinear around all.

    Args:
        model: A float model of opset 18 or later with one input.
        pictures: Float32 (N, C, H, W) to calibrate with, as the model takes them.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, written = Path(folder) / "given.onnx", Path(folder) / "written.onnx"
        onnx.save(model, given)
        reader = _Pictures(model.graph.input[0].name, pictures)
        quantization.quantize_static(given, written, reader, per_channel=True)
        return onnx.load(written)
