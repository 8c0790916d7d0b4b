"""The reverse sweep on graphs small enough to check by hand, and what it refuses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from inspect_xai.errors import UnsupportedModelError
from inspect_xai.model.autodiff.backward import differentiate
from tests.support.toy_graphs import make_model, run, with_outputs

ROW: dict[str, Sequence[int | str]] = {"x": ["N", 4], "w": ["N", 4]}


def by_hand(model: onnx.ModelProto, wrt: Sequence[str], **feeds: Any) -> dict[str, list[Any]]:
    """Gradients of tensors (N, 4) by name, for a model whose output y has the cotangent w."""
    differentiated, names = differentiate(model, seeds={"y": "w"}, wrt=wrt)
    watched = with_outputs(differentiated, {name: ["N", 4] for name in names.values()})
    found = run(watched, {name: np.array(array, np.float32) for name, array in feeds.items()})
    return {tensor: found[name].tolist() for tensor, name in names.items()}


# raw --> Sign --> Add --> x --+--> Mul --> s --+--> Add --> y
#   +---------------^          +----^          +--> Mul 3 --^
#                                              +--> Sign --> side
def fan_out() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Sign", ["raw"], ["sign"]),
        helper.make_node("Add", ["sign", "raw"], ["x"]),
        helper.make_node("Mul", ["x", "x"], ["s"]),
        helper.make_node("Mul", ["s", "three"], ["t"]),
        helper.make_node("Sign", ["s"], ["side"]),
        helper.make_node("Add", ["s", "t"], ["y"]),
    ]
    row: Sequence[int | str] = ["N", 4]
    three = {"three": np.float32([3.0])}
    return make_model(nodes, inputs={"raw": row, "w": row}, outputs={"y": row, "side": row}, constants=three)


def test_gradients_add_up_where_ways_part_and_one_wanted_tensor_may_lie_behind_another() -> None:
    found = by_hand(fan_out(), ["x", "s"], raw=[[0, 1, -2, 3]], w=[[1, 10, 100, 0]])

    # x = raw + sign(raw) = [0, 2, -3, 4]; y = 4 s, s = x^2
    assert found == {"s": [[4, 40, 400, 0]], "x": [[0, 160, -2400, 0]]}


def test_the_seed_tensor_itself_may_be_wanted() -> None:
    assert by_hand(fan_out(), ["y"], raw=[[0, 1, -2, 3]], w=[[1, 2, 3, 4]]) == {"y": [[1, 2, 3, 4]]}


def test_several_seeds_add_up() -> None:
    model, names = differentiate(fan_out(), seeds={"y": "w", "s": "w"}, wrt=["s"])

    watched = with_outputs(model, {names["s"]: ["N", 4]})
    found = run(watched, {"raw": np.zeros((1, 4), np.float32), "w": np.float32([[1, 2, 3, 4]])})

    assert found[names["s"]].tolist() == [[5, 10, 15, 20]]


def test_the_model_given_is_left_as_it_was_and_new_names_meet_no_old_ones() -> None:
    model = fan_out()
    model.graph.node[3].output[0] = model.graph.node[5].input[1] = "grad:0_Add"
    model.graph.node[0].name = "_grad:1_Mul"
    before = model.SerializeToString()

    once, names = differentiate(model, seeds={"y": "w"}, wrt=["x"])
    twice, more = differentiate(once, seeds={"y": "w"}, wrt=["x"])

    assert model.SerializeToString() == before
    assert set(names.values()).isdisjoint(more.values())
    onnx.checker.check_model(twice, full_check=True)
    assert len(twice.graph.node) == 2 * len(once.graph.node) - len(model.graph.node)


@pytest.mark.parametrize(
    ("op", "attributes", "rows", "expected"),
    [
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}, [[0, 0], [0, 0]], [[7, 0], [0, 0]]),
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}, [[1, 3], [3, 3]], [[0, 7], [0, 0]]),
        ("GlobalMaxPool", {}, [[1, 3], [3, 3]], [[0, 7], [0, 0]]),
        ("ReduceMax", {}, [[1, 3], [3, 3]], [[0, 7 / 3], [7 / 3, 7 / 3]]),
    ],
)
def test_ties_go_the_way_torch_sends_them(op: str, attributes: dict[str, Any], rows: Any, expected: Any) -> None:
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    model = make_model([node], inputs={"x": [1, 1, 2, 2], "w": [1, 1, 1, 1]}, outputs={"y": [1, 1, 1, 1]})
    differentiated, names = differentiate(model, seeds={"y": "w"}, wrt=["x"])

    watched = with_outputs(differentiated, {names["x"]: [1, 1, 2, 2]})
    found = run(watched, {"x": np.float32([[rows]]), "w": np.float32([[[[7]]]])})

    np.testing.assert_allclose(found[names["x"]][0, 0], expected, rtol=1e-6)


def test_an_output_that_is_named_by_nothing_counts_as_absent() -> None:
    node = helper.make_node("MaxPool", ["x"], ["y", ""], kernel_shape=[2])
    model = make_model([node], inputs={"x": ["N", 1, 3], "w": ["N", 1, 2]}, outputs={"y": ["N", 1, 2]})

    differentiated, names = differentiate(model, seeds={"y": "w"}, wrt=["x"])
    watched = with_outputs(differentiated, {names["x"]: ["N", 1, 3]})
    found = run(watched, {"x": np.float32([[[1, 3, 2]]]), "w": np.float32([[[4, 5]]])})

    assert found[names["x"]].tolist() == [[[0, 9, 0]]]


def test_quantizing_lets_through_what_its_integers_can_hold() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    constants = {"scale": np.float32(0.5), "zero": np.uint8(10)}  # holds -5 to 122.5
    model = make_model(nodes, inputs=ROW, outputs={"y": ["N", 4]}, constants=constants)

    assert by_hand(model, ["x"], x=[[-5.5, -5, 122.5, 200]], w=[[1, 2, 3, 4]]) == {"x": [[0, 2, 3, 0]]}


def test_half_precision_in_between_is_carried_back() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Sigmoid", ["half"], ["bent"]),
        helper.make_node("Cast", ["bent"], ["y"], to=TensorProto.FLOAT),
    ]
    model = make_model(nodes, inputs=ROW, outputs={"y": ["N", 4]})

    assert by_hand(model, ["x"], x=[[0, 0, 0, 0]], w=[[1, 2, 4, 8]]) == {"x": [[0.25, 0.5, 1, 2]]}


def refusal(
    *nodes: onnx.NodeProto, wrt: Sequence[str] = ("x",), opset: int = 18, shape: Sequence[int | str] = ("N", 4)
) -> str:
    constants = {"one": np.float32([1.0])}
    model = make_model(
        nodes, inputs={"x": shape, "w": shape}, outputs={"y": [None] * len(shape)}, constants=constants, opset=opset
    )
    with pytest.raises(UnsupportedModelError) as caught:
        differentiate(model, seeds={"y": "w"}, wrt=wrt)
    return str(caught.value)


def test_an_unknown_operator_on_the_way_is_refused_by_name_with_the_ways_out() -> None:
    message = refusal(
        helper.make_node("Relu", ["x"], ["a"]), helper.make_node("CumSum", ["a", "axis"], ["y"], name="running")
    )

    for part in ("CumSum", "'running'", "finite differences", "[explain] blocks", "needs no gradients"):
        assert part in message


@pytest.mark.parametrize(
    ("nodes", "wrt", "shape", "reason"),
    [
        ([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], ["x"], ("N", 4), "'com.microsoft'"),
        ([helper.make_node("PRelu", ["one", "x"], ["y"])], ["x"], ("N", 4), "'x' depends on the picture"),
        ([helper.make_node("Pow", ["x", "w"], ["y"])], ["x"], ("N", 4), "'w' is not constant"),
        (
            [helper.make_node("GlobalAveragePool", ["x"], ["y"])],
            ["x"],
            ("N", 4, "H", "W"),
            "only the batch size may be",
        ),
        ([helper.make_node("Relu", ["x"], ["y"])], ["x", "elsewhere"], ("N", 4), "no tensor named 'elsewhere'"),
        (
            [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["z"])],
            ["z"],
            ("N", 4),
            "does not depend on tensor 'z'",
        ),
        ([helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[1], storage_order=1)], ["x"], ("N", 1, 4), "columns"),
        ([helper.make_node("MatMul", ["x", "one"], ["y"])], ["x"], ("N", 1), "is a vector"),
    ],
)
def test_what_cannot_be_differentiated_is_refused_with_its_reason(
    nodes: list[onnx.NodeProto], wrt: Sequence[str], shape: Sequence[int | str], reason: str
) -> None:
    assert reason in refusal(*nodes, wrt=wrt, shape=shape)


def test_an_old_opset_is_refused() -> None:
    assert "opset 17" in refusal(helper.make_node("Relu", ["x"], ["y"]), opset=17)


def test_a_branch_on_what_the_picture_says_is_refused() -> None:
    def branch(op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4])
        return helper.make_graph([helper.make_node(op, ["x"], ["out"])], op, [], [out])

    either = helper.make_node("If", ["yes"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg"), name="fork")
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))

    assert "If, node 'fork'" in refusal(yes, either)
