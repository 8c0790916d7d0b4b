"""The working form: whatever an exporter wrote becomes one flat graph that computes the same, for any batch."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from inspect_xai.errors import CardError, UnsupportedModelError
from inspect_xai.model.build.head import ClassCoupling, Head, read_head
from inspect_xai.model.build.load_onnx import load_model
from inspect_xai.model.build.normalize import Network, network_input, run_model, sample_pictures, working_form
from inspect_xai.records import Activation, Channels, InputSpec, Layout, ModelCard, OutputSpec
from tests.support.toy_graphs import make_model, nhwc_model, noise
from tests.support.toys import toy_model

CARD = ModelCard("toy", "1", tuple("abcde"), InputSpec(64, 64))


def working(model: onnx.ModelProto, folder: Path, card: ModelCard = CARD) -> Network:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return working_form(load_model(path).model, card)


def assert_same_outputs(model: onnx.ModelProto, network: Network, card: ModelCard = CARD) -> None:
    """The working form against the model as given, picture by picture and, where it can, two at once."""
    pictures = network_input(sample_pictures(card, 2, seed=9), card)
    name = model.graph.output[0].name
    expected = np.concatenate(
        [run_model(model, {network.image: pictures[i : i + 1]}, outputs=[name])[name] for i in range(2)]
    )
    if network.dynamic_batch:
        found = run_model(network.model, {network.image: pictures}, outputs=[name])[name]
    else:
        single = {
            i: run_model(network.model, {network.image: pictures[i : i + 1]}, outputs=[name])[name] for i in (0, 1)
        }
        found = np.concatenate([single[0], single[1]])
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def operators(network: Network) -> set[str]:
    return {node.op_type for node in network.model.graph.node}


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 20])
def test_every_opset_becomes_18_or_newer(opset: int, tmp_path: Path) -> None:
    model = toy_model("mobilenet_v2", opset=opset, dynamic_batch=False)

    network = working(model, tmp_path)

    assert network.model.opset_import[0].version == max(opset, 18)
    assert network.dynamic_batch
    assert_same_outputs(model, network)


def test_batch_norm_and_shape_arithmetic_are_folded(tmp_path: Path) -> None:
    model = toy_model("shufflenet", fold=False)
    assert {"BatchNormalization", "Shape"} & {node.op_type for node in model.graph.node}

    network = working(model, tmp_path)

    assert not operators(network) & {"BatchNormalization", "Shape", "Constant", "Identity", "Dropout", "Gather", "Cast"}
    assert_same_outputs(model, network)


def test_local_functions_are_written_out(tmp_path: Path) -> None:
    """Exporters of torch wrap operators into functions; here Twice(x) = Relu(x) + Relu(x)."""
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Add", ["y", "y"], ["z"])]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("pkg.torch", 1)]
    model = small_model([helper.make_node("Twice", ["a"], ["b"], domain="pkg.torch")])
    model.functions.append(helper.make_function("pkg.torch", "Twice", ["x"], ["z"], nodes, opsets))
    model.opset_import.append(opsets[1])

    network = working(model, tmp_path, SMALL)

    assert operators(network) >= {"Relu", "Add"}
    assert_same_outputs(model, network, SMALL)


SMALL = ModelCard("small", "1", ("a", "b"), InputSpec(8, 8, Channels.GRAY))


def small_model(middle: list[onnx.NodeProto], **constants: np.ndarray) -> onnx.ModelProto:
    """Conv 2@8 makes "a"; the given nodes make "b" (N, 2, h, w) of it; pooled scores (N, 2)."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        *middle,
        helper.make_node("GlobalAveragePool", ["b"], ["g"]),
        helper.make_node("Flatten", ["g"], ["z"]),
    ]
    constants["w"] = noise(2, 1, 3, 3).astype(np.float32)
    return make_model(nodes, inputs={"x": ["N", 1, 8, 8]}, outputs={"z": ["N", 2]}, constants=constants)


def test_a_size_that_holds_the_batch_at_one_is_freed(tmp_path: Path) -> None:
    """Reshape to (1, 2, 64) and back, Resize to sizes (1, 2, 16, 16): written for one picture, meant for any."""
    model = small_model(
        [
            helper.make_node("Reshape", ["a", "rows"], ["r"]),
            helper.make_node("Reshape", ["r", "planes"], ["p"]),
            helper.make_node("Resize", ["p", "", "", "double"], ["b"], mode="linear"),
        ],
        rows=np.array([1, 2, 64]),
        planes=np.array([1, 2, 8, 8]),
        double=np.array([1, 2, 16, 16]),
    )

    network = working(model, tmp_path, SMALL)

    assert network.dynamic_batch
    assert network.shapes["b"] == (1, 2, 16, 16)
    assert_same_outputs(model, network, SMALL)


def test_the_strided_view_of_torch_is_freed(tmp_path: Path) -> None:
    """A channels-last mean of torch ends in Reshape to a row and Gather of every number of it."""
    model = small_model(
        [helper.make_node("Reshape", ["a", "row"], ["r"]), helper.make_node("Gather", ["r", "every"], ["b"])],
        row=np.array([-1]),
        every=np.arange(128).reshape(1, 2, 8, 8),
    )

    network = working(model, tmp_path, SMALL)

    assert network.dynamic_batch
    assert_same_outputs(model, network, SMALL)


def test_a_network_that_mixes_its_batch_stays_at_one(tmp_path: Path) -> None:
    """Less the mean over the batch axis: two pictures at once come out otherwise than one by one."""
    model = small_model(
        [
            helper.make_node("ReduceMean", ["a", "axis"], ["m"]),
            helper.make_node("Sub", ["a", "m"], ["b0"]),
            helper.make_node("Add", ["b0", "m"], ["b1"]),
            helper.make_node("Mul", ["b1", "m"], ["b"]),
        ],
        axis=np.array([0]),
    )

    network = working(model, tmp_path, SMALL)

    assert not network.dynamic_batch
    assert_same_outputs(model, network, SMALL)


def test_channels_last_input(tmp_path: Path) -> None:
    card = ModelCard("nhwc", "1", tuple("abcde"), InputSpec(64, 64, layout=Layout.NHWC))

    network = working(nhwc_model(), tmp_path, card)

    assert network.layout is Layout.NHWC
    assert_same_outputs(nhwc_model(), network, card)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (InputSpec(64, 64, layout=Layout.NHWC), 'input.layout: .* say layout = "nchw"'),
        (InputSpec(64, 64, Channels.GRAY), r"input.channels: .*\['\?', 3, 64, 64\], the card says \['\?', 1, 64, 64\]"),
        (InputSpec(32, 64), r"input.height: .* has shape \['\?', 3, 64, 64\]"),
    ],
)
def test_an_input_that_is_not_what_the_card_says(spec: InputSpec, words: str, tmp_path: Path) -> None:
    with pytest.raises(CardError, match=words):
        working(toy_model("resnet18"), tmp_path, ModelCard("toy", "1", tuple("abcde"), spec))


def test_a_free_picture_size_is_taken_from_the_card(tmp_path: Path) -> None:
    model = toy_model("resnet18")
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"

    network = working(model, tmp_path, ModelCard("toy", "1", tuple("abcde"), InputSpec(96, 64)))

    assert network.shapes[network.image] == (1, 3, 96, 64)


def test_an_operator_that_cannot_be_upgraded_is_refused(tmp_path: Path) -> None:
    """A BatchNormalization of opset 8 with statistics per position, which later opsets cannot say."""
    ones = {name: np.ones(2, np.float32) for name in ("scale", "bias", "mean", "var")}
    model = small_model([helper.make_node("BatchNormalization", ["a", *ones], ["b"], spatial=0)], **ones)
    model.opset_import[0].version = 8

    with pytest.raises(UnsupportedModelError, match="opset 18"):
        working(model, tmp_path, SMALL)


# What the output means


def head_of(
    tail: list[onnx.NodeProto],
    folder: Path,
    *,
    labels: int,
    activation: str,
    shape: list[int | str],
    positive: str = "",
) -> Head:
    """Scores "z" (N, 2) of the small network through `tail`, which makes "out"."""
    model = small_model([helper.make_node("Relu", ["a"], ["b"])])
    if tail:
        model.graph.node.extend(tail)
        kind = TensorProto.INT64 if tail[-1].op_type == "ArgMax" else TensorProto.FLOAT
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("out", kind, shape))
    card = ModelCard(
        "small",
        "1",
        tuple("abcdef"[:labels]),
        InputSpec(8, 8, Channels.GRAY),
        output=OutputSpec(Activation(activation), positive_label=positive),
    )
    return read_head(working(model, folder, card), card)


def node(op: str, **attributes: object) -> list[onnx.NodeProto]:
    return [helper.make_node(op, ["z"], ["out"], **attributes)]


def test_logits_are_found_behind_a_softmax_and_reshapes(tmp_path: Path) -> None:
    tail = [helper.make_node("Softmax", ["z"], ["p"], axis=1), helper.make_node("Flatten", ["p"], ["out"])]

    head = head_of(tail, tmp_path, labels=2, activation="none", shape=["N", 2])

    assert head == Head("z", 2, 2, ClassCoupling.SHARED, are_logits=True, own_probabilities=head.own_probabilities)
    assert head.own_probabilities


def test_a_softmax_over_another_axis_is_no_activation_of_classes(tmp_path: Path) -> None:
    """Over the batch axis of size 1 it makes ones of all pictures; half of them and half of the scores tell."""
    ones = node("Softmax", axis=0)
    half = [
        helper.make_node("Softmax", ["z"], ["one"], axis=0),
        helper.make_node("Sigmoid", ["z"], ["s"]),
        helper.make_node("Mean", ["one", "s"], ["out"]),
    ]

    head = head_of(half, tmp_path, labels=2, activation="none", shape=["N", 2])

    assert not head.are_logits
    assert head.coupling is ClassCoupling.INDEPENDENT
    with pytest.raises(UnsupportedModelError, match=r"does not depend on its input: .* score 1, 1"):
        head_of(ones, tmp_path, labels=2, activation="none", shape=["N", 2])


@pytest.mark.parametrize(
    ("tail", "labels", "activation", "words"),
    [
        ([], 3, "softmax", "labels: the network outputs 2 scores, the card names 3 labels"),
        (node("Softmax", axis=1), 2, "softmax", r"output\.activation: .*\(it ends in Softmax\)"),
        (node("Sigmoid"), 2, "sigmoid", r"output\.activation: .*\(it ends in Sigmoid\)"),
        (node("Exp"), 2, "none", r"output\.activation: found none, but the graph outputs"),
        (node("LpNormalization", axis=1, p=1), 2, "softmax", r"output\.activation: .*\(they sum to 1\)"),
    ],
)
def test_an_output_that_is_not_what_the_card_says(
    tail: list[onnx.NodeProto], labels: int, activation: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(CardError, match=words):
        head_of(tail, tmp_path, labels=labels, activation=activation, shape=["N", 2])


def test_a_single_score_needs_a_sigmoid(tmp_path: Path) -> None:
    tail = [helper.make_node("ReduceMax", ["z"], ["out"], keepdims=1)]

    with pytest.raises(CardError, match="softmax over a single score"):
        head_of(tail, tmp_path, labels=2, activation="softmax", shape=["N", 1])


def test_a_single_score_for_two_labels_needs_to_be_told_whose_it_is(tmp_path: Path) -> None:
    tail = [helper.make_node("ReduceMax", ["z"], ["out"], keepdims=1)]

    with pytest.raises(CardError, match=r"output\.positive_label: .* that of 'a' or of 'b'") as caught:
        head_of(tail, tmp_path, labels=2, activation="sigmoid", shape=["N", 1])
    assert 'positive_label = "b" (what bundles had without this key)' in caught.value.remedy
    assert head_of(tail, tmp_path, labels=2, activation="sigmoid", shape=["N", 1], positive="a").positive == 0
    assert head_of(tail, tmp_path, labels=2, activation="sigmoid", shape=["N", 1], positive="b").positive == 1
    assert head_of(tail, tmp_path, labels=1, activation="sigmoid", shape=["N", 1]).classes == 1
    with pytest.raises(CardError, match=r"output\.positive_label: .* outputs 2 scores, one for each label"):
        head_of([], tmp_path, labels=2, activation="softmax", shape=["N", 2], positive="a")


@pytest.mark.parametrize(
    ("tail", "shape", "words"),
    [
        (node("ArgMax", axis=1), ["N", 1], "no float tensor"),
        ([helper.make_node("Identity", ["a"], ["out"])], ["N", 2, 8, 8], "detectors and segmenters"),
        (node("ReduceSum", keepdims=0), [], "has shape"),
    ],
)
def test_an_output_that_is_no_vector_of_scores(
    tail: list[onnx.NodeProto], shape: list[int | str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        head_of(tail, tmp_path, labels=2, activation="softmax", shape=shape)
