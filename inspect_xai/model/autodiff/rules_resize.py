"""Derivative of Resize over rows and columns: interpolation is a matrix along each axis, so dx = Uh^T dy Uw.

Source: the ONNX operator's own definition of where an output pixel lies in the input (opset 19).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from inspect_xai.model.autodiff.builder import Step, Value

Axis = NDArray[np.float64]

_ROUNDINGS: dict[str, Callable[[Axis], Axis]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def resize(step: Step) -> Value:
    """For y = Uh x Uw^T: Uh^T dy Uw."""
    before, after = step.sizes(step.node.input[0], start=1), step.sizes(step.node.output[0], start=1)
    if len(before) != 3 or before[0] != after[0]:
        step.refuse("it resizes other axes than rows and columns")
    if step.attribute("antialias", 0) or step.attribute("exclude_outside", 0):
        step.refuse("it has no rule with antialias or exclude_outside")
    if step.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        step.refuse("it keeps the aspect ratio")
    rows, columns = (_matrix(step, axis, before[axis - 1], after[axis - 1]) for axis in (2, 3))
    dtype = step.dy.dtype
    return step.writer.constant(rows.T, dtype).then("MatMul", step.dy).then("MatMul", columns)


def _matrix(step: Step, axis: int, size_in: int, size_out: int) -> NDArray[np.float64]:
    """Write the interpolation along one axis as a matrix (size_out, size_in)."""
    where = step.attribute("coordinate_transformation_mode", "half_pixel")
    mode = step.attribute("mode", "nearest")
    scale = _scale(step, axis, size_out / size_in)
    place = _places(where, np.arange(size_out, dtype=np.float64), scale=scale, size_in=size_in)
    if place is None or mode not in ("nearest", "linear"):
        step.refuse(f"no rule for mode {mode!r} at {where!r} is known")
    matrix, row = np.zeros((size_out, size_in)), np.arange(size_out)
    if mode == "nearest":
        taken = _ROUNDINGS[step.attribute("nearest_mode", "round_prefer_floor")](place)
        matrix[row, np.clip(taken, 0, size_in - 1).astype(np.intp)] = 1
        return matrix
    place = np.clip(place, 0, size_in - 1)
    left = np.floor(place).astype(np.intp)
    right = np.minimum(left + 1, size_in - 1)
    matrix[row, left] = 1 - (place - left)
    matrix[row, right] += place - left  # at the far edge both are one cell
    return matrix


def _places(mode: str, pixel: Axis, *, scale: float, size_in: int) -> Axis | None:
    """Return where in the input the output's pixels lie; None for a mode without a rule."""
    single = len(pixel) == 1
    match mode:
        case "pytorch_half_pixel" | "align_corners" if single:
            return 0 * pixel
        case "half_pixel" | "pytorch_half_pixel":
            return (pixel + 0.5) / scale - 0.5
        case "asymmetric":
            return pixel / scale
        case "align_corners":
            return pixel * (size_in - 1) / (len(pixel) - 1)
    return None


def _scale(step: Step, axis: int, ratio: float) -> float:
    """Return the node's scale, which need not be the ratio of the sizes; else that ratio."""
    given = step.known(2, np.zeros(0, np.float32))
    axes = [place % 4 for place in step.attribute("axes", [0, 1, 2, 3])]
    return float(given[axes.index(axis)]) if given.size and axis in axes else ratio
