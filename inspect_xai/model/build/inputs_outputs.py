"""Inputs and outputs of a network: the picture as the network takes it, and the output that the card chooses.

float32 (N, C, H, W) as the card says -> [Reshape] -> [Round, Clip, Cast] -> what the graph takes
what the graph makes -> the output chosen; whatever is not needed for it (ArgMax, ZipMap, embeddings) is left out
"""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from inspect_xai.errors import CardError, UnsupportedModelError
from inspect_xai.model.build.topology import EXPORT_AGAIN, needed_nodes, put_nodes, reads
from inspect_xai.records import InputSpec, Layout, ModelCard

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_TAKEN = (*_FLOATS, TensorProto.UINT8)
_MOST_UINT8 = 255
_MOVES_ONLY = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
# What turns class scores into a label or a table of names; the scores are in front of it.
_LABELLING = frozenset({"ArgMax", "ZipMap", "ArrayFeatureExtractor", "TopK", "Cast", "Identity", "Squeeze", "Gather"})
_TRAINING_SWITCH = re.compile(r"learning_phase|is_?train|training", re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """How a network takes a picture.

    Attributes:
        image: Name of the input that is the picture.
        dtype: Its element type, as ONNX numbers them.
        shape: Its shape for one picture: of rank 4, (1, H, W), or (1, numbers).
        constants: The other inputs with the values they are held at: switches between training and use.
    """

    image: str
    dtype: int
    shape: tuple[int, ...]
    constants: Mapping[str, NDArray[Any]]

    def feeds(self, pictures: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Return the network's inputs for pictures (N, C, H, W) or (N, H, W, C), scaled as the card says."""
        shaped = pictures.reshape(len(pictures), *self.shape[1:])
        if self.dtype == TensorProto.UINT8:
            shaped = np.clip(np.round(shaped), 0, _MOST_UINT8)
        return {self.image: shaped.astype(helper.tensor_dtype_to_np_dtype(self.dtype)), **self.constants}


def with_free_axes(model: onnx.ModelProto) -> None:
    """Make axes of sizes below 1, which some exporters write for "any size", axes without a size; changes the model."""
    graph = model.graph
    for info in (*graph.input, *graph.output, *graph.value_info):
        for axis in info.type.tensor_type.shape.dim:
            if axis.HasField("dim_value") and axis.dim_value < 1:
                axis.Clear()


def with_chosen_output(model: onnx.ModelProto, card: ModelCard) -> onnx.ModelProto:
    """Return the network up to the output that holds the class scores; the same model where that is all of it.

    Raises:
        CardError: If the card names what no node makes, or names nothing and several outputs could be class scores.
    """
    graph = model.graph
    plain = len(graph.output) == 1 and graph.output[0].type.HasField("tensor_type")
    if plain and card.output.name in ("", graph.output[0].name):
        return model
    name = _chosen_output(graph, card)
    chosen = onnx.ModelProto()
    chosen.CopyFrom(model)
    part = chosen.graph
    put_nodes(part, needed_nodes(graph.node, outputs=[name]))
    used = {read for node in part.node for read in reads(node)}
    for listed in (part.initializer, part.sparse_initializer, part.input):
        kept = [one for one in listed if (one.values.name if listed is part.sparse_initializer else one.name) in used]
        del listed[:]
        listed.extend(kept)
    declared = next((info for info in (*graph.output, *graph.value_info) if info.name == name), None)
    del part.output[:]
    part.output.append(declared or onnx.ValueInfoProto(name=name))  # runtimes find its type themselves
    return chosen


def read_ends(model: onnx.ModelProto, card: ModelCard) -> Ends:
    """Check the graph's inputs against the card, key by key.

    Raises:
        CardError: If the picture's shape or numbers are not what the card says.
        UnsupportedModelError: If the network takes anything but one picture of a kind that is supported.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    used = {name for node in model.graph.node for name in reads(node)}
    inputs = [info for info in model.graph.input if info.name not in weights]
    needed = [info for info in inputs if info.name in used]
    switches = [info for info in needed if len(needed) > 1 and _is_training_switch(info)]
    images = [info for info in needed if info not in switches]
    if len(images) != 1:
        raise UnsupportedModelError(
            f"the network has {len(images)} inputs: {', '.join(map(_described, images or inputs))}",
            expected="one picture",
            remedy="export a network that takes one picture, with everything else fixed",
        )
    image, spec = images[0], card.input
    shape = _shape_for_one(image, spec)
    dtype = image.type.tensor_type.elem_type
    if dtype == TensorProto.UINT8:
        _check_whole_numbers(image.name, spec)
    constants = {info.name: np.zeros([1] * len(info.type.tensor_type.shape.dim), bool) for info in switches}
    unread = [info for info in inputs if info not in needed]
    return Ends(image.name, dtype, shape, constants | {info.name: _nothing(info) for info in unread})


def pin_inputs(model: onnx.ModelProto, ends: Ends) -> None:
    """Give the picture its shape for one, and put the other inputs' values into the model, which is changed."""
    graph = model.graph
    del graph.input[:]  # weights listed as inputs would not be folded
    dtype = TensorProto.FLOAT if _is_float_in_effect(graph, ends) else ends.dtype
    graph.input.append(helper.make_tensor_value_info(ends.image, dtype, ends.shape))
    used = {name for node in graph.node for name in reads(node)}
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in ends.constants.items() if name in used
    )


def enter_as_float(model: onnx.ModelProto, spec: InputSpec) -> str:
    """Put nodes in front of a pinned graph, which is changed, that take the picture as float32 of rank 4.

    Args:
        model: Pinned, of opset 13 or later.
        spec: How the picture is fed.

    Returns:
        Name of the input, which is the graph's own where that takes such a picture.
    """
    graph = model.graph
    (given,) = graph.input
    kind = given.type.tensor_type
    shape = [axis.dim_value for axis in kind.shape.dim]
    if kind.elem_type == TensorProto.FLOAT and len(shape) == 4:
        return str(given.name)
    steps: list[tuple[str, list[NDArray[Any]], dict[str, Any]]] = []
    if len(shape) != 4:
        steps.append(("Reshape", [np.array(shape, np.int64)], {}))
    if kind.elem_type != TensorProto.FLOAT:
        steps += [("Round", [], {}), ("Clip", [np.float32(0), np.float32(_MOST_UINT8)], {})]  # type: ignore[list-item]
        steps.append(("Cast", [], {"to": kind.elem_type}))
    name = tensor = f"{given.name}/picture"
    nodes = []
    for number, (op, operands, attributes) in enumerate(steps, start=1):
        names = [f"{name}/{op}/{index}" for index in range(len(operands))]
        graph.initializer.extend(map(numpy_helper.from_array, map(np.asarray, operands), names))
        made = str(given.name) if number == len(steps) else f"{name}/{op}"
        nodes.append(helper.make_node(op, [tensor, *names], [made], **attributes))
        tensor = made
    put_nodes(graph, [*nodes, *graph.node])
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, input_shape(spec)))
    return name


def input_shape(spec: InputSpec) -> tuple[int, int, int, int]:
    """Return the shape of one picture in the network's order of axes."""
    if spec.layout is Layout.NHWC:
        return (1, spec.height, spec.width, spec.depth)
    return (1, spec.depth, spec.height, spec.width)


def scores_in_front(nodes: Mapping[str, onnx.NodeProto], output: str) -> str:
    """Walk back from a label or a table of labels to the tensor it is made from; `nodes` by the tensor they make."""
    while output in nodes and nodes[output].op_type in _LABELLING:
        output = next((name for name in nodes[output].input if name in nodes), "")
    return output


def _chosen_output(graph: onnx.GraphProto, card: ModelCard) -> str:
    makers = {name: node for node in graph.node for name in node.output if name}
    wanted, listed = card.output.name, ", ".join(map(_described, graph.output))
    if wanted in makers:
        return wanted
    if wanted:
        near = difflib.get_close_matches(wanted, makers, n=3)
        raise CardError(
            f"output.name: found {wanted!r}, which no node of the network makes",
            expected=f"the name of a tensor, such as its outputs: {listed}",
            remedy=f"did you mean {' or '.join(map(repr, near))}?" if near else "correct the name in the card",
        )
    fitting = [info.name for info in graph.output if _may_be_scores(info, card)]
    if len(fitting) == 1:
        return str(fitting[0])
    candidates = fitting or [scores_in_front(makers, info.name) for info in graph.output]
    names = [name for name in dict.fromkeys(candidates) if name] or ["NAME"]
    raise CardError(
        f"output.name: the network's outputs are {listed}, and the card does not say which holds the class scores",
        expected="one vector of class scores for a picture; detectors and segmenters are not explained",
        remedy="write " + " or ".join(f'[output] name = "{name}"' for name in names) + " in the card",
    )


def _may_be_scores(info: onnx.ValueInfoProto, card: ModelCard) -> bool:
    """Whether an output's declared type and shape fit the card's labels."""
    kind = info.type.tensor_type
    if not info.type.HasField("tensor_type") or kind.elem_type not in (*_FLOATS, TensorProto.DOUBLE):
        return False
    sizes = [axis.dim_value for axis in kind.shape.dim[1:]]
    if not kind.HasField("shape") or 0 in sizes:
        return True
    labels = len(card.labels)
    return math.prod(sizes) in ((labels, 1) if labels == 2 else (labels,))


def _described(info: onnx.ValueInfoProto) -> str:
    kind = info.type.tensor_type
    if not info.type.HasField("tensor_type"):
        return f"{info.name} ({str(info.type.WhichOneof('value') or 'of no type').removesuffix('_type')})"
    return f"{info.name} ({TensorProto.DataType.Name(kind.elem_type)} {_axes(info)})"


def _axes(info: onnx.ValueInfoProto) -> str:
    kind = info.type.tensor_type
    if not kind.HasField("shape"):
        return "of any shape"
    return f"[{', '.join(str(axis.dim_value or axis.dim_param or '?') for axis in kind.shape.dim)}]"


def _is_training_switch(info: onnx.ValueInfoProto) -> bool:
    """Whether an input is one truth value whose name says that it switches between training and use."""
    kind = info.type.tensor_type
    single = math.prod(axis.dim_value or 1 for axis in kind.shape.dim) == 1
    return kind.elem_type == TensorProto.BOOL and single and bool(_TRAINING_SWITCH.search(info.name))


def _nothing(info: onnx.ValueInfoProto) -> NDArray[Any]:
    """Make a value for an input that no node reads."""
    kind = info.type.tensor_type
    return np.zeros([axis.dim_value or 1 for axis in kind.shape.dim], helper.tensor_dtype_to_np_dtype(kind.elem_type))


def _check_whole_numbers(name: str, spec: InputSpec) -> None:
    """Refuse a card that scales pixels to numbers that a whole number cannot hold."""
    low, high = ((pixel / spec.scale - np.array(spec.mean)) / np.array(spec.std) for pixel in (0.0, 255.0))
    steps = (high - low) / _MOST_UINT8
    if np.any(low < 0) or np.any(high > _MOST_UINT8) or np.any(low % 1) or np.any(np.abs(steps - steps.round()) > 1e-6):
        raise CardError(
            f"input.scale: the network's input {name!r} takes whole numbers from 0 to 255 (UINT8), scale, mean and std "
            f"of the card make {low.min():.4g} to {high.max():.4g} of pixels",
            expected="pixels as they are, where the network scales them itself",
            remedy="say scale = 1 and leave out mean and std",
        )


def _is_float_in_effect(graph: onnx.GraphProto, ends: Ends) -> bool:
    """Whether all that a network does with whole numbers is to cast them to float: floats then go in as they are."""
    if ends.dtype != TensorProto.UINT8:
        return True  # half precision is made single precision as a whole
    moved = {ends.image}
    for node in graph.node:
        if moved.isdisjoint(reads(node)):
            continue
        if node.op_type in _MOVES_ONLY and node.input[0] in moved and moved.isdisjoint(node.input[1:]):
            moved.update(node.output)
        elif node.op_type != "Cast" or helper.get_attribute_value(node.attribute[0]) not in _FLOATS:
            return False
    return True


def _shape_for_one(image: onnx.ValueInfoProto, spec: InputSpec) -> tuple[int, ...]:
    """Return the shape of the input for one picture.

    Raises:
        CardError: If the card says another.
        UnsupportedModelError: If it is no picture's, or of several pictures.
    """
    kind = image.type.tensor_type
    if kind.elem_type not in _TAKEN:
        raise UnsupportedModelError(
            f"input {image.name!r} takes {TensorProto.DataType.Name(kind.elem_type)}",
            expected=" or ".join(TensorProto.DataType.Name(dtype) for dtype in _TAKEN),
            remedy="export with a float32 input",
        )
    wanted = input_shape(spec)
    if not kind.HasField("shape"):
        return wanted
    axes = [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim]
    without_batch = len(axes) == 3 and axes[0] not in (None, 1)
    if without_batch or not 2 <= len(axes) <= 4:
        raise UnsupportedModelError(
            f"input {image.name!r} has {len(axes)} axes",
            expected="4: batch, channels, height, width; or 3: batch, height, width; or 2: batch, a row of numbers",
            remedy=EXPORT_AGAIN,
        )
    if axes[0] not in (None, 1):
        raise UnsupportedModelError(
            f"the network takes {axes[0]} pictures at once, no more and no fewer",
            expected="a batch of 1 or a free batch axis",
            remedy="export with dynamic_axes/dynamic_shapes for the batch, or with a batch of 1",
        )
    if len(axes) == 4:
        _check_axes(image.name, axes, spec)
        return wanted
    shape = (1, spec.height, spec.width) if len(axes) == 3 else (1, math.prod(wanted))
    if math.prod(shape) != math.prod(wanted) or not _fit(axes, shape):
        raise CardError(
            f"input.height, input.width or input.channels: the network's input {image.name!r} has shape "
            f"{_shown(axes)}, the card says {_shown([None, *wanted[1:]])}",
            expected="rows and columns of one channel" if len(axes) == 3 else "height x width x channels numbers",
            remedy="set the keys to what the network takes",
        )
    return shape


def _check_axes(name: str, axes: list[int | None], spec: InputSpec) -> None:
    wanted = input_shape(spec)
    if _fit(axes, wanted):
        return
    found, expected = _shown(axes), _shown([None, *wanted[1:]])
    keys = ["channels", "height", "width"] if spec.layout is Layout.NCHW else ["height", "width", "channels"]
    wrong = [
        f"input.{key}" for key, axis, size in zip(keys, axes[1:], wanted[1:], strict=True) if axis not in (None, size)
    ]
    remedy = "set the key to what the network takes"
    if sorted(map(str, found)) == sorted(map(str, expected)):
        wrong = ["input.layout"]
        remedy = f'say layout = "{Layout.NCHW if spec.layout is Layout.NHWC else Layout.NHWC}"'
    raise CardError(
        f"{', '.join(wrong)}: the network's input {name!r} has shape {found}, "
        f"the card says {expected} ({spec.layout}, {spec.channels})",
        remedy=remedy,
    )


def _fit(axes: list[int | None], shape: tuple[int, ...]) -> bool:
    return all(found in (None, size) for found, size in zip(axes, shape, strict=True))


def _shown(axes: list[int | None]) -> list[int | str]:
    return ["?", *(axis if axis else "?" for axis in axes[1:])]
