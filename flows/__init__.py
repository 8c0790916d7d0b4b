"""Prefect flows: decorators, retries, limits and schedules around functions of the package."""

import os

# Read when prefect is imported, so they stand before any flow does.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")
