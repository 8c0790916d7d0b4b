"""Order of nodes in a graph: which node makes a tensor, and which nodes read it."""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import onnx
from onnx import helper

from inspect_xai.errors import ModelFileError

EXPORT_AGAIN = "export the network to ONNX again and give the new file"
AS_BLACK_BOX = (
    'explain it from outside: build it with --black-box, and say method = "rise" or "occlusion" under [explain] '
    "in the card"
)


def sort_nodes(nodes: Sequence[onnx.NodeProto], *, given: Iterable[str]) -> list[onnx.NodeProto]:
    """Return nodes so that each comes after those it reads from, else in the order they came.

    `given` names the tensors that no node makes: inputs and weights.

    Raises:
        ModelFileError: If a tensor has two makers or none, or nodes wait for each other in a circle.
    """
    sources = _sources(nodes, set(given))
    readers: dict[int, list[int]] = defaultdict(list)
    for index, awaited in enumerate(sources):
        for source in awaited:
            readers[source].append(index)
    ready = [index for index, awaited in enumerate(sources) if not awaited]
    ordered = []
    while ready:
        index = heapq.heappop(ready)
        ordered.append(nodes[index])
        for reader in readers[index]:
            sources[reader].discard(index)
            if not sources[reader]:
                heapq.heappush(ready, reader)
    if len(ordered) < len(nodes):
        stuck = next(node for node, awaited in zip(nodes, sources, strict=True) if awaited)
        raise ModelFileError(
            f"{len(nodes) - len(ordered)} nodes wait for each other in a circle, among them {named(stuck)}",
            expected="a graph without cycles",
            remedy=EXPORT_AGAIN,
        )
    return ordered


def _sources(nodes: Sequence[onnx.NodeProto], given: set[str]) -> list[set[int]]:
    """Return, for each node, the indices of the nodes it reads from."""
    makers: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for output in filter(None, node.output):
            if output in makers or output in given:
                raise ModelFileError(
                    f"tensor {output!r} is made twice", expected="one maker per tensor", remedy=EXPORT_AGAIN
                )
            makers[output] = index
    for node in nodes:
        for tensor in filter(None, node.input):
            if tensor not in makers and tensor not in given:
                raise ModelFileError(
                    f"{named(node)} reads tensor {tensor!r}, which nothing makes",
                    expected="an input, a weight or a node's output",
                    remedy=EXPORT_AGAIN,
                )
    return [{makers[tensor] for tensor in reads(node) if tensor in makers} for node in nodes]


def needed_nodes(
    nodes: Sequence[onnx.NodeProto], *, outputs: Iterable[str], given: Iterable[str] = ()
) -> list[onnx.NodeProto]:
    """Return those of the nodes that the outputs are computed from, in their order, where `given` need not be."""
    makers = {output: index for index, node in enumerate(nodes) for output in node.output if output}
    stop = set(given)
    wanted: set[int] = set()
    open_ends = [name for name in outputs if name not in stop]
    while open_ends:
        index = makers.get(open_ends.pop())
        if index is not None and index not in wanted:
            wanted.add(index)
            open_ends += [name for name in reads(nodes[index]) if name not in stop]
    return [node for index, node in enumerate(nodes) if index in wanted]


def put_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph that the caller has made or owns."""
    copies = []
    for node in nodes:  # copied first: they may live in the very list that is emptied
        copies.append(onnx.NodeProto())
        copies[-1].CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)


def reads(node: onnx.NodeProto) -> list[str]:
    """Return the tensors a node reads: its inputs, and those that the sub-graphs of an If name."""
    return [*node.input, *sorted(captured_names(node))]


def captured_names(node: onnx.NodeProto) -> set[str]:
    """Return the tensors that the sub-graphs of an If, Loop or Scan node name, those from outside included."""
    return {
        name
        for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.GRAPH
        for name in all_names(attribute.g)
    }


def all_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of every node and tensor, those inside sub-graphs included."""
    for entry in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        yield entry.name
    for node in graph.node:
        yield node.name
        yield from node.input
        yield from node.output
        yield from captured_names(node)


def named(node: onnx.NodeProto) -> str:
    """Return how messages name a node: its operator, and its name or first output."""
    return f"{node.op_type} {node.name or (node.output[0] if node.output else '')!r}"


def attribute_of(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return an attribute of a node, or its default."""
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default
