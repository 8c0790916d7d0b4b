"""The derived graphs against numpy and torch: probabilities, margins and their gradients, masks, the chain of cuts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from inspect_xai.maths.sise import attribution_masks
from inspect_xai.model.build.blocks import find_blocks
from inspect_xai.model.build.derive import PREFIX, Derivation, block_graphs, predict_graph, score_graph, trace_graph
from inspect_xai.model.build.head import read_head
from inspect_xai.model.build.load_onnx import load_model
from inspect_xai.model.build.normalize import sample_pictures, working_form
from inspect_xai.records import Activation, Channels, InputSpec, ModelCard, OutputSpec
from tests.support.toy_graphs import make_model, noise
from tests.support.toys import TOYS, toy_model

Feeds = Mapping[str, NDArray[np.generic]]
FAST = ("resnet18", "mobilenet_v2", "single_logit", "single_sigmoid", "multi_label", "softmax_inside", "gray")
ONE = np.zeros(1, np.int64)  # all maps mask the first picture
MANY = sorted(TOYS.keys() - set(FAST))


def run(model: onnx.ModelProto, feeds: Feeds, outputs: Sequence[str] = ("probabilities",)) -> list[NDArray[np.float64]]:
    """Run a graph optimized, as the engine does."""
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [array.astype(np.float64) for array in session.run(list(outputs), dict(feeds))]


def choice(target: int, against: int = -1) -> Feeds:
    return {"target": np.array([target], np.int64), "against": np.array([against], np.int64)}


def plan_for(model: onnx.ModelProto, card: ModelCard, folder: Path) -> Derivation:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    network = working_form(load_model(path).model, card)
    head = read_head(network, card)
    blocks = find_blocks(network, scores=head.scores, classes=head.width)
    body = onnx.compose.add_prefix(network.model, PREFIX)
    return Derivation(body, network, head, card.input, blocks.ends, blocks.cuts)


def toy_card(name: str) -> ModelCard:
    family = TOYS[name]
    depth, height, width = family.shape
    channels = Channels.GRAY if depth == 1 else Channels.RGB
    feed = {"scale": 1.0} if family.pixels else {"scale": 64.0, "mean": (2.0,), "std": (0.9,)}
    labels = tuple(f"label {index}" for index in range(max(2, family.classes)))
    output = OutputSpec(Activation(family.activation), positive_label=labels[1] if family.classes == 1 else "")
    return ModelCard(name, "1", labels, InputSpec(height, width, channels, **feed), output=output)


@pytest.fixture(scope="module")
def toy_plans(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Plans of toys, each made once."""
    made: dict[str, Derivation] = {}

    def plan(name: str) -> Derivation:
        if name not in made:
            made[name] = plan_for(toy_model(name), toy_card(name), tmp_path_factory.mktemp(name))
        return made[name]

    return plan


def torch_margin(name: str, output: torch.Tensor, *, target: int, against: int) -> torch.Tensor:
    """The margin of method notes 2.3 written again, in torch, from the module's own output."""
    if name in ("single_sigmoid", "softmax_inside"):  # the module puts out probabilities
        output = torch.logit(output) if name == "single_sigmoid" else torch.log(output)
    if output.shape[1] == 1:
        return output[:, 0] if target == 1 else -output[:, 0]
    if against >= 0:
        return output[:, target] - output[:, against]
    if TOYS[name].activation == "sigmoid":
        return output[:, target]
    others = [index for index in range(output.shape[1]) if index != target]
    return output[:, target] - torch.logsumexp(output[:, others], dim=1)


@pytest.mark.parametrize("against", [-1, 1], ids=["against_all", "against_one"])
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in MANY)])
def test_margin_and_gradients_equal_torch(name: str, against: int, toy_plans) -> None:  # type: ignore[no-untyped-def]
    """A kink within rounding makes both right and different, so another picture is tried (performance notes 1)."""
    plan = toy_plans(name)
    graph, reason = trace_graph(plan)
    assert reason == ""
    count = len(plan.ends)
    outputs = ["margin"] + [f"{kind}_{index}" for kind in ("feature", "gradient", "alpha") for index in range(count)]
    errors = []
    for seed in range(3):
        picture = sample_pictures(toy_card(name), 1, seed=seed)
        margin, *arrays = run(graph, {"picture": picture, **choice(0, against)}, outputs)
        features, gradients, alphas = (arrays[start : start + count] for start in (0, count, 2 * count))
        toy, spec = TOYS[name].make().double(), toy_card(name).input
        scaled = (torch.from_numpy(picture).double() / spec.scale - spec.mean[0]) / spec.std[0]
        taps = [tap.requires_grad_() for tap in toy.taps(scaled.requires_grad_())]
        expected = torch_margin(name, toy.head(taps[-1]), target=0, against=against)
        slopes = torch.autograd.grad(expected.sum(), taps)

        np.testing.assert_allclose(margin, expected.detach(), rtol=1e-4, atol=1e-4)
        for feature, tap in zip(features, taps, strict=True):
            np.testing.assert_allclose(feature, tap.detach(), atol=1e-4 * tap.abs().max().item())
        for gradient, alpha in zip(gradients, alphas, strict=True):
            np.testing.assert_allclose(alpha, gradient.sum(axis=(2, 3)), rtol=1e-3, atol=1e-5 * np.abs(alpha).max())
        sums = [slope.sum(dim=(2, 3)).numpy() for slope in slopes]
        errors.append(max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(alphas, sums, strict=True)))
        if errors[-1] <= 1e-4:
            return
    pytest.fail(f"alphas differ from torch by {errors}")


@pytest.mark.parametrize("name", ["resnet18", "single_logit", "softmax_inside"])
def test_target_minus_one_is_the_most_probable_class(name: str, toy_plans) -> None:  # type: ignore[no-untyped-def]
    graph, _ = trace_graph(toy_plans(name))
    picture = {"picture": sample_pictures(toy_card(name), 1, seed=1)}
    probabilities, margin = run(graph, picture | choice(-1), ["probabilities", "margin"])

    assert margin == run(graph, picture | choice(int(probabilities.argmax())), ["margin"])[0]
    assert margin > run(graph, picture | choice(int(probabilities.argmin())), ["margin"])[0]


def test_pictures_of_one_batch_argue_for_classes_of_their_own(toy_plans) -> None:  # type: ignore[no-untyped-def]
    graph, _ = trace_graph(toy_plans("resnet18"))
    pictures = sample_pictures(toy_card("resnet18"), 2, seed=1)
    both = run(
        graph, {"picture": pictures, "target": np.array([3, 1]), "against": np.array([-1, 2])}, ["margin", "alpha_1"]
    )

    for index, (target, against) in enumerate([(3, -1), (1, 2)]):
        alone = run(graph, {"picture": pictures[index : index + 1], **choice(target, against)}, ["margin", "alpha_1"])
        for together, single in zip(both, alone, strict=True):
            np.testing.assert_allclose(together[index : index + 1], single, rtol=1e-5, atol=1e-6)


# Heads by hand: the network puts out its weights, whatever the picture


def constant_scores(scores: Sequence[float], *tail: str) -> onnx.ModelProto:
    """A CNN whose output is `scores` for every picture but a trace of it, through the operators of `tail`."""
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "v", "scores"], ["z"]),
    ]
    last = "z"
    for index, op in enumerate(tail):
        nodes.append(helper.make_node(op, [last], [f"t{index}"]))
        last = f"t{index}"
    width = len(scores)
    constants = {
        "w": np.full((2, 1, 1, 1), 3e-8, np.float32),
        "v": noise(2, width).astype(np.float32),
        "scores": np.asarray(scores, np.float32),
    }
    return make_model(nodes, inputs={"image": ["N", 1, 4, 4]}, outputs={last: ["N", width]}, constants=constants)


def hand_card(classes: int, activation: Activation, *, positive: str = "") -> ModelCard:
    output = OutputSpec(activation, positive_label=positive)
    return ModelCard("hand", "1", tuple("abcd"[:classes]), InputSpec(4, 4, Channels.GRAY, scale=1.0), output=output)


LOG = np.log
HEADS = {
    # name: (scores, tail, activation, classes, probabilities, margins of class 0 against all, of 0 against 1)
    "softmax": ([LOG(2), LOG(1), LOG(1)], (), "softmax", 3, [0.5, 0.25, 0.25], LOG(2) - LOG(2), LOG(2)),
    "sigmoid": ([LOG(3), 0.0], (), "sigmoid", 2, [0.75, 0.5], LOG(3), LOG(3)),
    "single_logit": ([LOG(3)], (), "sigmoid", 2, [0.25, 0.75], -LOG(3), -LOG(3)),
    "softmax_inside": ([LOG(2), 0.0, 0.0], ("Softmax",), "none", 3, [0.5, 0.25, 0.25], 0.0, LOG(2)),
    "log_softmax": ([LOG(2), 0.0, 0.0], ("LogSoftmax",), "softmax", 3, [0.5, 0.25, 0.25], 0.0, LOG(2)),
    "sigmoid_inside": ([LOG(3), 0.0], ("Sigmoid",), "none", 2, [0.75, 0.5], LOG(3), LOG(3)),
    "one_sigmoid_inside": ([LOG(3)], ("Sigmoid",), "none", 2, [0.25, 0.75], -LOG(3), -LOG(3)),
    "bare_shares": ([0.5, 0.3, 0.2], (), "none", 3, [0.5, 0.3, 0.2], 0.0, LOG(0.5 / 0.3)),
    "bare_probabilities": ([0.75, 0.5], (), "none", 2, [0.75, 0.5], LOG(3), LOG(3)),
    "one_bare_probability": ([0.75], (), "none", 2, [0.25, 0.75], -LOG(3), -LOG(3)),
    "single_logit_of_the_first": ([LOG(3)], (), "sigmoid", 2, [0.75, 0.25], LOG(3), LOG(3)),
    "one_sigmoid_of_the_first": ([LOG(3)], ("Sigmoid",), "none", 2, [0.75, 0.25], LOG(3), LOG(3)),
    "one_bare_probability_of_the_first": ([0.75], (), "none", 2, [0.75, 0.25], LOG(3), LOG(3)),
    "one_label": ([LOG(3)], (), "sigmoid", 1, [0.75], LOG(3), None),
    "saturated": ([200.0, 0.0, -5.0], (), "softmax", 3, [1.0, 0.0, 0.0], 200 - LOG(1 + np.exp(-5)), 200.0),
}
POSITIVE = {
    name: "a" if name.endswith("of_the_first") else "b"
    for name, (scores, _, _, classes, *_) in HEADS.items()
    if len(scores) < classes
}


@pytest.mark.parametrize("name", HEADS)
def test_probabilities_and_margins_by_hand(name: str, tmp_path: Path) -> None:
    scores, tail, activation, classes, probabilities, alone, rival = HEADS[name]
    plan = plan_for(
        constant_scores(scores, *tail),
        hand_card(classes, Activation(activation), positive=POSITIVE.get(name, "")),
        tmp_path,
    )
    graph, reason = trace_graph(plan)
    picture = {"picture": np.ones((1, 1, 4, 4), np.float32)}

    found, margin = run(graph, picture | choice(0), ["probabilities", "margin"])

    assert reason == ""
    np.testing.assert_allclose(found, [probabilities], atol=1e-6)
    np.testing.assert_allclose(margin, [alone], atol=1e-5)
    np.testing.assert_allclose(run(predict_graph(plan), picture)[0], [probabilities], atol=1e-6)
    if rival is not None:
        np.testing.assert_allclose(run(graph, picture | choice(0, 1), ["margin"])[0], [rival], atol=1e-5)


def test_scores_that_keep_their_height_and_width_are_flattened(tmp_path: Path) -> None:
    """Fully convolutional heads put out (N, K, 1, 1)."""
    model = toy_model("squeezenet")
    flatten = model.graph.node[-1]
    assert flatten.op_type == "Flatten"
    flatten.op_type = "Identity"
    del flatten.attribute[:]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", 1, ["batch", 5, 1, 1]))
    plan = plan_for(model, toy_card("squeezenet"), tmp_path)
    flat = plan_for(toy_model("squeezenet"), toy_card("squeezenet"), tmp_path)
    feeds = {"picture": sample_pictures(toy_card("squeezenet"), 1, seed=2), **choice(3)}
    outputs = ["probabilities", "margin", "alpha_0", "alpha_2"]

    found, expected = (run(trace_graph(each)[0], feeds, outputs) for each in (plan, flat))

    for array, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("against", [-1, 1])
def test_the_slope_is_that_of_the_margin(name: str, against: int, tmp_path: Path) -> None:
    """The feature a_0 is raised in the chain's last graph; its alpha must foretell what the margin does."""
    scores, tail, activation, classes, *_ = HEADS[name]
    plan = plan_for(
        constant_scores(scores, *tail),
        hand_card(classes, Activation(activation), positive=POSITIVE.get(name, "")),
        tmp_path,
    )
    graph, _ = trace_graph(plan)
    (alpha,) = run(graph, {"picture": np.zeros((1, 1, 4, 4), np.float32), **choice(0, against)}, ["alpha_0"])
    feature = np.zeros((2, 1, 2, 4, 4), np.float32)
    feature[0, :, 0], feature[1, :, 0] = 0.01, -0.01
    above, below = (
        run(block_graphs(plan)[-1], {"feature_0": each, **choice(0, against)}, ["margin"])[0] for each in feature
    )

    np.testing.assert_allclose(alpha[0, 0], (above - below)[0] / 0.02, rtol=0.01, atol=2e-3)


# Masks


@pytest.fixture(scope="module")
def average(tmp_path_factory: pytest.TempPathFactory) -> Derivation:
    """A network whose logits are the mean of the scaled picture and its opposite; 6x4 pixels."""
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["z"]),
    ]
    constants = {"w": np.array([1.0, -1.0], np.float32).reshape(2, 1, 1, 1)}
    model = make_model(nodes, inputs={"image": ["N", 1, 6, 4]}, outputs={"z": ["N", 2]}, constants=constants)
    spec = InputSpec(6, 4, Channels.GRAY, scale=100.0, mean=(0.5,), std=(0.25,))
    card = ModelCard("average", "1", ("a", "b"), spec)
    return plan_for(model, card, tmp_path_factory.mktemp("average"))


def average_probability(picture: NDArray[np.float64]) -> float:
    mean = ((picture / 100 - 0.5) / 0.25).mean()
    return 1 / (1 + np.exp(-2 * mean))


def test_a_mask_by_hand(average: Derivation) -> None:
    """A map of one row and two columns over 4 columns: the mask is 0, 1/4, 3/4, 1 from left to right."""
    picture, baseline = np.full((1, 1, 6, 4), 80.0, np.float32), np.full((1, 1, 6, 4), 20.0, np.float32)
    maps = np.array([[[[3.0, 7.0]]]], np.float32)
    expected = np.broadcast_to(20 + 60 * np.array([0, 0.25, 0.75, 1]), (6, 4))

    probabilities, minimum, span = run(
        score_graph(average),
        {"picture": picture, "baseline": baseline, "image": ONE, "maps": maps},
        ["probabilities", "minimum", "span"],
    )

    np.testing.assert_allclose((minimum, span), ([3.0], [4.0]))
    np.testing.assert_allclose(probabilities[0, 0], average_probability(expected), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3, -7.77, 1e6, 1e-20])
def test_a_map_without_contrast_masks_everything(value: float, average: Derivation) -> None:
    """Span 0 and the bare baseline's score, never NaN, whatever rounding the resize leaves."""
    picture, baseline = np.full((1, 1, 6, 4), 80.0, np.float32), np.full((1, 1, 6, 4), 20.0, np.float32)
    maps = np.full((1, 1, 3, 3), value, np.float32)

    probabilities, span = run(
        score_graph(average),
        {"picture": picture, "baseline": baseline, "image": ONE, "maps": maps},
        ["probabilities", "span"],
    )

    assert span == 0.0
    np.testing.assert_allclose(probabilities[0, 0], average_probability(baseline.astype(float)), rtol=1e-6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    count=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
)
def test_the_score_graph_equals_numpy_masking(
    size: tuple[int, int], count: int, seed: int, scale: float, average: Derivation
) -> None:
    """Maps of any resolution and number, each of any of three pictures; the oracle is the pure arithmetic of maths."""
    rng = np.random.default_rng(seed)
    maps = (scale * rng.normal(size=(count, *size))).astype(np.float32)
    picture, baseline = rng.uniform(0, 255, (2, 3, 1, 6, 4)).astype(np.float32)
    image = rng.integers(0, 3, count)

    probabilities, minimum, span = run(
        score_graph(average),
        {"picture": picture, "baseline": baseline, "image": image, "maps": maps[:, None]},
        ["probabilities", "minimum", "span"],
    )

    masks, lowest, reach = attribution_masks(maps, (6, 4))
    np.testing.assert_allclose(minimum, lowest, atol=1e-5 * scale)
    np.testing.assert_allclose(span, reach, atol=1e-5 * scale)
    for index, mask in enumerate(masks.astype(np.float64)):
        masked = mask * picture[image[index], 0] + (1 - mask) * baseline[image[index], 0]
        np.testing.assert_allclose(probabilities[index, 0], average_probability(masked), rtol=1e-4, atol=1e-6)


# Form


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet", "shufflenet"])
def test_the_chain_of_cuts_is_the_whole_network(name: str, toy_plans) -> None:  # type: ignore[no-untyped-def]
    plan = toy_plans(name)
    trace, _ = trace_graph(plan)
    feeds = {"picture": sample_pictures(toy_card(name), 2, seed=4)} | {
        key: np.repeat(value, 2) for key, value in choice(2).items()
    }
    names = [f"feature_{index}" for index in range(len(plan.ends))]
    whole = dict(
        zip([*names, "probabilities", "margin"], run(trace, feeds, [*names, "probabilities", "margin"]), strict=True)
    )

    carried = feeds
    for graph in block_graphs(plan):
        inputs = [info.name for info in graph.graph.input]
        outputs = [info.name for info in graph.graph.output]
        found = run(
            graph,
            {
                key: {**feeds, **carried}[key].astype(np.int64 if key in ("target", "against") else np.float32)
                for key in inputs
            },
            outputs,
        )
        carried = dict(zip(outputs, found, strict=True))
        for key, array in carried.items():
            np.testing.assert_allclose(array, whole[key], atol=1e-5 * np.abs(whole[key]).max())
    assert carried.keys() == {"probabilities", "margin"}


def test_tensors_of_the_network_may_be_called_like_ours(tmp_path: Path) -> None:
    """An input called probabilities, an output called picture, a weight called maps: none collides."""
    nodes = [
        helper.make_node("Conv", ["probabilities", "maps"], ["feature_0"]),
        helper.make_node("GlobalAveragePool", ["feature_0"], ["margin"]),
        helper.make_node("Flatten", ["margin"], ["picture"]),
    ]
    constants = {"maps": noise(2, 1, 1, 1).astype(np.float32)}
    model = make_model(
        nodes, inputs={"probabilities": ["N", 1, 4, 4]}, outputs={"picture": ["N", 2]}, constants=constants
    )
    plan = plan_for(model, hand_card(2, Activation.SOFTMAX), tmp_path)

    for graph in (predict_graph(plan), trace_graph(plan)[0], score_graph(plan), *block_graphs(plan)):
        onnx.checker.check_model(graph, full_check=True)


def test_derived_graphs_tell_nothing_of_the_machine_they_were_made_on(tmp_path: Path) -> None:
    model = toy_model("gray")
    where = "/home/someone/train.py"
    model.doc_string = model.graph.doc_string = where
    model.metadata_props.add(key="path", value=where)
    for item in (*model.graph.node, *model.graph.initializer, *model.graph.input):
        item.doc_string = where
        item.metadata_props.add(key="stack_trace", value=where)

    plan = plan_for(model, toy_card("gray"), tmp_path)

    for graph in (predict_graph(plan), trace_graph(plan)[0], score_graph(plan), *block_graphs(plan)):
        assert where.encode() not in graph.SerializeToString()


def test_nothing_given_is_changed(toy_plans) -> None:  # type: ignore[no-untyped-def]
    plan = toy_plans("gray")
    before = plan.body.SerializeToString(deterministic=True), plan.network.model.SerializeToString(deterministic=True)

    for make in (predict_graph, trace_graph, score_graph, block_graphs):
        make(plan)

    after = plan.body.SerializeToString(deterministic=True), plan.network.model.SerializeToString(deterministic=True)
    assert after == before


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "single_logit"])
def test_behind_the_masks_every_tensor_has_as_many_rows_as_there_are_maps(name: str, tmp_path: Path) -> None:
    """A batch without a name is what makes ONNX Runtime copy where it could compute in place."""
    plan = plan_for(toy_model(name), toy_card(name), tmp_path)
    inferred = onnx.shape_inference.infer_shapes(score_graph(plan), data_prop=True).graph
    batches = {info.name: info.type.tensor_type.shape.dim[0].dim_param for info in inferred.value_info}
    assert {batches[f"net/{end.tensor}"] for end in plan.ends} == {"n"}
