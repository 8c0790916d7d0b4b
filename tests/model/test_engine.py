"""The engine on a toy: shapes, buckets, devices, and alphas where there is no gradient graph."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from inspect_xai.errors import DeviceError, ExplanationError, SettingsError
from inspect_xai.model import engine as engine_module
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.model.engine import Engine
from inspect_xai.model.session import hold, open_session, run
from inspect_xai.records import InputSpec, ModelCard
from tests.support.toys import CLASSES, TOYS, toy_model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    folder = tmp_path_factory.mktemp("resnet18")
    onnx.save(toy_model("resnet18"), folder / "toy.onnx")
    _, height, width = TOYS["resnet18"].shape
    labels = tuple(f"class {index}" for index in range(CLASSES))
    card = ModelCard("toy", "1", labels, InputSpec(height, width, mean=(0.5,), std=(0.25,)))
    return build_bundle(folder / "toy.onnx", card, folder / "bundle")


@pytest.fixture
def windows(bundle: ModelBundle, rng: np.random.Generator) -> np.ndarray:
    spec = bundle.card.input
    return rng.integers(0, 256, (5, spec.height, spec.width, 3)).astype(np.float32)


def test_predictions_do_not_depend_on_how_windows_are_batched(bundle: ModelBundle, windows: np.ndarray) -> None:
    with Engine(bundle, device="cpu", bucket=2) as pairs, Engine(bundle, device="cpu", bucket=8) as once:
        by_two, at_once = pairs.predict(windows), once.predict(windows)

    assert by_two.shape == (5, CLASSES)
    np.testing.assert_allclose(by_two, at_once, atol=1e-6)
    np.testing.assert_allclose(at_once.sum(axis=1), 1, atol=1e-5)


def test_masks_of_any_resolution_are_scored_and_their_order_is_kept(bundle: ModelBundle, windows: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    hidden = np.zeros_like(windows[0])
    with Engine(bundle, device="cpu", bucket=4) as engine:
        for size in ((16, 16), (3, 7)):
            maps = rng.random((9, *size)).astype(np.float32)
            together = engine.score_masks(windows[0], maps, baseline=hidden)
            alone = [engine.score_masks(windows[0], maps[k : k + 1], baseline=hidden) for k in range(9)]

            assert together.probabilities.shape == (9, CLASSES)
            np.testing.assert_allclose(
                together.probabilities, np.concatenate([a.probabilities for a in alone]), atol=1e-6
            )
            np.testing.assert_allclose(together.span, [float(a.span[0]) for a in alone], atol=1e-6)


def test_a_trace_on_the_weights_as_they_lie_is_the_same(
    bundle: ModelBundle, windows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large networks have no second and third copy of their weights for the trace."""
    with Engine(bundle, device="cpu") as copying:
        expected = [copying.trace(window, target=1, gradients=True) for window in windows]
    monkeypatch.setattr(engine_module, "_LIGHT_BYTES", 0)
    with Engine(bundle, device="cpu") as mapping:
        found = [mapping.trace(window, target=1, gradients=True) for window in windows]

    errors = [
        max(float(np.abs(b.gradients[name] - g).max() / np.abs(g).max()) for name, g in a.gradients.items())
        for a, b in zip(expected, found, strict=True)
    ]
    assert max(errors) > 0, "the kernels are others"
    assert np.median(errors) < 1e-5, "a ReLU at its kink falls either way, though not on most pictures"


def test_the_graph_that_scores_masks_predicts_bit_by_bit_alike(
    bundle: ModelBundle, windows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large networks have no copy of their weights for predicting either."""
    with Engine(bundle, device="cpu") as engine:
        expected = engine.predict(windows)
        assert set(engine._sessions) == {"predict"}
    monkeypatch.setattr(engine_module, "_LIGHT_BYTES", 0)
    with Engine(bundle, device="cpu") as engine:
        found = engine.predict(windows)
        assert set(engine._sessions) == {"score"}

    assert np.array_equal(found, expected)


def test_differences_stand_in_for_gradients(bundle: ModelBundle, windows: np.ndarray) -> None:
    """Alphas by central differences through the cut blocks, held against the gradient graph of the same network."""
    without = dataclasses.replace(
        bundle, manifest=bundle.manifest | {"gradient": "finite_difference", "gradient_reason": "x"}
    )
    with Engine(bundle, device="cpu") as exact, Engine(without, device="cpu") as fallback:
        expected, found = exact.trace(windows[0], target=1, against=2), fallback.trace(windows[0], target=1, against=2)

        assert fallback.notes == ["alphas_by_differences"]
        assert exact.notes == []
        for name, alpha in expected.alphas.items():
            agree = np.corrcoef(found.alphas[name], alpha)[0, 1]
            assert agree > 0.995, f"{name}: {agree}"  # a step wide enough for float32 crosses a few kinks
        deepest = bundle.blocks[-1].tensor
        np.testing.assert_allclose(
            found.alphas[deepest], expected.alphas[deepest], atol=1e-3 * np.abs(expected.alphas[deepest]).max()
        )
        with pytest.raises(ExplanationError, match="no gradient graph"):
            fallback.trace(windows[0], gradients=True)


def test_the_most_probable_class_is_the_default_target(bundle: ModelBundle, windows: np.ndarray) -> None:
    with Engine(bundle, device="cpu") as engine:
        trace = engine.trace(windows[0])
        named = engine.trace(windows[0], target=trace.target)

    assert trace.target == int(np.argmax(trace.probabilities))
    for name, alpha in trace.alphas.items():
        assert np.array_equal(alpha, named.alphas[name])


def test_nan_pixels_are_an_error_and_no_map(bundle: ModelBundle, windows: np.ndarray) -> None:
    windows[0, 3, 3] = np.nan
    with Engine(bundle, device="cpu") as engine, pytest.raises(ExplanationError, match="NaN"):
        engine.trace(windows[0])


def test_a_device_that_was_named_is_never_replaced(bundle: ModelBundle) -> None:
    with Engine(bundle, device="auto") as engine:
        if engine.provider != "CPUExecutionProvider":
            pytest.skip("this machine has a device that runs")
    with pytest.raises(DeviceError, match="cuda was asked for"):
        Engine(bundle, device="cuda")


@pytest.mark.gpu
def test_cuda_gives_the_cpus_numbers(bundle: ModelBundle, windows: np.ndarray) -> None:
    try:
        cuda = Engine(bundle, device="cuda")
    except DeviceError as error:
        pytest.skip(f"no CUDA device: {error}")
    with cuda, Engine(bundle, device="cpu") as cpu:
        np.testing.assert_allclose(cuda.predict(windows), cpu.predict(windows), atol=1e-4)


@pytest.mark.gpu
def test_cuda_scores_masks_as_the_cpu_does(bundle: ModelBundle, windows: np.ndarray) -> None:
    try:
        cuda = Engine(bundle, device="cuda", bucket=4)
    except DeviceError as error:
        pytest.skip(f"no CUDA device: {error}")
    maps = np.random.default_rng(3).random((9, 4, 4)).astype(np.float32)
    with cuda, Engine(bundle, device="cpu") as cpu:
        ours, theirs = (engine.score_masks(windows[0], maps, baseline=windows[1]) for engine in (cuda, cpu))
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-4)


def test_inputs_that_lie_on_the_device_count_like_those_that_are_copied(
    bundle: ModelBundle, windows: np.ndarray
) -> None:
    session = open_session(bundle.graph("score"), threads=1)
    picture, baseline = (np.ascontiguousarray(np.moveaxis(window, -1, 0)[None]) for window in windows[:2])
    maps = np.random.default_rng(3).random((3, 1, 4, 4)).astype(np.float32)
    outputs = ["probabilities", "minimum", "span"]

    image = np.zeros(1, np.int64)
    held = {"picture": hold(picture, device="cpu"), "baseline": hold(baseline, device="cpu")}
    bound = run(session, outputs, {"maps": maps, "image": image}, held=held)
    again = run(session, outputs, {"maps": maps[::-1].copy(), "image": image}, held=held)
    copied = run(session, outputs, {"picture": picture, "baseline": baseline, "maps": maps, "image": image})

    for one, other, turned in zip(bound, copied, again, strict=True):
        assert np.array_equal(one, other)
        assert np.array_equal(turned[::-1], one)
    with pytest.raises(DeviceError, match="maps"):
        run(session, outputs, {"image": image}, held=held)


@pytest.mark.parametrize("device", ["tensorrt", "tensorrt:1"])
def test_tensorrt_is_passed_through_and_never_replaced(device: str, bundle: ModelBundle) -> None:
    with Engine(bundle, device="auto") as engine:
        if engine.provider != "CPUExecutionProvider":
            pytest.skip("this machine has a device that runs")
    with pytest.raises(DeviceError, match="not TensorrtExecutionProvider"):
        Engine(bundle, device=device)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "CPU", "", "tensorrt:"])
def test_a_device_nobody_knows_is_refused(device: str, bundle: ModelBundle) -> None:
    with pytest.raises(SettingsError, match="is unknown"):
        Engine(bundle, device=device)


def test_warm_up_opens_every_session(bundle: ModelBundle, tmp_path: Path) -> None:
    with Engine(bundle, device="cpu") as engine:
        engine.warm_up()

        assert {"predict", "trace", "score"} <= set(engine._sessions)
