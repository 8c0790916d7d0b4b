"""Tiny CNNs of every family as torch modules: each factory says in one line what its block ends are.

A toy is a chain of stages and a head: stage k ends where the family's k-th convolutional block ends (method notes
1.4), so `Toy.taps(picture)` are the tensors that block finding should choose and that gradients are taken of.
"Relu 8@32" is a tensor of 8 channels and 32 x 32 pixels that a Relu puts out, for a picture of 64 x 64 pixels.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

CLASSES = 5


class Toy(nn.Module):
    """Stages from block end to block end, then a head that makes the output of the last block end."""

    def __init__(self, stages: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.head = head

    def taps(self, picture: Tensor) -> list[Tensor]:
        """Return the block ends, shallow to deep, each (N, C, h, w)."""
        tensors = [picture]
        for stage in self.stages:
            tensors.append(stage(tensors[-1]))
        return tensors[1:]

    def forward(self, picture: Tensor) -> Tensor:
        """Output (N, K) for pictures (N, C, H, W)."""
        output: Tensor = self.head(self.taps(picture)[-1])
        return output


def conv_bn(
    before: int, after: int, kernel: int = 3, *, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    """Convolution and BatchNorm, then the activation (Relu unless said otherwise; nn.Identity() for none)."""
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU() if act is None else act)


def linear_head(channels: int, classes: int = CLASSES) -> nn.Sequential:
    """Global average pooling and one linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def vgg(*, norm: bool = False) -> Toy:
    """Relu 6@64, 8@32, 12@16, 16@8, each in front of a max-pool; adaptive pool to 2x2 and two linear layers."""

    def stage(before: int, after: int, *, first: bool = False) -> nn.Sequential:
        layers: list[nn.Module] = [] if first else [nn.MaxPool2d(2)]
        for width in (before, after):
            layers.append(nn.Conv2d(width, after, 3, padding=1))
            layers += [nn.BatchNorm2d(after)] if norm else []
            layers.append(nn.ReLU(inplace=True))
        return nn.Sequential(*layers)

    stages = [stage(3, 6, first=True), stage(6, 8), stage(8, 12), stage(12, 16)]
    classifier = nn.Sequential(
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, CLASSES),
    )
    return Toy(stages, classifier)


class Residual(nn.Module):
    """act(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.body(x) + self.shortcut(x))
        return y


def _shortcut(before: int, after: int, stride: int) -> nn.Module | None:
    return conv_bn(before, after, 1, stride=stride, act=nn.Identity()) if (before, stride) != (after, 1) else None


def basic_block(before: int, after: int, stride: int = 1) -> Residual:
    body = nn.Sequential(conv_bn(before, after, stride=stride), conv_bn(after, after, act=nn.Identity()))
    return Residual(body, _shortcut(before, after, stride), nn.ReLU())


def bottleneck(before: int, after: int, stride: int = 1, *, groups: int = 1, gate: bool = False) -> Residual:
    inner = after // 2
    body = nn.Sequential(
        conv_bn(before, inner, 1),
        conv_bn(inner, inner, stride=stride, groups=groups),
        SqueezeExcite(inner) if gate else nn.Identity(),
        conv_bn(inner, after, 1, act=nn.Identity()),
    )
    return Residual(body, _shortcut(before, after, stride), nn.ReLU())


def _residual_stages(block: Callable[..., nn.Module], widths: Sequence[int], depth: int) -> list[nn.Module]:
    """Stem, then stages of blocks; the first stage follows a max-pool, the others begin with a stride."""
    stages: list[nn.Module] = [conv_bn(3, widths[0], 7, stride=2)]
    for k, (before, after) in enumerate(itertools.pairwise(widths)):
        first = block(before, after, 1 if k == 0 else 2)
        rest = [block(after, after) for _ in range(depth - 1)]
        stages.append(nn.Sequential(*([nn.MaxPool2d(3, 2, 1)] if k == 0 else []), first, *rest))
    return stages


def resnet18() -> Toy:
    """Relu 6@32 (stem), 6@16, 8@8, 12@4, 16@2, each behind the Add of the stage's last block."""
    return Toy(_residual_stages(basic_block, [6, 6, 8, 12, 16], 2), linear_head(16))


def resnet50() -> Toy:
    """Relu 6@32 (stem), 8@16, 12@8, 16@4, 24@2; bottlenecks with projection shortcuts."""
    return Toy(_residual_stages(bottleneck, [6, 8, 12, 16, 24], 2), linear_head(24))


def resnext() -> Toy:
    """As resnet50, the 3x3 convolutions in 4 groups."""
    return Toy(_residual_stages(functools.partial(bottleneck, groups=4), [8, 16, 16, 24, 32], 2), linear_head(32))


def regnet() -> Toy:
    """Stem of stride 2 without pooling, then grouped bottlenecks with squeeze-excite: Relu 8@32, 16@16, 16@8, 24@4."""
    stages: list[nn.Module] = [conv_bn(3, 8, stride=2)]
    for before, after in ((8, 16), (16, 16), (16, 24)):
        blocks = [bottleneck(before, after, 2, groups=2, gate=True), bottleneck(after, after, groups=2, gate=True)]
        stages.append(nn.Sequential(*blocks))
    return Toy(stages, linear_head(24))


def preact_resnet() -> Toy:
    """Relu 8@32, 12@16, 16@8: the BatchNorm and Relu behind the Add, where branch and shortcut of the next one part."""

    def act(width: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(width), nn.ReLU()]

    def body(before: int, after: int, stride: int = 1) -> list[nn.Module]:
        return [conv_bn(before, after, stride=stride), nn.Conv2d(after, after, 3, padding=1)]

    def stage(enter: nn.Module, width: int) -> nn.Sequential:
        return nn.Sequential(enter, Residual(nn.Sequential(*act(width), *body(width, width))), *act(width))

    def enter(before: int, after: int) -> nn.Module:
        return Residual(nn.Sequential(*body(before, after, 2)), nn.Conv2d(before, after, 1, 2))

    stages = [stage(nn.Conv2d(3, 8, 3, 2, 1), 8), stage(enter(8, 12), 12), stage(enter(12, 16), 16)]
    return Toy(stages, linear_head(16))


class Branches(nn.Module):
    """Several ways from the same tensor, concatenated over the channels."""

    def __init__(self, *ways: nn.Module) -> None:
        super().__init__()
        self.ways = nn.ModuleList(ways)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([way(x) for way in self.ways], 1)


def densenet() -> Toy:
    """Relu 8@32 (stem), Conv 10@16 and 13@8 (transitions, in front of their average pool), Relu 25@4 (last norm)."""

    def norm_conv(before: int, after: int, kernel: int) -> nn.Sequential:
        conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
        return nn.Sequential(nn.BatchNorm2d(before), nn.ReLU(), conv)

    def dense(width: int, growth: int = 4, layers: int = 3) -> nn.Sequential:
        grown = [width + growth * k for k in range(layers)]
        bottlenecks = [nn.Sequential(norm_conv(w, 2 * growth, 1), norm_conv(2 * growth, growth, 3)) for w in grown]
        return nn.Sequential(*[Branches(nn.Identity(), layer) for layer in bottlenecks])

    stages = [
        conv_bn(3, 8, 7, stride=2),
        nn.Sequential(nn.MaxPool2d(3, 2, 1), dense(8), norm_conv(20, 10, 1)),
        nn.Sequential(nn.AvgPool2d(2), dense(10), norm_conv(22, 13, 1)),
        nn.Sequential(nn.AvgPool2d(2), dense(13), nn.BatchNorm2d(25), nn.ReLU()),
    ]
    return Toy(stages, linear_head(25))


def inception() -> Toy:
    """Relu 6@45, Relu 8@20, Concat 20@9, Concat 36@4 of 96 px: unpadded stem, 1x7 and 7x1 kernels, strided concats."""

    def valid(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(before, after, kernel, stride, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(after, eps=1e-3), nn.ReLU())

    def flat(before: int, after: int) -> nn.Sequential:
        wide, high = nn.Conv2d(before, after, (1, 7), padding=(0, 3)), nn.Conv2d(after, after, (7, 1), padding=(3, 0))
        return nn.Sequential(wide, nn.ReLU(), high, nn.ReLU())

    def module(before: int) -> Branches:
        pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_bn(before, 4, 1))
        return Branches(
            conv_bn(before, 4, 1), nn.Sequential(conv_bn(before, 4, 1), conv_bn(4, 6)), flat(before, 6), pool
        )

    reduction = Branches(valid(20, 8, 3, 2), nn.Sequential(conv_bn(20, 6, 1), valid(6, 8, 3, 2)), nn.MaxPool2d(3, 2))
    stages = [
        nn.Sequential(valid(3, 6, 3, 2), valid(6, 6, 3), conv_bn(6, 6)),
        nn.Sequential(nn.MaxPool2d(3, 2), conv_bn(6, 6, 1), valid(6, 8, 3)),
        nn.Sequential(nn.MaxPool2d(3, 2), module(8), module(20)),
        reduction,
    ]
    return Toy(stages, linear_head(36))


def googlenet() -> Toy:
    """Relu 6@32, Relu 10@16, Concat 20@8, Concat 20@4; max-pools in ceil mode, also inside the modules."""

    def module(before: int) -> Branches:
        pool = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv_bn(before, 4, 1))
        ways = [nn.Sequential(conv_bn(before, 4, 1), conv_bn(4, 6)) for _ in range(2)]
        return Branches(conv_bn(before, 4, 1), *ways, pool)

    def pool(kernel: int = 3) -> nn.Module:
        return nn.MaxPool2d(kernel, 2, ceil_mode=True)

    stages = [
        conv_bn(3, 6, 7, stride=2),
        nn.Sequential(pool(), conv_bn(6, 6, 1), conv_bn(6, 10)),
        nn.Sequential(pool(), module(10), module(20)),
        nn.Sequential(pool(2), module(20)),
    ]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(20, CLASSES))
    return Toy(stages, head)


def squeezenet() -> Toy:
    """Relu 8@31, Concat 12@15, Concat 20@7; the head is a class map: 1x1 convolution to the classes, Relu, mean."""

    def fire(before: int, squeeze: int, expand: int) -> nn.Sequential:
        def conv(width: int, after: int, kernel: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(width, after, kernel, padding=kernel // 2), nn.ReLU())

        return nn.Sequential(conv(before, squeeze, 1), Branches(conv(squeeze, expand, 1), conv(squeeze, expand, 3)))

    stages = [
        nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), fire(8, 4, 6), fire(12, 4, 6)),
        nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), fire(12, 6, 10), fire(20, 6, 10)),
    ]
    to_classes = nn.Conv2d(20, CLASSES, 1)
    return Toy(stages, nn.Sequential(nn.Dropout(), to_classes, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))


class SqueezeExcite(nn.Module):
    """Channels times a gate computed from their means."""

    def __init__(self, width: int, *, act: nn.Module | None = None, gate: nn.Module | None = None) -> None:
        super().__init__()
        inner = max(width // 4, 2)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, inner, 1),
            act or nn.ReLU(),
            nn.Conv2d(inner, width, 1),
            gate or nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.gate(x)
        return y


def inverted(
    before: int,
    after: int,
    stride: int,
    *,
    act: type[nn.Module],
    expand: int = 3,
    kernel: int = 3,
    gate: nn.Module | None = None,
) -> nn.Module:
    """1x1 expansion, depthwise convolution, gate, linear 1x1 projection; a shortcut where the shapes allow one."""
    inner = before * expand
    body = nn.Sequential(
        *([conv_bn(before, inner, 1, act=act())] if expand > 1 else []),
        conv_bn(inner, inner, kernel, stride=stride, groups=inner, act=act()),
        *([gate] if gate else []),
        conv_bn(inner, after, 1, act=nn.Identity()),
    )
    return Residual(body) if (before, stride) == (after, 1) else body


def _no_gate(_width: int) -> None:
    return None


def _inverted_net(act: type[nn.Module], *, gate: Callable[[int], nn.Module | None] = _no_gate, kernel: int = 3) -> Toy:
    """Linear block outputs 6@32, 8@16, 10@8 in front of the next expansion, then the activated head 24@4."""
    block = functools.partial(inverted, act=act)
    stages = [
        nn.Sequential(conv_bn(3, 6, stride=2, act=act()), block(6, 6, 1, expand=1, gate=gate(6))),
        nn.Sequential(block(6, 8, 2, gate=gate(18)), block(8, 8, 1, gate=gate(24))),
        nn.Sequential(block(8, 10, 2, gate=gate(24), kernel=kernel), block(10, 10, 1, gate=gate(30), kernel=kernel)),
        nn.Sequential(block(10, 12, 2, gate=gate(30)), block(12, 12, 1, gate=gate(36)), conv_bn(12, 24, 1, act=act())),
    ]
    return Toy(stages, nn.Sequential(*linear_head(24)[:-1], nn.Dropout(0.2), nn.Linear(24, CLASSES)))


def mobilenet_v2() -> Toy:
    """Add 6@32, 8@16, 10@8 (before expansion), Clip 24@4."""
    return _inverted_net(nn.ReLU6)


def mobilenet_v3() -> Toy:
    """As mobilenet_v2 with HardSwish and gates of HardSigmoid; HardSwish 24@4; a second linear layer in the head."""
    toy = _inverted_net(nn.Hardswish, gate=lambda width: SqueezeExcite(width, gate=nn.Hardsigmoid()), kernel=5)
    toy.head = nn.Sequential(*linear_head(24, 16), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(16, CLASSES))
    return toy


def efficientnet() -> Toy:
    """As mobilenet_v2 with SiLU and squeeze-excite; Mul 24@4."""
    return _inverted_net(nn.SiLU, gate=lambda width: SqueezeExcite(width, act=nn.SiLU()), kernel=5)


def efficientnet_lite() -> Toy:
    """As mobilenet_v2, with 5x5 kernels."""
    return _inverted_net(nn.ReLU6, kernel=5)


def mnasnet() -> Toy:
    """As mobilenet_v2 with Relu; Relu 24@4."""
    return _inverted_net(nn.ReLU, kernel=5)


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half are convolved (both are, where the unit halves the picture); then a shuffle."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.strided = before != after
        stride, width, half = (2, before, after // 2) if self.strided else (1, after // 2, after // 2)
        depthwise = conv_bn(half, half, stride=stride, groups=half, act=nn.Identity())
        self.branch = nn.Sequential(conv_bn(width, half, 1), depthwise, conv_bn(half, half, 1))
        passing = conv_bn(width, width, stride=stride, groups=width, act=nn.Identity())
        self.passing = nn.Sequential(passing, conv_bn(width, half, 1)) if self.strided else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        left, right = (x, x) if self.strided else x.chunk(2, dim=1)
        y = torch.cat([self.passing(left), self.branch(right)], dim=1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet() -> Toy:
    """Relu 6@32 (the max-pool behind it is no block of its own), shuffled 12@8, Relu 32@4 (last 1x1 convolution)."""
    stages = [
        conv_bn(3, 6, stride=2),
        nn.Sequential(nn.MaxPool2d(3, 2, 1), ShuffleUnit(6, 12), ShuffleUnit(12, 12)),
        nn.Sequential(ShuffleUnit(12, 20), ShuffleUnit(20, 20), conv_bn(20, 32, 1)),
    ]
    return Toy(stages, linear_head(32))


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of an NCHW tensor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y


class ConvNextBlock(nn.Module):
    """Depthwise 7x7, LayerNorm, two linear layers with Gelu, layer scale, shortcut."""

    def __init__(self, width: int, approximate: str) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        widen, narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mix = nn.Sequential(nn.LayerNorm(width, eps=1e-6), widen, nn.GELU(approximate), narrow)
        self.scale = nn.Parameter(torch.linspace(0.2, 0.5, width).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.scale * self.mix(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y


def convnext() -> Toy:
    """Normed 8@16, normed 12@8 (the LayerNorm in front of the strided convolution), Add 16@4; exact and tanh Gelu."""

    def blocks(width: int) -> list[nn.Module]:
        return [ConvNextBlock(width, "none"), ConvNextBlock(width, "tanh")]

    stages = [
        nn.Sequential(nn.Conv2d(3, 8, 4, 4), ChannelNorm(8), *blocks(8), ChannelNorm(8)),
        nn.Sequential(nn.Conv2d(8, 12, 2, 2), *blocks(12), ChannelNorm(12)),
        nn.Sequential(nn.Conv2d(12, 16, 2, 2), *blocks(16)),
    ]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), ChannelNorm(16), nn.Flatten(), nn.Linear(16, CLASSES))
    return Toy(stages, head)


def plain(*tail: nn.Module, depth: int = 3, classes: int = CLASSES) -> Toy:
    """Relu 6@32, 8@16, 12@8: nothing but convolutions with stride; `tail` follows the linear layer."""
    stages = [conv_bn(depth, 6, stride=2), conv_bn(6, 8, stride=2), conv_bn(8, 12, stride=2)]
    return Toy(stages, nn.Sequential(*linear_head(12, classes), *tail))


class Normalize(nn.Module):
    """Pixels 0..255 to (pixel / 255 - mean) / std."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.45, 0.4]).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]).reshape(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        y: Tensor = (pixels / 255.0 - self.mean) / self.std
        return y


def preprocessing_inside() -> Toy:
    """As plain, fed with pixels 0..255."""
    toy = plain()
    toy.stages[0] = nn.Sequential(Normalize(), toy.stages[0])
    return toy


class MeanHead(nn.Module):
    """Global pooling written as mean(dim), then max over the classes' groups: ReduceMean and ReduceMax in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 2 * CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(dim=(2, 3))).reshape(-1, CLASSES, 2).amax(dim=2)


def mean_head() -> Toy:
    """As plain, the head pools with ReduceMean and takes the better of two units per class."""
    toy = plain()
    toy.head = MeanHead()
    return toy
