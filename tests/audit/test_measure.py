"""Numbers of an audit that need the network: held against the steps they are made of."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from inspect_xai.audit.measure import measure, measure_adcc, prepare_measurement
from inspect_xai.explain.explainer import Explainer
from inspect_xai.maths import metrics, sise
from inspect_xai.model.build.build import build_bundle
from inspect_xai.records import Baseline, Channels, InputSpec, Method, ModelCard
from tests.support.toys import TOYS, toy_model

LABELS = tuple(f"c{number}" for number in range(TOYS["vgg"].classes))


@pytest.fixture(scope="module")
def explainer_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Channels], Explainer]:
    folder = tmp_path_factory.mktemp("measuring")

    def make(channels: Channels) -> Explainer:
        name = "gray" if channels is Channels.GRAY else "vgg"
        onnx.save(toy_model(name), folder / f"{name}.onnx")
        depth, height, width = TOYS[name].shape
        spec = InputSpec(height, width, channels=channels, scale=50.0, mean=(2.5,) * depth)
        bundle = build_bundle(
            folder / f"{name}.onnx", ModelCard(name, "1", LABELS, spec), folder / f"{channels}.bundle", force=True
        )
        return Explainer(bundle, device="cpu", threads=1, method=Method.GRAD_CAM, faithfulness=False)

    return make


@pytest.fixture
def picture(rng: np.random.Generator) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (64, 150, 3), dtype=np.uint8)


@pytest.mark.parametrize("channels", list(Channels))
def test_adcc_is_that_of_the_window_seen_through_its_map(explainer_of, channels: Channels, picture, tmp_path: Path):
    with explainer_of(channels) as explainer:
        look = explainer.look(picture)
        label = look.prediction.label
        scene = prepare_measurement(
            explainer.engine, look, target=LABELS.index(label), truth=None, part=np.ones((64, 150), bool), seed=0
        )
        found = explainer.explain(look, target=label)
        numbers = measure_adcc(explainer.engine, scene, found, explainer.settings)

        high, wide = scene.window.shape[:2]
        fused = found.fused[scene.tile.top_px :, scene.tile.left_px :][:high, :wide]
        if fused.shape != (high, wide):
            pytest.skip("the window reaches beyond the picture")
        share = metrics.stretched(fused)[..., None]
        hidden = sise.baseline_picture(scene.window, Baseline.MEAN, mean=explainer.engine.mean_px)
        shown = np.rint(share * scene.window + (1 - share) * hidden)
        kept = float(explainer.engine.predict(shown[None])[0, scene.target])
    drop = max(0.0, scene.full - kept) / scene.full
    assert numbers["complexity"] == pytest.approx(share.mean())
    expected = metrics.adcc(coherency=numbers["coherency"], complexity=numbers["complexity"], drop=drop)
    assert numbers["adcc"] == pytest.approx(expected, abs=1e-5)
    assert 0 <= numbers["coherency"] <= 1


def test_the_window_has_an_aupro_of_its_own(explainer_of, picture):
    """On a picture wider than the window, background that no window covers counts in one and not in the other."""
    with explainer_of(Channels.RGB) as explainer:
        look = explainer.look(picture)
        target = LABELS.index(look.prediction.label)
        tile = look.tiles[int(np.argmax(look.scores[:, target]))]
        truth = np.zeros((64, 150), bool)
        truth[20:30, tile.left_px + 20 : tile.left_px + 30] = True
        scene = prepare_measurement(explainer.engine, look, target=target, truth=truth, part=~truth, seed=0)
        found = explainer.explain(look, target=LABELS[target])
        numbers = measure(explainer.engine, scene, found, steps=2, seed=0)
    window = found.rank[:, tile.left_px : tile.left_px + 64]
    order = np.argsort(np.argsort(window.ravel())).reshape(window.shape)
    assert numbers["aupro_window"] == pytest.approx(metrics.aupro(order, truth[:, tile.left_px : tile.left_px + 64]))
    assert numbers["aupro"] == metrics.aupro(found.rank, truth)
