"""How commands are grouped: names of two words, and the help's sections by who uses a command."""

from enum import StrEnum
from typing import Any

from typer.core import TyperGroup

from inspect_xai.cli.renamed import current_names


class Panel(StrEnum):
    """Sections of the help, in its order."""

    AUDITOR = "Auditor"
    LINE = "Line"
    RECORD = "Record"
    DESK = "Desk"
    OPERATIONS = "Operations"


class CommandGroup(TyperGroup):
    """The commands of `inspect-xai`: `serve` is one, and `serve token` another.

    Its help is plain text, sections included: typer draws boxes that not every terminal shows.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # typer's own copy of click has the types
        """Parse the arguments, old names among them."""
        return super().parse_args(ctx, current_names(args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the first two words name, else the first alone."""
        both = " ".join(args[:2])
        if len(args) > 1 and both in self.commands:
            return both, self.commands[both], args[2:]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  the library's signature
        """Write the commands in one section for each panel."""
        shown = {name: command for name, command in self.commands.items() if not command.hidden}
        room = formatter.width - 6 - max(map(len, shown))
        for panel in Panel:
            rows = [
                (name.ljust(max(map(len, shown))), command.get_short_help_str(room))
                for name, command in shown.items()
                if getattr(command, "rich_help_panel", None) == panel
            ]
            with formatter.section(panel.value):
                formatter.write_dl(rows)
