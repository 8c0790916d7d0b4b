"""Explains the verdicts of defect-inspection CNNs inside ONNX Runtime, and keeps the record of it.

The public names load on first use: importing the package loads neither onnxruntime nor sqlalchemy nor torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from inspect_xai._version import __version__

if TYPE_CHECKING:
    from inspect_xai.errors import InspectXaiError
    from inspect_xai.explain.explainer import Explainer
    from inspect_xai.model.build.build import build_bundle
    from inspect_xai.model.bundle import ModelBundle, load_bundle
    from inspect_xai.records import Explanation, Inspection

_HOMES = {
    "Explainer": "inspect_xai.explain.explainer",
    "Explanation": "inspect_xai.records",
    "Inspection": "inspect_xai.records",
    "InspectXaiError": "inspect_xai.errors",
    "ModelBundle": "inspect_xai.model.bundle",
    "build_bundle": "inspect_xai.model.build.build",
    "load_bundle": "inspect_xai.model.bundle",
}

__all__ = [
    "Explainer",
    "Explanation",
    "InspectXaiError",
    "Inspection",
    "ModelBundle",
    "__version__",
    "build_bundle",
    "load_bundle",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
