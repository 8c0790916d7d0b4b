"""Paths from the picture to the class scores: which tensors lie on all of them, on the longest, in what layout."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from inspect_xai.errors import UnsupportedModelError
from inspect_xai.model.build.normalize import Network
from inspect_xai.model.build.topology import attribute_of
from inspect_xai.records import Layout

SHRINK = 1.5  # 147 -> 149 is padding, 7 -> 4 is a new stage
CONVOLUTIONS = frozenset(
    {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "NhwcConv", "NhwcFusedConv"}
)
POOLS = frozenset({"MaxPool", "AveragePool", "LpPool", "NhwcMaxPool", "QLinearAveragePool"})
_CHANNELS_LAST = frozenset({"NhwcConv", "NhwcFusedConv", "NhwcMaxPool"})
_CHANNELS_FIRST = CONVOLUTIONS | POOLS | {"BatchNormalization", "InstanceNormalization", "Reshape"}
_TURNS: dict[tuple[Layout | None, tuple[int, ...]], Layout] = {
    (Layout.NCHW, (0, 2, 3, 1)): Layout.NHWC,
    (Layout.NHWC, (0, 3, 1, 2)): Layout.NCHW,
    (Layout.NCHW, (0, 1, 2, 3)): Layout.NCHW,
    (Layout.NHWC, (0, 1, 2, 3)): Layout.NHWC,
}


@dataclass(frozen=True, slots=True)
class FeatureTensor:
    """A rank-4 tensor on a path from the image to the scores."""

    tensor: str
    channels: int
    height: int
    width: int
    layout: Layout
    quantized: bool = False

    @property
    def end(self) -> str:
        """Name of the float tensor, channels first, that represents it in the bundle."""
        if self.layout is Layout.NHWC:
            return f"{self.tensor}/nchw"
        return f"{self.tensor}/float" if self.quantized else self.tensor

    def resembles(self, other: "FeatureTensor") -> bool:
        """Whether neither is smaller than the other by the ratio that starts a stage."""
        pairs = ((self.height, other.height), (self.width, other.width))
        return all(max(pair) < SHRINK * min(pair) for pair in pairs)


@dataclass(frozen=True, slots=True, eq=False)
class Dataflow:
    """The part of a network between the image and the scores.

    Attributes:
        network: In its working form.
        scores: Tensor with the class scores.
        nodes: Nodes on any path, in order.
        maker: By tensor, the position of the node that makes it.
        readers: By tensor, the positions of the nodes that read it; once per edge.
        maps: Its feature maps, larger than 1x1, of real numbers.
        convolved: Outputs of convolutions, larger than 1x1, of any element type.
    """

    network: Network
    scores: str
    nodes: list[onnx.NodeProto]
    maker: dict[str, int]
    readers: dict[str, list[int]]
    maps: dict[str, FeatureTensor]
    convolved: dict[str, FeatureTensor]

    def made_by(self, tensor: str) -> str:
        """Operator that makes a tensor; empty for the image."""
        return self.nodes[self.maker[tensor]].op_type if tensor in self.maker else ""


def read_dataflow(network: Network, scores: str) -> Dataflow:
    """Collect what lies between the image and the scores.

    Raises:
        UnsupportedModelError: If nothing does.
    """
    backward = {scores}
    for node in reversed(network.model.graph.node):
        if backward.intersection(node.output):
            backward.update(node.input)
    nodes: list[onnx.NodeProto] = []
    maker: dict[str, int] = {}
    readers: defaultdict[str, list[int]] = defaultdict(list)
    reached = {network.image}
    for node in network.model.graph.node:
        if reached.isdisjoint(node.input) or backward.isdisjoint(node.output):
            continue
        for name in node.input:
            if name in reached:
                readers[name].append(len(nodes))
        made = dict.fromkeys((name for name in node.output if name in backward), len(nodes))
        maker |= made
        reached.update(made)
        nodes.append(node)
    if scores not in maker:
        raise UnsupportedModelError(
            f"the scores {scores!r} do not depend on the picture", expected="a classifier of pictures"
        )
    maps = _maps(network, nodes, [network.image, *maker])
    real = {name: found for name, found in maps.items() if name in network.shapes or name in network.steps}
    by_convolution = {name for node in nodes if node.op_type in CONVOLUTIONS for name in node.output}
    convolved = {name: found for name, found in maps.items() if name in by_convolution}
    return Dataflow(network, scores, nodes, maker, readers, real, convolved)


def cut_tensors(flow: Dataflow) -> list[str]:
    """Return, in order, the tensors that every path from the image to the scores runs through.

    Paths are counted with Python's unbounded integers: dense networks have more of them than a float can count.
    """
    from_image: dict[str, int] = {flow.network.image: 1}
    for node in flow.nodes:
        paths = sum(from_image.get(name, 0) for name in node.input)
        from_image |= {name: paths for name in node.output if name in flow.maker}
    to_scores: defaultdict[str, int] = defaultdict(int, {flow.scores: 1})
    for node in reversed(flow.nodes):
        paths = sum(to_scores[name] for name in node.output if name in flow.maker)
        for name in node.input:
            if name in from_image:
                to_scores[name] += paths
    return [name for name, paths in from_image.items() if paths * to_scores[name] == from_image[flow.scores]]


def longest_path(flow: Dataflow) -> list[str]:
    """Return the tensors on the path with the most nodes, from the image to the scores."""
    length: dict[str, int] = {flow.network.image: 0}
    before: dict[str, str] = {}
    for node in flow.nodes:
        source = max((name for name in node.input if name in length), key=lambda name: length[name])
        for name in node.output:
            if name in flow.maker:
                length[name], before[name] = length[source] + 1, source
    path = [flow.scores]
    while path[-1] in before:
        path.append(before[path[-1]])
    return path[::-1]


def _maps(network: Network, nodes: Iterable[onnx.NodeProto], names: Iterable[str]) -> dict[str, FeatureTensor]:
    layouts = _layouts(network, nodes)
    maps = {}
    for name in names:
        shape, layout = network.shape(name), layouts.get(name)
        if len(shape) == 4 and layout is not None:
            channels, height, width = shape[1:] if layout is Layout.NCHW else (shape[3], *shape[1:3])
            if min(height, width) > 1:
                maps[name] = FeatureTensor(name, channels, height, width, layout, quantized=name in network.steps)
    return maps


def _layouts(network: Network, nodes: Iterable[onnx.NodeProto]) -> dict[str, Layout | None]:
    """Follow the order of axes through Transpose nodes; convolutions and pools always output channels first."""
    layouts: dict[str, Layout | None] = {network.image: network.layout}
    for node in nodes:
        source = next((name for name in node.input if len(network.shape(name)) == 4), "")
        layout = layouts.get(source, Layout.NCHW)
        if node.op_type == "Transpose":
            layout = _TURNS.get((layout, tuple(attribute_of(node, "perm", ()))))
        elif node.op_type in _CHANNELS_LAST or attribute_of(node, "channels_last", 0):
            layout = Layout.NHWC
        elif node.op_type in _CHANNELS_FIRST:
            layout = Layout.NCHW
        layouts |= dict.fromkeys(node.output, layout)
    return layouts
