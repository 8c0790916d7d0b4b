"""A network in plain torch with the weights of its .onnx: what peers that explain torch modules are given.

Only the operators of the benchmark's networks (EfficientNet-Lite0, ResNets); tests/system/test_peers.py shows parity.
"""

from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

Said = dict[str, Any]


class Network(nn.Module):
    """One module per node, called in the graph's order.

    Attributes:
        tap: The module whose output the global pooling averages: the deepest map.
        passes: Pictures that went through so far.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        super().__init__()
        held = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
        made_by: dict[str, nn.Module] = {}
        self.entry, self.exit, self.passes = graph.input[0].name, graph.output[0].name, 0
        self.layers, self.wiring = nn.ModuleList(), []
        for node in graph.node:
            if node.op_type == "Identity" and node.input[0] in held:
                held[node.output[0]] = held[node.input[0]]
                continue
            said = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            module = _MAKERS[node.op_type](said, [held[name] for name in node.input if name in held])
            made_by[node.output[0]] = module
            self.layers.append(module)
            self.wiring.append(([name for name in node.input if name and name not in held], node.output[0]))
            if node.op_type in ("ReduceMean", "GlobalAveragePool"):
                self.tap = made_by[node.input[0]]

    def forward(self, picture: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) -> logits (N, K)."""
        self.passes += len(picture)
        values = {self.entry: picture}
        for module, (names, made) in zip(self.layers, self.wiring, strict=True):
            values[made] = module(*(values[name] for name in names))
        return values[self.exit]


def read_network(path: str) -> Network:
    """Read a network, ready for inference."""
    return Network(onnx.load(path).graph).eval()


class _Sum(nn.Module):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


def _padded(module: nn.Conv2d | nn.MaxPool2d, said: Said) -> nn.Module:
    top, left, bottom, right = said.get("pads", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        module.padding = (top, left)
        return module
    return nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), module)


def _conv(said: Said, held: list[Tensor]) -> nn.Module:
    weight, groups = held[0], said.get("group", 1)
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        stride=tuple(said.get("strides", (1, 1))),
        groups=groups,
        bias=len(held) > 1,
    )
    conv.weight.data = weight
    if conv.bias is not None:
        conv.bias.data = held[1]
    return _padded(conv, said)


def _linear(said: Said, held: list[Tensor]) -> nn.Module:
    after, before = held[0].shape
    linear = nn.Linear(before, after)
    linear.weight.data, linear.bias.data = held[0], held[1]
    return linear


def _max_pool(said: Said, held: list[Tensor]) -> nn.Module:
    return _padded(nn.MaxPool2d(tuple(said["kernel_shape"]), tuple(said["strides"])), said)


_MAKERS = {
    "Conv": _conv,
    "Gemm": _linear,
    "MaxPool": _max_pool,
    "Clip": lambda _said, held: nn.Hardtanh(float(held[0]), float(held[1])),
    "Relu": lambda _said, _held: nn.ReLU(),
    "Add": lambda _said, _held: _Sum(),
    "ReduceMean": lambda _said, _held: nn.AdaptiveAvgPool2d(1),
    "GlobalAveragePool": lambda _said, _held: nn.AdaptiveAvgPool2d(1),
    "Reshape": lambda _said, _held: nn.Flatten(),
    "Flatten": lambda _said, _held: nn.Flatten(),
}
