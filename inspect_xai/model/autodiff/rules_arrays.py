"""Derivatives of array operators: arithmetic, matrix products, reductions, and reordering.

Each rule writes dx = d(seed)/d(input) as ONNX nodes, given dy = d(seed)/d(output). Sizes that are needed as numbers
must be fixed; the batch size may be open, so shapes are read at run time where they only steer a Reshape or Expand.
"""

import math

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from inspect_xai.model.autodiff.builder import InputRule, Rule, Shape, Step, Value


def _reduced_axes(step: Step) -> list[int]:
    rank = step.rank(step.node.input[0])
    given = step.known(1, step.attribute("axes", []))
    if given.size == 0:
        return [] if step.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(axis) % rank for axis in given.ravel())


def _kept(step: Step, value: Value) -> Value:
    """Put the reduced axes back, as size 1, into a tensor of the output's shape."""
    axes = _reduced_axes(step)
    return value if step.attribute("keepdims", 1) or not axes else value.then("Unsqueeze", axes)


def _reduce_sum(step: Step) -> Value:
    """For y = sum(x): dy everywhere."""
    return _kept(step, step.dy).then("Expand", step.x.shape())


def _reduce_mean(step: Step) -> Value:
    """For y = sum(x) / n: dy / n everywhere."""
    n = math.prod(step.sizes(step.node.input[0], _reduced_axes(step)))
    return (_kept(step, step.dy) / float(n)).then("Expand", step.x.shape())


def _reduce_extreme(step: Step) -> Value:
    """For y = max(x) or min(x): dy in equal shares to all that reach it."""
    reached = step.x.then("Equal", _kept(step, step.y), dtype=TensorProto.BOOL).cast(step.dy.dtype)
    return reached * (_kept(step, step.dy) / reached.sum(_reduced_axes(step)))


def _reduce_l2(step: Step) -> Value:
    """For y = sqrt(sum(x^2)): dy x / y, and 0 where all x are."""
    tiny = float(np.finfo(np.float32).tiny)
    return step.x * (_kept(step, step.dy) / _kept(step, step.y).then("Max", tiny))


def _reduce_log_sum_exp(step: Step) -> Value:
    """For y = log(sum(e^x)): dy e^(x-y)."""
    return _kept(step, step.dy) * (step.x - _kept(step, step.y)).then("Exp")


def _same(step: Step) -> Value:
    """For y = x: dy."""
    return step.dy


def _dropout(step: Step) -> Value:
    """For y = x, as it is outside training: dy."""
    if bool(step.known(2, default=False)):
        step.refuse("it is in training mode; export the network in evaluation mode")
    return step.dy


def _cast(step: Step) -> Value:
    """For y = x in another precision: dy in that of x."""
    return step.dy.cast(step.x.dtype)


def _reshaped(step: Step) -> Value:
    """For y = x in another shape: dy in the shape of x, read at run time because the batch size may be open."""
    return step.dy.reshape(step.x.shape())


def _expand(step: Step) -> Value:
    """For y = x repeated: dy summed over the repeats."""
    return _unbroadcast(step, step.dy, 0)


def _transpose(step: Step) -> Value:
    """For y = x with its axes in another order: dy with them put back in place."""
    order = step.attribute("perm", list(range(step.rank(step.node.input[0])))[::-1])
    return step.dy.then("Transpose", perm=[int(axis) for axis in np.argsort(order)])


def _depth_to_space(step: Step) -> Value:
    """For y[c, h b + i, w b + j] = x[channel(c, i, j), h, w]: SpaceToDepth, in the order of the mode."""
    b = step.attribute("blocksize")
    if step.attribute("mode", "DCR") == "DCR":
        return step.dy.then("SpaceToDepth", blocksize=b)
    _, height, width = step.sizes(step.node.input[0], start=1)
    cells = step.dy.reshape([0, 0, height, b, width, b]).then("Transpose", perm=[0, 1, 3, 5, 2, 4])
    return cells.reshape(step.x.shape())


def _space_to_depth(step: Step) -> Value:
    """Apply the inverse of DepthToSpace."""
    return step.dy.then("DepthToSpace", blocksize=step.attribute("blocksize"))


def _split(step: Step) -> Value:
    """For y_0, y_1, .. = consecutive parts of x: their dy behind each other, zeros where a part has none."""
    parts = [
        step.zeros(step.writer.value(name).shape()) if dy is None else dy
        for name, dy in zip(step.node.output, step.cotangents, strict=True)
    ]
    return parts[0].then("Concat", *parts[1:], axis=step.axis(0))


def _slice(step: Step) -> Value:
    """For y = x[start:end:step] per axis: dy among zeros."""
    rank = step.rank(step.node.input[0])
    starts, ends = step.known(1), step.known(2)
    axes = step.known(3, np.arange(starts.size))
    dx = step.dy
    for start, end, axis, stride in zip(starts, ends, axes % rank, step.known(4, np.ones_like(starts)), strict=True):
        if (start, stride) == (0, 1) and end >= np.iinfo(np.int32).max:
            continue  # all of an axis whose size may be open
        (size,) = step.sizes(step.node.input[0], [axis])
        stop = None if end < -size else int(end)  # counting down, "before the first" must not wrap around
        dx = _scattered(step, dx, indices=np.arange(size)[int(start) : stop : int(stride)], axis=int(axis), size=size)
    return dx


def _gather(step: Step) -> Value:
    """For y = x[indices] along one axis: dy added up at the indices."""
    axis = step.axis(0)
    (size,) = step.sizes(step.node.input[0], [axis])
    indices = step.known(1).astype(np.int64).ravel() % size
    return _scattered(step, _flat_at(step, step.dy, axis, indices.size), indices=indices, axis=axis, size=size)


def _flat_at(step: Step, dy: Value, axis: int, length: int) -> Value:
    """Give dy one axis in place of those that the indices brought in."""
    front, back = step.x.shape(0, axis), step.x.shape(axis + 1)
    return dy.reshape(front.then("Concat", [length], back, axis=0))


def _scattered(step: Step, dy: Value, *, indices: NDArray[np.int64], axis: int, size: int) -> Value:
    """Add up the slices dy[.., k, ..] at position indices[k] of an axis of the given size."""
    if np.array_equal(indices, np.arange(indices[0], indices[0] + indices.size)):
        first = int(indices[0])  # neighbors in order, the usual case: zeros in front and behind
        return dy.then("Pad", [first, size - first - indices.size], None, [axis])
    shape = dy.shape(0, axis).then("Concat", [size], dy.shape(axis + 1), axis=0)
    along = [1] * step.rank(step.node.input[0])
    along[axis] = indices.size
    places = step.writer.constant(indices.reshape(along), TensorProto.INT64).then("Expand", dy.shape())
    return step.zeros(shape).then("ScatterElements", places, dy, axis=axis, reduction="add")


def _pad(step: Step) -> Value:
    """For y = x with a border: dy without it; what the border copied from x is added where it came from."""
    rank = step.rank(step.node.input[0])
    pads = step.known(1).astype(np.int64)
    axes = step.known(3, np.arange(rank)) % rank
    mode = step.attribute("mode", "constant")
    if mode == "constant":
        return step.dy.then("Pad", -pads, None, axes.astype(np.int64))
    dx = step.dy
    for axis, begin, end in zip(axes, pads[: axes.size], pads[axes.size :], strict=True):
        if begin or end:
            (size,) = step.sizes(step.node.input[0], [axis])
            indices = np.pad(np.arange(size), (begin, end), mode=mode)
            dx = _scattered(step, dx, indices=indices, axis=int(axis), size=size)
    return dx


def _unbroadcast(step: Step, gradient: Value, index: int) -> Value:
    """Sum a gradient of the output's shape over the axes along which the input was repeated."""
    name = step.node.input[index]
    return _summed_to(gradient, step.shape(step.node.output[0]), step.shape(name), like=step.input(index))


def _summed_to(gradient: Value, wide: Shape, narrow: Shape, *, like: Value) -> Value:
    new = len(wide) - len(narrow)
    stretched = [new + axis for axis, size in enumerate(narrow) if size == 1 and wide[new + axis] != 1]
    gradient = gradient.sum([*range(new), *stretched])
    return gradient.reshape(like.shape()) if new else gradient


def _add(step: Step, index: int) -> Value:
    """For y = a + b + ..: dy."""
    return _unbroadcast(step, step.dy, index)


def _sub(step: Step, index: int) -> Value:
    """For y = a - b: dy and -dy."""
    return _unbroadcast(step, -step.dy if index else step.dy, index)


def _mul(step: Step, index: int) -> Value:
    """For y = a b: dy times the other one."""
    return _unbroadcast(step, step.dy * step.input(1 - index), index)


def _div(step: Step, index: int) -> Value:
    """For y = a / b: dy / b, and -dy y / b."""
    quotient = step.dy / step.input(1)
    return _unbroadcast(step, -(quotient * step.y) if index else quotient, index)


def _mean(step: Step, index: int) -> Value:
    """For y = (a + b + ..) / n: dy / n."""
    return _unbroadcast(step, step.dy / float(len(step.node.input)), index)


def _extreme(step: Step, index: int) -> Value:
    """For y = max(a, b, ..) or min: dy in equal shares to those that reach it."""
    reached = [
        step.input(i).then("Equal", step.y, dtype=TensorProto.BOOL).cast(step.dy.dtype)
        for i in range(len(step.node.input))
    ]
    total = reached[0]
    for other in reached[1:]:
        total = total + other
    return _unbroadcast(step, step.dy * reached[index] / total, index)


def _where(step: Step, index: int) -> Value:
    """For y = a where the condition holds, else b: dy there, 0 elsewhere."""
    zero = step.writer.constant(0.0, step.dy.dtype)
    branches = (step.dy, zero) if index == 1 else (zero, step.dy)
    return _unbroadcast(step, step.input(0).then("Where", *branches, dtype=step.dy.dtype), index)


def _concat(step: Step, index: int) -> Value:
    """For y = parts behind each other: the same part of dy."""
    axis = step.axis(0)
    start = sum(size for name in step.node.input[:index] for size in step.sizes(name, [axis]))
    (size,) = step.sizes(step.node.input[index], [axis])
    return step.dy.then("Slice", [start], [start + size], [axis])


def _gemm(step: Step, index: int) -> Value:
    """For y = alpha A' B' + beta C, A' being A or its transpose: dA' = alpha dy B'^T, dB' = alpha A'^T dy, beta dy."""
    if index == 2:
        return _unbroadcast(step, step.dy * step.attribute("beta", 1.0), 2)
    turned, alpha = (step.attribute("transA", 0), step.attribute("transB", 0)), step.attribute("alpha", 1.0)
    first, second = step.dy, step.input(1 - index)
    if index == 0 and turned[0]:
        return second.then("Gemm", first, alpha=alpha, transA=turned[1], transB=1)
    if index == 0:
        return first.then("Gemm", second, alpha=alpha, transB=1 - turned[1])
    if turned[1]:
        return first.then("Gemm", second, alpha=alpha, transA=1, transB=turned[0])
    return second.then("Gemm", first, alpha=alpha, transA=1 - turned[0])


def _mat_mul(step: Step, index: int) -> Value:
    """For y = A B: dA = dy B^T, dB = A^T dy, summed over the axes along which a stack of matrices was repeated."""
    ranks = [step.rank(name) for name in step.node.input]
    wide, narrow = step.shape(step.node.output[0]), step.shape(step.node.input[index])
    if 1 in ranks:
        step.refuse("one of its factors is a vector")
    swap = [*range(ranks[1 - index] - 2), ranks[1 - index] - 1, ranks[1 - index] - 2]
    other = step.input(1 - index).then("Transpose", perm=swap)
    gradient = other.then("MatMul", step.dy) if index else step.dy.then("MatMul", other)
    return _summed_to(gradient, (*wide[:-2], *narrow[-2:]), narrow, like=step.input(index))


EVERY_INPUT: dict[str, InputRule] = {
    "Add": _add,
    "Concat": _concat,
    "Div": _div,
    "Gemm": _gemm,
    "MatMul": _mat_mul,
    "Max": _extreme,
    "Mean": _mean,
    "Min": _extreme,
    "Mul": _mul,
    "Sub": _sub,
    "Sum": _add,
    "Where": _where,
}


FIRST_INPUT: dict[str, Rule] = {
    "Cast": _cast,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _same,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _reshaped,
    "Gather": _gather,
    "Identity": _same,
    "Neg": lambda s: -s.dy,
    "Pad": _pad,
    "ReduceL2": _reduce_l2,
    "ReduceLogSumExp": _reduce_log_sum_exp,
    "ReduceMax": _reduce_extreme,
    "ReduceMean": _reduce_mean,
    "ReduceMin": _reduce_extreme,
    "ReduceSum": _reduce_sum,
    "Reshape": _reshaped,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _reshaped,
    "Transpose": _transpose,
    "Unsqueeze": _reshaped,
}
