"""`inspect-xai bundle`: build, prove and show model bundles."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import JsonOption, PixelSettingsOption, echo, print_json

if TYPE_CHECKING:
    from inspect_xai.model.bundle import ModelBundle

commands = typer.Typer(help="Build, prove and show model bundles.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(commands, name="bundle", rich_help_panel=Panel.AUDITOR)


@commands.command()
def build(
    model: Annotated[Path, typer.Argument(help="The exported CNN, an .onnx file.")],
    card: Annotated[Path, typer.Option("--card", help="What the model is and how it is fed: card.toml.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that stands there.")] = False,
    black_box: Annotated[
        bool,
        typer.Option(
            "--black-box", help="Take any classifier, no CNN too: rise and occlusion explain it from outside."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Build a bundle from an exported CNN.

    Its blocks are found, its graphs derived and proven equal to the network.

    Example: inspect-xai bundle build model.onnx --card card.toml --out tile.bundle
    """
    from inspect_xai.model.build.build import build_bundle

    _print(build_bundle(model, card, out, force=force, black_box=black_box), as_json=as_json)


@commands.command()
def check(bundle: Annotated[Path, typer.Argument(help="The bundle folder.")], as_json: JsonOption = False) -> None:
    """Prove a bundle again.

    Its files are unchanged, its cuts equal the whole network, its gradients equal finite differences.

    Example: inspect-xai bundle check tile.bundle
    """
    from inspect_xai.model.build.build import check_bundle

    _print(check_bundle(bundle), as_json=as_json)


@commands.command()
def show(bundle: Annotated[Path, typer.Argument(help="The bundle folder.")], as_json: JsonOption = False) -> None:
    """Show a bundle's card, blocks, proofs and fingerprint.

    Example: inspect-xai bundle show tile.bundle --json
    """
    from inspect_xai.model.bundle import load_bundle

    _print(load_bundle(bundle), as_json=as_json)


@commands.command()
def quantize(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.")],
    calibration: Annotated[
        Path, typer.Option("--calibration", help="Folder of pictures like those of the line, with defects among them.")
    ],
    pictures: Annotated[int, typer.Option("--pictures", help="How many of them to take, spread evenly.")] = 32,
    threads: Annotated[int | None, typer.Option("--threads", help="Threads; default: all cores.")] = None,
    settings: PixelSettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a bundle score masked pictures in 8 bits.

    Only as far as its maps stay what they are. Verdicts, gradients and sums stay float. Half of the pictures give the
    ranges; on the other half the maps are compared with float scoring. Refused below the card's int8_fidelity. The
    bundle gets a new fingerprint.

    Example: inspect-xai bundle quantize tile.bundle --calibration pictures/
    """
    from inspect_xai.audit.quantize import quantize_bundle
    from inspect_xai.cli.console import progress_bar
    from inspect_xai.intake.sidecars import is_passed_over, is_picture
    from inspect_xai.intake.sources import read_picture
    from inspect_xai.model.bundle import load_bundle
    from inspect_xai.settings import load_settings

    limits = load_settings(settings).line.limits
    pictures_below = (path for path in calibration.rglob("*") if is_picture(path.name) and path.is_file())
    found = sorted(path for path in pictures_below if not is_passed_over(path.name))
    chosen = [found[index * len(found) // pictures] for index in range(pictures)] if len(found) > pictures else found
    with progress_bar(shown=not as_json) as progress:
        task = progress.add_task("measuring", total=None)
        done = quantize_bundle(
            load_bundle(bundle),
            [read_picture(path, limits=limits).pixels for path in chosen],
            threads=threads,
            advance=lambda: progress.advance(task),
        )
    if as_json:
        print_json({"fingerprint": done.bundle.fingerprint, "tried": done.tried, **done.bundle.manifest["int8"]})
        return
    for one in done.tried:
        echo(
            f"maps up to {one.largest_px:4} px in 8 bits ({one.blocks} blocks, {one.int8_share:.0%} of the masks): "
            f"correlation {one.mean:.3f}, lowest {one.least:.3f}, on {one.pictures} pictures"
        )
    echo(f"{bundle} scores in 8 bits now; fingerprint {done.bundle.fingerprint}")
    echo(f"that is another model, to be approved by itself: inspect-xai model register {bundle} --db URL")


def _print(bundle: "ModelBundle", *, as_json: bool) -> None:
    if as_json:
        print_json({"folder": bundle.folder, "sha256": bundle.sha256, "card": bundle.card, "manifest": bundle.manifest})
        return
    card = bundle.card
    echo(f"{card.name} {card.version}  {bundle.folder}")
    echo(f"fingerprint  {bundle.fingerprint}")
    echo(f"all files    {bundle.sha256}")
    echo(f"labels       {', '.join(card.labels)}  (OK: {', '.join(card.ok_labels) or 'none'})")
    spec = card.input
    echo(f"input        {spec.height} x {spec.width} {spec.channels}, fit {spec.fit}, resize {spec.resize}")
    echo(f"batch        {'any' if bundle.dynamic_batch else '1'}")
    echo(f"gradient     {bundle.manifest['gradient']}")
    echo("blocks")
    for end in bundle.blocks:
        echo(f"  {end.tensor}  {end.op}  {end.channels} x {end.height} x {end.width}  ({end.rule})")
    echo("proofs (largest error found)")
    for name, error in bundle.manifest["proofs"].items():
        echo(f"  {name}  {error}")
