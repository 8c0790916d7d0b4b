"""The command line: one module per group of commands, errors turned into exit codes here and nowhere else.

Commands import the packages they need inside their functions, so that `--help` answers at once.
"""

import sys
from typing import Annotated

import typer

from inspect_xai import __version__
from inspect_xai.cli import (
    audit,
    bundle,
    db,
    doctor,
    explain,
    export,
    ledger,
    line,
    model,
    msa,
    quality,
    query,
    reinspect,
    replay,
    report,
    retention,
    serve,
    show,
)
from inspect_xai.cli.command_group import CommandGroup
from inspect_xai.cli.console import use_any_terminal
from inspect_xai.errors import InspectXaiError

app = typer.Typer(
    name="inspect-xai",
    cls=CommandGroup,
    help="Explain the verdicts of defect-inspection CNNs, and keep the record of it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:  # noqa: FBT001  a typer callback takes the option's value
    if asked:
        typer.echo(f"inspect-xai {__version__}")
        raise typer.Exit


@app.callback()
def _frame(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Explain the verdicts of defect-inspection CNNs, and keep the record of it."""


_MODULES = (
    # in the order of the help
    export,
    bundle,
    explain,
    audit,
    model,
    line,
    reinspect,
    show,
    query,
    replay,
    ledger,
    retention,
    serve,
    report,
    quality,
    msa,
    doctor,
    db,
)
for module in _MODULES:
    module.register(app)


def main() -> None:
    """Run the command line; an error of inspect_xai ends it with that error's exit code."""
    use_any_terminal()
    try:
        app()
    except InspectXaiError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_code)
