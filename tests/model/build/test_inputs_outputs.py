"""What stands around a network in real exports: each is proven, judges and explains as the same network without it."""

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from inspect_xai.errors import CardError, UnsupportedModelError
from inspect_xai.records import Activation, Channels, Explanation, Layout, ModelCard, OutputSpec
from tests.support.odd_bundles import NAMES, SIDE, built, card, explained

FLOAT, BOOL, INT64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
RAW = {"scale": 1.0}  # pixels as they are
NONE = OutputSpec(Activation.NONE)


def node(op: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def weights(depth: int = 3, classes: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "w1": rng.normal(0, 0.35, (8, depth, 3, 3)),
        "b1": np.full(8, 0.05),
        "w2": rng.normal(0, 0.2, (16, 8, 3, 3)),
        "b2": np.full(16, 0.05),
        "w3": rng.normal(0, 0.5, (16, classes)),
        "b3": np.zeros(classes),
    }


def body(picture: str = "x") -> list[onnx.NodeProto]:
    """Conv, Relu "r1" 8@32, pool, Conv, Relu "r2" 16@16, pool "g" (N, 16, 1, 1), Gemm "logits" (N, 2)."""
    return [
        node("Conv", f"{picture} w1 b1", "c1", pads=[1] * 4),
        node("Relu", "c1", "r1"),
        node("MaxPool", "r1", "p1", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p1 w2 b2", "c2", pads=[1] * 4),
        node("Relu", "c2", "r2"),
        node("GlobalAveragePool", "r2", "g"),
        node("Flatten", "g", "flat"),
        node("Gemm", "flat w3 b3", "logits"),
    ]


def info(name: str, shape: Sequence[int | str] | None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


X, LOGITS = info("x", ["N", 3, SIDE, SIDE]), info("logits", ["N", 2])


def model(
    nodes: Sequence[onnx.NodeProto] = (),
    inputs: Sequence[onnx.ValueInfoProto] = (X,),
    outputs: Sequence[onnx.ValueInfoProto] = (LOGITS,),
    *,
    kind: type = np.float32,
    opset: int = 13,
    depth: int = 3,
    classes: int = 2,
    **more: np.ndarray,
) -> onnx.ModelProto:
    """A network; weights are of type `kind`, `more` constants as they come."""
    constants = {name: array.astype(kind) for name, array in weights(depth, classes).items()} | more
    graph = helper.make_graph(
        list(nodes) or body(),
        "odd",
        list(inputs),
        list(outputs),
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@functools.cache
def plain(*, depth: int = 3, classes: int = 2, half: bool = False) -> Explanation:
    """What the network says without anything odd about it; `half`: with weights rounded to half precision."""
    rounded = (
        {name: array.astype(np.float16).astype(np.float32) for name, array in weights(depth, classes).items()}
        if half
        else {}
    )
    shape = ["N", depth, SIDE, SIDE]
    given = model(inputs=[info("x", shape)], outputs=[info("logits", ["N", classes])], depth=depth, classes=classes)
    for tensor in given.graph.initializer:
        if tensor.name in rounded:
            tensor.CopyFrom(numpy_helper.from_array(rounded[tensor.name], tensor.name))
    spec = {"channels": Channels.GRAY} if depth == 1 else {}
    output = OutputSpec(Activation.SIGMOID, positive_label=list(NAMES)[1]) if classes == 1 else OutputSpec()
    with tempfile.TemporaryDirectory() as folder:
        return explained(built(given, card(output, **spec), Path(folder)))


@dataclass(frozen=True, slots=True)
class Odd:
    """A network with something odd about it, its card, and what it must agree with."""

    make: Callable[[], onnx.ModelProto]
    card: ModelCard
    same_as: Callable[[], Explanation] = plain


def free_axes(*sizes: int) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        given = model()
        for axis, size in zip(given.graph.input[0].type.tensor_type.shape.dim, sizes, strict=True):
            axis.Clear()
            axis.dim_value = size
        given.graph.output[0].type.tensor_type.shape.dim[0].dim_value = sizes[0]
        return given

    return make


SOFTMAX = node("Softmax", "logits", "p", axis=1)
LABEL = node("ArgMax", "p", "label", axis=1, keepdims=0)
ZIPPED = helper.make_node("ZipMap", ["p"], ["z"], domain="ai.onnx.ml", classlabels_strings=list(NAMES))
MAP_OF_NAMES = helper.make_value_info(
    "z",
    helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(FLOAT, []))
    ),
)
LOOKED_UP = helper.make_node("ArrayFeatureExtractor", ["names", "label"], ["name"], domain="ai.onnx.ml")
EMBEDDING = info("flat", ["N", 16])


def custom_vision() -> onnx.ModelProto:
    """Azure Custom Vision: ImageScaler in front, a table of probabilities and the name of the best class behind."""
    scaled = node("ImageScaler", "data", "x", bias=[0.0, 0.0, 0.0], scale=1.0)
    given = model(
        [scaled, *body(), SOFTMAX, LABEL, ZIPPED, LOOKED_UP],
        [info("data", [1, 3, SIDE, SIDE])],
        [MAP_OF_NAMES, info("name", [1], TensorProto.STRING)],
        opset=7,
    )
    given.graph.initializer.append(helper.make_tensor("names", TensorProto.STRING, [2], [b"bad", b"good"]))
    given.ir_version = 3
    given.graph.input.extend(info(tensor.name, tensor.dims, tensor.data_type) for tensor in given.graph.initializer)
    return given


def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, [], [info(nodes[-1].output[0], None)])


def squeeze_if_one() -> onnx.ModelProto:
    """As torch writes squeeze(3): If(shape[3] == 1) Squeeze else Identity; in it another."""
    deeper = helper.make_node(
        "If",
        ["c"],
        ["s"],
        then_branch=branch("t", node("Squeeze", "g axis", "t1")),
        else_branch=branch("e", node("Identity", "g", "t1")),
    )
    return model(
        [
            *body()[:-2],
            node("Shape", "g", "shape"),
            node("Gather", "shape three", "last", axis=0),
            node("Equal", "last one", "c"),
            helper.make_node(
                "If",
                ["c"],
                ["squeezed"],
                then_branch=branch("then", deeper),
                else_branch=branch("else", node("Identity", "g", "t2")),
            ),
            node("Flatten", "squeezed", "flat"),
            node("Gemm", "flat w3 b3", "logits"),
        ],
        axis=np.array([3]),
        three=np.array([3]),
        one=np.array([1]),
    )


def trained_or_used() -> onnx.ModelProto:
    """Keras of old: another input says whether the network is in training, which is then noise on the features."""
    noisy = branch("train", node("Mul", "r2 zero", "t1"))
    used = branch("use", node("Identity", "r2", "t2"))
    nodes = body()
    nodes[5].input[0] = "chosen"
    switch = helper.make_node("If", ["keras_learning_phase"], ["chosen"], then_branch=noisy, else_branch=used)
    return model([*nodes[:5], switch, *nodes[5:]], [X, info("keras_learning_phase", [], BOOL)], zero=np.float32(0))


def half(*, ends_too: bool) -> onnx.ModelProto:
    """In half precision, inside only or from end to end."""
    kind = TensorProto.FLOAT16
    if ends_too:
        return model((), [info("x", ["N", 3, SIDE, SIDE], kind)], [info("logits", ["N", 2], kind)], kind=np.float16)
    nodes = body("xh")
    nodes[-1].output[0] = "lh"
    cast = [node("Cast", "x", "xh", to=kind), *nodes, node("Cast", "lh", "logits", to=FLOAT)]
    return model(cast, kind=np.float16)


def of_rows(*, turned: bool) -> onnx.ModelProto:
    """Takes a row of numbers and makes a picture of it itself, channels first or last."""
    shape = np.array([-1, SIDE, SIDE, 3] if turned else [-1, 3, SIDE, SIDE])
    first = [node("Reshape", "row shape", "v" if turned else "x")]
    first += [node("Transpose", "v", "x", perm=[0, 3, 1, 2])] if turned else []
    return model([*first, *body()], [info("row", ["N", 3 * SIDE**2])], shape=shape)


def of_bytes(*, exact: bool) -> onnx.ModelProto:
    """Takes UINT8; `exact`: computes with it before it makes floats of it, so that only whole numbers can go in."""
    image = info("image", ["N", 3, SIDE, SIDE], TensorProto.UINT8)
    if exact:
        first = node("DequantizeLinear", "image scale zero", "x")
        return model([first, *body()], [image], scale=np.float32(1 / 255), zero=np.uint8(0))
    first = [node("Cast", "image", "pixels", to=FLOAT), node("Div", "pixels most", "x")]
    return model([*first, *body()], [image], most=np.float32(255))


def of_planes() -> onnx.ModelProto:
    first = node("Unsqueeze", "plane axis", "x")
    return model([first, *body()], [info("plane", ["N", SIDE, SIDE])], depth=1, axis=np.array([1]))


def one_score() -> onnx.ModelProto:
    """One probability for each picture, of shape (N,)."""
    last = [node("Sigmoid", "logits", "p"), node("Squeeze", "p axis", "score")]
    return model([*body(), *last], outputs=[info("score", ["N"])], classes=1, axis=np.array([1]))


TABLE_AND_LABEL = [MAP_OF_NAMES, info("label", ["N"], INT64)]
ODD = {
    "batch of -1": Odd(free_axes(-1, 3, SIDE, SIDE), card()),
    "batch and picture of -1": Odd(free_axes(-1, 3, -1, -1), card()),
    "batch of 0": Odd(free_axes(0, 3, SIDE, SIDE), card()),
    "scores beside an embedding": Odd(lambda: model(outputs=[EMBEDDING, LOGITS]), card()),
    "scores beside probabilities": Odd(
        lambda: model([*body(), SOFTMAX], outputs=[info("p", ["N", 2]), LOGITS]), card(OutputSpec(name="logits"))
    ),
    "label beside probabilities": Odd(
        lambda: model([*body(), SOFTMAX, LABEL], outputs=[info("label", ["N"], INT64), info("p", ["N", 2])]), card(NONE)
    ),
    "label only": Odd(
        lambda: model([*body(), SOFTMAX, LABEL], outputs=[info("label", ["N"], INT64)]), card(OutputSpec(name="logits"))
    ),
    "ZipMap": Odd(
        lambda: model([*body(), SOFTMAX, LABEL, ZIPPED], outputs=TABLE_AND_LABEL), card(replace(NONE, name="p"))
    ),
    "Custom Vision": Odd(custom_vision, card(OutputSpec(name="logits"))),
    "one score, (N,)": Odd(one_score, card(replace(NONE, positive_label=list(NAMES)[1])), lambda: plain(classes=1)),
    "UINT8 made float at once": Odd(lambda: of_bytes(exact=False), card(**RAW)),
    "UINT8 computed with": Odd(lambda: of_bytes(exact=True), card(**RAW)),
    "(N, H, W)": Odd(of_planes, card(channels=Channels.GRAY), lambda: plain(depth=1)),
    "a row of numbers": Odd(lambda: of_rows(turned=False), card()),
    "a row of numbers, channels last": Odd(lambda: of_rows(turned=True), card(layout=Layout.NHWC)),
    "an If about sizes": Odd(squeeze_if_one, card()),
    "a training switch": Odd(trained_or_used, card()),
    "a training switch nobody reads": Odd(lambda: model(inputs=[X, info("phase", [], BOOL)]), card()),
    "half precision inside": Odd(lambda: half(ends_too=False), card(), lambda: plain(half=True)),
    "half precision": Odd(lambda: half(ends_too=True), card(), lambda: plain(half=True)),
}


@pytest.mark.parametrize("name", ODD)
def test_a_network_explains_as_it_does_without_what_is_odd(name: str, tmp_path: Path) -> None:
    odd = ODD[name]
    given = odd.make()

    bundle = built(given, odd.card, tmp_path)
    found, expected = explained(bundle), odd.same_as()

    assert (bundle.folder / "model.onnx").read_bytes() == given.SerializeToString(), "the file deployed"
    # Where only whole numbers go in, masked pixels are rounded: by at most half of a 255th.
    close = 2e-3 if name == "UINT8 computed with" else 1e-5
    np.testing.assert_allclose(found.prediction.scores, expected.prediction.scores, atol=1e-5)
    assert expected.fused.max() > 0.5
    np.testing.assert_allclose(found.fused, expected.fused, atol=close * expected.fused.max())
    assert bundle.dynamic_batch


@pytest.mark.parametrize("activation", [Activation.NONE, Activation.SIGMOID])
def test_a_single_score_may_be_that_of_either_label(activation: Activation, tmp_path: Path) -> None:
    given = one_score() if activation is Activation.NONE else model(outputs=[info("logits", ["N", 1])], classes=1)
    said = []
    for label in NAMES:
        (tmp_path / label).mkdir()
        bundle = built(given, card(OutputSpec(activation, positive_label=label)), tmp_path / label)
        said.append(list(explained(bundle).prediction.scores))
    first, second = said
    assert first == pytest.approx(second[::-1], abs=1e-6)
    assert first != pytest.approx(second, abs=0.01)


def test_a_bound_for_half_precision_follows_from_its_roundings(tmp_path: Path) -> None:
    """Eight operators, each off by up to 2^-11: 4 x 2^-11 x sqrt(8), and no more than for float elsewhere."""
    bundle = built(half(ends_too=True), card(), tmp_path)

    bounds = bundle.manifest["proof_bounds"]
    assert bounds["network_as_given"] == pytest.approx(4 * 2.0**-11 * np.sqrt(8))
    assert bounds["masking"] == bounds["batch_of_two"] == 1e-4
    assert bundle.manifest["proofs"]["gradient_deepest_block"] < 0.001, "computed in single precision"


MISTAKES = {
    'write [output] name = "logits" or [output] name = "p" in the card': (
        lambda: model([*body(), SOFTMAX], outputs=[LOGITS, info("p", ["N", 2])]),
        card(),
    ),
    "outputs are z (sequence), label (INT64 [N])": (
        lambda: model([*body(), SOFTMAX, LABEL, ZIPPED], outputs=TABLE_AND_LABEL),
        card(NONE),
    ),
    'write [output] name = "p" in the card': (
        lambda: model([*body(), SOFTMAX, LABEL, ZIPPED], outputs=TABLE_AND_LABEL),
        card(NONE),
    ),
    "output.name: found 'logit', which no node of the network makes": (model, card(OutputSpec(name="logit"))),
    "did you mean 'logits'": (model, card(OutputSpec(name="logit"))),
    "takes whole numbers from 0 to 255 (UINT8), scale, mean and std of the card make 0 to 1 of pixels": (
        lambda: of_bytes(exact=False),
        card(),
    ),
    "has shape ['?', 3072], the card says ['?', 1, 32, 32]": (
        lambda: of_rows(turned=False),
        card(channels=Channels.GRAY),
    ),
    "has shape ['?', 32, 32], the card says ['?', 3, 32, 32]": (of_planes, card()),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_card_that_does_not_fit_is_told_what_to_write(words: str, tmp_path: Path) -> None:
    make, of = MISTAKES[words]

    with pytest.raises(CardError) as caught:
        built(make(), of, tmp_path)

    assert words in str(caught.value)


def test_a_label_as_the_only_output_names_the_scores_in_front_of_it(tmp_path: Path) -> None:
    given = model([*body(), SOFTMAX, LABEL], outputs=[info("label", ["N"], INT64)])

    with pytest.raises(UnsupportedModelError, match=r'write \[output\] name = "p" in the card'):
        built(given, card(), tmp_path)


@pytest.mark.parametrize("how", ["constant weights", "nothing of the picture is left"])
def test_a_network_that_does_not_see_its_input_is_refused(how: str, tmp_path: Path) -> None:
    given, of = model(), card()
    if how == "constant weights":
        for tensor in given.graph.initializer:
            if tensor.name == "w3":
                tensor.CopyFrom(numpy_helper.from_array(np.zeros((16, 2), np.float32), "w3"))
    else:
        of = card(scale=1e6, std=(1e6,))

    with pytest.raises(UnsupportedModelError, match=r"output does not depend on its input: .*scale, mean and std"):
        built(given, of, tmp_path)
