"""A classifier that shows no feature maps is explained by what it says of masked pictures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from typer.testing import CliRunner

from inspect_xai.cli import app
from inspect_xai.errors import UnsupportedModelError
from inspect_xai.explain.explainer import Explainer
from inspect_xai.model.build.build import build_bundle, check_bundle
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.model.engine import Engine
from inspect_xai.records import Explanation, Method, ModelCard, Status
from tests.support.odd_bundles import SIDE, built, card
from tests.support.toy_graphs import make_model
from tests.support.toy_runtime import residual_network

PATCH = (slice(8, 16), slice(16, 24))  # rows and columns that the perceptron looks at


def perceptron() -> onnx.ModelProto:
    """Adds up the first channel in `PATCH`, and a Relu; the more, the more "bad": no convolution anywhere."""
    looked_at = np.zeros((3, SIDE, SIDE), np.float32)
    looked_at[0][PATCH] = 1 / 64
    nodes = [
        helper.make_node("Flatten", ["x"], ["row"]),
        helper.make_node("Gemm", ["row", "first"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["seen"]),
        helper.make_node("Gemm", ["seen", "second", "bias"], ["z"]),
    ]
    constants = {
        "first": looked_at.reshape(-1, 1),
        "second": np.array([[4.0, -4.0]], np.float32),
        "bias": np.array([-2.0, 2.0], np.float32),
    }
    return make_model(nodes, inputs={"x": ["N", 3, SIDE, SIDE]}, outputs={"z": ["N", 2]}, constants=constants)


def transformer() -> onnx.ModelProto:
    """One patch embedding (N, 16, 8) and one layer of attention without values of its own, then the mean."""
    rng = np.random.default_rng(4)
    nodes = [
        helper.make_node("Conv", ["x", "embedding"], ["patches"], strides=[8, 8]),
        helper.make_node("Reshape", ["patches", "rows"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["tokens", "flat"], ["likeness"]),
        helper.make_node("Softmax", ["likeness"], ["attention"], axis=2),
        helper.make_node("MatMul", ["attention", "tokens"], ["mixed"]),
        helper.make_node("ReduceMean", ["mixed", "axis"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["z"]),
    ]
    constants = {
        "embedding": rng.normal(0, 0.1, (8, 3, 8, 8)).astype(np.float32),
        "rows": np.array([0, 8, 16]),
        "axis": np.array([1]),
        "head": rng.normal(0, 1, (8, 2)).astype(np.float32),
    }
    return make_model(nodes, inputs={"x": ["N", 3, SIDE, SIDE]}, outputs={"z": ["N", 2]}, constants=constants)


def by(method: Method) -> ModelCard:
    known = card()
    return replace(known, explain=replace(known.explain, method=method))


def black_box(given: onnx.ModelProto, folder: Path, method: Method = Method.OCCLUSION) -> ModelBundle:
    onnx.save(given, folder / "model.onnx")
    return build_bundle(folder / "model.onnx", by(method), folder / "bundle", black_box=True)


def picture() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (8, 8, 3), np.uint8).repeat(4, axis=0).repeat(4, axis=1)


def explained(bundle: ModelBundle, method: Method) -> Explanation:
    with Explainer(bundle, device="cpu", method=method, threads=1, max_passes=600) as explainer:
        return explainer(picture(), target="bad")


@pytest.mark.parametrize(("make", "is_transformer"), [(perceptron, False), (transformer, True)])
def test_a_network_without_blocks_is_told_how_it_can_be_explained(
    make: object, is_transformer: bool, tmp_path: Path
) -> None:
    assert callable(make)
    with pytest.raises(UnsupportedModelError) as caught:
        built(make(), card(), tmp_path)

    assert ("transformer" in str(caught.value)) is is_transformer
    assert 'build it with --black-box, and say method = "rise" or "occlusion"' in str(caught.value)


def test_a_perceptron_is_judged_and_explained_from_outside(tmp_path: Path) -> None:
    bundle = black_box(perceptron(), tmp_path)

    assert bundle.blocks == ()
    assert bundle.manifest["gradient"] == "none"
    assert set(bundle.manifest["proofs"]) == {"network_as_given", "masking", "batch_of_two"}
    assert check_bundle(bundle.folder).fingerprint == bundle.fingerprint
    found = explained(bundle, Method.OCCLUSION)
    seen = float(picture()[..., 0][PATCH].mean() / 255)
    bad = 1 / (1 + np.exp(-(8 * seen - 4)))
    assert found.prediction.scores == pytest.approx((bad, 1 - bad), abs=1e-5)
    assert found.status is Status.EXPLAINED
    marked = np.argwhere(found.fused > 0.5 * found.fused.max())
    assert (marked.min(axis=0) >= [7, 15]).all()
    assert (marked.max(axis=0) <= [16, 24]).all()
    far = found.fused.copy()
    far[4:20, 12:28] = 0  # occlusion's patch is 4 px
    assert far.max() == 0
    assert found.faithfulness["deletion_percent"] < found.faithfulness["deletion_percent_random"]


@pytest.mark.parametrize("method", [Method.RISE, Method.OCCLUSION])
def test_a_cnn_as_a_black_box_gets_the_same_map_as_with_its_blocks_known(method: Method, tmp_path: Path) -> None:
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
    known = built(residual_network(), card(), tmp_path / "open")
    closed = black_box(residual_network(), tmp_path / "closed", method)

    found, expected = explained(closed, method), explained(known, method)

    assert expected.fused.max() > 0.005
    np.testing.assert_array_equal(found.fused, expected.fused)
    assert found.prediction == expected.prediction
    assert closed.fingerprint != known.fingerprint


def test_a_transformer_is_explained_from_outside(tmp_path: Path) -> None:
    found = explained(black_box(transformer(), tmp_path, Method.RISE), Method.RISE)

    assert found.status is Status.EXPLAINED


def test_what_needs_an_inside_is_refused_wherever_it_is_asked(tmp_path: Path) -> None:
    words = "choose rise or occlusion"
    onnx.save(perceptron(), tmp_path / "model.onnx")
    with pytest.raises(UnsupportedModelError, match=rf"explain\.method: found sise, .*{words}"):
        build_bundle(tmp_path / "model.onnx", card(), tmp_path / "bundle", black_box=True)
    bundle = black_box(perceptron(), tmp_path)

    with pytest.raises(UnsupportedModelError, match=rf"method: found grad-cam, .*{words}"):
        Explainer(bundle, device="cpu", method="grad-cam")
    with Engine(bundle, device="cpu", threads=1) as engine:
        engine.warm_up()
        with pytest.raises(UnsupportedModelError, match=words):
            engine.trace(np.zeros((SIDE, SIDE, 3), np.float32))


def test_the_command_builds_and_shows_a_black_box(tmp_path: Path) -> None:
    onnx.save(perceptron(), tmp_path / "model.onnx")
    (tmp_path / "card.toml").write_text(
        'name = "p"\nversion = "1"\nlabels = ["bad", "good"]\n[input]\nheight = 32\nwidth = 32\n'
        '[explain]\nmethod = "occlusion"\n'
    )
    call = ["bundle", "build", str(tmp_path / "model.onnx"), "--card", str(tmp_path / "card.toml"), "--out"]

    refused = CliRunner().invoke(app, [*call, str(tmp_path / "b")])
    built_one = CliRunner().invoke(app, [*call, str(tmp_path / "b"), "--black-box"])

    assert refused.exit_code != 0
    assert built_one.exit_code == 0, built_one.output
    assert "gradient     none" in built_one.output
