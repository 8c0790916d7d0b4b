"""One file of weights for all graphs of a bundle, stored and hashed once, mapped into memory by the runtime."""

from pathlib import Path

import onnx
from onnx import StringStringEntryProto, TensorProto

_SMALLEST_BYTES = 1024
_ALIGNMENT = 64  # a cache line, and what vector instructions want
_SHAPES = frozenset({TensorProto.INT64, TensorProto.INT32})  # shape inference and gradient rules read these


def move_weights(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Write the large weights of a model to a file.

    Args:
        model: With all weights inside, as raw data; stays as it is.
        path: File to make.

    Returns:
        The model with references to that file, to be saved in the file's folder; graphs derived from it carry them on.
    """
    light = onnx.ModelProto()
    light.CopyFrom(model)
    with path.open("xb") as file:
        for weight in light.graph.initializer:
            if len(weight.raw_data) < _SMALLEST_BYTES or weight.data_type in _SHAPES:
                continue
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            entries = {"location": path.name, "offset": file.tell(), "length": file.write(weight.raw_data)}
            weight.ClearField("raw_data")
            weight.data_location = TensorProto.EXTERNAL
            weight.external_data.extend(
                StringStringEntryProto(key=key, value=str(value)) for key, value in entries.items()
            )
    return light
