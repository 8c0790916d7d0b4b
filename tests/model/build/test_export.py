"""From a torch module to a bundle: parity, no traces of the machine, clear refusals."""

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from inspect_xai.cli import app
from inspect_xai.errors import ModelFileError, SettingsError, UnsupportedModelError
from inspect_xai.model.build.export import export_bundle, load_module
from inspect_xai.records import InputSpec, ModelCard

CARD = ModelCard("toy", "1", ("pit", "crack", "free"), InputSpec(32, 32, mean=(0.5,), std=(0.25,)), ok_labels=("free",))
FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(FACTORY)
    return f"{tmp_path / 'net.py'}:make"


def test_an_exported_module_computes_what_the_module_computes(factory: str, tmp_path: Path) -> None:
    bundle, error = export_bundle(load_module(factory), CARD, tmp_path / "bundle")

    assert error < 1e-5
    assert bundle.dynamic_batch
    assert [(end.channels, end.height) for end in bundle.blocks] == [(6, 32), (8, 16)]


def test_the_file_does_not_say_where_it_was_made(factory: str, tmp_path: Path) -> None:
    bundle, _ = export_bundle(load_module(factory), CARD, tmp_path / "bundle")

    content = (bundle.folder / "model.onnx").read_bytes()
    model = onnx.load_from_string(content)

    assert str(tmp_path).encode() not in content
    assert b"site-packages" not in content
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_a_module_that_behaves_otherwise_once_exported_is_refused(tmp_path: Path) -> None:
    class Forgetful(torch.nn.Module):
        """Adds one to every answer after the first four calls: tracing sees another function than the user does."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.calls = torch.nn.Conv2d(3, 3, 3), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not torch.compiler.is_exporting() and not torch.jit.is_tracing():
                self.calls += 1
            return self.conv(x).relu().mean(dim=(2, 3)) + (1.0 if self.calls > 0 else 0.0)

    with pytest.raises(ModelFileError, match="differs from the module"):
        export_bundle(Forgetful(), CARD, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_module_no_exporter_can_write_is_refused_with_the_reason(tmp_path: Path) -> None:
    class Hopeless(torch.nn.Module):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("this layer was never finished")

    with pytest.raises(UnsupportedModelError, match="never finished"):
        export_bundle(Hopeless(), CARD, tmp_path / "bundle")


@pytest.mark.parametrize("name", ["nowhere.at.all:make", "json:make", "json", "absent.py:make"])
def test_a_factory_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match="factory"):
        load_module(name)


def test_weights_of_another_network_and_pickles_of_code_are_refused(factory: str, tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save(load_module(factory), tmp_path / "whole.pt")

    for name in ("other.pt", "whole.pt"):
        with pytest.raises(SettingsError, match="does not fit"):
            load_module(factory, weights=tmp_path / name)


def test_the_command_makes_a_bundle_from_weights_card_and_pictures(factory: str, tmp_path: Path) -> None:
    module = load_module(factory)
    torch.save(module.state_dict(), tmp_path / "best.pt")
    (tmp_path / "card.toml").write_text(
        'name = "toy"\nversion = "1"\nlabels = ["pit", "crack", "free"]\nok_label = "free"\n'
        "[input]\nheight = 32\nwidth = 32\n"
    )
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "part.png"), rng.integers(0, 256, (40, 50, 3), np.uint8))
    arguments = ["export", factory, "--weights", str(tmp_path / "best.pt"), "--card", str(tmp_path / "card.toml")]

    outcome = CliRunner().invoke(
        app, [*arguments, "--picture", str(tmp_path / "part.png"), "--out", str(tmp_path / "bundle")]
    )

    assert outcome.exit_code == 0, outcome.output
    assert "on 8 windows" in outcome.output
    assert (tmp_path / "bundle" / "manifest.json").is_file()
