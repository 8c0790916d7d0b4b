"""Write docs/reference/cli.md from the command line itself; `--check` fails when the page is out of date."""

import sys
from pathlib import Path

import typer.main
from typer.core import TyperGroup

from inspect_xai.cli import app

PAGE = Path(__file__).parent / "reference" / "cli.md"


def render() -> str:
    """Return the page: every command with its help, arguments, options and example."""
    lines = ["# Command line", "", "Written by `make format` from the commands themselves.", ""]
    lines += ["Exit codes: 0 ok, 1 findings, 2 usage, others as in [errors.md](errors.md).", ""]
    for name, command in walk(typer.main.get_command(app), "inspect-xai"):
        lines += [f"## {name}", "", _prose(command.help or ""), ""]
        rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            lines += ["| argument or option | default | meaning |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def walk(command: object, name: str) -> list[tuple[str, object]]:
    """Return every leaf command with its full name, in the order of the help."""
    if isinstance(command, TyperGroup):
        return [leaf for key, child in command.commands.items() for leaf in walk(child, f"{name} {key}")]
    return [(name, command)]


def _prose(text: str) -> str:
    return "\n".join(
        f"```\n{line.removeprefix('Example: ').strip()}\n```"
        if line.strip().startswith("Example: ")
        else line.replace("[", "\\[")
        for line in text.strip().splitlines()
    )


def _row(parameter: object) -> str:
    option = parameter.param_type_name == "option"  # type: ignore[attr-defined]
    names = ", ".join(f"`{name}`" for name in parameter.opts) if option else f"`{parameter.name.upper()}`"  # type: ignore[attr-defined]
    default = parameter.default if not callable(parameter.default) else ""  # type: ignore[attr-defined]
    shown = "required" if parameter.required else "" if default in (None, False) else f"`{default}`"  # type: ignore[attr-defined]
    return f"| {names} | {shown} | {_escaped(parameter.help or '')} |"  # type: ignore[attr-defined]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("[", "\\[")


def main() -> None:
    """Write or check the page."""
    page = render()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
            sys.exit(f"{PAGE} is out of date: run `make format`")
        return
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
