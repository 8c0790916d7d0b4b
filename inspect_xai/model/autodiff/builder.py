"""Types that the gradient rules read and write.

A `Writer` knows the shapes and constants of a graph and collects nodes to put behind it. A `Value` is one tensor;
arithmetic on values appends nodes: `dy * (1 - y * y)` is two Mul nodes and one Sub node. A `Step` is one forward node
on the way back from the output, with the cotangents of its outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from inspect_xai.errors import UnsupportedModelError
from inspect_xai.model.build.topology import all_names, attribute_of

Shape = tuple[int | str, ...]
_STEEPEST = 3e38  # nearly the largest float32: one node in the place of Greater and Cast, which write 5 bytes a number
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph under construction.

    Operators and `then` append nodes. Numbers that meet a value become constants of its element type; lists of int
    become int64 constants.
    """

    name: str
    dtype: int  # ONNX element type
    writer: "Writer"

    def then(self, op: str, *others: Any, dtype: int | None = None, **attributes: Any) -> "Value":
        """Append `op(self, *others)`, whose result has this value's element type unless `dtype` says otherwise."""
        return self.writer.emit(op, self, *others, dtype=dtype, **attributes)

    def cast(self, dtype: int) -> "Value":
        """Convert this value to another element type."""
        return self if dtype == self.dtype else self.then("Cast", to=dtype, dtype=dtype)

    def reshape(self, shape: Any) -> "Value":
        """Reshape this value to a list of int (0: copy, -1: infer) or an int64 value."""
        return self.then("Reshape", shape)

    def shape(self, start: int = 0, end: int | None = None) -> "Value":
        """Return the sizes of axes `start` to `end` at run time, int64: right for every batch size."""
        until = {} if end is None else {"end": end}
        return self.then("Shape", dtype=TensorProto.INT64, start=start, **until)

    def sum(self, axes: Sequence[int], *, keepdims: int = 1) -> "Value":
        """Sum over `axes`."""
        return self.then("ReduceSum", list(axes), keepdims=keepdims) if axes else self

    def mean(self, axes: Sequence[int]) -> "Value":
        """Average over `axes`, which stay as axes of size 1."""
        return self.then("ReduceMean", list(axes), keepdims=1)

    def where_positive(self, other: "Value") -> "Value":
        """Keep this value where `other` is above 0, else 0."""
        if other.dtype == TensorProto.FLOAT:  # a ramp from 0 to 1 that ends before the smallest normal number
            return self * other.then("HardSigmoid", alpha=_STEEPEST, beta=0.0)
        return self * other.then("Greater", 0.0, dtype=TensorProto.BOOL).cast(self.dtype)

    def __add__(self, other: Any) -> "Value":
        return self.then("Add", other)

    def __sub__(self, other: Any) -> "Value":
        return self.then("Sub", other)

    def __mul__(self, other: Any) -> "Value":
        return self.then("Mul", other)

    def __truediv__(self, other: Any) -> "Value":
        return self.then("Div", other)

    def __neg__(self) -> "Value":
        return self.then("Neg")

    def __radd__(self, other: float) -> "Value":
        return self.writer.constant(other, self.dtype) + self

    def __rsub__(self, other: float) -> "Value":
        return self.writer.constant(other, self.dtype) - self

    def __rmul__(self, other: float) -> "Value":
        return self * other

    def __rtruediv__(self, other: float) -> "Value":
        return self.writer.constant(other, self.dtype) / self


class Writer:
    """Collects nodes and constants to append to a model; the model itself is only read.

    Args:
        model: Model with known shapes; those of axes that differ from run to run may be symbolic.
        prefix: How the names of new tensors begin; lengthened until no name of the model begins so.
    """

    def __init__(self, model: onnx.ModelProto, *, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, int] = {}
        self._constants: dict[tuple[object, ...], Value] = {}
        self._initial = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producers = {name: node for node in model.graph.node for name in node.output if name}
        self.prefix = _unused_prefix(prefix, model.graph)
        self._read_types(model)

    def value(self, name: str) -> Value:
        """Return a tensor of the model."""
        return Value(name, self.dtypes.get(name, TensorProto.FLOAT), self)

    def known(self, name: str) -> NDArray[Any] | None:
        """Return the numbers of a constant tensor; None where they depend on the picture."""
        if name in self._initial:
            return numpy_helper.to_array(self._initial[name])
        producer = self._producers.get(name)
        if producer is None or producer.op_type not in ("Constant", "Identity"):
            return None
        if producer.op_type == "Identity":
            return self.known(producer.input[0])
        (attribute,) = producer.attribute
        number = helper.get_attribute_value(attribute)
        return numpy_helper.to_array(number) if isinstance(number, TensorProto) else np.asarray(number)

    def constant(self, number: Any, dtype: int) -> Value:
        """Make a constant of the given element type; equal constants are stored once."""
        array = np.asarray(number, dtype=helper.tensor_dtype_to_np_dtype(dtype))
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.prefix}constant_{len(self._constants)}"
            self.initializers.append(numpy_helper.from_array(array, name))
            self._constants[key] = Value(name, dtype, self)
        return self._constants[key]

    def emit(self, op: str, first: Value, *others: Any, dtype: int | None = None, **attributes: Any) -> Value:
        """Append one node with one output; None among the inputs leaves an optional input out."""
        inputs = [first.name, *(self._operand(other, first.dtype) for other in others)]
        name = f"{self.prefix}{len(self.nodes)}_{op}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return Value(name, first.dtype if dtype is None else dtype, self)

    def _operand(self, operand: Any, dtype: int) -> str:
        if operand is None:
            return ""
        if isinstance(operand, Value):
            return operand.name
        integers = isinstance(operand, list | tuple) or (isinstance(operand, np.ndarray) and operand.dtype == np.int64)
        return self.constant(operand, TensorProto.INT64 if integers else dtype).name

    def _read_types(self, model: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        for info in (*graph.value_info, *graph.input, *graph.output):
            tensor = info.type.tensor_type
            self.dtypes[info.name] = tensor.elem_type
            if tensor.HasField("shape"):
                self.shapes[info.name] = tuple(
                    axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in tensor.shape.dim
                )
        for name, initial in self._initial.items():
            self.dtypes[name] = initial.data_type
            self.shapes[name] = tuple(initial.dims)


@dataclass(frozen=True, slots=True)
class Step:
    """One node of the forward graph on the way back: what a rule may look at.

    Attributes:
        node: The forward node. Rules never change it, except that MaxPool gets its Indices output.
        cotangents: d(seed)/d(output) per output; None where the seed does not depend on that output.
        writer: Where new nodes go.
    """

    node: onnx.NodeProto
    cotangents: tuple[Value | None, ...]
    writer: Writer

    @property
    def dy(self) -> Value:
        """Cotangent of the first output."""
        if self.cotangents[0] is None:
            self.refuse(f"only its output {self.node.output[0]!r} can be differentiated, and another one is used")
        return self.cotangents[0]

    @property
    def x(self) -> Value:
        """The first input."""
        return self.input(0)

    @property
    def y(self) -> Value:
        """The first output."""
        return self.writer.value(self.node.output[0])

    def input(self, index: int) -> Value:
        """Return an input that is present."""
        return self.writer.value(self.node.input[index])

    def has(self, index: int) -> bool:
        """Whether an optional input is present."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute of the node, or its default."""
        value = attribute_of(self.node, name, default)
        return value.decode() if isinstance(value, bytes) else value

    def known(self, index: int, default: Any = None) -> NDArray[Any]:
        """Return the numbers of an optional constant input.

        Raises:
            UnsupportedModelError: They depend on the picture.
        """
        if not self.has(index):
            return np.asarray(default)
        numbers = self.writer.known(self.node.input[index])
        if numbers is None:
            self.refuse(f"its input {self.node.input[index]!r} is not constant")
        return numbers

    def shape(self, name: str) -> Shape:
        """Return the sizes of a tensor; a symbol for one that differs from run to run."""
        if name not in self.writer.shapes:
            self.refuse(f"the shape of its tensor {name!r} is not known")
        return self.writer.shapes[name]

    def sizes(self, name: str, axes: Sequence[int] | None = None, *, start: int = 0) -> list[int]:
        """Return the sizes of the given axes (or of all from `start`), which must be fixed.

        Raises:
            UnsupportedModelError: One of them is symbolic.
        """
        shape = self.shape(name)
        chosen = [shape[axis] for axis in (range(start, len(shape)) if axes is None else axes)]
        sizes = [size for size in chosen if isinstance(size, int)]
        if len(sizes) < len(chosen):
            self.refuse(f"its tensor {name!r} has the shape {shape}, of which only the batch size may be open")
        return sizes

    def rank(self, name: str) -> int:
        """Return the number of axes of a tensor."""
        return len(self.shape(name))

    def axis(self, default: int) -> int:
        """Return the attribute `axis`, counted from the front."""
        axis = int(self.attribute("axis", default))
        return axis + self.rank(self.node.input[0]) if axis < 0 else axis

    def zeros(self, shape: Value) -> Value:
        """Make zeros of the cotangents' element type."""
        dtype = next(dy.dtype for dy in self.cotangents if dy)
        return self.writer.constant(0.0, dtype).then("Expand", shape)

    def refuse(self, reason: str) -> NoReturn:
        """Report that this node cannot be differentiated.

        Raises:
            UnsupportedModelError: Always.
        """
        raise UnsupportedModelError(
            f"The gradient of operator {self.node.op_type}, node {self.node.name or self.node.output[0]!r}, "
            f"is not available: {reason}",
            expected="operators with a known gradient between the block ends and the network's output",
            remedy="use finite differences in place of the gradient, name block ends behind this node "
            "([explain] blocks in the card), or choose a method that needs no gradients",
        )


Rule = Callable[[Step], Value]
InputRule = Callable[[Step, int], Value]


def _unused_prefix(prefix: str, graph: onnx.GraphProto) -> str:
    names = set(all_names(graph))
    while any(name.startswith(prefix) for name in names):
        prefix = f"_{prefix}"
    return prefix
