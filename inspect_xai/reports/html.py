"""The jinja environment of the pages that are written as files."""

from pathlib import Path

import jinja2


def environment() -> jinja2.Environment:
    """Return an environment of the templates beside this module: escaped, and strict about names."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
