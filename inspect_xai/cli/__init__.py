"""The command line: one module per group of commands, errors turned into exit codes here and nowhere else.

Commands import the rooms they need inside their functions, so that `--help` answers at once.
"""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

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
from inspect_xai.cli.console import use_any_terminal
from inspect_xai.errors import InspectXaiError


class _TwoWords(TyperGroup):
    """Lets a command's name have two words, so that `audit BUNDLE` and `audit compare A B` can both be said."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # typer's own copy of click has the types
        both = " ".join(args[:2])
        if len(args) > 1 and both in self.commands:
            return both, self.commands[both], args[2:]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="inspect-xai",
    cls=_TwoWords,
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
    bundle,
    export,
    model,
    explain,
    audit,
    line,
    serve,
    report,
    quality,
    msa,
    show,
    query,
    replay,
    ledger,
    retention,
    db,
    doctor,
    reinspect,
)
for module in _MODULES:
    module.register(app)


def main() -> None:
    """Run the command line; an error of the house ends it with that error's exit code."""
    use_any_terminal()
    try:
        app()
    except InspectXaiError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_code)
