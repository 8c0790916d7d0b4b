"""The gradient of every operator against difference quotients, in float64, of what is not ONNX Runtime."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch.nn import functional

from inspect_xai.model.autodiff.backward import differentiate
from tests.support.toy_graphs import make_model, noise, run, with_outputs


class Case:
    """One node and its oracle in float64.

    Tuples among the inputs are shapes of inputs to differentiate (first axis: batch), everything else is constant.
    The oracle is onnx's reference implementation, or torch's where that one is not exact or not there.
    """

    def __init__(
        self,
        op: str,
        *inputs: Any,
        opset: int = 18,
        outputs: int = 1,
        low: float = -2.0,
        high: float = 2.0,
        oracle: Callable[..., torch.Tensor] | None = None,
        **attributes: Any,
    ) -> None:
        self.opset, self.oracle = opset, oracle
        rng = np.random.default_rng(5)
        self.variables: dict[str, np.ndarray] = {}
        self.constants: dict[str, np.ndarray] = {}
        names = []
        for index, wanted in enumerate(inputs):
            name = "" if wanted is None else f"input_{index}"
            names.append(name)
            if isinstance(wanted, tuple):
                count = int(np.prod(wanted))
                spread = (
                    rng.permutation(np.linspace(low, high, count + 1)[:-1]) + 0.3 / count
                )  # no two alike, none at 0
                self.variables[name] = spread.reshape(wanted)
            elif wanted is not None:
                self.constants[name] = np.asarray(wanted)
        self.outputs = [f"output_{index}" for index in range(outputs)]
        self.node = helper.make_node(op, names, self.outputs, name=f"the_{op}", **attributes)

    def exact(self, variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, float64."""
        feeds = {**variables, **self.constants}
        if self.oracle:
            return {self.outputs[0]: self.oracle(*map(torch.from_numpy, feeds.values())).numpy()}
        outputs = ReferenceEvaluator(self.node, opsets={"": self.opset}).run(None, feeds)
        return dict(zip(self.outputs, outputs, strict=True))

    def model(self, shapes: Sequence[Sequence[int]]) -> onnx.ModelProto:
        inputs = {name: open_batch(array) for name, array in self.variables.items()}
        cotangents = {f"d_{name}": list(shape) for name, shape in zip(self.outputs, shapes, strict=True)}
        constants = {
            name: array.astype(np.float32) if array.dtype == np.float64 else array
            for name, array in self.constants.items()
        }
        return make_model(
            [self.node],
            inputs={**inputs, **cotangents},
            outputs={name: [None] * len(shape) for name, shape in zip(self.outputs, shapes, strict=True)},
            constants=constants,
            opset=self.opset,
        )


def open_batch(array: np.ndarray) -> list[int | str]:
    """The shape with its first axis left open, unless that axis is there to be stretched."""
    return [f"N{len(array)}" if len(array) > 1 else 1, *array.shape[1:]]


def check_case(case: Case, rng: np.random.Generator) -> None:
    outputs = case.exact(case.variables)
    cotangents = {f"d_{name}": rng.uniform(0.5, 1.5, array.shape) for name, array in outputs.items()}
    model = case.model([array.shape for array in outputs.values()])
    seeds = {name: f"d_{name}" for name in case.outputs}

    differentiated, names = differentiate(model, seeds=seeds, wrt=list(case.variables))

    shapes = {names[name]: open_batch(array) for name, array in case.variables.items()}
    feeds = {name: array.astype(np.float32) for name, array in {**case.variables, **cotangents}.items()}
    found = run(with_outputs(differentiated, shapes), feeds)
    for name, array in outputs.items():
        np.testing.assert_allclose(
            found[name], array, rtol=2e-5, atol=2e-5, err_msg="the oracle computes another function"
        )
    for name, array in case.variables.items():
        gradient = found[names[name]].astype(np.float64)
        assert gradient.shape == array.shape
        for direction in directions(array, rng):
            ahead, behind = (case.exact({**case.variables, name: array + step * direction}) for step in (1e-5, -1e-5))
            expected = sum(float(np.sum(cotangents[f"d_{key}"] * (ahead[key] - behind[key]))) / 2e-5 for key in outputs)
            assert np.sum(gradient * direction) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def directions(array: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Unit steps at eight single elements, and four steps at random."""
    flat = np.eye(array.size)[rng.choice(array.size, min(8, array.size), replace=False)]
    dense = rng.standard_normal((4, array.size)) / np.sqrt(array.size)
    return [row.reshape(array.shape) for row in (*flat, *dense)]


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def scales(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def group_norm(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return functional.group_norm(x, 2, scale, bias)


def lrn(x: torch.Tensor) -> torch.Tensor:
    return functional.local_response_norm(x, 3, alpha=0.4, beta=0.6, k=1.5)


def pad_and_crop(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return functional.pad(x, (-2, -1, 1, 2))


X = (2, 4, 6, 7)  # pictures, channels, rows, columns
CHANNELS = [noise(4, seed=seed) for seed in range(2)] + [noise(4, seed=2), noise(4, seed=3) ** 2 + 0.5]

CASES = {
    "conv": Case("Conv", X, noise(5, 4, 3, 3), noise(5), pads=[1, 1, 1, 1]),
    "conv 1x1": Case("Conv", X, noise(5, 4, 1, 1)),
    "conv stride, rest unseen": Case("Conv", (2, 4, 8, 9), noise(5, 4, 1, 2), strides=[3, 2]),
    "conv asymmetric": Case("Conv", X, noise(5, 4, 2, 3), pads=[0, 1, 1, 2], strides=[2, 1], dilations=[2, 1]),
    "conv groups": Case("Conv", X, noise(6, 2, 3, 3), group=2, pads=[1, 1, 1, 1], strides=[2, 2]),
    "conv depthwise": Case("Conv", X, noise(4, 1, 3, 3), group=4, pads=[1, 1, 1, 1]),
    "conv depthwise, unpadded": Case("Conv", X, noise(4, 1, 3, 2), group=4),
    "conv depthwise, much padding": Case("Conv", X, noise(4, 1, 3, 2), group=4, pads=[3, 0, 4, 1]),
    "conv depthwise, dilated": Case("Conv", X, noise(4, 1, 3, 3), group=4, dilations=[2, 1], pads=[2, 1, 2, 1]),
    "conv depthwise, stride": Case("Conv", X, noise(4, 1, 5, 5), group=4, strides=[2, 2], pads=[2, 2, 2, 2]),
    "conv depthwise, multiplied": Case("Conv", X, noise(8, 1, 3, 3), group=4),
    "conv same upper": Case("Conv", X, noise(5, 4, 2, 4), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv same lower": Case("Conv", X, noise(5, 4, 2, 4), auto_pad="SAME_LOWER"),
    "conv valid": Case("Conv", X, noise(5, 4, 3, 2), auto_pad="VALID", strides=[2, 3]),
    "conv 1d": Case("Conv", (2, 4, 9), noise(6, 2, 3), group=2, strides=[2], pads=[1, 0]),
    "batch norm": Case("BatchNormalization", X, *CHANNELS, epsilon=1e-3),
    "relu": Case("Relu", X),
    "clip": Case("Clip", X, np.array(-0.5), np.array(1.0)),
    "clip low": Case("Clip", X, np.array(-0.5)),
    "clip high": Case("Clip", X, None, np.array(1.0)),
    "clip none": Case("Clip", X),
    "leaky relu": Case("LeakyRelu", X, alpha=0.2),
    "prelu": Case("PRelu", X, noise(4, 1, 1) ** 2),
    "elu": Case("Elu", X, alpha=0.7),
    "selu": Case("Selu", X),
    "celu": Case("Celu", X, alpha=0.7),
    "sigmoid": Case("Sigmoid", X),
    "hard sigmoid": Case("HardSigmoid", X, alpha=0.6, beta=0.4),
    "hard swish": Case("HardSwish", X, low=-5, high=5),
    "tanh": Case("Tanh", X),
    "softplus": Case("Softplus", X),
    "gelu": Case("Gelu", X, opset=20, oracle=functional.gelu),
    "gelu tanh": Case("Gelu", X, opset=20, approximate="tanh", oracle=partial(functional.gelu, approximate="tanh")),
    "erf": Case("Erf", X, oracle=torch.erf),
    "mish": Case("Mish", X),
    "swish": Case("Swish", X, opset=24, alpha=0.7, oracle=lambda x: x * torch.sigmoid(0.7 * x)),
    "exp": Case("Exp", X),
    "log": Case("Log", X, low=0.2),
    "sqrt": Case("Sqrt", X, low=0.2),
    "reciprocal": Case("Reciprocal", X, low=0.3),
    "square": Case("Pow", X, np.array(2.0)),
    "cube": Case("Pow", X, np.array(3.0)),
    "square, whole": Case("Pow", X, np.array(2)),
    "root": Case("Pow", X, np.array(0.5), low=0.2),
    "abs": Case("Abs", X),
    "neg": Case("Neg", X),
    "softmax": Case("Softmax", X, axis=1),
    "log softmax": Case("LogSoftmax", X),
    "max pool": Case("MaxPool", X, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    "max pool overlap": Case("MaxPool", X, kernel_shape=[3, 3]),
    "max pool ceil": Case("MaxPool", X, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "max pool dilated": Case("MaxPool", X, kernel_shape=[2, 2], dilations=[2, 3]),
    "max pool 1d": Case("MaxPool", (2, 4, 9), kernel_shape=[3], strides=[2]),
    "average pool": Case("AveragePool", X, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    "average pool, pads count": Case(
        "AveragePool", X, kernel_shape=[3, 3], strides=[1, 2], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "average pool ceil": Case("AveragePool", X, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "average pool ceil, pads count": Case(
        "AveragePool", X, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, ceil_mode=1, count_include_pad=1, opset=19
    ),
    "average pool same": Case("AveragePool", X, kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
    "average pool dilated": Case("AveragePool", X, kernel_shape=[2, 2], dilations=[2, 2], opset=19),
    "average pool 1d": Case("AveragePool", (2, 4, 9), kernel_shape=[3], strides=[2]),
    "global average pool": Case("GlobalAveragePool", X),
    "global max pool": Case("GlobalMaxPool", X),
    "layer norm": Case("LayerNormalization", X, noise(7), noise(7), axis=-1, epsilon=1e-3),
    "layer norm over three axes": Case("LayerNormalization", X, noise(4, 6, 7), noise(4, 6, 7), axis=1),
    "instance norm": Case("InstanceNormalization", X, noise(4), noise(4), epsilon=1e-3),
    "group norm": Case("GroupNormalization", X, noise(4), noise(4), num_groups=2, opset=21, oracle=group_norm),
    "resize to sizes": Case("Resize", X, None, None, ints(2, 4, 9, 5), mode="linear"),
    "resize by scales": Case("Resize", X, None, scales(1, 1, 2, 1.5), mode="linear"),
    "resize, some axes": Case("Resize", X, None, scales(1.7, 0.5), mode="linear", axes=[3, 2]),
    "resize, corners aligned": Case(
        "Resize", X, None, None, ints(2, 4, 9, 1), mode="linear", coordinate_transformation_mode="align_corners"
    ),
    "resize, asymmetric": Case(
        "Resize", X, None, scales(1, 1, 2, 2), mode="linear", coordinate_transformation_mode="asymmetric"
    ),
    "resize, torch's pixel": Case(
        "Resize", X, None, None, ints(2, 4, 1, 9), mode="linear", coordinate_transformation_mode="pytorch_half_pixel"
    ),
    "resize nearest": Case("Resize", X, None, scales(1, 1, 2, 3)),
    "resize nearest, floor": Case(
        "Resize", X, None, scales(1, 1, 2.5, 0.5), nearest_mode="floor", coordinate_transformation_mode="asymmetric"
    ),
    "lrn": Case("LRN", X, size=3, alpha=0.4, beta=0.6, bias=1.5, oracle=lrn),
    "reduce mean": Case("ReduceMean", X, ints(2, 3)),
    "reduce mean, dropped axes": Case("ReduceMean", X, ints(-1, -2), keepdims=0),
    "reduce sum": Case("ReduceSum", X, ints(1), keepdims=0),
    "reduce sum, no axes": Case("ReduceSum", X, None, noop_with_empty_axes=1),
    "reduce max": Case("ReduceMax", X, ints(2, 3), keepdims=0),
    "reduce min": Case("ReduceMin", X, ints(1)),
    "reduce l2": Case("ReduceL2", X, ints(1)),
    "reduce log sum exp": Case("ReduceLogSumExp", X, ints(1), keepdims=0),
    "gemm": Case("Gemm", (3, 4), noise(4, 5), noise(5), alpha=0.5, beta=2.0),
    "gemm, b transposed": Case("Gemm", (3, 4), noise(5, 4), transB=1),
    "gemm, all vary": Case("Gemm", (3, 4), (4, 5), (1, 5), alpha=0.5, beta=2.0),
    "gemm, all vary, a transposed": Case("Gemm", (4, 3), (4, 5), (3, 1), transA=1),
    "gemm, all vary, b transposed": Case("Gemm", (3, 4), (5, 4), transB=1),
    "gemm, all vary, both transposed": Case("Gemm", (4, 3), (5, 4), transA=1, transB=1),
    "matmul": Case("MatMul", (2, 3, 4), noise(4, 5)),
    "matmul from the right": Case("MatMul", noise(3, 4), (2, 4, 5)),
    "matmul stacks": Case("MatMul", (2, 3, 3, 4), (2, 1, 4, 5)),
    "add": Case("Add", X, X),
    "add channels": Case("Add", X, (1, 4, 1, 1)),
    "add fewer axes": Case("Add", X, (6, 1)),
    "sub": Case("Sub", (2, 4, 1, 1), X),
    "mul": Case("Mul", X, (2, 4, 1, 1)),
    "mul constant": Case("Mul", noise(4, 1, 1), X),
    "div": Case("Div", X, (2, 4, 1, 1), low=0.5),
    "sum": Case("Sum", X, (1, 1, 6, 7), X),
    "mean": Case("Mean", X, X, X),
    "max": Case("Max", X, X, np.array(0.1)),
    "min": Case("Min", X, (2, 4, 1, 1)),
    "where": Case("Where", noise(6, 7) > 0, X, (2, 4, 1, 1)),
    "concat": Case("Concat", X, (2, 3, 6, 7), X, axis=1),
    "concat last": Case("Concat", X, noise(2, 4, 6, 2), axis=-1),
    "split": Case("Split", X, ints(1, 3), outputs=2, axis=1),
    "split even": Case("Split", X, outputs=2, axis=2, num_outputs=2),
    "slice": Case("Slice", X, ints(1, 2), ints(4, 2**63 - 1), ints(2, 3)),
    "slice, batch too": Case("Slice", X, ints(0, 1), ints(2**63 - 1, -1), ints(0, 1)),
    "slice steps": Case("Slice", X, ints(0, 5), ints(6, 0), ints(2, -1), ints(2, -2)),
    "slice backwards": Case("Slice", X, ints(-1), ints(-(2**63) + 1), ints(1), ints(-1)),
    "gather": Case("Gather", X, ints(2, 0, 2), axis=1),
    "gather one": Case("Gather", X, np.array(-1), axis=2),
    "gather table": Case("Gather", X, np.array([[3, 1, 1], [0, 2, 3]]), axis=-1),
    "pad": Case("Pad", X, ints(0, 0, 1, 2, 0, 0, 0, 1), np.array(0.5)),
    "pad and crop": Case("Pad", X, ints(1, -2, 2, -1), None, ints(2, 3), oracle=pad_and_crop),
    "pad reflect": Case("Pad", X, ints(0, 0, 3, 2, 0, 0, 0, 4), mode="reflect"),
    "pad edge": Case("Pad", X, ints(0, 0, 1, 2, 0, 1, 0, 1), mode="edge"),
    "flatten": Case("Flatten", X),
    "reshape": Case("Reshape", X, ints(0, 2, -1)),
    "squeeze": Case("Squeeze", (2, 4, 1, 1), ints(2, 3)),
    "unsqueeze": Case("Unsqueeze", (2, 4), ints(-1, 1)),
    "expand": Case("Expand", (2, 4, 1), ints(3, 1, 4, 5)),
    "transpose": Case("Transpose", X, perm=[0, 3, 1, 2]),
    "transpose all": Case("Transpose", X),
    "depth to space": Case("DepthToSpace", X, blocksize=2),
    "depth to space, crd": Case("DepthToSpace", X, blocksize=2, mode="CRD"),
    "space to depth": Case("SpaceToDepth", (2, 3, 4, 6), blocksize=2),
    "identity": Case("Identity", X),
    "dropout": Case("Dropout", X),
    "cast": Case("Cast", X, to=TensorProto.FLOAT, oracle=torch.clone),
}


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_an_operator_is_its_difference_quotient(name: str, rng: np.random.Generator) -> None:
    check_case(CASES[name], rng)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_convolution_and_pooling_has_its_gradient(data: st.DataObject) -> None:
    def pairs(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=2, max_size=2))

    kernel, strides, dilations = pairs(1, 3), pairs(1, 3), pairs(1, 2)
    pads = [data.draw(st.integers(0, size - 1)) for size in kernel * 2]  # a window of padding alone has no maximum
    windows = {"strides": strides, "pads": pads, "dilations": dilations}
    op = data.draw(st.sampled_from(["Conv", "MaxPool", "AveragePool"]))
    if op == "Conv":
        group = data.draw(st.sampled_from([1, 2, 4]))
        case = Case("Conv", X, noise(4, 4 // group, *kernel), group=group, **windows)
    else:
        counts = {"count_include_pad": data.draw(st.integers(0, 1))} if op == "AveragePool" else {}
        case = Case(op, X, opset=19, kernel_shape=kernel, **windows, **counts)
    check_case(case, np.random.default_rng(0))
