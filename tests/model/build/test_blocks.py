"""Block finding: the families' block ends by value, every rule of method notes 1.3 on a graph one can see through."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from inspect_xai.errors import CardError, UnsupportedModelError
from inspect_xai.model.build.blocks import Blocks, find_blocks, give_twins
from inspect_xai.model.build.dataflow import cut_tensors, read_dataflow
from inspect_xai.model.build.load_onnx import load_model
from inspect_xai.model.build.normalize import Network, network_input, run_model, sample_pictures, working_form
from inspect_xai.records import Channels, InputSpec, Layout, ModelCard
from tests.support.toy_graphs import NHWC_ENDS, make_model, nhwc_model, noise, quantized
from tests.support.toys import TOYS, toy_model

DYNAMO = pytest.mark.slow  # the exporter takes seconds per network


def card_for(name: str) -> ModelCard:
    family = TOYS[name]
    depth, height, width = family.shape
    channels = Channels.GRAY if depth == 1 else Channels.RGB
    labels = tuple(f"label {index}" for index in range(max(2, family.classes)))
    spec = InputSpec(
        height, width, channels, scale=1.0 if family.pixels else 64.0, mean=(0.0 if family.pixels else 2.0,)
    )
    return ModelCard(name, "1", labels, spec)


def working(model: onnx.ModelProto, card: ModelCard, folder: Path, *, keep: Sequence[str] = ()) -> Network:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return working_form(load_model(path).model, card, keep=keep)


EXPORTS = [
    *(pytest.param(name, {"opset": 13, "dynamic_batch": False}, id=f"{name}-script-13-fixed") for name in TOYS),
    pytest.param("vgg_bn", {"fold": False}, id="vgg_bn-script-unfolded"),
    pytest.param("mobilenet_v3", {"fold": False, "opset": 9}, id="mobilenet_v3-script-9-unfolded"),
    *(pytest.param(name, {"exporter": "dynamo"}, id=f"{name}-dynamo", marks=DYNAMO) for name in TOYS),
    pytest.param("resnet18", {"exporter": "dynamo", "fold": False}, id="resnet18-dynamo-unfolded", marks=DYNAMO),
]


@pytest.mark.parametrize(("name", "options"), EXPORTS)
def test_the_block_ends_of_a_family_are_the_very_tensors_torch_computes(
    name: str, options: dict[str, object], tmp_path: Path
) -> None:
    """Whatever exporter, opset or batch axis: as many ends as the family has stages, equal in value."""
    card = card_for(name)
    network = working(toy_model(name, **options), card, tmp_path)

    found = find_blocks(network, scores=network.output, classes=TOYS[name].classes)

    picture = network_input(sample_pictures(card, 1, seed=5), card)
    expected = [tap.numpy() for tap in TOYS[name].make().taps(torch.from_numpy(picture))]
    arrays = run_model(network.model, {network.image: picture}, outputs=[end.tensor for end in found.ends])
    assert len(found.ends) == len(expected)
    for end, tap in zip(found.ends, expected, strict=True):
        assert (1, end.channels, end.height, end.width) == tap.shape
        np.testing.assert_allclose(arrays[end.tensor], tap, atol=1e-4 * np.abs(tap).max())
    assert found.cuts == {end.tensor for end in found.ends}
    assert network.dynamic_batch


@pytest.mark.data
@pytest.mark.parametrize(("name", "classes"), [("magnetic-tile", 6), ("ball-screw", 2)])
def test_efficientnet_lite0_gives_the_row_of_the_method_notes(
    name: str, classes: int, shared_dir: Path, tmp_path: Path
) -> None:
    card = ModelCard(name, "1", tuple("abcdef"[:classes]), InputSpec(224, 224, scale=1.0, mean=(127.0,), std=(128.0,)))
    model = load_model(shared_dir / "models" / f"{name}-efficientnet-lite0.onnx").model

    network = working_form(model, card)
    ends = find_blocks(network, scores=network.output, classes=classes).ends

    assert [(end.op, end.channels, end.height) for end in ends] == [
        ("Conv", 16, 112),
        ("Add", 24, 56),
        ("Add", 40, 28),
        ("Add", 112, 14),
        ("Clip", 1280, 7),
    ]
    assert [end.rule for end in ends] == ["before_expansion"] * 4 + ["last_cut_tensor"]


# Graphs one can see through


class Sketch:
    """A network written line by line: `sketch.conv("a", "b", 8, stride=2)` makes tensor b of tensor a."""

    def __init__(self, depth: int = 3) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.depth = {"image": depth}

    def conv(
        self, source: str, name: str, channels: int, *, stride: int = 1, kernel: int = 3, depthwise: bool = False
    ) -> str:
        before = self.depth[source]
        shape = (channels, 1 if depthwise else before, kernel, kernel)
        self.constants[f"{name}.w"] = 0.3 * noise(*shape, seed=len(self.nodes)).astype(np.float32)
        self.add(
            "Conv",
            [source, f"{name}.w"],
            name,
            pads=[kernel // 2] * 4,
            strides=[stride] * 2,
            group=before if depthwise else 1,
        )
        self.depth[name] = channels
        return name

    def add(self, op: str, sources: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, sources, [name], **attributes))
        self.depth[name] = self.depth[sources[0]]
        return name

    def constant(self, name: str, array: object, dtype: type = np.float32) -> str:
        self.constants[name] = np.asarray(array, dtype)
        return name

    def head(self, source: str, *, classes: int = 3) -> None:
        self.add("GlobalAveragePool", [source], "pooled")
        self.add("Flatten", ["pooled"], "flat")
        self.add("Gemm", ["flat", self.constant("head.w", noise(self.depth[source], classes))], "scores")

    def network(self, folder: Path, *, size: tuple[int, int] = (32, 32), classes: int = 3) -> Network:
        model = make_model(
            self.nodes,
            inputs={"image": ["N", self.depth["image"], *size]},
            outputs={"scores": ["N", classes]},
            constants=self.constants,
        )
        card = ModelCard("sketch", "1", ("a", "b", "c")[:classes], InputSpec(*size))
        return working(model, card, folder, keep=[name for name in self.depth if name not in ("image", "scores")])

    def blocks(self, folder: Path, *, classes: int = 3, **options: object) -> Blocks:
        network = self.network(folder, classes=classes)
        return find_blocks(network, scores="scores", classes=classes, **options)


def tensors(found: Blocks) -> list[str]:
    return [end.tensor for end in found.ends]


def rules(found: Blocks) -> list[str]:
    return [end.rule for end in found.ends]


def test_cut_tensors_are_those_every_path_runs_through(tmp_path: Path) -> None:
    """From image to a, b, c = b + a, d = c * c: b lies beside a shortcut, and parallel edges count once each."""
    sketch = Sketch()
    sketch.conv("image", "a", 4, stride=2)
    sketch.conv("a", "b", 4)
    sketch.add("Add", ["b", "a"], "c")
    sketch.add("Mul", ["c", "c"], "d")
    sketch.head("d")

    cuts = cut_tensors(read_dataflow(sketch.network(tmp_path), "scores"))

    assert cuts == ["image", "a", "c", "d", "pooled", "flat", "scores"]


def test_a_gate_drops_out(tmp_path: Path) -> None:
    """Squeeze-excite: the gate is longer than the trunk and still no cut."""
    sketch = Sketch()
    sketch.conv("image", "a", 4, stride=2)
    sketch.add("GlobalAveragePool", ["a"], "squeezed")
    sketch.conv("squeezed", "excited", 4, kernel=1)
    sketch.add("Sigmoid", ["excited"], "gate")
    sketch.add("Mul", ["a", "gate"], "b")
    sketch.head("b")

    assert tensors(sketch.blocks(tmp_path)) == ["b"]


def test_a_stage_ends_where_a_side_shrinks_by_half_not_by_padding(tmp_path: Path) -> None:
    """32 -> 30 without padding is one stage, 30 -> 15 the next; the paper's teaching code would miss 8 -> 4."""
    sketch = Sketch()
    sketch.conv("image", "a", 4)
    sketch.conv("a", "b", 4, kernel=1)
    sketch.nodes[0].attribute[1].ints[:] = [0] * 4
    for before, name in (("b", "c"), ("c", "d"), ("d", "e")):
        sketch.conv(before, name, 4, stride=2)
    sketch.head("e")

    found = sketch.blocks(tmp_path)

    assert [(end.tensor, end.height) for end in found.ends] == [("b", 30), ("c", 15), ("d", 8), ("e", 4)]


def test_a_stage_of_pools_alone_is_no_block(tmp_path: Path) -> None:
    """As in VGG: pool 8x8 and adaptive pool 8x8 behind the last convolution at 16x16."""
    sketch = Sketch()
    sketch.conv("image", "a", 4, stride=2)
    sketch.add("MaxPool", ["a"], "pool", kernel_shape=[2, 2], strides=[2, 2])
    sketch.add("AveragePool", ["pool"], "adaptive", kernel_shape=[1, 1])
    sketch.head("adaptive")

    assert tensors(sketch.blocks(tmp_path)) == ["a"]


def test_a_stage_whose_only_cut_is_a_pool_is_no_block(tmp_path: Path) -> None:
    """As in ShuffleNet: the stem's pool feeds two strided branches, of which one convolves at the pool's size."""
    sketch = Sketch()
    sketch.conv("image", "stem", 4, stride=2)
    sketch.add("MaxPool", ["stem"], "pool", kernel_shape=[2, 2], strides=[2, 2])
    sketch.conv("pool", "left", 4, stride=2)
    sketch.conv("pool", "inner", 4, kernel=1)
    sketch.conv("inner", "right", 4, stride=2)
    sketch.add("Concat", ["left", "right"], "both", axis=1)
    sketch.depth["both"] = 8
    sketch.head("both")

    found = sketch.blocks(tmp_path)

    assert tensors(found) == ["stem", "both"]
    assert rules(found) == ["last_cut_tensor"] * 2


def test_the_bare_picture_is_no_block(tmp_path: Path) -> None:
    """Arithmetic on the picture at full size, then a strided stem."""
    sketch = Sketch()
    sketch.add("Div", ["image", sketch.constant("scale", 2.0)], "scaled")
    sketch.conv("scaled", "a", 4, stride=2)
    sketch.head("a")

    assert tensors(sketch.blocks(tmp_path)) == ["a"]


def test_a_class_map_head_steps_back_to_the_features(tmp_path: Path) -> None:
    sketch = Sketch()
    sketch.conv("image", "a", 4, stride=2)
    sketch.conv("a", "features", 6, stride=2)
    sketch.conv("features", "class_map", 3, kernel=1)
    sketch.add("Relu", ["class_map"], "bent")
    sketch.add("GlobalAveragePool", ["bent"], "pooled")
    sketch.add("Flatten", ["pooled"], "scores")

    found = sketch.blocks(tmp_path)

    assert list(zip(tensors(found), rules(found), strict=True)) == [
        ("a", "last_cut_tensor"),
        ("features", "before_class_map"),
    ]


def test_a_class_map_made_of_the_picture_itself_stays(tmp_path: Path) -> None:
    """There is nothing to step back to: what lies before the first convolution is the picture."""
    sketch = Sketch()
    sketch.add("Div", ["image", sketch.constant("scale", 2.0)], "scaled")
    sketch.conv("scaled", "class_map", 3)
    sketch.add("GlobalAveragePool", ["class_map"], "pooled")
    sketch.add("Flatten", ["pooled"], "scores")

    assert tensors(sketch.blocks(tmp_path)) == ["class_map"]


def test_as_many_features_as_classes_before_a_linear_layer_are_no_class_map(tmp_path: Path) -> None:
    sketch = Sketch()
    sketch.conv("image", "a", 4, stride=2)
    sketch.conv("a", "b", 3)
    sketch.head("b")

    assert tensors(sketch.blocks(tmp_path)) == ["b"]


def mobile(*, act: str, residual: bool = False) -> Sketch:
    """Block output "out" 4, then expansion to 12, activation, strided depthwise convolution."""
    sketch = Sketch()
    sketch.conv("image", "stem", 4, stride=2)
    sketch.conv("stem", "out", 4, kernel=1)
    sketch.conv("out", "wide", 12, kernel=1)
    if act == "silu":
        sketch.add("Sigmoid", ["wide"], "gate")
        sketch.add("Mul", ["wide", "gate"], "bent")
    else:
        sketch.add(act, ["wide"], "bent")
    source = sketch.add("Add", ["bent", "wide"], "sum") if residual else "bent"
    sketch.conv(source, "deep", 12, stride=2, depthwise=True)
    sketch.conv("deep", "narrow", 6, kernel=1)
    sketch.head("narrow")
    return sketch


@pytest.mark.parametrize("act", ["Relu", "HardSwish", "silu"])
def test_before_a_strided_depthwise_convolution_the_expansion_is_stepped_over(act: str, tmp_path: Path) -> None:
    found = mobile(act=act).blocks(tmp_path)

    assert list(zip(tensors(found), rules(found), strict=True)) == [
        ("out", "before_expansion"),
        ("narrow", "last_cut_tensor"),
    ]


def test_a_shortcut_is_not_stepped_over(tmp_path: Path) -> None:
    assert tensors(mobile(act="Relu", residual=True).blocks(tmp_path)) == ["sum", "narrow"]


def test_an_ordinary_strided_convolution_leaves_the_wide_tensor(tmp_path: Path) -> None:
    sketch = Sketch()
    sketch.conv("image", "out", 4, stride=2)
    sketch.conv("out", "wide", 12, kernel=1)
    sketch.conv("wide", "deep", 6, stride=2)
    sketch.head("deep")

    assert tensors(sketch.blocks(tmp_path)) == ["wide", "deep"]


def test_a_padded_copy_stands_for_no_block(tmp_path: Path) -> None:
    """Reflection padding cannot be folded into the convolution: the tensor before it is the block's end."""
    sketch = Sketch()
    sketch.conv("image", "a", 4, stride=2)
    sketch.add("Pad", ["a", sketch.constant("pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)], "padded", mode="reflect")
    sketch.conv("padded", "b", 4, stride=2)
    sketch.head("b")

    assert tensors(sketch.blocks(tmp_path)) == ["a", "b"]


def test_without_a_cut_tensor_the_longest_path_stands_in(tmp_path: Path) -> None:
    """Two streams from the picture to the end: at 16 and 8 no tensor sees everything.

    image -+-> left (16) --------> left8 (8) -> left4 (4) --+
           +-> right (16) -> more (16) -> r8 (8) -> r4 (4) --+-> Add (4)
    """
    sketch = Sketch()
    sketch.conv("image", "left", 4, stride=2)
    sketch.conv("left", "left8", 4, stride=2)
    sketch.conv("left8", "left4", 4, stride=2)
    sketch.conv("image", "right", 4, stride=2)
    sketch.conv("right", "more", 4)
    sketch.conv("more", "r8", 4, stride=2)
    sketch.conv("r8", "r4", 4, stride=2)
    sketch.add("Add", ["left4", "r4"], "sum")
    sketch.head("sum")

    found = sketch.blocks(tmp_path)

    assert list(zip(tensors(found), rules(found), strict=True)) == [
        ("more", "fallback"),
        ("r8", "fallback"),
        ("sum", "last_cut_tensor"),
    ]
    assert found.cuts == {"sum"}


def test_one_block_is_noted(tmp_path: Path) -> None:
    sketch = Sketch()
    sketch.conv("image", "a", 4, stride=2)
    sketch.head("a")

    assert sketch.blocks(tmp_path).notes == ("single_block",)


def test_given_ends_are_taken_in_the_order_of_the_network(tmp_path: Path) -> None:
    sketch = mobile(act="Relu")

    found = sketch.blocks(tmp_path, given=["deep", "stem"])

    assert list(zip(tensors(found), rules(found), strict=True)) == [("stem", "given"), ("deep", "given")]


@pytest.mark.parametrize(
    ("name", "words"),
    [("pooled", r"of shape \[1, 6, 1, 1\]"), ("image", r"of shape \[1, 3, 32, 32\]"), ("nowhere", "not on the way")],
)
def test_a_given_end_must_be_a_feature_map(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(CardError, match=words):
        mobile(act="Relu").blocks(tmp_path, given=[name])


def attention(sketch: Sketch, source: str, side: int) -> None:
    """Self-attention over positions, as transformers write it, then the head."""
    channels = sketch.depth[source]
    sketch.add("Reshape", [source, sketch.constant("tokens", [1, channels, side * side], np.int64)], "columns")
    sketch.add("Transpose", ["columns"], "rows", perm=[0, 2, 1])
    sketch.add("MatMul", ["rows", "columns"], "alike")
    sketch.add("Softmax", ["alike"], "weights", axis=-1)
    sketch.add("MatMul", ["weights", "rows"], "mixed")
    sketch.add("ReduceMean", ["mixed", sketch.constant("axes", [1], np.int64)], "flat", keepdims=0)
    sketch.add("Gemm", ["flat", sketch.constant("head.w", noise(channels, 3))], "scores")


def test_a_transformer_is_refused(tmp_path: Path) -> None:
    """One patch embedding, then attention."""
    sketch = Sketch()
    sketch.conv("image", "patches", 6, stride=8)
    attention(sketch, "patches", 4)

    with pytest.raises(UnsupportedModelError, match="transformer"):
        sketch.blocks(tmp_path)


def test_a_cnn_with_attention_at_its_end_is_explained_and_noted(tmp_path: Path) -> None:
    sketch = Sketch()
    sketch.conv("image", "a", 4, stride=2)
    sketch.conv("a", "b", 6, stride=4)
    attention(sketch, "b", 4)

    found = sketch.blocks(tmp_path)

    assert tensors(found) == ["a", "b"]
    assert found.notes == ("attention_behind_the_last_block",)


def test_a_network_without_convolution_is_refused(tmp_path: Path) -> None:
    sketch = Sketch()
    sketch.add("Flatten", ["image"], "flat")
    sketch.add("Gemm", ["flat", sketch.constant("w", noise(3 * 32 * 32, 3))], "scores")

    with pytest.raises(UnsupportedModelError, match="no convolution"):
        sketch.blocks(tmp_path)


# Channels last, and quantized


def test_channels_last_ends_get_a_channels_first_twin(tmp_path: Path) -> None:
    """The twins hold what the network holds, turned, and the scores stay the same."""
    card = ModelCard("nhwc", "1", tuple("abcde"), InputSpec(64, 64, layout=Layout.NHWC))
    network = working(nhwc_model(), card, tmp_path, keep=NHWC_ENDS)

    found = find_blocks(network, scores=network.output, classes=5)
    turned = give_twins(network, found.turned)

    assert [(end.channels, end.height) for end in found.ends] == [(6, 32), (8, 16), (12, 8)]
    assert found.turned
    feeds = {network.image: network_input(sample_pictures(card, 2, seed=3), card)}
    before = run_model(network.model, feeds, outputs=[*NHWC_ENDS, network.output])
    after = run_model(turned.model, feeds, outputs=[*tensors(found), network.output])
    for end, name in zip(found.ends, NHWC_ENDS, strict=True):
        np.testing.assert_array_equal(after[end.tensor], before[name].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(after[network.output], before[network.output])


def test_a_quantized_network_has_the_blocks_of_its_float_twin(tmp_path: Path) -> None:
    card = card_for("mobilenet_v2")
    pictures = network_input(sample_pictures(card, 4, seed=1), card)
    network = working(quantized(toy_model("mobilenet_v2"), pictures), card, tmp_path)

    ends = find_blocks(network, scores=network.output, classes=5).ends

    assert [(end.channels, end.height, end.rule) for end in ends] == [
        (6, 32, "before_expansion"),
        (8, 16, "before_expansion"),
        (10, 8, "before_expansion"),
        (24, 4, "last_cut_tensor"),
    ]
