"""Toy networks as modules with seeded weights, and how they become ONNX.

TOYS["resnet18"].make()            the module, weights as they are in every run
toy_model("resnet18")              its ONNX graph, exported once per process
toy_model("resnet18", taps=True)   the same with the block ends as further outputs tap_0, tap_1, ..
"""

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from inspect_xai.records import Activation, Channels, ExplainSpec, Fit, InputSpec, ModelCard, OutputSpec, VerdictSpec
from tests.support import toy_families as families
from tests.support.toy_families import CLASSES, Toy

torch.set_num_threads(1)  # the suite runs several workers on few cores


@dataclass(frozen=True, slots=True)
class Family:
    """A toy and what a model card would say of it."""

    build: Callable[[], Toy]
    shape: tuple[int, int, int] = (3, 64, 64)  # of one picture: C, H, W
    activation: str = "softmax"  # what makes probabilities of the output; "none": it holds some already
    classes: int = CLASSES
    pixels: bool = False  # fed with 0..255 in place of noise of unit variance

    def make(self) -> Toy:
        """Return the module with its seeded weights, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            return _settle(self.build(), self.pictures(8, seed=7), seed=11)

    def pictures(self, count: int, *, seed: int) -> Tensor:
        """Noise pictures (count, C, H, W) with some structure, in the units that the toy takes."""
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(count, self.shape[0], 6, 6, generator=generator)
        fine = torch.randn(count, *self.shape, generator=generator)
        noise = functional.interpolate(coarse, size=self.shape[1:], mode="bilinear") + 0.5 * fine
        return (128 + 50 * noise).clamp(0, 255) if self.pixels else noise


def _settle(module: Toy, pictures: Tensor, *, seed: int) -> Toy:
    """Give weights that keep signals alive and BatchNorm statistics near, yet not at, those of noise pictures."""
    torch.manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.7, 1.3)
            nn.init.normal_(layer.bias, std=0.2)
            layer.momentum = None  # plain averages
    with torch.no_grad():
        module.train()(pictures)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean += 0.1 * torch.randn_like(layer.running_mean) * layer.running_var.sqrt()
                layer.running_var *= torch.empty_like(layer.running_var).uniform_(0.8, 1.25)
    return module.eval().requires_grad_(requires_grad=False)


class _Tapped(nn.Module):
    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.toy = toy

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        taps = self.toy.taps(picture)
        return (self.toy.head(taps[-1]), *taps)


TOYS: dict[str, Family] = {
    "vgg": Family(families.vgg),
    "vgg_bn": Family(functools.partial(families.vgg, norm=True)),
    "resnet18": Family(families.resnet18),
    "resnet50": Family(families.resnet50),
    "preact_resnet": Family(families.preact_resnet),
    "resnext": Family(families.resnext),
    "densenet": Family(families.densenet),
    "inception": Family(families.inception, shape=(3, 96, 96)),
    "googlenet": Family(families.googlenet),
    "squeezenet": Family(families.squeezenet),
    "mobilenet_v2": Family(families.mobilenet_v2),
    "mobilenet_v3": Family(families.mobilenet_v3),
    "efficientnet": Family(families.efficientnet),
    "efficientnet_lite": Family(families.efficientnet_lite),
    "mnasnet": Family(families.mnasnet),
    "regnet": Family(families.regnet),
    "shufflenet": Family(families.shufflenet),
    "convnext": Family(families.convnext),
    "single_logit": Family(functools.partial(families.plain, classes=1), activation="sigmoid", classes=1),
    "single_sigmoid": Family(functools.partial(families.plain, nn.Sigmoid(), classes=1), activation="none", classes=1),
    "multi_label": Family(families.plain, activation="sigmoid"),
    "gray": Family(functools.partial(families.plain, depth=1), shape=(1, 64, 80)),
    "softmax_inside": Family(functools.partial(families.plain, nn.Softmax(dim=1)), activation="none"),
    "preprocessing_inside": Family(families.preprocessing_inside, pixels=True),
    "mean_head": Family(families.mean_head),
}


def export(
    module: nn.Module,
    path: Path | None = None,
    *,
    exporter: str = "script",
    opset: int = 18,
    size: tuple[int, int, int] = (3, 64, 64),
    dynamic_batch: bool = True,
    fold: bool = True,
    outputs: Sequence[str] = ("logits",),
) -> onnx.ModelProto:
    """Export a torch module as its users do: input "input" (N, C, H, W), first output "logits".

    Args:
        module: What to export.
        path: Where to write the model as well; None: nowhere.
        exporter: "script" (the older, tracing one, 0.5 s) or "dynamo" (today's, 2 to 4 s).
        opset: ONNX operator set to ask for.
        size: One picture's shape (C, H, W).
        dynamic_batch: Whether the batch size stays open; else it is 1.
        fold: Whether BatchNorm may be folded into the convolution in front of it.
        outputs: Names of the outputs, in order.
    """
    example = (torch.zeros(2 if dynamic_batch else 1, *size),)
    names: dict[str, object] = {"input_names": ["input"], "output_names": list(outputs), "opset_version": opset}
    with _silence():
        if exporter == "dynamo":
            shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
            program = torch.onnx.export(
                module, example, dynamo=True, dynamic_shapes=shapes, optimize=fold, verbose=False, **names
            )
            model = program.model_proto
        else:
            axes = {name: {0: "batch"} for name in ("input", *outputs)} if dynamic_batch else None
            buffer = io.BytesIO()
            mode = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
            torch.onnx.export(module, example, buffer, dynamo=False, dynamic_axes=axes, training=mode, **names)
            model = onnx.load_from_string(buffer.getvalue())
    if path is not None:
        onnx.save(model, path)
    return model


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Both exporters warn about themselves and print; a warning is an error in this suite."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@functools.cache
def _exported(name: str, *, taps: bool, **options: Any) -> onnx.ModelProto:
    family = TOYS[name]
    toy = family.make()
    if not taps:
        return export(toy, size=family.shape, **options)
    outputs = ["logits", *(f"tap_{k}" for k in range(len(toy.stages)))]
    return export(_Tapped(toy), size=family.shape, outputs=outputs, **options)


def toy_model(name: str, *, taps: bool = False, **options: Any) -> onnx.ModelProto:
    """Return a fresh copy of a toy's ONNX graph; exported once per process.

    Args:
        name: A key of `TOYS`.
        taps: Whether the block ends are outputs too (tap_0, tap_1, ..).
        **options: As `export` takes them: exporter, opset, dynamic_batch, fold.
    """
    model = onnx.ModelProto()
    model.CopyFrom(_exported(name, taps=taps, **options))
    return model


LABELS = ("pit", "crack", "stain", "dent", "free")
MEAN, STD, SCALE = (0.45, 0.5, 0.4), (0.25, 0.2, 0.3), 255.0


def labels_of(name: str) -> tuple[str, ...]:
    return LABELS[-max(2, TOYS[name].classes) :]


def card_for(name: str, *, fit: Fit = Fit.TILE) -> ModelCard:
    family = TOYS[name]
    channels, height, width = family.shape
    feed: dict[str, object] = {"mean": MEAN[:channels], "std": STD[:channels]}
    feed |= {"channels": Channels.GRAY} if channels == 1 else {}
    feed |= {"scale": 1.0, "mean": (0.0,), "std": (1.0,)} if family.pixels else {"scale": SCALE}
    return ModelCard(
        name=name,
        version="1",
        labels=labels_of(name),
        ok_labels=("free",),
        input=InputSpec(height, width, fit=fit, **feed),  # type: ignore[arg-type]
        output=OutputSpec(
            Activation(family.activation), positive_label=labels_of(name)[1] if family.classes == 1 else ""
        ),
        verdict=VerdictSpec(0.5, 0.15),
        explain=ExplainSpec(mu=0.0),
    )
