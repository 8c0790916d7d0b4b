"""Scoring in 8 bits: what changes, what stays float, and what is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from benchmarks.real import SETS, defective_parts, real_card, real_model
from inspect_xai.audit.quantize import FEWEST_PICTURES, Quantized, quantize_bundle
from inspect_xai.cli import app
from inspect_xai.errors import BundleError, SettingsError, UnsupportedModelError
from inspect_xai.explain.explainer import Explainer
from inspect_xai.intake.sources import read_picture
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.bundle import ModelBundle, load_bundle
from inspect_xai.model.engine import Engine
from inspect_xai.records import ExplainSpec, InputSpec, Method, ModelCard, PictureLimits, Scoring
from tests.support.toy_graphs import noise, quantized
from tests.support.toys import CLASSES, TOYS, toy_model


def toy_bundle(folder: Path, *, fidelity: float, model: onnx.ModelProto | None = None) -> ModelBundle:
    _, height, width = TOYS["resnet18"].shape
    onnx.save(model or toy_model("resnet18"), folder / "toy.onnx")
    labels = tuple(f"class {index}" for index in range(CLASSES))
    spec = InputSpec(height, width, mean=(0.5,), std=(0.25,))
    card = ModelCard("toy", "1", labels, spec, explain=ExplainSpec(mu=0.0, int8_fidelity=fidelity))
    return build_bundle(folder / "toy.onnx", card, folder / "bundle")


def pictures(bundle: ModelBundle, count: int = FEWEST_PICTURES) -> list[np.ndarray]:
    spec, rng = bundle.card.input, np.random.default_rng(5)
    coarse = rng.integers(0, 256, (count, spec.height // 8, spec.width // 8, 3), dtype=np.uint8)
    return list(coarse.repeat(8, axis=1).repeat(8, axis=2))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return toy_bundle(tmp_path_factory.mktemp("plain"), fidelity=0.5)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    bundle = toy_bundle(tmp_path_factory.mktemp("int8"), fidelity=0.5)
    return quantize_bundle(bundle, pictures(bundle), threads=1)


def test_a_quantized_bundle_is_another_model_with_its_measured_fidelity(plain: ModelBundle, done: Quantized) -> None:
    bundle = done.bundle

    assert bundle.fingerprint != plain.fingerprint
    assert bundle.card == dataclasses.replace(
        plain.card, explain=dataclasses.replace(plain.card.explain, scoring=Scoring.INT8)
    )
    assert bundle.manifest["files"]["graphs/score_int8.onnx"]["bytes"] > 1000
    said, last = bundle.manifest["int8"], done.tried[-1]
    assert said["fidelity"] == {"mean": last.mean, "least": last.least, "pictures": last.pictures}
    assert last.pictures == FEWEST_PICTURES // 2, "half of the pictures gave ranges and none of these measured"
    assert last.mean >= 0.5
    assert load_bundle(bundle.folder).fingerprint == bundle.fingerprint
    assert not list(bundle.folder.parent.glob(".bundle.*")), "no draft is left"


def test_its_graph_computes_in_8_bits(done: Quantized) -> None:
    graph = onnx.load(done.bundle.graph("score_int8")).graph
    kinds = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 4}

    assert onnx.TensorProto.INT8 in kinds, "weights of convolutions"
    assert onnx.TensorProto.FLOAT not in kinds
    assert any(node.op_type == "Gemm" for node in graph.node), "behind the pooling it stays float"


def test_only_masked_pictures_are_scored_in_8_bits(plain: ModelBundle, done: Quantized) -> None:
    window = pictures(plain)[0].astype(np.float32)
    hidden = np.zeros_like(window)
    with Engine(plain, device="cpu", threads=1) as exact, Engine(done.bundle, device="cpu", threads=1) as rough:
        before, after = exact.trace(window), rough.trace(window)
        assert np.array_equal(exact.predict(window[None]), rough.predict(window[None]))
        for name, alpha in before.alphas.items():
            assert np.array_equal(alpha, after.alphas[name])

        maps = np.random.default_rng(3).random((24, 2, 2)).astype(np.float32)
        ours, theirs = (engine.score_masks(window, maps, baseline=hidden) for engine in (exact, rough))
        assert (exact.int8_masks, rough.int8_masks) == (0, 24)
        assert not np.array_equal(ours.probabilities, theirs.probabilities)
        assert np.corrcoef(theirs.probabilities.ravel(), ours.probabilities.ravel())[0, 1] > 0.95

        rough.int8_px = 1  # as where only smaller maps bear it
        again = rough.score_masks(window, maps, baseline=hidden)
        assert rough.int8_masks == 24
        np.testing.assert_allclose(again.probabilities, ours.probabilities, atol=1e-6)


def test_an_explanation_says_that_it_was_scored_in_8_bits(plain: ModelBundle, done: Quantized) -> None:
    picture = pictures(plain)[1]
    with Explainer(plain, device="cpu", threads=1) as exact, Explainer(done.bundle, device="cpu", threads=1) as rough:
        ours, theirs = exact(picture, target=0), rough(picture, target=0)
        unmasked = Explainer(rough.engine, method=Method.GRAD_CAM)

        assert "int8_scoring" not in ours.notes
        assert "int8_scoring" in theirs.notes
        assert "int8_scoring" not in unmasked(picture, target=0).notes, "nothing was masked for this one"
    assert np.corrcoef(ours.fused.ravel(), theirs.fused.ravel())[0, 1] > 0.5


def test_below_the_cards_bound_it_is_refused_with_the_figures(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path, fidelity=0.9999999)

    with pytest.raises(BundleError, match=r"up to \d+ px: correlation 0\.\d+, lowest .*at least 0\.9999999"):
        quantize_bundle(bundle, pictures(bundle), threads=1)

    assert load_bundle(bundle.folder).fingerprint == bundle.fingerprint


def test_a_card_that_asks_for_8_bits_needs_the_graph(plain: ModelBundle) -> None:
    with pytest.raises(BundleError, match="bundle quantize"):
        Engine(plain, device="cpu", scoring=Scoring.INT8)


def test_too_few_pictures_and_a_network_in_whole_numbers_are_refused(plain: ModelBundle, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="3 pictures"):
        quantize_bundle(plain, pictures(plain, 3))

    shape = TOYS["resnet18"].shape
    whole = toy_bundle(
        tmp_path, fidelity=0.5, model=quantized(toy_model("resnet18"), noise(4, *shape).astype(np.float32))
    )
    with pytest.raises(UnsupportedModelError, match="whole numbers"):
        quantize_bundle(whole, pictures(whole), threads=1)


def test_the_command_prints_what_was_tried(tmp_path: Path) -> None:
    import cv2

    bundle = toy_bundle(tmp_path, fidelity=0.5)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, picture in enumerate(pictures(bundle)):
        cv2.imwrite(str(folder / f"{index}.png"), picture)
    (folder / "notes.txt").write_text("no picture")

    answer = CliRunner().invoke(
        app, ["bundle", "quantize", str(bundle.folder), "--calibration", str(folder), "--threads", "1", "--json"]
    )

    assert answer.exit_code == 0, answer.output
    said = json.loads(answer.output)
    assert said["fingerprint"] == load_bundle(bundle.folder).fingerprint != bundle.fingerprint
    assert said["fidelity"]["mean"] == said["tried"][-1]["mean"]


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_a_trained_network_keeps_its_maps(name: str, shared_dir: Path, tmp_path: Path) -> None:
    bundle = build_bundle(real_model(shared_dir, name), real_card(shared_dir, name), tmp_path / "bundle")
    parts = [part for part, _ in zip(defective_parts(shared_dir, name, split="train"), range(8), strict=False)]

    done = quantize_bundle(bundle, [read_picture(part.path, limits=PictureLimits()).pixels for part in parts])

    assert done.tried[-1].mean >= 0.95
    assert done.tried[-1].int8_share > 0.5, "at least the deepest block bears 8 bits"
