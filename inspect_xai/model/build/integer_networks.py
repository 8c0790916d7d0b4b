"""Quantized networks: which tensors of whole numbers stand for real numbers, and by what steps.

    q (whole) -> [DequantizeLinear] -> q/float -> [QuantizeLinear] -> q again, the same numbers

A QLinear operator's output is read through its own scale and zero point; what only moves or compares numbers (pooling
by maxima, transposing) keeps those of its input.
"""

from collections.abc import Iterable

import onnx

# Index of the input that holds the scale of an operator's output; its zero point is the next.
_STEPS_AT = {
    "QLinearConv": 6,
    "QLinearAdd": 6,
    "QLinearMul": 6,
    "QLinearMatMul": 6,
    "QGemm": 7,
    "QLinearConcat": 0,
    "QLinearAveragePool": 3,
    "QLinearGlobalAveragePool": 3,
    "QLinearLeakyRelu": 3,
    "QLinearSigmoid": 3,
    "QLinearReduceMean": 3,
}
_KEEP = frozenset({"MaxPool", "NhwcMaxPool", "Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten"})
_ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"})


def steps_of(nodes: Iterable[onnx.NodeProto]) -> dict[str, tuple[str, str]]:
    """Return, by tensor of whole numbers that stand for real ones, the names of its scale and its zero point."""
    steps: dict[str, tuple[str, str]] = {}
    for node in nodes:
        at = _STEPS_AT.get(node.op_type)
        if at is not None and len(node.input) > at + 1 and node.input[at + 1]:
            steps[node.output[0]] = (node.input[at], node.input[at + 1])
        elif node.op_type in _KEEP and node.input[0] in steps:
            steps[node.output[0]] = steps[node.input[0]]
    return steps


def is_quantized(nodes: Iterable[onnx.NodeProto]) -> bool:
    """Whether any node rounds to whole numbers."""
    return any(node.op_type in _ROUNDING or node.op_type in _STEPS_AT for node in nodes)
