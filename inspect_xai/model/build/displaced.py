"""Detection of bundles of earlier versions whose maps were displaced from their cells."""

from collections.abc import Sequence
from pathlib import Path

import onnx

from inspect_xai.model.build.derive import PREFIX
from inspect_xai.model.build.feature_grid import place_cells
from inspect_xai.records import BlockEnd, InputSpec, Layout


def has_displaced_cells(predict: Path, ends: Sequence[BlockEnd], spec: InputSpec) -> bool:
    """Tell whether block ends of a bundle without recorded cells do not reach from edge to edge."""
    model = onnx.load(predict, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, tuple[int, ...]] = {"picture": (1, spec.depth, spec.height, spec.width)}
    for info in (*inferred.value_info, *inferred.output):
        axes = [axis.dim_value or 0 for axis in info.type.tensor_type.shape.dim]
        if axes and all(axes[1:]):
            shapes[info.name] = (1 if not axes[0] else axes[0], *axes[1:])
    tensors = {end.tensor: PREFIX + end.tensor for end in ends}
    placed, _ = place_cells(model, image="picture", layout=Layout.NCHW, shapes=shapes, ends=ends, tensors=tensors)
    return any(end.grid is not None for end in placed)
