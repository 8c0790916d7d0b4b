"""Load untrusted .onnx files: every claim of a file is checked before a runtime acts on it.

Nothing but ONNX protobuf is read, nothing outside the model's folder is touched, and onnx's message about a broken file
becomes one sentence. The limits are constants at the top.
"""

import math
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, TensorProto, helper

from inspect_xai.errors import ModelFileError, UnsupportedModelError
from inspect_xai.model.build.inputs_outputs import with_chosen_output, with_free_axes
from inspect_xai.model.build.topology import EXPORT_AGAIN, named, put_nodes, sort_nodes
from inspect_xai.model.session import first_line
from inspect_xai.records import ModelCard

MOST_MODEL_BYTES = 2**31 - 1  # what protobuf can hold in one message, weights included
MOST_NODES = 20_000  # the largest CNN of the families supported has about 2 000
OLDEST_OPSET = 7  # ONNX Runtime promises nothing below
_FREE_WEIGHTS = 4  # the IR version since which weights need not be listed as inputs
NEWEST_OPSET = onnx.defs.onnx_opset_version()
_STANDARD_DOMAINS = ("", "ai.onnx")
RUNTIME_DOMAIN = "com.microsoft"
# What ONNX Runtime's own quantizer and optimizer write into a file that standard operators were in.
_OF_THE_RUNTIME = frozenset(
    [
        *("QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool", "QGemm"),
        *("QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere"),
        *("DequantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "QuantizeLinear"),
        *("FusedConv", "FusedGemm", "FusedMatMul", "FusedMatMulActivation", "TransposeMatMul", "NhwcConv"),
        *("NhwcFusedConv", "NhwcMaxPool", "BiasAdd", "BiasDropout", "BiasGelu", "BiasSoftmax", "FastGelu", "Gelu"),
        *("QuickGelu", "GroupNorm", "SkipGroupNorm", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
        *("Attention", "MultiHeadAttention", "QAttention"),
    ]
)
_LOOPS = ("Loop", "Scan", "SequenceMap")  # an If with a constant condition is resolved: constant_branches.py
_RECURRENT = ("LSTM", "GRU", "RNN")
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_SIGNED = (TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64)
_UNSIGNED = (TensorProto.BOOL, TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64)
_NUMBERS = frozenset(_FLOATS + _SIGNED + _UNSIGNED)
# A runtime divides by these or allocates by them; a zero ends the process instead of raising.
_COUNTED = frozenset({"strides", "dilations", "kernel_shape", "group", "blocksize", "num_outputs", "num_groups"})
_MOST_COUNTED = 1 << 16
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive, perhaps a PyTorch checkpoint",
    b"\x80": "a Python pickle, perhaps a PyTorch checkpoint",
    b"\x89HDF": "an HDF5 file, perhaps a Keras model",
    b"version https://git-lfs": "a Git LFS pointer; the model itself was not downloaded",
    b"<": "a text in HTML or XML",
}


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model file that was found safe, with all weights inside.

    Attributes:
        model: The model as given up to the output chosen, with weights that lay beside it inside.
        content: The bytes stored in a bundle: those of the file where all weights were inside.
    """

    model: onnx.ModelProto
    content: bytes


def load_model(path: Path, card: ModelCard | None = None) -> LoadedModel:
    """Read and check an .onnx file; weights beside it are read from its folder only.

    Args:
        path: The file.
        card: Names the output to use of several; nodes not needed for it are neither checked nor kept.

    Raises:
        CardError: If it names none of several outputs, or one that is not there.
        ModelFileError: If the file is no ONNX, is broken, is too large, or claims more than it holds.
        UnsupportedModelError: If it is sound but holds operators or constructs this method cannot explain.
    """
    content = _read(path)
    model = _parse(content, path)
    _check_versions(model)
    with_free_axes(model)
    model = model if card is None else with_chosen_output(model, card)
    _check_nodes(model)
    _check_expansion(model)
    beside = _check_tensors(model, path.parent)
    if len(model.graph.sparse_initializer) or len(model.training_info):
        raise UnsupportedModelError(
            "the model holds sparse weights or training information",
            expected="a plain inference model",
            remedy=EXPORT_AGAIN,
        )
    put_nodes(model.graph, sort_nodes(model.graph.node, given=_given(model.graph)))
    try:
        onnx.checker.check_model(_as_of_today(model))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise ModelFileError(f"{path} breaks the ONNX standard: {error_text(error)}", remedy=EXPORT_AGAIN) from error
    return LoadedModel(model, model.SerializeToString(deterministic=True) if beside else content)


def _as_of_today(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that the checker accepts: without ImageScaler, weights are no inputs, outputs have a type."""
    old = any(node.op_type == "ImageScaler" for node in model.graph.node)
    bare = [info.name for info in model.graph.output if not info.HasField("type")]
    if not old and not bare and model.ir_version >= _FREE_WEIGHTS:
        return model
    known = onnx.ModelProto()
    known.CopyFrom(model)
    known.ir_version = max(model.ir_version, _FREE_WEIGHTS)
    for info in known.graph.output:
        if info.name in bare:
            info.CopyFrom(helper.make_tensor_value_info(info.name, TensorProto.FLOAT, ()))
    for node in known.graph.node:
        if node.op_type == "ImageScaler":
            node.op_type = "Identity"
            del node.attribute[:]
    return known


def error_text(error: BaseException) -> str:
    """Return the first line of an error of onnx or ONNX Runtime, at most 300 characters."""
    return first_line(error)[:300] if str(error).strip() else type(error).__name__


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{path} is no regular file", expected="an .onnx file")
        if status.st_size > MOST_MODEL_BYTES:
            raise ModelFileError(
                f"{path} has {status.st_size} bytes", expected=f"at most {MOST_MODEL_BYTES}", remedy=EXPORT_AGAIN
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}", remedy="give the path of an .onnx") from error


def _parse(content: bytes, path: Path) -> onnx.ModelProto:
    for head, kind in _OTHER_FORMATS.items():
        if content.startswith(head):
            raise ModelFileError(f"{path} is {kind}", expected="an ONNX file", remedy=EXPORT_AGAIN)
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(content)
    except (DecodeError, UnicodeDecodeError, RuntimeError) as error:
        raise ModelFileError(
            f"{path} is no ONNX file, or was cut short: {error_text(error)}",
            expected="ONNX protobuf",
            remedy="copy the file again and compare its size; else export it again",
        ) from error
    if not model.graph.node or not model.graph.output:
        raise ModelFileError(
            f"{path} holds a graph of {len(model.graph.node)} nodes and {len(model.graph.output)} outputs",
            expected="a network",
            remedy=EXPORT_AGAIN,
        )
    return model


def _check_versions(model: onnx.ModelProto) -> None:
    if not 3 <= model.ir_version <= onnx.IR_VERSION:
        raise ModelFileError(
            f"the file's IR version is {model.ir_version}",
            expected=f"3 to {onnx.IR_VERSION}",
            remedy="install a newer onnx, or export with an older one",
        )
    versions = [entry.version for entry in model.opset_import if entry.domain in _STANDARD_DOMAINS]
    if len(versions) != 1 or not OLDEST_OPSET <= versions[0] <= NEWEST_OPSET:
        raise UnsupportedModelError(
            f"the model asks for opset {', '.join(map(str, versions)) or 'none'} of the standard operators",
            expected=f"one from {OLDEST_OPSET} to {NEWEST_OPSET}",
            remedy="export with opset_version=18",
        )


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of the graph, of the branches in it, and of all local functions."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            yield from _with_nested(node)


def _with_nested(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    yield node
    for graph in _graphs_of(node):
        for inner in graph.node:
            yield from _with_nested(inner)


def _graphs_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [
        graph
        for attribute in node.attribute
        for graph in (*([attribute.g] if attribute.type == AttributeProto.GRAPH else []), *attribute.graphs)
    ]


def _check_nodes(model: onnx.ModelProto) -> None:
    """Refuse operators outside the standard, loops, recurrence, and attributes that end the process."""
    functions = {(function.domain, function.name) for function in model.functions}
    for node in _all_nodes(model):
        if node.domain not in _STANDARD_DOMAINS and (node.domain, node.op_type) not in functions:
            _check_foreign(node)
        if node.op_type in _LOOPS or (node.op_type != "If" and _graphs_of(node)):
            raise UnsupportedModelError(
                f"{named(node)} loops at run time",
                expected="a network that does the same for every picture",
                remedy="export with fixed shapes and without loops in forward()",
            )
        if node.op_type in _RECURRENT:
            raise UnsupportedModelError(
                f"{named(node)} makes this a recurrent network",
                expected="a convolutional classifier",
                remedy="export its convolutional part alone as a classifier; nothing here explains recurrent networks",
            )
        for attribute in node.attribute:
            if attribute.name in _COUNTED:
                numbers = [attribute.i] if attribute.type == AttributeProto.INT else list(attribute.ints)
                if not all(1 <= number <= _MOST_COUNTED for number in numbers):
                    raise ModelFileError(
                        f"{named(node)} has {attribute.name} = {numbers}",
                        expected=f"numbers from 1 to {_MOST_COUNTED}",
                        remedy=EXPORT_AGAIN,
                    )
            if attribute.name == "pads" and any(abs(number) > _MOST_COUNTED for number in attribute.ints):
                raise ModelFileError(
                    f"{named(node)} has pads = {list(attribute.ints)}", expected=f"at most {_MOST_COUNTED}"
                )


def _check_foreign(node: onnx.NodeProto) -> None:
    """Refuse operators outside the standard but those that ONNX Runtime's own tools write."""
    if node.domain == RUNTIME_DOMAIN and node.op_type in _OF_THE_RUNTIME:
        return
    tied = node.domain == "com.microsoft.nchwc"
    raise UnsupportedModelError(
        f"{named(node)} is of domain {node.domain!r}"
        + (", which is written for one kind of processor" if tied else ""),
        expected="standard ONNX operators, and those that ONNX Runtime's quantizer and optimizer write for any machine",
        remedy="give the file from before it was optimized, or optimize it with ORT_ENABLE_EXTENDED"
        if tied
        else "export without custom operators",
    )


def _check_expansion(model: onnx.ModelProto) -> None:
    """Refuse local functions that call themselves, or that would grow without bound when written out."""
    bodies = {(function.domain, function.name): function.node for function in model.functions}
    if any(domain in _STANDARD_DOMAINS for domain, _ in bodies):
        raise ModelFileError("a local function redefines a standard operator", remedy=EXPORT_AGAIN)
    sizes: dict[tuple[str, str], int] = {}
    calls = {
        key: Counter((node.domain, node.op_type) for node in nodes if (node.domain, node.op_type) in bodies)
        for key, nodes in bodies.items()
    }
    while len(sizes) < len(bodies):
        settled = [key for key in bodies if key not in sizes and all(callee in sizes for callee in calls[key])]
        if not settled:
            stuck = next(key for key in bodies if key not in sizes)
            raise ModelFileError(
                f"local function {'::'.join(stuck)} calls itself", expected="functions that end", remedy=EXPORT_AGAIN
            )
        for key in settled:
            sizes[key] = len(bodies[key]) + sum(sizes[callee] * count for callee, count in calls[key].items())
    total = sum(sizes.get((node.domain, node.op_type), 1) for node in model.graph.node)
    if total > MOST_NODES:
        raise UnsupportedModelError(
            f"the graph has {total} nodes once its functions are written out",
            expected=f"at most {MOST_NODES}",
            remedy="export with constants folded",
        )


def _given(graph: onnx.GraphProto) -> list[str]:
    weights = [tensor.name for tensor in graph.initializer]
    doubled = [name for name, count in Counter(weights).items() if count > 1]
    if doubled:
        raise ModelFileError(f"weight {doubled[0]!r} is given twice", remedy=EXPORT_AGAIN)
    return weights + [info.name for info in graph.input if info.name not in set(weights)]


def _check_tensors(model: onnx.ModelProto, folder: Path) -> bool:
    """Compare the size that every tensor claims with its data, and read weights from files beside the model.

    Returns:
        Whether any weight lay outside the file.
    """
    constants = (
        tensor
        for node in _all_nodes(model)
        for attribute in node.attribute
        for tensor in (attribute.t, *attribute.tensors)
        if attribute.HasField("t") or len(attribute.tensors)
    )
    of_branches = (tensor for node in _all_nodes(model) for graph in _graphs_of(node) for tensor in graph.initializer)
    for tensor in (*constants, *of_branches):
        _check_claim(tensor, inside=True)
    outside = [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    total = sum(
        _check_claim(tensor, inside=tensor.data_location != TensorProto.EXTERNAL) for tensor in model.graph.initializer
    )
    if total > MOST_MODEL_BYTES:
        raise ModelFileError(
            f"the weights claim {total} bytes", expected=f"at most {MOST_MODEL_BYTES}", remedy=EXPORT_AGAIN
        )
    for tensor in outside:
        content = _read_beside(tensor, folder, _check_claim(tensor, inside=False))
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = content
    return bool(outside)


def _check_claim(tensor: TensorProto, *, inside: bool) -> int:
    """Return the bytes a tensor claims; where they are inside the file, check that they are there."""
    if tensor.data_type not in _NUMBERS:
        raise UnsupportedModelError(
            f"tensor {tensor.name!r} is of element type {tensor.data_type}",
            expected="plain numbers",
            remedy=EXPORT_AGAIN,
        )
    if any(axis < 0 for axis in tensor.dims):
        raise ModelFileError(f"tensor {tensor.name!r} has shape {list(tensor.dims)}", expected="sizes of 0 and more")
    count: int = math.prod(tensor.dims)
    claimed = count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    if claimed > MOST_MODEL_BYTES:
        raise ModelFileError(
            f"tensor {tensor.name!r} of shape {list(tensor.dims)} claims {claimed} bytes",
            expected=f"at most {MOST_MODEL_BYTES}",
            remedy=EXPORT_AGAIN,
        )
    if not inside:
        return claimed
    if tensor.data_location == TensorProto.EXTERNAL or tensor.HasField("segment"):
        raise ModelFileError(f"constant {tensor.name!r} is not kept in the file", remedy=EXPORT_AGAIN)
    if tensor.HasField("raw_data"):
        found, expected = len(tensor.raw_data), claimed
    else:
        found, expected = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type))), count
    if found != expected:
        raise ModelFileError(
            f"tensor {tensor.name!r} of shape {list(tensor.dims)} holds {found} of {expected} bytes or numbers",
            expected="as much as its shape claims",
            remedy="copy the file again; else export it again",
        )
    return claimed


def _read_beside(tensor: TensorProto, folder: Path, claimed: int) -> bytes:
    """Read a weight from a file in the model's folder.

    Raises:
        ModelFileError: If its place is outside the folder, or does not hold what the weight claims.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = _inside(folder, location, weight=tensor.name)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", claimed))
    except ValueError as error:
        raise ModelFileError(
            f"weight {tensor.name!r} lies at offset {entries.get('offset')!r}, length {entries.get('length')!r}",
            expected="numbers",
        ) from error
    try:
        size = path.stat().st_size
        if offset < 0 or length != claimed or offset + length > size:
            raise ModelFileError(
                f"weight {tensor.name!r} claims {claimed} bytes and points to {length} at {offset} of {location}, "
                f"which has {size}",
                expected="a range of that length inside the file",
                remedy=f"copy {location} again; else export the network again",
            )
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise ModelFileError(f"{location} cannot be read: {error.strerror}", remedy=EXPORT_AGAIN) from error


def _inside(folder: Path, location: str, *, weight: str) -> Path:
    remedy = "put the weights into the model's folder, or export into one file (external_data=False)"
    if (
        not location
        or "\0" in location
        or "\\" in location
        or PureWindowsPath(location).drive
        or PurePosixPath(location).is_absolute()
        or ".." in PurePosixPath(location).parts
    ):
        raise ModelFileError(
            f"weight {weight!r} lies at {location!r}",
            expected="a relative path inside the model's folder",
            remedy=remedy,
        )
    try:
        path = (folder / location).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ModelFileError(
            f"the weights' file {location} is not there", remedy="copy it beside the model; else export again"
        ) from error
    if not path.is_relative_to(folder.resolve()):
        raise ModelFileError(
            f"weight {weight!r} lies behind a link that leaves the model's folder",
            expected="a file inside it",
            remedy=remedy,
        )
    if not path.is_file():
        raise ModelFileError(f"{location} is no regular file", expected="a file with weights", remedy=remedy)
    return path
