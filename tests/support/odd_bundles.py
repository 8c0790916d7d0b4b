"""Bundles of small networks (3, 32, 32) -> bad, good, and an explanation by them."""

from pathlib import Path

import numpy as np
import onnx

from inspect_xai.explain.explainer import Explainer
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.records import Channels, Explanation, InputSpec, ModelCard, OutputSpec

SIDE = 32
NAMES = {"bad": 0, "good": 1}


def card(output: OutputSpec = OutputSpec(), **spec: object) -> ModelCard:  # noqa: B008  frozen
    return ModelCard("odd", "1", tuple(NAMES), InputSpec(SIDE, SIDE, **spec), ok_labels=("good",), output=output)  # type: ignore[arg-type]


def built(given: onnx.ModelProto, of: ModelCard, folder: Path) -> ModelBundle:
    onnx.save(given, folder / "model.onnx")
    return build_bundle(folder / "model.onnx", of, folder / "bundle")


def explained(bundle: ModelBundle, *, target: str = "bad") -> Explanation:
    shape = (8, 8) if bundle.card.input.channels is Channels.GRAY else (8, 8, 3)
    coarse = np.random.default_rng(5).integers(0, 256, shape, np.uint8)
    with Explainer(bundle, device="cpu", mu=0.0, faithfulness=False, threads=1) as explainer:
        return explainer(coarse.repeat(4, axis=0).repeat(4, axis=1), target=target)
