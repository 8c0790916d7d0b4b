"""Reverse-mode differentiation of an ONNX graph into an ONNX graph: no torch, any batch size, the weights stored once.

    forward    x -> [Conv] -> a -> [Relu] -> b -> [Gemm] -> z -> (margin and its cotangent dz, written by the caller)
    appended   da <- dRelu(b, db) <- db <- dGemm(dz)

The sweep visits the nodes from the last to the first, asks the rule of each for the gradient of those inputs that
depend on a wanted tensor, and adds up what arrives at a tensor over several ways.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import onnx
from onnx import TensorProto
from onnx.inliner import inline_local_functions

from inspect_xai.errors import UnsupportedModelError
from inspect_xai.model.autodiff.builder import FLOATS, Step, Value, Writer
from inspect_xai.model.autodiff.rules_arrays import EVERY_INPUT, FIRST_INPUT
from inspect_xai.model.autodiff.rules_layers import LAYERS, SLOPES
from inspect_xai.model.autodiff.rules_resize import resize
from inspect_xai.model.build.topology import captured_names

LOWEST_OPSET = 18  # ScatterElements adds up from here on; model files of older opsets are converted when they are read


def differentiate(
    model: onnx.ModelProto, *, seeds: Mapping[str, str], wrt: Sequence[str]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Append to a network the nodes that compute the gradient of its output with respect to inner tensors.

    Args:
        model: Network of opset 18 or later whose tensor shapes are fixed apart from the batch size. Stays untouched.
        seeds: For each tensor to start from (say the logits, shape (N, K)) the tensor of the same shape, computed in
            the graph too, that holds its cotangent: d(scalar to explain)/d(that tensor), row by row.
        wrt: Tensors whose gradient is wanted; one may lie behind another.

    Returns:
        A copy of the model with the gradient nodes behind its own, and for each tensor of `wrt` the name of its
        gradient, which has its shape and element type. Outputs of the model are left for the caller to declare.

    Raises:
        UnsupportedModelError: An operator on the way cannot be differentiated, a size it needs is not fixed, a tensor
            is not in the graph or has no influence on the seeds, or the opset is too old.
    """
    model = inline_local_functions(model)  # a copy, with torch's functions as plain nodes
    _require(model, [*seeds, *seeds.values(), *wrt])
    writer = Writer(model, prefix="grad:")
    downstream = _downstream(model.graph, wrt, writer)
    arrived: defaultdict[str, list[Value]] = defaultdict(list)
    for tensor, cotangent in seeds.items():
        arrived[tensor].append(writer.value(cotangent))
    for node in reversed(model.graph.node):
        cotangents = tuple(_total(arrived, name) for name in node.output)
        if not any(cotangents):
            continue
        step = Step(node, cotangents, writer)
        for index, name in enumerate(node.input):
            if name in downstream:
                arrived[name].append(input_gradient(step, index))
        if not downstream.isdisjoint(captured_names(node)):
            step.refuse("it branches or repeats on what it computes from the picture")
    gradients = {tensor: (_total(arrived, tensor) or _refuse_unreached(tensor)).name for tensor in wrt}
    model.graph.node.extend(writer.nodes)
    model.graph.initializer.extend(writer.initializers)
    return model, gradients


def input_gradient(step: Step, index: int) -> Value:
    """Write the nodes for d(seed)/d(input `index`) of one forward node.

    Returns:
        The gradient, of the input's shape.

    Raises:
        UnsupportedModelError: There is no rule for the operator, or not for this use of it.
    """
    op = step.node.op_type
    if step.node.domain not in ("", "ai.onnx"):
        step.refuse(f"it belongs to the operator set {step.node.domain!r}")
    if op in EVERY_INPUT:
        return EVERY_INPUT[op](step, index)
    rule = resize if op == "Resize" else LAYERS.get(op) or FIRST_INPUT.get(op)
    if rule is None and op not in SLOPES:
        step.refuse("no rule for this operator is known")
    if index:
        step.refuse(f"its parameter {step.node.input[index]!r} depends on the picture")
    return rule(step) if rule else step.dy * SLOPES[op](step)


def _total(arrived: dict[str, list[Value]], tensor: str) -> Value | None:
    """Add up all gradients that arrived at a tensor; None where none did."""
    values = arrived.get(tensor, [])
    if len(values) > 1:
        arrived[tensor] = values = [values[0].then("Sum", *values[1:])]
    return values[0] if values else None


def _downstream(graph: onnx.GraphProto, wrt: Iterable[str], writer: Writer) -> set[str]:
    """Return the tensors that carry a gradient to a tensor of `wrt`: those computed from one of them, and themselves.

    Whole numbers (shapes, indices) carry none; quantized feature maps do, straight through.
    """
    reached = set(wrt)
    for node in graph.node:
        if reached.isdisjoint([*node.input, *captured_names(node)]):
            continue
        quantized = node.op_type == "QuantizeLinear"
        reached.update(
            name for name in node.output if name and (quantized or writer.dtypes.get(name, TensorProto.FLOAT) in FLOATS)
        )
    return reached


def _require(model: onnx.ModelProto, tensors: Iterable[str]) -> None:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < LOWEST_OPSET:
        raise UnsupportedModelError(
            f"The model uses opset {opset}",
            expected=f"opset {LOWEST_OPSET} or later",
            remedy="convert it with onnx.version_converter, or export it again with a later opset",
        )
    graph = model.graph
    present = {name for node in graph.node for name in node.output}.union(
        entry.name for entry in (*graph.input, *graph.initializer)
    )
    missing = sorted(set(tensors) - present)
    if missing:
        raise UnsupportedModelError(
            f"The network has no tensor named {', '.join(map(repr, missing))}",
            expected="names of tensors that its nodes compute",
            remedy="look the names up in a graph viewer and correct [explain] blocks in the card",
        )


def _refuse_unreached(tensor: str) -> NoReturn:
    raise UnsupportedModelError(
        f"The output does not depend on tensor {tensor!r}",
        expected="block ends on the way from the picture to the network's output",
        remedy="leave this tensor out of [explain] blocks in the card",
    )
