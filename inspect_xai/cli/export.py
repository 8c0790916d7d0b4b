"""`inspect-xai export`: a torch module becomes a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import JsonOption, PixelSettingsOption, echo, print_json


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(rich_help_panel=Panel.AUDITOR)(export)


def export(
    factory: Annotated[str, typer.Argument(help="What makes the module: package.module:function or file.py:function.")],
    card: Annotated[Path, typer.Option("--card", help="What the model is and how it is fed: card.toml.")],
    out: Annotated[Path, typer.Option("--out", help="Bundle folder to make.")],
    weights: Annotated[Path | None, typer.Option("--weights", help="State dict of the module.")] = None,
    picture: Annotated[
        list[Path] | None, typer.Option("--picture", help="Real picture to compare on; may be given again.")
    ] = None,
    opset: Annotated[int, typer.Option("--opset", help="ONNX operator set.")] = 18,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that stands there.")] = False,
    settings: PixelSettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a torch classifier as a bundle.

    Needs the extra `export`. The exported network is held to the module on made-up pictures and on those given with
    --picture.

    Example: inspect-xai export train.py:make_model --weights best.pt --card card.toml --out tile.bundle
    """
    import numpy as np

    from inspect_xai.intake.sources import read_picture
    from inspect_xai.maths import tiles
    from inspect_xai.model.build.export import export_bundle, load_module
    from inspect_xai.model.card import read_card
    from inspect_xai.settings import load_settings

    limits = load_settings(settings).line.limits
    known = read_card(card)
    module = load_module(factory, weights=weights)
    windows = []
    for path in picture or []:
        seen = tiles.as_channels(read_picture(path, limits=limits).pixels, known.input.channels)
        windows += [tiles.cut(seen, tile, known.input) for tile in tiles.windows(seen.shape[:2], known.input)]
    bundle, error = export_bundle(
        module, known, out, windows=np.stack(windows) if windows else None, opset=opset, force=force
    )
    if as_json:
        print_json({"folder": bundle.folder, "fingerprint": bundle.fingerprint, "parity": error})
    else:
        echo(f"{known.name} {known.version}  {bundle.folder}")
        echo(f"fingerprint  {bundle.fingerprint}")
        echo(f"parity       {error:.2g} of the output, on {4 + len(windows)} windows")
