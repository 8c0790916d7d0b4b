"""Derivatives of a network's layers: activations, convolution, pooling, normalization.

Each rule writes dx = d(seed)/d(input) as ONNX nodes, given dy = d(seed)/d(output). Where y tells as much as x, y is
used: x is then free to be fused with its producer (Conv and Relu become one kernel in ONNX Runtime). At a kink the
rules take the side that torch takes, so that ties (all-zero windows behind a Relu) select the same channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from inspect_xai.model.autodiff.builder import Rule, Step, Value


def _gelu_slope(step: Step) -> Value:
    """Exact: Phi(x) + x phi(x). Tanh form: y = x/2 (1 + t), t = tanh(u), u = sqrt(2/pi) (x + 0.044715 x^3)."""
    x = step.x
    if step.attribute("approximate", "none") == "tanh":
        scale = math.sqrt(2 / math.pi)
        t = (scale * (x + 0.044715 * (x * x * x))).then("Tanh")
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (scale * (1 + 3 * 0.044715 * (x * x)))
    cdf = 0.5 * (1 + (x * math.sqrt(0.5)).then("Erf"))
    return cdf + x * (-0.5 * (x * x)).then("Exp") * (1 / math.sqrt(2 * math.pi))


def _hard_swish_slope(step: Step) -> Value:
    """For y = x h with h = clip(x/6 + 1/2, 0, 1): h + x/6 inside the ramp."""
    gate = step.x.then("HardSigmoid", alpha=1 / 6, beta=0.5)
    return gate + (step.x * (1 / 6)).where_positive(gate * (1 - gate))


def _mish_slope(step: Step) -> Value:
    """For y = x t with t = tanh(softplus(x)): t + x (1 - t^2) sigmoid(x)."""
    t = step.x.then("Softplus").then("Tanh")
    return t + step.x * (1 - t * t) * step.x.then("Sigmoid")


def _swish_slope(step: Step) -> Value:
    """For y = x s with s = sigmoid(a x): s + a x s (1 - s)."""
    a = float(step.attribute("alpha", 1.0))
    s = (a * step.x).then("Sigmoid")
    return s * (1 + a * step.x * (1 - s))


def _pow_slope(step: Step) -> Value:
    """For y = x^p: p x^(p-1)."""
    exponent = step.known(1).astype(np.float64)
    return step.x.then("Pow", exponent - 1) * exponent


SLOPES: dict[str, Rule] = {
    "Abs": lambda s: s.x.then("Sign"),
    "Erf": lambda s: (-(s.x * s.x)).then("Exp") * (2 / math.sqrt(math.pi)),
    "Exp": lambda s: s.y,
    "Gelu": _gelu_slope,
    "HardSwish": _hard_swish_slope,
    "Log": lambda s: 1 / s.x,
    "Mish": _mish_slope,
    "Pow": _pow_slope,
    "Reciprocal": lambda s: -(s.y * s.y),
    "Sigmoid": lambda s: s.y * (1 - s.y),
    "Softplus": lambda s: s.x.then("Sigmoid"),
    "Sqrt": lambda s: 0.5 / s.y,
    "Swish": _swish_slope,
    "Tanh": lambda s: 1 - s.y * s.y,
}


def _rectified(step: Step, *, above: Value | float, below: Value) -> Value:
    """Multiply dy by `above` where y > 0, times `below` elsewhere."""
    positive = step.y.then("Greater", 0.0, dtype=TensorProto.BOOL)
    return step.dy * positive.then("Where", below.writer.constant(above, below.dtype), below, dtype=below.dtype)


def _relu(step: Step) -> Value:
    """For y = max(x, 0): dy where y > 0."""
    return step.dy.where_positive(step.y)


def _clip(step: Step) -> Value:
    """For y = min(max(x, low), high): dy strictly inside, as torch's ReLU6 has it."""
    low = step.known(1, step.attribute("min"))
    high = step.known(2, step.attribute("max"))
    above = step.y - low if low.item() is not None else None
    below = high.item() - step.y if high.item() is not None else None
    if above is None or below is None:
        inside = above or below
        return step.dy.where_positive(inside) if inside else step.dy
    return step.dy.where_positive(above * below)


def _leaky_relu(step: Step) -> Value:
    """For y = x where x > 0, else a x."""
    return _slope_below(step, step.writer.constant(step.attribute("alpha", 0.01), step.x.dtype))


def _p_relu(step: Step) -> Value:
    """For y = x where x > 0, else a x, with a learnt a."""
    return _slope_below(step, step.input(1))


def _slope_below(step: Step, slope: Value) -> Value:
    positive = step.x.then("Greater", 0.0, dtype=TensorProto.BOOL)
    return positive.then("Where", step.dy, step.dy * slope, dtype=step.dy.dtype)


def _elu(step: Step) -> Value:
    """For y = x where x > 0, else a (e^x - 1) = the slope - a."""
    return _rectified(step, above=1.0, below=step.y + step.attribute("alpha", 1.0))


def _celu(step: Step) -> Value:
    """For y = x where x > 0, else a (e^(x/a) - 1)."""
    return _rectified(step, above=1.0, below=step.y * (1 / step.attribute("alpha", 1.0)) + 1.0)


def _selu(step: Step) -> Value:
    """For y = g x where x > 0, else g a (e^x - 1)."""
    a, g = step.attribute("alpha", 1.67326319217681884765625), step.attribute("gamma", 1.05070102214813232421875)
    return _rectified(step, above=g, below=step.y + a * g)


def _hard_sigmoid(step: Step) -> Value:
    """For y = min(max(a x + b, 0), 1): a dy strictly inside."""
    inside = step.y * (1 - step.y)
    return step.dy.where_positive(inside) * float(step.attribute("alpha", 0.2))


@dataclass(frozen=True, slots=True)
class _Windows:
    """Per spatial axis: window i sees the inputs i * stride - begin + dilation * (0 .. kernel - 1)."""

    sizes: list[int]  # of the input
    counts: list[int]  # of windows, i.e. of the output
    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begins: list[int]  # padding in front

    def transposed(self) -> dict[str, Any]:
        """Attributes of the ConvTranspose that spreads the windows back over an input of exactly this size."""
        reach = _reach(self.counts, self.kernel, strides=self.strides, dilations=self.dilations)
        # negative: the last inputs are seen by no window (stride); larger than the padding: ceil mode looks beyond it
        ends = [full - begin - size for full, begin, size in zip(reach, self.begins, self.sizes, strict=True)]
        return {
            "kernel_shape": self.kernel,
            "strides": self.strides,
            "dilations": self.dilations,
            "pads": [*self.begins, *(max(end, 0) for end in ends)],
            "output_padding": [max(-end, 0) for end in ends],
        }


def _reach(counts: list[int], kernel: list[int], *, strides: list[int], dilations: list[int]) -> list[int]:
    """Return the span from the first element of the first window to the last of the last, per axis."""
    return [(c - 1) * s + d * (k - 1) + 1 for c, k, s, d in zip(counts, kernel, strides, dilations, strict=True)]


def _windows(step: Step, kernel: list[int]) -> _Windows:
    n = len(kernel)
    sizes, counts = step.sizes(step.node.input[0], start=2), step.sizes(step.node.output[0], start=2)
    strides = list(step.attribute("strides", [1] * n))
    dilations = list(step.attribute("dilations", [1] * n))
    begins = list(step.attribute("pads", [0] * n)[:n])
    mode = step.attribute("auto_pad", "NOTSET")
    if mode == "VALID":
        begins = [0] * n
    elif mode != "NOTSET":
        reach = _reach(counts, kernel, strides=strides, dilations=dilations)
        missing = [max(full - size, 0) for full, size in zip(reach, sizes, strict=True)]
        begins = [(pad + (mode == "SAME_LOWER")) // 2 for pad in missing]
    return _Windows(sizes, counts, kernel, strides, dilations, begins)


def _conv(step: Step) -> Value:
    """For y = x * W: the transposed convolution of dy with the same W, whose layout is what ConvTranspose wants.

    Where W only mixes channels, place by place, that is a convolution with W transposed, which ONNX Runtime has the
    faster kernel for.
    """
    channels, per_group, *kernel = step.sizes(step.node.input[1])
    windows, group = _windows(step, kernel), step.attribute("group", 1)
    if group == channels and per_group == 1:
        return _depthwise_conv(step, windows)
    if group == 1 and windows.counts == windows.sizes and {*kernel, *windows.strides} == {1}:
        return step.dy.then("Conv", step.input(1).then("Transpose", perm=[1, 0, *range(2, 2 + len(kernel))]))
    return step.dy.then("ConvTranspose", step.input(1), group=group, **windows.transposed())


def _depthwise_conv(step: Step, windows: _Windows) -> Value:
    """For y = x * W, channel by channel: dy convolved with the reversed W where the stride is 1.

    ONNX Runtime has a fast depthwise Conv but no fast depthwise ConvTranspose: this takes a quarter off the trace of
    an EfficientNet-Lite0. It reverses the few weights when it loads the graph.
    """
    channels, transposed = step.sizes(step.node.input[1], [0])[0], windows.transposed()
    axes = list(range(2, 2 + len(windows.kernel)))
    overlaps = [d * (k - 1) for d, k in zip(windows.dilations, windows.kernel, strict=True)]
    pads = [overlap - pad for overlap, pad in zip(overlaps * 2, transposed["pads"], strict=True)]
    if any(stride != 1 for stride in windows.strides) or min(pads) < 0:
        return step.dy.then("ConvTranspose", step.input(1), group=channels, **transposed)
    before_first = [np.iinfo(np.int64).min] * len(axes)
    reversed_weight = step.input(1).then("Slice", [-1] * len(axes), before_first, axes, [-1] * len(axes))
    return step.dy.then("Conv", reversed_weight, group=channels, dilations=windows.dilations, pads=pads)


def _average_pool(step: Step) -> Value:
    """For y = window sum / window count: every input gets dy / count from each window that holds it."""
    windows = _windows(step, list(step.attribute("kernel_shape")))
    single = [-1, 1, *windows.counts]  # every channel becomes a picture, so one kernel of ones serves all
    shared = (step.dy / _window_counts(step, windows)).reshape(single)
    ones = step.writer.constant(np.ones([1, 1, *windows.kernel]), step.dy.dtype)
    return shared.then("ConvTranspose", ones, **windows.transposed()).reshape(step.x.shape())


def _window_counts(step: Step, windows: _Windows) -> NDArray[np.float64]:
    """Count the elements each window averages, shape (1, 1, windows...)."""
    n = len(windows.sizes)
    pads_count = bool(step.attribute("count_include_pad", 0))
    ends = list(step.attribute("pads", [0] * 2 * n)[n:])
    counts = np.ones([1] * (2 + n))
    for i, size in enumerate(windows.sizes):
        first = np.arange(windows.counts[i])[:, None] * windows.strides[i] - windows.begins[i]
        seen = first + np.arange(windows.kernel[i]) * windows.dilations[i]
        low, high = (-windows.begins[i], size + ends[i]) if pads_count else (0, size)
        along = ((seen >= low) & (seen < high)).sum(axis=1)
        counts = counts * along.reshape([-1 if axis == i + 2 else 1 for axis in range(2 + n)])
    return counts


def _max_pool(step: Step) -> Value:
    """For y = x at the index of each window's first maximum: dy is added up at these indices."""
    if step.attribute("storage_order", 0):
        step.refuse("its indices count columns first (storage_order = 1)")
    pooled, *further = step.node.output
    if not any(further):
        step.node.output[:] = [pooled, f"{step.writer.prefix}indices_of_{pooled}"]
    indices = Value(step.node.output[1], TensorProto.INT64, step.writer)
    elements = step.x.then("Size", dtype=TensorProto.INT64).reshape([1])
    flat = step.zeros(elements).then(
        "ScatterElements", indices.reshape([-1]), step.dy.reshape([-1]), axis=0, reduction="add"
    )
    return flat.reshape(step.x.shape())


def _global_max_pool(step: Step) -> Value:
    """For y = x at its first maximum over space, which gets all of dy."""
    flat = step.x.reshape([0, 0, -1])
    first = flat.then("ArgMax", axis=2, keepdims=1, dtype=TensorProto.INT64)
    spread = step.zeros(flat.shape()).then("ScatterElements", first, step.dy.reshape([0, 0, 1]), axis=2)
    return spread.reshape(step.x.shape())


def _global_average_pool(step: Step) -> Value:
    """For y = mean over space: dy / (h w) everywhere."""
    return (step.dy / float(math.prod(step.sizes(step.node.input[0], start=2)))).then("Expand", step.x.shape())


def _batch_normalization(step: Step) -> Value:
    """For y = (x - mean) / sqrt(var + eps) * scale + bias: dy * scale / sqrt(var + eps)."""
    if step.attribute("training_mode", 0):
        step.refuse("it is in training mode; export the network in evaluation mode")
    factor = step.input(1) / (step.input(4) + step.attribute("epsilon", 1e-5)).then("Sqrt")
    return step.dy * _per_channel(step, factor)


def _per_channel(step: Step, values: Value) -> Value:
    """Reshape (C,) to (C, 1, ..) to match axis 1 of x."""
    return values.reshape([-1, *[1] * (step.rank(step.node.input[0]) - 2)])


def _normalized(x: Value, dn: Value, *, axes: Sequence[int], epsilon: float) -> Value:
    """For n = (x - mean) / sqrt(var + eps) over `axes`: dx = (dn - mean(dn) - n mean(dn n)) / sqrt(var + eps)."""
    centered = x - x.mean(axes)
    inverse = 1 / ((centered * centered).mean(axes) + epsilon).then("Sqrt")
    n = centered * inverse
    return (dn - dn.mean(axes) - n * (dn * n).mean(axes)) * inverse


def _layer_normalization(step: Step) -> Value:
    """For y = n * scale + bias with n normalized over the axes from `axis` on."""
    axes = range(step.axis(-1), step.rank(step.node.input[0]))
    return _normalized(step.x, step.dy * step.input(1), axes=axes, epsilon=step.attribute("epsilon", 1e-5))


def _instance_normalization(step: Step) -> Value:
    """For y = n * scale + bias with n normalized over space."""
    axes = range(2, step.rank(step.node.input[0]))
    dn = step.dy * _per_channel(step, step.input(1))
    return _normalized(step.x, dn, axes=axes, epsilon=step.attribute("epsilon", 1e-5))


def _group_normalization(step: Step) -> Value:
    """For y = n * scale + bias with n normalized over space and the channels of each group."""
    groups = step.attribute("num_groups")
    grouped = [0, groups, -1]
    dn = (step.dy * _per_channel(step, step.input(1))).reshape(grouped)
    dx = _normalized(step.x.reshape(grouped), dn, axes=[2], epsilon=step.attribute("epsilon", 1e-5))
    return dx.reshape(step.x.shape())


def _lrn(step: Step) -> Value:
    """For y = x s^-b with s = k + a/n S(x^2), S the sum over n neighboring channels.

    dx = dy s^-b - 2 b a/n x S^T(dy x s^(-b-1)); S is a band matrix over the channels.
    """
    n: int = step.attribute("size")
    k: float = step.attribute("bias", 1.0)
    a: float = step.attribute("alpha", 1e-4)
    b: float = step.attribute("beta", 0.75)
    (channels,) = step.sizes(step.node.input[0], [1])
    offset = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    band = ((offset >= -((n - 1) // 2)) & (offset <= n // 2)).astype(np.float64)
    flat = [0, 0, -1]
    x, dy = step.x.reshape(flat), step.dy.reshape(flat)
    s = k + a / n * step.writer.constant(band, x.dtype).then("MatMul", x * x)
    shared = step.writer.constant(band.T, x.dtype).then("MatMul", dy * x * s.then("Pow", -b - 1))
    return (dy * s.then("Pow", -b) - (2 * b * a / n) * x * shared).reshape(step.x.shape())


def _softmax(step: Step) -> Value:
    """For y = softmax(x): y (dy - sum(y dy))."""
    return step.y * (step.dy - (step.y * step.dy).sum([step.axis(-1)]))


def _log_softmax(step: Step) -> Value:
    """For y = log softmax(x): dy - e^y sum(dy)."""
    return step.dy - step.y.then("Exp") * step.dy.sum([step.axis(-1)])


def _quantize(step: Step) -> Value:
    """For y = round(x / scale) + zero: straight through where the integers do not saturate."""
    scale, zero = step.known(1), step.known(2, np.uint8(0))
    if scale.size != 1:
        step.refuse("it quantizes feature maps channel by channel")
    limits = np.iinfo(zero.dtype)
    low, high = ((int(limit) - int(zero.item())) * float(scale.item()) for limit in (limits.min, limits.max))
    held = step.x.then("Clip", low, high).then("Equal", step.x, dtype=TensorProto.BOOL)
    return step.dy * held.cast(step.dy.dtype)


LAYERS: dict[str, Rule] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Celu": _celu,
    "Clip": _clip,
    "Conv": _conv,
    "Elu": _elu,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "GroupNormalization": _group_normalization,
    "HardSigmoid": _hard_sigmoid,
    "InstanceNormalization": _instance_normalization,
    "LRN": _lrn,
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _log_softmax,
    "MaxPool": _max_pool,
    "PRelu": _p_relu,
    "QuantizeLinear": _quantize,
    "Relu": _relu,
    "Selu": _selu,
    "Softmax": _softmax,
}
