"""The gradient graph of whole networks against torch autograd in float64."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from inspect_xai.model.autodiff.backward import differentiate
from tests.support.torch_graph import TorchGraph
from tests.support.toy_graphs import NHWC_ENDS, nhwc_model, noise, quantized, run, with_outputs
from tests.support.toys import TOYS, toy_model


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def gradient_model(
    model: onnx.ModelProto, wrt: dict[str, Sequence[int]], *, classes: int, batch: int | str = "batch"
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The network with a further input "seed", the cotangent of its output, and gradients as further outputs."""
    logits = model.graph.output[0].name
    model.graph.input.append(helper.make_tensor_value_info("seed", TensorProto.FLOAT, [batch, classes]))
    differentiated, names = differentiate(model, seeds={logits: "seed"}, wrt=list(wrt))
    return with_outputs(differentiated, {names[tensor]: [batch, *shape] for tensor, shape in wrt.items()}), names


def folded(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model with its shape arithmetic done, as bundles are built from."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def check_network(name: str, model: onnx.ModelProto, *, batch: int = 2) -> None:
    """Gradients to all block ends, each picture of the batch with a seed of its own, against float64 autograd.

    A Relu input within rounding of its kink makes any float32 gradient differ: other pictures are tried then.
    """
    family = TOYS[name]
    toy = family.make().double()
    shapes = [tap.shape[1:] for tap in toy.taps(family.pictures(1, seed=0).double())]
    wrt = {f"tap_{k}": shape for k, shape in enumerate(shapes)}
    open_size = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    differentiated, names = gradient_model(model, wrt, classes=family.classes, batch=open_size or batch)
    worst = []
    for trial in range(3):
        pictures = family.pictures(batch, seed=trial)
        seeds = torch.randn(batch, family.classes, generator=torch.Generator().manual_seed(trial))
        taps = toy.taps(pictures.double().requires_grad_())
        exact = torch.autograd.grad((toy.head(taps[-1]) * seeds).sum(), taps)
        found = run(differentiated, {"input": pictures.numpy(), "seed": seeds.numpy()})
        errors = [disagreement(found[names[t]], e.numpy()) for t, e in zip(wrt, exact, strict=True)]
        worst.append(max(errors))
        if worst[-1] <= 1e-4:
            return
    pytest.fail(f"relative errors of three batches: {worst}")


def disagreement(found: np.ndarray, exact: np.ndarray) -> float:
    """The larger relative error of gradient and alpha; infinite where another set of channels would be selected."""
    alpha, exact_alpha = found.sum(axis=(2, 3)), exact.sum(axis=(2, 3))
    clear = np.abs(exact_alpha) > 1e-5 * np.abs(exact_alpha).max()
    if not np.array_equal(alpha[clear] > 0, exact_alpha[clear] > 0):
        return float("inf")
    return max(relative_error(found, exact), relative_error(alpha, exact_alpha))


@pytest.mark.parametrize("name", [name for name in TOYS if name != "shufflenet"])
def test_a_network_from_the_older_exporter_agrees_with_autograd(name: str) -> None:
    check_network(name, toy_model(name, taps=True))


def test_shape_arithmetic_is_no_hindrance_once_it_is_folded(tmp_path: Path) -> None:
    model = toy_model("shufflenet", taps=True, dynamic_batch=False)
    check_network("shufflenet", folded(model, tmp_path / "folded.onnx"), batch=1)


@pytest.mark.parametrize("name", ["vgg_bn", "resnet18", "densenet", "mobilenet_v3"])
def test_batch_norm_need_not_be_folded(name: str) -> None:
    model = toy_model(name, taps=True, fold=False)
    assert any(node.op_type == "BatchNormalization" for node in model.graph.node)
    check_network(name, model)


def newer_exports() -> list[Any]:
    """Every toy, some at later opsets too; one in the quick suite, as this exporter takes seconds for each."""
    later = itertools.product(("convnext", "densenet", "mobilenet_v3", "shufflenet"), (20, 21, 23))
    exports = [*((name, 18) for name in TOYS), *later]
    return [pytest.param(*export, marks=() if export == ("shufflenet", 21) else pytest.mark.slow) for export in exports]


@pytest.mark.parametrize(("name", "opset"), newer_exports())
def test_a_network_from_the_newer_exporter_agrees_with_autograd(name: str, opset: int) -> None:
    # of a channels-last mean with an open batch torch 2.13 makes as_strided, i.e. Gather by indices computed on the way
    batch = 1 if name == "convnext" else 2
    model = toy_model(name, taps=True, exporter="dynamo", opset=opset, dynamic_batch=batch == 2)
    check_network(name, model, batch=batch)


def test_every_picture_of_a_batch_has_the_gradient_it_has_alone() -> None:
    family = TOYS["googlenet"]
    wrt = {"tap_1": (10, 16, 16)}
    model, names = gradient_model(toy_model("googlenet", taps=True), wrt, classes=family.classes)
    pictures = family.pictures(3, seed=1).numpy()
    seeds = np.random.default_rng(0).standard_normal((3, family.classes)).astype(np.float32)

    together = run(model, {"input": pictures, "seed": seeds})[names["tap_1"]]

    for k in range(3):
        alone = run(model, {"input": pictures[k : k + 1], "seed": seeds[k : k + 1]})[names["tap_1"]]
        np.testing.assert_allclose(together[k : k + 1], alone, rtol=1e-4, atol=1e-6 * np.abs(alone).max())


@pytest.mark.parametrize("softmax", [False, True])
def test_a_channels_last_graph_has_channels_last_gradients(softmax: bool) -> None:
    model = nhwc_model(softmax=softmax)
    oracle = TorchGraph(model)
    wrt = {NHWC_ENDS[0]: (32, 32, 6), NHWC_ENDS[1]: (16, 16, 8), NHWC_ENDS[2]: (8, 8, 12)}
    differentiated, names = gradient_model(model, wrt, classes=5, batch="unk__1")
    pictures, seeds = noise(2, 64, 64, 3).astype(np.float32), noise(2, 5).astype(np.float32)

    found = run(differentiated, {"input:0": pictures, "seed": seeds})

    output = oracle(**{"input:0": torch.tensor(pictures).double().requires_grad_()})
    exact = torch.autograd.grad((output * torch.tensor(seeds)).sum(), [oracle.values[name] for name in wrt])
    for tensor, gradient in zip(wrt, exact, strict=True):
        assert relative_error(found[names[tensor]], gradient.numpy()) < 1e-5


def test_a_quantized_network_has_nearly_the_gradients_of_its_float_twin() -> None:
    family = TOYS["mobilenet_v2"]
    pictures, seeds = family.pictures(2, seed=1).numpy(), noise(2, 5).astype(np.float32)
    wrt = {"tap_3": (24, 4, 4)}
    gradients = []
    for model in (toy_model("mobilenet_v2", taps=True), None):
        model = model or quantized(toy_model("mobilenet_v2", taps=True), family.pictures(16, seed=2).numpy())
        differentiated, names = gradient_model(model, wrt, classes=5)
        gradients.append(run(differentiated, {"input": pictures, "seed": seeds})[names["tap_3"]].ravel())

    assert np.corrcoef(*gradients)[0, 1] > 0.99


def real_picture(shared_dir: Path, task: str, *, index: int) -> np.ndarray:
    """The middle of a picture as the trained networks take it: (3, 224, 224) float32."""
    path = sorted((shared_dir / "data" / task).rglob("*.jpg"))[7 * index]
    picture = cv2.imread(str(path)).astype(np.float32)
    grown = np.pad(picture, [(max(0, 112 - size // 2 + 1),) * 2 for size in picture.shape[:2]] + [(0, 0)], "reflect")
    top, left = (grown.shape[0] - 224) // 2, (grown.shape[1] - 224) // 2
    return (grown[top : top + 224, left : left + 224].transpose(2, 0, 1) - 127) / 128


@pytest.mark.data
@pytest.mark.parametrize("task", ["magnetic-tile", "ball-screw"])
def test_a_trained_network_agrees_with_autograd(task: str, shared_dir: Path) -> None:
    model = onnx.load(shared_dir / "models" / f"{task}-efficientnet-lite0.onnx")
    oracle, picture = TorchGraph(model), real_picture(shared_dir, task, index=3)[None]
    logits = oracle(input=torch.tensor(picture).double())
    seed = noise(*logits.shape).astype(np.float32)
    shapes = {node.output[0]: tuple(oracle.values[node.output[0]].shape[1:]) for node in model.graph.node}
    ends = {name: shape for name, shape in shapes.items() if len(shape) == 3 and shape[1] > 1}
    wrt = {name: ends[name] for name in list(ends)[5::12]}  # shallow to deep, seven of some ninety
    differentiated, names = gradient_model(model, wrt, classes=logits.shape[1])
    clips = {node.output[0] for node in model.graph.node if node.op_type == "Clip"}
    watched = with_outputs(differentiated, {name: ["batch", *shapes[name]] for name in clips})

    found = run(watched, {"input": picture, "seed": seed})

    oracle.gated = {name: found[name] for name in clips}
    output = oracle(input=torch.tensor(picture).double().requires_grad_())
    exact = torch.autograd.grad((output * torch.tensor(seed)).sum(), [oracle.values[name] for name in wrt])
    for tensor, gradient in zip(wrt, exact, strict=True):
        assert disagreement(found[names[tensor]], gradient.numpy()) < 1e-5, tensor


@pytest.mark.data
def test_alphas_of_a_trained_network_are_difference_quotients_of_its_tail(shared_dir: Path) -> None:
    model = onnx.load(shared_dir / "models" / "magnetic-tile-efficientnet-lite0.onnx")
    oracle = TorchGraph(model)
    picture = real_picture(shared_dir, "magnetic-tile", index=3)[None]
    oracle(input=torch.tensor(picture).double())
    ends = {name: oracle.values[name] for name in ("add_530", "hardtanh_32")}  # 112@14 and 1280@7
    seed = np.float32([[1, -1, 0, 0.5, 0, 0]])
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in ends.items()}
    differentiated, names = gradient_model(model, shapes, classes=6)

    found = run(differentiated, {"input": picture, "seed": seed})

    for name, tensor in ends.items():
        alpha = found[names[name]].sum(axis=(2, 3))[0]
        for channel in range(0, tensor.shape[1], tensor.shape[1] // 8):
            raised = torch.zeros_like(tensor)
            raised[:, channel] = 1e-6
            ahead, behind = (oracle(**{name: tensor + sign * raised}) for sign in (1, -1))
            quotient = float(((ahead - behind) * torch.tensor(seed)).sum()) / 2e-6
            assert alpha[channel] == pytest.approx(quotient, rel=1e-4, abs=float(1e-4 * np.abs(alpha).max()))
