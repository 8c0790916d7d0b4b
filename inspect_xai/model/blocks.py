"""Finds the convolutional blocks of an arbitrary CNN graph: one tensor per resolution stage (method notes 1.3).

    image --> conv --> relu --+--> conv --> add --> relu ==> next stage (half the size)
    224       112       112   |              ^       112
                              +--------------+       every path runs through the last tensor: a cut tensor

A tensor is a cut tensor when as many paths lead through it as lead from the image to the scores; side branches,
gates and shortcuts drop out by construction.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx

from inspect_xai.errors import CardError, UnsupportedModelError
from inspect_xai.model.wiring import attribute_of
from inspect_xai.model.working import Network
from inspect_xai.records import BlockEnd, Layout

SHRINK = 1.5  # 147 -> 149 is padding, 7 -> 4 is a new stage
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv"})
_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
_WEIGHTED = _CONVOLUTIONS | {"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"}
_SHAPELESS = frozenset({"Pad", "QuantizeLinear", "DequantizeLinear"})
# What may stand between a 1x1 expansion and the strided depthwise convolution that reads it
_ACTIVATIONS = _SHAPELESS | {
    *("Relu", "Clip", "PRelu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish"),
    *("Gelu", "Tanh", "Mul", "Div", "Add", "BatchNormalization"),
}


@dataclass(frozen=True, slots=True)
class Blocks:
    """The block ends of a network, shallow to deep.

    Attributes:
        ends: What is explained.
        cuts: Those tensors of `ends` at which the network falls into two parts.
        notes: What a reader must know, as codes: "single_block", "attention_behind_the_last_block".
    """

    ends: tuple[BlockEnd, ...]
    cuts: frozenset[str]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Map:
    """A rank-4 tensor on the way from the image to the scores."""

    tensor: str
    channels: int
    height: int
    width: int

    def resembles(self, other: "_Map") -> bool:
        """Whether neither is smaller than the other by the ratio that starts a stage."""
        pairs = ((self.height, other.height), (self.width, other.width))
        return all(max(pair) < SHRINK * min(pair) for pair in pairs)


@dataclass(slots=True)
class _Stage:
    """Cut tensors of about one resolution, and which of them stands for the stage."""

    maps: list[_Map]
    chosen: int = -1
    rule: str = "last_cut_tensor"
    dropped: str = ""

    @property
    def first(self) -> _Map:
        return self.maps[0]

    @property
    def last(self) -> _Map:
        return self.maps[self.chosen]


@dataclass(slots=True)
class _Graph:
    """Who makes and who reads each tensor, between the image and the scores."""

    network: Network
    scores: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    maker: dict[str, int] = field(default_factory=dict)
    readers: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    maps: dict[str, _Map] = field(default_factory=dict)

    def __post_init__(self) -> None:
        backward = {self.scores}
        for node in reversed(self.network.model.graph.node):
            if backward.intersection(node.output):
                backward.update(node.input)
        forward = {self.network.image}
        for node in self.network.model.graph.node:
            if forward.intersection(node.input) and backward.intersection(node.output):
                forward.update(name for name in node.output if name in backward)
                self.nodes.append(node)
        for index, node in enumerate(self.nodes):
            self.maker |= {name: index for name in node.output if name in forward}
            for name in node.input:  # parallel edges count
                if name in forward:
                    self.readers[name].append(index)
        layouts = _layouts(self.network, self.nodes)
        for name in [self.network.image, *self.maker]:
            shape = self.network.shapes.get(name, ())
            if len(shape) == 4 and min(shape[2:]) > 1 and layouts.get(name, Layout.NCHW) is Layout.NCHW:
                self.maps[name] = _Map(name, *shape[1:])

    def made_by(self, tensor: str) -> str:
        """Operator that makes a tensor; empty for the image."""
        return self.nodes[self.maker[tensor]].op_type if tensor in self.maker else ""


def find_blocks(network: Network, *, scores: str, classes: int, given: Sequence[str] = ()) -> Blocks:
    """Find the block ends.

    Args:
        network: In its working form.
        scores: Tensor with the class scores, before any softmax or sigmoid.
        classes: Number of scores.
        given: Block ends to take instead of those found.

    Raises:
        CardError: If a given tensor cannot be a block end.
        UnsupportedModelError: If the network has no convolutional block, or is a transformer.
    """
    graph = _Graph(network, scores)
    cuts = _cut_tensors(graph)
    if given:
        ends = _given(graph, given)
    else:
        stages = _stages([graph.maps[name] for name in cuts if name in graph.maps])
        _drop(stages, graph)
        kept = [stage for stage in stages if not stage.dropped]
        if kept:
            _step_before_class_map(kept[-1], graph, classes)
        for stage in kept:
            _step_before_expansion(stage, graph)
        ends = [(stage.last, stage.rule) for stage in kept] + _fallbacks(stages, graph)
        ends.sort(key=lambda end: graph.maker[end[0].tensor])
    notes = _notes(graph, [end.tensor for end, _ in ends])
    return Blocks(
        tuple(
            BlockEnd(end.tensor, graph.made_by(end.tensor), end.channels, end.height, end.width, rule)
            for end, rule in ends
        ),
        frozenset(cuts).intersection(end.tensor for end, _ in ends),
        notes,
    )


def _cut_tensors(graph: _Graph) -> list[str]:
    """Return, in order, the tensors that every path from the image to the scores runs through.

    Paths are counted with Python's unbounded integers: dense networks have more of them than a float can count.
    """
    image = graph.network.image
    from_image: dict[str, int] = {image: 1}
    for node in graph.nodes:
        paths = sum(from_image.get(name, 0) for name in node.input)
        from_image |= {name: paths for name in node.output if name in graph.maker}
    to_scores: defaultdict[str, int] = defaultdict(int, {graph.scores: 1})
    for node in reversed(graph.nodes):
        paths = sum(to_scores[name] for name in node.output if name in graph.maker)
        for name in node.input:
            if name in from_image:
                to_scores[name] += paths
    total = from_image.get(graph.scores, 0)
    if not total:
        raise UnsupportedModelError(
            f"the scores {graph.scores!r} do not depend on the picture", expected="a classifier of pictures"
        )
    return [name for name, paths in from_image.items() if paths * to_scores[name] == total]


def _layouts(network: Network, nodes: Iterable[onnx.NodeProto]) -> dict[str, Layout]:
    """Follow the order of axes through Transpose nodes; convolutions and pools always put out NCHW."""
    layouts = {}
    if network.layout is Layout.NHWC:
        layouts[network.image] = Layout.NHWC
    for node in nodes:
        source = next((name for name in node.input if len(network.shapes.get(name, ())) == 4), "")
        layout = layouts.get(source, Layout.NCHW)
        if node.op_type == "Transpose":
            order = tuple(attribute_of(node, "perm", ()))
            turned = {(0, 2, 3, 1): (Layout.NCHW, Layout.NHWC), (0, 3, 1, 2): (Layout.NHWC, Layout.NCHW)}.get(order)
            layout = turned[1] if turned and turned[0] is layout else layout
        elif node.op_type in _CONVOLUTIONS | _POOLS | {"BatchNormalization", "Reshape"}:
            layout = Layout.NCHW
        layouts |= dict.fromkeys(node.output, layout)
    return layouts


def _stages(maps: Iterable[_Map]) -> list[_Stage]:
    stages: list[_Stage] = []
    for found in maps:
        first = stages[-1].first if stages else None
        if first and first.height < SHRINK * found.height and first.width < SHRINK * found.width:
            stages[-1].maps.append(found)
        else:
            stages.append(_Stage([found]))
    return stages


def _drop(stages: Sequence[_Stage], graph: _Graph) -> None:
    """Mark stages that hold no block: the bare image, no convolution of that size, a pool's output alone."""
    convolved = [graph.maps[name] for name in graph.maps if graph.made_by(name) in _CONVOLUTIONS]
    for stage in stages:
        while len(stage.maps) > 1 and graph.made_by(stage.last.tensor) == "Pad":
            stage.maps.pop()  # a padded copy of the tensor before it
        if [found.tensor for found in stage.maps] == [graph.network.image]:
            stage.dropped = "image"
        elif not any(found.resembles(stage.first) for found in convolved):
            stage.dropped = "no_convolution"
        elif len(stage.maps) == 1 and graph.made_by(stage.last.tensor) in _POOLS:
            stage.dropped = "pool_output"


def _step_before_class_map(stage: _Stage, graph: _Graph, classes: int) -> None:
    """At a fully convolutional head, step back from the maps of classes to the features they are made from."""
    while stage.last.channels == classes and -stage.chosen < len(stage.maps) and not _weights_behind(stage.last, graph):
        stage.chosen -= 1
        stage.rule = "before_class_map"


def _weights_behind(found: _Map, graph: _Graph) -> bool:
    reached = {found.tensor}
    for node in graph.nodes:
        if reached.intersection(node.input):
            if node.op_type in _WEIGHTED:
                return True
            reached.update(node.output)
    return False


def _step_before_expansion(stage: _Stage, graph: _Graph) -> None:
    """Where a strided depthwise convolution reads a 1x1 expansion, step back to what was expanded."""
    readers = [graph.nodes[index] for index in _readers_past_padding(stage.last.tensor, graph)]
    if not readers or not all(_is_strided_depthwise(node, graph) for node in readers):
        return
    position = len(stage.maps) + stage.chosen
    while position >= 0 and _is_activation(stage.maps[position].tensor, graph):
        position -= 1
    if position < 1 or graph.made_by(stage.maps[position].tensor) != "Conv":
        return
    expansion = graph.nodes[graph.maker[stage.maps[position].tensor]]
    source = expansion.input[0]
    if (
        set(attribute_of(expansion, "kernel_shape", (1, 1))) == {1}
        and stage.maps[position - 1].tensor == source
        and stage.maps[position - 1].channels < stage.maps[position].channels
        and source != graph.network.image
    ):
        stage.chosen = position - 1 - len(stage.maps)
        stage.rule = "before_expansion"


def _is_activation(tensor: str, graph: _Graph) -> bool:
    node = graph.nodes[graph.maker[tensor]] if tensor in graph.maker else onnx.NodeProto()
    shortcut = node.op_type == "Add" and all(name in graph.readers for name in node.input)
    return node.op_type in _ACTIVATIONS and not shortcut


def _readers_past_padding(tensor: str, graph: _Graph) -> list[int]:
    found = []
    for index in graph.readers[tensor]:
        node = graph.nodes[index]
        found += _readers_past_padding(node.output[0], graph) if node.op_type in _SHAPELESS else [index]
    return found


def _is_strided_depthwise(node: onnx.NodeProto, graph: _Graph) -> bool:
    channels = graph.network.shapes.get(node.input[0], (1, 1))[1]
    return (
        node.op_type == "Conv"
        and channels > 1
        and attribute_of(node, "group", 1) == channels
        and max(attribute_of(node, "strides", (1, 1))) > 1
    )


def _fallbacks(stages: Sequence[_Stage], graph: _Graph) -> list[tuple[_Map, str]]:
    """For resolutions that have convolutions but no cut tensor, the last tensor on the longest path.

    Networks with parallel streams (HRNet), skips from coder to decoder (U-Net) or cells fed twice (NASNet) need it.
    """
    path = _longest_path(graph)
    settled = [stage.first for stage in stages if stage.dropped in ("", "pool_output")]
    missing: list[_Map] = []
    for name in path:
        if graph.made_by(name) in _CONVOLUTIONS and name in graph.maps:
            found = graph.maps[name]
            if not any(found.resembles(other) for other in [*settled, *missing]):
                missing.append(found)
    return [
        (
            next(
                graph.maps[name] for name in reversed(path) if name in graph.maps and graph.maps[name].resembles(found)
            ),
            "fallback",
        )
        for found in missing
    ]


def _longest_path(graph: _Graph) -> list[str]:
    length: dict[str, int] = {graph.network.image: 0}
    before: dict[str, str] = {}
    for node in graph.nodes:
        source = max((name for name in node.input if name in length), key=lambda name: length[name])
        for name in node.output:
            if name in graph.maker:
                length[name], before[name] = length[source] + 1, source
    path = [graph.scores]
    while path[-1] in before:
        path.append(before[path[-1]])
    return path[::-1]


def _given(graph: _Graph, given: Sequence[str]) -> list[tuple[_Map, str]]:
    ends = []
    for name in given:
        if name not in graph.maps or name == graph.network.image:
            shape = graph.network.shapes.get(name)
            found = f"of shape {list(shape)}" if shape else "not on the way from the picture to the scores"
            raise CardError(
                f"explain.blocks: tensor {name!r} is {found}",
                expected="float tensors (batch, channels, height, width) larger than 1x1 before the class scores",
                remedy='choose others, or say blocks = "auto"',
            )
        ends.append((graph.maps[name], "given"))
    return sorted(ends, key=lambda end: graph.maker[end[0].tensor])


def _notes(graph: _Graph, ends: Sequence[str]) -> tuple[str, ...]:
    """Refuse what is no CNN; note what limits the explanation of one.

    Raises:
        UnsupportedModelError: If there is no block, or attention follows a lone patch embedding.
    """
    if not ends:
        raise UnsupportedModelError(
            "no convolution with an output larger than 1x1 stands between picture and class scores",
            expected="a convolutional classifier",
            remedy="explain this network by a method that needs no blocks",
        )
    deepest = graph.maker[ends[-1]]
    attention = any(
        node.op_type in ("Attention", "MultiHeadAttention")
        or (node.op_type == "Softmax" and len(graph.network.shapes.get(node.output[0], ())) > 2)
        for node in graph.nodes[deepest + 1 :]
    )
    if attention and len(ends) == 1:
        raise UnsupportedModelError(
            f"attention follows the only convolutional block {ends[0]!r}: the network is a transformer",
            expected="a convolutional classifier",
            remedy="explain this network by a method that needs no blocks",
        )
    notes = ["single_block"] if len(ends) == 1 else []
    return (*notes, "attention_behind_the_last_block") if attention else tuple(notes)
