"""The graphs of a bundle, made from a network in its working form; nothing here changes a model it is given.

    predict   picture -> [scale] -> network -> [activation] -> probabilities
    trace     the same, with block ends, margin, and the margin's gradient to every block end
    score     pictures, baselines, maps -> [resize, min-max, mask] -> network -> [activation] -> probabilities
    block_i   block end i-1 -> block end i; the first begins at the picture, the last ends at the probabilities

Pictures are (N, C, H, W) in pixel units and the network's channel order; tensors of the network are called "net/..".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from inspect_xai.errors import UnsupportedModelError
from inspect_xai.model.autodiff.backward import differentiate
from inspect_xai.model.autodiff.builder import Value, Writer
from inspect_xai.model.build.head import Head, write_margin, write_probabilities
from inspect_xai.model.build.normalize import FREE_BATCH, Network
from inspect_xai.model.build.topology import needed_nodes, sort_nodes
from inspect_xai.records import BlockEnd, InputSpec, Layout

PREFIX = "net/"
FLAT = 1e-6  # a map whose range is below this share of its largest value has no contrast (method notes 3)


@dataclass(frozen=True, slots=True, eq=False)
class Derivation:
    """What the graphs of a bundle are made from.

    Attributes:
        body: The network, or the same with its weights moved out, with all names prefixed.
        network: The network in its working form.
        head: How its output is read.
        spec: How it is fed.
        ends: Its block ends, shallow to deep.
        cuts: Those at which it falls into two parts.
    """

    body: onnx.ModelProto
    network: Network
    head: Head
    spec: InputSpec
    ends: tuple[BlockEnd, ...]
    cuts: frozenset[str]

    @property
    def batch(self) -> str | int:
        """Size of the batch axis in the graphs' inputs."""
        return FREE_BATCH if self.network.dynamic_batch else 1

    @property
    def picture(self) -> tuple[str | int, ...]:
        """Shape of the pictures."""
        return (self.batch, self.spec.depth, self.spec.height, self.spec.width)


def predict_graph(plan: Derivation) -> onnx.ModelProto:
    """Write the forward pass: picture (N, C, H, W) -> probabilities (N, K)."""
    draft = _Draft(plan)
    draft.feed(draft.network_input(draft.take("picture", plan.picture)))
    probabilities, _ = draft.read_scores()
    return draft.model({"probabilities": probabilities})


def trace_graph(plan: Derivation) -> tuple[onnx.ModelProto, str]:
    """Write the graph of one forward and one backward pass.

    picture (N, C, H, W), target (N,) and against (N,) int64 (-1: the most probable, and all others) -> probabilities
    (N, K), margin (N,) and, for block end i counted from 0, feature_i (N, c, h, w), gradient_i (N, c, h, w) and
    alpha_i (N, c), the gradient's sum over space.

    Returns:
        The graph, and why it holds no gradients: empty where it does.
    """
    draft = _Draft(plan)
    draft.feed(draft.network_input(draft.take("picture", plan.picture)))
    probabilities, margin, slope = draft.read_margin()
    ends = [PREFIX + end.tensor for end in plan.ends]
    outputs = {"probabilities": probabilities, "margin": margin}
    outputs |= {f"feature_{index}": draft.writer.value(name) for index, name in enumerate(ends)}
    forward = draft.model(outputs | {"slope": slope})
    try:
        both, names = differentiate(forward, seeds={PREFIX + plan.head.scores: "slope"}, wrt=ends)
    except UnsupportedModelError as error:
        whole = "The network computes with whole numbers, through which there is no gradient"
        return draft.model(outputs), whole if plan.network.steps else error.found
    writer = Writer(both, prefix="alpha:")
    ready = {info.name: info.name for info in forward.graph.output if info.name != "slope"}
    for index, name in enumerate(ends):
        ready[f"gradient_{index}"] = names[name]
        ready[f"alpha_{index}"] = writer.value(names[name]).then("ReduceSum", [2, 3], keepdims=0).name
    return (
        _assembled(
            [*both.graph.node, *writer.nodes],
            inputs=list(forward.graph.input),
            outputs=ready,
            weights=[*both.graph.initializer, *writer.initializers],
            like=plan.body,
            declared=both.graph.value_info,
        ),
        "",
    )


def score_graph(plan: Derivation) -> onnx.ModelProto:
    """Write the graph that scores masked pictures.

    picture and baseline (p, C, H, W), image (n,) int64, maps (n, 1, h, w) of any resolution -> probabilities (n, K),
    and of each map brought to H x W its minimum (n,) and span (n,). Map i masks picture image[i]; a single index holds
    for all maps. A map without contrast gets span 0 and masks everything.

    Where block ends do not reach from edge to edge, maps are not stretched but multiplied by two more inputs, rows
    (H, h) and columns (w, W): how much of each cell a pixel's row and column get (`Engine.enlarging`).
    """
    draft = _Draft(plan)
    several, chosen, count = ("p", "i", "n") if plan.batch != 1 else (1, 1, 1)
    given = [draft.take(name, (several, *plan.picture[1:])) for name in ("picture", "baseline")]
    image = draft.take("image", (chosen,), dtype=TensorProto.INT64)
    # Scaling is affine, so masking commutes with it: scale picture and baseline, not what masking makes of them; and
    # before they are chosen, as what is chosen is there once for every mask of a run.
    picture, baseline = (draft.network_input(pictures) for pictures in given)
    contrast, hidden = (value.then("Gather", image, axis=0) for value in (picture - baseline, baseline))
    sides, cells = (plan.spec.height, plan.spec.width), (count, 1, "h", "w")
    if any(end.grid for end in plan.ends):
        rows, columns = draft.take("rows", (sides[0], "h")), draft.take("columns", ("w", sides[1]))
        up = rows.then("MatMul", draft.take("maps", cells)).then("MatMul", columns)
    else:
        maps = draft.take("maps", cells)
        up = maps.then(
            "Resize", None, None, list(sides), mode="linear", axes=[2, 3], coordinate_transformation_mode="half_pixel"
        )
    lowest, highest = (up.then(op, [1, 2, 3], keepdims=1) for op in ("ReduceMin", "ReduceMax"))
    reach = highest - lowest
    size = lowest.then("Abs").then("Max", highest.then("Abs"), 1.0)
    span = reach.where_positive(reach - size * FLAT)
    # Where the span is 0 so is its gate: the mask is 0 whatever rounding left of the map.
    gate = span.then("Greater", 0.0, dtype=TensorProto.BOOL).cast(TensorProto.FLOAT)
    mask = (up - lowest) * (gate / span.then("Max", 1e-30))
    masked = hidden + mask * contrast
    draft.declare(masked, (count, *plan.picture[1:]))
    draft.feed(masked)
    probabilities, _ = draft.read_scores()
    flat = [value.then("Squeeze", [1, 2, 3]) for value in (lowest, span)]
    return draft.model({"probabilities": probabilities, "minimum": flat[0], "span": flat[1]})


def block_graphs(plan: Derivation) -> list[onnx.ModelProto]:
    """Cut the network at those of its block ends at which it falls into two parts.

    Returns:
        Graphs that, run one into the next, are the whole network. Each takes feature_i of the one before (the first:
        picture) and makes the next; the last also takes target and against, and makes probabilities and margin.
    """
    stations = [index for index, end in enumerate(plan.ends) if end.tensor in plan.cuts]
    graphs = []
    for before, after in zip([None, *stations], [*stations, None], strict=True):
        draft = _Draft(plan)
        if before is None:
            draft.feed(draft.network_input(draft.take("picture", plan.picture)))
        else:
            end = plan.ends[before]
            draft.bind(end.tensor, draft.take(f"feature_{before}", (plan.batch, end.channels, end.height, end.width)))
        if after is None:
            probabilities, margin, _ = draft.read_margin()
            graphs.append(draft.model({"probabilities": probabilities, "margin": margin}))
        else:
            graphs.append(draft.model({f"feature_{after}": draft.writer.value(PREFIX + plan.ends[after].tensor)}))
    return graphs


class _Draft:
    """A graph under construction around the network's body."""

    def __init__(self, plan: Derivation) -> None:
        self.plan = plan
        self.writer = Writer(plan.body, prefix="ix/")
        self._inputs: list[onnx.ValueInfoProto] = []
        self._declared: list[onnx.ValueInfoProto] = []
        self._bound: dict[str, Value] = {}

    def take(self, name: str, shape: Sequence[str | int], *, dtype: int = TensorProto.FLOAT) -> Value:
        """Declare an input."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return Value(name, dtype, self.writer)

    def declare(self, value: Value, shape: Sequence[str | int]) -> None:
        """Say a value's shape where it cannot be inferred.

        Without a name for the batch ONNX Runtime takes no two tensors behind it for alike, and where one may take the
        place of another it copies: a residual sum cost ResNet-50 6 % of its time.
        """
        self._declared.append(helper.make_tensor_value_info(value.name, value.dtype, shape))

    def bind(self, tensor: str, value: Value) -> None:
        """Put a value in the place of a tensor of the network; the nodes behind that tensor are dropped."""
        self._bound[PREFIX + tensor] = value

    def feed(self, value: Value) -> None:
        """Make a value (N, C, H, W), scaled as the network wants it, the network's input."""
        if self.plan.network.layout is Layout.NHWC:
            value = value.then("Transpose", perm=[0, 2, 3, 1])
        self.bind(self.plan.network.image, value)

    def network_input(self, picture: Value) -> Value:
        """Write (pixel / scale - mean) / std as one multiplication and one addition, each only where it changes x."""
        spec = self.plan.spec
        mean, std = (np.asarray(numbers, np.float64).reshape(-1, 1, 1) for numbers in (spec.mean, spec.std))
        factor, offset = 1 / (spec.scale * std), -mean / std
        if np.any(factor != 1):
            picture = picture * factor.astype(np.float32)
        return picture + offset.astype(np.float32) if np.any(offset != 0) else picture

    def read_scores(self) -> tuple[Value, Value]:
        """Write probabilities (N, K) and logits (N, K)."""
        head = self.plan.head
        own = self._flat(head.own_probabilities) if head.own_probabilities else None
        return write_probabilities(head, self._flat(head.scores), own)

    def read_margin(self) -> tuple[Value, Value, Value]:
        """Write probabilities (N, K), margin (N,), and its slope in the shape of the scores tensor."""
        probabilities, logits = self.read_scores()
        target, against = (
            self.take(name, (self.plan.batch,), dtype=TensorProto.INT64) for name in ("target", "against")
        )
        margin = write_margin(self.plan.head, logits, probabilities=probabilities, target=target, against=against)
        shape = self.plan.network.shapes[self.plan.head.scores]
        slope = margin.slope if len(shape) == 2 else margin.slope.reshape([-1, *shape[1:]])
        return probabilities, margin.value, slope

    def model(self, outputs: Mapping[str, Value]) -> onnx.ModelProto:
        """Put together what the outputs need."""
        body = self.plan.body.graph
        links = [helper.make_node("Identity", [value.name], [name]) for name, value in self._bound.items()]
        nodes = [node for node in body.node if self._bound.keys().isdisjoint(node.output)]
        return _assembled(
            [*nodes, *self.writer.nodes, *links],
            inputs=self._inputs,
            outputs={name: value.name for name, value in outputs.items()},
            weights=[*body.initializer, *self.writer.initializers],
            like=self.plan.body,
            declared=[*self._declared, *body.value_info],
        )

    def _flat(self, tensor: str) -> Value:
        value = self.writer.value(PREFIX + tensor)
        shape = self.plan.network.shapes[tensor]
        return value if len(shape) == 2 else value.reshape([-1, self.plan.head.width])


def _assembled(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Mapping[str, str],
    weights: Sequence[TensorProto],
    like: onnx.ModelProto,
    declared: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:
    """Make a model, of the operator set of `like`, of those nodes (in any order) and weights that the outputs need.

    `declared` holds shapes that cannot be inferred; inputs that no node reads stay inputs.
    """
    named = [helper.make_node("Identity", [tensor], [name]) for name, tensor in outputs.items() if tensor != name]
    every = [*nodes, *named]
    needed = needed_nodes(every, outputs=outputs)
    used = {name for node in needed for name in node.input}
    kept = [weight for weight in weights if weight.name in used]
    ordered = sort_nodes(needed, given=[*(info.name for info in inputs), *(weight.name for weight in kept)])
    results = [onnx.ValueInfoProto(name=name) for name in outputs]  # shape inference fills in the rest
    made = {name for node in needed for name in node.output}
    shapes = [info for info in declared if info.name in made]
    graph = helper.make_graph(ordered, "inspect_xai", list(inputs), results, kept, value_info=shapes)
    model = helper.make_model(
        graph, opset_imports=like.opset_import, producer_name="inspect_xai", ir_version=like.ir_version
    )
    complete = onnx.shape_inference.infer_shapes(model, data_prop=True)
    del complete.graph.value_info[:]
    complete.graph.value_info.extend(shapes)
    batch = next((info.type.tensor_type.shape.dim[0].dim_param for info in reversed(inputs)), "")
    for info in complete.graph.output:
        first = info.type.tensor_type.shape.dim[0]
        if batch and not first.HasField("dim_value"):  # a reshaped batch has lost its name
            first.dim_param = batch
    assert isinstance(complete, onnx.ModelProto)  # noqa: S101  onnx has no types
    return complete
