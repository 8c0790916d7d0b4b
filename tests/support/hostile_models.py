"""Broken and hostile .onnx files, made in code: what each holds, and what must be said of it.

HOSTILE["cycle"].write(folder)     -> path of the file; everything else it needs lies in the folder too
"""

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from inspect_xai.errors import BundleError, CardError, ModelFileError, UnsupportedModelError
from inspect_xai.records import InputSpec, ModelCard

CARD = ModelCard("tiny", "1", ("pit", "free"), InputSpec(16, 16), ok_labels=("free",))


def tiny_model() -> onnx.ModelProto:
    """Return a sound CNN: picture "x" (N, 3, 16, 16) -> Conv, Relu, MaxPool, Conv, Relu, pool, Gemm -> "z" (N, 2)."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.normal(0, 0.5, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], name="first", pads=[1] * 4, strides=[1, 1], group=1),
        helper.make_node("Relu", ["c0"], ["r0"], name="bend"),
        helper.make_node("MaxPool", ["r0"], ["p0"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p0", "w1"], ["c1"], name="second", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("GlobalAveragePool", ["r1"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w2"], ["z"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 2])],
        [weight("w0", 6, 3, 3, 3), weight("w1", 8, 6, 3, 3), weight("w2", 8, 2)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@dataclass(frozen=True, slots=True)
class Hostile:
    """One file that must be refused.

    Attributes:
        write: Writes it into a folder and returns its path.
        error: The class of error to be raised.
        words: What the message must say.
    """

    write: Callable[[Path], Path]
    error: type[BundleError]
    words: str


HOSTILE: dict[str, Hostile] = {}


def _bytes(name: str, content: bytes, error: type[BundleError], words: str) -> None:
    def write(folder: Path) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(content)
        return path

    HOSTILE[name] = Hostile(write, error, words)


def _edit(error: type[BundleError], words: str) -> Callable[[Callable[[onnx.ModelProto], object]], None]:
    """Register what an edit makes of the tiny model."""

    def register(edit: Callable[[onnx.ModelProto], object]) -> None:
        model = tiny_model()
        edit(model)
        _bytes(edit.__name__, model.SerializeToString(), error, words)

    return register


def _beside(error: type[BundleError], words: str) -> Callable[[Callable[[Path, Callable[..., None]], None]], None]:
    """Register a model whose weight w0 lies beside it, as an edit places it: edit(folder, point)."""

    def register(edit: Callable[[Path, Callable[..., None]], None]) -> None:
        def write(folder: Path) -> Path:
            model = tiny_model()

            def point(**entries: object) -> None:
                weight = model.graph.initializer[0]
                weight.ClearField("raw_data")
                weight.data_location = TensorProto.EXTERNAL
                for key, value in entries.items():
                    weight.external_data.add(key=key, value=str(value))

            inner = folder / "inner"
            inner.mkdir()
            edit(inner, point)
            path = inner / "model.onnx"
            path.write_bytes(model.SerializeToString())
            return path

        HOSTILE[edit.__name__] = Hostile(write, error, words)

    return register


_SOUND = tiny_model().SerializeToString()
_bytes("empty", b"", ModelFileError, "0 nodes")
_bytes("cut_short", _SOUND[: len(_SOUND) // 2], ModelFileError, "cut short")
_bytes("zeros", bytes(4096), ModelFileError, "no ONNX file")
_bytes("pickle", pickle.dumps({"weight": [1.0]}), ModelFileError, "Python pickle")
_bytes("torch_zip", b"PK\x03\x04" + bytes(100), ModelFileError, "PyTorch checkpoint")
_bytes("keras", b"\x89HDF\r\n\x1a\n" + bytes(100), ModelFileError, "Keras")
_bytes("lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", ModelFileError, "Git LFS")
_bytes("web_page", b"<!doctype html><title>404</title>", ModelFileError, "HTML")
_bytes("other_protobuf", tiny_model().graph.node[0].SerializeToString(), ModelFileError, "0 nodes")
_bytes("deep_nesting", b"\x3a\x80\x01" * 500, ModelFileError, "no ONNX file")


@_edit(ModelFileError, "in a circle, among them Conv 'first'")
def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "r1"
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((6, 8, 3, 3), np.float32), "w0"))


@_edit(ModelFileError, "reads tensor 'nowhere', which nothing makes")
def dangling(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


@_edit(ModelFileError, "'r0' is made twice")
def made_twice(model: onnx.ModelProto) -> None:
    model.graph.node[0].output[0] = "r0"


@_edit(ModelFileError, "'w0' is given twice")
def weight_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


@_edit(ModelFileError, "breaks the ONNX standard")
def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Reluu"


@_edit(ModelFileError, "breaks the ONNX standard")
def missing_input(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[1]


@_edit(ModelFileError, "IR version is 999")
def newer_ir(model: onnx.ModelProto) -> None:
    model.ir_version = 999


@_edit(UnsupportedModelError, "opset 9999")
def newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 9999


@_edit(UnsupportedModelError, "opset 3")
def ancient_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 3


@_edit(UnsupportedModelError, "opset none")
def no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


@_edit(ModelFileError, "claims 4294967296 bytes")
def weight_claims_four_gigabytes(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 15, 1 << 15]


@_edit(ModelFileError, "the weights claim 3600000000 bytes")
def weights_claim_too_much_together(model: onnx.ModelProto) -> None:
    for weight in model.graph.initializer:
        weight.dims[:] = [300_000_000]
        weight.data_location = TensorProto.EXTERNAL
        weight.ClearField("raw_data")
        weight.external_data.add(key="location", value="model.onnx")


@_edit(ModelFileError, "holds 648 of 65536")
def weight_claims_more_than_it_holds(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [128, 128]


@_edit(ModelFileError, "shape [-6, 3, 3, 3]")
def weight_of_negative_size(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -6


@_edit(ModelFileError, "2 are NaN or infinite")
def weight_that_is_infinite(model: onnx.ModelProto) -> None:
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[2, 0, 1, 1] = np.inf
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w0"))


@_edit(UnsupportedModelError, "element type 99")
def weight_of_unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


@_edit(UnsupportedModelError, "element type 8")
def weight_of_strings(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(helper.make_tensor("w0", TensorProto.STRING, [1], [b"a"]))


@_edit(ModelFileError, "holds 4 of 2000000000")
def constant_claims_more_than_it_holds(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.INT16, dims=[1_000_000_000], raw_data=b"1234")
    model.graph.node.append(helper.make_node("Constant", [], ["k"], value=tensor))


@_edit(UnsupportedModelError, "domain 'com.evil'")
def custom_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "com.evil"
    model.opset_import.append(helper.make_opsetid("com.evil", 1))


@_edit(UnsupportedModelError, "domain 'com.microsoft'")
def runtime_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _body(output: str) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Identity", ["c0"], [output])], "body", [], [value])


@_edit(UnsupportedModelError, "If 'r0' branches on what the picture shows")
def condition(model: onnx.ModelProto) -> None:
    model.graph.node[1].CopyFrom(
        helper.make_node("If", ["yes"], ["r0"], then_branch=_body("a"), else_branch=_body("b"))
    )
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Greater", ["most", "half"], ["yes"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))


@_edit(UnsupportedModelError, "loops at run time")
def endless_loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])],
    )
    model.graph.node.append(helper.make_node("Loop", ["", "yes"], [], body=body))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))


@_edit(UnsupportedModelError, "Loop '' loops at run time")
def loop_in_a_branch(model: onnx.ModelProto) -> None:
    branch = _body("a")
    branch.node.append(helper.make_node("Loop", ["", "yes"], [], body=_body("c")))
    model.graph.node[1].CopyFrom(helper.make_node("If", ["yes"], ["r0"], then_branch=branch, else_branch=_body("b")))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))


@_edit(ModelFileError, "holds 3 of 2 bytes or numbers")
def weight_in_a_branch(model: onnx.ModelProto) -> None:
    branch = _body("a")
    branch.initializer.append(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], float_data=[1, 2, 3]))
    model.graph.node[1].CopyFrom(helper.make_node("If", ["yes"], ["r0"], then_branch=branch, else_branch=_body("b")))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))


@_edit(UnsupportedModelError, "recurrent network")
def recurrent(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("LSTM", ["x", "w0", "w1"], ["y"], hidden_size=4))


def _function(name: str, *calls: str) -> onnx.FunctionProto:
    nodes = [helper.make_node(call, ["a"], [f"b{index}"], domain="local") for index, call in enumerate(calls)]
    nodes.append(helper.make_node("Relu", ["a"], ["b"]))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, ["a"], ["b"], nodes, opsets)


def _call(model: onnx.ModelProto, function: str) -> None:
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node[1].domain, model.graph.node[1].op_type = "local", function


@_edit(ModelFileError, "local::again calls itself")
def function_calls_itself(model: onnx.ModelProto) -> None:
    model.functions.append(_function("again", "again"))
    _call(model, "again")


@_edit(ModelFileError, "calls itself")
def functions_call_each_other(model: onnx.ModelProto) -> None:
    model.functions.extend([_function("ping", "pong"), _function("pong", "ping")])
    _call(model, "ping")


@_edit(UnsupportedModelError, "once its functions are written out")
def functions_that_grow(model: onnx.ModelProto) -> None:
    model.functions.append(_function("f0"))
    model.functions.extend(_function(f"f{level}", *[f"f{level - 1}"] * 10) for level in range(1, 12))
    _call(model, "f11")


@_edit(ModelFileError, "redefines a standard operator")
def function_shadows_an_operator(model: onnx.ModelProto) -> None:
    shadow = _function("Relu")
    shadow.domain = ""
    model.functions.append(shadow)


def _attribute(model: onnx.ModelProto, name: str) -> onnx.AttributeProto:
    return next(attribute for attribute in model.graph.node[0].attribute if attribute.name == name)


@_edit(ModelFileError, "strides = [0, 0]")
def stride_of_zero(model: onnx.ModelProto) -> None:
    _attribute(model, "strides").ints[:] = [0, 0]


@_edit(ModelFileError, "group = [0]")
def group_of_zero(model: onnx.ModelProto) -> None:
    _attribute(model, "group").i = 0


@_edit(ModelFileError, "pads = [1000000000")
def padding_without_end(model: onnx.ModelProto) -> None:
    _attribute(model, "pads").ints[:] = [10**9] * 4


@_edit(ModelFileError, "at most 2147483648 bytes")
def activation_without_end(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 8, 60_000, 60_000]), "huge"))
    model.graph.node.append(helper.make_node("Expand", ["g", "huge"], ["e"]))
    model.graph.node.append(helper.make_node("GlobalAveragePool", ["e"], ["unused"]))


@_edit(ModelFileError, "cannot run the network")
def shapes_that_contradict(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros((8, 5, 3, 3), np.float32), "w1"))


@_edit(UnsupportedModelError, "sparse weights")
def sparse_weight(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64), "i"), [4])
    )


@_edit(UnsupportedModelError, "2 inputs: x (FLOAT [N, 3, 16, 16]), y (FLOAT")
def two_pictures(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, 16, 16]))
    model.graph.node.insert(0, helper.make_node("Add", ["x", "y"], ["xy"]))
    model.graph.node[1].input[0] = "xy"


@_edit(CardError, 'write [output] name = "z" or [output] name = "r1"')
def detector(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("r1", TensorProto.FLOAT, ["N", 2, 1, 1]))


@_edit(UnsupportedModelError, "takes 4 pictures at once")
def fixed_batch_of_four(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


@_edit(UnsupportedModelError, "has 3 axes")
def picture_without_batch(model: onnx.ModelProto) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[0]


@_edit(UnsupportedModelError, "takes DOUBLE")
def double_precision(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


@_edit(CardError, "input.height, input.width: the network's input 'x' has shape ['?', 3, 32, 32]")
def other_size(model: onnx.ModelProto) -> None:
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 32


@_beside(ModelFileError, "lies at '../secret.bin'")
def weights_above(folder: Path, point: Callable[..., None]) -> None:
    (folder.parent / "secret.bin").write_bytes(bytes(648))
    point(location="../secret.bin")


@_beside(ModelFileError, "Expected a relative path inside")
def weights_at_an_absolute_path(folder: Path, point: Callable[..., None]) -> None:
    (folder / "w.bin").write_bytes(bytes(648))
    point(location=folder / "w.bin")


@_beside(ModelFileError, "behind a link that leaves")
def weights_behind_a_link(folder: Path, point: Callable[..., None]) -> None:
    (folder.parent / "secret.bin").write_bytes(bytes(648))
    (folder / "w.bin").symlink_to("../secret.bin")
    point(location="w.bin")


@_beside(ModelFileError, "behind a link that leaves")
def weights_in_a_linked_folder(folder: Path, point: Callable[..., None]) -> None:
    (folder.parent / "secret").mkdir()
    (folder.parent / "secret" / "w.bin").write_bytes(bytes(648))
    (folder / "data").symlink_to("../secret")
    point(location="data/w.bin")


@_beside(ModelFileError, "is no regular file")
def weights_in_a_pipe(folder: Path, point: Callable[..., None]) -> None:
    os.mkfifo(folder / "w.bin")  # reading it would wait for ever
    point(location="w.bin")


@_beside(ModelFileError, "is not there")
def weights_missing(folder: Path, point: Callable[..., None]) -> None:
    point(location="w.bin")


@_beside(ModelFileError, "points to 648 at 0 of w.bin, which has 100")
def weights_cut_short(folder: Path, point: Callable[..., None]) -> None:
    (folder / "w.bin").write_bytes(bytes(100))
    point(location="w.bin")


@_beside(ModelFileError, "points to 10 at 0")
def weights_of_another_length(folder: Path, point: Callable[..., None]) -> None:
    (folder / "w.bin").write_bytes(bytes(648))
    point(location="w.bin", length=10)


@_beside(ModelFileError, "points to 648 at -4")
def weights_at_a_negative_offset(folder: Path, point: Callable[..., None]) -> None:
    (folder / "w.bin").write_bytes(bytes(648))
    point(location="w.bin", offset=-4)


@_beside(ModelFileError, "offset 'here'")
def weights_at_no_number(folder: Path, point: Callable[..., None]) -> None:
    (folder / "w.bin").write_bytes(bytes(648))
    point(location="w.bin", offset="here")
