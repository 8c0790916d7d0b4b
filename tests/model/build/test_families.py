"""Every family of networks becomes a proven bundle, whatever exporter, opset, batch axis and folding it came with."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from inspect_xai.errors import UnsupportedModelError
from inspect_xai.explain.explainer import Explainer
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.records import InputSpec, ModelCard, Status
from tests.support.toy_families import CLASSES
from tests.support.toys import TOYS, card_for, export, toy_model

EXPORTS: dict[str, dict[str, Any]] = {
    "script, opset 13, batch of 1": {"opset": 13, "dynamic_batch": False},
    "script, opset 17, BatchNorm kept": {"opset": 17, "fold": False},
    "dynamo, opset 18, batch of 1": {"exporter": "dynamo", "opset": 18, "dynamic_batch": False},
    "dynamo, newest opset": {"exporter": "dynamo", "opset": 23},
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), list(itertools.product(TOYS, EXPORTS)))
def test_a_family_becomes_a_proven_bundle(name: str, how: str, tmp_path: Path) -> None:
    """The build itself proves gradients against differences, masks against numpy, cuts against the whole."""
    onnx.save(toy_model(name, **EXPORTS[how]), tmp_path / "toy.onnx")

    bundle = build_bundle(tmp_path / "toy.onnx", card_for(name), tmp_path / "bundle")

    assert bundle.manifest["gradient"] == "reverse_mode"
    assert bundle.dynamic_batch, "a batch of 1 in the file is freed"
    assert {"gradient_deepest_block", "chain_of_cuts", "masking"} <= bundle.manifest["proofs"].keys()


class Grouped(nn.Module):
    """GroupNorm, which is an operator of its own from opset 21 on, and an upsampling between two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.second = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.GroupNorm(3, 12), nn.SiLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        seen = torch.relu(self.first(x))
        wide = nn.functional.interpolate(seen, scale_factor=2.0, mode="bilinear")
        found: torch.Tensor = self.head(self.second(wide))
        return found


def grouped(folder: Path, card: ModelCard, **options: Any) -> ModelBundle:
    torch.manual_seed(3)
    model = export(Grouped().eval(), **options)
    onnx.save(model, folder / "grouped.onnx")
    return build_bundle(folder / "grouped.onnx", card, folder / "bundle")


def grouped_card(**changes: Any) -> ModelCard:
    labels = tuple(f"class {index}" for index in range(CLASSES))
    return ModelCard("grouped", "1", labels, InputSpec(64, 64, **{"scale": 64.0, "mean": (2.0,)} | changes))


@pytest.mark.parametrize(
    "options",
    [{"opset": 18}, pytest.param({"exporter": "dynamo", "opset": 21}, marks=pytest.mark.slow)],
    ids=["script", "dynamo 21"],
)
def test_group_norm_and_an_upsampling_inside(options: dict[str, Any], tmp_path: Path) -> None:
    bundle = grouped(tmp_path, grouped_card(), **options)

    assert bundle.manifest["gradient"] == "reverse_mode", bundle.manifest["gradient_reason"]
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    with Explainer(bundle, device="cpu", mu=0.0) as explainer:
        assert explainer(picture).status is Status.EXPLAINED


def test_a_network_that_is_silent_on_all_made_up_pictures_is_refused(tmp_path: Path) -> None:
    class Dead(nn.Module):
        """A hidden layer that is silent on every picture, and would answer to a little more of anything."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.hidden, self.last = nn.Conv2d(3, 4, 3, 4, 1), nn.Linear(4, 4), nn.Linear(4, CLASSES)
            nn.init.ones_(self.hidden.weight)
            nn.init.constant_(self.hidden.bias, -1e-4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Logits."""
            seen = self.first(x)
            centered = seen - seen.mean(dim=(2, 3), keepdim=True)
            found: torch.Tensor = self.last(torch.relu(self.hidden(centered.mean(dim=(2, 3)))))
            return found

    torch.manual_seed(3)
    onnx.save(export(Dead().eval()), tmp_path / "dead.onnx")

    with pytest.raises(UnsupportedModelError, match="does not depend on its input"):
        build_bundle(tmp_path / "dead.onnx", grouped_card(), tmp_path / "bundle")
