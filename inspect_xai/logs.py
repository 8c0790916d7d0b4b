"""Logs of an unattended command on stderr: sentences for people, or one JSON object a line for a collector."""

import json
import logging
from datetime import UTC, datetime
from functools import cache

_log = logging.getLogger(__name__)
_FACTS = ("serial", "sha256", "line", "station", "file_name", "verdict", "inspection_id")


class JsonLines(logging.Formatter):
    """Writes a record as one line of JSON, with what it says of a picture as fields of their own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        said |= {name: getattr(record, name) for name in _FACTS if hasattr(record, name)}
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=True, default=str)


def log_as_json() -> None:
    """Send the package's records from INFO upwards to stderr as JSON; without this, warnings go there as text."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("inspect_xai")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


@cache
def warn_renamed(old: str, new: str) -> None:
    """Log, once, what an option, command or setting is called now that was given by its name of 0.1."""
    _log.warning("%s is now called %s; the old name goes in 0.3", old, new)
