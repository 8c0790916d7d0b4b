"""Scoring graph in 8 bits: ONNX Runtime's static quantizer, ranges from masked pictures, float around it.

    score_int8   as score (derive.py), with the network's convolutions in 8 bits: activations unsigned, one range per
                 tensor; weights signed, one range per channel

Masks, the card's arithmetic, gates (squeeze-excite), whatever follows the global pooling, and the activation stay
float. Only maps up to a certain size are scored with it; that size is measured (`audit/quantize.py`) and recorded in
the manifest.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from inspect_xai.errors import ModelFileError, UnsupportedModelError
from inspect_xai.model.build.derive import PREFIX
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.model.session import ORT_ERRORS, first_line

Feeds = Mapping[str, NDArray[Any]]

_OPERATORS = ("Conv", "MatMul", "Add", "Concat", "Clip", "Relu", "LeakyRelu", "MaxPool", "AveragePool")
_QUANTIZED = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger"})
_REFUSALS: tuple[type[Exception], ...] = (*ORT_ERRORS, RuntimeError, ValueError, TypeError, KeyError)


def quantize_scoring(bundle: ModelBundle, feeds: Sequence[Feeds]) -> bytes:
    """Write the scoring graph of a bundle in 8 bits.

    Args:
        bundle: The bundle.
        feeds: Typical inputs of its scoring graph: their ranges become the ranges of 8 bits.

    Returns:
        The graph, weights inside.

    Raises:
        UnsupportedModelError: If the network is quantized already, or holds nothing that pays in 8 bits.
        ModelFileError: If ONNX Runtime's quantizer fails.
    """
    graph = onnx.load(bundle.graph("score"))
    if any(node.op_type in _QUANTIZED for node in graph.graph.node):
        raise UnsupportedModelError("the network computes in whole numbers already", remedy='say scoring = "float"')
    kept_float = _kept_float(graph)
    if all(node.name in kept_float for node in graph.graph.node if node.op_type in ("Conv", "MatMul")):
        raise UnsupportedModelError("no convolution of the network can be quantized", remedy='say scoring = "float"')
    with tempfile.TemporaryDirectory(prefix="inspect-xai-") as scratch, _silent():
        source, target = Path(scratch) / "score.onnx", Path(scratch) / "score_int8.onnx"
        onnx.save(graph, source)
        try:
            _run_quantizer(source, target, feeds, kept_float)
        except _REFUSALS as error:
            raise ModelFileError(
                f"ONNX Runtime cannot quantize the network: {first_line(error)}", remedy='say scoring = "float"'
            ) from error
        return target.read_bytes()


def _run_quantizer(source: Path, target: Path, feeds: Sequence[Feeds], kept_float: Sequence[str]) -> None:
    from onnxruntime import quantization  # loads much, and only this needs it

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            self.left: Iterator[Feeds] = iter(feeds)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            given = next(self.left, None)
            return None if given is None else dict(given)

    quantization.quantize_static(
        str(source),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=list(_OPERATORS),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=list(kept_float),
        calibrate_method=quantization.CalibrationMethod.MinMax,
        extra_options={"MatMulConstBOnly": True},
    )


def _kept_float(graph: onnx.ModelProto) -> list[str]:
    """Name all nodes, and return those that stay float: the added ones, and those without maps as output."""
    inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True)
    shapes = {
        info.name: [axis.dim_value for axis in info.type.tensor_type.shape.dim] for info in inferred.graph.value_info
    }
    kept = []
    for number, node in enumerate(graph.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
        shape = shapes.get(node.output[0], [])
        is_map = len(shape) > 2 and int(np.prod([size or 1 for size in shape[2:]])) > 1
        if not node.output[0].startswith(PREFIX) or not is_map:
            kept.append(node.name)
    return kept


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress the quantizer's advice to run a pre-processing that our graphs have already had."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
