"""Networks in half precision, computed in single precision: weights are widened, which is exact, without rounding.

Gradients, cuts and differences mean little where every number keeps 11 bits. The network as given still rounds; the
proof `network_as_given` measures how far that moves its probabilities.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPE_KEYS = frozenset({"to", "dtype"})


def half_tensors(model: onnx.ModelProto) -> int:
    """Return how many nodes compute in half precision, as far as the file and shape inference show."""
    typed = onnx.shape_inference.infer_shapes(model).graph
    halves = {
        info.name for info in (*typed.input, *typed.value_info, *typed.output) if _type(info).elem_type in _HALVES
    } | {tensor.name for tensor in typed.initializer if tensor.data_type in _HALVES}
    return sum(1 for node in typed.node if not halves.isdisjoint([*node.output, *node.input]))


def in_single_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model, its functions inlined, with float32 in place of numbers in half precision."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    _widen(wide.graph)
    return wide if wide != model else model


def _widen(graph: onnx.GraphProto) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        if _type(info).elem_type in _HALVES:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in (*graph.initializer, *_constants(graph)):
        if tensor.data_type in _HALVES:
            numbers = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _TYPE_KEYS and attribute.i in _HALVES:
                attribute.CopyFrom(helper.make_attribute(attribute.name, TensorProto.FLOAT))
            if attribute.type == AttributeProto.GRAPH:
                _widen(attribute.g)


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t


def _type(info: onnx.ValueInfoProto) -> onnx.TypeProto.Tensor:
    return info.type.tensor_type
