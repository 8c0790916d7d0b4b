"""Find the convolutional blocks of an arbitrary CNN graph: one tensor per resolution stage (method notes 1.3).

    image --> conv --> relu --+--> conv --> add --> relu ==> next stage (half the size)
    224       112       112   |              ^       112
                              +--------------+       every path runs through the last tensor: a cut tensor

A tensor is a cut tensor when as many paths lead through it as lead from the image to the scores; side branches,
gates and shortcuts drop out by construction.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
from onnx import helper

from inspect_xai.errors import CardError, UnsupportedModelError
from inspect_xai.model.build.dataflow import (
    CONVOLUTIONS,
    POOLS,
    SHRINK,
    Dataflow,
    FeatureTensor,
    cut_tensors,
    longest_path,
    read_dataflow,
)
from inspect_xai.model.build.normalize import Network
from inspect_xai.model.build.topology import AS_BLACK_BOX, attribute_of, put_nodes
from inspect_xai.records import BlockEnd

_WEIGHTED = CONVOLUTIONS | {
    *("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "QGemm", "FusedGemm", "FusedMatMul"),
    *("FusedMatMulActivation", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
}
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
        turned: By the name of an end, the tensor, channels last or of whole numbers, that it is made from (see
            `give_twins`).
        notes: Limits of the explanation, as codes: "single_block", "attention_behind_the_last_block", "black_box".
    """

    ends: tuple[BlockEnd, ...]
    cuts: frozenset[str]
    turned: dict[str, str]
    notes: tuple[str, ...]


NO_BLOCKS = Blocks((), frozenset(), {}, ("black_box",))
"""Of a network that is explained by its scores of masked pictures alone."""


@dataclass(slots=True)
class _Stage:
    """Cut tensors of about one resolution, and the one that represents the stage."""

    maps: list[FeatureTensor]
    chosen: int = -1
    rule: str = "last_cut_tensor"
    dropped: str = ""

    @property
    def first(self) -> FeatureTensor:
        return self.maps[0]

    @property
    def last(self) -> FeatureTensor:
        return self.maps[self.chosen]


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
    flow = read_dataflow(network, scores)
    cuts = cut_tensors(flow)
    if given:
        ends = _given(flow, given)
    else:
        stages = _stages([flow.maps[name] for name in cuts if name in flow.maps])
        _drop(stages, flow)
        kept = [stage for stage in stages if not stage.dropped]
        if kept:
            _step_before_class_map(kept[-1], flow, classes)
        for stage in kept:
            _step_before_expansion(stage, flow)
        ends = [(stage.last, stage.rule) for stage in kept] + _fallbacks(stages, flow)
        ends.sort(key=lambda end: flow.maker[end[0].tensor])
    notes = _notes(flow, [end.tensor for end, _ in ends])
    return Blocks(
        tuple(
            BlockEnd(end.end, flow.made_by(end.tensor), end.channels, end.height, end.width, rule) for end, rule in ends
        ),
        frozenset(end.end for end, _ in ends if end.tensor in cuts),
        {end.end: end.tensor for end, _ in ends if end.end != end.tensor},
        notes,
    )


def give_twins(network: Network, turned: Mapping[str, str]) -> Network:
    """Add a float, channels-first twin to tensors, from which everything behind them is computed.

        T (N, h, w, C) --> [Transpose] --> T/nchw (N, C, h, w) --> [Transpose] --> T/nhwc --> readers of T
        T (whole) --> [DequantizeLinear] --> T/float --> [QuantizeLinear] --> T/whole --> readers of T

    `turned` is `Blocks.turned`.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    shapes = dict(network.shapes)
    nodes = []
    back = {tensor: f"{tensor}/{'whole' if tensor in network.steps else 'nhwc'}" for tensor in turned.values()}
    for node in model.graph.node:
        node.input[:] = [back.get(name, name) for name in node.input]
        nodes.append(node)
        for twin, tensor in turned.items():
            if tensor in node.output:
                found, shape = _twin(tensor, twin, back[tensor], network)
                nodes += found
                shapes |= {twin: shape, back[tensor]: network.shape(tensor)}
    put_nodes(model.graph, nodes)
    return replace(network, model=model, shapes=shapes)


def _twin(tensor: str, twin: str, back: str, network: Network) -> tuple[list[onnx.NodeProto], tuple[int, ...]]:
    """Make the nodes from a tensor to its twin and back, and return the twin's shape."""
    shape, steps = network.shape(tensor), network.steps.get(tensor, ())
    there: list[tuple[str, tuple[str, ...], dict[str, Any]]] = []
    again: list[tuple[str, tuple[str, ...], dict[str, Any]]] = []
    if steps:
        there.append(("DequantizeLinear", steps, {}))
        again.append(("QuantizeLinear", steps, {}))
    if not twin.endswith("/float"):
        there.append(("Transpose", (), {"perm": [0, 3, 1, 2]}))
        again.insert(0, ("Transpose", (), {"perm": [0, 2, 3, 1]}))
        shape = (shape[0], shape[3], *shape[1:3])
    nodes = []
    for start, end, steps_there in ((tensor, twin, there), (twin, back, again)):
        names = [start, *(f"{end}/{number}" for number in range(len(steps_there) - 1)), end]
        for (op, more, attributes), source, made in zip(steps_there, names, names[1:], strict=False):
            nodes.append(helper.make_node(op, [source, *more], [made], **attributes))
    return nodes, shape


def _stages(maps: Iterable[FeatureTensor]) -> list[_Stage]:
    stages: list[_Stage] = []
    for found in maps:
        first = stages[-1].first if stages else None
        if first and first.height < SHRINK * found.height and first.width < SHRINK * found.width:
            stages[-1].maps.append(found)
        else:
            stages.append(_Stage([found]))
    return stages


def _drop(stages: Sequence[_Stage], flow: Dataflow) -> None:
    """Mark stages that hold no block: the bare image, no convolution of that size, a pool's output alone."""
    convolved = flow.convolved.values()
    for stage in stages:
        while len(stage.maps) > 1 and flow.made_by(stage.last.tensor) == "Pad":
            stage.maps.pop()  # a padded copy of the tensor before it
        if [found.tensor for found in stage.maps] == [flow.network.image]:
            stage.dropped = "image"
        elif not any(found.resembles(stage.first) for found in convolved):
            stage.dropped = "no_convolution"
        elif len(stage.maps) == 1 and flow.made_by(stage.last.tensor) in POOLS:
            stage.dropped = "pool_output"


def _step_before_class_map(stage: _Stage, flow: Dataflow, classes: int) -> None:
    """At a fully convolutional head, step back from the maps of classes to the features they are made from."""
    while stage.last.channels == classes and not _weights_behind(stage.last, flow):
        if -stage.chosen == len(stage.maps) or not _is_convolved(stage.maps[stage.chosen - 1], flow):
            break
        stage.chosen -= 1
        stage.rule = "before_class_map"


def _is_convolved(found: FeatureTensor, flow: Dataflow) -> bool:
    """Whether a cut tensor lies behind a convolution; before the first there is only the picture."""
    return any(node.op_type in CONVOLUTIONS for node in flow.nodes[: flow.maker.get(found.tensor, -1) + 1])


def _weights_behind(found: FeatureTensor, flow: Dataflow) -> bool:
    reached = {found.tensor}
    for node in flow.nodes:
        if reached.intersection(node.input):
            if node.op_type in _WEIGHTED:
                return True
            reached.update(node.output)
    return False


def _step_before_expansion(stage: _Stage, flow: Dataflow) -> None:
    """Where a strided depthwise convolution reads a 1x1 expansion, step back to what was expanded."""
    readers = [flow.nodes[index] for index in _readers_past_padding(stage.last.tensor, flow)]
    if not readers or not all(_is_strided_depthwise(node, flow) for node in readers):
        return
    position = len(stage.maps) + stage.chosen
    while position >= 0 and _is_activation(stage.maps[position].tensor, flow):
        position -= 1
    if position < 1 or flow.made_by(stage.maps[position].tensor) != "Conv":
        return
    expansion = flow.nodes[flow.maker[stage.maps[position].tensor]]
    source = expansion.input[0]
    if (
        set(attribute_of(expansion, "kernel_shape", (1, 1))) == {1}
        and stage.maps[position - 1].tensor == source
        and stage.maps[position - 1].channels < stage.maps[position].channels
        and _is_convolved(stage.maps[position - 1], flow)
    ):
        stage.chosen = position - 1 - len(stage.maps)
        stage.rule = "before_expansion"


def _is_activation(tensor: str, flow: Dataflow) -> bool:
    node = flow.nodes[flow.maker[tensor]] if tensor in flow.maker else onnx.NodeProto()
    shortcut = node.op_type == "Add" and all(name in flow.readers for name in node.input)
    return node.op_type in _ACTIVATIONS and not shortcut


def _readers_past_padding(tensor: str, flow: Dataflow) -> list[int]:
    found = []
    for index in flow.readers[tensor]:
        node = flow.nodes[index]
        found += _readers_past_padding(node.output[0], flow) if node.op_type in _SHAPELESS else [index]
    return found


def _is_strided_depthwise(node: onnx.NodeProto, flow: Dataflow) -> bool:
    channels = flow.network.shapes.get(node.input[0], (1, 1))[1]
    return (
        node.op_type == "Conv"
        and channels > 1
        and attribute_of(node, "group", 1) == channels
        and max(attribute_of(node, "strides", (1, 1))) > 1
    )


def _fallbacks(stages: Sequence[_Stage], flow: Dataflow) -> list[tuple[FeatureTensor, str]]:
    """Take the last tensor on the longest path for resolutions that have convolutions but no cut tensor.

    Networks with parallel streams (HRNet), skips from coder to decoder (U-Net) or cells fed twice (NASNet) need it.
    """
    path = longest_path(flow)
    settled = [stage.first for stage in stages if stage.dropped in ("", "pool_output")]
    missing: list[FeatureTensor] = []
    for name in path:
        if name in flow.convolved:
            found = flow.convolved[name]
            if not any(found.resembles(other) for other in [*settled, *missing]):
                missing.append(found)
    return [
        (
            next(flow.maps[name] for name in reversed(path) if name in flow.maps and flow.maps[name].resembles(found)),
            "fallback",
        )
        for found in missing
        if any(flow.maps[name].resembles(found) for name in path if name in flow.maps)
    ]


def _given(flow: Dataflow, given: Sequence[str]) -> list[tuple[FeatureTensor, str]]:
    ends = []
    for name in given:
        if name not in flow.maps or name == flow.network.image:
            shape = flow.network.shapes.get(name)
            found = f"of shape {list(shape)}" if shape else "not on the way from the picture to the scores"
            raise CardError(
                f"explain.blocks: tensor {name!r} is {found}",
                expected="float tensors (batch, channels, height, width) larger than 1x1 before the class scores",
                remedy='choose others, or say blocks = "auto"',
            )
        ends.append((flow.maps[name], "given"))
    return sorted(ends, key=lambda end: flow.maker[end[0].tensor])


def _notes(flow: Dataflow, ends: Sequence[str]) -> tuple[str, ...]:
    """Refuse a network that is no CNN; note what limits the explanation of one.

    Raises:
        UnsupportedModelError: If there is no block, or attention follows a lone patch embedding.
    """
    deepest = flow.maker[ends[-1]] if ends else -1
    attention = any(
        node.op_type in ("Attention", "MultiHeadAttention", "QAttention")
        or (node.op_type == "Softmax" and len(flow.network.shapes.get(node.output[0], ())) > 2)
        for node in flow.nodes[deepest + 1 :]
    )
    if not ends:
        raise UnsupportedModelError(
            "no convolution with an output larger than 1x1 stands between picture and class scores"
            + (": the network is a transformer" if attention else ""),
            expected="a convolutional classifier",
            remedy=AS_BLACK_BOX,
        )
    if attention and len(ends) == 1:
        raise UnsupportedModelError(
            f"attention follows the only convolutional block {ends[0]!r}: the network is a transformer",
            expected="a convolutional classifier",
            remedy=AS_BLACK_BOX,
        )
    notes = ["single_block"] if len(ends) == 1 else []
    return (*notes, "attention_behind_the_last_block") if attention else tuple(notes)
