"""Commands and options by their names of 0.1: they still work, and say what they are called now, until 0.3."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from inspect_xai.logs import warn_renamed

COMMANDS: Mapping[tuple[str, ...], tuple[str, ...]] = MappingProxyType(
    {
        ("explain-missing",): ("reinspect", "--explain-missing"),
        ("token",): ("serve", "token"),
        ("calibrate",): ("model", "calibrate"),
        ("model", "golden"): ("model", "golden-create"),
        ("retention", "rule"): ("retention", "set"),
    }
)

OPTIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "line": {"--keep": "--in-place", "--chunk": "--claim-size", "--bucket": "--batch-size"},
        "explain": {"--bucket": "--batch-size"},
        "bench": {"--keep": "--save"},
    }
)
"""By command, the first of the arguments."""


def current_names(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of the command line with their names of today; of each old one a warning is logged.

    >>> current_names(["model", "list"])
    ['model', 'list']
    """
    words = list(arguments)
    for old, new in COMMANDS.items():
        if tuple(words[: len(old)]) == old:
            warn_renamed(f"inspect-xai {' '.join(old)}", f"inspect-xai {' '.join(new)}")
            words[: len(old)] = new
    options = OPTIONS.get(words[0], {}) if words else {}
    end = words.index("--") if "--" in words else len(words)
    for place, word in enumerate(words[:end]):
        name, equals, value = word.partition("=")
        if name in options:
            warn_renamed(name, options[name])
            words[place] = options[name] + equals + value
    return words
