"""Replacement of If nodes with a constant condition by the branch they take.

Exporters of torch write `If(size == 1) Squeeze else Identity`: once the picture's size is fixed, so is the condition.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, helper, numpy_helper

from inspect_xai.errors import UnsupportedModelError
from inspect_xai.model.build.topology import attribute_of, named, needed_nodes, put_nodes, reads

_SIZE_OF = frozenset({"Shape", "Size"})
# Operators whose output size depends on the numbers they read.
_SIZED_BY_NUMBERS = frozenset({"NonZero", "Compress", "Unique", "NonMaxSuppression", "ConstantOfShape", "Range"})
_SIZED_BY_OTHERS = frozenset(
    ["Reshape", "Expand", "Tile", "Slice", "Resize", "Upsample", "Pad", "OneHot", "TopK", "Squeeze", "Split"]
)

Run = Callable[[onnx.ModelProto, Mapping[str, NDArray[Any]], Sequence[str]], Mapping[str, NDArray[Any]]]


def without_branches(model: onnx.ModelProto, image: str, *, run: Run) -> onnx.ModelProto:
    """Return the model with every If replaced by the nodes of the branch it takes.

    Args:
        model: With functions inlined, nodes in order, its inputs' shapes fixed.
        image: The input that is the picture.
        run: Computes tensors, by name, of a model from its inputs.

    Raises:
        ModelFileError: If ONNX Runtime cannot run what a condition is computed from.
        UnsupportedModelError: If a condition depends on what the picture shows.
    """
    if not any(node.op_type == "If" for node in model.graph.node):
        return model
    flat = onnx.ModelProto()
    flat.CopyFrom(model)
    graph = flat.graph
    while (place := next((at for at, node in enumerate(graph.node) if node.op_type == "If"), None)) is not None:
        node = graph.node[place]
        before, behind = list(graph.node)[:place], list(graph.node)[place + 1 :]
        if node.input[0] in _depends_on_pixels(before, image):
            raise UnsupportedModelError(
                f"{named(node)} branches on what the picture shows",
                expected="a network that does the same for every picture",
                remedy="export with fixed shapes and without conditions in forward()",
            )
        holds = _condition(flat, node.input[0], before, run)
        taken = attribute_of(node, "then_branch" if holds else "else_branch", None)
        put_nodes(graph, [*before, *_written_out(taken, node, graph), *behind])
    return flat


def _depends_on_pixels(nodes: Sequence[onnx.NodeProto], image: str) -> set[str]:
    """Return the tensors whose numbers depend on what the picture shows, not only on its size."""
    numbers, sizes = {image}, set[str]()
    for node in nodes:
        read = set(reads(node))
        by_numbers, sized = not numbers.isdisjoint(read), not sizes.isdisjoint(read)
        by_others = node.op_type in _SIZED_BY_OTHERS and not numbers.isdisjoint(node.input[1:])
        sized |= by_others or (by_numbers and node.op_type in _SIZED_BY_NUMBERS)
        if node.op_type in _SIZE_OF:
            numbers.update(node.output if not sizes.isdisjoint(read) else ())
            continue
        numbers.update(node.output if by_numbers else ())
        sizes.update(node.output if sized else ())
    return numbers


def _condition(model: onnx.ModelProto, condition: str, nodes: Sequence[onnx.NodeProto], run: Run) -> bool:
    """Compute a condition that is the same for every picture."""
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    if condition in known:
        return bool(known[condition].all())
    part = onnx.ModelProto()
    part.CopyFrom(model)
    put_nodes(part.graph, needed_nodes(nodes, outputs=[condition]))
    del part.graph.output[:]
    part.graph.output.append(helper.make_tensor_value_info(condition, onnx.TensorProto.BOOL, None))
    used = {name for node in part.graph.node for name in reads(node)}
    inputs = [info for info in part.graph.input if info.name in used]
    del part.graph.input[:]
    part.graph.input.extend(inputs)
    return bool(run(part, {info.name: _zeros(info) for info in inputs}, [condition])[condition].all())


def _zeros(info: onnx.ValueInfoProto) -> NDArray[Any]:
    kind = info.type.tensor_type
    sizes = [axis.dim_value for axis in kind.shape.dim]
    return np.zeros(sizes, helper.tensor_dtype_to_np_dtype(kind.elem_type))


def _written_out(taken: onnx.GraphProto, node: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return a branch's nodes under unique names, with the If's outputs; its weights go into the graph."""
    computed = {name for one in taken.node for name in one.output if name}
    own = [*computed, *(tensor.name for tensor in taken.initializer)]
    names = {name: f"{node.output[0]}/{name}" for name in own}
    links = []
    for info, made in zip(taken.output, node.output, strict=True):
        if info.name in computed:
            computed.remove(info.name)
            names[info.name] = made
        else:  # a weight, what it took from outside, or the same once more
            links.append(helper.make_node("Identity", [names.get(info.name, info.name)], [made]))
    branch = onnx.GraphProto()
    branch.CopyFrom(taken)
    _rename(branch, names)
    graph.initializer.extend(branch.initializer)
    return [*branch.node, *links]


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for entry in (*graph.initializer, *graph.output):
        entry.name = names.get(entry.name, entry.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _rename(attribute.g, names)
