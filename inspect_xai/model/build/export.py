"""Export of a torch module to a bundle (extra `export`); the one module of the package that imports torch.

The exported network is compared with the module on made-up pictures and on those given; stack traces and paths are
removed from the file.
"""

import importlib
import importlib.util
import logging
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from inspect_xai.errors import ModelFileError, SettingsError, UnsupportedModelError
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.build.normalize import network_input, run_model, sample_pictures
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.records import ModelCard

if TYPE_CHECKING:
    from torch import nn

_READ_ERRORS = (RuntimeError, KeyError, OSError, EOFError, AttributeError, TypeError, pickle.UnpicklingError)
_EXPORT_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, AssertionError)
PARITY_BOUND = 1e-4  # of the largest output: float32 kernels add up in another order
_MADE_UP = 4


def export_bundle(
    module: "nn.Module",
    card: ModelCard,
    out: Path,
    *,
    windows: NDArray[np.float32] | None = None,
    opset: int = 18,
    force: bool = False,
) -> tuple[ModelBundle, float]:
    """Export a classifier and make a bundle of it.

    Args:
        module: Pictures (N, C, H, W) as the card scales them -> class scores (N, K); put into evaluation mode.
        card: Says how it is fed.
        out: Bundle folder to make.
        windows: Real windows (N, H, W, C) in pixel units to compare on, beside made-up ones.
        opset: ONNX operator set, 18 or newer.
        force: Replace a bundle that is at `out`.

    Returns:
        The bundle, and the largest difference found between module and exported network, relative to the output.

    Raises:
        SettingsError: If torch is not installed.
        UnsupportedModelError: If neither of torch's exporters can write the module.
        ModelFileError: If the exported network does not compute what the module computes.
        BundleError: As `build_bundle`.
    """
    torch = _torch()
    module = module.eval()
    pictures = sample_pictures(card, _MADE_UP, seed=11)
    if windows is not None and len(windows):
        pictures = np.concatenate([pictures, np.moveaxis(windows, -1, 1).astype(np.float32)])
    fed = network_input(pictures, card)
    with tempfile.TemporaryDirectory(prefix="inspect-xai-") as scratch:
        path = Path(scratch) / "model.onnx"
        _write(module, torch.from_numpy(fed[:2]), path, opset=opset)
        model = _without_traces(onnx.load(path))
        onnx.save(model, path)
        with torch.no_grad():
            expected = np.concatenate([module(torch.from_numpy(fed[k : k + 1])).numpy() for k in range(len(fed))])
        (name,) = (info.name for info in model.graph.input)
        score = model.graph.output[0].name
        found = np.concatenate(
            [run_model(path, {name: fed[k : k + 1]}, outputs=[score])[score] for k in range(len(fed))]
        )
        error = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
        if not error <= PARITY_BOUND:
            raise ModelFileError(
                f"the exported network differs from the module by {error:.2g} of its output",
                expected=f"at most {PARITY_BOUND}",
                remedy="look for layers that behave otherwise when exported: dropout, data-dependent branches",
            )
        return build_bundle(path, card, out, force=force), error


def load_module(factory: str, *, weights: Path | None = None) -> "nn.Module":
    """Make a module by calling a factory, and load its weights.

    Args:
        factory: "package.module:function" or "path/to/file.py:function"; called without arguments.
        weights: File with a state dict; read without unpickling anything but tensors.

    Raises:
        SettingsError: If the factory cannot be imported or called, or the weights do not fit.
    """
    torch = _torch()
    place, _, function = factory.partition(":")
    if not function:
        raise SettingsError(
            f"factory {factory!r} names no function", expected="package.module:function or file.py:function"
        )
    try:
        make: Callable[[], nn.Module] = getattr(_import(place), function)
        module = make()
    except (ImportError, AttributeError, OSError, SyntaxError, TypeError) as error:
        raise SettingsError(f"factory {factory!r} cannot be called: {error}", remedy="try it in Python") from error
    if weights is not None:
        try:
            module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except _READ_ERRORS as error:
            raise SettingsError(
                f"{weights} does not fit the module: {str(error).splitlines()[0]}",
                expected="a state dict saved by torch.save(module.state_dict(), ...)",
            ) from error
    return module


def _import(place: str) -> object:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    if spec is None or spec.loader is None:
        raise ImportError(f"{place} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise SettingsError("torch is not installed", remedy="pip install 'inspect-xai[export]'") from error
    return torch


def _write(module: "nn.Module", example: Any, path: Path, *, opset: int) -> None:
    """Write the module by torch's newer exporter, else by the older one.

    Raises:
        UnsupportedModelError: If neither can.
    """
    import torch

    reasons: list[str] = []
    batch = torch.export.Dim("batch", min=1, max=4096)
    attempts: tuple[dict[str, Any], ...] = (
        {"dynamo": True, "dynamic_shapes": ({0: batch},), "external_data": False},
        {"dynamo": False, "dynamic_axes": {"input": {0: "batch"}, "scores": {0: "batch"}}},
    )
    for options in attempts:
        try:
            with _quiet():
                torch.onnx.export(
                    module,
                    (example,),
                    str(path),
                    input_names=["input"],
                    output_names=["scores"],
                    opset_version=opset,
                    **options,
                )
        except _EXPORT_ERRORS as error:
            reasons.append(_reason(error))
        else:
            return
    raise UnsupportedModelError(
        f"torch cannot export the module: {'; '.join(reasons)}",
        remedy="export it by hand and say inspect-xai bundle build",
    )


def _reason(error: BaseException) -> str:
    """Return the innermost cause in one line: the exporters wrap it in advice to their developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' advice to developers of torch."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without doc strings and metadata, where exporters keep stack traces and paths."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.doc_string = ""
    del bare.metadata_props[:]
    bare.graph.doc_string = ""
    del bare.graph.metadata_props[:]
    parts: Sequence[object] = [
        *bare.graph.node,
        *bare.graph.initializer,
        *bare.graph.input,
        *bare.graph.output,
        *bare.graph.value_info,
    ]
    for function in bare.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        parts = [*parts, *function.node, *function.value_info]
    for part in parts:
        part.doc_string = ""  # type: ignore[attr-defined]
        del part.metadata_props[:]  # type: ignore[attr-defined]
    return bare
