"""Trained networks on real pictures: the blocks are found, and the maps lie on the defects."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.real import SETS, defective_parts, real_card, real_model
from inspect_xai.explain.explainer import Explainer
from inspect_xai.intake.sources import read_picture
from inspect_xai.maths import metrics
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.records import PictureLimits, Status, VerdictCode

pytestmark = pytest.mark.data


@pytest.fixture(scope="module", params=list(SETS))
def real_bundle(
    request: pytest.FixtureRequest, shared_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> ModelBundle:
    name: str = request.param
    folder = tmp_path_factory.mktemp(name) / "bundle"
    return build_bundle(real_model(shared_dir, name), real_card(shared_dir, name), folder)


def test_the_blocks_of_efficientnet_are_those_of_the_method_notes(real_bundle: ModelBundle) -> None:
    found = [(end.channels, end.height, end.width) for end in real_bundle.blocks]

    assert found == [(16, 112, 112), (24, 56, 56), (40, 28, 28), (112, 14, 14), (1280, 7, 7)]


def test_maps_of_real_defects_lie_on_the_defects(real_bundle: ModelBundle, shared_dir: Path) -> None:
    """Three defects judged right; measured over a hundred by `python -m benchmarks.localization`."""
    gains, hits = [], []
    with Explainer(real_bundle, device="cpu", profile="quick") as explainer:
        for part in defective_parts(shared_dir, real_bundle.card.name, split="test"):
            look = explainer.look(read_picture(part.path, limits=PictureLimits()).pixels)
            if look.prediction.label != part.label or look.verdict.code is not VerdictCode.NG:
                continue
            found = explainer.explain(look, target=part.label)
            assert found.status is Status.EXPLAINED
            assert found.fused.shape == part.mask.shape
            gains.append(metrics.ebpg(found.fused, part.mask) / part.mask.mean())
            hits.append(metrics.pointing_game(found.rank, part.mask))
            if len(gains) == 3:
                break

    assert np.mean(gains) > 10, "a map that knows nothing gains 1"
    assert any(hits)
