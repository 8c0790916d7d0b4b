"""Plain CNN graphs run by torch in float64."""

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch.nn import functional


class TorchGraph:
    """A plain CNN graph run by torch in float64, from any of its tensors on: an oracle where no module exists.

    `gated` holds what a float32 run found behind Clip nodes: gradients then pass where they passed in that run. Among
    millions of activations some always lie within float32 rounding of a kink.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.gated: dict[str, np.ndarray] = {}
        self.nodes = model.graph.node
        self.weights = {w.name: torch.tensor(numpy_helper.to_array(w)) for w in model.graph.initializer}
        self.output = model.graph.output[0].name

    def __call__(self, **given: torch.Tensor) -> torch.Tensor:
        values = {k: w.double() if w.is_floating_point() else w for k, w in self.weights.items()} | given
        for node in self.nodes:
            if node.output[0] not in values and all(name in values for name in node.input if name):
                attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
                inputs = [values[name] if name else None for name in node.input]
                y = getattr(self, node.op_type.lower())(*inputs, **attributes)
                if node.output[0] in self.gated:
                    passed = torch.tensor(self.gated[node.output[0]])
                    y = y.detach() + ((passed > inputs[1]) & (passed < inputs[2])) * (inputs[0] - inputs[0].detach())
                values[node.output[0]] = y
        self.values = values
        return values[self.output]

    def conv(self, x, w, b=None, *, group=1, pads=(0,) * 4, strides=(1, 1), dilations=(1, 1), **_):
        top, left, bottom, right = pads
        padded = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(padded, w, b, strides, 0, dilations, group)

    def clip(self, x, low=None, high=None):
        return functional.hardtanh(x, low.item(), high.item())

    def reducemean(self, x, axes, *, keepdims=1, **_):
        return x.mean(axes.tolist(), keepdim=bool(keepdims))

    def reshape(self, x, shape, **_):
        return x.reshape(shape.tolist())

    def gemm(self, a, b, c, *, transB=0, **_):
        return a @ (b.T if transB else b) + c

    def add(self, a, b):
        return a + b

    def relu(self, x):
        return x.relu()

    def matmul(self, a, b):
        return a @ b

    def transpose(self, x, *, perm):
        return x.permute(perm)

    def maxpool(self, x, *, kernel_shape, strides, **_):
        return functional.max_pool2d(x, kernel_shape, strides)

    def softmax(self, x, *, axis):
        return x.softmax(axis)
