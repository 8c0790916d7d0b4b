"""Working form of a network: one flat graph, constants folded, shapes known, batch free where the graph allows.

    as given -> functions inlined -> cut behind the output chosen -> in single precision -> input pinned to the card
             -> branches taken -> opset 18 or newer -> picture taken as float32 (N, C, H, W)
             -> folded by ONNX Runtime (BASIC) -> shapes measured by one forward pass
             -> batch freed, and proven by running two pictures at once

Every step makes a new model; the one given is only read.
"""

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from inspect_xai.errors import CardError, ModelFileError, UnsupportedModelError
from inspect_xai.model.build.constant_branches import without_branches
from inspect_xai.model.build.half_precision import in_single_precision
from inspect_xai.model.build.inputs_outputs import Ends, enter_as_float, pin_inputs, read_ends, with_chosen_output
from inspect_xai.model.build.integer_networks import steps_of
from inspect_xai.model.build.load_onnx import RUNTIME_DOMAIN, error_text
from inspect_xai.model.build.topology import EXPORT_AGAIN, attribute_of, named, needed_nodes, put_nodes
from inspect_xai.model.session import ORT_ERRORS
from inspect_xai.records import Layout, ModelCard

WORKING_OPSET = 18  # the first where every Reduce takes its axes as input and Resize may leave the batch axis alone
MOST_TENSOR_BYTES = 2**31  # a single activation; above it a hostile graph would take the machine down
FREE_BATCH = "N"
BATCH_BOUND = 1e-4
_SILENT = 4
# What a runtime raises over a broken graph; messages that quote broken names do not decode.
_REFUSALS: tuple[type[Exception], ...] = (*ORT_ERRORS, RuntimeError, ValueError, MemoryError)

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network in its working form.

    Attributes:
        model: Flat graph of standard operators with one input and one output.
        image: Name of the input.
        layout: Order of the input's axes.
        output: Name of the output.
        shapes: Shape of the image and every float tensor computed from it, at batch 1, in the order of computation.
        whole: The same of tensors of whole numbers.
        steps: By tensor of whole numbers that stand for real ones, its scale and its zero point.
        dynamic_batch: Whether any number of pictures may go through at once.
    """

    model: onnx.ModelProto
    image: str
    layout: Layout
    output: str
    shapes: Mapping[str, tuple[int, ...]]
    dynamic_batch: bool
    whole: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    steps: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of a tensor computed from the image, whatever its type; () for any other."""
        return self.shapes.get(tensor) or self.whole.get(tensor, ())


def working_form(model: onnx.ModelProto, card: ModelCard, *, keep: Sequence[str] = ()) -> Network:
    """Bring a model from `load_model` into its working form, with the tensor names in `keep` unchanged.

    Raises:
        CardError: If the graph's input is not what the card says.
        ModelFileError: If ONNX Runtime cannot load or run the graph, or its output is not a number.
        UnsupportedModelError: If it has several inputs, branches on the picture, or cannot be upgraded.
    """
    flat = in_single_precision(with_chosen_output(_inlined(model), card))
    output = flat.graph.output[0].name
    ends = read_ends(flat, card)
    pinned = _pinned(flat, ends)
    _check_sizes(pinned)
    straight = without_branches(pinned, ends.image, run=run_model)
    _check_keep(straight, keep)
    upgraded = _upgraded(_without_scalers(straight))
    image = enter_as_float(upgraded, card.input)
    _check_sizes(upgraded)
    folded = _folded(upgraded, keep)
    feeds = {image: network_input(sample_pictures(card, 1, seed=0), card)}
    arrays = feeds | run_model(folded, feeds, outputs=None)
    _check_finite(arrays[output])
    computed = _computed_from(folded, image)
    floats = {name: array.dtype == np.float32 for name, array in arrays.items() if name in computed}
    shapes = {name: arrays[name].shape for name, is_float in floats.items() if is_float}
    _declare_foreign(folded, arrays)
    free = _freed(folded, shapes)
    dynamic = _runs_in_batches(free, card, image)
    return Network(
        free if dynamic else folded,
        image,
        card.input.layout,
        output,
        shapes,
        dynamic_batch=dynamic,
        whole={name: arrays[name].shape for name, is_float in floats.items() if not is_float},
        steps=steps_of(folded.graph.node),
    )


def sample_pictures(card: ModelCard, count: int, *, seed: int) -> NDArray[np.float32]:
    """Return made-up pictures (N, C, H, W) in pixel units: patches of random gray with noise on them."""
    spec, rng = card.input, np.random.default_rng(seed)
    rows, columns = np.arange(spec.height) * 8 // spec.height, np.arange(spec.width) * 8 // spec.width
    coarse = rng.uniform(0, 1, (count, spec.depth, 8, 8))[:, :, rows][:, :, :, columns]
    noise = rng.uniform(0, 1, (count, spec.depth, spec.height, spec.width))
    return np.asarray(np.round(255 * (0.7 * coarse + 0.3 * noise)), np.float32)


def network_input(pictures: NDArray[np.float32], card: ModelCard) -> NDArray[np.float32]:
    """Return pictures (N, C, H, W) in pixel units as the network takes them: the card's arithmetic in numpy."""
    spec = card.input
    mean, std = (np.asarray(numbers, np.float64).reshape(-1, 1, 1) for numbers in (spec.mean, spec.std))
    scaled = ((pictures / spec.scale - mean) / std).astype(np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 2, 3, 1)) if spec.layout is Layout.NHWC else scaled


def run_model(
    model: onnx.ModelProto | Path | bytes, feeds: Mapping[str, NDArray[Any]], outputs: Iterable[str] | None
) -> Arrays:
    """Run a model once on the CPU as it is written.

    Args:
        model: The model, or where it is.
        feeds: Inputs by name.
        outputs: Tensors wanted, inner ones included (of a model in memory); None: all.

    Raises:
        ModelFileError: If ONNX Runtime cannot load or run it.
    """
    if isinstance(model, onnx.ModelProto):
        watched = onnx.ModelProto()
        watched.CopyFrom(model)
        there = {info.name for info in model.graph.output}
        made = [name for node in model.graph.node for name in node.output if name]
        wanted = made if outputs is None else list(outputs)
        watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in there)
        model = watched.SerializeToString()
    session = open_plain(model)
    wanted = [info.name for info in session.get_outputs()] if outputs is None else list(outputs)
    return run_plain(session, feeds, wanted)


def open_plain(model: Path | bytes, *, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
    """Open a CPU session without optimization and with one thread, whose results are equal on every machine.

    Raises:
        ModelFileError: If ONNX Runtime cannot load the model.
    """
    if options is None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = 1
    try:
        source = str(model) if isinstance(model, Path) else model
        # Without enable_fallback=0 a failed load is tried again, and printed to standard output.
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except _REFUSALS as error:
        raise ModelFileError(
            f"ONNX Runtime cannot load the network: {error_text(error)}", remedy=EXPORT_AGAIN
        ) from error


def run_plain(session: ort.InferenceSession, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Arrays:
    """Run a session; an error of ONNX Runtime becomes a `ModelFileError`."""
    try:
        return dict(zip(outputs, session.run(list(outputs), dict(feeds)), strict=True))
    except _REFUSALS as error:
        raise ModelFileError(
            f"ONNX Runtime cannot run the network: {error_text(error)}", remedy=EXPORT_AGAIN
        ) from error


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its local functions written out."""
    try:
        return onnx.inliner.inline_local_functions(model) if model.functions else model
    except (RuntimeError, ValueError) as error:
        raise ModelFileError(
            f"the network's functions cannot be inlined: {error_text(error)}", remedy=EXPORT_AGAIN
        ) from error


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model at opset 18 or newer.

    Raises:
        UnsupportedModelError: If onnx cannot convert an operator.
    """
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if version >= WORKING_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, WORKING_OPSET)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        raise UnsupportedModelError(
            f"onnx cannot bring the network to opset {WORKING_OPSET}: {error_text(error)}",
            remedy=f"export it with opset_version={WORKING_OPSET}",
        ) from error


def _check_keep(model: onnx.ModelProto, keep: Sequence[str]) -> None:
    made = {name for node in model.graph.node for name in node.output}
    missing = [name for name in keep if name not in made]
    if missing:
        raise CardError(
            f"explain.blocks names {', '.join(map(repr, missing))}, which no node of the network makes",
            expected="names of tensors as a viewer such as Netron shows them",
            remedy='correct the list, or say blocks = "auto"',
        )


def _pinned(model: onnx.ModelProto, ends: Ends) -> onnx.ModelProto:
    """Return the model with a static input shape and with nothing that says where it was made."""
    pinned = onnx.ModelProto()
    pinned.CopyFrom(model)
    pin_inputs(pinned, ends)
    del pinned.graph.value_info[:]  # old shapes may be symbolic
    if pinned.graph.output[0].HasField("type"):
        pinned.graph.output[0].type.tensor_type.ClearField("shape")
    pinned.ir_version = max(model.ir_version, 8)
    return pinned


def _without_scalers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write ImageScaler, an operator of the first ONNX that runtimes still know, as a product and a sum."""
    nodes = []
    for node in model.graph.node:
        if node.op_type != "ImageScaler":
            nodes.append(node)
            continue
        made = node.output[0]
        scale, bias = attribute_of(node, "scale", 1.0), np.array(attribute_of(node, "bias", ()), np.float32)
        operands = {f"{made}/scale": np.float32(scale), f"{made}/bias": bias.reshape(1, -1, 1, 1)}
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(at), name) for name, at in operands.items())
        nodes.append(helper.make_node("Mul", [node.input[0], f"{made}/scale"], [f"{made}/scaled"]))
        nodes.append(helper.make_node("Add", [f"{made}/scaled", f"{made}/bias"], [made]))
    put_nodes(model.graph, nodes)
    return model


def _check_sizes(model: onnx.ModelProto) -> None:
    """Refuse a graph that would compute a tensor larger than any CNN does, before a runtime computes it."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError) as error:
        raise ModelFileError(
            f"the network's shapes do not fit together: {error_text(error)}", remedy=EXPORT_AGAIN
        ) from error
    for info in inferred.graph.value_info:
        shape = [axis.dim_value for axis in info.type.tensor_type.shape.dim]
        if math.prod(shape) > MOST_TENSOR_BYTES // 4:
            raise ModelFileError(
                f"tensor {info.name!r} has shape {shape}",
                expected=f"at most {MOST_TENSOR_BYTES} bytes",
                remedy="give a smaller input size, or another network",
            )


def _check_finite(output: NDArray[Any]) -> None:
    if not np.isfinite(output).all():
        raise ModelFileError(
            f"of {output.size} numbers that the network outputs for a made-up picture "
            f"{int((~np.isfinite(output)).sum())} are NaN or infinite",
            expected="finite numbers",
            remedy="its weights are damaged, or too large for its precision: " + EXPORT_AGAIN,
        )


def _folded(model: onnx.ModelProto, keep: Sequence[str]) -> onnx.ModelProto:
    """Let ONNX Runtime fold constants, shape arithmetic and BatchNorm, and drop nodes without effect."""
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    ends = {info.name for info in model.graph.output}
    kept.graph.output.extend(onnx.ValueInfoProto(name=name) for name in keep if name not in ends)
    options = ort.SessionOptions()
    # BASIC writes standard operators only; higher levels tie the file to this machine's processor.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory(prefix="inspect-xai-") as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        open_plain(kept.SerializeToString(), options=options)
        folded = onnx.load(path)
    known = {node.op_type for node in model.graph.node if node.domain == RUNTIME_DOMAIN}
    foreign = next((node for node in folded.graph.node if node.domain and node.op_type not in known), None)
    if foreign is not None:
        raise UnsupportedModelError(f"ONNX Runtime folds part of the network into its own {named(foreign)}")
    return _bare(folded)


def _bare(folded: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of the first output, the nodes and weights it needs, no metadata, no shapes."""
    graph = folded.graph
    output = graph.output[0]
    nodes = needed_nodes(graph.node, outputs=[output.name])
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    for weight in weights:
        weight.doc_string = ""
        del weight.metadata_props[:]
    opset = next(entry.version for entry in folded.opset_import if entry.domain in ("", "ai.onnx"))
    bare = helper.make_model(
        helper.make_graph(nodes, "network", list(graph.input), [output], weights),
        opset_imports=[helper.make_opsetid("", opset), *_imported(nodes)],
        ir_version=folded.ir_version,
    )
    assert isinstance(bare, onnx.ModelProto)  # noqa: S101  onnx has no types
    return bare


def _imported(nodes: Iterable[onnx.NodeProto]) -> list[onnx.OperatorSetIdProto]:
    return [helper.make_opsetid(RUNTIME_DOMAIN, 1)] if any(node.domain for node in nodes) else []


def _declare_foreign(model: onnx.ModelProto, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Declare type and shape, but for the batch, of the outputs of the runtime's own operators: onnx infers none."""
    for node in model.graph.node:
        for name in node.output if node.domain else ():
            if name:
                dtype = helper.np_dtype_to_tensor_dtype(arrays[name].dtype)
                shape = [None, *arrays[name].shape[1:]] if arrays[name].ndim else []
                model.graph.value_info.append(helper.make_tensor_value_info(name, dtype, shape))


def _computed_from(model: onnx.ModelProto, image: str) -> set[str]:
    reached = {image}
    for node in model.graph.node:
        if reached.intersection(node.input):
            reached.update(filter(None, node.output))
    return reached


def _freed(folded: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Return the model with a symbolic batch axis, and with constant shapes that would hold it at 1 rewritten."""
    free = onnx.ModelProto()
    free.CopyFrom(folded)
    free.graph.input[0].type.tensor_type.shape.dim[0].dim_param = FREE_BATCH
    constants = {tensor.name: tensor for tensor in folded.graph.initializer}
    for node in free.graph.node:
        place = {"Reshape": 1, "Gather": 1, "Resize": 3}.get(node.op_type, len(node.input))
        if place >= len(node.input) or node.input[place] not in constants or node.output[0] not in shapes:
            continue
        sizes = list(shapes[node.output[0]])
        if node.op_type == "Resize":
            if any(attribute.name == "axes" for attribute in node.attribute):
                continue
            node.attribute.append(helper.make_attribute("axes", list(range(1, len(sizes)))))
            sizes = sizes[1:]
        elif node.op_type == "Gather" and not _takes_all(numpy_helper.to_array(constants[node.input[place]]), sizes):
            continue
        else:
            node.op_type = "Reshape"
            del node.attribute[:]
            sizes[0] = -1
        node.input[place] = f"{node.output[0]}/sizes"
        free.graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), node.input[place]))
    return free


def _takes_all(indices: NDArray[Any], shape: Sequence[int]) -> bool:
    """Whether a Gather takes each number in order: how torch writes the strided view behind a channels-last mean."""
    return list(indices.shape) == list(shape) and np.array_equal(indices.ravel(), np.arange(indices.size))


def _runs_in_batches(free: onnx.ModelProto, card: ModelCard, image: str) -> bool:
    """Check that two pictures at once give the same output as one by one."""
    pictures = network_input(sample_pictures(card, 2, seed=1), card)
    output = free.graph.output[0].name
    try:
        session = open_plain(free.SerializeToString())
        (both,) = run_plain(session, {image: pictures}, [output]).values()
        singles = [run_plain(session, {image: pictures[index : index + 1]}, [output])[output] for index in range(2)]
    except ModelFileError:
        return False
    if both.ndim == 0 or both.shape != (2, *singles[0].shape[1:]):
        return False
    together = np.concatenate(singles)
    scale = max(float(np.abs(together).max()), 1e-6)
    return bool(np.abs(both - together).max() <= BATCH_BOUND * scale)
